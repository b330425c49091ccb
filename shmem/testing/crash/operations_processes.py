"""The operations of `crashtest` with processes, threads and read-only handles: fork, the end of a thread, exit, sweep."""

import contextlib
import os
import signal
import threading
import time

import shmem
from shmem import _core
from shmem._objects import arrays
from shmem.testing.crash.checker import living
from shmem.testing.crash.operations import operation, without_messages
from shmem.testing.crash.operations_waiting import opening

# -- fork -------------------------------------------------------------------------------------------------------


@operation("fork: in the parent", same=True, forks=True, small=False)
def _(shm):
    yield
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _fork(shm, act):
    """Return True in the child; the parent stays until it is killed.  On the scratch section the child acts and exits at once."""
    pid = os.fork()
    learns = os.path.basename(shm.path) == "scratch"
    if pid == 0:
        if learns:
            act()
            os._exit(0)
        return True
    if learns:
        os.waitpid(pid, 0)
    else:
        while True:
            signal.pause()
    return False


def _use(shm):
    with shmem.exclusive_lock(shm):
        shm["kept"].sum()
    shm.close()


@operation("fork: in the child, until it has closed", same=True, forks=True, follows=True, small=False)
def _(shm):
    array = shm["kept"]  # the parent's pin is not the child's
    yield
    if _fork(shm, lambda: _use(shm)):
        _use(shm)
    del array


@operation("fork: in the child, the parent holding the lock", same=True, forks=True, follows=True, small=False)
def _(shm):
    lock = shmem.exclusive_lock(shm)
    lock.__enter__()
    yield
    _fork(shm, lambda: lock.__exit__(None, None, None))
    lock.__exit__(None, None, None)  # in the child this does nothing: the lock is not the child's


# -- a thread's end ---------------------------------------------------------------------------------------------


def _in_thread(shm, hold):
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()  # the thread runs on for a while, outside of Python
    while os.path.basename(shm.path) != "scratch":
        signal.pause()


@operation("thread: ends holding the lock", same=True, forks=True, follows=True, small=False)
def _(shm):
    yield
    _in_thread(shm, lambda: shm.lock(shmem.LockDescriptor(shmem.LockMode.exclusive)))


@operation("thread: ends holding lock, share and mutexes", same=True, forks=True, follows=True, small=False)
def _(shm):
    first, second = shm.mutex(name="first"), shm["mutex"]

    def hold():
        shm.lock(shmem.LockDescriptor(shmem.LockMode.shared))
        shm.lock(shmem.LockDescriptor(shmem.LockMode.exclusive))
        first.acquire()
        second.acquire()

    yield
    _in_thread(shm, hold)


# -- what killed processes left -----------------------------------------------------------------------------------


def _killed(shm, act):
    """Run `act()` in a child, which is killed then if it has not killed itself; return when the section's participants see its death."""
    n_participants = len(living(shm))
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    while len(living(shm)) > n_participants:  # its lock goes with its mappings, which one who reads about it in /proc keeps
        time.sleep(0.001)


def _leave_much(shm):
    """Be killed while filling an array, with views of a temporary array and of a deleted one."""
    views = [shm.full(30, 7, temporary=True), shm["new"]]
    del shm["new"]
    arrays.make(shm, 300, float, "C", False, None, False, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    views.clear()


@operation("sweep: nothing was left", same=True)
def _(shm):
    yield
    shm.sweep()


@operation("sweep: arrays, one of them half made", same=True, forks=True, small=False)
def _(shm):
    shm["new"] = range(10)
    _killed(shm, lambda: _leave_much(shm))
    yield
    shm.sweep()


# -- exit, while views are alive or a thread is busy ----------------------------------------------------------------

VIEWS = {
    "a view": lambda shm: shm["kept"],
    "a view of a temporary array": lambda shm: shm.full(30, 7, temporary=True),
    "a view of a deleted array": lambda shm: [shm["kept"], shm.__delitem__("kept")],
}

for what, view in VIEWS.items():
    for alone in (False, True):

        @operation(f"exit: with {what}, {'the last process' if alone else 'another process stays'}", same=True, alone=alone, small=False)
        def _(shm, view=view):
            views = [view(shm)]
            yield
            _core.depart_all()
            del views


@operation("exit: a thread fills an array", same=True, small=False)
def _(shm):
    begun = threading.Event()

    def fill(_):
        begun.set()
        threading.Event().wait()

    threading.Thread(target=arrays.make, args=(shm, 30, float, "C", False, None, False, fill), daemon=True).start()
    begun.wait()
    yield
    _core.depart_all(True)


@operation("claims: leave with messages in flight", same=True, between=without_messages)
def _(shm):
    for n in range(2):
        shmem.dumps(shm.full(30, 7 + n, temporary=True))
    yield
    _core.depart_all()


# -- read-only --------------------------------------------------------------------------------------------------

opening("open: join, read-only", mode="read_only")
opening("open: first opener, read-only", alone=True, mode="read_only")


@operation("read-only handle: get an array, drop it, lock, close", same=True, small=False)
def _(shm):
    reader = shmem.SharedMemory(shm.path, mode="read_only")
    yield
    with contextlib.closing(reader), shmem.shared_lock(reader):
        array = reader["kept"]
        del array
