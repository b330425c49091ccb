# cython: language_level=3
"""What was found damaged, as an exception: `_base/damage.pyx`."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

# HeapCorruption that names the section, the offset and what was found there
cdef int raise_damaged(section_t* section, uint64_t payload_off, str found) except -1

# Payload bytes of the block there, and how many of them were asked for; HeapCorruption when its tags say what cannot be
cdef uint64_t room_at(section_t* section, uint64_t payload_off) except 0
cdef uint64_t asked_at(section_t* section, uint64_t payload_off) except? 0xffffffffffffffff
