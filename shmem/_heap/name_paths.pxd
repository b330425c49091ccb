# cython: language_level=3
"""Names that are paths, such as "run1/grid": `_heap/name_paths.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport group_t
from shmem._base.section cimport section_t
from shmem._heap.name_slots cimport name_t

cdef enum:
    MAX_LEVELS = 64                      # components of a path

# The name with this path: the bytes before the last "/" are its groups.
cdef name_t path_make(const char* text, uint32_t n_bytes) noexcept nogil
# All bytes are groups: what leads to a group's own table.  Without bytes, the directory itself.
cdef name_t path_make_of_group(const char* text, uint32_t n_bytes) noexcept nogil

# The caller owns the gate, and uses what these return while it does: a group may be deleted afterwards.
# The anchor of the table that a name belongs to: OK, NOT_FOUND if a group is missing, NOT_A_GROUP, CORRUPTED.
cdef int names_anchor(section_t* section, uint64_t* anchor, const name_t* name, uint64_t** found) noexcept nogil
# The group at an offset, with this serial; NULL if there is none.
cdef group_t* group_in(section_t* section, uint64_t payload_off) noexcept nogil
cdef group_t* group_at(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
