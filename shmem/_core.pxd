# cython: language_level=3
"""The core of `SharedMemory`, for the modules above it and for clients that `cimport shmem`."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._bridge.mapping cimport Mapping


cdef class Memory:
    """The core of `SharedMemory`: section and heap."""
    cdef Mapping mapping              # None once closed
    cdef uint64_t section_id          # kept after close(), which may come before the end of a `with` block
    cdef str _path
    cdef bint _anonymous
    cdef str _mode
    cdef object __weakref__
    cdef Mapping opened(self)         # return the mapping, or raise ClosedError
    cdef Mapping writable_mapping(self, str what)         # the same, or raise ReadOnlyError


# Go on emptying deleted groups until none is left; return the bytes that became free.
cdef uint64_t empty_groups(Mapping mapping, str what) except? 0xffffffffffffffff

# The section of an open SharedMemory, for C code that keeps that object alive meanwhile.
cdef section_t* section_of(object memory) except NULL
