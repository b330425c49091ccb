# cython: language_level=3
"""Pins: a bit for each participant that has views of an array.

An array has one pin bit for each possible participant, after its shape and strides.  A pinned array is not freed by other participants.
A temporary array, or one whose last name was removed, is freed with its last pin.  A bit is set and cleared under the heap gate by its
participant.  The bits of dead participants do not count, and recovery clears them.
"""

from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport load_acquire_u32
from shmem._base.bounds cimport block_room, damaged
from shmem._base.layout cimport ARRAY_TEMPORARY, ARRAY_UNNAMED, array_t
from shmem._base.participants cimport ATTACHED_NEW, participant_entry_is_alive
from shmem._base.section cimport section_t

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


cdef bint array_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil:
    """Return whether a participant pins the array.

    With `by_others` this process's own pin does not count; with `ask` only pins of live participants do.
    The pins in an entry that was just taken (ATTACHED_NEW) are those of its former owner, which is dead.
    """
    cdef uint64_t* pins = array_checked_pins(section, payload_off)
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
