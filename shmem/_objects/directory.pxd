# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._bridge.mapping cimport Mapping
from shmem._heap.name_listing cimport listing_t
from shmem._heap.name_slots cimport name_t

# Arguments and results of a step of this module.
ctypedef struct name_call_t:
    uint64_t* anchor
    name_t name
    const char* data
    uint32_t data_bytes
    uint64_t value
    uint64_t serial
    uint64_t pending_off
    uint32_t type_id                      # of the pending block
    listing_t listing
    char* copied
    uint64_t room                         # bytes of `copied`
    uint64_t n_names
    bint was_group                        # a group was removed


# Raise the exception for the status of a call that finds a value by its name: KeyError, InvalidBlock if the value was freed, or as `check`.
cdef int check_found(int status, Mapping mapping, name, str what) except -1
# Return the id of the type called `name` in the registry of types; register a new type.
# Raise LayoutMismatch if the section has another description under that name.
cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0

# Return (name, description) of a type id, or None.
cdef tuple type_by_id(Mapping mapping, uint32_t type_id)

# Name a block with this serial in the directory: a USED block, or this process's PENDING one, which becomes USED with that type.
# NameExists if the name is taken; with `replaces`, it leads to this block instead.
cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint64_t serial, bint is_pending, uint32_t type_id,
                     bint replaces=*) except -1

# Make the groups of a path, the last component excepted, that are missing.  If a group is deleted meanwhile, the caller tries again.
cdef int make_groups(Mapping mapping, bytes encoded, str what, bint is_pending) except -1
# Raise NameExists, since a part of the path leads to something that is not a group.
cdef int refuse_path(Mapping mapping, bytes encoded, str what) except -1

# Free a PENDING block of this process after a failure.  Wait for the heap gate for a slice at most.
cdef void give_up_pending(section_t* section, uint64_t payload_off) noexcept

# A name as UTF-8; TypeError or ValueError if it cannot be a name.
cdef bytes name_bytes(object name)

# Listing a group: prepare a call, whose path is that of the group, empty for the directory itself; before each step that copies, make room
# if none is there or more is needed; after it, add what was copied to `found`: name -> (order, value, serial, name, data), or
# with `only_order` name -> order.
cdef int call_for_group(name_call_t* call, section_t* section, bytes path) except -1
cdef int count_step(section_t* section, void* request) noexcept nogil
cdef int copy_step(section_t* section, void* request) noexcept nogil
cdef int make_room(name_call_t* call) except -1
cdef int take_copied(name_call_t* call, dict found, bint only_order) except -1
