# cython: language_level=3
"""Names in a section: the directory (names of arrays, objects, blocks) and the registry of types."""

from libc.stdint cimport uint32_t, uint64_t

from shmem import _errors

from shmem._core cimport Mapping, Memory, check, offset_in, placed_behind, wrap
from shmem._heap cimport heap_enter, heap_leave
from shmem._layout cimport SERIAL_MASK, TYPE_FIRST_USER, TYPE_LAST_USER, entry_data, entry_name, name_entry_t, payload_to_block
from shmem._name_table cimport (name_make, name_t, table_capacity, table_entry, table_find, table_insert, table_remove,
                                table_slot_off)
from shmem._section cimport block_at, section_t
from shmem._status cimport NAME_EXISTS, NOT_FOUND, OK

cdef enum:
    MAX_NAME_BYTES = 65535


cdef int _enter(Mapping mapping) except -1:
    cdef section_t* section = mapping.section
    cdef int status
    with nogil:
        status = heap_enter(section, True)
    return check(status, mapping, "look in the directory")


# -- the registry of types ------------------------------------------------------------------------------

cdef tuple _type_named(Mapping mapping, bytes name):
    """(type id, description) or None; (0, None) stands for a table that cannot be read."""
    cdef section_t* section = mapping.section
    cdef name_t wanted = name_make(name, <uint32_t>len(name))
    cdef uint64_t slot_off = 0
    cdef name_entry_t* entry
    cdef int status
    _enter(mapping)
    status = table_find(section, section.header.types_off, &wanted, &slot_off)
    try:
        if status == NOT_FOUND:
            return None
        check(status, mapping, f"look up type {name.decode()}")
        entry = table_entry(section, slot_off)
        return entry.value, entry_data(entry)[:entry.data_bytes]
    finally:
        heap_leave(section)


cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0:
    cdef section_t* section = mapping.section
    cdef name_t wanted = name_make(name, <uint32_t>len(name))
    cdef const char* data = description
    cdef uint32_t n_bytes = <uint32_t>len(description)
    cdef int status
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"the name of a type has at most {MAX_NAME_BYTES} bytes")
    known = _type_named(mapping, name)
    if known is None:
        if not mapping.writable:
            raise _errors.ReadOnlyError(f"type {name.decode()} is not known in this section, which was opened read-only")
        with nogil:
            status = table_insert(section, &section.header.types_off, &wanted, data, n_bytes, 0, 0, 0, 0)
        if status != NAME_EXISTS:                   # then somebody else was faster
            check(status, mapping, f"register type {name.decode()}")
        known = _type_named(mapping, name)
    if known[0] > TYPE_LAST_USER:
        raise _errors.SectionFull(f"a section knows at most {TYPE_LAST_USER - TYPE_FIRST_USER + 1} types")
    if known[1] != description:
        raise _errors.LayoutMismatch(
            f"type {name.decode()} has other fields in this section: there {known[1].decode()}, here {description.decode()}; "
            "give the new class another type_name")
    return known[0]


cdef tuple type_by_id(Mapping mapping, uint32_t type_id):
    cdef section_t* section = mapping.section
    cdef uint64_t i
    cdef name_entry_t* entry
    found = None
    _enter(mapping)
    try:
        for i in range(table_capacity(section, section.header.types_off)):
            entry = table_entry(section, table_slot_off(section.header.types_off, i))
            if entry != NULL and entry.value == type_id:
                found = (entry_name(entry)[:entry.name_bytes], entry_data(entry)[:entry.data_bytes])
                break
    finally:
        heap_leave(section)
    return found


# -- the directory ----------------------------------------------------------------------------------------

cdef bytes _name_bytes(object name):
    if not isinstance(name, str):
        raise TypeError(f"a name in the directory is a string, not {type(name).__name__}")
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"a name in the directory has 1 to {MAX_NAME_BYTES} bytes in UTF-8")
    return encoded


cdef uint64_t find_name(Mapping mapping, bytes name) except? 0:
    """Payload offset of what has the name, 0 when nothing has."""
    cdef section_t* section = mapping.section
    cdef name_t wanted = name_make(name, <uint32_t>len(name))
    cdef uint64_t slot_off = 0, value = 0
    cdef int status
    _enter(mapping)
    status = table_find(section, section.header.directory_off, &wanted, &slot_off)
    if status == OK:
        value = table_entry(section, slot_off).value
    heap_leave(section)
    if status != NOT_FOUND:
        check(status, mapping, f"look up {name.decode()!r}")
    return value


cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint32_t pending_type, uint64_t serial) except -1:
    """Name a PENDING block of mine (`serial` 0), which is USED with this type then, or a used block."""
    cdef section_t* section = mapping.section
    cdef bytes encoded = _name_bytes(name)
    cdef name_t wanted = name_make(encoded, <uint32_t>len(encoded))
    cdef int status
    with nogil:
        status = table_insert(section, &section.header.directory_off, &wanted, NULL, 0, payload_off,
                              0 if serial else payload_off, pending_type, serial)
    if status == NAME_EXISTS:
        raise _errors.NameExists(f"the name {name!r} is taken: update in place with shm[{name!r}][...] = value, or delete it first")
    return check(status, mapping, f"name {name!r}")


def get(Memory memory, name):
    """What has the name; None when nothing has."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = _name_bytes(name)
    cdef uint64_t payload_off
    while True:
        payload_off = find_name(mapping, encoded)
        if payload_off == 0:
            return None
        try:
            return wrap(mapping, payload_off)
        except _errors.InvalidBlock:
            if find_name(mapping, encoded) == payload_off:
                raise                               # freed under its name, not replaced meanwhile


def contains(Memory memory, name):
    """Whether something has the name."""
    return isinstance(name, str) and find_name(memory.opened(), name.encode()) != 0


def link(Memory memory, name, obj):
    """Name something that lies in this section."""
    cdef Mapping mapping = memory.writable_mapping(f"name {name!r}")
    cdef uint64_t payload_off = offset_in(mapping, obj)
    insert_name(mapping, name, payload_off, 0, placed_behind(obj).serial)


cdef bint _lies_in(Mapping mapping, placed) except -1:
    try:
        offset_in(mapping, placed)
    except _errors.InvalidBlock:
        return False
    return True


def lies_in(Memory memory, obj):
    """Whether `obj`, or what it is a view of, lies in this section."""
    cdef Mapping mapping = memory.opened()
    placed = placed_behind(obj)
    return placed is not None and _lies_in(mapping, placed)


def is_named(Memory memory, name, obj):
    """Whether `name` already leads to this very object."""
    cdef Mapping mapping = memory.opened()
    placed = placed_behind(obj)
    return (placed is not None and _lies_in(mapping, placed)
            and find_name(mapping, _name_bytes(name)) == offset_in(mapping, placed))


def remove(Memory memory, name):
    """Remove a name; KeyError when there is none."""
    cdef Mapping mapping = memory.writable_mapping(f"delete {name!r}")
    cdef section_t* section = mapping.section
    cdef bytes encoded = _name_bytes(name)
    cdef name_t wanted = name_make(encoded, <uint32_t>len(encoded))
    cdef int status
    with nogil:
        status = table_remove(section, &section.header.directory_off, &wanted)
    if status == NOT_FOUND:
        raise KeyError(name)
    check(status, mapping, f"delete {name!r}")


def keys(Memory memory):
    """All names, in the order in which they were given."""
    cdef Mapping mapping = memory.opened()
    cdef section_t* section = mapping.section
    cdef uint64_t i, table_off, slot_off
    cdef name_entry_t* entry
    cdef list found = []
    _enter(mapping)
    try:
        table_off = section.header.directory_off
        for i in range(table_capacity(section, table_off)):
            slot_off = table_slot_off(table_off, i)
            entry = table_entry(section, slot_off)
            if entry != NULL:
                found.append((block_at(section, payload_to_block(<char*>entry - section.base)).serial & SERIAL_MASK,
                              entry_name(entry)[:entry.name_bytes]))
    finally:
        heap_leave(section)
    return [name.decode("utf-8", "replace") for _, name in sorted(found)]
