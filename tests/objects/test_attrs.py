"""`Attributes`: a mapping of small values that belong to an object, or to the section."""

import math
import os
import pickle
import textwrap
import threading

import numpy as np
import pytest
from scribe import HEAP_GATE, Scribe
from workers import in_thread

import shmem
from shmem._objects import attribute_codec

FIELDS = np.dtype([("a", "i1"), ("b", ">f8"), ("s", "U3"), ("v", "i2", (2,))], align=True)
SCALARS = [
    np.float32(1.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.float64(2), np.complex64(1 + 2j), np.longdouble(1) / 3,
    np.str_("abc"), np.str_(""), np.bytes_(b"q"), np.datetime64("2020-01-01"), np.timedelta64("NaT", "s"), np.zeros(2, FIELDS)[0],
]  # fmt: skip
ARRAYS = [
    np.arange(6).reshape(2, 3).T, np.arange(6, dtype=">i4"), np.array(5.5), np.zeros((0, 3)), np.array(["a", "bcd"]), np.array([b"x", b""]),
    np.zeros(0, "U5"), np.array([True, False]), np.array(["2020-01-01", "NaT"], "M8[D]"), np.ones(2, np.dtype(("f4", (2,)))),
    np.array([(1, 2.5, "é", [3, 4])], FIELDS), np.rec.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f4")]).view(np.ndarray),
]  # fmt: skip


@pytest.fixture
def attrs(shm):
    """Return the attributes of an array."""
    shm["x"] = [1.5, 2.5]
    return shm.entry("x").attrs


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    0, -5, 10**3999, True, None, 1.5, math.inf, -math.inf, "", "text", "ünï\n\0\u2028", b"", b"\0\xff", 1 + 2j, complex(math.inf, 0),
    [], [1, [2.5, "a", None]], {}, {"a": {"b": [1, b"c"]}, "": 2}, {"dict": {"array": 1}}, [{"scalar": []}],
])  # fmt: skip
def test_values_come_back(attrs, value):
    attrs["a"] = value
    found = attrs["a"]
    assert (found, type(found)) == (value, type(value))


def test_floats_that_are_not_numbers(attrs):
    attrs.update(nan=math.nan, zero=-0.0, pair=complex(math.nan, -0.0))
    assert math.isnan(attrs["nan"])
    assert math.copysign(1, attrs["zero"]) == math.copysign(1, attrs["pair"].imag) == -1
    assert math.isnan(attrs["pair"].real)


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: f"{type(value).__name__} {value}")
def test_numpy_scalars_come_back(attrs, value):
    attrs["a"] = value
    found = attrs["a"]
    assert (type(found), found.dtype) == (type(value), value.dtype)
    if isinstance(value, (np.longdouble, np.clongdouble)):  # some of its bytes have no meaning
        assert found == value
    else:
        assert found.tobytes() == value.tobytes()


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype} {value.shape}")
def test_numpy_arrays_come_back(attrs, value):
    attrs["a"] = value
    found = attrs["a"]
    assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())
    assert found.flags.writeable
    found[...] = np.zeros_like(found)  # a copy: the attribute is as it was
    assert attrs["a"].tobytes() == value.tobytes()


def test_padding_between_fields_is_not_stored():
    array = np.zeros(1, FIELDS)
    array.view(np.uint8)[...] = 0xAA
    tree = attribute_codec.to_tree("a", array)
    array_of_zeros = np.zeros(1, FIELDS)
    array_of_zeros[...] = array
    assert tree == attribute_codec.to_tree("a", array_of_zeros)
    assert attribute_codec.from_tree(tree).tobytes().count(0xAA) == sum(FIELDS.fields[name][0].itemsize for name in FIELDS.names)


def test_equal_values_have_equal_text():
    values = {"ü": [1, 2.5, (3,)], "b": np.arange(3)}
    text = attribute_codec.to_bytes({name: attribute_codec.to_tree(name, value) for name, value in values.items()}, "")
    again = {name: attribute_codec.from_tree(tree) for name, tree in attribute_codec.from_bytes(text).items()}
    assert text == attribute_codec.to_bytes({name: attribute_codec.to_tree(name, value) for name, value in again.items()}, "")
    assert text.decode() == '{"dict":{"ü":[1,2.5,[3]],"b":{"array":["\'<i8\'",[3],"AAAAAAAAAAABAAAAAAAAAAIAAAAAAAAA"]}}}'


def test_tuples_become_lists(attrs):
    attrs["a"] = (1, (2, 3))
    assert attrs["a"] == [1, [2, 3]]


@pytest.mark.parametrize("value", [object(), {1, 2}, bytearray(b"a"), {1: 2}, [object()], np.array([object()]), np.ma.array([1]), range(3)])
def test_other_values_are_refused(attrs, value):
    attrs["a"] = 1
    with pytest.raises(TypeError, match="cannot set the attribute 'wrong'"):
        attrs["wrong"] = value
    assert dict(attrs) == {"a": 1}


@pytest.mark.parametrize("value", ["\ud800", 10**4000, {"\udfff": 1}], ids=["surrogate", "long integer", "name"])
def test_values_that_the_text_cannot_hold(attrs, value):
    with pytest.raises(ValueError, match="cannot set the attribute 'wrong'"):
        attrs["wrong"] = value


def test_deep_values(attrs):
    deep = value = []
    for _ in range(attribute_codec.MAX_DEPTH - 1):
        value.append([])
        value = value[0]
    attrs["a"] = deep
    assert attrs["a"] == deep
    value.append([[]])
    with pytest.raises(ValueError, match="nested 32 deep"):
        attrs["a"] = deep
    deep.append(deep)  # endless
    with pytest.raises(ValueError, match="nested 32 deep"):
        attrs["a"] = deep


def test_names_are_text(attrs):
    for name in (1, None, b"a"):
        with pytest.raises(TypeError, match="the name of an attribute must be text"):
            attrs[name] = 1
        with pytest.raises(KeyError):
            attrs[name]
        assert name not in attrs
    attrs[""] = 1
    assert attrs[""] == 1


def test_a_mebibyte_for_all_attributes(attrs):
    overhead = len(attribute_codec.to_bytes({"a": ""}, ""))
    attrs["a"] = "x" * (attribute_codec.MAX_BYTES - overhead)
    assert len(attrs["a"]) == attribute_codec.MAX_BYTES - overhead
    with pytest.raises(ValueError, match=r"cannot update the attributes of 'x'.*1,048,576 bytes"):
        attrs.update(b=1)
    assert list(attrs) == ["a"]


# -- the mapping ----------------------------------------------------------------------------------------------


def test_mapping(attrs):
    assert (dict(attrs), len(attrs), bool(attrs), attrs.get("a"), attrs.get("a", 5)) == ({}, 0, False, None, 5)
    attrs["b"], attrs["a"] = 1, 2
    attrs["b"] = 3
    assert (list(attrs), list(attrs.values()), list(attrs.items())) == (["b", "a"], [3, 2], [("b", 3), ("a", 2)])
    assert "b" in attrs
    assert 3 in attrs.values()
    assert ("a", 2) in attrs.items()
    assert "c" not in attrs
    assert attrs == {"a": 2, "b": 3}
    assert attrs.get("a") == 2
    assert (attrs.setdefault("a", 7), attrs.setdefault("c", [8])) == (2, [8])
    assert (attrs.pop("b"), attrs.pop("b", None), attrs.popitem()) == (3, None, ("c", [8]))
    del attrs["a"]
    for wrong in (lambda: attrs.pop("a"), attrs.popitem, lambda: attrs["a"], lambda: attrs.__delitem__("a")):
        with pytest.raises(KeyError):
            wrong()
    attrs.update({"d": 1}, e=2)
    attrs.update([("f", 3)])
    attrs.clear()
    attrs.clear()
    assert dict(attrs) == {}


def test_what_is_shown(shm, attrs):
    attrs["unit"] = "<m>"
    shm.attrs["n"] = np.arange(2)
    assert repr(attrs) == "<shmem.Attributes of 'x': {'unit': '<m>'}>"
    assert repr(shm.attrs) == "<shmem.Attributes: {'n': array([0, 1])}>"
    assert "&lt;m&gt;" in attrs._repr_html_()
    assert "array([0, 1])" in shm.attrs._repr_html_()
    attrs["long"] = "y" * 1000
    assert len(attrs._repr_html_()) < 1000
    assert attrs._ipython_key_completions_() == ["unit", "long"]
    attrs.update({str(i): i for i in range(100)})
    assert "102 attributes, of which 50 are shown" in attrs._repr_html_()
    del shm["x"]
    assert repr(attrs) == "<shmem.Attributes of 'x': KeyError>"
    assert attrs._ipython_key_completions_() == []
    assert "KeyError" in attrs._repr_html_()
    with pytest.raises(TypeError, match=r"send dict\(attrs\.items\(\)\)"):
        pickle.dumps(attrs)


def test_looking_does_not_wait_for_a_process_that_keeps_the_heap_gate(shm, attrs):
    """It is said to keep it: the gate's word names this process, none of whose threads is inside."""
    attrs["unit"] = "m"
    scribe = Scribe(shm.path)
    scribe[HEAP_GATE] = scribe.owner_word(scribe.entry_of(os.getpid()))
    try:
        text, html, names = in_thread(lambda: (repr(attrs), attrs._repr_html_(), attrs._ipython_key_completions_()))
    finally:
        scribe[HEAP_GATE] = 0
    assert (text, names) == ("<shmem.Attributes of 'x': not read: another process keeps the heap>", [])
    assert "another process keeps the heap" in html


def test_everything_that_a_name_leads_to_has_attributes(shm):
    shm["block"], shm["array"] = b"text", [1, 2]
    shm.queue(3, "int64", name="queue")
    shm.semaphore(name="semaphore")
    shm.event(name="event")
    shm.mutex(name="mutex")
    for number, name in enumerate(shm):
        shm.entry(name).attrs["number"] = number
    assert [shm.entry(name).attrs["number"] for name in shm] == list(range(6))
    assert dict(shm.attrs) == {}


def test_read_only_section(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["x"] = [1, 2]
        shm.entry("x").attrs["unit"] = "m"
        with shmem.SharedMemory(section_file, mode="read_only") as reader:
            attrs = reader.entry("x").attrs
            assert dict(attrs) == {"unit": "m"}
            assert dict(reader.attrs) == {}
            changes = [
                lambda: attrs.update(a=1), lambda: attrs.pop("unit"), lambda: attrs.pop("none", 1), attrs.clear, attrs.popitem,
                lambda: attrs.setdefault("unit", 1), lambda: attrs.__setitem__("a", 1), lambda: attrs.__delitem__("unit"),
            ]  # fmt: skip
            for change in changes:
                with pytest.raises(shmem.ReadOnlyError, match=r"of 'x': section .* was opened read-only"):
                    change()


def test_section_that_is_closed(shm):
    attrs = shm.attrs
    attrs["a"] = 1
    shm.close()
    for use in (lambda: attrs["a"], lambda: attrs.update(a=2), lambda: list(attrs)):
        with pytest.raises(shmem.ClosedError):
            use()
    assert repr(attrs) == "<shmem.Attributes: ClosedError>"


def test_attributes_persist(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["x"] = [1, 2]
        shm.attrs["title"] = shm.entry("x").attrs["unit"] = "é"
    with shmem.SharedMemory(section_file) as shm:
        assert (shm.attrs["title"], shm.entry("x").attrs["unit"]) == ("é", "é")


# -- the object that they belong to ---------------------------------------------------------------------------


def test_all_names_of_an_object_share_its_attributes(shm, attrs):
    attrs["unit"] = "m"
    shm["y"] = shm["x"]
    shm.entry("y").attrs["unit"] = "km"
    assert attrs["unit"] == "km"
    del shm["x"]
    assert dict(shm.entry("y").attrs) == {"unit": "km"}
    with pytest.raises(KeyError):
        attrs["unit"]
    for use in (attrs.clear, lambda: attrs.update(a=1), lambda: attrs.get("unit", 5), lambda: attrs.pop("unit", 5), lambda: len(attrs)):
        with pytest.raises(KeyError, match="'x'"):
            use()


def test_another_object_of_the_same_name_has_its_own(shm, attrs):
    attrs["unit"] = "m"
    del shm["x"]
    shm["x"] = [3, 4]
    assert dict(attrs) == {}


def test_value_that_replaces_another_has_its_own(shm, attrs):
    attrs["unit"] = "m"
    shm["y"] = shm["x"]
    shm.entry("x").replace([3, 4])
    assert dict(attrs) == {}
    assert dict(shm.entry("y").attrs) == {"unit": "m"}
    attrs["unit"] = "km"
    shm.entry("x").replace(shm["y"])
    assert dict(attrs) == {"unit": "m"}
    shm.check_heap()


def test_renamed_object_keeps_its_attributes(shm, attrs):
    attrs["unit"] = "m"
    shm["run/y"] = [1]
    shm["run"].attrs["n"] = 1
    shm.entry("x").rename("z")
    assert dict(shm.entry("z").attrs) == {"unit": "m"}
    with pytest.raises(KeyError):
        attrs["unit"]


def test_object_that_is_named_again_keeps_its_attributes(shm, attrs):
    attrs["unit"] = "m"
    array = shm["x"]
    del shm["x"]
    shm["y"] = array
    assert dict(shm.entry("y").attrs) == {"unit": "m"}


def test_object_that_was_freed(shm, attrs):
    block = shm.allocate(100)
    shm["block"] = block
    found = shm.entry("block").attrs
    found["a"] = 1
    shm.free(block)
    for use in (lambda: found["a"], lambda: found.update(a=1)):
        with pytest.raises(shmem.InvalidBlock, match="the object was freed"):
            use()


def test_groups_have_attributes(shm):
    shm["run/grid"], shm["run/deep/grid"] = [1, 2], [3]
    for number, owner in enumerate((shm, shm["run"], shm["run/deep"], shm.entry("run/grid"), shm["run"].entry("deep/grid"))):
        owner.attrs["number"] = number
    assert shm["run"]["deep"].attrs["number"] == 2
    assert shm.entry("run/deep/grid").attrs["number"] == 4
    assert repr(shm["run"].attrs) == "<shmem.Attributes of 'run': {'number': 1}>"
    former = shm["run"].attrs
    shm["other"] = shm["run/deep/grid"]
    internal = shm.check_heap().internal_blocks
    del shm["run"]
    with pytest.raises(KeyError, match="'run'"):
        former["number"]
    shm.create_group("run")
    assert dict(former) == {}
    assert (shm.entry("other").attrs["number"], shm.attrs["number"]) == (4, 0)
    assert internal - shm.check_heap().internal_blocks >= 7  # entries, tables, a group, and three that had attributes
    shm["other"] = shm.entry("other").value
    former["a"] = 1
    shm.clear()
    shm.attrs.clear()
    shm.check_heap()


def test_array_that_moves_takes_its_attributes_along(shm):
    shm.zeros((1, 2), maxshape=(None, None), name="log")
    entry = shm.entry("log")
    entry.attrs.update(unit="m", long="x" * 200_000)
    serials = {shmem.info(shm["log"]).serial}
    for n in range(1, 4):
        entry.resize((1, 2 + n))
        entry.append(np.ones((2000 * n, 2 + n)))
        serials.add(shmem.info(shm["log"]).serial)
        assert entry.attrs == {"unit": "m", "long": "x" * 200_000}
        shm.check_heap()
    assert len(serials) == 4


def test_array_that_moves_while_it_is_viewed(shm):
    shm.zeros((1, 2), maxshape=(None, None), name="log")
    entry, view = shm.entry("log"), shm["log"]
    entry.attrs["unit"] = "m"
    entry.resize((1, 3), move=True)
    entry.attrs["unit"] = "km"
    shm["old"] = view  # it has its own from then on
    assert (entry.attrs["unit"], shm.entry("old").attrs["unit"]) == ("km", "m")


@pytest.mark.parametrize("size", [300, 5000])
def test_reallocated_block_takes_its_attributes_along(shm, size):
    block, _ = shm.allocate(100), shm.allocate(100)
    shm["block"] = block
    shm.entry("block").attrs["a"] = 1
    moved = shm.reallocate(block, size)
    shm.check_heap()
    assert moved.offset != block.offset
    del shm["block"]
    shm["moved"] = moved
    assert dict(shm.entry("moved").attrs) == {"a": 1}
    assert shm.reallocate(moved, size // 2).offset == moved.offset  # in place
    assert dict(shm.entry("moved").attrs) == {"a": 1}


# -- several processes and threads ----------------------------------------------------------------------------


def test_no_change_is_lost(shm, attrs, child):
    """Several processes and threads set and delete attributes of one object, each its own."""
    n_steps, code = (
        100,
        """
        attrs = shmem.SharedMemory(**eval(args[0])).entry("x").attrs
        for i in range(int(args[2])):
            attrs[f"{args[1]} {i}"] = i
            attrs[f"{args[1]} {i - 5}"] = -1
            attrs.pop(f"{args[1]} {i - 10}", None)
    """,
    )
    place = repr({"shared_name": shm.name})
    others = [child(code, place, name, n_steps) for name in "ab"]

    def work():
        for i in range(n_steps):
            attrs[f"thread {i}"] = i

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(n_steps):
        attrs["here"] = i
    thread.join()
    for other in others:
        other.end()
    left = {f"{name} {i}": -1 if i < n_steps - 5 else i for name in "ab" for i in range(n_steps - 10, n_steps)}
    assert dict(attrs.items()) == left | {f"thread {i}": i for i in range(n_steps)} | {"here": n_steps - 1}


def test_one_of_several_takes_an_attribute(attrs):
    n_threads, taken = 4, []
    attrs.update({str(i): i for i in range(50)})

    def take():
        for i in range(50):
            found = attrs.pop(str(i), None)
            if found is not None:
                taken.append(found)

    threads = [threading.Thread(target=take) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(50))


def test_changes_while_the_array_moves(shm, child):
    """What several processes set while an array moves, again and again, is not lost."""
    shm.zeros((1, 2), maxshape=(None, None), name="log")
    n_steps, setting, moving = (
        300,
        """
        attrs = shmem.SharedMemory(shared_name=args[0]).entry("log").attrs
        say("go")
        for i in range(int(args[1])):
            attrs["child"] = attrs.get("child", 0) + 1
    """,
        """
        entry = shmem.SharedMemory(shared_name=args[0]).entry("log")
        say("go")
        while not is_over(entry):
            for width in (2, 3):
                entry.resize((1, width))
    """,
    )
    others = [child("def is_over(entry): return 'over' in entry.attrs\n" + textwrap.dedent(moving), shm.name)]
    others[0].hear()
    others.append(child(setting, shm.name, n_steps))
    attrs = shm.entry("log").attrs
    attrs["long"] = "x" * 60_000  # what takes a while to copy is more likely to change meanwhile
    others[1].hear()
    for _ in range(n_steps):
        attrs["here"] = attrs.get("here", 0) + 1
    others.pop().end()
    attrs["over"] = True
    others.pop().end()
    assert [attrs[name] for name in ("here", "child", "over")] == [n_steps, n_steps, True]
    shm.check_heap()


@pytest.mark.parametrize("value", [np.bytes_(b"a\0"), np.str_("a\0"), np.zeros(2).view(np.matrix), np.ma.array([1, 2])])
def test_values_that_would_change_are_refused(shm, value):
    with pytest.raises((TypeError, ValueError), match="'a'"):
        shm.attrs["a"] = value
    assert dict(shm.attrs.items()) == {}
