# cython: language_level=3
"""The calls of a queue's ring: `_objects/queue_ring.pyx`."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.status cimport OK, QUEUE_EMPTY, QUEUE_FULL, WOULD_BLOCK
from shmem._bridge.blocks cimport Placed
from shmem._bridge.calls cimport deadline_argument, step_t
from shmem._objects.arrays cimport Hold
from shmem._sync.ring cimport batch_t, ring_get_try, ring_put_try, ring_t

cdef enum:
    SMALL_BYTES = 65536           # up to here a copy does not give up the GIL


ctypedef struct ring_call_t:              # arguments of the steps
    ring_t* ring
    batch_t* batch
    int64_t deadline_ns
    bint drop


cdef class RingCaller(Placed):
    """Base of `Queue`: its ring, and the calls of it.  `what` is the operation in error messages."""
    cdef ring_t ring
    cdef Hold hold                    # the pin of the queue, from its first use on
    cdef uint32_t n_inside            # threads that are in the ring without the GIL
    cdef object __weakref__
    cdef int take_hold(self, str what) except -1                  # pin the queue, unless it is pinned
    cdef int fail(self, int status, str what) except -1           # raise the exception for a status
    cdef int run(self, step_t step, ring_call_t* call) except? -200
    cdef int check_open(self, str what) except -1                 # raise unless the handle is open and may write
    cdef int wait(self, batch_t* batch, bint is_put, int64_t deadline_ns, str what) except? -200
    cdef bint put_batch(self, char* data, uint64_t n_items, uint64_t length, int64_t deadline_ns, uint64_t* n_done) except -1
    cdef int get_batch(self, batch_t* batch, int64_t deadline_ns) except -1
    cdef uint64_t count(self, str what) except? 0xffffffffffffffff
    cdef int shut_down(self, bint drop) except -1


cdef inline int64_t queue_deadline(object block, object timeout) except? -2:
    """The deadline of a call; a timeout is ignored unless the call waits, as in `queue.Queue`."""
    if block is not True and not block:
        return AT_ONCE
    return FOREVER if timeout is None else deadline_argument(timeout)


cdef inline int put_one(RingCaller queue, char* data, uint64_t length, int64_t deadline_ns) except -1:
    cdef batch_t batch
    cdef int status = WOULD_BLOCK
    batch.data, batch.n_items, batch.n_done, batch.length = data, 1, 0, length
    if length <= SMALL_BYTES:
        status = ring_put_try(&queue.ring, &batch)
    if status == WOULD_BLOCK or (status == QUEUE_FULL and deadline_ns != AT_ONCE):
        status = queue.wait(&batch, True, deadline_ns, "put")
    if status != OK:
        queue.fail(status, "put")
    return 0


cdef inline int get_one(RingCaller queue, char* data, uint64_t* length, int64_t deadline_ns) except -1:
    cdef batch_t batch
    cdef int status = WOULD_BLOCK
    batch.data, batch.n_items, batch.n_done, batch.length = data, 1, 0, 0
    if queue.ring.record_bytes <= SMALL_BYTES:
        status = ring_get_try(&queue.ring, &batch)
    if status == WOULD_BLOCK or (status == QUEUE_EMPTY and deadline_ns != AT_ONCE):
        status = queue.wait(&batch, False, deadline_ns, "get")
    if status != OK:
        queue.fail(status, "get")
    length[0] = batch.length
    return 0
