# cython: language_level=3
"""On disk for good: `flush`, and `snapshot`, a copy of a section in another file.

How a snapshot comes to be, and what a kill leaves at each step under the name that was asked for, which is the old file or none::

    1  a file without a name in the same folder              gone with the process
    2  lock and heap gate; the gates of all queues at once,   the same; the section is as after any kill with a gate taken
       while the queues are copied; then the rest
    3  no lock: the copy is recovered, its header written, all of it synced
    4  it gets the name if that is free, or replaces who has it; the folder is synced

The copy is recovered as an image to which no process is attached, by the code that recovers a section whose processes were all killed.
So what a living process was just making or had only pinned is free in the copy, no gate is shut in it, and it is marked clean.

Blocks come to be USED without the gate, when their maker has filled them.  One that was PENDING when the copying
came to it is PENDING in the copy, whatever its tag says by then, since its content may have been copied before it was there.

All queues are copied as they were at one moment: a message that goes from one to another is in one of them, or in the hands of
who carries it, never in both.  The heap gate keeps queues from coming and going meanwhile.  Who is inside a queue's gate waits for
nothing, so no process waits for ever; but a process may be stopped in there.  Then all gates are given back after a slice, and taken
again later.

All bytes are written by this process: extents shared with the section's file, as the kernel's own copying would
leave them, must be split by a later store to a mapping, which on a full disk is a SIGBUS.
"""

import errno
import os
import stat

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from shmem._base import arguments
from shmem._base import errors
from shmem._base import system_tools
from shmem._base.explain import explain
from shmem._objects.lock import shared_lock
from shmem._sections.image import is_in_use

from shmem._atomics cimport load_acquire_u64, load_relaxed_u64
from shmem._base.deadline cimport deadline_is_past
from shmem._base.debug cimport QUEUE_GATES, debug_dropped, debug_taken
from shmem._base.layout cimport (
    MAGIC, MAGIC_BEING_MADE, PAGE_BYTES, STATE_PENDING, STATE_USED, TYPE_QUEUE, block_to_payload, header_t, payload_bytes, queue_t,
    round_up, tag_make, tag_size, tag_state, tag_type)
from shmem._base.participants cimport section_descriptor
from shmem._base.section cimport block_at, block_step, section_t
from shmem._base.status cimport CORRUPTED, INTERRUPTED, OK, OWNER_DIED, TIMEOUT_EXPIRED, WOULD_BLOCK
from shmem._base.system cimport (
    boot_id, file_reserve, file_set_size, file_sync, file_write, folder_sync, memory_map, memory_sync, memory_unmap, now_ns,
    pause_ns, random_bytes)
from shmem._bridge.calls cimport check, deadline_argument, run_step
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.chain cimport chain_first_fault
from shmem._heap.heap cimport WAIT_A_SLICE, heap_enter, heap_leave
from shmem._heap.recovery cimport ALL_PARTICIPANTS, heap_recover
from shmem._sections.image cimport image_begin, image_end
from shmem._sync.channel cimport SLICE_NS
from shmem._sync.gate cimport GATE_SPINS, gate_leave, gate_step, gate_take_over, gate_try, gate_wait_begin, gate_wait_t


def recovered(Memory memory not None):
    """Whether this process was the first one to open the section and found that it had not been closed, so that it was recovered.

    Its last process was killed, or the machine lost power.  The heap is whole (or `check_heap` says what is not); what was in the
    middle of being changed, besides, only the program can know.
    """
    return memory.opened().section.was_recovered


cdef int _flush_step(section_t* section, void* folder) noexcept nogil:
    cdef int status = memory_sync(section.base, round_up(load_acquire_u64(&section.header.top), PAGE_BYTES))
    if status == OK:
        status = file_sync(section_descriptor(section))
    if status == OK and not section.anonymous:
        status = folder_sync(<const char*>folder)
    return status


def flush(Memory memory not None):
    """Write the section to disk; return when it is there, and the file's name with it.

    Raises
    ------
    OperatingSystemError
        The disk did not take it.  What was not written may be lost then, also if a second call succeeds: the kernel reports a failure once.
    """
    cdef Mapping mapping = memory.opened()
    cdef bytes folder = os.path.dirname(os.fsencode(memory.path))
    check(run_step(mapping.section, _flush_step, <char*>folder), mapping, "flush")


cdef int _make_room(section_t* section, int fd, uint64_t* room) noexcept nogil:
    """Have backing for as much as is used now."""
    cdef uint64_t wanted = round_up(load_acquire_u64(&section.header.top), PAGE_BYTES)
    cdef int status = OK
    if wanted > section.size_bytes:
        return CORRUPTED
    if wanted > room[0]:
        status = file_set_size(fd, wanted)
        if status == OK:
            status = file_reserve(fd, room[0], wanted, room[0])
        room[0] = wanted
    return status


# -- queues -----------------------------------------------------------------------------------------------

ctypedef struct queues_t:                # all that there are, while the heap gate is mine
    uint64_t* block_off                  # ascending
    uint64_t n_queues
    uint64_t room
    uint64_t n_taken                     # gates: two of each queue


cdef inline bint _is_queue(section_t* section, uint64_t off) noexcept nogil:
    cdef uint64_t tag = load_acquire_u64(&block_at(section, off).tag)
    return tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_QUEUE and payload_bytes(tag_size(tag)) >= sizeof(queue_t)


cdef inline queue_t* _queue_in(section_t* section, uint64_t block_off) noexcept nogil:
    return <queue_t*>(section.base + block_to_payload(block_off))


cdef inline uint64_t* _gate(section_t* section, queues_t* queues, uint64_t i) noexcept nogil:
    cdef queue_t* queue = _queue_in(section, queues.block_off[i >> 1])
    return &queue.consumers_gate if i & 1 else &queue.producers_gate


cdef int _find_queues(section_t* section, queues_t* queues) noexcept nogil:
    cdef uint64_t off = section.heap_start
    cdef void* larger
    while off < section.header.top:
        if _is_queue(section, off):
            if queues.n_queues == queues.room:
                larger = realloc(queues.block_off, 2 * (queues.room + 8) * sizeof(uint64_t))
                if larger == NULL:
                    return ENOMEM
                queues.block_off = <uint64_t*>larger
                queues.room = 2 * (queues.room + 8)
            queues.block_off[queues.n_queues] = off
            queues.n_queues += 1
        off = block_step(section, off, tag_size(block_at(section, off).tag))
    return OK


cdef bint _take_gate(section_t* section, uint64_t* gate, int64_t deadline_ns) noexcept nogil:
    cdef gate_wait_t wait
    cdef int status
    if gate_try(section, gate) or gate_take_over(section, gate, load_relaxed_u64(gate)):
        return True
    gate_wait_begin(section, &wait, deadline_ns, GATE_SPINS)     # attached already: the heap gate is mine
    status = WOULD_BLOCK
    while status == WOULD_BLOCK or now_ns() < deadline_ns:       # not at once after a wake, which would be lost
        status = gate_step(section, gate, &wait)
        if status == OK or status == OWNER_DIED:
            return True
    return False


cdef void _leave_gates(section_t* section, queues_t* queues) noexcept nogil:
    while queues.n_taken:
        queues.n_taken -= 1
        gate_leave(_gate(section, queues, queues.n_taken))


cdef int _copy_queues(section_t* section, int fd, queues_t* queues) noexcept nogil:
    """The blocks of all queues, while no process puts or gets; WOULD_BLOCK when that cannot be had now."""
    cdef int64_t deadline_ns = now_ns() + SLICE_NS
    cdef uint64_t i, off
    cdef int status = _find_queues(section, queues)
    if section.verify != NULL:
        debug_taken(QUEUE_GATES)
    while status == OK and queues.n_taken < 2 * queues.n_queues:
        if _take_gate(section, _gate(section, queues, queues.n_taken), deadline_ns):
            queues.n_taken += 1
        else:
            status = WOULD_BLOCK
    for i in range(queues.n_queues):
        if status == OK:
            off = queues.block_off[i]
            status = file_write(fd, section.base + off, tag_size(block_at(section, off).tag), off)
    _leave_gates(section, queues)
    if section.verify != NULL:
        debug_dropped(QUEUE_GATES)
    return status


cdef void _open_queues(section_t* image) noexcept nogil:
    """In a copy: no process is inside a gate, and none sleeps."""
    cdef uint64_t off = image.heap_start
    cdef queue_t* queue
    while off < image.header.top:
        if _is_queue(image, off):
            queue = _queue_in(image, off)
            queue.producers_gate = queue.consumers_gate = queue.not_empty = queue.not_full = 0
        off = block_step(image, off, tag_size(block_at(image, off).tag))


# -- the copy ---------------------------------------------------------------------------------------------

cdef int _copy_run(section_t* section, int fd, uint64_t start_off, uint64_t end_off) noexcept nogil:
    return file_write(fd, section.base + start_off, end_off - start_off, start_off) if start_off < end_off else OK


cdef int _copy_blocks(section_t* section, int fd, queues_t* queues) noexcept nogil:
    """Blocks in use but for the queues, and of what is free the tag: recovery needs no more.  The gate is mine."""
    cdef uint64_t off = section.heap_start, run_off = section.heap_start, top = section.header.top, size_bytes, tag, i = 0
    cdef int status = OK
    cdef bint is_copied
    while off < top and status == OK:
        tag = load_acquire_u64(&block_at(section, off).tag)
        size_bytes = tag_size(tag)
        is_copied = i < queues.n_queues and queues.block_off[i] == off
        if is_copied:
            i += 1
        elif tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_QUEUE:
            tag = tag_make(size_bytes, STATE_PENDING, 0)         # it was when the queues were copied
        if is_copied or tag_state(tag) == STATE_PENDING or (tag_state(tag) != STATE_USED and size_bytes >= PAGE_BYTES):
            status = _copy_run(section, fd, run_off, off)
            if status == OK and not is_copied:
                status = file_write(fd, &tag, sizeof(tag), off)
            run_off = off + size_bytes
        off = block_step(section, off, size_bytes)
    return status if status != OK else _copy_run(section, fd, run_off, top)


cdef int _copy_inside(section_t* section, int fd, uint64_t* room, queues_t* queues) noexcept nogil:
    """The heap gate is mine."""
    cdef uint64_t mark = MAGIC_BEING_MADE
    cdef int status = OK
    if section.header.broken or chain_first_fault(section) != 0:
        return CORRUPTED
    status = _make_room(section, fd, room)
    if status == OK:
        status = file_write(fd, &mark, sizeof(mark), 0)
    if status == OK:
        status = _copy_queues(section, fd, queues)
    if status == OK:
        status = _copy_run(section, fd, sizeof(mark), section.heap_start)
    return status if status != OK else _copy_blocks(section, fd, queues)


cdef int _copy(section_t* section, int fd, uint64_t* room) noexcept nogil:
    """Control pages and blocks as they are at one moment of the heap.  Who allocates, frees or names something waits meanwhile.
    WOULD_BLOCK: a queue's gate was not let go of; INTERRUPTED: a slice of waiting for the heap gate is over.  Nothing is held then."""
    cdef queues_t queues
    cdef int status = _make_room(section, fd, room)      # mostly all, and before anybody has to wait
    if status == OK:
        status = heap_enter(section, WAIT_A_SLICE)
    if status != OK:
        return status
    memset(&queues, 0, sizeof(queues))
    status = _copy_inside(section, fd, room, &queues)
    heap_leave(section)
    free(queues.block_off)
    return status


cdef int _finish_mapped(char* base, uint64_t size_bytes, int fd, uint64_t* keep) noexcept nogil:
    """Recover the copy and write its header."""
    cdef header_t* header = <header_t*>base
    cdef section_t image
    cdef uint64_t owner_deaths = header.owner_deaths
    cdef int status = image_begin(&image, base, size_bytes, fd)
    if status != OK:
        return status
    status = heap_recover(&image, ALL_PARTICIPANTS)
    if status == OK:
        _open_queues(&image)
    image_end(&image)
    if status == OK:
        status = random_bytes(header.uuid, sizeof(header.uuid))
    if status == OK:
        status = boot_id(header.boot_id, sizeof(header.boot_id))
    keep[0] = round_up(header.top, PAGE_BYTES)
    header.owner_deaths = owner_deaths           # the present holder of the lock is not in the copy, and is not dead either
    header.death_notice = 0
    header.recoveries = 0
    header.reserved = header.high_water = keep[0]
    header.clean = 1
    header.magic = MAGIC
    return status


cdef int _finish(int fd, uint64_t size_bytes) noexcept nogil:
    """Make the copy a section that was closed cleanly, cut to what is used, on disk."""
    cdef char* base = NULL
    cdef uint64_t keep = 0
    cdef int status = memory_map(fd, size_bytes, True, 0, &base)
    if status != OK:
        return status
    status = _finish_mapped(base, size_bytes, fd, &keep)
    if status == OK:
        status = memory_sync(base, size_bytes)
    memory_unmap(base, size_bytes)
    if status == OK:
        status = file_set_size(fd, keep)
    return status if status != OK else file_sync(fd)


ctypedef struct copy_call_t:
    int fd
    uint64_t size_bytes


cdef int _copy_step(section_t* section, void* request) noexcept nogil:
    cdef copy_call_t* call = <copy_call_t*>request
    cdef int status = _copy(section, call.fd, &call.size_bytes)
    if status == WOULD_BLOCK:
        pause_ns(SLICE_NS)                       # others get on meanwhile
    return status


def write_copy(Memory memory not None, int fd, timeout=None):
    """Write a copy of the section to an empty file that no other process has: 0, or the status of what went wrong.

    Parameters
    ----------
    memory : SharedMemory
    fd : int
        Open for reading and writing.
    timeout : float, optional
        How long to wait for the shared lock and the queues.
    """
    cdef Mapping mapping = memory.opened()
    cdef copy_call_t call
    cdef int64_t deadline_ns = deadline_argument(timeout)
    cdef int status = WOULD_BLOCK
    call.fd, call.size_bytes = fd, 0
    with shared_lock(memory, timeout):
        while status == WOULD_BLOCK or status == INTERRUPTED:
            status = run_step(mapping.section, _copy_step, &call)
            if status == WOULD_BLOCK or status == INTERRUPTED:
                PyErr_CheckSignals()
                memory.opened()
            if status == WOULD_BLOCK and deadline_is_past(deadline_ns):
                return TIMEOUT_EXPIRED
    if status == OK:
        with nogil:
            status = _finish(fd, call.size_bytes)
    return status


# -- its file ---------------------------------------------------------------------------------------------

def _refuse_in_use(Memory memory, target):
    """What must not be replaced: the section's own file, and a file that processes are attached to."""
    cdef section_t* section = memory.opened().section
    try:
        fd = system_tools.open_file(target)
    except OSError:
        return                                   # nothing there, or nothing to be read: replaced, or the system says why not
    try:
        facts = os.fstat(fd)
        if (facts.st_dev, facts.st_ino) == (section.device, section.inode):
            raise ValueError(f"cannot write a snapshot to {target!r}: it is the file of the section itself; choose another path")
        if stat.S_ISREG(facts.st_mode) and is_in_use(fd):
            raise explain(errno.EBUSY, f"snapshot to {target!r}: processes are attached to the section there", {"section": repr(target)})
    finally:
        os.close(fd)


def _copy_to(Memory memory, target, timeout, what):
    """Make the file, write it, name it; what fails leaves nothing."""
    cdef Mapping mapping = memory.opened()
    cdef int own_fd = section_descriptor(mapping.section), status
    fd = -1
    beside = None
    try:
        fd, beside = system_tools.create_beside(target, stat.S_IMODE(os.fstat(own_fd).st_mode) if own_fd >= 0 else 0o600)
        status = write_copy(memory, fd, timeout)
        if status == TIMEOUT_EXPIRED:
            raise explain(status, f"{what}, the queues", {"holder": "a process stands still inside one; it can go on or be killed"})
        if status < 0:
            check(status, mapping, what)
        if status > 0:
            raise OSError(status, os.strerror(status))
        named, beside = beside, None
        system_tools.name_file(fd, named, target)
    except OSError as error:
        if isinstance(error, errors.ShmemError):
            raise
        raise explain(error.errno, what, {"section": repr(target), "path": target}) from error
    finally:
        if fd >= 0:
            os.close(fd)
        if beside is not None:
            os.unlink(beside)


def snapshot(Memory memory not None, path, timeout=None):
    """Write a consistent copy of the section to another file; return when it is on disk.

    It is taken under the shared lock, which is held while bytes are copied and not while the disk is waited for.
    Meanwhile processes that allocate, free or name something wait too; who puts into a queue or gets, only while the queues are
    copied.  The copy appears under `path` at once and whole, in place of what was there (a symbolic link itself is replaced); if
    anything fails, or the process is killed, what was there stays.

    The copy is a section of its own: with another `uuid`, so that no handle of this section leads to it, with the
    same label, desired address and permissions, cut to what is used.  Opening it needs no recovery.
    What other processes were just making, and temporary arrays, are not in it.  All queues are as they were at one moment.  Semaphores
    and events keep their values.  A mutex that was held has, in the copy, an owner who died.

    Parameters
    ----------
    path : path
        On a local file system, not necessarily that of the section.
    timeout : float, optional
        How many seconds to wait for the shared lock, and for who is stopped in the middle of an operation on a queue; None waits for ever.

    Raises
    ------
    SectionFull
        No room on the file system behind `path`.
    HeapCorruption
        The heap is damaged; ``python -m shmem check --repair`` makes a copy first.
    LockTimeout
        The lock was not obtained in time, or a queue was not let go of.
    OperatingSystemError
        Processes are attached to a section at `path`, or what the system refused.

    Notes
    -----
    Guarded by the lock is what its users guard by it.  What a process changes without it, also under a mutex, is copied as it is found,
    perhaps in the middle of a change.

    Examples
    --------
    >>> import os, tempfile
    >>> import shmem
    >>> with tempfile.TemporaryDirectory() as folder, shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     shm["a"] = [1, 2, 3]
    ...     shm.snapshot(os.path.join(folder, "copy"))
    ...     with shmem.SharedMemory(os.path.join(folder, "copy")) as copy:
    ...         print(copy["a"])
    [1 2 3]
    """
    target = arguments.path(path)
    _refuse_in_use(memory, target)
    _copy_to(memory, target, timeout, f"snapshot of {memory.path!r} to {target!r}")
