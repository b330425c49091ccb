# cython: language_level=3
"""Semaphore, event and mutex: inline fast paths.  `_sync/primitives.pyx` describes the states, and which event wakes which waiters.

Functions return 0 or a status; none needs the GIL.  Deadlines: `_base/deadline.pxd`.
A semaphore or an event may be anywhere; a mutex must be in a section, because its owner is a participant.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport (
    compare_exchange_seq_cst_u32, compare_exchange_seq_cst_u64, load_seq_cst_u32, load_seq_cst_u64, thread_pointer)
from shmem._base.layout cimport EVENT_SIGNALED, SEMAPHORE_MAX, block_t, event_t, mutex_t, semaphore_t
from shmem._base.section cimport section_t, thread_find, thread_t
from shmem._base.status cimport OK, VALUE_OVERFLOW, WOULD_BLOCK
from shmem._sync.channel cimport channel_notify

ctypedef struct place_t:
    const block_t* block          # that contains the words, as a block of their own or in a field
    uint64_t serial               # of the block when the wait began

# Wait: 0, TIMEOUT_EXPIRED, INVALID_BLOCK (freed meanwhile; `place` may be NULL), or with `stop_for_signals` INTERRUPTED, which
# means that nothing was taken.
cdef int semaphore_wait(semaphore_t* semaphore, const place_t* place, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# `since` is `event_sequence` at the beginning of the wait, so that a waiter that was INTERRUPTED and waits again does not miss a signal
cdef int event_wait(event_t* event, const place_t* place, uint32_t since, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef void event_signal(event_t* event) noexcept nogil
cdef void event_reset(event_t* event) noexcept nogil
# Acquire the mutex, waiting; `owner_died`: its last owner died without releasing it
cdef int mutex_lock(section_t* section, mutex_t* mutex, const place_t* place, int64_t deadline_ns, bint stop_for_signals,
                    bint* owner_died) noexcept nogil
cdef int mutex_unlock(section_t* section, mutex_t* mutex) noexcept nogil
# Return whether a live participant owns the mutex
cdef bint mutex_is_held(section_t* section, const mutex_t* mutex) noexcept nogil
# Slow half of acquiring a second mutex: see `_sync/primitives.pyx`
cdef void mutexes_forget_freed(section_t* section, thread_t* me) noexcept nogil
# Called when this thread ends: release the mutexes that it holds, with a notice of the death for their next owners
cdef void mutexes_release_all(section_t* section) noexcept nogil


cdef inline int semaphore_try(semaphore_t* semaphore) noexcept nogil:
    """Take one unit if there is one, else return WOULD_BLOCK.  All writes before the matching `semaphore_signal` are visible."""
    cdef uint32_t value = load_seq_cst_u32(&semaphore.value)
    while value != 0:
        if compare_exchange_seq_cst_u32(&semaphore.value, value, value - 1):
            return OK
        value = load_seq_cst_u32(&semaphore.value)
    return WOULD_BLOCK


cdef inline int semaphore_signal(semaphore_t* semaphore, uint32_t n) noexcept nogil:
    """Add n and wake up to n waiters: 0, or VALUE_OVERFLOW with nothing changed."""
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


cdef inline uint32_t event_sequence(event_t* event) noexcept nogil:
    return <uint32_t>load_seq_cst_u64(&event.word)


cdef inline uint64_t thread_signature(section_t* section) noexcept nogil:
    """Return the signature of this thread in a mutex.

    It includes the participant: after a fork, or without address space randomisation, threads of different processes have
    the same thread pointer.
    """
    return thread_pointer() ^ section.private.owner_word * <uint64_t>0x9e3779b97f4a7c15


cdef inline bint mutex_is_mine(section_t* section, mutex_t* mutex) noexcept nogil:
    """Return whether this thread holds the mutex.

    No other thread writes this thread's signature.  Between the claim of another thread of this process and its signature, the
    mutex has the last owner's signature, which is never this thread's: a release clears the signature, and a dead owner was
    another participant.
    """
    return (section.private.index_plus_1 != 0 and load_seq_cst_u64(&mutex.owner) == section.private.owner_word
            and mutex.thread == thread_signature(section))


cdef inline void mutex_sign(section_t* section, mutex_t* mutex, thread_t* me, bint* owner_died) noexcept nogil:
    """Write the other words of the mutex, after this participant has become its owner."""
    if mutex.died or owner_died[0]:
        mutex.died = 0
        mutex.owner_deaths += 1
        owner_died[0] = True
    if me.held_mutex_off != 0:
        mutexes_forget_freed(section, me)
    mutex.depth = 1
    mutex.next_held_off = me.held_mutex_off
    mutex.thread = thread_signature(section)
    me.held_mutex_off = <uint64_t>(<char*>mutex - section.base)


cdef inline int mutex_try(section_t* section, mutex_t* mutex, bint* owner_died) noexcept nogil:
    """Acquire the mutex if it is free or this thread already holds it, else return WOULD_BLOCK."""
    cdef thread_t* me = thread_find(section)
    owner_died[0] = False
    if me == NULL:
        return WOULD_BLOCK
    if compare_exchange_seq_cst_u64(&mutex.owner, 0, section.private.owner_word):
        mutex_sign(section, mutex, me, owner_died)
        return OK
    if not mutex_is_mine(section, mutex):
        return WOULD_BLOCK
    mutex.depth += 1
    return OK
