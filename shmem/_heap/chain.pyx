# cython: language_level=3
"""The chain of front tags, walked from `heap_start` to `top` without trusting it."""

from libc.stdint cimport uint64_t

from shmem._atomics cimport load_relaxed_u64
from shmem._base.accessors cimport tag_size
from shmem._base.bounds cimport heap_top
from shmem._base.section cimport block_at, block_step, section_t


cdef uint64_t chain_first_fault(section_t* section) noexcept nogil:
    cdef uint64_t off = section.heap_start, top = load_relaxed_u64(&section.header.top), tag
    if top < off or top > section.size_bytes or top & 15:
        return FAULT_TOP
    while off < top:
        tag = load_relaxed_u64(&block_at(section, off).tag)
        if not tag_is_plausible(off, tag, top):
            return off
        off = block_step(section, off, tag_size(tag))
    return 0


cdef bint chain_has_block(section_t* section, uint64_t block_off) noexcept nogil:
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag
    while off < block_off and off < top:
        tag = load_relaxed_u64(&block_at(section, off).tag)
        if not tag_is_plausible(off, tag, top):
            return False
        off = block_step(section, off, tag_size(tag))
    return off == block_off and off < top
