"""Handles, which are small picklable references to objects in a section; and what a process does with its sections at exit."""

import atexit
import contextlib
import importlib
import sys
import threading
import time

import numpy as np

from shmem import _core
from shmem._base.errors import ClosedError, InvalidBlock
from shmem._base.system_tools import shared_name_of
from shmem._objects import arrays, claims, finding, lock, queue_ring
from shmem._objects.shared_memory import SharedMemory

_noted = threading.local()  # claims: those of the message that this thread pickles, where a failure is to drop them


def handle(obj, *, claim=None):
    """Return a handle of an array, object, queue, block or section, to be sent to another process.

    Parameters
    ----------
    obj : numpy.ndarray, memoryview, Struct, Queue, Semaphore, Event, Mutex, Block or SharedMemory
        An array or a memoryview may be any view of memory in a section, one that another library made included.
    claim : float, optional
        Keep the array, whatever becomes of it here, until the handle is opened for the first time, but at most for so many seconds.
        Otherwise the sender must keep a temporary array, or one whose name was deleted, until the receiver has opened the handle.

    Returns
    -------
    Handle

    Raises
    ------
    InvalidBlock
        `obj` is not in an open section.
    TypeError
        With `claim`: `obj` is not an array.  Other objects stay until they are freed.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     array = shm.array([1, 2, 3])
    ...     print(shmem.handle(array[1:]).open())
    [2 3]
    """
    made, memory = _describe(obj)
    if claim is None:
        return made
    lifetime_ns = claims.lifetime_argument(claim)
    if made.offset == 0:
        raise TypeError(f"cannot claim a {type(obj).__name__}: only arrays can be claimed")
    return made._with_claim(claims.claim(memory, made.offset, made.serial, lifetime_ns))


def reference(obj):
    """Return the handle that a pickler sends for an object: with a claim on an array that has no name."""
    made, memory = _describe(obj)
    claim = claims.claim_in_flight(memory, made.offset, made.serial) if made.offset != 0 else None
    if claim is None:
        return made
    noted = getattr(_noted, "claims", None)
    if noted is not None:
        noted.append((memory, claim))
    return made._with_claim(claim)


@contextlib.contextmanager
def dropping_claims_of_failures():
    """Drop the claims that this thread makes within the context if an exception leaves it: the message is not sent."""
    outer, _noted.claims = getattr(_noted, "claims", None), []
    try:
        yield
    except BaseException:
        for memory, claim in _noted.claims:
            with contextlib.suppress(ClosedError):
                claims.drop(memory, *claim)
        raise
    else:
        if outer is not None:
            outer.extend(_noted.claims)
    finally:
        _noted.claims = outer


def _describe(obj):
    """Return a handle without a claim, and the section."""
    memory = obj if isinstance(obj, SharedMemory) else finding.find_storage(obj)
    if memory is None:
        finding.refuse_names("make a handle of", obj)
        raise InvalidBlock(
            f"cannot make a handle of this {type(obj).__name__}: it was freed, or is not in a section that is open in this process"
        )
    device, inode, anonymous = finding.file_of(memory)
    offset = serial = 0
    view = None
    if obj is not memory:
        offset, serial = finding.locate(memory, obj)
        if isinstance(obj, (np.ndarray, memoryview)):
            view = arrays.view_facts(memory, offset, obj)
    path = memory.path
    name = shared_name_of(path) if anonymous else path
    return sys.modules[RECORDS].Handle(path, name, anonymous, memory.uuid, device, inode, memory.mode, offset, serial, view), memory


RECORDS = "shmem._objects.records"


def _import_the_rest():
    """Import the modules that an open section may need but `import shmem` does not; later an import may find no free descriptor."""
    for name in ("json", "shmem._objects.multiprocess", RECORDS):
        importlib.import_module(name)


_core.register_first_opening(_import_the_rest)


N_ATTEMPTS = 10  # to leave all sections at exit


# -- exit -------------------------------------------------------------------------------------------------


def leave_all():
    """Leave every section.  Python has joined all threads but daemon threads, and those that exit handlers have started."""
    lock.end_thread()
    queue_ring.let_go_of_queues()
    for attempts_left in reversed(range(N_ATTEMPTS)):
        if _core.depart_all(attempts_left == 0):
            return
        time.sleep(0.01)  # a thread that fills a new array needs the GIL to finish it


def _leave_after(threads):
    """Leave every section once the main thread and these have ended."""
    for thread in (threading.main_thread(), *threads):
        thread.join()
    leave_all()


def leave_at_end():
    """Leave every section at the end of a multiprocessing child, which runs this before it joins its threads, and no atexit functions.

    Threads that still run may use the section until they end.  Some of them, an executor's workers, end only when the main thread joins
    its threads, so the main thread must not wait for them here: another thread does.
    """
    lock.end_thread()
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.current_thread()]
    if others:
        threading.Thread(target=_leave_after, args=(others,)).start()
    else:
        leave_all()


def _leave_at_exit():
    """Leave every section, after multiprocessing has ended: the daemon threads of its queues pickle, and are joined at exit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()  # its own turn comes after this one's if it was imported before; a second call has nothing left to do
    leave_all()


# Python joins threads before it runs atexit functions, and they may wait for a lock that the main thread still holds
with contextlib.suppress(AttributeError, RuntimeError):  # no such function; imported in an exit handler
    threading._register_atexit(lock.end_thread)
atexit.register(_leave_at_exit)
