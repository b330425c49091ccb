"""An operation executed one instruction at a time, with a copy of the section whenever it changes."""

import ctypes
import gc
import hashlib
import os

import shmem
from shmem._base.system_tools import map_shared
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import MAX_SIZE
from shmem.testing.crash.results import State, Trouble

MOST_STEPS = 3_000_000

_libc = ctypes.CDLL(None)
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Watch:
    """A section's file, compared with its content at the previous look.

    Parameters
    ----------
    path : str
    resizes : bool
        Whether the file changes its size.  If so it is read; otherwise it is mapped, which is faster.
    """

    def __init__(self, path, resizes):
        self._file = open(path, "r+b")  # noqa: SIM115 - closed by close()
        self._map = None
        self.last = b""
        if not resizes:
            self._map = map_shared(self._file.fileno())
            self._here = (ctypes.c_char * len(self._map)).from_buffer(self._map)
            self._address = ctypes.addressof(self._here)
        self.changed()

    def changed(self):
        """Return the new content, or None if it is unchanged."""
        if self._map is not None:
            if self.last and not _memcmp(self._address, self.last, len(self.last)):
                return None
            self.last = self._map[:]
            return self.last
        content = os.pread(self._file.fileno(), 2 * MAX_SIZE, 0)
        if content == self.last:
            return None
        self.last = content
        return content

    def close(self):
        """Close the file."""
        if self._map is not None:
            del self._here
            self._map.close()
        self._file.close()


class OneProcessor:
    """The processor that parent and tracee share: they take turns, and on one processor that takes half the time.

    Parameters
    ----------
    number : int
        Index into the processors that this process may use.
    """

    def __init__(self, number=0):
        self._allowed = os.sched_getaffinity(0)
        self._chosen = {sorted(self._allowed)[number % len(self._allowed)]}

    def __enter__(self):
        os.sched_setaffinity(0, self._chosen)

    def __exit__(self, *_):
        os.sched_setaffinity(0, self._allowed)

    def bring(self, tracee):
        """Move a tracee to this processor."""
        os.sched_setaffinity(tracee.pid, self._chosen)


def step_through(tracee, watch, result, let_go_after=0, let_go=None):
    """Step to the next pause and return the distinct states, the first one included.

    Parameters
    ----------
    tracee : Tracee
    watch : Watch
    result : Result
        Steps and changes are added to it.
    let_go_after : int, optional
        Number of changes after which `let_go()` is called; 0 for never.
    let_go : callable, optional

    Raises
    ------
    Trouble
        The operation is not done after MOST_STEPS instructions.
    """
    ranges = ptrace.Places(tracee.pid).interpreter()
    (low, high), (low2, high2) = [*ranges, (0, 0), (0, 0)][:2]
    seen = {hashlib.blake2b(watch.last).digest()}
    states = [State(watch.last, 0, 0)]
    step, position, changed = tracee.step, tracee.position, watch.changed
    n, before, was_outside, changes_left = 0, position(), True, let_go_after
    has_let_go = False
    while step():
        n += 1
        address = position()
        outside = not (low <= address < high or low2 <= address < high2)
        if was_outside or outside:
            content = changed()
            if content is not None:
                result.changes += 1
                result.late += not was_outside
                digest = hashlib.blake2b(content).digest()
                if digest not in seen:
                    seen.add(digest)
                    states.append(State(content, n, before, has_let_go))
                changes_left -= 1
                if changes_left == 0:
                    let_go()
                    has_let_go = True
        before, was_outside = address, outside
        if n > MOST_STEPS:
            raise Trouble(f"not done after {n:,} instructions")
    result.steps += n
    return states


def victim_main(operation, path, scratch):
    """Run the operation in the process that will be killed: once on a scratch section, so that all code is loaded, then on `path`."""
    gc.disable()
    for place, wait in ((scratch, lambda: None), (path, ptrace.pause)):
        section = place if operation.opens else shmem.SharedMemory(place)
        it = operation.ready(section)
        if place == scratch and operation.beside is not None:
            with operation.beside(section):  # no other process is there to end its wait
                pass
        wait()
        operation.run(section, it)
        wait()
        del section, it
