# cython: language_level=3
"""`check_heap`: verify every structure of the heap without trusting any of them.

First it cleans up after dead participants, as an allocation does before it fails.  Then it walks the chain block by block,
and compares the free index and the cached lists with the counts of that walk.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport load_acquire_u64, load_relaxed_u64
from shmem._base.accessors cimport (
    array_max_shape, array_shape, array_strides, block_to_payload, entry_name, grown_header_bytes, payload_bytes, payload_to_block, seal,
    table_slots, tag_has_serial, tag_make_free, tag_size, tag_state, tag_type, type_is_internal)
from shmem._base.bounds cimport block_room, heap_top, slack_fits
from shmem._base.debug cimport HEAP_GATE, HOLDS_MEASURED, debug_dropped, debug_fail, debug_level
from shmem._base.layout cimport (
    BLOCK_MIN_BYTES, CACHE_BINS, INDEX_NEXT_FIT, NAMES_MANY, PIN_SLOTS, PIN_SLOT_OFF_MASK, PIN_SLOT_SHIFT, SERIAL_MASK, SLOT_EMPTY,
    SLOT_REMOVED, STATE_CACHED, STATE_DOOMED, STATE_HOLE, STATE_PENDING, TAG_GATED, TAG_SMALL, TLSF_FIRST_LEVELS, TLSF_SECOND_LEVELS,
    TYPE_ARRAY, TYPE_CLAIM, TYPE_GROUP, TYPE_PINS, array_t, block_t, claim_t, group_t, header_t, name_entry_t, name_slot_t, name_table_t,
    pin_record_t)
from shmem._base.owner cimport GATE_WAITERS, owner_index, word_has_owner
from shmem._base.section cimport block_at, block_step, section_t, word_at
from shmem._base.status cimport CORRUPTED, OK
from shmem._heap.attributes cimport attributes_have_key, attributes_target_is_right
from shmem._heap.cached_blocks cimport cache_bin_bytes
from shmem._heap.chain cimport FAULT_TOP, chain_first_fault, tag_is_plausible
from shmem._heap.claims cimport claim_at, claim_is_listed, claim_target_is_right, claims_of
from shmem._heap.free_index cimport hole_is_plausible, index_largest, tlsf_class
from shmem._heap.heap cimport WAIT_A_SLICE, heap_enter, heap_leave
from shmem._heap.name_counts cimport entry_leads_to_block, group_next, names_of
from shmem._heap.name_paths cimport group_in
from shmem._heap.name_slots cimport name_make, name_t, names_find, table_capacity, table_entry, table_old, table_shows, table_slot_off
from shmem._heap.pins cimport MOST_RECORDS_ON_A_PATH, pin_can_have_target, pin_record, pin_target_is_right, pins_have_record
from shmem._heap.recovery cimport NO_PARTICIPANT, dead_left_something, heap_recover

cdef enum:
    VERIFY_BLOCKS = 32


cdef Problem _say(heap_facts_t* facts, Problem problem, uint64_t off, uint64_t expected, uint64_t found) noexcept nogil:
    facts.bad_off = off
    facts.expected = expected
    facts.found = found
    return problem


cdef void _count(heap_facts_t* facts, uint64_t tag) noexcept nogil:
    cdef uint64_t size_bytes = tag_size(tag), state = tag_state(tag), type_id = tag_type(tag)
    if state == STATE_HOLE:
        facts.n_holes += 1
        facts.hole_bytes += size_bytes
        if size_bytes > facts.largest_hole:
            facts.largest_hole = size_bytes
    elif state == STATE_CACHED:
        facts.n_cached += 1
        facts.cached_bytes += size_bytes
    else:
        facts.n_used += 1
        facts.used_bytes += size_bytes
        if state == STATE_PENDING:
            facts.n_pending += 1
        elif type_is_internal(type_id):
            facts.n_internal += 1


cdef bint _rows_fit(section_t* section, array_t* array, uint64_t room) noexcept nogil:
    """Return whether the rows of an array that can grow fit its room.  Another process may change their number meanwhile."""
    cdef uint64_t row_bytes, n_rows
    if (array.n_dims == 0 or array.data_bytes != 0 or array.capacity_bytes > room - array.data_off
            or grown_header_bytes(array.n_dims, array.n_pin_words, array.dtype_bytes) > array.data_off):
        return False
    row_bytes = array_strides(array)[0]
    n_rows = load_acquire_u64(array_shape(array))
    return row_bytes != 0 and n_rows <= array.capacity_bytes // row_bytes and n_rows <= array_max_shape(array)[0]


cdef Problem _check_array(section_t* section, uint64_t off, heap_facts_t* facts) noexcept nogil:
    cdef array_t* array = <array_t*>(section.base + block_to_payload(off))
    cdef uint64_t room = block_room(section, block_to_payload(off))
    if (array.n_pin_words != (section.max_participants + 63) >> 6 or array.data_off > room
            or array.data_bytes > room - array.data_off
            or sizeof(array_t) + 16 * <uint64_t>array.n_dims + 8 * <uint64_t>array.n_pin_words + array.dtype_bytes > array.data_off):
        return _say(facts, BAD_ARRAY, off, room, array.data_off + array.data_bytes)
    if array.capacity_bytes != 0 and not _rows_fit(section, array, room):
        return _say(facts, BAD_ARRAY, off, room, array.data_off + array.capacity_bytes)
    if word_has_owner(array.append_gate) and owner_index(array.append_gate) >= section.max_participants:
        return _say(facts, BAD_ARRAY, off, 0, array.append_gate)
    facts.n_claims_of_arrays += array.n_claims
    if array.n_claims != 0:
        facts.claimed_bytes += tag_size(block_at(section, off).tag)
    return FINE


cdef bint _is_gated(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef uint64_t tag = block_at(section, payload_to_block(payload_off)).tag
    return not tag & TAG_SMALL or tag & TAG_GATED


cdef Problem _check_record(section_t* section, uint64_t off, heap_facts_t* facts) noexcept nogil:
    """Check one record of pins: its place in the index, and the block that it pins."""
    cdef pin_record_t* record = pin_record(section, block_to_payload(off))
    facts.n_records += 1
    if record == NULL or not pins_have_record(section, block_to_payload(off)):
        return _say(facts, BAD_PIN, off, 1, 0)
    if not pin_target_is_right(section, record.target_off, record.serial) or not _is_gated(section, record.target_off):
        return _say(facts, BAD_PIN, off, record.serial & SERIAL_MASK, record.target_off)
    return FINE


cdef Problem _check_claim(section_t* section, uint64_t off, heap_facts_t* facts) noexcept nogil:
    """Check one claim: its place in the list, its array, and its sender."""
    cdef claim_t* claim = claim_at(section, block_to_payload(off))
    facts.n_claims += 1
    if claim == NULL or not claim_is_listed(section, block_to_payload(off)):
        return _say(facts, BAD_CLAIM, off, 1, 0)
    if not claim_target_is_right(section, claim.target_off, claim.serial) or claims_of(section, claim.target_off) == 0:
        return _say(facts, BAD_CLAIM, off, claim.serial, claim.target_off)
    if claim.sender != 0:
        facts.n_claims_of_senders += 1
        if owner_index(claim.sender) >= section.max_participants or section.participants[owner_index(claim.sender)].claims == 0:
            return _say(facts, BAD_CLAIM, off, section.max_participants, claim.sender)
    return FINE


cdef Problem _check_block(section_t* section, uint64_t off, uint64_t tag, bint after_hole, heap_facts_t* facts) noexcept nogil:
    """Check one block: its rear tag, its serial, and whether it and the block before are both holes."""
    cdef block_t* block = block_at(section, off)
    cdef uint64_t size_bytes = tag_size(tag), end_off = off + size_bytes, rear
    cdef Problem problem
    if tag_state(tag) == STATE_HOLE and after_hole:
        return _say(facts, HOLES_TOUCH, off, 0, 0)
    rear = seal(section.salt, word_at(section, end_off - 8)[0], end_off)
    if rear != size_bytes:
        return _say(facts, BAD_REAR, off, size_bytes, rear)
    if tag_state(tag) == STATE_HOLE or tag_state(tag) == STATE_CACHED:
        return FINE
    if ((block.serial & SERIAL_MASK) >= section.header.next_serial or not slack_fits(block.serial, payload_bytes(size_bytes))
            or not tag_has_serial(tag, block.serial)):
        return _say(facts, BAD_SERIAL, off, section.header.next_serial, block.serial & SERIAL_MASK)
    if tag_state(tag) == STATE_PENDING or tag_state(tag) == STATE_DOOMED:
        return FINE
    problem = FINE
    if tag_type(tag) == TYPE_ARRAY:
        problem = _check_array(section, off, facts)
    elif tag_type(tag) == TYPE_PINS:
        problem = _check_record(section, off, facts)
    elif tag_type(tag) == TYPE_CLAIM:
        problem = _check_claim(section, off, facts)
    elif tag_type(tag) == TYPE_GROUP:
        facts.n_groups += 1
        if payload_bytes(size_bytes) < sizeof(group_t):
            return _say(facts, BAD_GROUP, off, sizeof(group_t), payload_bytes(size_bytes))
    if problem == FINE:
        facts.n_names += names_of(section, block_to_payload(off))
        if tag_type(tag) != TYPE_ARRAY and names_of(section, block_to_payload(off)) == NAMES_MANY:
            facts.has_many_names = True
    return problem


cdef Problem _check_chain(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef uint64_t off = section.heap_start, tag, top = heap_top(section)
    cdef bint after_hole = False
    cdef Problem problem
    while off < top:
        tag = load_relaxed_u64(&block_at(section, off).tag)
        if not tag_is_plausible(off, tag, top):              # it was plausible a moment ago
            return _say(facts, BAD_TAG, off, 0, tag)
        _count(facts, tag)
        problem = _check_block(section, off, tag, after_hole, facts)
        if problem != FINE:
            return problem
        after_hole = tag_state(tag) == STATE_HOLE
        off = block_step(section, off, tag_size(tag))
    if after_hole:
        return _say(facts, HOLE_AT_TOP, section.header.top, 0, 0)
    return FINE


cdef Problem _check_counts(section_t* section, heap_facts_t* facts) noexcept nogil:
    if facts.used_bytes + facts.hole_bytes + facts.cached_bytes != section.header.top - section.heap_start:
        return _say(facts, BAD_COUNT, section.header.top, section.header.top - section.heap_start,
                    facts.used_bytes + facts.hole_bytes + facts.cached_bytes)
    if facts.n_used != section.header.used_blocks or facts.used_bytes != section.header.used_bytes:
        return _say(facts, BAD_COUNT, section.heap_start, facts.n_used, section.header.used_blocks)
    if facts.n_holes != section.header.hole_blocks or facts.hole_bytes != section.header.hole_bytes:
        return _say(facts, BAD_COUNT, section.heap_start, facts.n_holes, section.header.hole_blocks)
    if facts.n_cached != section.header.cached_blocks or facts.cached_bytes != section.header.cached_bytes:
        return _say(facts, BAD_COUNT, section.heap_start, facts.n_cached, section.header.cached_blocks)
    if section.header.top > section.header.high_water or section.header.high_water > section.size_bytes:
        return _say(facts, BAD_BOUNDS, section.header.top, section.header.top, section.header.high_water)
    if section.header.top > section.header.reserved or section.header.reserved > section.size_bytes:
        return _say(facts, BAD_BOUNDS, section.header.top, section.header.top, section.header.reserved)
    return FINE


cdef Problem _check_tlsf(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check that each list has holes of its class, linked both ways, and that there are as many in all lists as in the chain."""
    cdef uint32_t first, second, first_found = 0, second_found = 0
    cdef uint64_t off, before, n_seen = 0
    for first in range(TLSF_FIRST_LEVELS):
        if (section.index.first_bitmap >> first & 1) != (section.index.second_bitmap[first] != 0):
            return _say(facts, BAD_INDEX, 0, first, section.index.second_bitmap[first])
        for second in range(TLSF_SECOND_LEVELS):
            off = section.index.head_off[first][second]
            if (section.index.second_bitmap[first] >> second & 1) != (off != 0):
                return _say(facts, BAD_INDEX, off, first, second)
            before = 0
            while off != 0:
                n_seen += 1
                if n_seen > facts.n_holes or not hole_is_plausible(section, off) or block_at(section, off).previous_off != before:
                    return _say(facts, BAD_INDEX, off, facts.n_holes, n_seen)
                tlsf_class(tag_size(block_at(section, off).tag), &first_found, &second_found)
                if first_found != first or second_found != second:
                    return _say(facts, BAD_INDEX, off, first, first_found)
                before = off
                off = block_at(section, off).next_off
    return FINE if n_seen == facts.n_holes else _say(facts, BAD_INDEX, 0, facts.n_holes, n_seen)


cdef Problem _check_next_fit(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef uint64_t off = section.index.rover_off, n_seen = 0, next_off
    while off != 0:
        n_seen += 1
        if n_seen > facts.n_holes or not hole_is_plausible(section, off):
            return _say(facts, BAD_INDEX, off, facts.n_holes, n_seen)
        next_off = block_at(section, off).next_off
        if not hole_is_plausible(section, next_off) or block_at(section, next_off).previous_off != off:
            return _say(facts, BAD_INDEX, off, off, next_off)
        if next_off == section.index.rover_off:
            break
        off = next_off
    return FINE if n_seen == facts.n_holes else _say(facts, BAD_INDEX, 0, facts.n_holes, n_seen)


cdef Problem _check_cache(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t off, size_bytes, n_seen = 0, n_here
    for i in range(CACHE_BINS):
        size_bytes = cache_bin_bytes(i)
        off = section.index.cache_off[i]
        n_here = 0
        while off != 0:
            n_here += 1
            n_seen += 1
            if (n_seen > facts.n_cached or off < section.heap_start or off & 15 or off > heap_top(section) - BLOCK_MIN_BYTES
                    or block_at(section, off).tag != tag_make_free(size_bytes, STATE_CACHED)):
                return _say(facts, BAD_CACHE, off, facts.n_cached, n_seen)
            off = block_at(section, off).next_off
        if n_here != section.index.cache_count[i]:
            return _say(facts, BAD_CACHE, 0, n_here, section.index.cache_count[i])
    return FINE if n_seen == facts.n_cached else _say(facts, BAD_CACHE, 0, facts.n_cached, n_seen)


cdef uint64_t _count_records(section_t* section, uint64_t record_off, uint64_t most, uint32_t depth) noexcept nogil:
    """Count the records in a part of the index, until there are more than `most`."""
    cdef pin_record_t* record = pin_record(section, record_off) if record_off != 0 else NULL
    cdef uint64_t n_seen = 1
    if record_off == 0:
        return 0
    if record == NULL or depth == 0:
        return most + 1
    n_seen += _count_records(section, record.child_off[0], most, depth - 1)
    if n_seen <= most:
        n_seen += _count_records(section, record.child_off[1], most - n_seen, depth - 1)
    return n_seen


cdef Problem _check_pins(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check that the index has no other records than the chain, and the slots of the header."""
    cdef uint64_t n_indexed = _count_records(section, section.header.pins_off, facts.n_records, MOST_RECORDS_ON_A_PATH)
    cdef uint64_t n_slots = 0, slot, target_off
    cdef uint32_t i
    if n_indexed != facts.n_records or section.header.n_pin_records != facts.n_records:
        return _say(facts, BAD_PIN, section.header.pins_off, facts.n_records, section.header.n_pin_records)
    for i in range(PIN_SLOTS):
        slot = section.header.pin_slots[i]
        target_off = slot & PIN_SLOT_OFF_MASK
        if slot == 0:
            continue
        n_slots += 1
        if (slot >> PIN_SLOT_SHIFT >= section.max_participants or not pin_can_have_target(section, target_off)
                or not _is_gated(section, target_off)):
            return _say(facts, BAD_PIN, <char*>&section.header.pin_slots[i] - section.base, 0, slot)
    if n_slots != section.header.n_pin_slots:
        return _say(facts, BAD_PIN, <char*>&section.header.n_pin_slots - section.base, n_slots, section.header.n_pin_slots)
    return FINE


cdef Problem _check_claims(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check the counts of claims.  Each claim is in the list, so the list has no others if it has as many."""
    cdef header_t* header = section.header
    cdef uint64_t n_sent = 0
    cdef uint32_t i
    for i in range(section.max_participants):
        n_sent += section.participants[i].claims
    if header.n_claims != facts.n_claims or facts.n_claims_of_arrays != facts.n_claims or n_sent != facts.n_claims_of_senders:
        return _say(facts, BAD_CLAIM, <char*>&header.n_claims - section.base, facts.n_claims, header.n_claims)
    if (header.claims_off != 0) != (facts.n_claims != 0) or header.claimed_bytes != facts.claimed_bytes:
        return _say(facts, BAD_CLAIM, <char*>&header.claimed_bytes - section.base, facts.claimed_bytes, header.claimed_bytes)
    return FINE


cdef Problem _check_slots(section_t* section, uint64_t table_off, bint lead_to_blocks, heap_facts_t* facts) noexcept nogil:
    """Check the slots of a table and their counts; count the names that lead to a block."""
    cdef uint64_t i, at, n_filled = 0, n_live = 0, capacity = table_capacity(section, table_off)
    cdef name_table_t* table = <name_table_t*>(section.base + table_off)
    cdef name_entry_t* entry
    for i in range(capacity):
        at = table_slot_off(table_off, i)
        if table_slots(table)[i].entry_off != SLOT_EMPTY:
            n_filled += 1
        if table_slots(table)[i].entry_off <= SLOT_REMOVED:
            continue
        n_live += 1
        entry = table_entry(section, at)
        if entry == NULL:
            return _say(facts, BAD_NAME, at, 0, (<name_slot_t*>(section.base + at)).entry_off)
        if entry.version > section.header.change_count:
            return _say(facts, BAD_NAME_COUNT, <char*>&section.header.change_count - section.base, entry.version,
                        section.header.change_count)
        if lead_to_blocks and entry_leads_to_block(section, entry):
            facts.n_linked += 1
            if names_of(section, entry.value) == 0 or not _is_gated(section, entry.value):
                return _say(facts, BAD_NAME_COUNT, payload_to_block(entry.value), 1, 0)
    if n_filled != table.filled or n_live != table.live:
        return _say(facts, BAD_NAME_COUNT, table_off, n_filled, table.filled)
    facts.n_name_blocks += 1 + n_live
    return FINE


cdef Problem _check_old(section_t* section, uint64_t table_off, uint64_t old_off, heap_facts_t* facts) noexcept nogil:
    """Check the table whose entries another one takes over: none is in both, and none in a slot that has been moved."""
    cdef uint64_t i, capacity = table_capacity(section, old_off), cursor = (<name_table_t*>(section.base + table_off)).cursor
    cdef name_slot_t* slots
    if capacity == 0 or old_off == table_off or table_old(section, old_off) != 0 or cursor > capacity:
        return _say(facts, BAD_NAME, table_off, cursor, old_off)
    slots = table_slots(<name_table_t*>(section.base + old_off))
    for i in range(capacity):
        if slots[i].entry_off > SLOT_REMOVED and (i < cursor or table_shows(section, table_off, slots[i].hash, slots[i].entry_off)):
            return _say(facts, BAD_NAME, table_slot_off(old_off, i), cursor, slots[i].entry_off)
    return FINE


cdef Problem _check_names(section_t* section, uint64_t table_off, bint lead_to_blocks, heap_facts_t* facts) noexcept nogil:
    """Check one table, and the one whose entries it takes over."""
    cdef uint64_t old_off = table_old(section, table_off)
    cdef Problem problem
    if table_off == 0:
        return FINE
    if table_capacity(section, table_off) == 0:
        return _say(facts, BAD_NAME, table_off, 0, 0)
    problem = _check_slots(section, table_off, lead_to_blocks, facts)
    if problem == FINE and old_off != 0:
        problem = _check_old(section, table_off, old_off, facts)
        if problem == FINE:
            problem = _check_slots(section, old_off, lead_to_blocks, facts)
    return problem


cdef Problem _check_doomed(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check that the list has no others than the groups without a name, each of which was counted."""
    cdef uint64_t group_off = section.header.doomed_off, n_seen = 0
    cdef group_t* group
    while group_off != 0:
        n_seen += 1
        group = group_in(section, group_off)
        if n_seen > facts.n_doomed or group == NULL or names_of(section, group_off) != 0:
            return _say(facts, BAD_GROUP, group_off, facts.n_doomed, n_seen)
        group_off = group.next_doomed_off
    return FINE if n_seen == facts.n_doomed else _say(facts, BAD_GROUP, section.header.doomed_off, facts.n_doomed, n_seen)


cdef Problem _check_groups(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check each group and its tables.  One with a name has exactly one, and is not in the list of deleted ones."""
    cdef uint64_t off = section.heap_start, group_off = group_next(section, &off)
    cdef group_t* group
    cdef Problem problem = FINE
    while group_off != 0 and problem == FINE:
        group = group_in(section, group_off)
        facts.n_name_blocks += 1
        facts.n_doomed += names_of(section, group_off) == 0
        if names_of(section, group_off) > 1 or (names_of(section, group_off) and (group.next_doomed_off | group.cursor) != 0):
            return _say(facts, BAD_GROUP, payload_to_block(group_off), 1, names_of(section, group_off))
        problem = _check_names(section, group.table_off, True, facts)
        group_off = group_next(section, &off)
    return problem if problem != FINE else _check_doomed(section, facts)


cdef Problem _check_all_names(section_t* section, heap_facts_t* facts) noexcept nogil:
    """Check all tables of names, the groups, and the counts that the blocks and the header keep."""
    cdef header_t* header = section.header
    cdef Problem problem = _check_names(section, header.directory_off, True, facts)
    if problem == FINE:
        problem = _check_names(section, header.types_off, False, facts)
    if problem == FINE:
        problem = _check_names(section, header.attributes_off, False, facts)
    if problem == FINE and (facts.n_groups != 0 or header.doomed_off != 0):
        problem = _check_groups(section, facts)
    if problem != FINE:
        return problem
    if facts.n_linked < facts.n_names or (facts.n_linked != facts.n_names and not facts.has_many_names):
        return _say(facts, BAD_NAME_COUNT, header.directory_off, facts.n_linked, facts.n_names)
    if header.name_blocks != facts.n_name_blocks:
        return _say(facts, BAD_NAME_COUNT, <char*>&header.name_blocks - section.base, facts.n_name_blocks, header.name_blocks)
    return FINE


cdef Problem _check_targets(section_t* section, uint64_t table_off, heap_facts_t* facts) noexcept nogil:
    """Check that each entry of the attributes belongs to a block in use, and is the only one of that block."""
    cdef uint64_t i, at, slot_off = 0, found_off = 0, target_off = 0, target_serial = 0
    cdef name_entry_t* entry
    cdef name_t name
    for i in range(table_capacity(section, table_off)):
        at = table_slot_off(table_off, i)
        entry = table_entry(section, at)
        if entry == NULL:
            continue
        if not attributes_have_key(entry, &target_off, &target_serial):
            return _say(facts, BAD_ATTRIBUTES, at, entry.value, target_off)
        if (not attributes_target_is_right(section, target_off, target_serial)
                or (target_off != 0 and not _is_gated(section, target_off))):
            return _say(facts, BAD_ATTRIBUTES, at, target_serial, target_off)
        name = name_make(entry_name(entry), entry.name_bytes)
        if names_find(section, section.header.attributes_off, &name, &slot_off, &found_off) != OK or slot_off != at:
            return _say(facts, BAD_ATTRIBUTES, at, at, slot_off)
    return FINE


cdef Problem _check_attributes(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef uint64_t table_off = section.header.attributes_off
    cdef Problem problem = _check_targets(section, table_off, facts)
    return _check_targets(section, table_old(section, table_off), facts) if problem == FINE else problem


cdef Problem heap_check_as_it_is(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef uint64_t fault = chain_first_fault(section)
    cdef Problem problem
    if fault == FAULT_TOP:
        return _say(facts, BAD_TOP, section.header.top, section.size_bytes, section.header.top)
    if fault != 0:
        return _say(facts, BAD_TAG, fault, 0, block_at(section, fault).tag)
    problem = _check_chain(section, facts)
    if problem == FINE:
        problem = _check_counts(section, facts)
    if problem == FINE:
        problem = _check_next_fit(section, facts) if section.header.index_kind == INDEX_NEXT_FIT else _check_tlsf(section, facts)
    if problem == FINE:
        problem = _check_cache(section, facts)
    if problem == FINE:
        problem = _check_all_names(section, facts)
    if problem == FINE:
        problem = _check_attributes(section, facts)
    if problem == FINE:
        problem = _check_pins(section, facts)
    if problem == FINE:
        problem = _check_claims(section, facts)
    if problem == FINE and section.header.broken:
        return _say(facts, MARKED_BROKEN, 0, 0, 1)
    return problem


cdef int heap_check(section_t* section, heap_facts_t* facts, Problem* problem) noexcept nogil:
    cdef int status
    memset(facts, 0, sizeof(heap_facts_t))
    problem[0] = FINE
    status = heap_enter(section, WAIT_A_SLICE)
    if status != OK:
        return status
    if section.header.broken == 0 and dead_left_something(section):
        heap_recover(section, NO_PARTICIPANT)
    problem[0] = heap_check_as_it_is(section, facts)
    heap_leave(section)
    return OK if problem[0] == FINE else CORRUPTED


cdef void heap_verify(section_t* section) noexcept nogil:
    """Check the gate's owner, the sums, and the heap: at each call with SHMEM_DEBUG=2, else so rarely that it averages 32 blocks a call."""
    cdef header_t* header = section.header
    cdef uint64_t word = load_relaxed_u64(&header.heap_gate), n_blocks = header.used_blocks + header.hole_blocks + header.cached_blocks
    cdef heap_facts_t facts
    cdef Problem problem
    if word & ~<uint64_t>GATE_WAITERS != section.private.owner_word:
        debug_fail(b"the heap gate is released by a process that does not own it", section.path, <char*>&header.heap_gate - section.base,
                   section.private.owner_word, word)
    debug_dropped(HEAP_GATE)
    if header.broken or debug_level == HOLDS_MEASURED:
        return
    if header.used_bytes + header.hole_bytes + header.cached_bytes != header.top - section.heap_start:
        debug_fail(b"BAD_COUNT: used, free and cached bytes do not add up", section.path, <char*>&header.used_bytes - section.base,
                   header.top - section.heap_start, header.used_bytes + header.hole_bytes + header.cached_bytes)
    section.n_to_verify += VERIFY_BLOCKS
    if section.n_to_verify < n_blocks and debug_level < 2:
        return
    section.n_to_verify = 0
    memset(&facts, 0, sizeof(heap_facts_t))
    problem = heap_check_as_it_is(section, &facts)
    if problem != FINE:
        debug_fail(problem_name(problem), section.path, facts.bad_off, facts.expected, facts.found)


cdef int heap_count(section_t* section, heap_facts_t* facts) noexcept nogil:
    cdef header_t* header = section.header
    cdef int status
    memset(facts, 0, sizeof(heap_facts_t))
    status = heap_enter(section, WAIT_A_SLICE)
    if status != OK:
        return status
    if heap_top(section) != header.top or header.used_bytes + header.hole_bytes + header.cached_bytes != header.top - section.heap_start:
        heap_leave(section)
        return CORRUPTED
    facts.n_used, facts.used_bytes = header.used_blocks, header.used_bytes
    facts.n_holes, facts.hole_bytes = header.hole_blocks, header.hole_bytes
    facts.n_cached, facts.cached_bytes = header.cached_blocks, header.cached_bytes
    facts.largest_hole = index_largest(section)
    facts.n_internal = header.name_blocks + header.n_pin_records + header.n_claims
    facts.n_claims, facts.claimed_bytes = header.n_claims, header.claimed_bytes
    heap_leave(section)
    return OK
