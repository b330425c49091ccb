"""Functions that tests run in other processes and threads, in a module that spawned processes can import."""

import contextlib
import fcntl
import os
import struct
import threading
import time
import traceback
import warnings
from pathlib import Path

import shmem
from shmem import exclusive_lock, shared_lock
from shmem._objects.semaphore import has_waiters

F_OFD_SETLK = 37
F_OFD_SETLKW = 38
# the beginning of a child's code, whose first argument is where the section is
OPEN = "import threading, warnings\nsection = shmem.SharedMemory(**eval(args[0]))\n"
FUTEX = {"x86_64": "202", "aarch64": "98"}
FUTEX_PRIVATE_FLAG = 0x80
CLOCK_NANOSLEEP = {"x86_64": "230", "aarch64": "115"}


def in_child(function):
    """Call a function in a forked child; return the child's exit code, 0 if the function returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads, which is what these tests do
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_thread(function):
    """Call a function in another thread; return its result, or the exception that it raised."""
    result = []

    def run():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return result[0]


def wait_for(condition):
    """Wait until `condition()` is true, for at most 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def call_of(thread):
    """Return the system call in which a thread of any process sleeps, as number and arguments; [] if it runs."""
    return Path(f"/proc/{thread}/syscall").read_text().split()[:-2]


def waits_for_mutex(thread):
    """Return whether a thread sleeps in pthread_mutex_lock: in a futex call with FUTEX_WAIT_PRIVATE, unlike Python's own locks."""
    return call_of(thread)[2:3] == ["0x80"]


def waits_for_byte(thread):
    """Return whether a thread sleeps in fcntl(F_OFD_SETLKW)."""
    return call_of(thread)[2:3] == [hex(F_OFD_SETLKW)]


def pauses(thread):
    """Return whether a thread sleeps between two attempts of the library: in clock_nanosleep, for a time, unlike Python's own sleeps."""
    call = call_of(thread)
    return call[:1] == [CLOCK_NANOSLEEP[os.uname().machine]] and call[2] == "0x0"


def waits_for_others(thread):
    """Return whether a thread sleeps in a futex call of the library, which other processes can end: without FUTEX_PRIVATE_FLAG."""
    call = call_of(thread)
    return call[:1] == [FUTEX[os.uname().machine]] and int(call[2], 16) & FUTEX_PRIVATE_FLAG == 0


def lock_byte(fd, offset):
    """Lock a byte of a file through a description of its own."""
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))


def take_over(section, deaths, warned=True):
    """Acquire the exclusive lock after `deaths` deaths, with a warning if `warned`; the section must be intact."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with shmem.exclusive_lock(section, 20):
            pass
    assert [one.category for one in caught] == [shmem.OwnerDiedWarning] * bool(deaths and warned)
    assert section.owner_deaths == deaths
    section.check_heap()


def wait_for_waiter(section):
    """Wait until a process sleeps on the lock."""
    wait_for(lambda: section.stats().lock_waiters > 0)


def lock_of(section, mode):
    """Return the section's lock in the mode 'exclusive' or 'shared'."""
    return exclusive_lock(section) if mode == "exclusive" else shared_lock(section)


def holds(shm):
    """Return the state of the lock as another thread sees it: 'exclusive', 'shared' or 'free'."""

    def look():
        for lock, seen in ((exclusive_lock, "free"), (shared_lock, "shared")):
            with contextlib.suppress(shmem.LockTimeout), lock(shm, 0):
                return seen
        return "exclusive"

    return in_thread(look)


class Point(shmem.Struct, type_name="tests.Point"):
    x: shmem.float64 = 1.5
    n: shmem.int64


def add_one(array):
    array += 1
    return array[:2]


def add_number(array, number):
    array += number


def bump(point):
    point.n += 1
    return point


def describe(obj):
    return type(obj).__name__, os.getpid()


def fill(block, section):
    memoryview(block)[:] = b"x" * block.nbytes
    with shmem.exclusive_lock(section):
        section["from child"] = [os.getpid()]


def double(numbers, doubled):
    """Pass doubled numbers from one queue to another, until the first one is shut down."""
    while True:
        try:
            doubled.put(2 * numbers.get())
        except shmem.QueueShutDown:
            return


def pass_on(taken, given):
    """Take a unit of one semaphore and add one to another."""
    taken.wait()
    given.signal()
    return type(taken).__name__, type(given).__name__


def add_under(mutex, counter, n):
    for _ in range(n):
        with mutex:
            counter[0] += 1


def lock_for_parent(section, array, link):
    """Wait for the lock that the parent holds, then hold it until the parent sends "release"."""
    try:
        with exclusive_lock(section, 0):
            link.send("got in")
    except shmem.LockTimeout:
        link.send("kept out")
    with exclusive_lock(section):
        link.send("held")
        assert link.recv() == "release"
        array[0] += 1


def outcome(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:
        for kind in (ValueError, RuntimeError, TypeError):
            if isinstance(error, kind):
                return kind
        raise


def wait_until_has_waiters(semaphore):
    while not has_waiters(semaphore):
        os.sched_yield()
