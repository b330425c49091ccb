# cython: language_level=3
"""Backing: the part of a section's file for which the file system has reserved space.

A section's file is sparse.  Space is reserved before anything is written to it, so that a full file system raises SectionFull; a store to
a hole of the file would raise SIGBUS instead.  Invariants: top <= reserved <= size, there is backing below `reserved`, and nothing was
ever written above `high_water`, where the section is zero.

Reserving takes long, so it is not done under the heap gate, but under a gate of its own, which comes before it in the lock order.  Only
the owner of the reserve gate changes `reserved`:

    growth    [reserved, wish) is allocated in pieces; after each one, `reserved` becomes its end
    return    under the heap gate too, `reserved` becomes the end of the pages in use; then everything above it is returned

A block is placed above `top` under the heap gate, and only below `reserved`.  Growth needs the heap gate at no time: backing exists before
`reserved` shows it.  A thread that returns backing lowers `reserved` first, when no block is being placed; then nothing is stored above it
until the reserve gate's next owner has allocated it again.  A caller that needs backing keeps the reserve gate until its block is placed.
A killed owner of the gate leaves at most backing above `reserved`, which is found allocated by the next one, or is returned.
`tests/models/backing.pml` models this.
"""

from libc.errno cimport EBADF
from libc.stdint cimport int64_t, uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport round_up
from shmem._base.deadline cimport FOREVER
from shmem._base.debug cimport RESERVE_GATE, debug_dropped, debug_may_take, debug_taken
from shmem._base.layout cimport PAGE_BYTES
from shmem._base.participants cimport section_descriptor
from shmem._base.section cimport section_t
from shmem._base.status cimport INTERRUPTED, OK, OWNER_DIED, WOULD_BLOCK
from shmem._base.system cimport file_give_back, file_reserve, now_ns
from shmem._sync.channel cimport SLICE_NS
from shmem._sync.gate cimport GATE_SPINS, gate_leave, gate_step, gate_try, gate_wait_begin, gate_wait_t

cdef enum:
    MIN_STEP_BYTES = 1 << 20             # space is reserved in steps of an eighth of the present backing, within these bounds
    MAX_STEP_BYTES = 64 << 20
    PIECE_BYTES = 16 << 20               # reserved, and shown, at once


# -- the reserve gate -----------------------------------------------------------------------------------

cdef int _enter_slowly(section_t* section, bint stops) noexcept nogil:
    cdef gate_wait_t state
    cdef int status = gate_wait_begin(section, &state, FOREVER, GATE_SPINS)
    while status == OK:
        status = gate_step(section, &section.header.reserve_gate, &state)
        if status == OK or status == OWNER_DIED:         # the dead owner left at most backing above `reserved`
            return OK
        if stops and status != WOULD_BLOCK:
            return INTERRUPTED
        status = OK
    return status


cdef int backing_enter(section_t* section, bint stops) noexcept nogil:
    """Take the reserve gate: OK, INTERRUPTED after a slice if the caller `stops`, or the status of attaching this process."""
    cdef int status = OK
    if section.verify != NULL:
        debug_may_take(RESERVE_GATE)
    if not gate_try(section, &section.header.reserve_gate):
        status = _enter_slowly(section, stops)
    if section.verify != NULL and status == OK:
        debug_taken(RESERVE_GATE)
    return status


cdef void backing_leave(section_t* section) noexcept nogil:
    if section.verify != NULL:
        debug_dropped(RESERVE_GATE)
    gate_leave(&section.header.reserve_gate)


# -- for the owner of the reserve gate ------------------------------------------------------------------

cdef uint64_t _end_of_wish(section_t* section, uint64_t reserved, uint64_t need_off) noexcept nogil:
    """Return how far to reserve: a step further than needed, if the file system has room."""
    cdef uint64_t step = reserved >> 3, wish
    if step < MIN_STEP_BYTES:
        step = MIN_STEP_BYTES
    if step > MAX_STEP_BYTES:
        step = MAX_STEP_BYTES
    wish = need_off if need_off - reserved >= step else round_up(reserved + step, PAGE_BYTES)
    return wish if wish < section.size_bytes else section.size_bytes


cdef int backing_extend(section_t* section, uint64_t end_off, bint stops) noexcept nogil:
    """Reserve space up to `end_off`, or a step further, without the heap gate.

    OK, INTERRUPTED after a slice if the caller `stops`, or an errno.  What was reserved until then stays.  After an error the caller
    returns it, with what the file system may have kept of the piece that failed.
    """
    cdef uint64_t off = backing_end(section), need_off = round_up(end_off, PAGE_BYTES), wish, piece_end
    cdef int64_t slice_end_ns = now_ns() + SLICE_NS
    cdef int status, fd = section_descriptor(section)
    if fd < 0:
        return EBADF
    if need_off > section.size_bytes:
        need_off = section.size_bytes
    wish = _end_of_wish(section, off, need_off)
    while off < wish:
        piece_end = wish if off >= need_off else need_off
        if piece_end - off > <uint64_t>PIECE_BYTES:
            piece_end = off + PIECE_BYTES
        status = file_reserve(fd, off, piece_end, off)
        if status != OK:
            if off < need_off:
                return status
            file_give_back(fd, off, piece_end)           # of what was only wished for
            return OK
        store_release_u64(&section.header.reserved, piece_end)
        off = piece_end
        if stops and off < need_off and now_ns() >= slice_end_ns:
            return INTERRUPTED
    return OK


cdef uint64_t backing_lower(section_t* section) noexcept nogil:
    """Lower `reserved` to the end of the pages in use, and return it.  The caller owns the heap gate too."""
    cdef uint64_t keep_off = round_up(section.header.top, PAGE_BYTES)
    if keep_off < section.header.reserved:
        store_release_u64(&section.header.reserved, keep_off)
    return keep_off


cdef int backing_give_back(section_t* section, uint64_t keep_off) noexcept nogil:
    """Return all space above `keep_off`, which `backing_lower` returned, to the file system: 0 or an errno.

    That is more than was above `reserved`: a killed process, or a call that failed, may have left backing there.
    """
    cdef int fd = section_descriptor(section)
    return file_give_back(fd, keep_off, section.size_bytes) if fd >= 0 else EBADF
