# cython: language_level=3
"""Verification of a heap: `_heap/verify.pyx`, and the table of the problems that it finds."""

from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

cdef extern from *:
    """
    #ifndef SHMEM_PROBLEMS
    #define SHMEM_PROBLEMS
    /* The one list of problems: name, and text for the error message. */
    #define PROBLEMS(X) \
        X(FINE, "the heap is intact") \
        X(BAD_TOP, "the end of the heap is outside the section") \
        X(BAD_TAG, "the front tag of a block was overwritten, probably by a write past the end of the block before it") \
        X(BAD_REAR, "the end of this block was overwritten: its rear tag does not match the size of the block") \
        X(HOLES_TOUCH, "two free blocks are adjacent") \
        X(HOLE_AT_TOP, "a free block is at the end of the heap") \
        X(BAD_INDEX, "the index of free blocks does not match the blocks") \
        X(BAD_CACHE, "the lists of cached blocks do not match the blocks") \
        X(BAD_COUNT, "the counters do not match the blocks") \
        X(BAD_SERIAL, "the block's serial number was overwritten") \
        X(BAD_BOUNDS, "top, high_water and reserved are out of order") \
        X(BAD_NAME, "a name does not lead to an entry") \
        X(BAD_NAME_COUNT, "the counts of names do not agree with the names") \
        X(BAD_GROUP, "a group of names, or the list of deleted groups, is damaged") \
        X(BAD_ARRAY, "an array's header does not fit its block") \
        X(BAD_PIN, "the records of views do not match the blocks that are viewed") \
        X(BAD_ATTRIBUTES, "attributes do not belong to a block that is in use") \
        X(BAD_CLAIM, "the claims of messages do not match the arrays that they keep") \
        X(MARKED_BROKEN, "the heap was found damaged and could not be recovered")
    #define PROBLEM_NUMBER(name, text) name,
    #define PROBLEM_NAME(name, text) #name,
    #define PROBLEM_TEXT(name, text) text,
    typedef enum { PROBLEMS(PROBLEM_NUMBER) N_PROBLEMS } Problem;
    static inline const char *problem_name(Problem problem) {
        static const char *const names[] = { PROBLEMS(PROBLEM_NAME) };
        _Static_assert(sizeof names / sizeof *names == N_PROBLEMS, "a name for each problem");
        return names[problem];
    }
    static inline const char *problem_text(Problem problem) {
        static const char *const texts[] = { PROBLEMS(PROBLEM_TEXT) };
        _Static_assert(sizeof texts / sizeof *texts == N_PROBLEMS, "a text for each problem");
        return texts[problem];
    }
    #endif
    """
    ctypedef enum Problem:
        FINE, BAD_TOP, BAD_TAG, BAD_REAR, HOLES_TOUCH, HOLE_AT_TOP, BAD_INDEX, BAD_CACHE, BAD_COUNT, BAD_SERIAL, BAD_BOUNDS, BAD_NAME
        BAD_NAME_COUNT, BAD_GROUP, BAD_ARRAY, BAD_PIN, BAD_ATTRIBUTES, BAD_CLAIM, MARKED_BROKEN
    const char* problem_name(Problem problem) noexcept nogil
    const char* problem_text(Problem problem) noexcept nogil

ctypedef struct heap_facts_t:
    uint64_t n_used
    uint64_t used_bytes
    uint64_t n_pending
    uint64_t n_holes
    uint64_t hole_bytes
    uint64_t largest_hole
    uint64_t n_cached
    uint64_t cached_bytes
    uint64_t n_internal          # used by the library: groups, name tables and their entries, records of pins, claims
    uint64_t n_records           # of pins
    uint64_t n_claims            # of messages on arrays
    uint64_t claimed_bytes       # in the blocks of these arrays
    uint64_t n_claims_of_arrays  # sum of the counts that the arrays keep
    uint64_t n_claims_of_senders
    uint64_t n_names             # sum of the counts of names that the blocks keep
    bint has_many_names          # a block has more names than it can count
    uint64_t n_linked            # names that lead to a block
    uint64_t n_name_blocks       # groups, and tables and entries that a slot or an anchor leads to
    uint64_t n_groups
    uint64_t n_doomed            # groups without a name
    uint64_t bad_off
    uint64_t expected
    uint64_t found

# Clean up after dead participants, then verify every invariant of `_heap/heap.pyx`; takes the heap gate, INTERRUPTED after each slice.
cdef int heap_check(section_t* section, heap_facts_t* facts, Problem* problem) noexcept nogil
# The same without cleaning up, for a caller that owns the gate or has exclusive use of the section.
cdef Problem heap_check_as_it_is(section_t* section, heap_facts_t* facts) noexcept nogil
# SHMEM_DEBUG: called before the caller releases the heap gate.  Abort if an invariant does not hold.
cdef void heap_verify(section_t* section) noexcept nogil
# The counts that the heap keeps, without a walk; CORRUPTED if they do not add up.  Takes the heap gate, INTERRUPTED after each slice.
cdef int heap_count(section_t* section, heap_facts_t* facts) noexcept nogil
