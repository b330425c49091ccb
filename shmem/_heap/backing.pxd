# cython: language_level=3
"""Backing: the part of a section's file for which the file system has reserved space.  See `_heap/backing.pyx`."""

from libc.errno cimport EDQUOT, ENOSPC
from libc.stdint cimport uint64_t
from shmem._atomics cimport load_relaxed_u64
from shmem._base.bounds cimport damaged, heap_top
from shmem._base.section cimport section_t
from shmem._base.status cimport NO_MEMORY


cdef inline bint is_out_of_space(int status) noexcept nogil:
    return status == NO_MEMORY or status == ENOSPC or status == EDQUOT


cdef inline uint64_t backing_end(section_t* section) noexcept nogil:
    """Return the offset up to which there is backing: never below `top`, since reserving may write zeros, nor beyond the section's end."""
    cdef uint64_t reserved = load_relaxed_u64(&section.header.reserved), top = heap_top(section)
    return top if damaged(reserved > section.size_bytes or reserved < top) else reserved


cdef int backing_enter(section_t* section, bint stops) noexcept nogil
cdef void backing_leave(section_t* section) noexcept nogil
# for the owner of the reserve gate
cdef int backing_extend(section_t* section, uint64_t end_off, bint stops) noexcept nogil
cdef uint64_t backing_lower(section_t* section) noexcept nogil
cdef int backing_give_back(section_t* section, uint64_t keep_off) noexcept nogil
