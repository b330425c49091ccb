# cython: language_level=3
"""The heap: a boundary-tag allocator that several processes share and any of which may die anywhere.

The commit rule.  The chain of front tags from `heap_start` to `top` is the truth; rear tags, free index,
cached lists and counters are indexes that recovery rebuilds from it.  Every change of the chain is one
8-byte release store, and everything that store makes visible was written before it.

What holds whenever the heap gate is free (the name in brackets is the `Problem` that `check_heap` reports):

1. The chain leads from `heap_start` exactly to `top` [BAD_TAG, BAD_TOP].
2. Each rear tag is the sealed size of its block [BAD_REAR].
3. No two holes lie side by side, none ends at `top`, unless a kill left it so [HOLES_TOUCH, HOLE_AT_TOP].
4. The free index holds exactly the holes, the cached lists exactly the cached blocks [BAD_INDEX, BAD_CACHE].
5. used + hole + cached bytes = top - heap_start, and the counters say so [BAD_COUNT].
6. A serial is below `next_serial` [BAD_SERIAL].
7. top <= high_water <= size and top <= reserved <= size [BAD_BOUNDS].

The heap gate is one of `_sync/gate.pxd`.  Who takes it over from a dead owner recovers.  Under it no Python code runs,
and nothing waits for another lock, but a snapshot for the gates of queues.

States of a block, and by which one store it leaves them::

    hole     carve: the hole's front tag (PENDING or USED; or the front hole's smaller size)    under the gate
    PENDING  heap_commit: its tag, USED                                                         by its maker, no gate
    USED     heap_free: its tag, HOLE or CACHED                                                 under the gate
    CACHED   carve: its tag, PENDING or USED; flush: HOLE                                       under the gate

A small block is cleared under the gate, inside the hole, and becomes USED at once.  A large one is PENDING while it
is cleared or filled outside; its maker's count of pending blocks, raised before and lowered after,
tells whether a dead participant left one.

Cached blocks: a freed block of up to 1,056 bytes is kept whole, in a list of its own size of at most `BIN_LIMIT`
blocks, and given out again first.  The lists are emptied before a section is called full, by `trim`, and
by the last one out.
"""

from libc.errno cimport EBADF, EDQUOT, ENOSPC
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._atomics cimport (
    fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32, load_acquire_u64, load_relaxed_u64, store_release_u32, store_release_u64)
from shmem._base.bounds cimport block_room, damaged, heap_top, is_sealed, size_fits, slack_fits
from shmem._base.deadline cimport FOREVER
from shmem._base.debug cimport HEAP_GATE, debug_fail, debug_may_take, debug_taken
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, CACHE_BINS, PAGE_BYTES, SERIAL_MASK, SLACK_SHIFT, STATE_CACHED, STATE_HOLE, STATE_PENDING,
    STATE_USED, TYPE_ARRAY, TYPE_NAME_ENTRY, TYPE_NAME_TABLE, TYPE_PLAIN, block_bytes_for, block_t, block_to_payload, header_t,
    payload_bytes, payload_to_block, round_up, seal, tag_make, tag_size, tag_state, tag_type)
from shmem._base.participants cimport section_descriptor
from shmem._base.section cimport block_at, section_t, word_at
from shmem._base.status cimport (
    ALREADY_FREED, CORRUPTED, INTERRUPTED, INVALID_BLOCK, NOT_FOUND, NO_MEMORY, OK, OWNER_DIED, PINNED, WOULD_BLOCK)
from shmem._base.system cimport file_give_back, file_reserve
from shmem._heap.free_index cimport gap_before, index_find, index_insert, index_remove
from shmem._heap.intents cimport INTENT_FIRST_TYPE_SHIFT, INTENT_MOVE, INTENT_RESIZE, INTENT_SHRINK, intent_begin, intent_end, my_intent
from shmem._heap.recovery cimport (
    NO_PARTICIPANT, array_is_pinned, chain_first_fault, chain_has_block, dead_left_something, heap_recover, resize_finish)
from shmem._sync.gate cimport GATE_SPINS, gate_leave, gate_step, gate_try, gate_wait_begin, gate_wait_t
from shmem._sync.storage_lock cimport GATE_OWNER_MASK

cdef enum:
    BIN_LIMIT = 64                       # blocks kept per size
    ZERO_INSIDE_BYTES = 1024             # up to here a block is cleared under the gate
    RESERVE_BYTES = 1 << 20              # backing is asked for in steps of at least this
    FREED = 0xdd                         # SHMEM_DEBUG: what is freed is filled with it, as far as
    FREED_BYTES = 4096

ctypedef struct request_t:
    uint64_t request_bytes
    uint64_t size_bytes                  # of the block
    uint64_t align_bytes
    uint64_t state_and_type              # the tag but for its size
    bint clear_inside                    # clear before the commit
    int wait
    uint64_t dirty_end_off               # out: above this the payload is zero already


# -- the gate -------------------------------------------------------------------------------------------

cdef int _heap_enter_slowly(section_t* section, int wait) noexcept nogil:
    cdef uint64_t* gate = &section.header.heap_gate
    cdef gate_wait_t state
    cdef int status = gate_wait_begin(section, &state, FOREVER, GATE_SPINS)
    if status != OK or not wait:
        return status if status != OK else (OK if gate_try(section, gate) else WOULD_BLOCK)
    while True:
        status = gate_step(section, gate, &state)
        if status == OK:
            return OK
        if status == OWNER_DIED:
            # what is there, the dead one left.  If it cannot be recovered, `broken` says so to whoever comes
            heap_recover(section, <int64_t>(state.word & GATE_OWNER_MASK) - 1)
            return OK
        if wait == WAIT_A_SLICE and status != WOULD_BLOCK:
            return INTERRUPTED


cdef int heap_enter(section_t* section, int wait) noexcept nogil:
    """Take the heap gate.  OK, or WOULD_BLOCK, INTERRUPTED, or why this process cannot be attached."""
    cdef int status = OK
    if section.verify != NULL:
        debug_may_take(HEAP_GATE)
    if not gate_try(section, &section.header.heap_gate):
        status = _heap_enter_slowly(section, wait)
    if section.verify != NULL and status == OK:
        debug_taken(HEAP_GATE)
    return status


cdef inline int _how_to_wait(int flags) noexcept nogil:
    if flags & HEAP_NOWAIT:
        return False
    if flags & HEAP_STOP:
        return WAIT_A_SLICE
    return True


cdef void heap_leave(section_t* section) noexcept nogil:
    if section.verify != NULL:
        section.verify(section)
    gate_leave(&section.header.heap_gate)


# -- writing blocks -------------------------------------------------------------------------------------

cdef inline void _write_rear(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    word_at(section, off + size_bytes - BLOCK_REAR_BYTES)[0] = seal(section.salt, size_bytes, off + size_bytes)


cdef inline void _write_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """The tags of a hole that is not in the chain yet."""
    block_at(section, off).tag = tag_make(size_bytes, STATE_HOLE, 0)
    _write_rear(section, off, size_bytes)


cdef inline uint64_t _serial_word(uint64_t serial, uint64_t size_bytes, uint64_t request_bytes) noexcept nogil:
    return serial | (payload_bytes(size_bytes) - request_bytes) << SLACK_SHIFT


cdef inline void _write_inner(section_t* section, uint64_t off, uint64_t size_bytes, request_t* request) noexcept nogil:
    """All of a block but its tag, while nobody can see it."""
    cdef uint64_t payload_off = block_to_payload(off), rear_off = off + size_bytes - BLOCK_REAR_BYTES
    if request.dirty_end_off > rear_off:
        request.dirty_end_off = rear_off
    if request.clear_inside and request.dirty_end_off > payload_off:
        memset(section.base + payload_off, 0, request.dirty_end_off - payload_off)
    block_at(section, off).serial = _serial_word(section.header.next_serial & SERIAL_MASK, size_bytes, request.request_bytes)
    section.header.next_serial += 1
    _write_rear(section, off, size_bytes)


cdef inline uint64_t _previous_hole(section_t* section, uint64_t off) noexcept nogil:
    """The offset of the hole that ends where this block begins, or 0."""
    cdef uint64_t size_bytes
    if off <= section.heap_start:
        return 0
    size_bytes = seal(section.salt, word_at(section, off - BLOCK_REAR_BYTES)[0], off)
    if size_bytes < BLOCK_MIN_BYTES or size_bytes > off - section.heap_start or size_bytes & 15:
        return 0                         # whoever wrote past its end: check_heap says so
    return off - size_bytes if block_at(section, off - size_bytes).tag == tag_make(size_bytes, STATE_HOLE, 0) else 0


cdef inline int _hole_behind(section_t* section, uint64_t end_off, uint64_t* hole_bytes) noexcept nogil:
    """The size of the hole that begins where a block ends, 0 when there is none: OK or CORRUPTED."""
    cdef uint64_t top = heap_top(section), tag
    hole_bytes[0] = 0
    if end_off >= top:
        return OK
    tag = load_relaxed_u64(&block_at(section, end_off).tag)
    if tag_state(tag) != STATE_HOLE:
        return OK
    if damaged(not size_fits(end_off, tag_size(tag), top) or not is_sealed(section, end_off, tag_size(tag))):
        return CORRUPTED
    hole_bytes[0] = tag_size(tag)
    return OK


cdef int _become_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """A used or cached block becomes a hole and merges with its neighbours; a hole at the end lowers `top`."""
    cdef uint64_t start_off = off, next_bytes = 0, previous_off
    cdef int status = OK
    if damaged(not size_fits(off, size_bytes, heap_top(section)) or _hole_behind(section, off + size_bytes, &next_bytes) != OK):
        return CORRUPTED
    if next_bytes != 0:
        status = index_remove(section, off + size_bytes, next_bytes)
        size_bytes += next_bytes
        _write_rear(section, off, size_bytes)
    store_release_u64(&block_at(section, off).tag, tag_make(size_bytes, STATE_HOLE, 0))        # commit: freed, merged behind
    block_at(section, off).serial = 0                # whoever still has it can tell
    previous_off = _previous_hole(section, off)
    if previous_off != 0 and status == OK:
        status = index_remove(section, previous_off, off - previous_off)
        start_off = previous_off
        size_bytes += off - previous_off
        _write_rear(section, start_off, size_bytes)
        store_release_u64(&block_at(section, start_off).tag, tag_make(size_bytes, STATE_HOLE, 0))     # commit: merged before
    if status != OK:
        return status
    if start_off + size_bytes == section.header.top:
        store_release_u64(&section.header.top, start_off)                                       # commit: gone
        return OK
    return index_insert(section, start_off, size_bytes)


# -- cached blocks --------------------------------------------------------------------------------------

cdef inline uint32_t _bin_of(uint64_t size_bytes) noexcept nogil:
    return <uint32_t>(size_bytes >> 4) - 3


cdef inline bint _cache_put(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    cdef uint32_t i = _bin_of(size_bytes)
    if i >= CACHE_BINS or section.index.cache_count[i] >= BIN_LIMIT:
        return False
    store_release_u64(&block_at(section, off).tag, tag_make(size_bytes, STATE_CACHED, 0))        # commit: freed
    block_at(section, off).serial = 0
    block_at(section, off).next_off = section.index.cache_off[i]
    section.index.cache_off[i] = off
    section.index.cache_count[i] += 1
    section.header.cached_blocks += 1
    section.header.cached_bytes += size_bytes
    return True


cdef inline uint64_t _cache_take(section_t* section, uint64_t size_bytes) noexcept nogil:
    """A cached block of exactly this size, out of its list; 0 when there is none."""
    cdef uint32_t i = _bin_of(size_bytes)
    cdef uint64_t off
    if i >= CACHE_BINS:
        return 0
    off = section.index.cache_off[i]
    if off == 0:
        return 0
    if damaged(off < section.heap_start or off > heap_top(section) - size_bytes or off & 15
               or block_at(section, off).tag != tag_make(size_bytes, STATE_CACHED, 0)):
        section.index.cache_off[i] = 0   # a damaged list: what it held comes back when all lists are to be emptied
        section.index.cache_count[i] = 0
        return 0
    section.index.cache_off[i] = block_at(section, off).next_off
    section.index.cache_count[i] -= 1
    section.header.cached_blocks -= 1
    section.header.cached_bytes -= size_bytes
    return off


cdef int heap_flush_cache(section_t* section) noexcept nogil:
    """Make holes of all cached blocks; by recovery, should a list or what lies beside a block be damaged.  The gate is mine."""
    cdef uint32_t i
    cdef uint64_t off, size_bytes
    cdef int status = OK
    for i in range(CACHE_BINS):
        size_bytes = (<uint64_t>i + 3) << 4
        off = _cache_take(section, size_bytes)
        while off != 0 and status == OK:
            status = _become_hole(section, off, size_bytes)
            off = _cache_take(section, size_bytes)
    return OK if status == OK and section.header.cached_blocks == 0 else heap_recover(section, NO_PARTICIPANT)


# -- placing a block ------------------------------------------------------------------------------------

cdef inline void _count_used(section_t* section, int n, uint64_t size_bytes) noexcept nogil:
    """One block more is in use, or with -1 one less."""
    section.header.used_blocks += n
    section.header.used_bytes += n * size_bytes


cdef int _mend_index(section_t* section, uint64_t off) noexcept nogil:
    """The block is placed, the index is damaged: make it anew.  That counts the block, and so does the caller."""
    cdef int status = heap_recover(section, NO_PARTICIPANT)
    if status == OK:
        _count_used(section, -1, tag_size(block_at(section, off).tag))
    return status


cdef int _take_cached(section_t* section, uint64_t off, request_t* request) noexcept nogil:
    request.dirty_end_off = off + request.size_bytes
    _write_inner(section, off, request.size_bytes, request)
    store_release_u64(&block_at(section, off).tag, request.size_bytes | request.state_and_type)     # commit
    return OK


cdef int _take_hole(section_t* section, uint64_t hole_off, request_t* request, uint64_t* block_off) noexcept nogil:
    """Carve the block out of a hole; what is left in front and behind are holes."""
    cdef uint64_t hole_bytes = tag_size(load_relaxed_u64(&block_at(section, hole_off).tag))
    cdef uint64_t gap = gap_before(hole_off, request.align_bytes)
    cdef uint64_t size_bytes = request.size_bytes, rest = hole_bytes - gap - size_bytes, off = hole_off + gap
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
        _write_hole(section, off + size_bytes, rest)
    request.dirty_end_off = off + size_bytes
    _write_inner(section, off, size_bytes, request)
    if gap:
        block_at(section, off).tag = size_bytes | request.state_and_type
        _write_rear(section, hole_off, gap)
        store_release_u64(&block_at(section, hole_off).tag, tag_make(gap, STATE_HOLE, 0))           # commit
        status = index_insert(section, hole_off, gap)
    else:
        store_release_u64(&block_at(section, off).tag, size_bytes | request.state_and_type)         # commit
    if rest and status == OK:
        status = index_insert(section, off + size_bytes, rest)
    block_off[0] = off
    return OK if status == OK else _mend_index(section, off)


cdef inline bint _is_out_of_space(int status) noexcept nogil:
    return status == NO_MEMORY or status == ENOSPC or status == EDQUOT


cdef inline uint64_t _reserved(section_t* section) noexcept nogil:
    """Up to where there is backing: never below `top`, which zeros might be written over, nor where the section has no bytes."""
    cdef uint64_t reserved = load_relaxed_u64(&section.header.reserved), top = heap_top(section)
    return top if damaged(reserved > section.size_bytes or reserved < top) else reserved


cdef int _reserve(section_t* section, uint64_t end_off) noexcept nogil:
    """Have the file system back the section up to `end_off`, in steps; SectionFull beats SIGBUS later."""
    cdef uint64_t reserved = _reserved(section), step = reserved >> 3, wish
    cdef int status, fd = section_descriptor(section)
    if fd < 0:
        return EBADF
    if step < RESERVE_BYTES:
        step = RESERVE_BYTES
    if step > 64 * <uint64_t>RESERVE_BYTES:
        step = 64 * <uint64_t>RESERVE_BYTES
    wish = round_up(end_off, PAGE_BYTES)
    if wish - reserved < step:
        wish = round_up(reserved + step, PAGE_BYTES)
    if wish > section.size_bytes:
        wish = section.size_bytes
    status = file_reserve(fd, reserved, wish, reserved)
    if _is_out_of_space(status) and wish > round_up(end_off, PAGE_BYTES):
        wish = round_up(end_off, PAGE_BYTES)
        status = file_reserve(fd, reserved, wish, reserved)
    if status == OK:
        store_release_u64(&section.header.reserved, wish)
    return status


cdef bint heap_top_is_right(section_t* section) noexcept nogil:
    """Whether the last block ends at `top`: by its rear tag, or should that have been overwritten, by a walk along the chain."""
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


cdef int _take_top(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Place the block above `top`."""
    cdef header_t* header = section.header
    cdef uint64_t top = heap_top(section), gap = gap_before(top, request.align_bytes), off = top + gap, new_top
    cdef int status
    if damaged(not heap_top_is_right(section)):
        return CORRUPTED
    if gap + request.size_bytes > section.size_bytes - top:
        return NO_MEMORY
    new_top = off + request.size_bytes
    if new_top > _reserved(section):
        if not request.wait:
            return WOULD_BLOCK
        status = _reserve(section, new_top)
        if status != OK:
            return status
    request.dirty_end_off = header.high_water
    if new_top > header.high_water:
        store_release_u64(&header.high_water, new_top)       # before anything is written above it
    if gap:
        _write_hole(section, top, gap)
    _write_inner(section, off, request.size_bytes, request)
    block_at(section, off).tag = request.size_bytes | request.state_and_type
    store_release_u64(&header.top, new_top)                                                          # commit
    block_off[0] = off
    return OK if gap == 0 or index_insert(section, top, gap) == OK else _mend_index(section, off)


cdef int _place(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    cdef uint64_t found_off = 0
    cdef int status
    if request.align_bytes <= 16:
        block_off[0] = _cache_take(section, request.size_bytes)
        if block_off[0] != 0:
            return _take_cached(section, block_off[0], request)
    status = index_find(section, request.size_bytes, request.align_bytes, &found_off)
    if status == OK:
        return _take_hole(section, found_off, request, block_off)
    if status == NOT_FOUND:
        return _take_top(section, request, block_off)
    return status


cdef int _place_somehow(section_t* section, request_t* request, uint64_t* block_off) noexcept nogil:
    """Place the block; before giving up, rebuild a damaged index, empty the cache, clear up after the dead."""
    cdef int status = _place(section, request, block_off)
    if status == CORRUPTED:
        if heap_recover(section, NO_PARTICIPANT) == OK:
            status = _place(section, request, block_off)
        if status == CORRUPTED:
            store_release_u32(&section.header.broken, 1)
    if _is_out_of_space(status) and section.header.cached_blocks:
        status = heap_flush_cache(section)
        if status == OK:
            status = _place(section, request, block_off)
    if _is_out_of_space(status) and dead_left_something(section):
        heap_recover(section, NO_PARTICIPANT)
        status = _place(section, request, block_off)
    return status


# -- allocate -------------------------------------------------------------------------------------------

cdef inline uint32_t* _my_pending(section_t* section) noexcept nogil:
    return &section.participants[section.private.index_plus_1 - 1].pending


cdef inline void _pending_over(section_t* section) noexcept nogil:
    """One of my blocks is no more PENDING."""
    if fetch_sub_seq_cst_u32(_my_pending(section), 1) == 0 and section.verify != NULL:
        debug_fail(b"a block was PENDING that its maker had not counted", section.path,
                   <char*>_my_pending(section) - section.base, 1, 0)


cdef int heap_allocate(section_t* section, uint64_t request_bytes, uint64_t align_bytes, uint32_t type_id, int flags,
                       uint64_t* payload_off) noexcept nogil:
    """Allocate: 0, NO_MEMORY, CORRUPTED, WOULD_BLOCK, or an errno from reserving backing."""
    cdef request_t request
    cdef uint64_t off = 0
    cdef bint zero_outside = flags & HEAP_ZERO and request_bytes > ZERO_INSIDE_BYTES
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
    status = heap_enter(section, request.wait)
    if status != OK:
        return status
    if section.header.broken:
        heap_leave(section)
        return CORRUPTED
    if is_pending:
        fetch_add_seq_cst_u32(_my_pending(section), 1)
        request.state_and_type = tag_make(0, STATE_PENDING, section.private.index_plus_1 - 1)
    else:
        request.state_and_type = tag_make(0, STATE_USED, type_id)
    status = _place_somehow(section, &request, &off)
    if status == OK:
        _count_used(section, 1, tag_size(block_at(section, off).tag))
    elif is_pending:
        _pending_over(section)
    heap_leave(section)
    if status != OK:
        return status
    payload_off[0] = block_to_payload(off)
    if zero_outside and request.dirty_end_off > payload_off[0]:
        memset(section.base + payload_off[0], 0, request.dirty_end_off - payload_off[0])
    if is_pending and not flags & HEAP_PENDING:
        heap_commit(section, payload_off[0], type_id)
    return OK


cdef void heap_commit(section_t* section, uint64_t payload_off, uint32_t type_id) noexcept nogil:
    """PENDING becomes USED by one store; the payload is complete before it."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    store_release_u64(&block.tag, tag_make(tag_size(block.tag), STATE_USED, type_id))
    _pending_over(section)


cdef void heap_abandon(section_t* section, uint64_t payload_off) noexcept nogil:
    """Give a PENDING block of mine back."""
    if heap_enter(section, True) == OK:
        heap_release(section, payload_off)
        heap_leave(section)
    _pending_over(section)


# -- free -----------------------------------------------------------------------------------------------

cdef int _tell_why_not(section_t* section, uint64_t off) noexcept nogil:
    """The rear tag does not fit: a block whose end was overwritten, or no block at all?"""
    return CORRUPTED if chain_has_block(section, off) else INVALID_BLOCK


cdef int heap_check_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Whether a used block begins here, and if `serial` is not 0, that very one.  The gate is mine."""
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
    if tag_state(tag) == STATE_HOLE or tag_state(tag) == STATE_CACHED:
        return ALREADY_FREED
    if serial != 0 and (block.serial ^ serial) & SERIAL_MASK:        # before the rear: else a stale one costs a walk
        return ALREADY_FREED
    if damaged(not is_sealed(section, off, size_bytes)):
        return _tell_why_not(section, off)
    return OK if tag_state(tag) == STATE_USED else INVALID_BLOCK


cdef int heap_check_users_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """The same, but the blocks that hold names and types are not a user's to touch: INVALID_BLOCK."""
    cdef int status = heap_check_block(section, payload_off, serial)
    cdef uint64_t type_id
    if status == OK:
        type_id = tag_type(block_at(section, payload_to_block(payload_off)).tag)
        if type_id == TYPE_NAME_TABLE or type_id == TYPE_NAME_ENTRY:
            return INVALID_BLOCK
    return status


cdef void _debug_neighbours(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """SHMEM_DEBUG: a block is about to be freed.  Whoever wrote past the end of the one before, or of this one, is told here."""
    cdef uint64_t before = seal(section.salt, word_at(section, off - BLOCK_REAR_BYTES)[0], off), tag
    if off > section.heap_start and (before < BLOCK_MIN_BYTES or before > off - section.heap_start or before & 15
                                     or tag_size(block_at(section, off - before).tag) != before):
        debug_fail(b"the end of the block before one that is freed was overwritten", section.path, off - BLOCK_REAR_BYTES, 0, before)
    if off + size_bytes < section.header.top:
        tag = block_at(section, off + size_bytes).tag
        if (tag_size(tag) < BLOCK_MIN_BYTES or tag_size(tag) > section.header.top - off - size_bytes
                or tag_state(tag) < STATE_HOLE or tag_state(tag) > STATE_CACHED):
            debug_fail(b"the tag behind a block that is freed was overwritten", section.path, off + size_bytes, 0, tag)


cdef void _debug_fill(section_t* section, uint64_t payload_off, uint64_t block_bytes) noexcept nogil:
    """SHMEM_DEBUG: what is read after it was freed is not to look like anything.  The links of free blocks stay."""
    cdef uint64_t n_bytes = payload_bytes(block_bytes) - 2 * sizeof(uint64_t)
    memset(section.base + payload_off + 2 * sizeof(uint64_t), FREED, n_bytes if n_bytes < FREED_BYTES else FREED_BYTES)


cdef int heap_release(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free a block that was checked.  The gate is mine."""
    cdef uint64_t off = payload_to_block(payload_off), tag = block_at(section, off).tag, size_bytes = tag_size(tag)
    cdef int status = OK
    if section.verify != NULL:
        _debug_neighbours(section, off, size_bytes)
    _count_used(section, -1, size_bytes)
    if not _cache_put(section, off, size_bytes) and _become_hole(section, off, size_bytes) != OK:
        status = heap_recover(section, NO_PARTICIPANT)
        if status == OK and block_at(section, off).tag == tag:       # the damage was found before it was freed
            _count_used(section, -1, size_bytes)
            status = _become_hole(section, off, size_bytes)
    if section.header.root_off == payload_off:
        store_release_u64(&section.header.root_off, 0)            # last: recovery unsets a root that is free
    if section.verify != NULL:
        _debug_fill(section, payload_off, size_bytes)
    return status


cdef int heap_free(section_t* section, uint64_t payload_off, uint64_t serial, int flags) noexcept nogil:
    """Free: 0, INVALID_BLOCK, ALREADY_FREED, CORRUPTED, PINNED, WOULD_BLOCK; on error nothing changes."""
    cdef int status = heap_enter(section, _how_to_wait(flags))
    if status != OK:
        return status
    status = CORRUPTED if section.header.broken else heap_check_users_block(section, payload_off, serial)
    if status == OK and tag_type(block_at(section, payload_to_block(payload_off)).tag) == TYPE_ARRAY:
        if array_is_pinned(section, payload_off, True, True):
            status = PINNED
    if status == OK:
        status = heap_release(section, payload_off)
    heap_leave(section)
    return status


cdef int heap_set_root(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Make a used block the root, or with offset 0 none."""
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    if payload_off != 0:
        status = heap_check_block(section, payload_off, serial)
    if status == OK:
        store_release_u64(&section.header.root_off, payload_off)
    heap_leave(section)
    return status


# -- reallocate -----------------------------------------------------------------------------------------

cdef void _begin_resize(section_t* section, uint64_t off, uint64_t new_tag, uint64_t new_serial, uint64_t request_bytes,
                        bint zero) noexcept nogil:
    """Say what is to be cleared once the tag is written, or what two words of the payload were if it is not."""
    cdef block_t* block = block_at(section, off)
    cdef uint64_t old_bytes = tag_size(block.tag), new_bytes = tag_size(new_tag)
    cdef uint64_t old_request = payload_bytes(old_bytes) - (block.serial >> SLACK_SHIFT), clear_off = 0, clear_end_off = 0
    if new_bytes < old_bytes:
        intent_begin(my_intent(section), INTENT_SHRINK, off, new_tag, new_serial, word_at(section, off + new_bytes)[0], block.serial,
                     word_at(section, off + new_bytes - BLOCK_REAR_BYTES)[0])
        return
    if zero and request_bytes > old_request:                     # old slack, old rear, and the hole's front tag
        clear_off = block_to_payload(off) + old_request
        clear_end_off = off + old_bytes + sizeof(uint64_t) if new_bytes > old_bytes else off + new_bytes - BLOCK_REAR_BYTES
    intent_begin(my_intent(section), INTENT_RESIZE, off, new_tag, new_serial, clear_end_off, block.serial, clear_off)


cdef int _resize_in_place(section_t* section, uint64_t off, uint64_t request_bytes, bint zero) noexcept nogil:
    """Grow into the hole behind, or shrink: NOT_FOUND when the block must move.  The gate is mine.

    The block's tag is the one store; the word with slack and serial, and what is to be cleared, follow under an intent.
    """
    cdef block_t* block = block_at(section, off)
    cdef uint64_t old_bytes = tag_size(block.tag), new_bytes = block_bytes_for(request_bytes), room = old_bytes
    cdef uint64_t rest, new_tag, new_serial, hole_bytes = 0
    cdef int status = OK
    if new_bytes > old_bytes:
        status = _hole_behind(section, off + old_bytes, &hole_bytes)
        if status != OK:
            return status
        room += hole_bytes
    if room < new_bytes:
        return NOT_FOUND
    if new_bytes > old_bytes:
        status = index_remove(section, off + old_bytes, room - old_bytes)
        if status != OK:
            return status
    rest = room - new_bytes
    if rest < BLOCK_MIN_BYTES:
        new_bytes += rest
        rest = 0
    new_tag = tag_make(new_bytes, STATE_USED, tag_type(block.tag))
    new_serial = _serial_word(block.serial & SERIAL_MASK, new_bytes, request_bytes)
    _begin_resize(section, off, new_tag, new_serial, request_bytes, zero)
    if rest:
        _write_hole(section, off + new_bytes, rest)
    if new_bytes != old_bytes:
        if zero and new_bytes > old_bytes:                       # but not the hole's front tag: the chain needs it still
            memset(section.base + off + old_bytes + sizeof(uint64_t), 0, new_bytes - old_bytes - sizeof(uint64_t))
        _write_rear(section, off, new_bytes)
        store_release_u64(&block.tag, new_tag)                                                      # commit
    resize_finish(section, my_intent(section))
    intent_end(my_intent(section))
    section.header.used_bytes += new_bytes - old_bytes
    return _become_hole(section, off + new_bytes, rest) if rest else OK


cdef int _extend_top(section_t* section, uint64_t off, uint64_t request_bytes) noexcept nogil:
    """The block is the last one: put a hole behind it that it can grow into.  The gate is mine."""
    cdef header_t* header = section.header
    cdef uint64_t old_bytes = tag_size(block_at(section, off).tag), more, new_top
    cdef int status = OK
    if off + old_bytes != header.top or block_bytes_for(request_bytes) <= old_bytes:
        return OK
    more = block_bytes_for(request_bytes) - old_bytes
    if more < BLOCK_MIN_BYTES:
        more = BLOCK_MIN_BYTES
    if more > section.size_bytes - header.top:
        return OK
    new_top = header.top + more
    if new_top > _reserved(section):
        status = _reserve(section, new_top)
        if status != OK:
            return OK                    # moving may still find room
    if new_top > header.high_water:
        store_release_u64(&header.high_water, new_top)
    _write_hole(section, header.top, more)
    store_release_u64(&header.top, new_top)                                                          # commit
    return index_insert(section, new_top - more, more)


cdef int _finish_move(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t new_payload_off) noexcept nogil:
    """Swap the old block for the new one: the store that decides makes the old one a hole."""
    cdef block_t* old = block_at(section, payload_to_block(payload_off))
    cdef uint64_t type_id, size_bytes, hole_tag
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    status = heap_check_block(section, payload_off, serial)      # somebody may have freed it meanwhile
    if status == OK:
        type_id = tag_type(old.tag)
        size_bytes = tag_size(old.tag)
        hole_tag = tag_make(size_bytes, STATE_HOLE, 0)
        intent_begin(my_intent(section), INTENT_MOVE | type_id << INTENT_FIRST_TYPE_SHIFT,
                     payload_to_block(payload_off), hole_tag, new_payload_off, 0, 0, 0)
        store_release_u64(&old.tag, hole_tag)                                                       # commit
        heap_commit(section, new_payload_off, <uint32_t>type_id)
        if section.header.root_off == payload_off:
            store_release_u64(&section.header.root_off, new_payload_off)
        intent_end(my_intent(section))
        _count_used(section, -1, size_bytes)
        if _become_hole(section, payload_to_block(payload_off), size_bytes) != OK:
            heap_recover(section, NO_PARTICIPANT)
    heap_leave(section)
    return status


cdef int _reallocate_here(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, bint zero,
                          uint64_t* old_request) noexcept nogil:
    """The part of reallocate under the gate: NOT_FOUND when the block must move."""
    cdef uint64_t off = payload_to_block(payload_off)
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    status = CORRUPTED if section.header.broken else heap_check_block(section, payload_off, serial)
    if status == OK and tag_type(block_at(section, off).tag) != TYPE_PLAIN:
        status = INVALID_BLOCK           # arrays and objects know their own size
    if status == OK and damaged(not slack_fits(block_at(section, off).serial, block_room(section, payload_off))):
        heap_leave(section)
        return CORRUPTED                 # recovery could not mend that
    if status == OK:
        old_request[0] = block_room(section, payload_off) - (block_at(section, off).serial >> SLACK_SHIFT)
        status = _extend_top(section, off, request_bytes)
    if status == OK:
        status = _resize_in_place(section, off, request_bytes, zero)
    if status == CORRUPTED and heap_recover(section, NO_PARTICIPANT) == OK:
        status = NOT_FOUND
    heap_leave(section)
    return status


cdef int heap_reallocate(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, int flags,
                         uint64_t* new_payload_off) noexcept nogil:
    """Change a block's size, in place if there is room; on error the block is as it was."""
    cdef uint64_t old_request = 0, kept_bytes
    cdef int status
    if request_bytes > section.size_bytes:
        return NO_MEMORY
    status = _reallocate_here(section, payload_off, serial, request_bytes, flags & HEAP_ZERO, &old_request)
    new_payload_off[0] = payload_off
    if status != NOT_FOUND:
        return status
    status = heap_allocate(section, request_bytes, 16, 0, HEAP_PENDING, new_payload_off)
    if status != OK:
        return status
    kept_bytes = old_request if old_request < request_bytes else request_bytes
    memcpy(section.base + new_payload_off[0], section.base + payload_off, kept_bytes)
    if flags & HEAP_ZERO:
        memset(section.base + new_payload_off[0] + kept_bytes, 0, request_bytes - kept_bytes)
    status = _finish_move(section, payload_off, serial, new_payload_off[0])
    if status != OK:
        heap_abandon(section, new_payload_off[0])
    return status


# -- trim -----------------------------------------------------------------------------------------------

cdef int heap_trim(section_t* section) noexcept nogil:
    """Give the backing above `top` back to the file system.  The file keeps its length: views stay valid."""
    cdef header_t* header = section.header
    cdef uint64_t keep_off
    cdef int status, fd = section_descriptor(section)
    if fd < 0:
        return EBADF
    status = heap_enter(section, True)
    if status != OK:
        return status
    status = CORRUPTED if header.broken else heap_flush_cache(section)
    if status == OK and damaged(not heap_top_is_right(section)):
        status = CORRUPTED               # what lies above it may be in use
    if status == OK:
        keep_off = round_up(header.top, PAGE_BYTES)
        if keep_off < header.reserved:
            store_release_u64(&header.reserved, keep_off)        # first: less than there is does no harm
            status = file_give_back(fd, keep_off, section.size_bytes)
            if status == OK and header.high_water > keep_off:
                store_release_u64(&header.high_water, keep_off)
    heap_leave(section)
    return status
