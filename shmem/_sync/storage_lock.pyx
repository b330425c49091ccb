# cython: language_level=3
"""The storage lock: one reader/writer lock over a whole section, in three kinds of word.

::

    lock_gate   an owner word (`_base/owner.pxd`), a turn, or 0; and flags for starving waiters
    upgrade     the owner word of the participant that holds shared and wants exclusive
    readers     one per participant: the number of its threads that hold the lock shared

"The gate" is `lock_gate` here.  Truth table (O: some owner; U: the upgrader; r: sum of all readers)::

    gate           upgrade   r        meaning
    0              0         0        free
    0              0         > 0      shared by r threads
    TURN_READERS   any       any      as 0 for readers and the upgrader; a writer waits TURN_NS before it takes the gate
    TURN_WRITERS   any       any      as 0 for readers, the upgrader and a registered writer; a new writer waits TURN_NS
    O              0         > 0      O has claimed the gate and drains; new readers turn back
    O              0         0        O holds the lock exclusive (or is about to find that it does)
    O + RESERVED   any       any      O has claimed the gate and runs signal handlers; any waiter may open it after RESERVED_NS
    0              U         > 0      U holds a share and is about to claim the gate, or runs signal handlers before it does
    O != U         U         > 0      O drains, sees `upgrade`, releases the gate: else each would wait for the other
    U              U         > own    U drains all shares but its own
    U              U         own      U holds the lock exclusive, and its own share

Which event wakes which waiters; all but `upgrade` are channels (`_sync/channel.pxd`: registrations are never fewer than sleepers)::

    sleeps on           sleeper                   woken by
    lock_gate_readers   readers, the upgrader     the thread that opens the gate: all of them
    lock_gate_writers   writers                   the thread that opens the gate, the last reader of a turn, a writer
                                                  that was woken and gives up: one of them
    upgrade             writers                   the thread that clears `upgrade`: all of them
    drain               the owner of the gate     a reader that leaves or turns back, an upgrader that registers

Fairness.  An open gate goes to the first thread that arrives, usually one that is already running.  This is fast, but starves sleepers.
A waiter that has waited for STARVING_NS sets a STARVING flag in the gate.  A release that finds the flag grants a turn.
The readers' turn comes first, and lasts until as many readers as were registered have entered or given up.  The writers' turn
follows, and lasts until a registered writer takes the gate.  If that writer did not starve, the next turn is
the writers' again.  A turn has no owner, so a kill does not block it: a waiter that it keeps out takes the gate after TURN_NS.
So each of n writers and readers in tight loops has its turn after about n times STARVING_NS.

What a read may miss, and why that is harmless.  A writer that reads `upgrade` before it claims the gate may miss an upgrader that
registers a moment later.  The writer then holds no share and the upgrader does, so the drain cannot end, and reads `upgrade` again.
A reader reads the gate after its own increment, and a writer reads the readers after its own swap.  All four operations are
sequentially consistent, so at least one sees the other.

When an owner dies.  Every sleep is a slice of at most SLICE_NS.  After a slice without a wake, after a signal, and before it reports a
timeout, a waiter checks whether the participant that blocks it is alive.  A drainer checks every SLICE_NS by the clock, since readers that
turn back wake it without progress.  If that participant is dead, its word is swapped: the gate's owner for the waiter, the
participant in `upgrade` for 0 or the next upgrader, the count that keeps a drain from ending for 0.  The order is always: load the word,
check the owner in it, swap that very word.

Signals.  A request returns INTERRUPTED to its caller, which runs signal handlers and calls again with the same request.  A drainer keeps
the gate meanwhile, with RESERVED and a number beside its owner word.  An upgrader also keeps `upgrade`, which never stops readers.
`claimed` of the thread states what is kept.  The next call resumes it, by a swap of exactly the reserved word.  It is dropped if the
caller abandons the request, if the thread requests the lock in a handler, and if the thread ends.  The interrupted request then begins
anew.
A handler may wait for another process that waits for the gate.  So a waiter that has seen the same reservation for RESERVED_NS opens the
gate in the owner's stead.  A longer handler costs the writer its place, and cannot cause a deadlock.  The number distinguishes one long
reservation from many short ones.  When the process leaves the section (`section.leaves`), a drainer opens the gate instead, after its
current slice.

The depths of a thread are private, in a page that a fork wipes; only the outermost lock accesses shared words.
`counted` is set if this participant's `readers` includes a share of this thread; a shared lock inside an exclusive one is not counted.

`_core.pyx` has the lock order of the library.  The claims above are model-checked (`tests/models`), except
that a writer among several other writers gets its turn: that is measured (`bench`, question `fairness`), and `tests/models/README.md`
describes what the model finds there.
"""

from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._atomics cimport (
    compare_exchange_seq_cst_u64, cpu_relax, fetch_add_seq_cst_u32, fetch_add_seq_cst_u64, fetch_sub_seq_cst_u32, fetch_sub_seq_cst_u64,
    load_relaxed_u32, load_seq_cst_u64, store_release_u32, store_release_u64, store_seq_cst_u64, thread_pointer)
from shmem._base.bounds cimport participants_bound
from shmem._base.deadline cimport FOREVER, deadline_is_past
from shmem._base.debug cimport debug_fail, debug_storage_lock
from shmem._base.layout cimport header_t
from shmem._base.owner cimport OWNER_GENERATION_SHIFT, owner_generation, owner_index, readers_count, readers_none, word_has_owner
from shmem._base.participants cimport my_entry, owner_is_alive, participant_entry_is_alive, participant_generation
from shmem._base.section cimport MAX_THREADS, THREAD_ENDED, section_t, thread_find, thread_hash, thread_t
from shmem._base.status cimport DEADLOCK, INTERRUPTED, OK, TIMEOUT_EXPIRED, TOO_MANY_THREADS
from shmem._base.system cimport futex_wait, futex_wake, now_ns, watch_thread
from shmem._sync.channel cimport ALL_WAITERS, SLICE_NS, channel_notify, channel_register, channel_sleep, channel_withdraw, low_half

cdef extern from *:
    """
    #define RESERVED_NS 100000000
    #define RARELY_NS 1000000000
    _Static_assert(RESERVED_NS > SLICE_NS, "a reservation outlasts a slice of the waiters");
    """
    enum: RESERVED_NS              # how long the gate is kept for an owner that runs signal handlers
    enum: RARELY_NS                # how long a drain lasts before a request with LOCK_RETURNS_RARELY returns

cdef enum:
    TURN_NS = 100000               # how long a writer respects the turn of others
    STARVING_NS = 1000000          # how long a waiter waits before it requests a turn
    N_SPINS = 40
    MUST_YIELD = 1                 # drain: another participant upgrades, so the gate must be released
    SLICE_OVER = 2                 # slept without a wake: time to return for signals, if nothing is claimed

cdef enum:
    STARVING = LOCK_STARVING_READERS | LOCK_STARVING_WRITERS

cdef enum:                         # bits of a thread's `claimed`
    CLAIM_GATE = 1                 # the gate is RESERVED
    CLAIM_UPGRADE = 2              # `upgrade` names this participant

cdef enum:                         # kinds of requests; 0: not begun yet
    READ = 1
    WRITE
    UPGRADE


# -- small parts --------------------------------------------------------------------------------------

cdef void _request_begin(section_t* section, uint32_t kind, lock_request_t* request) noexcept nogil:
    """Begin a request, or begin it anew after an interruption.  How long it has waited is kept."""
    request.kind = kind
    request.channel = &section.header.lock_gate_writers if kind == WRITE else &section.header.lock_gate_readers
    request.starving_flag = 0 if kind == UPGRADE else (LOCK_STARVING_WRITERS if kind == WRITE else LOCK_STARVING_READERS)
    request.own_shares = 1 if kind == UPGRADE else 0
    request.turn_ends_ns = 0
    request.registered = request.taken_over = False


cdef int _sleep(section_t* section, uint64_t* channel, uint32_t sequence, int64_t deadline_ns, int64_t longest_ns) noexcept nogil:
    """Sleep for a slice on a channel, counted for `stats`: 0, ETIMEDOUT or EINTR.  Afterwards the registration is gone."""
    cdef uint32_t* waiting = &my_entry(section).waiting
    cdef int status
    fetch_add_seq_cst_u32(waiting, 1)
    status = channel_sleep(channel, sequence, deadline_ns, longest_ns)
    fetch_sub_seq_cst_u32(waiting, 1)
    if status != 0:
        channel_withdraw(channel, sequence)
    return status


cdef void _note_death(section_t* section) noexcept nogil:
    """Count a dead holder, and set the notice for the next holder."""
    fetch_add_seq_cst_u64(&section.header.owner_deaths, 1)
    store_release_u32(&section.header.death_notice, 1)


cdef void _count_death(section_t* section) noexcept nogil:
    """Count a dead reader whose shares this participant has cleared; the notice was set before."""
    fetch_add_seq_cst_u64(&section.header.owner_deaths, 1)


cdef void upgrade_clear(section_t* section) noexcept nogil:
    """Clear `upgrade`.  This must happen before the gate opens, or a writer would find both open while a share is left."""
    store_seq_cst_u64(&section.header.upgrade, 0)
    futex_wake(low_half(&section.header.upgrade), ALL_WAITERS)


cdef void lock_gate_notify(section_t* section) noexcept nogil:
    """Wake all readers and one writer after the gate has opened; the writer reads in the gate whether it is its turn."""
    channel_notify(&section.header.lock_gate_readers, ALL_WAITERS)
    channel_notify(&section.header.lock_gate_writers, 1)


cdef void lock_gate_open(section_t* section) noexcept nogil:
    """Open the gate, which this participant owns."""
    _lock_gate_open_from(section, section.private.owner_word)


cdef void _lock_gate_open_from(section_t* section, uint64_t owned) noexcept nogil:
    """Open the gate if its word is `owned`, STARVING flags aside; grant a turn to starving waiters; wake the waiters that may enter."""
    cdef header_t* header = section.header
    cdef uint64_t word, turn = 0, readers
    while True:
        word = load_seq_cst_u64(&header.lock_gate)
        if word & ~STARVING != owned:
            return
        turn = 0
        readers = load_seq_cst_u64(&header.lock_gate_readers)
        if word & LOCK_STARVING_READERS:
            turn = (LOCK_TURN_READERS | (word & LOCK_STARVING_WRITERS) | min(channel_registrations(readers), LOCK_TURN_MOST) * LOCK_TURN_ONE
                    | readers << 32)
        elif word & LOCK_STARVING_WRITERS:
            turn = LOCK_TURN_WRITERS
        if compare_exchange_seq_cst_u64(&header.lock_gate, word, turn):
            break                                  # else a waiter has set its flag meanwhile
    lock_gate_notify(section)                      # also a writer in a readers' turn, which ends the turn if they do not come


cdef void _use_readers_turn(section_t* section, lock_request_t* request) noexcept nogil:
    """Count a reader that has used its turn or gives up; after the last one the writers may enter.

    The turn belongs to the readers that were registered, identified by their sequence; if there were none, to one that was awake then.
    """
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate), n_left, next_word
    while word & LOCK_TURN_READERS and request.registered:
        n_left = word // LOCK_TURN_ONE & LOCK_TURN_MOST
        if n_left != 0 and <uint32_t>(word >> 32) != request.sequence:       # a turn carries the sequence in place of a generation
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
    """Become the owner of the gate if its owner is dead: load, check, swap."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    if not word_has_owner(word) or owner_is_alive(section, word):
        return False
    if not compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | (word & STARVING)):
        return False
    _drop_share(section, word)
    _note_death(section)
    return True


cdef void _drop_share(section_t* section, uint64_t owner) noexcept nogil:
    """Clear the shares of the dead owner of the gate, which has some if it upgraded, so that its death is counted once."""
    cdef uint64_t* readers = &section.participants[owner_index(owner)].readers
    cdef uint64_t word
    if owner_index(owner) >= section.max_participants:
        return
    word = load_seq_cst_u64(readers)
    if owner_generation(word) == owner_generation(owner):
        compare_exchange_seq_cst_u64(readers, word, readers_none(word))


cdef bint _set_starving(section_t* section, lock_request_t* request, uint64_t word) noexcept nogil:
    """Set the flag of a registered waiter in the gate after it has waited for STARVING_NS.  False: the gate has changed."""
    cdef int64_t now = now_ns()
    cdef uint64_t flag = request.starving_flag
    if request.began_ns == 0:
        request.began_ns = now
    if flag == 0 or now - request.began_ns < STARVING_NS or word & flag:
        return load_seq_cst_u64(&section.header.lock_gate) == word
    return compare_exchange_seq_cst_u64(&section.header.lock_gate, word, word | flag)


cdef bint _lock_gate_break(section_t* section, uint64_t word) noexcept nogil:
    """Note the reservation in a word of the gate; open the gate if this thread has seen the same one for RESERVED_NS.

    What was seen belongs to the thread, not to the request: requests with short deadlines may follow each other.
    """
    cdef thread_t* me = thread_find(section)
    if word & LOCK_RESERVED == 0:
        me.reserved = 0
        return False
    word &= ~<uint64_t>STARVING
    if me.reserved != word:
        me.reserved = word
        me.reserved_since_ns = now_ns()
    if now_ns() - me.reserved_since_ns < RESERVED_NS:
        return False
    _lock_gate_open_from(section, word)
    return True


cdef int _lock_gate_sleep(section_t* section, lock_request_t* request) noexcept nogil:
    """Sleep until the gate may have opened: 0 (check again, or `taken_over`), TIMEOUT_EXPIRED, INTERRUPTED, SLICE_OVER."""
    cdef uint64_t* channel = request.channel
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    cdef uint32_t sequence
    cdef int status, spins_left = N_SPINS
    request.taken_over = False
    while word_has_owner(word) and spins_left:
        cpu_relax()
        spins_left -= 1
        word = load_seq_cst_u64(&section.header.lock_gate)
    if not word_has_owner(word):
        return OK
    if deadline_is_past(request.deadline_ns):
        request.taken_over = _lock_gate_take_over(section)
        return OK if request.taken_over or _lock_gate_break(section, word) else TIMEOUT_EXPIRED
    if _lock_gate_break(section, word):
        return OK
    sequence = channel_register(channel)              # before the gate is read; partner: the swap that opens it
    request.sequence = sequence
    request.registered = True
    if not _set_starving(section, request, word):
        channel_withdraw(channel, sequence)
        return OK
    status = _sleep(section, channel, sequence, request.deadline_ns, SLICE_NS)
    if status != OK:                     # after a signal too: signals may arrive more often than slices end
        request.taken_over = _lock_gate_take_over(section)
    if request.taken_over or status == OK:
        return OK
    return INTERRUPTED if status == EINTR else SLICE_OVER


cdef bint _upgrade_reap(section_t* section, uint64_t word) noexcept nogil:
    """If the upgrader in `word` is dead, clear `upgrade` and wake the writers that wait for it."""
    if owner_is_alive(section, word):
        return False
    if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
        futex_wake(low_half(&section.header.upgrade), ALL_WAITERS)
    return True


cdef int _upgrade_sleep(section_t* section, uint64_t word, int64_t deadline_ns) noexcept nogil:
    """Sleep, as a writer, until `upgrade` may have been cleared: 0, TIMEOUT_EXPIRED, INTERRUPTED or SLICE_OVER."""
    cdef uint32_t* waiting = &my_entry(section).waiting
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
    """Return whether no thread of this entry holds the lock shared; `own` shares of this participant do not count.

    With `ask`, the shares of a dead participant are cleared.
    """
    cdef uint64_t word = load_seq_cst_u64(&section.participants[index].readers)
    cdef uint32_t count = readers_count(word)
    if index + 1 == section.private.index_plus_1:
        return count <= own
    if count == 0:
        return True
    if not ask or participant_entry_is_alive(section, index):
        return False
    store_release_u32(&section.header.death_notice, 1)       # before the shares are cleared: the next drainer must not miss it
    if not compare_exchange_seq_cst_u64(&section.participants[index].readers, word, readers_none(word)):
        return False
    _count_death(section)
    return True


cdef int _drain(section_t* section, lock_request_t* request) noexcept nogil:
    """Wait, as the owner of the gate, until only its own shares are left: 0, MUST_YIELD, TIMEOUT_EXPIRED or INTERRUPTED."""
    cdef uint64_t* channel = &section.header.drain
    cdef uint32_t first = 0, sequence
    cdef int64_t ask_at_ns = 0, return_at_ns = now_ns() + RARELY_NS
    cdef bint ask = False, must_return
    cdef int status = SLICE_OVER, spins_left = N_SPINS, slept
    while spins_left and status == SLICE_OVER:
        status = _drain_look(section, request, &first, False)
        spins_left -= 1
        cpu_relax()
    while status == SLICE_OVER:
        sequence = channel_register(channel)          # before the reads; partner: a leaving reader or an upgrader, which then notifies
        status = _drain_look(section, request, &first, ask)
        if status != SLICE_OVER:
            channel_withdraw(channel, sequence)
            return status
        if ask_at_ns == 0:
            ask_at_ns = now_ns() + SLICE_NS
        slept = _sleep(section, channel, sequence, request.deadline_ns, SLICE_NS)
        ask = slept == EINTR or now_ns() >= ask_at_ns    # by the clock: new readers that turn back wake the drainer again and again
        if load_relaxed_u32(&section.leaves):
            return INTERRUPTED
        if ask:
            ask_at_ns = now_ns() + SLICE_NS
            must_return = request.returns == LOCK_RETURNS_RARELY and now_ns() >= return_at_ns
            if must_return or request.returns == LOCK_RETURNS_FOR_SIGNALS:
                status = _drain_look(section, request, &first, True)     # now, because the next drain may end before it checks
                return INTERRUPTED if status == SLICE_OVER else status
    return status


cdef int _drain_look(section_t* section, lock_request_t* request, uint32_t* first, bint ask) noexcept nogil:
    """Return the state of the drain: 0, MUST_YIELD, TIMEOUT_EXPIRED, or SLICE_OVER, which means sleep.

    An entry that was seen empty stays empty: a new reader sees the gate and turns back.
    """
    cdef uint64_t word
    cdef bint is_past
    while True:
        while first[0] < participants_bound(section) and _entry_is_empty(section, first[0], request.own_shares, ask):
            first[0] += 1
        if first[0] >= participants_bound(section):
            return OK
        word = load_seq_cst_u64(&section.header.upgrade)
        if request.kind == WRITE and word != 0 and not _upgrade_reap(section, word):
            return MUST_YIELD
        is_past = deadline_is_past(request.deadline_ns)
        if not is_past or ask:
            return TIMEOUT_EXPIRED if is_past else SLICE_OVER
        ask = True                           # once, before the timeout is reported


# -- threads ------------------------------------------------------------------------------------------

cdef int thread_register(section_t* section, thread_t** me) noexcept nogil:
    """Find or make this thread's slot; attach the process if it is not attached yet."""
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
    """Return the depths at which this thread holds the lock."""
    cdef thread_t* me = thread_find(section)
    exclusive[0] = me.exclusive if me != NULL else 0
    shared[0] = me.shared if me != NULL else 0


cdef void lock_release_all(section_t* section) noexcept nogil:
    """Release the lock as often as this thread holds it.  What it has begun through the C interface counts as ended."""
    cdef thread_t* me = thread_find(section)
    if me == NULL:
        return
    _claim_drop(section, me)
    while me.exclusive:
        unlock_exclusive(section)
    while me.shared:
        unlock_shared(section)
    store_release_u32(&me.inside, 0)


cdef void lock_thread_ended(section_t* section) noexcept nogil:
    """Release what the ending thread held, count that as the death of a holder, and free its slot."""
    cdef thread_t* me = thread_find(section)
    if me == NULL:
        return
    _claim_drop(section, me)
    if me.exclusive or me.shared:
        _note_death(section)
    lock_release_all(section)
    store_release_u64(&me.thread, THREAD_ENDED)


# -- a claim that is kept while signal handlers run -------------------------------------------------------

cdef inline uint64_t _reservation_of(section_t* section, thread_t* me) noexcept nogil:
    """Return the word of the gate, STARVING flags aside, while this thread has it reserved."""
    return section.private.owner_word | LOCK_RESERVED | <uint64_t>(me.claim_number & LOCK_TURN_MOST) * LOCK_TURN_ONE


cdef void _claim_keep(section_t* section, thread_t* me, lock_request_t* request, uint32_t claimed) noexcept nogil:
    """Keep what the request has claimed while the thread runs signal handlers."""
    cdef uint64_t word
    me.claim_number += 1
    if me.claim_number == 0:
        me.claim_number = 1
    request.claim_number, me.claimed = me.claim_number, claimed
    if claimed & CLAIM_GATE:
        word = load_seq_cst_u64(&section.header.lock_gate)
        while not compare_exchange_seq_cst_u64(&section.header.lock_gate, word, _reservation_of(section, me) | (word & STARVING)):
            word = load_seq_cst_u64(&section.header.lock_gate)


cdef bint _reservation_end(section_t* section, thread_t* me) noexcept nogil:
    """Own the gate plainly again.  False: the reservation was too long, and a waiter has opened the gate."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    while word & ~STARVING == _reservation_of(section, me):
        if compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | (word & STARVING)):
            return True
        word = load_seq_cst_u64(&section.header.lock_gate)
    return False


cdef void _claim_drop(section_t* section, thread_t* me) noexcept nogil:
    """Release what this thread has claimed, if anything: `upgrade` before the gate, as always."""
    cdef uint32_t claimed = me.claimed
    cdef bint has_gate = claimed & CLAIM_GATE and _reservation_end(section, me)
    me.claimed = 0
    if claimed & CLAIM_UPGRADE:
        upgrade_clear(section)
    if has_gate:
        lock_gate_open(section)


cdef uint32_t _claim_resume(section_t* section, thread_t* me, lock_request_t* request) noexcept nogil:
    """Return which claims this request still has; drop those of another request, which this one interrupts."""
    cdef uint32_t claimed = me.claimed
    if claimed == 0:
        return 0
    if me.claim_number != request.claim_number:
        _claim_drop(section, me)
        return 0
    me.claimed = 0
    if claimed & CLAIM_GATE and not _reservation_end(section, me):
        return claimed & CLAIM_UPGRADE
    return claimed


cdef void lock_request_abandon(section_t* section, lock_request_t* request) noexcept nogil:
    """Release what a request still claims that will not be called again, as when a signal handler has raised."""
    cdef thread_t* me = thread_find(section)
    if me != NULL and me.claim_number == request.claim_number:
        _claim_drop(section, me)


cdef void lock_reservation_drop(section_t* section) noexcept nogil:
    """Open the gate if any thread of this process has reserved it: at exit that thread is parked, and its death is not one of a holder."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    if word & LOCK_RESERVED and owner_index(word) + 1 == section.private.index_plus_1 and (
            owner_generation(word) == section.private.generation):
        _lock_gate_open_from(section, word & ~STARVING)


# -- acquiring the lock ---------------------------------------------------------------------------------

cdef bint _share_open_gate(section_t* section, lock_request_t* request) noexcept nogil:
    """Count a share for a reader that found the gate open.  False: the gate has an owner now, and the reader has turned back."""
    cdef uint64_t word
    fetch_add_seq_cst_u64(&my_entry(section).readers, 1)    # before the gate is read; partner: a writer's swap
    word = load_seq_cst_u64(&section.header.lock_gate)
    if word_has_owner(word):
        fetch_sub_seq_cst_u64(&my_entry(section).readers, 1)
        channel_notify(&section.header.drain, ALL_WAITERS)
        return False
    if word & LOCK_TURN_READERS:
        _use_readers_turn(section, request)     # a writer that takes the gate at this moment finds the share
    return True


cdef void _leave_turn_to_others(section_t* section, lock_request_t* request, uint64_t word) noexcept nogil:
    """Sleep, as a writer, until the turn of others is used, for at most TURN_NS.  A signal does not end the wait."""
    cdef uint64_t* channel = request.channel
    cdef uint32_t sequence
    cdef int64_t now = now_ns()
    if request.turn_ends_ns == 0:
        request.turn_ends_ns = now + TURN_NS
    if now >= request.turn_ends_ns or deadline_is_past(request.deadline_ns):
        request.turn_ends_ns = 1
        return
    sequence = channel_register(channel)
    request.registered = True
    if not _set_starving(section, request, word):
        channel_withdraw(channel, sequence)
    else:
        _sleep(section, channel, sequence, request.deadline_ns, request.turn_ends_ns - now)


cdef bint _claim_open_gate(section_t* section, lock_request_t* request, uint64_t word) noexcept nogil:
    """Claim, as a writer or an upgrader, a gate without an owner, unless it is the turn of others.  False: check again."""
    cdef uint64_t starving = word & LOCK_STARVING_WRITERS
    if (word != 0 and request.kind == WRITE and request.turn_ends_ns != 1
            and not (word & LOCK_TURN_WRITERS and request.registered)):
        _leave_turn_to_others(section, request, word)
        return False
    if word & LOCK_TURN_READERS and channel_registrations(load_seq_cst_u64(&section.header.lock_gate_readers)) != 0:
        starving |= LOCK_STARVING_READERS    # they have not used it: the next release grants it to them again
    elif word & LOCK_TURN_WRITERS and request.turn_ends_ns != 1 and now_ns() - request.began_ns < STARVING_NS:
        starving = LOCK_STARVING_WRITERS     # this writer does not starve, so another one does: the next turn is a writer's, too
    return compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | starving)


cdef inline bint _may_return(section_t* section, lock_request_t* request) noexcept nogil:
    return request.returns != LOCK_RETURNS_AT_EXIT or load_relaxed_u32(&section.leaves) != 0


cdef int _claim(section_t* section, lock_request_t* request) noexcept nogil:
    """Count a share, or become the owner of the gate: 0, TIMEOUT_EXPIRED or INTERRUPTED."""
    cdef uint64_t word
    cdef int status
    cdef bint is_done
    while True:
        word = load_seq_cst_u64(&section.header.upgrade) if request.kind == WRITE else 0
        if word != 0:
            status = _upgrade_sleep(section, word, request.deadline_ns)
        else:
            word = load_seq_cst_u64(&section.header.lock_gate)
            if not word_has_owner(word):     # else a reader does not count a share, which would disturb the drain
                is_done = _share_open_gate(section, request) if request.kind == READ else _claim_open_gate(section, request, word)
                if is_done:
                    return OK
                continue
            request.turn_ends_ns = 0
            status = _lock_gate_sleep(section, request)
            if request.taken_over and request.kind != READ:
                return OK
            if request.taken_over:
                lock_gate_open(section)
        if status == TIMEOUT_EXPIRED:
            return status
        if status != OK and _may_return(section, request):               # with nothing to lose: each slice is a chance
            return INTERRUPTED


cdef void _give_up(section_t* section, lock_request_t* request) noexcept nogil:
    """Pass on a turn or wake that was meant for this waiter, after its claim has failed."""
    if request.kind == READ:
        _use_readers_turn(section, request)
    elif request.kind == WRITE and not word_has_owner(load_seq_cst_u64(&section.header.lock_gate)):
        channel_notify(request.channel, 1)      # if this writer was woken: wake another one instead


cdef int _register_upgrade(section_t* section) noexcept nogil:
    """Write this participant into `upgrade`; return DEADLOCK if a live one is there, since each would wait for the other's share."""
    cdef uint64_t word
    while True:
        word = load_seq_cst_u64(&section.header.upgrade)
        if word != 0 and owner_is_alive(section, word):
            return DEADLOCK
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, section.private.owner_word):
            channel_notify(&section.header.drain, ALL_WAITERS)     # a draining writer must see it and release the gate
            return OK


cdef int _enter(section_t* section, thread_t* me, lock_request_t* request, uint32_t kind) noexcept nogil:
    """Acquire the lock on the slow path, as a reader, a writer, or a reader that upgrades; or resume the request."""
    cdef uint32_t claimed = 0
    cdef int status
    cdef bint may_keep
    if request.kind != kind:                 # new, or a signal handler has changed what the thread holds
        request.claim_number = 0
    claimed = _claim_resume(section, me, request)
    if claimed == 0:
        _request_begin(section, kind, request)
    while True:
        if kind == UPGRADE and claimed & CLAIM_UPGRADE == 0:
            status = _register_upgrade(section)
            if status != OK:
                return status
        status = OK if claimed & CLAIM_GATE else _claim(section, request)
        claimed = CLAIM_UPGRADE if kind == UPGRADE else 0
        if status == OK:
            claimed |= CLAIM_GATE
            status = OK if kind == READ else _drain(section, request)
            if status == OK:
                return OK
        may_keep = status == INTERRUPTED and request.returns != LOCK_RETURNS_AT_EXIT and not load_relaxed_u32(&section.leaves)
        if may_keep and claimed:
            _claim_keep(section, me, request, claimed)
            return INTERRUPTED
        if claimed & CLAIM_GATE == 0:
            _give_up(section, request)
        if claimed & CLAIM_UPGRADE:
            upgrade_clear(section)
        if claimed & CLAIM_GATE:
            lock_gate_open(section)
        claimed = 0
        if status == TIMEOUT_EXPIRED or (status == INTERRUPTED and _may_return(section, request)):
            return status


cdef int _begin(section_t* section, thread_t** me) noexcept nogil:
    if section.verify != NULL:
        debug_storage_lock()
    return thread_register(section, me)


cdef int lock_shared_wait(section_t* section, lock_request_t* request) noexcept nogil:
    """Acquire the lock shared, waiting if necessary."""
    cdef thread_t* me = NULL
    cdef int status = _begin(section, &me)
    if status != OK:
        return status
    if me.exclusive == 0 and me.shared == 0:
        status = _enter(section, me, request, READ)
        if status != OK:
            return status
        me.counted = 1
    me.shared += 1
    return OK


cdef int lock_exclusive_wait(section_t* section, lock_request_t* request) noexcept nogil:
    """Acquire the lock exclusively, waiting if necessary; if the thread holds shared, this upgrades it."""
    cdef thread_t* me = NULL
    cdef int status = _begin(section, &me)
    if status != OK:
        return status
    if me.exclusive == 0:
        status = _enter(section, me, request, UPGRADE if me.shared else WRITE)
        if status != OK:
            return status
        me.upgrading = me.shared != 0
    me.exclusive += 1
    return OK


cdef void lock_forget(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil:
    """Release what the former owner of entry `index` left in the lock; `former_readers` was its word `readers`."""
    cdef uint32_t generation = participant_generation(section, index)
    cdef uint64_t word
    cdef bint held = readers_count(former_readers) != 0, is_mine = False
    word = load_seq_cst_u64(&section.header.lock_gate)
    if owner_index(word) == index and owner_generation(word) != generation:
        is_mine = compare_exchange_seq_cst_u64(&section.header.lock_gate, word, section.private.owner_word | (word & STARVING))
    if is_mine:
        _note_death(section)             # before any thread may enter: the notice is for the next holder
    elif held:
        _count_death(section)            # `participant_take` has set the notice
    word = load_seq_cst_u64(&section.header.upgrade)
    if owner_index(word) == index and owner_generation(word) != generation:
        if compare_exchange_seq_cst_u64(&section.header.upgrade, word, 0):
            futex_wake(low_half(&section.header.upgrade), ALL_WAITERS)
    if is_mine:
        lock_gate_open(section)
    channel_notify(&section.header.drain, ALL_WAITERS)


# -- SHMEM_DEBUG ----------------------------------------------------------------------------------------

cdef void lock_verify_share(section_t* section, uint64_t readers) noexcept nogil:
    """Check, when this thread has released a share, that its entry, of its generation, had counted it."""
    if readers_count(readers) == 0 or owner_generation(readers) != section.private.generation:
        debug_fail(b"a share of the lock is missing from its participant's count", section.path,
                   <char*>&my_entry(section).readers - section.base,
                   <uint64_t>section.private.generation << OWNER_GENERATION_SHIFT | 1, readers)


cdef void lock_verify_gate(section_t* section) noexcept nogil:
    """Check that the participant of this thread, which holds the lock exclusive, owns the gate."""
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    if word & ~STARVING != section.private.owner_word:
        debug_fail(b"the lock is released by a participant that does not own it", section.path,
                   <char*>&section.header.lock_gate - section.base, section.private.owner_word, word)
