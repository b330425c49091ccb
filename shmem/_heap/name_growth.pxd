# cython: language_level=3
"""A larger table takes over the entries of a full one, step by step: `_heap/name_growth.pyx`."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

# Whether a table is too full for one more name, or missing.  The caller owns the gate.
cdef bint table_must_grow(section_t* section, uint64_t table_off) noexcept nogil
# Move the next entries of the old table, if there is one, as part of a change.  The caller owns the gate.
cdef int names_move_some(section_t* section, uint64_t table_off) noexcept nogil
# Free the table that a word leads to, and that shows no entry.  The caller owns the gate, and has checked the block.
cdef int names_drop_table(section_t* section, uint64_t* word) noexcept nogil
# Make a larger table for a name, which takes over the entries of the one that the name belongs to.  Takes the gate.
cdef int names_grow(section_t* section, uint64_t* anchor, const name_t* name, heap_wait_t wait) noexcept nogil
