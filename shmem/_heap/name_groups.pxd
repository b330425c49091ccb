# cython: language_level=3
"""Groups of names: making one, and emptying those that were deleted: `_heap/name_groups.pyx`."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

# Make an empty group with this name: OK, NAME_EXISTS, NOT_FOUND or NOT_A_GROUP for a group that it is to be in, NO_MEMORY, ...
cdef int group_make(section_t* section, uint64_t* anchor, const name_t* name, heap_wait_t wait) noexcept nogil
# Go on emptying deleted groups, in at most so many holds of the gate: OK if none is left, INTERRUPTED if there is more to do.
# The bytes that became free are added to `n_bytes`.
cdef int groups_empty(section_t* section, heap_wait_t wait, uint64_t n_holds, uint64_t* n_bytes) noexcept nogil
# A group has lost its name: put it into the list of those that are to be emptied.  The caller owns the gate.
cdef void group_doom(section_t* section, uint64_t payload_off) noexcept nogil
