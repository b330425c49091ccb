# cython: language_level=3
"""Persistence: `flush`, and `snapshot`, which copies a section to another file.

The steps of a snapshot, and what a kill leaves at each.  Until step 4 the target path keeps its old file, if it had one::

    1  create a file without a name in the target's folder    the file vanishes with the process
    2  take the lock, the heap gate and the gates of all      the same; the section is as after any kill with a gate taken
       queues at once; copy the queues, then the rest
    3  without the lock: recover the copy, write its header,  the same
       sync all of it
    4  link the file to the path if that is free, else        the old file or the complete copy is at the path
       replace what is there; sync the folder

The copy is recovered as an image to which no process is attached, by the code that recovers a section whose processes were all killed.
Blocks that a live process was making or had only pinned are therefore free in the copy, its gates are open, and it is marked clean.

A block's maker fills it and then makes it USED, without the gate.  A block that was PENDING when the copying reached it is PENDING in the
copy, even if its tag has changed since, because its content may have been copied before it was written.

All queues are copied as they were at one moment.  A message that moves from one queue to another is in one of them, or held by the
process that moves it, never in both.  The heap gate keeps queues from being made or freed meanwhile.  A thread inside a queue's gate
does not wait for anything, so there is no deadlock, but its process may be stopped there.  In that case all gates are released after a
slice and taken again later.

This process writes all bytes itself.  The kernel's own copying may leave extents shared with the section's file; a later store to a
mapping must split them, which raises SIGBUS on a full disk.
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
from shmem._base.accessors cimport block_to_payload, payload_bytes, round_up, tag_make, tag_size, tag_state, tag_type
from shmem._base.deadline cimport deadline_is_past
from shmem._base.debug cimport QUEUE_GATES, debug_dropped, debug_taken
from shmem._base.layout cimport MAGIC, MAGIC_BEING_MADE, PAGE_BYTES, STATE_PENDING, STATE_USED, TYPE_QUEUE, header_t, queue_t
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


def recovered(Memory self not None):
    """Whether this process opened the section first, found that it had not been closed, and recovered it.

    The last process was killed, or the machine lost power.  Recovery repairs the heap; `check_heap` reports damage that it could not
    repair.  Whether the application's own data are consistent is for the application to verify.
    """
    return self.opened().section.was_recovered


cdef int _flush_step(section_t* section, void* folder) noexcept nogil:
    cdef int status = memory_sync(section.base, round_up(load_acquire_u64(&section.header.top), PAGE_BYTES))
    if status == OK:
        status = file_sync(section_descriptor(section))
    if status == OK and not section.anonymous:
        status = folder_sync(<const char*>folder)
    return status


def flush(Memory self not None):
    """Write the section to disk; return when its data and its file name are on disk.

    Raises
    ------
    OperatingSystemError
        Writing failed.  Unwritten data may be lost even if a second call succeeds, because the kernel reports a failure only once.
    """
    cdef Mapping mapping = self.opened()
    cdef bytes folder = os.path.dirname(os.fsencode(self.path))
    check(run_step(mapping.section, _flush_step, <char*>folder), mapping, "flush")


cdef int _make_room(section_t* section, int fd, uint64_t* room) noexcept nogil:
    """Reserve backing in the copy for all that is in use now."""
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

ctypedef struct queues_t:                # all queues of the section, while this thread owns the heap gate
    uint64_t* block_off                  # ascending
    uint64_t n_queues
    uint64_t room
    uint64_t n_taken                     # gates that this thread owns; each queue has two


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
    gate_wait_begin(section, &wait, deadline_ns, GATE_SPINS)     # attached already: this thread owns the heap gate
    status = WOULD_BLOCK
    while status != TIMEOUT_EXPIRED:
        status = gate_step(section, gate, &wait)
        if status == OK or status == OWNER_DIED:
            return True
    return False


cdef void _leave_gates(section_t* section, queues_t* queues) noexcept nogil:
    while queues.n_taken:
        queues.n_taken -= 1
        gate_leave(_gate(section, queues, queues.n_taken))


cdef int _copy_queues(section_t* section, int fd, queues_t* queues) noexcept nogil:
    """Copy the blocks of all queues while no process puts or gets; return WOULD_BLOCK if a gate cannot be taken within a slice."""
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
    """Open the gates of all queues in a copy, where no process is inside a gate or waits."""
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
    """Copy the used blocks except queues, and the tags of free blocks, which is all that recovery needs.

    The caller owns the heap gate.
    """
    cdef uint64_t off = section.heap_start, run_off = section.heap_start, top = section.header.top, size_bytes, tag, serial, i = 0
    cdef int status = OK
    cdef bint is_copied
    while off < top and status == OK:
        tag = load_acquire_u64(&block_at(section, off).tag)
        size_bytes = tag_size(tag)
        is_copied = i < queues.n_queues and queues.block_off[i] == off
        if is_copied:
            i += 1
        elif tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_QUEUE:
            serial = block_at(section, off).serial
            tag = tag_make(size_bytes, STATE_PENDING, 0, serial)         # it was PENDING when the queues were copied
        if is_copied or tag_state(tag) == STATE_PENDING or (tag_state(tag) != STATE_USED and size_bytes >= PAGE_BYTES):
            status = _copy_run(section, fd, run_off, off)
            if status == OK and not is_copied:
                status = file_write(fd, &tag, sizeof(tag), off)
            run_off = off + size_bytes
        off = block_step(section, off, size_bytes)
    return status if status != OK else _copy_run(section, fd, run_off, top)


cdef int _copy_inside(section_t* section, int fd, uint64_t* room, queues_t* queues) noexcept nogil:
    """Copy everything.  The caller owns the heap gate."""
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
    """Copy control pages and blocks as they are at one moment of the heap.

    Processes that allocate, free or name a block wait meanwhile.  The result is WOULD_BLOCK if a queue's gate was not released within
    a slice, and INTERRUPTED if the wait for the heap gate lasted a slice.  In both cases no gate is held.
    """
    cdef queues_t queues
    cdef int status = _make_room(section, fd, room)      # reserves nearly everything before other processes have to wait
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
    header.claims_boot = header.claims_until = 0             # messages refer to the section, not to the copy
    status = heap_recover(&image, ALL_PARTICIPANTS)
    if status == OK:
        _open_queues(&image)
    image_end(&image)
    if status == OK:
        status = random_bytes(header.uuid, sizeof(header.uuid))
    if status == OK:
        status = boot_id(header.boot_id, sizeof(header.boot_id))
    keep[0] = round_up(header.top, PAGE_BYTES)
    header.owner_deaths = owner_deaths           # recovery counts the present holder of the lock as dead, which it is not
    header.death_notice = 0
    header.recoveries = 0
    header.reserved = header.high_water = keep[0]
    header.clean = 1
    header.magic = MAGIC
    return status


cdef int _finish(int fd, uint64_t size_bytes) noexcept nogil:
    """Turn the copy into a cleanly closed section, truncated to the used part, and sync it to disk."""
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
        pause_ns(SLICE_NS)                       # lets other processes proceed
    return status


def write_copy(Memory memory not None, int fd, timeout=None):
    """Write a copy of the section to an empty file.

    Parameters
    ----------
    memory : SharedMemory
    fd : int
        The file, open for reading and writing; no other process may use it.
    timeout : float, optional
        Seconds to wait for the shared lock and the queues; None waits forever.

    Returns
    -------
    int
        0, or the status of the failure.
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
    """Raise if `target` is the section's own file, or a section to which processes are attached."""
    cdef section_t* section = memory.opened().section
    try:
        fd = system_tools.open_file(target)
    except OSError:
        return                                   # missing or unreadable: it is replaced, or the system reports why not
    try:
        facts = os.fstat(fd)
        if (facts.st_dev, facts.st_ino) == (section.device, section.inode):
            raise ValueError(f"cannot write a snapshot to {target!r}: it is the file of the section itself; choose another path")
        if stat.S_ISREG(facts.st_mode) and is_in_use(fd):
            raise explain(errno.EBUSY, f"snapshot to {target!r}", {"section": "processes are attached to the section in that file"})
    finally:
        os.close(fd)


def _copy_to(Memory memory, target, timeout, what):
    """Create the file, write the copy and name it; a failure leaves no file behind."""
    cdef Mapping mapping = memory.opened()
    cdef int own_fd = section_descriptor(mapping.section), status
    fd = -1
    beside = None
    try:
        fd, beside = system_tools.create_beside(target, stat.S_IMODE(os.fstat(own_fd).st_mode) if own_fd >= 0 else 0o600)
        status = write_copy(memory, fd, timeout)
        if status == TIMEOUT_EXPIRED:
            raise explain(status, f"{what} within {float(timeout):g} s", {
                "holder": "a process stands still inside a queue operation; let it continue, or kill it"})
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


def snapshot(Memory self not None, path, timeout=None):
    """Write a consistent copy of the section to another file; return when it is on disk.

    The copy is taken under the shared lock, which is held while bytes are copied but not while the disk is written.
    Processes that allocate, free or name a block wait during the copying; those that put or get wait only while the queues are copied.
    `path` always names a complete file: the copy atomically replaces what was there (a symbolic link itself is replaced).  If the
    operation fails or the process is killed, the old file stays.

    The copy is a section of its own.  It has a new `uuid`, so handles of this section do not lead to it.  It has the same label, desired
    address and permissions, and is truncated to the used part.  Opening it needs no recovery.  It does not contain temporary arrays, or
    blocks that other processes were making.  All queues are as they were at one moment.  Semaphores and events keep their values.  In the
    copy, a mutex that was held has a dead owner.

    Parameters
    ----------
    path : path
        A path on a local file system, not necessarily that of the section.
    timeout : float, optional
        Seconds to wait for the shared lock, and for a process that is stopped inside a queue operation; None waits forever.

    Raises
    ------
    SectionFull
        The file system of `path` is full.
    HeapCorruption
        The heap is damaged; ``python -m shmem check --repair`` copies the file before it repairs it.
    LockTimeout
        The lock or a queue was not released in time.
    OperatingSystemError
        Processes are attached to a section at `path`, or the system refused a request.

    Notes
    -----
    The copy is consistent for data that all processes change under the lock.  Data that a process changes without the lock, even under a
    mutex, are copied as they are found, perhaps half-updated.

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
    _refuse_in_use(self, target)
    _copy_to(self, target, timeout, f"snapshot {self.path!r} to {target!r}")
