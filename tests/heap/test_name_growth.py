"""A name table grows in small steps, and calls cost the same for few names and for many."""

import threading

import pytest
from scribe import ABSENT_OWNER, HEAP_GATE, Scribe
from touching import touched_bytes

import shmem
from shmem._base.layout import LAYOUT, SLOT_REMOVED, TYPE_FIRST_USER

HEADER, TABLE, SLOT = LAYOUT["header_t"], LAYOUT["name_table_t"], LAYOUT["name_slot_t"]
FULL = 24  # names that the first table holds
LATER = 4 * FULL  # names that the second one holds
MANY = 30_000
SIZE = 1 << 27


def tables(shm):
    """Return the offsets of the directory's table, and of the one whose entries it takes over."""
    content = Scribe(shm.path).bytes
    table = HEADER["directory_off"].read(content)
    return [payload for payload in (table, TABLE["old_off"].read(content, table)) if payload]


def field(shm, name, table):
    return TABLE[name].read(Scribe(shm.path).bytes, table)


def slots(shm, table):
    """Return (offset, entry) of each slot of a table."""
    content = Scribe(shm.path).bytes
    first = table + TABLE.size
    places = range(first, first + SLOT.size * TABLE["capacity"].read(content, table), SLOT.size)
    return [(at, SLOT["entry_off"].read(content, at)) for at in places]


def fill(shm, n_names):
    for i in range(len(shm), n_names):
        shm[f"name {i}"] = str(i).encode()


def growing(shm):
    """Make names until the table grows, with entries in both tables; return (new table, old table)."""
    fill(shm, LATER + 3)
    new, old = tables(shm)
    return new, old


def test_every_stage_of_a_growing_table(shm):
    """All names are found, listed in order, and refused when they are assigned again, however far the move has come."""
    n_olds = set()
    for n in range(1, 6 * LATER):
        fill(shm, n)
        n_olds.add(len(tables(shm)))
        names = [f"name {i}" for i in range(n)]
        assert (len(shm), list(shm)) == (n, names)
        if n % 7 == 0:
            assert all(bytes(shm[name]) == name.split()[1].encode() for name in names)
            with pytest.raises(shmem.NameExists):
                shm["name 0"] = b"again"
            shm.check_heap()
    assert n_olds == {1, 2}


def test_a_change_moves_few_entries(shm):
    new, old = growing(shm)
    before = field(shm, "cursor", new)
    shm["one more"] = b"v"
    assert tables(shm) == [new, old]
    assert field(shm, "cursor", new) == before + 16
    del shm["one more"]
    assert field(shm, "cursor", new) == before + 32
    shm.check_heap()


def test_a_larger_table_begins_almost_empty(shm):
    """The insertion that makes the larger table moves no more entries than any other."""
    before, n_grown = [], 0
    for n in range(1, 3000):
        fill(shm, n)
        new, *old = tables(shm)
        if before and new not in before:
            n_grown += 1
            assert old == before[:1]
            assert field(shm, "live", new) <= 17
            assert field(shm, "live", old[0]) >= n - 17
        before = tables(shm)
    assert n_grown == 4


def test_the_old_table_is_freed(shm):
    new, _ = growing(shm)
    internal = shm.check_heap().internal_blocks
    for _ in range(8):
        shm["x"] = b"v"
        del shm["x"]
    assert tables(shm) == [new]
    assert shm.check_heap().internal_blocks == internal - 1


def test_removal_while_the_table_grows(shm):
    """Names are removed from the old table and from the new one."""
    growing(shm)
    names = list(shm)
    for i, name in enumerate(reversed(names)):
        del shm[name]
        assert list(shm) == names[: len(names) - 1 - i]
        shm.check_heap()


def test_names_are_inserted_and_removed_again_and_again(shm):
    """A large table with few names is replaced by one that is large enough until all slots have moved."""
    fill(shm, 300)
    for name in list(shm)[:-1]:
        del shm[name]
    for i in range(3000):
        shm[f"other {i}"] = b"v"
        del shm[f"other {i}"]
    shm.check_heap()
    assert list(shm) == ["name 299"]


def test_one_of_many_names_is_removed_while_the_table_grows(shm):
    """The search for the number of names looks into both tables."""
    block = shm.allocate(10)
    for i in range(4):
        shm[f"n{i}"] = block
    fill(shm, LATER + 2)
    for i in range(4):
        bytes(block)
        del shm[f"n{i}"]
        shm.check_heap()
    with pytest.raises(shmem.InvalidBlock):
        bytes(block)


def shown_twice(shm):
    """Show an entry of the old table in the new one too, as a process that was killed while it moved it."""
    new, old = growing(shm)
    scribe = Scribe(shm.path)
    at, entry = next((at, entry) for at, entry in slots(shm, old) if entry > SLOT_REMOVED)
    value, capacity = SLOT["hash"].read(scribe.bytes, at), field(shm, "capacity", new)
    i = value % capacity
    while slots(shm, new)[i][1] > SLOT_REMOVED:
        i = (i + 1) % capacity
    SLOT["hash"].write(scribe.bytes, value, slots(shm, new)[i][0])
    SLOT["entry_off"].write(scribe.bytes, entry, slots(shm, new)[i][0])
    return at


@pytest.mark.damages
def test_entry_in_both_tables_is_detected_and_removed_from_the_old(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        at = shown_twice(shm)
        names = [f"name {i}" for i in range(LATER + 3)]
        assert list(shm) == names  # listed once
        with pytest.raises(shmem.HeapCorruption, match="name"):
            shm.check_heap()
        Scribe(shm.path)[HEAP_GATE] = ABSENT_OWNER  # the next owner of the gate recovers the heap
        shm.check_heap()
        assert SLOT["entry_off"].read(Scribe(shm.path).bytes, at) == SLOT_REMOVED
        assert (len(shm), list(shm)) == (len(names), names)
        del shm["name 0"]
        shm.check_heap()


@pytest.mark.damages
@pytest.mark.parametrize("what", ["cursor", "old_off", "itself"])
def test_damaged_move_is_detected(section_file, what):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        new, old = growing(shm)
        name, value = {"cursor": ("cursor", 1 << 40), "old_off": ("old_off", old + 64), "itself": ("old_off", new)}[what]
        TABLE[name].write(Scribe(shm.path).bytes, value, new)
        with pytest.raises(shmem.HeapCorruption, match="name"):
            shm.check_heap()
        if what != "cursor":
            with pytest.raises(shmem.HeapCorruption):
                shm["x"] = b"v"


def test_listing_while_other_threads_change_names(shm):
    """A name that exists all the time is listed once, however often the table is replaced meanwhile."""
    fill(shm, 2000)
    kept, is_over = list(shm), threading.Event()

    def change():
        i = 0
        while not is_over.is_set():
            for k in range(100):
                shm[f"x {i} {k}"] = b"v"
            for k in range(100):
                del shm[f"x {i} {k}"]
            i += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(100):
            found = list(shm)
            assert [name for name in found if name.startswith("name")] == kept
            assert len(set(found)) == len(found)
    finally:
        is_over.set()
        thread.join()


def test_large_entries_are_listed(shm):
    names = [f"{i}" * 60_000 for i in range(5)]
    for name in names:
        shm[name] = b"v"
    assert list(shm) == names


class Counted(shmem.Struct):
    value: shmem.int64


def test_type_numbers_are_not_searched_for(shm):
    """The header keeps the last number; it is found again if it is damaged, by recovery."""
    shm.new(Counted)
    scribe = Scribe(shm.path)
    assert HEADER["types_version"].read(scribe.bytes) == TYPE_FIRST_USER
    HEADER["types_version"].write(scribe.bytes, 0)
    scribe[HEAP_GATE] = ABSENT_OWNER
    shm.check_heap()
    assert HEADER["types_version"].read(scribe.bytes) == TYPE_FIRST_USER


# -- the same for few names and for many --------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    with shmem.SharedMemory(max_size=SIZE) as shm:
        fill(shm, MANY)
        yield shm


LIMIT = 1 << 19  # of the 5 MB that the names take


CALLS = {
    "look up": lambda shm: shm["name 77"],
    "not there": lambda shm: shm.get("none"),
    "delete": lambda shm: shm.__delitem__(next(name for name in (f"name {i}" for i in range(MANY)) if name in shm)),
    "end of a temporary array": lambda shm: shm.zeros(3, temporary=True),
    "free": lambda shm: shm.free(shm.zeros(3)),
    "count": len,
    "count the keys": lambda shm: len(shm.keys()),
    "stats": lambda shm: shm.stats(),
}


@pytest.mark.no_sanitizer("its memory moves")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_cost_does_not_grow_with_the_names(large, call):
    assert touched_bytes(large, lambda: list(large)) > 4 * LIMIT  # what the measure finds for a call that looks at all names
    assert touched_bytes(large, lambda: call(large)) < LIMIT
