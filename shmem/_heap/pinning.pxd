# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t

# Set this participant's pin of a block: OK, INVALID_BLOCK, ALREADY_FREED, CORRUPTED, WOULD_BLOCK, INTERRUPTED, or why there is no memory
# for a record of pins.  Nothing has been changed then.
cdef int block_pin(section_t* section, uint64_t payload_off, uint64_t serial, heap_wait_t wait) noexcept nogil
# Copy the bits of the live participants that have views of a block, in `pin_words` words: OK, INVALID_BLOCK, ALREADY_FREED, CORRUPTED, ...
# It pins nothing.
cdef int block_look_at_pins(section_t* section, uint64_t payload_off, uint64_t serial, uint64_t* bits, heap_wait_t wait) noexcept nogil
# Clear it; free the block if that was the last pin and the block has no name.  For each pin that was set, also if the block is gone.
cdef int block_unpin(section_t* section, uint64_t payload_off, uint64_t serial, heap_wait_t wait) noexcept nogil
