"""Blocks count the names that lead to them, and the tags of small blocks repeat the serial number."""

import numpy as np
import pytest
from scribe import ABSENT_OWNER, HEAD, HEAP_GATE, Scribe

import shmem
from shmem._base.layout import LAYOUT, NAMES_MANY, NAMES_SHIFT, STATE_USED, TAG_SMALL_SIZE_MASK, read_tag
from shmem._objects import finding

BLOCK, ARRAY, TABLE = LAYOUT["block_t"], LAYOUT["array_t"], LAYOUT["name_table_t"]
LARGE = TAG_SMALL_SIZE_MASK


def offset_of(shm, obj):
    return finding.locate(shm, obj)[0]


def n_names(shm, obj):
    """Return the number of names that the block of an object has counted."""
    scribe = Scribe(shm.path)
    if isinstance(obj, np.ndarray):
        return ARRAY["n_names"].read(scribe.bytes, offset_of(shm, obj))
    return scribe[BLOCK["serial"].at(obj.offset - HEAD)] >> NAMES_SHIFT


def tag_of(shm, obj):
    return read_tag(Scribe(shm.path)[obj.offset - HEAD])


@pytest.mark.parametrize("size", [10, LARGE])
def test_names_of_a_block_are_counted(shm, size):
    block = shm.allocate(size)
    counted = [n_names(shm, block)]
    for i in range(5):
        shm[f"n{i}"] = block
        counted.append(n_names(shm, block))
    for i in range(5):
        del shm[f"n{i}"]
        counted.append(n_names(shm, block) if i < 4 else 0)
    assert counted == [0, 1, 2, *[NAMES_MANY] * 3, NAMES_MANY, NAMES_MANY, 2, 1, 0]
    shm.check_heap()
    with pytest.raises(shmem.InvalidBlock):
        bytes(block)  # freed with its last name


def test_removal_of_one_of_many_names(shm):
    """The count of three or more is found by a search when one is removed."""
    block, other = shm.allocate(10), shm.allocate(10)
    for i in range(4):
        shm[f"n{i}"], shm[f"m{i}"] = block, other
    for i in range(4):
        del shm[f"n{i}"]
    shm.check_heap()
    assert n_names(shm, other) == NAMES_MANY
    bytes(other)


def test_serial_in_a_small_tag(shm):
    small, large = shm.allocate(10), shm.allocate(LARGE)
    assert tag_of(shm, small).state == tag_of(shm, large).state == STATE_USED
    assert tag_of(shm, small).serial == finding.locate(shm, small)[1]
    assert tag_of(shm, large).serial is None


@pytest.mark.parametrize("size", [10, LARGE - 48, LARGE - 24, LARGE - 23, LARGE])
@pytest.mark.parametrize("to", [10, LARGE - 48, LARGE - 24, LARGE - 23, 3 * LARGE])
def test_reallocation_between_the_formats(shm, size, to):
    block = shm.allocate(size)
    memoryview(block)[:] = b"x" * size
    new = shm.reallocate(block, to)
    shm.check_heap()
    tag = tag_of(shm, new)
    assert tag.is_right
    assert (tag.serial is None) == (tag.size > TAG_SMALL_SIZE_MASK)
    assert bytes(new)[: min(size, to)] == b"x" * min(size, to)
    shm.free(new)
    shm.check_heap()


def test_named_and_root_blocks_are_gated(shm):
    plain, named, root = shm.allocate(10), shm.allocate(10), shm.allocate(10)
    shm["x"], shm.root = named, root
    assert [tag_of(shm, block).is_gated for block in (plain, named, root)] == [False, True, True]


def test_names_of_an_array_are_counted(shm):
    shm["a"] = np.arange(3)
    array = shm["a"]
    for i in range(5):
        shm[f"n{i}"] = array
    assert n_names(shm, array) == 6
    del shm["a"]
    assert n_names(shm, array) == 5
    shm.check_heap()


def places(shm):
    """Return (field, start of its struct, addend) of each kind of count, in bytes of the section."""
    directory = LAYOUT["header_t"]["directory_off"].read(Scribe(shm.path).bytes)
    return {
        "array": (ARRAY["n_names"], offset_of(shm, shm["a"]), 1),
        "block": (BLOCK["serial"], shm["b"].offset - HEAD, 1 << NAMES_SHIFT),
        "live": (TABLE["live"], directory, 1),
    }


@pytest.mark.damages
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("what", ["array", "block", "live"])
def test_a_wrong_count_is_detected_and_rebuilt(section_file, what, sign):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["a"], shm["b"] = np.zeros(3), shm.allocate(20)
        field, start, addend = places(shm)[what]
        scribe = Scribe(shm.path)
        right = field.read(scribe.bytes, start)
        field.write(scribe.bytes, right + sign * addend, start)
        with pytest.raises(shmem.HeapCorruption, match="counts of names"):
            shm.check_heap()
        scribe[HEAP_GATE] = ABSENT_OWNER  # the next owner of the gate recovers the heap
        shm.check_heap()
        assert field.read(scribe.bytes, start) == right
