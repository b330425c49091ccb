# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t

ctypedef struct open_request_t:
    const char* path
    const char* label             # b"" for none
    bint anonymous
    bint read_only
    bint trust_owner
    int permissions
    uint64_t max_size             # 0: must exist
    uint64_t desired_address      # 0: anywhere
    uint32_t index_kind
    uint32_t max_participants
    # out: what was found, for the error message
    uint64_t found
    uint64_t wanted
    uint64_t size_bytes           # that the section has, or was to have
    char found_label[208]
    bint was_unclean
    bint was_made

cdef int section_join(open_request_t* request, section_t** section) noexcept nogil
cdef void section_leave(section_t* section) noexcept nogil
cdef void section_remove_abandoned(const char* path) noexcept nogil
cdef int section_map_read_only(section_t* section, uint64_t address) noexcept nogil
cdef section_t* section_of_address(uint64_t address) noexcept nogil
cdef void section_unlock(uint64_t section_id, bint exclusive) noexcept nogil
cdef uint32_t sections_depart() noexcept nogil
cdef void thread_ended(void* unused) noexcept nogil
cdef int opening_setup() noexcept nogil
cdef void section_quiet(section_t* section) noexcept nogil
