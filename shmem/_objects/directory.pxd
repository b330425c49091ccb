# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._core cimport Mapping


# Registry of types: the id of the type called `name`, registered now if it is new.
# LayoutMismatch when the section knows another description under that name.
cdef uint32_t type_id_for(Mapping mapping, bytes name, bytes description) except 0

# (name, description) of a type id, or None
cdef tuple type_by_id(Mapping mapping, uint32_t type_id)

# Directory: name a block with this serial: a used one, or my PENDING one, which is USED with that type then.
cdef int insert_name(Mapping mapping, object name, uint64_t payload_off, uint64_t serial, bint is_pending, uint32_t type_id) except -1

# Give my PENDING block back, which was not to be; it may have to wait.
cdef void give_up_pending(section_t* section, uint64_t payload_off) noexcept
