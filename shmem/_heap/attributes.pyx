# cython: language_level=3
"""Attributes of blocks and of the section, in a third name table, at `header.attributes_off`.

The table has one entry for each block that has attributes.  The entry's name is the block's payload offset and serial, of 8 bytes each, or
zeros for the section.  Its data are all attributes of the block, encoded.  An entry is never changed: each change replaces it by a new
one, if it is still the one that was read.  The serial of the entry's own block, which no other block has, tells that.

A change is found by a name of the directory, under the same gate as it is made.  So it belongs to what the name leads to at that moment,
also if an array has moved meanwhile.

States of an entry, and the store by which it leaves each.  An entry is used only while its target is a USED block with its serial::

    PENDING, filled     its slot shows it (intent SWAP_SLOT); if its maker is killed before, recovery frees it
    shown, in use       its slot shows another entry, or SLOT_REMOVED (intent SWAP_SLOT)
                        its target is freed, or is not made: the copy for a block that moves is shown before the store that moves the block
    shown, dangling     its slot shows SLOT_REMOVED: by the process that freed the target, under the same gate, or by recovery

A block that ends costs nothing more while the table is empty.  Otherwise one look into the table shows whether it had attributes; a small
block that is not gated has none.  Recovery looks at each entry after it knows which blocks it frees.  A target that a dead
maker left PENDING counts as freed.

An entry has at most 1 MiB of data, which is copied to the reader in pieces, with the gate free between them.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport entry_name, payload_to_block, tag_type, type_is_internal
from shmem._base.bounds cimport block_is_stale, damaged, used_tag
from shmem._base.layout cimport (
    INTENT_FIRST_TYPE_SHIFT, INTENT_SWAP_SLOT, SERIAL_MASK, SLOT_EMPTY, SLOT_REMOVED, TAG_GATED, TAG_SMALL, TYPE_GROUP, TYPE_NAME_ENTRY,
    name_entry_t, name_slot_t, name_table_t)
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CHANGED, CORRUPTED, INVALID_BLOCK, NOT_FOUND, OK, TABLE_FULL
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_check_block, heap_commit, heap_enter, heap_enter_to_change,
    heap_leave, heap_release, heap_wait_t)
from shmem._heap.intents cimport intent_begin, intent_end, my_intent
from shmem._heap.name_counts cimport name_block_gone
from shmem._heap.name_growth cimport names_grow, names_move_some, table_must_grow
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_make, name_t, names_find, table_capacity, table_entry, table_old

cdef enum:
    PIECE_BYTES = 65536                  # copied in one hold of the gate

ctypedef struct key_t:                   # the name of an entry
    uint64_t target_off
    uint64_t target_serial


cdef inline name_t _name(const key_t* key) noexcept nogil:
    return name_make(<const char*>key, sizeof(key_t))


cdef inline uint64_t _entry_serial(section_t* section, const name_entry_t* entry) noexcept nogil:
    return block_at(section, payload_to_block(<uint64_t>(<char*>entry - section.base))).serial & SERIAL_MASK


cdef bint attributes_have_key(const name_entry_t* entry, uint64_t* target_off, uint64_t* target_serial) noexcept nogil:
    cdef key_t key
    if entry.name_bytes != sizeof(key_t) or entry.serial != 0:
        return False
    memcpy(&key, entry_name(<name_entry_t*>entry), sizeof(key_t))
    target_off[0], target_serial[0] = key.target_off, key.target_serial
    return entry.value == key.target_off


cdef bint attributes_target_is_right(section_t* section, uint64_t target_off, uint64_t target_serial) noexcept nogil:
    if target_off == 0:
        return target_serial == 0
    return (used_tag(section, target_off) != 0 and target_serial & ~SERIAL_MASK == 0 and target_serial != 0
            and not block_is_stale(block_at(section, payload_to_block(target_off)), target_serial))


# -- finding --------------------------------------------------------------------------------------------

cdef int _find_target(section_t* section, attributes_call_t* call, key_t* key) noexcept nogil:
    """Find, under the gate, the block that a name leads to."""
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0, type_id
    cdef name_entry_t* entry
    cdef int status
    key.target_off = key.target_serial = 0
    if call.anchor == NULL:
        return OK
    status = names_anchor(section, call.anchor, &call.name, &found)
    if status == OK:
        status = names_find(section, found[0], &call.name, &slot_off, &table_off)
    if status != OK:
        return status
    entry = table_entry(section, slot_off)
    if damaged(entry == NULL or entry.serial & SERIAL_MASK == 0):
        return CORRUPTED
    key.target_off, key.target_serial = entry.value, entry.serial & SERIAL_MASK
    status = heap_check_block(section, key.target_off, key.target_serial)
    if status == OK:
        type_id = tag_type(block_at(section, payload_to_block(key.target_off)).tag)
        if type_is_internal(type_id) and type_id != TYPE_GROUP:
            status = INVALID_BLOCK
    return status


cdef int _find_entry(section_t* section, const key_t* key, uint64_t* slot_off, uint64_t* table_off,
                     name_entry_t** entry) noexcept nogil:
    """Find, under the gate, the attributes of a block: OK, NOT_FOUND with the slot to use, CORRUPTED."""
    cdef name_t name = _name(key)
    cdef int status = names_find(section, section.header.attributes_off, &name, slot_off, table_off)
    entry[0] = table_entry(section, slot_off[0]) if status == OK else NULL
    return CORRUPTED if status == OK and entry[0] == NULL else status


# -- reading --------------------------------------------------------------------------------------------

cdef int _copy_piece(section_t* section, const key_t* key, attributes_call_t* call) noexcept nogil:
    """Copy, under the gate, the next piece of the attributes of a block."""
    cdef uint64_t slot_off = 0, table_off = 0, n_bytes, data_off
    cdef name_entry_t* entry = NULL
    cdef int status = _find_entry(section, key, &slot_off, &table_off, &entry)
    if status == NOT_FOUND and call.position == 0:
        call.entry_serial = call.n_bytes = 0
        return OK
    if status != OK:
        return CHANGED if status == NOT_FOUND else status
    if call.position == 0:
        call.entry_serial, call.n_bytes = _entry_serial(section, entry), entry.data_bytes
    data_off = <uint64_t>(<char*>entry - section.base) + sizeof(name_entry_t) + sizeof(key_t)
    if call.entry_serial != _entry_serial(section, entry):
        return CHANGED
    if damaged(call.n_bytes > section.size_bytes - data_off):        # another process may have overwritten the length since it was checked
        return CORRUPTED
    n_bytes = call.n_bytes if call.n_bytes < call.room else call.room
    n_bytes = n_bytes - call.position if n_bytes > call.position else 0
    if n_bytes > PIECE_BYTES:
        n_bytes = PIECE_BYTES
    memcpy(call.copied + call.position, section.base + data_off + call.position, n_bytes)
    call.position += n_bytes
    return OK


cdef int attributes_read(section_t* section, attributes_call_t* call, heap_wait_t wait) noexcept nogil:
    cdef key_t key
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    status = _find_target(section, call, &key)
    if status == OK:
        status = _copy_piece(section, &key, call)
    heap_leave(section)
    return status


# -- writing --------------------------------------------------------------------------------------------

cdef int _swap(section_t* section, const key_t* key, uint64_t table_off, uint64_t slot_off, uint64_t entry_off) noexcept nogil:
    """Make the one store that shows a PENDING entry in a slot, or none with offset 0; then free the entry that it showed before."""
    cdef name_slot_t* slot = <name_slot_t*>(section.base + slot_off)
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    cdef uint64_t former_off = slot.entry_off, drop_off = former_off if former_off > SLOT_REMOVED else 0
    cdef uint64_t shown = entry_off if entry_off != 0 else SLOT_REMOVED
    cdef int status = OK
    if drop_off == 0:
        slot.hash = _name(key).hash
    intent_begin(my_intent(section), INTENT_SWAP_SLOT | <uint64_t>TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT,
                 <char*>&slot.entry_off - section.base, shown, entry_off, 0, drop_off, 0)
    store_release_u64(&slot.entry_off, shown)                                                       # commit
    if former_off == SLOT_EMPTY:
        table.filled += 1
    if entry_off != 0:
        heap_commit(section, entry_off, TYPE_NAME_ENTRY)
        table.live += drop_off == 0
        section.header.name_blocks += 1
    elif table.live:
        table.live -= 1
    if drop_off != 0:
        name_block_gone(section)
        status = heap_release(section, drop_off)
    intent_end(my_intent(section))
    return OK if entry_off != 0 else status          # an entry that is shown stays, also if the heap is broken


cdef void _set_key(section_t* section, uint64_t entry_off, const key_t* key) noexcept nogil:
    cdef name_entry_t* entry = <name_entry_t*>(section.base + entry_off)
    entry.value = key.target_off
    memcpy(section.base + entry_off + sizeof(name_entry_t), key, sizeof(key_t))


cdef int _make_entry(section_t* section, uint32_t data_bytes, heap_wait_t wait, uint64_t* entry_off) noexcept nogil:
    """Allocate a PENDING entry, of which key and data are missing yet."""
    cdef name_entry_t* entry
    cdef int status = heap_allocate(section, sizeof(name_entry_t) + sizeof(key_t) + <uint64_t>data_bytes, 16, 0,
                                    HEAP_PENDING | (HEAP_STOP if wait == WAIT_A_SLICE else 0), entry_off)
    if status == OK:
        entry = <name_entry_t*>(section.base + entry_off[0])
        entry.value = entry.serial = entry.version = 0
        entry.name_bytes, entry.data_bytes = sizeof(key_t), data_bytes
    return status


cdef int _grow(section_t* section, heap_wait_t wait) noexcept nogil:
    cdef name_t name = name_make(NULL, 0)
    return names_grow(section, &section.header.attributes_off, &name, wait)


cdef int _make_slot(section_t* section) noexcept nogil:
    """Prepare the table, under the gate, for one more entry: OK, TABLE_FULL if it must grow first, CORRUPTED."""
    cdef uint64_t table_off = section.header.attributes_off
    cdef int status = names_move_some(section, table_off)
    if status == OK and table_must_grow(section, table_off):
        return TABLE_FULL if table_off == 0 or table_capacity(section, table_off) != 0 else CORRUPTED
    return status


cdef int _write_shown(section_t* section, const key_t* key, uint64_t entry_serial, uint64_t entry_off) noexcept nogil:
    """Show, under the gate, an entry in the place of the one with this serial, or none with offset 0."""
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry = NULL
    cdef int status = _make_slot(section)
    if status == TABLE_FULL and entry_serial != 0:
        status = OK                                                     # the slot of the former entry will do
    if status == OK:
        status = _find_entry(section, key, &slot_off, &table_off, &entry)
    if status != OK and status != NOT_FOUND:
        return status
    if entry_serial != (_entry_serial(section, entry) if entry != NULL else 0):
        return CHANGED
    if entry == NULL and (slot_off == 0 or entry_off == 0):
        return OK if entry_off == 0 else CORRUPTED                      # without a free slot the counts are damaged
    if key.target_off != 0:
        block_set_gated(block_at(section, payload_to_block(key.target_off)))
    if entry_off != 0:
        _set_key(section, entry_off, key)
    return _swap(section, key, table_off, slot_off, entry_off)


cdef int _write_once(section_t* section, attributes_call_t* call, uint64_t* entry_off, heap_wait_t wait) noexcept nogil:
    """Make one attempt under the gate: TABLE_FULL if the table must grow first."""
    cdef key_t key
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = _find_target(section, call, &key)
    if status == OK:
        status = _write_shown(section, &key, call.entry_serial, entry_off[0])
        if status == OK:
            entry_off[0] = 0
    heap_leave(section)
    return status


cdef int attributes_write(section_t* section, attributes_call_t* call, heap_wait_t wait) noexcept nogil:
    cdef uint64_t entry_off = 0
    cdef int status = OK
    if call.data_bytes != 0:
        status = _make_entry(section, call.data_bytes, wait, &entry_off)
        if status != OK:
            return status
        memcpy(section.base + entry_off + sizeof(name_entry_t) + sizeof(key_t), call.data, call.data_bytes)
    while True:
        status = _write_once(section, call, &entry_off, wait)
        if status != TABLE_FULL:
            break
        status = _grow(section, wait)
        if status != OK:
            break
    if entry_off != 0:
        heap_abandon(section, entry_off)
    return status


# -- blocks that move -------------------------------------------------------------------------------------

cdef int _look_once(section_t* section, const key_t* key, uint64_t* entry_serial, uint64_t* n_bytes, heap_wait_t wait) noexcept nogil:
    """Find what the block that is to move has: OK, TABLE_FULL if the table must grow first."""
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry = NULL
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = _find_entry(section, key, &slot_off, &table_off, &entry)
    entry_serial[0] = n_bytes[0] = 0
    if status == OK:
        entry_serial[0], n_bytes[0] = _entry_serial(section, entry), entry.data_bytes
        status = _make_slot(section)
    heap_leave(section)
    return OK if status == NOT_FOUND else status


cdef int _copy_entry(section_t* section, const key_t* key, carried_t* carried, uint64_t n_bytes, heap_wait_t wait) noexcept nogil:
    """Copy the attributes of the block that is to move into the PENDING entry: OK, CHANGED."""
    cdef attributes_call_t call
    cdef int status = OK
    call.copied = section.base + carried.entry_off + sizeof(name_entry_t) + sizeof(key_t)
    call.room = call.n_bytes = n_bytes
    call.position = 0
    call.entry_serial = carried.copied_serial
    while status == OK and call.position < n_bytes:
        status = heap_enter_to_change(section, wait)
        if status != OK:
            break
        status = _copy_piece(section, key, &call)
        heap_leave(section)
        if status == OK and (call.entry_serial != carried.copied_serial or call.n_bytes != n_bytes):
            status = CHANGED
    return status


cdef int attributes_carry(section_t* section, carried_t* carried, heap_wait_t wait) noexcept nogil:
    cdef uint64_t n_bytes = 0
    cdef key_t key
    cdef int status = CHANGED
    key.target_off, key.target_serial = carried.old_off, carried.old_serial & SERIAL_MASK
    while status == CHANGED or status == TABLE_FULL:
        if carried.entry_off != 0:
            heap_abandon(section, carried.entry_off)
            carried.entry_off = carried.copied_serial = 0
        if section.header.attributes_off == 0:
            return OK
        status = _look_once(section, &key, &carried.copied_serial, &n_bytes, wait)
        if status == TABLE_FULL:
            status = _grow(section, wait)
            if status == OK:
                status = TABLE_FULL
        elif status == OK and carried.copied_serial != 0:
            status = _make_entry(section, <uint32_t>n_bytes, wait, &carried.entry_off)
            if status == OK:
                status = _copy_entry(section, &key, carried, n_bytes, wait)
    return status


cdef int attributes_show_carried(section_t* section, carried_t* carried) noexcept nogil:
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry = NULL
    cdef key_t key
    cdef int status
    key.target_off, key.target_serial = carried.old_off, carried.old_serial & SERIAL_MASK
    status = _find_entry(section, &key, &slot_off, &table_off, &entry)
    if status != OK and status != NOT_FOUND:
        return status
    if carried.copied_serial != (_entry_serial(section, entry) if entry != NULL else 0):
        return CHANGED
    if carried.entry_off == 0:
        return OK
    key.target_off = carried.new_off
    key.target_serial = block_at(section, payload_to_block(carried.new_off)).serial & SERIAL_MASK
    status = _write_shown(section, &key, 0, carried.entry_off)
    if status == OK:
        carried.entry_off = 0
    if status == CHANGED:
        return CORRUPTED                 # there is an entry for the new block already
    return CHANGED if status == TABLE_FULL else status


# -- blocks that end --------------------------------------------------------------------------------------

cdef uint64_t _live(section_t* section, uint64_t table_off) noexcept nogil:
    return (<name_table_t*>(section.base + table_off)).live if table_capacity(section, table_off) != 0 else 0


cdef bint tag_may_have_attributes(section_t* section, uint64_t tag) noexcept nogil:
    cdef uint64_t table_off = section.header.attributes_off
    if table_off == 0 or tag & (TAG_SMALL | TAG_GATED) == TAG_SMALL:
        return False
    return (_live(section, table_off) | _live(section, table_old(section, table_off))) != 0


cdef int attributes_forget(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry = NULL
    cdef key_t key
    cdef int status
    key.target_off, key.target_serial = payload_off, serial & SERIAL_MASK
    status = _find_entry(section, &key, &slot_off, &table_off, &entry)
    if status != OK:
        return OK                        # a damaged table stays as it is: the block was freed, and check_heap reports the damage
    intent_end(my_intent(section))       # the caller's: its change is complete
    return _swap(section, &key, table_off, slot_off, 0)
