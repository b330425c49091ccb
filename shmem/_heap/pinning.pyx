# cython: language_level=3
"""Pinning and unpinning a block: the operations on what `pins.pyx` describes.

A record is allocated under the gate from what is at hand.  If that takes more, as space in the file, it is allocated as any other block and
brought along.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32
from shmem._base.accessors cimport block_to_payload, payload_to_block, tag_type, type_is_internal
from shmem._base.bounds cimport block_is_stale, used_tag
from shmem._base.layout cimport BLOCK_MIN_BYTES, TYPE_ARRAY, TYPE_PINS, TYPE_QUEUE, block_t, pin_record_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, INVALID_BLOCK, NOT_FOUND, OK, WOULD_BLOCK
from shmem._heap.backing cimport is_out_of_space
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.heap cimport (
    DO_NOT_WAIT, HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_allocate_at_hand, heap_check_block, heap_commit,
    heap_enter, heap_leave, heap_mend_pins, heap_release, heap_release_with_pins, heap_wait_t)
from shmem._heap.pins cimport (
    block_copy_pins, block_has_own_pins, block_is_doomed, block_is_pinned, block_is_unreachable, pin_record_bytes, pins_are_none,
    pins_clear_mine, pins_find, pins_put_in, pins_set_mine, pins_set_slot, pins_take_out)
from shmem._heap.recovery cimport NO_PARTICIPANT, heap_recover


cdef inline bint _type_has_own_pins(uint64_t tag) noexcept nogil:
    return tag_type(tag) == TYPE_ARRAY or tag_type(tag) == TYPE_QUEUE


cdef int _check(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Check that the block is there.  If the end of one that is not an array or queue was overwritten, it can still be viewed."""
    cdef int status = heap_check_block(section, payload_off, serial)
    cdef uint64_t tag = used_tag(section, payload_off) if status == OK or status == CORRUPTED else 0
    if tag == 0:
        return status
    if type_is_internal(tag_type(tag)):
        return INVALID_BLOCK
    if not _type_has_own_pins(tag) and not block_is_stale(block_at(section, payload_to_block(payload_off)), serial):
        return OK
    return status


cdef bint _is_there(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Return whether the block is there, not an array, although the heap does not lead to it: its end, or `top`, was overwritten."""
    cdef block_t* block
    if payload_off & 15 or payload_off < block_to_payload(section.heap_start) or payload_off > section.size_bytes - BLOCK_MIN_BYTES:
        return False
    block = block_at(section, payload_to_block(payload_off))
    return not block_is_stale(block, serial) and not _type_has_own_pins(block.tag) and not type_is_internal(tag_type(block.tag))


cdef int _put_record(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t record_off) noexcept nogil:
    """Make a PENDING block the record of a block that has none, with this participant's pin."""
    cdef pin_record_t* record = <pin_record_t*>(section.base + record_off)
    cdef uint32_t me = section.private.index_plus_1 - 1
    cdef uint64_t* link = NULL
    if pins_find(section, payload_off, &link) != NOT_FOUND:
        return CORRUPTED
    memset(record, 0, pin_record_bytes(section))
    record.target_off = payload_off
    record.serial = serial
    (<uint64_t*>(record + 1))[me >> 6] |= <uint64_t>1 << (me & 63)
    block_set_gated(block_at(section, payload_to_block(payload_off)))
    fetch_add_seq_cst_u32(&section.participants[me].pins, 1)
    heap_commit(section, record_off, TYPE_PINS)                                                     # commit
    pins_put_in(section, link, record_off)
    return OK


cdef int _pin_once(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t* record_off, int without_memory,
                   heap_wait_t wait) noexcept nogil:
    """Make one attempt: NOT_FOUND if the caller must bring a record, which it does in `record_off`; 0 afterwards if it was used.

    A heap that is known to be damaged is not changed, except for the bits in arrays; no process frees anything in it.  Nor does any
    process free a block that the heap does not lead to.  Such blocks can be viewed, and are counted without a pin.
    """
    cdef bint is_pinnable = True
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    if section.header.broken == 0:
        status = heap_mend_pins(section, payload_off)
    if status == OK:
        status = _check(section, payload_off, serial)
    if status == OK:
        is_pinnable = section.header.broken == 0 or block_has_own_pins(section, payload_off)
    elif (status == INVALID_BLOCK or status == CORRUPTED) and _is_there(section, payload_off, serial):
        status, is_pinnable = OK, False
    if status == OK and not is_pinnable:
        fetch_add_seq_cst_u32(&section.participants[section.private.index_plus_1 - 1].pins, 1)
    elif status == OK:
        status = pins_set_mine(section, payload_off)
        if status == NOT_FOUND and pins_set_slot(section, payload_off, without_memory == OK):
            status = OK
        elif status == NOT_FOUND and without_memory != OK:
            status = without_memory
        elif status == NOT_FOUND and (record_off[0] != 0 or heap_allocate_at_hand(section, pin_record_bytes(section), record_off) == OK):
            status = _put_record(section, payload_off, serial, record_off[0])
            if status == OK:
                record_off[0] = 0
    heap_leave(section)
    return status


cdef int block_pin(section_t* section, uint64_t payload_off, uint64_t serial, heap_wait_t wait) noexcept nogil:
    cdef uint64_t record_off = 0
    cdef int status
    if serial == 0:              # read where no block began: it would match any block, and two keys would share one pin
        return INVALID_BLOCK
    status = _pin_once(section, payload_off, serial, &record_off, OK, wait)
    if status == NOT_FOUND and wait == DO_NOT_WAIT:
        return WOULD_BLOCK
    if status == NOT_FOUND:
        status = heap_allocate(section, pin_record_bytes(section), 16, 0, HEAP_PENDING | (HEAP_STOP if wait == WAIT_A_SLICE else 0),
                               &record_off)
        if status == OK or is_out_of_space(status):
            status = _pin_once(section, payload_off, serial, &record_off, status, wait)
    if record_off != 0:          # not used: another participant made a record meanwhile, or the block is gone
        heap_abandon(section, record_off)
    return status


cdef int block_look_at_pins(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t* bits, heap_wait_t wait) noexcept nogil:
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    if section.header.broken == 0:
        status = heap_mend_pins(section, payload_off)
    if status == OK:
        status = _check(section, payload_off, serial)
    if status == OK:
        block_copy_pins(section, payload_off, bits)
    heap_leave(section)
    return status


cdef int _drop_pin(section_t* section, uint64_t payload_off, bint is_whole) noexcept nogil:
    """Clear this participant's pin.  A block that ends with it ends before, so that a kill leaves its mark, or nothing.

    If heap or block are damaged, they are not changed: recovery frees the block by the mark in its record.
    """
    cdef bint ends = block_is_unreachable(section, payload_off) and not block_is_pinned(section, payload_off, True, True)
    cdef uint64_t* link = NULL
    cdef uint64_t record_off = 0
    if ends and is_whole:
        return heap_release_with_pins(section, payload_off)
    pins_clear_mine(section, payload_off)
    if (ends or section.header.broken or block_has_own_pins(section, payload_off) or pins_find(section, payload_off, &link) != OK
            or not pins_are_none(section, <pin_record_t*>(section.base + link[0]))):
        return OK
    if pins_take_out(section, payload_off, &record_off) != OK:
        return heap_recover(section, NO_PARTICIPANT)         # which frees records without a pin
    return heap_release(section, record_off)


cdef int block_unpin(section_t* section, uint64_t payload_off, uint64_t serial, heap_wait_t wait) noexcept nogil:
    cdef uint32_t me
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    me = section.private.index_plus_1 - 1
    if section.header.broken == 0:
        heap_mend_pins(section, payload_off)
    # if the block is missing, it was freed explicitly despite the view
    if block_is_doomed(section, payload_off, serial):
        pins_clear_mine(section, payload_off)
        if section.header.broken == 0 and not block_is_pinned(section, payload_off, False, True):
            status = heap_release(section, payload_off)
    elif _check(section, payload_off, serial) == OK:
        status = _drop_pin(section, payload_off, section.header.broken == 0 and heap_check_block(section, payload_off, serial) == OK)
    if section.participants[me].pins:
        fetch_sub_seq_cst_u32(&section.participants[me].pins, 1)
    heap_leave(section)
    return status
