# cython: language_level=3
"""Blocks as Python sees them: allocation for every module above, objects and their places, and from an offset to an object."""

from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_FillInfo, PyObject_CheckBuffer
from libc.stdint cimport uint32_t, uint64_t

from shmem._base import errors
from shmem._base.public import refuse_construction

from shmem._base.accessors cimport payload_to_block, tag_type
from shmem._base.damage cimport asked_at, room_at
from shmem._base.layout cimport ARRAY_SEALED, BLOCK_HEAD_BYTES, SERIAL_MASK, TYPE_ARRAY, TYPE_PLAIN, array_t, block_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CLOSED, OK, READ_ONLY, WOULD_BLOCK
from shmem._bridge.calls cimport check, run_steps, section_text
from shmem._bridge.holds cimport hold_block
from shmem._bridge.mapping cimport Mapping, face_of
from shmem._heap.heap cimport (
    DO_NOT_WAIT, HEAP_NOWAIT, HEAP_PENDING, HEAP_STOP, HEAP_ZERO, WAIT_A_SLICE, heap_allocate, heap_check_users_block, heap_enter,
    heap_free, heap_leave, heap_wait_t)
from shmem._heap.reallocate cimport heap_reallocate

cdef enum:
    SMALL_BYTES = 65536           # up to this size allocation first tries without releasing the GIL

cdef list _openers = []                         # (first type id, last type id, callable)


def register_opener(first_type, last_type, opener):
    """Register `opener(mapping, payload_off, type_id, serial)`, which makes the Python object for blocks with these type ids."""
    _openers.append((first_type, last_type, opener))


# -- allocation -------------------------------------------------------------------------------------------

ctypedef struct block_call_t:             # arguments and result of the steps below
    uint64_t payload_off
    uint64_t serial
    uint64_t size_bytes
    uint64_t align_bytes
    uint32_t type_id
    int flags
    uint64_t new_off
    block_t* seen


cdef int _allocate_step(section_t* section, void* request) noexcept nogil:
    cdef block_call_t* call = <block_call_t*>request
    return heap_allocate(section, call.size_bytes, call.align_bytes, call.type_id, call.flags | HEAP_STOP, &call.new_off)


cdef int _free_step(section_t* section, void* request) noexcept nogil:
    cdef block_call_t* call = <block_call_t*>request
    return heap_free(section, call.payload_off, call.serial, HEAP_STOP)


cdef int _reallocate_step(section_t* section, void* request) noexcept nogil:
    cdef block_call_t* call = <block_call_t*>request
    return heap_reallocate(section, call.payload_off, call.serial, call.size_bytes, call.flags | HEAP_STOP, &call.new_off)


cdef uint64_t _allocate(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, uint32_t type_id, int flags) except 0:
    cdef section_t* section = mapping.section
    cdef uint64_t payload_off = 0
    cdef int status = WOULD_BLOCK
    cdef block_call_t call
    if not mapping.writable:
        check(READ_ONLY, mapping, f"allocate {size_bytes:,} bytes")
    if section.leaves:
        status = CLOSED
    elif size_bytes <= SMALL_BYTES:
        status = heap_allocate(section, size_bytes, align_bytes, type_id, flags | HEAP_NOWAIT, &payload_off)
    if status == WOULD_BLOCK:
        call.size_bytes, call.align_bytes, call.type_id, call.flags = size_bytes, align_bytes, type_id, flags
        status = run_steps(section, _allocate_step, &call)
        payload_off = call.new_off
    if status != OK:
        check(status, mapping, f"allocate {size_bytes:,} bytes")
    return payload_off


cdef uint64_t allocate_block(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, uint32_t type_id, bint zero) except 0:
    return _allocate(mapping, size_bytes, align_bytes, type_id, HEAP_ZERO if zero else 0)


cdef uint64_t allocate_pending(Mapping mapping, uint64_t size_bytes, uint64_t align_bytes, bint zero) except 0:
    return _allocate(mapping, size_bytes, align_bytes, 0, (HEAP_ZERO if zero else 0) | HEAP_PENDING)


cdef int free_block(Mapping mapping, uint64_t payload_off, uint64_t serial) except -1:
    cdef section_t* section = mapping.section
    cdef block_call_t call
    cdef int status
    if not mapping.writable:
        check(READ_ONLY, mapping, "free a block")
    status = heap_free(section, payload_off, serial, HEAP_NOWAIT)
    if status == WOULD_BLOCK:
        call.payload_off, call.serial = payload_off, serial
        status = run_steps(section, _free_step, &call)
    if status != OK:                      # formatting the text costs more than the call
        check(status, mapping, f"free the block at offset {payload_off:#x}")
    return 0


cdef uint64_t reallocate_block(Mapping mapping, uint64_t payload_off, uint64_t serial, uint64_t size_bytes, bint zero) except 0:
    cdef block_call_t call
    call.payload_off, call.serial, call.size_bytes, call.flags = payload_off, serial, size_bytes, HEAP_ZERO if zero else 0
    check(run_steps(mapping.section, _reallocate_step, &call), mapping,
          f"reallocate the block at offset {payload_off:#x} to {size_bytes:,} bytes")
    return call.new_off


# -- objects in a section -----------------------------------------------------------------------------------

cdef void place(Placed placed, Mapping mapping, uint64_t payload_off) noexcept:
    placed.mapping = mapping
    placed.data = mapping.base + payload_off
    placed.serial = (<uint64_t*>(placed.data - 8))[0] & SERIAL_MASK


cdef int take_hold(Placed placed) except -1:
    placed.hold = hold_block(placed.mapping, placed.payload_off(), placed.serial, "view the block")
    return 0


cdef class Placed:
    """An object in a section: base of `Block` and of typed objects."""

    cdef uint64_t payload_off(self) noexcept:
        return self.data - self.mapping.base

    cdef void let_go(self):
        pass

    @property
    def offset(self):
        """Bytes from the start of the section; the same in every process, so it may be stored."""
        return self.data - self.mapping.base

    @property
    def section(self):
        """The `SharedMemory` that contains it; None once that handle was closed and garbage-collected."""
        return face_of(self.mapping)


cdef object _freed_already(uint64_t payload_off):
    return errors.InvalidBlock(f"the block at offset {payload_off:#x} was freed already")


cdef Block make_block(Mapping mapping, uint64_t payload_off):
    cdef Block block = Block.__new__(Block)
    place(block, mapping, payload_off)
    block.n_bytes = asked_at(mapping.section, payload_off)
    return block


cdef inline bint _goes_on_after_release(int flags) noexcept:
    """Return whether a buffer is taken as by `numpy.ndarray(shape, dtype, buffer)`.

    numpy releases it at once, and keeps the object itself for as long as it uses the memory.
    """
    return flags & PyBUF_ANY_CONTIGUOUS == PyBUF_ANY_CONTIGUOUS and not flags & PyBUF_FORMAT


cdef Block _viewed_block(Block block):
    """Return an equal Block that views refer to instead; it holds the block until the last of them is gone, whatever becomes of `block`.
    """
    cdef Block viewed = Block.__new__(Block)
    viewed.mapping, viewed.data, viewed.serial, viewed.n_bytes = block.mapping, block.data, block.serial, block.n_bytes
    viewed.is_viewed = True
    return viewed


cdef bint _is_sealed(Block block) noexcept:
    """Return whether the block is an array that was sealed; it cannot be sealed while it is held."""
    return (tag_type((<block_t*>(block.data - BLOCK_HEAD_BYTES)).tag) == TYPE_ARRAY and block.n_bytes >= <Py_ssize_t>sizeof(array_t)
            and (<array_t*>block.data).flags & ARRAY_SEALED != 0)


cdef class Block(Placed):
    """Allocated memory: a buffer of `nbytes` bytes, writable unless the section was opened read-only.

    `SharedMemory.allocate` and `SharedMemory.block` return it.  It never moves, and it keeps the section mapped until the last
    view of it is gone.  While a process has views of it (a `memoryview`, an array from `numpy.frombuffer`), other processes cannot free
    it, and deleting its last name frees it with its last view only.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     block = shm.allocate(5)
    ...     memoryview(block)[:] = b"hello"
    ...     bytes(block)
    b'hello'
    """

    def __init__(self):
        raise TypeError("a Block cannot be constructed directly; use SharedMemory.allocate(size) or SharedMemory.block(offset)")

    cdef void let_go(self):
        """Keep the section mapped only until the last view is released."""
        if not self.is_viewed:
            _detach(self)

    @property
    def address(self):
        """The address in this process.  Never store it; other processes understand `offset`."""
        return <uint64_t>self.data

    @property
    def nbytes(self):
        """The number of bytes that was requested."""
        return self.n_bytes

    def __len__(self):
        return self.n_bytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef Block owner
        if placed_is_stale(self):
            raise _freed_already(self.payload_off())
        if <uint64_t>self.n_bytes > room_at(self.mapping.section, self.payload_off()):
            raise errors.InvalidBlock(f"the block at offset {self.payload_off():#x} was made smaller; get it again with block(offset)")
        if flags & PyBUF_WRITABLE and not self.mapping.writable:
            check(READ_ONLY, self.mapping, "write to a block")
        if _goes_on_after_release(flags):
            self.is_viewed = True
        owner = self if self.is_viewed else _viewed_block(self)
        placed_hold(owner)
        if flags & PyBUF_WRITABLE and _is_sealed(self):
            raise errors.ReadOnlyError(f"cannot write to the block at offset {self.payload_off():#x}: it is a sealed array")
        PyBuffer_FillInfo(view, owner, self.data, self.n_bytes, not self.mapping.writable or _is_sealed(self), flags)

    def __releasebuffer__(self, Py_buffer* view):
        # nothing to do; that there is this method makes numpy.frombuffer keep the buffer, as if it were needed
        pass

    def __eq__(self, other):
        if not isinstance(other, Block):
            return NotImplemented
        return (self.mapping.section == (<Block>other).mapping.section and self.payload_off() == (<Block>other).payload_off()
                and self.serial == (<Block>other).serial)

    def __hash__(self):
        return hash((self.payload_off(), self.serial))

    def __repr__(self):
        return f"<shmem.Block of {self.n_bytes} bytes at offset {self.payload_off():#x}>"

    def __reduce__(self):
        raise TypeError("a Block cannot be pickled, since its bytes are in the section; pickle bytes(block), or send shmem.handle(block)")


refuse_construction(Placed, Block)


# -- freed blocks: a Block whose block was freed refers to no section, so that it keeps none mapped

cdef enum:
    GRAVE_WORDS = 4

cdef uint64_t _grave[GRAVE_WORDS]               # zeros: the head of a block that is not used, hence stale


cdef void _detach(Block block):
    """Let go of the section: the block's place becomes a stale block of this process, at the same offset of a mapping of nothing."""
    cdef Mapping nothing = Mapping.__new__(Mapping)
    nothing.writable, nothing.face = block.mapping.writable, block.mapping.face
    nothing.base = <char*>_grave + BLOCK_HEAD_BYTES - block.payload_off()
    block.data = <char*>_grave + BLOCK_HEAD_BYTES
    block.mapping = nothing


cdef Placed placed_behind(object obj):
    """Follow views to the object that owns the memory."""
    while obj is not None and not isinstance(obj, Placed):
        if isinstance(obj, memoryview):
            try:
                obj = obj.obj
            except ValueError:       # it was released
                return None
        elif PyObject_CheckBuffer(obj):
            obj = getattr(obj, "base", None)
        else:
            return None              # its `base`, if any, need not be an object whose memory it uses, and may have a base without end
    return obj if obj is not None and (<Placed>obj).mapping is not None else None


cdef int raise_part(Placed placed) except -1:
    raise TypeError(f"this {type(placed).__name__} is a field of the object at offset {placed.payload_off():#x}, not a block of its own; "
                    "name, send, refer to or free the object that contains it")


cdef uint64_t offset_in(Mapping mapping, object obj) except 0:
    cdef Placed placed = placed_behind(obj)
    if placed is not None and placed.serial & PART_OF_BLOCK:
        raise_part(placed)
    if placed is not None and placed_is_stale(placed):
        raise _freed_already(placed.payload_off())
    if placed is None or placed.mapping.section != mapping.section:
        raise errors.InvalidBlock(f"{type(obj).__name__} {obj!r:.60} is not in {section_text(mapping.section)}")
    return placed.payload_off()


# -- from an offset to an object ------------------------------------------------------------------------------

cdef int _look_at_block(section_t* section, uint64_t payload_off, uint64_t serial, heap_wait_t wait,
                        block_t* seen) noexcept nogil:
    cdef int status = heap_enter(section, wait)
    if status == OK:
        status = heap_check_users_block(section, payload_off, serial)
        if status == OK:
            seen[0] = block_at(section, payload_to_block(payload_off))[0]
        heap_leave(section)
    return status


cdef int _look_step(section_t* section, void* request) noexcept nogil:
    cdef block_call_t* call = <block_call_t*>request
    return _look_at_block(section, call.payload_off, call.serial, WAIT_A_SLICE, call.seen)


cdef int _check_block(Mapping mapping, uint64_t payload_off, uint64_t serial, block_t* seen) except -1:
    """Copy the front tags of the used block at this offset.  Raise InvalidBlock if there is none, or if `serial` is not 0 and differs."""
    cdef section_t* section = mapping.section
    cdef block_call_t call
    cdef int status = _look_at_block(section, payload_off, serial, DO_NOT_WAIT, seen)
    if status == WOULD_BLOCK:
        call.payload_off, call.serial, call.seen = payload_off, serial, seen
        status = run_steps(section, _look_step, &call)
    if status != OK:
        check(status, mapping, f"access the block at offset {payload_off:#x}")
    return 0


cdef object _open_as(Mapping mapping, uint64_t payload_off, uint64_t type_id, uint64_t serial):
    for first_type, last_type, opener in _openers:
        if first_type <= type_id <= last_type:
            return opener(mapping, payload_off, type_id, serial)
    return make_block(mapping, payload_off)


cdef object wrap(Mapping mapping, uint64_t payload_off, uint64_t serial=0, bint plain=False):
    cdef block_t seen, now
    _check_block(mapping, payload_off, serial, &seen)
    while True:
        failure = None
        serial = seen.serial & SERIAL_MASK
        try:
            found = _open_as(mapping, payload_off, TYPE_PLAIN if plain else tag_type(seen.tag), serial)
            if placed_behind(found).serial == serial:
                return found
        except errors.ShmemError as error:       # perhaps caused by another block that is there by now
            failure = error
        _check_block(mapping, payload_off, serial, &now)
        if now.tag == seen.tag and now.serial == seen.serial:
            raise failure or _freed_already(payload_off)
        seen = now
