# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t

ctypedef struct name_t:
    const char* text
    uint32_t n_bytes
    uint64_t hash

cdef name_t name_make(const char* text, uint32_t n_bytes) noexcept nogil

# The caller owns the gate.
cdef int table_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off) noexcept nogil
cdef name_entry_t* table_entry(section_t* section, uint64_t slot_off) noexcept nogil
cdef uint64_t table_capacity(section_t* section, uint64_t table_off) noexcept nogil
cdef uint64_t table_slot_off(uint64_t table_off, uint64_t i) noexcept nogil
cdef uint64_t table_old(section_t* section, uint64_t table_off) noexcept nogil
cdef int names_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off, uint64_t* found_off) noexcept nogil
cdef bint table_shows(section_t* section, uint64_t table_off, uint64_t hash_, uint64_t entry_off) noexcept nogil
