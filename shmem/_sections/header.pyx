# cython: language_level=3
"""The header of a section's file: filled for a new section, and checked before anything else in the file is used.

After `header_check` every offset and size of the header fits the file and the layout, so that the section can be mapped.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, strcmp, strncpy

from shmem._base.accessors cimport control_bytes, participants_bytes
from shmem._base.layout cimport (
    END_OF_ADDRESSES, LAYOUT_VERSION, MAGIC, MAX_LABEL_BYTES, MAX_PARTICIPANTS, PAGE_BYTES, header_t, layout_fingerprint)
from shmem._base.status cimport ADDRESS_IN_USE, LABEL_MISMATCH, LAYOUT_MISMATCH, NOT_A_SECTION, OK


cdef void header_fill(header_t* header, open_request_t* request) noexcept nogil:
    cdef uint64_t part = participants_bytes(request.max_participants)
    header.version = LAYOUT_VERSION
    header.header_bytes = sizeof(header_t)
    header.fingerprint = layout_fingerprint()
    strncpy(header.label, request.label, MAX_LABEL_BYTES)
    header.max_size = request.max_size
    header.desired_address = request.desired_address
    header.index_kind = request.index_kind
    header.max_participants = request.max_participants
    header.clean = 1
    header.participants_off = PAGE_BYTES
    header.intents_off = PAGE_BYTES + part
    header.index_off = PAGE_BYTES + 2 * part
    header.heap_start = control_bytes(request.max_participants)
    header.top = header.reserved = header.high_water = header.heap_start
    header.next_serial = 1


cdef int header_check(const header_t* header, uint64_t file_bytes, open_request_t* request) noexcept nogil:
    """Check that the file is a section of this layout that can be mapped: 0 or the reason for refusing it."""
    cdef uint64_t part
    if header.magic != MAGIC:
        return NOT_A_SECTION
    request.found = header.version
    if header.version != LAYOUT_VERSION or header.fingerprint != layout_fingerprint():
        return LAYOUT_MISMATCH
    part = participants_bytes(header.max_participants)
    if (header.max_participants == 0 or header.max_participants > MAX_PARTICIPANTS or header.participants_off != PAGE_BYTES
            or header.intents_off != PAGE_BYTES + part or header.index_off != PAGE_BYTES + 2 * part
            or header.heap_start != control_bytes(header.max_participants) or header.max_size & (PAGE_BYTES - 1)
            or header.max_size > END_OF_ADDRESSES or header.top < header.heap_start or header.top > header.max_size
            or header.desired_address & (PAGE_BYTES - 1) or header.desired_address >= END_OF_ADDRESSES):
        return NOT_A_SECTION
    request.found = file_bytes
    request.wanted = header.top
    if file_bytes < header.top:
        return NOT_A_SECTION
    memcpy(request.found_label, header.label, sizeof(request.found_label))
    request.found_label[MAX_LABEL_BYTES] = 0
    if request.label[0] != 0 and strcmp(request.label, request.found_label) != 0:
        return LABEL_MISMATCH
    if header.desired_address != 0 and request.desired_address != 0 and header.desired_address != request.desired_address:
        request.found, request.wanted = header.desired_address, 0
        return ADDRESS_IN_USE
    return OK
