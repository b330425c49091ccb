# cython: language_level=3
"""The storage lock from C, without the GIL."""

cimport shmem

from bench_clock cimport now


def exclusive(shm, long n_steps):
    """Lock exclusively and unlock `n_steps` times; return seconds per pair."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef long _step
    cdef int status = 0
    cdef double start = now()
    with nogil:
        for _step in range(n_steps):
            status |= shmem.lock_exclusive(section, shmem.FOREVER)
            status |= shmem.unlock_exclusive(section)
    if status != 0:
        raise RuntimeError(f"locking failed: status {status}")
    return (now() - start) / n_steps


def shared(shm, long n_steps):
    """Lock shared and unlock `n_steps` times; return seconds per pair."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef long _step
    cdef int status = 0
    cdef double start = now()
    with nogil:
        for _step in range(n_steps):
            status |= shmem.lock_shared(section, shmem.FOREVER)
            status |= shmem.unlock_shared(section)
    if status != 0:
        raise RuntimeError(f"locking failed: status {status}")
    return (now() - start) / n_steps
