# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._sections.header cimport open_request_t

cdef int section_join(open_request_t* request, section_t** section) noexcept nogil
cdef void section_leave(section_t* section) noexcept nogil
cdef bint section_remove_abandoned(const char* path) noexcept nogil
# Map the section for views that are read-only, unless it is mapped already: 0 or an errno.
cdef int section_need_read_only(section_t* section) noexcept nogil
