# cython: language_level=3
"""Blocks, and the objects in them: `_bridge/blocks.pyx`."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.bounds cimport block_is_stale
from shmem._base.layout cimport BLOCK_HEAD_BYTES, block_t
from shmem._bridge.mapping cimport Mapping


cdef extern from *:
    """
    #define PART_OF_BLOCK ((uint64_t)1 << 63)       /* no serial is that large: serials have 56 bits */
    """
    const uint64_t PART_OF_BLOCK


@cython.no_gc                         # it refers to its Mapping alone
cdef class Placed:
    """An object in a section and its place: base of Block and of typed objects."""
    cdef Mapping mapping              # None: in no section
    cdef char* data                   # the payload's address in this process
    cdef uint64_t serial              # of the block when this was made, to detect a stale one; PART_OF_BLOCK: a part of the block is meant
    cdef uint64_t payload_off(self) noexcept
    cdef void let_go(self)            # its block was freed: keep nothing of it that is not in use


cdef class Block(Placed):
    cdef Py_ssize_t n_bytes
    cdef uint32_t n_views             # buffers that were taken and not released
    cdef bint is_freed                # by this object, which lets go of the section with its last view

# Allocate a block and return its payload offset; raises SectionFull and others.  Large blocks are allocated without the GIL.
cdef uint64_t allocate_block(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, uint32_t type_id, bint zero) except 0

# The same, but the block stays PENDING: fill it, then call `heap_commit` (or `heap_abandon`).
cdef uint64_t allocate_pending(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, bint zero) except 0

# Free a block by payload offset; `serial` 0 accepts any block there.
cdef int free_block(Mapping mapping, uint64_t payload_off, uint64_t serial) except -1

# Resize a block of that serial in place, or move it; return its payload offset.  If `zero`, added bytes are cleared.
cdef uint64_t reallocate_block(Mapping mapping, uint64_t payload_off, uint64_t serial, uint64_t size_bytes, bint zero) except 0

# The Block at a payload offset.
cdef Block make_block(Mapping mapping, uint64_t payload_off)

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


cdef inline bint placed_is_stale(Placed placed) noexcept:
    """Return whether the block was freed, and its place perhaps allocated again, since this object was made."""
    return block_is_stale(<block_t*>(placed.data - BLOCK_HEAD_BYTES), placed.serial)
