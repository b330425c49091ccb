# cython: language_level=3
"""The right to make the value of a name: one thread of all processes has it at a time, for each name.

It is a kernel lock on a byte of the section's file, far past the end, whose offset follows from the hash of the name.  The kernel drops
the lock when the process is killed.  Two names share a byte as rarely as 60 bits of their hashes agree.  Other names, and everything
else that a section offers, are not held up.
"""

import os
import threading

from libc.errno cimport EBADF
from libc.stdint cimport uint64_t

from shmem._base import errors
from shmem._base.system_tools import wait_for_byte

from shmem._base.layout cimport hash_name
from shmem._base.participants cimport NAMING_BITS, NAMING_BYTE, section_descriptor
from shmem._base.section cimport section_t
from shmem._base.system cimport file_close, file_reopen
from shmem._bridge.calls cimport check
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory

cdef set _descriptors = set()            # of all threads that wait for such a lock, or have it
_of_thread = threading.local()


def _close_in_child():
    """A lock belongs to the parent: a copy of its descriptor would keep it when the parent is killed."""
    for fd in _descriptors:
        file_close(fd)
    _descriptors.clear()
    _of_thread.made = set()


os.register_at_fork(after_in_child=_close_in_child)


class Maker:
    """A context manager: inside, no other thread of any process makes the value of this name, or of the root with name None."""

    def __init__(self, memory, name):
        self.memory, self.name = memory, name
        self.fd = -1

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
        check(EBADF if fd < 0 else file_reopen(fd, section.path, &own_fd), mapping, what)
        self.fd = own_fd
        _descriptors.add(self.fd)
        try:
            wait_for_byte(self.fd, offset, False)
        except BaseException:
            self._release()
            raise
        _made_by_thread().add(self.made)

    def __exit__(self, *_):
        _made_by_thread().discard(self.made)
        self._release()

    def _release(self):
        if self.fd in _descriptors:              # not so in a child that was forked meanwhile
            _descriptors.discard(self.fd)
            file_close(self.fd)
        self.fd = -1


cdef set _made_by_thread():
    """Return the bytes that this thread has locked."""
    if not hasattr(_of_thread, "made"):
        _of_thread.made = set()
    return _of_thread.made
