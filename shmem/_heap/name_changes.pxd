# cython: language_level=3
"""Replacing the value of a name, and renaming: `_heap/name_changes.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._heap.attributes cimport carried_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

ctypedef struct replacement_t:
    uint64_t new_off                 # the block that the name is to lead to
    uint64_t new_serial
    bint is_pending                  # it is a PENDING block of the caller, which becomes USED with this type
    uint32_t pending_type
    uint64_t only_off                # not 0: the name must lead to this array, whose gate the caller owns, and has left then
    uint64_t only_serial
    bint may_move                    # although participants view that array, which they keep
    carried_t carried                # the attributes of that array

ctypedef struct renaming_t:
    name_t former
    name_t name
    bint is_of_path                  # result: NOT_FOUND or NOT_A_GROUP is about a group that the new name is to be in

# Let a name lead to another block, by one store.  OK, NOT_FOUND, NOT_A_GROUP, IS_A_GROUP, CHANGED, SHARED, PINNED, INVALID_BLOCK, ...: on
# error nothing has changed, a PENDING block stays PENDING, and the gate of the array taken.  ATTRIBUTES_CHANGED: those of the array must be
# carried anew.  INTERRUPTED means that nothing was changed.
cdef int table_replace(section_t* section, uint64_t* anchor, const name_t* name, replacement_t* change,
                       heap_wait_t wait) noexcept nogil
# Let an object, or a group, have another name instead, in the same table or in another one: OK, NOT_FOUND, NOT_A_GROUP, NAME_EXISTS, ...
# INTERRUPTED may leave a larger table, but no other change.
cdef int table_rename(section_t* section, uint64_t* anchor, renaming_t* call, heap_wait_t wait) noexcept nogil
