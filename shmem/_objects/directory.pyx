# cython: language_level=3
"""Names in a section: the directory (names of arrays, objects, blocks) and the registry of types.

`_heap.name_table` works under the heap gate, where Python code must not run.  It copies its results, and this module turns them into
Python objects.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from shmem._base import errors

from shmem._base.accessors cimport payload_to_block, tag_type
from shmem._base.damage cimport raise_damaged
from shmem._base.layout cimport MAX_NAME_BYTES, SERIAL_MASK, TYPE_FIRST_USER, TYPE_LAST_USER, TYPE_PLAIN, TYPE_QUEUE
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport ALREADY_FREED, INTERRUPTED, INVALID_BLOCK, IS_A_GROUP, NAME_EXISTS, NOT_A_GROUP, NOT_FOUND, OK
from shmem._bridge.blocks cimport PART_OF_BLOCK, Placed, allocate_pending, offset_in, placed_behind, placed_hold, placed_is_stale, wrap
from shmem._bridge.calls cimport check, run_last_step, run_steps, step_t
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory, empty_groups
from shmem._heap.heap cimport WAIT_A_SLICE, heap_abandon
from shmem._heap.name_changes cimport replacement_t, table_replace
from shmem._heap.name_groups cimport group_make
from shmem._heap.name_listing cimport copied_bytes, copied_t, names_copy_some, names_count
from shmem._heap.name_paths cimport MAX_LEVELS, group_at, path_make, path_make_of_group
from shmem._heap.name_slots cimport name_make
from shmem._heap.name_table cimport NEXT_NUMBER, table_insert, table_look_up, table_remove


A_GROUP = object()                        # what `get` returns for the name of a group

cdef enum:
    COPIED_AT_ONCE = 65536                # bytes


cdef int _look_up_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return table_look_up(section, call.anchor, &call.name, &call.value, &call.serial, WAIT_A_SLICE)


cdef int copy_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return names_copy_some(section, call.anchor, &call.name, &call.listing, call.copied, call.room, WAIT_A_SLICE)


cdef int count_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return names_count(section, call.anchor, &call.name, &call.n_names, WAIT_A_SLICE)


cdef int _insert_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return table_insert(section, call.anchor, &call.name, call.data, call.data_bytes, call.value, call.serial, call.pending_off,
                        call.type_id, WAIT_A_SLICE)


cdef int _replace_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    cdef replacement_t change
    change.new_off, change.new_serial = call.value, call.serial
    change.is_pending, change.pending_type = call.pending_off != 0, call.type_id
    change.only_off = change.only_serial = 0
    change.may_move = True
    return table_replace(section, call.anchor, &call.name, &change, WAIT_A_SLICE)


cdef int _make_group_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return group_make(section, call.anchor, &call.name, WAIT_A_SLICE)


cdef int _remove_step(section_t* section, void* request) noexcept nogil:
    cdef name_call_t* call = <name_call_t*>request
    return table_remove(section, call.anchor, &call.name, call.value, call.serial, &call.was_group, WAIT_A_SLICE)


cdef int _abandon_step(section_t* section, void* request) noexcept nogil:
    heap_abandon(section, (<uint64_t*>request)[0])
    return OK


cdef int _call_for_type(name_call_t* call, section_t* section, bytes name) except -1:
    """Prepare a call for a name in the registry of types."""
    memset(call, 0, sizeof(name_call_t))
    call.anchor = &section.header.types_off
    call.name = name_make(name, <uint32_t>len(name))
    return 0


cdef int _call_for(name_call_t* call, section_t* section, bytes name) except -1:
    """Prepare a call for a name in the directory."""
    memset(call, 0, sizeof(name_call_t))
    call.anchor = &section.header.directory_off
    call.name = path_make(name, <uint32_t>len(name))
    return 0


cdef int call_for_group(name_call_t* call, section_t* section, bytes path) except -1:
    memset(call, 0, sizeof(name_call_t))
    call.anchor = &section.header.directory_off
    call.name = path_make_of_group(path, <uint32_t>len(path))
    return 0


cdef int make_room(name_call_t* call) except -1:
    """Enlarge the buffer so that it has room for the next entry."""
    cdef uint64_t room = max(<uint64_t>COPIED_AT_ONCE, call.listing.needed_bytes)
    cdef char* larger = <char*>realloc(call.copied, room)
    if larger == NULL:
        raise MemoryError
    call.copied, call.room = larger, room
    return 0


cdef int take_copied(name_call_t* call, dict found, bint only_order) except -1:
    """Add the entries in the buffer.

    One that moves meanwhile may be copied twice, and so may a name that is deleted and assigned again: the later entry of a name counts.
    """
    cdef uint64_t off = 0
    cdef copied_t* entry
    cdef char* text
    while off < call.listing.n_bytes:
        entry = <copied_t*>(call.copied + off)
        text = call.copied + off + sizeof(copied_t)
        name = text[:entry.name_bytes]
        known = found.get(name)
        if known is None or (known if only_order else known[0]) < entry.order:
            if only_order:
                found[name] = entry.order
            else:
                data = text[entry.name_bytes:entry.name_bytes + entry.data_bytes]
                found[name] = entry.order, entry.value, entry.serial, name, data
        off += copied_bytes(entry.name_bytes, entry.data_bytes)
    return 0


cdef int _check_group(int status, Mapping mapping, bytes path, str what) except -1:
    """Raise KeyError if there is no group with this path, or the exception for another status."""
    if status == NOT_FOUND or status == NOT_A_GROUP:
        raise KeyError(path.decode())
    return check(status, mapping, what)


cdef dict _copied(Mapping mapping, uint64_t* anchor, bytes path, bint only_order):
    """Return all entries of a table by their names, as `take_copied` adds them.  The heap gate is free between two pieces."""
    cdef name_call_t call
    cdef dict found = {}
    call_for_group(&call, mapping.section, path)
    call.anchor = anchor
    try:
        while not call.listing.is_over:
            if call.listing.needed_bytes or call.copied == NULL:
                make_room(&call)
            _check_group(run_steps(mapping.section, copy_step, &call), mapping, path, "list the names")
            take_copied(&call, found, only_order)
    finally:
        free(call.copied)
    return found


cdef list _ordered(Mapping mapping, uint64_t* anchor, bytes path):
    """Return (order, value, serial, name, data) of all entries of a table in the order of their creation."""
    return sorted(_copied(mapping, anchor, path, False).values())


# -- the registry of types ------------------------------------------------------------------------------

cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0:
    cdef section_t* section = mapping.section
    cdef name_call_t call
    cdef uint64_t type_id
    cdef int status
    _call_for_type(&call, section, name)
    if len(name) > MAX_NAME_BYTES:
        raise ValueError(f"a type name must have at most {MAX_NAME_BYTES} bytes, got {len(name)}")
    status = run_steps(section, _look_up_step, &call)
    if status == NOT_FOUND and not mapping.writable:
        raise errors.ReadOnlyError(f"cannot register type {name.decode()}: the section was opened read-only")
    if status == NOT_FOUND:
        call.data, call.data_bytes = description, <uint32_t>len(description)
        call.value, call.serial = NEXT_NUMBER, 0
        status = run_steps(section, _insert_step, &call)
        if status == OK or status == NAME_EXISTS:             # NAME_EXISTS: another process was faster
            status = run_steps(section, _look_up_step, &call)
    check(status, mapping, f"register type {name.decode()}")
    type_id = call.value
    if type_id < TYPE_FIRST_USER:
        raise_damaged(section, section.header.types_off, f"the type {name.decode()} has the invalid type id {type_id}")
    if type_id > TYPE_LAST_USER:
        n_most = TYPE_LAST_USER - TYPE_FIRST_USER + 1
        raise errors.SectionFull(f"cannot register type {name.decode()}: a section holds at most {n_most} types")
    known = type_by_id(mapping, <uint32_t>type_id)
    if known is None or known[1] != description:
        there = "no fields" if known is None else known[1].decode("utf-8", "backslashreplace")
        raise errors.LayoutMismatch(
            f"cannot use type {name.decode()}: its fields differ in this section: found {there}, expected {description.decode()}; "
            "use another type_name for the new class")
    return <uint32_t>type_id


cdef tuple type_by_id(Mapping mapping, uint32_t type_id):
    for _, value, _, name, description in _ordered(mapping, &mapping.section.header.types_off, b""):
        if value == type_id:
            return name, description
    return None


# -- the directory ----------------------------------------------------------------------------------------

cdef bytes name_bytes(object name):
    if not isinstance(name, str):
        raise TypeError(f"a name must be a string, got {type(name).__name__}")
    encoded = name.encode()
    components = encoded.split(b"/")
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise ValueError(f"a name must have 1 to {MAX_NAME_BYTES} bytes in UTF-8, got {len(encoded)}")
    if len(components) > MAX_LEVELS:
        raise ValueError(f"a name must have at most {MAX_LEVELS} components, separated by '/', got {len(components)}")
    for component in components:
        if component in (b"", b".", b".."):
            raise ValueError(f"the name {_cut(name)!r} has the component {component.decode()!r}: a name is a path of components, separated "
                             "by '/', which are neither empty nor '.' nor '..'")
    return encoded


cdef str _cut(str name):
    return name if len(name) <= 80 else name[:77] + "..."


def check_name(name):
    """Raise TypeError or ValueError if `name` cannot be a name."""
    name_bytes(name)


cdef bint _find(Mapping mapping, bytes name, uint64_t* payload_off, uint64_t* serial) except -1:
    """Find the offset and serial of the block with a name; return False if there is none."""
    cdef name_call_t call
    cdef int status
    _call_for(&call, mapping.section, name)
    status = run_steps(mapping.section, _look_up_step, &call)
    if status == NOT_FOUND or status == NOT_A_GROUP:
        return False
    if status != OK:
        check(status, mapping, f"look up {name.decode()!r}")
    payload_off[0], serial[0] = call.value, call.serial
    return True


cdef int check_found(int status, Mapping mapping, name, str what) except -1:
    if status == NOT_FOUND or status == NOT_A_GROUP:
        raise KeyError(name)
    if status == ALREADY_FREED or status == INVALID_BLOCK:
        raise errors.InvalidBlock(f"cannot {what}: the object was freed; del shm[{name!r}] removes the name")
    return check(status, mapping, what) if status != OK else 0


cdef int _insert(section_t* section, step_t step, name_call_t* call, bint is_pending) except? -200:
    """Insert a name.  A thread that has a PENDING block for it may complete that while the process waits to leave."""
    cdef int status = INTERRUPTED
    if not is_pending:
        return run_steps(section, step, call)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        status = run_last_step(section, step, call)
    return status


cdef int refuse_path(Mapping mapping, bytes encoded, str what) except -1:
    cdef uint64_t payload_off = 0, serial = 0
    parts = encoded.split(b"/")
    cdef bytes path = parts[0]
    for n in range(1, len(parts)):
        path = b"/".join(parts[:n])
        if _find(mapping, path, &payload_off, &serial) and group_at(mapping.section, payload_off, serial) == NULL:
            break
    raise errors.NameExists(f"cannot {what}: {path.decode()!r} is not a group, but leads to an object; use another name")


cdef int make_groups(Mapping mapping, bytes encoded, str what, bint is_pending) except -1:
    cdef name_call_t call
    cdef int status
    parts = encoded.split(b"/")
    for n in range(1, len(parts)):
        path = b"/".join(parts[:n])
        _call_for(&call, mapping.section, path)
        status = _insert(mapping.section, _make_group_step, &call, is_pending)
        if status == NOT_FOUND:              # a group before was deleted meanwhile: the caller tries again
            return 0
        if status == NOT_A_GROUP:
            refuse_path(mapping, encoded, what)
        if status != NAME_EXISTS:
            check(status, mapping, what)
    return 0


cdef int _insert_or_replace(section_t* section, name_call_t* call, bint is_pending, bint replaces) except? -200:
    cdef int status = NAME_EXISTS
    if not replaces:
        return _insert(section, _insert_step, call, is_pending)
    while status == NAME_EXISTS:         # another process inserted the missing name
        status = _insert(section, _replace_step, call, is_pending)
        if status == NOT_FOUND:
            status = _insert(section, _insert_step, call, is_pending)
    return status


cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint64_t serial, bint is_pending, uint32_t type_id,
                     bint replaces=False) except -1:
    cdef bytes encoded = name_bytes(name)
    cdef name_call_t call
    cdef int status
    _call_for(&call, mapping.section, encoded)
    call.value, call.serial = payload_off, serial
    call.pending_off, call.type_id = payload_off if is_pending else 0, type_id
    status = _insert_or_replace(mapping.section, &call, is_pending, replaces)
    while status == NOT_FOUND:
        make_groups(mapping, encoded, f"assign the name {name!r}", is_pending)
        status = _insert_or_replace(mapping.section, &call, is_pending, replaces)
    if status == NOT_A_GROUP:
        refuse_path(mapping, encoded, f"assign the name {name!r}")
    if status == IS_A_GROUP or (status == NAME_EXISTS and _is_group(mapping, encoded)):
        raise errors.NameExists(f"cannot assign the name {name!r}: a group has it; use a name in the group, or delete it first")
    if status == NAME_EXISTS:
        raise errors.NameExists(f"cannot assign the name {name!r}: it is taken; update in place with shm[{name!r}][...] = value, "
                                f"or use shm.replace({name!r}, value)")
    return check(status, mapping, f"assign the name {name!r}")


cdef bint _is_group(Mapping mapping, bytes encoded) except -1:
    cdef uint64_t payload_off = 0, serial = 0
    return _find(mapping, encoded, &payload_off, &serial) and group_at(mapping.section, payload_off, serial) != NULL


def is_group(Memory memory, name):
    """Return whether a name leads to a group."""
    cdef Mapping mapping = memory.opened()
    return _is_group(mapping, name_bytes(name))


def check_parents(Memory memory, name):
    """Raise NameExists if a part of a path leads to something that is not a group."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = name_bytes(name)
    cdef name_call_t call
    _call_for(&call, mapping.section, encoded)
    if run_steps(mapping.section, _look_up_step, &call) == NOT_A_GROUP:
        refuse_path(mapping, encoded, f"assign the name {name!r}")


def make_group(Memory memory, name, required=False):
    """Make a group, and groups of its path that are missing.  NameExists if the name is taken, if `required` by anything but a group."""
    cdef str what = f"make the group {name!r}"
    cdef Mapping mapping = memory.writable_mapping(what)
    cdef bytes encoded = name_bytes(name)
    cdef name_call_t call
    cdef int status = NOT_FOUND
    _call_for(&call, mapping.section, encoded)
    while status == NOT_FOUND:
        status = _insert(mapping.section, _make_group_step, &call, False)
        if status == NOT_FOUND:
            make_groups(mapping, encoded, what, False)
        elif status == NOT_A_GROUP:
            refuse_path(mapping, encoded, what)
        elif status == NAME_EXISTS and required and _is_group(mapping, encoded):
            return
        elif status == NAME_EXISTS and required and not contains(memory, name):      # it was deleted meanwhile
            status = NOT_FOUND
    if status == NAME_EXISTS:
        raise errors.NameExists(f"cannot {what}: the name is taken; "
                                + ("it leads to an object; use another name" if required else "require_group returns a group that exists"))
    check(status, mapping, what)


def get(Memory memory, name):
    """Return the object with a name, `A_GROUP` if it is a group, None if there is none."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = name_bytes(name)
    cdef uint64_t payload_off = 0, serial = 0, found_off = 0, found_serial = 0
    while _find(mapping, encoded, &payload_off, &serial):
        failure = None
        try:
            if group_at(mapping.section, payload_off, serial) != NULL:
                return A_GROUP
            if serial != 0:                      # no block has the serial 0
                return wrap(mapping, payload_off, serial)
        except errors.InvalidBlock as error:
            failure = error
        if _find(mapping, encoded, &found_off, &found_serial) and found_serial == serial:
            raise errors.InvalidBlock(f"cannot get {name!r}: the object was freed; del shm[{name!r}] removes the name") from failure
    return None


def contains(Memory memory, name):
    """Return whether the name exists."""
    cdef uint64_t payload_off = 0, serial = 0
    cdef Mapping mapping = memory.opened()
    if not isinstance(name, str):
        return False
    try:
        encoded = name_bytes(name)
    except ValueError:
        return False
    return _find(mapping, encoded, &payload_off, &serial)


def link(Memory memory, name, obj, bint replaces=False):
    """Name an object of this section."""
    cdef Mapping mapping = memory.writable_mapping(f"assign the name {name!r}")
    cdef uint64_t payload_off = offset_in(mapping, obj)
    insert_name(mapping, name, payload_off, placed_behind(obj).serial, False, 0, replaces)


def put_bytes(Memory memory, name, source, bint replaces=False):
    """Name a new block with a copy of a buffer's bytes; block and name are published together."""
    cdef Mapping mapping = memory.writable_mapping(f"assign the name {name!r}")
    cdef section_t* section = mapping.section
    cdef uint64_t payload_off
    cdef Py_buffer view
    PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
    try:
        payload_off = allocate_pending(mapping, view.len, 16, False)
        memcpy(section.base + payload_off, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    try:
        insert_name(mapping, name, payload_off, block_at(section, payload_to_block(payload_off)).serial & SERIAL_MASK, True, TYPE_PLAIN,
                    replaces)
    except BaseException:
        give_up_pending(section, payload_off)
        raise


cdef void give_up_pending(section_t* section, uint64_t payload_off) noexcept:
    run_last_step(section, _abandon_step, &payload_off)


cdef bint _lies_in(Mapping mapping, placed) except -1:
    try:
        offset_in(mapping, placed)
    except errors.InvalidBlock:
        return False
    return True


def refuse_freed(name, obj):
    """Raise InvalidBlock if `obj`, or the object it is a view of, is in a block that was freed."""
    cdef Placed placed = placed_behind(obj)
    if placed is not None and not placed.serial & PART_OF_BLOCK and placed_is_stale(placed):
        raise errors.InvalidBlock(f"cannot assign the name {name!r}: the block of this {type(obj).__name__} was freed")


def lies_in(Memory memory, obj):
    """Return whether `obj`, or the object it is a view of, is in this section."""
    cdef Mapping mapping = memory.opened()
    placed = placed_behind(obj)
    return placed is not None and _lies_in(mapping, placed)


def is_named(Memory memory, name, obj):
    """Return whether `name` already names this very object."""
    cdef Mapping mapping = memory.opened()
    cdef uint64_t payload_off = 0, serial = 0
    placed = placed_behind(obj)
    return (placed is not None and _lies_in(mapping, placed) and _find(mapping, name_bytes(name), &payload_off, &serial)
            and payload_off == offset_in(mapping, placed) and serial == placed_behind(placed).serial)


def remove(Memory memory, name):
    """Remove a name, and free all that is in it if it is a group; raise KeyError if there is none."""
    if remove_name(memory, name):
        empty_groups(memory.opened(), f"free all that was in the group {name!r}")


def remove_name(Memory memory, name, obj=None):
    """Remove a name, which must lead to `obj` if one is given; return whether it was a group's, which is still to be emptied."""
    cdef Mapping mapping = memory.writable_mapping(f"delete the name {name!r}")
    cdef bytes encoded = name_bytes(name)
    cdef name_call_t call
    cdef int status
    _call_for(&call, mapping.section, encoded)
    if obj is not None:
        call.value, call.serial = offset_in(mapping, obj), placed_behind(obj).serial
    status = run_steps(mapping.section, _remove_step, &call)
    check_found(status, mapping, name, f"delete the name {name!r}")
    return call.was_group


def take(Memory memory, name):
    """Remove a name and return its object, which stays for as long as this process has it; raise KeyError if there is none.

    The object is held before its name goes, and the name goes only if it still leads to it.  So one caller gets it if several try.
    """
    cdef Mapping mapping = memory.writable_mapping(f"take {name!r}")
    cdef Placed placed
    while (found := get(memory, name)) is not None:
        if found is A_GROUP:
            raise TypeError(f"cannot take {name!r}: it is a group; get what you need of it, and del shm[{name!r}] in the end")
        placed = placed_behind(found)
        try:
            placed_hold(placed)
            if tag_type(block_at(mapping.section, payload_to_block(placed.payload_off())).tag) == TYPE_QUEUE:
                raise TypeError(f"cannot take {name!r}: a queue goes with its last name; get it, and del shm[{name!r}] in the end")
            remove_name(memory, name, found)
        except (errors.InvalidBlock, KeyError):
            continue
        return found
    raise KeyError(name)


cdef bytes _group_path(path):
    return name_bytes(path) if path else b""


def keys(Memory memory, path=""):
    """Return the names of a group, or of the directory, in the order of their creation; raise KeyError if there is no such group."""
    cdef Mapping mapping = memory.opened()
    cdef dict found = _copied(mapping, &mapping.section.header.directory_off, _group_path(path), True)
    return [name.decode("utf-8", "replace") for name in sorted(found, key=found.__getitem__)]


def keys_and_kinds(Memory memory, path=""):
    """Return (name, whether it leads to a group) as `keys`."""
    cdef Mapping mapping = memory.opened()
    return [(name.decode("utf-8", "replace"), _leads_to_group(mapping, value, serial)) for _, value, serial, name, _ in
            _ordered(mapping, &mapping.section.header.directory_off, _group_path(path))]


cdef bint _leads_to_group(Mapping mapping, uint64_t value, uint64_t serial):
    return group_at(mapping.section, value, serial) != NULL


def names_of(Memory memory, uint64_t payload_off, uint64_t serial):
    """Return the names of the block with this offset and serial, in groups too, in the order of their creation."""
    cdef Mapping mapping = memory.opened()
    cdef list found = [], paths = [b""]
    for path in paths:                           # which grows meanwhile
        try:
            entries = _ordered(mapping, &mapping.section.header.directory_off, path)
        except KeyError:                         # the group was deleted meanwhile
            continue
        for order, value, its_serial, name, _ in entries:
            full = path + b"/" + name if path else name
            if value == payload_off and (its_serial ^ serial) & SERIAL_MASK == 0:
                found.append((order, full))
            elif _leads_to_group(mapping, value, its_serial) and full.count(b"/") < MAX_LEVELS:
                paths.append(full)
    return tuple([name.decode("utf-8", "replace") for _, name in sorted(found)])


def length(Memory memory, path=""):
    """Return the number of names of a group, or of the directory; raise KeyError if there is no such group."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = _group_path(path)
    cdef name_call_t call
    call_for_group(&call, mapping.section, encoded)
    _check_group(run_steps(mapping.section, count_step, &call), mapping, encoded, "count the names")
    return call.n_names
