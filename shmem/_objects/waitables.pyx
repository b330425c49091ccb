# cython: language_level=3, auto_pickle=False
"""The Python classes Semaphore, Event and Mutex: in a section, in a file of their own, or in this process alone.

References::

    in a section   Waitable -> Mapping; `words` are in a block, or in a field of the object in that block
    else           Waitable -> Room, until it is closed; a waiter refers to the Room too, and the last reference unmaps it

Every use checks first that the object is open, that its block is still the one it was made for, and that it may be written.  A waiter
checks again after each slice (`SLICE_NS`).

Operations that need no waiting run with the GIL.  A wait releases it, and checks for signals after each slice, when nothing is taken.
"""

import operator
import os
import warnings

import numpy as np

from shmem._base import arguments
from shmem._base import errors
from shmem._base.explain import explain_named
from shmem._base.system_tools import named_path
from shmem._bridge.blocks import register_opener, travel
from shmem._objects.fields import KINDS

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from shmem._atomics cimport load_relaxed_u64, load_seq_cst_u32, load_seq_cst_u64
from shmem._base.damage cimport raise_damaged, room_at
from shmem._base.deadline cimport AT_ONCE, FOREVER
from shmem._base.layout cimport (
    BLOCK_HEAD_BYTES, EVENT_SIGNALED, NAMED_EVENT, NAMED_SEMAPHORE, SEMAPHORE_MAX, TYPE_EVENT, TYPE_MUTEX, TYPE_SEMAPHORE, block_t, event_t,
    mutex_t, named_state_t, semaphore_t)
from shmem._base.section cimport section_t
from shmem._base.status cimport CLOSED, INTERRUPTED, INVALID_BLOCK, OK, READ_ONLY, TIMEOUT_EXPIRED, WOULD_BLOCK
from shmem._base.system cimport pause_ns
from shmem._bridge.blocks cimport PART_OF_BLOCK, Placed, allocate_pending, place, placed_is_stale
from shmem._bridge.calls cimport check, deadline_argument, run_step, step_t
from shmem._bridge.mapping cimport Mapping, face_of
from shmem._core cimport Memory
from shmem._heap.heap cimport heap_commit
from shmem._objects.directory cimport give_up_pending, insert_name
from shmem._objects.fields cimport Field, FieldType, field_address, raise_stale
from shmem._sync.channel cimport ALL_WAITERS, channel_notify
from shmem._sync.named_file cimport named_open, named_request_t, named_unlink, named_unmap
from shmem._sync.primitives cimport (
    event_is_signaled, event_reset, event_sequence, event_signal, event_wait, mutex_is_held, mutex_is_mine,
    mutex_lock, mutex_try, mutex_unlock, place_t, semaphore_signal, semaphore_try, semaphore_wait)

cdef enum:
    N_LOOKS = 100
    LOOK_NS = 1000000

cdef object ONE = 1
cdef object MINUS_ONE = -1


# -- fields of Struct classes ---------------------------------------------------------------------------------

cdef class Words(FieldType):
    """The field type of `Semaphore`, `Event` and `Mutex`: opaque bytes, all zero at first."""
    cdef readonly str kind
    cdef int which

    cdef Field make_field(self):
        return WordsField.__new__(WordsField)

    cpdef list describe(self):
        return [self.kind]

    def __repr__(self):
        return f"shmem.{self.kind.capitalize()}"


cdef class WordsField(Field):
    """A field that reads as an object bound to its place, and cannot be assigned."""

    cdef object load(self, Placed placed, char* at):
        cdef int which = (<Words>self.type).which
        cdef Waitable found
        if which == 0:
            found = Semaphore.__new__(Semaphore)
        elif which == 1:
            found = Event.__new__(Event)
        else:
            found = Mutex.__new__(Mutex)
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


def _make_words(str kind, size_t n_bytes, int which):
    cdef Words words = Words.__new__(Words)
    words.kind = kind
    words.which = which
    words.n_bytes = n_bytes
    words.align_bytes = 8
    words.dtype = np.dtype(f"V{n_bytes}")
    KINDS[kind] = lambda: words
    return words


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


cdef int _open_file(Waitable self, str name, uint32_t kind, named_state_t* initial, permissions, trust_owner, bytes uuid) except -1:
    """Use the words in the file of that name; with `uuid`, only if the file has it."""
    cdef named_request_t request
    cdef Room room = Room.__new__(Room)
    cdef str what = "semaphore" if kind == NAMED_SEMAPHORE else "event"
    cdef str path = named_path(what, arguments.name(name, "name"))
    cdef bytes encoded = os.fsencode(path)
    cdef int status
    request.path = encoded
    request.kind = kind
    request.create = uuid is None
    request.permissions = operator.index(permissions)
    request.trust_owner = bool(trust_owner)
    request.initial = initial[0]
    request.named = NULL
    request.user = 0
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


cdef int _open_or_stand_alone(Waitable self, name, uint32_t kind, named_state_t* initial, permissions, trust_owner) except -1:
    if self.words != NULL or self.file is not None:
        raise ValueError(f"this {type(self).__name__} is open already")
    if name is None:
        return _stand_alone(self, initial)
    if not isinstance(name, str):
        what = "value" if kind == NAMED_SEMAPHORE else "signaled"
        raise TypeError(f"name must be a string, got {type(name).__name__}; "
                        f"for the initial state write {type(self).__name__}({what}={name!r})")
    return _open_file(self, name, kind, initial, permissions, trust_owner, None)


cdef Waitable _bind(Waitable self, Mapping mapping, uint64_t payload_off):
    """Bind the object to a block, and return it."""
    place(self, mapping, payload_off)
    self.words = self.data
    return self


cdef object _place_new(Waitable self, Memory memory, uint64_t n_bytes, uint32_t type_id, name, uint64_t first_word):
    """Return the object for a new block, which is published together with its name."""
    cdef Mapping mapping = memory.writable_mapping(f"place {_a(type(self).__name__)}")
    cdef section_t* section = mapping.section
    cdef uint64_t payload_off = allocate_pending(mapping, n_bytes, 16, True)
    _bind(self, mapping, payload_off)
    (<uint64_t*>self.words)[0] = first_word
    if name is None:
        heap_commit(section, payload_off, type_id)
        return self
    try:
        insert_name(mapping, name, payload_off, self.serial, True, type_id)
    except BaseException:
        give_up_pending(section, payload_off)
        raise
    return self


def open_placed(Mapping mapping not None, uint64_t payload_off, uint32_t type_id, serial):
    """Return the object for a used block of one of these types; `_bridge.blocks.wrap` calls this."""
    cls = {TYPE_SEMAPHORE: Semaphore, TYPE_EVENT: Event, TYPE_MUTEX: Mutex}[type_id]
    if room_at(mapping.section, payload_off) < (<Words>cls.__shmem_field__).n_bytes:
        raise_damaged(mapping.section, payload_off, f"the block is too small for a {cls.__name__}, which its front tag names")
    return _bind(cls.__new__(cls), mapping, payload_off)


register_opener(TYPE_SEMAPHORE, TYPE_MUTEX, open_placed)


# -- arguments, and the common base ---------------------------------------------------------------------------

cdef uint32_t _count_argument(object count, str what, int least) except? 0xffffffff:
    """Return a count, bounded before any arithmetic to one more than a semaphore's maximum."""
    number = operator.index(count)
    if number < least:
        raise ValueError(f"{what} must be {'non-negative' if least == 0 else 'at least 1'}, got {number}")
    return min(number, 1 << 31)


cdef int64_t _blocking_argument(object blocking, object timeout, object forever) except? -2:
    """Return the deadline for the arguments `blocking` and `timeout` of `threading`."""
    if not blocking:
        if timeout is not None and timeout != forever:
            raise ValueError(f"timeout must not be given without blocking, got {timeout!r}")
        return AT_ONCE
    if timeout is None or timeout == forever:
        return FOREVER
    return deadline_argument(timeout)


cdef int _refuse(Waitable self, str what) except -1:
    """Raise the exception for an object that is closed, freed or read-only."""
    if self.words == NULL:
        label = f" {self.file[0]!r}" if self.file is not None else ""
        raise errors.ClosedError(f"{what}: this {type(self).__name__}{label} was closed")
    if placed_is_stale(self):
        raise_stale(self)
    return check(READ_ONLY, self.mapping, what)


cdef inline void* _readable(Waitable self) except NULL:
    if self.words == NULL or (self.mapping is not None and placed_is_stale(self)):
        _refuse(self, "look")
    return self.words


cdef inline void* _changeable(Waitable self, str what) except NULL:
    if self.words == NULL or (self.mapping is not None and (placed_is_stale(self) or not self.mapping.writable)):
        _refuse(self, what)
    return self.words


cdef inline section_t* _section(Waitable self, place_t* where) noexcept:
    """Return its section, and fill in its block; NULL when it is in no section."""
    if self.mapping is None:
        return NULL
    where.block = <block_t*>(self.data - BLOCK_HEAD_BYTES)
    where.serial = self.serial
    return self.mapping.section


ctypedef struct wait_call_t:              # arguments and results of the steps in which a thread waits
    void* words
    place_t* where                        # NULL: in no section
    place_t place
    int64_t deadline_ns
    uint32_t since                        # of an event: the sequence number when the wait began
    bint owner_died                       # of a mutex


cdef section_t* _prepare_wait(Waitable self, wait_call_t* call, void* words, int64_t deadline_ns) noexcept:
    cdef section_t* section = _section(self, &call.place)
    call.words = words
    call.where = &call.place if section != NULL else NULL
    call.deadline_ns = deadline_ns
    call.owner_died = False
    return section


cdef int _wait(Waitable self, section_t* section, step_t step, wait_call_t* call) except? -200:
    """Repeat a step of waiting; between two of them run signal handlers, and check that the object is still open and in place."""
    cdef Room room = self.room
    cdef int status = run_step(section, step, call)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        _changeable(self, "wait")
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
        """Close this object; other objects for the same words stay open.  A thread that waits in it raises `ClosedError`.

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
        sent = travel(self)
        if sent is not None:
            return sent
        raise TypeError(f"{_a(kind)} in a section cannot be pickled; multiprocessing sends it as a handle, otherwise send shmem.handle(it)")

    @classmethod
    def _open_again(cls, name, uuid, trust_owner):
        """Unpickle a named one: open it if it is still the same."""
        cdef named_state_t unused
        cdef Waitable self = cls.__new__(cls)
        memset(&unused, 0, sizeof(unused))
        _open_file(self, name, NAMED_SEMAPHORE if cls is Semaphore else NAMED_EVENT, &unused, 0, trust_owner, uuid)
        return self

    def __repr__(self):
        return f"<shmem.{type(self).__name__} {_place_text(self)}{self._state_text()}>"


cdef str _a(str kind):
    return f"an {kind}" if kind == "Event" else f"a {kind}"


cdef str _place_text(Waitable self):
    if self.file is not None:
        return repr(self.file[0])
    if self.mapping is None:
        return "of this process"
    return f"at offset {<char*>self.words - self.mapping.base:#x}" if self.words != NULL else "in a section"


# -- semaphore ------------------------------------------------------------------------------------------------

cdef int _semaphore_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return semaphore_wait(<semaphore_t*>call.words, call.where, call.deadline_ns, True)


cdef bint _semaphore_wait(Semaphore self, semaphore_t* semaphore, int64_t deadline_ns) except -1:
    """Take one, waiting without the GIL; return False when the deadline passed."""
    cdef wait_call_t call
    cdef section_t* section = _prepare_wait(self, &call, semaphore, deadline_ns)
    return _wait(self, section, _semaphore_step, &call) == OK


cdef inline int _semaphore_signal(Semaphore self, object inc) except -1:
    cdef semaphore_t* semaphore = <semaphore_t*>_changeable(self, "signal")
    cdef uint32_t n = 1
    if inc is not ONE:
        n = _count_argument(inc, "what is added", 1)
    if semaphore_signal(semaphore, n) != OK:
        raise errors.SemaphoreOverflow(f"signal({inc}): the value {self.value} would exceed {SEMAPHORE_MAX}; it is unchanged")
    return 0


def has_waiters(Semaphore self not None):
    """Return whether a thread sleeps in it.  Killed waiters may still be registered: all are woken, and live ones register again."""
    cdef semaphore_t* semaphore = <semaphore_t*>_changeable(self, "look")
    cdef int looks_left = N_LOOKS
    if load_seq_cst_u64(&semaphore.channel) >> 32 == 0:
        return False
    channel_notify(&semaphore.channel, ALL_WAITERS)
    while looks_left and load_seq_cst_u64(&semaphore.channel) >> 32 == 0:
        looks_left -= 1
        with nogil:
            pause_ns(LOOK_NS)
        semaphore = <semaphore_t*>_changeable(self, "look")
    return looks_left > 0


@cython.final
cdef class Semaphore(Waitable):
    """A counting semaphore: system-wide by name, of this process alone, or in a section.

    `wait` decrements the value, waiting while it is 0; `signal` increments it.  Without waiters both are one atomic operation.
    It has the methods of `threading.Semaphore` too.  In a section `SharedMemory.semaphore` makes one, and
    ``slots: shmem.Semaphore`` in the body of a `Struct` class is a field.

    Parameters
    ----------
    name : str, optional
        System-wide: 1 to 200 of the characters A-Z a-z 0-9 . _ -.  It persists, with its value, until `unlink` or the next boot.
        None: of this process alone.
    value : int
        The initial value, at most 2**31 - 1.  An existing name keeps its value, and this one is ignored.
    permissions : int
        Permission bits of the name's file, at creation.
    trust_owner : bool
        Accept a file that belongs to another user.

    Raises
    ------
    UntrustedOwner
        The file belongs to another user, and `trust_owner` was not given.
    NotASection
        The file of that name is not a semaphore; it was not modified.

    Examples
    --------
    >>> import shmem
    >>> slots = shmem.Semaphore(value=1)
    >>> slots.wait(), slots.wait(timeout=0)
    (True, False)
    >>> slots.signal(3)
    >>> slots.value
    3
    """
    __shmem_field__ = _make_words("semaphore", sizeof(semaphore_t), 0)

    def __init__(self, name=None, value=0, *, permissions=0o600, trust_owner=False):
        cdef named_state_t initial
        memset(&initial, 0, sizeof(initial))
        initial.semaphore.value = _value_argument(value)
        _open_or_stand_alone(self, name, NAMED_SEMAPHORE, &initial, permissions, trust_owner)

    def wait(self, timeout=None):
        """Decrement the value; wait while it is 0.

        Parameters
        ----------
        timeout : float, optional
            In seconds; None waits without end, 0 does not wait.

        Returns
        -------
        bool
            False when the time passed; the value was not changed then.
        """
        cdef semaphore_t* semaphore = <semaphore_t*>_changeable(self, "wait")
        cdef int64_t deadline_ns = FOREVER
        if timeout is not None:
            deadline_ns = deadline_argument(timeout)
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, deadline_ns)

    def signal(self, inc=1):
        """Add `inc` to the value, and wake that many waiters.

        Raises
        ------
        SemaphoreOverflow
            The value would exceed 2**31 - 1; it is unchanged.
        """
        _semaphore_signal(self, inc)

    def acquire(self, blocking=True, timeout=None):
        """Do `wait`, with the arguments of `threading.Semaphore`."""
        cdef semaphore_t* semaphore = <semaphore_t*>_changeable(self, "acquire")
        cdef int64_t deadline_ns = FOREVER
        if blocking is not True or timeout is not None:
            deadline_ns = _blocking_argument(blocking, timeout, None)
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, deadline_ns)

    def release(self, n=1):
        """Do `signal`, with the arguments of `threading.Semaphore`."""
        _semaphore_signal(self, n)

    @property
    def value(self):
        """The value at this moment."""
        return load_seq_cst_u32(&(<semaphore_t*>_readable(self)).value)

    def __enter__(self):
        cdef semaphore_t* semaphore = <semaphore_t*>_changeable(self, "wait")
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, FOREVER)

    def __exit__(self, exc_type, exc, traceback):
        _semaphore_signal(self, ONE)

    def _state_text(self):
        return ", closed" if self.words == NULL else ", freed" if _is_gone(self) else f", value {self.value}"


cdef uint32_t _value_argument(object value) except? 0xffffffff:
    cdef uint32_t number = _count_argument(value, "a semaphore's value", 0)
    if number > SEMAPHORE_MAX:
        raise errors.SemaphoreOverflow(f"a semaphore's value must be at most {SEMAPHORE_MAX}, got {value}")
    return number


cdef bint _is_gone(Waitable self) noexcept:
    return self.mapping is not None and placed_is_stale(self)


# -- event ------------------------------------------------------------------------------------------------------

cdef int _event_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return event_wait(<event_t*>call.words, call.where, call.since, call.deadline_ns, True)


cdef bint _event_wait(Event self, event_t* event, int64_t deadline_ns) except -1:
    """Wait without the GIL; return False when the deadline passed."""
    cdef wait_call_t call
    cdef section_t* section = _prepare_wait(self, &call, event, deadline_ns)
    call.since = event_sequence(event)
    return _wait(self, section, _event_step, &call) == OK


@cython.final
cdef class Event(Waitable):
    """An event: system-wide by name, of this process alone, or in a section.

    While it is signaled, no thread waits for it.  A signal releases every thread that is waiting, even if a reset follows
    immediately.  It has the methods of `threading.Event` too.  In a section `SharedMemory.event` makes
    one, and ``ready: shmem.Event`` in the body of a `Struct` class is a field.

    Parameters
    ----------
    name : str, optional
        System-wide, as for `Semaphore`.  None: of this process alone.
    signaled : bool
        The initial state.  An existing name keeps its state, and this one is ignored.
    permissions, trust_owner
        As for `Semaphore`.

    Raises
    ------
    UntrustedOwner, NotASection
        As for `Semaphore`.

    Examples
    --------
    >>> import shmem
    >>> ready = shmem.Event()
    >>> ready.wait(timeout=0)
    False
    >>> ready.signal()
    >>> ready.wait()
    True
    """
    __shmem_field__ = _make_words("event", sizeof(event_t), 1)

    def __init__(self, name=None, signaled=False, *, permissions=0o600, trust_owner=False):
        cdef named_state_t initial
        memset(&initial, 0, sizeof(initial))
        initial.event.word = EVENT_SIGNALED if signaled else 0
        _open_or_stand_alone(self, name, NAMED_EVENT, &initial, permissions, trust_owner)

    def wait(self, timeout=None):
        """Wait until it is signaled.

        Parameters
        ----------
        timeout : float, optional
            In seconds; None waits without end, 0 does not wait.

        Returns
        -------
        bool
            False when the time passed.
        """
        cdef event_t* event = <event_t*>_changeable(self, "wait")
        cdef int64_t deadline_ns = FOREVER
        if timeout is not None:
            deadline_ns = deadline_argument(timeout)
        return event_is_signaled(event) or _event_wait(self, event, deadline_ns)

    def signal(self):
        """Signal it: all waiters return, and later waits return at once until `reset`."""
        event_signal(<event_t*>_changeable(self, "signal"))

    def reset(self):
        """Reset it, so that `wait` waits again."""
        event_reset(<event_t*>_changeable(self, "reset"))

    def set(self):
        """Do `signal`, under its name in `threading.Event`."""
        event_signal(<event_t*>_changeable(self, "set"))

    def clear(self):
        """Do `reset`, under its name in `threading.Event`."""
        event_reset(<event_t*>_changeable(self, "clear"))

    def is_set(self):
        """Return whether it is signaled."""
        return event_is_signaled(<event_t*>_readable(self))

    def _state_text(self):
        if self.words == NULL or _is_gone(self):
            return ", closed" if self.words == NULL else ", freed"
        return ", signaled" if self.is_set() else ", not signaled"


# -- mutex ------------------------------------------------------------------------------------------------------

cdef int _mutex_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return mutex_lock(section, <mutex_t*>call.words, call.where, call.deadline_ns, True, &call.owner_died)


cdef bint _mutex_acquire(Mutex self, int64_t deadline_ns) except -1:
    """Acquire the mutex, waiting without the GIL if necessary; return False when the deadline passed."""
    cdef mutex_t* mutex = <mutex_t*>_changeable(self, "acquire")
    cdef wait_call_t call
    cdef section_t* section = self.mapping.section
    call.owner_died = False
    cdef int status = mutex_try(section, mutex, &call.owner_died)
    if status == WOULD_BLOCK:
        _prepare_wait(self, &call, mutex, deadline_ns)
        status = _wait(self, section, _mutex_step, &call)
        if status == TIMEOUT_EXPIRED:
            return False
    if status != OK:
        check(status, self.mapping, "acquire a Mutex")
    if call.owner_died:
        _tell_of_death(self, mutex)
    return True


cdef int _tell_of_death(Mutex self, mutex_t* mutex) except -1:
    """Warn that the previous owner died; this thread is the next owner.  If the warning raises, the mutex is released first."""
    try:
        warnings.warn(f"a previous owner of the Mutex at offset {self.offset:#x} died without releasing it; "
                      "the data it protects may be inconsistent", errors.OwnerDiedWarning, stacklevel=1)
    except BaseException:
        mutex_unlock(self.mapping.section, mutex)
        raise
    return 0


@cython.final
cdef class Mutex(Waitable):
    """A lock in a section, owned by one thread of one process at a time; the owner may acquire it again.

    `SharedMemory.mutex` makes one, and ``guard: shmem.Mutex`` in the body of a `Struct` class is a field.  It has the methods
    of `threading.RLock`.  If the owner was killed or its thread ended, the next thread acquires it with an `OwnerDiedWarning`.  A
    forked child owns no mutex.  Do not free one that is held or waited for.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     guard = shm.mutex()
    ...     with guard:
    ...         guard.locked()
    True
    """
    __shmem_field__ = _make_words("mutex", sizeof(mutex_t), 2)

    def __init__(self):
        raise TypeError("a Mutex cannot be constructed directly; use SharedMemory.mutex() or a field `guard: shmem.Mutex` of a Struct")

    def acquire(self, blocking=True, timeout=-1):
        """Acquire the mutex, waiting while another thread owns it; the owner acquires it once more.

        Parameters
        ----------
        blocking : bool
            False: do not wait.
        timeout : float or None
            In seconds; -1 or None waits without end.

        Returns
        -------
        bool
            Whether this thread acquired it.
        """
        if blocking is True and timeout is MINUS_ONE:
            return _mutex_acquire(self, FOREVER)
        return _mutex_acquire(self, _blocking_argument(blocking, timeout, MINUS_ONE))

    def release(self):
        """Release it once.

        Raises
        ------
        LockError
            This thread does not own it.
        """
        cdef mutex_t* mutex = <mutex_t*>_changeable(self, "release")
        if mutex_unlock(self.mapping.section, mutex) != OK:
            raise errors.LockError(f"release: this thread does not own the Mutex at offset {self.offset:#x}")

    def locked(self):
        """Return whether a live thread owns it."""
        cdef mutex_t* mutex = <mutex_t*>_readable(self)
        return mutex_is_held(self.mapping.section, mutex)

    @property
    def owner_deaths(self):
        """The number of owners that ended without releasing it and after which the next owner was warned."""
        return load_relaxed_u64(&(<mutex_t*>_readable(self)).owner_deaths)

    def __enter__(self):
        return _mutex_acquire(self, FOREVER)

    def __exit__(self, exc_type, exc, traceback):
        cdef mutex_t* mutex = <mutex_t*>_changeable(self, "release")
        cdef section_t* section = self.mapping.section
        # a child that leaves its parent's block owns nothing; neither does a process that has left the section, at exit
        if mutex_unlock(section, mutex) != OK and section.n_forks == 0 and section.private.index_plus_1 != 0:
            raise errors.LockError(f"leave the block: this thread does not own the Mutex at offset {self.offset:#x}")

    def _is_owned(self):
        """Return whether this thread owns it, for `threading.Condition`."""
        cdef mutex_t* mutex = <mutex_t*>_readable(self)
        return self.mapping.writable and mutex_is_mine(self.mapping.section, mutex)

    def _release_save(self):
        """Release it as often as it was acquired, for `threading.Condition` before it waits."""
        cdef mutex_t* mutex = <mutex_t*>_changeable(self, "release")
        cdef uint32_t depth
        if not mutex_is_mine(self.mapping.section, mutex):
            raise errors.LockError(f"wait: this thread does not own the Mutex at offset {self.offset:#x}")
        depth, mutex.depth = mutex.depth, 1
        mutex_unlock(self.mapping.section, mutex)
        return depth

    def _acquire_restore(self, depth):
        """Acquire it again as often as it was released."""
        _mutex_acquire(self, FOREVER)
        (<mutex_t*>self.words).depth = depth

    def _state_text(self):
        if self.words == NULL or _is_gone(self):
            return ", closed" if self.words == NULL else ", freed"
        return ", locked" if self.locked() else ", not locked"


# -- in a section -------------------------------------------------------------------------------------------

def place_semaphore(Memory memory not None, value, name):
    """See `SharedMemory.semaphore`."""
    return _place_new(Semaphore.__new__(Semaphore), memory, sizeof(semaphore_t), TYPE_SEMAPHORE, name, _value_argument(value))


def place_event(Memory memory not None, signaled, name):
    """See `SharedMemory.event`."""
    return _place_new(Event.__new__(Event), memory, sizeof(event_t), TYPE_EVENT, name, EVENT_SIGNALED if signaled else 0)


def place_mutex(Memory memory not None, name):
    """See `SharedMemory.mutex`."""
    return _place_new(Mutex.__new__(Mutex), memory, sizeof(mutex_t), TYPE_MUTEX, name, 0)
