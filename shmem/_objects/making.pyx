# cython: language_level=3
"""The right to make the value of a name: one thread of all processes has it at a time, for each name.

It is a kernel lock on a byte of the section's file, far past the end, whose offset follows from the hash of the name.  The kernel drops
the lock when the process is killed.  Where the process may not open the file again, as after `setuid`, the lock belongs to the process,
and the set `_made_in_process` excludes its threads from each other.  Two names share a byte as rarely as 60 bits of their hashes agree.
Other names, and everything else that a section offers, are not held up.
"""

import os
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EAGAIN, EBADF
from libc.stdint cimport int64_t, uint64_t

from shmem._base import errors
from shmem._base.system_tools import wait_for_byte

from shmem._base.layout cimport hash_name
from shmem._base.participants cimport NAMING_BITS, NAMING_BYTE, section_descriptor, section_reopen
from shmem._base.section cimport section_t
from shmem._base.system cimport byte_lock_as_process, byte_unlock, file_close, pause_longer
from shmem._bridge.calls cimport check
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory

cdef set _descriptors = set()            # of all threads that wait for such a lock, or have it
cdef set _made_in_process = set()        # bytes that threads of this process have locked for the process, or wait for
cdef object _process_made = threading.Condition()
_of_thread = threading.local()


def _close_in_child():
    """A lock belongs to the parent: a copy of its descriptor would keep it when the parent is killed."""
    global _process_made
    for fd in _descriptors:
        file_close(fd)
    _descriptors.clear()
    _made_in_process.clear()
    _process_made = threading.Condition()    # another thread of the parent may hold the old one
    _of_thread.made = set()


os.register_at_fork(after_in_child=_close_in_child)


class Maker:
    """A context manager: inside, no other thread of any process makes the value of this name, or of the root with name None."""

    def __init__(self, memory, name):
        self.memory, self.name = memory, name
        self.fd = -1
        self.pid = 0                         # of the process for which the byte is locked, without a descriptor
        self.mapping = None                  # kept as long as that lasts

    def __enter__(self):
        what = "set the root object" if self.name is None else f"assign the name {self.name!r}"
        cdef Mapping mapping = (<Memory?>self.memory).writable_mapping(what)
        cdef section_t* section = mapping.section
        cdef bytes text = b"" if self.name is None else self.name.encode()
        cdef uint64_t offset = NAMING_BYTE + (hash_name(text, len(text)) & ((<uint64_t>1 << NAMING_BITS) - 1))
        cdef int fd = section_descriptor(section), own_fd = -1
        self.made = section.device, section.inode, offset
        if self.made in _made_by_thread():
            raise errors.DeadlockError(f"cannot {what}: the factory of this name requires the same name")
        cdef int status = EBADF if fd < 0 else section_reopen(section, fd, &own_fd)
        if status == EACCES and section.locks_as_process:
            self._lock_as_process(mapping, what)
        else:
            check(status, mapping, what)
            self.fd = own_fd
            _descriptors.add(self.fd)
            try:
                wait_for_byte(self.fd, offset, False)
            except BaseException:
                self._release()
                raise
        _made_by_thread().add(self.made)

    def _lock_as_process(self, Mapping mapping, what):
        """Exclude the threads of this process, then the other processes."""
        cdef section_t* section = mapping.section
        cdef uint64_t offset = self.made[2]
        cdef int64_t waited_ns = 0
        cdef int status = EAGAIN
        with _process_made:
            _process_made.wait_for(lambda: self.made not in _made_in_process)
            _made_in_process.add(self.made)
        self.pid, self.mapping = os.getpid(), mapping
        try:
            while status == EAGAIN:
                status = byte_lock_as_process(section_descriptor(section), offset)
                if status == EAGAIN:
                    with nogil:
                        pause_longer(&waited_ns)
                    PyErr_CheckSignals()
            check(status, mapping, what)
        except BaseException:
            self._release()
            raise

    def __exit__(self, *_):
        _made_by_thread().discard(self.made)
        self._release()

    def _release(self):
        cdef Mapping mapping = (<Memory>self.memory).mapping
        if self.fd in _descriptors:              # not so in a child that was forked meanwhile
            _descriptors.discard(self.fd)
            if mapping is not None and mapping.section.locks_as_process:
                byte_unlock(self.fd, self.made[2], False)        # closing it would release what the process has locked
            else:
                file_close(self.fd)
        if self.pid == os.getpid():
            byte_unlock(section_descriptor((<Mapping>self.mapping).section), self.made[2], True)
            with _process_made:
                _made_in_process.discard(self.made)
                _process_made.notify_all()
        self.fd, self.pid, self.mapping = -1, 0, None


cdef set _made_by_thread():
    """Return the bytes that this thread has locked."""
    if not hasattr(_of_thread, "made"):
        _of_thread.made = set()
    return _of_thread.made
