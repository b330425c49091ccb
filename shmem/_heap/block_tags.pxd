# cython: language_level=3
"""The words around a block: writing its tags and serial word, finding the holes beside it, and counting it.

No function here commits.  `block_write_rear` and `block_write_hole` prepare what a later store of a front tag, or of `top`, makes visible.
Values that are read (a neighbour's tag, a rear tag) are checked against the heap's bounds before use.  All calls are made under the gate.
"""

from libc.stdint cimport uint64_t
from shmem._atomics cimport compare_exchange_release_u64, load_relaxed_u64
from shmem._base.accessors cimport payload_bytes, seal, tag_make_free, tag_size, tag_state
from shmem._base.bounds cimport damaged, heap_top, is_sealed, size_fits
from shmem._base.layout cimport BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, SLACK_SHIFT, STATE_HOLE, TAG_GATED, TAG_SMALL, block_t
from shmem._base.section cimport block_at, section_t, word_at
from shmem._base.status cimport CORRUPTED, OK


cdef inline void block_write_rear(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    word_at(section, off + size_bytes - BLOCK_REAR_BYTES)[0] = seal(section.salt, size_bytes, off + size_bytes)


cdef inline void block_write_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """Write the tags of a hole that is not in the chain yet."""
    block_at(section, off).tag = tag_make_free(size_bytes, STATE_HOLE)
    block_write_rear(section, off, size_bytes)


cdef inline void block_set_gated(block_t* block) noexcept nogil:
    """Mark a used block, if its tag has the small format, as one whose end must go through the heap gate."""
    cdef uint64_t tag = load_relaxed_u64(&block.tag)
    while tag & TAG_SMALL and not tag & TAG_GATED:
        if compare_exchange_release_u64(&block.tag, tag, tag | TAG_GATED):
            return
        tag = load_relaxed_u64(&block.tag)


cdef inline uint64_t serial_word(uint64_t serial, uint64_t size_bytes, uint64_t request_bytes) noexcept nogil:
    """Return the serial word of a block that no name leads to."""
    return serial | (payload_bytes(size_bytes) - request_bytes) << SLACK_SHIFT


cdef inline uint64_t hole_before(section_t* section, uint64_t off) noexcept nogil:
    """Return the offset of the hole that ends where this block begins, or 0."""
    cdef uint64_t size_bytes
    if off <= section.heap_start:
        return 0
    size_bytes = seal(section.salt, word_at(section, off - BLOCK_REAR_BYTES)[0], off)
    if size_bytes < BLOCK_MIN_BYTES or size_bytes > off - section.heap_start or size_bytes & 15:
        return 0                         # a write past the end of the preceding block: check_heap reports it
    return off - size_bytes if block_at(section, off - size_bytes).tag == tag_make_free(size_bytes, STATE_HOLE) else 0


cdef inline int hole_behind(section_t* section, uint64_t end_off, uint64_t* hole_bytes) noexcept nogil:
    """Find the size of the hole that begins where a block ends, 0 if there is none: OK or CORRUPTED."""
    cdef uint64_t top = heap_top(section), tag
    hole_bytes[0] = 0
    if end_off >= top:
        return OK
    tag = load_relaxed_u64(&block_at(section, end_off).tag)
    if tag_state(tag) != STATE_HOLE:
        return OK
    if damaged(not size_fits(end_off, tag_size(tag), top) or not is_sealed(section, end_off, tag_size(tag))):
        return CORRUPTED
    hole_bytes[0] = tag_size(tag)
    return OK


cdef inline void count_used(section_t* section, int n, uint64_t size_bytes) noexcept nogil:
    """Count one more block in use, or with -1 one block fewer."""
    section.header.used_blocks += n
    section.header.used_bytes += n * size_bytes
