# cython: language_level=3
"""The files of named semaphores and events: the declarations of `_sync/named_file.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport named_state_t, named_t

ctypedef struct named_request_t:
    const char* path
    uint32_t kind                 # NAMED_SEMAPHORE or NAMED_EVENT
    bint create                   # create the file if it does not exist
    int permissions
    bint trust_owner
    named_state_t initial
    # results
    named_t* named                # mapped; a page
    uint64_t device
    uint64_t inode
    uint32_t user

# Open, or create with `initial`: 0, NOT_A_SECTION, UNTRUSTED_OWNER or an errno.
cdef int named_open(named_request_t* request) noexcept nogil
cdef void named_unmap(named_t* named) noexcept nogil
# Remove the name: ENOENT if it does not exist, or now belongs to another file.
cdef int named_unlink(const char* path, uint64_t device, uint64_t inode) noexcept nogil
