# cython: language_level=3
"""Backing: the part of a section's file for which the file system has reserved space.

A section's file is sparse.  Space is reserved before anything is written to it, so that a full file system raises SectionFull; a store to
a hole of the file would raise SIGBUS instead.  Invariants under the heap gate: top <= reserved <= size, there is backing below
`reserved`, and nothing was ever written above `high_water`, where the section is zero.
"""

from libc.errno cimport EBADF
from libc.stdint cimport uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.layout cimport PAGE_BYTES, header_t, round_up
from shmem._base.participants cimport section_descriptor
from shmem._base.section cimport section_t
from shmem._base.status cimport OK
from shmem._base.system cimport file_give_back, file_reserve

cdef enum:
    MIN_STEP_BYTES = 1 << 20             # space is reserved in steps of an eighth of the present backing, within these bounds
    MAX_STEP_BYTES = 64 << 20


cdef int backing_reserve(section_t* section, uint64_t end_off) noexcept nogil:
    """Reserve space up to `end_off`, or a step further if the file system has room: 0 or an errno."""
    cdef uint64_t reserved = backing_end(section), step = reserved >> 3, wish
    cdef int status, fd = section_descriptor(section)
    if fd < 0:
        return EBADF
    if step < MIN_STEP_BYTES:
        step = MIN_STEP_BYTES
    if step > MAX_STEP_BYTES:
        step = MAX_STEP_BYTES
    wish = round_up(end_off, PAGE_BYTES)
    if wish - reserved < step:
        wish = round_up(reserved + step, PAGE_BYTES)
    if wish > section.size_bytes:
        wish = section.size_bytes
    status = file_reserve(fd, reserved, wish, reserved)
    if is_out_of_space(status) and wish > round_up(end_off, PAGE_BYTES):
        wish = round_up(end_off, PAGE_BYTES)
        status = file_reserve(fd, reserved, wish, reserved)
    if status == OK:
        store_release_u64(&section.header.reserved, wish)
    return status


cdef int backing_give_back(section_t* section, int fd) noexcept nogil:
    """Return the space of all complete pages above `top` to the file system: 0 or an errno."""
    cdef header_t* header = section.header
    cdef uint64_t keep_off = round_up(header.top, PAGE_BYTES)
    cdef int status
    if keep_off >= header.reserved:
        return OK
    store_release_u64(&header.reserved, keep_off)        # first: a `reserved` that is too low is harmless
    status = file_give_back(fd, keep_off, section.size_bytes)
    if status == OK and header.high_water > keep_off:
        store_release_u64(&header.high_water, keep_off)
    return status
