# cython: language_level=3
"""numpy arrays in a section: self-describing blocks, and pins that keep a block while a process has a view of it.

An array's block begins with `array_t`, then shape, strides, one pin bit per participant and the text of its dtype
(as in the .npy format; nothing is unpickled).  The data follow on a 64-byte boundary.

Every `numpy.ndarray` made from a block, and every view of it, refers to an `ArrayHold`, which holds the block (`_bridge/holds.pyx`).  The
pin bit of a new array is set while the block is PENDING, before any other process can see it.
"""

import operator

import numpy as np

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._bridge.blocks import register_opener
from shmem._base import errors
from shmem._base.public import refuse_construction
from shmem._objects.dtypes import from_text, to_text

from shmem._atomics cimport fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32, load_acquire_u64, load_relaxed_u64
from shmem._base.bounds cimport block_is_stale, block_room, damaged
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.layout cimport (
    ARRAY_TEMPORARY, BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES, LINE_BYTES, MAX_DIMS, SERIAL_MASK, STATE_PENDING, STATE_USED, TYPE_ARRAY,
    array_dtype, array_header_bytes, array_pins, array_shape, array_strides, array_t, block_t, payload_to_block, round_up, tag_state)
from shmem._base.section cimport block_at, offset_of_address, section_t
from shmem._base.status cimport NO_MEMORY, READ_ONLY
from shmem._bridge.blocks cimport Placed, allocate_pending, place, placed_behind, placed_is_stale
from shmem._bridge.calls cimport check
from shmem._bridge.holds cimport blocks_held, hold_block, hold_forget, hold_of_pinned
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.heap cimport heap_commit
from shmem._objects.directory cimport give_up_pending, insert_name


# -- the owner of an array's memory -----------------------------------------------------------------------

cdef class ArrayHold(Placed):
    """A buffer of an array's data, which holds the block; views of the array refer to it."""
    cdef char* start
    cdef Py_ssize_t n_bytes
    cdef object got_as                # the name by which the directory returned the array

    cdef bint is_stale(self) noexcept:
        """Return whether the block was freed.  While the array is being made, the block is PENDING."""
        cdef block_t* block = block_at(self.mapping.section, payload_to_block(self.payload_off()))
        cdef uint64_t state = tag_state(load_acquire_u64(&block.tag))
        return (state != STATE_USED and state != STATE_PENDING) or (load_relaxed_u64(&block.serial) ^ self.serial) & SERIAL_MASK != 0

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.is_stale():
            raise errors.InvalidBlock(f"cannot use the array at offset {self.payload_off():#x}: its block was freed")
        if flags & PyBUF_WRITABLE and not self.mapping.writable:
            check(READ_ONLY, self.mapping, "write to an array")
        PyBuffer_FillInfo(view, self, self.start, self.n_bytes, not self.mapping.writable, flags)


refuse_construction(ArrayHold)


def held_at(Memory memory, uint64_t at_off):
    """Return (offset, serial) of the block that has an offset anywhere within it, if this process has views of it, or None.

    It serves views whose bases do not lead to a hold, and looks at every hold.
    """
    cdef section_t* section = memory.opened().section
    cdef uint64_t payload_off
    for payload_off, serial in blocks_held(section):
        if (not block_is_stale(block_at(section, payload_to_block(payload_off)), serial)
                and payload_off <= at_off < payload_off + block_room(section, payload_off)):
            return payload_off, serial
    return None


# -- the numpy array ----------------------------------------------------------------------------------------

cdef object _array_of(ArrayHold hold, object shape, object dtype, object strides):
    return np.ndarray(shape, dtype, hold, 0, strides)


def dtype_from(Mapping mapping not None, uint64_t payload_off, bytes text):
    """Return the dtype named in a block's header."""
    try:
        return from_text(text)
    except errors.DAMAGED_TEXT as error:
        raise_damaged(mapping.section, payload_off, f"the array's dtype is {text!r:.100}: {error}")


ctypedef struct facts_t:              # a copy of an array's header, checked to fit its block
    array_t head
    uint64_t dims[MAX_DIMS]           # its shape
    uint64_t steps[MAX_DIMS]          # its strides: never negative for an array in its own block
    const char* text


cdef int _read_header(Mapping mapping, uint64_t payload_off, facts_t* facts) except -1:
    """Copy the header of the array in a block and check every number."""
    cdef char* at = mapping.base + payload_off
    cdef array_t* head = &facts.head
    cdef uint64_t room = room_at(mapping.section, payload_off), n_words = (mapping.section.max_participants + 63) >> 6
    if damaged(room < sizeof(array_t)):
        raise_damaged(mapping.section, payload_off, "an array's header does not fit its block")
    memcpy(head, at, sizeof(array_t))
    if damaged(head.n_dims > MAX_DIMS or head.n_pin_words != n_words or head.data_off > room or head.data_bytes > room - head.data_off
               or array_header_bytes(head.n_dims, n_words, head.dtype_bytes) > head.data_off):
        raise_damaged(mapping.section, payload_off, "an array's header does not fit its block")
    at += sizeof(array_t)
    memcpy(facts.dims, at, 8 * head.n_dims)
    memcpy(facts.steps, at + 8 * head.n_dims, 8 * head.n_dims)
    facts.text = at + 16 * head.n_dims + 8 * n_words
    return 0


cdef bint _elements_fit(const facts_t* facts, uint64_t item_bytes) noexcept nogil:
    """Return whether the elements cover exactly the array's data.  numpy checks nearly the same, but its products may overflow."""
    cdef uint64_t data_bytes = facts.head.data_bytes, n_bytes = item_bytes, end = item_bytes, n, step
    cdef uint32_t i
    for i in range(facts.head.n_dims):
        if facts.dims[i] == 0:
            return data_bytes == 0
    for i in range(facts.head.n_dims):
        n, step = facts.dims[i], facts.steps[i]
        if n > 1 and step > data_bytes // (n - 1):
            return False
        if n_bytes != 0 and n > data_bytes // n_bytes:
            return False
        end += (n - 1) * step
        n_bytes *= n
        if end > data_bytes:
            return False                 # now, before sums overflow
    return n_bytes == data_bytes


cdef object _open_array(Mapping mapping, uint64_t payload_off, uint64_t serial):
    """Return the array in a block, after checking every number of its header."""
    cdef ArrayHold hold = ArrayHold.__new__(ArrayHold)
    cdef facts_t facts
    place(hold, mapping, payload_off)
    hold.serial = serial                 # of the requested block, not of the one there now: a successor must not be pinned
    hold.hold = hold_block(mapping, payload_off, serial, "get the array")        # from here on the block cannot be freed
    _read_header(mapping, payload_off, &facts)
    hold.start = hold.data + facts.head.data_off
    hold.n_bytes = facts.head.data_bytes
    dtype = dtype_from(mapping, payload_off, facts.text[:facts.head.dtype_bytes])
    shape = tuple([facts.dims[i] for i in range(facts.head.n_dims)])
    strides = tuple([<int64_t>facts.steps[i] for i in range(facts.head.n_dims)])
    if damaged(dtype.subdtype is not None or not _elements_fit(&facts, dtype.itemsize)):
        raise_damaged(mapping.section, payload_off, f"an array of shape {shape} and strides {strides} does not fit {hold.n_bytes} bytes")
    try:
        return _array_of(hold, shape, dtype, strides)
    except errors.DAMAGED_TEXT as error:
        raise_damaged(mapping.section, payload_off, f"an array's header is damaged: {error}")


def _open(Mapping mapping, uint64_t payload_off, type_id, uint64_t serial):
    return _open_array(mapping, payload_off, serial)


register_opener(TYPE_ARRAY, TYPE_ARRAY, _open)


# -- making arrays ----------------------------------------------------------------------------------------

cdef tuple _shape_argument(object shape):
    if isinstance(shape, (tuple, list)):
        return tuple([operator.index(n) for n in shape])
    try:
        return (operator.index(shape),)
    except TypeError:
        return tuple([operator.index(n) for n in shape])


cdef uint64_t _count_bytes(Mapping mapping, tuple shape, object dtype) except? 0xffffffffffffffff:
    if len(shape) > MAX_DIMS:
        raise ValueError(f"shape must have at most {MAX_DIMS} dimensions, got {len(shape)}")
    n_bytes = dtype.itemsize
    for n in shape:
        if n < 0:
            raise ValueError(f"dimensions must be non-negative, got {shape}")
        n_bytes *= n
    if n_bytes > mapping.section.size_bytes:
        check(NO_MEMORY, mapping, f"allocate an array of {n_bytes:,} bytes")
    return n_bytes


cdef void _write_header(array_t* array, uint64_t data_off, uint64_t n_bytes, size_t n_dims, uint32_t n_words,
                        const char* text, size_t n_text, uint32_t flags) noexcept nogil:
    memset(array, 0, data_off)
    array.data_off = data_off
    array.data_bytes = n_bytes
    array.flags = flags
    array.n_dims = <uint16_t>n_dims
    array.dtype_bytes = <uint16_t>n_text
    array.n_pin_words = n_words
    memcpy(array_dtype(array), text, n_text)


cdef ArrayHold _make_hold(Mapping mapping, tuple shape, object dtype, uint64_t n_bytes, bint zero, uint32_t flags):
    """Return a hold of a new PENDING array, pinned, whose header is complete except for shape and strides."""
    cdef ArrayHold hold = ArrayHold.__new__(ArrayHold)
    cdef section_t* section = mapping.section
    cdef bytes text = to_text(dtype)
    cdef uint32_t n_words = (section.max_participants + 63) >> 6, me
    cdef uint64_t data_off = array_header_bytes(len(shape), n_words, len(text)), payload_off
    # a multiple of 64 bytes, so that the next array's block needs no gap before it
    cdef uint64_t size_bytes = round_up(data_off + n_bytes + BLOCK_HEAD_BYTES + BLOCK_REAR_BYTES, LINE_BYTES)
    payload_off = allocate_pending(mapping, size_bytes - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES, LINE_BYTES, zero)
    place(hold, mapping, payload_off)
    _write_header(<array_t*>hold.data, data_off, n_bytes, len(shape), n_words, text, len(text), flags)
    me = section.private.index_plus_1 - 1
    fetch_add_seq_cst_u32(&section.participants[me].pins, 1)
    array_pins(<array_t*>hold.data)[me >> 6] |= <uint64_t>1 << (me & 63)
    hold.hold = hold_of_pinned(mapping, payload_off, hold.serial)
    hold.start = hold.data + data_off
    hold.n_bytes = n_bytes
    return hold


cdef int _give_up(ArrayHold hold) except -1:
    """Free a PENDING array that could not be completed, and release its pin."""
    cdef section_t* section = hold.mapping.section
    hold_forget(hold.hold)
    fetch_sub_seq_cst_u32(&section.participants[section.private.index_plus_1 - 1].pins, 1)
    give_up_pending(section, hold.payload_off())
    return 0


cdef int _write_dims(array_t* head, tuple shape, tuple strides) except -1:
    cdef int i
    for i in range(len(shape)):
        array_shape(head)[i] = shape[i]
        array_strides(head)[i] = strides[i]
    return 0


def make(Memory memory, shape, dtype, order, bint zero, name, bint temporary, fill=None):
    """Make an array: allocate it, let `fill(array)` write it while it is PENDING, then publish it, with or without a name."""
    cdef Mapping mapping = memory.writable_mapping("allocate an array")
    cdef ArrayHold hold
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', got {order!r}")
    if name is not None and temporary:
        raise ValueError("name and temporary are mutually exclusive: a temporary array is freed with its last view, a named one stays")
    dtype = np.dtype(dtype)
    dims = _shape_argument(shape)
    if dtype.subdtype is not None:
        dims += dtype.shape
        dtype = dtype.base
    hold = _make_hold(mapping, dims, dtype, _count_bytes(mapping, dims, dtype), zero, ARRAY_TEMPORARY if temporary else 0)
    try:
        array = np.ndarray(dims, dtype, hold, 0, None, order)
        _write_dims(<array_t*>hold.data, dims, array.strides)
        if fill is not None:
            fill(array)
        if name is not None:
            insert_name(mapping, name, hold.payload_off(), hold.serial, True, TYPE_ARRAY)
    except BaseException:
        _give_up(hold)
        raise
    if name is None:
        heap_commit(mapping.section, hold.payload_off(), TYPE_ARRAY)
    return array


def is_whole(array):
    """Return whether `array` is the complete array of its block, not a view of a part or with another shape."""
    cdef Placed placed = placed_behind(array)
    cdef facts_t facts
    if not isinstance(placed, ArrayHold) or not isinstance(array, np.ndarray) or placed_is_stale(placed):
        return False
    _read_header(placed.mapping, placed.payload_off(), &facts)
    return (array.ctypes.data == <uint64_t>(<ArrayHold>placed).start and array.ndim == facts.head.n_dims
            and array.shape == tuple([facts.dims[i] for i in range(facts.head.n_dims)])
            and array.strides == tuple([<int64_t>facts.steps[i] for i in range(facts.head.n_dims)])
            and array.dtype == dtype_from(placed.mapping, placed.payload_off(), facts.text[:facts.head.dtype_bytes]))


def note_name(array, name):
    """Note the name by which an array was got; `got_as` returns it, for this object and no view of it."""
    (<ArrayHold>array.base).got_as = name


def got_as(obj):
    """Return the name by which an array was got from the directory; None for every other object."""
    return (<ArrayHold>obj.base).got_as if isinstance(obj, np.ndarray) and isinstance(obj.base, ArrayHold) else None


# -- views: what another process needs to make the same one ----------------------------------------------------

def view_facts(Memory memory, uint64_t payload_off, obj):
    """Return the view that an array or a memoryview is of the block at an offset; None if it is the whole array that opening returns.

    Returns
    -------
    tuple or None
        Whether it is a memoryview; bytes from the payload's start to the first element; shape; strides; dtype; whether it is writeable.
    """
    cdef Mapping mapping = memory.opened()
    cdef bint is_memoryview = isinstance(obj, memoryview)
    array = np.asarray(obj)
    if not is_memoryview and array.flags.writeable == mapping.writable and is_whole(array):
        return None
    delta = offset_of_address(mapping.section, array.ctypes.data) - payload_off
    return is_memoryview, delta, array.shape, array.strides, array.dtype, array.flags.writeable


def view_again(found, bint is_memoryview, delta, shape, strides, dtype, bint writeable):
    """Make the view described by `view_facts` from the object in its block."""
    cdef Placed placed = placed_behind(found)
    if isinstance(placed, ArrayHold):
        delta -= (<ArrayHold>placed).start - placed.data
    array = np.ndarray(shape, dtype, placed, delta, strides)
    array.flags.writeable = writeable and array.flags.writeable
    return memoryview(array) if is_memoryview else array
