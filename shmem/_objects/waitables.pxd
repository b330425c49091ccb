# cython: language_level=3
"""Declarations of Semaphore, Event and Mutex for other modules."""

cimport cython
from shmem._bridge.blocks cimport Placed
from shmem._sync.named_file cimport named_t


@cython.final
@cython.no_gc
cdef class Room:
    """Memory for the words of an object in no section; released with the last reference."""
    cdef void* own                # one of this process alone
    cdef named_t* named           # the file of a named one


@cython.no_gc
cdef class Waitable(Placed):
    """Base of the three classes.  In a section it is a Placed; otherwise `mapping` is None and `room` keeps the words."""
    cdef void* words              # semaphore_t, event_t or mutex_t; NULL: closed
    cdef Room room
    cdef object file              # of a named one: (name, path, device, inode, uuid, trust_owner)
    cdef object __weakref__


cdef class Semaphore(Waitable):
    pass


cdef class Event(Waitable):
    pass


cdef class Mutex(Waitable):
    pass
