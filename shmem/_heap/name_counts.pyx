# cython: language_level=3
"""How many names of the directory lead to a block: see `name_counts.pxd`."""

from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport (
    block_to_payload, payload_bytes, payload_to_block, serial_names, table_slots, tag_size, tag_state, tag_type)
from shmem._base.bounds cimport block_is_stale, heap_top, used_tag
from shmem._base.layout cimport (
    NAMES_MANY, NAMES_SHIFT, SLOT_EMPTY, SLOT_REMOVED, STATE_USED, TYPE_ARRAY, TYPE_GROUP, TYPE_LAST_USER, TYPE_NAME_ENTRY, array_t,
    block_t, group_t, header_t, name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport block_at, block_step, section_t
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.chain cimport tag_is_plausible
from shmem._heap.name_paths cimport group_in
from shmem._heap.name_slots cimport table_capacity, table_entry, table_old, table_shows, table_slot_off

cdef uint64_t IMPOSSIBLE_VERSION = <uint64_t>1 << 63


cdef inline array_t* _array(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the array header of a used block, or NULL if the block is not an array."""
    cdef uint64_t tag = block_at(section, payload_to_block(payload_off)).tag
    if tag_type(tag) != TYPE_ARRAY or payload_bytes(tag_size(tag)) < sizeof(array_t):
        return NULL
    return <array_t*>(section.base + payload_off)


cdef void _set_names(section_t* section, uint64_t payload_off, uint64_t n_names) noexcept nogil:
    cdef array_t* array = _array(section, payload_off)
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    if array != NULL:
        array.n_names = <uint32_t>n_names
    else:
        if n_names > NAMES_MANY:
            n_names = NAMES_MANY
        block.serial = block.serial & ~(NAMES_MANY << NAMES_SHIFT) | n_names << NAMES_SHIFT


cdef uint32_t names_of(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef array_t* array = _array(section, payload_off)
    if array != NULL:
        return array.n_names
    return <uint32_t>serial_names(block_at(section, payload_to_block(payload_off)).serial)


cdef void names_add(section_t* section, uint64_t payload_off) noexcept nogil:
    block_set_gated(block_at(section, payload_to_block(payload_off)))
    _set_names(section, payload_off, <uint64_t>names_of(section, payload_off) + 1)


cdef uint64_t _search(section_t* section, uint64_t payload_off) noexcept nogil:
    """Count the entries that lead to a block."""
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag, n_found = 0
    cdef name_entry_t* entry
    while off < top:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return NAMES_MANY + 1        # damaged: the value stays
        if tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_NAME_ENTRY and payload_bytes(tag_size(tag)) >= sizeof(name_entry_t):
            entry = <name_entry_t*>(section.base + block_to_payload(off))
            n_found += entry.value == payload_off and entry_leads_to_block(section, entry)
        off = block_step(section, off, tag_size(tag))
    return n_found


cdef void names_drop(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t n_names = names_of(section, payload_off)
    if _array(section, payload_off) == NULL and n_names == NAMES_MANY:
        n_names = _search(section, payload_off)
    if n_names:
        n_names -= 1
    _set_names(section, payload_off, n_names)


cdef bint entry_leads_to_block(section_t* section, const name_entry_t* entry) noexcept nogil:
    return (used_tag(section, entry.value) != 0
            and not block_is_stale(block_at(section, payload_to_block(entry.value)), entry.serial))


# -- counting anew ----------------------------------------------------------------------------------------

cdef void _recount_table(section_t* section, uint64_t table_off) noexcept nogil:
    """Count the slots of a table that are not empty, and those that show an entry: `filled` and `live` are indexes too.

    So is `change_count`, which is at least the version of each entry.
    """
    cdef name_table_t* table
    cdef name_entry_t* entry
    cdef uint64_t i, n_filled = 0, n_live = 0, capacity = table_capacity(section, table_off)
    if capacity == 0:
        return
    table = <name_table_t*>(section.base + table_off)
    for i in range(capacity):
        n_filled += table_slots(table)[i].entry_off != SLOT_EMPTY
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL:
            n_live += 1
            if entry.version >= IMPOSSIBLE_VERSION:
                entry.version = 0        # it was overwritten, and the count must not wrap round
            if entry.version > section.header.change_count:
                store_release_u64(&section.header.change_count, entry.version)
    table.filled = n_filled
    table.live = n_live
    section.header.name_blocks += 1 + n_live


cdef void _finish_move(section_t* section, uint64_t table_off) noexcept nogil:
    """An entry that a killed process was moving stays in the new table only."""
    cdef uint64_t old_off = table_old(section, table_off), i
    cdef name_slot_t* slot
    if old_off == 0 or old_off == table_off:
        return
    for i in range(table_capacity(section, old_off)):
        slot = <name_slot_t*>(section.base + table_slot_off(old_off, i))
        if slot.entry_off > SLOT_REMOVED and table_shows(section, table_off, slot.hash, slot.entry_off):
            store_release_u64(&slot.entry_off, SLOT_REMOVED)


cdef void _add_names(section_t* section, uint64_t table_off) noexcept nogil:
    """Count the names of a table for the blocks that they lead to."""
    cdef uint64_t i
    cdef name_entry_t* entry
    for i in range(table_capacity(section, table_off)):
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL and entry_leads_to_block(section, entry):
            names_add(section, entry.value)


cdef uint64_t _largest_number(section_t* section, uint64_t table_off) noexcept nogil:
    cdef uint64_t i, last = 0
    cdef name_entry_t* entry
    for i in range(table_capacity(section, table_off)):
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL and entry.value > last:
            last = entry.value
    return last


cdef void _recount_types(section_t* section) noexcept nogil:
    cdef uint64_t types_off = section.header.types_off, last = _largest_number(section, types_off)
    cdef uint64_t in_old = _largest_number(section, table_old(section, types_off))
    if in_old > last:
        last = in_old
    if section.header.types_version < last or section.header.types_version > TYPE_LAST_USER:
        section.header.types_version = last


cdef void _recount_names(section_t* section, uint64_t table_off, bint lead_to_blocks) noexcept nogil:
    """Count the slots, blocks and names of a table, and of the one whose entries it takes over."""
    cdef uint64_t old_off
    _finish_move(section, table_off)
    old_off = table_old(section, table_off)
    _recount_table(section, table_off)
    _recount_table(section, old_off)
    if lead_to_blocks:
        _add_names(section, table_off)
        _add_names(section, old_off)


cdef uint64_t group_next(section_t* section, uint64_t* off) noexcept nogil:
    cdef uint64_t top = heap_top(section), tag, payload_off
    while off[0] < top:
        tag = block_at(section, off[0]).tag
        if not tag_is_plausible(off[0], tag, top):
            return 0                     # damaged meanwhile: the sweep reports it
        payload_off = block_to_payload(off[0])
        off[0] = block_step(section, off[0], tag_size(tag))
        if group_in(section, payload_off) != NULL:
            return payload_off
    return 0


cdef void _recount_groups(section_t* section) noexcept nogil:
    cdef uint64_t off = section.heap_start, group_off = group_next(section, &off)
    while group_off != 0:
        section.header.name_blocks += 1
        _recount_names(section, group_in(section, group_off).table_off, True)
        group_off = group_next(section, &off)


cdef void _list_doomed(section_t* section) noexcept nogil:
    """List the groups to which no name leads.  All of them are emptied from the first slot on."""
    cdef uint64_t off = section.heap_start, group_off = group_next(section, &off)
    cdef group_t* group
    while group_off != 0:
        group = group_in(section, group_off)
        group.cursor = group.next_doomed_off = 0
        if names_of(section, group_off) == 0:
            group.next_doomed_off = section.header.doomed_off
            section.header.doomed_off = group_off
        group_off = group_next(section, &off)


cdef void names_recount(section_t* section) noexcept nogil:
    cdef header_t* header = section.header
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag
    cdef bint has_groups = False
    header.name_blocks = header.doomed_off = 0
    while off < top:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return                       # damaged meanwhile: the sweep reports it
        if tag_state(tag) == STATE_USED:
            _set_names(section, block_to_payload(off), 0)
            has_groups |= tag_type(tag) == TYPE_GROUP
        off = block_step(section, off, tag_size(tag))
    _recount_names(section, header.directory_off, True)
    _recount_names(section, header.types_off, False)
    _recount_names(section, header.attributes_off, False)
    if has_groups:
        _recount_groups(section)
        _list_doomed(section)
    _recount_types(section)


cdef void name_block_gone(section_t* section) noexcept nogil:
    if section.header.name_blocks:       # a damaged count must not wrap round
        section.header.name_blocks -= 1
