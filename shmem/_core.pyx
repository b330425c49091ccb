# cython: language_level=3
"""The core of `SharedMemory`: opening a section, and its heap.  The rules for the bridge to Python (`_bridge`) and all above it:

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
5. the gate of an array (no thread holds two)
6. the reserve gate of a section
7. the heap gate of a section
8. the gates of its queues, by offset, the producers' first (only a snapshot holds several)
"""

import operator
import os
import warnings
import weakref

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t

from shmem._base import arguments
from shmem._base import errors
from shmem._base.explain import explain_opening, explain_problem
from shmem._base.public import show_signature
from shmem._base.system_tools import present_path, section_path, shared_name_of
from shmem._bridge.leftovers import GENERATED
from shmem._bridge.mapping import register_face_maker

from shmem._atomics cimport load_relaxed_u64, load_seq_cst_u64
from shmem._base.accessors cimport control_bytes
from shmem._base.bounds cimport participants_bound
from shmem._base.debug cimport debug_python
from shmem._base.layout cimport INDEX_NEXT_FIT, INDEX_TLSF, MAX_LABEL_BYTES, header_t
from shmem._base.owner cimport owner_index, readers_count
from shmem._base.participants cimport owner_is_alive, participant_entry_is_alive
from shmem._base.section cimport section_t
from shmem._base.status cimport INTERRUPTED, INVALID_BLOCK, OK, READ_ONLY
from shmem._base.system cimport barrier_prepare
from shmem._bridge.blocks cimport (
    Block, allocate_block, free_block, make_block, offset_in, placed_behind, reallocate_block, wrap)
from shmem._bridge.calls cimport check, run_steps, section_text, size_argument
from shmem._bridge.leftovers cimport made_room, remove_leftovers_once
from shmem._bridge.mapping cimport Mapping
from shmem._heap.claims cimport claims_sweep
from shmem._heap.heap cimport WAIT_A_SLICE, heap_sweep, heap_trim
from shmem._heap.name_groups cimport groups_empty
from shmem._heap.verify cimport FINE, Problem, heap_check, heap_count, heap_facts_t, problem_text
from shmem._sections.header cimport open_request_t
from shmem._sections.opening cimport section_join
from shmem._sections.process cimport process_setup, sections_depart

cdef object _face_class = None
cdef object _first_opening = None
cdef int _can_bar = -1                       # whether this process can make all threads execute a barrier; -1: not asked yet

if process_setup() != 0:
    raise MemoryError("cannot register fork and thread handlers")


def register_first_opening(callback):
    """Register `callback()`, which runs before this process opens its first section; several threads may run it at the same time."""
    global _first_opening
    _first_opening = callback


def register_face(face_class):
    """Register the public class that `section` attributes return."""
    global _face_class
    _face_class = face_class


def depart_all(is_last_attempt=False):
    """Leave every section at exit; the last participant of a section leaves it whole.

    Daemon threads may still run.  They cannot enter the library while this thread holds the GIL; those already inside are
    waited for.  A section in which one stays after the last attempt is left to the kernel, as after a kill.  No thread needs the
    GIL while it holds the process mutex, an opening byte or a heap gate.  A thread that fills a new block does need it; between two
    attempts the caller releases the GIL.

    Returns
    -------
    bool
        Whether every section was left.
    """
    return not sections_depart(is_last_attempt)


# -- opening ------------------------------------------------------------------------------------------------

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
    cdef bint is_retry = False
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        with nogil:
            status = section_join(request, &section)
        if not is_retry and made_room(status):
            is_retry, status = True, INTERRUPTED
    if status != OK:
        raise explain_opening(status, path, shared_name, {
            "found": request.found, "wanted": request.wanted, "found_label": request.found_label.decode("ascii", "replace"),
            "max_size": request.size_bytes})
    return section


cdef int _warn_of_limits(Mapping mapping, str path, max_size, max_participants) except -1:
    """Warn if the section is smaller than was asked for."""
    cdef section_t* section = mapping.section
    cdef list texts = []
    if max_size is not None and max_size > section.size_bytes:
        texts.append(f"max_size is {section.size_bytes:,}, not {max_size:,}: only a first opener that may write makes a section larger")
    if max_participants is not None and max_participants > section.max_participants:
        texts.append(f"max_participants is {section.max_participants:,}, not {max_participants:,}: it is set when a section is created")
    if texts:
        warnings.warn(f"{path!r} was opened with its present limits: {'; '.join(texts)}", errors.LimitWarning, 1)
    return 0


cdef _put_on_face(Memory memory, Mapping mapping):
    memory.mapping = mapping
    memory.section_id = mapping.section.id
    memory._path = os.fsdecode(mapping.section.path)
    memory._anonymous = mapping.section.anonymous
    memory._mode = "read_write" if mapping.writable else "read_only"
    mapping.face = weakref.ref(memory)


show_signature(Memory)


def _make_face(Mapping mapping not None):
    cdef Memory face = _face_class.__new__(_face_class)
    _put_on_face(face, mapping)
    return face


register_face_maker(_make_face)


# -- the section and its heap -------------------------------------------------------------------------------

cdef enum:
    HOLDS_A_STEP = 256                    # of the heap gate, while deleted groups are emptied; then signals are looked for

ctypedef struct look_t:
    heap_facts_t facts
    Problem problem


cdef int _check_heap_step(section_t* section, void* request) noexcept nogil:
    return heap_check(section, &(<look_t*>request).facts, &(<look_t*>request).problem)


cdef int _count_heap_step(section_t* section, void* request) noexcept nogil:
    return heap_count(section, &(<look_t*>request).facts)


cdef int _trim_step(section_t* section, void* request) noexcept nogil:
    return heap_trim(section, WAIT_A_SLICE)


cdef int _sweep_step(section_t* section, void* request) noexcept nogil:
    return heap_sweep(section, WAIT_A_SLICE, <uint64_t*>request)


cdef int _empty_groups_step(section_t* section, void* request) noexcept nogil:
    return groups_empty(section, WAIT_A_SLICE, HOLDS_A_STEP, <uint64_t*>request)


cdef uint64_t empty_groups(Mapping mapping, str what) except? 0xffffffffffffffff:
    cdef uint64_t n_bytes = 0
    if mapping.section.header.doomed_off != 0:
        check(run_steps(mapping.section, _empty_groups_step, &n_bytes), mapping, what)
    return n_bytes


ctypedef struct sweep_claims_t:
    uint64_t age_ns
    uint64_t n_bytes


cdef int _sweep_claims_step(section_t* section, void* request) noexcept nogil:
    cdef sweep_claims_t* old = <sweep_claims_t*>request
    return claims_sweep(section, old.age_ns, WAIT_A_SLICE, &old.n_bytes)


cdef uint64_t _age_argument(object seconds) except? 0xffffffffffffffff:
    cdef double number = seconds
    if not number >= 0:
        raise ValueError(f"claims must be a non-negative number of seconds, got {seconds!r}")
    return <uint64_t>(number * 1e9) if number < 4e9 else <uint64_t>-1


cdef class Memory:
    """The core of `SharedMemory`, which users see: section and heap."""

    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, file_name=None, shared_name=None, max_size=None, mode="read_write", desired_address=None, *,
                 index=None, max_participants=None, permissions=0o600, trust_owner=False):
        """Initialize the object: see its class."""
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
            shared_name = GENERATED + os.urandom(8).hex()
            remove_leftovers_once()
        label = (shared_name or "").encode()
        path = section_path(shared_name) if file_name is None else arguments.path(file_name)
        encoded = os.fsencode(path)
        request.max_participants = arguments.max_participants(max_participants)
        if max_size is not None:
            max_size = arguments.size(max_size, "max_size")
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
        mapping.take(_open_section(&request, path, shared_name), not request.read_only)
        _put_on_face(self, mapping)
        _warn_of_limits(mapping, path, max_size, max_participants)

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
            mapping.let_go()

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.mapping is None

    @property
    def name(self):
        """The name by which other processes attach: the shared name of an anonymous section, the path of a file."""
        path = self.path
        return shared_name_of(path) if self._anonymous else path

    @property
    def path(self):
        """The path of the file that backs the section: its present one if the file was moved, the last known one after `close`."""
        cdef section_t* section
        if self.mapping is not None:
            section = self.mapping.section
            self._path = present_path(self._path, section.device, section.inode, section.fd)
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

    def sweep(self, claims=None):
        """Free what processes that were killed left in the heap.

        That is blocks that they were making, arrays of which only they had views, and what is in groups that they were deleting.
        Attaching does the same, and so do an allocation that would fail and one in several hundred others.
        Messages that a killed process sent keep their arrays for 60 seconds from then on.
        If no killed process left anything, the cost is a look at each participant; otherwise every block is visited.
        Blocks that a killed process had allocated, and to which no name leads, stay allocated.

        Parameters
        ----------
        claims : float, optional
            Also give up every message that was sent at least so many seconds ago and has not been opened.  Arrays that only such messages
            keep are freed, and opening one of these messages raises InvalidBlock.

        Returns
        -------
        int
            The number of bytes that became free, block overhead included.

        Raises
        ------
        HeapCorruption
            A block is damaged.
        """
        cdef Mapping mapping = self.writable_mapping("sweep the section")
        cdef uint64_t n_bytes = 0
        cdef sweep_claims_t old
        old.age_ns = <uint64_t>-1 if claims is None else _age_argument(claims)
        check(run_steps(mapping.section, _sweep_step, &n_bytes), mapping, "sweep the section")
        check(run_steps(mapping.section, _sweep_claims_step, &old), mapping, "sweep the section")
        return n_bytes + old.n_bytes + empty_groups(mapping, "sweep the section")

    # -- heap

    def allocate(self, size, zero=True, align=16):
        """Allocate memory in the section.

        Parameters
        ----------
        size : int or str
            In bytes, or a text such as "64M" or "1GiB".  0 allocates the smallest block.
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
        return make_block(mapping, allocate_block(mapping, size_argument(mapping, size), align_bytes, 0, bool(zero)))

    def reallocate(self, obj, size, zero=True):
        """Change the size of a block and keep its contents, up to the smaller size.

        Parameters
        ----------
        obj : Block
            Stale afterwards if the block had to move.
        size : int or str
            In bytes, or a text such as "64M" or "1GiB".
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
        cdef uint64_t payload_off = offset_in(mapping, obj)
        cdef uint64_t size_bytes = size_argument(mapping, size)
        cdef Block new
        if not isinstance(obj, Block):
            raise TypeError(f"reallocate takes a Block, got {type(obj).__name__}; arrays and typed objects have a fixed size")
        new = make_block(mapping, reallocate_block(mapping, payload_off, placed_behind(obj).serial, size_bytes, bool(zero)))
        if new.serial != (<Block>obj).serial:
            (<Block>obj).let_go()
        return new

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
            placed_behind(obj).let_go()

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
            raise explain_problem(problem_text(look.problem).decode(), section_text(mapping.section), look.facts)
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


cdef section_t* section_of(object memory) except NULL:
    global _can_bar
    cdef section_t* section
    cdef bint can_bar
    if not isinstance(memory, Memory):
        raise TypeError(f"memory must be a SharedMemory, got {type(memory).__name__}")
    section = (<Memory>memory).opened().section
    if not section.has_barrier and _can_bar < 0:
        with nogil:
            can_bar = barrier_prepare()
        _can_bar = can_bar
    section.has_barrier = _can_bar > 0
    return section
