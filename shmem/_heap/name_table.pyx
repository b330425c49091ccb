# cython: language_level=3
"""Name tables: from a name to a number, in the section, safe against a kill at any instruction.

`_heap.name_slots` describes the layout of a table and how it is searched.  The section has two tables: the directory (the value is the
payload offset of the named block, with its serial) and the registry of types (the value is a type id; the entry's
data is the type's description).  Each is found through its anchor, a word of the header.  The table of a group is like the directory, and
its anchor is a word of the group.

All work is done under the heap gate.  Results are copied out, since Python code must not run under it.  One store into a slot decides
each change, under an intent:

* insert: with the store the PENDING entry becomes USED, and so does a value that was made for this name.
* remove: the store hides the entry.  The entry is freed, and the value too if nothing else leads to it.  A group is emptied later:
  `name_groups.pyx`.
* replace, rename: see `name_changes.pyx`.
* grow: the store into the table's anchor in the header shows a larger table.  Its entries move with later changes: `name_growth.pyx`.

`filled` and `live` are indexes, which recovery counts again.  Names have at most 64 KiB.  Names with equal hashes are compared by their
bytes.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport entry_data, entry_name, payload_to_block, tag_type
from shmem._base.layout cimport (
    INTENT_FIRST_TYPE_SHIFT, INTENT_SECOND_TYPE_SHIFT, INTENT_SWAP_SLOT, SLOT_EMPTY, SLOT_REMOVED, TYPE_FIRST_USER, TYPE_GROUP,
    TYPE_NAME_ENTRY, header_t, name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, NAME_EXISTS, NOT_FOUND, OK, TABLE_FULL
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_check_block, heap_commit, heap_enter,
    heap_end_block, heap_enter_to_change, heap_leave, heap_mend_pins, heap_release, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_end, my_intent
from shmem._heap.name_counts cimport name_block_gone, names_add, names_drop, names_of
from shmem._heap.name_groups cimport group_doom
from shmem._heap.name_growth cimport names_grow, names_move_some, table_must_grow
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_t, names_find, table_capacity, table_entry
from shmem._heap.name_versions cimport names_notify, names_notify_all, version_next
from shmem._heap.pins cimport block_waits_for_pins, block_was_named


# -- reading --------------------------------------------------------------------------------------------

cdef int table_look_up(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* value, uint64_t* serial,
                       heap_wait_t wait) noexcept nogil:
    """Find the value of a name: 0, NOT_FOUND, NOT_A_GROUP, CORRUPTED."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    status = names_anchor(section, anchor, name, &found)
    if status == OK:
        status = names_find(section, found[0], name, &slot_off, &table_off)
    if status == OK:
        entry = table_entry(section, slot_off)
        value[0] = entry.value
        serial[0] = entry.serial
    heap_leave(section)
    return status


# -- changing -------------------------------------------------------------------------------------------

cdef inline int _allocation_wait(heap_wait_t wait) noexcept nogil:
    return HEAP_STOP if wait == WAIT_A_SLICE else 0


cdef void _count_shown(section_t* section, uint64_t table_off, bint was_empty, uint64_t value, uint64_t serial) noexcept nogil:
    """Count a name that was shown, and with it the block that it leads to.  The caller holds the gate."""
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    table.live += 1
    section.header.name_blocks += 1
    if was_empty:
        table.filled += 1
    if serial != 0:
        names_add(section, value)
        block_was_named(section, value)


cdef void _show_entry(section_t* section, uint64_t slot_off, const name_t* name, uint64_t entry_off, uint64_t pending_off,
                      uint32_t pending_type) noexcept nogil:
    """Make the one store that creates a name, and with it a pending value.  The caller owns the gate."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    slot.hash = name.hash
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT
                 | <uint64_t>pending_type << INTENT_SECOND_TYPE_SHIFT, <char*>&slot.entry_off - section.base, entry_off,
                 entry_off, pending_off, 0, 0)
    store_release_u64(&slot.entry_off, entry_off)                                                   # commit
    heap_commit(section, entry_off, TYPE_NAME_ENTRY)
    if pending_off != 0:
        heap_commit(section, pending_off, pending_type)
    intent_end(my_intent(section))


cdef uint64_t _next_number(section_t* section) noexcept nogil:
    """Return a number that no entry has: `types_version` is the last one.  A kill before the entry is shown skips a number."""
    cdef header_t* header = section.header
    if header.types_version < TYPE_FIRST_USER - 1:
        header.types_version = TYPE_FIRST_USER - 1
    store_release_u64(&header.types_version, header.types_version + 1)
    return header.types_version


cdef int _insert_once(section_t* section, uint64_t* anchor, const name_t* name, uint64_t value, uint64_t entry_off,
                      uint64_t serial, uint64_t pending_off, uint32_t pending_type, heap_wait_t wait) noexcept nogil:
    """Make one attempt under the gate: TABLE_FULL if the table must grow first, NOT_FOUND if a group of the path is missing."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, found_off = 0, table_off
    cdef bint was_empty
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = names_anchor(section, anchor, name, &found)
    if status != OK:
        heap_leave(section)
        return status
    table_off = found[0]
    status = names_move_some(section, table_off)
    if status == OK and table_must_grow(section, table_off):
        status = TABLE_FULL if table_off == 0 or table_capacity(section, table_off) != 0 else CORRUPTED
    elif status == OK:
        status = names_find(section, table_off, name, &slot_off, &found_off)
        if status == OK:
            status = NAME_EXISTS
        elif status == NOT_FOUND:
            status = OK if slot_off != 0 else CORRUPTED                 # without a free slot the counts are damaged
            if serial != 0 and pending_off == 0 and status == OK:
                status = heap_check_block(section, value, serial)       # it may have been freed meanwhile
            if value == NEXT_NUMBER and status == OK:
                (<name_entry_t*>(section.base + entry_off)).value = _next_number(section)
            if status == OK:
                was_empty = (<name_slot_t*>(section.base + slot_off)).entry_off == SLOT_EMPTY
                if anchor == &section.header.directory_off:
                    (<name_entry_t*>(section.base + entry_off)).version = version_next(section)
                _show_entry(section, slot_off, name, entry_off, pending_off, pending_type)
                _count_shown(section, table_off, was_empty, value, serial)
                if pending_off != 0 and pending_type == TYPE_GROUP:
                    section.header.name_blocks += 1
    heap_leave(section)
    return status


cdef int table_insert(section_t* section, uint64_t* anchor, const name_t* name, const void* data, uint32_t data_bytes,
                      uint64_t value, uint64_t serial, uint64_t pending_off, uint32_t pending_type,
                      heap_wait_t wait) noexcept nogil:
    """Insert a name with a value: 0, NAME_EXISTS, NO_MEMORY, NOT_FOUND or NOT_A_GROUP for a group that it is to be in, ...

    The value is a block with this serial.  It is either the caller's PENDING block `pending_off`, which becomes USED with the same
    store (on error it stays PENDING), or a used block, which is checked.  NEXT_NUMBER stands for one that no entry has.  INTERRUPTED
    may leave a larger table, but no other change.
    """
    cdef uint64_t entry_off = 0
    cdef name_entry_t* entry
    cdef int status = heap_allocate(section, sizeof(name_entry_t) + <uint64_t>name.n_bytes + data_bytes, 16, 0,
                                    HEAP_PENDING | _allocation_wait(wait), &entry_off)
    if status != OK:
        return status
    entry = <name_entry_t*>(section.base + entry_off)
    entry.value = value
    entry.serial = serial
    entry.version = 0
    entry.name_bytes = name.n_bytes
    entry.data_bytes = data_bytes
    memcpy(entry_name(entry), name.text, name.n_bytes)
    if data_bytes:                       # with no bytes it may be NULL, which memcpy does not allow
        memcpy(entry_data(entry), data, data_bytes)
    while True:
        status = _insert_once(section, anchor, name, value, entry_off, serial, pending_off, pending_type, wait)
        if status != TABLE_FULL:
            break
        status = names_grow(section, anchor, name, wait)
        if status != OK:
            break
    if status != OK:
        heap_abandon(section, entry_off)
    return status


cdef inline bint _is_group(section_t* section, const name_entry_t* entry) noexcept nogil:
    return (heap_check_block(section, entry.value, entry.serial) == OK
            and tag_type(block_at(section, payload_to_block(entry.value)).tag) == TYPE_GROUP)


cdef uint64_t table_value_to_drop(section_t* section, const name_entry_t* entry) noexcept nogil:
    if (heap_check_block(section, entry.value, entry.serial) != OK or section.header.root_off == entry.value
            or names_of(section, entry.value) > 1 or _is_group(section, entry)):
        return 0
    return entry.value


cdef int names_hide(section_t* section, uint64_t table_off, uint64_t slot_off) noexcept nogil:
    """Make the one store that removes a name; then free its entry, and its value if nothing else leads to it.  A group is emptied later."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef name_entry_t* entry = table_entry(section, slot_off)
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    cdef uint64_t entry_off = slot.entry_off, value = entry.value, drop_off = table_value_to_drop(section, entry)
    cdef bint is_linked = heap_check_block(section, value, entry.serial) == OK
    cdef bint is_group = _is_group(section, entry)
    cdef int status
    intent_begin(my_intent(section), INTENT_SWAP_SLOT, <char*>&slot.entry_off - section.base, SLOT_REMOVED,
                 0, 0, entry_off, drop_off)
    store_release_u64(&slot.entry_off, SLOT_REMOVED)                                                # commit
    if table.live:
        table.live -= 1
    name_block_gone(section)
    if is_linked:
        names_drop(section, value)
    if is_group and names_of(section, value) == 0:
        group_doom(section, value)
    status = heap_release(section, entry_off)
    if drop_off != 0 and status == OK and not block_waits_for_pins(section, drop_off):
        status = heap_end_block(section, drop_off)
    intent_end(my_intent(section))
    return status


cdef int _mend_pins_of(section_t* section, uint64_t slot_off) noexcept nogil:
    cdef name_entry_t* entry = table_entry(section, slot_off)
    return heap_mend_pins(section, entry.value) if entry != NULL else CORRUPTED


cdef bint _leads_to(section_t* section, uint64_t slot_off, uint64_t value, uint64_t serial) noexcept nogil:
    cdef name_entry_t* entry = table_entry(section, slot_off)
    return entry != NULL and entry.value == value and entry.serial == serial


cdef int table_remove(section_t* section, uint64_t* anchor, const name_t* name, uint64_t value, uint64_t serial, bint* was_group,
                      heap_wait_t wait) noexcept nogil:
    """Remove a name of the directory: 0, NOT_FOUND, CORRUPTED.  With a value and its serial: NOT_FOUND too if the name leads elsewhere."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0, removed = 0
    cdef int status = heap_enter_to_change(section, wait)
    was_group[0] = False
    if status != OK:
        return status
    status = names_anchor(section, anchor, name, &found)
    if status == OK:
        status = names_move_some(section, found[0])
    if status == OK:
        status = names_find(section, found[0], name, &slot_off, &table_off)
    if status == OK and value != 0 and not _leads_to(section, slot_off, value, serial):
        status = NOT_FOUND
    if status == OK:
        status = _mend_pins_of(section, slot_off)
    if status == OK:
        removed, was_group[0] = table_entry(section, slot_off).value, _is_group(section, table_entry(section, slot_off))
        status = names_hide(section, table_off, slot_off)
    heap_leave(section)
    if was_group[0]:
        names_notify_all(section)
    elif removed != 0:
        names_notify(section, removed)
    return status
