# cython: language_level=3
"""The storage lock from C, without the GIL, used by several processes between the same two moments of the clock."""

cimport shmem

from bench_clock cimport now, wait_for

cdef enum:
    N_BETWEEN_LOOKS = 1000  # pairs between two readings of the clock, each of which costs as much as a few pairs


def share(shm, double start, double end):
    """Lock shared and unlock from `start` to `end`; return pairs per second."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef long n_pairs = 0, _step
    cdef int status = 0
    cdef double time = start
    with nogil:
        wait_for(start)
        while time < end:
            for _step in range(N_BETWEEN_LOOKS):
                status |= shmem.lock_shared(section, shmem.FOREVER)
                status |= shmem.unlock_shared(section)
            n_pairs += N_BETWEEN_LOOKS
            time = now()
    if status != 0:
        raise RuntimeError(f"locking failed: status {status}")
    return n_pairs / (time - start)


def _turns(shm, bint exclusive, double start, double end):
    """Take the lock and release it in a tight loop; return the number of turns and the longest wait."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef long n_turns = 0
    cdef int status = 0
    cdef double asked = start, got, longest = 0
    with nogil:
        wait_for(start)
        asked = now()
        while asked < end:
            status |= shmem.lock_exclusive(section, shmem.FOREVER) if exclusive else shmem.lock_shared(section, shmem.FOREVER)
            got = now()
            status |= shmem.unlock_exclusive(section) if exclusive else shmem.unlock_shared(section)
            longest = max(longest, got - asked)
            n_turns += 1
            asked = now()
    if status != 0:
        raise RuntimeError(f"locking failed: status {status}")
    return n_turns, longest


def write_turns(shm, double start, double end):
    """Take exclusive turns from `start` to `end`; return their number and the longest wait in seconds."""
    return _turns(shm, True, start, end)


def read_turns(shm, double start, double end):
    """Take shared turns from `start` to `end`; return their number and the longest wait in seconds."""
    return _turns(shm, False, start, end)


def look(_shm, double start, double end):
    """Read the clock from `start` to `end`, without a lock; return the longest time between two readings, which the system causes."""
    cdef double before = start, time, longest = 0
    with nogil:
        wait_for(start)
        while before < end:
            time = now()
            longest = max(longest, time - before)
            before = time
    return longest
