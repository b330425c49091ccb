# cython: language_level=3
"""Checks of values that are read from a section, shared by several modules.

A value is loaded once, and the local copy is checked and used, because another process may write to the original meanwhile.
`damaged` marks a check, so that its cost can be measured: in a build with ``-DSHMEM_CHECKS=0`` it is always False.
`docs/decisions/damage.md` lists what is checked where.
"""

from libc.stdint cimport uint32_t, uint64_t
from shmem._atomics cimport load_acquire_u64, load_relaxed_u64, load_seq_cst_u32
from shmem._base.accessors cimport payload_bytes, payload_to_block, seal, serial_slack, tag_size, tag_state
from shmem._base.layout cimport BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, SERIAL_MASK, STATE_USED, block_t
from shmem._base.section cimport block_at, section_t, word_at

cdef extern from *:
    """
    #ifndef SHMEM_CHECKED
    #define SHMEM_CHECKED
    #ifndef SHMEM_CHECKS
    #define SHMEM_CHECKS 1
    #endif
    #define damaged(condition) (SHMEM_CHECKS && __builtin_expect(!!(condition), 0))
    #define rarely(condition) __builtin_expect(!!(condition), 0)
    #endif
    """
    bint damaged(bint condition) noexcept nogil
    bint rarely(bint condition) noexcept nogil        # puts the code for a condition that is almost never true out of the way


cdef inline uint64_t heap_top(section_t* section) noexcept nogil:
    """Return `top` as a bound for offsets; `heap_start`, below which no block ends, if `top` cannot be right."""
    cdef uint64_t top = load_relaxed_u64(&section.header.top)
    if damaged(top - section.heap_start > section.size_bytes - section.heap_start):
        return section.heap_start
    return top


cdef inline bint size_fits(uint64_t block_off, uint64_t size_bytes, uint64_t top) noexcept nogil:
    """Return whether a block of this size can lie at this offset."""
    return block_off < top and BLOCK_MIN_BYTES <= size_bytes and size_bytes <= top - block_off


cdef inline bint is_sealed(section_t* section, uint64_t block_off, uint64_t size_bytes) noexcept nogil:
    """Return whether the rear tag confirms this size, for which `size_fits` holds."""
    return word_at(section, block_off + size_bytes - BLOCK_REAR_BYTES)[0] == seal(section.salt, size_bytes, block_off + size_bytes)


cdef inline uint32_t participants_bound(section_t* section) noexcept nogil:
    """Return the number of entries that a scan of the participant table visits."""
    cdef uint32_t high = load_seq_cst_u32(&section.header.participants_high)
    return section.max_participants if damaged(high > section.max_participants) else high


cdef inline uint64_t block_room(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the payload bytes of the block whose payload begins at this checked offset; 0 if its tag holds an impossible size."""
    cdef uint64_t block_off = payload_to_block(payload_off)
    cdef uint64_t size_bytes = tag_size(load_acquire_u64(&block_at(section, block_off).tag))
    return 0 if damaged(not size_fits(block_off, size_bytes, section.size_bytes)) else payload_bytes(size_bytes)


cdef inline uint64_t used_tag(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the tag of the used block whose payload begins at this unchecked offset; 0 if no used block can begin there."""
    cdef uint64_t block_off = payload_to_block(payload_off), top = heap_top(section), tag
    if damaged(payload_off & 15 or block_off < section.heap_start or block_off > top - BLOCK_MIN_BYTES):
        return 0
    tag = load_acquire_u64(&block_at(section, block_off).tag)
    return 0 if tag_state(tag) != STATE_USED or damaged(not size_fits(block_off, tag_size(tag), top)) else tag


cdef inline bint block_is_stale(const block_t* block, uint64_t serial) noexcept nogil:
    """Return whether this is no longer the used block with this serial: it was freed, and its place perhaps used again.

    A block is freed by the store of its tag.  A second store clears the serial, and a process may be killed between the two.  The serial
    alone is therefore not enough to recognise a freed block.  Bits of `serial` above `SERIAL_MASK` are ignored.
    """
    return (rarely(tag_state(load_acquire_u64(&block.tag)) != STATE_USED)
            or rarely(((load_relaxed_u64(&block.serial) ^ serial) & SERIAL_MASK) != 0))


cdef inline bint slack_fits(uint64_t serial_word, uint64_t room_bytes) noexcept nogil:
    """Return whether the slack in a serial word is at most the payload of the block."""
    return serial_slack(serial_word) <= room_bytes
