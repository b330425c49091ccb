# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

cdef enum:
    NEXT_NUMBER = 0                  # a value for `table_insert`, which stands for one that no entry of the registry of types has

# Under the gate: the value that goes with its name, because neither another name nor the root leads to it; or 0.
cdef uint64_t table_value_to_drop(section_t* section, const name_entry_t* entry) noexcept nogil

# These take the gate.  INTERRUPTED, which WAIT_A_SLICE allows, means that nothing was changed.
cdef int table_look_up(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* value, uint64_t* serial,
                       heap_wait_t wait) noexcept nogil
cdef int table_insert(section_t* section, uint64_t* anchor, const name_t* name, const void* data, uint32_t data_bytes,
                      uint64_t value, uint64_t serial, uint64_t pending_off, uint32_t pending_type,
                      heap_wait_t wait) noexcept nogil
cdef int table_remove(section_t* section, uint64_t* anchor, const name_t* name, uint64_t value, uint64_t serial, bint* was_group,
                      heap_wait_t wait) noexcept nogil
# Remove the entry in a slot, and free its value if nothing else leads to it.  The caller owns the gate, and has called `heap_mend_pins`.
cdef int names_hide(section_t* section, uint64_t table_off, uint64_t slot_off) noexcept nogil
