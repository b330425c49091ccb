# cython: language_level=3
"""A gate: a mutex in the section whose owner may be killed.  The heap has one, a queue has one for each of its sides.

One owner word (`_base/owner.pxd`)::

    0                         free
    index, generation         a thread of that participant is inside
    the same, owner dead      free for the thread that swaps exactly this word for its own
    GATE_WAITERS              flag added to an owner: threads sleep on the word; the owner wakes one when it leaves

Invariant: *while a thread sleeps, the word has GATE_WAITERS, or a wake is due*.  A thread that has slept enters with the flag, because
others may sleep too; so there may be one wake too many, but never one too few.  Every sleep is a slice, because a wake is lost
if the thread that owes it is killed before it wakes, or the woken thread is killed before it enters.

When a gate is taken over, the dead owner's entry may already have a new owner, which has never been inside.  The entering thread repairs
the dead owner's incomplete change: `gate_step` returns OWNER_DIED.

A thread inside a gate does not wait for anything else and does not run Python.  A thread that requests a gate with the GIL held does not
wait for it.  The owner of the heap's gate takes no other gate, except in a snapshot, which takes those of the queues (`_core.pyx` has the
order).  `tests/models/heap_gate.pml` models this.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport compare_exchange_acquire_u64, cpu_relax, exchange_release_u64, load_relaxed_u64
from shmem._base.deadline cimport AT_ONCE, FOREVER, deadline_is_past
from shmem._base.owner cimport GATE_WAITERS, word_has_owner
from shmem._base.participants cimport owner_is_alive
from shmem._base.section cimport section_t
from shmem._base.status cimport OK, OWNER_DIED, TIMEOUT_EXPIRED, WOULD_BLOCK
from shmem._base.system cimport futex_wait, futex_wake, now_ns
from shmem._sync.channel cimport SLICE_NS

cdef enum:
    GATE_SPINS = 100
    GATE_LEAST_NS = 1000000              # how long a waiter past its deadline waits for the thread inside

ctypedef struct gate_wait_t:             # one thread's wait for a gate
    int64_t deadline_ns
    int64_t ends_ns                      # when it ends; 0: not determined yet
    uint32_t spins_left
    uint64_t waiters                     # GATE_WAITERS once it has slept
    uint64_t word                        # last one seen: with OWNER_DIED, the dead owner's


cdef inline bint gate_try(section_t* section, uint64_t* gate) noexcept nogil:
    """Enter if the gate is free and this process is attached.  Acquire; partner: the release in `gate_leave`."""
    return section.private.index_plus_1 != 0 and compare_exchange_acquire_u64(gate, 0, section.private.owner_word)


cdef inline void gate_leave(uint64_t* gate) noexcept nogil:
    if exchange_release_u64(gate, 0) & GATE_WAITERS:
        futex_wake(<uint32_t*>gate, 1)


cdef inline bint gate_take_over(section_t* section, uint64_t* gate, uint64_t word) noexcept nogil:
    """Enter if the owner in `word` is dead."""
    return (word_has_owner(word) and not owner_is_alive(section, word)
            and compare_exchange_acquire_u64(gate, word, section.private.owner_word | GATE_WAITERS))


cdef inline int64_t gate_slice(gate_wait_t* wait) noexcept nogil:
    """Return how long to sleep, for a slice at most; 0 or less if the wait is over.

    A non-blocking caller still waits for the thread inside, for a slice in all.  After its deadline a caller waits for GATE_LEAST_NS.
    """
    cdef int64_t now, left_ns
    if wait.deadline_ns == FOREVER:
        return SLICE_NS
    now = now_ns()
    if wait.ends_ns == 0 and wait.deadline_ns == AT_ONCE:
        wait.ends_ns = now + SLICE_NS
    elif wait.ends_ns == 0:
        wait.ends_ns = wait.deadline_ns if wait.deadline_ns > now + GATE_LEAST_NS else now + GATE_LEAST_NS
    left_ns = wait.ends_ns - now
    return SLICE_NS if left_ns > SLICE_NS else left_ns


cdef inline bint gate_may_return(const gate_wait_t* wait) noexcept nogil:
    """Return whether a waiter may return to its caller for signals, which then begins the wait anew.

    After the deadline it may not: with signals that arrive more often than the wait ends, it would never end.
    """
    return not deadline_is_past(wait.deadline_ns)


cdef inline int gate_wait_begin(section_t* section, gate_wait_t* wait, int64_t deadline_ns, uint32_t n_spins) noexcept nogil:
    """Begin a wait: OK, or the status of attaching this process."""
    wait.deadline_ns = deadline_ns
    wait.ends_ns = 0
    wait.spins_left = n_spins
    wait.waiters = 0
    return OK if section.private.index_plus_1 != 0 else section.attach(section)


cdef inline int gate_step(section_t* section, uint64_t* gate, gate_wait_t* wait) noexcept nogil:
    """Make one step towards entering.

    OK: entered.  OWNER_DIED: entered, and the former owner died inside.  WOULD_BLOCK: call again.  ETIMEDOUT or EINTR, which ended a
    slice of sleep: look for signals if `gate_may_return`, then call again.  TIMEOUT_EXPIRED: the wait is over, also if signals or wakes
    ended each sleep.  The flag is set then, so a wake that this waiter has used is not lost.
    """
    cdef int status
    cdef int64_t slice_ns
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
    slice_ns = gate_slice(wait)
    if slice_ns <= 0:
        return OWNER_DIED if gate_take_over(section, gate, word) else TIMEOUT_EXPIRED
    status = futex_wait(<uint32_t*>gate, <uint32_t>word, slice_ns)
    if status != OK and gate_take_over(section, gate, word):     # after a signal too: signals may arrive more often than slices end
        return OWNER_DIED
    return WOULD_BLOCK if status == OK else status
