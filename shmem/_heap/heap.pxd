# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t

cdef enum:
    HEAP_ZERO = 1            # clear the payload
    HEAP_NOWAIT = 2          # return WOULD_BLOCK instead of waiting for the gate or growing the file
    HEAP_PENDING = 4         # leave the block PENDING: the caller fills it, then calls heap_commit
    HEAP_STOP = 8            # return INTERRUPTED, with nothing done, after each slice of waiting for the gate; the caller checks signals

cdef enum:
    LOOK_EVERY = 512         # allocations of a process, after which one looks for what dead participants left

# How long to wait for the gate.
cdef enum heap_wait_t:
    DO_NOT_WAIT = 0          # return WOULD_BLOCK if the gate is taken
    WAIT_FOREVER = 1
    WAIT_A_SLICE = 2         # return INTERRUPTED, with nothing done, after a slice of sleep or a signal: the caller checks for signals

cdef int heap_enter(section_t* section, heap_wait_t wait) noexcept nogil
cdef int heap_enter_to_change(section_t* section, heap_wait_t wait) noexcept nogil
cdef void heap_leave(section_t* section) noexcept nogil

cdef int heap_allocate(section_t* section, uint64_t request_bytes, uint64_t align_bytes, uint32_t type_id, int flags,
                       uint64_t* payload_off) noexcept nogil
cdef void heap_commit(section_t* section, uint64_t payload_off, uint32_t type_id) noexcept nogil
cdef void heap_abandon(section_t* section, uint64_t payload_off) noexcept nogil
# whether a thread of this process is between allocating a PENDING block and its commit
cdef bint heap_is_filled(section_t* section) noexcept nogil
cdef int heap_free(section_t* section, uint64_t payload_off, uint64_t serial, int flags) noexcept nogil
cdef int heap_set_root(section_t* section, uint64_t payload_off, uint64_t serial, bint only_if_unset, heap_wait_t wait) noexcept nogil
cdef int heap_sweep(section_t* section, heap_wait_t wait, uint64_t* n_bytes) noexcept nogil
cdef int heap_trim(section_t* section, heap_wait_t wait) noexcept nogil

# for callers that own the reserve gate, and not the heap gate
cdef int heap_give_back(section_t* section, heap_wait_t wait) noexcept nogil

# for callers that own the heap gate
cdef int heap_check_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
cdef int heap_check_users_block(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
cdef int heap_release(section_t* section, uint64_t payload_off) noexcept nogil
# the same for a block that may have been pinned, or have attributes: they end with it.  An intent of the caller has nothing left to do
cdef int heap_release_with_pins(section_t* section, uint64_t payload_off) noexcept nogil
# free the record, and clear the slots, of a block that was freed
cdef int heap_forget_pins(section_t* section, uint64_t payload_off) noexcept nogil
# call it before a function of `pins.pxd` for this block: OK, or CORRUPTED if recovery could not rebuild the index of records
cdef int heap_mend_pins(section_t* section, uint64_t payload_off) noexcept nogil
# allocate a PENDING block from what is at hand: WOULD_BLOCK or an error if that takes more, for which heap_allocate is there
cdef int heap_allocate_at_hand(section_t* section, uint64_t request_bytes, uint64_t* payload_off) noexcept nogil
cdef int heap_end_block(section_t* section, uint64_t payload_off) noexcept nogil
cdef int heap_flush_cache(section_t* section) noexcept nogil
cdef int block_become_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil
# whether the last block ends at `top`: checked before the memory above it is written, truncated or returned to the file system
cdef bint heap_top_is_right(section_t* section) noexcept nogil
