# cython: language_level=3
"""A gate: a mutex in the section whose owner may be killed.  The heap has one, a queue one for each of its sides.

One word::

    owner = 0                  free
    owner = index, generation  inside is a thread of that participant
    the same, that one dead    free for whoever swaps that very word for its own
    GATE_WAITERS               beside an owner: somebody sleeps on the word; the owner wakes one when it leaves

What must hold: *while somebody sleeps, the word has GATE_WAITERS, or a wake is due*.  Who has slept enters with the flag, for others may
sleep too: so one wake too many is possible, one too few is not.  Every sleep is a slice, for the wake of somebody who was killed before it
woke, or after it was woken and before it entered.

Who takes a gate over from a dead owner may have its entry beside it, given out again: that one has never been inside.  What the
dead owner left half done is the business of whoever enters, who is told by OWNER_DIED.

No thread waits for anything else while it is inside, and none runs Python; threads that ask with the GIL held do not wait.  Who has the
heap's takes no other, but for a snapshot: those of the queues (see `_core.pyx` for the order).  Modelled in
`tests/models/heap_gate.pml`.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport compare_exchange_acquire_u64, cpu_relax, exchange_release_u64, load_relaxed_u64
from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.owner cimport word_has_owner
from shmem._base.participants cimport owner_is_alive
from shmem._base.section cimport section_t
from shmem._base.status cimport OK, OWNER_DIED, WOULD_BLOCK
from shmem._base.system cimport futex_wait, futex_wake, now_ns
from shmem._sync.channel cimport SLICE_NS

cdef enum:
    GATE_WAITERS = 0x80000000
    GATE_SPINS = 100
    GATE_LEAST_SLICE_NS = 1000000        # also who is past its deadline waits so long for who is inside

ctypedef struct gate_wait_t:             # of one thread, from when it wants in until it is
    int64_t deadline_ns
    uint32_t spins_left
    uint64_t waiters                     # GATE_WAITERS once it has slept
    uint64_t word                        # as it was seen last: with OWNER_DIED, the dead owner's


cdef inline bint gate_try(section_t* section, uint64_t* gate) noexcept nogil:
    """Enter if it is free and this process attached.  Acquire; partner: the release in `gate_leave`."""
    return section.private.index_plus_1 != 0 and compare_exchange_acquire_u64(gate, 0, section.private.owner_word)


cdef inline void gate_leave(uint64_t* gate) noexcept nogil:
    if exchange_release_u64(gate, 0) & GATE_WAITERS:
        futex_wake(<uint32_t*>gate, 1)


cdef inline bint gate_take_over(section_t* section, uint64_t* gate, uint64_t word) noexcept nogil:
    """If the owner as of `word` is dead, the gate is mine."""
    return (word_has_owner(word) and not owner_is_alive(section, word)
            and compare_exchange_acquire_u64(gate, word, section.private.owner_word | GATE_WAITERS))


cdef inline int64_t gate_slice(int64_t deadline_ns) noexcept nogil:
    """How long to sleep: to the deadline or for a slice.  Also who does not want to wait for what is behind it waits for a gate."""
    cdef int64_t left_ns
    if deadline_ns == FOREVER or deadline_ns == AT_ONCE:
        return SLICE_NS
    left_ns = deadline_ns - now_ns()
    return SLICE_NS if left_ns > SLICE_NS else (left_ns if left_ns > GATE_LEAST_SLICE_NS else GATE_LEAST_SLICE_NS)


cdef inline int gate_wait_begin(section_t* section, gate_wait_t* wait, int64_t deadline_ns, uint32_t n_spins) noexcept nogil:
    """OK, or why this process cannot be attached."""
    wait.deadline_ns = deadline_ns
    wait.spins_left = n_spins
    wait.waiters = 0
    return OK if section.private.index_plus_1 != 0 else section.attach(section)


cdef inline int gate_step(section_t* section, uint64_t* gate, gate_wait_t* wait) noexcept nogil:
    """Look once: OK, it is mine; OWNER_DIED, it is mine and was a dead one's; WOULD_BLOCK, look again; or what ended a slice of sleep,
    ETIMEDOUT or EINTR: look at deadline and signals, then again."""
    cdef int status
    cdef uint64_t word = load_relaxed_u64(gate)
    wait.word = word
    if not word_has_owner(word):
        return OK if compare_exchange_acquire_u64(gate, word, section.private.owner_word | wait.waiters) else WOULD_BLOCK
    if wait.spins_left:
        wait.spins_left -= 1
        cpu_relax()
        return WOULD_BLOCK
    if word & GATE_WAITERS == 0:
        if not compare_exchange_acquire_u64(gate, word, word | GATE_WAITERS):
            return WOULD_BLOCK
        word |= GATE_WAITERS
    wait.waiters = GATE_WAITERS
    status = futex_wait(<uint32_t*>gate, <uint32_t>word, gate_slice(wait.deadline_ns))
    if status != OK and gate_take_over(section, gate, word):     # after a signal too: they may come more often than slices end
        return OWNER_DIED
    return WOULD_BLOCK if status == OK else status
