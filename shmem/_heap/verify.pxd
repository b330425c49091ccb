# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

cdef enum Problem:
    FINE = 0
    BAD_TOP
    BAD_TAG
    BAD_REAR
    HOLES_TOUCH
    HOLE_AT_TOP
    BAD_INDEX
    BAD_CACHE
    BAD_COUNT
    BAD_SERIAL
    BAD_BOUNDS
    BAD_NAME
    BAD_ARRAY
    MARKED_BROKEN

ctypedef struct heap_facts_t:
    uint64_t n_used
    uint64_t used_bytes
    uint64_t n_pending
    uint64_t n_holes
    uint64_t hole_bytes
    uint64_t largest_hole
    uint64_t n_cached
    uint64_t cached_bytes
    uint64_t n_internal          # used by the library: tables, entries of names and types
    uint64_t bad_off
    uint64_t expected
    uint64_t found

# Clear up after the dead, then verify every invariant that `_heap/heap.pyx` states; takes the heap gate, INTERRUPTED after each slice.
cdef int heap_check(section_t* section, heap_facts_t* facts, Problem* problem) noexcept nogil
# The same for who has the gate, or a section for itself: what is there, nothing is cleared up.
cdef Problem heap_check_as_it_is(section_t* section, heap_facts_t* facts) noexcept nogil
# SHMEM_DEBUG: the heap gate, which is mine, is about to be given back.  Aborts if something does not hold that must hold then.
cdef void heap_verify(section_t* section) noexcept nogil
# Count without verifying more than is needed to walk; takes the heap gate, INTERRUPTED after each slice.
cdef int heap_count(section_t* section, heap_facts_t* facts) noexcept nogil
