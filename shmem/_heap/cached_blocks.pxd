# cython: language_level=3
"""Cached blocks: freed blocks that are kept unmerged, in a singly linked list for each size, and are allocated again first.

There is a list for each block size up to 1,056 bytes; it holds at most `CACHE_LIMIT` blocks.  `cache_take` checks the head of a list before
it follows it.  A list whose head is damaged is dropped, and its blocks are found again when recovery rebuilds the index.
All calls are made under the heap gate.
"""

from libc.stdint cimport uint32_t, uint64_t
from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport tag_make_free
from shmem._base.bounds cimport damaged, heap_top
from shmem._base.layout cimport CACHE_BINS, STATE_CACHED
from shmem._base.section cimport block_at, section_t

cdef enum:
    CACHE_LIMIT = 64                     # blocks kept per size


cdef inline uint32_t cache_bin(uint64_t size_bytes) noexcept nogil:
    """Return the number of the list for blocks of this size; `CACHE_BINS` or more means none."""
    return <uint32_t>(size_bytes >> 4) - 3


cdef inline uint64_t cache_bin_bytes(uint32_t i) noexcept nogil:
    """Return the size of the blocks in list `i`."""
    return (<uint64_t>i + 3) << 4


cdef inline bint cache_put(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    """Free a block into its list, if there is one and it is not full."""
    cdef uint32_t i = cache_bin(size_bytes)
    if i >= CACHE_BINS or section.index.cache_count[i] >= CACHE_LIMIT:
        return False
    store_release_u64(&block_at(section, off).tag, tag_make_free(size_bytes, STATE_CACHED))        # commit: freed
    block_at(section, off).serial = 0
    block_at(section, off).next_off = section.index.cache_off[i]
    section.index.cache_off[i] = off
    section.index.cache_count[i] += 1
    section.header.cached_blocks += 1
    section.header.cached_bytes += size_bytes
    return True


cdef inline uint64_t cache_take(section_t* section, uint64_t size_bytes) noexcept nogil:
    """Take a cached block of exactly this size out of its list; return its offset, or 0 if there is none."""
    cdef uint32_t i = cache_bin(size_bytes)
    cdef uint64_t off
    if i >= CACHE_BINS:
        return 0
    off = section.index.cache_off[i]
    if off == 0:
        return 0
    if damaged(off < section.heap_start or off > heap_top(section) - size_bytes or off & 15
               or block_at(section, off).tag != tag_make_free(size_bytes, STATE_CACHED)):
        section.index.cache_off[i] = 0   # a damaged list: its blocks are recovered when all lists are emptied
        section.index.cache_count[i] = 0
        return 0
    section.index.cache_off[i] = block_at(section, off).next_off
    section.index.cache_count[i] -= 1
    section.header.cached_blocks -= 1
    section.header.cached_bytes -= size_bytes
    return off
