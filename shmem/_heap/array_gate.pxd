# cython: language_level=3
"""The gate of an array, whose owner changes the array's shape: `_heap/array_gate.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

ctypedef struct named_array_t:       # an array, found by its name; a copy of what does not change while it lives, and of its number of rows
    uint64_t* anchor                 # argument: of the directory
    name_t name                      # argument
    uint64_t serial                  # argument: the array must have it, else CHANGED
    uint64_t payload_off             # from here on results
    uint64_t data_off                # from the payload's start
    uint64_t row_bytes
    uint64_t capacity_bytes
    uint64_t n_rows
    uint64_t max_rows
    uint32_t n_dims
    uint32_t n_waits                 # slices that the caller has waited

ctypedef struct header_call_t:       # for `array_copy_header`
    uint64_t* anchor                 # argument
    name_t name                      # argument
    char* copied                     # argument: a buffer
    uint64_t room                    # argument: of the buffer
    uint64_t payload_off             # from here on results
    uint64_t serial
    uint64_t type_id
    uint64_t n_bytes                 # of the payload, as requested
    uint64_t header_bytes            # of an array, else 0; if it exceeds `room`, only that was copied

# Enter the gate of an array that can grow: OK, INTERRUPTED after a slice, NOT_FOUND, CHANGED, NOT_GROWABLE, SEALED, CORRUPTED.
# While this participant owns the gate, no other frees the array, seals it, or changes its shape.
cdef int array_enter(section_t* section, named_array_t* array) noexcept nogil
# Leave it; free the array if it must end with its last pin, and that was this gate.
cdef void array_leave(section_t* section, named_array_t* array) noexcept nogil
# Set the number of rows, give the name a new version, and leave: OK.  NOT_FOUND, CHANGED, INTERRUPTED, ...: nothing was done, and the gate
# is not left.  A reader sees the new number at once, without any gate.
cdef int array_set_rows(section_t* section, named_array_t* array, uint64_t n_rows) noexcept nogil
# As `array_leave` after `table_replace`, which has opened the gate: wake all waiters, which look the name up again.
cdef void array_was_replaced(section_t* section, named_array_t* array) noexcept nogil
# Seal an array that no participant views: OK, INTERRUPTED after a slice, NOT_FOUND, CHANGED, PINNED, INVALID_BLOCK if it is not an array.
cdef int array_seal(section_t* section, named_array_t* array) noexcept nogil
# Copy the header of the array with a name; of any other object only what the results tell.  It pins nothing.
cdef int array_copy_header(section_t* section, header_call_t* call, heap_wait_t wait) noexcept nogil
