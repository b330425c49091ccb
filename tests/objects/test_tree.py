"""`SharedMemory.tree`: names, kinds, shapes and dtypes as text and as a table."""

import os

import pytest
from scribe import HEAD, HEADER, HEAP_GATE, USED, Scribe
from workers import in_thread

import shmem
from shmem._base.layout import LAYOUT, TYPE_GROUP, read_tag


class Node(shmem.Struct, type_name="tree.Node"):
    key: shmem.int64


def lines(tree):
    """Return the lines below the head."""
    return str(tree).splitlines()[1:]


def test_a_line_for_each_object(shm):
    shm.zeros((2, 3), "float32", name="array")
    shm.zeros(3, dtype=[("x", "int16"), ("y", "int16")], name="records")
    shm["block"] = b"bytes"
    shm["node"] = shm.new(Node)
    shm.queue(10, "int64", name="queue")
    shm.semaphore(name="semaphore")
    shm["gone"] = [1]
    shm.free(shm["gone"])
    shm.zeros(1, name="sealed")
    shm.entry("sealed").seal()
    assert str(shm.tree()).splitlines() == [
        shm.name,
        "├── array  (2, 3) float32",
        "├── records  (3,) [('x', '<i2'), ('y', '<i2')]",
        "├── block  block",
        "├── node  tree.Node",
        "├── queue  queue",
        "├── semaphore  semaphore",
        "├── gone  freed",
        "└── sealed  (1,) float64, sealed",
    ]
    assert repr(shm.tree()) == str(shm.tree())


def test_an_empty_section(shm):
    assert str(shm.tree()) == shm.name
    assert "<table>" not in shm.tree()._repr_html_()


def test_a_tree_is_what_there_was(shm):
    shm["a"] = [1]
    tree = shm.tree()
    shm["b"] = [1]
    shm.close()
    assert lines(tree) == ["└── a  (1,) int64"]
    with pytest.raises(shmem.ClosedError):
        shm.tree()


def test_a_name_takes_one_line(shm):
    shm["a\nb"] = [1]
    assert lines(shm.tree()) == [r"└── 'a\nb'  (1,) int64"]


def test_long_names_and_dtypes_are_cut(shm):
    shm.zeros(1, [(f"field{i}", "int64") for i in range(100)], name="name" * 1000)
    (line,) = lines(shm.tree())
    assert len(line) < 160
    assert line.startswith(f"└── {'name' * 19}n...  (1,) [('field0', '<i8'), ")
    assert line.endswith("...")
    assert f">{'name' * 19}n...<" in shm.tree()._repr_html_()


@pytest.mark.parametrize("n_names", [99, 1001, 3000])
def test_many_names_are_counted(shm, n_names):
    for i in range(n_names):
        shm[f"{i:04}"] = b""
    shown = lines(shm.tree())
    assert len(shown) == 51
    assert shown[-1] == f"└── ... {n_names - 50:,} more names"
    if n_names == 99:
        assert shown[:50] == [f"├── {i:04}  block" for i in range(50)]
    assert [line[:6] for line in lines(shm.tree(max_names=2))] == ["├── 00", "├── 00", "└── .."]


def test_the_table_has_the_same_rows(shm):
    shm["<b>"] = [1]
    for i in range(60):
        shm[f"{i}"] = b""
    html = shm.tree()._repr_html_()
    assert "<b>&lt;" not in html
    assert "&lt;b&gt;" in html
    assert html.count("<tr>") == 1 + 50 + 1
    assert "... 11 more names" in html


@pytest.mark.parametrize("wrong", [{"level": 0}, {"max_names": 0}, {"max_names": -1}])
def test_limits_are_checked(shm, wrong):
    with pytest.raises(ValueError, match="must be"):
        shm.tree(**wrong)


@pytest.mark.damages
def test_a_damaged_array_has_a_line(shm):
    """It cannot be opened, and its tree pins and changes nothing."""
    shm["array"] = [1, 2, 3]
    array, scribe = shm["array"], Scribe(shm.path)
    at = scribe.bytes.find(b"'<i8'", array.base.offset)
    scribe.bytes[at : at + 5] = b"'<??'"
    del array
    before = scribe.bytes[:]
    assert lines(shm.tree()) == ["└── array  array, damaged"]
    assert "array, damaged" in shm.tree()._repr_html_()
    changed = [at for at, (one, two) in enumerate(zip(before, scribe.bytes[:], strict=True)) if one != two]
    assert all(at in range(HEAP_GATE, HEAP_GATE + 8) for at in changed), changed


@pytest.mark.damages
def test_a_damaged_directory(shm):
    shm["a"] = [1]
    Scribe(shm.path)[HEADER["directory_off"].offset] = 3
    assert lines(shm.tree()) == ["└── ... damaged"]
    assert "... damaged" in shm.tree()._repr_html_()


def test_a_tree_does_not_wait_for_a_process_that_keeps_the_heap_gate(shm):
    """It is said to keep it: the gate's word names this process, none of whose threads is inside."""
    shm["array"] = [1, 2, 3]
    scribe = Scribe(shm.path)
    scribe[HEAP_GATE] = scribe.owner_word(scribe.entry_of(os.getpid()))
    try:
        text = in_thread(lambda: str(shm.tree()))
    finally:
        scribe[HEAP_GATE] = 0
    assert text.splitlines()[1:] == ["└── ... not read: another process keeps the heap"]


def test_reading_stops_at_the_first_wait_in_vain(shm):
    """A tree of many groups or arrays waits one slice in all."""
    from shmem._objects import glances, tree

    asked = []

    def look(memory, path, waits):
        asked.append(path)

    for name in "abc":
        shm[name] = [1]
    original, tree.growing.look = tree.growing.look, look
    try:
        root = tree.read(shm, "", None, 50)
    finally:
        tree.growing.look = original
    assert asked == ["a"]
    assert [child.problem for child in root.children] == [glances.BUSY]


# -- groups ---------------------------------------------------------------------------------------------------


def test_groups_are_indented(shm):
    shm["run1/raw/a"] = [1]
    shm["mask"] = [True]
    shm["run1/b"] = [1, 2]
    shm.create_group("empty")
    assert lines(shm.tree()) == [
        "├── run1/",
        "│   ├── raw/",
        "│   │   └── a  (1,) int64",
        "│   └── b  (2,) int64",
        "├── mask  (1,) bool",
        "└── empty/",
    ]
    assert str(shm["run1"].tree()).splitlines() == ["run1/", "├── raw/", "│   └── a  (1,) int64", "└── b  (2,) int64"]
    html = shm.tree()._repr_html_()
    assert [level for level in (0.5, 2.0, 3.5) if f"padding-left: {level}em" in html] == [2.0, 3.5]
    assert html.count("<tr>") == 1 + 6
    assert "2 names" in html


def test_levels_are_limited(shm):
    shm["a/b/c"] = [1]
    shm["a/d"] = [1]
    assert lines(shm.tree(level=1)) == ["└── a/  (2 names)"]
    assert lines(shm.tree(level=2)) == ["└── a/", "    ├── b/  (1 name)", "    └── d  (1,) int64"]
    assert shm._repr_html_().count("<tr>") == 1 + 1


def test_a_section_with_many_groups_has_a_short_tree(shm):
    """Upper levels come first: each group has its line before the contents of one are shown."""
    for i in range(12):
        for k in range(20):
            shm[f"{i:02}/{k:02}"] = b""
    shown = lines(shm.tree(max_names=10))
    assert sum("/" in line for line in shown) == 10
    assert sum("  block" in line for line in shown) == 30
    assert sum("... 10 more names" in line for line in shown) == 3
    assert sum("(20 names)" in line for line in shown) == 7
    assert shown[-1] == "└── ... 2 more names"


def test_a_deleted_group_has_no_tree(shm):
    group = shm.create_group("a")
    del shm["a"]
    with pytest.raises(KeyError):
        group.tree()


def tables_of_groups(scribe):
    """Return the offsets of the words that lead to the tables of groups, in the order of their blocks."""
    at, top = (HEADER[name].read(scribe.bytes) for name in ("heap_start", "top"))
    found = []
    while at < top:
        tag = read_tag(scribe[at])
        if (tag.state, tag.type_id) == (USED, TYPE_GROUP):
            found.append(at + HEAD + LAYOUT["group_t"]["table_off"].offset)
        at += tag.size
    return found


@pytest.mark.damages
def test_a_damaged_group_does_not_hide_the_others(shm):
    shm["a/x"] = [1]
    shm["b/x"] = [1]
    scribe = Scribe(shm.path)
    first, _ = tables_of_groups(scribe)
    scribe[first] = 3
    assert lines(shm.tree()) == ["├── a/", "│   └── ... damaged", "└── b/", "    └── x  (1,) int64"]
