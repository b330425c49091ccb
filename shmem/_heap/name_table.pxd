# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

# An entry as `table_copy` writes it; name and data follow.
ctypedef struct copied_t:
    uint64_t order              # serial of the entry: the order in which names were created
    uint64_t value
    uint64_t serial
    uint32_t name_bytes
    uint32_t data_bytes

# All of these take the gate.  INTERRUPTED, which WAIT_A_SLICE allows, means that nothing was changed.
cdef int table_look_up(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* value, uint64_t* serial,
                       heap_wait_t wait) noexcept nogil
cdef int table_copy(section_t* section, uint64_t* anchor, char** copied, uint64_t* n_bytes, heap_wait_t wait) noexcept nogil
cdef int table_insert(section_t* section, uint64_t* anchor, const name_t* name, const void* data, uint32_t data_bytes,
                      uint64_t value, uint64_t serial, uint64_t pending_off, uint32_t pending_type,
                      heap_wait_t wait) noexcept nogil
cdef int table_remove(section_t* section, uint64_t* anchor, const name_t* name, heap_wait_t wait) noexcept nogil
