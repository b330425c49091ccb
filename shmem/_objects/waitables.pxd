# cython: language_level=3
"""The common base of Semaphore, Event and Mutex: `_objects/waitables.pyx`."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.layout cimport named_state_t
from shmem._base.section cimport section_t
from shmem._bridge.blocks cimport Placed, placed_is_stale
from shmem._bridge.calls cimport step_t
from shmem._core cimport Memory
from shmem._objects.fields cimport FieldType
from shmem._sync.named_file cimport named_t
from shmem._sync.primitives cimport place_t


cdef class Words(FieldType):
    """The field type of one of the three classes: opaque bytes, all zero at first."""
    cdef readonly str kind        # the class, in lower case
    cdef readonly object cls
    cdef uint32_t type_id
    cdef uint32_t named_kind      # of its files; 0: it has none


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


ctypedef struct wait_call_t:              # arguments and results of the steps in which a thread waits
    void* words
    place_t* where                        # NULL: in no section
    place_t place
    int64_t deadline_ns
    uint32_t since                        # of an event: the sequence number when the wait began
    bint owner_died                       # of a mutex


# The field type for the body of a class; from then on fields and blocks of that type are opened as objects of the class.
cdef Words make_words(str kind, size_t n_bytes, type cls, uint32_t type_id, uint32_t named_kind)

# Use the words in the file of that name, or words of this process alone if `name` is None.  `state_argument` is the parameter of the class
# for the initial state.
cdef int open_or_stand_alone(Waitable self, name, str state_argument, named_state_t* initial, permissions, trust_owner) except -1

# Place a new object, whose other words are 0, in a section, and return it.
cdef object place_new(Waitable self, Memory memory, name, uint64_t first_word)

# A count, bounded before any arithmetic; and the deadline for the arguments `blocking` and `timeout` of `threading`.
cdef uint32_t count_argument(object count, str what, int least) except? 0xffffffff
cdef int64_t blocking_argument(object blocking, object timeout, object forever) except? -2

# A step of waiting: fill in its request, and repeat it until it is not INTERRUPTED.
cdef section_t* prepare_wait(Waitable self, wait_call_t* call, void* words, int64_t deadline_ns) noexcept
cdef int wait(Waitable self, section_t* section, step_t step, wait_call_t* call) except? -200

# Whether the block was freed.
cdef bint is_gone(Waitable self) noexcept

# Raise the exception for an object that is closed, freed or read-only.
cdef int refuse(Waitable self, str what) except -1


cdef inline void* readable(Waitable self) except NULL:
    if self.words == NULL or (self.mapping is not None and placed_is_stale(self)):
        refuse(self, "look")
    return self.words


cdef inline void* changeable(Waitable self, str what) except NULL:
    if self.words == NULL or (self.mapping is not None and (placed_is_stale(self) or not self.mapping.writable)):
        refuse(self, what)
    return self.words
