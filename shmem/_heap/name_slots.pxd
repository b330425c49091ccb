# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t

ctypedef struct name_t:
    const char* text                     # the last component of a path
    uint32_t n_bytes
    uint32_t path_bytes                  # 0: the name is not in a group
    const char* path                     # the groups that it is in, see `name_paths.pyx`
    uint64_t hash                        # of the last component

cdef name_t name_make(const char* text, uint32_t n_bytes) noexcept nogil

# The caller owns the gate.
cdef int table_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off) noexcept nogil
cdef name_entry_t* table_entry(section_t* section, uint64_t slot_off) noexcept nogil
cdef uint64_t table_capacity(section_t* section, uint64_t table_off) noexcept nogil
cdef uint64_t table_slot_off(uint64_t table_off, uint64_t i) noexcept nogil
cdef uint64_t table_old(section_t* section, uint64_t table_off) noexcept nogil
cdef int names_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off, uint64_t* found_off) noexcept nogil
cdef bint table_shows(section_t* section, uint64_t table_off, uint64_t hash_, uint64_t entry_off) noexcept nogil
