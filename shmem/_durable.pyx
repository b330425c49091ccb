# cython: language_level=3
"""On disk for good: `flush`, and `snapshot`, a copy of a section in another file.

How a snapshot comes to be, and what a kill leaves at each step under the name that was asked for, which is the old file or none::

    1  a file without a name in the same folder              gone with the process
    2  lock and heap gate: control pages and blocks copied    the same; the section is as after any kill with a gate taken
    3  no lock: the copy is recovered, its header written, all of it synced
    4  it gets the name if that is free, or replaces who has it; the folder is synced

The copy is recovered as an image to which nobody is attached, by the code that recovers a section whose processes were all killed.
So what a living process was just making or had only pinned is free in the copy, no gate is shut in it, and it is marked clean.

All bytes are written by this process: extents shared with the section's file, as the kernel's own copying would
leave them, must be split by a later store to a mapping, which on a full disk is a SIGBUS.
"""

import errno
import os
import secrets
import stat

from shmem import _arguments, _errors
from shmem._explain import explain
from shmem._image import is_in_use
from shmem._locking import shared_lock

from libc.stdint cimport uint64_t

from shmem._atomics cimport load_acquire_u64
from shmem._core cimport Mapping, Memory, check
from shmem._heap cimport heap_enter, heap_leave
from shmem._image cimport image_begin, image_end
from shmem._layout cimport (BLOCK_HEAD_BYTES, MAGIC, MAGIC_BEING_MADE, PAGE_BYTES, STATE_USED, header_t, round_up, tag_size,
                            tag_state)
from shmem._os cimport (boot_id, file_give_name, file_reserve, file_set_size, file_sync, file_write, folder_sync, memory_map,
                        memory_sync, memory_unmap, random_bytes)
from shmem._participants cimport section_descriptor
from shmem._recovery cimport EVERYBODY, chain_first_fault, heap_recover
from shmem._section cimport block_at, block_step, busy_begin, busy_end, section_t
from shmem._status cimport CORRUPTED, OK


def flush(Memory memory not None):
    """Write the section to disk; return when it is there, and the file's name with it.

    Raises
    ------
    OperatingSystemError
        The disk did not take it.  What was not written may be lost then, also if a second call succeeds: the kernel reports a failure once.
    """
    cdef Mapping mapping = memory.opened()
    cdef section_t* section = mapping.section
    cdef bytes folder = os.path.dirname(os.fsencode(memory.path))
    cdef const char* folder_name = folder
    cdef int status
    busy_begin(section)
    with nogil:
        status = memory_sync(section.base, round_up(load_acquire_u64(&section.header.top), PAGE_BYTES))
        if status == OK:
            status = file_sync(section_descriptor(section))
        if status == OK and not section.anonymous:
            status = folder_sync(folder_name)
        busy_end(section)
    check(status, mapping, "flush")


# -- the copy ---------------------------------------------------------------------------------------------

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


cdef int _copy_blocks(section_t* section, int fd) noexcept nogil:
    """Blocks in use, and of what is free the head: recovery needs no more.  The gate is mine."""
    cdef uint64_t off = section.heap_start, run_off = section.heap_start, top = section.header.top, size_bytes, tag
    cdef int status = OK
    while off < top and status == OK:
        tag = block_at(section, off).tag
        size_bytes = tag_size(tag)
        if tag_state(tag) != STATE_USED and size_bytes >= PAGE_BYTES:
            status = file_write(fd, section.base + run_off, off + BLOCK_HEAD_BYTES - run_off, run_off)
            run_off = off + size_bytes
        off = block_step(section, off, size_bytes)
    if status == OK and run_off < top:
        status = file_write(fd, section.base + run_off, top - run_off, run_off)
    return status


cdef int _copy(section_t* section, int fd, uint64_t* room) noexcept nogil:
    """Control pages and blocks as they are at one moment of the heap.  Who allocates, frees or names something waits meanwhile."""
    cdef uint64_t mark = MAGIC_BEING_MADE
    cdef int status = _make_room(section, fd, room)      # mostly all, and before anybody has to wait
    if status != OK:
        return status
    status = heap_enter(section, True)
    if status != OK:
        return status
    if section.header.broken or chain_first_fault(section) != 0:
        status = CORRUPTED
    if status == OK:
        status = _make_room(section, fd, room)
    if status == OK:
        status = file_write(fd, &mark, sizeof(mark), 0)
    if status == OK:
        status = file_write(fd, section.base + sizeof(mark), section.heap_start - sizeof(mark), sizeof(mark))
    if status == OK:
        status = _copy_blocks(section, fd)
    heap_leave(section)
    return status


cdef int _finish_mapped(char* base, uint64_t size_bytes, int fd, uint64_t* keep) noexcept nogil:
    """Recover the copy and write its header."""
    cdef header_t* header = <header_t*>base
    cdef section_t image
    cdef uint64_t owner_deaths = header.owner_deaths
    cdef int status = image_begin(&image, base, size_bytes, fd)
    if status != OK:
        return status
    status = heap_recover(&image, EVERYBODY)
    image_end(&image)
    if status == OK:
        status = random_bytes(header.uuid, sizeof(header.uuid))
    if status == OK:
        status = boot_id(header.boot_id, sizeof(header.boot_id))
    keep[0] = round_up(header.top, PAGE_BYTES)
    header.owner_deaths = owner_deaths           # whoever holds the lock now is not there, and not dead either
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


def write_copy(Memory memory not None, int fd, timeout=None):
    """Write a copy of the section to an empty file that nobody else has: 0, or the status of what went wrong.

    Parameters
    ----------
    memory : SharedMemory
    fd : int
        Open for reading and writing.
    timeout : float, optional
        How long to wait for the shared lock.
    """
    cdef Mapping mapping = memory.opened()
    cdef section_t* section = mapping.section
    cdef uint64_t size_bytes = 0
    cdef int status = OK
    with shared_lock(memory, timeout):
        busy_begin(section)
        with nogil:
            status = _copy(section, fd, &size_bytes)
            busy_end(section)
    if status == OK:
        with nogil:
            status = _finish(fd, size_bytes)
    return status


# -- its file ---------------------------------------------------------------------------------------------

def _make_file(target, permissions):
    """An empty file beside `target`: descriptor, and its path, None where the file system makes files without a name."""
    folder, name = os.path.split(target)
    try:
        fd, beside = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        beside = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(8)}")
        fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, permissions)
    return fd, beside


cdef int _link(int fd, str path) except -1:
    cdef bytes encoded = os.fsencode(path)
    return file_give_name(fd, encoded)


def _give_name(fd, beside, target):
    """Put the file under `target`, in place of whatever has that name."""
    cdef int status = errno.EEXIST
    cdef bytes folder = os.fsencode(os.path.dirname(target))
    if beside is None:
        status = _link(fd, target)
        while status == errno.EEXIST and beside is None:
            beside = os.path.join(os.path.dirname(target), f".{os.path.basename(target)[:200]}.{secrets.token_hex(8)}")
            status = _link(fd, beside)
            if status == errno.EEXIST:
                beside = None
        if status != OK:
            raise OSError(status, os.strerror(status))
    if beside is not None:
        try:
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
    status = folder_sync(folder)
    if status != OK:
        raise OSError(status, os.strerror(status))


def _refuse_in_use(Memory memory, target):
    """What must not be replaced: the section's own file, and a file that processes are attached to."""
    cdef section_t* section = memory.opened().section
    try:
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return                                   # nothing there, or nothing to be read: replaced, or the system says why not
    try:
        facts = os.fstat(fd)
        if (facts.st_dev, facts.st_ino) == (section.device, section.inode):
            raise ValueError(f"{target!r} is the file of this section itself; a snapshot goes into another one")
        if stat.S_ISREG(facts.st_mode) and is_in_use(fd):
            raise explain(errno.EBUSY, f"snapshot to {target!r}: processes are attached to the section there", {"section": repr(target)})
    finally:
        os.close(fd)


def snapshot(Memory memory not None, path, timeout=None):
    """Write a consistent copy of the section to another file; return when it is on disk.

    It is taken under the shared lock, which is held while bytes are copied and not while the disk is waited for.
    Meanwhile whoever allocates, frees or names something waits too.  The copy appears under `path` at once and whole, in
    place of what was there (a symbolic link itself is replaced); if anything fails, or the process is killed, what was
    there stays.

    The copy is a section of its own: with another `uuid`, so that no handle of this section leads to it, with the
    same label, desired address and permissions, cut to what is used.  Opening it needs no recovery.
    What other processes were just making, and temporary arrays, are not in it; a mutex that is held has, in the copy, an
    owner who died.

    Parameters
    ----------
    path : path
        On a local file system, not necessarily that of the section.
    timeout : float, optional
        How many seconds to wait for the shared lock; None waits for ever.

    Raises
    ------
    SectionFull
        No room on the file system behind `path`.
    HeapCorruption
        The heap is damaged; ``python -m shmem check --repair`` makes a copy first.
    LockTimeout
        The lock was not obtained in time.
    OperatingSystemError
        Processes are attached to a section at `path`, or what the system refused.

    Notes
    -----
    Guarded by the lock is what its users guard by it.  Queues, semaphores and arrays that somebody changes without the lock
    are copied as they are found, perhaps in the middle of a change.

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
    cdef Mapping mapping = memory.opened()
    target = _arguments.path(path)
    what = f"snapshot of {memory.path!r} to {target!r}"
    _refuse_in_use(memory, target)
    own_fd = section_descriptor(mapping.section)
    fd = -1
    beside = None
    try:
        fd, beside = _make_file(target, stat.S_IMODE(os.fstat(own_fd).st_mode) if own_fd >= 0 else 0o600)
        status = write_copy(memory, fd, timeout)
        if status < 0:
            check(status, mapping, what)
        if status > 0:
            raise OSError(status, os.strerror(status))
        named, beside = beside, None
        _give_name(fd, named, target)
    except OSError as error:
        if isinstance(error, _errors.ShmemError):
            raise
        raise explain(error.errno, what, {"section": repr(target), "path": target}) from error
    finally:
        if fd >= 0:
            os.close(fd)
        if beside is not None:
            os.unlink(beside)
