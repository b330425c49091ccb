# cython: language_level=3
"""The chain of front tags, walked from `heap_start` to `top` without trusting it.

Callers own the heap gate, or have exclusive use of the section.
"""

from libc.stdint cimport uint64_t
from shmem._base.accessors cimport tag_has_right_format, tag_size, tag_state
from shmem._base.bounds cimport size_fits
from shmem._base.layout cimport STATE_HOLE, STATE_LAST
from shmem._base.section cimport section_t


cdef inline bint tag_is_plausible(uint64_t block_off, uint64_t tag, uint64_t top) noexcept nogil:
    """Whether a front tag has a known state, the format for it, and a size that fits below `top`."""
    return (STATE_HOLE <= tag_state(tag) and tag_state(tag) <= STATE_LAST and tag_has_right_format(tag)
            and size_fits(block_off, tag_size(tag), top))


cdef enum:
    FAULT_TOP = 1                # not an offset of a block

# Return the offset of the first front tag that is not plausible; 0 if the chain is intact, FAULT_TOP if `top` itself is invalid.
cdef uint64_t chain_first_fault(section_t* section) noexcept nogil
# Return whether a block begins at this offset, by walking the chain; for error messages.
cdef bint chain_has_block(section_t* section, uint64_t block_off) noexcept nogil
