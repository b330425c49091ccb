# cython: language_level=3
"""Reallocation: a block is resized in place, or moved to a new block.

In place, under the gate: the block grows into the hole after it, or its end becomes a hole.  The deciding store is that of the block's
tag.  The word with slack and serial, and the clearing of new bytes, follow under an intent (RESIZE, SHRINK), so that recovery finishes or
undoes them.  For the last block, a hole is first made above `top`, into which it grows.

A block of which another participant has a view is not resized, since the view would end in freed memory.  This process's own views are
its own affair, as when it frees the block.

Moved: a PENDING block is allocated and filled without the gate.  Under the gate one store then turns the old block into a hole, with which
the new block becomes USED (intent MOVE).  If the old block was the root, the new one becomes the root.  Its attributes move with it:
a copy for the new block is shown under the same gate, right before that store (`attributes.pyx`).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport (
    block_bytes_for, block_to_payload, payload_bytes, payload_to_block, serial_names, serial_slack, tag_make, tag_make_free, tag_size,
    tag_type)
from shmem._base.bounds cimport block_room, damaged, slack_fits
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, INTENT_FIRST_TYPE_SHIFT, INTENT_MOVE, INTENT_RESIZE, INTENT_SHRINK, NAMES_SHIFT, SERIAL_MASK,
    STATE_HOLE, STATE_USED, TAG_GATED, TAG_SMALL, TYPE_PLAIN, block_t, header_t)
from shmem._base.section cimport block_at, section_t, word_at
from shmem._base.status cimport CHANGED, CORRUPTED, INTERRUPTED, INVALID_BLOCK, NEEDS_BACKING, NOT_FOUND, NO_MEMORY, OK, PINNED
from shmem._heap.attributes cimport (
    attributes_carry, attributes_forget, attributes_show_carried, carried_t, tag_may_have_attributes)
from shmem._heap.backing cimport backing_end, backing_enter, backing_extend, backing_leave
from shmem._heap.block_tags cimport block_set_gated, block_write_hole, block_write_rear, count_used, hole_behind, serial_word
from shmem._heap.claims cimport claims_of
from shmem._heap.free_index cimport index_insert, index_remove
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, HEAP_ZERO, WAIT_A_SLICE, WAIT_FOREVER, block_become_hole, heap_abandon, heap_allocate, heap_check_block,
    heap_commit, heap_enter_to_change, heap_forget_pins, heap_give_back, heap_leave, heap_mend_pins, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_end, my_intent
from shmem._heap.pins cimport block_is_pinned, tag_may_have_pins
from shmem._heap.recovery cimport NO_PARTICIPANT, heap_recover, resize_finish


cdef void _begin_resize(section_t* section, uint64_t off, uint64_t new_tag, uint64_t new_serial, uint64_t request_bytes,
                        bint zero) noexcept nogil:
    """Record the bytes to clear after the tag is written or, for a block that shrinks, the two payload words to restore if it is not."""
    cdef block_t* block = block_at(section, off)
    cdef uint64_t old_bytes = tag_size(block.tag), new_bytes = tag_size(new_tag)
    cdef uint64_t old_request = payload_bytes(old_bytes) - serial_slack(block.serial), clear_off = 0, clear_end_off = 0
    if new_bytes < old_bytes:
        intent_begin(my_intent(section), INTENT_SHRINK, off, new_tag, new_serial, word_at(section, off + new_bytes)[0], block.serial,
                     word_at(section, off + new_bytes - BLOCK_REAR_BYTES)[0])
        return
    if zero and request_bytes > old_request:                     # old slack, old rear, and the hole's front tag
        clear_off = block_to_payload(off) + old_request
        clear_end_off = off + old_bytes + sizeof(uint64_t) if new_bytes > old_bytes else off + new_bytes - BLOCK_REAR_BYTES
    intent_begin(my_intent(section), INTENT_RESIZE, off, new_tag, new_serial, clear_end_off, block.serial, clear_off)


cdef int _resize_in_place(section_t* section, uint64_t off, uint64_t request_bytes, bint zero) noexcept nogil:
    """Grow into the hole after the block, or shrink it, under the gate: NOT_FOUND if the block must move.

    The deciding store is that of the block's tag; the word with slack and serial, and the clearing, follow under an intent.
    """
    cdef block_t* block = block_at(section, off)
    cdef uint64_t old_bytes = tag_size(block.tag), new_bytes = block_bytes_for(request_bytes), room = old_bytes
    cdef uint64_t rest, new_tag, new_serial, hole_bytes = 0
    cdef int status = OK
    if new_bytes > old_bytes:
        status = hole_behind(section, off + old_bytes, &hole_bytes)
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
    block_set_gated(block)
    new_tag = tag_make(new_bytes, STATE_USED, tag_type(block.tag), block.serial)
    if new_tag & TAG_SMALL:
        new_tag |= TAG_GATED
    new_serial = serial_word(block.serial & SERIAL_MASK, new_bytes, request_bytes) | serial_names(block.serial) << NAMES_SHIFT
    _begin_resize(section, off, new_tag, new_serial, request_bytes, zero)
    if rest:
        block_write_hole(section, off + new_bytes, rest)
    if new_bytes != old_bytes:
        if zero and new_bytes > old_bytes:                       # except the hole's front tag, which the chain still needs
            memset(section.base + off + old_bytes + sizeof(uint64_t), 0, new_bytes - old_bytes - sizeof(uint64_t))
        block_write_rear(section, off, new_bytes)
        store_release_u64(&block.tag, new_tag)                                                      # commit
    resize_finish(section, my_intent(section))
    intent_end(my_intent(section))
    section.header.used_bytes += new_bytes - old_bytes
    return block_become_hole(section, off + new_bytes, rest) if rest else OK


cdef int _extend_last_block(section_t* section, uint64_t off, uint64_t request_bytes, uint64_t* backing_end_off) noexcept nogil:
    """If the block is the last one, make a hole after it into which it can grow.  The caller owns the gate.

    NEEDS_BACKING: space up to `backing_end_off` must be reserved first.  With NULL the block is left as it is, and may have to move.
    """
    cdef header_t* header = section.header
    cdef uint64_t old_bytes = tag_size(block_at(section, off).tag), more, new_top
    if off + old_bytes != header.top or block_bytes_for(request_bytes) <= old_bytes:
        return OK
    more = block_bytes_for(request_bytes) - old_bytes
    if more < BLOCK_MIN_BYTES:
        more = BLOCK_MIN_BYTES
    if more > section.size_bytes - header.top:
        return OK
    new_top = header.top + more
    if new_top > backing_end(section):
        if backing_end_off == NULL:
            return OK                    # a move may still find room
        backing_end_off[0] = new_top
        return NEEDS_BACKING
    if new_top > header.high_water:
        store_release_u64(&header.high_water, new_top)
    block_write_hole(section, header.top, more)
    store_release_u64(&header.top, new_top)                                                          # commit
    return index_insert(section, new_top - more, more)


cdef int _check_unpinned(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Check that the block is there, that no other participant has a view of it, and no message a claim."""
    cdef int status = heap_mend_pins(section, payload_off)
    if status == OK:
        status = heap_check_block(section, payload_off, serial)
    if status == OK and block_is_pinned(section, payload_off, True, True):
        status = PINNED
    if status == OK and claims_of(section, payload_off) != 0:
        status = PINNED
    return status


cdef int _finish_move(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t new_payload_off, carried_t* carried,
                      heap_wait_t wait) noexcept nogil:
    """Replace the old block by the new one; the deciding store turns the old one into a hole.  CHANGED: its attributes did meanwhile."""
    cdef block_t* old = block_at(section, payload_to_block(payload_off))
    cdef uint64_t type_id, size_bytes, hole_tag, old_serial = 0
    cdef bint may_have_pins, may_have_attributes
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = _check_unpinned(section, payload_off, serial)       # it may have been freed meanwhile
    if status == OK:
        old_serial = old.serial
        carried.old_serial = old_serial & SERIAL_MASK
        status = attributes_show_carried(section, carried)
    if status == OK:
        may_have_pins, may_have_attributes = tag_may_have_pins(section, old.tag), tag_may_have_attributes(section, old.tag)
        type_id = tag_type(old.tag)
        size_bytes = tag_size(old.tag)
        hole_tag = tag_make_free(size_bytes, STATE_HOLE)
        intent_begin(my_intent(section), INTENT_MOVE | type_id << INTENT_FIRST_TYPE_SHIFT,
                     payload_to_block(payload_off), hole_tag, new_payload_off, 0, 0, 0)
        store_release_u64(&old.tag, hole_tag)                                                       # commit
        heap_commit(section, new_payload_off, <uint32_t>type_id)
        if section.header.root_off == payload_off:
            store_release_u64(&section.header.root_off, new_payload_off)
        if section.header.root_off == new_payload_off or may_have_attributes:
            block_set_gated(block_at(section, payload_to_block(new_payload_off)))
        intent_end(my_intent(section))
        count_used(section, -1, size_bytes)
        if block_become_hole(section, payload_to_block(payload_off), size_bytes) != OK:
            heap_recover(section, NO_PARTICIPANT)
        if may_have_pins:                # if these two fail the heap is broken; the block has moved nevertheless
            heap_forget_pins(section, payload_off)
        if may_have_attributes:
            attributes_forget(section, payload_off, old_serial)
    heap_leave(section)
    return status


cdef int _move(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t new_payload_off, heap_wait_t wait) noexcept nogil:
    """Replace the old block by the new one, which has its contents, and takes its attributes along."""
    cdef carried_t carried
    cdef int status = CHANGED
    carried.old_off, carried.new_off = payload_off, new_payload_off
    carried.old_serial = block_at(section, payload_to_block(payload_off)).serial & SERIAL_MASK
    carried.entry_off = carried.copied_serial = 0
    while status == CHANGED:
        status = attributes_carry(section, &carried, wait)
        if status == OK:
            status = _finish_move(section, payload_off, serial, new_payload_off, &carried, wait)
    if carried.entry_off != 0:
        heap_abandon(section, carried.entry_off)
    return status


cdef int _reallocate_here(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, bint zero,
                          heap_wait_t wait, uint64_t* old_request, uint64_t* backing_end_off) noexcept nogil:
    """Resize in place if possible, which takes the gate: NOT_FOUND if the block must move, NEEDS_BACKING as `_extend_last_block`."""
    cdef uint64_t off = payload_to_block(payload_off)
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = _check_unpinned(section, payload_off, serial)
    if status == OK and tag_type(block_at(section, off).tag) != TYPE_PLAIN:
        status = INVALID_BLOCK           # arrays and objects know their own size
    if status == OK and damaged(not slack_fits(block_at(section, off).serial, block_room(section, payload_off))):
        heap_leave(section)
        return CORRUPTED                 # which recovery cannot repair
    if status == OK:
        old_request[0] = block_room(section, payload_off) - serial_slack(block_at(section, off).serial)
        status = _extend_last_block(section, off, request_bytes, backing_end_off)
    if status == OK:
        status = _resize_in_place(section, off, request_bytes, zero)
    if status == CORRUPTED and heap_recover(section, NO_PARTICIPANT) == OK:
        status = NOT_FOUND
    heap_leave(section)
    return status


cdef int _reallocate_on_new_backing(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, bint zero,
                                    heap_wait_t wait, uint64_t* old_request, uint64_t backing_end_off, int* flags) noexcept nogil:
    """Resize the last block in place after reserving space, during which the reserve gate is held and not the heap gate.

    If the file system is full, the block may have to move, and HEAP_STOP is taken from `flags`: a caller that begins anew would reserve and
    return the same space without end.
    """
    cdef int status = backing_enter(section, wait == WAIT_A_SLICE)
    if status != OK:
        return status
    status = backing_extend(section, backing_end_off, wait == WAIT_A_SLICE)
    if status != INTERRUPTED:
        if status != OK:
            flags[0] &= ~HEAP_STOP
            heap_give_back(section, wait)
        status = _reallocate_here(section, payload_off, serial, request_bytes, zero, wait, old_request, NULL)
    backing_leave(section)
    return status


cdef int heap_reallocate(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, int flags,
                         uint64_t* new_payload_off) noexcept nogil:
    """Change the size of a plain block, in place if there is room: 0 or an error of `heap_check_block` or `heap_allocate`.

    On error the block is unchanged.  Moving a block takes the gate three times.  With HEAP_STOP each of them may return
    INTERRUPTED, and the copy is abandoned.
    """
    cdef heap_wait_t wait = WAIT_A_SLICE if flags & HEAP_STOP else WAIT_FOREVER
    cdef uint64_t old_request = 0, backing_end_off = 0, kept_bytes
    cdef int status
    if request_bytes > section.size_bytes:
        return NO_MEMORY
    status = _reallocate_here(section, payload_off, serial, request_bytes, flags & HEAP_ZERO, wait, &old_request, &backing_end_off)
    if status == NEEDS_BACKING:
        status = _reallocate_on_new_backing(section, payload_off, serial, request_bytes, flags & HEAP_ZERO, wait, &old_request,
                                            backing_end_off, &flags)
    new_payload_off[0] = payload_off
    if status != NOT_FOUND:
        return status
    status = heap_allocate(section, request_bytes, 16, 0, HEAP_PENDING | flags & HEAP_STOP, new_payload_off)
    if status != OK:
        return status
    kept_bytes = old_request if old_request < request_bytes else request_bytes
    memcpy(section.base + new_payload_off[0], section.base + payload_off, kept_bytes)
    if flags & HEAP_ZERO:
        memset(section.base + new_payload_off[0] + kept_bytes, 0, request_bytes - kept_bytes)
    status = _move(section, payload_off, serial, new_payload_off[0], wait)
    if status != OK:
        heap_abandon(section, new_payload_off[0])
    return status
