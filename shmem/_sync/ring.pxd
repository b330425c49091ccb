# cython: language_level=3
"""The ring behind `Queue`: what `_sync/ring.pyx` offers.  States, and who wakes whom, stand there.

Functions return 0 or a status; none needs the GIL.  A deadline is in nanoseconds of the monotonic clock, `FOREVER` or `AT_ONCE`.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.layout cimport queue_t, round_up
from shmem._base.section cimport section_t

cdef extern from *:
    """
    #define PACKED UINT64_MAX
    """
    const uint64_t PACKED

ctypedef struct ring_t:            # what this process knows of a queue: checked when it was opened, and never read from the section again
    section_t* section
    queue_t* at
    char* data
    uint64_t serial
    uint64_t capacity
    uint64_t slot_bytes
    uint64_t record_bytes
    uint32_t kind
    uint32_t type_id
    uint32_t text_bytes
    bint is_bytes
    uint32_t put_spins             # how long to look before sleeping: learnt
    uint32_t get_spins

# What is to be put, or room for what is got.  Records lie side by side.  A byte string lies there alone, its length in `length`;
# or several are PACKED, each a length word and its bytes, rounded up to words.
ctypedef struct batch_t:
    char* data                     # moves on with what is done
    uint64_t n_items               # still to be put; or how many to get at most
    uint64_t n_done
    uint64_t length
    uint64_t n_bytes               # PACKED, to get: how many bytes fit


cdef inline uint64_t packed_bytes(uint64_t length) noexcept nogil:
    """What a byte string of that length takes, packed or in a slot."""
    return sizeof(uint64_t) + round_up(length, sizeof(uint64_t))


# Every number of a queue's header that leads somewhere, against the size of its block: CORRUPTED when one does not fit
cdef int ring_open(ring_t* ring, section_t* section, queue_t* queue, uint64_t serial, uint64_t room_bytes) noexcept nogil
# As much as can be done at once: WOULD_BLOCK when the gate is taken, QUEUE_FULL or QUEUE_EMPTY, QUEUE_CLOSED, INVALID_BLOCK, CORRUPTED
cdef int ring_put_try(ring_t* ring, batch_t* batch) noexcept nogil
cdef int ring_get_try(ring_t* ring, batch_t* batch) noexcept nogil
# Wait: until all is put, or something was got.  TIMEOUT_EXPIRED: the gate was not let go of in time.  INTERRUPTED only with
# `stop_for_signals`
cdef int ring_put(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef int ring_get(ring_t* ring, batch_t* batch, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# Nothing more is put from now on; `immediate`: nothing more is got either
cdef int ring_shut_down(ring_t* ring, bint immediate, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# How many messages there are; CORRUPTED
cdef int ring_count(queue_t* queue, uint64_t capacity, uint64_t* n_items) noexcept nogil
