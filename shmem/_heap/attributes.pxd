# cython: language_level=3
"""Attributes: a few values that belong to a block, or to the section.  The states and their order are at the head of `attributes.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t
from shmem._heap.name_slots cimport name_t

ctypedef struct attributes_call_t:
    uint64_t* anchor                     # argument: of the directory; NULL: the attributes of the section itself
    name_t name                          # argument: leads to the block whose attributes are meant
    uint64_t entry_serial                # of the block with all attributes as they were read; 0: there were none
    char* copied                         # argument for reading: a buffer
    uint64_t room                        # argument for reading: of the buffer
    uint64_t position                    # bytes that are copied; the reader begins with 0
    uint64_t n_bytes                     # result of reading: of all attributes
    const char* data                     # argument for writing: all attributes, encoded
    uint32_t data_bytes                  # argument for writing; 0: there are none any more

ctypedef struct carried_t:               # attributes that are to move with their block
    uint64_t old_off
    uint64_t old_serial
    uint64_t new_off                     # a PENDING block of the caller
    uint64_t entry_off                   # the PENDING copy; 0: none
    uint64_t copied_serial               # of the block that it is a copy of; 0: none

# All of these take the gate, and return also INTERRUPTED (nothing was changed), NOT_FOUND and NOT_A_GROUP (there is no such name),
# ALREADY_FREED and INVALID_BLOCK (the name leads to no block), CORRUPTED.
# Copy the next piece, until `position` reaches `n_bytes`: OK, or CHANGED if the reader must begin anew.
cdef int attributes_read(section_t* section, attributes_call_t* call, heap_wait_t wait) noexcept nogil
# Write all attributes in one step: OK, CHANGED if they are not those with `entry_serial` any more, NO_MEMORY, ...
cdef int attributes_write(section_t* section, attributes_call_t* call, heap_wait_t wait) noexcept nogil
# Copy what a block has that is to move, and make room in the table.  The caller abandons `entry_off` in the end, unless it is 0.
cdef int attributes_carry(section_t* section, carried_t* carried, heap_wait_t wait) noexcept nogil

# The caller of these owns the gate.
# Show the copy for the new block, right before the store that moves the block: OK, CHANGED if they must be carried anew, CORRUPTED.
cdef int attributes_show_carried(section_t* section, carried_t* carried) noexcept nogil
# Remove the attributes of a block that was freed.  The caller's intent, if it has one, has nothing left to do.
cdef int attributes_forget(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil
# Whether the block with this tag may have attributes.
cdef bint tag_may_have_attributes(section_t* section, uint64_t tag) noexcept nogil
# Whether an entry of the table has a key: the block that it belongs to, which is 0 for the section.
cdef bint attributes_have_key(const name_entry_t* entry, uint64_t* target_off, uint64_t* target_serial) noexcept nogil
# Whether what an entry with a key belongs to is there: the section, or a used block with that serial.
cdef bint attributes_target_is_right(section_t* section, uint64_t target_off, uint64_t target_serial) noexcept nogil
