# cython: language_level=3
"""The byte strings of a queue: `_objects/queue_bytes.pyx`."""

from libc.stdint cimport int64_t, uint64_t
from shmem._objects.queue_ring cimport RingCaller

cdef enum:
    CHUNK_BYTES = 262144          # byte strings are packed for transport in pieces of this size

# Raise ValueError: a byte string is longer than the queue's records.
cdef int raise_too_long(RingCaller queue, Py_ssize_t length) except -1

# Put the bytes of a buffer.
cdef int put_buffer(RingCaller queue, object item, int64_t deadline_ns) except -1

# Get one of any length.
cdef object get_long(RingCaller queue, int64_t deadline_ns)

# Put many and return how many were put; get up to `n_items`.
cdef object put_many_bytes(RingCaller queue, items, int64_t deadline_ns)
cdef list get_many_bytes(RingCaller queue, uint64_t n_items, int64_t deadline_ns)
