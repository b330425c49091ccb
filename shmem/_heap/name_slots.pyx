# cython: language_level=3
"""Lookup in a name table: a block of slots {hash, entry}, probed linearly; an entry is a block of its own.

While a table grows, its entries move from an old table, at `old_off`, to the new one: see `name_growth.pyx`.  A name is then looked up in
the new table first, then in the old one.

All calls are made under the heap gate.  Every offset is checked before it is followed.  A damaged
table is reported as CORRUPTED or appears empty, and never leads outside the mapping.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from shmem._base.accessors cimport entry_name, payload_bytes, table_slots, tag_size, tag_type
from shmem._base.bounds cimport used_tag
from shmem._base.layout cimport (
    SLOT_EMPTY, SLOT_REMOVED, TYPE_NAME_ENTRY, TYPE_NAME_TABLE, hash_name, name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport section_t
from shmem._base.status cimport CORRUPTED, NOT_FOUND, OK


cdef name_t name_make(const char* text, uint32_t n_bytes) noexcept nogil:
    """Return a name that is in no group."""
    cdef name_t name
    name.text = text
    name.n_bytes = n_bytes
    name.path_bytes = 0
    name.path = NULL
    name.hash = hash_name(text, n_bytes)
    return name


cdef uint64_t _used_room(section_t* section, uint64_t payload_off, uint64_t type_id) noexcept nogil:
    """Return the payload bytes of a used block of this type, 0 if there is none at that offset."""
    cdef uint64_t tag = used_tag(section, payload_off)
    return payload_bytes(tag_size(tag)) if tag != 0 and tag_type(tag) == type_id else 0


cdef uint64_t table_capacity(section_t* section, uint64_t table_off) noexcept nogil:
    """Return the number of slots; 0 if there is no table, or its capacity is invalid."""
    cdef uint64_t room, capacity
    if table_off == 0:
        return 0
    room = _used_room(section, table_off, TYPE_NAME_TABLE)
    if room < sizeof(name_table_t):
        return 0
    capacity = (<name_table_t*>(section.base + table_off)).capacity
    if capacity & (capacity - 1) or capacity > (room - sizeof(name_table_t)) // sizeof(name_slot_t):
        return 0
    return capacity


cdef uint64_t table_slot_off(uint64_t table_off, uint64_t i) noexcept nogil:
    return table_off + sizeof(name_table_t) + i * sizeof(name_slot_t)


cdef name_entry_t* table_entry(section_t* section, uint64_t slot_off) noexcept nogil:
    """Return the entry that a slot refers to; NULL if the slot is empty, or the entry invalid."""
    cdef uint64_t entry_off = (<name_slot_t*>(section.base + slot_off)).entry_off, room
    cdef name_entry_t* entry
    if entry_off == SLOT_EMPTY or entry_off == SLOT_REMOVED:
        return NULL
    room = _used_room(section, entry_off, TYPE_NAME_ENTRY)
    if room < sizeof(name_entry_t):
        return NULL
    entry = <name_entry_t*>(section.base + entry_off)
    if entry.name_bytes == 0 or <uint64_t>entry.name_bytes + entry.data_bytes > room - sizeof(name_entry_t):
        return NULL
    return entry


cdef int table_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off) noexcept nogil:
    """Find the slot that refers to the name: 0, NOT_FOUND (with the slot to use, or 0), or CORRUPTED."""
    cdef uint64_t capacity = table_capacity(section, table_off), i, n_left, free_off = 0, at
    cdef name_slot_t* slot
    cdef name_entry_t* entry
    slot_off[0] = 0
    if capacity == 0:
        return NOT_FOUND if table_off == 0 else CORRUPTED
    i = name.hash & (capacity - 1)
    n_left = capacity
    while n_left:
        at = table_slot_off(table_off, i)
        slot = <name_slot_t*>(section.base + at)
        if slot.entry_off == SLOT_EMPTY or slot.entry_off == SLOT_REMOVED:
            if free_off == 0:
                free_off = at
            if slot.entry_off == SLOT_EMPTY:
                break
        elif slot.hash == name.hash:
            entry = table_entry(section, at)
            if entry == NULL:
                return CORRUPTED
            if entry.name_bytes == name.n_bytes and memcmp(entry_name(entry), name.text, name.n_bytes) == 0:
                slot_off[0] = at
                return OK
        i = (i + 1) & (capacity - 1)
        n_left -= 1
    slot_off[0] = free_off
    return NOT_FOUND


cdef uint64_t table_old(section_t* section, uint64_t table_off) noexcept nogil:
    """Return the table whose entries this one takes over; 0 if there is none."""
    return 0 if table_capacity(section, table_off) == 0 else (<name_table_t*>(section.base + table_off)).old_off


cdef int names_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off, uint64_t* found_off) noexcept nogil:
    """Find the slot of a name in a table, or in the old table whose entries it takes over: as `table_find`, with the table of the slot."""
    cdef uint64_t old_off = table_old(section, table_off), free_off
    cdef int status = table_find(section, table_off, name, slot_off)
    found_off[0] = table_off
    if status != NOT_FOUND or old_off == 0:
        return status
    free_off = slot_off[0]
    status = table_find(section, old_off, name, slot_off)
    if status == OK:
        found_off[0] = old_off
    else:
        slot_off[0] = free_off               # a new name goes into the new table
    return status


cdef bint table_shows(section_t* section, uint64_t table_off, uint64_t hash_, uint64_t entry_off) noexcept nogil:
    """Return whether a table shows this very entry, whose name has this hash."""
    cdef uint64_t capacity = table_capacity(section, table_off), n_left = capacity, i = hash_ & (capacity - 1), found
    while n_left:
        found = table_slots(<name_table_t*>(section.base + table_off))[i].entry_off
        if found == SLOT_EMPTY or found == entry_off:
            return found == entry_off
        i = (i + 1) & (capacity - 1)
        n_left -= 1
    return False
