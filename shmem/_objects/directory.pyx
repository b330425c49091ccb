# cython: language_level=3
"""Names in a section: the directory (names of arrays, objects, blocks) and the registry of types.

`_heap.name_table` works under the heap gate, where no Python code may run; what it finds is copied, and made into Python
objects here.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from shmem._base import errors

from shmem._base.damage cimport raise_damaged
from shmem._base.layout cimport SERIAL_MASK, TYPE_FIRST_USER, TYPE_LAST_USER, TYPE_PLAIN, payload_to_block, round_up
from shmem._base.section cimport block_at, busy_begin, busy_end, section_t
from shmem._base.status cimport NAME_EXISTS, NOT_FOUND, OK
from shmem._core cimport Mapping, Memory, allocate_pending, check, offset_in, placed_behind, wrap
from shmem._heap.heap cimport heap_abandon
from shmem._heap.name_slots cimport name_make, name_t
from shmem._heap.name_table cimport copied_t, table_copy, table_insert, table_look_up, table_remove

cdef enum:
    MAX_NAME_BYTES = 65535


cdef list _entries(Mapping mapping, uint64_t* anchor):
    """(value, name, data) of all entries of a table, in the order in which they were made."""
    cdef section_t* section = mapping.section
    cdef char* copied = NULL
    cdef uint64_t n_bytes = 0, off = 0
    cdef copied_t* entry
    cdef char* text
    cdef list found = []
    cdef int status
    busy_begin(section)
    with nogil:
        status = table_copy(section, anchor, &copied, &n_bytes)
        busy_end(section)
    try:
        check(status, mapping, "look at the names")
        while off < n_bytes:
            entry = <copied_t*>(copied + off)
            text = copied + off + sizeof(copied_t)
            found.append((entry.order, entry.value, text[:entry.name_bytes], text[entry.name_bytes:entry.name_bytes + entry.data_bytes]))
            off += round_up(sizeof(copied_t) + <uint64_t>entry.name_bytes + entry.data_bytes, 8)
    finally:
        free(copied)
    found.sort()
    return [entry_[1:] for entry_ in found]


# -- the registry of types ------------------------------------------------------------------------------

cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0:
    cdef section_t* section = mapping.section
    cdef name_t wanted = name_make(name, <uint32_t>len(name))
    cdef const char* data = description
    cdef uint32_t n_bytes = <uint32_t>len(description)
    cdef uint64_t type_id = 0, serial = 0
    cdef int status
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"the name of a type has at most {MAX_NAME_BYTES} bytes")
    busy_begin(section)
    with nogil:
        status = table_look_up(section, &section.header.types_off, &wanted, &type_id, &serial)
        busy_end(section)
    if status == NOT_FOUND and not mapping.writable:
        raise errors.ReadOnlyError(f"type {name.decode()} is not known in this section, which was opened read-only")
    if status == NOT_FOUND:
        busy_begin(section)
        with nogil:
            status = table_insert(section, &section.header.types_off, &wanted, data, n_bytes, 0, 0, 0, 0)
            if status == OK or status == NAME_EXISTS:         # the latter: somebody else was faster
                status = table_look_up(section, &section.header.types_off, &wanted, &type_id, &serial)
            busy_end(section)
    check(status, mapping, f"register type {name.decode()}")
    if type_id < TYPE_FIRST_USER:
        raise_damaged(section, section.header.types_off, f"the type {name.decode()} has the number {type_id} there, which none can have")
    if type_id > TYPE_LAST_USER:
        raise errors.SectionFull(f"a section knows at most {TYPE_LAST_USER - TYPE_FIRST_USER + 1} types")
    known = type_by_id(mapping, <uint32_t>type_id)
    if known is None or known[1] != description:
        there = "nothing" if known is None else known[1].decode("utf-8", "backslashreplace")
        raise errors.LayoutMismatch(f"type {name.decode()} has other fields in this section: there {there}, here {description.decode()}; "
                                     "give the new class another type_name")
    return <uint32_t>type_id


cdef tuple type_by_id(Mapping mapping, uint32_t type_id):
    for value, name, description in _entries(mapping, &mapping.section.header.types_off):
        if value == type_id:
            return name, description
    return None


# -- the directory ----------------------------------------------------------------------------------------

cdef bytes _name_bytes(object name):
    if not isinstance(name, str):
        raise TypeError(f"a name in the directory is a string, not {type(name).__name__}")
    encoded = name.encode()
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"a name in the directory has 1 to {MAX_NAME_BYTES} bytes in UTF-8")
    return encoded


cdef bint _find(Mapping mapping, bytes name, uint64_t* payload_off, uint64_t* serial) except -1:
    """Where what has the name lies, and its serial; False when nothing has."""
    cdef section_t* section = mapping.section
    cdef name_t wanted = name_make(name, <uint32_t>len(name))
    cdef int status
    busy_begin(section)
    with nogil:
        status = table_look_up(section, &section.header.directory_off, &wanted, payload_off, serial)
        busy_end(section)
    if status == NOT_FOUND:
        return False
    check(status, mapping, f"look up {name.decode()!r}")
    return True


cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint64_t serial, bint is_pending, uint32_t type_id) except -1:
    cdef section_t* section = mapping.section
    cdef bytes encoded = _name_bytes(name)
    cdef name_t wanted = name_make(encoded, <uint32_t>len(encoded))
    cdef int status
    busy_begin(section)
    with nogil:
        status = table_insert(section, &section.header.directory_off, &wanted, NULL, 0, payload_off, serial,
                              payload_off if is_pending else 0, type_id)
        busy_end(section)
    if status == NAME_EXISTS:
        raise errors.NameExists(f"the name {name!r} is taken: update in place with shm[{name!r}][...] = value, or delete it first")
    return check(status, mapping, f"name {name!r}")


def get(Memory memory, name):
    """What has the name; None when nothing has."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = _name_bytes(name)
    cdef uint64_t payload_off = 0, serial = 0, found_off = 0, found_serial = 0
    while _find(mapping, encoded, &payload_off, &serial):
        failure = None
        try:
            if serial != 0:                      # no block's is
                return wrap(mapping, payload_off, serial)
        except errors.InvalidBlock as error:
            failure = error
        if _find(mapping, encoded, &found_off, &found_serial) and found_serial == serial:
            raise errors.InvalidBlock(f"what was named {name!r} was freed under its name; del shm[{name!r}] removes the name") from failure
    return None


def contains(Memory memory, name):
    """Whether something has the name."""
    cdef uint64_t payload_off = 0, serial = 0
    cdef Mapping mapping = memory.opened()
    return isinstance(name, str) and _find(mapping, name.encode(), &payload_off, &serial)


def link(Memory memory, name, obj):
    """Name something that lies in this section."""
    cdef Mapping mapping = memory.writable_mapping(f"name {name!r}")
    cdef uint64_t payload_off = offset_in(mapping, obj)
    insert_name(mapping, name, payload_off, placed_behind(obj).serial, False, 0)


def put_bytes(Memory memory, name, const unsigned char[::1] source):
    """Name a new block with a copy of these bytes; block and name come to exist together."""
    cdef Mapping mapping = memory.writable_mapping(f"name {name!r}")
    cdef section_t* section = mapping.section
    cdef size_t n_bytes = source.shape[0]
    cdef uint64_t payload_off = allocate_pending(mapping, n_bytes, 16, False)
    if n_bytes:
        memcpy(section.base + payload_off, &source[0], n_bytes)
    try:
        insert_name(mapping, name, payload_off, block_at(section, payload_to_block(payload_off)).serial & SERIAL_MASK, True, TYPE_PLAIN)
    except BaseException:
        give_up_pending(section, payload_off)
        raise


cdef void give_up_pending(section_t* section, uint64_t payload_off) noexcept:
    busy_begin(section)
    with nogil:
        heap_abandon(section, payload_off)
        busy_end(section)


cdef bint _lies_in(Mapping mapping, placed) except -1:
    try:
        offset_in(mapping, placed)
    except errors.InvalidBlock:
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
    cdef uint64_t payload_off = 0, serial = 0
    placed = placed_behind(obj)
    return (placed is not None and _lies_in(mapping, placed) and _find(mapping, _name_bytes(name), &payload_off, &serial)
            and payload_off == offset_in(mapping, placed) and serial == placed_behind(placed).serial)


def remove(Memory memory, name):
    """Remove a name; KeyError when there is none."""
    cdef Mapping mapping = memory.writable_mapping(f"delete {name!r}")
    cdef section_t* section = mapping.section
    cdef bytes encoded = _name_bytes(name)
    cdef name_t wanted = name_make(encoded, <uint32_t>len(encoded))
    cdef int status
    busy_begin(section)
    with nogil:
        status = table_remove(section, &section.header.directory_off, &wanted)
        busy_end(section)
    if status == NOT_FOUND:
        raise KeyError(name)
    check(status, mapping, f"delete {name!r}")


def keys(Memory memory):
    """All names, in the order in which they were given."""
    cdef Mapping mapping = memory.opened()
    return [name.decode("utf-8", "replace") for _, name, _ in _entries(mapping, &mapping.section.header.directory_off)]
