# cython: language_level=3
"""What the modules above `_core`, and clients that `cimport shmem`, may use of it."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.bounds cimport block_is_stale
from shmem._base.layout cimport BLOCK_HEAD_BYTES, block_t
from shmem._base.section cimport section_t


cdef extern from *:
    """
    #define PART_OF_BLOCK ((uint64_t)1 << 63)       /* no serial is that large: it has 56 bits */
    """
    const uint64_t PART_OF_BLOCK


cdef class Mapping:
    """A handle's hold on a section: keeps the memory mapped; what views refer to."""
    cdef section_t* section
    cdef char* base                   # where views point: all of the file, read-only in `read_only` mode
    cdef bint writable
    cdef bint is_open                 # False once the handle was closed; the memory stays
    cdef dict held                    # id -> LockDescriptor that holds the lock through this handle
    cdef object type_cache            # for the typed objects: type id -> class, and back
    cdef object face                  # weak reference to the SharedMemory that is its face
    cdef object __weakref__
    cdef void let_go(self) noexcept


cdef class Memory:
    """The core of `SharedMemory`: section, heap."""
    cdef Mapping mapping              # None once closed
    cdef uint64_t section_id          # stays: the end of a `with` block may come after close()
    cdef const unsigned char[::1] bytes
    cdef str _name
    cdef str _path
    cdef str _mode
    cdef object __weakref__
    cdef Mapping opened(self)         # the mapping, or ClosedError
    cdef Mapping writable_mapping(self, str what)         # the mapping, or ClosedError, or ReadOnlyError


@cython.no_gc                         # it refers to its Mapping alone
cdef class Placed:
    """Something that lies in a section and knows where: base of Block and of typed objects."""
    cdef Mapping mapping              # None: in no section, after all
    cdef char* data                   # payload, at this process's address
    cdef uint64_t serial              # of the block when this was made: tells a stale one; with PART_OF_BLOCK not all of it is meant
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

# Raise what `status` stands for; success returns 0.  `what` says what was asked.
cdef int check(int status, Mapping mapping, str what) except -1

# A request for bytes as C wants it: ValueError when negative, SectionFull when no section of this size could hold it.
cdef uint64_t size_argument(Mapping mapping, object size) except? 0xffffffffffffffff

# A timeout in seconds or None, as nanoseconds, FOREVER or AT_ONCE; and as the deadline that it means now.
cdef int64_t timeout_argument(object timeout) except? -2
cdef int64_t deadline_argument(object timeout) except? -2

# Payload offset of a new block; raises SectionFull and the rest.  The GIL is released where it takes long.
cdef uint64_t allocate_block(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, uint32_t type_id, bint zero) except 0

# The same, but the block stays PENDING: fill it, then `heap_commit` (or `heap_abandon`).
cdef uint64_t allocate_pending(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, bint zero) except 0

# Free a block, by payload offset; `serial` 0 accepts whatever block is there.
cdef int free_block(Mapping mapping, uint64_t payload_off, uint64_t serial) except -1

# The Placed object behind a Block, an array, a typed object or a view of one of these, or None.
cdef Placed placed_behind(object obj)

# Refuse what is only a part of its block where a block is meant.
cdef int raise_part(Placed placed) except -1

# Payload offset of `obj` in this mapping's section; InvalidBlock when it is stale or lies elsewhere.
cdef uint64_t offset_in(Mapping mapping, object obj) except 0

# The Python object for the block at this payload offset: made by what is registered for its type id, else, or if `plain`, a Block.
# InvalidBlock when no used block is there, or not the one with this serial (0: whichever it is), or it is freed meanwhile.
cdef object wrap(Mapping mapping, uint64_t payload_off, uint64_t serial=*, bint plain=*)

# Fill in a Placed made by __new__.
cdef void place(Placed placed, Mapping mapping, uint64_t payload_off) noexcept

# This process's mappings whose handles are open.
cdef list open_mappings()

# The SharedMemory that is a mapping's face, or None when its handle was closed and forgotten.
cdef object face_of(Mapping mapping)

# The section of an open SharedMemory, for C code that keeps the object alive meanwhile.
cdef section_t* section_of(object memory) except NULL


cdef inline bint placed_is_stale(Placed placed) noexcept:
    """Whether the block was freed, and its place perhaps used again, since this object was made."""
    return block_is_stale(<block_t*>(placed.data - BLOCK_HEAD_BYTES), placed.serial)
