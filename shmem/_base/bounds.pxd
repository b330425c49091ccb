# cython: language_level=3
"""What is read from a section is checked before it is used: the checks that several modules make.

A value is loaded once, the local copy checked, and the copy used: another process may write meanwhile.  `damaged` marks a check, so that
its cost can be measured: built with ``-DSHMEM_CHECKS=0`` it is always False.  What is checked where stands in
`docs/decisions/damage.md`.
"""

from libc.stdint cimport uint32_t, uint64_t
from shmem._atomics cimport load_acquire_u64, load_relaxed_u64, load_seq_cst_u32
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, SERIAL_MASK, STATE_USED, block_t, payload_bytes, payload_to_block, seal, serial_slack,
    tag_size, tag_state)
from shmem._base.section cimport block_at, section_t, word_at

cdef extern from *:
    """
    #ifndef SHMEM_CHECKED
    #define SHMEM_CHECKED
    #ifndef SHMEM_CHECKS
    #define SHMEM_CHECKS 1
    #endif
    #define damaged(condition) (SHMEM_CHECKS && __builtin_expect(!!(condition), 0))
    #endif
    """
    bint damaged(bint condition) noexcept nogil


cdef inline uint64_t heap_top(section_t* section) noexcept nogil:
    """`top` as a bound for offsets; where it cannot be right, `heap_start`, below which no block ends."""
    cdef uint64_t top = load_relaxed_u64(&section.header.top)
    if damaged(top - section.heap_start > section.size_bytes - section.heap_start):
        return section.heap_start
    return top


cdef inline bint size_fits(uint64_t block_off, uint64_t size_bytes, uint64_t top) noexcept nogil:
    """Whether a block of that size may lie there."""
    return block_off < top and BLOCK_MIN_BYTES <= size_bytes and size_bytes <= top - block_off


cdef inline bint is_sealed(section_t* section, uint64_t block_off, uint64_t size_bytes) noexcept nogil:
    """Whether the rear tag says this size, which fits."""
    return word_at(section, block_off + size_bytes - BLOCK_REAR_BYTES)[0] == seal(section.salt, size_bytes, block_off + size_bytes)


cdef inline uint32_t participants_bound(section_t* section) noexcept nogil:
    """How many entries a scan looks at."""
    cdef uint32_t high = load_seq_cst_u32(&section.header.participants_high)
    return section.max_participants if damaged(high > section.max_participants) else high


cdef inline uint64_t block_room(section_t* section, uint64_t payload_off) noexcept nogil:
    """Payload bytes of the block whose payload begins here, an offset that was checked; 0 when its tag says what cannot be."""
    cdef uint64_t block_off = payload_to_block(payload_off)
    cdef uint64_t size_bytes = tag_size(load_acquire_u64(&block_at(section, block_off).tag))
    return 0 if damaged(not size_fits(block_off, size_bytes, section.size_bytes)) else payload_bytes(size_bytes)


cdef inline uint64_t used_tag(section_t* section, uint64_t payload_off) noexcept nogil:
    """The tag of the used block whose payload begins at this number, which was found in a section; 0 when none can begin there."""
    cdef uint64_t block_off = payload_to_block(payload_off), top = heap_top(section), tag
    if damaged(payload_off & 15 or block_off < section.heap_start or block_off > top - BLOCK_MIN_BYTES):
        return 0
    tag = load_acquire_u64(&block_at(section, block_off).tag)
    return 0 if tag_state(tag) != STATE_USED or damaged(not size_fits(block_off, tag_size(tag), top)) else tag


cdef inline bint block_is_stale(const block_t* block, uint64_t serial) noexcept nogil:
    """Whether this is no longer the used block with that serial: it was freed, and its place perhaps used again.

    The store of the tag frees a block, a second store clears the serial, and a process may be killed between the two.  The serial alone
    would therefore take a freed block for a used one.  Bits of `serial` above those of a serial are ignored.
    """
    return tag_state(load_acquire_u64(&block.tag)) != STATE_USED or ((load_relaxed_u64(&block.serial) ^ serial) & SERIAL_MASK) != 0


cdef inline bint slack_fits(uint64_t serial_word, uint64_t room_bytes) noexcept nogil:
    """Whether a block may have so many bytes that were not asked for."""
    return serial_slack(serial_word) <= room_bytes
