# cython: language_level=3
from libc.stdint cimport int64_t
from shmem._base.layout cimport intent_t
from shmem._base.section cimport section_t

cdef enum:
    NO_PARTICIPANT = -1
    ALL_PARTICIPANTS = -2

# Repair the heap; the caller owns the heap gate.  `former` names the dead participants other than those whose liveness byte is free.
# It is an entry index, for the former owner of an entry that has a new owner; NO_PARTICIPANT; or ALL_PARTICIPANTS, if the caller is the
# only live participant and has no blocks of its own (it has not allocated yet, or has finished).  Return 0, or CORRUPTED with `broken` set.
cdef int heap_recover(section_t* section, int64_t former) noexcept nogil
# Finish an in-place resize, or undo its preparation if the deciding store was not made.
cdef void resize_finish(section_t* section, intent_t* intent) noexcept nogil
# Return whether a dead participant left pending blocks, pins or an intent in the heap.
cdef bint dead_left_something(section_t* section) noexcept nogil
