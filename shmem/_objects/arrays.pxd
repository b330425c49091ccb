# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._bridge.blocks cimport Placed
from shmem._bridge.mapping cimport Mapping


cdef class Hold(Placed):
    cdef object key                   # None: not counted; the second item is `n_forks` of the process that counts it
    cdef int count(self) except -1
    cdef int try_pin(self) except? -200
    cdef int unpin(self) except -1


# Pin a queue for as long as the hold exists; if `status` is not OK afterwards, it is not pinned.
cdef Hold hold_queue(Mapping mapping, uint64_t payload_off, uint64_t serial, int* status)


cdef inline bint hold_is_mine(Hold hold) noexcept:
    """Return whether there is a hold, and this process took it: one that is inherited from the parent of a fork pins nothing."""
    return hold is not None and hold.key is not None and hold.key[1] == hold.mapping.section.n_forks
