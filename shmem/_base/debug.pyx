# cython: language_level=3
"""`SHMEM_DEBUG`: the library checks itself.

The variable is read when `shmem` is imported: empty or 0 is off, 2 is thorough, any other text is on.  `set_level("holds")` measures
how long a heap gate is held instead, in processor time of its owner: `longest_hold`.  A violation is reported on
standard error with file and offset, and the process aborts, as the C library does for its own heap.  The stack is then still intact:
a core file contains it, and `python -X faulthandler` prints it.  The other processes recover as after a kill.

The checks and their places::

    lock order                 `_base.system` and `_heap.heap` report the process mutex and a heap gate before waiting for it and once
                               it is held; before waiting for an opening byte or the storage lock, a thread checks what it holds (the
                               order is at the head of `_core.pyx`)
    no sleep with the GIL      `futex_wait`
    no sleep under a gate      `futex_wait`; only a snapshot may sleep under the heap gate, for the gates of queues
    no Python under a gate     whenever Python code asks a handle for its section, and where an error is raised
    owner of a gate            when the heap gate or the storage lock's gate is released
    the heap                   when its gate is released: `heap_verify` (`_heap/verify.pyx`); the neighbours of a block that is freed
    counts of participants     when a share of the lock is released, and when a PENDING block changes its state
    use after free             the first bytes of a freed payload are filled with 0xdd

A table of the process records what each thread holds, in a slot with its thread pointer.  Only that thread writes the slot, and only while
it holds something.  At most one thread holds the process mutex and one each gate of a section, so a few slots are enough.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport fflush, fprintf, stderr
from libc.stdlib cimport abort

from shmem._atomics cimport SHMEM_CHAOS, compare_exchange_seq_cst_u64, load_seq_cst_u64, store_seq_cst_u64, thread_pointer

cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    PyThreadState* PyGILState_GetThisThreadState()
    PyThreadState* _PyThreadState_UncheckedGet()

cdef enum:
    N_SLOTS = 64

ctypedef struct holder_t:
    uint64_t thread
    uint32_t holds
    uint64_t since_ns                    # HOLDS_MEASURED: when the thread took the heap gate, in its processor time

cdef holder_t _holders[N_SLOTS]
cdef uint64_t _longest_ns = 0

DELAYED_ONE_IN = SHMEM_CHAOS             # `make chaos`: one in so many atomic operations is delayed; 0 in every other build


def set_level(level):
    """Set the level as if `SHMEM_DEBUG` had this value at the import, for tests; sections that are open keep their level."""
    global debug_level
    debug_level = 0 if level in ("", "0") else 2 if level == "2" else HOLDS_MEASURED if level == "holds" else 1


set_level(os.environ.get("SHMEM_DEBUG", ""))


cdef void debug_fail(const char* what, const char* path, uint64_t off, uint64_t expected, uint64_t found) noexcept nogil:
    if path == NULL:
        fprintf(stderr, b"shmem: SHMEM_DEBUG: %s\n", what)
    else:
        fprintf(stderr, b"shmem: SHMEM_DEBUG: %s: in %s, at offset %#llx: expected %#llx, found %#llx\n", what, path,
                <unsigned long long>off, <unsigned long long>expected, <unsigned long long>found)
    fflush(stderr)
    abort()


# -- how long a heap gate is held ---------------------------------------------------------------------------

def longest_hold():
    """Return the longest hold of a heap gate by this process since the last call, in seconds; needs `set_level("holds")`."""
    global _longest_ns
    found, _longest_ns = _longest_ns * 1e-9, 0
    return found


# -- what this thread holds -------------------------------------------------------------------------------

cdef holder_t* _slot_of(uint64_t thread) noexcept nogil:
    cdef uint32_t i
    for i in range(N_SLOTS):
        if load_seq_cst_u64(&_holders[i].thread) == thread:
            return &_holders[i]
    return NULL


cdef uint32_t _held() noexcept nogil:
    cdef holder_t* mine = _slot_of(thread_pointer())
    return mine.holds if mine != NULL else 0


cdef void debug_may_take(uint32_t what) noexcept nogil:
    cdef uint32_t held = _held()
    if held & HEAP_GATE:
        debug_fail(b"lock order: the process mutex is requested under a heap gate" if what == PROCESS_MUTEX else
                   b"lock order: a heap gate is requested under a heap gate", NULL, 0, 0, 0)
    if held & RESERVE_GATE and what != HEAP_GATE:
        debug_fail(b"lock order: the process mutex or a reserve gate is requested under a reserve gate", NULL, 0, 0, 0)
    if held & what:
        debug_fail(b"lock order: the process mutex is requested by the thread that holds it", NULL, 0, 0, 0)


cdef void debug_taken(uint32_t what) noexcept nogil:
    cdef holder_t* mine = _slot_of(thread_pointer())
    while mine == NULL:
        mine = _slot_of(0)
        if mine != NULL and not compare_exchange_seq_cst_u64(&mine.thread, 0, thread_pointer()):
            mine = NULL
    mine.holds |= what
    if debug_level == HOLDS_MEASURED and what == HEAP_GATE:
        mine.since_ns = debug_clock()


cdef void debug_dropped(uint32_t what) noexcept nogil:
    global _longest_ns
    cdef holder_t* mine = _slot_of(thread_pointer())
    cdef uint64_t held_ns
    if mine == NULL or mine.holds & what == 0:
        debug_fail(b"the process mutex is released by a thread that does not hold it" if what == PROCESS_MUTEX else
                   b"a heap gate is released by a thread that does not hold it", NULL, 0, 0, 0)
        return
    if debug_level == HOLDS_MEASURED and what == HEAP_GATE:
        held_ns = debug_clock() - mine.since_ns
        if held_ns > _longest_ns:
            _longest_ns = held_ns
    mine.holds &= ~what
    if mine.holds == 0:
        store_seq_cst_u64(&mine.thread, 0)


cdef void debug_forked() noexcept nogil:
    """Clear the slots of the parent's other threads, which the child does not have."""
    cdef uint32_t i
    for i in range(N_SLOTS):
        if _holders[i].thread != thread_pointer():
            _holders[i].thread = 0
            _holders[i].holds = 0


# -- what a thread must not do while it holds something ------------------------------------------------------------------

cdef bint _has_gil() noexcept nogil:
    """Return whether this thread holds the GIL.  PyGILState_Check always returns 1 once there was a second interpreter."""
    cdef PyThreadState* mine = PyGILState_GetThisThreadState()
    return mine != NULL and mine == _PyThreadState_UncheckedGet()


cdef void debug_opening_byte() noexcept nogil:
    if _held() != PROCESS_MUTEX:
        debug_fail(b"lock order: an opening byte is requested without the process mutex, or under a heap gate", NULL, 0, 0, 0)


cdef void debug_storage_lock() noexcept nogil:
    if _held():
        debug_fail(b"lock order: the storage lock is requested under the process mutex or a heap gate", NULL, 0, 0, 0)


cdef void debug_sleep() noexcept nogil:
    if _held() & (HEAP_GATE | QUEUE_GATES) == HEAP_GATE:
        debug_fail(b"a thread is about to sleep under a heap gate", NULL, 0, 0, 0)
    if _held() == 0 and _has_gil():      # opening, closing and a fork may hold the GIL: the owner of the process mutex never needs it
        debug_fail(b"a thread is about to sleep with the GIL", NULL, 0, 0, 0)


cdef void debug_python() noexcept nogil:
    if _held():
        debug_fail(b"Python code runs under the process mutex or a heap gate", NULL, 0, 0, 0)


# -- for tests: each check as the core calls it, with something that only seems held ----------------------------

def pretend(what):
    """Record `what` as held by this thread."""
    debug_taken({"process mutex": PROCESS_MUTEX, "reserve gate": RESERVE_GATE, "heap gate": HEAP_GATE}[what])


def ask(what):
    """Run the check that precedes waiting for `what`, or that accompanies releasing it."""
    if what == "opening byte":
        debug_opening_byte()
    elif what == "storage lock":
        debug_storage_lock()
    elif what == "sleep":
        debug_sleep()
    else:
        debug_dropped(PROCESS_MUTEX if what == "process mutex" else HEAP_GATE)
