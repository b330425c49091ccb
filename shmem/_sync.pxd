# cython: language_level=3
"""Semaphore, event and mutex: inline fast paths.  The states, and who wakes whom, stand in `_sync.pyx`.

Functions return 0 or a status; none needs the GIL.  A deadline is in nanoseconds of the monotonic clock, `FOREVER` or `AT_ONCE`.
A semaphore or an event may lie anywhere; a mutex lies in a section, for its owner is a participant.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport (compare_exchange_seq_cst_u32, compare_exchange_seq_cst_u64, load_seq_cst_u32, load_seq_cst_u64,
                             store_seq_cst_u64)
from shmem._channel cimport channel_notify
from shmem._layout cimport event_t, mutex_t, semaphore_t
from shmem._section cimport section_t, thread_pointer
from shmem._status cimport NOT_OWNER, OK, VALUE_OVERFLOW, WOULD_BLOCK

cdef enum:
    SEMAPHORE_MAX = 0x7fffffff
    EVENT_SIGNALED = 1

# Wait: 0, TIMEOUT_EXPIRED, or with `stop_for_signals` INTERRUPTED; then nothing was taken.
cdef int semaphore_wait(semaphore_t* semaphore, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef int event_wait(event_t* event, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef void event_signal(event_t* event) noexcept nogil
cdef void event_reset(event_t* event) noexcept nogil
# Take it, waiting; `owner_died`: whoever had it last ended without releasing it
cdef int mutex_lock(section_t* section, mutex_t* mutex, int64_t deadline_ns, bint stop_for_signals, bint* owner_died) noexcept nogil
cdef int mutex_unlock(section_t* section, mutex_t* mutex) noexcept nogil
# This thread ends: whatever mutexes it holds are released, and their next owners told
cdef void mutexes_release_all(section_t* section) noexcept nogil


cdef inline int semaphore_try(semaphore_t* semaphore) noexcept nogil:
    """Take one if there is one, else WOULD_BLOCK.  What was written before the `semaphore_signal` that it came from is seen."""
    cdef uint32_t value = load_seq_cst_u32(&semaphore.value)
    while value != 0:
        if compare_exchange_seq_cst_u32(&semaphore.value, value, value - 1):
            return OK
        value = load_seq_cst_u32(&semaphore.value)
    return WOULD_BLOCK


cdef inline int semaphore_signal(semaphore_t* semaphore, uint32_t n) noexcept nogil:
    """Add n: 0, or VALUE_OVERFLOW and nothing changed."""
    cdef uint32_t value = load_seq_cst_u32(&semaphore.value)
    while True:
        if n > SEMAPHORE_MAX or value > SEMAPHORE_MAX - n:
            return VALUE_OVERFLOW
        if compare_exchange_seq_cst_u32(&semaphore.value, value, value + n):
            break
        value = load_seq_cst_u32(&semaphore.value)
    channel_notify(&semaphore.channel, n)
    return OK


cdef inline bint event_is_signaled(event_t* event) noexcept nogil:
    return load_seq_cst_u64(&event.word) & EVENT_SIGNALED != 0


cdef inline bint mutex_is_mine(section_t* section, mutex_t* mutex) noexcept nogil:
    """Whether this thread holds it.  Nobody else writes my signature there, nor my thread while it is there."""
    return (section.private.index_plus_1 != 0 and load_seq_cst_u64(&mutex.owner) == section.private.gate_word
            and mutex.thread == thread_pointer())
