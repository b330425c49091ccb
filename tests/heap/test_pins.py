"""Pins in records and slots: damage to them, and to their index."""

import os

import pytest
from scribe import ABSENT_OWNER, EVERY_BIT, HEAD, HEAP_GATE, ROOT_OFF, Scribe
from workers import in_child

import shmem
from shmem._base.layout import (
    BLOCK_REAR_BYTES,
    LAYOUT,
    PIN_SLOT_SHIFT,
    PIN_UNNAMED,
    TAG_GATED,
    TYPE_PINS,
    read_tag,
)

WORD_BYTES = 8
HEADER, RECORD, BLOCK = LAYOUT["header_t"], LAYOUT["pin_record_t"], LAYOUT["block_t"]
PINS_OFF, N_RECORDS, SLOTS, N_SLOTS = (HEADER[name].offset for name in ("pins_off", "n_pin_records", "pin_slots", "n_pin_slots"))
N = 8

pytestmark = pytest.mark.damages


@pytest.fixture
def viewed(shm):
    """Return blocks with views: the first by a slot, the others by records; and the views."""
    blocks = [shm.allocate(50 + i) for i in range(N)]
    views = [memoryview(block) for block in blocks]
    for i, view in enumerate(views):
        view[:] = bytes([i]) * len(view)
    yield blocks, views
    for view in views:
        view.release()


@pytest.fixture
def scribe(shm):
    return Scribe(shm.path)


def records(scribe):
    """Return the offsets of the records, in the order of a walk through their index."""
    found, to_visit = [], [scribe[PINS_OFF]]
    while to_visit:
        at = to_visit.pop()
        if at:
            found.append(at)
            to_visit += RECORD["child_off"].read(scribe.bytes, at)
    return found


def test_records_and_slots(shm, scribe, viewed):
    blocks, views = viewed
    me = scribe[SLOTS] >> PIN_SLOT_SHIFT
    assert scribe[SLOTS] == me << PIN_SLOT_SHIFT | blocks[0].offset
    found = records(scribe)
    assert len(found) == scribe[N_RECORDS] == N - 1
    targets = {RECORD["target_off"].read(scribe.bytes, at) for at in found}
    assert targets == {block.offset for block in blocks[1:]}
    for at in found:
        assert read_tag(scribe[at - HEAD]).type_id == TYPE_PINS
        assert scribe[at + RECORD.size + me // 64 * WORD_BYTES] == 1 << me % 64
    report = shm.check_heap()
    assert (report.blocks, report.internal_blocks) == (N, N - 1)
    assert shm.stats().blocks == N
    for at in found:
        for use in (shm.free, shm.block):
            with pytest.raises(shmem.InvalidBlock):
                use(at)
    for view in views:
        view.release()
    assert (scribe[PINS_OFF], scribe[N_RECORDS], scribe[N_SLOTS], scribe[SLOTS]) == (0, 0, 0, 0)


def others_can_free(shm, offset):
    """Return whether a process without views of its own can free a block."""
    refused = 3

    def work():
        try:
            shm.free(offset)
        except shmem.InvalidBlock as error:
            os._exit(refused if error.status == shmem.Status.pinned else 1)

    status = in_child(work)
    assert status in (0, refused)
    return status == 0


def first_link(scribe):
    """Return the offset of a link in the first record that leads to another one."""
    links = RECORD["child_off"].at(scribe[PINS_OFF])
    return links if scribe[links] else links + WORD_BYTES


INDEX = {
    "no root": lambda s: (PINS_OFF, 0),
    "root beyond the end": lambda s: (PINS_OFF, 1 << 40),
    "root is a plain block": lambda s: (PINS_OFF, s[ROOT_OFF]),
    "count of records": lambda s: (N_RECORDS, EVERY_BIT),
    "no record counted": lambda s: (N_RECORDS, 0),
    "endless": lambda s: (first_link(s), s[PINS_OFF]),
    "child is not a record": lambda s: (first_link(s), s[ROOT_OFF]),
    "child is elsewhere": lambda s: (RECORD["child_off"].at(records(s)[-1]), records(s)[-2]),
    "child is lost": lambda s: (first_link(s), 0),
    "count of slots": lambda s: (N_SLOTS, 0),
    "block is not gated": lambda s: (
        s[RECORD["target_off"].at(s[PINS_OFF])] - HEAD,
        s[s[RECORD["target_off"].at(s[PINS_OFF])] - HEAD] & ~TAG_GATED,
    ),
}


@pytest.mark.parametrize("what", INDEX)
def test_damaged_index_is_detected_and_rebuilt(shm, scribe, viewed, what):
    """The records are the truth: pins count again once the index is rebuilt."""
    blocks, views = viewed
    shm.root = shm.allocate(10)
    at, value = INDEX[what](scribe)
    scribe[at] = value
    with pytest.raises(shmem.HeapCorruption, match="records of views"):
        shm.check_heap()
    scribe[HEAP_GATE] = ABSENT_OWNER  # the next owner of the gate recovers the heap
    shm.check_heap()
    assert len(records(scribe)) == scribe[N_RECORDS] == N - 1
    assert not any(others_can_free(shm, block.offset) for block in blocks)
    for i, view in enumerate(views):
        assert bytes(view) == bytes([i]) * len(view)
        view.release()
    shm.check_heap()
    assert scribe[PINS_OFF] == 0


SELF_REPAIRED = ["no root", "root beyond the end", "root is a plain block", "endless", "child is not a record"]


@pytest.mark.parametrize("use", ["free by others", "view again", "release", "delete a name"])
@pytest.mark.parametrize("what", SELF_REPAIRED)
def test_damaged_index_is_rebuilt_by_its_next_use(shm, scribe, viewed, what, use):
    blocks, views = viewed
    shm.root = shm.allocate(10)
    for i in range(N):
        shm[f"name {i}"] = blocks[i]
    at, value = INDEX[what](scribe)
    scribe[at] = value
    if use == "free by others":
        assert not any(others_can_free(shm, block.offset) for block in blocks)
    elif use == "view again":
        more = [memoryview(shm.allocate(20)) for _ in range(N)]
        assert len(more) == N
    elif use == "release":
        for view in views:
            view.release()
    else:
        for i in range(N):
            del shm[f"name {i}"]
        assert shm.stats().blocks == N + 1
        assert all(bytes(view) == bytes([i]) * len(view) for i, view in enumerate(views))
        for view in views:
            view.release()
        assert shm.stats().blocks == 1
    shm.check_heap()


CONTENT = {
    "no target": ("target_off", lambda old, s: 0),
    "target beyond the end": ("target_off", lambda old, s: 1 << 45),
    "target within a block": ("target_off", lambda old, s: old + 16),
    "target is a record": ("target_off", lambda old, s: s[PINS_OFF]),
    "serial": ("serial", lambda old, s: old ^ 1),
}


@pytest.mark.parametrize("what", CONTENT)
def test_damaged_record_is_detected_and_freed(shm, scribe, viewed, what):
    blocks, _ = viewed
    field, change = CONTENT[what]
    at = records(scribe)[-1]
    lost = RECORD["target_off"].read(scribe.bytes, at)
    RECORD[field].write(scribe.bytes, change(RECORD[field].read(scribe.bytes, at), scribe), at)
    with pytest.raises(shmem.HeapCorruption, match="records of views"):
        shm.check_heap()
    scribe[HEAP_GATE] = ABSENT_OWNER
    assert shm.check_heap().internal_blocks == N - 2
    assert [others_can_free(shm, block.offset) for block in blocks] == [block.offset == lost for block in blocks]
    shm.check_heap()


@pytest.mark.parametrize("slot", [EVERY_BIT, 1, 1 << 40, 200 << PIN_SLOT_SHIFT | 1 << 20])
def test_damaged_slot_is_detected_and_cleared(shm, scribe, viewed, slot):
    scribe[SLOTS + WORD_BYTES] = slot
    with pytest.raises(shmem.HeapCorruption, match="records of views"):
        shm.check_heap()
    scribe[HEAP_GATE] = ABSENT_OWNER
    shm.check_heap()
    assert scribe[SLOTS + WORD_BYTES] == 0
    assert scribe[N_SLOTS] == 1


def test_mark_of_a_lost_view_is_kept(shm, scribe, viewed):
    """Views of a damaged heap end without a change of it; recovery frees what they kept."""
    blocks, views = viewed
    shm["x"] = blocks[3]
    del shm["x"]
    marked = [at for at in records(scribe) if scribe[RECORD["serial"].at(at)] & PIN_UNNAMED]
    assert [scribe[RECORD["target_off"].at(at)] for at in marked] == [blocks[3].offset]
    broken = HEADER["broken"]
    broken.write(scribe.bytes, 1)
    views[3].release()
    memoryview(blocks[3]).release()  # a block of a damaged heap can be viewed
    assert scribe[RECORD["target_off"].at(marked[0])] == blocks[3].offset
    broken.write(scribe.bytes, 0)
    scribe[HEAP_GATE] = ABSENT_OWNER
    assert shm.check_heap().blocks == N - 1


def test_view_of_a_block_with_an_overwritten_end(shm, scribe):
    """It can be viewed, and its end is not freed by the last view."""
    shm["first"], shm["x"] = b"takes the slot", b"x" * 100
    first, block = memoryview(shm["first"]), shm["x"]
    end = block.offset - HEAD + read_tag(BLOCK["tag"].read(scribe.bytes, block.offset - HEAD)).size
    right = scribe[end - BLOCK_REAR_BYTES]
    scribe[end - BLOCK_REAR_BYTES] = 0
    view = memoryview(block)
    assert bytes(view) == b"x" * 100
    view.release()
    with pytest.raises(shmem.HeapCorruption, match="damaged"):
        shm.free(block)
    scribe[end - BLOCK_REAR_BYTES] = right
    shm.check_heap()
    first.release()
