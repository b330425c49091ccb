# cython: language_level=3
"""Pins: which participants have views of a block.

A pinned block is not freed by other participants.  A temporary array, or a block whose last name was removed, is freed with its last pin,
and not before its last claim has ended (`claims.pyx`).
Pins are set and cleared under the heap gate by their participant.  Those of dead participants do not count, and recovery clears them.  A
participant's count `pins` is incremented before its pin is set, and decremented after it is cleared: so recovery knows who left pins.

A pin is in one of three places:

* An array has one bit for each possible participant, after its shape and strides; a queue has them after its header.  A participant that
  changes the shape of an array (`array_gate.pyx`) pins it by the word of the gate that it owns.
* The header has some slots for pins of other blocks.  A slot holds participant and block in one word.  A participant uses one slot, so that
  a short view, as of most blocks, allocates nothing; more only if there is no memory for a record, so that a full section can be read.
* Otherwise the bits are in a record, a block of type TYPE_PINS, which has offset and serial of the pinned block.  The first pin makes the
  record, the last one that is cleared frees it, and so does the end of the pinned block.

A block that is pinned is gated, and stays so.  A block with a small tag that is not gated therefore has no pins, and its end costs nothing.

A queue may be freed at any time, and every use of it fails from then on.  Its participants may be anywhere inside it at that moment: before
a gate, in the middle of a copy, or stopped.  So the memory of a pinned queue is given to nothing else yet::

    USED      freed without a pin     -> HOLE or CACHED, as any block
    USED      freed with pins         -> DOOMED, by one store: for everything but pins and recovery it is a free block
    DOOMED    the last pin is cleared -> HOLE or CACHED, by the participant that clears it
    DOOMED    the last one is dead    -> HOLE, by recovery: `participant.pins` shows that it left something

The index of records.  Records form a binary tree, whose root is `header.pins_off`.  The path to a record is given by the bits of a product
of its target's offset, the highest first; an odd factor makes different paths of different offsets, so no path is longer than 64 steps,
and no damaged link makes a walk endless.  Tree and counts are an index: the chain of front tags has the truth, and recovery builds the
tree anew.

States of a record, and of the block that it pins.  The owner of the gate may be killed between any two steps; the next owner recovers::

    PENDING, filled    the record of a maker that was killed becomes a hole
    USED               heap_commit: the pin counts.  Without a place in the tree: recovery gives it one
    in the tree
    without pins       the last pin was cleared: recovery frees it, and the block, if that is unnamed
    block freed        heap_release of the block: the record's serial does not match any more, and recovery frees the record
    freed              taken out of the tree, then heap_release of the record

A slot is set and cleared by one store each.  A block that must end with its last pin (PIN_UNNAMED, or PIN_SLOT_UNNAMED in a slot) is freed
before the pin is cleared, so that no kill leaves it without a name, pin or mark.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shmem._atomics cimport fetch_add_seq_cst_u32, load_acquire_u32, store_release_u64
from shmem._base.accessors cimport (
    block_to_payload, payload_bytes, payload_to_block, queue_pins, record_pins, tag_size, tag_state, tag_type, type_is_internal)
from shmem._base.bounds cimport block_is_stale, block_room, damaged, heap_top, is_sealed, size_fits, used_tag
from shmem._base.layout cimport (
    ARRAY_TEMPORARY, ARRAY_UNNAMED, GOLDEN, PIN_SLOTS, PIN_SLOT_OFF_MASK, PIN_SLOT_SHIFT, PIN_SLOT_UNNAMED, PIN_UNNAMED, SERIAL_MASK,
    STATE_DOOMED, STATE_USED, TAG_GATED, TAG_SMALL, TAG_STATE_MASK, TYPE_ARRAY, TYPE_PINS, TYPE_QUEUE, array_t, block_t, pin_record_t,
    queue_t)
from shmem._base.owner cimport word_has_owner
from shmem._base.participants cimport ATTACHED_NEW, owner_is_alive, participant_entry_is_alive
from shmem._base.section cimport block_at, block_step, section_t
from shmem._base.status cimport CORRUPTED, NOT_FOUND, OK
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.name_counts cimport names_of

cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long value)

# -- the index ------------------------------------------------------------------------------------------

cdef bint tag_may_have_pins(section_t* section, uint64_t tag) noexcept nogil:
    return (section.header.pins_off | section.header.n_pin_records | section.header.n_pin_slots) != 0 and (
        not tag & TAG_SMALL or tag & TAG_GATED != 0) and tag_type(tag) != TYPE_ARRAY and tag_type(tag) != TYPE_QUEUE


cdef pin_record_t* pin_record(section_t* section, uint64_t record_off) noexcept nogil:
    cdef uint64_t tag = used_tag(section, record_off)
    if tag == 0 or tag_type(tag) != TYPE_PINS or payload_bytes(tag_size(tag)) < pin_record_bytes(section):
        return NULL
    return <pin_record_t*>(section.base + record_off)


cdef bint pin_can_have_target(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t tag = used_tag(section, payload_off)
    return tag != 0 and tag_type(tag) != TYPE_ARRAY and tag_type(tag) != TYPE_QUEUE and not type_is_internal(tag_type(tag))


cdef bint pin_target_is_right(section_t* section, uint64_t target_off, uint64_t serial) noexcept nogil:
    return pin_can_have_target(section, target_off) and not block_is_stale(block_at(section, payload_to_block(target_off)), serial)


cdef inline bint _belongs(const pin_record_t* record, uint64_t path, uint32_t n_steps) noexcept nogil:
    """Return whether the first steps of a path lead towards this record too."""
    return n_steps == 0 or (record.target_off * GOLDEN ^ path) >> (64 - n_steps) == 0


cdef int _find(section_t* section, uint64_t target_off, uint64_t** link, uint32_t* n_steps) noexcept nogil:
    cdef uint64_t path = target_off * GOLDEN
    cdef uint64_t* at = &section.header.pins_off
    cdef pin_record_t* record
    cdef uint32_t i
    if damaged(at[0] == 0 and section.header.n_pin_records != 0):
        return CORRUPTED
    for i in range(MOST_RECORDS_ON_A_PATH):
        link[0], n_steps[0] = at, i
        if at[0] == 0:
            return NOT_FOUND
        record = pin_record(section, at[0])
        if damaged(record == NULL or not _belongs(record, path, i)):
            return CORRUPTED
        if record.target_off == target_off:
            return OK
        at = &record.child_off[path << i >> 63]
    return CORRUPTED


cdef int pins_find(section_t* section, uint64_t target_off, uint64_t** link) noexcept nogil:
    cdef uint32_t n_steps = 0
    return _find(section, target_off, link, &n_steps)


cdef bint pins_are_sound(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t* link = NULL
    return pins_find(section, payload_off, &link) != CORRUPTED


cdef bint pins_have_record(section_t* section, uint64_t record_off) noexcept nogil:
    cdef pin_record_t* record = pin_record(section, record_off)
    cdef uint64_t* link = NULL
    return record != NULL and pins_find(section, record.target_off, &link) == OK and link[0] == record_off


cdef void pins_put_in(section_t* section, uint64_t* link, uint64_t record_off) noexcept nogil:
    cdef pin_record_t* record = <pin_record_t*>(section.base + record_off)
    record.child_off[0] = record.child_off[1] = 0
    store_release_u64(link, record_off)
    section.header.n_pin_records += 1


cdef int pins_take_out(section_t* section, uint64_t target_off, uint64_t* record_off) noexcept nogil:
    """Take a record out; the last record of a path that leads through it takes its place."""
    cdef uint64_t* link = NULL
    cdef uint64_t* leaf_link = NULL
    cdef uint64_t* below
    cdef uint64_t leaf_off = 0
    cdef pin_record_t* record
    cdef pin_record_t* leaf
    cdef uint32_t n_steps = 0, n_left = MOST_RECORDS_ON_A_PATH
    cdef int status = _find(section, target_off, &link, &n_steps)
    record_off[0] = 0
    if status != OK:
        return OK if status == NOT_FOUND else status
    record_off[0] = link[0]
    record = leaf = <pin_record_t*>(section.base + link[0])
    while n_left:
        below = &leaf.child_off[0] if leaf.child_off[0] != 0 else &leaf.child_off[1]
        if below[0] == 0:
            break
        leaf_link = below
        leaf = pin_record(section, below[0])
        if damaged(leaf == NULL or not _belongs(leaf, target_off * GOLDEN, n_steps)):
            return CORRUPTED
        n_left -= 1
    if damaged(n_left == 0):
        return CORRUPTED
    if leaf_link != NULL:
        leaf_off = leaf_link[0]
        leaf_link[0] = 0
        leaf.child_off[0], leaf.child_off[1] = record.child_off[0], record.child_off[1]
    store_release_u64(link, leaf_off)
    if section.header.n_pin_records:
        section.header.n_pin_records -= 1
    return OK


cdef void _count_slots(section_t* section) noexcept nogil:
    """Count the slots in use, and clear those for blocks that are not there."""
    cdef uint32_t i
    cdef uint64_t target_off
    section.header.n_pin_slots = 0
    for i in range(PIN_SLOTS):
        target_off = section.header.pin_slots[i] & PIN_SLOT_OFF_MASK
        if pin_can_have_target(section, target_off):
            block_set_gated(block_at(section, payload_to_block(target_off)))
            section.header.n_pin_slots += 1
        else:
            section.header.pin_slots[i] = 0


cdef bint _any_pins(section_t* section) noexcept nogil:
    cdef uint32_t i
    for i in range(section.max_participants):
        if section.participants[i].pins != 0:
            return True
    return False


cdef void pins_index_anew(section_t* section) noexcept nogil:
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag
    cdef uint64_t* link = NULL
    cdef pin_record_t* record
    cdef bint has_records = section.header.n_pin_records != 0 or _any_pins(section)
    _count_slots(section)
    section.header.pins_off = section.header.n_pin_records = 0
    if not has_records:
        return
    while off < top:
        tag = block_at(section, off).tag
        if tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_PINS:
            record = pin_record(section, block_to_payload(off))
            if (record != NULL and pin_target_is_right(section, record.target_off, record.serial)
                    and pins_find(section, record.target_off, &link) == NOT_FOUND):
                block_set_gated(block_at(section, payload_to_block(record.target_off)))
                pins_put_in(section, link, block_to_payload(off))
        off = block_step(section, off, tag_size(tag))


# -- the pins of a block --------------------------------------------------------------------------------

cdef uint64_t* array_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef array_t* array = <array_t*>(section.base + payload_off)
    cdef uint64_t pins_off = sizeof(array_t) + 16 * <uint64_t>array.n_dims
    if damaged(array.n_pin_words != pin_words(section)
               or pins_off + 8 * <uint64_t>pin_words(section) > block_room(section, payload_off)):
        return NULL
    return <uint64_t*>(section.base + payload_off + pins_off)


cdef uint64_t* _queue_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef queue_t* queue = <queue_t*>(section.base + payload_off)
    if damaged(block_room(section, payload_off) < sizeof(queue_t) + 8 * <uint64_t>pin_words(section)
               or queue.n_pin_words != pin_words(section)):
        return NULL
    return queue_pins(queue)


cdef uint64_t* block_checked_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the pin bits of an array or queue; NULL for any other block, or if its header places them outside of its block."""
    cdef uint64_t type_id = tag_type(block_at(section, payload_to_block(payload_off)).tag)
    if type_id == TYPE_ARRAY:
        return array_checked_pins(section, payload_off)
    return _queue_checked_pins(section, payload_off) if type_id == TYPE_QUEUE else NULL


cdef inline uint64_t _tag(section_t* section, uint64_t payload_off) noexcept nogil:
    return block_at(section, payload_to_block(payload_off)).tag


cdef bint block_has_own_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    return tag_type(_tag(section, payload_off)) == TYPE_ARRAY or tag_type(_tag(section, payload_off)) == TYPE_QUEUE


cdef pin_record_t* _record_of(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the record of a block that is not an array, or NULL."""
    cdef uint64_t* link = NULL
    if not tag_may_have_pins(section, _tag(section, payload_off)) or pins_find(section, payload_off, &link) != OK:
        return NULL
    return <pin_record_t*>(section.base + link[0])


cdef uint64_t* _bits_of(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the pin bits of a block; NULL if it has none, or its array header is damaged."""
    cdef pin_record_t* record
    if block_has_own_pins(section, payload_off):
        return block_checked_pins(section, payload_off)
    record = _record_of(section, payload_off)
    return record_pins(record) if record != NULL else NULL


cdef inline bint _pin_counts(section_t* section, uint32_t index, bint by_others, bint ask) noexcept nogil:
    """Return whether a participant's pin counts.

    The pins in an entry that was just taken (ATTACHED_NEW) are those of its former owner, which is dead.
    """
    if by_others and index + 1 == section.private.index_plus_1:
        return False
    return not ask or (load_acquire_u32(&section.participants[index].attached) != ATTACHED_NEW
                       and participant_entry_is_alive(section, index))


cdef inline uint32_t _slots_bound(section_t* section) noexcept nogil:
    """Return how many slots a search must look at: all, or none."""
    return PIN_SLOTS if section.header.n_pin_slots != 0 else 0


cdef inline bint _is_slot_of(uint64_t slot, uint64_t payload_off) noexcept nogil:
    return slot & PIN_SLOT_OFF_MASK == payload_off


cdef inline bint _is_mine(section_t* section, uint64_t slot) noexcept nogil:
    return slot != 0 and (slot >> PIN_SLOT_SHIFT) + 1 == section.private.index_plus_1


cdef bint _is_pinned_by_slot(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil:
    cdef uint32_t i, index
    for i in range(_slots_bound(section)):
        if _is_slot_of(section.header.pin_slots[i], payload_off):
            index = <uint32_t>(section.header.pin_slots[i] >> PIN_SLOT_SHIFT)
            if index < section.max_participants and _pin_counts(section, index, by_others, ask):
                return True
    return False


cdef bint _is_being_changed(section_t* section, uint64_t payload_off, bint ask) noexcept nogil:
    """Return whether a participant owns the gate of an array."""
    cdef uint64_t word
    if tag_type(_tag(section, payload_off)) != TYPE_ARRAY or array_checked_pins(section, payload_off) == NULL:
        return False
    word = (<array_t*>(section.base + payload_off)).append_gate
    return word_has_owner(word) and (not ask or owner_is_alive(section, word))


cdef bint block_is_viewed(section_t* section, uint64_t payload_off) noexcept nogil:
    if tag_type(_tag(section, payload_off)) == TYPE_ARRAY and (<array_t*>(section.base + payload_off)).n_claims != 0:
        return True
    return _is_viewed(section, payload_off, False, True)


cdef bint block_is_pinned(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil:
    return _is_viewed(section, payload_off, by_others, ask) or _is_being_changed(section, payload_off, ask)


cdef void block_copy_pins(section_t* section, uint64_t payload_off, uint64_t* bits) noexcept nogil:
    cdef uint64_t* pins = _bits_of(section, payload_off)
    cdef uint64_t slot
    cdef uint32_t i
    memset(bits, 0, 8 * <size_t>pin_words(section))
    if pins != NULL:
        memcpy(bits, pins, 8 * <size_t>pin_words(section))
    for i in range(_slots_bound(section)):
        slot = section.header.pin_slots[i]
        if _is_slot_of(slot, payload_off) and slot >> PIN_SLOT_SHIFT < section.max_participants:
            bits[slot >> PIN_SLOT_SHIFT >> 6] |= <uint64_t>1 << (slot >> PIN_SLOT_SHIFT & 63)
    for i in range(64 * pin_words(section)):
        if bits[i >> 6] >> (i & 63) & 1 and (i >= section.max_participants or not _pin_counts(section, i, False, True)):
            bits[i >> 6] &= ~(<uint64_t>1 << (i & 63))


cdef bint _is_viewed(section_t* section, uint64_t payload_off, bint by_others, bint ask) noexcept nogil:
    cdef uint64_t* pins = _bits_of(section, payload_off)
    cdef uint64_t bits
    cdef uint32_t i, index
    for i in range(pin_words(section) if pins != NULL else 0):
        bits = pins[i]
        while bits != 0:
            index = 64 * i + __builtin_ctzll(bits)
            bits &= bits - 1
            if index < section.max_participants and _pin_counts(section, index, by_others, ask):
                return True
    return tag_may_have_pins(section, _tag(section, payload_off)) and _is_pinned_by_slot(section, payload_off, by_others, ask)


cdef bint pins_are_none(section_t* section, pin_record_t* record) noexcept nogil:
    cdef uint32_t i
    for i in range(pin_words(section)):
        if record_pins(record)[i] != 0:
            return False
    return True


cdef inline void _set_bit(section_t* section, uint64_t* pins) noexcept nogil:
    cdef uint32_t me = section.private.index_plus_1 - 1
    if not pins[me >> 6] >> (me & 63) & 1:
        fetch_add_seq_cst_u32(&section.participants[me].pins, 1)
        pins[me >> 6] |= <uint64_t>1 << (me & 63)


cdef int pins_set_mine(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t* pins = _bits_of(section, payload_off)
    cdef uint32_t i
    if pins != NULL:
        _set_bit(section, pins)
        return OK
    if block_has_own_pins(section, payload_off):
        return CORRUPTED
    for i in range(_slots_bound(section)):
        if _is_mine(section, section.header.pin_slots[i]) and _is_slot_of(section.header.pin_slots[i], payload_off):
            return OK
    return NOT_FOUND


cdef bint pins_set_slot(section_t* section, uint64_t payload_off, bint only_first) noexcept nogil:
    cdef uint64_t me = section.private.index_plus_1 - 1
    cdef uint64_t n_to_see = section.header.n_pin_slots
    cdef uint32_t i, free = PIN_SLOTS
    for i in range(PIN_SLOTS):
        if only_first and _is_mine(section, section.header.pin_slots[i]):
            return False
        if section.header.pin_slots[i] != 0:
            n_to_see -= 1
        elif free == PIN_SLOTS:
            free = i
        if free != PIN_SLOTS and n_to_see == 0:
            break
    if free == PIN_SLOTS:
        return False
    block_set_gated(block_at(section, payload_to_block(payload_off)))
    fetch_add_seq_cst_u32(&section.participants[me].pins, 1)
    section.header.n_pin_slots += 1
    store_release_u64(&section.header.pin_slots[free], me << PIN_SLOT_SHIFT | payload_off)          # commit
    return True


cdef void pins_clear_slot(section_t* section, uint32_t i) noexcept nogil:
    store_release_u64(&section.header.pin_slots[i], 0)                                              # commit
    if section.header.n_pin_slots:
        section.header.n_pin_slots -= 1


cdef void pins_clear_mine(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint32_t me = section.private.index_plus_1 - 1, i
    cdef uint64_t* pins = _bits_of(section, payload_off)
    if pins != NULL:
        pins[me >> 6] &= ~(<uint64_t>1 << (me & 63))
    for i in range(_slots_bound(section)):
        if _is_mine(section, section.header.pin_slots[i]) and _is_slot_of(section.header.pin_slots[i], payload_off):
            pins_clear_slot(section, i)


cdef void pins_forget_slots(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint32_t i
    for i in range(_slots_bound(section)):
        if _is_slot_of(section.header.pin_slots[i], payload_off):
            pins_clear_slot(section, i)


# -- queues -----------------------------------------------------------------------------------------------

cdef bint block_doom_if_pinned(section_t* section, uint64_t payload_off) noexcept nogil:
    """Make a used queue that a live participant pins DOOMED, and return True; return False for any other block, which may be freed."""
    cdef block_t* block = block_at(section, payload_to_block(payload_off))
    if tag_type(block.tag) != TYPE_QUEUE or not block_is_pinned(section, payload_off, False, True):
        return False
    store_release_u64(&block.tag, block.tag & ~TAG_STATE_MASK | STATE_DOOMED)                      # commit: freed
    return True


cdef bint block_is_doomed(section_t* section, uint64_t payload_off, uint64_t serial) noexcept nogil:
    """Return whether the DOOMED block with this serial is at this offset, where the block with this serial was."""
    cdef uint64_t off = payload_to_block(payload_off)
    cdef block_t* block = block_at(section, off)
    return (off < heap_top(section) and tag_state(block.tag) == STATE_DOOMED and (block.serial ^ serial) & SERIAL_MASK == 0
            and size_fits(off, tag_size(block.tag), heap_top(section)) and is_sealed(section, off, tag_size(block.tag)))


# -- blocks without a name ------------------------------------------------------------------------------

cdef bint _is_unnamed_in_slot(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint32_t i
    for i in range(_slots_bound(section)):
        if _is_slot_of(section.header.pin_slots[i], payload_off) and section.header.pin_slots[i] & PIN_SLOT_UNNAMED:
            return True
    return False


cdef bint block_is_unreachable(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return whether a block without pins must be freed.

    The flags are only an index of the names: a process may have died after it named a block again and before it cleared them.
    """
    cdef array_t* array
    cdef pin_record_t* record
    if section.header.root_off == payload_off:
        return False
    if tag_type(_tag(section, payload_off)) != TYPE_ARRAY:
        record = _record_of(section, payload_off)
        return ((record != NULL and record.serial & PIN_UNNAMED != 0) or _is_unnamed_in_slot(section, payload_off)) and (
            names_of(section, payload_off) == 0)
    array = <array_t*>(section.base + payload_off)
    if array.flags & (ARRAY_TEMPORARY | ARRAY_UNNAMED) == 0 or array_checked_pins(section, payload_off) == NULL:
        return False                     # of an array with a damaged header it is not known who pins it
    if array.n_names != 0:
        array.flags &= ~(ARRAY_TEMPORARY | ARRAY_UNNAMED)
        return False
    return array.n_claims == 0


cdef void _mark_slots(section_t* section, uint64_t payload_off, uint64_t mark) noexcept nogil:
    cdef uint64_t* slot = section.header.pin_slots
    cdef uint32_t i
    for i in range(_slots_bound(section)):
        if _is_slot_of(slot[i], payload_off):
            store_release_u64(&slot[i], slot[i] & ~PIN_SLOT_UNNAMED | mark)


cdef bint block_waits_for_pins(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef pin_record_t* record
    cdef bint is_array = tag_type(_tag(section, payload_off)) == TYPE_ARRAY
    cdef bint has_claims = (is_array and block_room(section, payload_off) >= sizeof(array_t)
                            and (<array_t*>(section.base + payload_off)).n_claims != 0)
    if tag_type(_tag(section, payload_off)) == TYPE_QUEUE or not (has_claims or block_is_pinned(section, payload_off, False, True)):
        return False
    if is_array:
        (<array_t*>(section.base + payload_off)).flags |= ARRAY_UNNAMED
        return True
    record = _record_of(section, payload_off)
    if record != NULL:
        record.serial |= PIN_UNNAMED
    _mark_slots(section, payload_off, PIN_SLOT_UNNAMED)
    return True


cdef void block_was_named(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef pin_record_t* record
    if tag_type(_tag(section, payload_off)) == TYPE_ARRAY:
        (<array_t*>(section.base + payload_off)).flags &= ~(ARRAY_UNNAMED | ARRAY_TEMPORARY)
        return
    record = _record_of(section, payload_off)
    if record != NULL:
        record.serial &= ~PIN_UNNAMED
    _mark_slots(section, payload_off, 0)
