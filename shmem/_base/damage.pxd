# cython: language_level=3
"""Exceptions for damage found in a section: see `_base/damage.pyx`."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

# Raise HeapCorruption that names the section, the offset and what was found there.
cdef int raise_damaged(section_t* section, uint64_t payload_off, str found) except -1

# Return the payload bytes of the block at an offset, and how many of them were requested; raise HeapCorruption if its tags are impossible.
cdef uint64_t room_at(section_t* section, uint64_t payload_off) except 0
cdef uint64_t asked_at(section_t* section, uint64_t payload_off) except? 0xffffffffffffffff
