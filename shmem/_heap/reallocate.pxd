# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

cdef int heap_reallocate(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t request_bytes, int flags,
                         uint64_t* new_payload_off) noexcept nogil
