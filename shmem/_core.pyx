# cython: language_level=3
"""The core of `SharedMemory`: handles, blocks, and the references that keep memory mapped.

References::

    Block, typed object, array  ->  Mapping  ->  section_t (counted)  ->  mapped file, participant entry
    SharedMemory                ->  Mapping, until it is closed

There is one `section_t` per section and process, and one `Mapping` per handle.  `close()` drops the handle's reference to its
Mapping.  Views keep the Mapping, and with it the memory and the participant entry of this process.

In Cython code `section` is a `section_t*`.  An open `SharedMemory` is called `memory`, and `section` only in the public interface.

The fork rule.  A child has the same objects over the same memory and a participant entry of its own; it holds no lock and no pin.
`section_t.n_forks` distinguishes state inherited from the parent from the child's own.

The GIL rule.  Work that takes well under a microsecond is done with the GIL: fast paths and small blocks, which return WOULD_BLOCK
rather than wait.  Everything that may wait, and everything large, is a step that `run_step` runs without the GIL.  A step waits at
most for a slice; `run_steps` runs signal handlers between slices, when nothing is held and nothing has been changed.

Lock order, outermost first; no thread takes an earlier one while holding a later one:

1. the GIL (released before any of the others is waited for)
2. the storage lock of a section
3. the process mutex
4. the opening byte of a section's file
5. the heap gate of a section
6. the gates of its queues, by offset, the producers' first (only a snapshot holds several)
"""

import operator
import os
import threading
import weakref

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport isnan
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._base import arguments
from shmem._base import errors
from shmem._base.explain import explain, explain_opening, explain_problem
from shmem._base.system_tools import section_path, shared_name_of

from shmem._atomics cimport load_relaxed_u64, load_seq_cst_u64
from shmem._base.bounds cimport participants_bound
from shmem._base.damage cimport asked_at, room_at
from shmem._base.deadline cimport AT_ONCE, FOREVER, deadline_after
from shmem._base.debug cimport debug_python
from shmem._base.layout cimport (
    INDEX_NEXT_FIT, INDEX_TLSF, MAX_LABEL_BYTES, SERIAL_MASK, TYPE_PLAIN, block_t, control_bytes, header_t, payload_to_block, tag_type)
from shmem._base.owner cimport owner_index, readers_count
from shmem._base.participants cimport owner_is_alive, participant_entry_is_alive
from shmem._base.section cimport block_at, busy_begin, busy_end, section_t
from shmem._base.status cimport CLOSED, INTERRUPTED, INVALID_BLOCK, NO_MEMORY, OK, READ_ONLY, WOULD_BLOCK
from shmem._base.system cimport pause_ns
from shmem._heap.heap cimport (
    DO_NOT_WAIT, HEAP_NOWAIT, HEAP_PENDING, HEAP_STOP, HEAP_ZERO, WAIT_A_SLICE, heap_allocate, heap_check_users_block, heap_enter,
    heap_free, heap_leave, heap_trim, heap_wait_t)
from shmem._heap.reallocate cimport heap_reallocate
from shmem._heap.verify cimport FINE, Problem, heap_check, heap_count, heap_facts_t, problem_text
from shmem._sections.header cimport open_request_t
from shmem._sections.opening cimport section_join, section_leave, section_remove_abandoned
from shmem._sections.process cimport process_setup, sections_depart
from shmem._sync.storage_lock cimport lock_release_all

cdef enum:
    SMALL_BYTES = 65536           # up to this size allocation first tries without releasing the GIL

cdef object _RANDOM = "anonymous-"              # prefix of generated names
cdef object _mappings = weakref.WeakValueDictionary()     # id -> Mapping of this process, to find the handle for an address
cdef list _openers = []                         # (first type id, last type id, callable)
cdef object _face_class = None
cdef object _traveller = None
cdef object _first_opening = None

if process_setup() != 0:
    raise MemoryError("cannot register fork and thread handlers")


def register_opener(first_type, last_type, opener):
    """Register `opener(mapping, payload_off, type_id, serial)`, which makes the Python object for blocks with these type ids."""
    _openers.append((first_type, last_type, opener))


def register_traveller(traveller):
    """Register `traveller(obj)`: the reduced form of `obj` for a pickler that sends to another process, None for any other pickler."""
    global _traveller
    _traveller = traveller


def travel(obj):
    """Return the value of `__reduce__` if a handle is being sent, None if the object is being stored."""
    return _traveller(obj) if _traveller is not None else None


def register_first_opening(callback):
    """Register `callback()`, which runs before this process opens its first section; several threads may run it at the same time."""
    global _first_opening
    _first_opening = callback


def register_face(face_class):
    """Register the public class that `section` attributes return."""
    global _face_class
    _face_class = face_class


def depart_all():
    """Leave every section at exit; the last participant of a section leaves it whole.

    Daemon threads may still run.  They cannot enter the library while this thread holds the GIL; those already inside are
    waited for.  A section in which one stays is left to the kernel, as after a kill.  No thread needs the
    GIL while it holds the process mutex, an opening byte or a heap gate.

    Returns
    -------
    bool
        Whether every section was left.
    """
    return not sections_depart()


# -- errors and arguments -------------------------------------------------------------------------------

cdef str _holder_text(section_t* section):
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    cdef uint32_t index = owner_index(word)
    if index >= section.max_participants:
        return "readers hold it"
    return f"process {section.participants[index].pid} holds it, or waits for readers to release it"


cdef str _section_text(section_t* section):
    return f"section {os.fsdecode(section.path)!r}"


cdef object _freed_already(uint64_t payload_off):
    return errors.InvalidBlock(f"the block at offset {payload_off:#x} was freed already")


cdef int _fail(int status, Mapping mapping, str what) except -1:
    cdef section_t* section = mapping.section
    if section.verify != NULL:
        debug_python()
    if status == CLOSED and section.departed and threading.current_thread() is not threading.main_thread():
        _park()
    raise explain(status, what, {
        "section": _section_text(section),
        "path": os.fsdecode(section.path),
        "room": section.size_bytes - section.header.top + section.header.hole_bytes + section.header.cached_bytes,
        "max_size": section.size_bytes,
        "holder": _holder_text(section),
    })


cdef int _park() except -1:
    """Block this daemon thread for good, as CPython does a moment later: the process is about to exit."""
    with nogil:
        while True:
            pause_ns(1000000000)
    return 0


cdef int check(int status, Mapping mapping, str what) except -1:
    if status == OK:
        return 0
    return _fail(status, mapping, what)


cdef uint64_t size_argument(Mapping mapping, object size) except? 0xffffffffffffffff:
    """Return a size in bytes, bounded before any arithmetic."""
    number = operator.index(size)
    if number < 0:
        raise ValueError(f"size must be non-negative, got {number}")
    if number > mapping.section.size_bytes:
        check(NO_MEMORY, mapping, f"allocate {number:,} bytes")
    return number


cdef int64_t timeout_argument(object timeout) except? -2:
    """Return a timeout in seconds as nanoseconds, FOREVER for None or a very long one, AT_ONCE for 0."""
    cdef double seconds
    if timeout is None:
        return FOREVER
    seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or a non-negative number of seconds, got {timeout!r}")
    if seconds == 0:
        return AT_ONCE
    if seconds > 4e9:
        return FOREVER
    return <int64_t>(seconds * 1e9)


cdef int64_t deadline_argument(object timeout) except? -2:
    return deadline_after(timeout_argument(timeout))


# -- without the GIL ----------------------------------------------------------------------------------------

cdef int run_step(section_t* section, step_t step, void* request) noexcept:
    cdef int status
    if section != NULL:
        busy_begin(section)
    with nogil:
        status = step(section, request)
        if section != NULL:
            busy_end(section)
    return status


cdef int run_steps(section_t* section, step_t step, void* request) except? -200:
    cdef int status = run_step(section, step, request)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        status = run_step(section, step, request)
    return status


# -- allocation, for every module above -------------------------------------------------------------------

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
    if size_bytes <= SMALL_BYTES:
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
    return _make_block(mapping, payload_off)


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


# -- the mapping ------------------------------------------------------------------------------------------

cdef class Mapping:
    """A handle's reference to a section, and a read-only buffer of all its bytes, since users must not write to it directly."""

    def __cinit__(self):
        self.section = NULL
        self.held = {}

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.section.size_bytes, True, flags)

    cdef void let_go(self) noexcept:
        """Close the handle; the last open one of this process releases this thread's locks."""
        if not self.is_open:
            return
        self.is_open = False
        self.section.n_open -= 1
        if self.section.n_open == 0:
            lock_release_all(self.section)

    def __del__(self):
        """Close a handle that was dropped without `close()`, once its last view is gone.  Another thread's lock keeps this object."""
        for descriptor in list(self.held.values()):
            descriptor._give_up(self)
        if self.section != NULL:
            self.let_go()

    def __dealloc__(self):
        if self.section != NULL:
            with nogil:
                section_leave(self.section)


cdef list open_mappings():
    found = [reference() for reference in _mappings.valuerefs()]          # a copy, since other threads may open and close meanwhile
    return [mapping for mapping in found if mapping is not None and (<Mapping>mapping).is_open]


cdef object face_of(Mapping mapping):
    cdef Memory face = mapping.face() if mapping.face is not None else None
    if face is None and mapping.is_open:
        face = _face_class.__new__(_face_class)
        _put_on_face(face, mapping)
    return face


cdef _put_on_face(Memory memory, Mapping mapping):
    memory.mapping = mapping
    memory.section_id = mapping.section.id
    memory.bytes = mapping
    memory._path = os.fsdecode(mapping.section.path)
    memory._name = shared_name_of(memory._path) if mapping.section.anonymous else memory._path
    memory._mode = "read_write" if mapping.writable else "read_only"
    mapping.face = weakref.ref(memory)


cdef section_t* section_of(object memory) except NULL:
    return (<Memory?>memory).opened().section


# -- objects in a section -----------------------------------------------------------------------------------

cdef void place(Placed placed, Mapping mapping, uint64_t payload_off) noexcept:
    placed.mapping = mapping
    placed.data = mapping.base + payload_off
    placed.serial = (<uint64_t*>(placed.data - 8))[0] & SERIAL_MASK


cdef class Placed:
    """An object in a section: base of `Block` and of typed objects."""

    cdef uint64_t payload_off(self) noexcept:
        return self.data - self.mapping.base

    @property
    def offset(self):
        """Bytes from the start of the section; the same in every process, so it may be stored."""
        return self.data - self.mapping.base

    @property
    def section(self):
        """The `SharedMemory` that contains it; None once that handle was closed and garbage-collected."""
        return face_of(self.mapping)


cdef Block _make_block(Mapping mapping, uint64_t payload_off):
    cdef Block block = Block.__new__(Block)
    place(block, mapping, payload_off)
    block.n_bytes = asked_at(mapping.section, payload_off)
    return block


cdef class Block(Placed):
    """Allocated memory: a buffer of `nbytes` bytes, writable unless the section was opened read-only.

    `SharedMemory.allocate` and `SharedMemory.block` return it.  It never moves, and it keeps the section mapped until the last
    view of it is gone.  Only `SharedMemory.free` frees it.

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
        if placed_is_stale(self):
            raise _freed_already(self.payload_off())
        if <uint64_t>self.n_bytes > room_at(self.mapping.section, self.payload_off()):
            raise errors.InvalidBlock(f"the block at offset {self.payload_off():#x} was made smaller; get it again with block(offset)")
        if flags & PyBUF_WRITABLE and not self.mapping.writable:
            check(READ_ONLY, self.mapping, "write to a block")
        PyBuffer_FillInfo(view, self, self.data, self.n_bytes, not self.mapping.writable, flags)

    def __eq__(self, other):
        if not isinstance(other, Block):
            return NotImplemented
        return (self.mapping.section == (<Block>other).mapping.section and self.payload_off() == (<Block>other).payload_off()
                and self.serial == (<Block>other).serial)

    def __hash__(self):
        return hash((<uint64_t>self.mapping.section, self.payload_off(), self.serial))

    def __repr__(self):
        return f"<shmem.Block of {self.n_bytes} bytes at offset {self.payload_off():#x}>"

    def __reduce__(self):
        sent = travel(self)
        if sent is not None:
            return sent
        raise TypeError("a Block cannot be pickled, since its bytes are in the section; pickle bytes(block), or send shmem.handle(block)")


cdef Placed placed_behind(object obj):
    """Follow views to the object that owns the memory."""
    while obj is not None and not isinstance(obj, Placed):
        if isinstance(obj, memoryview):
            obj = obj.obj
        else:
            obj = getattr(obj, "base", None)
    return obj if obj is not None and (<Placed>obj).mapping is not None else None


cdef int raise_part(Placed placed) except -1:
    raise TypeError(f"this {type(placed).__name__} is a field of the object at offset {placed.payload_off():#x}, not a block of its own; "
                    "name, send, refer to or free the object that contains it")


cdef uint64_t offset_in(Mapping mapping, object obj) except 0:
    cdef Placed placed = placed_behind(obj)
    if placed is not None and placed.serial & PART_OF_BLOCK:
        raise_part(placed)
    if placed is None or placed.mapping.section != mapping.section:
        raise errors.InvalidBlock(f"{type(obj).__name__} {obj!r:.60} is not in {_section_text(mapping.section)}")
    if placed_is_stale(placed):
        raise _freed_already(placed.payload_off())
    return placed.payload_off()


# -- opening ------------------------------------------------------------------------------------------------

cdef bint _looked_for_abandoned = False


cdef int _remove_abandoned() except -1:
    """Once per process, remove sections with generated names that killed processes left behind: no process will open them again."""
    global _looked_for_abandoned
    cdef bytes path
    if _looked_for_abandoned:
        return 0
    _looked_for_abandoned = True
    folder, prefix = os.path.split(section_path(_RANDOM))
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    for name in names:
        if name.startswith(prefix):
            path = os.fsencode(f"{folder}/{name}")
            section_remove_abandoned(path)
    return 0


cdef int _before_opening() except -1:
    global _first_opening
    callback = _first_opening
    if callback is not None:
        callback()
        _first_opening = None
    return 0


cdef section_t* _open_section(open_request_t* request, str path, object shared_name) except NULL:
    cdef section_t* section = NULL
    cdef int status = INTERRUPTED
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        with nogil:
            status = section_join(request, &section)
    if status != OK:
        raise explain_opening(status, path, shared_name, {
            "found": request.found, "wanted": request.wanted, "found_label": request.found_label.decode("ascii", "replace"),
            "max_size": request.size_bytes})
    return section


ctypedef struct look_t:
    heap_facts_t facts
    Problem problem


cdef int _check_heap_step(section_t* section, void* request) noexcept nogil:
    return heap_check(section, &(<look_t*>request).facts, &(<look_t*>request).problem)


cdef int _count_heap_step(section_t* section, void* request) noexcept nogil:
    return heap_count(section, &(<look_t*>request).facts)


cdef int _trim_step(section_t* section, void* request) noexcept nogil:
    return heap_trim(section, WAIT_A_SLICE)


cdef class Memory:
    """The core of `SharedMemory`, which users see: section and heap."""

    def __init__(self, file_name=None, shared_name=None, max_size=None, mode="read_write", desired_address=None, *,
                 index=None, max_participants=None, permissions=0o600, trust_owner=False):
        cdef open_request_t request
        cdef Mapping mapping = Mapping.__new__(Mapping)
        if self.mapping is not None:
            raise ValueError("this SharedMemory is open already")
        arguments.mode(mode)
        if shared_name is not None:
            arguments.name(shared_name, "shared_name")
        elif file_name is None:
            if max_size is None:
                raise ValueError("file_name or shared_name must be given to open a section, or max_size to create an anonymous one")
            shared_name = _RANDOM + os.urandom(8).hex()
            _remove_abandoned()
        label = (shared_name or "").encode()
        path = section_path(shared_name) if file_name is None else arguments.path(file_name)
        encoded = os.fsencode(path)
        request.max_participants = arguments.max_participants(max_participants)
        request.max_size = arguments.max_size(max_size, control_bytes(request.max_participants), request.max_participants)
        if mode == "read_only":
            request.max_size = 0              # a read-only handle never creates a section
        request.path = encoded
        request.label = label
        request.anonymous = file_name is None
        request.read_only = mode == "read_only"
        request.trust_owner = bool(trust_owner)
        request.permissions = operator.index(permissions)
        request.desired_address = arguments.desired_address(desired_address)
        request.index_kind = {"tlsf": INDEX_TLSF, "next_fit": INDEX_NEXT_FIT}[arguments.index(index)]
        request.found = request.wanted = 0
        request.found_label[0] = 0
        request.was_unclean = request.was_made = False
        _before_opening()
        mapping.section = _open_section(&request, path, shared_name)
        mapping.writable = not request.read_only
        mapping.base = mapping.section.base if mapping.writable else mapping.section.read_only_base
        mapping.is_open = True
        mapping.section.n_open += 1
        _mappings[id(mapping)] = mapping
        _put_on_face(self, mapping)

    cdef Mapping opened(self):
        if self.mapping is None:
            raise errors.ClosedError(f"this SharedMemory ({self._path}) was closed")
        if self.mapping.section.verify != NULL:
            debug_python()
        return self.mapping

    cdef Mapping writable_mapping(self, str what):
        cdef Mapping mapping = self.opened()
        if not mapping.writable:
            check(READ_ONLY, mapping, what)
        return mapping

    def __enter__(self):
        self.opened()
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.close()

    def __bool__(self):
        return self.mapping is not None

    def close(self):
        """Close this handle: heap and directory can no longer be used through it, and this thread's locks are released.

        Arrays and objects stay valid; memory and file are released with the last of them.  The last process that leaves
        removes an anonymous section, and truncates a file to the part in use.  Closing twice is harmless.
        """
        cdef Mapping mapping = self.mapping
        if mapping is not None:
            for descriptor in list(mapping.held.values()):
                descriptor._give_up(mapping)
            self.mapping = None
            self.bytes = None
            mapping.let_go()

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.mapping is None

    @property
    def name(self):
        """The name by which other processes attach: the shared name of an anonymous section, the path of a file."""
        return self._name

    @property
    def path(self):
        """The path of the file that backs the section."""
        return self._path

    @property
    def mode(self):
        """``"read_write"`` or ``"read_only"``."""
        return self._mode

    @property
    def label(self):
        """The shared name stored in the section, or None."""
        return self.opened().section.header.label[:MAX_LABEL_BYTES].partition(b"\0")[0].decode("ascii", "replace") or None

    @property
    def max_size(self):
        """The maximum size of the section in bytes, control pages included."""
        return self.opened().section.size_bytes

    @property
    def address(self):
        """The address of the section in this process."""
        return <uint64_t>self.opened().base

    @property
    def uuid(self):
        """The 16 bytes that identify this section."""
        return (<char*>self.opened().section.header.uuid)[:16]

    @property
    def index(self):
        """The index of free blocks: ``"tlsf"`` or ``"next_fit"``."""
        return "tlsf" if self.opened().section.header.index_kind == INDEX_TLSF else "next_fit"

    @property
    def owner_deaths(self):
        """The number of holders of the lock that died without releasing it, since the first opener."""
        return load_relaxed_u64(&self.opened().section.header.owner_deaths)

    def trim(self):
        """Return the memory or disk space behind the last block to the file system."""
        cdef Mapping mapping = self.writable_mapping("trim the section")
        check(run_steps(mapping.section, _trim_step, NULL), mapping, "trim the section")

    # -- heap

    def allocate(self, size, zero=True, align=16):
        """Allocate memory in the section.

        Parameters
        ----------
        size : int
            In bytes.  0 allocates the smallest block.
        zero : bool
            Whether to clear the memory.
        align : int
            A power of two up to 4096.  Offset and address are multiples of it.

        Returns
        -------
        Block

        Raises
        ------
        SectionFull
            The section, or the file system that backs it, has no room.
        """
        cdef Mapping mapping = self.writable_mapping("allocate memory")
        cdef uint64_t align_bytes = arguments.align(align)
        return _make_block(mapping, allocate_block(mapping, size_argument(mapping, size), align_bytes, 0, bool(zero)))

    def reallocate(self, obj, size, zero=True):
        """Change the size of a block and keep its contents, up to the smaller size.

        Parameters
        ----------
        obj : Block
            Stale afterwards if the block had to move.
        size : int
            In bytes.
        zero : bool
            Whether to clear the bytes that are added.

        Returns
        -------
        Block
            At the same offset if there was room.

        Raises
        ------
        SectionFull
            There is no room; the block is unchanged.
        InvalidBlock
            The block was freed, or belongs to another section.
        """
        cdef Mapping mapping = self.writable_mapping("reallocate a block")
        cdef block_call_t call
        call.payload_off = offset_in(mapping, obj)
        call.size_bytes = size_argument(mapping, size)
        call.serial = placed_behind(obj).serial
        call.flags = HEAP_ZERO if zero else 0
        if not isinstance(obj, Block):
            raise TypeError(f"reallocate takes a Block, got {type(obj).__name__}; arrays and typed objects have a fixed size")
        check(run_steps(mapping.section, _reallocate_step, &call), mapping,
              f"reallocate the block at offset {call.payload_off:#x} to {call.size_bytes:,} bytes")
        return _make_block(mapping, call.new_off)

    def free(self, obj):
        """Free a block.

        Parameters
        ----------
        obj : Block, array, typed object, or int
            An int is an offset.

        Raises
        ------
        InvalidBlock
            It is not a block of this section, was freed already, or is an array that another process has a view of.
        HeapCorruption
            The end of the block was overwritten.
        """
        cdef Mapping mapping = self.writable_mapping("free a block")
        if isinstance(obj, int):
            if not 0 <= obj < mapping.section.size_bytes:
                check(INVALID_BLOCK, mapping, f"free the block at offset {obj:#x}")
            free_block(mapping, obj, 0)
        else:
            free_block(mapping, offset_in(mapping, obj), placed_behind(obj).serial)

    def block(self, offset):
        """Return the block at an offset.

        Raises
        ------
        InvalidBlock
            No allocated block begins at that offset.
        """
        cdef Mapping mapping = self.opened()
        number = operator.index(offset)
        if not 0 <= number < mapping.section.size_bytes:
            check(INVALID_BLOCK, mapping, f"access the block at offset {number:#x}")
        return wrap(mapping, number, 0, True)

    # -- looking

    def _check_heap(self):
        cdef Mapping mapping = self.opened()
        cdef look_t look
        cdef int status
        look.problem = FINE
        status = run_steps(mapping.section, _check_heap_step, &look)
        if look.problem:
            raise explain_problem(problem_text(look.problem).decode(), _section_text(mapping.section), look.facts)
        check(status, mapping, "check the heap")
        return look.facts

    def _count_heap(self):
        cdef Mapping mapping = self.opened()
        cdef look_t look
        check(run_steps(mapping.section, _count_heap_step, &look), mapping, "count the blocks")
        return look.facts

    def _header_facts(self):
        """Return the facts in `stats` that are not counts of blocks: sizes, participants, the lock's holders and waiters."""
        cdef section_t* section = self.opened().section
        cdef header_t* header = section.header
        cdef uint64_t word = load_seq_cst_u64(&header.lock_gate)
        cdef uint32_t i
        participants = []
        waiters = sharers = 0
        for i in range(participants_bound(section)):
            if participant_entry_is_alive(section, i):
                participants.append(section.participants[i].pid)
                waiters += section.participants[i].waiting
                sharers += readers_count(load_seq_cst_u64(&section.participants[i].readers))
        holder = None
        if owner_is_alive(section, word):
            holder = section.participants[owner_index(word)].pid
        return {
            "max_size": section.size_bytes, "top": header.top, "heap_start": header.heap_start, "reserved": header.reserved,
            "high_water": header.high_water, "participants": tuple(participants), "lock_holder": holder, "lock_sharers": sharers,
            "lock_waiters": waiters, "owner_deaths": header.owner_deaths, "recoveries": header.recoveries,
        }
