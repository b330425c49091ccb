"""The table of attributes: one entry for each object that has some, which ends with the object, however that ends."""

import contextlib
import os
import signal
import struct

import numpy as np
import pytest
from scribe import ABSENT_OWNER, HEAP_GATE, Scribe, outcome
from touching import touched_bytes

import shmem
from shmem._base.layout import BLOCK_ALIGN_BYTES, BLOCK_HEAD_BYTES, LAYOUT, SLOT_EMPTY, SLOT_REMOVED, STATE_HOLE, make_tag, read_tag

HEADER, TABLE, SLOT, ENTRY, BLOCK = (LAYOUT[name] for name in ("header_t", "name_table_t", "name_slot_t", "name_entry_t", "block_t"))
FULL = 24  # entries that the first table holds
MANY = 20_000


def tables(content):
    """Return the offsets of the table of attributes, and of the one whose entries it takes over."""
    table = HEADER["attributes_off"].read(content)
    return [payload for payload in (table, table and TABLE["old_off"].read(content, table)) if payload]


def shown(content):
    """Return (offset of the slot, entry) for each entry in the tables."""
    found = []
    for table in tables(content):
        places = range(table + TABLE.size, table + TABLE.size + SLOT.size * TABLE["capacity"].read(content, table), SLOT.size)
        found += [(at, SLOT["entry_off"].read(content, at)) for at in places]
    return [(at, entry) for at, entry in found if entry > SLOT_REMOVED]


def owners(shm):
    """Return the offset and serial of each object that has attributes."""
    content = Scribe(shm.path).bytes
    return sorted(struct.unpack_from("<QQ", content, entry + ENTRY.size) for _, entry in shown(content))


def recover(shm):
    """Let the next owner of the heap gate recover."""
    Scribe(shm.path)[HEAP_GATE] = ABSENT_OWNER
    shm.check_heap()


@pytest.fixture
def kept(shm):
    """Give attributes to an object that stays, and to the section; return the offsets and serials that have some."""
    shm["kept"] = b"text"
    shm.entry("kept").attrs["a"] = shm.attrs["a"] = 1
    return owners(shm)


# -- the end of an object ---------------------------------------------------------------------------------------


def end_with_the_name(shm, name):
    del shm[name]


def end_by_free(shm, name):
    shm.free(shm[name])


def end_with_the_last_view(shm, name):
    view = memoryview(shm[name])
    del shm[name]
    assert len(owners(shm)) == 3
    view.release()


def end_with_the_root(shm, name):
    shm.root = shm[name]
    del shm[name]
    assert len(owners(shm)) == 3
    shm.free(shm.root)


def _message(shm, name):
    """Return a message that keeps an array, whose name is deleted."""
    array = shm[name]
    del shm[name]
    return shmem.dumps(array)


def end_with_a_message(shm, name):
    message = _message(shm, name)
    assert len(owners(shm)) == 3
    shmem.loads(message)


def end_with_a_claim(shm, name):
    _message(shm, name)
    assert len(owners(shm)) == 3
    shm.sweep(claims=0)


def end_while_in_use(shm, name):
    queue = shm[name]
    queue.put(1)
    del shm[name]
    with pytest.raises(shmem.InvalidBlock):
        queue.put(2)


def end_in_a_killed_process(shm, name):
    """Only a process that is killed views the object, whose name was deleted: recovery frees it."""

    def act():
        view = memoryview(shm[name])
        del shm[name]
        assert len(view)
        assert len(owners(shm)) == 3
        os.kill(os.getpid(), signal.SIGKILL)

    assert outcome(act) == "SIGKILL"
    shm.sweep()


MAKERS = {
    "array": lambda shm: shm.zeros(300, name="x"),
    "small array": lambda shm: shm.zeros(1, name="x"),
    "block": lambda shm: shm.__setitem__("x", b"text"),
    "large block": lambda shm: shm.__setitem__("x", bytes(5000)),
    "mutex": lambda shm: shm.mutex(name="x"),
    "queue": lambda shm: shm.queue(4, "int64", name="x"),
}
VIEWED = {"array", "small array", "block", "large block"}
ENDS = [
    *[(kind, end_with_the_name) for kind in MAKERS], *[(kind, end_by_free) for kind in MAKERS],
    *[(kind, end) for kind in sorted(VIEWED) for end in (end_with_the_last_view, end_in_a_killed_process, end_with_the_root)],
    ("array", end_with_a_message), ("array", end_with_a_claim), ("queue", end_while_in_use),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "end"), ENDS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_attributes_end_with_their_object(shm, kept, kind, end):
    MAKERS[kind](shm)
    shm.entry("x").attrs["b"] = 2
    assert len(owners(shm)) == 3
    end(shm, "x")
    assert owners(shm) == kept
    shm.check_heap()


def test_array_whose_owner_of_the_gate_frees_it_last(shm, kept):
    """An array that moves, whose old block is viewed, keeps the attributes there until the last view is gone."""
    shm.zeros((1, 2), maxshape=(None, None), name="log")
    entry, view = shm.entry("log"), shm["log"]
    entry.attrs["b"] = 2
    entry.resize((1, 3), move=True)
    assert len(owners(shm)) == 4
    del view
    assert len(owners(shm)) == 3
    del shm["log"]
    assert owners(shm) == kept


def test_removed_when_empty(shm, kept):
    shm.attrs.clear()
    del shm.entry("kept").attrs["a"]
    assert owners(shm) == []
    report = shm.check_heap()
    shm.entry("kept").attrs["a"] = 1
    shm.entry("kept").attrs.clear()
    assert shm.check_heap().internal_blocks == report.internal_blocks


def test_every_stage_of_a_growing_table(shm):
    """Attributes are found, changed and removed, however far the move of entries to a larger table has come."""
    n_olds = set()
    for n in range(5 * FULL):
        shm[f"name {n}"] = b"v"
        shm.entry(f"name {n}").attrs["n"] = n
        n_olds.add(len(tables(Scribe(shm.path).bytes)))
        shm.entry(f"name {n // 2}").attrs["changed"] = n
        for i in range(n + 1):
            assert shm.entry(f"name {i}").attrs["n"] == i
        shm.check_heap()
    assert n_olds == {1, 2}
    for n in range(0, 5 * FULL, 2):
        del shm[f"name {n}"]
    assert sorted(shm.entry(name).attrs["n"] for name in shm) == list(range(1, 5 * FULL, 2))
    for name in list(shm):
        del shm[name]
        shm.check_heap()
    assert owners(shm) == []


def test_no_memory(shm):
    """A change that fails for lack of memory changes nothing, and leaves nothing."""
    shm["x"] = b"text"
    attrs = shm.entry("x").attrs
    attrs["a"] = 1
    blocks = []
    for size in (4096, 100, 40):
        with contextlib.suppress(shmem.SectionFull):
            while True:
                blocks.append(shm.allocate(size, zero=False))
    report = shm.check_heap()
    with pytest.raises(shmem.SectionFull):
        attrs["b"] = "x" * 200
    assert attrs == {"a": 1}
    again = shm.check_heap()
    assert (again.internal_blocks, again.pending_blocks) == (report.internal_blocks, 0)


# -- recovery -----------------------------------------------------------------------------------------------------


def of_gone(shm):
    """Return (offset of the slot, entry) of the object named "gone"."""
    offset = shm["gone"].offset
    content = Scribe(shm.path).bytes
    return next((at, entry) for at, entry in shown(content) if ENTRY["value"].read(content, entry) == offset)


@pytest.mark.damages
def test_recovery_removes_attributes_without_an_object(shm, kept):
    """A process is killed after it freed an object and before it removed the attributes."""
    shm["gone"] = b"text"
    shm.entry("gone").attrs["a"] = 1
    scribe = Scribe(shm.path)
    at, entry = of_gone(shm)
    target, serial = struct.unpack_from("<QQ", scribe.bytes, entry + ENTRY.size)
    struct.pack_into("<QQ", scribe.bytes, entry + ENTRY.size, target, serial + 1000)  # of an object that was freed
    with pytest.raises(shmem.HeapCorruption, match="attributes do not belong to a block"):
        shm.check_heap()
    recover(shm)
    assert owners(shm) == kept
    assert SLOT["entry_off"].read(scribe.bytes, at) == SLOT_REMOVED
    assert shm.block(target)  # the object is there


@pytest.mark.damages
def test_recovery_that_was_killed_itself(shm, kept):
    """The entry was freed by a recovery that was killed before it changed the slot."""
    shm["gone"] = b"text"
    shm.entry("gone").attrs["a"] = 1
    scribe = Scribe(shm.path)
    at, entry = of_gone(shm)
    tag = read_tag(BLOCK["tag"].read(scribe.bytes, entry - BLOCK_HEAD_BYTES))
    BLOCK["tag"].write(scribe.bytes, make_tag(tag.size, STATE_HOLE, 0, 0), entry - BLOCK_HEAD_BYTES)
    recover(shm)
    assert SLOT["entry_off"].read(scribe.bytes, at) == SLOT_REMOVED
    assert owners(shm) == kept


# -- damage -------------------------------------------------------------------------------------------------------


def damage_key(scribe, at, entry):
    ENTRY["value"].write(scribe.bytes, ENTRY["value"].read(scribe.bytes, entry) + BLOCK_ALIGN_BYTES, entry)


def damage_name(scribe, at, entry):
    ENTRY["name_bytes"].write(scribe.bytes, 15, entry)


def damage_length(scribe, at, entry):
    ENTRY["data_bytes"].write(scribe.bytes, 1 << 31, entry)


def damage_slot(scribe, at, entry):
    SLOT["entry_off"].write(scribe.bytes, 1 << 40, at)


def damage_hash(scribe, at, entry):
    SLOT["hash"].write(scribe.bytes, 5, at)


def damage_table(scribe, at, entry):
    HEADER["attributes_off"].write(scribe.bytes, entry)


def damage_count(scribe, at, entry):
    TABLE["live"].write(scribe.bytes, 7, HEADER["attributes_off"].read(scribe.bytes))


def damage_double(scribe, at, entry):
    """Another slot shows the same entry."""
    table = HEADER["attributes_off"].read(scribe.bytes)
    for i in range(TABLE["capacity"].read(scribe.bytes, table)):
        other = table + TABLE.size + SLOT.size * i
        if SLOT["entry_off"].read(scribe.bytes, other) == SLOT_EMPTY:
            SLOT["hash"].write(scribe.bytes, SLOT["hash"].read(scribe.bytes, at), other)
            SLOT["entry_off"].write(scribe.bytes, entry, other)
            break
    for count in ("filled", "live"):
        TABLE[count].write(scribe.bytes, TABLE[count].read(scribe.bytes, table) + 1, table)


DAMAGES = [damage_key, damage_name, damage_length, damage_slot, damage_hash, damage_table, damage_count, damage_double]


@pytest.mark.damages
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_detected(section_file, damage):
    """`check_heap` finds it, and no use leads outside of the section."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["x"] = b"text"
        shm.entry("x").attrs["a"] = 1
        scribe = Scribe(shm.path)
        damage(scribe, *shown(scribe.bytes)[0])
        with pytest.raises(shmem.HeapCorruption):
            shm.check_heap()
        attrs = shm.entry("x").attrs
        for act in (lambda: dict(attrs), lambda: attrs.update(b=2), attrs.clear, lambda: shm.__delitem__("x"), shm.check_heap):
            assert not outcome(act).startswith("SIG")


@pytest.mark.damages
@pytest.mark.parametrize(("old", "new"), [
    (b'{"dict":{"a":1}}', b'{"dict":{"a":}}'), (b'{"dict":{"a":1}}', b'{"none":{"a":1}}'), (b'{"dict":{"a":1}}', b'{"dict":["a",1]'),
    (b'{"dict":{"a":1}}', b'\xff'), (b'{"dict":{"a":1}}', b'NaN'),
])  # fmt: skip
@pytest.mark.damages
def test_damaged_text(shm, old, new):
    shm["x"] = b"text"
    attrs = shm.entry("x").attrs
    attrs["a"] = 1
    Scribe(shm.path).replace(old, new)
    for use in (lambda: attrs["a"], lambda: list(attrs), lambda: attrs.update(b=2)):
        with pytest.raises(shmem.HeapCorruption, match="the attributes of 'x' cannot be decoded"):
            use()
    attrs.clear()
    attrs["a"] = 1
    assert attrs == {"a": 1}


@pytest.mark.parametrize("tree", [
    b'{"later":"of a new version"}', b'{"array":["|O",[1],"AAAA"]}', b'{"array":["<f8",[9],"AAAA"]}', b'{"array":["<f8",[-1],""]}',
    b'{"scalar":["<f8","AAAA"]}', b'{"bytes":"*"}', b'{"complex":[1]}', b'{"float":"1"}', b'{"array":5}', b'{"bytes":"","float":"nan"}',
    b'{"array":["<f8",[1000000000,1000000000,0],""]}', b'{"dict":[1]}',
])  # fmt: skip
@pytest.mark.damages
def test_value_that_cannot_be_decoded(shm, tree):
    """Other attributes can be used, and the value stays as it is until it is replaced."""
    shm.attrs.update(a="y" * len(tree), b=2)
    Scribe(shm.path).replace(b'"' + b"y" * len(tree) + b'"', tree)
    with pytest.raises(shmem.HeapCorruption, match="the attribute 'a' of the section cannot be decoded"):
        shm.attrs["a"]
    shm.attrs["b"] += 1
    assert (list(shm.attrs), shm.attrs["b"]) == (["a", "b"], 3)
    assert tree in bytes(Scribe(shm.path).bytes)
    shm.attrs["a"] = 1
    assert shm.attrs == {"a": 1, "b": 3}


# -- cost ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    with shmem.SharedMemory(max_size=1 << 27) as shm:
        for i in range(MANY):
            shm[f"name {i}"] = b"v"
            shm.entry(f"name {i}").attrs["number"] = i
        yield shm


@pytest.mark.no_sanitizer("its memory moves")
@pytest.mark.parametrize("call", [
    lambda shm: shm.entry("name 7").attrs["number"], lambda shm: shm.entry("name 8").attrs.update(a=1),
    lambda shm: shm.free(shm.zeros(3)), lambda shm: shm.zeros(3, temporary=True),
    lambda shm: shm.__delitem__(next(name for name in (f"name {i}" for i in range(100, MANY)) if name in shm)),
], ids=["read", "change", "free", "end of a temporary array", "end with the name"])  # fmt: skip
def test_cost_does_not_grow_with_the_objects(large, call):
    limit = 1 << 19
    assert touched_bytes(large, lambda: list(large)) > 4 * limit  # what the measure finds for a call that looks at all names
    assert touched_bytes(large, lambda: call(large)) < limit


def test_a_reader_and_writers_of_long_attributes(shm, child):
    """A long text is read in pieces, between which others may change it; what is read is always one of the texts."""
    code = """
        attrs = shmem.SharedMemory(shared_name=args[0]).attrs
        say("go")
        for i in range(60):
            attrs["long"] = chr(97 + i % 26) * (300_000 + i)
    """
    shm.attrs["long"] = "z" * 300_000
    writers = [child(code, shm.name) for _ in range(2)]
    for writer in writers:
        writer.hear()
    while any(writer.process.poll() is None for writer in writers):
        text = shm.attrs["long"]
        assert text == text[0] * len(text)
    for writer in writers:
        writer.end()
    assert np.unique(np.frombuffer(shm.attrs["long"].encode(), "u1")).size == 1
    shm.check_heap()
