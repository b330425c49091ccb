# cython: language_level=3
"""A ring of slots of one size: a bounded first-in-first-out queue that survives the death of any process that uses it.

::

    head                tail                    both only grow; slot = number % capacity
     |  put, not taken   |  free, or being written by the owner of the producers' gate
     |  the owner of the consumers' gate may be copying the first ones

    0 <= tail - head <= capacity          empty: equal; full: capacity

*One store commits.*  Put: copy into the free slots, then store `tail`.  Get: copy out of the first slots, then store `head`.  A process
killed before that store has put or taken nothing; one killed after it has put or taken everything, and a killed consumer's messages are
lost with it.  So no repair is needed: a thread that takes over a gate from a dead owner continues at `tail` and `head`.

Gates (`_sync/gate.pxd`): producers have one and consumers another, so the two sides never
wait for each other's gate.  Each side keeps the last value that it read of the other's number (`head_seen`, `tail_seen`) next to its gate.
It reads the number again only if that value shows no room, or no message, so that the cache lines of `head` and `tail` are not transferred
for every message.  A kept value is never ahead of the actual one, so using it is safe, even if the process that stored it was killed.

Which event wakes which waiters.  A put of n messages wakes n waiters on `not_empty`, a get of n wakes n waiters on `not_full`, and a
shutdown wakes all.  A waiter registers on the channel, checks again, and then sleeps for a slice of at most SLICE_NS
(`_sync/channel.pxd`).  The slice bounds the delay by a wake that is lost because a process was killed before it woke a waiter, or after it
was woken and before it took a message.  A woken waiter that does not pass the gate to check, because of its deadline or a signal, passes
its wake on.
`tail` and the registration are two words.  On both sides the store of one and the load of the other after it are sequentially consistent.

Freed queues.  A queue may be freed while threads are anywhere in this file, or stopped there.  Its callers pin it, so that its memory is
given to nothing else meanwhile (`_heap/pins.pyx`), and the code looks whether it was freed before it requests a gate, inside the gate, and
after each sleep.  A put looks after its commit too: what was put after the end of the queue was not put.  A get looks before its commit
only: a message that was taken must not be lost because the queue was freed a moment later, perhaps as it was empty.

A wake takes microseconds, longer than a message.  So on a machine with several cores a thread that finds no room, or no message, polls for
some time before it sleeps.  It adapts that time by whether polling has helped.

Shutdown.  `closed` is set under the producers' gate.  A consumer that has seen it and then finds the queue empty knows that
no message will come.

Of the section's numbers, only `head`, `tail` and lengths are used for addressing, and they are bounded before use.  Capacity, slot
size and offset are this process's own copies, checked when the queue was opened.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport (
    cpu_relax, exchange_seq_cst_u32, load_relaxed_u32, load_relaxed_u64, load_seq_cst_u32, load_seq_cst_u64, store_seq_cst_u64)
from shmem._base.accessors cimport queue_header_bytes
from shmem._base.bounds cimport block_is_stale, damaged
from shmem._base.deadline cimport deadline_is_past
from shmem._base.layout cimport BLOCK_HEAD_BYTES, LINE_BYTES, QUEUE_BYTES, QUEUE_RECORDS, QUEUE_STRUCT, block_t, queue_t
from shmem._base.section cimport section_t
from shmem._base.status cimport (
    CORRUPTED, INTERRUPTED, INVALID_BLOCK, OK, OWNER_DIED, QUEUE_CLOSED, QUEUE_EMPTY, QUEUE_FULL, TIMEOUT_EXPIRED, WOULD_BLOCK)
from shmem._base.system cimport now_ns, processor_count
from shmem._sync.channel cimport ALL_WAITERS, SLICE_NS, channel_notify, channel_register, channel_sleep, channel_withdraw
from shmem._sync.gate cimport GATE_SPINS, gate_leave, gate_may_return, gate_step, gate_try, gate_wait_begin, gate_wait_t

cdef enum:
    N_LOOKS = 1000
    MIN_SPINS = 8
    MAX_SPINS = 400

cdef bint _may_spin = processor_count() > 1


cdef inline bint _is_stale(ring_t* ring) noexcept nogil:
    return block_is_stale(<block_t*>(<char*>ring.at - BLOCK_HEAD_BYTES), ring.serial)


cdef int ring_open(ring_t* ring, section_t* section, queue_t* queue, uint64_t serial, uint64_t room_bytes) noexcept nogil:
    """Copy the sizes and offsets from the queue's header, and check them."""
    if room_bytes < sizeof(queue_t):
        return CORRUPTED
    ring.section = section
    ring.at = queue
    ring.serial = serial
    ring.capacity = queue.capacity
    ring.slot_bytes = queue.slot_bytes
    ring.record_bytes = queue.record_bytes
    ring.kind = queue.kind
    ring.type_id = queue.type_id
    ring.text_bytes = queue.text_bytes
    ring.is_bytes = ring.kind == QUEUE_BYTES
    ring.put_spins = ring.get_spins = MAX_SPINS
    cdef uint64_t data_off = queue.data_off, n_pin_words = queue.n_pin_words
    if (n_pin_words != (section.max_participants + 63) >> 6 or data_off < queue_header_bytes(n_pin_words, ring.text_bytes)
            or data_off > room_bytes or data_off & (LINE_BYTES - 1)):
        return CORRUPTED
    ring.text = <char*>queue + sizeof(queue_t) + 8 * n_pin_words
    if ring.record_bytes == 0 or ring.record_bytes > room_bytes or ring.capacity == 0:
        return CORRUPTED
    if ring.kind < QUEUE_RECORDS or ring.kind > QUEUE_STRUCT:
        return CORRUPTED
    if ring.slot_bytes != (packed_bytes(ring.record_bytes) if ring.is_bytes else ring.record_bytes):
        return CORRUPTED
    if ring.capacity > (room_bytes - data_off) // ring.slot_bytes:
        return CORRUPTED
    ring.data = <char*>queue + data_off
    return OK


cdef int _enter(ring_t* ring, uint64_t* gate, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Enter a gate: 0, TIMEOUT_EXPIRED, INTERRUPTED, INVALID_BLOCK, or the status of attaching this process."""
    cdef gate_wait_t wait
    cdef int status = gate_wait_begin(ring.section, &wait, deadline_ns, GATE_SPINS if _may_spin else 0)
    if status != OK:
        return status
    while True:
        if _is_stale(ring):
            return INVALID_BLOCK
        status = gate_step(ring.section, gate, &wait)
        if status == OK or status == OWNER_DIED:         # nothing needs repair
            return OK
        if status == TIMEOUT_EXPIRED:
            return status
        if status != WOULD_BLOCK and stop_for_signals and gate_may_return(&wait):
            return INTERRUPTED


# -- copying --------------------------------------------------------------------------------------------

cdef inline char* _slot(ring_t* ring, uint64_t number) noexcept nogil:
    return ring.data + number % ring.capacity * ring.slot_bytes


cdef void _copy_in(ring_t* ring, uint64_t tail, batch_t* batch, uint64_t n) noexcept nogil:
    """Write n messages to the slots from `tail` on, which are free."""
    cdef char* slot
    cdef uint64_t i, length, first
    if not ring.is_bytes:
        first = ring.capacity - tail % ring.capacity             # slots up to the ring's end
        if first > n:
            first = n
        memcpy(_slot(ring, tail), batch.data, first * ring.slot_bytes)
        if n > first:
            memcpy(ring.data, batch.data + first * ring.slot_bytes, (n - first) * ring.slot_bytes)
        batch.data += n * ring.slot_bytes
    elif batch.length != PACKED:
        slot = _slot(ring, tail)
        (<uint64_t*>slot)[0] = batch.length
        memcpy(slot + sizeof(uint64_t), batch.data, batch.length)
    else:
        for i in range(n):
            length = (<uint64_t*>batch.data)[0]
            memcpy(_slot(ring, tail + i), batch.data, sizeof(uint64_t) + length)
            batch.data += packed_bytes(length)


cdef int _copy_records_out(ring_t* ring, uint64_t head, batch_t* batch, uint64_t n) noexcept nogil:
    cdef uint64_t first = ring.capacity - head % ring.capacity
    if first > n:
        first = n
    memcpy(batch.data, _slot(ring, head), first * ring.slot_bytes)
    if n > first:
        memcpy(batch.data + first * ring.slot_bytes, ring.data, (n - first) * ring.slot_bytes)
    return OK


cdef int _copy_bytes_out(ring_t* ring, uint64_t head, batch_t* batch, uint64_t* n) noexcept nogil:
    """Copy as many of n messages as fit into the batch, and set `n` to their number.  CORRUPTED if the first has an invalid length."""
    cdef char* slot
    cdef uint64_t i, length, used = 0
    for i in range(n[0]):
        slot = _slot(ring, head + i)
        length = load_relaxed_u64(<uint64_t*>slot)
        if damaged(length > ring.record_bytes):
            n[0] = i
            return OK if i else CORRUPTED
        if batch.length != PACKED:
            memcpy(batch.data, slot + sizeof(uint64_t), length)
            batch.length = length
            return OK
        if used + packed_bytes(length) > batch.n_bytes:
            n[0] = i
            return OK
        (<uint64_t*>(batch.data + used))[0] = length             # the checked length, even if the section's has changed
        memcpy(batch.data + used + sizeof(uint64_t), slot + sizeof(uint64_t), length)
        used += packed_bytes(length)
    return OK


# -- inside the gates -----------------------------------------------------------------------------------

cdef int _put_inside(ring_t* ring, batch_t* batch) noexcept nogil:
    """Put, inside the producers' gate, as many messages as there is room for; leave the gate; wake consumers."""
    cdef queue_t* queue = ring.at
    cdef uint64_t n = batch.n_items, tail = load_relaxed_u64(&queue.tail), used = tail - load_relaxed_u64(&queue.head_seen), head
    cdef int status = OK
    if _is_stale(ring):
        status = INVALID_BLOCK
    elif load_relaxed_u32(&queue.closed):
        status = QUEUE_CLOSED
    else:
        if used > ring.capacity or ring.capacity - used < n:
            head = load_seq_cst_u64(&queue.head)                 # partner: the store in _get_inside, after its copy out
            queue.head_seen = head
            used = tail - head
        if damaged(used > ring.capacity):
            status = CORRUPTED
        elif used == ring.capacity:
            status = QUEUE_FULL
    if status != OK:
        gate_leave(&queue.producers_gate)
        return status
    if n > ring.capacity - used:
        n = ring.capacity - used
    _copy_in(ring, tail, batch, n)
    # The commit.  Sequentially consistent: the channel is read after it, as in consumers
    # `tail` is read after the registration
    store_seq_cst_u64(&queue.tail, tail + n)
    gate_leave(&queue.producers_gate)
    channel_notify(&queue.not_empty, <uint32_t>n if n < ALL_WAITERS else ALL_WAITERS)
    if _is_stale(ring):                  # perhaps before the commit
        return INVALID_BLOCK
    batch.n_items -= n
    batch.n_done += n
    return OK


cdef int _get_inside(ring_t* ring, batch_t* batch) noexcept nogil:
    """Take, inside the consumers' gate, the available messages; leave the gate; wake producers."""
    cdef queue_t* queue = ring.at
    cdef uint64_t head = load_relaxed_u64(&queue.head), n = load_relaxed_u64(&queue.tail_seen) - head, tail
    cdef bint closed
    cdef int status = OK
    if n > ring.capacity or n < batch.n_items:
        closed = load_seq_cst_u32(&queue.closed) != 0            # before `tail`: with `closed` set, `tail` is the last one
        tail = load_seq_cst_u64(&queue.tail)                     # partner: the store in _put_inside, after its copy in
        queue.tail_seen = tail
        n = tail - head
        if n == 0:
            status = QUEUE_CLOSED if closed else QUEUE_EMPTY
        elif damaged(n > ring.capacity):
            status = CORRUPTED
    if status == OK:
        if n > batch.n_items:
            n = batch.n_items
        status = _copy_bytes_out(ring, head, batch, &n) if ring.is_bytes else _copy_records_out(ring, head, batch, n)
    if _is_stale(ring):                  # first: what was read may be no message of the queue
        status = INVALID_BLOCK
    if status != OK:
        gate_leave(&queue.consumers_gate)
        return status
    store_seq_cst_u64(&queue.head, head + n)                     # the commit, before the channel is read, as in _put_inside
    gate_leave(&queue.consumers_gate)
    channel_notify(&queue.not_full, <uint32_t>n if n < ALL_WAITERS else ALL_WAITERS)
    batch.n_done = n
    return OK


cdef int ring_put_try(ring_t* ring, batch_t* batch) noexcept nogil:
    if _is_stale(ring):
        return INVALID_BLOCK
    if not gate_try(ring.section, &ring.at.producers_gate):
        return WOULD_BLOCK
    return _put_inside(ring, batch)


cdef int ring_get_try(ring_t* ring, batch_t* batch) noexcept nogil:
    if _is_stale(ring):
        return INVALID_BLOCK
    if not gate_try(ring.section, &ring.at.consumers_gate):
        return WOULD_BLOCK
    return _get_inside(ring, batch)


# -- waiting --------------------------------------------------------------------------------------------

cdef int _step(ring_t* ring, batch_t* batch, bint is_put, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Put or get once inside the gate."""
    cdef int status = _enter(ring, &ring.at.producers_gate if is_put else &ring.at.consumers_gate, deadline_ns, stop_for_signals)
    if status != OK:
        return status
    return _put_inside(ring, batch) if is_put else _get_inside(ring, batch)


cdef bint _look_a_while(ring_t* ring, bint is_put) noexcept nogil:
    """Poll, without sleeping, whether the other side puts or takes; adapt the polling time to the result."""
    cdef uint32_t* spins = &ring.put_spins if is_put else &ring.get_spins
    cdef uint32_t n_spins = spins[0]
    cdef uint64_t nothing = ring.capacity if is_put else 0
    if not _may_spin:
        return False
    for _ in range(n_spins):
        cpu_relax()
        if load_relaxed_u64(&ring.at.tail) - load_relaxed_u64(&ring.at.head) != nothing:
            spins[0] = 2 * n_spins if 2 * n_spins < MAX_SPINS else MAX_SPINS
            return True
    spins[0] = n_spins // 2 if n_spins // 2 > MIN_SPINS else MIN_SPINS
    return False


cdef int _wait(ring_t* ring, batch_t* batch, bint is_put, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    """Put everything, or get something."""
    cdef uint64_t* channel = &ring.at.not_full if is_put else &ring.at.not_empty
    cdef int refused = QUEUE_FULL if is_put else QUEUE_EMPTY, status, slept = OK
    cdef int64_t look_round_ns = now_ns() + SLICE_NS     # to check for signals, also while it is woken in vain or progresses slowly
    cdef uint32_t sequence
    cdef bint is_woken = False                   # and has not checked since that wake
    while True:
        status = _step(ring, batch, is_put, deadline_ns, stop_for_signals)
        if status != refused and not (status == OK and is_put and batch.n_items):
            if is_woken and (status == TIMEOUT_EXPIRED or status == INTERRUPTED):
                channel_notify(channel, 1)       # it has not checked: pass the wake on to another waiter
            return status
        is_woken = False
        if status == OK:                         # a part was put: the deadline applies only when there is no more room
            slept = OK
        elif deadline_is_past(deadline_ns):
            return refused
        if stop_for_signals and (slept != OK or now_ns() > look_round_ns):
            return INTERRUPTED
        if status == OK or (slept == OK and _look_a_while(ring, is_put)):
            continue
        sequence = channel_register(channel)
        status = _step(ring, batch, is_put, deadline_ns, stop_for_signals)
        if status != refused:
            if status != INVALID_BLOCK:
                channel_withdraw(channel, sequence)
            if status == OK and is_put and batch.n_items:
                continue
            return status
        slept = channel_sleep(channel, sequence, deadline_ns, SLICE_NS)
        is_woken = slept == OK
        if slept != OK and not _is_stale(ring):
            channel_withdraw(channel, sequence)


cdef int ring_put(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    return _wait(ring, batch, True, deadline_ns, stop_for_signals)


cdef int ring_get(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    return _wait(ring, batch, False, deadline_ns, stop_for_signals)


cdef int ring_shut_down(ring_t* ring, bint immediate, int64_t deadline_ns, bint stop_for_signals) noexcept nogil:
    cdef queue_t* queue = ring.at
    cdef int status = _enter(ring, &queue.producers_gate, deadline_ns, stop_for_signals)
    if status != OK:
        return status
    if _is_stale(ring):
        gate_leave(&queue.producers_gate)
        return INVALID_BLOCK
    exchange_seq_cst_u32(&queue.closed, 1)                       # before the channels are read
    gate_leave(&queue.producers_gate)
    if immediate:
        status = _enter(ring, &queue.consumers_gate, deadline_ns, stop_for_signals)
        if status == OK:
            store_seq_cst_u64(&queue.head, load_seq_cst_u64(&queue.tail))
            gate_leave(&queue.consumers_gate)
    channel_notify(&queue.not_empty, ALL_WAITERS)
    channel_notify(&queue.not_full, ALL_WAITERS)
    return INVALID_BLOCK if _is_stale(ring) else status


cdef int ring_count(queue_t* queue, uint64_t capacity, uint64_t* n_items) noexcept nogil:
    """Count the messages.  If `head` is the same before and after `tail` is read, the count is exact; else it is approximate."""
    cdef uint64_t head = 0, tail = 0
    for _ in range(N_LOOKS):
        head = load_seq_cst_u64(&queue.head)
        tail = load_seq_cst_u64(&queue.tail)
        if load_seq_cst_u64(&queue.head) == head:
            n_items[0] = tail - head
            return OK if tail - head <= capacity else CORRUPTED
    n_items[0] = tail - head if tail - head < capacity else capacity
    return OK
