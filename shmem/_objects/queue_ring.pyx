# cython: language_level=3
"""The calls of a queue's ring: with the GIL or without it, waiting, and from a status to an exception.

The first attempt is made with the GIL held, because it takes a fraction of a microsecond.  A caller that must wait, or copy much, releases
the GIL.

A queue is pinned from its first use until the object is gone, or the queue was freed and no thread is inside (`_heap/pins.pyx`).  So its
memory is given to nothing else while a thread is in the ring, whenever the queue is freed, and a use costs no more than a look.  A child
of a fork takes a pin of its own.  At exit, queues that no thread uses are let go, so that the process need not rest.
"""

import weakref

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

from shmem._base import errors
from shmem._base.public import refuse_construction

from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.layout cimport queue_t
from shmem._base.section cimport section_t
from shmem._base.status cimport (
    ALREADY_FREED, CORRUPTED, INTERRUPTED, INVALID_BLOCK, OK, QUEUE_CLOSED, QUEUE_EMPTY, QUEUE_FULL, READ_ONLY, TIMEOUT_EXPIRED,
    WOULD_BLOCK)
from shmem._bridge.blocks cimport Placed, placed_is_stale
from shmem._bridge.calls cimport check, run_step, step_t
from shmem._objects.arrays cimport hold_is_mine, hold_queue
from shmem._sync.ring cimport batch_t, ring_count, ring_get, ring_get_try, ring_put, ring_put_try, ring_shut_down


cdef int _put_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_put(call.ring, call.batch, call.deadline_ns, True)


cdef int _get_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_get(call.ring, call.batch, call.deadline_ns, True)


cdef int _shut_down_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_shut_down(call.ring, call.drop, FOREVER, True)


_used = weakref.WeakValueDictionary()            # id -> queue, of those that took a pin


cdef class RingCaller(Placed):
    """Base of `Queue`: its ring, and the calls of it."""

    cdef int fail(self, int status, str what) except -1:
        """Raise the exception for a status."""
        if status == QUEUE_FULL:
            raise errors.QueueFull(f"{what}: all {self.ring.capacity:,} places of the queue are taken")
        if status == QUEUE_EMPTY:
            raise errors.QueueEmpty(f"{what}: the queue is empty")
        if status == QUEUE_CLOSED:
            raise errors.QueueShutDown(f"{what}: the queue was shut down")
        if status == TIMEOUT_EXPIRED:
            kind = errors.QueueFull if what.startswith("put") else errors.QueueEmpty
            raise kind(f"{what}: another process stands still in the middle of an operation on the queue; let it continue, or kill it")
        if status == CORRUPTED:
            error = errors.HeapCorruption(f"{what}: the queue at offset {self.payload_off():#x} is damaged, its counters or the length of "
                                          "a message are impossible: a process wrote over it; make a new queue")
            error.offset = self.payload_off()
            raise error
        if status == INVALID_BLOCK or status == ALREADY_FREED:
            self.let_go()
            raise errors.InvalidBlock(f"{what}: the queue at offset {self.payload_off():#x} was freed")
        return check(status, self.mapping, what)

    cdef int take_hold(self, str what) except -1:
        cdef int status = OK
        if hold_is_mine(self.hold):
            return 0
        if self.hold is not None:
            self.n_inside = 0                    # threads of the parent
        self.hold = hold_queue(self.mapping, self.payload_off(), self.serial, &status)
        if status != OK:
            self.hold = None
            self.fail(status, what)
        _used[id(self)] = self
        return 0

    cdef void let_go(self):
        if self.n_inside == 0:
            self.hold = None

    cdef int check_open(self, str what) except -1:
        if not self.mapping.is_open:
            raise errors.ClosedError(f"{what}: the SharedMemory through which this queue was opened was closed")
        if not self.mapping.writable:
            check(READ_ONLY, self.mapping, what)
        return 0

    cdef int wait(self, batch_t* batch, bint is_put, int64_t deadline_ns, str what) except? -200:
        """The slow path, without the GIL, which checks for signals between slices of sleep; return the status."""
        cdef ring_call_t call
        cdef step_t step = _put_step if is_put else _get_step
        call.ring, call.batch, call.deadline_ns = &self.ring, batch, deadline_ns
        cdef int status = self.run(step, &call)
        while status == INTERRUPTED:
            PyErr_CheckSignals()
            self.check_open(what)
            self.take_hold(what)                 # a signal handler may have forked
            status = self.run(step, &call)
        return status

    cdef int run(self, step_t step, ring_call_t* call) except? -200:
        """Run a step without the GIL; the queue stays pinned meanwhile."""
        self.n_inside += 1
        try:
            return run_step(self.mapping.section, step, call)
        finally:
            self.n_inside -= 1

    cdef bint put_batch(self, char* data, uint64_t n_items, uint64_t length, int64_t deadline_ns, uint64_t* n_done) except -1:
        """Put as many as possible, and add their number to `n_done`; return whether that was all."""
        cdef batch_t batch
        cdef int status = WOULD_BLOCK
        batch.data, batch.n_items, batch.n_done, batch.length = data, n_items, 0, length
        if n_items <= SMALL_BYTES // self.ring.slot_bytes:
            status = ring_put_try(&self.ring, &batch)
        if status == WOULD_BLOCK or (deadline_ns != AT_ONCE and (status == QUEUE_FULL or (status == OK and batch.n_items))):
            status = self.wait(&batch, True, deadline_ns, "put_many")
        n_done[0] += batch.n_done
        if status != OK and status != QUEUE_FULL and not (n_done[0] and (status == QUEUE_CLOSED or status == TIMEOUT_EXPIRED)):
            self.fail(status, "put_many")
        return batch.n_items == 0

    cdef int get_batch(self, batch_t* batch, int64_t deadline_ns) except -1:
        cdef int status = WOULD_BLOCK
        if self.ring.slot_bytes <= SMALL_BYTES and batch.n_items <= SMALL_BYTES // self.ring.slot_bytes:
            status = ring_get_try(&self.ring, batch)
        if status == WOULD_BLOCK or (status == QUEUE_EMPTY and deadline_ns != AT_ONCE):
            status = self.wait(batch, False, deadline_ns, "get_many")
        if status != OK:
            self.fail(status, "get_many")
        return 0

    cdef uint64_t count(self, str what) except? 0xffffffffffffffff:
        """The number of items; also through a handle that was opened read-only."""
        cdef uint64_t n_items = 0
        cdef int status = OK
        if not self.mapping.is_open:
            self.check_open(what)
        if placed_is_stale(self):
            status = INVALID_BLOCK
        else:
            status = ring_count(<queue_t*>self.data, self.ring.capacity, &n_items)
            if status == CORRUPTED and placed_is_stale(self):
                status = INVALID_BLOCK           # a handle that has not used the queue does not pin it
        if status != OK:
            self.fail(status, what)
        return n_items

    cdef int shut_down(self, bint drop) except -1:
        cdef ring_call_t call
        cdef int status = INTERRUPTED
        call.ring, call.drop = &self.ring, drop
        while status == INTERRUPTED:
            self.check_open("shutdown")
            self.take_hold("shutdown")
            status = self.run(_shut_down_step, &call)
            PyErr_CheckSignals()
        if status != OK:
            self.fail(status, "shutdown")
        return 0


refuse_construction(RingCaller)


def let_go_of_queues():
    """Drop the pins of queues that no thread uses; a thread that uses one again takes a new pin."""
    cdef RingCaller queue
    for queue in list(_used.values()):
        queue.let_go()
