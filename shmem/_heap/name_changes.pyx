# cython: language_level=3
"""Changes of names that exist: another value, or another name, each by one deciding store into a slot, under an intent.

Replace (SWAP_SLOT): the store shows a new entry in the slot of the old one.  With it the new entry becomes USED, and so does a value that
was made for this name.  The old entry is freed, and so is the old value, with its last pin if it is viewed, unless it is the root or
another name leads to it.  An array that grows by moving (`array_growth.pyx`) is replaced in the same way.

Rename (SWAP_TWO): the store shows a new entry, with the same value, in a slot of the new name; it decides.  The slot of the old name is
then removed, and the old entry freed.  Both names are looked up under the heap gate, so no reader finds none or both of them.  The two may
be in tables of different groups, and the old one may still be in a table whose entries move to a larger one.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport entry_name
from shmem._base.layout cimport (
    INTENT_FIRST_TYPE_SHIFT, INTENT_SECOND_TYPE_SHIFT, INTENT_SWAP_SLOT, SERIAL_MASK, SLOT_EMPTY, SLOT_REMOVED, TYPE_NAME_ENTRY, array_t,
    name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport section_t
from shmem._base.status cimport (
    ATTRIBUTES_CHANGED, CHANGED, CORRUPTED, IS_A_GROUP, NAME_EXISTS, NOT_A_GROUP, NOT_FOUND, OK, PINNED, SHARED, TABLE_FULL)
from shmem._heap.attributes cimport attributes_show_carried
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_check_block, heap_commit, heap_end_block, heap_enter_to_change,
    heap_leave, heap_mend_pins, heap_release, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_begin_two, intent_end, my_intent
from shmem._heap.name_counts cimport names_add, names_drop, names_of
from shmem._heap.name_growth cimport names_grow, names_move_some, table_must_grow
from shmem._heap.name_paths cimport group_at, names_anchor
from shmem._heap.name_slots cimport name_t, names_find, table_capacity, table_entry
from shmem._heap.name_table cimport table_value_to_drop
from shmem._heap.name_versions cimport names_notify, names_notify_all, version_next
from shmem._heap.pins cimport block_is_viewed, block_waits_for_pins, block_was_named


cdef int _make_entry(section_t* section, const name_t* name, uint64_t* entry_off, heap_wait_t wait) noexcept nogil:
    """Allocate a PENDING entry with this name, whose value is yet to be set."""
    cdef name_entry_t* entry
    cdef int status = heap_allocate(section, sizeof(name_entry_t) + <uint64_t>name.n_bytes, 16, 0,
                                    HEAP_PENDING | (HEAP_STOP if wait == WAIT_A_SLICE else 0), entry_off)
    if status != OK:
        return status
    entry = <name_entry_t*>(section.base + entry_off[0])
    entry.value = entry.serial = entry.version = 0
    entry.name_bytes = name.n_bytes
    entry.data_bytes = 0
    memcpy(entry_name(entry), name.text, name.n_bytes)
    return OK


# -- another value --------------------------------------------------------------------------------------

cdef int _may_replace(section_t* section, const name_entry_t* former, const replacement_t* change) noexcept nogil:
    """Check what a name leads to, and the block that it is to lead to."""
    cdef int status
    if change.only_off == 0:
        if group_at(section, former.value, former.serial) != NULL:
            return IS_A_GROUP
        return OK if change.is_pending else heap_check_block(section, change.new_off, change.new_serial)
    if former.value != change.only_off or (former.serial ^ change.only_serial) & SERIAL_MASK:
        return CHANGED
    status = heap_check_block(section, change.only_off, change.only_serial)
    if status == OK and (section.header.root_off == change.only_off or names_of(section, change.only_off) != 1):
        status = SHARED
    if status == OK and not change.may_move and block_is_viewed(section, change.only_off):
        status = PINNED
    return status


cdef void _show_instead(section_t* section, uint64_t slot_off, uint64_t entry_off, const replacement_t* change) noexcept nogil:
    """Make the one store that replaces an entry and its value.  The caller owns the heap gate.

    Damage that is found after the store marks the section, and does not fail the call, which would leave the new value to the caller.
    """
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef name_entry_t* former = table_entry(section, slot_off)
    cdef uint64_t former_off = slot.entry_off, value = former.value, drop_off = table_value_to_drop(section, former)
    cdef bint is_linked = heap_check_block(section, value, former.serial) == OK
    cdef int status
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT
                 | <uint64_t>change.pending_type << INTENT_SECOND_TYPE_SHIFT, <char*>&slot.entry_off - section.base, entry_off,
                 entry_off, change.new_off if change.is_pending else 0, former_off, drop_off)
    store_release_u64(&slot.entry_off, entry_off)                                                   # commit
    heap_commit(section, entry_off, TYPE_NAME_ENTRY)
    if change.is_pending:
        heap_commit(section, change.new_off, change.pending_type)
    names_add(section, change.new_off)
    block_was_named(section, change.new_off)
    if is_linked:
        names_drop(section, value)
    status = heap_release(section, former_off)
    if change.only_off != 0:
        (<array_t*>(section.base + value)).append_gate = 0                   # it pins the array no more
    if drop_off != 0 and status == OK and not block_waits_for_pins(section, drop_off):
        heap_end_block(section, drop_off)
    intent_end(my_intent(section))


cdef int _replace_entered(section_t* section, uint64_t* anchor, const name_t* name, replacement_t* change, uint64_t* entry_off,
                          uint64_t* former_value) noexcept nogil:
    """Do the work under the gate.  `entry_off` becomes 0 if the new entry is shown; waiters of `former_value` are then to be woken."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry = <name_entry_t*>(section.base + entry_off[0])
    cdef name_entry_t* former
    cdef int status = names_anchor(section, anchor, name, &found)
    if status == OK:
        status = names_move_some(section, found[0])
    if status == OK:
        status = names_find(section, found[0], name, &slot_off, &table_off)
    if status != OK:
        return status
    former = table_entry(section, slot_off)
    if former == NULL:
        return CORRUPTED
    status = heap_mend_pins(section, former.value)               # first: it may recover, which frees what nothing keeps
    if status == OK:
        status = _may_replace(section, former, change)
    if status == OK and change.only_off != 0:
        status = attributes_show_carried(section, &change.carried)
        if status == CHANGED:
            status = ATTRIBUTES_CHANGED
    if status != OK:
        return status
    former_value[0] = former.value
    if former.value == change.new_off and not change.is_pending and (former.serial ^ change.new_serial) & SERIAL_MASK == 0:
        store_release_u64(&former.version, version_next(section))            # the same object: its name is touched
        return OK
    entry.value, entry.serial, entry.version = change.new_off, change.new_serial, version_next(section)
    entry_off[0] = 0
    _show_instead(section, slot_off, <char*>entry - section.base, change)
    return OK


cdef int table_replace(section_t* section, uint64_t* anchor, const name_t* name, replacement_t* change,
                       heap_wait_t wait) noexcept nogil:
    cdef uint64_t entry_off = 0, former_value = 0
    cdef int status = _make_entry(section, name, &entry_off, wait)
    if status != OK:
        return status
    status = heap_enter_to_change(section, wait)
    if status == OK:
        status = _replace_entered(section, anchor, name, change, &entry_off, &former_value)
        heap_leave(section)
    if entry_off != 0:
        heap_abandon(section, entry_off)
    if former_value != 0:
        names_notify(section, former_value)
    return status


# -- another name ---------------------------------------------------------------------------------------

ctypedef struct slots_t:             # of a name that is renamed; found under the gate
    uint64_t former_table_off
    uint64_t former_off
    uint64_t table_off
    uint64_t off                     # of a slot for the new name


cdef int _find_slot_of_former(section_t* section, uint64_t* anchor, const renaming_t* call, slots_t* slots) noexcept nogil:
    cdef uint64_t* found = NULL
    cdef int status = names_anchor(section, anchor, &call.former, &found)
    if status == OK:
        status = names_find(section, found[0], &call.former, &slots.former_off, &slots.former_table_off)
    if status == OK and table_entry(section, slots.former_off) == NULL:
        status = CORRUPTED
    return status


cdef int _find_slots(section_t* section, uint64_t* anchor, renaming_t* call, slots_t* slots) noexcept nogil:
    """Find the slots of both names: OK, NOT_FOUND, NOT_A_GROUP, NAME_EXISTS, TABLE_FULL, CORRUPTED."""
    cdef uint64_t* found = NULL
    cdef uint64_t table_off = 0
    cdef int status = _find_slot_of_former(section, anchor, call, slots)
    call.is_of_path = False
    if status != OK:
        return status
    status = names_anchor(section, anchor, &call.name, &found)
    call.is_of_path = status == NOT_FOUND or status == NOT_A_GROUP
    if status == OK:
        status = names_move_some(section, found[0])
    if status == OK and table_must_grow(section, found[0]):
        return TABLE_FULL if found[0] == 0 or table_capacity(section, found[0]) != 0 else CORRUPTED
    if status != OK:
        return status
    slots.table_off = found[0]
    status = names_find(section, slots.table_off, &call.name, &slots.off, &table_off)
    if status == OK:
        return NAME_EXISTS
    if status != NOT_FOUND or slots.off == 0:                    # without a free slot the counts are damaged
        return CORRUPTED
    return _find_slot_of_former(section, anchor, call, slots)    # its entry may have moved


cdef int _show_renamed(section_t* section, const renaming_t* call, const slots_t* slots, uint64_t entry_off) noexcept nogil:
    """Make the store that shows the new name; it decides.  Then remove the old one.  The caller owns the heap gate."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slots.off)
    cdef name_slot_t* former_slot = <name_slot_t*>(section.base + slots.former_off)
    cdef name_table_t* table = <name_table_t*>(section.base + slots.table_off)
    cdef name_table_t* former_table = <name_table_t*>(section.base + slots.former_table_off)
    cdef uint64_t former_off = former_slot.entry_off
    cdef bint was_empty = slot.entry_off == SLOT_EMPTY
    cdef int status
    slot.hash = call.name.hash
    intent_begin_two(my_intent(section), TYPE_NAME_ENTRY, <char*>&slot.entry_off - section.base, entry_off,
                     <char*>&former_slot.entry_off - section.base, SLOT_REMOVED, entry_off, former_off)
    store_release_u64(&slot.entry_off, entry_off)                                                   # commit
    heap_commit(section, entry_off, TYPE_NAME_ENTRY)
    store_release_u64(&former_slot.entry_off, SLOT_REMOVED)
    table.live += 1
    if was_empty:
        table.filled += 1
    if former_table.live:
        former_table.live -= 1
    status = heap_release(section, former_off)
    intent_end(my_intent(section))
    return status


cdef int _rename_once(section_t* section, uint64_t* anchor, renaming_t* call, uint64_t* entry_off, heap_wait_t wait) noexcept nogil:
    """Make one attempt under the gate: TABLE_FULL if the table of the new name must grow first."""
    cdef slots_t slots
    cdef name_entry_t* entry = <name_entry_t*>(section.base + entry_off[0])
    cdef name_entry_t* former
    cdef uint64_t value = 0
    cdef bint is_group = False
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = _find_slots(section, anchor, call, &slots)
    if status == OK:
        former = table_entry(section, slots.former_off)
        value, is_group = former.value, group_at(section, former.value, former.serial) != NULL
        entry.value, entry.serial, entry.version = value, former.serial, version_next(section)
        entry_off[0] = 0
        status = _show_renamed(section, call, &slots, <char*>entry - section.base)
    heap_leave(section)
    if is_group:
        names_notify_all(section)
    elif value != 0:
        names_notify(section, value)
    return status


cdef int table_rename(section_t* section, uint64_t* anchor, renaming_t* call, heap_wait_t wait) noexcept nogil:
    cdef uint64_t entry_off = 0
    cdef int status = _make_entry(section, &call.name, &entry_off, wait)
    if status != OK:
        return status
    while True:
        status = _rename_once(section, anchor, call, &entry_off, wait)
        if status != TABLE_FULL:
            break
        status = names_grow(section, anchor, &call.name, wait)
        if status == NOT_FOUND or status == NOT_A_GROUP:
            call.is_of_path = True       # a group of the new name was deleted in between
        if status != OK:
            break
    if entry_off != 0:
        heap_abandon(section, entry_off)
    return status
