"""Every store of a process into a section, found by write protection instead of instruction by instruction.  Linux on x86-64.

The tracee's writable mappings of the section are made read-only behind its back.  A store then stops it with SIGSEGV, before the store:
the tracer opens the mapping, lets that one instruction happen, looks, and closes the mapping again.  So no store can
be missed, whoever makes it (this library, libc, the interpreter), and all other instructions run at full speed: a repair
that takes seconds to be stepped takes milliseconds.  The tracee also stops before and after each system call, which is where the kernel
changes the file, its length and its name.

What must hold: the tracee runs user code only while its mappings are closed, and so does the kernel on its behalf: a system call that is
to write into the section (`read`, `getrandom`) is taken from it and made again while the mapping is open.  A repeated string
instruction (`rep movs`) stops at each of its iterations.
"""

import ctypes
import errno
import os

from shmem._ptrace import TraceeEnded, request

_GETREGS, _SETREGS, _SINGLESTEP, _SYSCALL, _GETSIGINFO, _SETOPTIONS = 12, 13, 9, 24, 0x4202, 0x4200
_EXITKILL_AND_SYSGOOD = 0x100001
_STEPPED, _PAUSED, _CALL, _FAULT = 0x057F, 0x137F, 0x857F, 0x0B7F
_READ, _PREAD, _MMAP, _MPROTECT, _MUNMAP, _FUTEX, _GETRANDOM = 0, 17, 9, 10, 11, 202, 318
_STORING = {_READ: "rsi", _PREAD: "rsi", _GETRANDOM: "rdi"}  # calls that write to memory, and by which register
_READ_ONLY, _READ_WRITE = 1, 3
_REPEAT, _FILL_BYTES = 0xF3, 0xAA
_WORD = 0xFFFFFFFFFFFFFFFF


_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs",
    "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip


class Registers(ctypes.Structure):
    """`struct user_regs_struct` of x86-64."""

    _fields_ = [(name, ctypes.c_uint64) for name in _NAMES]


def _find_call_instruction():
    """Where libc has a `syscall` instruction; the tracee, a fork, has it at the same address."""
    start = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    return start + ctypes.string_at(start, 64).index(b"\x0f\x05")


class StoreTrace:
    """A tracee's stores into the mappings of a file, or of several.

    Parameters
    ----------
    tracee : Tracee
        Stopped at a pause.
    path : str
        With this the path of each file begins whose mappings are meant.
    in_haste : bool
        It does not sleep: each time limit of a `futex` wait is set to nothing.
    """

    def __init__(self, tracee, path, in_haste=False):
        self._tracee, self._path = tracee, path
        self._regions = []  # (start, end)
        self._call_at = _find_call_instruction()
        self._registers, self._other = Registers(), Registers()
        self._information = (ctypes.c_uint64 * 16)()
        self._memory = os.open(f"/proc/{tracee.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._in_haste = in_haste
        request(_SETOPTIONS, tracee.pid, 0, _EXITKILL_AND_SYSGOOD)

    def close(self):
        """Let go of the tracee's memory."""
        os.close(self._memory)

    # -- system calls on the tracee's behalf --

    def _wait(self):
        _, status = os.waitpid(self._tracee.pid, 0)
        if not os.WIFSTOPPED(status):
            self._tracee.pid = 0
            raise TraceeEnded(f"the child ended with status {os.waitstatus_to_exitcode(status)}")
        return status

    def _step(self):
        request(_SINGLESTEP, self._tracee.pid)
        status = self._wait()
        if status != _STEPPED:
            raise TraceeEnded(f"a step ended with status {status:#x}")

    def _load(self, registers):
        request(_GETREGS, self._tracee.pid, 0, ctypes.addressof(registers))

    def _store(self, registers):
        request(_SETREGS, self._tracee.pid, 0, ctypes.addressof(registers))

    def _call(self, registers, number, *arguments):
        """Have the tracee, whose registers these are, make a system call; its registers are not put back."""
        other = self._other
        ctypes.memmove(ctypes.addressof(other), ctypes.addressof(registers), ctypes.sizeof(Registers))
        other.rip, other.rax, other.orig_rax = self._call_at, number, _WORD
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(other, name, value)
        self._store(other)
        self._step()
        self._load(other)
        return other.rax

    def _protect(self, registers, access):
        """Open or close all mappings."""
        for start, end in self._regions:
            if self._call(registers, _MPROTECT, start, end - start, access):
                raise TraceeEnded("the mapping cannot be opened or closed")

    def _find_regions(self):
        """The writable mappings of the file, or those that were writable."""
        found = []
        with open(f"/proc/{self._tracee.pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(maxsplit=5)
                if len(fields) > 5 and fields[5].startswith(self._path):
                    start, end = (int(part, 16) for part in fields[0].split("-"))
                    if fields[1] == "rw-s" or (fields[1] == "r--s" and (start, end) in self._regions):
                        found.append((start, end))
        return found

    # -- the trace --

    def run(self, look):
        """Go on to the next pause.

        Parameters
        ----------
        look : callable
            Called as ``look(address)`` after each store and each system call, with the instruction's address.
        """
        registers = self._registers
        self._load(registers)
        self._regions = self._find_regions()
        self._protect(registers, _READ_ONLY)
        self._store(registers)
        inside = False
        while True:
            request(_SYSCALL, self._tracee.pid)
            status = self._wait()
            self._load(registers)
            if status == _FAULT:
                self._one_store(registers, look)
            elif status == _CALL and not inside:
                inside = not self._stores_itself(registers, look)
            elif status == _CALL:
                inside = False
                self._after_call(registers, look)
            elif status == _PAUSED:
                break
            else:
                raise TraceeEnded(f"the child was stopped by signal {os.WSTOPSIG(status)}")
        self._protect(registers, _READ_WRITE)
        self._store(registers)
        look(registers.rip)

    def _covers(self, address):
        return any(start <= address < end for start, end in self._regions)

    def _one_store(self, registers, look):
        request(_GETSIGINFO, self._tracee.pid, 0, ctypes.addressof(self._information))
        if not self._covers(self._information[2]):
            raise TraceeEnded(f"the child was stopped by SIGSEGV at address {self._information[2]:#x}")
        address = registers.rip
        self._protect(registers, _READ_WRITE)
        while registers.rip == address:  # a string instruction: each iteration that stores something new
            repeated = self._skip_same(registers)
            self._store(registers)
            self._step()
            look(address)
            self._load(registers)
            if not repeated:
                break
        self._protect(registers, _READ_ONLY)
        self._store(registers)

    def _skip_same(self, registers):
        """At a `rep` instruction, which is told.  If it fills: skip those iterations that store what is there already."""
        code = os.pread(self._memory, 3, registers.rip)
        if code[0] != _REPEAT:
            return False
        unit = {b"\xaa": 1, b"\x48\xab": 8}.get(code[1:2] if code[1] == _FILL_BYTES else code[1:3])
        if unit is not None and registers.rcx:
            content = os.pread(self._memory, registers.rcx * unit, registers.rdi)
            value = registers.rax.to_bytes(8, "little")[:unit]
            n_same = 0
            if value == value[:1] * unit:
                n_same = (len(content) - len(content.lstrip(value[:1]))) // unit
            registers.rdi += n_same * unit
            registers.rcx -= n_same
        return True

    def _stores_itself(self, registers, look):
        """At the entry of a system call that writes into the section: make it with the mapping open.  True when that was done."""
        number = registers.orig_rax
        if number == _FUTEX and self._in_haste and registers.r10:
            os.pwrite(self._memory, bytes(16), registers.r10)
        where = _STORING.get(number)
        if where is None or not self._covers(getattr(registers, where)):
            return False
        arguments = [getattr(registers, name) for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")]
        registers.orig_rax = _WORD  # no system call: it fails, and that is overwritten
        self._store(registers)
        request(_SYSCALL, self._tracee.pid)
        if self._wait() != _CALL:
            raise TraceeEnded("a system call that was skipped did not return")
        self._load(registers)
        self._protect(registers, _READ_WRITE)
        result = self._call(registers, number, *arguments)
        look(registers.rip)
        self._protect(registers, _READ_ONLY)
        registers.rax = result
        self._store(registers)
        return True

    def _after_call(self, registers, look):
        if registers.rax == _WORD + 1 - errno.EFAULT:
            raise TraceeEnded(f"system call {registers.orig_rax} was refused its memory: the trace changed what it does")
        if registers.orig_rax in (_MMAP, _MUNMAP):
            known = self._regions
            self._regions = found = self._find_regions()
            if found != known:
                self._protect(registers, _READ_ONLY)
                self._store(registers)
        look(registers.rip)
