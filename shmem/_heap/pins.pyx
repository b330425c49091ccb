# cython: language_level=3
"""Pins: a bit for each participant that has views of an array, or that uses a queue.

An array has one pin bit for each possible participant, after its shape and strides; a queue has them after its header.  A bit is set and
cleared under the heap gate by its participant.  The bits of dead participants do not count, and recovery clears them.

A pinned array is not freed by other participants.  A temporary array, or one whose last name was removed, is freed with its last pin.

A queue may be freed at any time, and every use of it fails from then on.  Its participants may be anywhere inside it at that moment: before
a gate, in the middle of a copy, or stopped.  So the memory of a pinned queue is given to nothing else yet::

    USED      freed without a pin     -> HOLE or CACHED, as any block
    USED      freed with pins         -> DOOMED, by one store: for everything but pins and recovery it is a free block
    DOOMED    the last pin is cleared -> HOLE or CACHED, by the participant that clears it
    DOOMED    the last one is dead    -> HOLE, by recovery: `participant.pins` shows that it left something
"""

from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport load_acquire_u32, store_release_u64
from shmem._base.bounds cimport block_room, damaged, heap_top, is_sealed, size_fits
from shmem._base.layout cimport (
    ARRAY_TEMPORARY, ARRAY_UNNAMED, SERIAL_MASK, STATE_DOOMED, TAG_STATE_MASK, TYPE_ARRAY, TYPE_QUEUE, array_t, block_t, payload_to_block,
    queue_pins, queue_t, tag_size, tag_state, tag_type)
from shmem._base.participants cimport ATTACHED_NEW, participant_entry_is_alive
from shmem._base.section cimport block_at, section_t

cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long value)


cdef uint64_t* array_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the pin bits of an array; NULL if its header places them outside of its block."""
    cdef array_t* array = <array_t*>(section.base + payload_off)
    cdef uint64_t pins_off = sizeof(array_t) + 16 * <uint64_t>array.n_dims
    if damaged(array.n_pin_words != pin_words(section)
               or pins_off + 8 * <uint64_t>pin_words(section) > block_room(section, payload_off)):
        return NULL
    return <uint64_t*>(section.base + payload_off + pins_off)


cdef uint64_t* _queue_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef queue_t* queue = <queue_t*>(section.base + payload_off)
    if damaged(block_room(section, payload_off) < sizeof(queue_t) + 8 * <uint64_t>pin_words(section)
               or queue.n_pin_words != pin_words(section)):
        return NULL
    return queue_pins(queue)


cdef uint64_t* block_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the pin bits of an array or queue; NULL for any other block, or if its header places them outside of its block."""
    cdef uint64_t type_id = tag_type(block_at(section, payload_to_block(payload_off)).tag)
    if type_id == TYPE_ARRAY:
        return array_checked_pins(section, payload_off)
    return _queue_checked_pins(section, payload_off) if type_id == TYPE_QUEUE else NULL


cdef bint block_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil:
    """Return whether a participant pins the array or queue.

    With `by_others` this process's own pin does not count; with `ask` only pins of live participants do.
    The pins in an entry that was just taken (ATTACHED_NEW) are those of its former owner, which is dead.
    """
    cdef uint64_t* pins = block_checked_pins(section, payload_off)
    cdef uint64_t bits
    cdef uint32_t i, index
    if pins == NULL:
        return False
    for i in range(pin_words(section)):
        bits = pins[i]
        while bits != 0:
            index = 64 * i + __builtin_ctzll(bits)
            bits &= bits - 1
            if by_others and index + 1 == section.private.index_plus_1:
                continue
            if not ask or (load_acquire_u32(&section.participants[index].attached) != ATTACHED_NEW
                           and participant_entry_is_alive(section, index)):
                return True
    return False


# -- queues -----------------------------------------------------------------------------------------------

cdef bint block_doom_if_pinned(section_t* section, uint64_t payload_off) noexcept nogil:
    """Make a used queue that a live participant pins DOOMED, and return True; return False for any other block, which may be freed."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    if tag_type(block.tag) != TYPE_QUEUE or not block_is_pinned(section, payload_off, False, True):
        return False
    store_release_u64(&block.tag, block.tag & ~TAG_STATE_MASK | STATE_DOOMED)                      # commit: freed
    return True


cdef bint block_is_doomed(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Return whether the DOOMED block with this serial is at this offset, where the block with this serial was."""
    cdef uint64_t off = payload_to_block(payload_off)
    cdef block_t* block = block_at(section, off)
    return (off < heap_top(section) and tag_state(block.tag) == STATE_DOOMED and (block.serial ^ serial) & SERIAL_MASK == 0
            and size_fits(off, tag_size(block.tag), heap_top(section)) and is_sealed(section, off, tag_size(block.tag)))


# -- arrays -----------------------------------------------------------------------------------------------

cdef bint array_is_unreachable(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return whether an array without pins must be freed: its flags require it, and neither a name nor the root leads to it.

    The flags are only an index of the names: a process may have died after it named an array again and before it cleared them.
    """
    cdef array_t* array = <array_t*>(section.base + payload_off)
    if array.flags & (ARRAY_TEMPORARY | ARRAY_UNNAMED) == 0 or section.header.root_off == payload_off:
        return False
    if array.n_names != 0:
        array.flags &= ~(ARRAY_TEMPORARY | ARRAY_UNNAMED)
        return False
    return True
