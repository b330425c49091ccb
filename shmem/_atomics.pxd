# cython: language_level=3
"""Atomic operations on words that several processes map, the memory order in each name; and the number of this thread.

Every atomic function is a single instruction, or a loop around one on processors that have no such instruction.  Return values:

* ``load_*`` the value, ``store_*`` nothing;
* ``exchange_*`` and ``fetch_*`` the value *before* the operation;
* ``compare_exchange_*`` 1 when the word held ``expected`` and now holds ``desired``, else 0 and the word is unchanged.

Order and partner.  An acquire load pairs with the release store (or stronger) that wrote the value it reads.  "My store before your
load, or your store before my load" needs sequential consistency on both sides: on x86 the locked instructions, on Arm load-acquire
and store-release of the kind that never pass each other.  Every word, its writers and its partner (model: `tests/models`,
`store_buffer.pml`)::

    word                       order      written by                        partner
    lock_gate, upgrade         seq_cst    claim, opening, take-over         `readers`, `drain`, the gate's channels
    readers                    seq_cst    its owner; a drain, if that died  the look at `lock_gate` after it; the drain's look at `readers`
    channels                   seq_cst    waiters, notifiers                the condition that each is for: `lock_gate`, `readers`,
                                                                            `value` of a semaphore, `owner` of a mutex, `head`, `tail`
                                                                            and `closed` of a queue
    mutex.owner, value, event  seq_cst    acquirers, releasers              the same word; carries the last owner's writes
    heap gate, a queue's gates acquire    swap that takes it                release: exchange that opens it
    front tags, top, slots     release    under the heap gate; heap_commit  acquire: a reader without the gate
    root_off, a Ref            release    the thread that sets it           acquire: the thread that follows it; carries the object
    intent.operation           release    its participant                   acquire: recovery; carries the rest of the record
    head, tail                 seq_cst    one side of a queue               the other side; carries the items; then the channels
    pending, pins, waiting     seq_cst    their participant                 recovery, after it has the heap gate
    participants_high          seq_cst    a process that takes an entry     acquire or stronger: every scan
    attached, broken, clean, high_water, reserved     release               acquire, or under the heap gate, or first and last process
    n_busy, thread slots       seq_cst    threads of one process            the same process
    inside, leaves             seq_cst    a thread; the one that exits      the other of the two, which then reads the other word;
                                                                            `inside` relaxed where the system can make all threads fence

A relaxed load is a first guess that a later swap verifies (the heap's gate, `upgrade` in the fast path), or reads a word that
only the holder of its gate writes (`head`, `tail`), or a number for diagnostics (`owner_deaths`).  A kill adds nothing to this: it
comes between two instructions, and the stores before it are all performed before the kernel releases the dead process's liveness lock.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef SHMEM_ATOMICS
    #define SHMEM_ATOMICS
    #include <pthread.h>
    #include <stdint.h>
    _Static_assert(__atomic_always_lock_free(8, 0), "64-bit atomics must not need a lock");

    /* `make chaos`: before one in SHMEM_CHAOS atomic operations the thread yields, or sleeps for up to 0.1 ms.  A race that needs a pause
       of a few instructions in the right place then occurs within seconds. */
    #if defined(SHMEM_CHAOS) && SHMEM_CHAOS
    #include <errno.h>
    #include <sched.h>
    #include <time.h>
    static inline void delay_at_random(void) {
        static __thread uint32_t state;
        struct timespec pause = {0, 0};
        int saved_errno = errno;
        if (state == 0) {
            clock_gettime(CLOCK_MONOTONIC, &pause);
            state = ((uint32_t)pause.tv_nsec ^ (uint32_t)((uintptr_t)&state >> 4)) | 1;
        }
        state ^= state << 13;            /* xorshift, Marsaglia 2003 */
        state ^= state >> 17;
        state ^= state << 5;
        if (state % SHMEM_CHAOS == 0) {
            if (state >> 31) sched_yield();
            else {
                pause.tv_sec = 0;
                pause.tv_nsec = (long)((state >> 8) % 100000);
                nanosleep(&pause, NULL);
            }
        }
        errno = saved_errno;
    }
    #else
    #undef SHMEM_CHAOS
    #define SHMEM_CHAOS 0
    #define delay_at_random() ((void)0)
    #endif

    static inline uint32_t load_relaxed_u32(const uint32_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint64_t load_relaxed_u64(const uint64_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint32_t load_acquire_u32(const uint32_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t load_acquire_u64(const uint64_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint32_t load_seq_cst_u32(const uint32_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint64_t load_seq_cst_u64(const uint64_t *p) { delay_at_random(); return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

    static inline void store_relaxed_u32(uint32_t *p, uint32_t v) { delay_at_random(); __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_relaxed_u64(uint64_t *p, uint64_t v) { delay_at_random(); __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store_release_u32(uint32_t *p, uint32_t v) { delay_at_random(); __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_release_u64(uint64_t *p, uint64_t v) { delay_at_random(); __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void store_seq_cst_u64(uint64_t *p, uint64_t v) { delay_at_random(); __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

    static inline uint32_t exchange_seq_cst_u32(uint32_t *p, uint32_t v)
    { delay_at_random(); return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t exchange_release_u64(uint64_t *p, uint64_t v)
    { delay_at_random(); return __atomic_exchange_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t exchange_seq_cst_u64(uint64_t *p, uint64_t v)
    { delay_at_random(); return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }

    static inline int compare_exchange_acquire_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { delay_at_random(); return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED); }
    static inline int compare_exchange_release_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { delay_at_random(); return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED); }
    static inline int compare_exchange_seq_cst_u32(uint32_t *p, uint32_t expected, uint32_t desired)
    { delay_at_random(); return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline int compare_exchange_seq_cst_u64(uint64_t *p, uint64_t expected, uint64_t desired)
    { delay_at_random(); return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }

    static inline uint32_t fetch_add_seq_cst_u32(uint32_t *p, uint32_t v)
    { delay_at_random(); return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t fetch_sub_seq_cst_u32(uint32_t *p, uint32_t v)
    { delay_at_random(); return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t fetch_add_seq_cst_u64(uint64_t *p, uint64_t v)
    { delay_at_random(); return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t fetch_sub_seq_cst_u64(uint64_t *p, uint64_t v)
    { delay_at_random(); return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }

    static inline void fence_seq_cst(void) { delay_at_random(); __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    /* no instruction; partner: `barrier_on_all_threads` in _base/system.pyx */
    static inline void fence_compiler(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

    /* no access: cannot fault, even past the mapping */
    static inline void prefetch(const void *p) { __builtin_prefetch(p); }

    /* A number for this thread that no other live thread of the process has: never 0 or 1, and the same in every module.  The register of
       thread-local storage, where the intrinsic is known to read it; on macOS for Arm it compiles, and returns 0 in every thread.
       -DSHMEM_PTHREAD_SELF takes the fallback everywhere: the package and its clients must then all be compiled with it. */
    #if defined(__has_builtin) && defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__)) && !defined(SHMEM_PTHREAD_SELF)
    #if __has_builtin(__builtin_thread_pointer)
    #define SHMEM_THREAD_REGISTER
    #endif
    #endif
    #ifdef SHMEM_THREAD_REGISTER
    static inline uint64_t thread_pointer(void) { return (uint64_t)(uintptr_t)__builtin_thread_pointer(); }
    #else
    static inline uint64_t thread_pointer(void) { return (uint64_t)(uintptr_t)pthread_self(); }
    #endif

    #if defined(__x86_64__)
    static inline void cpu_relax(void) { __builtin_ia32_pause(); }
    #elif defined(__aarch64__)
    static inline void cpu_relax(void) { __asm__ __volatile__("isb" ::: "memory"); }
    #else
    static inline void cpu_relax(void) { __asm__ __volatile__("" ::: "memory"); }
    #endif
    #endif
    """
    const uint32_t SHMEM_CHAOS
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
    void fence_seq_cst() noexcept nogil
    void fence_compiler() noexcept nogil
    void prefetch(const void* p) noexcept nogil
    uint64_t thread_pointer() noexcept nogil
    void cpu_relax() noexcept nogil
