# cython: language_level=3
"""The clients' clock: seconds, the same for all processes, without the GIL."""

from posix.time cimport CLOCK_MONOTONIC, TIMER_ABSTIME, clock_gettime, clock_nanosleep, timespec

cdef enum:
    SPIN_US = 500


cdef inline double now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


cdef inline void wait_for(double moment) noexcept nogil:
    """Sleep, then spin, so that processes with the same moment begin together."""
    cdef timespec time
    cdef double awake = moment - SPIN_US * 1e-6
    time.tv_sec = <long>awake
    time.tv_nsec = <long>((awake - <long>awake) * 1e9)
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL)
    while now() < moment:
        pass
