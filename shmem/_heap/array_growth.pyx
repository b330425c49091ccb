# cython: language_level=3
"""Arrays that grow: rows are appended, and shapes changed, in place or by a larger array that takes the name.

An array that can grow has room for `capacity_bytes` from `data_off` on, in C order; a row has `strides[0]` bytes.  Its maximum shape
lies before the data.  Only `shape[0]` changes while the array lives; any other shape needs a new array.

The caller owns the array's gate (`array_gate.pyx`), so one participant at a time does this.  Readers are not held up: they take no gate,
and read `shape[0]` once.  The rows below what they read are complete, and stay where they are while the readers view the array.

In place::

    rows are written above shape[0]       a kill leaves them there: they are not part of the array
    shape[0]                              commit, under the heap gate.  Appending, growing and shrinking are this one store
    the version of the name               the second word of the same intent: recovery stores it if shape[0] was stored

If the name leads to another object by then, nothing is committed, and the caller looks the name up again.

With a new array, when the room is used up, or a dimension other than the first changes::

    a PENDING block                       a kill leaves nothing: recovery frees the block
    is filled with the old rows, and the new ones
    a copy of the attributes, for the new one  counts only if the next store was made (`attributes.pyx`)
    table_replace: the name's slot        commit, under the heap gate.  Recovery finishes it: the new array is USED, and the old one is
                                          freed, or ends with its last view

The old gate is open after that.  A thread that waited for it finds, by its name, the new array.  Views are looked for before the work, and
again under the heap gate before the commit, so that no participant can begin to view the old array in between.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._base.accessors cimport array_max_shape, array_pins, array_shape, array_strides, payload_to_block, round_up
from shmem._base.bounds cimport damaged
from shmem._base.layout cimport BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES, LINE_BYTES, MAX_DIMS, SERIAL_MASK, TYPE_ARRAY, array_t
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport ATTRIBUTES_CHANGED, BEYOND_MAXIMUM, CORRUPTED, NO_MEMORY, OK, PINNED
from shmem._heap.array_gate cimport array_enter, array_leave, array_set_rows, array_was_replaced, named_array_t
from shmem._heap.attributes cimport attributes_carry
from shmem._heap.heap cimport (
    HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_enter, heap_leave)
from shmem._heap.name_changes cimport replacement_t, table_replace
from shmem._heap.pins cimport block_is_viewed, pin_words


cdef inline array_t* _array(section_t* section, growth_t* growth) noexcept nogil:
    return <array_t*>(section.base + growth.array.payload_off)


cdef int _copy_shape(section_t* section, growth_t* growth) noexcept nogil:
    """Copy the shape so far.  CORRUPTED unless its rows have the size that the array's room was counted with, in C order."""
    cdef uint64_t step = growth.item_bytes, n
    cdef uint32_t i
    growth.former[0] = growth.array.n_rows
    for i in range(1, growth.array.n_dims):
        growth.former[i] = array_shape(_array(section, growth))[i]
        n = growth.former[i] if growth.former[i] != 0 else 1
        if damaged(step > growth.array.row_bytes // n):
            return CORRUPTED
        step *= n
    if damaged(step != growth.array.row_bytes or growth.n_bytes > growth.n_rows * growth.array.row_bytes):
        return CORRUPTED
    return OK


# -- in place -------------------------------------------------------------------------------------------------

cdef bint _is_beyond_maximum(section_t* section, growth_t* growth) noexcept nogil:
    cdef uint64_t* most = array_max_shape(_array(section, growth))
    cdef uint32_t i
    for i in range(growth.array.n_dims):
        if growth.shape[i] > most[i]:
            return True
    return False


cdef bint _fits_in_place(section_t* section, growth_t* growth) noexcept nogil:
    """Return whether the shape differs in the first dimension only, and there is room."""
    cdef uint32_t i
    for i in range(1, growth.array.n_dims):
        if growth.shape[i] != growth.former[i]:
            return False
    return growth.shape[0] <= growth.array.capacity_bytes // growth.array.row_bytes


cdef int _change_in_place(section_t* section, growth_t* growth) noexcept nogil:
    """Write the rows and show them; the gate is left if that is OK, and only then."""
    cdef named_array_t* array = &growth.array
    cdef char* end = section.base + array.payload_off + array.data_off + array.n_rows * array.row_bytes
    if growth.rows != NULL:
        memcpy(end, growth.rows, growth.n_bytes)
    elif growth.shape[0] > array.n_rows:
        memset(end, 0, (growth.shape[0] - array.n_rows) * array.row_bytes)
    return array_set_rows(section, array, growth.shape[0])


# -- by a new array -------------------------------------------------------------------------------------------

cdef uint64_t _row_bytes(growth_t* growth) noexcept nogil:
    """Return the bytes of a row of the new shape, whose elements the caller has bounded; an empty dimension counts as numpy does."""
    cdef uint64_t n_bytes = growth.item_bytes
    cdef uint32_t i
    for i in range(1, growth.array.n_dims):
        n_bytes *= growth.shape[i] if growth.shape[i] != 0 else 1
    return n_bytes


cdef void _write_header(section_t* section, growth_t* growth, array_t* made, uint64_t capacity_bytes) noexcept nogil:
    """Write the header of the new array: of the old one it has all but shape and strides, and what belongs to the old block."""
    cdef uint64_t step = growth.item_bytes
    cdef uint32_t i, n_dims = growth.array.n_dims
    memcpy(made, _array(section, growth), growth.array.data_off)
    made.data_off, made.data_bytes, made.n_dims, made.n_pin_words = growth.array.data_off, 0, <uint16_t>n_dims, pin_words(section)
    made.flags = made.n_names = made.n_claims = made.n_more_pins = 0
    made.append_gate = 0
    made.capacity_bytes = capacity_bytes
    for i in range(pin_words(section)):
        array_pins(made)[i] = 0
    for i in range(n_dims, 0, -1):
        array_shape(made)[i - 1] = growth.shape[i - 1]
        array_strides(made)[i - 1] = <int64_t>step
        step *= growth.shape[i - 1] if growth.shape[i - 1] != 0 else 1


cdef void _copy_elements(section_t* section, growth_t* growth, char* data) noexcept nogil:
    """Copy the elements that both shapes have: runs along the last dimension, in the order of all others."""
    cdef char* old_data = section.base + growth.array.payload_off + growth.array.data_off
    cdef uint64_t at[MAX_DIMS]
    cdef uint64_t n_shared[MAX_DIMS]
    cdef uint64_t old_item, new_item                         # numbers of elements
    cdef uint32_t i, last = growth.array.n_dims - 1
    for i in range(growth.array.n_dims):
        at[i] = 0
        n_shared[i] = growth.former[i] if growth.former[i] < growth.shape[i] else growth.shape[i]
        if n_shared[i] == 0:
            return
    while True:
        old_item = new_item = 0
        for i in range(last + 1):
            old_item = old_item * growth.former[i] + at[i]
            new_item = new_item * growth.shape[i] + at[i]
        memcpy(data + new_item * growth.item_bytes, old_data + old_item * growth.item_bytes, n_shared[last] * growth.item_bytes)
        i = last
        while i > 0:
            i -= 1
            at[i] += 1
            if at[i] < n_shared[i]:
                break
            at[i] = 0
        else:
            return


cdef void _fill(section_t* section, growth_t* growth, array_t* made) noexcept nogil:
    """Fill the new array with the old rows, and the rows to append or zeros."""
    cdef named_array_t* array = &growth.array
    cdef char* data = <char*>made + array.data_off
    if growth.rows != NULL:
        memcpy(data, section.base + array.payload_off + array.data_off, array.n_rows * array.row_bytes)
        memcpy(data + array.n_rows * array.row_bytes, growth.rows, growth.n_bytes)
    else:
        memset(data, 0, growth.shape[0] * _row_bytes(growth))
        _copy_elements(section, growth, data)


cdef int _allocate(section_t* section, growth_t* growth, uint64_t* new_off, uint64_t* capacity_bytes) noexcept nogil:
    """Allocate a PENDING block with room for more rows than needed; if there is no memory for that, with room for these rows."""
    cdef uint64_t row_bytes = _row_bytes(growth), most = section.size_bytes // row_bytes
    cdef uint64_t n_rows = rows_with_room(growth.shape[0], growth.array.max_rows, row_bytes), size_bytes
    cdef int status = NO_MEMORY
    if growth.shape[0] > most:
        return NO_MEMORY
    while status == NO_MEMORY:
        if n_rows <= most:
            capacity_bytes[0] = n_rows * row_bytes
            size_bytes = round_up(growth.array.data_off + capacity_bytes[0] + BLOCK_HEAD_BYTES + BLOCK_REAR_BYTES, LINE_BYTES)
            status = heap_allocate(section, size_bytes - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES, LINE_BYTES, 0, HEAP_PENDING | HEAP_STOP,
                                   new_off)
        if n_rows == growth.shape[0] or growth.shape[0] == 0:
            break
        n_rows = growth.shape[0]
    return status


cdef int _replace(section_t* section, growth_t* growth, replacement_t* change) noexcept nogil:
    """Let the filled array take the name, and the attributes of the old one."""
    cdef int status = ATTRIBUTES_CHANGED
    change.carried.old_off, change.carried.old_serial, change.carried.new_off = change.only_off, change.only_serial, change.new_off
    change.carried.entry_off = change.carried.copied_serial = 0
    while status == ATTRIBUTES_CHANGED:
        status = attributes_carry(section, &change.carried, WAIT_A_SLICE)
        if status == OK:
            status = table_replace(section, growth.array.anchor, &growth.array.name, change, WAIT_A_SLICE)
    if change.carried.entry_off != 0:
        heap_abandon(section, change.carried.entry_off)
    return status


cdef int _move(section_t* section, growth_t* growth) noexcept nogil:
    """Let a new array take the name; the gate is left if that is OK, and only then."""
    cdef replacement_t change
    cdef uint64_t capacity_bytes = 0
    cdef array_t* made
    cdef int status = heap_enter(section, WAIT_A_SLICE)
    if status != OK:
        return status
    if not growth.may_move and block_is_viewed(section, growth.array.payload_off):
        status = PINNED
    heap_leave(section)
    change.only_off, change.only_serial, change.may_move = growth.array.payload_off, growth.array.serial, growth.may_move
    change.is_pending, change.pending_type, change.new_off = True, TYPE_ARRAY, 0
    if status == OK:
        status = _allocate(section, growth, &change.new_off, &capacity_bytes)
    if status != OK:
        return status
    change.new_serial = block_at(section, payload_to_block(change.new_off)).serial & SERIAL_MASK
    made = <array_t*>(section.base + change.new_off)
    _write_header(section, growth, made, capacity_bytes)
    _fill(section, growth, made)
    status = _replace(section, growth, &change)
    if status == OK:
        array_was_replaced(section, &growth.array)
    else:
        heap_abandon(section, change.new_off)
    return status


cdef int _grow_entered(section_t* section, growth_t* growth) noexcept nogil:
    """Do the work as the owner of the gate, which is left if the status is OK."""
    cdef uint32_t i
    cdef int status = _copy_shape(section, growth)
    if status != OK:
        return status
    if growth.rows != NULL:
        if growth.n_rows > growth.array.max_rows - growth.array.n_rows:
            return BEYOND_MAXIMUM
        growth.shape[0] = growth.array.n_rows + growth.n_rows
        for i in range(1, growth.array.n_dims):
            growth.shape[i] = growth.former[i]
    elif _is_beyond_maximum(section, growth):
        return BEYOND_MAXIMUM
    if not _fits_in_place(section, growth):
        return _move(section, growth)
    return _change_in_place(section, growth)


cdef int array_grow(section_t* section, growth_t* growth) noexcept nogil:
    cdef int status = array_enter(section, &growth.array)
    if status != OK:
        return status
    status = _grow_entered(section, growth)
    if status != OK:
        array_leave(section, &growth.array)
    return status
