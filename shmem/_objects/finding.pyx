# cython: language_level=3
"""Lookups: from an object, an address or a handle to its section, and from a section to its root object."""

import numpy as np

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from libc.stdint cimport uint64_t

from shmem._base import errors
from shmem._objects import arrays

from shmem._base.accessors cimport payload_to_block
from shmem._base.layout cimport SERIAL_MASK
from shmem._base.section cimport block_at, offset_of_address, section_t
from shmem._base.status cimport NAME_EXISTS, OK, WOULD_BLOCK
from shmem._bridge.blocks cimport Placed, free_block, offset_in, placed_behind, wrap
from shmem._bridge.calls cimport check, run_steps
from shmem._bridge.mapping cimport Mapping, face_of, open_mappings
from shmem._core cimport Memory
from shmem._heap.heap cimport (
    DO_NOT_WAIT, WAIT_A_SLICE, heap_check_users_block, heap_enter, heap_leave, heap_set_root, heap_wait_t)
from shmem._heap.pinning cimport block_look_at_pins
from shmem._heap.pins cimport pin_words
from shmem._sections.process cimport section_of_address


cdef uint64_t _address_of_buffer(object obj) except? 0:
    """Return the address of a buffer's first element; 0 if there is none, or `obj` is not a buffer of plain memory."""
    cdef Py_buffer view
    cdef uint64_t address
    if not PyObject_CheckBuffer(obj):
        return 0
    try:
        PyObject_GetBuffer(obj, &view, PyBUF_STRIDES)
    except (BufferError, TypeError, ValueError):         # for example a memoryview that was released, and dates, which no buffer has
        return obj.ctypes.data if isinstance(obj, np.ndarray) and obj.nbytes else 0
    address = <uint64_t>view.buf if view.len else 0
    PyBuffer_Release(&view)
    return address


def find_storage(obj):
    """Return the section that contains an object.

    Parameters
    ----------
    obj : object
        Block, array, typed object, or any buffer.  An int is an address in this process.

    Returns
    -------
    SharedMemory or None
        An open handle of the section; None if `obj` is not in a section that this process has open, whatever it is.
    """
    cdef Placed placed = None if isinstance(obj, int) else placed_behind(obj)
    cdef section_t* section
    cdef uint64_t address = 0
    if placed is not None:
        if placed.mapping.is_open:
            return face_of(placed.mapping)
        section = placed.mapping.section
    elif isinstance(obj, Placed):
        return None
    elif isinstance(obj, int):
        address = obj if 0 < obj < 1 << 64 else 0
        with nogil:
            section = section_of_address(address)
    else:
        address = _address_of_buffer(obj)
        with nogil:
            section = section_of_address(address)
    return _face_at(section, address) if section != NULL else None


cdef object _face_at(section_t* section, uint64_t address):
    """Return an open handle of the section, of the mapping that has the address if there is one; None if all handles are closed."""
    found = None
    for mapping in open_mappings():
        if (<Mapping>mapping).section == section:
            face = face_of(mapping)
            if face is not None and address - <uint64_t>(<Mapping>mapping).base < section.size_bytes:
                return face
            found = found if face is None else face
    return found


def deallocate(obj):
    """Free a Block, an array or a typed object in any open section.

    Parameters
    ----------
    obj : Block, array or typed object

    Raises
    ------
    InvalidBlock
        `obj` is not in a section, was already freed, or is an array that another process has a view of.
    """
    cdef Placed placed = placed_behind(obj)
    if placed is None:
        raise errors.InvalidBlock(f"cannot free {type(obj).__name__} {obj!r:.60}: it is not in a section")
    free_block(placed.mapping, offset_in(placed.mapping, placed), placed.serial)
    placed.let_go()


def locate(Memory memory, obj):
    """Return the offset and serial that a handle stores for an object in an open section."""
    cdef Mapping mapping = memory.opened()
    cdef uint64_t payload_off
    found = None
    if placed_behind(obj) is None:               # a view of another library's, which hides what it refers to
        found = arrays.held_at(memory, offset_of_address(mapping.section, _address_of_buffer(obj)))
    if found is None:
        payload_off = offset_in(mapping, obj)
        found = payload_off, placed_behind(obj).serial
    return found


ctypedef struct look_t:
    uint64_t payload_off
    uint64_t serial
    uint64_t* bits


cdef int _look_at_pins_step(section_t* section, void* request) noexcept nogil:
    cdef look_t* look = <look_t*>request
    return block_look_at_pins(section, look.payload_off, look.serial, look.bits, WAIT_A_SLICE)


def viewers(Memory memory, uint64_t payload_off, uint64_t serial):
    """Return the process ids of the live participants that have views of a block, in the order of their entries."""
    cdef Mapping mapping = memory.opened()
    cdef bytearray copied = bytearray(8 * pin_words(mapping.section))
    cdef uint64_t* bits = <uint64_t*><char*>copied
    cdef look_t look
    look.payload_off, look.serial, look.bits = payload_off, serial, bits
    check(run_steps(mapping.section, _look_at_pins_step, &look), mapping, f"look at the block at offset {payload_off:#x}")
    return tuple([mapping.section.participants[i].pid for i in range(mapping.section.max_participants) if bits[i >> 6] >> (i & 63) & 1])


def reopen(Memory memory, offset, serial):
    """Return the object at an offset and serial that `locate` returned; raise InvalidBlock if it was freed meanwhile."""
    if serial == 0:
        raise errors.InvalidBlock(f"cannot open the handle: it is damaged, with serial number 0 for offset {offset:#x}")
    return wrap(memory.opened(), offset, serial)


def file_of(Memory memory):
    """Return (device, inode, whether the section is anonymous), which a handle stores for an open section."""
    cdef section_t* section = memory.opened().section
    return section.device, section.inode, bool(section.anonymous)


def is_same_section(Memory one, Memory other):
    """Return whether two handles are of the same section.  A closed one is the same as itself only."""
    if one is other:
        return True
    return not one.closed and not other.closed and one.uuid == other.uuid and file_of(one) == file_of(other)


def refuse_names(str what, obj):
    """Raise TypeError for what stands for a name, and not for an object."""
    from shmem._objects.attributes import Attributes
    from shmem._objects.entry import Entry
    from shmem._objects.names import Group

    if isinstance(obj, Entry):
        raise TypeError(f"cannot {what} an Entry: use its value, or send its name, {obj.name!r}")
    if isinstance(obj, (Group, Attributes)):
        raise TypeError(f"cannot {what} {type(obj).__name__}: it stands for a name; send the name")


def find_open(uuid, mode, uint64_t device, uint64_t inode):
    """Return an open handle of this process for the section with that uuid in that file, or None.

    A copied file has the uuid of the original, so the uuid alone does not identify a section.
    Another thread may close the handle at any moment.
    """
    cdef Mapping mapping
    for found in open_mappings():
        mapping = found
        if (mapping.writable == (mode == "read_write") and mapping.section.device == device and mapping.section.inode == inode
                and (<char*>mapping.section.header.uuid)[:16] == uuid):
            memory = face_of(mapping)
            if memory is not None:               # None: closed meanwhile
                return memory
    return None


# -- the root object: methods of `SharedMemory` ---------------------------------------------------------------

ctypedef struct root_t:
    uint64_t payload_off
    uint64_t serial
    bint only_if_unset


cdef int _set_root_step(section_t* section, void* request) noexcept nogil:
    cdef root_t* root = <root_t*>request
    return heap_set_root(section, root.payload_off, root.serial, root.only_if_unset, WAIT_A_SLICE)


def set_root_object(Memory self, obj):
    """Set the object that `get_root_object` returns; None unsets it.  Freeing the root object unsets it too."""
    _set_root(self, obj, False)


def set_root_if_unset(Memory self, obj):
    """Set the root object; return False if there is one already, which stays."""
    return _set_root(self, obj, True)


cdef bint _set_root(Memory self, obj, bint only_if_unset) except -1:
    cdef Mapping mapping = self.writable_mapping("set the root object")
    cdef root_t root
    cdef int status
    root.payload_off = root.serial = 0
    root.only_if_unset = only_if_unset
    if obj is not None:
        root.payload_off = offset_in(mapping, obj)
        root.serial = placed_behind(obj).serial
    status = run_steps(mapping.section, _set_root_step, &root)
    if status == NAME_EXISTS:
        return False
    check(status, mapping, "set the root object")
    return True


cdef int _look_at_root(section_t* section, root_t* root, heap_wait_t wait) noexcept nogil:
    """Find the root object's offset, 0 when unset, and its serial."""
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    root.payload_off = section.header.root_off
    if root.payload_off != 0:
        status = heap_check_users_block(section, root.payload_off, 0)
        if status == OK:
            root.serial = block_at(section, payload_to_block(root.payload_off)).serial & SERIAL_MASK
    heap_leave(section)
    return status


cdef int _look_at_root_step(section_t* section, void* request) noexcept nogil:
    return _look_at_root(section, <root_t*>request, WAIT_A_SLICE)


cdef uint64_t _find_root(Mapping mapping, uint64_t* serial) except? 0xffffffffffffffff:
    cdef root_t root
    root.payload_off = root.serial = 0
    cdef int status = _look_at_root(mapping.section, &root, DO_NOT_WAIT)
    if status == WOULD_BLOCK:
        status = run_steps(mapping.section, _look_at_root_step, &root)
    if status != OK:
        check(status, mapping, "get the root object")
    serial[0] = root.serial
    return root.payload_off


def get_root_object(Memory self):
    """Return the root object, from which others are reached; None if unset."""
    cdef Mapping mapping = self.opened()
    cdef uint64_t serial = 0, found_serial = 0
    cdef uint64_t payload_off = _find_root(mapping, &serial)
    while payload_off != 0:
        try:
            return wrap(mapping, payload_off, serial)
        except errors.InvalidBlock:
            payload_off = _find_root(mapping, &found_serial)
            if payload_off != 0 and found_serial == serial:
                raise
            serial = found_serial            # the root was freed meanwhile, and another one set
    return None
