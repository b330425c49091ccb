"""What sections and reports show of themselves: `repr`, HTML in notebooks, and the names that IPython completes."""

import os
import re

import pytest
from scribe import HEAP_GATE, Scribe
from workers import in_thread

import shmem


class Node(shmem.Struct, type_name="display.Node"):
    key: shmem.int64


def rows(html):
    """Return the texts of a table's cells, row by row."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_repr_lists_the_names(shm):
    assert "name" not in repr(shm).removeprefix(f"<shmem.SharedMemory {shm.name!r}")
    shm["mask"] = [True]
    assert repr(shm) == f"<shmem.SharedMemory {shm.name!r} read_write, {shm.max_size:,} bytes, 1 name: 'mask'>"
    shm["a name\n"] = [1]
    assert repr(shm).endswith(r", 2 names: 'mask', 'a name\n'>")


@pytest.mark.parametrize("n_names", [9, 100, 3000])
def test_repr_is_short_for_many_and_long_names(shm, n_names):
    for i in range(n_names):
        shm[f"{i:04} {'long' * 20}"] = b""
    assert len(repr(shm)) < 500
    assert f", {n_names:,} names: '" in repr(shm)
    assert repr(shm).endswith("', ...>")
    if n_names < 1000:
        assert ", ".join(f"'{i:04} " for i in range(8)) == ", ".join(re.findall(r"'\d{4} ", repr(shm)))


def test_html_has_a_row_for_each_object(shm):
    shm["array"] = [1, 2, 3]
    shm["block"] = b"bytes"
    shm["node"] = shm.new(Node)
    shm.queue(10, "int64", name="queue")
    shm.semaphore(name="semaphore")
    shm.event(name="event")
    shm.mutex(name="mutex")
    shm["freed"] = [1]
    shm.free(shm["freed"])
    found = rows(shm._repr_html_())
    assert found[0] == ["name", "kind", "shape", "dtype", "bytes"]
    assert [row[2:4] for row in found[1:3]] == [["(3,)", "int64"], ["", ""]]
    kinds = {name: kind for name, kind, *_ in found[1:]}
    assert kinds.pop("node") == "display.Node"
    assert kinds == {name: name for name in ("array", "block", "queue", "semaphore", "event", "mutex", "freed")}
    sizes = {name: int(n_bytes) for name, *_, n_bytes in found[1:]}
    assert sizes.pop("freed") == 0
    assert sum(sizes.values()) <= shm.stats().used


def test_html_is_escaped(shm):
    shm["<b>&\"'<i>"] = [1]
    html = shm._repr_html_()
    assert "<b>&" not in html
    assert rows(html)[1][0] == "&lt;b&gt;&amp;&quot;&#x27;&lt;i&gt;"


def test_html_of_many_names_is_short(shm):
    for i in range(3000):
        shm[f"{i:04}"] = b""
    html = shm._repr_html_()
    assert len(rows(html)) == 52
    assert rows(html)[-1] == ["... 2,950 more names"]


def test_html_of_the_path_is_escaped(tmp_path):
    with shmem.SharedMemory(tmp_path / "<i>", max_size=1 << 20) as shm:
        assert "<i>" not in shm._repr_html_()
    assert "<i>" not in shm._repr_html_()


@pytest.mark.damages
def test_looking_opens_and_pins_nothing(shm):
    """An array whose dtype is damaged cannot be opened, but is listed."""
    shm["array"] = [1, 2, 3]
    shm["other"] = [4]
    array, scribe = shm["array"], Scribe(shm.path)
    at = scribe.bytes.find(b"'<i8'", array.base.offset)
    scribe.bytes[at : at + 5] = b"'<??'"
    del array
    with pytest.raises(shmem.HeapCorruption):
        shm["array"]
    before = scribe.bytes[:]
    assert repr(shm).endswith("2 names: 'array', 'other'>")
    assert rows(shm._repr_html_())[1][:2] == ["array", "array, damaged"]
    assert shm._ipython_key_completions_() == ["array", "other"]
    changed = [at for at, (one, two) in enumerate(zip(before, scribe.bytes[:], strict=True)) if one != two]
    assert all(at in range(HEAP_GATE, HEAP_GATE + 8) for at in changed), changed


def test_looking_does_not_wait_for_a_process_that_keeps_the_heap_gate(shm):
    """It is said to keep it: the gate's word names this process, none of whose threads is inside."""
    shm["array"] = [1, 2, 3]
    scribe = Scribe(shm.path)
    scribe[HEAP_GATE] = scribe.owner_word(scribe.entry_of(os.getpid()))
    try:
        text, html, names = in_thread(lambda: (repr(shm), shm._repr_html_(), shm._ipython_key_completions_()))
    finally:
        scribe[HEAP_GATE] = 0
    assert text.endswith(" bytes>")
    assert (rows(html)[1:], names) == ([["... not read: another process keeps the heap"]], [])
    assert repr(shm).endswith(" 1 name: 'array'>")


def test_looking_at_a_read_only_section(shm):
    shm["array"] = [1]
    with shmem.SharedMemory(shared_name=shm.name, mode="read_only") as reader:
        assert repr(reader).endswith("read_only, " + f"{shm.max_size:,} bytes, 1 name: 'array'>")
        assert len(rows(reader._repr_html_())) == 2


def test_looking_at_a_closed_section(shm):
    shm["array"] = [1]
    name = shm.name
    shm.close()
    assert repr(shm) == f"<shmem.SharedMemory {name!r} closed>"
    assert shm._repr_html_().endswith(" closed</div>")
    assert shm._ipython_key_completions_() == []


def test_completions_are_the_names(shm, child):
    code = 'shm = shmem.SharedMemory(shared_name=args[0]); shm["temperature"] = [1]; shm["tide"] = [2]; shm.close()'
    child(code, shm.name).process.wait()
    assert shm._ipython_key_completions_() == ["temperature", "tide"]


def test_reports_are_tables(shm):
    shm["array"] = [1]
    for report in (shm.stats(), shm.check_heap()):
        html = report._repr_html_()
        assert f"<b>shmem.{type(report).__name__}</b>" in html
        assert [name for name, _ in rows(html)] == list(vars(report))
    table = dict(rows(shm.stats()._repr_html_()))
    assert table["participants"] == str(os.getpid())
    assert table["lock_holder"] == "None"
    assert table["max_size"] == f"{shm.max_size:,}"
    with shmem.exclusive_lock(shm):
        assert dict(rows(shm.stats()._repr_html_()))["lock_holder"] == str(os.getpid())


def test_a_group_is_a_table(shm):
    group = shm.create_group("run1")
    group["array"] = [1, 2]
    shm["run1/raw/deep"] = [1]
    assert rows(group._repr_html_())[1:] == [["array", "array", "(2,)", "int64", "192"], ["raw", "group", "1 name", "", ""]]
    assert rows(shm._repr_html_())[1:] == [["run1", "group", "2 names", "", ""]]
    assert group._ipython_key_completions_() == ["array", "raw", "raw/deep"]
    del shm["run1"]
    assert group._repr_html_().endswith(" KeyError</div>")
    assert group._ipython_key_completions_() == []
    shm.close()
    assert group._repr_html_().endswith(" ClosedError</div>")
    assert group._ipython_key_completions_() == []


def test_titles_are_above_what_they_name(shm):
    shm["array"] = [1]
    shm.attrs["unit"] = "K"
    assert 'text-align: right">bytes<' in shm._repr_html_()
    assert 'text-align: left">value<' in shm.attrs._repr_html_()
