# cython: language_level=3
"""The gate of an array: one participant at a time changes the shape of an array, or seals it.

The gate is the word `append_gate` in the array's header::

    0                         free
    index, generation         a thread of that participant is inside
    the same, owner dead      free for the next one
    GATE_WAITERS              flag added to an owner: threads sleep on the word; the owner wakes one when it leaves

Other gates (`_sync/gate.pxd`) lie where they stay.  This one lies in a block, which may be freed, or replaced by a larger one, while
threads wait for it.  So the word is changed under the heap gate only, after a look at the block, and its owner pins the block:
`block_is_pinned` counts it as a participant with views.  A waiter sleeps without the heap gate and pins nothing.  It writes nothing while
it sleeps, and afterwards looks the name up again: it may lead to another array by then.

Every sleep is a slice, because a wake is lost if the thread that owes it is killed, or the block is freed.  A waiter that has waited for
a slice asks whether the owner is alive, and takes a dead one's place.  What the dead owner left needs no repair: see `array_growth.pyx`.

The owner's count of pins is incremented before it enters, and decremented after it has left, as for a view.  If it is killed inside,
recovery therefore comes here too: it opens the gate, and frees an array that waited for this pin.

The owner takes the heap gate, and waits for it, but for nothing else except space in the file.  It does not run Python code.

Sealing is one store of a flag, under the heap gate, while no participant views the array or is inside its gate.  A view that is opened
later finds the flag, since its pin is set under the same gate.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from shmem._atomics cimport (
    cpu_relax, fetch_add_seq_cst_u32, fetch_sub_seq_cst_u32, load_acquire_u64, load_relaxed_u64, store_release_u32, store_release_u64)
from shmem._base.accessors cimport array_max_shape, array_shape, array_strides, grown_header_bytes, payload_to_block, serial_slack, tag_type
from shmem._base.bounds cimport block_room, damaged
from shmem._base.layout cimport ARRAY_SEALED, MAX_DIMS, SERIAL_MASK, TYPE_ARRAY, array_t, name_entry_t
from shmem._base.owner cimport GATE_WAITERS, word_has_owner
from shmem._base.participants cimport my_entry, owner_is_alive
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport (
    CHANGED, CORRUPTED, INTERRUPTED, INVALID_BLOCK, NOT_GROWABLE, OK, PINNED, SEALED, WOULD_BLOCK)
from shmem._base.system cimport futex_wait, futex_wake
from shmem._heap.heap cimport (
    WAIT_A_SLICE, WAIT_FOREVER, heap_check_users_block, heap_enter, heap_enter_to_change, heap_leave, heap_release_with_pins, heap_wait_t)
from shmem._heap.intents cimport intent_begin_two, intent_end, my_intent
from shmem._heap.name_slots cimport name_t
from shmem._heap.name_versions cimport names_find_entry, names_notify, version_next
from shmem._heap.pins cimport array_checked_pins, block_is_pinned, block_is_unreachable, block_is_viewed
from shmem._sync.channel cimport SLICE_NS
from shmem._sync.gate cimport GATE_SPINS

cdef enum:
    ALL_WAITERS = 0x7fffffff


cdef inline array_t* _array(section_t* section, uint64_t payload_off) noexcept nogil:
    return <array_t*>(section.base + payload_off)


cdef int _find(section_t* section, uint64_t* anchor, const name_t* name, uint64_t* payload_off, uint64_t* serial) noexcept nogil:
    """Find, under the heap gate, the object that a name leads to: OK, NOT_FOUND, ALREADY_FREED, CORRUPTED."""
    cdef name_entry_t* entry = NULL
    cdef int status = names_find_entry(section, anchor, name, &entry)
    if status != OK:
        return status
    if damaged(entry.serial == 0):
        return CORRUPTED
    payload_off[0], serial[0] = entry.value, entry.serial & SERIAL_MASK
    return heap_check_users_block(section, payload_off[0], serial[0])


cdef int _find_array(section_t* section, named_array_t* call) noexcept nogil:
    cdef uint64_t serial = 0
    cdef int status = _find(section, call.anchor, &call.name, &call.payload_off, &serial)
    if serial != 0 and serial != call.serial:
        return CHANGED
    if status == OK and tag_type(block_at(section, payload_to_block(call.payload_off)).tag) != TYPE_ARRAY:
        return INVALID_BLOCK
    if status == OK and array_checked_pins(section, call.payload_off) == NULL:
        return CORRUPTED
    return status


cdef int _copy_facts(section_t* section, named_array_t* call) noexcept nogil:
    """Copy what the owner of the gate needs, and check it: OK, NOT_GROWABLE, CORRUPTED."""
    cdef array_t* array = _array(section, call.payload_off)
    cdef uint64_t room = block_room(section, call.payload_off)
    call.n_dims, call.data_off, call.capacity_bytes = array.n_dims, array.data_off, array.capacity_bytes
    if call.capacity_bytes == 0:
        return NOT_GROWABLE
    if damaged(call.n_dims == 0 or call.n_dims > MAX_DIMS or call.data_off > room or call.capacity_bytes > room - call.data_off
               or call.data_off & 7 or grown_header_bytes(call.n_dims, array.n_pin_words, array.dtype_bytes) > call.data_off):
        return CORRUPTED
    call.row_bytes = array_strides(array)[0]
    call.n_rows = load_acquire_u64(array_shape(array))
    call.max_rows = array_max_shape(array)[0]
    if damaged(call.row_bytes == 0 or call.n_rows > call.capacity_bytes // call.row_bytes or call.max_rows < call.n_rows):
        return CORRUPTED
    return OK


cdef bint _is_taken(section_t* section, named_array_t* call, uint64_t* gate_word) noexcept nogil:
    """Return, under the heap gate, whether another thread is inside; if so, it will wake those that sleep on `gate_word`."""
    cdef uint64_t* gate = &_array(section, call.payload_off).append_gate
    cdef uint64_t word = load_relaxed_u64(gate)
    if not word_has_owner(word) or (call.n_waits != 0 and not owner_is_alive(section, word)):
        return False
    gate_word[0] = word | GATE_WAITERS
    store_release_u64(gate, gate_word[0])
    return True


cdef int _try_enter(section_t* section, named_array_t* call, uint64_t* gate_word) noexcept nogil:
    """Make one attempt, under the heap gate: WOULD_BLOCK with the word to sleep on if another thread is inside."""
    cdef uint64_t* gate = &_array(section, call.payload_off).append_gate
    cdef uint64_t word = load_relaxed_u64(gate), waiters = 0 if call.n_waits == 0 else GATE_WAITERS
    if _is_taken(section, call, gate_word):
        return WOULD_BLOCK
    fetch_add_seq_cst_u32(&my_entry(section).pins, 1)
    store_release_u64(gate, section.private.owner_word | (word & GATE_WAITERS) | waiters)
    return OK


cdef int _wait(section_t* section, named_array_t* call, uint64_t word) noexcept nogil:
    """Wait until the word of the gate changes: OK, or INTERRUPTED after a slice or a signal.  The block may be freed meanwhile."""
    cdef uint64_t* gate = &_array(section, call.payload_off).append_gate
    cdef uint32_t n_spins = GATE_SPINS
    while n_spins:
        if load_relaxed_u64(gate) != word:
            return OK
        n_spins -= 1
        cpu_relax()
    if futex_wait(<uint32_t*>gate, <uint32_t>word, SLICE_NS) == OK:
        return OK
    call.n_waits += 1
    return INTERRUPTED


cdef int array_enter(section_t* section, named_array_t* call) noexcept nogil:
    cdef uint64_t word = 0
    cdef int status
    while True:
        status = heap_enter_to_change(section, WAIT_A_SLICE)
        if status != OK:
            return status
        status = _find_array(section, call)
        if status == OK and _array(section, call.payload_off).flags & ARRAY_SEALED:
            status = SEALED
        if status == OK:
            status = _copy_facts(section, call)
        if status == OK:
            status = _try_enter(section, call, &word)
        heap_leave(section)
        if status == WOULD_BLOCK:
            status = _wait(section, call, word)
            if status == OK:
                continue
        return status


cdef void array_was_replaced(section_t* section, named_array_t* call) noexcept nogil:
    fetch_sub_seq_cst_u32(&my_entry(section).pins, 1)
    futex_wake(<uint32_t*>&_array(section, call.payload_off).append_gate, ALL_WAITERS)


cdef void _leave_both(section_t* section, named_array_t* call) noexcept nogil:
    """Leave the gate of the array, and then the heap gate."""
    cdef uint64_t* gate = &_array(section, call.payload_off).append_gate
    cdef uint64_t word = load_relaxed_u64(gate)
    store_release_u64(gate, 0)
    if (section.header.broken == 0 and block_is_unreachable(section, call.payload_off)
            and not block_is_pinned(section, call.payload_off, False, True)):
        heap_release_with_pins(section, call.payload_off)
    fetch_sub_seq_cst_u32(&my_entry(section).pins, 1)
    heap_leave(section)
    if word & GATE_WAITERS:
        futex_wake(<uint32_t*>gate, 1)           # a thread that sleeps there, whatever the place holds by now, looks again


cdef void array_leave(section_t* section, named_array_t* call) noexcept nogil:
    if heap_enter(section, WAIT_FOREVER) == OK:
        _leave_both(section, call)


cdef int array_set_rows(section_t* section, named_array_t* call, uint64_t n_rows) noexcept nogil:
    cdef uint64_t* shape = array_shape(_array(section, call.payload_off))
    cdef uint64_t version
    cdef name_entry_t* entry = NULL
    cdef int status = heap_enter_to_change(section, WAIT_A_SLICE)
    if status != OK:
        return status
    status = names_find_entry(section, call.anchor, &call.name, &entry)
    if status == OK and (entry.value != call.payload_off or (entry.serial ^ call.serial) & SERIAL_MASK):
        status = CHANGED
    if status != OK:
        heap_leave(section)
        return status
    version = version_next(section)
    intent_begin_two(my_intent(section), 0, <char*>shape - section.base, n_rows, <char*>&entry.version - section.base, version, 0, 0)
    store_release_u64(shape, n_rows)                                                            # commit
    store_release_u64(&entry.version, version)
    intent_end(my_intent(section))
    _leave_both(section, call)
    names_notify(section, call.payload_off)
    return OK


# -- sealing ------------------------------------------------------------------------------------------------

cdef int _try_to_seal(section_t* section, named_array_t* call, uint64_t* gate_word) noexcept nogil:
    """Make one attempt, under the heap gate: WOULD_BLOCK with the word to sleep on if a thread is inside the array's gate."""
    cdef array_t* array = _array(section, call.payload_off)
    if array.flags & ARRAY_SEALED:
        return OK
    if _is_taken(section, call, gate_word):
        return WOULD_BLOCK
    if block_is_viewed(section, call.payload_off):
        return PINNED
    store_release_u32(&array.flags, array.flags | ARRAY_SEALED)                                 # commit
    return OK


cdef int array_seal(section_t* section, named_array_t* call) noexcept nogil:
    cdef uint64_t word = 0
    cdef int status
    while True:
        status = heap_enter_to_change(section, WAIT_A_SLICE)
        if status != OK:
            return status
        status = _find_array(section, call)
        if status == OK:
            status = _try_to_seal(section, call, &word)
        heap_leave(section)
        if status == WOULD_BLOCK:
            status = _wait(section, call, word)
            if status == OK:
                continue
        return status


# -- reading ------------------------------------------------------------------------------------------------

cdef int array_copy_header(section_t* section, header_call_t* call, heap_wait_t wait) noexcept nogil:
    cdef uint64_t room, n_bytes
    cdef int status = heap_enter(section, wait)
    call.header_bytes = 0
    if status != OK:
        return status
    status = _find(section, call.anchor, &call.name, &call.payload_off, &call.serial)
    if status == OK:
        call.type_id = tag_type(block_at(section, payload_to_block(call.payload_off)).tag)
        room = block_room(section, call.payload_off)
        call.n_bytes = serial_slack(block_at(section, payload_to_block(call.payload_off)).serial)
        call.n_bytes = room - call.n_bytes if call.n_bytes <= room else room
        if call.type_id == TYPE_ARRAY and damaged(room < sizeof(array_t) or _array(section, call.payload_off).data_off > room):
            status = CORRUPTED
        elif call.type_id == TYPE_ARRAY:
            call.header_bytes = n_bytes = _array(section, call.payload_off).data_off
            memcpy(call.copied, section.base + call.payload_off, n_bytes if n_bytes < call.room else call.room)
    heap_leave(section)
    return status
