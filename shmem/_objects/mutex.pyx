# cython: language_level=3, auto_pickle=False
"""The Python class Mutex."""

import warnings

from shmem._base import errors
from shmem._base.public import refuse_construction

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport load_relaxed_u64
from shmem._base.deadline cimport FOREVER
from shmem._base.layout cimport TYPE_MUTEX, mutex_t
from shmem._base.section cimport section_t
from shmem._base.status cimport OK, TIMEOUT_EXPIRED, WOULD_BLOCK
from shmem._bridge.calls cimport check
from shmem._bridge.tasks cimport task_here, task_is_inside
from shmem._core cimport Memory
from shmem._objects.waitables cimport (
    Waitable, blocking_argument, changeable, is_gone, make_words, place_new, prepare_wait, readable, wait, wait_call_t)
from shmem._sync.primitives cimport mutex_is_held, mutex_is_mine, mutex_lock, mutex_try, mutex_unlock

cdef object MINUS_ONE = -1


cdef enum:
    TASK_SHIFT = 3                 # objects are aligned, so 32 bits distinguish the contexts in 32 GiB
    TASK_BITS = 0xffffffff


cdef inline uint32_t _task_of(uint64_t context) noexcept:
    """Return what an owned mutex has in `died`."""
    return <uint32_t>(context >> TASK_SHIFT)


cdef int _mutex_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return mutex_lock(section, <mutex_t*>call.words, call.where, call.deadline_ns, True, &call.owner_died)


cdef bint _mutex_acquire(Mutex self, int64_t deadline_ns) except -1:
    """Acquire the mutex, waiting without the GIL if necessary; return False when the deadline passed."""
    cdef mutex_t* mutex = <mutex_t*>changeable(self, "acquire")
    cdef wait_call_t call
    cdef section_t* section = self.mapping.section
    cdef uint32_t task = _task_of(task_here())
    cdef int status
    call.owner_died = False
    if mutex_is_mine(section, mutex) and mutex.died != task and mutex.died != 0:
        if not task_is_inside(<uint64_t>mutex.died << TASK_SHIFT, <uint64_t>TASK_BITS << TASK_SHIFT):
            raise errors.DeadlockError(
                f"cannot acquire the Mutex at offset {self.offset:#x}: another asyncio task or greenlet of this thread owns it, and cannot "
                "release it while this one waits; do not suspend a task while it owns a Mutex, or guard it with an asyncio.Lock")
    status = mutex_try(section, mutex, &call.owner_died)
    if status == WOULD_BLOCK:
        prepare_wait(self, &call, mutex, deadline_ns)
        status = wait(self, section, _mutex_step, &call)
        if status == TIMEOUT_EXPIRED:
            return False
    if status != OK:
        check(status, self.mapping, "acquire a Mutex")
    if mutex.depth == 1:
        mutex.died = task
    if call.owner_died:
        _tell_of_death(self, mutex)
    return True


cdef int _tell_of_death(Mutex self, mutex_t* mutex) except -1:
    """Warn that the previous owner died; this thread is the next owner.  If the warning raises, the mutex is released first."""
    try:
        warnings.warn(f"a previous owner of the Mutex at offset {self.offset:#x} died without releasing it; "
                      "the data it protects may be inconsistent", errors.OwnerDiedWarning, stacklevel=1)
    except BaseException:
        mutex_unlock(self.mapping.section, mutex)
        raise
    return 0


@cython.final
cdef class Mutex(Waitable):
    """A lock in a section, owned by one thread of one process at a time; the owner may acquire it again.

    `SharedMemory.mutex` makes one, and ``guard: shmem.Mutex`` in the body of a `Struct` class is a field.  It has the methods
    of `threading.RLock`.  If the owner was killed or its thread ended, the next thread acquires it with an `OwnerDiedWarning`.  A
    forked child owns no mutex.  Do not free one that is held or waited for.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     guard = shm.mutex()
    ...     with guard:
    ...         guard.locked()
    True
    """
    __shmem_field__ = make_words("mutex", sizeof(mutex_t), Mutex, TYPE_MUTEX, 0)

    def __init__(self):
        raise TypeError("a Mutex cannot be constructed directly; use SharedMemory.mutex() or a field `guard: shmem.Mutex` of a Struct")

    def acquire(self, blocking=True, timeout=-1):
        """Acquire the mutex, waiting while another thread owns it; the owner acquires it once more.

        Parameters
        ----------
        blocking : bool
            False: do not wait.
        timeout : float or None
            In seconds; -1 or None waits without end.

        Returns
        -------
        bool
            Whether this thread acquired it.
        """
        if blocking is True and timeout is MINUS_ONE:
            return _mutex_acquire(self, FOREVER)
        return _mutex_acquire(self, blocking_argument(blocking, timeout, MINUS_ONE))

    def release(self):
        """Release the mutex once.

        Raises
        ------
        LockError
            This thread does not own it.
        """
        cdef mutex_t* mutex = <mutex_t*>changeable(self, "release")
        if mutex_unlock(self.mapping.section, mutex) != OK:
            raise errors.LockError(f"release: this thread does not own the Mutex at offset {self.offset:#x}")

    def locked(self):
        """Return whether a live thread owns it."""
        cdef mutex_t* mutex = <mutex_t*>readable(self)
        return mutex_is_held(self.mapping.section, mutex)

    @property
    def owner_deaths(self):
        """The number of owners that ended without releasing it and after which the next owner was warned."""
        return load_relaxed_u64(&(<mutex_t*>readable(self)).owner_deaths)

    def __enter__(self):
        return _mutex_acquire(self, FOREVER)

    def __exit__(self, exc_type, exc, traceback):
        cdef mutex_t* mutex = <mutex_t*>changeable(self, "release")
        cdef section_t* section = self.mapping.section
        # a child that leaves its parent's block owns nothing; neither does a process that has left the section, at exit
        if mutex_unlock(section, mutex) != OK and section.n_forks == 0 and section.private.index_plus_1 != 0:
            raise errors.LockError(f"leave the block: this thread does not own the Mutex at offset {self.offset:#x}")

    def _is_owned(self):
        """Return whether this thread owns it, for `threading.Condition`."""
        cdef mutex_t* mutex = <mutex_t*>readable(self)
        return self.mapping.writable and mutex_is_mine(self.mapping.section, mutex)

    def _release_save(self):
        """Release it as often as it was acquired, for `threading.Condition` before it waits."""
        cdef mutex_t* mutex = <mutex_t*>changeable(self, "release")
        cdef uint32_t depth
        if not mutex_is_mine(self.mapping.section, mutex):
            raise errors.LockError(f"wait: this thread does not own the Mutex at offset {self.offset:#x}")
        depth, mutex.depth = mutex.depth, 1
        mutex_unlock(self.mapping.section, mutex)
        return depth

    def _acquire_restore(self, depth):
        """Acquire it again as often as it was released."""
        _mutex_acquire(self, FOREVER)
        (<mutex_t*>self.words).depth = depth

    def _state_text(self):
        if self.words == NULL or is_gone(self):
            return ", closed" if self.words == NULL else ", freed"
        return ", locked" if self.locked() else ", not locked"


def place_mutex(Memory memory not None, name):
    """See `SharedMemory.mutex`."""
    return place_new(Mutex.__new__(Mutex), memory, name, 0)


refuse_construction(Mutex)
