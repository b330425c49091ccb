# cython: language_level=3
"""Semaphore, Event and Mutex: what other modules may use of them."""

cimport cython
from shmem._core cimport Placed
from shmem._sync.named_file cimport named_t


@cython.final
@cython.no_gc
cdef class Room:
    """Memory for the words of one that lies in no section; given back with the last reference."""
    cdef void* own                # one of this process alone
    cdef named_t* named           # the file of a named one


@cython.no_gc
cdef class Waitable(Placed):
    """Base of the three.  In a section it is a Placed; else `mapping` is None and `room` keeps the words."""
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
