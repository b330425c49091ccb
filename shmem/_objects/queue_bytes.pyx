# cython: language_level=3
"""The byte strings of a queue: packed for the ring, and taken from it."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from shmem._objects.codec import Misfit

from shmem._base.status cimport OK
from shmem._objects.codec cimport plain_buffer
from shmem._objects.queue_ring cimport RingCaller, get_one, put_one
from shmem._sync.ring cimport PACKED, batch_t, packed_bytes, ring_get_try

cdef extern from "Python.h":
    ctypedef struct PyObject
    PyObject* bytes_of_size "PyBytes_FromStringAndSize" (const char* v, Py_ssize_t n) except NULL
    int bytes_resize "_PyBytes_Resize" (PyObject** bytes, Py_ssize_t n) except -1
    char* bytes_data "PyBytes_AS_STRING" (PyObject* bytes)
    void Py_DECREF(PyObject* obj)


cdef int raise_too_long(RingCaller queue, Py_ssize_t length) except -1:
    raise ValueError(f"put: a byte string must have at most {queue.ring.record_bytes:,} bytes in this queue, got {length:,}")


cdef int put_buffer(RingCaller queue, object item, int64_t deadline_ns) except -1:
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(plain_buffer(item), &view, PyBUF_SIMPLE)
    except Misfit as error:
        raise error.named("put: the item") from None
    try:
        if <uint64_t>view.len > queue.ring.record_bytes:
            raise_too_long(queue, view.len)
        put_one(queue, <char*>view.buf, view.len, deadline_ns)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef object get_long(RingCaller queue, int64_t deadline_ns):
    """A byte string, received into an object of the maximal length, which is then shortened."""
    cdef PyObject* received = bytes_of_size(NULL, queue.ring.record_bytes)
    cdef uint64_t length = 0
    try:
        get_one(queue, bytes_data(received), &length, deadline_ns)
        bytes_resize(&received, length)
        return <object>received
    finally:
        if received != NULL:
            Py_DECREF(received)


cdef object put_many_bytes(RingCaller queue, items, int64_t deadline_ns):
    """Pack byte strings, a chunk at a time; the ring copies them into their slots in the gate."""
    cdef uint64_t used = 0, n_items = 0, n_done = 0, n_bytes
    cdef char* chunk
    cdef list found
    try:
        found = [item if PyBytes_CheckExact(item) else bytes(plain_buffer(item)) for item in items]
    except Misfit as error:
        raise error.named("put_many: an item") from None
    for item in found:
        if <uint64_t>PyBytes_GET_SIZE(item) > queue.ring.record_bytes:
            raise_too_long(queue, PyBytes_GET_SIZE(item))
    chunk = <char*>PyMem_Malloc(max(<uint64_t>CHUNK_BYTES, packed_bytes(queue.ring.record_bytes)))
    if chunk == NULL:
        raise MemoryError
    try:
        for item in found:
            n_bytes = packed_bytes(PyBytes_GET_SIZE(item))
            if n_items and used + n_bytes > CHUNK_BYTES:
                if not queue.put_batch(chunk, n_items, PACKED, deadline_ns, &n_done):
                    return n_done
                used = n_items = 0
            (<uint64_t*>(chunk + used))[0] = PyBytes_GET_SIZE(item)
            memcpy(chunk + used + sizeof(uint64_t), PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item))
            used += n_bytes
            n_items += 1
        if n_items:
            queue.put_batch(chunk, n_items, PACKED, deadline_ns, &n_done)
    finally:
        PyMem_Free(chunk)
    return n_done


cdef list get_many_bytes(RingCaller queue, uint64_t n_items, int64_t deadline_ns):
    """Receive packed byte strings, a chunk at a time, waiting for the first chunk only."""
    cdef uint64_t least = packed_bytes(queue.ring.record_bytes), n_bytes
    cdef batch_t batch
    cdef char* at
    cdef list found = []
    n_bytes = least if least > CHUNK_BYTES else (CHUNK_BYTES if n_items > CHUNK_BYTES // least else n_items * least)
    cdef char* chunk = <char*>PyMem_Malloc(n_bytes)
    if chunk == NULL:
        raise MemoryError
    try:
        while n_items:
            batch.data, batch.n_items, batch.n_done, batch.length, batch.n_bytes = chunk, n_items, 0, PACKED, n_bytes
            if not found:
                queue.get_batch(&batch, deadline_ns)
            elif ring_get_try(&queue.ring, &batch) != OK:
                break
            at = chunk
            for _ in range(batch.n_done):
                found.append(PyBytes_FromStringAndSize(at + sizeof(uint64_t), (<uint64_t*>at)[0]))
                at += packed_bytes((<uint64_t*>at)[0])
            n_items -= batch.n_done
    finally:
        PyMem_Free(chunk)
    return found
