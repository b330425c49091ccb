# cython: language_level=3
"""`Queue`: the ring as Python sees it.

A queue's block holds `queue_t`, the text of its records' dtype (as an array's block does), and the slots.

Items become bytes before the ring is called, and bytes become items after it returned: no Python code runs in a gate.  Every step that
can fail for want of memory comes before an item is taken.
"""

import operator
import types

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._base.public import refuse_construction
from shmem._bridge.blocks import register_opener
from shmem._objects.codec import Misfit

from shmem._atomics cimport load_acquire_u32
from shmem._base.accessors cimport queue_header_bytes, queue_text
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.layout cimport LINE_BYTES, TYPE_QUEUE, queue_t
from shmem._base.section cimport section_t
from shmem._base.status cimport NO_MEMORY, OK
from shmem._bridge.blocks cimport Placed, allocate_pending, place, placed_is_stale
from shmem._bridge.calls cimport check
from shmem._bridge.holds cimport hold_is_mine
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.heap cimport heap_commit
from shmem._heap.pins cimport pin_words
from shmem._objects.codec cimport NOT_A_NUMBER, load_number, misfit, store_number
from shmem._objects.directory cimport give_up_pending, insert_name
from shmem._objects.queue_bytes cimport CHUNK_BYTES, get_long, get_many_bytes, put_buffer, put_many_bytes, raise_too_long
from shmem._objects.queue_items cimport Items, items_of, record_argument
from shmem._objects.queue_ring cimport RingCaller, get_one, put_one, queue_deadline
from shmem._sync.ring cimport batch_t, packed_bytes, ring_count, ring_open

cdef enum:
    STACK_BYTES = 1024            # up to here a byte string is received on the stack


@cython.no_gc_clear                   # `items` is used without asking whether it is None; cycles are broken in it
cdef class Queue(RingCaller):
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

    cdef Items items

    def __init__(self):
        raise TypeError("a Queue must lie in a section; use SharedMemory.queue(maxsize, record) to make one")

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
        cdef bytearray record
        cdef int64_t deadline_ns = queue_deadline(block, timeout)
        if not self.mapping.is_open or not self.mapping.writable:
            self.check_open("put")
        if not hold_is_mine(self.hold):
            self.take_hold("put")
        if self.items.kind != NOT_A_NUMBER:
            try:
                store_number(self.items.kind, <char*>words, item)
            except (OverflowError, TypeError) as error:
                raise misfit(self.items.dtype, item, error).named("put: the item") from None
            put_one(self, <char*>words, self.ring.record_bytes, deadline_ns)
        elif not self.ring.is_bytes:
            record = bytearray(self.ring.record_bytes)
            try:
                self.items.write(self, <char*>record, item)
            except Misfit as error:
                raise error.named("put: the item") from None
            put_one(self, <char*>record, self.ring.record_bytes, deadline_ns)
        elif PyBytes_CheckExact(item):
            if <uint64_t>PyBytes_GET_SIZE(item) > self.ring.record_bytes:
                raise_too_long(self, PyBytes_GET_SIZE(item))
            put_one(self, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item), deadline_ns)
        else:
            put_buffer(self, item, deadline_ns)

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
        cdef int64_t deadline_ns = queue_deadline(block, timeout)
        if not self.mapping.is_open or not self.mapping.writable:
            self.check_open("get")
        if not hold_is_mine(self.hold):
            self.take_hold("get")
        if self.items.kind != NOT_A_NUMBER:
            get_one(self, <char*>words, &length, deadline_ns)
            return load_number(self.items.kind, <char*>words)
        if not self.ring.is_bytes:
            record = bytearray(self.ring.record_bytes)
            array = np.ndarray((), self.items.dtype, record)
            get_one(self, <char*>record, &length, deadline_ns)
            return array[()]
        if self.ring.record_bytes <= STACK_BYTES:
            get_one(self, small, &length, deadline_ns)
            return PyBytes_FromStringAndSize(small, length)
        return get_long(self, deadline_ns)

    def put_nowait(self, item):
        """The same as ``put(item, block=False)``."""
        self.put(item, False)

    def get_nowait(self):
        """The same as ``get(block=False)``."""
        return self.get(False)

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
        cdef Py_buffer view
        cdef int64_t deadline_ns = queue_deadline(block, timeout)
        self.check_open("put_many")
        self.take_hold("put_many")
        if self.ring.is_bytes:
            return put_many_bytes(self, items, deadline_ns)
        data = self.items.many(self, items)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            n_items = view.len // self.ring.record_bytes
            if n_items:
                self.put_batch(<char*>view.buf, n_items, 0, deadline_ns, &n_done)
        finally:
            PyBuffer_Release(&view)
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
        cdef int64_t deadline_ns = queue_deadline(block, timeout)
        cdef batch_t batch
        cdef Py_buffer room
        self.check_open("get_many")
        self.take_hold("get_many")
        n_items = _count_argument("max_items", max_items, self.ring.capacity)
        if self.ring.is_bytes:
            return get_many_bytes(self, n_items, deadline_ns)
        # room for the items in the queue; if these are few, for more that may come meanwhile
        if ring_count(self.ring.at, self.ring.capacity, &n_there) == OK and n_there > n_most:
            n_most = n_there
        array = np.empty(min(n_items, n_most), self.items.dtype)
        PyObject_GetBuffer(array.reshape(-1).view(np.uint8), &room, PyBUF_WRITABLE)
        try:
            batch.data, batch.n_items, batch.n_done, batch.length = <char*>room.buf, array.shape[0], 0, 0
            self.get_batch(&batch, deadline_ns)
        finally:
            PyBuffer_Release(&room)
        if batch.n_done < <uint64_t>array.shape[0]:
            array = array[:batch.n_done].copy()
        return array

    # -- looking

    @property
    def record(self):
        """The type of its items: a dtype, a Struct class, or `bytes`."""
        return self.items.record

    @property
    def dtype(self):
        """The dtype of its records; None for byte strings."""
        return self.items.dtype

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
        self.shut_down(bool(immediate))

    def __class_getitem__(cls, item):
        """``Queue[int]``, for annotations: the type of what `get` returns; a second one is that of what `put` takes."""
        return types.GenericAlias(cls, item)

    def __eq__(self, other):
        if not isinstance(other, Queue):
            return NotImplemented
        cdef Placed one = self, two = <Placed>other
        return one.mapping.section is two.mapping.section and one.payload_off() == two.payload_off() and one.serial == two.serial

    def __hash__(self):
        return hash((self.mapping.section.id, self.payload_off(), self.serial))

    def __repr__(self):
        what = self.items.record.__name__ if isinstance(self.items.record, type) else str(self.items.dtype)
        where = f"<shmem.Queue of {self.ring.capacity} {what} at offset {self.payload_off():#x}"
        return f"{where}, freed>" if placed_is_stale(self) else f"{where}>"

    def __reduce__(self):
        raise TypeError("a Queue lies in its section and cannot be pickled; send it as a handle, by multiprocessing or with "
                        "shmem.handle(queue)")


# -- opening and making ---------------------------------------------------------------------------------

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
    queue.items = items_of(mapping, payload_off, &queue.ring, record)
    return queue


def _open(Mapping mapping, uint64_t payload_off, type_id, serial):
    return _open_queue(mapping, payload_off, None)


register_opener(TYPE_QUEUE, TYPE_QUEUE, _open)


def queue(Memory self not None, maxsize, record, *, max_bytes=None, name=None):
    """Return a new `Queue` in the section.

    Parameters
    ----------
    maxsize : int
        The capacity in items.  Their memory is allocated at once.
    record : dtype-like, Struct class, or bytes
        The type of the items: see `Queue`.
    max_bytes : int
        The maximal length; for `bytes` only, and required there.
    name : str, optional
        Name in the directory, assigned in the same step.

    Returns
    -------
    Queue

    Raises
    ------
    SectionFull, NameExists
    """
    cdef Mapping mapping = self.writable_mapping("make a queue")
    cdef section_t* section = mapping.section
    cdef uint64_t capacity, record_bytes, slot_bytes, data_off, payload_off
    cdef queue_t* at
    cdef Queue made
    record, kind, type_id, text, n_bytes = record_argument(mapping, record, max_bytes)
    if n_bytes == 0:
        raise ValueError(f"the items of a queue must have at least one byte, {record} has none")
    record_bytes = n_bytes
    slot_bytes = packed_bytes(record_bytes) if record is bytes else record_bytes
    capacity = _count_argument("maxsize", maxsize, UINT64_MAX)
    data_off = queue_header_bytes(pin_words(section), len(text))
    if capacity > section.size_bytes // slot_bytes:
        check(NO_MEMORY, mapping, f"make a queue for {capacity:,} items of {record_bytes:,} bytes")
    payload_off = allocate_pending(mapping, data_off + capacity * slot_bytes, LINE_BYTES, False)
    at = <queue_t*>(section.base + payload_off)
    memset(at, 0, data_off)
    at.capacity, at.slot_bytes, at.record_bytes, at.data_off = capacity, slot_bytes, record_bytes, data_off
    at.kind, at.type_id, at.text_bytes, at.n_pin_words = kind, type_id, <uint32_t>len(text), pin_words(section)
    memcpy(queue_text(at), PyBytes_AS_STRING(text), len(text))
    try:
        made = _open_queue(mapping, payload_off, record)
        if name is not None:
            insert_name(mapping, name, payload_off, made.serial, True, TYPE_QUEUE)
    except BaseException:
        give_up_pending(section, payload_off)
        raise
    if name is None:
        heap_commit(section, payload_off, TYPE_QUEUE)
    return made


refuse_construction(Queue)
