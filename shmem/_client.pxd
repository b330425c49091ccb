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
"""

from libc.stdint cimport int64_t, uint64_t
from shmem._atomics cimport load_acquire_u64, store_release_u64
from shmem._base.bounds cimport used_tag
from shmem._base.deadline cimport AT_ONCE, FOREVER, deadline_after
from shmem._base.layout cimport event_t, mutex_t, payload_bytes, semaphore_t, tag_size
from shmem._base.section cimport section_t
from shmem._base.status cimport OK
from shmem._heap.heap cimport HEAP_ZERO, heap_allocate, heap_free
from shmem._sync.primitives cimport (
    event_is_signaled, event_reset, event_sequence, event_signal, mutex_try, mutex_unlock, semaphore_signal, semaphore_try)
from shmem._sync.primitives cimport event_wait as event_wait_until
from shmem._sync.primitives cimport mutex_lock as mutex_lock_until
from shmem._sync.primitives cimport semaphore_wait as semaphore_wait_until
from shmem._sync.storage_lock cimport (
    LOCK_RETURNS_NEVER, lock_exclusive_try, lock_exclusive_wait, lock_request, lock_request_t, lock_shared_try, lock_shared_wait,
    unlock_exclusive, unlock_shared)


cdef inline int lock_exclusive(section_t* section, int64_t timeout_ns) noexcept nogil:
    """Acquire the storage lock exclusively: 0, TIMEOUT_EXPIRED or DEADLOCK."""
    cdef lock_request_t request
    if lock_exclusive_try(section) == OK:
        return OK
    request = lock_request(deadline_after(timeout_ns), LOCK_RETURNS_NEVER)
    return lock_exclusive_wait(section, &request)


cdef inline int lock_shared(section_t* section, int64_t timeout_ns) noexcept nogil:
    """Acquire the storage lock shared: 0 or TIMEOUT_EXPIRED."""
    cdef lock_request_t request
    if lock_shared_try(section) == OK:
        return OK
    request = lock_request(deadline_after(timeout_ns), LOCK_RETURNS_NEVER)
    return lock_shared_wait(section, &request)


cdef inline int allocate(section_t* section, uint64_t size_bytes, bint zero, uint64_t* offset) noexcept nogil:
    """Allocate a block, 16-byte aligned, and store its offset in `offset`: 0, NO_MEMORY, CORRUPTED or an errno."""
    return heap_allocate(section, size_bytes, 16, 0, HEAP_ZERO if zero else 0, offset)


cdef inline int free(section_t* section, uint64_t offset) noexcept nogil:
    """Free the block at an offset: 0, INVALID_BLOCK, ALREADY_FREED, PINNED or CORRUPTED; on error nothing changes."""
    return heap_free(section, offset, 0, 0)


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


cdef inline void set_root_offset(section_t* section, uint64_t offset) noexcept nogil:
    """Make an allocated block the root object."""
    store_release_u64(&section.header.root_off, offset)


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
    """Acquire the mutex: 0 or TIMEOUT_EXPIRED; set `owner_died` if the previous owner ended without releasing it."""
    if mutex_try(section, mutex, owner_died) == OK:
        return OK
    return mutex_lock_until(section, mutex, NULL, deadline_after(timeout_ns), False, owner_died)
