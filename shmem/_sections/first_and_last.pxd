# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t
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
ctypedef struct departure_t:
    int64_t waited_ns             # for the opening byte so far
    bint must_write               # before the next attempt
    bint is_written               # before this one, while others could open and close
    bint must_sync                # in the end

# Leave the section; the last participant leaves the file whole.  False: call `departure_wait`, if possible without the process mutex, then
# try again, if the section must still be left.
cdef bint section_depart(section_t* section, bint at_exit, departure_t* departure) noexcept nogil
cdef void departure_wait(section_t* section, departure_t* departure) noexcept nogil
cdef void departure_sync(section_t* section) noexcept nogil
