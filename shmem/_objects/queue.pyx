# cython: language_level=3
"""`Queue`: the ring as Python sees it, and what an item is.

A queue's block holds `queue_t`, the text of its records' dtype (as an array's block does), and the slots.  For a Struct class it holds
the type id too, so that an opener gets that class, or a generic one.

Items become bytes before the ring is called, and bytes become items after it returned: no Python code runs in a gate.  Every step that
can fail for want of memory comes before an item is taken.  The first attempt is made with the GIL held, for it takes a fraction of a
microsecond.  A caller that must wait, or copy much, releases the GIL.
"""

import operator

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._bridge.blocks import register_opener, travel
from shmem._objects import arrays
from shmem._base import errors
from shmem._base.public import refuse_construction
from shmem._objects import struct as _struct
from shmem._objects.codec import Misfit
from shmem._objects.fields import RefField

from shmem._atomics cimport load_acquire_u32
from shmem._base.bounds cimport used_tag
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.layout cimport LINE_BYTES, QUEUE_BYTES, QUEUE_RECORDS, QUEUE_STRUCT, TYPE_QUEUE, queue_t, queue_text, round_up, tag_type
from shmem._base.section cimport section_t
from shmem._base.status cimport (
    CORRUPTED, INTERRUPTED, INVALID_BLOCK, NO_MEMORY, OK, QUEUE_CLOSED, QUEUE_EMPTY, QUEUE_FULL, READ_ONLY, TIMEOUT_EXPIRED, WOULD_BLOCK)
from shmem._bridge.blocks cimport Placed, allocate_pending, offset_in, place, placed_is_stale
from shmem._bridge.calls cimport check, deadline_argument, run_step, size_argument, step_t
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.heap cimport heap_commit
from shmem._objects.codec cimport NOT_A_NUMBER, Codec, Kind, codec_of, load_number, misfit, plain_buffer, store_number
from shmem._objects.directory cimport give_up_pending, insert_name
from shmem._objects.fields cimport Field, FieldType
from shmem._sync.ring cimport (
    PACKED, batch_t, packed_bytes, ring_count, ring_get, ring_get_try, ring_open, ring_put, ring_put_try, ring_shut_down, ring_t)

cdef extern from "Python.h":
    ctypedef struct PyObject
    PyObject* bytes_of_size "PyBytes_FromStringAndSize" (const char* v, Py_ssize_t n) except NULL
    int bytes_resize "_PyBytes_Resize" (PyObject** bytes, Py_ssize_t n) except -1
    char* bytes_data "PyBytes_AS_STRING" (PyObject* bytes)
    void Py_DECREF(PyObject* obj)

cdef enum:
    SMALL_BYTES = 65536           # up to here a copy does not give up the GIL
    STACK_BYTES = 1024            # up to here a byte string is received on the stack
    CHUNK_BYTES = 262144          # byte strings are packed for transport in pieces of this size


cdef inline int64_t _deadline(object block, object timeout) except? -2:
    """The deadline of a call; a timeout is ignored unless the call waits, as in `queue.Queue`."""
    if block is not True and not block:
        return AT_ONCE
    return FOREVER if timeout is None else deadline_argument(timeout)


ctypedef struct ring_call_t:              # arguments of the steps below
    ring_t* ring
    batch_t* batch
    int64_t deadline_ns
    bint drop


cdef int _put_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_put(call.ring, call.batch, call.deadline_ns, True)


cdef int _get_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_get(call.ring, call.batch, call.deadline_ns, True)


cdef int _shut_down_step(section_t* section, void* request) noexcept nogil:
    cdef ring_call_t* call = <ring_call_t*>request
    return ring_shut_down(call.ring, call.drop, FOREVER, True)


# -- the queue --------------------------------------------------------------------------------------------

cdef class Queue(Placed):
    """A bounded first-in-first-out queue in a section, for any number of producers and consumers, threads and processes.

    Made by `SharedMemory.queue`; other processes get it by name, as the root object, or sent by `multiprocessing`.  It has the interface of
    `queue.Queue`, without `task_done` and `join`.

    A process that works on it may be killed at any instruction.  The items that `put` and `put_many` were about to put are then in the
    queue or not; those that `get` and `get_many` were about to return are still in the queue, or lost with the killed process.  No other
    item is lost, none is delivered twice, and no process waits for a dead one.

    The record that the queue was made for determines its items:

    ==============  ===================================================  ==========================================
    record          put takes                                            get returns
    ==============  ===================================================  ==========================================
    a dtype         a value that fits: a number, a byte string, text,    bool, int, float or complex for such dtypes,
                    a date, a tuple or a record, as a field of that      else numpy's object for it; always a copy
                    type takes; for a dtype with a shape, an array of
                    that shape, or a scalar, which fills it
    ``bytes``       bytes or any other buffer, up to `max_bytes`         bytes
    a Struct class  an object of it in this section; the values of its   a `numpy.record` with the fields as attributes,
                    fields, as a dict or a tuple; a record               references as offsets; a copy
    ==============  ===================================================  ==========================================

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     queue = shm.queue(100, "int64", name="numbers")
    ...     queue.put(7)
    ...     queue.put_many(range(3))
    ...     print(queue.get(), shm["numbers"].get_many(10))
    3
    7 [0 1 2]
    """

    cdef ring_t ring
    cdef Codec codec                  # of a record; None for byte strings
    cdef Kind kind
    cdef readonly object record
    """The type of its items: a dtype, a Struct class, or `bytes`."""
    cdef readonly object dtype
    """The dtype of its records; None for byte strings."""
    cdef object __weakref__

    def __init__(self):
        raise TypeError("a Queue must lie in a section; use SharedMemory.queue(maxsize, record) to make one")

    # -- calls of the ring

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
        if status == INVALID_BLOCK:
            raise errors.InvalidBlock(f"{what}: the queue at offset {self.payload_off():#x} was freed")
        return check(status, self.mapping, what)

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
        cdef int status = run_step(self.mapping.section, step, &call)
        while status == INTERRUPTED:
            PyErr_CheckSignals()
            self.check_open(what)
            status = run_step(self.mapping.section, step, &call)
        return status

    cdef inline int put_one(self, char* data, uint64_t length, int64_t deadline_ns) except -1:
        cdef batch_t batch
        cdef int status = WOULD_BLOCK
        batch.data, batch.n_items, batch.n_done, batch.length = data, 1, 0, length
        if length <= SMALL_BYTES:
            status = ring_put_try(&self.ring, &batch)
        if status == WOULD_BLOCK or (status == QUEUE_FULL and deadline_ns != AT_ONCE):
            status = self.wait(&batch, True, deadline_ns, "put")
        if status != OK:
            self.fail(status, "put")
        return 0

    cdef inline int get_one(self, char* data, uint64_t* length, int64_t deadline_ns) except -1:
        cdef batch_t batch
        cdef int status = WOULD_BLOCK
        batch.data, batch.n_items, batch.n_done, batch.length = data, 1, 0, 0
        if self.ring.record_bytes <= SMALL_BYTES:
            status = ring_get_try(&self.ring, &batch)
        if status == WOULD_BLOCK or (status == QUEUE_EMPTY and deadline_ns != AT_ONCE):
            status = self.wait(&batch, False, deadline_ns, "get")
        if status != OK:
            self.fail(status, "get")
        length[0] = batch.length
        return 0

    # -- one by one

    def put(self, item, block=True, timeout=None):
        """Put an item at the end.

        Parameters
        ----------
        item : object
            See `Queue`.
        block : bool
            Wait until there is room.
        timeout : float, optional
            Seconds to wait; None waits without limit.

        Raises
        ------
        QueueFull
            The queue is full, or stayed full until the timeout.
        QueueShutDown
            After `shutdown`.
        ValueError, TypeError, OverflowError
            The item cannot be one of this queue's records.
        """
        cdef uint64_t words[2]
        cdef Py_buffer view
        cdef bytearray record
        cdef int64_t deadline_ns = _deadline(block, timeout)
        if not self.mapping.is_open or not self.mapping.writable:
            self.check_open("put")
        if self.kind != NOT_A_NUMBER:
            try:
                store_number(self.kind, <char*>words, item)
            except (OverflowError, TypeError) as error:
                raise misfit(self.dtype, item, error).named("put: the item") from None
            self.put_one(<char*>words, self.ring.record_bytes, deadline_ns)
        elif not self.ring.is_bytes:
            record = bytearray(self.ring.record_bytes)
            try:
                self.write_record(<char*>record, item)
            except Misfit as error:
                raise error.named("put: the item") from None
            self.put_one(<char*>record, self.ring.record_bytes, deadline_ns)
        elif PyBytes_CheckExact(item):
            if <uint64_t>PyBytes_GET_SIZE(item) > self.ring.record_bytes:
                self.raise_too_long(PyBytes_GET_SIZE(item))
            self.put_one(PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item), deadline_ns)
        else:
            try:
                PyObject_GetBuffer(plain_buffer(item), &view, PyBUF_SIMPLE)
            except Misfit as error:
                raise error.named("put: the item") from None
            try:
                if <uint64_t>view.len > self.ring.record_bytes:
                    self.raise_too_long(view.len)
                self.put_one(<char*>view.buf, view.len, deadline_ns)
            finally:
                PyBuffer_Release(&view)

    def get(self, block=True, timeout=None):
        """Take the first item.

        Parameters
        ----------
        block : bool
            Wait for one.
        timeout : float, optional
            Seconds; None waits for ever.

        Returns
        -------
        object
            See `Queue`.

        Raises
        ------
        QueueEmpty
            There is none, or none in time.
        QueueShutDown
            There is none, and none will come.
        """
        cdef uint64_t words[2]
        cdef uint64_t length = 0
        cdef char small[STACK_BYTES]
        cdef bytearray record
        cdef int64_t deadline_ns = _deadline(block, timeout)
        if not self.mapping.is_open or not self.mapping.writable:
            self.check_open("get")
        if self.kind != NOT_A_NUMBER:
            self.get_one(<char*>words, &length, deadline_ns)
            return load_number(self.kind, <char*>words)
        if not self.ring.is_bytes:
            record = bytearray(self.ring.record_bytes)
            array = np.ndarray((), self.dtype, record)
            self.get_one(<char*>record, &length, deadline_ns)
            return array[()]
        if self.ring.record_bytes <= STACK_BYTES:
            self.get_one(small, &length, deadline_ns)
            return PyBytes_FromStringAndSize(small, length)
        return self.get_long(deadline_ns)

    cdef object get_long(self, int64_t deadline_ns):
        """A byte string, received into an object of the maximal length, which is then shortened."""
        cdef PyObject* received = bytes_of_size(NULL, self.ring.record_bytes)
        cdef uint64_t length = 0
        try:
            self.get_one(bytes_data(received), &length, deadline_ns)
            bytes_resize(&received, length)
            return <object>received
        finally:
            if received != NULL:
                Py_DECREF(received)

    def put_nowait(self, item):
        """The same as ``put(item, block=False)``."""
        self.put(item, False)

    def get_nowait(self):
        """The same as ``get(block=False)``."""
        return self.get(False)

    cdef int raise_too_long(self, Py_ssize_t length) except -1:
        raise ValueError(f"put: a byte string must have at most {self.ring.record_bytes:,} bytes in this queue, got {length:,}")

    cdef int write_record(self, char* at, object item) except -1:
        """Write the bytes of an item over zeros, or raise Misfit."""
        if self.record is self.dtype or not self.write_object(at, item):
            self.codec.store_whole(at, item)
        return 0

    cdef bint write_object(self, char* at, object item) except -1:
        """The same for an object of the queue's Struct class, or the values of its fields; return False for anything else."""
        cdef Field field
        cdef bytearray values
        if isinstance(item, _struct.StructBase):
            offset_in(self.mapping, item)           # its references are offsets, which are valid in this section only
            if tag_type(used_tag(self.mapping.section, (<Placed>item).payload_off())) != self.ring.type_id:
                raise TypeError(f"put: the item must be an object of {self.record.__name__}, got one of {type(item).__name__}")
            memcpy(at, (<Placed>item).data, self.ring.record_bytes)
            return True
        if not isinstance(item, (dict, tuple)):
            return False
        fields = self.record._shmem_layout_.fields
        values = bytearray(self.record._shmem_layout_.image or self.ring.record_bytes)
        if isinstance(item, tuple):
            if len(item) != len(fields):
                raise TypeError(f"put: a {self.record.__name__} has {len(fields)} fields ({', '.join(fields)}), got {len(item)} values")
            item = dict(zip(fields, item))
        for name, value in item.items():
            if name not in fields:
                raise TypeError(f"put: {self.record.__name__} has no field {name!r}; its fields are {', '.join(fields)}")
            field = fields[name]
            field.store(self if isinstance(field, RefField) else values, <char*>values + field.offset, value)
        memcpy(at, <char*>values, self.ring.record_bytes)
        return True

    # -- many

    def put_many(self, items, block=True, timeout=None):
        """Put many items at the end, in order, as many at a time as there is room for.

        Items of other producers may come between them.  If one item is refused, none is put.  Ctrl-C may leave some of them put.

        Parameters
        ----------
        items : iterable
            Each is converted as by `put`.  For a dtype also an array: of the same dtype it is copied as it is, of another one it is
            converted, and refused if a value does not fit.
        block : bool
            Wait for room until all are put.
        timeout : float, optional
            Seconds for all together; None waits without limit.

        Returns
        -------
        int
            The number of items put: all, unless the timeout passed or the queue was shut down.

        Raises
        ------
        QueueShutDown
            `shutdown` was called, and none was put.
        ValueError, TypeError, OverflowError
            An item cannot be one of this queue's records.
        """
        cdef uint64_t n_items, n_done = 0
        cdef int64_t deadline_ns = _deadline(block, timeout)
        self.check_open("put_many")
        if self.ring.is_bytes:
            return self.put_many_bytes(items, deadline_ns)
        cdef const unsigned char[::1] data = self.as_records(items)
        n_items = data.shape[0] // self.ring.record_bytes
        if n_items:
            self.put_batch(<char*>&data[0], n_items, 0, deadline_ns, &n_done)
        return n_done

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

    cdef object as_records(self, object items):
        """The bytes of many items, as a contiguous buffer."""
        cdef bytearray records
        cdef Py_ssize_t i
        if PyObject_CheckBuffer(items) and not isinstance(items, np.ndarray):
            items = np.asarray(memoryview(items))
        elif hasattr(items, "__array__"):
            items = np.asarray(items)
        if isinstance(items, np.ndarray) and not items.dtype.hasobject:
            return self.array_as_records(items)
        items = list(items)                             # its own: another thread, or a conversion, may change the caller's
        records = bytearray(len(items) * self.ring.record_bytes)
        for i, item in enumerate(items):
            try:
                self.write_record(<char*>records + i * self.ring.record_bytes, item)
            except Misfit as error:
                raise error.named(f"put_many: item {i}") from None
        return records

    cdef object array_as_records(self, object array):
        """The same for an array whose elements, or rows, are the items: copied as they are, or converted with numpy's loops."""
        base, shape = self.dtype.subdtype or (self.dtype, ())
        if array.ndim == 0:
            raise TypeError("put_many: the items must be a sequence of them, got an array of no dimensions")
        is_scalars = array.ndim == 1 and shape != ()
        if len(array) and array.shape[1:] != shape and not is_scalars:
            raise ValueError(f"put_many: the items must have the shape {shape}, got an array of shape {array.shape}")
        if array.dtype != base:
            try:
                array = codec_of(base).convert(array)
            except Misfit as error:
                raise error.named("put_many: the items") from None
        if is_scalars:
            array = np.broadcast_to(array.reshape((-1,) + (1,) * len(shape)), array.shape + shape)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    cdef object put_many_bytes(self, items, int64_t deadline_ns):
        """Pack byte strings, a chunk at a time; the ring copies them into their slots in the gate."""
        cdef uint64_t used = 0, n_items = 0, n_done = 0, n_bytes
        cdef char* chunk
        cdef list found
        try:
            found = [item if PyBytes_CheckExact(item) else bytes(plain_buffer(item)) for item in items]
        except Misfit as error:
            raise error.named("put_many: an item") from None
        for item in found:
            if <uint64_t>PyBytes_GET_SIZE(item) > self.ring.record_bytes:
                self.raise_too_long(PyBytes_GET_SIZE(item))
        chunk = <char*>PyMem_Malloc(max(<uint64_t>CHUNK_BYTES, packed_bytes(self.ring.record_bytes)))
        if chunk == NULL:
            raise MemoryError
        try:
            for item in found:
                n_bytes = packed_bytes(PyBytes_GET_SIZE(item))
                if n_items and used + n_bytes > CHUNK_BYTES:
                    if not self.put_batch(chunk, n_items, PACKED, deadline_ns, &n_done):
                        return n_done
                    used = n_items = 0
                (<uint64_t*>(chunk + used))[0] = PyBytes_GET_SIZE(item)
                memcpy(chunk + used + sizeof(uint64_t), PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
                used += n_bytes
                n_items += 1
            if n_items:
                self.put_batch(chunk, n_items, PACKED, deadline_ns, &n_done)
        finally:
            PyMem_Free(chunk)
        return n_done

    def get_many(self, max_items, block=True, timeout=None):
        """Take the first items: all in the queue, up to `max_items`, and at least one.

        Parameters
        ----------
        max_items : int
        block : bool
            Wait for the first one.
        timeout : float, optional
            Seconds; None waits for ever.

        Returns
        -------
        numpy.ndarray, or list of bytes
            Consecutive items of the queue.

        Raises
        ------
        QueueEmpty
            There is none, or none in time.
        QueueShutDown
            There is none, and none will come.
        """
        cdef uint64_t n_items, n_most = max(CHUNK_BYTES // self.ring.slot_bytes, 1), n_there = 0
        cdef int64_t deadline_ns = _deadline(block, timeout)
        cdef batch_t batch
        cdef unsigned char[::1] room
        self.check_open("get_many")
        n_items = _count_argument("max_items", max_items, self.ring.capacity)
        if self.ring.is_bytes:
            return self.get_many_bytes(n_items, deadline_ns)
        # room for the items in the queue; if these are few, for more that may come meanwhile
        if ring_count(self.ring.at, self.ring.capacity, &n_there) == OK and n_there > n_most:
            n_most = n_there
        array = np.empty(min(n_items, n_most), self.dtype)
        room = array.reshape(-1).view(np.uint8)
        batch.data, batch.n_items, batch.n_done, batch.length = <char*>&room[0], array.shape[0], 0, 0
        self.get_batch(&batch, deadline_ns)
        if batch.n_done < <uint64_t>array.shape[0]:
            room = None
            array = array[:batch.n_done].copy()
        return array

    cdef int get_batch(self, batch_t* batch, int64_t deadline_ns) except -1:
        cdef int status = WOULD_BLOCK
        if self.ring.slot_bytes <= SMALL_BYTES and batch.n_items <= SMALL_BYTES // self.ring.slot_bytes:
            status = ring_get_try(&self.ring, batch)
        if status == WOULD_BLOCK or (status == QUEUE_EMPTY and deadline_ns != AT_ONCE):
            status = self.wait(batch, False, deadline_ns, "get_many")
        if status != OK:
            self.fail(status, "get_many")
        return 0

    cdef list get_many_bytes(self, uint64_t n_items, int64_t deadline_ns):
        """Receive packed byte strings, a chunk at a time, waiting for the first chunk only."""
        cdef uint64_t least = packed_bytes(self.ring.record_bytes), n_bytes
        cdef batch_t batch
        cdef char* at
        cdef list found = []
        n_bytes = least if least > CHUNK_BYTES else (CHUNK_BYTES if n_items > CHUNK_BYTES // least else n_items * least)
        cdef char* chunk = <char*>PyMem_Malloc(n_bytes)
        if chunk == NULL:
            raise MemoryError
        try:
            while n_items:
                batch.data, batch.n_items, batch.n_done, batch.length, batch.n_bytes = chunk, n_items, 0, PACKED, n_bytes
                if not found:
                    self.get_batch(&batch, deadline_ns)
                elif ring_get_try(&self.ring, &batch) != OK:
                    break
                at = chunk
                for _ in range(batch.n_done):
                    found.append(PyBytes_FromStringAndSize(at + sizeof(uint64_t), (<uint64_t*>at)[0]))
                    at += packed_bytes((<uint64_t*>at)[0])
                n_items -= batch.n_done
        finally:
            PyMem_Free(chunk)
        return found

    # -- looking

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
        if status != OK:
            self.fail(status, what)
        return n_items

    def qsize(self):
        """Return the number of items at this moment."""
        return self.count("qsize")

    def empty(self):
        """Return whether the queue is empty at this moment."""
        return self.count("empty") == 0

    def full(self):
        """Return whether the queue is full at this moment."""
        return self.count("full") == self.ring.capacity

    @property
    def maxsize(self):
        """The capacity in items."""
        return self.ring.capacity

    @property
    def max_bytes(self):
        """The maximal length of a byte string; None if records have a dtype."""
        return self.ring.record_bytes if self.ring.is_bytes else None

    @property
    def is_shutdown(self):
        """Whether `shutdown` was called."""
        self.count("is_shutdown")
        return load_acquire_u32(&(<queue_t*>self.data).closed) != 0

    def shutdown(self, immediate=False):
        """Close the queue for producers: `put` raises `QueueShutDown`, and so does `get` once the queue is empty.

        Waiters return at once.  A shutdown holds for all processes and cannot be undone.

        Parameters
        ----------
        immediate : bool
            Drop the items in the queue.
        """
        cdef ring_call_t call
        cdef int status = INTERRUPTED
        call.ring, call.drop = &self.ring, bool(immediate)
        while status == INTERRUPTED:
            self.check_open("shutdown")
            status = run_step(self.mapping.section, _shut_down_step, &call)
            PyErr_CheckSignals()
        if status != OK:
            self.fail(status, "shutdown")

    def __eq__(self, other):
        if not isinstance(other, Queue):
            return NotImplemented
        cdef Placed one = self, two = <Placed>other
        return one.mapping.section is two.mapping.section and one.payload_off() == two.payload_off() and one.serial == two.serial

    def __hash__(self):
        return hash((self.mapping.section.id, self.payload_off(), self.serial))

    def __repr__(self):
        what = self.record.__name__ if isinstance(self.record, type) else str(self.dtype)
        where = f"<shmem.Queue of {self.ring.capacity} {what} at offset {self.payload_off():#x}"
        return f"{where}, freed>" if placed_is_stale(self) else f"{where}>"

    def __reduce__(self):
        sent = travel(self)
        if sent is not None:
            return sent
        raise TypeError("a Queue lies in its section and cannot be pickled; send it as a handle, by multiprocessing or with "
                        "shmem.handle(queue)")


# -- opening and making -----------------------------------------------------------------------------------

cdef uint64_t _count_argument(str what, object value, uint64_t most) except 0:
    """A positive int, at most `most`."""
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number if number < most else most


cdef Queue _open_queue(Mapping mapping, uint64_t payload_off, object record):
    """The queue in a block, with every number of its header checked; `record` is None unless the caller made the queue."""
    cdef Queue queue = Queue.__new__(Queue)
    cdef section_t* section = mapping.section
    cdef queue_t* at = <queue_t*>(section.base + payload_off)
    cdef uint64_t room = room_at(mapping.section, payload_off)
    place(queue, mapping, payload_off)
    if ring_open(&queue.ring, section, at, queue.serial, room) != OK:
        raise_damaged(mapping.section, payload_off, "a queue's header does not fit its block")
    if queue.ring.is_bytes:
        queue.record = bytes
        return queue
    if record is None and queue.ring.kind == QUEUE_STRUCT:
        record = _struct.class_of_type(mapping, queue.ring.type_id)
    if record is None:
        record = arrays.dtype_from(mapping, payload_off, queue_text(at)[:queue.ring.text_bytes])
    queue.record = record
    queue.dtype = record if queue.ring.kind == QUEUE_RECORDS else np.dtype((np.record, record.dtype))
    if queue.dtype.itemsize != queue.ring.record_bytes:
        raise_damaged(mapping.section, payload_off,
                      f"a queue's records have {queue.ring.record_bytes} bytes, {queue.dtype} has {queue.dtype.itemsize}")
    queue.codec = codec_of(queue.dtype)
    queue.kind = queue.codec.kind
    return queue


def _open(Mapping mapping, uint64_t payload_off, type_id, serial):
    return _open_queue(mapping, payload_off, None)


register_opener(TYPE_QUEUE, TYPE_QUEUE, _open)


cdef tuple _record_argument(Mapping mapping, object record, object max_bytes):
    """Return (record, kind, type id, text of the dtype, bytes of a record)."""
    if (record is bytes) != (max_bytes is not None):
        raise ValueError("max_bytes, the maximal length of a byte string, is required for a queue of bytes, and allowed for no other")
    if record is bytes:
        return bytes, QUEUE_BYTES, 0, b"", size_argument(mapping, max_bytes)
    if isinstance(record, _struct.StructMeta):
        type_id = _struct.type_of_class(mapping, record)
        return record, QUEUE_STRUCT, type_id, b"", record.dtype.itemsize
    dtype = np.dtype(record.dtype if isinstance(record, FieldType) else record)
    return dtype, QUEUE_RECORDS, 0, arrays._dtype_to_text(dtype), dtype.itemsize


def new(Memory memory not None, maxsize, record, *, max_bytes=None, name=None):
    """Make a queue in a section: what `SharedMemory.queue` does.

    Parameters
    ----------
    maxsize : int
        The capacity in items.  Their memory is allocated at once.
    record : dtype-like, Struct class, or bytes
        The type of the items: see `Queue`.
    max_bytes : int
        The maximal length; for `bytes` only, and required there.
    name : str, optional
        Enter it into the directory, in the same step.

    Returns
    -------
    Queue

    Raises
    ------
    SectionFull, NameExists
    """
    cdef Mapping mapping = memory.writable_mapping("make a queue")
    cdef section_t* section = mapping.section
    cdef uint64_t capacity, record_bytes, slot_bytes, data_off, payload_off
    cdef queue_t* at
    cdef Queue queue
    record, kind, type_id, text, n_bytes = _record_argument(mapping, record, max_bytes)
    if n_bytes == 0:
        raise ValueError(f"the items of a queue must have at least one byte, {record} has none")
    record_bytes = n_bytes
    slot_bytes = packed_bytes(record_bytes) if record is bytes else record_bytes
    capacity = _count_argument("maxsize", maxsize, UINT64_MAX)
    data_off = round_up(sizeof(queue_t) + len(text), LINE_BYTES)
    if capacity > section.size_bytes // slot_bytes:
        check(NO_MEMORY, mapping, f"make a queue for {capacity:,} items of {record_bytes:,} bytes")
    payload_off = allocate_pending(mapping, data_off + capacity * slot_bytes, LINE_BYTES, False)
    at = <queue_t*>(section.base + payload_off)
    memset(at, 0, data_off)
    at.capacity, at.slot_bytes, at.record_bytes, at.data_off = capacity, slot_bytes, record_bytes, data_off
    at.kind, at.type_id, at.text_bytes = kind, type_id, <uint32_t>len(text)
    memcpy(queue_text(at), PyBytes_AS_STRING(text), len(text))
    try:
        queue = _open_queue(mapping, payload_off, record)
        if name is not None:
            insert_name(mapping, name, payload_off, queue.serial, True, TYPE_QUEUE)
    except BaseException:
        give_up_pending(section, payload_off)
        raise
    if name is None:
        heap_commit(section, payload_off, TYPE_QUEUE)
    return queue


refuse_construction(Queue)
