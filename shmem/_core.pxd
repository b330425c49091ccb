# cython: language_level=3
"""What the modules above `_core` may use of it."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._section cimport section_t


cdef class Mapping:
    """A handle's hold on a section: keeps the memory mapped; what views refer to."""
    cdef section_t* section
    cdef char* base                   # where views point: all of the file, read-only in `read_only` mode
    cdef bint writable
    cdef bint is_open                 # False once the handle was closed; the memory stays
    cdef object type_cache            # for the typed objects: type id -> class, and back
    cdef object face                  # weak reference to the SharedMemory that is its face
    cdef object __weakref__


cdef class Memory:
    """The core of `SharedMemory`: section, heap, lock, root."""
    cdef Mapping mapping              # None once closed
    cdef const unsigned char[::1] bytes
    cdef object __weakref__
    cdef Mapping opened(self)         # the mapping, or ClosedError


cdef class Placed:
    """Something that lies in a section and knows where: base of Block and of typed objects."""
    cdef Mapping mapping
    cdef char* data                   # payload, at this process's address
    cdef uint64_t serial              # of the block when this was made: tells a stale one


cdef class Block(Placed):
    cdef Py_ssize_t n_bytes
    cdef Py_ssize_t shape[1]


# Raise what `status` stands for; 0 and success return 0.  `what` says what was asked.
cdef int check(int status, Mapping mapping, str what) except -1

# Payload offset of a new block; raises SectionFull and the rest.  GIL held, released where it takes long.
cdef uint64_t allocate_block(Mapping mapping, size_t size_bytes, size_t align_bytes, uint32_t type_id, bint zero) except 0

# Payload offset of whatever `obj` is (Placed, any buffer, an int offset is refused), inside `mapping`'s section;
# InvalidBlock when it lies elsewhere.
cdef uint64_t offset_in(Mapping mapping, object obj) except 0

# The Python object for the block at this payload offset: the class registered for its type id, else a Block.
# InvalidBlock when there is no used block there.
cdef object wrap(Mapping mapping, uint64_t payload_off)


cdef inline bint placed_is_stale(Placed placed) noexcept:
    """Whether the block was freed (and perhaps used again) since this object was made."""
    return ((<uint64_t*>(placed.data - 8))[0] ^ placed.serial) << 8 != 0
