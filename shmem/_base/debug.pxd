# cython: language_level=3
"""The checks that `SHMEM_DEBUG` enables: see `_base/debug.pyx`.  Callers test `debug_level` first, and make no call while it is 0."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PROCESS_MUTEX = 1
    HEAP_GATE = 2
    QUEUE_GATES = 4                # held with the heap gate, under which a snapshot waits for them
    RESERVE_GATE = 8
    HOLDS_MEASURED = 3             # a debug_level

cdef uint32_t debug_level          # 0: off, 1: on, 2: thorough, HOLDS_MEASURED: times instead of checks of the heap

# The processor time of this thread in nanoseconds; set by `_base.system`.
cdef uint64_t (*debug_clock)() noexcept nogil

# Before a thread waits for one of them, once it holds it, and when it releases it.
cdef void debug_may_take(uint32_t what) noexcept nogil
cdef void debug_taken(uint32_t what) noexcept nogil
cdef void debug_dropped(uint32_t what) noexcept nogil
# Before a thread waits for an opening byte or the storage lock, before any sleep, before Python code runs, and in a new child.
cdef void debug_opening_byte() noexcept nogil
cdef void debug_storage_lock() noexcept nogil
cdef void debug_sleep() noexcept nogil
cdef void debug_python() noexcept nogil
cdef void debug_forked() noexcept nogil
# Report the violation with file and offset, and abort.
cdef void debug_fail(const char* what, const char* path, uint64_t off, uint64_t expected, uint64_t found) noexcept nogil
