# cython: language_level=3
"""The storage lock: one reader/writer lock over a whole section, in three kinds of word.

::

    gate      owner's index + 1 and generation, or a turn, or 0; and who starves
    upgrade   index + 1 and generation of the participant that holds shared and wants exclusive
    readers   one per participant: how many of its threads hold the lock shared

Truth table (O: some owner; r: sum of all readers)::

    gate           upgrade   r        what holds
    0              0         0        free
    0              0         > 0      shared by r threads
    TURN_READERS   any       any      as 0 for readers and the upgrader; a writer waits 0.1 ms before it takes it
    TURN_WRITERS   any       any      as 0 for readers, the upgrader and a writer that had registered; a new one waits 0.1 ms
    O              0         > 0      O has claimed the gate and drains; who comes to read turns back
    O              0         0        O holds it exclusive (or is about to see that it does)
    0              U         > 0      U shares it and is about to claim the gate
    O != U         U         > 0      O drains, sees `upgrade`, gives the gate back: else each waits for the other
    U              U         > own    U drains all shares but its own
    U              U         own      U holds it exclusive, and its own share

Who wakes whom; all but `upgrade` are channels (`_sync/channel.pxd`: registrations are never fewer than sleepers)::

    sleeps on      who                            is woken by
    lock_gate_readers   readers, the upgrader          whoever opens the gate: all of them
    lock_gate_writers   writers                        whoever opens the gate, the last reader of a turn, a writer that
                                                  was woken and gives up: one of them
    upgrade        writers                        upgrade_clear: all
    drain          the owner of the gate          a reader that leaves or turns back, an upgrader that registers

Fairness.  An open gate belongs to whoever comes first, which is mostly a thread that runs already: that is fast, and starves those who
sleep.  Who has waited for a millisecond says so in the gate (STARVING).  The release that finds it there leaves a turn:
first for the readers that are registered, until so many are in or have given up; then for the writers, until one that had
registered has it; if that one did not starve, the next turn is a writer's again.  A turn has no owner, so a kill does it no
harm: whom it keeps out takes the gate after a tenth of a millisecond.  So of n writers and readers in tight loops each has its turn
after some n milliseconds.

What a read may miss, and why that is harmless.  A writer that tests `upgrade` before it claims the
gate may miss one set a moment later; it holds no share of its own then, the upgrader does, so the drain cannot
end and looks again.  A reader's look at the gate comes after its own increment, a writer's look at
the readers after its own swap, all four sequentially consistent: at least one sees the other.

When an owner dies.  Every sleep is a slice of at most 50 ms.  After a slice without news (a drainer: every 50 ms,
since readers that turn back wake it without news), and before a timeout is reported, the one in the way is
asked for: the gate's owner (its word is swapped for mine), the participant in `upgrade` (cleared or replaced), a
participant whose count keeps a drain from ending (zeroed).  Always load, ask, swap that very word.

Who drains or upgrades looks for signals once a second, since it has to give the gate back for that; when the process leaves the section
(`section.leaves`) after its slice, lest the process ends with the gate in its hand.

A thread's depths are its own, in a page that a fork wipes; only the outermost lock touches shared words.
`counted` says whether my participant's `readers` has one of mine: not while shared lies inside exclusive.

The lock order of the whole library stands at the head of `_core.pyx`.  The source of the scheme is section 5
of the design; what is claimed here is model-checked, in `tests/models`, but for this: that a writer among several others has its turn is
measured (`bench`, question fairness), and the README there says what the model finds.
"""

from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._atomics cimport (
    compare_exchange_seq_cst_u64, cpu_relax, fetch_add_seq_cst_u32, fetch_add_seq_cst_u64, fetch_sub_seq_cst_u32, fetch_sub_seq_cst_u64,
    load_relaxed_u32, load_seq_cst_u64, store_release_u32, store_release_u64, store_seq_cst_u64)
from shmem._base.bounds cimport participants_bound
from shmem._base.deadline cimport FOREVER, deadline_is_past
from shmem._base.debug cimport debug_fail, debug_storage_lock
from shmem._base.layout cimport header_t
from shmem._base.owner cimport OWNER_GENERATION_SHIFT, owner_generation, owner_index, readers_count, readers_none, word_has_owner
from shmem._base.participants cimport owner_is_alive, participant_entry_is_alive, participant_generation
from shmem._base.section cimport MAX_THREADS, THREAD_ENDED, section_t, thread_find, thread_hash, thread_pointer, thread_t
from shmem._base.status cimport DEADLOCK, INTERRUPTED, OK, TIMEOUT_EXPIRED, TOO_MANY_THREADS
from shmem._base.system cimport futex_wait, futex_wake, now_ns, watch_thread
from shmem._sync.channel cimport EVERYBODY, SLICE_NS, channel_notify, channel_register, channel_sleep, channel_withdraw, low_half

cdef enum:
    TURN_NS = 100000
    STARVING_NS = 1000000          # who has waited so long asks for a turn
    N_SPINS = 40
    MAX_SLICES = 1000000000 // SLICE_NS      # a drainer or upgrader looks for signals once a second, in case it slept through one
    MUST_YIELD = 1                 # drain: somebody upgrades, give the gate back
    SLICE_OVER = 2                 # slept without news: time to look for signals, if nothing is claimed

cdef enum:
    STARVING = LOCK_STARVING_READERS | LOCK_STARVING_WRITERS

cdef enum Wish:
    READ
    WRITE
    UPGRADE

ctypedef struct wait_t:            # one request for the lock while it waits
    int64_t deadline_ns
    int64_t began_ns               # 0: has not slept yet
    int64_t turn_ends_ns           # of the others' turn that I leave to them; 0: none
    Wish wish
    bint registered                # it was asleep or about to be: a turn may be meant for it
    uint32_t sequence              # that it registered with: a readers' turn carries it
    int slices_left                # of an upgrader's, until it looks for signals
    bint taken_over                # out: the gate is mine, its owner is dead
    bint stop_for_signals


# -- small parts --------------------------------------------------------------------------------------

cdef inline uint64_t* _my_readers(section_t* section) noexcept nogil:
    return &section.participants[section.private.index_plus_1 - 1].readers


cdef wait_t _wait_for(Wish wish, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef wait_t wait
    wait.wish, wait.deadline_ns, wait.stop_for_signals = wish, deadline_ns, stop_for_signals
    wait.began_ns = wait.turn_ends_ns = 0
    wait.registered = wait.taken_over = False
    wait.sequence = 0
    wait.slices_left = MAX_SLICES
    return wait


cdef int _sleep(section_t* section, uint64_t* channel, uint32_t sequence, int64_t deadline_ns, int64_t longest_ns) noexcept nogil:
    """One slice of sleep on a channel, counted for `stats`: 0, ETIMEDOUT or EINTR, no more registered."""
    cdef uint32_t* waiting = &section.participants[section.private.index_plus_1 - 1].waiting
    cdef int status
    fetch_add_seq_cst_u32(waiting, 1)
    status = channel_sleep(channel, sequence, deadline_ns, longest_ns)
    fetch_sub_seq_cst_u32(waiting, 1)
    if status != 0:
        channel_withdraw(channel, sequence)
    return status


cdef void _note_death(section_t* section) noexcept nogil:
    """A holder is gone: count it, and have the next holder told."""
    fetch_add_seq_cst_u64(&section.header.owner_deaths, 1)
    store_release_u32(&section.header.death_notice, 1)


cdef void upgrade_clear(section_t* section) noexcept nogil:
    """Give `upgrade` back.  Always before the gate opens, or a writer would find both open and a share left."""
    store_seq_cst_u64(&section.header.upgrade, 0)
    futex_wake(low_half(&section.header.upgrade), EVERYBODY)


cdef void lock_gate_notify(section_t* section) noexcept nogil:
    """The gate has opened: all readers may come in, or one writer, which knows whether it is its turn."""
    channel_notify(&section.header.lock_gate_readers, EVERYBODY)
    channel_notify(&section.header.lock_gate_writers, 1)


cdef void lock_gate_open(section_t* section) noexcept nogil:
    """Open the gate that is mine; leave a turn to those who starve; wake who may come in."""
    cdef header_t* header = section.header
    cdef uint64_t word, turn = 0, readers
    while True:
        word = load_seq_cst_u64(&header.lock_gate)
        if word & ~STARVING != section.private.owner_word:
            return
        turn = 0
        readers = load_seq_cst_u64(&header.lock_gate_readers)
        if word & LOCK_STARVING_READERS:
            turn = (LOCK_TURN_READERS | (word & LOCK_STARVING_WRITERS) | min(readers >> 32, LOCK_TURN_MOST) * LOCK_TURN_ONE
                    | readers << 32)
        elif word & LOCK_STARVING_WRITERS:
            turn = LOCK_TURN_WRITERS
        if compare_exchange_seq_cst_u64(&header.lock_gate, word, turn):
            break                                  # else somebody has begun to starve
    lock_gate_notify(section)                           # in a readers' turn, too: the writer sees to it that the turn ends


cdef void _use_readers_turn(section_t* section, wait_t* wait) noexcept nogil:
    """One of those it was left to is in, or gives up; after the last of them the writers may come.

    They are those that were registered, which the sequence tells; if none was, then one that was awake just then.
    """
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate), n_left, next_word
    while word & LOCK_TURN_READERS and wait.registered:
        n_left = word // LOCK_TURN_ONE & LOCK_TURN_MOST
        if n_left != 0 and <uint32_t>(word >> 32) != wait.sequence:
            return
        if n_left > 1:
            next_word = word - LOCK_TURN_ONE
        else:
            next_word = LOCK_TURN_WRITERS if word & LOCK_STARVING_WRITERS else 0
        if compare_exchange_seq_cst_u64(&section.header.lock_gate, word, next_word):
            if n_left <= 1:
                channel_notify(&section.header.lock_gate_writers, 1)
            return
        word = load_seq_cst_u64(&section.header.lock_gate)


cdef bint _lock_gate_take_over(section_t* section) noexcept nogil:
    """If the gate's owner is dead, make the gate mine: load, ask, swap."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    if not word_has_owner(word) or owner_is_alive(section, word):
        return False
    if not compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | (word & STARVING)):
        return False
    _drop_share(section, word)
    _note_death(section)
    return True


cdef void _drop_share(section_t* section, uint64_t owner) noexcept nogil:
    """The dead owner of the gate may have shares too, if it upgraded: one death, counted once."""
    cdef uint64_t* readers = &section.participants[owner_index(owner)].readers
    cdef uint64_t word
    if owner_index(owner) >= section.max_participants:
        return
    word = load_seq_cst_u64(readers)
    if owner_generation(word) == owner_generation(owner):
        compare_exchange_seq_cst_u64(readers, word, readers_none(word))


cdef bint _say_starving(section_t* section, wait_t* wait, uint64_t word) noexcept nogil:
    """After a millisecond of waiting, say so in the gate; I am registered.  False: the gate has changed."""
    cdef int64_t now = now_ns()
    cdef uint64_t flag = LOCK_STARVING_WRITERS if wait.wish == WRITE else LOCK_STARVING_READERS
    if wait.began_ns == 0:
        wait.began_ns = now
    if wait.wish == UPGRADE or now - wait.began_ns < STARVING_NS or word & flag:
        return load_seq_cst_u64(&section.header.lock_gate) == word
    return compare_exchange_seq_cst_u64(&section.header.lock_gate, word, word | flag)


cdef int _lock_gate_sleep(section_t* section, wait_t* wait) noexcept nogil:
    """Sleep until the gate may have opened: 0 (look again, or `taken_over`), TIMEOUT_EXPIRED, INTERRUPTED, SLICE_OVER."""
    cdef uint64_t* channel = &section.header.lock_gate_writers if wait.wish == WRITE else &section.header.lock_gate_readers
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    cdef uint32_t sequence
    cdef int status, spins_left = N_SPINS
    wait.taken_over = False
    while word_has_owner(word) and spins_left:
        cpu_relax()
        spins_left -= 1
        word = load_seq_cst_u64(&section.header.lock_gate)
    if not word_has_owner(word):
        return OK
    if deadline_is_past(wait.deadline_ns):
        wait.taken_over = _lock_gate_take_over(section)
        return OK if wait.taken_over else TIMEOUT_EXPIRED
    sequence = channel_register(channel)              # before the look; partner: the swap that opens the gate
    wait.sequence = sequence
    wait.registered = True
    if not _say_starving(section, wait, word):
        channel_withdraw(channel, sequence)
        return OK
    status = _sleep(section, channel, sequence, wait.deadline_ns, SLICE_NS)
    if status != OK:                     # after a signal too: they may come more often than slices end
        wait.taken_over = _lock_gate_take_over(section)
    if wait.taken_over or status == OK:
        return OK
    return INTERRUPTED if status == EINTR else SLICE_OVER


cdef bint _upgrade_reap(section_t* section, uint64_t word) noexcept nogil:
    """If the upgrader as of `word` is dead, clear it and wake those who wait for it."""
    if owner_is_alive(section, word):
        return False
    if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
        futex_wake(low_half(&section.header.upgrade), EVERYBODY)
    return True


cdef int _upgrade_sleep(section_t* section, uint64_t word, int64_t deadline_ns) noexcept nogil:
    """A writer waits until nobody upgrades any more."""
    cdef uint32_t* waiting = &section.participants[section.private.index_plus_1 - 1].waiting
    cdef int64_t longest_ns = SLICE_NS
    cdef int status
    if deadline_is_past(deadline_ns):
        return OK if _upgrade_reap(section, word) else TIMEOUT_EXPIRED
    if deadline_ns != FOREVER and deadline_ns - now_ns() < longest_ns:
        longest_ns = max(deadline_ns - now_ns(), 0)
    fetch_add_seq_cst_u32(waiting, 1)
    status = futex_wait(low_half(&section.header.upgrade), <uint32_t>word, longest_ns)
    fetch_sub_seq_cst_u32(waiting, 1)
    if status == OK or _upgrade_reap(section, word):
        return OK
    return INTERRUPTED if status == EINTR else SLICE_OVER


# -- drain: wait until the readers have left --------------------------------------------------------------

cdef bint _entry_is_empty(section_t* section, uint32_t index, uint32_t own, bint ask) noexcept nogil:
    """Whether nobody of this entry holds the lock shared (but `own` of my own).  With `ask`, reap the dead."""
    cdef uint64_t word = load_seq_cst_u64(&section.participants[index].readers)
    cdef uint32_t count = readers_count(word)
    if index + 1 == section.private.index_plus_1:
        return count <= own
    if count == 0:
        return True
    if not ask or participant_entry_is_alive(section, index):
        return False
    if not compare_exchange_seq_cst_u64(&section.participants[index].readers, word, readers_none(word)):
        return False
    _note_death(section)
    return True


cdef int _drain(section_t* section, uint32_t own, int64_t deadline_ns) noexcept nogil:
    """The gate is mine: wait until only `own` shares are left: 0, MUST_YIELD, TIMEOUT_EXPIRED or INTERRUPTED."""
    cdef uint64_t* channel = &section.header.drain
    cdef uint32_t first = 0, sequence
    cdef int64_t ask_at_ns = 0
    cdef bint ask = False
    cdef int status = SLICE_OVER, spins_left = N_SPINS, slices_left = MAX_SLICES
    while spins_left and status == SLICE_OVER:
        status = _drain_look(section, own, deadline_ns, &first, False)
        spins_left -= 1
        cpu_relax()
    while status == SLICE_OVER:
        sequence = channel_register(channel)          # before the looks; partner: who leaves, or upgrades, and then notifies
        status = _drain_look(section, own, deadline_ns, &first, ask)
        if status != SLICE_OVER:
            channel_withdraw(channel, sequence)
            return status
        if ask_at_ns == 0:
            ask_at_ns = now_ns() + SLICE_NS
        if _sleep(section, channel, sequence, deadline_ns, SLICE_NS) == EINTR:
            status = _drain_look(section, own, deadline_ns, &first, True)        # the next drain may not get as far as to ask
            return INTERRUPTED if status == SLICE_OVER else status
        ask = now_ns() >= ask_at_ns          # by the clock: readers that come and turn back wake me again and again
        if ask:
            ask_at_ns = now_ns() + SLICE_NS
            slices_left -= 1
        if slices_left == 0 or load_relaxed_u32(&section.leaves):
            return INTERRUPTED
    return status


cdef int _drain_look(section_t* section, uint32_t own, int64_t deadline_ns, uint32_t* first, bint ask) noexcept nogil:
    """How the drain stands: 0, MUST_YIELD, TIMEOUT_EXPIRED, or SLICE_OVER: sleep.

    An entry once seen empty stays so: who comes now sees the gate and turns back.
    """
    cdef uint64_t word
    cdef bint is_past
    while True:
        while first[0] < participants_bound(section) and _entry_is_empty(section, first[0], own, ask):
            first[0] += 1
        if first[0] >= participants_bound(section):
            return OK
        word = load_seq_cst_u64(&section.header.upgrade)
        if own == 0 and word != 0 and not _upgrade_reap(section, word):
            return MUST_YIELD
        is_past = deadline_is_past(deadline_ns)
        if not is_past or ask:
            return TIMEOUT_EXPIRED if is_past else SLICE_OVER
        ask = True                           # once, before the timeout is reported


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
    cdef wait_t wait = _wait_for(READ, deadline_ns, stop_for_signals)
    cdef uint64_t word
    cdef int status
    while True:
        if not word_has_owner(load_seq_cst_u64(&section.header.lock_gate)):      # else do not disturb who drains
            fetch_add_seq_cst_u64(_my_readers(section), 1)
            word = load_seq_cst_u64(&section.header.lock_gate)
            if not word_has_owner(word):
                if word & LOCK_TURN_READERS:
                    _use_readers_turn(section, &wait)      # if a writer takes it at this moment, it finds my share
                return OK
            fetch_sub_seq_cst_u64(_my_readers(section), 1)
            channel_notify(&section.header.drain, EVERYBODY)
        status = _lock_gate_sleep(section, &wait)
        if wait.taken_over:
            lock_gate_open(section)
        elif status == TIMEOUT_EXPIRED or (status != OK and stop_for_signals):
            _use_readers_turn(section, &wait)
            return TIMEOUT_EXPIRED if status == TIMEOUT_EXPIRED else INTERRUPTED


cdef int lock_shared_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Take the lock shared, waiting if need be."""
    cdef thread_t* me = NULL
    cdef int status
    if section.verify != NULL:
        debug_storage_lock()
    status = thread_register(section, &me)
    if status != OK:
        return status
    if me.exclusive == 0 and me.shared == 0:
        status = _enter_shared(section, deadline_ns, stop_for_signals)
        if status != OK:
            return status
        me.counted = 1
    me.shared += 1
    return OK


cdef void _leave_turn_to_others(section_t* section, wait_t* wait, uint64_t word) noexcept nogil:
    """A writer finds a turn that is not its own: it waits until that is used, 0.1 ms at most.  EINTR passes."""
    cdef uint32_t sequence
    cdef int64_t now = now_ns()
    if wait.turn_ends_ns == 0:
        wait.turn_ends_ns = now + TURN_NS
    if now >= wait.turn_ends_ns or deadline_is_past(wait.deadline_ns):
        wait.turn_ends_ns = 1                # over: it is mine
        return
    sequence = channel_register(&section.header.lock_gate_writers)
    wait.registered = True
    if not _say_starving(section, wait, word):
        channel_withdraw(&section.header.lock_gate_writers, sequence)
    else:
        _sleep(section, &section.header.lock_gate_writers, sequence, wait.deadline_ns, wait.turn_ends_ns - now)


cdef int _claim_open_gate(section_t* section, wait_t* wait, uint64_t word) noexcept nogil:
    """Nobody owns the gate: make it mine, unless it is somebody else's turn.  OK or SLICE_OVER: look again."""
    cdef uint64_t starving = word & LOCK_STARVING_WRITERS
    if (word != 0 and wait.wish == WRITE and wait.turn_ends_ns != 1
            and not (word & LOCK_TURN_WRITERS and wait.registered)):
        _leave_turn_to_others(section, wait, word)
        return SLICE_OVER
    if word & LOCK_TURN_READERS and load_seq_cst_u64(&section.header.lock_gate_readers) >> 32 != 0:
        starving |= LOCK_STARVING_READERS    # they have not used it: the next release leaves it to them again
    elif word & LOCK_TURN_WRITERS and wait.turn_ends_ns != 1 and now_ns() - wait.began_ns < STARVING_NS:
        starving = LOCK_STARVING_WRITERS     # not I, so somebody else does: the next turn is a writer's, too
    return OK if compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | starving) else SLICE_OVER


cdef int _claim_gate(section_t* section, wait_t* wait) noexcept nogil:
    """Make the gate mine: 0, TIMEOUT_EXPIRED or INTERRUPTED.

    An upgrader stops for a signal, and once a second: giving `upgrade` back after every slice would let a second one in.
    """
    cdef uint64_t word
    cdef int status
    while True:
        word = load_seq_cst_u64(&section.header.upgrade)
        if word != 0 and wait.wish == WRITE:
            status = _upgrade_sleep(section, word, wait.deadline_ns)
        else:
            word = load_seq_cst_u64(&section.header.lock_gate)
            if not word_has_owner(word):
                if _claim_open_gate(section, wait, word) == OK:
                    return OK
                continue
            wait.turn_ends_ns = 0
            status = _lock_gate_sleep(section, wait)
            if wait.taken_over:
                return OK
        if status == TIMEOUT_EXPIRED:
            return status
        wait.slices_left -= status == SLICE_OVER
        if load_relaxed_u32(&section.leaves):
            wait.slices_left = 0
        if wait.stop_for_signals and (status == INTERRUPTED or (status == SLICE_OVER and (wait.wish == WRITE or wait.slices_left <= 0))):
            return INTERRUPTED


cdef int _enter_exclusive(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef wait_t wait = _wait_for(WRITE, deadline_ns, stop_for_signals)
    cdef int status
    while True:
        status = _claim_gate(section, &wait)
        if status != OK:
            if not word_has_owner(load_seq_cst_u64(&section.header.lock_gate)):
                channel_notify(&section.header.lock_gate_writers, 1)      # if I was woken: another one instead of me
            return status
        status = _drain(section, 0, deadline_ns)
        if status == OK:
            return OK
        lock_gate_open(section)                # given back before any signal handler may run
        if status == TIMEOUT_EXPIRED or (status == INTERRUPTED and stop_for_signals):
            return status


cdef int _register_upgrade(section_t* section) noexcept nogil:
    """Write me into `upgrade`; DEADLOCK when a live one is there: each would wait for the other's share."""
    cdef uint64_t word
    while True:
        word = load_seq_cst_u64(&section.header.upgrade)
        if word != 0 and owner_is_alive(section, word):
            return DEADLOCK
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, section.private.owner_word):
            channel_notify(&section.header.drain, EVERYBODY)       # a draining writer is to see it and give way
            return OK


cdef int _enter_upgrade(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef wait_t wait = _wait_for(UPGRADE, deadline_ns, stop_for_signals)
    cdef int status
    while True:
        status = _register_upgrade(section)
        if status != OK:
            return status
        status = _claim_gate(section, &wait)
        if status == OK:
            status = _drain(section, 1, deadline_ns)
            if status == OK:
                return OK
            upgrade_clear(section)
            lock_gate_open(section)
        else:
            upgrade_clear(section)
        if status == TIMEOUT_EXPIRED or (status == INTERRUPTED and stop_for_signals):
            return status


cdef int lock_exclusive_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Take the lock exclusive, waiting if need be; inside shared this is an upgrade."""
    cdef thread_t* me = NULL
    cdef int status
    if section.verify != NULL:
        debug_storage_lock()
    status = thread_register(section, &me)
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
    cdef uint32_t generation = participant_generation(section, index)
    cdef uint64_t word
    cdef bint held = readers_count(former_readers) != 0, is_mine = False
    word = load_seq_cst_u64(&section.header.lock_gate)
    if owner_index(word) == index and owner_generation(word) != generation:
        is_mine = compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | (word & STARVING))
    if held or is_mine:
        _note_death(section)             # before anybody may come in: the next holder is told
    word = load_seq_cst_u64(&section.header.upgrade)
    if owner_index(word) == index and owner_generation(word) != generation:
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
            futex_wake(low_half(&section.header.upgrade), EVERYBODY)
    if is_mine:
        lock_gate_open(section)
    channel_notify(&section.header.drain, EVERYBODY)


# -- SHMEM_DEBUG ----------------------------------------------------------------------------------------

cdef void lock_verify_share(section_t* section, uint64_t readers) noexcept nogil:
    """I gave back a share that my entry, of my generation, must have counted."""
    if readers_count(readers) == 0 or owner_generation(readers) != section.private.generation:
        debug_fail(b"a share of the lock is given back that its participant has not counted", section.path,
                   <char*>_my_readers(section) - section.base, <uint64_t>section.private.generation << OWNER_GENERATION_SHIFT | 1, readers)


cdef void lock_verify_gate(section_t* section) noexcept nogil:
    """I hold the lock exclusive: the gate must say so."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    if word & ~STARVING != section.private.owner_word:
        debug_fail(b"the lock is given back, and its gate is not ours", section.path, <char*>&section.header.lock_gate - section.base,
                   section.private.owner_word, word)
