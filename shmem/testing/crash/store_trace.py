"""A trace of every store of a process into a section, found by write protection instead of instruction by instruction.  Linux.

The tracee's writable mappings of the section are made read-only without its knowledge.  A store then stops it with SIGSEGV before
it takes place.  The tracer opens the mapping, executes that one instruction, looks at the file, and closes the mapping again.  So no store
is missed, whether this library, libc or the interpreter makes it.  All other instructions run at full speed: a repair that takes
seconds to step takes milliseconds.  The tracee also stops before and after each system call, where the kernel changes the file, its length
and its name.

Invariant: the tracee runs user code, and the kernel runs on its behalf, only while the mappings are closed.  A system call that would
write into the section (`read`, `getrandom`) is cancelled and made again while the mapping is open.  A repeated string instruction
(`rep movs`) stops at each of its iterations.
"""

import ctypes
import errno
import os

from shmem.testing.crash.ptrace import TraceeEnded
from shmem.testing.crash.registers import HIDDEN, MACHINE, NAME, Registers, ScalableVectors, request

_SINGLESTEP, _SYSCALL, _GETSIGINFO, _SETOPTIONS = 9, 24, 0x4202, 0x4200
_EXITKILL_AND_SYSGOOD = 0x100001
_STEPPED, _PAUSED, _CALL, _FAULT = 0x057F, 0x137F, 0x857F, 0x0B7F
_STORING = {"read": 1, "pread64": 1, "getrandom": 0}  # calls that write to memory: the number of the argument with the address
_READ_ONLY, _READ_WRITE = 1, 3
_REPEAT, _FILL_BYTES = 0xF3, 0xAA
_WORD = 0xFFFFFFFFFFFFFFFF


def _find_call_instruction():
    """Return the address of an instruction in libc that makes a system call; it is the same in the tracee, which is a fork."""
    start = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    return start + ctypes.string_at(start, 64).index(MACHINE.call)


class StoreTrace:
    """The stores of a tracee into its mappings of one or more files.

    Parameters
    ----------
    tracee : Tracee
        Stopped at a pause.
    path : str
        The paths of the files begin with this.
    in_haste : bool
        Whether the tracee does not sleep: the timeout of each `futex` wait is set to zero.
    """

    def __init__(self, tracee, path, in_haste=False):
        self._tracee, self._path = tracee, path
        self._regions = []  # (start, end)
        self._call_at = _find_call_instruction()
        self._registers, self._other, self._vectors = Registers(), Registers(), ScalableVectors()
        self._numbers = MACHINE.numbers
        self._storing = {self._numbers[name]: argument for name, argument in _STORING.items()}
        self._is_at_call = False  # stopped at a system call, where the kernel hides a register
        self._information = (ctypes.c_uint64 * 16)()
        self._memory = os.open(f"/proc/{tracee.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._in_haste = in_haste
        request(_SETOPTIONS, tracee.pid, 0, _EXITKILL_AND_SYSGOOD)

    def close(self):
        """Close the tracee's memory."""
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

    def _call(self, registers, number, *arguments):
        """Make a system call in the tracee, which has these registers; they are not restored."""
        other, pid = self._other, self._tracee.pid
        other.copy_from(registers)
        other.prepare_call(self._call_at, number, arguments)
        other.store(pid)
        self._step()
        other.load(pid)
        if self._is_at_call and HIDDEN:
            setattr(registers, HIDDEN, getattr(other, HIDDEN))
        self._is_at_call = False
        return other.result

    def _protect(self, registers, access):
        """Open or close all mappings."""
        self._vectors.load(self._tracee.pid)
        for start, end in self._regions:
            if self._call(registers, self._numbers["mprotect"], start, end - start, access):
                raise TraceeEnded("the mapping cannot be opened or closed")
        self._vectors.store(self._tracee.pid)

    def _find_regions(self):
        """Return the mappings of the files that are writable, or were before they were protected."""
        found = []
        with open(f"/proc/{self._tracee.pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(maxsplit=5)
                if len(fields) > 5 and fields[5].startswith(self._path):
                    start, end = (int(part, 16) for part in fields[0].split("-"))
                    if fields[1] == "rw-s" or (fields[1] == "r--s" and self._covers(start)):  # the rest, if a part was replaced
                        found.append((start, end))
        return found

    # -- the trace --

    def run(self, look):
        """Continue to the next pause.

        Parameters
        ----------
        look : callable
            Called as ``look(address)`` after each store and each system call, with the instruction's address.
        """
        registers, pid = self._registers, self._tracee.pid
        registers.load(pid)
        self._regions = self._find_regions()
        self._protect(registers, _READ_ONLY)
        registers.store(pid)
        inside = False
        while True:
            request(_SYSCALL, pid)
            status = self._wait()
            registers.load(pid)
            self._is_at_call = status == _CALL
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
        registers.store(pid)
        look(registers.counter)

    def _covers(self, address):
        return any(start <= address < end for start, end in self._regions)

    def _one_store(self, registers, look):
        request(_GETSIGINFO, self._tracee.pid, 0, ctypes.addressof(self._information))
        if not self._covers(self._information[2]):
            raise TraceeEnded(f"the child was stopped by SIGSEGV at address {self._information[2]:#x}")
        address, pid = registers.counter, self._tracee.pid
        self._protect(registers, _READ_WRITE)
        while registers.counter == address:  # more than once for a string instruction: each iteration that stores something new
            repeated = NAME == "x86_64" and self._skip_same(registers)
            registers.store(pid)
            self._step()
            look(address)
            registers.load(pid)
            if not repeated:
                break
        self._protect(registers, _READ_ONLY)
        registers.store(pid)

    def _skip_same(self, registers):
        """Return whether the next instruction is a `rep` instruction; if it fills, skip iterations that would change nothing."""
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
        """Make a system call that would write into the section, at its entry, with the mapping open; return whether that was done."""
        number, pid = registers.number, self._tracee.pid
        if number == self._numbers["futex"] and self._in_haste and registers.argument(3):
            os.pwrite(self._memory, bytes(16), registers.argument(3))
        where = self._storing.get(number)
        if where is None or not self._covers(registers.argument(where)):
            return False
        arguments = [registers.argument(i) for i in range(6)]
        registers.cancel_call(pid)
        request(_SYSCALL, pid)
        if self._wait() != _CALL:
            raise TraceeEnded("a cancelled system call did not return")
        registers.load(pid)
        self._protect(registers, _READ_WRITE)
        result = self._call(registers, number, *arguments)
        look(registers.counter)
        self._protect(registers, _READ_ONLY)
        registers.result = result
        registers.store(pid)
        return True

    def _after_call(self, registers, look):
        if registers.result == _WORD + 1 - errno.EFAULT:
            raise TraceeEnded(f"system call {registers.number} failed with EFAULT because of the write protection")
        if registers.number in (self._numbers["mmap"], self._numbers["munmap"]):
            known = self._regions
            self._regions = found = self._find_regions()
            if found != known:
                self._protect(registers, _READ_ONLY)
                registers.store(self._tracee.pid)
        look(registers.counter)
