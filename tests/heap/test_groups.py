"""Deleted groups: their list is an index, and a process that deletes a group, sweeps, attaches or finds no memory empties them."""

import numpy as np
import pytest
from scribe import ABSENT_OWNER, EVERY_BIT, HEAP_GATE, Scribe

import shmem
from shmem._base.layout import LAYOUT
from shmem._objects import directory

HEADER, GROUP = LAYOUT["header_t"], LAYOUT["group_t"]
DOOMED = HEADER["doomed_off"].offset


def leave_doomed(shm, *names):
    """Delete groups, and leave what is in them, as a process that is killed between two steps."""
    for name in names:
        directory.remove_name(shm, name)


@pytest.fixture
def full(shm):
    """A section with two groups, in which there are 10 and 5 objects."""
    for i in range(5):
        shm[f"a/deep/{i}"] = np.arange(50)
        shm[f"a/{i}"] = b"bytes"
        shm[f"b/{i}"] = b"bytes"
    assert shm.stats().blocks == 15
    return shm


def test_next_deletion_goes_on(full):
    leave_doomed(full, "a")
    full.check_heap()
    assert list(full) == ["b"]
    assert full.stats().blocks == 15
    del full["b/0"]  # an object, which takes the time of one name
    assert full.stats().blocks == 14
    del full["b"]
    assert full.stats().blocks == 0


def test_sweep_goes_on(full):
    leave_doomed(full, "a", "b")
    used = full.stats().used
    n_bytes = full.sweep()
    assert full.stats().blocks == 0
    assert n_bytes == used - full.stats().used > 0
    assert full.sweep() == 0


def test_next_process_that_attaches_goes_on(full, child):
    leave_doomed(full, "a")
    found = child("with shmem.SharedMemory(shared_name=args[0]) as section:\n    say(section.stats().blocks)", full.name).hear()
    assert found == "5"
    full.check_heap()


def test_allocation_goes_on_before_the_section_is_full(full):
    large = full.stats().largest_hole - 30_000
    full["a/large"] = bytes(large)
    leave_doomed(full, "a")
    assert full.allocate(large).nbytes == large
    assert full.stats().blocks == 6
    full.check_heap()


@pytest.mark.damages
def test_recovery_lists_deleted_groups(full):
    """A kill between the store that hides a name and the one that lists its group."""
    leave_doomed(full, "a")
    scribe = Scribe(full.path)
    assert scribe[DOOMED] != 0
    scribe[DOOMED] = 0
    scribe[HEAP_GATE] = ABSENT_OWNER
    full.check_heap()
    assert scribe[DOOMED] != 0
    full.sweep()
    assert full.stats().blocks == 5


def test_recovery_counts_names_in_groups(full):
    block = full.allocate(10)
    for name in ("one", "a/two", "b/three", "a/deep/four"):
        full[name] = block
    Scribe(full.path)[HEAP_GATE] = ABSENT_OWNER
    full.check_heap()
    for name in ("one", "a", "b"):
        assert bytes(block) == bytes(10)
        del full[name]
    with pytest.raises(shmem.InvalidBlock):
        bytes(block)
    assert full.stats().blocks == 0


@pytest.mark.damages
@pytest.mark.parametrize("word", [8, 16, EVERY_BIT, 1 << 40, "the directory", "a group with a name"])
def test_list_of_deleted_groups_is_damaged(full, word):
    """It is rebuilt, and nothing else is freed."""
    scribe = Scribe(full.path)
    leave_doomed(full, "a")
    if word == "the directory":
        word = scribe[HEADER["directory_off"].offset]
    elif word == "a group with a name":
        word = list(names_of_groups(full, scribe))[-1]
    scribe[DOOMED] = word
    with pytest.raises(shmem.HeapCorruption):
        full.check_heap()
    full.sweep()
    full.check_heap()
    assert list(full) == ["b"]
    assert len(full["b"]) == 5
    assert full.stats().blocks == 5


def names_of_groups(shm, scribe):
    """Yield the payload offset of each group of the directory."""
    table, slot, entry = LAYOUT["name_table_t"], LAYOUT["name_slot_t"], LAYOUT["name_entry_t"]
    at = scribe[HEADER["directory_off"].offset]
    for i in range(scribe[table["capacity"].at(at)]):
        found = scribe[slot["entry_off"].at(at + table.size + slot.size * i)]
        if found > 1:
            yield scribe[entry["value"].at(found)]


@pytest.mark.damages
def test_cursor_of_a_deleted_group_is_damaged(full):
    """What it passed over is freed nevertheless."""
    leave_doomed(full, "a")
    scribe = Scribe(full.path)
    scribe[GROUP["cursor"].at(scribe[DOOMED])] = 31
    full.sweep()
    full.check_heap()
    assert full.stats().blocks == 5


def test_view_keeps_an_array_of_a_deleted_group(full):
    array = full["a/deep/3"]
    del full["a"]
    full.check_heap()
    assert array.tolist() == list(range(50))
    assert full.stats().blocks == 6
    del array
    assert full.stats().blocks == 5


def test_large_group(full):
    """Emptying takes the heap gate many times, and frees what is in tables that grow."""
    for i in range(3000):
        full[f"b/large/{i}"] = b""
    del full["b"]
    full.check_heap()
    assert full.stats().blocks == 10
