# cython: language_level=3
from libc.stdint cimport int64_t
from shmem._base.layout cimport intent_t
from shmem._base.section cimport section_t

cdef enum:
    NO_PARTICIPANT = -1
    ALL_PARTICIPANTS = -2

# Make the heap whole again; the caller holds the heap gate.  `former` says which participants are dead beside those whose liveness byte is
# free: an entry index, for the former owner of an entry that has a new owner now; NO_PARTICIPANT; or ALL_PARTICIPANTS, when no participant
# lives but the caller, which has allocated nothing yet, or has nothing left.  Return 0, or CORRUPTED with `broken` set.
cdef int heap_recover(section_t* section, int64_t former) noexcept nogil
# Finish an in-place resize, or undo its preparations if the deciding store was not made.
cdef void resize_finish(section_t* section, intent_t* intent) noexcept nogil
# Whether a dead participant left something in the heap.
cdef bint dead_left_something(section_t* section) noexcept nogil
