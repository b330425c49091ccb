# cython: language_level=3
"""Atomic operations on words that several processes map, the memory order in each name.

Every function is a single instruction, or a loop around one on processors that have no such
instruction.  What they return:

* ``load_*`` the value, ``store_*`` nothing;
* ``exchange_*`` and ``fetch_*`` the value *before* the operation;
* ``compare_exchange_*`` 1 when the word held ``expected`` and now holds ``desired``, else 0 and
  the word is as it was.

Order and partner.  An acquire load pairs with the release store (or stronger) that wrote the value it reads; "my store before your
load, or your store before my load" needs sequential consistency on both sides: on x86 the locked instructions, on Arm load-acquire
and store-release of the kind that never pass each other.  Every word, who writes it and who reads it (model: `tests/models`,
`store_buffer.pml`)::

    word                       order      written by                        partner
    gate, upgrade              seq_cst    who claims, opens, takes over     `readers`, `drain`, the gate's channels
    readers                    seq_cst    its owner; who finds it dead      the look at `gate` after it; the drain's look at `readers`
    channels                   seq_cst    who registers, who notifies       the condition that each is for: `gate`, `readers`, a semaphore's
                                                                            `value`, a mutex's `owner`, a queue's `head`, `tail`, `closed`
    mutex.owner, value, event  seq_cst    who takes, gives                  the same word; carries what its last owner wrote
    heap gate, a queue's gates acquire    swap that takes it                release: exchange that gives it
    front tags, top, slots     release    under the heap gate; heap_commit  acquire: whoever looks without the gate
    root_off, a Ref            release    who sets it                       acquire: who follows it; carries the object
    intent.operation           release    its participant                   acquire: recovery; carries the rest of the record
    head, tail                 seq_cst    one side of a queue               the other side; carries the items; then the channels
    pending, pins, waiting     seq_cst    their participant                 recovery, after it has the heap gate
    participants_high          seq_cst    who takes an entry                acquire or stronger: every scan
    attached, broken, clean, high_water, reserved     release               acquire, or under the heap gate, or first and last one alone
    n_busy, thread slots       seq_cst    threads of one process            the same process

A relaxed load is a first guess that a later swap verifies (`gate` in the heap, `upgrade` in the fast path), or reads what
only its own gate's holder writes (`head`, `tail`), or a number for people (`owner_deaths`).  A kill adds nothing to this: it
comes between two instructions, and the stores before it are all performed before the kernel lets go of the dead process's liveness lock.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #ifndef SHMEM_ATOMICS
    #define SHMEM_ATOMICS
    _Static_assert(__atomic_always_lock_free(8, 0), "64-bit atomics must not need a lock");

    static inline uint32_t load_relaxed_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint64_t load_relaxed_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint32_t load_acquire_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t load_acquire_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_seq_cst_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint64_t load_seq_cst_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

    static inline void store_relaxed_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_relaxed_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_release_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_release_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_seq_cst_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

    static inline uint32_t exchange_seq_cst_u32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t exchange_release_u64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t exchange_seq_cst_u64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }

    static inline int compare_exchange_acquire_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED); }
    static inline int compare_exchange_release_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED); }
    static inline int compare_exchange_seq_cst_u32(uint32_t *p, uint32_t expected, uint32_t desired)
    { return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline int compare_exchange_seq_cst_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }

    static inline uint32_t fetch_add_seq_cst_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t fetch_sub_seq_cst_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t fetch_add_seq_cst_u64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t fetch_sub_seq_cst_u64(uint64_t *p, uint64_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }

    /* no access: cannot fault, even past the mapping */
    static inline void prefetch(const void *p) { __builtin_prefetch(p); }

    #if defined(__x86_64__)
    static inline void cpu_relax(void) { __builtin_ia32_pause(); }
    #elif defined(__aarch64__)
    static inline void cpu_relax(void) { __asm__ __volatile__("isb" ::: "memory"); }
    #else
    static inline void cpu_relax(void) { __asm__ __volatile__("" ::: "memory"); }
    #endif
    #endif
    """
    uint32_t load_relaxed_u32(const uint32_t* p) noexcept nogil
    uint64_t load_relaxed_u64(const uint64_t* p) noexcept nogil
    uint32_t load_acquire_u32(const uint32_t* p) noexcept nogil
    uint64_t load_acquire_u64(const uint64_t* p) noexcept nogil
    uint32_t load_seq_cst_u32(const uint32_t* p) noexcept nogil
    uint64_t load_seq_cst_u64(const uint64_t* p) noexcept nogil
    void store_relaxed_u32(uint32_t* p, uint32_t v) noexcept nogil
    void store_relaxed_u64(uint64_t* p, uint64_t v) noexcept nogil
    void store_release_u32(uint32_t* p, uint32_t v) noexcept nogil
    void store_release_u64(uint64_t* p, uint64_t v) noexcept nogil
    void store_seq_cst_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint32_t exchange_seq_cst_u32(uint32_t* p, uint32_t v) noexcept nogil
    uint64_t exchange_release_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t exchange_seq_cst_u64(uint64_t* p, uint64_t v) noexcept nogil
    bint compare_exchange_acquire_u64(uint64_t* p, uint64_t expected, uint64_t desired) noexcept nogil
    bint compare_exchange_release_u64(uint64_t* p, uint64_t expected, uint64_t desired) noexcept nogil
    bint compare_exchange_seq_cst_u32(uint32_t* p, uint32_t expected, uint32_t desired) noexcept nogil
    bint compare_exchange_seq_cst_u64(uint64_t* p, uint64_t expected, uint64_t desired) noexcept nogil
    uint32_t fetch_add_seq_cst_u32(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t fetch_sub_seq_cst_u32(uint32_t* p, uint32_t v) noexcept nogil
    uint64_t fetch_add_seq_cst_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t fetch_sub_seq_cst_u64(uint64_t* p, uint64_t v) noexcept nogil
    void prefetch(const void* p) noexcept nogil
    void cpu_relax() noexcept nogil
