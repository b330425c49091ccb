# cython: language_level=3
"""The versions of names, and waiting for a new one: `_heap/name_versions.pyx`."""

from libc.stdint cimport int64_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

ctypedef struct name_wait_t:
    uint64_t* anchor                 # argument: of the directory
    name_t name                      # argument
    bint has_since                   # argument: otherwise the first step sets `since` to the version that it finds
    uint64_t since                   # argument: the version that the name is to differ from
    int64_t deadline_ns              # argument
    uint64_t version                 # result

# Under the gate: a version that no name has had.
cdef uint64_t version_next(section_t* section) noexcept nogil
# Under the gate: find the entry of a name of the directory, with the anchor of its table: OK, NOT_FOUND, NOT_A_GROUP, CORRUPTED.
cdef int names_find_entry(section_t* section, uint64_t* anchor, const name_t* name, name_entry_t** entry) noexcept nogil

# After the gate was left: wake the threads that wait for a change of a name that leads, or led, to this value.
cdef void names_notify(section_t* section, uint64_t value) noexcept nogil
# The same for all names: those in a group change with the group's own name.
cdef void names_notify_all(section_t* section) noexcept nogil

# These two take the gate.
# The version of a name, and the value that it leads to: OK, NOT_FOUND, NOT_A_GROUP, CORRUPTED, INTERRUPTED.
cdef int version_of(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* value, uint64_t* version,
                    heap_wait_t wait) noexcept nogil
# Give a name another version; nothing else changes.  Results and statuses are the same.
cdef int version_touch(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* version, heap_wait_t wait) noexcept nogil

# Wait until the name has a version other than `since`: OK, TIMEOUT_EXPIRED, NOT_FOUND or NOT_A_GROUP if there is no such name (any more),
# CORRUPTED, or INTERRUPTED after a slice or a signal.
cdef int version_wait(section_t* section, name_wait_t* call) noexcept nogil
