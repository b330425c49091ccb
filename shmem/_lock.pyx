# cython: language_level=3
"""The storage lock: one reader/writer lock over a whole section, in three kinds of word.

::

    gate      owner's index + 1 | WAITERS | READERS | TURN, and owner's generation in the high half
    upgrade   index + 1 and generation of the participant that holds shared and wants exclusive
    readers   one per participant: how many of its threads hold the lock shared
    drain     a counter on which a writer sleeps while readers leave

Truth table (O: some owner; r: sum of all readers)::

    gate      upgrade   r        what holds
    0         0         0        free
    0         0         > 0      shared by r threads
    TURN      any       any      as 0 for readers and the upgrader; other writers wait 1 ms, then it is theirs
    O         0         > 0      O has claimed the gate and drains; who comes to read turns back
    O         0         0        O holds it exclusive (or is about to see that it does)
    0         U         > 0      U shares it and is about to claim the gate
    O != U    U         > 0      O drains, sees `upgrade`, gives the gate back: else each waits for the other
    U         U         > own    U drains all shares but its own
    U         U         own      U holds it exclusive, and its own share

Who wakes whom::

    sleeps on   who                            is woken by
    gate        readers, writers, upgrader     gate_open (release, giving back, taking over), a reader that ends TURN
    upgrade     writers                        upgrade_clear
    drain       the owner of the gate          a reader that leaves or turns back, an upgrader that registers

What a read may miss, and why that is harmless.  A writer that tests `upgrade` before it claims the
gate may miss one set a moment later; it holds no share of its own then, the upgrader does, so the drain cannot
end and looks again.  A reader's look at the gate comes after its own increment, a writer's look at
the readers after its own swap, all four sequentially consistent: at least one sees the other.

When an owner dies.  Every sleep is a slice of at most 50 ms.  After a slice without news (a drainer: every 50 ms,
since readers that turn back wake it without news), and before a timeout is reported, the one in the way is
asked for: the gate's owner (its word is swapped for mine), the participant in `upgrade` (cleared or replaced), a
participant whose count keeps a drain from ending (zeroed).  Always load, ask, swap that very word.

A thread's depths are its own, in a page that a fork wipes; only the outermost lock touches shared words.
`counted` says whether my participant's `readers` has one of mine: not while shared lies inside exclusive.

The lock order of the whole library stands at the head of `_core.pyx`.  The source of the scheme is section 5
of the design, which has a model of it in Promela; time-outs, TURN, downgrade and retrying readers are not in that.
"""

from libc.errno cimport EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._atomics cimport (compare_exchange_seq_cst_u64, cpu_relax, fetch_add_seq_cst_u32, fetch_add_seq_cst_u64,
                             fetch_sub_seq_cst_u32, fetch_sub_seq_cst_u64, load_seq_cst_u32, load_seq_cst_u64,
                             store_release_u32, store_release_u64, store_seq_cst_u64)
from shmem._os cimport futex_wait, futex_wake, now_ns, watch_thread
from shmem._participants cimport participant_entry_is_alive, participant_generation, participant_is_alive
from shmem._section cimport MAX_THREADS, THREAD_ENDED, section_t, thread_find, thread_hash, thread_pointer, thread_t
from shmem._status cimport DEADLOCK, INTERRUPTED, OK, TIMEOUT_EXPIRED, TOO_MANY_THREADS

cdef enum:
    SLICE_NS = 50000000
    TURN_NS = 1000000
    N_SPINS = 40
    EVERYBODY = 0x7fffffff
    MAX_SLICES = 20                # a drainer looks for signals at least once a second, lest it slept through one
    MUST_YIELD = 1                 # drain: somebody upgrades, give the gate back
    SLICE_OVER = 2                 # slept without news: time to look for signals, if nothing is claimed


# -- small parts --------------------------------------------------------------------------------------

cdef inline uint32_t* _low_half(uint64_t* word) noexcept nogil:
    return <uint32_t*>word         # little-endian: the futex word lies first


cdef inline uint64_t* _my_readers(section_t* section) noexcept nogil:
    return &section.participants[section.private.index_plus_1 - 1].readers


cdef inline bint _word_owner_is_alive(section_t* section, uint64_t word) noexcept nogil:
    return participant_is_alive(section, <uint32_t>(word & GATE_OWNER_MASK) - 1, <uint32_t>(word >> 32))


cdef inline bint _is_past(int64_t deadline_ns) noexcept nogil:
    return deadline_ns != FOREVER and (deadline_ns == AT_ONCE or now_ns() >= deadline_ns)


cdef int _sleep(section_t* section, uint32_t* word, uint32_t expected, int64_t deadline_ns, int64_t longest_ns) noexcept nogil:
    """One slice of sleep: 0, ETIMEDOUT or EINTR."""
    cdef int64_t slice_ns = longest_ns, left_ns
    cdef uint32_t* waiting = &section.participants[section.private.index_plus_1 - 1].waiting
    cdef int status
    if deadline_ns != FOREVER:
        left_ns = deadline_ns - now_ns()
        if left_ns <= 0:
            return ETIMEDOUT
        if left_ns < slice_ns:
            slice_ns = left_ns
    fetch_add_seq_cst_u32(waiting, 1)
    status = futex_wait(word, expected, slice_ns)
    fetch_sub_seq_cst_u32(waiting, 1)
    return status


cdef void _note_death(section_t* section) noexcept nogil:
    """A holder is gone: count it, and have the next holder told."""
    fetch_add_seq_cst_u64(&section.header.owner_deaths, 1)
    store_release_u32(&section.header.death_notice, 1)


cdef void drain_step(section_t* section) noexcept nogil:
    """Tell the owner of the gate that a share was given back, or that somebody upgrades."""
    fetch_add_seq_cst_u32(&section.header.drain, 1)
    futex_wake(&section.header.drain, EVERYBODY)


cdef void upgrade_clear(section_t* section) noexcept nogil:
    """Give `upgrade` back.  Always before the gate opens, or a writer would find both open and a share left."""
    store_seq_cst_u64(&section.header.upgrade, 0)
    futex_wake(_low_half(&section.header.upgrade), EVERYBODY)


cdef void gate_open(section_t* section) noexcept nogil:
    """Open the gate that is mine; leave TURN where a reader sleeps; wake whoever sleeps."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.gate)
    while True:
        if (word & ~(<uint64_t>GATE_WAITERS | GATE_READERS)) != section.private.gate_word:
            return
        if compare_exchange_seq_cst_u64(&section.header.gate, word, GATE_TURN if word & GATE_READERS else 0):
            break
        word = load_seq_cst_u64(&section.header.gate)         # a sleeper has set a flag
    if word & (<uint64_t>GATE_WAITERS | GATE_READERS):
        futex_wake(_low_half(&section.header.gate), EVERYBODY)


cdef bint _gate_take_over(section_t* section, uint64_t word) noexcept nogil:
    """If the gate's owner as of `word` is dead, make the gate mine."""
    if word & GATE_OWNER_MASK == 0 or _word_owner_is_alive(section, word):
        return False
    if not compare_exchange_seq_cst_u64(&section.header.gate, word,
                                        section.private.gate_word | (word & (<uint64_t>GATE_WAITERS | GATE_READERS))):
        return False
    _drop_share(section, word)
    _note_death(section)
    return True


cdef void _drop_share(section_t* section, uint64_t owner) noexcept nogil:
    """The dead owner of the gate may have shares too, if it upgraded: one death, counted once."""
    cdef uint64_t* readers = &section.participants[(owner & GATE_OWNER_MASK) - 1].readers
    cdef uint64_t word
    if (owner & GATE_OWNER_MASK) > section.max_participants:
        return
    word = load_seq_cst_u64(readers)
    if word >> 32 == owner >> 32:
        compare_exchange_seq_cst_u64(readers, word, word >> 32 << 32)


cdef int _gate_sleep(section_t* section, uint64_t flags, int64_t deadline_ns, bint* taken_over) noexcept nogil:
    """Sleep until the gate may have opened: 0 (look again, or `taken_over`), TIMEOUT_EXPIRED, INTERRUPTED, SLICE_OVER."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.gate)
    cdef int status, spins_left = N_SPINS
    taken_over[0] = False
    while word & GATE_OWNER_MASK and spins_left:
        cpu_relax()
        spins_left -= 1
        word = load_seq_cst_u64(&section.header.gate)
    if word & GATE_OWNER_MASK == 0:
        return OK
    if _is_past(deadline_ns):
        taken_over[0] = _gate_take_over(section, word)
        return OK if taken_over[0] else TIMEOUT_EXPIRED
    if word & flags != flags:
        if not compare_exchange_seq_cst_u64(&section.header.gate, word, word | flags):
            return OK
        word |= flags
    status = _sleep(section, _low_half(&section.header.gate), <uint32_t>word, deadline_ns, SLICE_NS)
    if status == ETIMEDOUT:
        taken_over[0] = _gate_take_over(section, word)
        return OK if taken_over[0] else SLICE_OVER
    return INTERRUPTED if status == EINTR else OK


cdef bint _upgrade_reap(section_t* section, uint64_t word) noexcept nogil:
    """If the upgrader as of `word` is dead, clear it and wake those who wait for it."""
    if _word_owner_is_alive(section, word):
        return False
    if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
        futex_wake(_low_half(&section.header.upgrade), EVERYBODY)
    return True


cdef int _upgrade_sleep(section_t* section, uint64_t word, int64_t deadline_ns) noexcept nogil:
    """A writer waits until nobody upgrades any more."""
    cdef int status
    if _is_past(deadline_ns):
        return OK if _upgrade_reap(section, word) else TIMEOUT_EXPIRED
    status = _sleep(section, _low_half(&section.header.upgrade), <uint32_t>word, deadline_ns, SLICE_NS)
    if status == ETIMEDOUT:
        return OK if _upgrade_reap(section, word) else SLICE_OVER
    return INTERRUPTED if status == EINTR else OK


# -- drain: wait until the readers have left --------------------------------------------------------------

cdef bint _entry_is_empty(section_t* section, uint32_t index, uint32_t own, bint ask) noexcept nogil:
    """Whether nobody of this entry holds the lock shared (but `own` of my own).  With `ask`, reap the dead."""
    cdef uint64_t word = load_seq_cst_u64(&section.participants[index].readers)
    cdef uint32_t count = <uint32_t>word
    if index + 1 == section.private.index_plus_1:
        return count <= own
    if count == 0:
        return True
    if not ask or participant_entry_is_alive(section, index):
        return False
    if not compare_exchange_seq_cst_u64(&section.participants[index].readers, word, word >> 32 << 32):
        return False
    _note_death(section)
    return True


cdef int _drain(section_t* section, uint32_t own, int64_t deadline_ns) noexcept nogil:
    """The gate is mine: wait until only `own` shares are left.

    Returns 0, MUST_YIELD, TIMEOUT_EXPIRED or INTERRUPTED.  An entry once seen empty stays so: who comes now
    sees the gate and turns back.
    """
    cdef uint32_t first = 0, sequence
    cdef uint64_t word
    cdef int64_t ask_at_ns = 0
    cdef bint ask = False
    cdef int status, spins = 0, slices_left = MAX_SLICES
    while True:
        sequence = load_seq_cst_u32(&section.header.drain)     # before the counts: a step after them is seen
        while first < load_seq_cst_u32(&section.header.participants_high) and _entry_is_empty(section, first, own, ask):
            first += 1
        if first >= load_seq_cst_u32(&section.header.participants_high):
            return OK
        word = load_seq_cst_u64(&section.header.upgrade)
        if own == 0 and word != 0 and not _upgrade_reap(section, word):
            return MUST_YIELD
        if _is_past(deadline_ns):
            if ask:
                return TIMEOUT_EXPIRED
            ask = True
            continue
        if spins < N_SPINS:
            spins += 1
            cpu_relax()
            continue
        if ask_at_ns == 0:
            ask_at_ns = now_ns() + SLICE_NS
        status = _sleep(section, &section.header.drain, sequence, deadline_ns, SLICE_NS)
        ask = now_ns() >= ask_at_ns          # by the clock: readers that come and turn back step the drain again and again
        if ask:
            ask_at_ns = now_ns() + SLICE_NS
            slices_left -= own == 0          # an upgrader would let another one in meanwhile
        if status == EINTR or slices_left == 0:
            return INTERRUPTED


# -- threads ------------------------------------------------------------------------------------------

cdef int thread_register(section_t* section, thread_t** me) noexcept nogil:
    """This thread's slot, made now if it has none; attaches a process that is not attached yet."""
    cdef uint64_t thread = thread_pointer(), found
    cdef uint32_t i, probes_left = MAX_THREADS
    cdef int status
    me[0] = NULL
    if section.private.index_plus_1 == 0:
        status = section.attach(section)
        if status != OK:
            return status
    me[0] = thread_find(section)
    if me[0] != NULL:
        return OK
    i = thread_hash(thread)
    while probes_left:
        probes_left -= 1
        found = load_seq_cst_u64(&section.private.threads[i].thread)
        if (found == 0 or found == THREAD_ENDED) and compare_exchange_seq_cst_u64(
                &section.private.threads[i].thread, found, thread):
            me[0] = &section.private.threads[i]
            watch_thread()
            return OK
        i = (i + 1) & (MAX_THREADS - 1)
    return TOO_MANY_THREADS


cdef void lock_depths(section_t* section, uint32_t* exclusive, uint32_t* shared) noexcept nogil:
    """How deep this thread holds the lock."""
    cdef thread_t* me = thread_find(section)
    exclusive[0] = me.exclusive if me != NULL else 0
    shared[0] = me.shared if me != NULL else 0


cdef void lock_release_all(section_t* section) noexcept nogil:
    """Release whatever this thread holds."""
    cdef thread_t* me = thread_find(section)
    if me == NULL:
        return
    while me.exclusive:
        unlock_exclusive(section)
    while me.shared:
        unlock_shared(section)


cdef void lock_thread_ended(section_t* section) noexcept nogil:
    """This thread ends: what it held is released and counts as a holder's death; its slot may be used again."""
    cdef thread_t* me = thread_find(section)
    if me == NULL:
        return
    if me.exclusive or me.shared:
        _note_death(section)
        lock_release_all(section)
    store_release_u64(&me.thread, THREAD_ENDED)


# -- taking the lock ----------------------------------------------------------------------------------

cdef int _enter_shared(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef uint64_t word
    cdef bint taken_over = False
    cdef int status
    while True:
        if load_seq_cst_u64(&section.header.gate) & GATE_OWNER_MASK == 0:      # else do not disturb who drains
            fetch_add_seq_cst_u64(_my_readers(section), 1)
            word = load_seq_cst_u64(&section.header.gate)
            if word & GATE_OWNER_MASK == 0:
                # TURN was left for readers: I am the first in.  If a writer takes it now, it finds my share
                if word != 0 and compare_exchange_seq_cst_u64(&section.header.gate, word, 0) and word & GATE_WAITERS:
                    futex_wake(_low_half(&section.header.gate), EVERYBODY)
                return OK
            fetch_sub_seq_cst_u64(_my_readers(section), 1)
            drain_step(section)
        status = _gate_sleep(section, <uint64_t>GATE_WAITERS | GATE_READERS, deadline_ns, &taken_over)
        if taken_over:
            gate_open(section)
        elif status == TIMEOUT_EXPIRED:
            return status
        elif status != OK and stop_for_signals:
            return INTERRUPTED


cdef int lock_shared_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Take the lock shared, waiting if need be."""
    cdef thread_t* me = NULL
    cdef int status = thread_register(section, &me)
    if status != OK:
        return status
    if me.exclusive == 0 and me.shared == 0:
        status = _enter_shared(section, deadline_ns, stop_for_signals)
        if status != OK:
            return status
        me.counted = 1
    me.shared += 1
    return OK


cdef int _claim_turn(section_t* section, uint64_t word, int64_t* turn_ends_ns, int64_t deadline_ns) noexcept nogil:
    """A writer finds TURN: wait for a reader to use it, a millisecond at most.  EINTR passes."""
    cdef int64_t now = now_ns()
    if turn_ends_ns[0] == 0:
        turn_ends_ns[0] = now + TURN_NS
    if now >= turn_ends_ns[0] or _is_past(deadline_ns):
        turn_ends_ns[0] = 1           # over: it is mine
        return OK
    if word & GATE_WAITERS == 0:
        if not compare_exchange_seq_cst_u64(&section.header.gate, word, word | GATE_WAITERS):
            return OK
        word |= GATE_WAITERS
    _sleep(section, _low_half(&section.header.gate), <uint32_t>word, deadline_ns, turn_ends_ns[0] - now)
    return OK


cdef int _claim_gate(section_t* section, int64_t deadline_ns, bint is_upgrade, bint stop_for_signals) noexcept nogil:
    """Make the gate mine: 0, TIMEOUT_EXPIRED or INTERRUPTED.

    An upgrader stops for a signal alone: giving `upgrade` back after every slice would let a second one in.
    """
    cdef uint64_t word
    cdef int64_t turn_ends_ns = 0
    cdef bint taken_over = False
    cdef int status = OK
    while True:
        word = load_seq_cst_u64(&section.header.upgrade)
        if word != 0 and not is_upgrade:
            status = _upgrade_sleep(section, word, deadline_ns)
            if status == TIMEOUT_EXPIRED:
                return status
            if status != OK and stop_for_signals:
                return INTERRUPTED
            continue
        word = load_seq_cst_u64(&section.header.gate)
        if word & GATE_OWNER_MASK == 0:
            if word == 0 or is_upgrade or turn_ends_ns == 1:
                if compare_exchange_seq_cst_u64(&section.header.gate, word, section.private.gate_word | (word & GATE_WAITERS)):
                    return OK
            else:
                _claim_turn(section, word, &turn_ends_ns, deadline_ns)
            continue
        turn_ends_ns = 0
        status = _gate_sleep(section, GATE_WAITERS, deadline_ns, &taken_over)
        if taken_over:
            return OK
        if status == TIMEOUT_EXPIRED:
            return status
        if stop_for_signals and (status == INTERRUPTED or (status == SLICE_OVER and not is_upgrade)):
            return INTERRUPTED


cdef int _enter_exclusive(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef int status
    while True:
        status = _claim_gate(section, deadline_ns, False, stop_for_signals)
        if status != OK:
            return status
        status = _drain(section, 0, deadline_ns)
        if status == OK:
            return OK
        gate_open(section)                # given back before any signal handler may run
        if status == TIMEOUT_EXPIRED or (status == INTERRUPTED and stop_for_signals):
            return status


cdef int _register_upgrade(section_t* section) noexcept nogil:
    """Write me into `upgrade`; DEADLOCK when a live one is there: each would wait for the other's share."""
    cdef uint64_t word
    while True:
        word = load_seq_cst_u64(&section.header.upgrade)
        if word != 0 and _word_owner_is_alive(section, word):
            return DEADLOCK
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, section.private.gate_word):
            drain_step(section)           # a draining writer is to see it and give way
            return OK


cdef int _enter_upgrade(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef int status
    while True:
        status = _register_upgrade(section)
        if status != OK:
            return status
        status = _claim_gate(section, deadline_ns, True, stop_for_signals)
        if status == OK:
            status = _drain(section, 1, deadline_ns)
            if status == OK:
                return OK
            upgrade_clear(section)
            gate_open(section)
        else:
            upgrade_clear(section)
        if status == TIMEOUT_EXPIRED or (status == INTERRUPTED and stop_for_signals):
            return status


cdef int lock_exclusive_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Take the lock exclusive, waiting if need be; inside shared this is an upgrade."""
    cdef thread_t* me = NULL
    cdef int status = thread_register(section, &me)
    if status != OK:
        return status
    if me.exclusive == 0:
        if me.shared:
            status = _enter_upgrade(section, deadline_ns, stop_for_signals)
            me.upgrading = status == OK
        else:
            status = _enter_exclusive(section, deadline_ns, stop_for_signals)
        if status != OK:
            return status
    me.exclusive += 1
    return OK


cdef void lock_forget(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil:
    """Entry `index` has a new owner: release what the former one, whose word is given, left in the lock."""
    cdef uint64_t generation = participant_generation(section, index), word
    cdef bint held = <uint32_t>former_readers != 0
    word = load_seq_cst_u64(&section.header.gate)
    if word & GATE_OWNER_MASK == index + 1 and word >> 32 != generation:
        if compare_exchange_seq_cst_u64(&section.header.gate, word, 0):
            held = True
            futex_wake(_low_half(&section.header.gate), EVERYBODY)
    word = load_seq_cst_u64(&section.header.upgrade)
    if word & GATE_OWNER_MASK == index + 1 and word >> 32 != generation:
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
            futex_wake(_low_half(&section.header.upgrade), EVERYBODY)
    if held:
        _note_death(section)
    drain_step(section)
