# cython: language_level=3
"""The heap: a boundary-tag allocator that several processes share, any of which may be killed at any instruction.

The commit rule.  The chain of front tags from `heap_start` to `top` is authoritative.  Rear tags, free index, cached lists and counters
are indexes, which recovery rebuilds from the chain.  Every change of the chain is one 8-byte release store, and everything that the store
makes visible is written before it.

Invariants while the heap gate is free (in brackets the `Problem` that `check_heap` reports):

1. The chain leads from `heap_start` exactly to `top` [BAD_TAG, BAD_TOP].
2. Each rear tag is the sealed size of its block [BAD_REAR].
3. No two holes are adjacent and none ends at `top`, except where a kill left it so [HOLES_TOUCH, HOLE_AT_TOP].
4. The free index holds exactly the holes, the cached lists exactly the cached blocks [BAD_INDEX, BAD_CACHE].
5. used + hole + cached bytes = top - heap_start, and the counters agree [BAD_COUNT].
6. Every serial is below `next_serial`, and the tag of a small block repeats it [BAD_SERIAL].
7. top <= high_water <= size and top <= reserved <= size [BAD_BOUNDS].
8. Every block counts the names that lead to it, and a small block with a name is gated.  `name_blocks` counts the blocks that hold
   names [BAD_NAME_COUNT].  A group without a name is in the list of those that are to be emptied [BAD_GROUP].
9. Every record of pins is in its index, and leads to a used block, which is gated [BAD_PIN].
10. Every entry of attributes is the only one of its block, which is used and gated, or belongs to the section [BAD_ATTRIBUTES].
11. Every claim is in the list of claims, leads to a used array, and is counted there, by its sender, and by the header [BAD_CLAIM].

The heap gate is a gate of `_sync/gate.pxd`.  A participant that takes it over from a dead owner recovers the heap before anything else.
The owner of the gate does not run Python code and does not wait for another lock; only a snapshot takes the gates of the queues under it.
The process mutex, an opening byte and the reserve gate (`backing.pyx`) are taken before the gate (see the lock order in `_core.pyx`).

States of a block, and the one store by which it leaves each::

    hole     hole_split: the hole's front tag (PENDING or USED; or the front hole's smaller size)    under the gate
    PENDING  heap_commit: its tag, USED                                                              by its maker, no gate
             heap_release: its tag, HOLE or CACHED, when its maker abandons it                       under the gate
    USED     heap_release: its tag, HOLE or CACHED; block_doom_if_pinned: DOOMED (see `pins.pyx`)      under the gate
    DOOMED   heap_release: its tag, HOLE or CACHED                                                   under the gate
    CACHED   _reuse_cached: its tag, PENDING or USED; heap_flush_cache: HOLE                         under the gate

A small block is cleared under the gate, inside the hole, and becomes USED at once.  A large one is PENDING while it is cleared or filled
outside the gate.  Its maker's count of pending blocks, incremented before and decremented after, shows whether a dead participant left
one.  A maker that is interrupted while it waits for the gate notes the block in its private page and frees it later (`heap_abandon`).  The
block stays counted until then, so a maker that is killed or leaves meanwhile leaves a PENDING block that recovery frees.

Cached blocks (`cached_blocks.pxd`) are allocated again before any hole.  Their lists are emptied before an allocation fails, by
`trim`, and by the last process that leaves.

Related files: `block_tags.pxd` writes tags, `free_index.pxd` finds holes, `backing.pyx` reserves space in the file, `reallocate.pyx`
resizes and moves blocks, `recovery.pyx` repairs the heap after a kill, `verify.pyx` checks the invariants.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport (
    compare_exchange_acquire_u64, fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32, load_acquire_u64, load_relaxed_u64, load_seq_cst_u32,
    store_release_u32, store_release_u64)
from shmem._base.accessors cimport (
    block_bytes_for, block_to_payload, payload_bytes, payload_to_block, seal, tag_has_right_format, tag_make, tag_make_free, tag_size,
    tag_state, tag_type, type_is_internal)
from shmem._base.bounds cimport damaged, heap_top, is_sealed, size_fits
from shmem._base.deadline cimport FOREVER
from shmem._base.debug cimport HEAP_GATE, debug_fail, debug_may_take, debug_taken
from shmem._base.layout cimport (
    BLOCK_ALIGN_BYTES, BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, CACHE_BINS, SERIAL_MASK, STATE_CACHED, STATE_DOOMED, STATE_HOLE, STATE_LAST,
    STATE_PENDING, STATE_USED, TYPE_QUEUE, block_t, header_t)
from shmem._base.owner cimport owner_index
from shmem._base.section cimport MAX_ABANDONED, block_at, section_t, word_at
from shmem._base.status cimport (
    ALREADY_FREED, CORRUPTED, INTERRUPTED, INVALID_BLOCK, NAME_EXISTS, NEEDS_BACKING, NOT_FOUND, NO_MEMORY, OK, OWNER_DIED, PINNED,
    WOULD_BLOCK)
from shmem._heap.attributes cimport attributes_forget, tag_may_have_attributes
from shmem._heap.backing cimport (
    backing_end, backing_enter, backing_extend, backing_give_back, backing_leave, backing_lower, is_out_of_space)
from shmem._heap.block_tags cimport block_set_gated, block_write_hole, block_write_rear, count_used, hole_before, hole_behind, serial_word
from shmem._heap.cached_blocks cimport cache_bin_bytes, cache_put, cache_take
from shmem._heap.chain cimport chain_first_fault, chain_has_block
from shmem._heap.claims cimport claims_forget, claims_make_room, claims_of
from shmem._heap.free_index cimport gap_before, index_find, index_insert, index_remove
from shmem._heap.name_groups cimport groups_empty
from shmem._heap.pins cimport block_doom_if_pinned, block_is_pinned, pins_are_sound, pins_forget_slots, pins_take_out, tag_may_have_pins
from shmem._heap.recovery cimport NO_PARTICIPANT, dead_left_something, heap_recover
from shmem._sync.gate cimport GATE_SPINS, gate_leave, gate_step, gate_try, gate_wait_begin, gate_wait_t

cdef enum:
    MAX_INSIDE_BYTES = 1024              # up to this size a block is cleared under the gate
    FREED = 0xdd                         # SHMEM_DEBUG: the byte that freed payload is filled with, up to FREED_BYTES
    FREED_BYTES = 4096
    HOLDS_UNTIL_STOP = 256               # of the gate, for deleted groups, after which an allocation looks for signals

ctypedef struct request_t:
    uint64_t request_bytes
    uint64_t size_bytes                  # of the block
    uint64_t align_bytes
    uint64_t state
    uint64_t type_id                     # PENDING: the index of the maker
    bint clear_inside                    # clear before the commit
    heap_wait_t wait
    uint64_t dirty_end_off               # out: above this the payload is zero already
    uint64_t backing_end_off             # out, with NEEDS_BACKING: how far space must be reserved


# -- the gate -------------------------------------------------------------------------------------------

cdef int _heap_enter_slowly(section_t* section, heap_wait_t wait) noexcept nogil:
    cdef uint64_t* gate = &section.header.heap_gate
    cdef gate_wait_t state
    cdef int status = gate_wait_begin(section, &state, FOREVER, GATE_SPINS)
    if status != OK or wait == DO_NOT_WAIT:
        return status if status != OK else (OK if gate_try(section, gate) else WOULD_BLOCK)
    while True:
        status = gate_step(section, gate, &state)
        if status == OK:
            return OK
        if status == OWNER_DIED:
            # the dead owner's change may be incomplete.  If the heap cannot be recovered, `broken` records it for every participant
            heap_recover(section, <int64_t>owner_index(state.word))
            return OK
        if wait == WAIT_A_SLICE and status != WOULD_BLOCK:
            return INTERRUPTED


cdef int heap_enter(section_t* section, heap_wait_t wait) noexcept nogil:
    """Take the heap gate: OK, WOULD_BLOCK, INTERRUPTED, or the status of attaching this process."""
    cdef int status = OK
    if section.verify != NULL:
        debug_may_take(HEAP_GATE)
    if not gate_try(section, &section.header.heap_gate):
        status = _heap_enter_slowly(section, wait)
    if section.verify != NULL and status == OK:
        debug_taken(HEAP_GATE)
    return status


cdef int heap_enter_to_change(section_t* section, heap_wait_t wait) noexcept nogil:
    """Take the heap gate to change the heap: the same, or CORRUPTED, without the gate, if the heap is known to be damaged."""
    cdef int status = heap_enter(section, wait)
    if status == OK and section.header.broken:
        heap_leave(section)
        return CORRUPTED
    return status


cdef inline heap_wait_t _how_to_wait(int flags) noexcept nogil:
    if flags & HEAP_NOWAIT:
        return DO_NOT_WAIT
    return WAIT_A_SLICE if flags & HEAP_STOP else WAIT_FOREVER


cdef void heap_leave(section_t* section) noexcept nogil:
    if section.verify != NULL:
        section.verify(section)
    gate_leave(&section.header.heap_gate)


# -- from a block to a hole -----------------------------------------------------------------------------

cdef int block_become_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """Turn a used or cached block into a hole and merge it with adjacent holes; a hole at the end lowers `top` instead."""
    cdef uint64_t start_off = off, next_bytes = 0, previous_off
    cdef int status = OK
    if damaged(not size_fits(off, size_bytes, heap_top(section)) or hole_behind(section, off + size_bytes, &next_bytes) != OK):
        return CORRUPTED
    if next_bytes != 0:
        status = index_remove(section, off + size_bytes, next_bytes)
        size_bytes += next_bytes
        block_write_rear(section, off, size_bytes)
    store_release_u64(&block_at(section, off).tag, tag_make_free(size_bytes, STATE_HOLE))        # commit: freed, merged behind
    block_at(section, off).serial = 0                # from here on handles to the block are detected as stale
    previous_off = hole_before(section, off)
    if previous_off != 0 and status == OK:
        status = index_remove(section, previous_off, off - previous_off)
        start_off = previous_off
        size_bytes += off - previous_off
        block_write_rear(section, start_off, size_bytes)
        store_release_u64(&block_at(section, start_off).tag, tag_make_free(size_bytes, STATE_HOLE))     # commit: merged before
    if status != OK:
        return status
    if start_off + size_bytes == section.header.top:
        store_release_u64(&section.header.top, start_off)                                       # commit: gone
        return OK
    return index_insert(section, start_off, size_bytes)


cdef int heap_flush_cache(section_t* section) noexcept nogil:
    """Turn all cached blocks into holes, under the gate; by recovery if a list or the neighbour of a block is damaged."""
    cdef uint32_t i
    cdef uint64_t off, size_bytes
    cdef int status = OK
    for i in range(CACHE_BINS):
        size_bytes = cache_bin_bytes(i)
        off = cache_take(section, size_bytes)
        while off != 0 and status == OK:
            status = block_become_hole(section, off, size_bytes)
            off = cache_take(section, size_bytes)
    return OK if status == OK and section.header.cached_blocks == 0 else heap_recover(section, NO_PARTICIPANT)


# -- from a hole to a block -----------------------------------------------------------------------------

cdef inline uint64_t _write_inner(section_t* section, uint64_t off, uint64_t size_bytes, request_t* request) noexcept nogil:
    """Write all of a block except its tag, while it is not visible to other processes; return the tag."""
    cdef uint64_t serial = section.header.next_serial & SERIAL_MASK
    cdef uint64_t payload_off = block_to_payload(off), rear_off = off + size_bytes - BLOCK_REAR_BYTES
    if request.dirty_end_off > rear_off:
        request.dirty_end_off = rear_off
    if request.clear_inside and request.dirty_end_off > payload_off:
        memset(section.base + payload_off, 0, request.dirty_end_off - payload_off)
    block_at(section, off).serial = serial_word(serial, size_bytes, request.request_bytes)
    section.header.next_serial += 1
    block_write_rear(section, off, size_bytes)
    return tag_make(size_bytes, request.state, request.type_id, serial)


cdef int _mend_index(section_t* section, uint64_t off) noexcept nogil:
    """Rebuild an index that was found damaged after the block was placed.  Recovery counts the block, and so will the caller."""
    cdef int status = heap_recover(section, NO_PARTICIPANT)
    if status == OK:
        count_used(section, -1, tag_size(block_at(section, off).tag))
    return status


cdef int _reuse_cached(section_t* section, uint64_t off, request_t* request) noexcept nogil:
    cdef uint64_t tag
    request.dirty_end_off = off + request.size_bytes
    tag = _write_inner(section, off, request.size_bytes, request)
    store_release_u64(&block_at(section, off).tag, tag)                                             # commit
    return OK


cdef int hole_split(section_t* section, uint64_t hole_off, request_t* request, uint64_t* block_off) noexcept nogil:
    """Carve the block out of a hole; the remainders before it (for alignment) and after it stay holes."""
    cdef uint64_t hole_bytes = tag_size(load_relaxed_u64(&block_at(section, hole_off).tag))
    cdef uint64_t gap = gap_before(hole_off, request.align_bytes)
    cdef uint64_t size_bytes = request.size_bytes, rest = hole_bytes - gap - size_bytes, off = hole_off + gap, tag
    cdef int status
    if damaged(hole_bytes < gap + size_bytes or not size_fits(hole_off, hole_bytes, heap_top(section))
               or not is_sealed(section, hole_off, hole_bytes)):
        return CORRUPTED
    status = index_remove(section, hole_off, hole_bytes)
    if status != OK:
        return status
    if rest < BLOCK_MIN_BYTES:
        size_bytes += rest
        rest = 0
    if rest:
        block_write_hole(section, off + size_bytes, rest)
    request.dirty_end_off = off + size_bytes
    tag = _write_inner(section, off, size_bytes, request)
    if gap:
        block_at(section, off).tag = tag
        block_write_rear(section, hole_off, gap)
        store_release_u64(&block_at(section, hole_off).tag, tag_make_free(gap, STATE_HOLE))           # commit
        status = index_insert(section, hole_off, gap)
    else:
        store_release_u64(&block_at(section, off).tag, tag)                                         # commit
    if rest and status == OK:
        status = index_insert(section, off + size_bytes, rest)
    block_off[0] = off
    return OK if status == OK else _mend_index(section, off)


cdef bint heap_top_is_right(section_t* section) noexcept nogil:
    """Return whether the last block ends at `top`: by its rear tag or, if that was overwritten, by a walk along the chain."""
    cdef uint64_t top = load_relaxed_u64(&section.header.top), size_bytes
    if heap_top(section) != top or top & 15:
        return False
    if top == section.heap_start:
        return True
    size_bytes = seal(section.salt, word_at(section, top - BLOCK_REAR_BYTES)[0], top)
    if (size_bytes >= BLOCK_MIN_BYTES and size_bytes <= top - section.heap_start and size_bytes & 15 == 0
            and tag_size(block_at(section, top - size_bytes).tag) == size_bytes):
        return True
    return chain_first_fault(section) == 0


cdef int _place_above_top(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Place the block above `top`, with a hole before it if it is to be aligned."""
    cdef header_t* header = section.header
    cdef uint64_t top = heap_top(section), gap = gap_before(top, request.align_bytes), off = top + gap, new_top
    if damaged(not heap_top_is_right(section)):
        return CORRUPTED
    if gap + request.size_bytes > section.size_bytes - top:
        return NO_MEMORY
    new_top = off + request.size_bytes
    if new_top > backing_end(section):
        request.backing_end_off = new_top
        return WOULD_BLOCK if request.wait == DO_NOT_WAIT else NEEDS_BACKING
    request.dirty_end_off = header.high_water
    if new_top > header.high_water:
        store_release_u64(&header.high_water, new_top)       # before anything is written above it
    if gap:
        block_write_hole(section, top, gap)
    block_at(section, off).tag = _write_inner(section, off, request.size_bytes, request)
    store_release_u64(&header.top, new_top)                                                          # commit
    block_off[0] = off
    return OK if gap == 0 or index_insert(section, top, gap) == OK else _mend_index(section, off)


cdef int _place(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Place the block: in a cached block of its size, in a hole, or above `top`."""
    cdef uint64_t found_off = 0
    cdef int status
    if request.align_bytes <= 16:
        block_off[0] = cache_take(section, request.size_bytes)
        if block_off[0] != 0:
            return _reuse_cached(section, block_off[0], request)
    status = index_find(section, request.size_bytes, request.align_bytes, &found_off)
    if status == OK:
        return hole_split(section, found_off, request, block_off)
    if status == NOT_FOUND:
        return _place_above_top(section, request, block_off)
    return status


cdef int _place_after_flush(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    cdef int status = heap_flush_cache(section) if section.header.cached_blocks else OK
    return _place(section, request, block_off) if status == OK else status


cdef int _place_somehow(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Place the block; before giving up, rebuild a damaged index, and free what is cached, what dead participants left, and old claims."""
    cdef int status = _place(section, request, block_off)
    if status == CORRUPTED:
        if heap_recover(section, NO_PARTICIPANT) == OK:
            status = _place(section, request, block_off)
        if status == CORRUPTED:
            store_release_u32(&section.header.broken, 1)
    if is_out_of_space(status) and section.header.cached_blocks:
        status = _place_after_flush(section, request, block_off)
    if is_out_of_space(status) and _free_abandoned(section):
        status = _place(section, request, block_off)
    if is_out_of_space(status) and dead_left_something(section):
        status = heap_recover(section, NO_PARTICIPANT)
        if status == OK:
            status = _place(section, request, block_off)
    if is_out_of_space(status) and section.header.doomed_off == 0 and claims_make_room(section):
        status = _place_after_flush(section, request, block_off)
    return status


cdef int _look_now_and_then(section_t* section, heap_wait_t wait) noexcept nogil:
    """Count an allocation, under the gate; with each LOOK_EVERY-th one, free what dead participants left.

    An allocation that must not wait returns WOULD_BLOCK instead, once, and the next one that may wait does it.
    """
    if section.n_until_look != 0 and not (section.sweep_is_due and wait != DO_NOT_WAIT):
        section.n_until_look -= 1
        return OK
    section.n_until_look = LOOK_EVERY - 1
    section.sweep_is_due = False
    if not dead_left_something(section):
        return OK
    if wait == DO_NOT_WAIT:
        section.sweep_is_due = True
        return WOULD_BLOCK
    return heap_recover(section, NO_PARTICIPANT)


cdef int heap_sweep(section_t* section, heap_wait_t wait, uint64_t* n_bytes) noexcept nogil:
    """Free what dead participants left; `n_bytes` is the size of the blocks that became free."""
    cdef uint64_t used_bytes
    cdef int status = heap_enter_to_change(section, wait)
    n_bytes[0] = 0
    if status != OK:
        return status
    used_bytes = section.header.used_bytes
    _free_abandoned(section)
    if dead_left_something(section):
        status = heap_recover(section, NO_PARTICIPANT)
    if status == OK and section.header.used_bytes < used_bytes:
        n_bytes[0] = used_bytes - section.header.used_bytes
    heap_leave(section)
    return status


# -- backing --------------------------------------------------------------------------------------------

cdef int heap_give_back(section_t* section, heap_wait_t wait) noexcept nogil:
    """Return the backing above `top` to the file system.  The caller owns the reserve gate, and not the heap gate."""
    cdef uint64_t keep_off = 0
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    if damaged(not heap_top_is_right(section)):
        status = CORRUPTED               # blocks above `top` may be in use
    else:
        keep_off = backing_lower(section)
    heap_leave(section)
    if status == OK:
        status = backing_give_back(section, keep_off)
    if status == OK and section.header.high_water > keep_off and heap_enter(section, wait) == OK:
        if section.header.high_water > keep_off:         # blocks that were placed meanwhile lie below it
            store_release_u64(&section.header.high_water, keep_off)
        heap_leave(section)
    return status


cdef int _make_room(section_t* section) noexcept nogil:
    """Under the heap gate, free what lies in the cached lists, was abandoned, belonged to the dead, or is kept by old claims."""
    cdef int status = OK
    _free_abandoned(section)
    if dead_left_something(section):
        status = heap_recover(section, NO_PARTICIPANT)
    if status == OK and section.header.doomed_off == 0:
        claims_make_room(section)
    return heap_flush_cache(section) if status == OK and section.header.cached_blocks else status


cdef int _place_on_new_backing(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Reserve space for the block outside of the heap gate, then place it.

    The reserve gate is held until it is placed, so that no other process returns that space.  If the file system is full, what was
    reserved is returned, and the block is tried once more after making room.  It is reserved for again only if that made the block end
    earlier, and then without a stop: a caller that begins anew would reserve and return the same space without end.
    """
    cdef bint stops = request.wait == WAIT_A_SLICE
    cdef uint64_t full_off = 0
    cdef int full, status = backing_enter(section, stops)
    if status != OK:
        return status
    status = NEEDS_BACKING
    while status == NEEDS_BACKING:
        full = backing_extend(section, request.backing_end_off, stops and full_off == 0)
        if full == INTERRUPTED:
            status = INTERRUPTED
            break
        if full != OK:
            heap_give_back(section, request.wait)
        if full != OK and (full_off != 0 or not is_out_of_space(full)):
            status = full
            break
        status = heap_enter_to_change(section, request.wait)
        if status == OK:
            if full != OK:
                full_off = request.backing_end_off
                status = _make_room(section)
            if status == OK:
                status = _place_somehow(section, request, block_off)
            if status == OK:
                count_used(section, 1, tag_size(block_at(section, block_off[0]).tag))
            heap_leave(section)
        if status == NEEDS_BACKING and full != OK and request.backing_end_off >= full_off:
            status = full
    backing_leave(section)
    return status


# -- allocate -------------------------------------------------------------------------------------------

cdef inline uint32_t* _my_pending(section_t* section) noexcept nogil:
    return &section.participants[section.private.index_plus_1 - 1].pending


cdef inline void _pending_over(section_t* section) noexcept nogil:
    """Decrement the count of PENDING blocks of this participant."""
    if fetch_sub_seq_cst_u32(_my_pending(section), 1) == 0 and section.verify != NULL:
        debug_fail(b"a PENDING block is missing from its maker's count", section.path,
                   <char*>_my_pending(section) - section.base, 1, 0)


cdef bint _put_aside(section_t* section, uint64_t payload_off) noexcept nogil:
    """Note, without the gate, that a PENDING block of this participant must be freed; return False if the note has no room."""
    cdef uint32_t i
    for i in range(MAX_ABANDONED):
        if compare_exchange_acquire_u64(&section.private.abandoned_off[i], 0, payload_off):
            return True
    return False


cdef bint _free_abandoned(section_t* section) noexcept nogil:
    """Free the blocks that were put aside; return whether there was one.  The caller owns the gate."""
    cdef uint32_t i
    cdef uint64_t payload_off
    cdef bint found = False
    for i in range(MAX_ABANDONED):
        payload_off = load_acquire_u64(&section.private.abandoned_off[i])
        if payload_off != 0:
            heap_release(section, payload_off)
            store_release_u64(&section.private.abandoned_off[i], 0)
            _pending_over(section)
            found = True
    return found


cdef bint heap_is_filled(section_t* section) noexcept nogil:
    """Return whether this process has PENDING blocks other than those that were put aside: a thread fills them, or is about to."""
    cdef uint32_t i, n_aside = 0
    for i in range(MAX_ABANDONED):
        n_aside += load_acquire_u64(&section.private.abandoned_off[i]) != 0
    return load_seq_cst_u32(_my_pending(section)) > n_aside


cdef int _place_after_emptying(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Empty deleted groups outside of the gate, then place the block."""
    cdef uint64_t n_bytes = 0
    cdef int status
    if request.wait == DO_NOT_WAIT:
        return WOULD_BLOCK
    status = groups_empty(section, request.wait, <uint64_t>-1 if request.wait == WAIT_FOREVER else HOLDS_UNTIL_STOP, &n_bytes)
    if status == OK:
        status = heap_enter_to_change(section, request.wait)
    if status != OK:
        return status
    status = _place_somehow(section, request, block_off)
    if status == OK:
        count_used(section, 1, tag_size(block_at(section, block_off[0]).tag))
    heap_leave(section)
    return _place_on_new_backing(section, request, block_off) if status == NEEDS_BACKING else status


cdef int heap_allocate(section_t* section, uint64_t request_bytes, uint64_t align_bytes, uint32_t type_id, int flags,
                       uint64_t* payload_off) noexcept nogil:
    """Allocate a block: 0, NO_MEMORY, CORRUPTED, WOULD_BLOCK, INTERRUPTED, or an errno from reserving backing."""
    cdef request_t request
    cdef uint64_t off = 0
    cdef bint zero_outside = flags & HEAP_ZERO and request_bytes > MAX_INSIDE_BYTES
    cdef bint is_pending = flags & HEAP_PENDING or zero_outside
    cdef int status
    if request_bytes > section.size_bytes:
        return NO_MEMORY
    request.request_bytes = request_bytes
    request.size_bytes = block_bytes_for(request_bytes)
    request.align_bytes = align_bytes
    request.clear_inside = flags & HEAP_ZERO and not zero_outside
    request.wait = _how_to_wait(flags)
    request.dirty_end_off = 0
    status = heap_enter_to_change(section, request.wait)
    if status == OK:
        status = _look_now_and_then(section, request.wait)
        if status != OK:
            heap_leave(section)
    if status != OK:
        return status
    request.state = STATE_PENDING if is_pending else STATE_USED
    request.type_id = section.private.index_plus_1 - 1 if is_pending else type_id
    if is_pending:
        _free_abandoned(section)
        fetch_add_seq_cst_u32(_my_pending(section), 1)
    status = _place_somehow(section, &request, &off)
    if status == OK:
        count_used(section, 1, tag_size(block_at(section, off).tag))
    heap_leave(section)
    if status == NEEDS_BACKING:
        status = _place_on_new_backing(section, &request, &off)
    while is_out_of_space(status) and section.header.doomed_off != 0:
        status = _place_after_emptying(section, &request, &off)
    if status != OK:
        if is_pending:
            _pending_over(section)
        return status
    payload_off[0] = block_to_payload(off)
    if zero_outside and request.dirty_end_off > payload_off[0]:
        memset(section.base + payload_off[0], 0, request.dirty_end_off - payload_off[0])
    if is_pending and not flags & HEAP_PENDING:
        heap_commit(section, payload_off[0], type_id)
    return OK


cdef int heap_allocate_at_hand(section_t* section, uint64_t request_bytes, uint64_t* payload_off) noexcept nogil:
    cdef request_t request
    cdef uint64_t off = 0
    cdef int status
    memset(&request, 0, sizeof(request_t))
    request.request_bytes, request.size_bytes, request.align_bytes = request_bytes, block_bytes_for(request_bytes), BLOCK_ALIGN_BYTES
    request.state, request.type_id, request.wait = STATE_PENDING, section.private.index_plus_1 - 1, DO_NOT_WAIT
    fetch_add_seq_cst_u32(_my_pending(section), 1)
    status = _place(section, &request, &off)
    if status != OK:
        _pending_over(section)
        return status
    count_used(section, 1, tag_size(block_at(section, off).tag))
    payload_off[0] = block_to_payload(off)
    return OK


cdef void heap_commit(section_t* section, uint64_t payload_off, uint32_t type_id) noexcept nogil:
    """Turn a PENDING block into a USED one by one store; the payload is complete before it."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    store_release_u64(&block.tag, tag_make(tag_size(block.tag), STATE_USED, type_id, block.serial))
    _pending_over(section)


cdef void heap_abandon(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free a PENDING block of this participant.

    An interrupted operation calls this too, so it waits for the gate for at most a slice, then puts the block aside.
    Such a block stays PENDING, and counted, until this process makes another PENDING block, needs the room, trims, or leaves.
    So does a block of a heap that is known to be damaged.
    """
    cdef int status = heap_enter_to_change(section, WAIT_A_SLICE)
    if (status == INTERRUPTED or status == CORRUPTED) and _put_aside(section, payload_off):
        return
    if status == INTERRUPTED:
        status = heap_enter_to_change(section, WAIT_FOREVER)
    if status == CORRUPTED:
        return
    if status == OK:
        heap_release(section, payload_off)
        _free_abandoned(section)
        heap_leave(section)
    _pending_over(section)


# -- free -----------------------------------------------------------------------------------------------

cdef int _why_not_sealed(section_t* section, uint64_t off) noexcept nogil:
    """Distinguish a block whose end was overwritten (CORRUPTED) from an offset at which no block begins (INVALID_BLOCK)."""
    return CORRUPTED if chain_has_block(section, off) else INVALID_BLOCK


cdef int heap_check_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Check, under the gate, that a used block begins here, and if `serial` is not 0, that it is the one with that serial."""
    cdef uint64_t off, tag, size_bytes, top
    cdef block_t* block
    if payload_off & 15 or payload_off < block_to_payload(section.heap_start) or payload_off > section.size_bytes - 32:
        return INVALID_BLOCK
    off = payload_to_block(payload_off)
    block = block_at(section, off)
    top = heap_top(section)
    if off >= top:
        if off < section.header.high_water and tag_state(block.tag) == STATE_HOLE:
            return ALREADY_FREED
        return INVALID_BLOCK
    tag = load_acquire_u64(&block.tag)
    size_bytes = tag_size(tag)
    if damaged(not size_fits(off, size_bytes, top)):
        return INVALID_BLOCK
    if tag_state(tag) == STATE_HOLE or tag_state(tag) == STATE_CACHED or tag_state(tag) == STATE_DOOMED:
        return ALREADY_FREED
    if serial != 0 and (block.serial ^ serial) & SERIAL_MASK:        # before the rear tag: else a stale handle costs a walk
        return ALREADY_FREED
    if damaged(not is_sealed(section, off, size_bytes)):
        return _why_not_sealed(section, off)
    return OK if tag_state(tag) == STATE_USED else INVALID_BLOCK


cdef int heap_check_users_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Check the same, and return INVALID_BLOCK for blocks that hold names, types, pins and claims, which are internal."""
    cdef int status = heap_check_block(section, payload_off, serial)
    if status == OK and type_is_internal(tag_type(block_at(section, payload_to_block(payload_off)).tag)):
        return INVALID_BLOCK
    return status


cdef void _debug_neighbours(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """SHMEM_DEBUG: detect a write past the end of a block that is about to be freed, or of the one before it."""
    cdef uint64_t before = seal(section.salt, word_at(section, off - BLOCK_REAR_BYTES)[0], off), tag
    if off > section.heap_start and (before < BLOCK_MIN_BYTES or before > off - section.heap_start or before & 15
                                     or tag_size(block_at(section, off - before).tag) != before):
        debug_fail(b"the end of the block before the freed block was overwritten", section.path, off - BLOCK_REAR_BYTES, 0, before)
    if off + size_bytes < section.header.top:
        tag = block_at(section, off + size_bytes).tag
        if (tag_size(tag) < BLOCK_MIN_BYTES or tag_size(tag) > section.header.top - off - size_bytes
                or tag_state(tag) < STATE_HOLE or tag_state(tag) > STATE_LAST or not tag_has_right_format(tag)):
            debug_fail(b"the tag after the freed block was overwritten", section.path, off + size_bytes, 0, tag)


cdef void _debug_fill(section_t* section, uint64_t payload_off, uint64_t block_bytes) noexcept nogil:
    """SHMEM_DEBUG: fill freed payload, so that a read after the free is noticed.  The links of free blocks stay."""
    cdef uint64_t n_bytes = payload_bytes(block_bytes) - 2 * sizeof(uint64_t)
    memset(section.base + payload_off + 2 * sizeof(uint64_t), FREED, n_bytes if n_bytes < FREED_BYTES else FREED_BYTES)


cdef int heap_release(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free, under the gate, a checked block."""
    cdef uint64_t off = payload_to_block(payload_off), tag = block_at(section, off).tag, size_bytes = tag_size(tag)
    cdef int status = OK
    if section.verify != NULL:
        _debug_neighbours(section, off, size_bytes)
    count_used(section, -1, size_bytes)
    if not cache_put(section, off, size_bytes) and block_become_hole(section, off, size_bytes) != OK:
        status = heap_recover(section, NO_PARTICIPANT)
        if status == OK and block_at(section, off).tag == tag:       # the damage was found before the block was freed
            count_used(section, -1, size_bytes)
            status = block_become_hole(section, off, size_bytes)
    if status == OK and section.header.root_off == payload_off:
        store_release_u64(&section.header.root_off, 0)            # last: recovery unsets a root that is free
    if section.verify != NULL:
        _debug_fill(section, payload_off, size_bytes)
    return status


cdef int heap_mend_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef int status = OK
    if (section.header.pins_off | section.header.n_pin_records) != 0 and not pins_are_sound(section, payload_off):
        status = heap_recover(section, NO_PARTICIPANT)
    return status


cdef int heap_forget_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t record_off = 0
    pins_forget_slots(section, payload_off)
    if pins_take_out(section, payload_off, &record_off) != OK:
        return heap_recover(section, NO_PARTICIPANT)         # which frees the records of blocks that are gone
    return heap_release(section, record_off) if record_off != 0 else OK


cdef int heap_release_with_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    cdef bint may_have_pins = tag_may_have_pins(section, block.tag), may_have_attributes = tag_may_have_attributes(section, block.tag)
    cdef uint64_t serial = block.serial
    cdef int status = heap_release(section, payload_off)
    if may_have_pins and status == OK:
        status = heap_forget_pins(section, payload_off)
    return attributes_forget(section, payload_off, serial) if may_have_attributes and status == OK else status


cdef int heap_end_block(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free, under the gate, a checked block; a queue that a live participant pins becomes DOOMED, and is counted as used."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    if not block_doom_if_pinned(section, payload_off):
        return heap_release_with_pins(section, payload_off)
    if section.header.root_off == payload_off:
        store_release_u64(&section.header.root_off, 0)            # last: recovery unsets a root that is free
    return attributes_forget(section, payload_off, block.serial) if tag_may_have_attributes(section, block.tag) else OK


cdef int _free_checked(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free, under the gate, a checked block that its user frees explicitly; messages that refer to it lose it."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    cdef uint64_t serial = block.serial & SERIAL_MASK, block_bytes = tag_size(block.tag)
    cdef uint64_t n_recoveries = section.header.recoveries
    cdef bint has_claims = claims_of(section, payload_off) != 0
    cdef int status = heap_end_block(section, payload_off)
    if status != OK or not has_claims or section.header.recoveries != n_recoveries:      # recovery drops claims on what is not there
        return status
    return claims_forget(section, payload_off, serial, block_bytes)


cdef int heap_free(section_t* section, uint64_t payload_off, uint64_t serial, int flags) noexcept nogil:
    """Free a block: 0, INVALID_BLOCK, ALREADY_FREED, CORRUPTED, PINNED, WOULD_BLOCK, INTERRUPTED; on error nothing changes."""
    cdef int status = heap_enter_to_change(section, _how_to_wait(flags))
    if status != OK:
        return status
    status = heap_mend_pins(section, payload_off)
    if status == OK:
        status = heap_check_users_block(section, payload_off, serial)
    if (status == OK and tag_type(block_at(section, payload_to_block(payload_off)).tag) != TYPE_QUEUE
            and block_is_pinned(section, payload_off, True, True)):
        status = PINNED
    if status == OK:
        status = _free_checked(section, payload_off)
    heap_leave(section)
    return status


# -- root and trim --------------------------------------------------------------------------------------

cdef int heap_set_root(section_t* section, uint64_t payload_off, uint64_t serial, bint only_if_unset, heap_wait_t wait) noexcept nogil:
    """Make a used block the root; with offset 0, unset the root.  With `only_if_unset`, NAME_EXISTS if there is a root already."""
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    if only_if_unset and section.header.root_off != 0:
        status = NAME_EXISTS
    elif payload_off != 0:
        status = heap_check_block(section, payload_off, serial)
    if status == OK:
        if payload_off != 0:
            block_set_gated(block_at(section, payload_to_block(payload_off)))
        store_release_u64(&section.header.root_off, payload_off)
    heap_leave(section)
    return status


cdef int heap_trim(section_t* section, heap_wait_t wait) noexcept nogil:
    """Return the backing above `top` to the file system.  The file keeps its length, so views stay valid."""
    cdef int status = backing_enter(section, wait == WAIT_A_SLICE)
    if status != OK:
        return status
    status = heap_enter_to_change(section, wait)
    if status == OK:
        _free_abandoned(section)
        status = heap_flush_cache(section)
        heap_leave(section)
    if status == OK:
        status = heap_give_back(section, wait)
    backing_leave(section)
    return status
