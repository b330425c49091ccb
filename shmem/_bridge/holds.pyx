# cython: language_level=3
"""Holds: what keeps a block while this process has views of it.

The holds of each block are counted in this process, and the block is pinned (`_heap/pins.pyx`) while there is one.  They are counted by
offset and serial.  The serial is read without the gate, and is 0 if no block begins at the offset at that moment.  No block has serial 0,
so it does not pin anything.

Who takes holds:

* an array, for as long as it, or a view of it, exists;
* each buffer of a `Block`, or a view made of it, for as long as it exists;
* a queue, from its first use on: its memory is kept for as long as a thread may be inside, although it can be freed;
* a Struct object, from the first view of an array field, or buffer, that is taken of it until object and views are gone.  Reading an array
  field again costs no more than a look.

Looking at the counts, pinning and counting must be one step.  It is one under the GIL, unless the gate must be waited for.  A thread that
waits does so under a lock, `_counts_lock`, and while there is one (`_n_waiting`), all others take the lock too.

The holds in a forked child have no pins, and dropping them has no effect.  The child takes its own when it takes another view.
"""

import os
import threading

from libc.stdint cimport uint32_t, uint64_t

from shmem._base.public import refuse_construction

from shmem._base.section cimport section_t
from shmem._base.status cimport OK, WOULD_BLOCK
from shmem._bridge.calls cimport check, run_last_step, run_steps
from shmem._heap.heap cimport DO_NOT_WAIT, WAIT_A_SLICE, WAIT_FOREVER
from shmem._heap.pinning cimport block_pin, block_unpin

cdef dict _counts = {}              # (section_t*, forks, offset, serial) -> number of holds in this process
cdef set _inherited = set()         # (section_t*, offset, serial): the parent's holds, whose views the child has, too
cdef object _counts_lock = threading.RLock()
cdef uint32_t _n_waiting = 0        # threads that own the lock, or calls of the one thread in signal handlers


def _start_anew_in_child():
    """Forget the parent's counts; its lock may have been held by a thread that does not exist in the child."""
    global _counts_lock, _n_waiting
    _counts_lock = threading.RLock()
    _n_waiting = 0
    _inherited.update([(section, payload_off, serial) for section, _, payload_off, serial in list(_counts)])
    _counts.clear()


os.register_at_fork(after_in_child=_start_anew_in_child)


# -- pinning, with and without the GIL ----------------------------------------------------------------------

ctypedef struct pin_call_t:
    uint64_t payload_off
    uint64_t serial


cdef int _pin_step(section_t* section, void* request) noexcept nogil:
    cdef pin_call_t* call = <pin_call_t*>request
    return block_pin(section, call.payload_off, call.serial, WAIT_A_SLICE)


cdef int _unpin_step(section_t* section, void* request) noexcept nogil:
    cdef pin_call_t* call = <pin_call_t*>request
    return block_unpin(section, call.payload_off, call.serial, WAIT_FOREVER)


cdef int _pin_now(section_t* section, uint64_t payload_off, uint64_t serial) except? -200:
    cdef pin_call_t call
    call.payload_off, call.serial = payload_off, serial
    return run_steps(section, _pin_step, &call)


# -- taking a hold ------------------------------------------------------------------------------------------

cdef inline tuple _key_of(section_t* section, uint64_t payload_off, uint64_t serial):
    return (<uint64_t>section, section.n_forks, payload_off, serial)


cdef inline int _count(Hold hold, tuple key, object n_before) except -1:
    _counts[key] = 1 if n_before is None else n_before + 1
    hold.key = key
    hold.n_forks = hold.mapping.section.n_forks
    return 0


cdef int _hold_slowly(Hold hold, section_t* section, uint64_t payload_off, uint64_t serial) except? -200:
    """Pin the block, and wait for the gate.

    The order matters: while the pin waits, a signal handler may view the same block, or raise.  Pinning twice is harmless.
    """
    global _n_waiting
    cdef int status = OK
    with _counts_lock:
        _n_waiting += 1
        try:
            if _key_of(section, payload_off, serial) not in _counts:
                status = _pin_now(section, payload_off, serial)
            if status == OK:
                key = _key_of(section, payload_off, serial)          # anew: the process may have become a participant meanwhile
                _count(hold, key, _counts.get(key))
        finally:
            _n_waiting -= 1
    return status


cdef Hold hold_block(Mapping mapping, uint64_t payload_off, uint64_t serial, str what):
    cdef int status = OK
    cdef Hold hold = hold_try(mapping, payload_off, serial, &status)
    if status != OK:
        check(status, mapping, f"{what} at offset {payload_off:#x}")
    return hold


cdef Hold hold_try(Mapping mapping, uint64_t payload_off, uint64_t serial, int* result):
    """Pin the block unless another hold has pinned it, then count this hold."""
    cdef Hold hold = Hold.__new__(Hold)
    cdef section_t* section = mapping.section
    cdef tuple key = _key_of(section, payload_off, serial)
    cdef uint64_t n_forks = section.n_forks
    cdef int status = WOULD_BLOCK
    hold.mapping = mapping
    if _n_waiting == 0:
        n_before = _counts.get(key)
        status = block_pin(section, payload_off, serial, DO_NOT_WAIT) if n_before is None else OK
        if status == OK:
            _count(hold, key if n_forks == section.n_forks else _key_of(section, payload_off, serial), n_before)
    if status == WOULD_BLOCK:
        status = _hold_slowly(hold, section, payload_off, serial)
    result[0] = status
    return hold


cdef Hold hold_of_pinned(Mapping mapping, uint64_t payload_off, uint64_t serial):
    cdef Hold hold = Hold.__new__(Hold)
    cdef tuple key = _key_of(mapping.section, payload_off, serial)
    hold.mapping = mapping
    _count(hold, key, _counts.get(key))
    return hold


cdef int hold_forget(Hold hold) except -1:
    _counts.pop(hold.key, None)
    hold.key = None
    return 0


cdef list blocks_held(section_t* section):
    cdef list held = [key[1:] for key in list(_inherited) if key[0] == <uint64_t>section]
    return held + [key[2:] for key in list(_counts) if key[0] == <uint64_t>section and key[1] == section.n_forks]


# -- dropping a hold ----------------------------------------------------------------------------------------

cdef int _drop_slowly(Hold hold, section_t* section) except -1:
    """Drop a hold, waiting for the gate as long as necessary.

    The last view is dropped in a destructor, which cannot raise: an exception from a signal handler would be printed and dropped, and
    the pin would stay.  So signal handlers do not run here.  A Ctrl-C that arrives meanwhile is raised after the destructor.
    """
    global _n_waiting
    cdef pin_call_t call
    with _counts_lock:
        _n_waiting += 1
        try:
            _counts[hold.key] -= 1
            if _counts[hold.key] == 0:
                del _counts[hold.key]
                call.payload_off, call.serial = hold.key[2], hold.key[3]
                if not section.departed:             # meanwhile, at exit
                    run_last_step(section, _unpin_step, &call)
        finally:
            _n_waiting -= 1
    return 0


cdef class Hold:
    """A view's claim on a block."""

    def __del__(self):
        cdef section_t* section
        cdef tuple key = self.key
        if key is None:
            return
        section = self.mapping.section
        if self.n_forks != section.n_forks or section.departed:          # departed: a daemon thread may have died in here
            return
        if _n_waiting != 0:
            _drop_slowly(self, section)
        elif _counts[key] > 1:
            _counts[key] -= 1
        elif block_unpin(section, key[2], key[3], DO_NOT_WAIT) == WOULD_BLOCK:
            _drop_slowly(self, section)
        else:
            del _counts[key]
        self.key = None


refuse_construction(Hold)
