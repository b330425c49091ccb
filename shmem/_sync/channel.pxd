# cython: language_level=3
"""A channel: one 64-bit word on which threads of many processes sleep until a condition may have changed.

::

    low half    a sequence number, the futex: it changes with every notification
    high half   how many have registered to be woken

Who waits: registers, looks at the condition, sleeps on the sequence it registered with, looks again; who
is to look again and sleep again registers again.  Who changes the condition: changes it, then notifies n: with nobody registered that
is one load and no system call; else n registrations go, the sequence moves, and n sleepers are woken, in the same order.

The condition and the channel are two words.  Change of the condition and look at the channel on the one side, registration
and look at the condition on the other, all four are sequentially consistent: at least one side sees the other.

What must hold: *registrations, and wakes that are due, are never fewer than sleepers* (else a wake would be lost).  A wake is due from
the step in which its registration is taken away until the wake itself: in between registrations alone may be fewer than
sleepers.  A notification takes away n and wakes n; if it finds fewer asleep, then nobody sleeps any more, and who had registered but
was not yet asleep meets another sequence, does not fall asleep, and registers again.  Too many registrations (of the killed, of
those who met another sequence, or gave up after a notification of others) cost needless system calls, and would grow without end beside
many who give up: so a notification that finds fewer asleep takes away all that are left, unless somebody has registered since.

A wake goes to whoever sleeps, not to whoever was registered.  So who was woken, and leaves without having looked, notifies one more.

Who is killed between taking registrations away and waking leaves sleepers that nobody will wake: so every sleep
is a slice of at most `SLICE_NS`, after which the condition is looked at and the registration made anew.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, load_seq_cst_u64
from shmem._base.system cimport futex_wait, futex_wake, now_ns

cdef extern from "<errno.h>" nogil:
    int ETIMEDOUT

cdef enum:
    SLICE_NS = 50000000
    EVERYBODY = 0x7fffffff

cdef enum:
    ONE_SEQUENCE = 1               # an event, whose lowest bit is its state, steps by two

cdef extern from *:
    """
    #define CHANNEL_ONE_WAITER ((uint64_t)1 << 32)
    """
    const uint64_t CHANNEL_ONE_WAITER


cdef inline uint32_t* low_half(uint64_t* word) noexcept nogil:
    """The futex in a 64-bit word: a section is little-endian."""
    return <uint32_t*>word


cdef inline uint32_t channel_register(uint64_t* channel) noexcept nogil:
    """Before the look at the condition.  The sequence to sleep on."""
    return <uint32_t>fetch_add_seq_cst_u64(channel, CHANNEL_ONE_WAITER)


cdef inline void channel_withdraw(uint64_t* channel, uint32_t sequence) noexcept nogil:
    """Registered, and not going to sleep (again).  Unless there was a notification the registration is still there."""
    cdef uint64_t word = load_seq_cst_u64(channel)
    while <uint32_t>word == sequence and word >> 32 != 0:
        if compare_exchange_seq_cst_u64(channel, word, word - CHANNEL_ONE_WAITER):
            return
        word = load_seq_cst_u64(channel)


cdef inline int channel_sleep(uint64_t* channel, uint32_t sequence, int64_t deadline_ns, int64_t longest_ns) noexcept nogil:
    """Sleep a slice: 0 when notified (or the sequence had moved), ETIMEDOUT, EINTR.  `deadline_ns` negative: none."""
    cdef int64_t left_ns
    if deadline_ns >= 0:
        left_ns = deadline_ns - now_ns()
        if left_ns <= 0:
            return ETIMEDOUT
        if left_ns < longest_ns:
            longest_ns = left_ns
    return futex_wait(low_half(channel), sequence, longest_ns)


cdef inline void channel_notify_registered(uint64_t* channel, uint32_t n_threads) noexcept nogil:
    cdef uint64_t word = load_seq_cst_u64(channel), n_registered, sequence
    while True:
        n_registered = word >> 32
        if n_registered == 0:
            return
        n_registered = n_registered - n_threads if n_registered > n_threads else 0
        sequence = <uint32_t>(<uint32_t>word + ONE_SEQUENCE)
        if compare_exchange_seq_cst_u64(channel, word, n_registered << 32 | sequence):
            if futex_wake(low_half(channel), <int>n_threads) < <int>n_threads and n_registered != 0:
                compare_exchange_seq_cst_u64(channel, n_registered << 32 | sequence, sequence)     # nobody sleeps: they are left over
            return
        word = load_seq_cst_u64(channel)


cdef inline void channel_notify(uint64_t* channel, uint32_t n_threads) noexcept nogil:
    """After the condition was changed: wake so many of those who sleep."""
    if load_seq_cst_u64(channel) >> 32 != 0:
        channel_notify_registered(channel, n_threads)
