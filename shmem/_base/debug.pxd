# cython: language_level=3
"""The checks that `SHMEM_DEBUG` turns on: see `_base/debug.pyx`.  Callers look at `debug_level` first: with it off, that is all."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PROCESS_MUTEX = 1
    HEAP_GATE = 2
    QUEUE_GATES = 4                # beside the heap gate, under which a snapshot waits for them

cdef uint32_t debug_level          # 0: off, 1: on, 2: thorough

# Before one of them is waited for, once this thread has it, and as it is given back.
cdef void debug_may_take(uint32_t what) noexcept nogil
cdef void debug_taken(uint32_t what) noexcept nogil
cdef void debug_dropped(uint32_t what) noexcept nogil
# Before an opening byte, the storage lock, any sleep; before Python code runs; in a child just born.
cdef void debug_opening_byte() noexcept nogil
cdef void debug_storage_lock() noexcept nogil
cdef void debug_sleep() noexcept nogil
cdef void debug_python() noexcept nogil
cdef void debug_forked() noexcept nogil
# Say what is wrong, of which file, where in it, and abort.
cdef void debug_fail(const char* what, const char* path, uint64_t off, uint64_t expected, uint64_t found) noexcept nogil
