# cython: language_level=3
"""The page of `_base.system` that Python code calls: files, private memory, limits and processes.

What Linux guarantees, in addition to the list in `_base.system`:

* ``O_TMPFILE`` makes a file without a name, which disappears if the process is killed.  Not every file system supports it.
* ``SEEK_DATA`` and ``SEEK_HOLE`` show which parts of a file are holes.  A file system without holes reports one extent.
* ``PR_SET_PDEATHSIG`` sends a signal to a child when the thread that created it ends for whatever reason.
"""

import errno
import os
import stat

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport uint64_t

from shmem._base.system cimport (
    byte_wait, file_create, file_give_name, file_open_unnamed, file_sync, file_write, folder_sync, kill_with_parent,
    system_folder)

MEMORY_FOLDER = system_folder.decode()       # a tmpfs on every Linux: its files are memory
_ANONYMOUS = MEMORY_FOLDER + "/shmem."
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


cdef int _check(int status, path=None) except -1:
    if status != 0:
        raise OSError(status, os.strerror(status), path) if path is not None else OSError(status, os.strerror(status))
    return 0


# -- files ------------------------------------------------------------------------------------------------

def section_path(str shared_name):
    """Return the path of the anonymous section with this shared name."""
    return _ANONYMOUS + shared_name


def shared_name_of(str path):
    """Return the shared name of the anonymous section at a path; None if it cannot be one."""
    return path[len(_ANONYMOUS):] if path.startswith(_ANONYMOUS) else None


def present_path(str path, uint64_t device, uint64_t inode, int fd):
    """Return the present path of an open file.

    Parameters
    ----------
    path : str
        Its last known path, which is returned if it still leads to the file, or if no other path is known.
    device, inode : int
        Of the file.
    fd : int
        A descriptor of the file.
    """
    for found in (path, f"/proc/self/fd/{fd}"):
        try:
            found = found if found == path else os.readlink(found)
            facts = os.stat(found)
        except OSError:
            continue
        if facts.st_dev == device and facts.st_ino == inode:
            return found
    return path


def named_path(str kind, str name):
    """Return the path of a named semaphore or event; `kind` is ``"semaphore"`` or ``"event"``."""
    return f"{MEMORY_FOLDER}/shmem-{kind}.{name}"


def open_file(path, writable=False, follow=True):
    """Return a descriptor of an existing file.  A FIFO or a device does not block the call.

    Parameters
    ----------
    path : path
    writable : bool
        Open it for reading and writing.
    follow : bool
        Follow a symbolic link; otherwise a link raises OSError.
    """
    return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | (0 if follow else os.O_NOFOLLOW) | os.O_CLOEXEC | os.O_NONBLOCK)


def open_log(path):
    """Return a descriptor that appends to a file, which is created if it does not exist."""
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


def read_start(path, n_bytes):
    """Return the first bytes of a regular file, padded with zeros, and the file's size; None for any other kind of file.

    Other kinds of files are not opened, because that may block or have side effects.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    fd = open_file(path, follow=False)
    try:
        return os.pread(fd, n_bytes, 0).ljust(n_bytes, b"\0"), os.fstat(fd).st_size
    finally:
        os.close(fd)


def create_file(path, int permissions):
    """Return a descriptor of a new file, open for reading and writing; FileExistsError if the name is in use."""
    cdef bytes encoded = os.fsencode(path)
    cdef int fd = -1
    _check(file_create(encoded, permissions, &fd), path)
    return fd


def write_all(int fd, content, uint64_t offset):
    """Write bytes at an offset, all of them."""
    cdef int status
    cdef Py_buffer view
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    with nogil:
        status = file_write(fd, <char*>view.buf, view.len, offset)
    PyBuffer_Release(&view)
    _check(status)


def sync_file(int fd):
    """Write a file's content to disk."""
    cdef int status
    with nogil:
        status = file_sync(fd)
    _check(status)


def sync_folder_of(path):
    """Write the name of a file to disk, that is, the folder that contains it."""
    cdef bytes folder = os.fsencode(os.path.dirname(os.path.abspath(path)))
    cdef const char* folder_name = folder
    cdef int status
    with nogil:
        status = folder_sync(folder_name)
    _check(status, path)


def extents(fd, size):
    """Yield (start, end) of the parts of a file that are not holes."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:       # only a hole is left
                return
            yield at, size
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, end
        at = end


cdef str _hidden_path(str target):
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name[:200]}.{os.urandom(8).hex()}")


def create_beside(str target, permissions):
    """Return a descriptor of an empty file on the file system of `target`, and its path: None if the file has no name yet.

    The file has no name where the file system supports that, so that a kill leaves nothing behind; otherwise it has a hidden name
    beside `target`.
    """
    cdef bytes folder = os.fsencode(os.path.dirname(target))
    cdef int fd = -1
    cdef int status = file_open_unnamed(folder, 0o600, &fd)
    hidden = None
    if status in _NO_UNNAMED_FILES:
        hidden = _hidden_path(target)
        fd = create_file(hidden, 0o600)
    else:
        _check(status)
    os.fchmod(fd, permissions)
    return fd, hidden


def name_file(int fd, hidden, str target):
    """Give a file of `create_beside` the name `target`, in place of the file that has it, and write the name to disk."""
    cdef bytes encoded = os.fsencode(target)
    cdef int status = errno.EEXIST
    if hidden is None:
        status = file_give_name(fd, encoded)
        while status == errno.EEXIST and hidden is None:
            hidden = _hidden_path(target)
            encoded = os.fsencode(hidden)
            status = file_give_name(fd, encoded)
            if status == errno.EEXIST:
                hidden = None
        _check(status)
    if hidden is not None:
        try:
            os.replace(hidden, target)
        except BaseException:
            os.unlink(hidden)
            raise
    sync_folder_of(target)


def wait_for_byte(int fd, uint64_t offset, bint shared):
    """Lock a byte of a file until the descriptor is closed; wait while another description holds it.

    Parameters
    ----------
    fd : int
        Open for reading if `shared`, else for writing.
    offset : int
    shared : bool
        Exclude only exclusive holders.
    """
    cdef int status = EINTR
    while status == EINTR:
        PyErr_CheckSignals()
        with nogil:
            status = byte_wait(fd, offset, shared)
    _check(status)


# -- file systems ------------------------------------------------------------------------------------------

def describe_file_system(path):
    """Return kind and mount point of the file system that holds a path, as ``"tmpfs at /dev/shm"``."""
    best = ("unknown file system", "/")
    try:
        path = os.path.realpath(path)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                mount = left.split()[4].replace("\\040", " ")
                if (path == mount or path.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best[1]):
                    best = (right.split()[0], mount)
    except OSError:
        return best[0]
    return f"{best[0]} at {best[1]}"


def free_bytes_at(path):
    """Return how many bytes this process can still write to the file system that holds a path; None if the system does not report it."""
    try:
        facts = os.statvfs(path if os.path.exists(path) else os.path.dirname(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


# -- memory -------------------------------------------------------------------------------------------------

_MAP_NORESERVE = 0x4000                      # mmap.MAP_NORESERVE from Python 3.13 on


def map_privately(fd, n_bytes):
    """Return a private writable map of a file's first bytes: writes to it do not reach the file."""
    import mmap

    return mmap.mmap(fd, n_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def map_zeros(n_bytes):
    """Return private zeroed memory that consumes memory only where it is written."""
    import mmap

    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def map_shared_zeros(n_bytes):
    """Return zeroed memory that this process shares with the children that it forks."""
    import mmap

    return mmap.mmap(-1, n_bytes)


def map_shared(fd):
    """Return a shared writable map of a whole file."""
    import mmap

    return mmap.mmap(fd, 0)


def has_address_space(n_bytes):
    """Return whether a process can map `n_bytes`; also True if only a limit of this process (RLIMIT_AS) forbids it."""
    import mmap
    import resource

    try:
        mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=0).close()
    except OSError:
        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return True


# -- processes ----------------------------------------------------------------------------------------------

def die_with_parent():
    """Have the kernel kill this process when the thread that created it ends."""
    kill_with_parent()


def describe_process(pid):
    """Return a line for each thread of a process that shows where in the kernel it waits."""
    lines = []
    try:
        for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            facts = []
            for what in ("wchan", "syscall", "stack"):
                try:
                    with open(f"/proc/{pid}/task/{task}/{what}", encoding="utf-8", errors="replace") as file:
                        facts.append(f"{what}: {' '.join(file.read().split())}")
                except OSError:
                    pass
            lines.append(f"    thread {task}: {'; '.join(facts)}")
    except OSError:
        pass
    return "\n".join(lines)


def state_and_parent(pid):
    """Return a process's state, as in ``/proc``, and its parent's id; "X" and None for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            return state, int(parent)
    except OSError:
        return "X", None
