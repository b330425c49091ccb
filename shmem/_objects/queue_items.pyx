# cython: language_level=3
"""The items of a queue: what they are, and their conversion to the bytes of a record.

For a Struct class a queue's block holds the type id, so that an opener gets that class, or a generic one.
"""

import numpy as np

from cpython.buffer cimport PyObject_CheckBuffer
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from shmem._objects import arrays
from shmem._objects.dtypes import to_text
from shmem._objects import struct as _struct
from shmem._objects.codec import Misfit
from shmem._objects.fields import RefField

from shmem._base.accessors cimport tag_type
from shmem._base.bounds cimport used_tag
from shmem._base.damage cimport raise_damaged
from shmem._base.layout cimport QUEUE_BYTES, QUEUE_RECORDS, QUEUE_STRUCT
from shmem._bridge.blocks cimport Placed, offset_in
from shmem._bridge.calls cimport size_argument
from shmem._bridge.mapping cimport Mapping
from shmem._objects.codec cimport NOT_A_NUMBER, codec_of
from shmem._objects.fields cimport Field, FieldType
from shmem._sync.ring cimport ring_t


cdef class Items:
    """The record of one queue."""

    cdef int write(self, Placed queue, char* at, object item) except -1:
        """Write the bytes of an item over zeros, or raise Misfit."""
        if self.record is self.dtype or not self.write_object(queue, at, item):
            self.codec.store_whole(at, item)
        return 0

    cdef bint write_object(self, Placed queue, char* at, object item) except -1:
        """The same for an object of the queue's Struct class, or the values of its fields; return False for anything else."""
        cdef Field field
        cdef bytearray values
        if isinstance(item, _struct.StructBase):
            offset_in(queue.mapping, item)           # its references are offsets, which are valid in this section only
            if tag_type(used_tag(queue.mapping.section, (<Placed>item).payload_off())) != self.type_id:
                raise TypeError(f"put: the item must be an object of {self.record.__name__}, got one of {type(item).__name__}")
            memcpy(at, (<Placed>item).data, self.n_bytes)
            return True
        if not isinstance(item, (dict, tuple)):
            return False
        fields = self.record._shmem_layout_.fields
        values = bytearray(self.record._shmem_layout_.image or self.n_bytes)
        if isinstance(item, tuple):
            if len(item) != len(fields):
                raise TypeError(f"put: a {self.record.__name__} has {len(fields)} fields ({', '.join(fields)}), got {len(item)} values")
            item = dict(zip(fields, item))
        for name, value in item.items():
            if name not in fields:
                raise TypeError(f"put: {self.record.__name__} has no field {name!r}; its fields are {', '.join(fields)}")
            field = fields[name]
            field.store(queue if isinstance(field, RefField) else values, <char*>values + field.offset, value)
        memcpy(at, <char*>values, self.n_bytes)
        return True

    cdef object many(self, Placed queue, object items):
        """The bytes of many items, as a contiguous buffer."""
        cdef bytearray records
        cdef Py_ssize_t i
        if PyObject_CheckBuffer(items) and not isinstance(items, np.ndarray):
            items = np.asarray(memoryview(items))
        elif hasattr(items, "__array__"):
            items = np.asarray(items)
        if isinstance(items, np.ndarray) and not items.dtype.hasobject:
            return self.from_array(items)
        items = list(items)                             # its own: another thread, or a conversion, may change the caller's
        records = bytearray(len(items) * self.n_bytes)
        for i, item in enumerate(items):
            try:
                self.write(queue, <char*>records + i * self.n_bytes, item)
            except Misfit as error:
                raise error.named(f"put_many: item {i}") from None
        return records

    cdef object from_array(self, object array):
        """The same for an array whose elements, or rows, are the items: copied as they are, or converted with numpy's loops."""
        base, shape = self.dtype.subdtype or (self.dtype, ())
        if array.ndim == 0:
            raise TypeError("put_many: the items must be a sequence of them, got an array of no dimensions")
        is_scalars = array.ndim == 1 and shape != ()
        if len(array) and array.shape[1:] != shape and not is_scalars:
            raise ValueError(f"put_many: the items must have the shape {shape}, got an array of shape {array.shape}")
        if array.dtype != base:
            try:
                array = codec_of(base).convert(array)
            except Misfit as error:
                raise error.named("put_many: the items") from None
        if is_scalars:
            array = np.broadcast_to(array.reshape((-1,) + (1,) * len(shape)), array.shape + shape)
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


cdef Items items_of(Mapping mapping, uint64_t payload_off, ring_t* ring, object record):
    cdef Items items = Items.__new__(Items)
    items.kind = NOT_A_NUMBER
    items.n_bytes = ring.record_bytes
    items.type_id = ring.type_id
    if ring.is_bytes:
        items.record = bytes
        return items
    if record is None and ring.kind == QUEUE_STRUCT:
        record = _struct.class_of_type(mapping, ring.type_id)
    if record is None:
        record = arrays.dtype_from(mapping, payload_off, ring.text[:ring.text_bytes])
    items.record = record
    items.dtype = record if ring.kind == QUEUE_RECORDS else np.dtype((np.record, record.dtype))
    if items.dtype.itemsize != ring.record_bytes:
        raise_damaged(mapping.section, payload_off,
                      f"a queue's records have {ring.record_bytes} bytes, {items.dtype} has {items.dtype.itemsize}")
    items.codec = codec_of(items.dtype)
    items.kind = items.codec.kind
    return items


cdef tuple record_argument(Mapping mapping, object record, object max_bytes):
    """Return (record, kind, type id, text of the dtype, bytes of a record)."""
    if (record is bytes) != (max_bytes is not None):
        raise ValueError("max_bytes, the maximal length of a byte string, is required for a queue of bytes, and allowed for no other")
    if record is bytes:
        return bytes, QUEUE_BYTES, 0, b"", size_argument(mapping, max_bytes)
    if isinstance(record, _struct.StructMeta):
        type_id = _struct.type_of_class(mapping, record)
        return record, QUEUE_STRUCT, type_id, b"", record.dtype.itemsize
    dtype = np.dtype(record.dtype if isinstance(record, FieldType) else record)
    return dtype, QUEUE_RECORDS, 0, to_text(dtype), dtype.itemsize
