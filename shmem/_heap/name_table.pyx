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
* replace: the store shows a new entry, with a value that was made for it, in the place of the old one.  Both become USED with it; the old
  entry is freed, and so is the old value, with its last pin if it is viewed.
* grow: the store into the table's anchor in the header shows a larger table.  Its entries move with later changes: `name_growth.pyx`.

`filled` and `live` are indexes, which recovery counts again.  Names have at most 64 KiB.  Names with equal hashes are compared by their
bytes.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport store_release_u64
from shmem._base.layout cimport (
    INTENT_FIRST_TYPE_SHIFT, INTENT_SECOND_TYPE_SHIFT, INTENT_SWAP_SLOT, SERIAL_MASK, SLOT_EMPTY, SLOT_REMOVED, TYPE_ARRAY, TYPE_FIRST_USER,
    TYPE_GROUP, TYPE_NAME_ENTRY, array_t, entry_data, entry_name, header_t, name_entry_t, name_slot_t, name_table_t, payload_to_block,
    tag_type)
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport ATTRIBUTES_CHANGED, CHANGED, CORRUPTED, NAME_EXISTS, NOT_FOUND, OK, PINNED, SHARED, TABLE_FULL
from shmem._heap.attributes cimport attributes_show_carried
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_check_block, heap_commit, heap_enter,
    heap_end_block, heap_enter_to_change, heap_leave, heap_mend_pins, heap_release, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_end, my_intent
from shmem._heap.name_counts cimport name_block_gone, names_add, names_drop, names_of
from shmem._heap.name_groups cimport group_doom
from shmem._heap.name_growth cimport names_grow, names_move_some, table_must_grow
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_t, names_find, table_capacity, table_entry
from shmem._heap.pins cimport block_is_viewed, block_waits_for_pins, block_was_named


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
    store (on error it stays PENDING), or a used block, which is checked.  NEXT_NUMBER stands for one that no entry has.  INTERRUPTED may leave
    a larger table, but no other change.
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


cdef int names_hide(section_t* section, uint64_t table_off, uint64_t slot_off) noexcept nogil:
    """Make the one store that removes a name; then free its entry, and its value if nothing else leads to it.  A group is emptied later."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef name_entry_t* entry = table_entry(section, slot_off)
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    cdef uint64_t entry_off = slot.entry_off, value = entry.value, drop_off = 0
    cdef bint is_linked = heap_check_block(section, value, entry.serial) == OK
    cdef bint is_group = is_linked and tag_type(block_at(section, payload_to_block(value)).tag) == TYPE_GROUP
    cdef int status
    if is_linked and not is_group and section.header.root_off != value and names_of(section, value) <= 1:
        drop_off = value
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


cdef int _may_replace(section_t* section, uint64_t slot_off, const replacement_t* change) noexcept nogil:
    """Check what a name leads to: OK, CHANGED, SHARED if more than this name leads to it, PINNED if it is viewed and may not move."""
    cdef name_entry_t* entry = table_entry(section, slot_off)
    cdef int status
    if entry == NULL:
        return CORRUPTED
    if entry.value != change.old_off or (entry.serial ^ change.old_serial) & SERIAL_MASK:
        return CHANGED
    status = heap_check_block(section, change.old_off, change.old_serial)
    if status == OK and (section.header.root_off == change.old_off or names_of(section, change.old_off) != 1):
        status = SHARED
    if status == OK and not change.may_move and block_is_viewed(section, change.old_off):
        status = PINNED
    return status


cdef int _show_instead(section_t* section, uint64_t slot_off, uint64_t entry_off, const replacement_t* change) noexcept nogil:
    """Make the one store that replaces an entry and its value.  The caller owns the heap gate, and the gate of the old array."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef uint64_t former_off = slot.entry_off
    cdef int status
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT
                 | <uint64_t>TYPE_ARRAY << INTENT_SECOND_TYPE_SHIFT, <char*>&slot.entry_off - section.base, entry_off,
                 entry_off, change.new_off, former_off, change.old_off)
    store_release_u64(&slot.entry_off, entry_off)                                                   # commit
    heap_commit(section, entry_off, TYPE_NAME_ENTRY)
    heap_commit(section, change.new_off, TYPE_ARRAY)
    names_add(section, change.new_off)
    names_drop(section, change.old_off)
    status = heap_release(section, former_off)
    (<array_t*>(section.base + change.old_off)).append_gate = 0              # it pins the array no more
    if status == OK and not block_waits_for_pins(section, change.old_off):
        status = heap_end_block(section, change.old_off)
    intent_end(my_intent(section))
    return status


cdef int table_replace(section_t* section, uint64_t* anchor, const name_t* name, replacement_t* change,
                       heap_wait_t wait) noexcept nogil:
    """Let a name lead to the caller's PENDING array instead of the one whose gate the caller owns, and has left then.

    OK, NOT_FOUND, CHANGED, SHARED, PINNED, ...: the new array stays PENDING, and the gate taken, unless OK.  ATTRIBUTES_CHANGED: the
    attributes must be carried anew.
    """
    cdef uint64_t* found = NULL
    cdef uint64_t entry_off = 0, slot_off = 0, table_off = 0
    cdef name_entry_t* entry
    cdef name_entry_t* former
    cdef int status = heap_allocate(section, sizeof(name_entry_t) + <uint64_t>name.n_bytes, 16, 0,
                                    HEAP_PENDING | _allocation_wait(wait), &entry_off)
    if status != OK:
        return status
    entry = <name_entry_t*>(section.base + entry_off)
    entry.value = change.new_off
    entry.serial = block_at(section, payload_to_block(change.new_off)).serial & SERIAL_MASK
    entry.name_bytes = name.n_bytes
    entry.data_bytes = 0
    memcpy(entry_name(entry), name.text, name.n_bytes)
    status = heap_enter_to_change(section, wait)
    if status == OK:
        status = names_anchor(section, anchor, name, &found)
        if status == OK:
            status = names_move_some(section, found[0])
        if status == OK:
            status = names_find(section, found[0], name, &slot_off, &table_off)
        if status == OK:
            status = _may_replace(section, slot_off, change)
        if status == OK:
            status = attributes_show_carried(section, &change.carried)
            if status == CHANGED:
                status = ATTRIBUTES_CHANGED
        if status == OK:
            former = table_entry(section, slot_off)
            entry.version = former.version
            _show_instead(section, slot_off, entry_off, change)
            entry_off = 0
        heap_leave(section)
    if entry_off != 0:
        heap_abandon(section, entry_off)
    return status


cdef int _mend_pins_of(section_t* section, uint64_t slot_off) noexcept nogil:
    cdef name_entry_t* entry = table_entry(section, slot_off)
    return heap_mend_pins(section, entry.value) if entry != NULL else CORRUPTED


cdef bint _leads_to(section_t* section, uint64_t slot_off, uint64_t value, uint64_t serial) noexcept nogil:
    cdef name_entry_t* entry = table_entry(section, slot_off)
    return entry != NULL and entry.value == value and entry.serial == serial


cdef int table_remove(section_t* section, uint64_t* anchor, const name_t* name, uint64_t value, uint64_t serial,
                      heap_wait_t wait) noexcept nogil:
    """Remove a name of the directory: 0, NOT_FOUND, CORRUPTED.  With a value and its serial: NOT_FOUND too if the name leads elsewhere."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0
    cdef int status = heap_enter_to_change(section, wait)
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
        status = names_hide(section, table_off, slot_off)
    heap_leave(section)
    return status
