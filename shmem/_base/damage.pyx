# cython: language_level=3
"""The tags of a block, checked before a Python object is made for it: with the GIL and without the heap gate.

The offset was checked under the gate, or when the object was made, so it lies in the heap.  The tag may have been overwritten since.
"""

import os

from shmem._base import errors

from libc.stdint cimport uint64_t
from shmem._atomics cimport load_relaxed_u64
from shmem._base.accessors cimport payload_to_block, serial_slack
from shmem._base.bounds cimport block_room, damaged, slack_fits
from shmem._base.section cimport block_at, section_t


cdef int raise_damaged(section_t* section, uint64_t payload_off, str found) except -1:
    error = errors.HeapCorruption(f"section {os.fsdecode(section.path)!r} is damaged at offset {payload_off:#x}: {found}; "
                                  "this memory was overwritten, and check_heap() reports further damage")
    error.offset = payload_off
    raise error


cdef uint64_t room_at(section_t* section, uint64_t payload_off) except 0:
    cdef uint64_t room = block_room(section, payload_off)
    if room == 0:
        raise_damaged(section, payload_off, "the front tag of the block holds an impossible size")
    return room


cdef uint64_t asked_at(section_t* section, uint64_t payload_off) except? 0xffffffffffffffff:
    cdef uint64_t room = room_at(section, payload_off)
    cdef uint64_t serial_word = load_relaxed_u64(&block_at(section, payload_to_block(payload_off)).serial)
    if damaged(not slack_fits(serial_word, room)):
        raise_damaged(section, payload_off, "the serial word of the block holds an impossible slack")
    return room - serial_slack(serial_word)
