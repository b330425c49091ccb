# cython: language_level=3
"""Name tables: from a name to a number, in the section, safe against a kill at any instruction.

A table is a block of slots {hash, entry}, probed linearly; a name and its value form an entry, a block of its
own.  The section has two: the directory (value: payload offset of what has the name) and the registry of
types (value: type id; the entry's data is the type's description).

Everything happens under the heap gate.  A slot shows an entry by one store, under an intent:

* insert: the entry, PENDING, becomes USED with the store; so does a value that was made for this name.
* remove: the store hides the entry; it and, if nothing else leads to it, the value are freed.
* grow: a new table, PENDING, is filled; the store into the table's anchor in the header swaps it for the old.

`filled` is an index: recovery counts again.  Names are at most 64 KiB; equal hashes are told apart by the bytes.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from shmem._atomics cimport load_acquire_u64, store_release_u64
from shmem._heap cimport (HEAP_PENDING, HEAP_ZERO, heap_abandon, heap_allocate, heap_check_block, heap_commit, heap_enter,
                          heap_leave, heap_release)
from shmem._intents cimport (INTENT_FIRST_TYPE_SHIFT, INTENT_SECOND_TYPE_SHIFT, INTENT_SWAP_SLOT, intent_begin, intent_end,
                             my_intent)
from shmem._layout cimport (ARRAY_UNNAMED, SLOT_EMPTY, SLOT_REMOVED, STATE_USED, TYPE_ARRAY, TYPE_FIRST_USER,
                            TYPE_NAME_ENTRY, TYPE_NAME_TABLE, array_t, block_to_payload, entry_data, entry_name,
                            name_entry_t, name_slot_t, name_table_t, payload_bytes, payload_to_block, table_slots, tag_size,
                            tag_state, tag_type)
from shmem._recovery cimport array_is_pinned
from shmem._section cimport block_at, section_t
from shmem._status cimport CORRUPTED, NAME_EXISTS, NOT_FOUND, OK

cdef enum:
    FIRST_CAPACITY = 32


cdef name_t name_make(const char* text, uint32_t n_bytes) noexcept nogil:
    """A name and its hash: FNV-1a, then the finalizer of MurmurHash3."""
    cdef name_t name
    cdef uint64_t hash_ = <uint64_t>0xcbf29ce484222325U
    cdef uint32_t i
    for i in range(n_bytes):
        hash_ = (hash_ ^ <unsigned char>text[i]) * <uint64_t>0x100000001b3U
    hash_ = (hash_ ^ hash_ >> 33) * <uint64_t>0xff51afd7ed558ccdU
    name.text = text
    name.n_bytes = n_bytes
    name.hash = hash_ ^ hash_ >> 33
    return name


# -- looking --------------------------------------------------------------------------------------------

cdef uint64_t _used_room(section_t* section, uint64_t payload_off, uint64_t type_id) noexcept nogil:
    """Payload bytes of a used block of this type, 0 when there is none at that offset."""
    cdef uint64_t off, tag
    if payload_off & 15 or payload_off < block_to_payload(section.heap_start) or payload_off >= section.header.top:
        return 0
    off = payload_to_block(payload_off)
    tag = load_acquire_u64(&block_at(section, off).tag)
    if tag_state(tag) != STATE_USED or tag_type(tag) != type_id or tag_size(tag) > section.header.top - off:
        return 0
    return payload_bytes(tag_size(tag))


cdef uint64_t table_capacity(section_t* section, uint64_t table_off) noexcept nogil:
    """How many slots; 0 when there is no table, or none that could be right."""
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
    """The entry that a slot shows; NULL when it is empty, or shows none that could be right."""
    cdef uint64_t entry_off = (<name_slot_t*>(section.base + slot_off)).entry_off, room
    cdef name_entry_t* entry
    if entry_off == SLOT_EMPTY or entry_off == SLOT_REMOVED:
        return NULL
    room = _used_room(section, entry_off, TYPE_NAME_ENTRY)
    entry = <name_entry_t*>(section.base + entry_off)
    if room < sizeof(name_entry_t) or <uint64_t>entry.name_bytes + entry.data_bytes > room - sizeof(name_entry_t):
        return NULL
    return entry


cdef int table_find(section_t* section, uint64_t table_off, const name_t* name, uint64_t* slot_off) noexcept nogil:
    """The slot that shows the name: 0, NOT_FOUND (with the slot to use, or 0), or CORRUPTED."""
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


cdef bint table_has_value(section_t* section, uint64_t table_off, uint64_t value, uint64_t but_slot_off) noexcept nogil:
    """Whether a name other than the one in `but_slot_off` has this value."""
    cdef uint64_t i, at
    cdef name_entry_t* entry
    for i in range(table_capacity(section, table_off)):
        at = table_slot_off(table_off, i)
        entry = table_entry(section, at)
        if entry != NULL and entry.value == value and at != but_slot_off:
            return True
    return False


# -- changing -------------------------------------------------------------------------------------------

cdef uint64_t _count_live(section_t* section, uint64_t table_off) noexcept nogil:
    cdef uint64_t i, n_live = 0
    for i in range(table_capacity(section, table_off)):
        n_live += table_entry(section, table_slot_off(table_off, i)) != NULL
    return n_live


cdef void _copy_slots(section_t* section, uint64_t from_off, name_table_t* table) noexcept nogil:
    """Fill a new table, which nobody sees yet, with what an old one shows."""
    cdef name_slot_t* slots = table_slots(table)
    cdef name_slot_t* slot
    cdef uint64_t i, j
    for i in range(table_capacity(section, from_off)):
        if table_entry(section, table_slot_off(from_off, i)) == NULL:
            continue
        slot = <name_slot_t*>(section.base + table_slot_off(from_off, i))
        j = slot.hash & (table.capacity - 1)
        while slots[j].entry_off != SLOT_EMPTY:
            j = (j + 1) & (table.capacity - 1)
        slots[j] = slot[0]
        table.filled += 1


cdef int _swap_table(section_t* section, uint64_t* anchor, uint64_t new_off) noexcept nogil:
    """The anchor leads to the new table by one store; the old one is freed.  The gate is mine."""
    cdef uint64_t old_off = anchor[0]
    cdef int status = OK
    _copy_slots(section, old_off, <name_table_t*>(section.base + new_off))
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_TABLE << INTENT_FIRST_TYPE_SHIFT,
                 <char*>anchor - section.base, new_off, new_off, 0, old_off, 0)
    store_release_u64(anchor, new_off)                                                              # commit
    heap_commit(section, new_off, TYPE_NAME_TABLE)
    if old_off != 0:
        status = heap_release(section, old_off)
    intent_end(my_intent(section))
    return status


cdef int _grow(section_t* section, uint64_t* anchor) noexcept nogil:
    """Make room for one more name."""
    cdef uint64_t capacity = FIRST_CAPACITY, new_off = 0, n_live
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    n_live = _count_live(section, anchor[0])
    heap_leave(section)
    while capacity < 4 * (n_live + 1):
        capacity *= 2
    status = heap_allocate(section, sizeof(name_table_t) + capacity * sizeof(name_slot_t), 16, 0, HEAP_ZERO | HEAP_PENDING, &new_off)
    if status != OK:
        return status
    (<name_table_t*>(section.base + new_off)).capacity = capacity
    status = heap_enter(section, True)
    if status == OK and _count_live(section, anchor[0]) * 4 > capacity * 3:       # others were faster: try again
        heap_leave(section)
        heap_abandon(section, new_off)
        return OK
    if status == OK:
        status = _swap_table(section, anchor, new_off)
        heap_leave(section)
    return status


cdef bint _must_grow(section_t* section, uint64_t table_off) noexcept nogil:
    cdef uint64_t capacity = table_capacity(section, table_off)
    return capacity == 0 or ((<name_table_t*>(section.base + table_off)).filled + 1) * 4 > capacity * 3


cdef int _show_entry(section_t* section, uint64_t slot_off, const name_t* name, uint64_t entry_off, uint64_t pending_off,
                     uint32_t pending_type) noexcept nogil:
    """The one store that makes a name, and with it a pending value, exist.  The gate is mine."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef bint was_empty = slot.entry_off == SLOT_EMPTY
    slot.hash = name.hash
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT
                 | <uint64_t>pending_type << INTENT_SECOND_TYPE_SHIFT, <char*>&slot.entry_off - section.base, entry_off,
                 entry_off, pending_off, 0, 0)
    store_release_u64(&slot.entry_off, entry_off)                                                   # commit
    heap_commit(section, entry_off, TYPE_NAME_ENTRY)
    if pending_off != 0:
        heap_commit(section, pending_off, pending_type)
    intent_end(my_intent(section))
    return was_empty


cdef uint64_t _next_number(section_t* section, uint64_t table_off) noexcept nogil:
    """One more than the largest value; the first user type in an empty table."""
    cdef uint64_t i, last = TYPE_FIRST_USER - 1
    cdef name_entry_t* entry
    for i in range(table_capacity(section, table_off)):
        entry = table_entry(section, table_slot_off(table_off, i))
        if entry != NULL and entry.value > last:
            last = entry.value
    return last + 1


cdef int _insert_once(section_t* section, uint64_t* anchor, const name_t* name, uint64_t value, uint64_t entry_off,
                      uint64_t pending_off, uint32_t pending_type, uint64_t serial) noexcept nogil:
    """One attempt under the gate: NOT_FOUND when the table must grow first."""
    cdef uint64_t slot_off = 0
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    if section.header.broken:
        status = CORRUPTED
    elif _must_grow(section, anchor[0]):
        status = NOT_FOUND if anchor[0] == 0 or table_capacity(section, anchor[0]) != 0 else CORRUPTED
    else:
        status = table_find(section, anchor[0], name, &slot_off)
        if status == OK:
            status = NAME_EXISTS
        elif status == NOT_FOUND:
            status = heap_check_block(section, value, serial) if serial != 0 else OK       # linked: still there?
            if value == 0:
                (<name_entry_t*>(section.base + entry_off)).value = _next_number(section, anchor[0])
            if status == OK and _show_entry(section, slot_off, name, entry_off, pending_off, pending_type):
                (<name_table_t*>(section.base + anchor[0])).filled += 1
            if status == OK and serial != 0 and tag_type(block_at(section, payload_to_block(value)).tag) == TYPE_ARRAY:
                (<array_t*>(section.base + value)).flags &= ~<uint32_t>ARRAY_UNNAMED       # it has a name again
    heap_leave(section)
    return status


cdef int table_insert(section_t* section, uint64_t* anchor, const name_t* name, const void* data, uint32_t data_bytes,
                      uint64_t value, uint64_t pending_off, uint32_t pending_type, uint64_t serial) noexcept nogil:
    """Give a name to a value: 0, NAME_EXISTS, NO_MEMORY, ...

    Either the value is my PENDING block `pending_off`, which becomes USED with the same store (on error it stays
    PENDING); or a used block with this `serial`, which is checked; or 0: then it is the next number.
    """
    cdef uint64_t entry_off = 0
    cdef name_entry_t* entry
    cdef int status = heap_allocate(section, sizeof(name_entry_t) + <uint64_t>name.n_bytes + data_bytes, 16, 0, HEAP_PENDING,
                                    &entry_off)
    if status != OK:
        return status
    entry = <name_entry_t*>(section.base + entry_off)
    entry.value = value
    entry.name_bytes = name.n_bytes
    entry.data_bytes = data_bytes
    memcpy(entry_name(entry), name.text, name.n_bytes)
    memcpy(entry_data(entry), data, data_bytes)
    while True:
        status = _insert_once(section, anchor, name, value, entry_off, pending_off, pending_type, serial)
        if status != NOT_FOUND:
            break
        status = _grow(section, anchor)
        if status != OK:
            break
    if status != OK:
        heap_abandon(section, entry_off)
    return status


cdef int _hide_entry(section_t* section, uint64_t* anchor, uint64_t slot_off) noexcept nogil:
    """The one store that removes a name; then its entry and, if nothing else leads there, its value go."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef uint64_t entry_off = slot.entry_off, value = table_entry(section, slot_off).value, drop_off = 0
    cdef int status
    if (heap_check_block(section, value, 0) == OK and section.header.root_off != value
            and not table_has_value(section, anchor[0], value, slot_off)):
        drop_off = value
    intent_begin(my_intent(section), INTENT_SWAP_SLOT, <char*>&slot.entry_off - section.base, SLOT_REMOVED,
                 0, 0, entry_off, drop_off)
    store_release_u64(&slot.entry_off, SLOT_REMOVED)                                                # commit
    status = heap_release(section, entry_off)
    if drop_off != 0 and status == OK:
        if tag_type(block_at(section, payload_to_block(drop_off)).tag) == TYPE_ARRAY and array_is_pinned(section, drop_off, False, True):
            (<array_t*>(section.base + drop_off)).flags |= ARRAY_UNNAMED
        else:
            status = heap_release(section, drop_off)
    intent_end(my_intent(section))
    return status


cdef int table_remove(section_t* section, uint64_t* anchor, const name_t* name) noexcept nogil:
    """Remove a name of the directory: 0, NOT_FOUND, CORRUPTED."""
    cdef uint64_t slot_off = 0
    cdef int status = heap_enter(section, True)
    if status != OK:
        return status
    status = CORRUPTED if section.header.broken else table_find(section, anchor[0], name, &slot_off)
    if status == OK:
        status = _hide_entry(section, anchor, slot_off)
    heap_leave(section)
    return status
