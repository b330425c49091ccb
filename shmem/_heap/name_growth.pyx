# cython: language_level=3
"""Growth of a name table in small steps, none of which holds the heap gate for long.

A new table is made outside of the gate.  One store into the anchor, under an intent, shows it; its `old_off` leads to the table before.
From then on each insertion and removal first moves up to `SLOTS_A_CHANGE` slots of the old table, and the last such change frees it.
Three stores move an entry, in this order:

1. the new table shows it,
2. its slot in the old table becomes REMOVED,
3. `cursor` counts the slot.

A kill after the first store leaves an entry that both tables show.  Recovery removes it from the old one.  `filled` and `live` are indexes,
which recovery counts again (`name_counts.pyx`).  A table is made so large that all slots of the old one have moved before it is full
itself: there are never more than two tables.  The model is `tests/models/name_growth.pml`.
"""

from libc.stdint cimport uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport table_slots
from shmem._base.layout cimport (
    INTENT_FIRST_TYPE_SHIFT, INTENT_SWAP_SLOT, SLOT_EMPTY, SLOT_REMOVED, TYPE_NAME_TABLE, name_slot_t, name_table_t)
from shmem._base.section cimport section_t
from shmem._base.status cimport CORRUPTED, OK
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, HEAP_ZERO, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_commit, heap_enter_to_change, heap_leave,
    heap_release, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_end, my_intent
from shmem._heap.name_counts cimport name_block_gone
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_t, table_capacity, table_entry, table_old, table_slot_off

cdef enum:
    FIRST_CAPACITY = 32
    SLOTS_A_CHANGE = 16                  # of the old table, which are moved with each change


cdef inline name_table_t* _table(section_t* section, uint64_t table_off) noexcept nogil:
    return <name_table_t*>(section.base + table_off)


cdef bint table_must_grow(section_t* section, uint64_t table_off) noexcept nogil:
    cdef uint64_t capacity = table_capacity(section, table_off), filled
    if capacity == 0:
        return True
    filled = _table(section, table_off).filled
    return filled >= capacity or (filled + 1) * 4 > capacity * 3         # a damaged count must not wrap round


# -- moving -----------------------------------------------------------------------------------------------

cdef int _move_slot(section_t* section, uint64_t old_off, uint64_t new_off, uint64_t slot_off) noexcept nogil:
    """Move the entry of a slot, if it has one, to the new table."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef name_slot_t* slots = table_slots(_table(section, new_off))
    cdef uint64_t capacity = table_capacity(section, new_off), n_left = capacity, i = slot.hash & (capacity - 1)
    if table_entry(section, slot_off) == NULL:
        return OK
    while n_left and slots[i].entry_off != SLOT_EMPTY and slots[i].entry_off != SLOT_REMOVED:
        i = (i + 1) & (capacity - 1)
        n_left -= 1
    if n_left == 0:
        return CORRUPTED                 # a table is made large enough
    if slots[i].entry_off == SLOT_EMPTY:
        _table(section, new_off).filled += 1
    _table(section, new_off).live += 1
    slots[i].hash = slot.hash
    store_release_u64(&slots[i].entry_off, slot.entry_off)
    store_release_u64(&slot.entry_off, SLOT_REMOVED)                 # from here on only the new table shows it
    if _table(section, old_off).live:
        _table(section, old_off).live -= 1
    return OK


cdef int names_drop_table(section_t* section, uint64_t* word) noexcept nogil:
    cdef uint64_t table_off = word[0]
    cdef int status
    intent_begin(my_intent(section), INTENT_SWAP_SLOT, <char*>word - section.base, 0, 0, 0, table_off, 0)
    store_release_u64(word, 0)                                                                      # commit
    name_block_gone(section)
    status = heap_release(section, table_off)
    intent_end(my_intent(section))
    return status


cdef int names_move_some(section_t* section, uint64_t table_off) noexcept nogil:
    cdef uint64_t old_off = table_old(section, table_off), capacity, n_left = SLOTS_A_CHANGE
    cdef name_table_t* table
    cdef int status
    if old_off == 0:
        return OK
    table = _table(section, table_off)
    capacity = table_capacity(section, old_off)
    if capacity == 0 or old_off == table_off:
        return CORRUPTED
    while n_left and table.cursor < capacity:
        n_left -= 1
        status = _move_slot(section, old_off, table_off, table_slot_off(old_off, table.cursor))
        if status != OK:
            return status
        store_release_u64(&table.cursor, table.cursor + 1)
    return names_drop_table(section, &table.old_off) if table.cursor >= capacity else OK


# -- growing ----------------------------------------------------------------------------------------------

cdef uint64_t _capacity_after(section_t* section, uint64_t table_off) noexcept nogil:
    """Return the capacity of the table that takes over the entries of this one.

    It has room for these entries, for those that are inserted until all have moved, and then for as many again.
    """
    cdef uint64_t old_capacity = table_capacity(section, table_off), capacity = FIRST_CAPACITY, n_live = 0
    if old_capacity:
        n_live = _table(section, table_off).live
        if n_live > old_capacity:            # a damaged count
            n_live = old_capacity
    while capacity < 4 * (n_live + 1) or capacity * 3 < 4 * (n_live + old_capacity // SLOTS_A_CHANGE + 2):
        capacity *= 2
    return capacity


cdef void _show_table(section_t* section, uint64_t* anchor, uint64_t new_off) noexcept nogil:
    """Set the anchor to the new table by one store.  The caller owns the gate."""
    _table(section, new_off).old_off = anchor[0]
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_TABLE << INTENT_FIRST_TYPE_SHIFT,
                 <char*>anchor - section.base, new_off, new_off, 0, 0, 0)
    store_release_u64(anchor, new_off)                                                              # commit
    heap_commit(section, new_off, TYPE_NAME_TABLE)
    section.header.name_blocks += 1
    intent_end(my_intent(section))


cdef int _needed_capacity(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* capacity, heap_wait_t wait) noexcept nogil:
    """Return, in `capacity`, how many slots the larger table needs; 0 if the old one has to be emptied first, some of which was done."""
    cdef uint64_t* found = NULL
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = names_anchor(section, anchor, name, &found)
    if status == OK and table_old(section, found[0]) != 0:       # its size was damaged: the old table must go before it is replaced
        status = names_move_some(section, found[0])
    elif status == OK:
        capacity[0] = _capacity_after(section, found[0])
    heap_leave(section)
    return status


cdef int _show_if_needed(section_t* section, uint64_t* anchor, const name_t* name, uint64_t new_off, bint* is_shown,
                         heap_wait_t wait) noexcept nogil:
    """Show the new table, unless another process was faster, or it has become too small."""
    cdef uint64_t* found = NULL
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = names_anchor(section, anchor, name, &found)
    if (status == OK and table_must_grow(section, found[0]) and table_old(section, found[0]) == 0
            and _capacity_after(section, found[0]) <= _table(section, new_off).capacity):
        _show_table(section, found, new_off)
        is_shown[0] = True
    heap_leave(section)
    return status


cdef int names_grow(section_t* section, uint64_t* anchor, const name_t* name, heap_wait_t wait) noexcept nogil:
    """Make room for one more name; OK also if another process was faster, so the caller tries again."""
    cdef uint64_t capacity = 0, new_off = 0
    cdef bint is_shown = False
    cdef int status = _needed_capacity(section, anchor, name, &capacity, wait)
    if status != OK or capacity == 0:
        return status
    status = heap_allocate(section, sizeof(name_table_t) + capacity * sizeof(name_slot_t), 16, 0,
                           HEAP_ZERO | HEAP_PENDING | (HEAP_STOP if wait == WAIT_A_SLICE else 0), &new_off)
    if status != OK:
        return status
    _table(section, new_off).capacity = capacity
    status = _show_if_needed(section, anchor, name, new_off, &is_shown, wait)
    if not is_shown:
        heap_abandon(section, new_off)
    return status
