# cython: language_level=3
"""Atomic operations on words that several processes map, the memory order in each name.

Every function is a single instruction, or a loop around one on processors that have no such
instruction.  What they return:

* ``load_*`` the value, ``store_*`` nothing;
* ``exchange_*`` and ``fetch_*`` the value *before* the operation;
* ``compare_exchange_*`` 1 when the word held ``expected`` and now holds ``desired``, else 0 and
  the word is as it was.

Order and partner.  An acquire load pairs with the release store (or stronger) that wrote the value
it reads; who that is stands beside each use.  Where a protocol needs "my store before your load, or
your store before my load" (readers against the gate, section 5 of the design), both sides use the
``seq_cst`` forms: on x86 these are the locked instructions, on Arm load-acquire and store-release of
the sequentially consistent kind, which never pass each other.
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
