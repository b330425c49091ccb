# cython: language_level=3
"""How many names of the directory lead to a block: see `name_counts.pxd`."""

from libc.stdint cimport uint32_t, uint64_t

from shmem._base.bounds cimport block_is_stale, heap_top, used_tag
from shmem._base.layout cimport (
    NAMES_MANY, NAMES_SHIFT, SLOT_EMPTY, STATE_USED, TYPE_ARRAY, TYPE_NAME_TABLE, array_t, block_t, block_to_payload, name_entry_t,
    name_table_t, payload_bytes, payload_to_block, serial_names, table_slots, tag_size, tag_state, tag_type)
from shmem._base.section cimport block_at, block_step, section_t
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.chain cimport tag_is_plausible
from shmem._heap.name_slots cimport table_capacity, table_entry, table_slot_off


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
    """Count the entries of the directory that lead to a block."""
    cdef uint64_t i, n_found = 0, table_off = section.header.directory_off
    cdef name_entry_t* entry
    for i in range(table_capacity(section, table_off)):
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL and entry.value == payload_off and entry_leads_to_block(section, entry):
            n_found += 1
    return n_found


cdef void names_drop(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t n_names = names_of(section, payload_off)
    if _array(section, payload_off) == NULL and n_names == NAMES_MANY:
        n_names = _search(section, payload_off)
    elif n_names:
        n_names -= 1
    _set_names(section, payload_off, n_names)


cdef bint entry_leads_to_block(section_t* section, const name_entry_t* entry) noexcept nogil:
    return (used_tag(section, entry.value) != 0
            and not block_is_stale(block_at(section, payload_to_block(entry.value)), entry.serial))


# -- counting anew ----------------------------------------------------------------------------------------

cdef void _recount_table(section_t* section, uint64_t table_off) noexcept nogil:
    """Count the slots of a table that are not empty, and those that show an entry: `filled` and `live` are indexes too."""
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    cdef uint64_t i, n_filled = 0, n_live = 0, capacity = table_capacity(section, table_off)
    if capacity == 0:
        return
    for i in range(capacity):
        n_filled += table_slots(table)[i].entry_off != SLOT_EMPTY
        n_live += table_entry(section, table_slot_off(table_off, i)) != NULL
    table.filled = n_filled
    table.live = n_live


cdef void names_recount(section_t* section) noexcept nogil:
    cdef uint64_t off = section.heap_start, top = heap_top(section), i, tag, table_off
    cdef name_entry_t* entry
    while off < top:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return                       # damaged meanwhile: the sweep reports it
        if tag_state(tag) == STATE_USED:
            _set_names(section, block_to_payload(off), 0)
            if tag_type(tag) == TYPE_NAME_TABLE:
                _recount_table(section, block_to_payload(off))
        off = block_step(section, off, tag_size(tag))
    table_off = section.header.directory_off
    for i in range(table_capacity(section, table_off)):
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL and entry_leads_to_block(section, entry):
            names_add(section, entry.value)
