# cython: language_level=3
"""The Python interface of the storage lock: descriptors, context managers, timeouts, Ctrl-C, warnings about dead holders."""

import enum
import functools
import inspect
import threading
import warnings
import weakref

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._base import errors

from shmem._atomics cimport exchange_seq_cst_u32, load_relaxed_u32, thread_pointer
from shmem._base.deadline cimport deadline_after
from shmem._base.participants cimport owner_is_alive
from shmem._base.section cimport section_t, thread_find, thread_t
from shmem._base.status cimport INTERRUPTED, NOT_OWNER, OK, TIMEOUT_EXPIRED
from shmem._bridge.calls cimport check, run_step, step_t, timeout_argument
from shmem._bridge.mapping cimport Mapping
from shmem._bridge.tasks cimport task_here, task_is_inside
from shmem._core cimport Memory
from shmem._sections.process cimport section_unlock, thread_ended
from shmem._sync.storage_lock cimport (
    LOCK_RETURNS_FOR_SIGNALS, LOCK_RETURNS_RARELY, lock_depths, lock_exclusive_try, lock_exclusive_wait, lock_request,
    lock_request_abandon, lock_request_t, lock_shared_try, lock_shared_wait, unlock_exclusive, unlock_shared)


class LockMode(enum.Enum):
    """How a `LockDescriptor` holds the storage lock."""

    shared = "shared"
    exclusive = "exclusive"


cdef enum:
    TASK_SEVERAL = 1               # not the address of a context

cdef uint64_t TASK_EVERY_BIT = ~<uint64_t>0


# -- taking and releasing -------------------------------------------------------------------------------

cdef int _release(Mapping mapping, bint exclusive) noexcept:
    return unlock_exclusive(mapping.section) if exclusive else unlock_shared(mapping.section)


cdef int _tell_of_death(Mapping mapping, bint exclusive) except -1:
    """Warn once that a holder died; this thread is the next holder.  If the warning raises, the lock is released first."""
    if exchange_seq_cst_u32(&mapping.section.header.death_notice, 0) == 0:
        return 0
    try:
        warnings.warn(
            "a previous holder of the storage lock died without releasing it; the data it protects may be inconsistent",
            errors.OwnerDiedWarning, stacklevel=2)
    except BaseException:
        _release(mapping, exclusive)
        raise
    return 0


cdef int _exclusive_step(section_t* section, void* request) noexcept nogil:
    return lock_exclusive_wait(section, <lock_request_t*>request)


cdef int _shared_step(section_t* section, void* request) noexcept nogil:
    return lock_shared_wait(section, <lock_request_t*>request)


cdef int _wait(Mapping mapping, bint exclusive, int64_t timeout_ns) except -1:
    """Wait for the lock without the GIL.  Between slices signal handlers run, in the main thread, and the handle may be closed."""
    cdef bint runs_handlers = threading.get_ident() == threading.main_thread().ident
    cdef lock_request_t request = lock_request(
        deadline_after(timeout_ns), LOCK_RETURNS_FOR_SIGNALS if runs_handlers else LOCK_RETURNS_RARELY)
    cdef step_t step = _exclusive_step if exclusive else _shared_step
    cdef int status = run_step(mapping.section, step, &request)
    try:
        while status == INTERRUPTED:
            PyErr_CheckSignals()
            if not mapping.is_open:
                raise errors.ClosedError("cannot acquire the lock: the SharedMemory was closed while this thread waited")
            status = run_step(mapping.section, step, &request)
    except BaseException:
        lock_request_abandon(mapping.section, &request)
        raise
    if status != OK:
        check(status, mapping, f"acquire the {'exclusive' if exclusive else 'shared'} lock" + (
            f" within {timeout_ns / 1e9:g} s" if status == TIMEOUT_EXPIRED else ""))
    return 0


cdef int _refuse_other_task(thread_t* me, uint64_t task, bint exclusive) except -1:
    """Raise if another task of this thread holds the lock, which only the depth of the thread would admit.  Tasks may share it."""
    if task_is_inside(me.task, TASK_EVERY_BIT):
        return 0
    if exclusive or me.exclusive:
        raise errors.DeadlockError(
            "cannot acquire the lock: another asyncio task or greenlet of this thread holds it, and cannot release it while this one "
            "waits; do not suspend a task while it holds the lock, or guard it with an asyncio.Lock")
    me.task = TASK_SEVERAL
    return 0


cdef inline int _acquire(Mapping mapping, bint exclusive, int64_t timeout_ns) except -1:
    cdef thread_t* me = thread_find(mapping.section)
    cdef uint64_t task = task_here()
    if me != NULL and me.task != 0 and me.task != task:
        _refuse_other_task(me, task, exclusive)
    if (lock_exclusive_try(mapping.section) if exclusive else lock_shared_try(mapping.section)) != OK:
        _wait(mapping, exclusive, timeout_ns)
        me = thread_find(mapping.section)
    if me != NULL and me.task == 0:          # NULL: the process left the section before this thread had the GIL again
        me.task = task
    if load_relaxed_u32(&mapping.section.header.death_notice):
        _tell_of_death(mapping, exclusive)
    return 0


cdef int _leave(Memory memory, bint exclusive) except -1:
    """Leave a `with` block inside which the handle was closed, or which a child inherited from its parent.

    If the closed handle was the last one of this process, `close` has released the lock; otherwise it is released here.
    """
    cdef uint64_t section_id = memory.section_id
    if memory.mapping is None:
        with nogil:
            section_unlock(section_id, exclusive)
    elif memory.mapping.section.n_forks == 0 and memory.mapping.section.private.index_plus_1 != 0:
        check(NOT_OWNER, memory.mapping, "release the lock")
    return 0


# -- context managers -------------------------------------------------------------------------------------

cdef class _Lock:
    """Base of `exclusive_lock` and `shared_lock`.  It has no state: the nesting depth belongs to the thread."""
    cdef readonly Memory section
    cdef readonly object timeout
    cdef int64_t timeout_ns

    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, section, timeout=None):
        """Initialize the object: see its class."""
        if not isinstance(section, Memory):
            raise TypeError(f"section must be a SharedMemory, got {type(section).__name__}")
        self.timeout_ns = timeout_argument(timeout)
        self.section = section
        self.timeout = timeout

    cdef Memory memory(self):
        """Return the section, which `__init__` sets."""
        if self.section is None:
            raise ValueError(f"cannot use this {type(self).__name__}: its __init__ was not called")
        return self.section

    def __reduce__(self):
        return type(self), (self.memory(), self.timeout)

    def __call__(self, function):
        """Decorate a plain function, which then holds the lock during each call."""
        if not callable(function):
            raise TypeError(f"a lock can only decorate a function, got {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"cannot decorate {function.__qualname__}: a generator or coroutine would hold the lock while it is "
                            "suspended; use the with statement inside it")

        @functools.wraps(function)
        def with_lock(*args, **kwargs):
            with self:
                return function(*args, **kwargs)
        return with_lock


cdef class exclusive_lock(_Lock):
    """Hold the storage lock exclusively: no other thread or process holds it meanwhile.

    This context manager has no state: it can be reused, nested, and shared between threads.  It is also a
    decorator for plain functions.  Inside `shared_lock` it upgrades the lock.

    Parameters
    ----------
    section : SharedMemory
    timeout : float, optional
        Seconds; None waits forever, 0 does not wait.

    Raises
    ------
    LockTimeout
        The lock was not acquired in time.
    DeadlockError
        Another holder of the shared lock is already upgrading it, or another asyncio task or greenlet of this thread holds the lock.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     counter = shm.zeros(1, "int64")
    ...     with shmem.exclusive_lock(shm):
    ...         counter += 1
    ...     int(counter[0])
    1
    """

    def __enter__(self):
        cdef Mapping mapping = self.memory().mapping
        if mapping is None:
            self.section.opened()
        _acquire(mapping, True, self.timeout_ns)
        return self.section

    def __exit__(self, exc_type, exc, traceback):
        cdef Mapping mapping = self.memory().mapping
        if mapping is None or unlock_exclusive(mapping.section) != OK:
            _leave(self.section, True)


cdef class shared_lock(_Lock):
    """Hold the storage lock shared: other readers may hold it too, and no writer does.

    This context manager has no state: it can be reused, nested, and shared between threads.  It is also a
    decorator for plain functions.  Inside `exclusive_lock` it is always granted.

    Parameters
    ----------
    section : SharedMemory
    timeout : float, optional
        Seconds; None waits forever, 0 does not wait.

    Raises
    ------
    LockTimeout
        The lock was not acquired in time.
    """

    def __enter__(self):
        cdef Mapping mapping = self.memory().mapping
        if mapping is None:
            self.section.opened()
        _acquire(mapping, False, self.timeout_ns)
        return self.section

    def __exit__(self, exc_type, exc, traceback):
        cdef Mapping mapping = self.memory().mapping
        if mapping is None or unlock_shared(mapping.section) != OK:
            _leave(self.section, False)


# -- descriptors --------------------------------------------------------------------------------------------

cdef class LockDescriptor:
    """One request for the storage lock, for `SharedMemory.lock(descriptor)` and `SharedMemory.unlock(descriptor)`.

    Descriptors can be released in any order.  The section keeps a held descriptor alive; dropping the handle without
    `close` releases it.

    Parameters
    ----------
    mode : LockMode

    Examples
    --------
    >>> import shmem
    >>> shm = shmem.SharedMemory(max_size=1 << 20)
    >>> reader = shmem.LockDescriptor(shmem.LockMode.shared)
    >>> shm.lock(reader)
    >>> shm.unlock(reader)
    >>> shm.close()
    """
    cdef readonly object mode
    cdef bint exclusive
    cdef bint busy                # locked, or about to be
    cdef object where             # weak reference to the Mapping through which it is held, or None
    cdef Mapping closed           # that Mapping after its handle was closed; the thread that holds the lock may have no other reference
    cdef uint64_t thread
    cdef uint64_t n_forks

    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, mode):
        """Initialize the object: see its class."""
        self.mode = LockMode(mode)
        self.exclusive = self.mode is LockMode.exclusive
        self.busy = False

    @property
    def held(self):
        """Whether the descriptor holds the lock in this process."""
        return _is_held_through(self, _mapping_of(self))

    def _give_up(self, Mapping mapping):
        """Release the lock because its handle is being closed, if this is the thread that holds it.

        If another thread holds the lock, it keeps it until it unlocks or ends.
        """
        if _is_held_through(self, mapping) and self.thread != thread_pointer():
            self.closed = mapping
            return
        if _is_held_through(self, mapping):
            _release(mapping, self.exclusive)
        _forget(self, mapping)

    def __reduce__(self):
        raise TypeError("cannot copy or pickle a LockDescriptor: it is one request for the lock of one process; make a new one")

    def __repr__(self):
        return f"<shmem.LockDescriptor {self.mode.value}{', held' if self.held else ''}>"


cdef Mapping _mapping_of(LockDescriptor descriptor):
    if descriptor.closed is not None or descriptor.where is None:
        return descriptor.closed
    return descriptor.where()


cdef bint _is_held_through(LockDescriptor descriptor, Mapping mapping) noexcept:
    return mapping is not None and mapping.section.n_forks == descriptor.n_forks


def lock(Memory memory, LockDescriptor descriptor, timeout):
    """See `SharedMemory.lock`."""
    cdef Mapping mapping = memory.opened(), former = _mapping_of(descriptor)
    cdef int64_t timeout_ns
    if former is not None and not _is_held_through(descriptor, former):
        _forget(descriptor, former)                # inherited from the parent: this process does not hold the lock with it
    if descriptor.mode is None:
        raise ValueError("cannot use this LockDescriptor: its __init__ was not called")
    if descriptor.busy:
        raise errors.LockError(f"cannot lock with {descriptor!r}: it is in use; use one descriptor for each request")
    timeout_ns = timeout_argument(timeout)
    descriptor.busy = True
    try:
        _acquire(mapping, descriptor.exclusive, timeout_ns)
    except BaseException:
        descriptor.busy = False
        raise
    descriptor.where = weakref.ref(mapping)
    descriptor.thread = thread_pointer()
    descriptor.n_forks = mapping.section.n_forks
    mapping.held[id(descriptor)] = descriptor        # keeps it alive


cdef _forget(LockDescriptor descriptor, Mapping mapping):
    mapping.held.pop(id(descriptor), None)
    descriptor.where = descriptor.closed = None
    descriptor.busy = False


def unlock(Memory memory, LockDescriptor descriptor):
    """See `SharedMemory.unlock`."""
    cdef Mapping mapping = memory.mapping, holder = _mapping_of(descriptor)
    cdef int status
    if mapping is None and holder is not None and holder.section.id == memory.section_id:
        mapping = holder                          # the handle was closed while this thread held its lock
    if mapping is None:
        mapping = memory.opened()
    if holder is None:
        raise errors.LockError(f"cannot unlock {descriptor!r}: it was never locked, or was already unlocked")
    if holder.section != mapping.section:
        raise errors.LockError(f"cannot unlock {descriptor!r}: it holds the lock of another section")
    if not _is_held_through(descriptor, holder):
        _forget(descriptor, holder)
        return
    if descriptor.thread != thread_pointer():
        raise errors.LockError(f"cannot unlock {descriptor!r}: it was locked by another thread, which must unlock it")
    status = _release(mapping, descriptor.exclusive)
    _forget(descriptor, holder)
    check(status, mapping, "release the lock")


def depths(Memory memory):
    """Return how often this thread holds the lock: (exclusive, shared)."""
    cdef uint32_t exclusive = 0, shared = 0
    lock_depths(memory.opened().section, &exclusive, &shared)
    return exclusive, shared


def participant(Memory memory):
    """Return a number that identifies this process among all that were ever attached to the section."""
    return memory.opened().section.private.owner_word


def participant_lives(Memory memory, uint64_t number):
    """Return whether the participant with that number is still attached.  Process ids would be ambiguous between PID namespaces."""
    return owner_is_alive(memory.opened().section, number)


def end_thread():
    """Release everything that this thread holds in any section, as if it had ended."""
    with nogil:
        thread_ended(NULL)
