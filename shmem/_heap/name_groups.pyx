# cython: language_level=3
"""Groups: blocks of type GROUP, each the anchor of a table of names.

States of a group, and what leads from one to the next::

    PENDING   being made                  one store into a slot, as for any value that is made for its name   -> named
    named     an entry leads to it        one store hides the entry; under the same gate: `group_doom`        -> doomed
    doomed    USED, without a name        `groups_empty`, when all its entries and its tables are gone        -> HOLE

Nothing but its entry leads to a group: neither handle, root, reference nor view.  So it ends with its name, and no process can look up, or
insert, a name in a doomed group: each path is walked anew under the gate.

Doomed groups are listed, from `header.doomed_off` along `next_doomed_off`, the one that was deleted last first.  Only the first one is
worked on.  Each hold of the gate looks at up to `SLOTS_A_HOLD` slots and frees up to `ENTRIES_A_HOLD` entries, as if their names were
deleted one by one; an entry whose value has to be searched for other names is the last of its hold.  A group in it becomes doomed
itself, and so the first one.  When the old table, if there is one, and the table have no entries left, they are freed by one store into
the word that leads to them, and at last the group.

The list and the cursors are indexes.  Recovery rebuilds them: each USED group to which no entry leads is doomed, and its cursor is 0.  So
a kill between two stores, or between two holds of the gate, leaves groups that are emptied later: by the next process that deletes a group,
sweeps or attaches, or whose allocation finds no room.
"""

from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport payload_to_block
from shmem._base.layout cimport (
    NAMES_MANY, SERIAL_MASK, SLOT_REMOVED, TYPE_GROUP, group_t, header_t, name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, INTERRUPTED, OK
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, HEAP_ZERO, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_check_block, heap_end_block, heap_enter_to_change,
    heap_leave, heap_mend_pins, heap_wait_t)
from shmem._heap.name_counts cimport entry_leads_to_block, name_block_gone, names_of, names_recount
from shmem._heap.name_growth cimport names_drop_table
from shmem._heap.name_paths cimport group_in
from shmem._heap.name_slots cimport name_t, table_capacity, table_entry, table_old, table_slot_off
from shmem._heap.name_table cimport names_hide, table_insert
from shmem._heap.recovery cimport NO_PARTICIPANT, heap_recover

cdef enum:
    SLOTS_A_HOLD = 1024                  # looked at in one hold of the gate
    ENTRIES_A_HOLD = 32                  # freed in one hold of the gate, with their values


# -- making -------------------------------------------------------------------------------------------------

cdef int group_make(section_t* section, uint64_t* anchor, const name_t* name, heap_wait_t wait) noexcept nogil:
    cdef uint64_t group_off = 0
    cdef int status = heap_allocate(section, sizeof(group_t), 16, 0,
                                    HEAP_PENDING | HEAP_ZERO | (HEAP_STOP if wait == WAIT_A_SLICE else 0), &group_off)
    if status != OK:
        return status
    status = table_insert(section, anchor, name, NULL, 0, group_off, block_at(section, payload_to_block(group_off)).serial & SERIAL_MASK,
                          group_off, TYPE_GROUP, wait)
    if status != OK:
        heap_abandon(section, group_off)
    return status


# -- emptying -----------------------------------------------------------------------------------------------

cdef void group_doom(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef group_t* group = group_in(section, payload_off)
    if group == NULL:
        return                           # its block is too small, which `check_heap` reports
    group.cursor = 0
    group.next_doomed_off = section.header.doomed_off
    section.header.doomed_off = payload_off


cdef bint _takes_a_walk(section_t* section, uint64_t slot_off) noexcept nogil:
    """Return whether the names of the block that an entry leads to may have to be counted by a walk over all blocks."""
    cdef name_entry_t* entry = table_entry(section, slot_off)
    return entry != NULL and entry_leads_to_block(section, entry) and names_of(section, entry.value) >= NAMES_MANY


cdef int _remove_entry(section_t* section, uint64_t table_off, uint64_t slot_off) noexcept nogil:
    """Remove the entry of a slot as if its name was deleted.  An entry that is damaged stays behind, and with it its value."""
    cdef int status
    if table_entry(section, slot_off) == NULL:
        return OK
    status = heap_mend_pins(section, table_entry(section, slot_off).value)
    return names_hide(section, table_off, slot_off) if status == OK else status


cdef int _end_table(section_t* section, group_t* group, uint64_t old_off) noexcept nogil:
    """All slots of the old table, or else of the table, were looked at: free it."""
    cdef uint64_t table_off = group.table_off, at = old_off if old_off != 0 else table_off
    cdef uint64_t* word
    cdef bint is_damaged = table_capacity(section, at) == 0 or (old_off != 0 and old_off == table_off)
    if not is_damaged and (<name_table_t*>(section.base + at)).live != 0:
        return heap_recover(section, NO_PARTICIPANT)         # the cursor, or the count, was damaged: it starts again
    group.cursor = 0
    word = &group.table_off if old_off == 0 else &(<name_table_t*>(section.base + table_off)).old_off
    if is_damaged:
        store_release_u64(word, 0)
        return OK
    return names_drop_table(section, word) if heap_check_block(section, at, 0) == OK else CORRUPTED


cdef int _free_group(section_t* section, group_t* group) noexcept nogil:
    """Free a group without tables, the first one in the list."""
    cdef header_t* header = section.header
    cdef uint64_t group_off = header.doomed_off, next_off = group.next_doomed_off, n_recoveries = header.recoveries
    cdef int status = heap_check_block(section, group_off, 0)
    if status != OK:
        return CORRUPTED
    header.doomed_off = next_off
    name_block_gone(section)
    status = heap_end_block(section, group_off)
    if header.recoveries != n_recoveries and status == OK:   # which has found the group still there
        names_recount(section)
    return status


cdef int _empty_some(section_t* section) noexcept nogil:
    """Do a bounded part of the work, under the gate."""
    cdef header_t* header = section.header
    cdef uint32_t n_slots = SLOTS_A_HOLD, n_entries = ENTRIES_A_HOLD
    cdef uint64_t old_off, at, slot_off
    cdef group_t* group
    cdef int status = OK
    while status == OK and header.doomed_off != 0 and n_slots and n_entries:
        n_slots -= 1
        group = group_in(section, header.doomed_off)
        if group == NULL or names_of(section, header.doomed_off) != 0:       # the list is damaged: it is rebuilt
            n_entries -= 1
            status = heap_recover(section, NO_PARTICIPANT)
            continue
        old_off = table_old(section, group.table_off)
        at = old_off if old_off != 0 else group.table_off
        if at == 0:
            n_entries -= 1
            status = _free_group(section, group)
        elif group.cursor < table_capacity(section, at):
            slot_off = table_slot_off(at, group.cursor)
            if (<name_slot_t*>(section.base + slot_off)).entry_off > SLOT_REMOVED:
                n_entries = 0 if _takes_a_walk(section, slot_off) else n_entries - 1
                status = _remove_entry(section, at, slot_off)
            group.cursor += 1
        else:
            n_entries -= 1
            status = _end_table(section, group, old_off)
    return status


cdef int groups_empty(section_t* section, heap_wait_t wait, uint64_t n_holds, uint64_t* n_bytes) noexcept nogil:
    cdef uint64_t used_bytes
    cdef int status
    while section.header.doomed_off != 0:
        if n_holds == 0:
            return INTERRUPTED
        n_holds -= 1
        status = heap_enter_to_change(section, wait)
        if status != OK:
            return status
        used_bytes = section.header.used_bytes
        status = _empty_some(section)
        if section.header.used_bytes < used_bytes:
            n_bytes[0] += used_bytes - section.header.used_bytes
        heap_leave(section)
        if status != OK:
            return status
    return OK
