# cython: language_level=3
"""Claims: a message owns the array that it refers to.  The states and their order are at the head of `claims.pyx`."""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport claim_t
from shmem._base.section cimport section_t
from shmem._heap.heap cimport heap_wait_t

cdef extern from *:
    """
    #ifndef SHMEM_CLAIM_TIMES
    #define SHMEM_CLAIM_TIMES
    #define CLAIM_ORPHAN_NS  (60 * 1000000000ull)    /* the claims of a killed sender live that much longer */
    #define CLAIM_AGED_NS    (600 * 1000000000ull)   /* in a full section those end that are older, and whose sender is gone */
    #endif
    """
    const uint64_t CLAIM_ORPHAN_NS
    const uint64_t CLAIM_AGED_NS

ctypedef struct claiming_t:              # a claim that is to be made
    uint64_t target_off
    uint64_t serial
    uint64_t lifetime_ns                 # 0: without an end
    bint even_named                      # also if a name leads to the array
    uint64_t claim_off                   # out: 0 if the array has a name
    uint64_t claim_serial

# Make a claim on an array: OK, INVALID_BLOCK (also if it is not an array), ALREADY_FREED, CORRUPTED, WOULD_BLOCK, INTERRUPTED, or why there
# is no memory for it.  Nothing has been changed then.
cdef int claim_send(section_t* section, claiming_t* claiming, heap_wait_t wait) noexcept nogil
# End a claim, and the array with it if nothing else keeps it.  A claim that has ended already is OK.
cdef int claim_drop(section_t* section, uint64_t claim_off, uint64_t claim_serial, heap_wait_t wait) noexcept nogil
# End the claims that have expired, and those that are older than `age_ns`.
cdef int claims_sweep(section_t* section, uint64_t age_ns, heap_wait_t wait, uint64_t* n_bytes) noexcept nogil
# This process leaves in order: from here on its claims have no sender.
cdef void claims_leave(section_t* section) noexcept nogil

# The following are called under the heap gate.

# Whether a used block with this offset and serial is an array.
cdef bint claim_target_is_right(section_t* section, uint64_t target_off, uint64_t serial) noexcept nogil
# The claim in a used block; NULL if no claim is there.
cdef claim_t* claim_at(section_t* section, uint64_t claim_off) noexcept nogil
# Whether the claim in this block is in the list.
cdef bint claim_is_listed(section_t* section, uint64_t claim_off) noexcept nogil
# How many claims there are on a used block.
cdef uint32_t claims_of(section_t* section, uint64_t payload_off) noexcept nogil
# End the claims on an array that was freed although it had some; `block_bytes` is the size that its block had.
cdef int claims_forget(section_t* section, uint64_t target_off, uint64_t serial, uint64_t block_bytes) noexcept nogil
# End the claims that have expired and those that are old and without a sender; return whether there was one.
cdef bint claims_make_room(section_t* section) noexcept nogil
# Rebuild list and counts from the chain of front tags, which is whole.
cdef void claims_index_anew(section_t* section) noexcept nogil
# The participant of this entry was killed: the claims that it has sent expire after CLAIM_ORPHAN_NS, unless it has set an end.
cdef void claims_orphan(section_t* section, uint32_t index) noexcept nogil
# Whether there are claims, all of which were made before the system was booted.
cdef bint claims_are_of_another_boot(section_t* section) noexcept nogil
# When the last claim ends for which an anonymous section is kept, on the boot clock; 0 if there is none.
cdef uint64_t claims_end(section_t* section) noexcept nogil
