# cython: language_level=3
"""From an object, an address or a handle to the section it lies in."""

from libc.stdint cimport uint64_t

from shmem import _errors

from shmem._core cimport (PART_OF_BLOCK, Mapping, Memory, Placed, face_of, free_block, offset_in, open_mappings, placed_behind,
                          raise_part, wrap)
from shmem._opening cimport section_of_address
from shmem._section cimport section_t


def find_storage(obj):
    """Which section something lies in.

    Parameters
    ----------
    obj : Block, array, typed object, any buffer, or int
        An int is an address of this process.

    Returns
    -------
    SharedMemory or None
        An open handle of the section; None when `obj` lies in no section that this process has open.
    """
    cdef Placed placed = None if isinstance(obj, int) else placed_behind(obj)
    cdef section_t* section
    cdef uint64_t address
    cdef const unsigned char[:] some
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
        some = memoryview(obj).cast("B")
        address = <uint64_t>&some[0] if some.shape[0] else 0
        with nogil:
            section = section_of_address(address)
    if section == NULL:
        return None
    for mapping in open_mappings():
        if (<Mapping>mapping).section == section:
            return face_of(mapping)
    return None


def deallocate(obj):
    """Free what a Block, an array or a typed object lies in, whichever section that is.

    Raises
    ------
    InvalidBlock
        It lies in no section, or was freed already, or another process has a view of the array.
    """
    cdef Placed placed = placed_behind(obj)
    if placed is None:
        raise _errors.InvalidBlock(f"{type(obj).__name__} {obj!r:.60} lies in no section")
    if placed.serial & PART_OF_BLOCK:
        raise_part(placed)
    free_block(placed.mapping, placed.payload_off(), placed.serial)


def locate(Memory memory, obj):
    """(offset, serial) of what lies in an open section: what a handle says of it."""
    cdef uint64_t payload_off = offset_in(memory.opened(), obj)
    return payload_off, placed_behind(obj).serial


def reopen(Memory memory, offset, serial):
    """The reverse of `locate`: InvalidBlock when the block was freed meanwhile."""
    found = wrap(memory.opened(), offset)
    if placed_behind(found).serial != serial:
        raise _errors.InvalidBlock(f"what the handle meant, at offset {offset:#x}, was freed, and the place used again")
    return found


def find_open(uuid, mode):
    """An open handle of this process for the section with that uuid, or None.  Whose it is, another thread, may close it at any moment."""
    cdef Mapping mapping
    for found in open_mappings():
        mapping = found
        if mapping.writable == (mode == "read_write") and (<char*>mapping.section.header.uuid)[:16] == uuid:
            memory = face_of(mapping)
            if memory is not None:               # None: closed since
                return memory
    return None
