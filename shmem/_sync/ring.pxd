# cython: language_level=3
"""The ring behind `Queue`: the declarations of `_sync/ring.pyx`, where its states and wake-ups are described.

Functions return 0 or a status; none needs the GIL.  Deadlines: `_base/deadline.pxd`.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.accessors cimport round_up
from shmem._base.layout cimport queue_t
from shmem._base.section cimport section_t

cdef extern from *:
    """
    #define PACKED UINT64_MAX
    """
    const uint64_t PACKED

ctypedef struct ring_t:            # this process's copy of a queue's constants: checked when it was opened, then never read again
    section_t* section
    queue_t* at
    char* data
    char* text                     # of the dtype
    uint64_t serial
    uint64_t capacity
    uint64_t slot_bytes
    uint64_t record_bytes
    uint32_t kind
    uint32_t type_id
    uint32_t text_bytes
    bint is_bytes
    uint32_t put_spins             # how often to poll before sleeping: adaptive
    uint32_t get_spins

# Messages to put, or room for messages to get.  Records are contiguous.  A single byte string has its length in `length`;
# several are PACKED, each as a length word and its bytes, rounded up to words.
ctypedef struct batch_t:
    char* data                     # advances as messages are put
    uint64_t n_items               # still to be put; or the maximum to get
    uint64_t n_done
    uint64_t length
    uint64_t n_bytes               # PACKED, to get: bytes that fit


cdef inline uint64_t packed_bytes(uint64_t length) noexcept nogil:
    """Return the bytes that a byte string of that length takes, packed or in a slot."""
    return sizeof(uint64_t) + round_up(length, sizeof(uint64_t))


# Check every offset and size in a queue's header against the size of its block: CORRUPTED if one does not fit
cdef int ring_open(ring_t* ring, section_t* section, queue_t* queue, uint64_t serial, uint64_t room_bytes) noexcept nogil
# Put or get what is possible at once: WOULD_BLOCK if the gate is taken, QUEUE_FULL or QUEUE_EMPTY, QUEUE_CLOSED, INVALID_BLOCK, CORRUPTED
cdef int ring_put_try(ring_t* ring, batch_t* batch) noexcept nogil
cdef int ring_get_try(ring_t* ring, batch_t* batch) noexcept nogil
# Wait until all is put, or something was got.  TIMEOUT_EXPIRED: the gate stayed closed.  INTERRUPTED only with
# `stop_for_signals`
cdef int ring_put(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef int ring_get(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# Shut down: no more messages can be put or, with `immediate`, got
cdef int ring_shut_down(ring_t* ring, bint immediate, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# Count the messages; CORRUPTED
cdef int ring_count(queue_t* queue, uint64_t capacity, uint64_t* n_items) noexcept nogil
