# cython: language_level=3
"""Counting the names of a table, and copying them out piece by piece: `_heap/name_listing.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

# An entry as `names_copy_some` writes it; name and data follow.
ctypedef struct copied_t:
    uint64_t order              # serial of the entry: the order in which names were created
    uint64_t value
    uint64_t serial
    uint32_t name_bytes
    uint32_t data_bytes

# How far a listing has come; all zero at its begin.
ctypedef struct listing_t:
    uint64_t table_off
    uint64_t table_serial
    uint64_t position           # the next slot
    bint is_over
    uint64_t n_bytes            # copied by the last call
    uint64_t needed_bytes       # if not 0, the next entry needs a buffer of this size

# Both take the gate, and the name of a group, `path_make_of_group`.  INTERRUPTED, which WAIT_A_SLICE allows: nothing was changed.
cdef int names_count(section_t* section, uint64_t* anchor, const name_t* group, uint64_t* n_names, heap_wait_t wait) noexcept nogil
cdef int names_copy_some(section_t* section, uint64_t* anchor, const name_t* group, listing_t* listing, char* buffer,
                         uint64_t buffer_bytes, heap_wait_t wait) noexcept nogil
cdef uint64_t copied_bytes(uint64_t name_bytes, uint64_t data_bytes) noexcept nogil
