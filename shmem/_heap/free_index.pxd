# cython: language_level=3
"""The free index: finds a hole by size.  Two indexes, behind one interface: insert, remove, find.

Both link the holes through their payloads (`next_off`, `previous_off`).  They contain only what follows from the chain of front tags, so
recovery rebuilds them.  All calls are made under the heap gate.

* *TLSF* (Masmano, Ripoll, Crespo and Real, 2004): lists by size class, where each power of two is split into 32 classes.  Two bitmaps find
  the first list that is not empty, in constant time.
* *Next fit*, the index of the original SHMEM: a circular list of all holes with a roving pointer, at which the search for a fitting hole
  begins.

Every link is checked to lead into the heap before it is followed.  A damaged index is therefore reported as CORRUPTED, which makes the heap
rebuild it.  It never causes a store outside the mapping.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from shmem._atomics cimport load_relaxed_u64
from shmem._base.accessors cimport block_to_payload, round_up, tag_size, tag_state
from shmem._base.bounds cimport damaged, heap_top
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, INDEX_NEXT_FIT, STATE_HOLE, TLSF_FIRST_LEVELS, TLSF_SECOND_LEVELS, TLSF_SECOND_SHIFT, block_t, free_index_t)
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, NOT_FOUND, OK

cdef extern from * nogil:
    int __builtin_clz(unsigned int value)
    int __builtin_clzll(unsigned long long value)
    int __builtin_ctzll(unsigned long long value)
    int __builtin_ctz(unsigned int value)

cdef enum:
    SMALL_BYTES = 512                # below this size there is one list per multiple of 16
    SMALL_LOG2 = 9
    N_EXACT_TRIES = 4                # holes of the request's own class that are tried before a larger class
    N_LOOKED_AT = 1024               # holes that are compared to find the largest


cdef inline bint hole_is_plausible(section_t* section, uint64_t hole_off) noexcept nogil:
    return (section.heap_start <= hole_off and hole_off <= heap_top(section) - BLOCK_MIN_BYTES and hole_off & 15 == 0
            and tag_state(block_at(section, hole_off).tag) == STATE_HOLE)


cdef inline uint64_t gap_before(uint64_t start_off, uint64_t align_bytes) noexcept nogil:
    """Return the distance from `start_off` at which a block must begin for its payload to be aligned: 0, or room for a hole."""
    cdef uint64_t payload_off = round_up(block_to_payload(start_off), align_bytes)
    cdef uint64_t gap = payload_off - block_to_payload(start_off)
    while gap != 0 and gap < BLOCK_MIN_BYTES:
        gap += align_bytes
    return gap


cdef inline bint hole_fits(section_t* section, uint64_t hole_off, uint64_t size_bytes, uint64_t align_bytes) noexcept nogil:
    return tag_size(block_at(section, hole_off).tag) >= size_bytes + gap_before(hole_off, align_bytes)


# -- TLSF -----------------------------------------------------------------------------------------------

cdef inline void tlsf_class(uint64_t size_bytes, uint32_t* first, uint32_t* second) noexcept nogil:
    cdef uint32_t log2
    if size_bytes < SMALL_BYTES:
        first[0] = 0
        second[0] = <uint32_t>(size_bytes >> 4)
    else:
        log2 = 63 - __builtin_clzll(size_bytes)
        first[0] = log2 - SMALL_LOG2 + 1
        second[0] = <uint32_t>(size_bytes >> (log2 - TLSF_SECOND_SHIFT)) & (TLSF_SECOND_LEVELS - 1)


cdef inline uint64_t tlsf_round_up(uint64_t size_bytes) noexcept nogil:
    """Return the smallest size whose class holds only holes of at least `size_bytes`."""
    if size_bytes < SMALL_BYTES:
        return size_bytes
    return size_bytes + (<uint64_t>1 << (63 - __builtin_clzll(size_bytes) - TLSF_SECOND_SHIFT)) - 1


cdef inline int tlsf_insert(section_t* section, uint64_t hole_off, uint64_t size_bytes) noexcept nogil:
    cdef uint32_t first = 0, second = 0
    cdef free_index_t* index = section.index
    cdef block_t* hole = block_at(section, hole_off)
    cdef uint64_t next_off
    tlsf_class(size_bytes, &first, &second)
    if first >= TLSF_FIRST_LEVELS:
        return CORRUPTED
    next_off = index.head_off[first][second]
    if next_off != 0:
        if damaged(not hole_is_plausible(section, next_off)):
            return CORRUPTED
        block_at(section, next_off).previous_off = hole_off
    hole.next_off = next_off
    hole.previous_off = 0
    index.head_off[first][second] = hole_off
    index.first_bitmap |= <uint64_t>1 << first
    index.second_bitmap[first] |= <uint32_t>1 << second
    return OK


cdef inline int tlsf_remove(section_t* section, uint64_t hole_off, uint64_t size_bytes) noexcept nogil:
    cdef uint32_t first = 0, second = 0
    cdef free_index_t* index = section.index
    cdef block_t* hole = block_at(section, hole_off)
    cdef uint64_t next_off = load_relaxed_u64(&hole.next_off), previous_off = load_relaxed_u64(&hole.previous_off)
    if next_off != 0:
        if damaged(not hole_is_plausible(section, next_off)):
            return CORRUPTED
        block_at(section, next_off).previous_off = previous_off
    if previous_off != 0:
        if damaged(not hole_is_plausible(section, previous_off)):
            return CORRUPTED
        block_at(section, previous_off).next_off = next_off
        return OK
    tlsf_class(size_bytes, &first, &second)
    if damaged(first >= TLSF_FIRST_LEVELS or index.head_off[first][second] != hole_off):
        return CORRUPTED
    index.head_off[first][second] = next_off
    if next_off == 0:
        index.second_bitmap[first] &= ~(<uint32_t>1 << second)
        if index.second_bitmap[first] == 0:
            index.first_bitmap &= ~(<uint64_t>1 << first)
    return OK


cdef inline int tlsf_scan(section_t* section, uint64_t hole_off, int n_tries, uint64_t size_bytes, uint64_t align_bytes,
                          uint64_t* found_off) noexcept nogil:
    """Find the first hole that fits among the first `n_tries` of a list: OK, NOT_FOUND or CORRUPTED."""
    while hole_off != 0 and n_tries > 0:
        if damaged(not hole_is_plausible(section, hole_off)):
            return CORRUPTED
        if hole_fits(section, hole_off, size_bytes, align_bytes):
            found_off[0] = hole_off
            return OK
        hole_off = block_at(section, hole_off).next_off
        n_tries -= 1
    return NOT_FOUND


cdef inline int tlsf_find(section_t* section, uint64_t size_bytes, uint64_t align_bytes, uint64_t* found_off) noexcept nogil:
    """Find a hole for the block: one of its own size class if one of the first fits, else the first of a larger class."""
    cdef uint32_t first = 0, second = 0, bits
    cdef uint64_t first_bits, bound_bytes = size_bytes
    cdef free_index_t* index = section.index
    cdef int status
    tlsf_class(size_bytes, &first, &second)
    if first >= TLSF_FIRST_LEVELS:
        return NOT_FOUND
    status = tlsf_scan(section, index.head_off[first][second], N_EXACT_TRIES, size_bytes, align_bytes, found_off)
    if status != NOT_FOUND:
        return status
    if align_bytes > 16:
        bound_bytes += align_bytes + BLOCK_MIN_BYTES
    tlsf_class(tlsf_round_up(bound_bytes), &first, &second)
    if first >= TLSF_FIRST_LEVELS:
        return NOT_FOUND
    bits = index.second_bitmap[first] & (~<uint32_t>0 << second)
    if bits == 0:
        first_bits = index.first_bitmap & ~((<uint64_t>2 << first) - 1)
        if first_bits == 0:
            return NOT_FOUND
        first = __builtin_ctzll(first_bits)
        if damaged(first >= TLSF_FIRST_LEVELS):
            return CORRUPTED
        bits = index.second_bitmap[first]
        if damaged(bits == 0):
            return CORRUPTED
    second = __builtin_ctz(bits)
    status = tlsf_scan(section, index.head_off[first][second], 1, size_bytes, align_bytes, found_off)
    return CORRUPTED if status == NOT_FOUND else status


# -- next fit: a circular list of holes ----------------------------------------------------------------

cdef inline int next_fit_insert(section_t* section, uint64_t hole_off) noexcept nogil:
    cdef block_t* hole = block_at(section, hole_off)
    cdef uint64_t at_off = load_relaxed_u64(&section.index.rover_off), previous_off
    if at_off == 0:
        hole.next_off = hole.previous_off = hole_off
    else:
        if damaged(not hole_is_plausible(section, at_off)):
            return CORRUPTED
        previous_off = load_relaxed_u64(&block_at(section, at_off).previous_off)
        if damaged(not hole_is_plausible(section, previous_off)):
            return CORRUPTED
        hole.next_off = at_off
        hole.previous_off = previous_off
        block_at(section, previous_off).next_off = hole_off
        block_at(section, at_off).previous_off = hole_off
    section.index.rover_off = hole_off
    return OK


cdef inline int next_fit_remove(section_t* section, uint64_t hole_off) noexcept nogil:
    cdef block_t* hole = block_at(section, hole_off)
    cdef uint64_t next_off = load_relaxed_u64(&hole.next_off), previous_off = load_relaxed_u64(&hole.previous_off)
    if next_off == hole_off:
        section.index.rover_off = 0
        return OK
    if damaged(not hole_is_plausible(section, next_off) or not hole_is_plausible(section, previous_off)):
        return CORRUPTED
    block_at(section, next_off).previous_off = previous_off
    block_at(section, previous_off).next_off = next_off
    if section.index.rover_off == hole_off:
        section.index.rover_off = next_off
    return OK


cdef inline int next_fit_find(section_t* section, uint64_t size_bytes, uint64_t align_bytes, uint64_t* found_off) noexcept nogil:
    """Find the first hole from the roving pointer on that fits the block, and move the pointer there."""
    cdef uint64_t hole_off = section.index.rover_off
    cdef uint64_t steps_left = section.header.hole_blocks + 1, most = (heap_top(section) - section.heap_start) // BLOCK_MIN_BYTES
    if hole_off == 0:
        return NOT_FOUND
    if damaged(steps_left > most):
        return CORRUPTED                 # more holes than the heap can have
    while steps_left:
        if damaged(not hole_is_plausible(section, hole_off)):
            return CORRUPTED
        if hole_fits(section, hole_off, size_bytes, align_bytes):
            section.index.rover_off = hole_off
            found_off[0] = hole_off
            return OK
        hole_off = block_at(section, hole_off).next_off
        if hole_off == section.index.rover_off:
            return NOT_FOUND
        steps_left -= 1
    return CORRUPTED


# -- the interface --------------------------------------------------------------------------------------

cdef inline void index_reset(section_t* section) noexcept nogil:
    memset(section.index, 0, sizeof(free_index_t))


cdef inline int index_insert(section_t* section, uint64_t hole_off, uint64_t size_bytes) noexcept nogil:
    section.header.hole_blocks += 1
    section.header.hole_bytes += size_bytes
    if section.header.index_kind == INDEX_NEXT_FIT:
        return next_fit_insert(section, hole_off)
    return tlsf_insert(section, hole_off, size_bytes)


cdef inline int index_remove(section_t* section, uint64_t hole_off, uint64_t size_bytes) noexcept nogil:
    section.header.hole_blocks -= 1
    section.header.hole_bytes -= size_bytes
    if section.header.index_kind == INDEX_NEXT_FIT:
        return next_fit_remove(section, hole_off)
    return tlsf_remove(section, hole_off, size_bytes)


cdef inline int index_find(section_t* section, uint64_t size_bytes, uint64_t align_bytes, uint64_t* found_off) noexcept nogil:
    """Find the offset of a hole in which the block fits: 0, NOT_FOUND, or CORRUPTED.  The hole stays in the index."""
    if section.header.index_kind == INDEX_NEXT_FIT:
        return next_fit_find(section, size_bytes, align_bytes, found_off)
    return tlsf_find(section, size_bytes, align_bytes, found_off)


cdef inline uint64_t index_largest(section_t* section) noexcept nogil:
    """Return the size of the largest hole, 0 if there is none; of more than `N_LOOKED_AT` in question, the largest of those looked at.

    In question are with TLSF the holes of the largest class, which differ by at most 1/32, and with next fit all.
    """
    cdef free_index_t* index = section.index
    cdef uint64_t hole_off = index.rover_off, largest = 0, first_off
    cdef uint32_t first
    cdef int n_left = N_LOOKED_AT
    if section.header.index_kind != INDEX_NEXT_FIT:
        first = 63 - __builtin_clzll(index.first_bitmap) if index.first_bitmap else TLSF_FIRST_LEVELS
        if first >= TLSF_FIRST_LEVELS or index.second_bitmap[first] == 0:
            return 0
        hole_off = index.head_off[first][31 - __builtin_clz(index.second_bitmap[first])]
    first_off = hole_off
    while n_left and hole_off != 0 and hole_is_plausible(section, hole_off):
        if tag_size(block_at(section, hole_off).tag) > largest:
            largest = tag_size(block_at(section, hole_off).tag)
        hole_off = block_at(section, hole_off).next_off
        n_left = 0 if hole_off == first_off else n_left - 1
    return largest
