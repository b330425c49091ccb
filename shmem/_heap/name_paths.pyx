# cython: language_level=3
"""Names that are paths: components joined by "/".  All but the last one are groups, each of which is a block with a table of its own.

The anchor of a group's table lies in the group's block.  A group may be deleted, and its block freed, as soon as the gate is free.  So
an owner of the gate walks the path anew, and keeps no anchor beyond that.  A path has at most `MAX_LEVELS` components, which bounds the
walk also in a damaged section.
"""

from libc.stdint cimport uint32_t, uint64_t

from shmem._base.accessors cimport payload_bytes, payload_to_block, tag_size, tag_type
from shmem._base.bounds cimport block_is_stale, used_tag
from shmem._base.layout cimport TYPE_GROUP, group_t, name_entry_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, NOT_A_GROUP, NOT_FOUND, OK
from shmem._heap.name_slots cimport name_make, name_t, names_find, table_entry


cdef name_t path_make(const char* text, uint32_t n_bytes) noexcept nogil:
    cdef uint32_t begin = n_bytes
    cdef name_t name
    while begin and text[begin - 1] != b"/":
        begin -= 1
    name = name_make(text + begin, n_bytes - begin)
    name.path = text
    name.path_bytes = begin - 1 if begin else 0
    return name


cdef name_t path_make_of_group(const char* text, uint32_t n_bytes) noexcept nogil:
    cdef name_t name = name_make(text, 0)
    name.path = text
    name.path_bytes = n_bytes
    return name


cdef group_t* group_in(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t tag = used_tag(section, payload_off)
    if tag == 0 or tag_type(tag) != TYPE_GROUP or payload_bytes(tag_size(tag)) < sizeof(group_t):
        return NULL
    return <group_t*>(section.base + payload_off)


cdef group_t* group_at(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    cdef group_t* group = group_in(section, payload_off)
    return NULL if group == NULL or block_is_stale(block_at(section, payload_to_block(payload_off)), serial) else group


cdef int _step_into(section_t* section, const name_t* component, uint64_t** anchor) noexcept nogil:
    """Go on from a table's anchor to that of a group in the table."""
    cdef uint64_t slot_off = 0, table_off = 0
    cdef name_entry_t* entry
    cdef group_t* group
    cdef int status = names_find(section, anchor[0][0], component, &slot_off, &table_off)
    if status != OK:
        return status
    entry = table_entry(section, slot_off)
    if entry == NULL:
        return CORRUPTED
    group = group_at(section, entry.value, entry.serial)
    if group == NULL:
        return NOT_A_GROUP
    anchor[0] = &group.table_off
    return OK


cdef int names_anchor(section_t* section, uint64_t* anchor, const name_t* name, uint64_t** found) noexcept nogil:
    cdef uint32_t begin = 0, end, n_levels = 0
    cdef name_t component
    cdef int status = OK
    found[0] = anchor
    while begin < name.path_bytes and status == OK:
        end = begin
        while end < name.path_bytes and name.path[end] != b"/":
            end += 1
        n_levels += 1
        if n_levels > MAX_LEVELS:
            return NOT_FOUND             # a group may have been moved so deep
        component = name_make(name.path + begin, end - begin)
        status = _step_into(section, &component, found)
        begin = end + 1
    return status
