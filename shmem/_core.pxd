# cython: language_level=3
"""The interface of `_core` for the modules above it, and for clients that `cimport shmem`."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.bounds cimport block_is_stale
from shmem._base.layout cimport BLOCK_HEAD_BYTES, block_t
from shmem._base.section cimport section_t


cdef extern from *:
    """
    #define PART_OF_BLOCK ((uint64_t)1 << 63)       /* no serial is that large: serials have 56 bits */
    """
    const uint64_t PART_OF_BLOCK


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
    cdef void let_go(self) noexcept


cdef class Memory:
    """The core of `SharedMemory`: section and heap."""
    cdef Mapping mapping              # None once closed
    cdef uint64_t section_id          # kept after close(), which may come before the end of a `with` block
    cdef const unsigned char[::1] bytes
    cdef str _name
    cdef str _path
    cdef str _mode
    cdef object __weakref__
    cdef Mapping opened(self)         # return the mapping, or raise ClosedError
    cdef Mapping writable_mapping(self, str what)         # the same, or raise ReadOnlyError


@cython.no_gc                         # it refers to its Mapping alone
cdef class Placed:
    """An object in a section and its place: base of Block and of typed objects."""
    cdef Mapping mapping              # None: in no section
    cdef char* data                   # the payload's address in this process
    cdef uint64_t serial              # of the block when this was made, to detect a stale one; PART_OF_BLOCK: a part of the block is meant
    cdef uint64_t payload_off(self) noexcept


cdef class Block(Placed):
    cdef Py_ssize_t n_bytes
    cdef Py_ssize_t shape[1]


# A step of an operation: it runs without the GIL and waits at most for a slice, INTERRUPTED then with nothing done.  `request` leads to its
# arguments and results.
ctypedef int (*step_t)(section_t* section, void* request) noexcept nogil

# One step without the GIL: its status.  `section` is NULL for a step that uses no section.  The caller keeps section and request alive.
cdef int run_step(section_t* section, step_t step, void* request) noexcept

# Repeat a step until it is not INTERRUPTED, and return its status.  Python's signal handlers run after each slice; if one raises, so does
# this, and the operation has not happened.
cdef int run_steps(section_t* section, step_t step, void* request) except? -200

# Raise the exception for `status`; return 0 for OK.  `what` describes the operation.
cdef int check(int status, Mapping mapping, str what) except -1

# A size in bytes: ValueError when it is negative, SectionFull when it exceeds the section's size.
cdef uint64_t size_argument(Mapping mapping, object size) except? 0xffffffffffffffff

# A timeout in seconds or None, as nanoseconds, FOREVER or AT_ONCE; and as the deadline that it means now.
cdef int64_t timeout_argument(object timeout) except? -2
cdef int64_t deadline_argument(object timeout) except? -2

# Allocate a block and return its payload offset; raises SectionFull and others.  Large blocks are allocated without the GIL.
cdef uint64_t allocate_block(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, uint32_t type_id, bint zero) except 0

# The same, but the block stays PENDING: fill it, then call `heap_commit` (or `heap_abandon`).
cdef uint64_t allocate_pending(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, bint zero) except 0

# Free a block by payload offset; `serial` 0 accepts any block there.
cdef int free_block(Mapping mapping, uint64_t payload_off, uint64_t serial) except -1

# The Placed object behind a Block, an array, a typed object or a view of one of these, or None.
cdef Placed placed_behind(object obj)

# Raise TypeError: a whole block is needed, and this is a part of one.
cdef int raise_part(Placed placed) except -1

# Payload offset of `obj` in this mapping's section; InvalidBlock when it is stale or in no or another section.
cdef uint64_t offset_in(Mapping mapping, object obj) except 0

# The Python object for the block at this payload offset, made by the opener registered for its type id.
# Without an opener, or if `plain`, it is a Block.
# InvalidBlock when no used block with this serial (0: any) is there, or when it is freed meanwhile.
cdef object wrap(Mapping mapping, uint64_t payload_off, uint64_t serial=*, bint plain=*)

# Fill in a Placed made by __new__.
cdef void place(Placed placed, Mapping mapping, uint64_t payload_off) noexcept

# The mappings of this process whose handles are open.
cdef list open_mappings()

# The SharedMemory of a mapping, or None when it was closed and garbage-collected.
cdef object face_of(Mapping mapping)

# The section of an open SharedMemory, for C code that keeps that object alive meanwhile.
cdef section_t* section_of(object memory) except NULL


cdef inline bint placed_is_stale(Placed placed) noexcept:
    """Return whether the block was freed, and its place perhaps allocated again, since this object was made."""
    return block_is_stale(<block_t*>(placed.data - BLOCK_HEAD_BYTES), placed.serial)
