# cython: language_level=3, auto_pickle=False
"""What Semaphore, Event and Mutex have in common: they are in a section, in a file of their own, or in this process alone.

References::

    in a section   Waitable -> Mapping; `words` are in a block, or in a field of the object in that block
    else           Waitable -> Room, until it is closed; a waiter refers to the Room too, and the last reference unmaps it

Every use checks first that the object is open, that its block is still the one it was made for, and that it may be written.  A waiter
checks again after each slice (`SLICE_NS`).

Operations that need no waiting run with the GIL.  A wait releases it, and checks for signals after each slice, when nothing is taken.
"""

import operator
import os

import numpy as np

from shmem._base import arguments
from shmem._base import errors
from shmem._base.explain import explain_named
from shmem._base.public import refuse_construction
from shmem._base.system_tools import named_path
from shmem._bridge.blocks import register_opener
from shmem._objects.fields import KINDS

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.layout cimport BLOCK_HEAD_BYTES, TYPE_MUTEX, TYPE_SEMAPHORE, block_t, named_state_t
from shmem._base.section cimport section_t
from shmem._base.status cimport CLOSED, INTERRUPTED, INVALID_BLOCK, OK, READ_ONLY
from shmem._bridge.blocks cimport PART_OF_BLOCK, Placed, allocate_pending, place, placed_is_stale
from shmem._bridge.calls cimport check, deadline_argument, run_step, step_t
from shmem._bridge.leftovers cimport made_room
from shmem._bridge.mapping cimport Mapping, face_of
from shmem._core cimport Memory
from shmem._heap.heap cimport heap_commit
from shmem._objects.directory cimport give_up_pending, insert_name
from shmem._objects.fields cimport Field, FieldType, field_address, raise_stale
from shmem._sync.named_file cimport named_open, named_request_t, named_unlink, named_unmap
from shmem._sync.primitives cimport place_t

cdef dict _words_of_type = {}                    # type id -> Words


# -- fields of Struct classes ---------------------------------------------------------------------------------

cdef class Words(FieldType):
    """The field type of `Semaphore`, `Event` and `Mutex`: opaque bytes, all zero at first."""

    cdef Field make_field(self):
        return WordsField.__new__(WordsField)

    cpdef list describe(self):
        return [self.kind]

    def __repr__(self):
        return f"shmem.{self.kind.capitalize()}"


cdef class WordsField(Field):
    """A field that reads as an object bound to its place, and cannot be assigned."""

    cdef object load(self, Placed placed, char* at):
        cdef Waitable found = _unbound((<Words>self.type).cls)
        found.mapping = placed.mapping
        found.data = placed.data
        found.serial = placed.serial | PART_OF_BLOCK
        found.words = at
        return found

    cdef int store(self, object holder, char* at, object value) except -1:
        raise TypeError(f"{self.where()} is a {self.type!r}, which starts as zero and has no default")

    cdef int assign(self, Placed placed, object value) except -1:
        field_address(self, placed)
        raise AttributeError(f"{self.where()} is a {self.type!r} inside the object; it is used, not assigned")


cdef Words make_words(str kind, size_t n_bytes, type cls, uint32_t type_id, uint32_t named_kind):
    cdef Words words = Words.__new__(Words)
    words.kind = kind
    words.cls = cls
    words.type_id = type_id
    words.named_kind = named_kind
    words.n_bytes = n_bytes
    words.align_bytes = 8
    words.dtype = np.dtype(f"V{n_bytes}")
    KINDS[kind] = lambda: words
    _words_of_type[type_id] = words
    return words


cdef inline Words _words_of(Waitable self):
    return type(self).__shmem_field__


cdef inline Waitable _unbound(type cls):
    """Return a new object of a class, which is closed until it gets its words."""
    return <Waitable>(<PyTypeObject*>cls).tp_new(cls, <PyObject*>(), NULL)


# -- places -----------------------------------------------------------------------------------------------

cdef class Room:

    def __dealloc__(self):
        free(self.own)
        if self.named != NULL:
            named_unmap(self.named)


cdef int _stand_alone(Waitable self, named_state_t* initial) except -1:
    """Use words that only this process has."""
    cdef Room room = Room.__new__(Room)
    room.own = calloc(1, sizeof(named_state_t))
    if room.own == NULL:
        raise MemoryError
    (<named_state_t*>room.own)[0] = initial[0]
    self.room = room
    self.words = room.own
    return 0


cdef int _open_file(Waitable self, str name, named_state_t* initial, permissions, trust_owner, bytes uuid) except -1:
    """Use the words in the file of that name; with `uuid`, only if the file has it."""
    cdef named_request_t request
    cdef Room room = Room.__new__(Room)
    cdef Words words = _words_of(self)
    cdef str what = words.kind
    cdef str path = named_path(what, arguments.name(name, "name"))
    cdef bytes encoded = os.fsencode(path)
    cdef int status
    request.path = encoded
    request.kind = words.named_kind
    request.create = uuid is None
    request.permissions = operator.index(permissions)
    request.trust_owner = bool(trust_owner)
    request.initial = initial[0]
    request.named = NULL
    request.user = 0
    with nogil:
        status = named_open(&request)
    if status != OK and made_room(status):
        with nogil:
            status = named_open(&request)
    if status != OK:
        raise explain_named(status, "open", what, path, request.user)
    room.named = request.named
    found = (<char*>request.named.uuid)[:16]
    if uuid is not None and uuid != found:
        raise errors.NotASection(f"cannot open {path!r}: another {what} has this name by now")
    self.file = (name, path, request.device, request.inode, found, bool(trust_owner))
    self.words = &request.named.state
    self.room = room
    return 0


cdef int open_or_stand_alone(Waitable self, name, str state_argument, named_state_t* initial, permissions, trust_owner) except -1:
    if self.words != NULL or self.file is not None:
        raise ValueError(f"this {type(self).__name__} is open already")
    if name is None:
        return _stand_alone(self, initial)
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}; "
                        f"for the initial state write {type(self).__name__}({state_argument}={name!r})")
    return _open_file(self, name, initial, permissions, trust_owner, None)


cdef Waitable _bind(Waitable self, Mapping mapping, uint64_t payload_off):
    """Bind the object to a block, and return it."""
    place(self, mapping, payload_off)
    self.words = self.data
    return self


cdef object place_new(Waitable self, Memory memory, name, uint64_t first_word):
    """Return the object for a new block, which is published together with its name."""
    cdef Mapping mapping = memory.writable_mapping(f"place {_a(type(self).__name__)}")
    cdef Words words = _words_of(self)
    cdef section_t* section = mapping.section
    cdef uint64_t payload_off = allocate_pending(mapping, words.n_bytes, 16, True)
    _bind(self, mapping, payload_off)
    (<uint64_t*>self.words)[0] = first_word
    if name is None:
        heap_commit(section, payload_off, words.type_id)
        return self
    try:
        insert_name(mapping, name, payload_off, self.serial, True, words.type_id)
    except BaseException:
        give_up_pending(section, payload_off)
        raise
    return self


def open_placed(Mapping mapping not None, uint64_t payload_off, uint32_t type_id, serial):
    """Return the object for a used block of one of these types; `_bridge.blocks.wrap` calls this."""
    cdef Words words = _words_of_type[type_id]
    if room_at(mapping.section, payload_off) < words.n_bytes:
        raise_damaged(mapping.section, payload_off, f"the block is too small for a {words.cls.__name__}, which its front tag names")
    return _bind(_unbound(words.cls), mapping, payload_off)


register_opener(TYPE_SEMAPHORE, TYPE_MUTEX, open_placed)


# -- arguments, and the common base ---------------------------------------------------------------------------

cdef uint32_t count_argument(object count, str what, int least) except? 0xffffffff:
    """Return a count, bounded before any arithmetic to one more than a semaphore's maximum."""
    number = operator.index(count)
    if number < least:
        raise ValueError(f"{what} must be {'non-negative' if least == 0 else 'at least 1'}, got {number}")
    return min(number, 1 << 31)


cdef int64_t blocking_argument(object blocking, object timeout, object forever) except? -2:
    """Return the deadline for the arguments `blocking` and `timeout` of `threading`."""
    if not blocking:
        if timeout is not None and timeout != forever:
            raise ValueError(f"timeout must not be given without blocking, got {timeout!r}")
        return AT_ONCE
    if timeout is None or timeout == forever:
        return FOREVER
    return deadline_argument(timeout)


cdef int refuse(Waitable self, str what) except -1:
    """Raise the exception for an object that is closed, freed or read-only."""
    if self.words == NULL:
        label = f" {self.file[0]!r}" if self.file is not None else ""
        raise errors.ClosedError(f"{what}: this {type(self).__name__}{label} was closed")
    if placed_is_stale(self):
        raise_stale(self)
    return check(READ_ONLY, self.mapping, what)


cdef section_t* _section(Waitable self, place_t* where) noexcept:
    """Return its section, and fill in its block; NULL when it is in no section."""
    if self.mapping is None:
        return NULL
    where.block = <block_t*>(self.data - BLOCK_HEAD_BYTES)
    where.serial = self.serial
    return self.mapping.section


cdef section_t* prepare_wait(Waitable self, wait_call_t* call, void* words, int64_t deadline_ns) noexcept:
    cdef section_t* section = _section(self, &call.place)
    call.words = words
    call.where = &call.place if section != NULL else NULL
    call.deadline_ns = deadline_ns
    call.owner_died = False
    return section


cdef int wait(Waitable self, section_t* section, step_t step, wait_call_t* call) except? -200:
    """Repeat a step of waiting; between two of them run signal handlers, and check that the object is still open and in place."""
    cdef Room room = self.room
    cdef int status = run_step(section, step, call)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        changeable(self, "wait")
        if section != NULL and section.departed:
            check(CLOSED, self.mapping, "wait")
        if self.room is not room:
            raise errors.ClosedError(f"wait: this {type(self).__name__} was closed")
        status = run_step(section, step, call)
    if status == INVALID_BLOCK:
        raise_stale(self)
    return status


cdef class Waitable(Placed):
    """Base of `Semaphore`, `Event` and `Mutex`."""

    @property
    def offset(self):
        """Bytes from the start of the section; None when it is in no section."""
        return <char*>self.words - self.mapping.base if self.mapping is not None and self.words != NULL else None

    @property
    def section(self):
        """The `SharedMemory` that contains it; None without one, or once that handle was closed and garbage-collected."""
        return face_of(self.mapping) if self.mapping is not None else None

    @property
    def name(self):
        """The system-wide name by which it was opened, or None."""
        return self.file[0] if self.file is not None else None

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.words == NULL

    def close(self):
        """Close this object; other objects for the same place stay open.  A thread that waits in it raises `ClosedError`.

        Memory is unmapped once no thread waits in it.  An object in a section is not freed.
        """
        self.words = NULL
        self.room = None

    def unlink(self):
        """Remove the name.  Processes that have it open continue to use it; opening the name from now on makes a new one.

        Raises
        ------
        SectionNotFound
            The name is gone, or belongs to another one by now.
        """
        cdef bytes encoded
        cdef int status
        if self.file is None:
            raise ValueError(f"this {type(self).__name__} has no system-wide name to remove" + (
                "; use SharedMemory.free to free it" if self.mapping is not None else ""))
        encoded = os.fsencode(self.file[1])
        status = named_unlink(encoded, self.file[2], self.file[3])
        if status != OK:
            raise explain_named(status, "remove", type(self).__name__.lower(), self.file[1], 0)

    def __eq__(self, other):
        if not isinstance(other, Waitable):
            return NotImplemented
        cdef Waitable it = other
        if self.mapping is None or it.mapping is None:
            return self is it
        return (self.mapping.section == it.mapping.section and self.serial == it.serial
                and <char*>self.words - self.mapping.base == <char*>it.words - it.mapping.base)

    def __hash__(self):
        if self.mapping is None:
            return object.__hash__(self)
        return hash((self.mapping.section.id, self.data - self.mapping.base, self.serial))

    def __array__(self, *args, **kwargs):
        kind = type(self).__name__
        raise TypeError(f"{_a(kind)} is not an array; use SharedMemory.{kind.lower()}(name=...) to place one in a section")

    def __reduce_ex__(self, protocol):
        kind = type(self).__name__
        if self.file is not None:
            return type(self)._open_again, (self.file[0], self.file[4], self.file[5])
        if self.mapping is None:
            raise TypeError(f"{_a(kind)} without a name belongs to this process alone; give it a name, or place it in a section with "
                            f"SharedMemory.{kind.lower()}()")
        raise TypeError(f"{_a(kind)} in a section cannot be pickled; multiprocessing sends it as a handle, otherwise send shmem.handle(it)")

    @classmethod
    def _open_again(cls, name, uuid, trust_owner):
        """Unpickle a named one: open it if it is still the same."""
        cdef named_state_t unused
        cdef Waitable self = cls.__new__(cls)
        memset(&unused, 0, sizeof(unused))
        _open_file(self, name, &unused, 0, trust_owner, uuid)
        return self

    def __repr__(self):
        return f"<shmem.{type(self).__name__} {_place_text(self)}{self._state_text()}>"


refuse_construction(Waitable)


cdef str _a(str kind):
    return f"an {kind}" if kind == "Event" else f"a {kind}"


cdef str _place_text(Waitable self):
    if self.file is not None:
        return repr(self.file[0])
    if self.mapping is None:
        return "of this process"
    return f"at offset {<char*>self.words - self.mapping.base:#x}" if self.words != NULL else "in a section"


cdef bint is_gone(Waitable self) noexcept:
    return self.mapping is not None and placed_is_stale(self)
