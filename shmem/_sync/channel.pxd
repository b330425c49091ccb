# cython: language_level=3
"""A channel: one 64-bit word on which threads of several processes sleep until a condition may have changed.

::

    low half    a sequence number, the futex: every notification changes it
    high half   the number of registrations, which are threads to be woken

A waiter registers, checks the condition, sleeps on the sequence with which it registered, and checks again.  To sleep again it registers
again.  A notifier changes the condition and then notifies n waiters.  Without registrations this takes one load and no system call.
Otherwise one swap removes n registrations and advances the sequence, and then n sleepers are woken.

The condition and the channel are two words.  The notifier changes the condition, then reads the channel.  The waiter registers, then
reads the condition.  All four operations are sequentially consistent, so at least one side sees the other.

Invariant: *registrations plus due wakes are never fewer than sleepers*; with fewer, a wake would be lost.  A wake is due from the step
that removes its registration until the wake itself; in between, registrations alone may be fewer than sleepers.  A
notification removes n registrations and wakes n sleepers.  If it finds fewer, then no thread sleeps any more: a waiter that had registered
but was not yet asleep finds a new sequence, does not fall asleep, and registers again.

There may be too many registrations: of killed waiters, of waiters that found a new sequence, and of waiters that gave up after
a notification for others.  They cause needless system calls, and with many waiters that give up they would grow without bound.  So a
notification that finds fewer sleepers removes all remaining registrations, unless a thread has registered since.

A wake goes to any sleeper, whichever registration was removed for it.  So a woken waiter that leaves without checking the condition
must pass the wake on by notifying one waiter.

A notifier that is killed between removing registrations and waking leaves sleepers that no thread will wake.  So every sleep
is a slice of at most `SLICE_NS`; after it the waiter checks the condition and registers again.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, load_seq_cst_u64
from shmem._base.deadline cimport FOREVER
from shmem._base.layout cimport CHANNEL_WAITERS_SHIFT
from shmem._base.system cimport futex_wait, futex_wake, now_ns

cdef extern from "<errno.h>" nogil:
    int ETIMEDOUT

cdef extern from *:
    """
    #ifndef SHMEM_CHANNEL
    #define SHMEM_CHANNEL
    #include <stdint.h>
    #define SLICE_NS 50000000      /* the longest sleep before a waiter checks again: bounds the delay by a wake lost in a kill */
    #define CHANNEL_ONE_WAITER ((uint64_t)1 << CHANNEL_WAITERS_SHIFT)
    #endif
    """
    enum: SLICE_NS
    const uint64_t CHANNEL_ONE_WAITER

cdef enum:
    ALL_WAITERS = 0x7fffffff
    ONE_SEQUENCE = 1               # an event, whose lowest bit is its state, steps by two


cdef inline uint32_t* low_half(uint64_t* word) noexcept nogil:
    """Return the futex in a 64-bit word: a section is little-endian."""
    return <uint32_t*>word


cdef inline uint32_t channel_registrations(uint64_t word) noexcept nogil:
    """Return the number of registrations in a word that was loaded from a channel."""
    return <uint32_t>(word >> CHANNEL_WAITERS_SHIFT)


cdef inline uint32_t channel_register(uint64_t* channel) noexcept nogil:
    """Register, before checking the condition; return the sequence to sleep on."""
    return <uint32_t>fetch_add_seq_cst_u64(channel, CHANNEL_ONE_WAITER)


cdef inline void channel_withdraw(uint64_t* channel, uint32_t sequence) noexcept nogil:
    """Withdraw a registration without sleeping (again).  After a notification it may be gone; then nothing changes."""
    cdef uint64_t word = load_seq_cst_u64(channel)
    while <uint32_t>word == sequence and channel_registrations(word) != 0:
        if compare_exchange_seq_cst_u64(channel, word, word - CHANNEL_ONE_WAITER):
            return
        word = load_seq_cst_u64(channel)


cdef inline int channel_sleep(uint64_t* channel, uint32_t sequence, int64_t deadline_ns, int64_t longest_ns) noexcept nogil:
    """Sleep for a slice, at most until the deadline: 0 if notified (or the sequence has advanced), ETIMEDOUT or EINTR."""
    cdef int64_t left_ns
    if deadline_ns != FOREVER:
        left_ns = deadline_ns - now_ns()
        if left_ns <= 0:
            return ETIMEDOUT
        if left_ns < longest_ns:
            longest_ns = left_ns
    return futex_wait(low_half(channel), sequence, longest_ns)


cdef inline void channel_notify_registered(uint64_t* channel, uint32_t n_threads) noexcept nogil:
    cdef uint64_t word = load_seq_cst_u64(channel), n_registered, sequence
    while True:
        n_registered = channel_registrations(word)
        if n_registered == 0:
            return
        n_registered = n_registered - n_threads if n_registered > n_threads else 0
        sequence = <uint32_t>(<uint32_t>word + ONE_SEQUENCE)
        if compare_exchange_seq_cst_u64(channel, word, n_registered << CHANNEL_WAITERS_SHIFT | sequence):
            if futex_wake(low_half(channel), <int>n_threads) < <int>n_threads and n_registered != 0:
                # no thread sleeps: these registrations are left over
                compare_exchange_seq_cst_u64(channel, n_registered << CHANNEL_WAITERS_SHIFT | sequence, sequence)
            return
        word = load_seq_cst_u64(channel)


cdef inline void channel_notify(uint64_t* channel, uint32_t n_threads) noexcept nogil:
    """Wake up to `n_threads` sleepers, after the condition was changed."""
    if channel_registrations(load_seq_cst_u64(channel)) != 0:
        channel_notify_registered(channel, n_threads)
