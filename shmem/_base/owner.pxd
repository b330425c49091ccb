# cython: language_level=3
"""The owner word, by which a participant signs what it owns: a gate, `upgrade`, a mutex.

::

    bits 0..15      index + 1 of the owner's participant entry; 0: no owner
    bits 16..31     flags of the kind of word: GATE_WAITERS of `_sync/gate.pxd`, those of `_sync/storage_lock.pxd`; a mutex
                    and `upgrade` have none
    bits 32..63     generation of that entry when its owner took it

Each owner of an entry has a generation of its own, so the word of a dead owner never names the next owner of its entry.
The word `readers` of an entry has the generation in the same half, beside a count in the low half.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    OWNER_INDEX_MASK = 0xffff
    OWNER_GENERATION_SHIFT = 32
    GATE_WAITERS = 0x80000000
    READERS_COUNT_MASK = 0xffffffff          # in `readers`


cdef inline uint64_t owner_word(uint32_t index, uint32_t generation) noexcept nogil:
    """Return the word by which the participant of entry `index` signs."""
    return <uint64_t>generation << OWNER_GENERATION_SHIFT | (index + 1)


cdef inline bint word_has_owner(uint64_t word) noexcept nogil:
    return word & OWNER_INDEX_MASK != 0


cdef inline uint32_t owner_index(uint64_t word) noexcept nogil:
    """Return the index of the owner's entry, unchecked; UINT32_MAX, which is never an index, for a word without an owner."""
    return <uint32_t>(word & OWNER_INDEX_MASK) - 1


cdef inline uint32_t owner_generation(uint64_t word) noexcept nogil:
    """Return the generation in an owner word, or in the word `readers` of an entry."""
    return <uint32_t>(word >> OWNER_GENERATION_SHIFT)


cdef inline uint32_t readers_count(uint64_t readers) noexcept nogil:
    """Return the number of threads that a word `readers` counts."""
    return <uint32_t>(readers & <uint64_t>READERS_COUNT_MASK)


cdef inline uint64_t readers_none(uint64_t readers) noexcept nogil:
    """Return a word `readers` with the same generation and a count of 0."""
    return readers >> OWNER_GENERATION_SHIFT << OWNER_GENERATION_SHIFT
