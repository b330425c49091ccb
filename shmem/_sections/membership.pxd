# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t

cdef void clear_up_after(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil
cdef void sign_with(section_t* section, uint32_t index, uint32_t generation) noexcept nogil
cdef int become_participant(section_t* section) noexcept nogil
cdef void sweep_after_joining(section_t* section) noexcept nogil
cdef bint is_mapped_whole(section_t* section, int fd) noexcept nogil
cdef int attach_child(section_t* section) noexcept nogil
cdef void cease_to_participate(section_t* section) noexcept nogil
cdef void section_destroy(section_t* section) noexcept nogil
cdef void rest_with_views(section_t* section) noexcept nogil
