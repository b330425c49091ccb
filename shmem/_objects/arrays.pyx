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
from shmem._base.accessors cimport (
    array_dtype, array_header_bytes, array_max_shape, array_pins, array_shape, array_strides, grown_header_bytes, payload_to_block,
    round_up, tag_state)
from shmem._base.bounds cimport block_is_stale, block_room, damaged
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.layout cimport (
    ARRAY_SEALED, ARRAY_TEMPORARY, BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES, LINE_BYTES, MAX_DIMS, SERIAL_MASK, STATE_PENDING, STATE_USED,
    TYPE_ARRAY, UNLIMITED, array_t, block_t)
from shmem._base.section cimport block_at, offset_of_address, section_t
from shmem._base.status cimport NO_MEMORY, READ_ONLY
from shmem._bridge.blocks cimport Placed, allocate_pending, place, placed_behind, placed_is_stale
from shmem._bridge.calls cimport check, run_step
from shmem._bridge.holds cimport blocks_held, hold_block, hold_forget, hold_of_pinned
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.array_growth cimport rows_with_room
from shmem._heap.heap cimport heap_commit
from shmem._objects.directory cimport give_up_pending, insert_name
from shmem._sections.opening cimport section_need_read_only


# -- the owner of an array's memory -----------------------------------------------------------------------

cdef class ArrayHold(Placed):
    """A buffer of an array's data, which holds the block; views of the array refer to it."""
    cdef char* start
    cdef Py_ssize_t n_bytes           # of an array that can grow, all that it has room for
    cdef uint64_t data_off            # from the payload's start
    cdef uint64_t n_rows              # of an array that can grow, when it was opened
    cdef bint writable                # False through a read-only handle, and of a sealed array
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
        if flags & PyBUF_WRITABLE and not self.writable:
            raise errors.ReadOnlyError(f"cannot write to the array at offset {self.payload_off():#x}: it was sealed before it was opened")
        PyBuffer_FillInfo(view, self, self.start, self.n_bytes, not self.writable, flags)


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
    uint64_t most[MAX_DIMS]           # its maximum shape, if it can grow
    const char* text


cdef int _read_header(Mapping mapping, uint64_t payload_off, facts_t* facts) except -1:
    """Copy the header of the array in a block and check every number."""
    return _check_header(mapping, payload_off, mapping.base + payload_off, room_at(mapping.section, payload_off), facts)


cdef int _check_header(Mapping mapping, uint64_t payload_off, char* at, uint64_t room, facts_t* facts) except -1:
    """Copy the header at an address, of an array in a block with that much room, and check every number."""
    cdef array_t* head = &facts.head
    cdef uint64_t n_words = (mapping.section.max_participants + 63) >> 6
    if damaged(room < sizeof(array_t)):
        raise_damaged(mapping.section, payload_off, "an array's header does not fit its block")
    memcpy(head, at, sizeof(array_t))
    if damaged(head.n_dims > MAX_DIMS or head.n_pin_words != n_words or head.data_off > room or head.data_bytes > room - head.data_off
               or array_header_bytes(head.n_dims, n_words, head.dtype_bytes) > head.data_off):
        raise_damaged(mapping.section, payload_off, "an array's header does not fit its block")
    facts.text = at + sizeof(array_t) + 16 * head.n_dims + 8 * n_words
    memcpy(facts.dims, at + sizeof(array_t), 8 * head.n_dims)
    memcpy(facts.steps, at + sizeof(array_t) + 8 * head.n_dims, 8 * head.n_dims)
    if head.capacity_bytes != 0:
        _check_growable(mapping, payload_off, at, room, facts)
    return 0


cdef int _check_growable(Mapping mapping, uint64_t payload_off, char* at, uint64_t room, facts_t* facts) except -1:
    """Check what an array that can grow has beside, and count the bytes of its rows, whose number is read once."""
    cdef array_t* head = &facts.head
    cdef uint32_t i
    if damaged(head.n_dims == 0 or head.data_bytes != 0 or head.capacity_bytes > room - head.data_off or head.data_off & 7
               or grown_header_bytes(head.n_dims, head.n_pin_words, head.dtype_bytes) > head.data_off):
        raise_damaged(mapping.section, payload_off, "the header of an array that can grow does not fit its block")
    facts.dims[0] = load_acquire_u64(<uint64_t*>(at + sizeof(array_t)))          # partner: the store that appends rows
    memcpy(facts.most, at + head.data_off - 8 * head.n_dims, 8 * head.n_dims)
    if damaged(facts.steps[0] == 0 or facts.dims[0] > head.capacity_bytes // facts.steps[0]):
        raise_damaged(mapping.section, payload_off, f"an array of {facts.dims[0]} rows has room for {head.capacity_bytes} bytes")
    head.data_bytes = facts.dims[0] * facts.steps[0]
    for i in range(head.n_dims):
        if facts.dims[i] == 0:
            head.data_bytes = 0
        if damaged(facts.most[i] < facts.dims[i]):
            raise_damaged(mapping.section, payload_off, f"dimension {i} of an array is {facts.dims[i]}, beyond its maximum {facts.most[i]}")
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


cdef tuple _checked_elements(Mapping mapping, uint64_t payload_off, const facts_t* facts):
    """Return dtype, shape and strides, whose elements cover exactly the array's data."""
    dtype = dtype_from(mapping, payload_off, facts.text[:facts.head.dtype_bytes])
    shape = tuple([facts.dims[i] for i in range(facts.head.n_dims)])
    strides = tuple([<int64_t>facts.steps[i] for i in range(facts.head.n_dims)])
    if damaged(dtype.subdtype is not None or not _elements_fit(facts, dtype.itemsize)):
        raise_damaged(mapping.section, payload_off,
                      f"an array of shape {shape} and strides {strides} does not fit {facts.head.data_bytes} bytes")
    return dtype, shape, strides


cdef int _need_read_only_step(section_t* section, void* request) noexcept nogil:
    return section_need_read_only(section)


cdef int _find_data(ArrayHold hold, const facts_t* facts) except -1:
    """Note where the data are: those of a sealed array in the mapping that the processor guards."""
    cdef Mapping mapping = hold.mapping
    hold.data_off = facts.head.data_off
    hold.start = hold.data + hold.data_off
    hold.n_bytes = facts.head.data_bytes if facts.head.capacity_bytes == 0 else facts.head.capacity_bytes
    hold.n_rows = facts.dims[0]
    hold.writable = mapping.writable and not facts.head.flags & ARRAY_SEALED
    if mapping.writable and not hold.writable:
        if mapping.section.read_only_base == NULL:
            check(run_step(mapping.section, _need_read_only_step, NULL), mapping, "map the section for a sealed array")
        hold.start = mapping.section.read_only_base + (hold.start - mapping.section.base)
    return 0


cdef object _open_array(Mapping mapping, uint64_t payload_off, uint64_t serial):
    """Return the array in a block, after checking every number of its header."""
    cdef ArrayHold hold = ArrayHold.__new__(ArrayHold)
    cdef facts_t facts
    place(hold, mapping, payload_off)
    hold.serial = serial                 # of the requested block, not of the one there now: a successor must not be pinned
    hold.hold = hold_block(mapping, payload_off, serial, "get the array")        # from here on the block cannot be freed
    _read_header(mapping, payload_off, &facts)
    _find_data(hold, &facts)
    dtype, shape, strides = _checked_elements(mapping, payload_off, &facts)
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


cdef ArrayHold _make_hold(Mapping mapping, tuple shape, object dtype, uint64_t n_bytes, bint zero, uint32_t flags, bint grows):
    """Return a hold of a new PENDING array, pinned, whose header is complete except for shape, strides and maximum shape."""
    cdef ArrayHold hold = ArrayHold.__new__(ArrayHold)
    cdef section_t* section = mapping.section
    cdef bytes text = to_text(dtype)
    cdef uint32_t n_words = (section.max_participants + 63) >> 6, me
    cdef uint64_t data_off = array_header_bytes(len(shape), n_words, len(text) + (8 * len(shape) if grows else 0)), payload_off
    # a multiple of 64 bytes, so that the next array's block needs no gap before it
    cdef uint64_t size_bytes = round_up(data_off + n_bytes + BLOCK_HEAD_BYTES + BLOCK_REAR_BYTES, LINE_BYTES)
    payload_off = allocate_pending(mapping, size_bytes - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES, LINE_BYTES, zero)
    place(hold, mapping, payload_off)
    _write_header(<array_t*>hold.data, data_off, 0 if grows else n_bytes, len(shape), n_words, text, len(text), flags)
    if grows:
        (<array_t*>hold.data).capacity_bytes = n_bytes
    me = section.private.index_plus_1 - 1
    fetch_add_seq_cst_u32(&section.participants[me].pins, 1)
    array_pins(<array_t*>hold.data)[me >> 6] |= <uint64_t>1 << (me & 63)
    hold.hold = hold_of_pinned(mapping, payload_off, hold.serial)
    hold.data_off = data_off
    hold.start = hold.data + data_off
    hold.n_bytes = n_bytes
    hold.n_rows = shape[0] if grows else 0
    hold.writable = True
    return hold


cdef int _give_up(ArrayHold hold) except -1:
    """Free a PENDING array that could not be completed, and release its pin."""
    cdef section_t* section = hold.mapping.section
    hold_forget(hold.hold)
    fetch_sub_seq_cst_u32(&section.participants[section.private.index_plus_1 - 1].pins, 1)
    give_up_pending(section, hold.payload_off())
    return 0


cdef int _write_dims(array_t* head, tuple shape, tuple strides, tuple most) except -1:
    cdef int i
    for i in range(len(shape)):
        array_shape(head)[i] = shape[i]
        array_strides(head)[i] = strides[i]
        if most is not None:
            array_max_shape(head)[i] = <uint64_t>UNLIMITED if most[i] is None else most[i]
    return 0


cdef tuple _max_shape_argument(object maxshape, tuple shape, object order):
    """Return the maximum shape of an array that can grow, with None for a dimension without a limit."""
    if not isinstance(maxshape, (tuple, list)):
        maxshape = (maxshape,)
    most = tuple([None if n is None else operator.index(n) for n in maxshape])
    if not shape or len(most) != len(shape):
        raise ValueError(f"maxshape must have as many dimensions as shape, and at least one, got maxshape {most} for shape {shape}")
    if any([limit is not None and limit < n for n, limit in zip(shape, most)]):
        raise ValueError(f"maxshape must not be smaller than shape, got maxshape {most} for shape {shape}")
    if order != "C":
        raise ValueError(f"an array with maxshape grows by rows, so order must be 'C', got {order!r}")
    if max([limit or 0 for limit in most]) >= <uint64_t>UNLIMITED:
        raise ValueError(f"a dimension of maxshape must be below 2**64 - 1, or None, got {most}")
    return most


cdef uint64_t _count_room(Mapping mapping, tuple shape, object dtype, tuple most) except? 0xffffffffffffffff:
    """Return the bytes for which an array that can grow gets room."""
    cdef uint64_t row_bytes
    if dtype.itemsize == 0:
        raise ValueError(f"an array with maxshape must have elements of at least one byte, got dtype {dtype}")
    _count_bytes(mapping, shape, dtype)
    row_bytes = _count_bytes(mapping, tuple([max(n, 1) for n in shape[1:]]), dtype)
    n_rows = rows_with_room(shape[0], <uint64_t>UNLIMITED if most[0] is None else most[0], row_bytes)
    return _count_bytes(mapping, (n_rows, row_bytes), np.dtype("V1"))


cdef tuple _strides_by_rows(tuple shape, object item_bytes):
    strides = []
    for n in reversed(shape):
        strides.insert(0, item_bytes)
        item_bytes *= max(n, 1)
    return tuple(strides)


def make(Memory memory, shape, dtype, order, bint zero, name, bint temporary, fill=None, maxshape=None, bint replaces=False):
    """Make an array: allocate it, let `fill(array)` write it while it is PENDING, then publish it, with or without a name."""
    cdef tuple most = None
    cdef uint64_t n_bytes
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
        maxshape = None if maxshape is None else (*(maxshape if isinstance(maxshape, (tuple, list)) else (maxshape,)), *dtype.shape)
        dtype = dtype.base
    if maxshape is not None:
        most = _max_shape_argument(maxshape, dims, order)
    n_bytes = _count_bytes(mapping, dims, dtype) if most is None else _count_room(mapping, dims, dtype, most)
    hold = _make_hold(mapping, dims, dtype, n_bytes, zero, ARRAY_TEMPORARY if temporary else 0, most is not None)
    try:
        array = np.ndarray(dims, dtype, hold, 0, None if most is None else _strides_by_rows(dims, dtype.itemsize), order)
        _write_dims(<array_t*>hold.data, dims, array.strides, most)
        if fill is not None:
            fill(array)
        if name is not None:
            insert_name(mapping, name, hold.payload_off(), hold.serial, True, TYPE_ARRAY, replaces)
    except BaseException:
        _give_up(hold)
        raise
    if name is None:
        heap_commit(mapping.section, hold.payload_off(), TYPE_ARRAY)
    return array


def is_whole(array):
    """Return whether `array` is the complete array of its block, not a view of a part or with another shape.

    An array that can grow is complete if it has the rows that it had when it was opened, however many there are by now.
    """
    cdef Placed placed = placed_behind(array)
    cdef facts_t facts
    if not isinstance(placed, ArrayHold) or not isinstance(array, np.ndarray) or placed_is_stale(placed):
        return False
    _read_header(placed.mapping, placed.payload_off(), &facts)
    if facts.head.capacity_bytes != 0:
        facts.dims[0] = (<ArrayHold>placed).n_rows
    return (array.ctypes.data == <uint64_t>(<ArrayHold>placed).start and array.ndim == facts.head.n_dims
            and array.shape == tuple([facts.dims[i] for i in range(facts.head.n_dims)])
            and array.strides == tuple([<int64_t>facts.steps[i] for i in range(facts.head.n_dims)])
            and array.dtype == dtype_from(placed.mapping, placed.payload_off(), facts.text[:facts.head.dtype_bytes]))


cdef bint _can_grow(array):
    """Return whether an array may have another number of rows by the time a reference to it is opened."""
    cdef Placed placed = placed_behind(array)
    return (isinstance(placed, ArrayHold) and not placed_is_stale(placed)
            and room_at(placed.mapping.section, placed.payload_off()) >= sizeof(array_t)
            and (<array_t*>placed.data).capacity_bytes != 0)


def facts_of(Memory memory, uint64_t payload_off, bytearray header not None, uint64_t n_bytes):
    """Return what a copy of an array's header tells, whose block has a payload of `n_bytes`.

    Returns
    -------
    tuple
        dtype, shape, maximum shape (None if it cannot grow), bytes of the elements, whether it is sealed.
    """
    cdef Mapping mapping = memory.opened()
    cdef facts_t facts
    _check_header(mapping, payload_off, <char*>header, n_bytes, &facts)
    dtype, shape, _ = _checked_elements(mapping, payload_off, &facts)
    most = None
    if facts.head.capacity_bytes != 0:
        most = tuple([None if facts.most[i] == <uint64_t>UNLIMITED else facts.most[i] for i in range(facts.head.n_dims)])
    return dtype, shape, most, facts.head.data_bytes, bool(facts.head.flags & ARRAY_SEALED)


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
    if not is_memoryview and array.flags.writeable == mapping.writable and not _can_grow(array) and is_whole(array):
        return None
    delta = offset_of_address(mapping.section, array.ctypes.data) - payload_off
    return is_memoryview, delta, array.shape, array.strides, array.dtype, array.flags.writeable


def view_again(found, bint is_memoryview, delta, shape, strides, dtype, bint writeable):
    """Make the view described by `view_facts` from the object in its block."""
    cdef Placed placed = placed_behind(found)
    if isinstance(placed, ArrayHold):
        delta -= (<ArrayHold>placed).data_off
    array = np.ndarray(shape, dtype, placed, delta, strides)
    array.flags.writeable = writeable and array.flags.writeable
    return memoryview(array) if is_memoryview else array
