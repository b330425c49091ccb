# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t
from shmem._bridge.mapping cimport Mapping


@cython.no_gc                         # it refers to its Mapping alone
cdef class Hold:
    """A view's claim on a block, counted in this process; the last one that is dropped unpins the block."""
    cdef Mapping mapping
    cdef tuple key                    # None: not counted
    cdef uint64_t n_forks             # of the section when it was taken


# Hold a block, which must have this serial, or raise: InvalidBlock, SectionFull, ...  `what` is for the message, as "get the array".
cdef Hold hold_block(Mapping mapping, uint64_t payload_off, uint64_t serial, str what)

# The same, but `status` tells why it is not held, if it is not OK.
cdef Hold hold_try(Mapping mapping, uint64_t payload_off, uint64_t serial, int* status)

# The hold of a block that its maker has pinned itself.
cdef Hold hold_of_pinned(Mapping mapping, uint64_t payload_off, uint64_t serial)

# (offset, serial) of each block of which this process has views, those inherited from the parent of a fork included; some may be stale.
cdef list blocks_held(section_t* section)

# Drop the hold of a block that its maker gives up, and leave the pin to it.
cdef int hold_forget(Hold hold) except -1


cdef inline bint hold_is_mine(Hold hold) noexcept:
    """Return whether there is a hold, and this process took it: one that is inherited from the parent of a fork pins nothing."""
    return hold is not None and hold.key is not None and hold.n_forks == hold.mapping.section.n_forks
