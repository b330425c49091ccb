# cython: language_level=3
"""Named objects that are looked at without a view of them, and arrays whose shape is changed: calls of `array_gate` and `array_growth`.

None of these pins the object.  They find it by its name, under the heap gate, each time anew.
"""

import operator

import numpy as np

from libc.stdint cimport uint64_t
from libc.string cimport memset

from shmem._base import errors
from shmem._objects.arrays import facts_of
from shmem._objects.directory import is_group

from shmem._base.layout cimport TYPE_ARRAY
from shmem._base.section cimport section_t
from shmem._base.status cimport (
    BEYOND_MAXIMUM, CHANGED, INTERRUPTED, INVALID_BLOCK, NOT_GROWABLE, NO_MEMORY, OK, PINNED, SEALED, SHARED)
from shmem._bridge.calls cimport check, run_step, run_steps
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.array_gate cimport array_copy_header, array_seal, header_call_t, named_array_t
from shmem._heap.array_growth cimport array_grow, growth_t
from shmem._heap.heap cimport WAIT_A_SLICE
from shmem._heap.name_paths cimport path_make
from shmem._objects.directory cimport check_found, name_bytes

cdef enum:
    HEADER_BYTES = 512                   # enough for most arrays


# -- looking ------------------------------------------------------------------------------------------------

class Facts:
    """What a name leads to: `offset`, `serial`, `nbytes`; of an array also `dtype`, `shape`, `maxshape`, `sealed`, else None."""

    __slots__ = ("dtype", "maxshape", "nbytes", "offset", "sealed", "serial", "shape")

    def __init__(self, offset, serial, nbytes, dtype=None, shape=None, maxshape=None, sealed=False):
        self.offset, self.serial, self.nbytes = offset, serial, nbytes
        self.dtype, self.shape, self.maxshape, self.sealed = dtype, shape, maxshape, sealed


cdef int _copy_step(section_t* section, void* request) noexcept nogil:
    return array_copy_header(section, <header_call_t*>request, WAIT_A_SLICE)


def look(Memory memory, str name, bint waits=True):
    """Return the `Facts` of the object that a name leads to, as it is at one moment.

    Without `waits`, None is returned if another process keeps the heap gate for longer than a slice.

    Raises
    ------
    KeyError
        There is no such name.
    InvalidBlock
        The object was freed.
    """
    cdef Mapping mapping = memory.opened()
    cdef header_call_t call
    cdef bytes encoded = name_bytes(name)
    cdef bytearray copied = bytearray(HEADER_BYTES)
    cdef int status
    while True:
        memset(&call, 0, sizeof(call))
        call.anchor = &mapping.section.header.directory_off
        call.name = path_make(encoded, <uint64_t>len(encoded))
        call.copied, call.room = copied, len(copied)
        status = run_steps(mapping.section, _copy_step, &call) if waits else run_step(mapping.section, _copy_step, &call)
        if status == INTERRUPTED:
            return None
        if status == INVALID_BLOCK and waits and is_group(memory, name):
            raise TypeError(f"cannot look at {name!r}: it is a group, which shm[{name!r}] returns; entries are of objects")
        if status != OK:
            _fail(mapping, status, name, f"look at {name!r}", ())
        if call.header_bytes <= call.room:
            break
        copied = bytearray(call.header_bytes)
    if call.type_id != TYPE_ARRAY:
        return Facts(call.payload_off, call.serial, call.n_bytes)
    dtype, shape, maxshape, n_bytes, sealed = facts_of(memory, call.payload_off, copied, call.n_bytes)
    return Facts(call.payload_off, call.serial, n_bytes, dtype, shape, maxshape, sealed)


# -- errors -------------------------------------------------------------------------------------------------

cdef str _viewers(tuple pids):
    if not pids:                         # they have dropped their views meanwhile, or have yet to receive them
        return "a message refers to it, or a process viewed it"
    return f"process{'es' if len(pids) > 1 else ''} {', '.join([str(pid) for pid in pids])} viewed it"


cdef int _fail(Mapping mapping, int status, str name, str what, tuple pids) except -1:
    """Raise the exception for a status."""
    if status == SEALED:
        raise errors.ReadOnlyError(f"cannot {what}: the array is sealed; a changed copy needs another name")
    if status == SHARED:
        raise BufferError(f"cannot {what}: the array would have to move, and other names lead to it, or it is the root object; "
                          "delete the other names, or reserve more room with maxshape")
    if status == PINNED:
        raise BufferError(f"cannot {what}: {_viewers(pids)}, and views that exist could be written to; drop them first")
    return check_found(status, mapping, name, what)


cdef tuple _pids(Memory memory, uint64_t payload_off, uint64_t serial):
    from shmem._objects.finding import viewers

    try:
        return viewers(memory, payload_off, serial)
    except errors.InvalidBlock:
        return ()


# -- growing ------------------------------------------------------------------------------------------------

cdef int _grow_step(section_t* section, void* request) noexcept nogil:
    return array_grow(section, <growth_t*>request)


cdef int _check_growable(facts, str what) except -1:
    if facts.dtype is None:
        raise TypeError(f"cannot {what}: it is not an array")
    if facts.maxshape is None:
        raise ValueError(f"cannot {what}: the array was made without maxshape")
    return 0


cdef int _grow(Memory memory, str name, facts, growth_t* growth, str what, bint move) except? -200:
    """Run a change that was prepared for the array that `facts` are of: OK, or CHANGED if the name leads to another one by now."""
    cdef Mapping mapping = memory.writable_mapping(what)
    cdef bytes encoded = name_bytes(name)
    cdef int status
    growth.array.anchor = &mapping.section.header.directory_off
    growth.array.name = path_make(encoded, <uint64_t>len(encoded))
    growth.array.serial = facts.serial
    growth.item_bytes = facts.dtype.itemsize
    growth.may_move = move
    status = run_steps(mapping.section, _grow_step, growth)
    if status == OK or status == CHANGED:
        return status
    if status == BEYOND_MAXIMUM:
        raise ValueError(f"cannot {what}: its maxshape is {facts.maxshape}")
    if status == NOT_GROWABLE:
        raise ValueError(f"cannot {what}: the array was made without maxshape")
    if status == PINNED:
        viewers = _viewers(_pids(memory, facts.offset, facts.serial))
        raise BufferError(f"cannot {what}: the array would have to move, for it has no room for that, but {viewers}; "
                          "drop the views, or pass move=True: then they keep the old data")
    _fail(mapping, status, name, what, ())
    return status


cdef object _rows(facts, rows, str what):
    """Return rows as a contiguous array with the dtype of the array that they are appended to, converted as by assignment."""
    source = np.asarray(rows)
    row = facts.shape[1:]
    if source.ndim != len(facts.shape) or source.shape[1:] != row:
        wanted = ", ".join(["n", *map(str, row)]) + ("" if row else ",")
        raise ValueError(f"cannot {what}: rows must have the shape ({wanted}), got {source.shape}")
    if source.dtype == facts.dtype and source.flags.c_contiguous:
        return source
    converted = np.empty(source.shape, facts.dtype)
    converted[...] = source
    return converted


def append(Memory memory, str name, rows, bint move):
    """Append rows to the array that a name leads to."""
    cdef growth_t growth
    cdef str what
    cdef int status = CHANGED
    while status == CHANGED:
        facts = look(memory, name)
        what = f"append to {name!r}"
        _check_growable(facts, what)
        source = _rows(facts, rows, what)
        if len(source) == 0:
            memory.writable_mapping(what)
            return
        memset(&growth, 0, sizeof(growth))
        growth.rows = <const char*><uint64_t>source.ctypes.data
        growth.n_bytes, growth.n_rows = source.nbytes, len(source)
        status = _grow(memory, name, facts, &growth, what, move)


def resize(Memory memory, str name, shape, bint move):
    """Change the shape of the array that a name leads to; new elements are zero."""
    cdef growth_t growth
    cdef int i, status = CHANGED
    dims = tuple([operator.index(n) for n in (shape if isinstance(shape, (tuple, list)) else (shape,))])
    if any([n < 0 for n in dims]):
        raise ValueError(f"dimensions must be non-negative, got {dims}")
    while status == CHANGED:
        facts = look(memory, name)
        what = f"resize {name!r} to {dims}"
        _check_growable(facts, what)
        if len(dims) != len(facts.shape):
            raise ValueError(f"cannot {what}: it has {len(facts.shape)} dimensions")
        if any([limit is not None and n > limit for n, limit in zip(dims, facts.maxshape)]):
            raise ValueError(f"cannot {what}: its maxshape is {facts.maxshape}")
        n_bytes = facts.dtype.itemsize
        for n in dims:
            n_bytes *= max(n, 1)
        if n_bytes > memory.opened().section.size_bytes:
            check(NO_MEMORY, memory.opened(), what)
        memset(&growth, 0, sizeof(growth))
        for i in range(len(dims)):
            growth.shape[i] = dims[i]
        status = _grow(memory, name, facts, &growth, what, move)


# -- sealing ------------------------------------------------------------------------------------------------

cdef int _seal_step(section_t* section, void* request) noexcept nogil:
    return array_seal(section, <named_array_t*>request)


def seal(Memory memory, str name):
    """Make every view that is opened from now on read-only."""
    cdef Mapping mapping
    cdef named_array_t call
    cdef bytes encoded = name_bytes(name)
    cdef str what = f"seal {name!r}"
    cdef int status = CHANGED
    while status == CHANGED:
        facts = look(memory, name)
        if facts.dtype is None:
            raise TypeError(f"cannot {what}: it is not an array")
        mapping = memory.writable_mapping(what)
        memset(&call, 0, sizeof(call))
        call.anchor = &mapping.section.header.directory_off
        call.name = path_make(encoded, <uint64_t>len(encoded))
        call.serial = facts.serial
        status = run_steps(mapping.section, _seal_step, &call)
        if status != OK and status != CHANGED:
            _fail(mapping, status, name, what, _pids(memory, facts.offset, facts.serial))
