# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.layout cimport header_t
from shmem._base.section cimport section_t
from shmem._sections.header cimport open_request_t

# The first opener, when no participant is alive.
cdef int first_create(int fd, open_request_t* request) noexcept nogil
cdef uint64_t first_reserved(const header_t* header, uint64_t file_bytes) noexcept nogil
cdef int first_reset(section_t* section, open_request_t* request, uint64_t file_bytes) noexcept nogil
cdef int first_recover(section_t* section, bint was_unclean) noexcept nogil
# The section is in use from here on: a next opener that finds no participant alive must recover it.
cdef int mark_in_use(section_t* section) noexcept nogil
cdef void section_quiet(section_t* section) noexcept nogil
# Leave the section; the last participant leaves the file whole.  False: another process holds the opening byte; try again.
cdef bint section_depart(section_t* section, bint at_exit) noexcept nogil
