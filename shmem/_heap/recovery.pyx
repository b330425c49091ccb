# cython: language_level=3
"""Recovery: changes of killed processes are finished or undone, and every index is rebuilt from the chain of front tags.

Recovery runs under the heap gate, when

* a participant takes the gate over from a dead owner,
* a participant takes over the entry of a dead one that left something in the heap,
* an index is found damaged,
* a dead participant left something, and a participant attaches, an allocation is about to fail, an allocation looks for that as each
  LOOK_EVERY-th does, or the section is swept or checked,
* the first opener finds a section that was not closed, or the last participant leaves one in which something was left,
* an image is repaired (`_sections/image.pyx`).

It obeys the commit rule of `_heap/heap.pyx`: each change of the chain is one store, and everything that it makes visible is written
before it.  So recovery may be killed at any instruction and run again.

1. Walk the chain.  If it cannot be walked, set `broken`: the section can still be read, and each change raises HeapCorruption.
2. Put the records of pins into their index anew, and count the claims of each array.  Those of dead senders get an end.
3. Finish or undo the intents of dead participants.
4. Count the names of each block, and the slots of each name table.
5. Drop the pins of dead participants that lie in records and slots; free the records that are left without a pin, and the blocks
   whose last pin that was, if they are unnamed.
6. Drop the attributes of blocks that are gone, or go now.
7. Walk again.  PENDING blocks of dead participants, CACHED ones, and records and claims that are not in the index become holes.  Pins of
   dead participants in arrays and queues, and gates of arrays that they own, are dropped; arrays without name, pin and claim, and DOOMED
   blocks without a pin, are freed.  Adjacent holes merge.  Rear tags, free index and counters are rebuilt.
8. A hole at the end lowers `top`.
9. The counts of dead participants (pending blocks, pins) become zero, and a root that is not a used block is unset.

A participant found dead stays dead during recovery: a new owner of its entry recovers first, under the same gate.  Until it has done so
(ATTACHED_NEW), what the entry has in the heap is its former owner's, although the entry is alive.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport (
    compare_exchange_release_u64, load_acquire_u32, load_acquire_u64, load_relaxed_u64, store_release_u32, store_release_u64)
from shmem._base.accessors cimport (
    block_to_payload, payload_to_block, record_pins, seal, tag_make, tag_make_free, tag_size, tag_state, tag_type)
from shmem._base.bounds cimport damaged, heap_top, participants_bound
from shmem._base.debug cimport debug_fail
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, INTENT_FIRST_TYPE_SHIFT, INTENT_MOVE, INTENT_NONE, INTENT_RESIZE, INTENT_SECOND_TYPE_SHIFT,
    INTENT_SHRINK, INTENT_SWAP_SLOT, INTENT_SWAP_TWO, MAX_PARTICIPANTS, PIN_SLOTS, PIN_SLOT_OFF_MASK, PIN_SLOT_SHIFT, SERIAL_MASK,
    SLOT_REMOVED, STATE_CACHED, STATE_DOOMED, STATE_HOLE, STATE_PENDING, STATE_USED, TYPE_ARRAY, TYPE_CLAIM, TYPE_PINS, TYPE_QUEUE, array_t,
    block_t, intent_t, name_entry_t, name_slot_t, name_table_t, pin_record_t)
from shmem._base.owner cimport owner_index, word_has_owner
from shmem._base.participants cimport ATTACHED_NEW, owner_is_alive, participant_entry_is_alive, participant_left_something
from shmem._base.section cimport block_at, block_step, section_t, word_at
from shmem._base.status cimport CORRUPTED, OK
from shmem._heap.attributes cimport attributes_have_key, attributes_target_is_right
from shmem._heap.block_tags cimport block_set_gated
from shmem._heap.chain cimport FAULT_TOP, chain_first_fault, tag_is_plausible
from shmem._heap.claims cimport claim_is_listed, claims_index_anew, claims_orphan
from shmem._heap.free_index cimport index_insert, index_reset
from shmem._heap.intents cimport intent_end
from shmem._heap.name_counts cimport name_block_gone, names_recount
from shmem._heap.name_slots cimport table_capacity, table_entry, table_old, table_slot_off
from shmem._heap.pins cimport (
    block_checked_pins, block_doom_if_pinned, block_is_unreachable, block_waits_for_pins, pin_target_is_right, pin_words, pins_are_none,
    pins_clear_slot, pins_find, pins_have_record, pins_index_anew, pins_take_out)

cdef enum:
    DEAD_BYTES = 8192                # a bit for each of up to MAX_PARTICIPANTS

ctypedef struct dead_t:
    uint8_t bits[DEAD_BYTES]


cdef inline bint _is_dead(const dead_t* dead, uint64_t index) noexcept nogil:
    return index >= MAX_PARTICIPANTS or dead.bits[index >> 3] >> (index & 7) & 1


cdef inline bint _is_of_the_living(section_t* section, uint32_t index) noexcept nogil:
    """Return whether what an entry has in the heap belongs to a live participant."""
    return load_acquire_u32(&section.participants[index].attached) != ATTACHED_NEW and participant_entry_is_alive(section, index)


cdef void _find_dead(section_t* section, int64_t former, dead_t* dead) noexcept nogil:
    """Mark the entries whose owner is dead, or that have none, once, so that heap and pins are treated alike."""
    cdef uint32_t i, high = participants_bound(section)
    cdef bint is_alive
    memset(dead, 0xff, sizeof(dead_t))
    for i in range(section.max_participants):
        is_alive = former != ALL_PARTICIPANTS and former != i and i < high and _is_of_the_living(section, i)
        if is_alive:
            dead.bits[i >> 3] &= ~(1 << (i & 7))


cdef bint dead_left_something(section_t* section) noexcept nogil:
    """Return whether a dead participant left something in the heap."""
    cdef uint32_t i
    for i in range(participants_bound(section)):
        if participant_left_something(section, i) and not _is_of_the_living(section, i):
            return True
    return False


# -- intents --------------------------------------------------------------------------------------------

cdef block_t* _intent_block(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the block that an intent names; NULL if it does not name a plausible block."""
    cdef uint64_t off = payload_to_block(payload_off), top = heap_top(section)
    if payload_off & 15 or off < section.heap_start or off > top - BLOCK_MIN_BYTES:
        return NULL
    return block_at(section, off) if tag_is_plausible(off, load_relaxed_u64(&block_at(section, off).tag), top) else NULL


cdef bint _is_used(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef block_t* block = _intent_block(section, payload_off)
    return block != NULL and tag_state(block.tag) == STATE_USED


cdef void _make_block(section_t* section, uint64_t payload_off, uint64_t participant, uint64_t type_id) noexcept nogil:
    cdef block_t* block = _intent_block(section, payload_off)
    if block != NULL and tag_state(block.tag) == STATE_PENDING and tag_type(block.tag) == participant:
        store_release_u64(&block.tag, tag_make(tag_size(block.tag), STATE_USED, type_id, block.serial))


cdef void _drop_block(section_t* section, uint64_t payload_off) noexcept nogil:
    """Free a block; one that a live participant pins is freed with its last pin."""
    cdef block_t* block = _intent_block(section, payload_off)
    if block == NULL or tag_state(block.tag) != STATE_USED or block_waits_for_pins(section, payload_off):
        return
    if block_doom_if_pinned(section, payload_off):
        return
    store_release_u64(&block.tag, tag_make_free(tag_size(block.tag), STATE_HOLE))


cdef void resize_finish(section_t* section, intent_t* intent) noexcept nogil:
    """Do what follows the store that resizes a block in place; if that store was not made, undo its preparation."""
    cdef uint64_t off = intent.slot_off, size_bytes, cut_off
    cdef block_t* block = _intent_block(section, block_to_payload(off))
    if block == NULL or tag_state(block.tag) != STATE_USED:
        return
    size_bytes = tag_size(block.tag)
    cut_off = off + tag_size(intent.value)
    if block.tag == intent.value:
        store_release_u64(&block.serial, intent.make_off[0])
        if (intent.operation == INTENT_RESIZE and block_to_payload(off) <= intent.drop_off[1]
                and intent.drop_off[1] < intent.make_off[1] and intent.make_off[1] <= off + size_bytes - BLOCK_REAR_BYTES):
            memset(section.base + intent.drop_off[1], 0, intent.make_off[1] - intent.drop_off[1])
        return
    store_release_u64(&block.serial, intent.drop_off[0])
    if intent.operation == INTENT_SHRINK and off + BLOCK_MIN_BYTES <= cut_off and cut_off < off + size_bytes:
        word_at(section, cut_off - BLOCK_REAR_BYTES)[0] = intent.drop_off[1]
        word_at(section, cut_off)[0] = intent.make_off[1]


cdef inline bint _is_a_word(section_t* section, uint64_t off) noexcept nogil:
    return off & 7 == 0 and off < heap_top(section)              # an image ends at `top`


cdef void _finish_intent(section_t* section, uint32_t index) noexcept nogil:
    """Finish the change of a dead participant if its deciding store was made; else undo it."""
    cdef intent_t* intent = &section.intents[index]
    cdef uint64_t operation = load_acquire_u64(&intent.operation)
    cdef uint64_t slot_off = intent.slot_off, kind = operation & 0xffff
    cdef bint was_decided
    if operation == 0:
        return
    if _is_a_word(section, slot_off):
        was_decided = load_acquire_u64(word_at(section, slot_off)) == intent.value
        if kind == INTENT_RESIZE or kind == INTENT_SHRINK:
            resize_finish(section, intent)
        elif was_decided and (kind == INTENT_SWAP_SLOT or kind == INTENT_MOVE):
            _make_block(section, intent.make_off[0], index, operation >> INTENT_FIRST_TYPE_SHIFT & 0xffff)
            _make_block(section, intent.make_off[1], index, operation >> INTENT_SECOND_TYPE_SHIFT & 0xffff)
            _drop_block(section, intent.drop_off[0])
            _drop_block(section, intent.drop_off[1])
            if kind == INTENT_MOVE and section.header.root_off == block_to_payload(slot_off):
                store_release_u64(&section.header.root_off, intent.make_off[0])
        elif was_decided and kind == INTENT_SWAP_TWO and _is_a_word(section, intent.slot2_off) and intent.slot2_off >= section.heap_start:
            _make_block(section, intent.make_off[0], index, operation >> INTENT_FIRST_TYPE_SHIFT & 0xffff)
            store_release_u64(word_at(section, intent.slot2_off), intent.make_off[1])
            _drop_block(section, intent.drop_off[0])
    intent_end(intent)


# -- pins of the dead, other than those in arrays -----------------------------------------------------------

cdef bint _clear_dead_bits(section_t* section, uint64_t* pins, const dead_t* dead) noexcept nogil:
    """Clear the pin bits of dead participants; return whether no bit is left."""
    cdef uint64_t left = 0
    cdef uint32_t i
    for i in range(64 * pin_words(section)):
        if pins[i >> 6] >> (i & 63) & 1 and (i >= section.max_participants or _is_dead(dead, i)):
            pins[i >> 6] &= ~(<uint64_t>1 << (i & 63))
    for i in range(pin_words(section)):
        left |= pins[i]
    return left == 0


cdef bint _is_still_pinned(section_t* section, uint64_t target_off, const dead_t* dead) noexcept nogil:
    """Return whether a live participant pins a block, once the bits of dead ones are cleared."""
    cdef uint64_t* link = NULL
    cdef uint64_t slot
    cdef uint32_t i
    if pins_find(section, target_off, &link) == OK and not pins_are_none(section, <pin_record_t*>(section.base + link[0])):
        return True
    for i in range(PIN_SLOTS):
        slot = section.header.pin_slots[i]
        if slot & PIN_SLOT_OFF_MASK == target_off and not _is_dead(dead, slot >> PIN_SLOT_SHIFT):
            return True
    return False


cdef void _free_if_last(section_t* section, uint64_t target_off, const dead_t* dead) noexcept nogil:
    """Free a block that must end with its last pin, if that one is gone."""
    cdef block_t* block = block_at(section, payload_to_block(target_off))
    if block_is_unreachable(section, target_off) and not _is_still_pinned(section, target_off, dead):
        store_release_u64(&block.tag, tag_make_free(tag_size(block.tag), STATE_HOLE))


cdef void _drop_slots(section_t* section, const dead_t* dead) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t slot, target_off
    for i in range(PIN_SLOTS):
        slot = section.header.pin_slots[i]
        target_off = slot & PIN_SLOT_OFF_MASK
        if slot != 0 and (_is_dead(dead, slot >> PIN_SLOT_SHIFT) or not _is_used(section, target_off)):
            if _is_used(section, target_off):            # an intent may have dropped it
                _free_if_last(section, target_off, dead)
            pins_clear_slot(section, i)


cdef void _visit_records(section_t* section, const dead_t* dead, bint to_free) noexcept nogil:
    """Clear the bits of dead participants in each record, or with `to_free` free each record without a pin, and its block if unnamed."""
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag, record_off = 0
    cdef pin_record_t* record
    while off < top and section.header.n_pin_records != 0:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return                       # damaged meanwhile: the sweep reports it
        if tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_PINS and pins_have_record(section, block_to_payload(off)):
            record = <pin_record_t*>(section.base + block_to_payload(off))
            if not to_free:
                _clear_dead_bits(section, record_pins(record), dead)
            elif pins_are_none(section, record) or not pin_target_is_right(section, record.target_off, record.serial):
                if pin_target_is_right(section, record.target_off, record.serial):
                    _free_if_last(section, record.target_off, dead)
                pins_take_out(section, record.target_off, &record_off)       # the sweep frees it
        off = block_step(section, off, tag_size(tag))


cdef void _drop_recorded_pins(section_t* section, const dead_t* dead) noexcept nogil:
    """Drop the pins of dead participants in records and slots.  What this frees does not depend on where it is killed.

    First all bits are cleared, so that it is known which blocks have no pin left.  Their marks stay in records and slots until the
    blocks are freed.
    """
    _visit_records(section, dead, False)
    _drop_slots(section, dead)
    _visit_records(section, dead, True)


# -- the sweep --------------------------------------------------------------------------------------------

cdef bint _drop_dead_pins(section_t* section, uint64_t payload_off, const dead_t* dead) noexcept nogil:
    """Clear the pins of dead participants; return True if no other is left."""
    cdef uint64_t* pins = block_checked_pins(section, payload_off)
    cdef bint is_array = tag_type(block_at(section, payload_to_block(payload_off)).tag) == TYPE_ARRAY, keeps_gate
    if pins == NULL:                     # its header is damaged
        return not is_array
    keeps_gate = is_array and _keeps_gate(section, payload_off, dead)
    return _clear_dead_bits(section, pins, dead) and not keeps_gate


cdef bint _keeps_gate(section_t* section, uint64_t payload_off, const dead_t* dead) noexcept nogil:
    """Return whether a live participant changes the shape of an array; a dead one has left its gate."""
    cdef uint64_t* gate = &(<array_t*>(section.base + payload_off)).append_gate
    if not word_has_owner(gate[0]):
        return False
    if not _is_dead(dead, owner_index(gate[0])) and owner_is_alive(section, gate[0]):
        return True
    store_release_u64(gate, 0)
    return False


cdef bint _ends(section_t* section, uint64_t payload_off, uint64_t tag, const dead_t* dead) noexcept nogil:
    """Return whether recovery frees this block, after clearing the pins that dead participants have of it."""
    cdef uint64_t state = tag_state(tag)
    if state == STATE_PENDING:
        return _is_dead(dead, tag_type(tag))
    if state == STATE_USED and tag_type(tag) == TYPE_ARRAY:
        return _drop_dead_pins(section, payload_off, dead) and block_is_unreachable(section, payload_off)
    if state == STATE_DOOMED or (state == STATE_USED and tag_type(tag) == TYPE_QUEUE):
        return _drop_dead_pins(section, payload_off, dead) and state == STATE_DOOMED
    if state == STATE_USED and tag_type(tag) == TYPE_PINS:
        return not pins_have_record(section, payload_off)
    if state == STATE_USED and tag_type(tag) == TYPE_CLAIM:
        return not claim_is_listed(section, payload_off)
    return state == STATE_CACHED


cdef bint _shows_dropped(section_t* section, uint64_t slot_off, const dead_t* dead) noexcept nogil:
    """Return whether a slot shows attributes of a block that is gone, or that this recovery frees, or an entry that a killed one freed.

    A block that stays is gated from then on.
    """
    cdef name_entry_t* entry = table_entry(section, slot_off)
    cdef block_t* block
    cdef uint64_t target_off = 0, target_serial = 0
    if entry == NULL:
        block = _intent_block(section, (<name_slot_t*>(section.base + slot_off)).entry_off)
        return block != NULL and tag_state(block.tag) == STATE_HOLE
    if not attributes_have_key(entry, &target_off, &target_serial):
        return False                     # damaged: `check` repairs it
    if not attributes_target_is_right(section, target_off, target_serial):
        return True
    if target_off == 0:
        return False
    block = block_at(section, payload_to_block(target_off))
    block_set_gated(block)
    return _ends(section, target_off, block.tag, dead)


cdef void _drop_attributes(section_t* section, uint64_t table_off, const dead_t* dead) noexcept nogil:
    """Remove the attributes of blocks that end.  An entry is freed before its slot is changed: a kill leaves a slot that shows that."""
    cdef name_slot_t* slot
    cdef block_t* block
    cdef uint64_t i
    for i in range(table_capacity(section, table_off)):
        slot = <name_slot_t*>(section.base + table_slot_off(table_off, i))
        if slot.entry_off <= SLOT_REMOVED or not _shows_dropped(section, table_slot_off(table_off, i), dead):
            continue
        block = block_at(section, payload_to_block(slot.entry_off))
        if tag_state(block.tag) == STATE_USED:
            store_release_u64(&block.tag, tag_make_free(tag_size(block.tag), STATE_HOLE))
            (<name_table_t*>(section.base + table_off)).live -= 1           # which was counted a moment ago
            name_block_gone(section)
        store_release_u64(&slot.entry_off, SLOT_REMOVED)


cdef bint _becomes_hole(section_t* section, uint64_t off, uint64_t tag, const dead_t* dead) noexcept nogil:
    """Turn a block that recovery frees into a hole by one store; return True for every hole."""
    cdef block_t* block = block_at(section, off)
    cdef uint64_t state = tag_state(tag)
    if state == STATE_HOLE:
        block.serial = 0                 # a process may have died between the two stores that free
        return True
    if _ends(section, block_to_payload(off), tag, dead):
        if compare_exchange_release_u64(&block.tag, tag, tag_make_free(tag_size(tag), STATE_HOLE)):
            block.serial = 0
            return True
    return False


cdef void _keep_block(section_t* section, uint64_t off, uint64_t tag, uint64_t* last_serial) noexcept nogil:
    """Count a block that stays, and write its rear tag."""
    cdef block_t* block = block_at(section, off)
    cdef uint64_t size_bytes = tag_size(tag), end_off = off + size_bytes
    word_at(section, end_off - 8)[0] = seal(section.salt, size_bytes, end_off)
    section.header.used_blocks += 1
    section.header.used_bytes += size_bytes
    if (block.serial & SERIAL_MASK) > last_serial[0]:
        last_serial[0] = block.serial & SERIAL_MASK


cdef int _finish_hole(section_t* section, uint64_t off, uint64_t size_bytes) noexcept nogil:
    word_at(section, off + size_bytes - 8)[0] = seal(section.salt, size_bytes, off + size_bytes)
    return index_insert(section, off, size_bytes)


cdef int _sweep(section_t* section, const dead_t* dead) noexcept nogil:
    """Free, merge and seal block by block; rebuild the index and the counters."""
    cdef uint64_t off = section.heap_start, hole_off = 0, hole_bytes = 0, size_bytes, last_serial = 0, tag
    cdef uint64_t top = heap_top(section)
    cdef int status = OK
    index_reset(section)
    section.header.used_blocks = section.header.used_bytes = 0
    section.header.hole_blocks = section.header.hole_bytes = 0
    section.header.cached_blocks = section.header.cached_bytes = 0
    while off < top and status == OK:
        tag = load_acquire_u64(&block_at(section, off).tag)
        size_bytes = tag_size(tag)
        if damaged(not tag_is_plausible(off, tag, top)):         # it was plausible a moment ago
            return CORRUPTED
        if _becomes_hole(section, off, tag, dead):
            if hole_off == 0:
                hole_off, hole_bytes = off, size_bytes
            else:
                hole_bytes += size_bytes
                store_release_u64(&block_at(section, hole_off).tag, tag_make_free(hole_bytes, STATE_HOLE))
        else:
            if hole_off != 0:
                status = _finish_hole(section, hole_off, hole_bytes)
                hole_off = 0
            _keep_block(section, off, tag, &last_serial)
        off = block_step(section, off, size_bytes)
    if hole_off != 0 and status == OK:
        store_release_u64(&section.header.top, hole_off)
    if section.header.next_serial <= last_serial:
        section.header.next_serial = last_serial + 1
    return status


cdef int heap_recover(section_t* section, int64_t former) noexcept nogil:
    """Recover the heap: see the head of this file, and `recovery.pxd` for `former`."""
    cdef dead_t dead
    cdef bint found_intents = False
    cdef uint32_t i
    cdef int status
    cdef uint64_t fault_off = chain_first_fault(section)
    if fault_off != 0:
        if section.verify != NULL and former != ALL_PARTICIPANTS and section.header.broken == 0:
            if fault_off == FAULT_TOP:
                debug_fail(b"BAD_TOP", section.path, <char*>&section.header.top - section.base, section.size_bytes, section.header.top)
            debug_fail(b"BAD_TAG", section.path, fault_off, 0, block_at(section, fault_off).tag)
        store_release_u32(&section.header.broken, 1)
        return CORRUPTED
    _find_dead(section, former, &dead)
    pins_index_anew(section)             # an intent may drop a block, which a live participant may pin
    claims_index_anew(section)           # or a message claim
    for i in range(section.max_participants):
        if _is_dead(&dead, i):
            claims_orphan(section, i)
    for i in range(section.max_participants):
        # An intent exists only under the gate, which this thread holds.  Any intent in another entry is therefore a dead participant's,
        # even if the entry has a new owner.  The same holds for the one in this process's own entry, unless it is the caller's
        # (NO_PARTICIPANT), which finishes it itself
        if former != NO_PARTICIPANT or i + 1 != section.private.index_plus_1:
            found_intents |= load_acquire_u64(&section.intents[i].operation) != INTENT_NONE
            _finish_intent(section, i)
    if found_intents:
        claims_index_anew(section)       # a damaged intent may have changed the serial number of an array
    names_recount(section)               # blocks without a name end with their last pin
    _drop_recorded_pins(section, &dead)
    _drop_attributes(section, section.header.attributes_off, &dead)
    _drop_attributes(section, table_old(section, section.header.attributes_off), &dead)
    status = _sweep(section, &dead)
    if status != OK:
        store_release_u32(&section.header.broken, 1)
        return status
    for i in range(section.max_participants):
        if _is_dead(&dead, i):
            section.participants[i].pending = 0
            section.participants[i].pins = 0
    if section.header.root_off != 0 and not _is_used(section, section.header.root_off):
        store_release_u64(&section.header.root_off, 0)
    if section.header.root_off != 0:
        block_set_gated(block_at(section, payload_to_block(section.header.root_off)))
    if section.header.clean == 0:        # otherwise it was closed in order: only pins of views that were alive at exit are swept
        section.header.recoveries += 1
    store_release_u32(&section.header.broken, 0)
    return OK
