# cython: language_level=3
"""Semaphore, event, mutex: words on which processes wait, in a section or a file of their own.

Waiters of all three use a channel (`_sync/channel.pxd`): a waiter registers, checks again, and sleeps for a slice of at most SLICE_NS;
a thread that changes the condition notifies.  Without waiters there is no system call.

Semaphore.  `value` is decremented by compare-and-swap and is never negative; `signal(n)` adds n in one step and wakes n waiters.  A killed
waiter has taken nothing.  A killed signaller has added n or nothing; if it was killed before it woke the waiters, they check after their
slice.

Event.  One word, which is its own channel: bit 0 is the state, the rest of the low half counts the signals.
A wait ends when the event is signaled *or has been signaled since the wait began*.  So a reset right after a signal does not take
the signal from threads that waited (as in `threading`), or from threads that briefly left the wait to check for Ctrl-C.
A signal removes all registrations.

Mutex.  Owned by a thread of a participant::

    owner = 0                  free
    owner = index, generation  held by that participant, by its thread `thread`, `depth` times
    the same, owner dead       free for the thread that swaps exactly this word for its own and reports the death

Only the owner writes the other words, except `channel`.  A thread that ends releases the mutexes that it holds: it finds
them through `next_held_off`, starting at `held_mutex_off` in its private slot.  If it is killed, the participant is dead, and its
list is void.  The block of a held mutex may be freed, which is misuse: a link to it then does not lead to a mutex of this thread.
When the thread acquires another mutex, it cuts the list at such a link, so that a mutex at the same place is not linked twice.  Mutexes
that the thread acquired before the freed one are then not released when it ends.

If a block is freed while a thread sleeps in it (misuse), the sleeper detects this at the latest after its slice, before it
accesses a word.

Which event wakes which waiters: `semaphore_signal` n of them, `event_signal` all, `mutex_unlock` one.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._atomics cimport compare_exchange_seq_cst_u64, cpu_relax, load_relaxed_u32, load_relaxed_u64, load_seq_cst_u64, store_seq_cst_u64
from shmem._base.bounds cimport block_is_stale
from shmem._base.deadline cimport AT_ONCE, deadline_is_past
from shmem._base.layout cimport event_t, mutex_t, semaphore_t
from shmem._base.participants cimport owner_is_alive
from shmem._base.section cimport section_t, thread_find, thread_t
from shmem._base.status cimport INTERRUPTED, INVALID_BLOCK, NOT_OWNER, OK, TIMEOUT_EXPIRED
from shmem._base.system cimport futex_wake
from shmem._sync.channel cimport ALL_WAITERS, SLICE_NS, channel_notify, channel_register, channel_sleep, channel_withdraw, low_half
from shmem._sync.storage_lock cimport thread_register

cdef enum:
    N_SPINS = 100
    N_SLEEPS = 16                  # after so many wakes for which other threads were faster, return for signals


cdef inline bint _is_gone(const place_t* place) noexcept nogil:
    """Return whether the block was freed: its words then belong to the heap or another block, and a waiter must not access them."""
    return place != NULL and block_is_stale(place.block, place.serial)


# -- semaphore ------------------------------------------------------------------------------------------

cdef int semaphore_wait(semaphore_t* semaphore, const place_t* place, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Take one unit, waiting if necessary."""
    cdef uint32_t sequence
    cdef int status, spins_left = N_SPINS, sleeps_left = N_SLEEPS
    if _is_gone(place):
        return INVALID_BLOCK
    while spins_left:
        if semaphore_try(semaphore) == OK:
            return OK
        if deadline_ns == AT_ONCE:
            return TIMEOUT_EXPIRED
        cpu_relax()
        spins_left -= 1
    while not _is_gone(place):
        sequence = channel_register(&semaphore.channel)
        if semaphore_try(semaphore) == OK:
            channel_withdraw(&semaphore.channel, sequence)
            return OK
        status = channel_sleep(&semaphore.channel, sequence, deadline_ns, SLICE_NS)
        if _is_gone(place):
            return INVALID_BLOCK
        if status != 0:
            channel_withdraw(&semaphore.channel, sequence)
        if semaphore_try(semaphore) == OK:      # even when giving up, so that a wake meant for this waiter is used
            return OK
        if deadline_is_past(deadline_ns):
            return TIMEOUT_EXPIRED
        sleeps_left -= 1
        if stop_for_signals and (status != 0 or sleeps_left == 0):
            return INTERRUPTED
    return INVALID_BLOCK


# -- event ----------------------------------------------------------------------------------------------

cdef int event_wait(event_t* event, const place_t* place, uint32_t since, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Wait until the event is signaled, or has been since the wait began."""
    cdef uint32_t before
    cdef int status
    if _is_gone(place):
        return INVALID_BLOCK
    if since & EVENT_SIGNALED or event_sequence(event) != since:      # signaled meanwhile, and perhaps reset
        return OK
    while deadline_ns != AT_ONCE:
        if _is_gone(place):
            return INVALID_BLOCK
        before = channel_register(&event.word)
        if before != since:
            channel_withdraw(&event.word, before)
            return OK
        status = channel_sleep(&event.word, since, deadline_ns, SLICE_NS)
        if _is_gone(place):
            return INVALID_BLOCK
        if status != 0:
            channel_withdraw(&event.word, since)
        if event_sequence(event) != since:
            return OK
        if deadline_is_past(deadline_ns):
            return TIMEOUT_EXPIRED
        if stop_for_signals and status != 0:
            return INTERRUPTED
    return TIMEOUT_EXPIRED


cdef void event_signal(event_t* event) noexcept nogil:
    """Signal the event, which releases all waiters; no effect if it is already signaled."""
    cdef uint64_t word = load_seq_cst_u64(&event.word)
    while word & EVENT_SIGNALED == 0:
        if compare_exchange_seq_cst_u64(&event.word, word, <uint32_t>(<uint32_t>word + 2) | EVENT_SIGNALED):
            if word >> 32 != 0:
                futex_wake(low_half(&event.word), ALL_WAITERS)
            return
        word = load_seq_cst_u64(&event.word)


cdef void event_reset(event_t* event) noexcept nogil:
    """Clear the event.  Threads that waited when it was signaled are still released."""
    cdef uint64_t word = load_seq_cst_u64(&event.word)
    while word & EVENT_SIGNALED:
        if compare_exchange_seq_cst_u64(&event.word, word, word & ~<uint64_t>EVENT_SIGNALED):
            return
        word = load_seq_cst_u64(&event.word)


# -- mutex ----------------------------------------------------------------------------------------------

cdef int _mutex_claim(section_t* section, mutex_t* mutex, const place_t* place, int64_t deadline_ns, bint stop_for_signals,
                      bint* owner_died) noexcept nogil:
    """Become the owner: 0, TIMEOUT_EXPIRED, INTERRUPTED or INVALID_BLOCK."""
    cdef uint64_t word
    cdef uint32_t sequence
    cdef int status = 0, spins_left = N_SPINS, sleeps_left = N_SLEEPS
    while not _is_gone(place):
        word = load_seq_cst_u64(&mutex.owner)
        if word == 0:
            if compare_exchange_seq_cst_u64(&mutex.owner, 0, section.private.owner_word):
                return OK
            continue
        if spins_left and deadline_ns != AT_ONCE:
            spins_left -= 1
            cpu_relax()
            continue
        if (status != 0 or deadline_is_past(deadline_ns)) and not owner_is_alive(section, word):      # after a signal too
            if compare_exchange_seq_cst_u64(&mutex.owner, word, section.private.owner_word):
                owner_died[0] = True
                return OK
            continue
        if deadline_is_past(deadline_ns):
            return TIMEOUT_EXPIRED
        if (stop_for_signals or load_relaxed_u32(&section.leaves)) and (status != 0 or sleeps_left <= 0):
            return INTERRUPTED
        sleeps_left -= 1
        sequence = channel_register(&mutex.channel)
        if load_seq_cst_u64(&mutex.owner) == 0:
            channel_withdraw(&mutex.channel, sequence)
            continue
        status = channel_sleep(&mutex.channel, sequence, deadline_ns, SLICE_NS)
        if _is_gone(place):
            return INVALID_BLOCK
        if status != 0:
            channel_withdraw(&mutex.channel, sequence)
    return INVALID_BLOCK


cdef int mutex_lock(section_t* section, mutex_t* mutex, const place_t* place, int64_t deadline_ns, bint stop_for_signals,
                    bint* owner_died) noexcept nogil:
    """Acquire the mutex, waiting if necessary; increment the depth if this thread already holds it."""
    cdef thread_t* me = NULL
    cdef int status = thread_register(section, &me)
    owner_died[0] = False
    if status != OK:
        return status
    if mutex_is_mine(section, mutex):
        mutex.depth += 1
        return OK
    status = _mutex_claim(section, mutex, place, deadline_ns, stop_for_signals, owner_died)
    if status != OK:
        return status
    mutex_sign(section, mutex, me, owner_died)
    return OK


cdef bint _is_held(section_t* section, uint64_t off) noexcept nogil:
    """Return whether the offset is in bounds and has a mutex that this thread holds; a freed block ends the list."""
    return (off & 7 == 0 and off >= section.heap_start and off <= section.size_bytes - sizeof(mutex_t)
            and mutex_is_mine(section, <mutex_t*>(section.base + off)))


cdef void mutexes_forget_freed(section_t* section, thread_t* me) noexcept nogil:
    """Cut the list where a link forms a cycle, or does not lead to a mutex that this thread has claimed and signed."""
    cdef uint64_t* link = &me.held_mutex_off
    cdef uint64_t off = link[0], n_steps = 0, mark_off = 0
    while off != 0 and off != mark_off and _is_held(section, off):
        if n_steps & (n_steps - 1) == 0:
            mark_off = off               # after 1, 2, 4 ... steps (Brent): a walk in a cycle meets it
        n_steps += 1
        link = &(<mutex_t*>(section.base + off)).next_held_off
        off = load_relaxed_u64(link)
    link[0] = 0


cdef void _unlink(section_t* section, thread_t* me, mutex_t* mutex) noexcept nogil:
    """Remove a mutex from the list of this thread; nearly always it is the first."""
    cdef uint64_t off = me.held_mutex_off, wanted = <uint64_t>(<char*>mutex - section.base)
    cdef mutex_t* before
    if off == wanted:
        me.held_mutex_off = mutex.next_held_off
        return
    mutexes_forget_freed(section, me)    # from here on the list has an end
    off = me.held_mutex_off
    while off != 0 and _is_held(section, off):
        before = <mutex_t*>(section.base + off)
        if before.next_held_off == wanted:
            before.next_held_off = mutex.next_held_off
            return
        off = before.next_held_off


cdef int mutex_unlock(section_t* section, mutex_t* mutex) noexcept nogil:
    """Release the mutex once: NOT_OWNER if this thread does not hold it."""
    cdef thread_t* me = thread_find(section)
    if me == NULL or not mutex_is_mine(section, mutex):
        return NOT_OWNER
    if mutex.depth > 1:
        mutex.depth -= 1
        return OK
    _unlink(section, me, mutex)
    mutex.thread = 0
    mutex.died = 0
    store_seq_cst_u64(&mutex.owner, 0)
    channel_notify(&mutex.channel, 1)
    return OK


cdef bint mutex_is_held(section_t* section, const mutex_t* mutex) noexcept nogil:
    """Return whether a live participant owns the mutex."""
    cdef uint64_t word = load_seq_cst_u64(&mutex.owner)
    return word != 0 and owner_is_alive(section, word)


cdef void mutexes_release_all(section_t* section) noexcept nogil:
    """Release every mutex that this thread holds, as if its owner had died."""
    cdef thread_t* me = thread_find(section)
    cdef mutex_t* mutex
    cdef uint64_t off
    if me == NULL:
        return
    off = me.held_mutex_off
    me.held_mutex_off = 0
    while off != 0 and _is_held(section, off):
        mutex = <mutex_t*>(section.base + off)
        off = mutex.next_held_off
        mutex.died = 1
        mutex.thread = 0
        store_seq_cst_u64(&mutex.owner, 0)
        channel_notify(&mutex.channel, 1)
