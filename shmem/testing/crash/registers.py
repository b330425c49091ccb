"""The registers of a traced process and its system calls, on x86-64 and on Arm (AArch64) with the atomic instructions of Armv8.1.

Without those instructions (LSE) a process cannot be stepped on Arm: a stop between the two halves of a load-exclusive/store-exclusive
pair makes the store fail, so that a loop of them never ends.

A system call does not preserve Arm's scalable vectors (SVE).  It leaves the predicates empty, and a store governed by them, as in libc's
`memcpy`, would store nothing.  A tracer that inserts a system call must therefore save and restore the vectors (`ScalableVectors`).

While a tracee is stopped at a system call on Arm, the kernel shows its tracer a mark of the kernel's own in x7 and ignores changes to it.
The true value is visible again at the next stop (`HIDDEN`).
"""

import ctypes
import dataclasses
import os
import platform

_GETREGSET, _SETREGSET = 0x4204, 0x4205
_PRSTATUS, _SYSTEM_CALL, _SVE = 1, 0x404, 0x405
_HWCAP, _HWCAP_ATOMICS, _HWCAP_SVE = 16, 1 << 8, 1 << 22
_SVE_BYTES = 1 << 14  # enough for the longest vectors, 2048 bits, which take just under 9 KB
_NONE = 0xFFFFFFFFFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
ptrace = _libc.ptrace
ptrace.restype = ctypes.c_long
ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The differences between processors."""

    names: tuple
    """The registers in the kernel's order (`struct user_regs_struct`, `struct user_pt_regs`)."""
    counter: str
    """The register with the address of the next instruction."""
    number: str
    """The register with the number of the system call, while it is made."""
    result: str
    arguments: tuple
    call: bytes
    """The instruction that makes a system call."""
    numbers: dict
    """System calls by name."""


_MACHINES = {
    "x86_64": Machine(
        names=(
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip",
            "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
        ),
        counter="rip",
        number="orig_rax",
        result="rax",
        arguments=("rdi", "rsi", "rdx", "r10", "r8", "r9"),
        call=b"\x0f\x05",
        numbers={"read": 0, "pread64": 17, "mmap": 9, "mprotect": 10, "munmap": 11, "futex": 202, "getrandom": 318},
    ),
    "aarch64": Machine(
        names=(*[f"x{i}" for i in range(31)], "sp", "pc", "pstate"),
        counter="pc",
        number="x8",
        result="x0",
        arguments=("x0", "x1", "x2", "x3", "x4", "x5"),
        call=b"\x01\x00\x00\xd4",
        numbers={"read": 63, "pread64": 67, "mmap": 222, "mprotect": 226, "munmap": 215, "futex": 98, "getrandom": 278},
    ),
}  # fmt: skip
NAME = platform.machine()
MACHINE = _MACHINES.get(NAME)
HIDDEN = "x7" if NAME == "aarch64" else None


def _has(capability):
    """Return whether this is an Arm processor that has a capability."""
    return NAME == "aarch64" and _libc.getauxval(ctypes.c_ulong(_HWCAP)) & capability != 0


def why_not():
    """Return None if this module works on this machine, otherwise a text with the reason."""
    if MACHINE is None:
        return f"stepping through a process needs x86-64 or Arm (aarch64); this is {NAME}"
    if NAME == "aarch64" and not _has(_HWCAP_ATOMICS):
        return "stepping through a process needs the atomic instructions of Armv8.1 (LSE), which this processor lacks"
    return None


def request(number, pid, address=0, data=0):
    """Call `ptrace(2)`; raise OSError on failure."""
    ctypes.set_errno(0)
    result = ptrace(number, pid, address, data)
    if result == -1 and ctypes.get_errno():
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace: {os.strerror(error)}")
    return result


class Registers(ctypes.Structure):
    """All registers except those for floating point, as attributes named as in the machine's manual."""

    _fields_ = [(name, ctypes.c_uint64) for name in (MACHINE.names if MACHINE else ())]

    def __init__(self):
        self._vector = (ctypes.c_uint64 * 2)(ctypes.addressof(self), ctypes.sizeof(self))  # struct iovec
        self._vector_at = ctypes.addressof(self._vector)

    def load(self, pid):
        """Load the registers of a stopped process."""
        request(_GETREGSET, pid, _PRSTATUS, self._vector_at)

    def store(self, pid):
        """Store the registers into a stopped process."""
        request(_SETREGSET, pid, _PRSTATUS, self._vector_at)

    def copy_from(self, other):
        """Copy all registers from another instance."""
        ctypes.memmove(ctypes.addressof(self), ctypes.addressof(other), ctypes.sizeof(Registers))

    def argument(self, i):
        """Return the i-th argument of a system call, at its entry."""
        return getattr(self, MACHINE.arguments[i])

    @property
    def counter(self):
        """The address of the next instruction."""
        return getattr(self, MACHINE.counter)

    @property
    def number(self):
        """The number of the system call, at its entry and at its end."""
        return getattr(self, MACHINE.number)

    @property
    def result(self):
        """The result of the system call, at its end."""
        return getattr(self, MACHINE.result)

    @result.setter
    def result(self, value):
        setattr(self, MACHINE.result, value)

    def prepare_call(self, address, number, arguments):
        """Set the registers so that the next instruction, at `address`, makes a system call."""
        setattr(self, MACHINE.counter, address)
        for name, value in zip(MACHINE.arguments, arguments, strict=False):
            setattr(self, name, value)
        if NAME == "x86_64":
            self.rax, self.orig_rax = number, _NONE  # none: there is no call for the kernel to restart
        else:
            self.x8 = number

    def cancel_call(self, pid):
        """Prevent a system call, at its entry.  It then fails, and the caller must overwrite the result."""
        if NAME == "x86_64":
            self.orig_rax = _NONE
            self.store(pid)
        else:
            none = ctypes.c_int(-1)
            vector = (ctypes.c_uint64 * 2)(ctypes.addressof(none), ctypes.sizeof(none))
            request(_SETREGSET, pid, _SYSTEM_CALL, ctypes.addressof(vector))


class ScalableVectors:
    """Arm's scalable vectors, which include all registers for floating point; empty on a processor without them."""

    def __init__(self):
        self._exist = _has(_HWCAP_SVE)
        self._content = (ctypes.c_char * _SVE_BYTES)()
        self._vector = (ctypes.c_uint64 * 2)()

    def load(self, pid):
        """Load the vectors of a stopped process."""
        if self._exist:
            self._vector[:] = ctypes.addressof(self._content), _SVE_BYTES
            request(_GETREGSET, pid, _SVE, ctypes.addressof(self._vector))  # which sets the length to that of the content

    def store(self, pid):
        """Store the vectors into a stopped process."""
        if self._exist:
            request(_SETREGSET, pid, _SVE, ctypes.addressof(self._vector))
