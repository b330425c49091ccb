# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t
from shmem._base.layout cimport intent_t
from shmem._base.section cimport section_t

cdef enum:
    NO_PARTICIPANT = -1
    ALL_PARTICIPANTS = -2

# Make the heap whole again; the heap gate is mine.  `former`: an entry index whose former owner's leavings are
# to be cleared although the entry has a new owner now, or NO_PARTICIPANT, or ALL_PARTICIPANTS: no participant but me lives, and
# I have made nothing yet, or nothing any more.
# 0, or CORRUPTED and `broken` set.
cdef int heap_recover(section_t* section, int64_t former) noexcept nogil
cdef void resize_finish(section_t* section, intent_t* intent) noexcept nogil
cdef bint dead_left_something(section_t* section) noexcept nogil
cdef uint64_t chain_first_fault(section_t* section) noexcept nogil
cdef bint chain_has_block(section_t* section, uint64_t block_off) noexcept nogil
cdef bint tag_is_plausible(uint64_t block_off, uint64_t tag, uint64_t top) noexcept nogil
cdef uint64_t* array_pins_found(section_t* section, uint64_t payload_off) noexcept nogil
cdef bint array_is_forsaken(section_t* section, uint64_t payload_off) noexcept nogil
cdef bint array_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil
