# cython: language_level=3
"""Reading and writing all attributes of what a name leads to, or of the section, as encoded bytes: calls of `_heap/attributes.pyx`.

Each call finds the value by its name, under the heap gate, anew, and pins nothing.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._base.section cimport section_t
from shmem._base.status cimport CHANGED, INTERRUPTED
from shmem._bridge.calls cimport run_step, run_steps
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.attributes cimport attributes_call_t, attributes_read, attributes_write
from shmem._heap.heap cimport WAIT_A_SLICE
from shmem._heap.name_paths cimport path_make
from shmem._objects.directory cimport check_found, name_bytes

cdef enum:
    FIRST_BYTES = 1024                   # enough for most


cdef int _read_step(section_t* section, void* request) noexcept nogil:
    return attributes_read(section, <attributes_call_t*>request, WAIT_A_SLICE)


cdef int _write_step(section_t* section, void* request) noexcept nogil:
    return attributes_write(section, <attributes_call_t*>request, WAIT_A_SLICE)


cdef int _prepare(attributes_call_t* call, Mapping mapping, bytes name) except -1:
    """Prepare a call for a name, or for the section with None."""
    memset(call, 0, sizeof(attributes_call_t))
    if name is not None:
        call.anchor = &mapping.section.header.directory_off
        call.name = path_make(name, <uint32_t>len(name))
    return 0


def read(Memory memory not None, name, str what, bint waits=True):
    """Return (bytes, serial): all attributes as they are at one moment, encoded, and by what `write` recognises them.

    Without attributes, the bytes are empty and the serial is 0.  Without `waits`, None is returned if another process keeps the heap
    gate for longer than a slice.

    Raises
    ------
    KeyError
        There is no such name.
    InvalidBlock
        The object was freed.
    """
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = None if name is None else name_bytes(name)
    cdef bytearray copied = bytearray(FIRST_BYTES)
    cdef attributes_call_t call
    cdef int status
    _prepare(&call, mapping, encoded)
    while True:
        call.copied, call.room = copied, <uint64_t>len(copied)
        status = run_steps(mapping.section, _read_step, &call) if waits else run_step(mapping.section, _read_step, &call)
        if status == INTERRUPTED:
            return None
        if status == CHANGED:            # by another process, between two pieces
            call.position = 0
            continue
        check_found(status, mapping, name, what)
        if call.position >= call.n_bytes:
            return bytes(copied[:call.n_bytes]), call.entry_serial
        if call.n_bytes > call.room:
            copied.extend(bytes(call.n_bytes - call.room))


def write(Memory memory not None, name, uint64_t serial, bytes data not None, str what):
    """Write all attributes in one step; without bytes, remove them.  Return False if they are not those with this serial any more."""
    cdef Mapping mapping = memory.writable_mapping(what)
    cdef bytes encoded = None if name is None else name_bytes(name)
    cdef attributes_call_t call
    cdef int status
    _prepare(&call, mapping, encoded)
    call.entry_serial = serial
    call.data, call.data_bytes = data, <uint32_t>len(data)
    status = run_steps(mapping.section, _write_step, &call)
    if status == CHANGED:
        return False
    check_found(status, mapping, name, what)
    return True


def refuse_read_only(Memory memory not None, str what):
    """Raise ReadOnlyError if the section was opened read-only."""
    memory.writable_mapping(what)
