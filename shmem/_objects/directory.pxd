# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._bridge.mapping cimport Mapping


# Return the id of the type called `name` in the registry of types; register a new type.
# Raise LayoutMismatch if the section has another description under that name.
cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0

# Return (name, description) of a type id, or None.
cdef tuple type_by_id(Mapping mapping, uint32_t type_id)

# Name a block with this serial in the directory: a USED block, or this process's PENDING one, which becomes USED with that type.  NameExists
# if the name is taken; with `replaces`, it leads to this block afterwards.
cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint64_t serial, bint is_pending, uint32_t type_id,
                     bint replaces=*) except -1

# Free a PENDING block of this process after a failure.  Wait for the heap gate for a slice at most.
cdef void give_up_pending(section_t* section, uint64_t payload_off) noexcept

# A name as UTF-8; TypeError or ValueError if it cannot be a name.
cdef bytes name_bytes(object name)
