# cython: language_level=3
"""The items of a queue: `_objects/queue_items.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._bridge.blocks cimport Placed
from shmem._bridge.mapping cimport Mapping
from shmem._objects.codec cimport Codec, Kind
from shmem._sync.ring cimport ring_t


cdef class Items:
    """The record of one queue."""
    cdef object record                # a dtype, a Struct class, or `bytes`
    cdef object dtype                 # None for byte strings, and so is the codec
    cdef Codec codec
    cdef Kind kind
    cdef uint64_t n_bytes
    cdef uint32_t type_id

    # Write an item over zeros, or raise Misfit.
    cdef int write(self, Placed queue, char* at, object item) except -1
    cdef bint write_object(self, Placed queue, char* at, object item) except -1

    # Return many items as a contiguous buffer.
    cdef object many(self, Placed queue, object items)
    cdef object from_array(self, object array)


# The Items of an opened ring, checked; `record` is None unless the caller made the queue.
cdef Items items_of(Mapping mapping, uint64_t payload_off, ring_t* ring, object record)

# For a record as the user gives it: (record, kind, type id, text of the dtype, bytes of a record).
cdef tuple record_argument(Mapping mapping, object record, object max_bytes)
