"""A child process that its parent executes instruction by instruction, through `ptrace(2)`.  Linux.

Only this module, `testing.crash.registers` and `testing.crash.store_trace` use the system's debugging interface, through ctypes.

A `Tracee` is a fork of this process.  It runs, and stops whenever it calls `pause()`.  The parent continues it to the next pause (`go`)
or for one instruction (`step`).  It dies with its parent.
"""

import bisect
import contextlib
import contextvars
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings

from shmem.testing.crash import registers
from shmem.testing.crash.registers import ptrace, request

_TRACEME, _CONT, _SINGLESTEP, _SETOPTIONS = 0, 7, 9, 0x4200
_DETACH, _GETEVENTMSG = 17, 0x4201
_EXITKILL, _TRACEFORK, _TRACECLONE = 0x100000, 2, 8
_FORKED, _CLONED = signal.SIGTRAP | 1 << 8, signal.SIGTRAP | 3 << 8
_ANY_KIND = 0x40000000  # __WALL: threads too
_CHILD_ENDED = 0x117F  # stopped by SIGCHLD
_PDEATHSIG = 1
_STEPPED = 0x057F  # the status of waitpid after one instruction: stopped by SIGTRAP
_PAUSED = 0x137F  # stopped by SIGSTOP
_LONGEST_SECONDS = 300

_libc = ctypes.CDLL(None)


def why_not():
    """Return None if processes can be stepped here, otherwise a text with the reason and what to do."""
    if sys.platform != "linux":
        return f"stepping through a process needs Linux; this is {sys.platform}"
    reason = registers.why_not()
    if reason is not None:
        return reason
    try:
        tracee = Tracee(pause)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return (
            f"ptrace is not permitted here ({error.strerror}). In a container, use --cap-add=SYS_PTRACE or a seccomp profile that allows "
            "ptrace; elsewhere, /proc/sys/kernel/yama/ptrace_scope must be below 3"
        )
    tracee.kill()
    return None


def pause():
    """Stop until the parent continues this process, which is a tracee."""
    signal.raise_signal(signal.SIGSTOP)


def _has_memory(pid):
    """Return whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class TraceeEnded(Exception):
    """The tracee ended, or was stopped by an unexpected signal."""


class Tracee:
    """A forked child that runs `function(*arguments)`, stopped at its first `pause()`.

    Parameters
    ----------
    function : callable
        Runs in the child, which ends when it returns.
    *arguments
        Arguments of the function.

    Raises
    ------
    OSError
        ptrace is not permitted.
    TraceeEnded
        The child ended before its first pause.
    """

    def __init__(self, function, *arguments):
        contextvars.copy_context()  # makes this thread's context, whose address a mutex stores: every child then has the same
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads: numpy's, which are idle
            self.pid = os.fork()
        if self.pid == 0:
            self._be(function, arguments)
        self._parent = 0  # of the process or thread that is followed
        self._registers = registers.Registers()
        self._message = ctypes.c_ulong()
        try:
            self._wait_for_pause()
            request(_SETOPTIONS, self.pid, 0, _EXITKILL)
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def _be(function, arguments):
        status = 1
        try:
            _libc.prctl(_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(_LONGEST_SECONDS)
            try:
                request(_TRACEME, 0)
            except OSError as error:
                os._exit(error.errno)
            function(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _wait_for_pause(self):
        _, status = os.waitpid(self.pid, 0)
        while status == _CHILD_ENDED:
            request(_CONT, self.pid)
            _, status = os.waitpid(self.pid, 0)
        if status == _PAUSED:
            return
        if os.WIFSTOPPED(status):
            number = os.WSTOPSIG(status)
            self.kill()
            raise TraceeEnded(f"the child was stopped by {signal.Signals(number).name}")
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
        raise TraceeEnded(f"the child ended with status {code}")

    def go(self):
        """Continue to the next pause."""
        request(_CONT, self.pid)
        self._wait_for_pause()

    def step(self):
        """Execute one instruction; return False if that led to the next pause."""
        ptrace(_SINGLESTEP, self.pid, 0, 0)
        _, status = os.waitpid(self.pid, _ANY_KIND)
        if status == _STEPPED:
            return True
        while status == _CHILD_ENDED:
            ptrace(_SINGLESTEP, self.pid, 0, 0)
            _, status = os.waitpid(self.pid, _ANY_KIND)
        if status == _STEPPED:
            return True
        if status == _PAUSED or (self._parent and os.WIFEXITED(status)):
            return False
        if not os.WIFSTOPPED(status):
            self.pid = 0
            raise TraceeEnded(f"the child ended with status {os.waitstatus_to_exitcode(status)}")
        raise TraceeEnded(f"the child was stopped by {signal.Signals(os.WSTOPSIG(status)).name}")

    def follow(self):
        """Continue until the tracee starts a process or a thread, and trace that instead; the first tracee then runs freely."""
        request(_SETOPTIONS, self.pid, 0, _EXITKILL | _TRACEFORK | _TRACECLONE)
        request(_CONT, self.pid)
        _, status = os.waitpid(self.pid, 0)
        if status >> 8 not in (_FORKED, _CLONED):
            raise TraceeEnded(f"the child started neither process nor thread, status {status:#x}")
        request(_GETEVENTMSG, self.pid, 0, ctypes.addressof(self._message))
        new = self._message.value
        os.waitpid(new, _ANY_KIND)  # its first stop
        request(_SETOPTIONS, new, 0, _EXITKILL)
        request(_DETACH, self.pid)
        self._parent, self.pid = self.pid, new

    def position(self):
        """Return the address of the next instruction."""
        self._registers.load(self.pid)
        return self._registers.counter

    def kill(self):
        """Kill the tracee and the processes it started, and wait until they are gone, and their locks with them."""
        first = self._parent or self.pid
        if not first:
            return
        children = []
        with contextlib.suppress(OSError), open(f"/proc/{first}/task/{first}/children", encoding="ascii") as file:
            children = [int(text) for text in file.read().split()]
        for pid in {first, *children}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._parent and self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, _ANY_KIND)
        os.waitpid(first, _ANY_KIND)
        while any(_has_memory(pid) for pid in children):  # this process cannot wait for them: they are not its children
            time.sleep(0.001)
        self.pid = self._parent = 0


class Places:
    """The code in a process: translates an address to a file and, where `nm` knows it, the name of a function.

    Parameters
    ----------
    pid : int
    """

    def __init__(self, pid):
        self._regions = []  # (start, end, offset in the file, path)
        self._symbols = {}
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(maxsplit=5)
                if "x" in fields[1]:
                    start, end = (int(part, 16) for part in fields[0].split("-"))
                    self._regions.append((start, end, int(fields[2], 16), fields[5].strip() if len(fields) > 5 else ""))

    def interpreter(self):
        """Return the address ranges of the Python interpreter's own code."""
        return [(start, end) for start, end, _, path in self._regions if os.path.basename(path).startswith(("python", "libpython"))]

    def name(self, address):
        """Return the text ``function+offset (file)`` for an address."""
        for start, end, offset, path in self._regions:
            if start <= address < end:
                return self._name_in(path, address - start + offset)
        return f"{address:#x}"

    def _name_in(self, path, offset):
        addresses, names = self._symbols.setdefault(path, None) or self._read_symbols(path)
        i = bisect.bisect_right(addresses, offset) - 1
        where = os.path.basename(path) or "unnamed memory"
        return f"{names[i]}+{offset - addresses[i]:#x} ({where})" if i >= 0 else f"{where}+{offset:#x}"

    def _read_symbols(self, path):
        """Return addresses and names of a file's functions, with addresses taken to be file offsets, as linkers lay code out today."""
        found = []
        nm = shutil.which("nm")
        if nm and os.path.isfile(path):
            text = subprocess.run([nm, "--defined-only", path], capture_output=True, text=True, check=False).stdout
            for line in text.splitlines():
                fields = line.split()
                if len(fields) == 3 and fields[1] in "tTwWi":
                    found.append((int(fields[0], 16), fields[2]))
        found.sort()
        self._symbols[path] = [address for address, _ in found], [name for _, name in found]
        return self._symbols[path]
