# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._base.section cimport section_t
from shmem._base.system cimport file_facts_t

ctypedef struct leaving_t:                   # a thread that leaves a section, and waits without the process mutex
    section_t* section
    leaving_t* next

# The caller must hold the process mutex:
cdef void sections_add(section_t* section) noexcept nogil
cdef void sections_remove(section_t* section) noexcept nogil
cdef section_t* sections_find(const file_facts_t* facts) noexcept nogil
cdef void leaving_pause(leaving_t* leaving, section_t* section) noexcept nogil         # releases it
# These acquire it:
cdef void leaving_resume(leaving_t* leaving) noexcept nogil                            # and keeps it
cdef section_t* section_of_address(uint64_t address) noexcept nogil
cdef void section_unlock(uint64_t section_id, bint exclusive) noexcept nogil
cdef uint32_t sections_depart(bint is_last_attempt) noexcept nogil
cdef void thread_ended(void* unused) noexcept nogil

cdef uint64_t process_fork_count() noexcept nogil
cdef int process_setup() noexcept nogil
