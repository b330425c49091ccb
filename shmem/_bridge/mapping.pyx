# cython: language_level=3
"""A handle's reference to a section, and the handles of this process that are open."""

import weakref

from shmem._base.public import refuse_construction

from shmem._base.section cimport section_t
from shmem._sections.opening cimport section_leave
from shmem._sync.storage_lock cimport lock_release_all

cdef object _mappings = weakref.WeakValueDictionary()     # id -> Mapping of this process, to find the handle for an address
cdef object _face_maker = None


def register_face_maker(maker):
    """Register `maker(mapping)`: the `SharedMemory` of an open mapping whose own was garbage-collected."""
    global _face_maker
    _face_maker = maker


cdef class Mapping:
    """A handle's reference to a section."""

    def __cinit__(self):
        self.section = NULL
        self.held = {}

    cdef int take(self, section_t* section, bint writable) except -1:
        """Open the handle on a section that was joined for it."""
        self.section = section
        self.writable = writable
        self.base = section.base if writable else section.read_only_base
        self.is_open = True
        section.n_open += 1
        _mappings[id(self)] = self
        return 0

    cdef void let_go(self) noexcept:
        """Close the handle; the last open one of this process releases this thread's locks."""
        if not self.is_open:
            return
        self.is_open = False
        self.section.n_open -= 1
        if self.section.n_open == 0:
            lock_release_all(self.section)

    def __del__(self):
        """Close a handle that was dropped without `close()`, once its last view is gone.  Another thread's lock keeps this object."""
        for descriptor in list(self.held.values()):
            descriptor._give_up(self)
        if self.section != NULL:
            self.let_go()

    def __dealloc__(self):
        if self.section != NULL:
            with nogil:
                section_leave(self.section)


refuse_construction(Mapping)


cdef list open_mappings():
    found = [reference() for reference in _mappings.valuerefs()]          # a copy, since other threads may open and close meanwhile
    return [mapping for mapping in found if mapping is not None and (<Mapping>mapping).is_open]

cdef object face_of(Mapping mapping):
    face = mapping.face() if mapping.face is not None else None
    if face is None and mapping.is_open:
        face = _face_maker(mapping)
    return face
