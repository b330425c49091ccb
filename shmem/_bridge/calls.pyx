# cython: language_level=3
"""A call of the engine: arguments are checked, steps run without the GIL, and a status becomes an exception."""

import os
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport isnan
from libc.stdint cimport int64_t, uint32_t, uint64_t

from shmem._base import arguments
from shmem._base.explain import explain

from shmem._atomics cimport load_seq_cst_u64
from shmem._base.deadline cimport AT_ONCE, FOREVER, deadline_after
from shmem._base.debug cimport debug_python
from shmem._base.owner cimport owner_index
from shmem._base.section cimport busy_begin, busy_end, section_t
from shmem._base.status cimport CLOSED, INTERRUPTED, NO_MEMORY, OK
from shmem._base.system cimport pause_ns
from shmem._bridge.leftovers cimport made_room
from shmem._bridge.mapping cimport Mapping


# -- steps, without the GIL -------------------------------------------------------------------------------

cdef int run_step(section_t* section, step_t step, void* request) noexcept:
    return CLOSED if section != NULL and section.leaves else run_last_step(section, step, request)


cdef int run_last_step(section_t* section, step_t step, void* request) noexcept:
    cdef int status
    if section != NULL:
        busy_begin(section)
    with nogil:
        status = step(section, request)
        if section != NULL:
            busy_end(section)
    return status


cdef int _run_until_done(section_t* section, step_t step, void* request) except? -200:
    cdef int status = run_step(section, step, request)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        status = run_step(section, step, request)
    return status


cdef int run_steps(section_t* section, step_t step, void* request) except? -200:
    cdef int status = _run_until_done(section, step, request)
    if status != OK and made_room(status):
        status = _run_until_done(section, step, request)
    return status


# -- a status becomes an exception --------------------------------------------------------------------------

cdef str _holder_text(section_t* section):
    cdef uint64_t word = load_seq_cst_u64(&section.header.lock_gate)
    cdef uint32_t index = owner_index(word)
    if index >= section.max_participants:
        return "readers hold it"
    return f"process {section.participants[index].pid} holds it, or waits for readers to release it"


cdef str section_text(section_t* section):
    return f"section {os.fsdecode(section.path)!r}"


cdef int _fail(int status, Mapping mapping, str what) except -1:
    cdef section_t* section = mapping.section
    if section.verify != NULL:
        debug_python()
    if status == CLOSED and section.leaves and threading.current_thread().daemon:
        _park()
    raise explain(status, what, {
        "section": section_text(section),
        "path": os.fsdecode(section.path),
        "room": section.size_bytes - section.header.top + section.header.hole_bytes + section.header.cached_bytes,
        "max_size": section.size_bytes,
        "holder": _holder_text(section),
    })


cdef int _park() except -1:
    """Block this daemon thread for good, as CPython does a moment later: the process is about to exit."""
    with nogil:
        while True:
            pause_ns(1000000000)
    return 0


cdef int check(int status, Mapping mapping, str what) except -1:
    if status == OK:
        return 0
    return _fail(status, mapping, what)


# -- arguments -----------------------------------------------------------------------------------------------

cdef uint64_t size_argument(Mapping mapping, object size) except? 0xffffffffffffffff:
    """Return a size in bytes, bounded before any arithmetic."""
    number = size if type(size) is int else arguments.size(size, "size")
    if number < 0:
        raise ValueError(f"size must be non-negative, got {number}")
    if number > mapping.section.size_bytes:
        check(NO_MEMORY, mapping, f"allocate {number:,} bytes")
    return number


cdef int64_t timeout_argument(object timeout) except? -2:
    """Return a timeout in seconds as nanoseconds, FOREVER for None or a very long one, AT_ONCE for 0."""
    cdef double seconds
    if timeout is None:
        return FOREVER
    seconds = timeout
    if isnan(seconds) or seconds < 0:
        raise ValueError(f"timeout must be None or a non-negative number of seconds, got {timeout!r}")
    if seconds == 0:
        return AT_ONCE
    if seconds > 4e9:
        return FOREVER
    return <int64_t>(seconds * 1e9)


cdef int64_t deadline_argument(object timeout) except? -2:
    return deadline_after(timeout_argument(timeout))
