"""Groups of names: paths, the mapping of a group, deletion with what is in it, and what leads to groups from elsewhere."""

import enum
import gc

import numpy as np
import pytest

import shmem
from shmem._objects import directory


@pytest.fixture
def shm():
    with shmem.SharedMemory(max_size="16M") as section:
        yield section
        section.check_heap()


def test_assignment_makes_groups(shm):
    shm["run1/deep/grid"] = [1, 2, 3]
    assert list(shm) == ["run1"]
    assert len(shm) == 1
    assert isinstance(shm["run1"], shmem.Group)
    assert isinstance(shm["run1/deep"], shmem.Group)
    assert shm["run1"]["deep"]["grid"].tolist() == shm["run1/deep/grid"].tolist() == [1, 2, 3]
    assert "run1" in shm
    assert "run1/deep" in shm
    assert "run1/deep/grid" in shm
    assert "run1/grid" not in shm
    assert "grid" not in shm
    assert shm.get("run1/none") is None


@pytest.mark.parametrize("maker", ["zeros", "empty", "full", "array", "copy", "queue", "semaphore", "event", "mutex"])
def test_makers_name_relative_to_the_group(shm, maker):
    arguments = {"zeros": (3,), "empty": (3,), "full": (3, 1.5), "array": ([1, 2],), "copy": ([1, 2],), "queue": (4, "int64")}.get(
        maker, ()
    )
    group = shm.create_group("run1")
    made = getattr(group, maker)(*arguments, name="deep/x")
    found = shm["run1/deep/x"]
    assert type(found) is type(made)
    assert list(group) == ["deep"]
    assert list(shm) == ["run1"]
    getattr(group, maker)(*arguments)  # without a name
    assert list(group) == ["deep"]
    assert list(group["deep"]) == ["x"]


def test_new_has_no_name(shm):
    group = shm.create_group("run1")
    group["value"] = group.new(np.dtype("float64"))
    assert shm["run1/value"].shape == ()


def test_mapping_of_a_group(shm):
    group = shm.require_group("run1")
    group.update({"a": [1], "b": [2]}, c=[3])
    assert list(group) == list(group.keys()) == ["a", "b", "c"]
    assert len(group) == 3
    assert [value.tolist() for value in group.values()] == [[1], [2], [3]]
    assert [name for name, _ in group.items()] == ["a", "b", "c"]
    assert group.pop("b").tolist() == [2]
    assert group.pop("b", 7) == 7
    assert group.popitem()[0] == "c"
    assert group.setdefault("d", [4]).tolist() == [4]
    assert group.setdefault("d", [5]).tolist() == [4]
    assert group.require("e", lambda: shm.array([5])).tolist() == [5]
    with pytest.raises(shmem.NameExists, match="run1/a"):
        group.update(z=[1], a=[9])
    assert "z" not in group
    group["a"] *= 3
    assert shm["run1/a"].tolist() == [3]
    assert group.entry("a").name == "run1/a"
    del group["a"]
    group.clear()
    assert len(group) == 0
    assert list(shm) == ["run1"]
    with pytest.raises(KeyError):
        group.popitem()


def test_create_and_require(shm):
    group = shm.create_group("run1/deep")
    assert group.name == "run1/deep"
    assert shm.require_group("run1/deep") == group == shm["run1"].require_group("deep")
    with pytest.raises(shmem.NameExists, match="require_group"):
        shm.create_group("run1/deep")
    shm["run1/x"] = [1]
    for make in (shm.create_group, shm.require_group):
        with pytest.raises(shmem.NameExists):
            make("run1/x")
        with pytest.raises(shmem.NameExists, match="'run1/x' is not a group"):
            make("run1/x/y/z")
        with pytest.raises(ValueError, match="component"):
            make("run1//y")
        with pytest.raises(TypeError):
            make(3)


def test_parent_that_is_not_a_group(shm):
    shm["x"] = [1]
    with pytest.raises(shmem.NameExists, match="'x' is not a group"):
        shm["x/y"] = [2]
    with pytest.raises(shmem.NameExists, match="'x' is not a group"):
        shm.setdefault("x/y", [2])
    with pytest.raises(shmem.NameExists, match="'x' is not a group"):
        shm.require("x/y", lambda: shm.array([1]))
    with pytest.raises(KeyError):
        shm["x/y"]
    with pytest.raises(KeyError):
        del shm["x/y"]
    assert "x/y" not in shm
    assert shm.get("x/y") is None


def test_a_group_is_not_a_value(shm):
    group = shm.create_group("run1")
    for assign in (lambda: shm.__setitem__("other", group), lambda: shm.update(other=group), lambda: shm.setdefault("other", group)):
        with pytest.raises(TypeError, match="a group has one name"):
            assign()
    assert list(shm) == ["run1"]
    with pytest.raises(shmem.NameExists, match="a group has it"):
        shm["run1"] = [1]
    with pytest.raises(TypeError, match="it is a group"):
        shm.pop("run1")
    with pytest.raises(TypeError, match="it is a group"):
        shm.popitem()
    with pytest.raises(TypeError, match="it is a group"):
        shm.entry("run1")
    with pytest.raises(TypeError, match="cannot be pickled"):
        __import__("pickle").dumps(group)


@pytest.mark.parametrize("name", ["", "/", "a/", "/a", "a//b", ".", "..", "a/./b", "a/../b", 3, None])
def test_names_that_are_none(shm, name):
    shm["a/b"] = [1]
    assert name not in shm
    assert name not in shm["a"]
    with pytest.raises((ValueError, TypeError)):
        shm[name]


def test_what_a_group_is(shm):
    group = shm.create_group("run1/deep")
    assert group.parent == shm["run1"]
    assert group.parent.parent is shm
    assert group == shm["run1/deep"]
    assert group != shm["run1"]
    assert group != "run1/deep"
    assert len({group, shm["run1/deep"]}) == 1
    with shmem.SharedMemory(shared_name=shm.name) as second:
        assert second["run1/deep"] == group
    assert repr(group) == "<shmem.Group 'run1/deep': 0 names>"
    assert bool(group)
    del shm["run1"]
    assert not group
    assert repr(group) == "<shmem.Group 'run1/deep': gone>"
    for use in (list, len, lambda group: group["x"]):
        with pytest.raises(KeyError):
            use(group)
    group["x"] = [1]  # assigning makes the group again, as any path
    assert shm["run1/deep/x"].tolist() == [1]


def test_visit(shm):
    for name in ("a", "run1/x", "run1/deep/y", "run2/z"):
        shm[name] = [1]
    seen = []
    assert shm.visit(seen.append) is None
    assert seen == ["a", "run1", "run1/x", "run1/deep", "run1/deep/y", "run2", "run2/z"]
    kinds = {}
    assert shm["run1"].visititems(lambda name, found: kinds.update({name: type(found)})) is None
    assert kinds == {"x": np.ndarray, "deep": shmem.Group, "deep/y": np.ndarray}
    assert shm.visit(lambda name: name if name.endswith("y") else None) == "run1/deep/y"
    shm.visit(lambda name: shm.__delitem__(name) if name in ("run1", "run2") else None)  # what is gone is not visited
    assert list(shm) == ["a"]


def test_deletion_frees_what_is_in_the_group(shm):
    shm["kept"] = [7]
    shm.allocate(40)
    gc.collect()
    before = shm.stats()
    group = shm.create_group("run1")
    twice = group.zeros(1000, name="twice")
    shm["twice"] = twice
    viewed = group.array([1, 2, 3], name="viewed")
    group.queue(8, "int64", name="queue")
    group.mutex(name="mutex")
    group["bytes"] = b"x" * 5000
    for i in range(200):  # more than one table
        group[f"deep/deeper/{i}"] = np.full(100, i)
    del shm["run1"]
    assert "run1" not in shm
    assert list(shm) == ["kept", "twice"]
    assert viewed.tolist() == [1, 2, 3]
    assert shm["twice"].shape == (1000,)
    shm.check_heap()
    del viewed, twice
    gc.collect()
    del shm["twice"]
    after = shm.stats()
    assert (after.used, after.blocks) == (before.used, before.blocks)


def test_a_deleted_group_keeps_the_root(shm):
    block = shm.allocate(100)
    shm["run1/block"] = block
    shm.root = block
    del shm["run1"]
    assert shm.root.offset == block.offset


def test_many_names_of_one_object(shm):
    """A block counts up to two names itself; of more, the others are searched for in all groups."""
    event = shm.event(name="a")
    for name in ("x/b", "x/c", "y/z/d"):
        shm[name] = event
    assert shmem.info(event).names == ("a", "x/b", "x/c", "y/z/d")
    del shm["x"]
    assert shmem.info(event).names == ("a", "y/z/d")
    del shm["a"]
    assert shm["y/z/d"].is_set() is False
    del event
    used = shm.stats().blocks
    del shm["y"]
    assert shm.stats().blocks == used - 1


def test_internal_blocks_are_counted(shm):
    for i in range(100):
        shm[f"a/{i}/x"] = [i]
    assert shm.check_heap().internal_blocks >= 101 + 102 + 201  # groups, tables, entries
    assert shm.stats().blocks == shm.check_heap().blocks == 100
    del shm["a"]
    assert shm.stats().blocks == 0


def test_levels(shm):
    path = "/".join(["g"] * 63)
    shm[path + "/x"] = [1]
    assert shm[path + "/x"].tolist() == [1]
    with pytest.raises(ValueError, match="at most 64 components"):
        shm[path + "/x/y"] = [1]
    del shm["g"]
    assert shm.stats().blocks == 0


def test_sweep_and_other_processes_go_on(shm):
    """`sweep` has nothing to do after a deletion that was not interrupted."""
    shm["run1/x"] = np.zeros(1000)
    del shm["run1"]
    assert shm.sweep() == 0


def test_completions_are_names_and_paths(shm):
    for name in ("a", "run1/x", "run1/deep/y"):
        shm[name] = [1]
    assert shm._ipython_key_completions_() == ["a", "run1", "run1/x", "run1/deep", "run1/deep/y"]
    assert shm["run1"]._ipython_key_completions_() == ["x", "deep", "deep/y"]
    group = shm["run1"]
    del shm["run1"]
    assert group._ipython_key_completions_() == []


def test_rename(shm):
    shm["run1/x"] = [1]
    shm["taken"] = [2]
    group, other = shm["run1"], shm["run1"]
    group.rename("done/run1")
    assert group.name == "done/run1"
    assert list(group) == ["x"]
    assert not other
    assert list(shm) == ["taken", "done"]
    group.rename("done/run1")
    with pytest.raises(ValueError, match="inside of itself"):
        group.rename("done/run1/deeper")
    with pytest.raises(shmem.NameExists):
        group.rename("taken")
    with pytest.raises(shmem.NameExists, match="is not a group"):
        group.rename("taken/x")
    with pytest.raises(KeyError):
        other.rename("somewhere")
    assert list(group) == ["x"]
    shm["done"].rename("top")
    assert shm["top/run1/x"].tolist() == [1]
    assert not group


# -- what stands for a name is no object ---------------------------------------------------------------------------


def test_names_are_not_objects(shm):
    shm["g/x"] = [1]
    for wrong in (shm["g"], shm.entry("g/x"), shm["g"].attrs):
        with pytest.raises(TypeError, match="name"):
            shmem.handle(wrong)
        with pytest.raises(TypeError, match="name"):
            shmem.info(wrong)
    with pytest.raises(TypeError, match="assign its value"):
        shm["y"] = shm.entry("g/x")


def test_visit_of_a_group_that_is_not_there(shm):
    group = shm.create_group("g")
    del shm["g"]
    with pytest.raises(KeyError):
        group.visit(print)


def test_closed_groups(tmp_path):
    with shmem.SharedMemory(tmp_path / "one", max_size="1M") as shm:
        group, copy = shm.create_group("g"), shmem.SharedMemory(tmp_path / "one").require_group("g")
        assert group == copy
        shm.snapshot(tmp_path / "two")
        with shmem.SharedMemory(tmp_path / "two") as other:
            assert group != other["g"]  # of a copy of the file, which has the same uuid
    assert not group
    assert group == group
    assert group != copy


def test_names_that_are_enumerations(shm):
    class Color(str, enum.Enum):  # noqa: UP042 - the text of a StrEnum is its value, that of this one is not
        RED = "red"

    shm.create_group("g")[Color.RED] = [1]
    shm["g"].attrs[Color.RED] = Color.RED
    assert list(shm["g"]) == ["red"]
    assert dict(shm["g"].attrs.items()) == {"red": "red"}


def test_views_contain_arrays(shm):
    shm["a"], shm["b"] = [1, 2], [1, 2]
    assert shm["a"] in shm.values()
    assert ("a", shm["a"]) in shm.items()
    assert ("b", shm["a"]) not in shm.items()
    assert ("a", 1) not in shm.items()
    assert list(reversed(shm)) == ["b", "a"]


def test_deletion_does_not_empty_the_groups_of_others(shm):
    """It takes the time of one name, however much another process has to free."""
    shm["g/x"], shm["y"] = [1], [2]
    directory.remove_name(shm, "g")  # as if its process was killed
    n_blocks = shm.stats().blocks
    del shm["y"]
    assert shm.stats().blocks == n_blocks - 1
    shm.sweep()
    assert shm.stats().blocks == 0
