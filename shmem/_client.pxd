# cython: language_level=3
"""The interface for C-level clients (`cimport shmem`): lock, heap, root, semaphores, events and mutexes without the GIL.

`section_of` returns the `section_t*` of an open `SharedMemory`; keep that object alive as long as the pointer is used.
Functions return 0 or a status (negative: `shmem.Status`; positive: an errno).  Store offsets in a section, never
pointers::

    cimport shmem
    cdef shmem.section_t* section = shmem.section_of(shm)
    with nogil:
        if shmem.lock_exclusive(section, shmem.FOREVER) == 0:
            ...
            shmem.unlock_exclusive(section)

A semaphore, event or mutex is located by its `offset`: ``<shmem.semaphore_t*>shmem.pointer(section, sem.offset)``.
Zeroed memory is valid: a semaphore of value 0, an event that is not signaled, an unlocked mutex.

A timeout is in nanoseconds; `FOREVER` waits forever, 0 does not wait.  Waiting here does not check for Ctrl-C.

Exit.  A process that exits leaves its sections while daemon threads, and threads that Python does not know, may still run.  It waits for
each thread that is in a call, that holds the lock or a mutex by a function of this module, or that is between `enter` and `leave`: what
such a thread reads and writes stays its own.  If one is still there after a second, the section is left as after a kill.  All other
threads get `CLOSED` from their next call, and waiting threads get it from the call in which they wait; they must not use the
section any more.  Therefore:

* Use memory of a section while holding the lock or a mutex, or between `enter` and `leave`.
* Return on `CLOSED`, and in a daemon thread do not raise an exception for it.
* Release a lock or mutex by the interface, C or Python, that acquired it.

Semaphores and events do not belong to a process.  Their functions do not count as calls, so that a thread which waits forever does not
delay the exit.  `pointer`, `offset`, `block_bytes` and `root_offset` only read, and always succeed.
"""

from libc.stdint cimport int64_t, uint64_t
from shmem._atomics cimport load_acquire_u64, store_release_u64
from shmem._base.accessors cimport payload_bytes, tag_size
from shmem._base.bounds cimport used_tag
from shmem._base.deadline cimport AT_ONCE, FOREVER, deadline_after
from shmem._base.layout cimport event_t, mutex_t, semaphore_t
from shmem._base.section cimport inside_begin, inside_end, section_t, thread_find, thread_t
from shmem._base.status cimport CLOSED, INTERRUPTED, OK
from shmem._heap.heap cimport HEAP_ZERO, heap_allocate, heap_free
from shmem._sync.primitives cimport event_is_signaled, event_reset, event_sequence, event_signal, mutex_try, semaphore_signal, semaphore_try
from shmem._sync.primitives cimport event_wait as event_wait_until
from shmem._sync.primitives cimport mutex_lock as mutex_lock_until
from shmem._sync.primitives cimport mutex_unlock as mutex_release
from shmem._sync.primitives cimport semaphore_wait as semaphore_wait_until
from shmem._sync.storage_lock cimport (
    LOCK_RETURNS_AT_EXIT, lock_exclusive_try, lock_exclusive_wait, lock_request, lock_request_t, lock_shared_try, lock_shared_wait,
    thread_register)
from shmem._sync.storage_lock cimport unlock_exclusive as release_exclusive
from shmem._sync.storage_lock cimport unlock_shared as release_shared


# -- what counts as being inside --------------------------------------------------------------------------

cdef inline int _call_begin(section_t* section, thread_t** me) noexcept nogil:
    """Begin a call: 0, CLOSED, or the reason why this thread can have no slot."""
    cdef int status
    me[0] = thread_find(section)
    if me[0] == NULL:
        status = thread_register(section, me)
        if status != OK:
            return status
    return inside_begin(section, me[0])


cdef inline int _call_end_acquiring(thread_t* me, int status) noexcept nogil:
    """End a call that acquires; what it has acquired keeps the thread inside."""
    if status != OK:
        inside_end(me, 1)
    return CLOSED if status == INTERRUPTED else status


cdef inline int _call_end_releasing(thread_t* me, int status) noexcept nogil:
    """End a call that releases, and with it the one that had acquired."""
    inside_end(me, 2 if status == OK else 1)
    return status


cdef inline int _call_end(thread_t* me, int status) noexcept nogil:
    inside_end(me, 1)
    return status


cdef inline int enter(section_t* section) noexcept nogil:
    """Begin to use memory of the section without a lock: 0, or CLOSED if the process exits.  May be nested.

    A thread should leave soon: the exit of the process waits for it.
    """
    cdef thread_t* me = NULL
    return _call_begin(section, &me)


cdef inline void leave(section_t* section) noexcept nogil:
    """End what the last `enter` of this thread began."""
    cdef thread_t* me = thread_find(section)
    if me != NULL:
        inside_end(me, 1)


# -- the lock ---------------------------------------------------------------------------------------------

cdef inline int lock_exclusive(section_t* section, int64_t timeout_ns) noexcept nogil:
    """Acquire the storage lock exclusively: 0, TIMEOUT_EXPIRED, DEADLOCK or CLOSED."""
    cdef lock_request_t request
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    if status != OK:
        return status
    if lock_exclusive_try(section) == OK:
        return OK
    request = lock_request(deadline_after(timeout_ns), LOCK_RETURNS_AT_EXIT)
    return _call_end_acquiring(me, lock_exclusive_wait(section, &request))


cdef inline int lock_shared(section_t* section, int64_t timeout_ns) noexcept nogil:
    """Acquire the storage lock shared: 0, TIMEOUT_EXPIRED or CLOSED."""
    cdef lock_request_t request
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    if status != OK:
        return status
    if lock_shared_try(section) == OK:
        return OK
    request = lock_request(deadline_after(timeout_ns), LOCK_RETURNS_AT_EXIT)
    return _call_end_acquiring(me, lock_shared_wait(section, &request))


cdef inline int unlock_exclusive(section_t* section) noexcept nogil:
    """Release one exclusive lock of this thread: 0, NOT_OWNER or CLOSED.  If it still holds shared, this downgrades the lock."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    return _call_end_releasing(me, release_exclusive(section)) if status == OK else status


cdef inline int unlock_shared(section_t* section) noexcept nogil:
    """Release one shared lock of this thread: 0, NOT_OWNER or CLOSED."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    return _call_end_releasing(me, release_shared(section)) if status == OK else status


# -- the heap ---------------------------------------------------------------------------------------------

cdef inline int allocate(section_t* section, uint64_t size_bytes, bint zero, uint64_t* offset) noexcept nogil:
    """Allocate a block, 16-byte aligned, and store its offset in `offset`: 0, NO_MEMORY, CORRUPTED, CLOSED or an errno."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    return _call_end(me, heap_allocate(section, size_bytes, 16, 0, HEAP_ZERO if zero else 0, offset)) if status == OK else status


cdef inline int free(section_t* section, uint64_t offset) noexcept nogil:
    """Free the block at an offset: 0, INVALID_BLOCK, ALREADY_FREED, PINNED, CORRUPTED or CLOSED; on error nothing changes."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    return _call_end(me, heap_free(section, offset, 0, 0)) if status == OK else status


cdef inline uint64_t block_bytes(section_t* section, uint64_t offset) noexcept nogil:
    """Return the number of usable bytes from this offset on; 0 if no allocated block can begin there.

    An offset found in a section may have been overwritten.  Check it with this function before passing it to `pointer`.
    """
    cdef uint64_t tag = used_tag(section, offset)
    return payload_bytes(tag_size(tag)) if tag else 0


cdef inline void* pointer(section_t* section, uint64_t offset) noexcept nogil:
    """Return the address of an offset in this process, NULL for 0.  The offset is not checked."""
    return section.base + offset if offset else NULL


cdef inline uint64_t offset(section_t* section, const void* pointer) noexcept nogil:
    """Return the offset of an address in the section, 0 for NULL."""
    return <const char*>pointer - section.base if pointer != NULL else 0


cdef inline uint64_t root_offset(section_t* section) noexcept nogil:
    """Return the root object's offset, 0 if unset."""
    return load_acquire_u64(&section.header.root_off)


cdef inline int set_root_offset(section_t* section, uint64_t offset) noexcept nogil:
    """Make an allocated block the root object: 0 or CLOSED."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    if status != OK:
        return status
    store_release_u64(&section.header.root_off, offset)
    return _call_end(me, OK)


# -- semaphore, event, mutex ------------------------------------------------------------------------------

cdef inline int semaphore_wait(semaphore_t* semaphore, int64_t timeout_ns) noexcept nogil:
    """Take one from the semaphore: 0 or TIMEOUT_EXPIRED."""
    if semaphore_try(semaphore) == OK:
        return OK
    return semaphore_wait_until(semaphore, NULL, deadline_after(timeout_ns), False)


cdef inline int event_wait(event_t* event, int64_t timeout_ns) noexcept nogil:
    """Wait until the event is signaled: 0 or TIMEOUT_EXPIRED."""
    if event_is_signaled(event):
        return OK
    return event_wait_until(event, NULL, event_sequence(event), deadline_after(timeout_ns), False)


cdef inline int mutex_lock(section_t* section, mutex_t* mutex, int64_t timeout_ns, bint* owner_died) noexcept nogil:
    """Acquire the mutex: 0, TIMEOUT_EXPIRED or CLOSED; set `owner_died` if the previous owner ended without releasing it."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    owner_died[0] = False
    if status != OK:
        return status
    if mutex_try(section, mutex, owner_died) == OK:
        return OK
    return _call_end_acquiring(me, mutex_lock_until(section, mutex, NULL, deadline_after(timeout_ns), False, owner_died))


cdef inline int mutex_unlock(section_t* section, mutex_t* mutex) noexcept nogil:
    """Release the mutex once: 0, NOT_OWNER or CLOSED."""
    cdef thread_t* me = NULL
    cdef int status = _call_begin(section, &me)
    return _call_end_releasing(me, mutex_release(section, mutex)) if status == OK else status
