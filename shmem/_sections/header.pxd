# cython: language_level=3
from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.layout cimport header_t

ctypedef struct open_request_t:
    const char* path
    const char* label             # b"" for none
    bint anonymous
    bint read_only
    bint trust_owner
    int permissions
    uint64_t max_size             # 0: the section must exist
    uint64_t desired_address      # 0: any address
    int64_t waited_ns             # for the opening byte so far
    uint32_t index_kind
    uint32_t max_participants
    # results: facts for the error message
    uint64_t found
    uint64_t wanted
    uint64_t size_bytes           # of the section, or the size requested for it
    char found_label[208]
    bint was_unclean
    bint was_made

cdef void header_fill(header_t* header, open_request_t* request) noexcept nogil
cdef int header_check(const header_t* header, uint64_t file_bytes, open_request_t* request) noexcept nogil
