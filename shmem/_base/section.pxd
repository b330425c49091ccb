# cython: language_level=3
"""What one process knows of one section: `section_t`, created by `_sections.opening`, used by all layers.

There is one `section_t` per section and process, however many handles are open; `n_holds` counts them.
It is plain memory: heap, locks and participants work on it without the GIL.

`private_t` lies in pages that a fork wipes (`MADV_WIPEONFORK`).  A child, even one whose fork no handler saw, therefore finds
`index_plus_1 == 0` and no thread holding anything.  It is not attached; its first operation on the section attaches it.

A thread finds its `thread_t` by its thread pointer (`thread_pointer` in `_atomics.pxd`), which is unique among live threads
and read in one instruction where that is known to work.  The slot of a thread that ended holds `THREAD_ENDED`, never 0 again,
so that a search can stop at the first 0.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from shmem._atomics cimport (
    exchange_seq_cst_u32, fence_compiler, fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32, load_seq_cst_u32, prefetch, store_relaxed_u32,
    store_release_u32, thread_pointer)
from shmem._base.layout cimport block_t, free_index_t, header_t, intent_t, participant_t
from shmem._base.status cimport CLOSED, OK

cdef extern from *:
    """
    #ifndef SHMEM_SECTION
    #define SHMEM_SECTION
    #include <stddef.h>
    #include <stdint.h>
    #define MAX_THREADS 4096u
    #define THREAD_ENDED 1u
    #define MAX_ABANDONED 6u            /* as many as fill the line */
    typedef struct {                    /* one cache line per thread; only that thread writes it */
        uint64_t thread;                /* thread pointer, THREAD_ENDED or 0 */
        uint32_t exclusive;             /* depth */
        uint32_t shared;                /* depth */
        uint8_t counted;                /* 1: this thread is counted in its participant's `readers` */
        uint8_t upgrading;              /* 1: `upgrade` names the participant because of this thread */
        uint8_t claimed;                /* the claim on the lock that is kept while signal handlers run; see _sync/storage_lock.pyx */
        uint32_t inside;                /* what this thread has begun through the C interface and not ended; see `inside_begin` */
        uint64_t held_mutex_off;        /* the mutex acquired last of those that this thread holds; see _sync/primitives.pyx */
        uint32_t claim_number;          /* of the claim in `claimed`: one more for each */
        uint64_t reserved;              /* the other thread's reservation of the lock that was seen last, and since when; 0: none */
        int64_t reserved_since_ns;
        uint64_t task;                  /* the task that took the lock, see _bridge/tasks.pxd; 0: unknown; 1: several share it */
    } thread_t;
    typedef struct {
        uint64_t owner_word;             /* generation << 32 | index + 1: the signature of this process */
        uint32_t index_plus_1;          /* 0: not attached */
        uint32_t generation;
        uint64_t abandoned_off[MAX_ABANDONED];      /* PENDING blocks of this process to be freed, see heap_abandon; 0: none */
        thread_t threads[MAX_THREADS];
    } private_t;
    _Static_assert(sizeof(thread_t) == 64 && sizeof(private_t) % 64 == 0, "private pages");
    _Static_assert(offsetof(private_t, threads) == 64, "private pages");
    static inline uint32_t thread_hash(uint64_t thread) { return (uint32_t)((thread * 0x9e3779b97f4a7c15ull) >> 52); }
    #endif
    """
    enum:
        MAX_THREADS
        MAX_ABANDONED
    const uint64_t THREAD_ENDED

    ctypedef struct thread_t:
        uint64_t thread
        uint32_t exclusive
        uint32_t shared
        uint8_t counted
        uint8_t upgrading
        uint8_t claimed
        uint32_t inside
        uint64_t held_mutex_off
        uint32_t claim_number
        uint64_t reserved
        int64_t reserved_since_ns
        uint64_t task

    ctypedef struct private_t:
        uint64_t owner_word
        uint32_t index_plus_1
        uint32_t generation
        uint64_t abandoned_off[6]
        thread_t threads[MAX_THREADS]

    uint32_t thread_hash(uint64_t thread) noexcept nogil

ctypedef struct section_t:
    char* base                    # whole file, read and write
    char* read_only_base          # whole file, read only; NULL until it is mapped
    uint64_t size_bytes
    header_t* header
    participant_t* participants
    intent_t* intents
    free_index_t* index
    private_t* private
    uint64_t salt
    uint64_t heap_start
    uint32_t max_participants
    int fd                        # never holds a lock: probing, growing, truncating
    uint64_t device
    uint64_t inode
    char* path
    bint anonymous                # the last participant removes the file
    bint keeps_fd                 # this file system drops a lock with its descriptor
    bint departed                 # this process left the section at exit, while views still exist
    bint kept                     # at exit a thread was inside: entry and mapping stay, and end with the process as after a kill
    uint32_t leaves               # the process is about to leave: a waiter for the lock returns after its slice, and no call enters anew
    bint has_barrier              # at exit this process makes all its threads execute a barrier, so inside_begin needs none; under the GIL
    uint64_t id                   # unique among all section_t that this process has made
    uint64_t n_holds              # Mapping objects, under the process mutex
    uint32_t n_busy               # Python threads inside the library without the GIL; must be 0 while the process departs
    uint64_t n_open               # handles that are not closed; under the GIL
    uint64_t n_forks              # between the opener and this process
    section_t* next               # list of this process's sections, under the process mutex
    int (*attach)(section_t*) noexcept nogil     # makes an unattached process a participant
    void* liveness_page           # keeps the kernel's lock on the liveness byte; not mapped in a child
    int liveness_fd               # keeps that lock where a mapping does not, else -1
    void* guest_page              # the same for the guests' byte, which children inherit
    int guest_fd
    bint locks_as_process         # the file cannot be opened again (setuid), and a closed descriptor would release locks of the process
    uint64_t byte_of_process      # the liveness byte that is locked for the process and not through a description; 0: none
    uint32_t child_index_plus_1   # the entry taken for a child about to be forked, and what keeps it
    uint32_t child_generation
    void* child_page
    int child_fd
    # SHMEM_DEBUG, else NULL: check everything before the heap gate is released; and how many blocks may be checked
    void (*verify)(section_t*) noexcept nogil
    uint64_t n_to_verify
    uint32_t n_until_look         # allocations until one looks for what dead participants left; under the heap gate
    bint sweep_is_due             # one found something, but must not wait; under the heap gate
    bint was_recovered                   # this process was the first opener, and the file had not been closed


cdef inline thread_t* thread_find(section_t* section) noexcept nogil:
    """Return this thread's slot, or NULL if it has none yet.  Only this thread ever writes its pointer there."""
    cdef uint64_t me = thread_pointer(), thread
    cdef uint32_t i = thread_hash(me), probes_left = MAX_THREADS
    while probes_left:
        probes_left -= 1
        thread = section.private.threads[i].thread
        if thread == me:
            return &section.private.threads[i]
        if thread == 0:
            return NULL
        i = (i + 1) & (MAX_THREADS - 1)
    return NULL


cdef inline void busy_begin(section_t* section) noexcept nogil:
    """Count this thread as busy.  Call it before releasing the GIL, and `busy_end` before acquiring it again.

    A thread that holds the GIL and reads 0 is the only one in the library.
    """
    fetch_add_seq_cst_u32(&section.n_busy, 1)


cdef inline void busy_end(section_t* section) noexcept nogil:
    fetch_sub_seq_cst_u32(&section.n_busy, 1)


cdef inline int inside_begin(section_t* section, thread_t* me) noexcept nogil:
    """Count this thread, which may not hold the GIL, as busy: 0, or CLOSED once the process leaves the section.

    A thread that is inside already may do more, because the process waits for it.
    """
    if me.inside != 0:
        store_release_u32(&me.inside, me.inside + 1)
        return OK
    if section.has_barrier:                  # `inside` is stored before `leaves` is read; partner: sections_depart, in reverse order
        store_relaxed_u32(&me.inside, 1)
        fence_compiler()
    else:
        exchange_seq_cst_u32(&me.inside, 1)
    if load_seq_cst_u32(&section.leaves) == 0:
        return OK
    store_release_u32(&me.inside, 0)
    return CLOSED


cdef inline void inside_end(thread_t* me, uint32_t n) noexcept nogil:
    """End n things that this thread has begun; `close()` and the end of a thread have ended them all."""
    store_release_u32(&me.inside, me.inside - n if me.inside > n else 0)


cdef inline block_t* block_at(section_t* section, uint64_t block_off) noexcept nogil:
    return <block_t*>(section.base + block_off)


cdef enum:
    AHEAD_BYTES = 8192
    MOST_AHEAD_BYTES = 4096


cdef inline uint64_t block_step(section_t* section, uint64_t block_off, uint64_t size_bytes) noexcept nogil:
    """Return the offset of the next block in a walk along the chain.

    Each tag holds the distance to the next one, so that the walk would wait for memory at each; the lines a little ahead are
    prefetched meanwhile.
    """
    cdef uint64_t off = block_off + AHEAD_BYTES
    cdef uint64_t end_off = off + (size_bytes if size_bytes < MOST_AHEAD_BYTES else MOST_AHEAD_BYTES)
    while off < end_off:
        prefetch(section.base + off)
        off += 64
    return block_off + size_bytes


cdef inline uint64_t* word_at(section_t* section, uint64_t off) noexcept nogil:
    return <uint64_t*>(section.base + off)


cdef inline uint64_t offset_of_address(section_t* section, uint64_t address) noexcept nogil:
    """The offset of an address in either mapping of the section; `size_bytes` or more if it is in neither."""
    if section.read_only_base != NULL and address - <uint64_t>section.read_only_base < section.size_bytes:
        return address - <uint64_t>section.read_only_base
    return address - <uint64_t>section.base
