# cython: language_level=3
"""Claims of messages on arrays, as handles make and end them: see `_heap/claims.pyx`."""

from libc.stdint cimport uint64_t

from shmem._base import errors

from shmem._base.accessors cimport payload_to_block, tag_type
from shmem._base.layout cimport ARRAY_TEMPORARY, ARRAY_UNNAMED, TYPE_ARRAY, array_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport CORRUPTED, OK, WOULD_BLOCK
from shmem._bridge.calls cimport check, run_last_step, run_steps
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.claims cimport claim_drop, claim_send, claiming_t
from shmem._heap.heap cimport DO_NOT_WAIT, WAIT_A_SLICE, WAIT_FOREVER

MOST_SECONDS = 4e9                # a longer lifetime has no end


cdef int _send_step(section_t* section, void* request) noexcept nogil:
    return claim_send(section, <claiming_t*>request, WAIT_A_SLICE)


cdef int _drop_step(section_t* section, void* request) noexcept nogil:
    cdef claiming_t* claiming = <claiming_t*>request
    return claim_drop(section, claiming.claim_off, claiming.claim_serial, WAIT_FOREVER)


def lifetime_argument(seconds):
    """Return the lifetime of a claim in nanoseconds, 0 if it has no end.

    Raises
    ------
    ValueError
        It is not a positive number.
    """
    seconds = float(seconds)
    if not seconds > 0:
        raise ValueError(f"claim must be a positive number of seconds, got {seconds!r}")
    return 0 if seconds > MOST_SECONDS else max(1, int(seconds * 1e9))


cdef int _send(Mapping mapping, claiming_t* claiming) except? -200:
    cdef int status = claim_send(mapping.section, claiming, DO_NOT_WAIT)
    return run_steps(mapping.section, _send_step, claiming) if status == WOULD_BLOCK else status


def claim(Memory memory, uint64_t offset, uint64_t serial, lifetime_ns):
    """Make a claim on the array in a block, whether it has a name or not.

    Returns
    -------
    tuple of int
        Offset and serial of the claim.

    Raises
    ------
    TypeError
        The block is not an array.
    InvalidBlock
        It was freed.
    SectionFull
        There is no room for the claim.
    """
    cdef Mapping mapping = memory.opened()
    cdef claiming_t claiming
    if tag_type(block_at(mapping.section, payload_to_block(offset)).tag) != TYPE_ARRAY:
        raise TypeError("only arrays can be claimed; every other object stays until it is freed")
    claiming.target_off, claiming.serial, claiming.lifetime_ns, claiming.even_named = offset, serial, lifetime_ns, True
    check(_send(mapping, &claiming), mapping, f"claim the array at offset {offset:#x}")
    return claiming.claim_off, claiming.claim_serial


def claim_in_flight(Memory memory, uint64_t offset, uint64_t serial):
    """Make a claim for a message on the array in a block; return None, instead of offset and serial, if none is needed.

    Names keep an array, and other objects stay until they are freed.  An array without a name that is not temporary stays too, so a
    section that is too full for the claim, or damaged, does not prevent sending it.
    """
    cdef Mapping mapping = memory.opened()
    cdef array_t* array
    cdef claiming_t claiming
    cdef int status
    if tag_type(block_at(mapping.section, payload_to_block(offset)).tag) != TYPE_ARRAY:
        return None
    array = <array_t*>(mapping.section.base + offset)
    if array.n_names != 0:
        return None
    claiming.target_off, claiming.serial, claiming.lifetime_ns, claiming.even_named = offset, serial, 0, False
    status = _send(mapping, &claiming)
    if status == CORRUPTED:
        return None                      # in a damaged heap nothing is freed
    try:
        check(status, mapping, f"send the array at offset {offset:#x}")
    except errors.SectionFull:
        if array.flags & (ARRAY_TEMPORARY | ARRAY_UNNAMED):
            raise
        return None
    return (claiming.claim_off, claiming.claim_serial) if claiming.claim_off != 0 else None


def drop(Memory memory, uint64_t claim_off, uint64_t claim_serial):
    """End a claim, whose receiver has the array or whose message was not sent.  One that has ended already is not an error."""
    cdef Mapping mapping = memory.opened()
    cdef claiming_t claiming
    cdef int status = claim_drop(mapping.section, claim_off, claim_serial, DO_NOT_WAIT)
    if status == WOULD_BLOCK:
        claiming.claim_off, claiming.claim_serial = claim_off, claim_serial
        status = run_last_step(mapping.section, _drop_step, &claiming)
    if status != OK and status != CORRUPTED:                    # what is damaged is reported where it is used
        check(status, mapping, f"open the claim at offset {claim_off:#x}")
