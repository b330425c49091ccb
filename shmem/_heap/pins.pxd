# cython: language_level=3
"""Pins: which participants have views of a block.  The states and their order are at the head of `pins.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport pin_record_t
from shmem._base.section cimport section_t


cdef enum:
    MOST_RECORDS_ON_A_PATH = 65      # in the index: one for each bit of an offset, and the root


cdef inline uint32_t pin_words(section_t* section) noexcept nogil:
    """Return how many 64-bit words hold one bit for each possible participant."""
    return (section.max_participants + 63) >> 6


cdef inline uint64_t pin_record_bytes(section_t* section) noexcept nogil:
    """Return the payload bytes of a record of pins."""
    return sizeof(pin_record_t) + 8 * <uint64_t>pin_words(section)


# All calls are made under the heap gate; those that take a block, for a used one.  Unless they return a status, the index must be sound on
# the way to the block's record (`pins_are_sound`).

# The pin bits of an array; NULL if its header places them outside of its block.
cdef uint64_t* array_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil
# The pin bits of an array or queue; NULL for any other block, or if its header places them outside of its block.
cdef uint64_t* block_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil
# Whether the block is an array or a queue.
cdef bint block_has_own_pins(section_t* section, uint64_t payload_off) noexcept nogil
# Make a used queue that a live participant pins DOOMED, and return True.
cdef bint block_doom_if_pinned(section_t* section, uint64_t payload_off) noexcept nogil
# Whether the DOOMED block with this serial is at this offset.
cdef bint block_is_doomed(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
# Whether a participant pins the block.  With `by_others` this process's own pin does not count; with `ask` only those of live participants.
# A participant that changes the shape of an array counts, whatever `by_others` is: it may write to the array.
cdef bint block_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil
# The same, but only views count: whether a live participant, this one included, has views of the block, or is about to receive one.
cdef bint block_is_viewed(section_t* section, uint64_t payload_off) noexcept nogil
# Copy the bits of the live participants that have views of the block, in as many words as an array has.
cdef void block_copy_pins(section_t* section, uint64_t payload_off, uint64_t* bits) noexcept nogil
# Whether a block without pins must be freed: its flags require it, and neither a name, nor the root, nor a claim leads to it.
cdef bint block_is_unreachable(section_t* section, uint64_t payload_off) noexcept nogil
# If a live participant pins the block, or a message claims it, and no name leads to it any more, mark it to end with the last of them, and
# return True.
cdef bint block_waits_for_pins(section_t* section, uint64_t payload_off) noexcept nogil
# A name leads to the block: it stays without pins.
cdef void block_was_named(section_t* section, uint64_t payload_off) noexcept nogil

# Whether a block with this tag may have pins that its own header does not contain.
cdef bint tag_may_have_pins(section_t* section, uint64_t tag) noexcept nogil
# Whether the index of records is sound on the way to the record of a block; else recovery rebuilds it.
cdef bint pins_are_sound(section_t* section, uint64_t payload_off) noexcept nogil
# The record in a used block; NULL if no record is there.
cdef pin_record_t* pin_record(section_t* section, uint64_t record_off) noexcept nogil
# Whether a used block begins here that is neither an array nor internal.
cdef bint pin_can_have_target(section_t* section, uint64_t payload_off) noexcept nogil
# Whether it also has this serial.
cdef bint pin_target_is_right(section_t* section, uint64_t target_off, uint64_t serial) noexcept nogil
# Find the word that leads to the record of a block, or would (NOT_FOUND): OK, NOT_FOUND, CORRUPTED.
cdef int pins_find(section_t* section, uint64_t target_off, uint64_t** link) noexcept nogil
# Whether the record in this block is in the index.
cdef bint pins_have_record(section_t* section, uint64_t record_off) noexcept nogil
# Put a record into the index, at the word that `pins_find` found.
cdef void pins_put_in(section_t* section, uint64_t* link, uint64_t record_off) noexcept nogil
# Take the record of a block out of the index; `record_off` is 0 if there is none: OK or CORRUPTED.
cdef int pins_take_out(section_t* section, uint64_t target_off, uint64_t* record_off) noexcept nogil
# Whether the record has no pin.
cdef bint pins_are_none(section_t* section, pin_record_t* record) noexcept nogil
# Set this participant's pin in a place for pins that exists: OK, NOT_FOUND if the block has none, CORRUPTED.
cdef int pins_set_mine(section_t* section, uint64_t payload_off) noexcept nogil
# Set this participant's pin in a free slot of the header, with `only_first` unless it uses one already; return whether that was possible.
cdef bint pins_set_slot(section_t* section, uint64_t payload_off, bint only_first) noexcept nogil
cdef void pins_clear_slot(section_t* section, uint32_t i) noexcept nogil
# Clear this participant's pin, wherever it is.
cdef void pins_clear_mine(section_t* section, uint64_t payload_off) noexcept nogil
# Clear the slots of a block that was freed.
cdef void pins_forget_slots(section_t* section, uint64_t payload_off) noexcept nogil
# Rebuild the index from the chain of front tags, which is whole.
cdef void pins_index_anew(section_t* section) noexcept nogil
