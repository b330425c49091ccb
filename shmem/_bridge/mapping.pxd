# cython: language_level=3
"""A handle's reference to a section: `_bridge/mapping.pyx`."""

from shmem._base.section cimport section_t


cdef class Mapping:
    """A handle's reference to a section.  Views refer to it too, which keeps the memory mapped."""
    cdef section_t* section
    cdef char* base                   # the mapping that views use: all of the file, read-only in `read_only` mode
    cdef bint writable
    cdef bint is_open                 # False once the handle was closed; the memory stays mapped
    cdef dict held                    # id -> LockDescriptor that holds the lock through this handle
    cdef object type_cache            # of typed objects: type id -> class, and back
    cdef object face                  # weak reference to its SharedMemory
    cdef object __weakref__
    cdef int take(self, section_t* section, bint writable) except -1
    cdef void let_go(self) noexcept


# The mappings of this process whose handles are open.
cdef list open_mappings()

# The SharedMemory of a mapping, or None when it was closed and garbage-collected.
cdef object face_of(Mapping mapping)
