# cython: language_level=3
"""Versions of names, and the threads that wait for a change of one.

Each entry of the directory has a version: a number that `header.change_count` counts, under the heap gate, so that none is given twice, to
whatever name.  The count is an index, which recovery makes at least as large as every version in a table.  A process that is killed between
the count and the store of the version skips a number.

What gives a name a new version, and what wakes its waiters::

    insert                         a new entry has it                        no thread can wait for it yet
    replace; append, resize: move  the new entry that takes the slot         names_notify(the old value)
    append, resize in place        one change with shape[0] (SWAP_TWO)       names_notify(the value)
    touch                          one store into the entry                  names_notify(the value)
    rename                         the new entry, under the new name         names_notify(the value)
    rename of a group              the names in it keep theirs               names_notify_all
    remove                         the entry is gone                         names_notify(the value)
    remove a group                 the names in it are gone with it          names_notify_all

Waiters sleep on one of the channels in the header (`_sync/channel.pxd`), which the offset of the *value* selects.  It cannot lie in entry
or value: a waiter registers by a store, and the memory may belong to another block by then.  A waiter

1. registers on the channel of the value that it has seen,
2. looks the name up, under the heap gate: another version, value or no name ends the wait, or selects another channel,
3. sleeps for a slice.

A change is made under the heap gate, and its notification follows after the gate.  So a waiter that did not see the change in step 2 had
registered before it was made, and is woken; a name leads from its value to another one only by a change that notifies the channel of the
old value.  All registrations of a channel are removed and all its sleepers woken; those that wait for another value sleep again.  A process
that is killed between change and notification delays the waiters until the end of their slice, and so does recovery that completes a
change.
"""

from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport store_release_u64
from shmem._base.deadline cimport AT_ONCE, deadline_is_past
from shmem._base.layout cimport CHANGE_CHANNELS, GOLDEN, name_entry_t
from shmem._base.section cimport section_t
from shmem._base.status cimport CORRUPTED, INTERRUPTED, OK, TIMEOUT_EXPIRED
from shmem._heap.heap cimport WAIT_A_SLICE, heap_enter, heap_enter_to_change, heap_leave, heap_wait_t
from shmem._heap.name_paths cimport names_anchor
from shmem._heap.name_slots cimport name_t, names_find, table_entry
from shmem._sync.channel cimport ALL_WAITERS, SLICE_NS, channel_notify, channel_register, channel_sleep, channel_withdraw

cdef enum:
    CHANNELS_SHIFT = 58                  # the highest bits of a product select one of CHANGE_CHANNELS


cdef uint64_t version_next(section_t* section) noexcept nogil:
    store_release_u64(&section.header.change_count, section.header.change_count + 1)
    return section.header.change_count


cdef int names_find_entry(section_t* section, uint64_t* anchor, const name_t* name, name_entry_t** entry) noexcept nogil:
    cdef uint64_t* found = NULL
    cdef uint64_t slot_off = 0, table_off = 0
    cdef int status = names_anchor(section, anchor, name, &found)
    if status == OK:
        status = names_find(section, found[0], name, &slot_off, &table_off)
    if status != OK:
        return status
    entry[0] = table_entry(section, slot_off)
    return OK if entry[0] != NULL else CORRUPTED


# -- notifying ------------------------------------------------------------------------------------------

cdef inline uint64_t* _channel(section_t* section, uint64_t value) noexcept nogil:
    return &section.header.change_channels[value * <uint64_t>GOLDEN >> CHANNELS_SHIFT]


cdef void names_notify(section_t* section, uint64_t value) noexcept nogil:
    channel_notify(_channel(section, value), ALL_WAITERS)


cdef void names_notify_all(section_t* section) noexcept nogil:
    cdef uint32_t i
    for i in range(CHANGE_CHANNELS):
        channel_notify(&section.header.change_channels[i], ALL_WAITERS)


# -- versions -------------------------------------------------------------------------------------------

cdef int version_of(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* value, uint64_t* version,
                    heap_wait_t wait) noexcept nogil:
    cdef name_entry_t* entry = NULL
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    status = names_find_entry(section, anchor, name, &entry)
    if status == OK:
        value[0], version[0] = entry.value, entry.version
    heap_leave(section)
    return status


cdef int version_touch(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* version, heap_wait_t wait) noexcept nogil:
    cdef name_entry_t* entry = NULL
    cdef uint64_t value = 0
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    status = names_find_entry(section, anchor, name, &entry)
    if status == OK:
        value, version[0] = entry.value, version_next(section)
        store_release_u64(&entry.version, version[0])                                               # commit
    heap_leave(section)
    if status == OK:
        names_notify(section, value)
    return status


# -- waiting --------------------------------------------------------------------------------------------

cdef int _look(section_t* section, name_wait_t* call, uint64_t* value) noexcept nogil:
    """Look the name up: OK, TIMEOUT_EXPIRED too if the deadline passes while another process keeps the gate."""
    cdef int status = version_of(section, call.anchor, &call.name, value, &call.version, WAIT_A_SLICE)
    if status == INTERRUPTED and deadline_is_past(call.deadline_ns):
        return TIMEOUT_EXPIRED
    if status == OK and not call.has_since:
        call.since, call.has_since = call.version, True
    return status


cdef int _sleep(section_t* section, name_wait_t* call, uint64_t value) noexcept nogil:
    """Sleep for a slice on the channel of a value, unless the name has changed: OK to look again, else as `version_wait`."""
    cdef uint64_t* channel = _channel(section, value)
    cdef uint32_t sequence = channel_register(channel)
    cdef int woken, status = _look(section, call, &value)
    if status != OK or call.version != call.since or _channel(section, value) != channel:
        channel_withdraw(channel, sequence)
        return status
    woken = channel_sleep(channel, sequence, call.deadline_ns, SLICE_NS)
    if woken == 0:
        return OK
    channel_withdraw(channel, sequence)
    status = _look(section, call, &value)
    if status != OK or call.version != call.since:
        return status
    return TIMEOUT_EXPIRED if deadline_is_past(call.deadline_ns) else INTERRUPTED


cdef int version_wait(section_t* section, name_wait_t* call) noexcept nogil:
    cdef uint64_t value = 0
    cdef int status = _look(section, call, &value)
    while status == OK and call.version == call.since:
        if call.deadline_ns == AT_ONCE:
            return TIMEOUT_EXPIRED
        status = _sleep(section, call, value)
        if status == OK and call.version == call.since:
            status = _look(section, call, &value)
    return status
