# cython: language_level=3
"""Arrays that grow: `_heap/array_growth.pyx`."""

from libc.stdint cimport uint64_t
from shmem._base.layout cimport MAX_DIMS, PAGE_BYTES, UNLIMITED
from shmem._base.section cimport section_t
from shmem._heap.array_gate cimport named_array_t

ctypedef struct growth_t:
    named_array_t array
    const char* rows                 # to append; NULL: the array gets `shape`
    uint64_t n_bytes                 # of these rows
    uint64_t n_rows                  # their number
    uint64_t shape[MAX_DIMS]         # the new one
    uint64_t item_bytes
    uint64_t former[MAX_DIMS]        # result: the shape so far, whose rows fit the array's room
    bint may_move                    # although there are views, which keep the old array

# Append rows, or change the shape: OK, INTERRUPTED with nothing done, NOT_FOUND, CHANGED, NOT_GROWABLE, SEALED, BEYOND_MAXIMUM, PINNED or
# SHARED if the array would have to move, or why there is no memory for that.  On error nothing changes.
cdef int array_grow(section_t* section, growth_t* growth) noexcept nogil


cdef inline uint64_t rows_with_room(uint64_t n_rows, uint64_t max_rows, uint64_t row_bytes) noexcept nogil:
    """Return for how many rows an array of `n_rows` gets room: for all it can ever have, or half as many more, and at least for a page."""
    cdef uint64_t least = PAGE_BYTES // row_bytes, wished = n_rows + n_rows // 2
    if max_rows != UNLIMITED:
        return max_rows if max_rows != 0 else 1
    if wished < least:
        wished = least
    return wished if wished != 0 else 1
