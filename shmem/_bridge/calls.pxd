# cython: language_level=3
"""Steps without the GIL, statuses and arguments: `_bridge/calls.pyx`."""

from libc.stdint cimport int64_t, uint64_t
from shmem._base.section cimport section_t
from shmem._bridge.mapping cimport Mapping

# A step of an operation: it runs without the GIL and waits at most for a slice, INTERRUPTED then with nothing done.  `request` leads to its
# arguments and results.
ctypedef int (*step_t)(section_t* section, void* request) noexcept nogil

# One step without the GIL: its status, or CLOSED once the process leaves the section at exit.  `section` is NULL for a step that uses no
# section.  The caller keeps section and request alive.
cdef int run_step(section_t* section, step_t step, void* request) noexcept
# The same for a step that ends what this thread has begun: it runs even while the process waits for its threads in order to leave.
cdef int run_last_step(section_t* section, step_t step, void* request) noexcept

# Repeat a step until it is not INTERRUPTED, and return its status.  Python's signal handlers run after each slice; if one raises, so does
# this, and the operation has not happened.  A step that fails for lack of space has done nothing; it is repeated once if leftovers could be
# removed.
cdef int run_steps(section_t* section, step_t step, void* request) except? -200

# Raise the exception for `status`; return 0 for OK.  `what` describes the operation.
cdef int check(int status, Mapping mapping, str what) except -1

# A size in bytes: ValueError when it is negative, SectionFull when it exceeds the section's size.
cdef uint64_t size_argument(Mapping mapping, object size) except? 0xffffffffffffffff

# A timeout in seconds or None, as nanoseconds, FOREVER or AT_ONCE; and as the deadline that it means now.
cdef int64_t timeout_argument(object timeout) except? -2
cdef int64_t deadline_argument(object timeout) except? -2

# The section in an error message.
cdef str section_text(section_t* section)
