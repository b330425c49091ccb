# cython: language_level=3
"""Counting the names of a table, and copying them out piece by piece.

A listing takes the gate for a bounded number of slots at a time, so that it holds up no other process for long.  An entry keeps its slot
until it is removed, or moves from an old table to the new one.  A listing therefore reads the old table first, then the new one.  A name
that exists all the time is copied at least once; its caller drops what was copied twice.  If the table it reads was replaced and freed
meanwhile, all remaining entries have moved to a later table, and the listing goes on at the begin of that.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from shmem._base.accessors cimport entry_name, payload_to_block, round_up
from shmem._base.bounds cimport block_is_stale
from shmem._base.layout cimport SERIAL_MASK, name_entry_t, name_table_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, OK
from shmem._heap.heap cimport heap_enter, heap_leave, heap_wait_t
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_t, table_capacity, table_entry, table_old, table_slot_off

cdef enum:
    SLOTS_AT_ONCE = 1024                 # looked at in one hold of the gate


cdef uint64_t _shown(section_t* section, uint64_t table_off) noexcept nogil:
    """Return how many slots of a table show an entry; a damaged count is bounded by the capacity."""
    cdef uint64_t capacity = table_capacity(section, table_off), n_live
    if capacity == 0:
        return 0
    n_live = (<name_table_t*>(section.base + table_off)).live
    return n_live if n_live < capacity else capacity


cdef int names_count(section_t* section, uint64_t* anchor, const name_t* group, uint64_t* n_names, heap_wait_t wait) noexcept nogil:
    cdef uint64_t* found = NULL
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    status = names_anchor(section, anchor, group, &found)
    if status == OK:
        n_names[0] = _shown(section, found[0]) + _shown(section, table_old(section, found[0]))
    heap_leave(section)
    return status


cdef bint _is_whole(section_t* section, uint64_t table_off) noexcept nogil:
    return table_off == 0 or table_capacity(section, table_off) != 0


cdef uint64_t copied_bytes(uint64_t name_bytes, uint64_t data_bytes) noexcept nogil:
    """Return the size of a copied entry, with which the next one begins."""
    return round_up(sizeof(copied_t) + name_bytes + data_bytes, 8)


cdef void _begin_table(section_t* section, listing_t* listing, uint64_t table_off) noexcept nogil:
    listing.table_off = table_off
    listing.position = 0
    if table_capacity(section, table_off) == 0:
        listing.is_over = True
    else:
        listing.table_serial = block_at(section, payload_to_block(table_off)).serial & SERIAL_MASK


cdef void _find_place(section_t* section, uint64_t table_off, listing_t* listing) noexcept nogil:
    """Go to the table to read next: the one that the listing reads, if it is still there, or the oldest one there is."""
    cdef uint64_t old_off = table_old(section, table_off), at = listing.table_off
    if (at == 0 or (at != table_off and at != old_off) or table_capacity(section, at) == 0
            or block_is_stale(block_at(section, payload_to_block(at)), listing.table_serial)):
        _begin_table(section, listing, old_off if old_off != 0 else table_off)
    elif listing.position >= table_capacity(section, at):
        if at == table_off:
            listing.is_over = True
        else:
            _begin_table(section, listing, table_off)


cdef bint _copy_slot(section_t* section, uint64_t slot_off, listing_t* listing, char* buffer, uint64_t buffer_bytes) noexcept nogil:
    """Copy the entry of a slot if it has one; return False if the buffer has no room for it."""
    cdef name_entry_t* entry = table_entry(section, slot_off)
    cdef name_entry_t head
    cdef copied_t* copied = <copied_t*>(buffer + listing.n_bytes)
    cdef uint64_t n_bytes
    if entry == NULL:
        return True
    head = entry[0]                      # another process may overwrite the entry meanwhile: its lengths are read once
    n_bytes = copied_bytes(head.name_bytes, head.data_bytes)
    if n_bytes > section.size_bytes or <uint64_t>(<char*>entry - section.base) + n_bytes > section.size_bytes:
        return True
    if n_bytes > buffer_bytes - listing.n_bytes:
        if listing.n_bytes == 0:
            listing.needed_bytes = n_bytes
        return False
    copied.order = block_at(section, payload_to_block(<uint64_t>(<char*>entry - section.base))).serial & SERIAL_MASK
    copied.value = head.value
    copied.serial = head.serial
    copied.name_bytes = head.name_bytes
    copied.data_bytes = head.data_bytes
    memcpy(<char*>copied + sizeof(copied_t), entry_name(entry), <size_t>head.name_bytes + head.data_bytes)
    listing.n_bytes += n_bytes
    return True


cdef int names_copy_some(section_t* section, uint64_t* anchor, const name_t* group, listing_t* listing, char* buffer,
                         uint64_t buffer_bytes, heap_wait_t wait) noexcept nogil:
    """Copy entries, one `copied_t` after the other, in one hold of the gate; the caller goes on until `is_over`."""
    cdef uint64_t* found = NULL
    cdef uint64_t n_left = SLOTS_AT_ONCE
    cdef int status = heap_enter(section, wait)
    listing.n_bytes = listing.needed_bytes = 0
    if status != OK:
        return status
    status = names_anchor(section, anchor, group, &found)
    if status == OK and not (_is_whole(section, found[0]) and _is_whole(section, table_old(section, found[0]))):
        status = CORRUPTED
    while status == OK and n_left and not listing.is_over:
        _find_place(section, found[0], listing)
        n_left -= 1
        if listing.is_over or listing.position >= table_capacity(section, listing.table_off):
            continue
        if not _copy_slot(section, table_slot_off(listing.table_off, listing.position), listing, buffer, buffer_bytes):
            break
        listing.position += 1
    heap_leave(section)
    return status
