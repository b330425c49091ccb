# cython: language_level=3
"""Heap churn from C, without the GIL, on malloc and on a section, with the same sequence of random numbers."""

cimport shmem

from bench_clock cimport now
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc


cdef inline uint64_t below(uint64_t* state, uint64_t bound) noexcept nogil:
    """Return the next number of xorshift64*, scaled to `bound`: the same sequence as in boost_peer.cpp."""
    state[0] ^= state[0] >> 12
    state[0] ^= state[0] << 25
    state[0] ^= state[0] >> 27
    return ((state[0] * <uint64_t>0x2545f4914f6cdd1d >> 32) * bound) >> 32


cdef inline uint64_t next_size(uint64_t* state) noexcept nogil:
    return 16 + below(state, 1009)


cdef class MallocChurn:
    """`n_live` blocks of 16 to 1024 bytes from glibc's malloc."""
    cdef uint64_t state
    cdef uint64_t n_live
    cdef void** live

    def __cinit__(self, uint64_t n_live):
        cdef uint64_t i
        self.state = 0x9e3779b97f4a7c15
        self.n_live = n_live
        self.live = <void**>malloc(n_live * sizeof(void*))
        for i in range(n_live):
            self.live[i] = malloc(next_size(&self.state))
            (<uint64_t*>self.live[i])[0] = 1

    def run(self, uint64_t n_first, uint64_t n_steps):
        """Free a random block, allocate one of a random size and touch it; return the seconds per step after the first `n_first`."""
        cdef uint64_t i, step
        cdef double start = 0
        with nogil:
            for step in range(n_first + n_steps):
                if step == n_first:
                    start = now()
                i = below(&self.state, self.n_live)
                free(self.live[i])
                self.live[i] = malloc(next_size(&self.state))
                (<uint64_t*>self.live[i])[0] = 1
        return (now() - start) / n_steps

    def __dealloc__(self):
        cdef uint64_t i
        for i in range(self.n_live):
            free(self.live[i])
        free(self.live)


cdef class SectionChurn:
    """The same on the heap of a section, with offsets instead of pointers."""
    cdef uint64_t state
    cdef uint64_t n_live
    cdef uint64_t* live
    cdef shmem.section_t* section
    cdef object shm

    def __cinit__(self, shm, uint64_t n_live):
        cdef uint64_t i
        self.state = 0x9e3779b97f4a7c15
        self.shm = shm
        self.section = shmem.section_of(shm)
        self.n_live = n_live
        self.live = <uint64_t*>malloc(n_live * sizeof(uint64_t))
        for i in range(n_live):
            if shmem.allocate(self.section, next_size(&self.state), False, &self.live[i]) != 0:
                raise MemoryError

    def run(self, uint64_t n_first, uint64_t n_steps):
        """Free a random block, allocate one of a random size and touch it; return the seconds per step after the first `n_first`."""
        cdef uint64_t i, step
        cdef int status = 0
        cdef double start = 0
        with nogil:
            for step in range(n_first + n_steps):
                if step == n_first:
                    start = now()
                i = below(&self.state, self.n_live)
                status |= shmem.free(self.section, self.live[i])
                status |= shmem.allocate(self.section, next_size(&self.state), False, &self.live[i])
                (<uint64_t*>shmem.pointer(self.section, self.live[i]))[0] = 1
        if status != 0:
            raise RuntimeError(f"heap churn failed: status {status}")
        return (now() - start) / n_steps

    def __dealloc__(self):
        free(self.live)
