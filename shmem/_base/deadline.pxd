# cython: language_level=3
"""Deadlines: nanoseconds of the monotonic clock (`now_ns`), `FOREVER` or `AT_ONCE`."""

from libc.stdint cimport int64_t
from shmem._base.system cimport now_ns

cdef enum:
    FOREVER = -1                   # wait without end
    AT_ONCE = 0                    # do not wait


cdef inline bint deadline_is_past(int64_t deadline_ns) noexcept nogil:
    """Return whether the deadline has passed; the clock is read only for a deadline that is a time."""
    return deadline_ns != FOREVER and (deadline_ns == AT_ONCE or now_ns() >= deadline_ns)


cdef inline int64_t deadline_after(int64_t timeout_ns) noexcept nogil:
    """Return the deadline of a timeout in nanoseconds, which may be `FOREVER` or `AT_ONCE`."""
    return timeout_ns if timeout_ns <= 0 else now_ns() + timeout_ns
