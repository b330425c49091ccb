# cython: language_level=3
"""Field types and their descriptors, for `_objects.struct` and for modules that add a kind of field.

A new kind needs a `FieldType` with its `Field`, a class whose attribute `__shmem_field__` is that FieldType, so that it can be used in
an annotation, and an entry in `fields.KINDS`, so that a process without the class can read the object.
"""

from cpython.object cimport PyObject, PyObject_TypeCheck, PyTypeObject
from libc.stdint cimport uint32_t, uint64_t
from shmem._atomics cimport load_acquire_u64
from shmem._base.layout cimport BLOCK_HEAD_BYTES, SERIAL_MASK, block_t
from shmem._bridge.blocks cimport Placed, placed_is_stale
from shmem._bridge.mapping cimport Mapping


cdef class FieldType:
    """The meaning of an annotation: number of bytes, numpy dtype, and the descriptor that reads them."""
    cdef readonly object dtype
    cdef readonly size_t n_bytes
    cdef readonly size_t align_bytes
    cdef Field make_field(self)
    cpdef list describe(self)         # for the section: JSON values, of which the first is the kind


cdef class Field:
    """A field of one Struct class: a descriptor that reads and writes in place."""
    cdef readonly str name
    cdef readonly FieldType type
    cdef readonly size_t offset       # from the payload's start
    cdef object owner                 # the class it is in; a class that inherits the field has a copy, so that comparing suffices
    cdef readonly object origin       # the class that declared it
    cdef object load(self, Placed placed, char* at)
    # `holder` is the object, or the bytearray that holds the defaults of a class
    cdef int store(self, object holder, char* at, object value) except -1
    cdef int assign(self, Placed placed, object value) except -1


cdef class TypeEntry:
    """A class and the type id that one section assigned to it."""
    cdef object cls
    cdef uint32_t type_id
    cdef size_t n_bytes
    cdef object layout


cdef class TypeCache:
    """The types of a section that one mapping has used so far; emptied whenever a class is defined."""
    cdef uint64_t generation
    cdef list by_id                   # TypeEntry or None, from TYPE_FIRST_USER
    cdef dict by_class


cdef TypeCache cache_of(Mapping mapping)
cdef void forget_types() noexcept
cdef int raise_stale(Placed placed) except -1
cdef int raise_stranger(Field field, object instance) except -1


cdef inline object object_at(Mapping mapping, object cls, char* data):
    """Return an object of `cls`, a subclass of Placed, for the block whose payload is at `data`.

    It is created by the `tp_new` of Placed: constructors of `cls` do not run.
    """
    cdef Placed placed = <Placed>(<PyTypeObject*>Placed).tp_new(<type>cls, <PyObject*>(), NULL)
    placed.mapping = mapping
    placed.data = data
    # acquire: `follow` reads the tag before and after, and no processor may read the serial later than the second tag
    placed.serial = load_acquire_u64(&(<block_t*>(data - BLOCK_HEAD_BYTES)).serial) & SERIAL_MASK
    return placed


cdef inline char* field_address(Field field, object instance) except NULL:
    """Return the address of the field, after checking that the object has the field and that its block is not stale."""
    if type(instance) is not field.owner and not PyObject_TypeCheck(instance, <PyTypeObject*>field.owner):
        raise_stranger(field, instance)
    if placed_is_stale(<Placed>instance):
        raise_stale(<Placed>instance)
    return (<Placed>instance).data + field.offset
