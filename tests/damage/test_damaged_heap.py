"""Overwritten heap, header and lock words raise specific errors, and never cause a crash or an endless loop."""

import contextlib
import os
import signal
import threading
import warnings

import pytest
from scribe import (
    ABSENT_OWNER,
    BLOCK,
    DRAIN,
    EVERY_BIT,
    GATE,
    GATE_READERS,
    GATE_WRITERS,
    HEADER,
    HEAP_GATE,
    HOLE,
    HOLE_BLOCKS,
    NEXT_SERIAL,
    PARTICIPANTS_HIGH,
    RESERVED,
    RING_OFF,
    TOP,
    UPGRADE,
    Scribe,
    outcome,
)  # fmt: skip

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_MAX_ALIGN_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    LAYOUT,
    MAX_SECTION_BYTES,
    SLACK_SHIFT,
    SLOT_EMPTY,
    SLOT_REMOVED,
)

pytestmark = pytest.mark.damages

MAX_SIZE = 1 << 22
INDEX, TABLE, SLOT = LAYOUT["free_index_t"], LAYOUT["name_table_t"], LAYOUT["name_slot_t"]
WORD_BYTES = 8
BEYOND = EVERY_BIT + 1 - BLOCK_MIN_BYTES  # an offset at which a block cannot lie


def tag_of(block):
    """Return the offset of the front tag of a block."""
    return block.offset - BLOCK_HEAD_BYTES


def slots_of(table, n_slots):
    """Return the offsets of the slots of a name table."""
    return range(table + TABLE.size, table + TABLE.size + SLOT.size * n_slots, SLOT.size)


def words_of(field):
    """Return the offsets of the words of an array in the index of free blocks, from its start."""
    return range(field.offset, field.end, WORD_BYTES)


@pytest.fixture(params=["tlsf", "next_fit"])
def shm(request):
    with shmem.SharedMemory(max_size=MAX_SIZE, index=request.param) as section:
        yield section


@pytest.fixture
def scribe(shm):
    return Scribe(shm.path)


@pytest.fixture
def hole(shm, scribe):
    """A hole whose tag has a size far beyond the section, as (the block before it, the offset of its tag)."""
    before, block, _behind = (shm.allocate(2000) for _ in range(3))
    shm.free(block)
    scribe[tag_of(block)] = 1 << 40 | HOLE
    return before, tag_of(block)


def test_allocate_from_an_oversized_hole(shm, hole):
    assert outcome(lambda: shm.allocate(1500)) == "HeapCorruption"


def test_free_beside_an_oversized_hole(shm, hole):
    assert outcome(lambda: shm.free(hole[0])) == "HeapCorruption"


def test_reallocate_into_an_oversized_hole(shm, hole):
    assert outcome(lambda: shm.reallocate(hole[0], 3000)) == "HeapCorruption"


@pytest.mark.parametrize("top", [MAX_SECTION_BYTES, EVERY_BIT, 0, MAX_SIZE + BLOCK_ALIGN_BYTES], ids=hex)
def test_top_outside_the_section(shm, scribe, top):
    block = shm.allocate(2000)
    hole = shm.allocate(2000)
    shm.allocate(2000)
    shm.free(hole)
    scribe[TOP] = top
    assert outcome(lambda: shm.allocate(1000)) in ("HeapCorruption", f"<shmem.Block of 1000 bytes at offset 0x{hole.offset:x}>")
    assert outcome(lambda: shm.allocate(100_000)) == "HeapCorruption"
    assert outcome(lambda: shm.free(block)) in ("HeapCorruption", "InvalidBlock")
    assert outcome(shm.trim) == "HeapCorruption"
    assert outcome(shm.check_heap) == "HeapCorruption"
    assert outcome(shm.stats) == "HeapCorruption"


def test_top_inside_a_block_overwrites_nothing(shm, scribe):
    block = shm.allocate(100_000)
    memoryview(block)[:] = b"x" * 100_000
    scribe[TOP] -= 50_000 // BLOCK_ALIGN_BYTES * BLOCK_ALIGN_BYTES
    assert outcome(lambda: shm.allocate(2000)) == "HeapCorruption"
    assert outcome(shm.trim) == "HeapCorruption"
    assert bytes(block) == b"x" * 100_000


def test_close_does_not_truncate_at_a_wrong_top(section_file):
    with shmem.SharedMemory(section_file, max_size=MAX_SIZE) as section:
        block = section.allocate(100_000)
        memoryview(block)[:] = b"x" * 100_000
        Scribe(section_file)[TOP] -= 50_000 // BLOCK_ALIGN_BYTES * BLOCK_ALIGN_BYTES
    with open(section_file, "rb") as file:
        assert b"x" * 100_000 in file.read()


def test_overwritten_end_of_the_last_block_keeps_top(shm):
    block = shm.allocate(2000)
    scribe = Scribe(shm.path)
    scribe[scribe[TOP] - BLOCK_REAR_BYTES] ^= 1
    shm.allocate(3000)
    with pytest.raises(shmem.HeapCorruption):  # and the damage is still reported
        shm.free(block)


def test_bytes_appended_to_a_closed_section_are_cleared(section_file):
    shmem.SharedMemory(section_file, max_size=MAX_SIZE).close()
    with open(section_file, "ab") as file:
        file.write(b"x" * (1 << 17))
    with shmem.SharedMemory(section_file) as section:
        assert bytes(section.allocate(100_000)) == bytes(100_000)


@pytest.mark.parametrize("reserved", [0, EVERY_BIT], ids=hex)
def test_reserved_out_of_bounds(shm, scribe, reserved):
    block = shm.allocate(100)
    scribe[RESERVED] = reserved
    assert outcome(lambda: len(bytes(shm.allocate(2_000_000)))) == "2000000"
    assert bytes(block) == bytes(100)
    assert scribe[TOP] <= scribe[RESERVED] <= MAX_SIZE


def test_serial_overflow(shm, scribe):
    scribe[NEXT_SERIAL] = EVERY_BIT
    assert outcome(lambda: len(shm.allocate(10))) == "10"


def test_slack_larger_than_the_block(shm, scribe):
    block = shm.allocate(10)
    scribe[BLOCK["serial"].at(tag_of(block))] |= 0xFF << SLACK_SHIFT
    assert outcome(lambda: shm.block(block.offset)) == "HeapCorruption"
    assert outcome(lambda: shm.reallocate(block, 3000)) == "HeapCorruption"
    assert outcome(shm.check_heap) == "HeapCorruption"


def test_cached_lists_outside_the_section(shm, scribe):
    for at in words_of(INDEX["cache_off"]):
        scribe[scribe.index(at)] = BEYOND
    assert outcome(shm.check_heap) == "HeapCorruption"
    assert outcome(lambda: len(shm.allocate(10))) == "10"


@pytest.mark.parametrize("filled", [0, 1, 31, EVERY_BIT - 1, EVERY_BIT])
@pytest.mark.parametrize("live", [0, 1, EVERY_BIT])
@pytest.mark.parametrize("n_names", [24, 100])
def test_wrong_counts_of_a_full_name_table(shm, scribe, n_names, live, filled):
    """The next name finds no free slot where one is expected, or a wrong number of names to move to a larger table."""
    for i in range(n_names):
        shm[f"n{i}"] = i
    table = HEADER["directory_off"].read(scribe.bytes)
    n_slots = TABLE["capacity"].read(scribe.bytes, table)
    if filled < n_slots:
        for at in slots_of(table, n_slots):
            if SLOT["entry_off"].read(scribe.bytes, at) == SLOT_EMPTY:
                SLOT["entry_off"].write(scribe.bytes, SLOT_REMOVED, at)
    before = bytes(scribe.bytes[: HEADER["top"].offset])
    TABLE["filled"].write(scribe.bytes, filled, table)
    TABLE["live"].write(scribe.bytes, live, table)

    def name_more():
        with contextlib.suppress(shmem.HeapCorruption):
            for i in range(n_names):
                shm[f"m{i}"] = i
        return {f"n{i}" for i in range(n_names)} <= set(shm)

    assert outcome(name_more) == "True"
    anchor = HEADER["directory_off"]
    assert bytes(scribe.bytes[: anchor.offset]) == before[: anchor.offset]
    assert bytes(scribe.bytes[anchor.end : len(before)]) == before[anchor.end :]


def test_name_table_of_one_slot_writes_nothing_elsewhere(shm, scribe):
    """Its only slot is taken, and its count is wrong: a slot at offset 0 is none."""
    shm["x"] = 1
    table = HEADER["directory_off"].read(scribe.bytes)
    slots = slots_of(table, TABLE["capacity"].read(scribe.bytes, table))
    taken = next(at for at in slots if SLOT["entry_off"].read(scribe.bytes, at) > SLOT_REMOVED)
    scribe.bytes[slots[0] : slots[0] + SLOT.size] = scribe.bytes[taken : taken + SLOT.size]
    TABLE["capacity"].write(scribe.bytes, 1, table)
    TABLE["filled"].write(scribe.bytes, EVERY_BIT, table)
    identity = bytes(scribe.bytes[: HEADER["max_size"].offset])
    shm["y"] = 2
    assert bytes(scribe.bytes[: HEADER["max_size"].offset]) == identity
    assert (shm["x"], shm["y"]) == (1, 2)


def test_endless_ring_of_holes():
    with shmem.SharedMemory(max_size=MAX_SIZE, index="next_fit") as shm:
        scribe = Scribe(shm.path)
        blocks = [shm.allocate(2000) for _ in range(6)]
        for block in blocks[::2]:
            shm.free(block)
        first = scribe[scribe.index(RING_OFF)]
        second = scribe[BLOCK["next_off"].at(first)]
        scribe[BLOCK["next_off"].at(second)] = second
        scribe[HOLE_BLOCKS] = 1 << 60
        assert outcome(lambda: len(shm.allocate(5000))) == "5000"


def test_participants_high_beyond_the_table(shm, scribe):
    scribe[PARTICIPANTS_HIGH] |= 0xFFFFFFFF

    def lock():
        with shmem.exclusive_lock(shm, timeout=5):
            return "locked"

    assert outcome(lock) == "locked"
    assert outcome(lambda: len(shm.stats().participants)) == "2"
    assert outcome(lambda: shm.check_heap().blocks) == "0"
    assert outcome(lambda: shm.allocate(MAX_SIZE - 10_000)) == "SectionFull"


def test_gates_of_absent_owners_are_taken_over(shm, scribe):
    """The named owner is not attached, so the next caller takes over the gate."""

    def all_of_it():
        warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
        with shmem.shared_lock(shm, timeout=5), shmem.exclusive_lock(shm, timeout=5):
            return len(shm.allocate(10))

    for word in (GATE, UPGRADE, HEAP_GATE):
        for owner in (ABSENT_OWNER, EVERY_BIT, 0xDEAD_0000_0000):
            scribe[word] = owner
            assert outcome(all_of_it) == "10", (word, hex(owner))
            shm.check_heap()


def test_channels_full_of_registrations(shm, scribe):
    def all_of_it():
        with shmem.shared_lock(shm, timeout=5):
            pass
        with shmem.exclusive_lock(shm, timeout=5):
            return "locked"

    for word in (GATE_READERS, GATE_WRITERS, DRAIN):
        scribe[word] = EVERY_BIT
        assert outcome(all_of_it) == "locked"


def test_gate_of_an_outside_process_times_out(shm, scribe, child):
    other = child("shm = shmem.SharedMemory(shared_name=args[0]); say('there'); input()", shm.name)
    assert other.hear() == "there"
    scribe[GATE] = scribe.owner_word(scribe.entry_of(other.process.pid))

    def lock():
        with shmem.exclusive_lock(shm, timeout=0.2):
            return "locked"

    assert outcome(lock) == "LockTimeout"
    other.kill()
    assert outcome(lock) == "OwnerDiedWarning"


def test_more_readers_than_threads_times_out(shm, scribe):
    readers = scribe.entry(scribe.entry_of(os.getpid()), "readers")
    scribe[readers] |= 1 << 31

    def lock():
        with shmem.exclusive_lock(shm, timeout=0.2):
            return "locked"

    assert outcome(lock) == "LockTimeout"
    scribe[readers] &= ~(1 << 31)


@pytest.mark.parametrize("what", ["allocate", "allocate much", "free", "check_heap", "stats", "look", "snapshot"])
def test_heap_gate_of_an_outside_process_can_be_interrupted(shm, scribe, tmp_path, what):
    block = shm.allocate(10)
    act = {
        "allocate": lambda: shm.allocate(10),
        "allocate much": lambda: shm.allocate(100_000),
        "free": lambda: shm.free(block),
        "check_heap": shm.check_heap,
        "stats": shm.stats,
        "look": lambda: shm.block(block.offset),
        "snapshot": lambda: shm.snapshot(tmp_path / "copy"),
    }[what]
    scribe[HEAP_GATE] = scribe.owner_word(scribe.entry_of(os.getpid()))

    def interrupted():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        act()

    assert outcome(interrupted) == "KeyboardInterrupt"
    scribe[HEAP_GATE] = 0


def test_free_beside_a_hole_with_an_overwritten_end(shm, scribe):
    """The index is repaired during the call, and the block is freed nevertheless."""
    block, hole, behind = (shm.allocate(2000) for _ in range(3))
    shm.free(hole)
    scribe[tag_of(behind) - BLOCK_REAR_BYTES] ^= 1
    shm.free(block)
    with pytest.raises(shmem.InvalidBlock):
        shm.block(block.offset)
    assert shm.check_heap().blocks == 1


def test_cached_blocks_of_a_damaged_list_are_reused(shm, scribe):
    blocks = [shm.allocate(1000) for _ in range(40)]
    shm.allocate(MAX_SIZE - scribe[TOP] - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES)
    for block in blocks:
        shm.free(block)
    for at in words_of(INDEX["cache_off"]):
        if scribe[scribe.index(at)]:
            scribe[scribe.index(at)] = BEYOND
    assert len(shm.allocate(20_000)) == 20_000
    shm.check_heap()


@pytest.mark.parametrize("align", [BLOCK_ALIGN_BYTES, BLOCK_MAX_ALIGN_BYTES])
def test_blocks_are_counted_once_while_the_index_is_rebuilt(align):
    """The free list for the rest of the hole, or for the gap before the block, leads outside the section."""
    with shmem.SharedMemory(max_size=MAX_SIZE) as shm:
        scribe = Scribe(shm.path)
        hole, _behind = shm.allocate(64_000), shm.allocate(2000)
        shm.free(hole)
        heads = list(words_of(INDEX["head_off"]))
        (found,) = [i for i, at in enumerate(heads) if scribe[scribe.index(at)] == tag_of(hole)]
        assert found > 24
        for at in heads[found - 24 : found]:
            scribe[scribe.index(at)] = BEYOND
        assert shm.allocate(20_000, align=align).offset < hole.offset + 64_000
        assert shm.check_heap().blocks == 2
