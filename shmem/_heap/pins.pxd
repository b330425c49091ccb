# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t


cdef inline uint32_t pin_words(section_t* section) noexcept nogil:
    """Return how many 64-bit words hold one bit for each possible participant."""
    return (section.max_participants + 63) >> 6


cdef uint64_t* block_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil
cdef bint block_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil
cdef bint block_doom_if_pinned(section_t* section, uint64_t payload_off) noexcept nogil
cdef bint block_is_doomed(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
cdef bint array_is_unreachable(section_t* section, uint64_t payload_off) noexcept nogil
