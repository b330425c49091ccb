"""The directory as a `MutableMapping`: what `dict` has, and what several processes make of it."""

import collections.abc

import numpy as np
import pytest

import shmem


class Point(shmem.Struct):
    x: shmem.float64


def test_is_a_mutable_mapping(shm):
    assert isinstance(shm, collections.abc.MutableMapping)
    assert [name for name in dir(collections.abc.MutableMapping) if name[0] != "_" and not hasattr(shm, name)] == []


VALUES = {
    "array": lambda shm: shm.full(1000, 7),
    "block": lambda shm: b"bytes",
    "struct": lambda shm: shm.new(Point, x=7.0),
    "event": lambda shm: shm.event(signaled=True),
    "semaphore": lambda shm: shm.semaphore(3),
    "mutex": lambda shm: shm.mutex(),
}
LOOKS = {
    "array": lambda found: found.tolist() == [7] * 1000,
    "block": lambda found: bytes(memoryview(found)[:5]) == b"bytes",
    "struct": lambda found: found.x == 7.0,
    "event": lambda found: found.is_set(),
    "semaphore": lambda found: found.value == 3,
    "mutex": lambda found: not found.locked(),
}


@pytest.mark.parametrize("kind", VALUES)
def test_popped_object_stays_while_it_is_used(shm, kind):
    """The memory of a popped object is allocated again only when the object is gone."""
    shm["a"] = VALUES[kind](shm)
    blocks = shm.check_heap().blocks
    found = shm.pop("a")
    assert "a" not in shm
    others = [shm.full(1000, 9, temporary=True) for _ in range(3)] + [shm.allocate(16) for _ in range(20)]
    assert LOOKS[kind](found)
    for other in others[3:]:
        shm.free(other)
    del other, others
    assert shm.check_heap().blocks == blocks
    del found
    assert shm.check_heap().blocks == blocks - 1


def test_pop_of_an_object_with_two_names(shm):
    shm["a"] = [1, 2]
    shm["b"] = shm["a"]
    assert shm.pop("a").tolist() == [1, 2]
    assert shm["b"].tolist() == [1, 2]


def test_pop_without_the_name(shm):
    with pytest.raises(KeyError, match="missing"):
        shm.pop("missing")
    assert shm.pop("missing", None) is None
    assert shm.pop("missing", default=3) == 3
    with pytest.raises(TypeError, match="a name must be a string"):
        shm.pop(3, None)


def test_pop_of_a_queue_is_refused(shm):
    """A queue is freed with its last name, even while processes use it: `pop` would return one of no use."""
    shm.queue(4, "f8", name="q").put(1.0)
    with pytest.raises(TypeError, match="a queue goes with its last name"):
        shm.pop("q")
    assert shm["q"].get() == 1.0


def test_pop_from_a_section_that_is_read_only(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 16) as section:
        section["a"] = [1, 2]
    with shmem.SharedMemory(section_file, mode="read_only") as section:
        for change in (lambda: section.pop("a"), section.popitem, section.clear):
            with pytest.raises(shmem.ReadOnlyError):
                change()
        assert list(section) == ["a"]


POPS = """
section = shmem.SharedMemory(args[0])
say("ready")
sys.stdin.readline()
got = []
for i in range(300):
    found = section.pop(f"n{i}", None)
    if found is not None:
        got.append((i, float(found[0])))
say(*[i for i, value in got if value == i])
say(len(got))
"""


def test_one_process_gets_what_several_pop(section_file, child):
    with shmem.SharedMemory(section_file, max_size=1 << 22) as section:
        for i in range(300):
            section[f"n{i}"] = [float(i)]
        others = [child(POPS, section_file) for _ in range(3)]
        for other in others:
            assert other.hear() == "ready"
        for other in others:
            other.tell()
        got = []
        for other in others:
            numbers = [int(text) for text in other.hear().split()]
            assert len(numbers) == int(other.hear())
            got += numbers
            other.end()
        assert sorted(got) == list(range(300))
        assert len(section) == 0
        assert section.check_heap().blocks == 0


def test_name_that_leads_elsewhere_is_not_removed(shm):
    """What `pop` relies on when another process deletes the name after it was looked up, and assigns it again."""
    from shmem._objects import directory

    shm["a"], shm["b"] = [1], [2]
    with pytest.raises(KeyError):
        directory.remove_name(shm, "b", shm["a"])
    assert shm["b"].tolist() == [2]
    directory.remove_name(shm, "b", shm["b"])
    assert list(shm) == ["a"]


def test_popitem_takes_the_latest_name(shm):
    shm.update(a=[1], b=[2], c=[3])
    assert [(name, value.tolist()) for name, value in (shm.popitem() for _ in range(3))] == [("c", [3]), ("b", [2]), ("a", [1])]
    with pytest.raises(KeyError, match="has none"):
        shm.popitem()


def test_setdefault(shm):
    assert shm.setdefault("a", np.arange(3)).tolist() == [0, 1, 2]
    assert shm.setdefault("a", [7]).tolist() == [0, 1, 2]
    shm.setdefault("a", [7])[0] = 5
    assert shm["a"].tolist() == [5, 1, 2]


def test_update(shm):
    shm.update({"a": [1], "b": b"bytes"}, c=2.5)
    shm.update([("d", [4])])
    assert list(shm) == ["a", "b", "c", "d"]
    shm.update(a=shm["a"], e=[5])  # the same object: nothing to do
    assert list(shm) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"x": [1], "a": [2]}, shmem.NameExists),
        ({"x": [1], "a/b": [2]}, shmem.NameExists),
        ({"x": [1], "x/y": [2]}, shmem.NameExists),
        ({"x": [1], 3: [2]}, TypeError),
        ({"x": [1], "": 0}, ValueError),
    ],
)
def test_update_that_cannot_be_done_changes_nothing(shm, wrong, error):
    shm["a"] = [1]
    with pytest.raises(error):
        shm.update(wrong)
    assert list(shm) == ["a"]
    assert shm["a"].tolist() == [1]


def test_clear(shm):
    kept = shm.zeros(3, name="a")
    shm.update(b=[1], c=b"bytes")
    shm.root = shm["b"]
    shm.clear()
    assert len(shm) == 0
    assert kept.tolist() == [0, 0, 0]
    assert shm.root.tolist() == [1]
    del kept
    assert shm.check_heap().blocks == 1
