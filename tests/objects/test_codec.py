"""The codec: fields, array fields and queues accept the same values, write the same bytes, and reject values that do not fit."""

import array
import datetime
import decimal
import fractions
import warnings

import numpy as np
import pytest

import shmem
from shmem import Array, Bytes, Struct
from shmem._objects import codec, fields

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMBERS = ["bool", *INTEGERS, "float32", "float64", "complex64", "complex128"]
DTYPES = [*NUMBERS, "float16", "longdouble", "clongdouble", ">i2", ">i4", ">f4", ">U3", "S4", "U4", "V4", "M8[s]", "M8[ns]", "m8[ms]"]
FIELD_KINDS = "biufcSUmM"


class Index:
    """An integer that is not an int."""

    def __index__(self):
        return 7


class Float:
    """A number with only `__float__`."""

    def __float__(self):
        return 2.5


VALUES = [
    *(0, 1, 2, -1, 127, 128, 255, 256, -129, 300, 65520, 1 << 31, 1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64),
    *(1 << 70, 10**400, -(10**400), 10**5000, True, False, 1.0, 2.7, -0.0, 1e5, 1e300, float("inf"), float("-inf"), float("nan"), 1e-300),
    *(1j, 1 + 2j, 1e300j, 3 + 0j, complex("inf"), None, (), [], [1], (1, 2), {}, object(), Index(), Float(), fractions.Fraction(1, 2)),
    *(decimal.Decimal("1.5"), decimal.Decimal("1e400"), "", "1", "abcd", "abcde", "äöü", "ab\0", "2020-01-01", "2020-01-01T00:00:00.5"),
    *(b"", b"1", b"abcd", b"abcde", b"ab\0", b"ab\0\0\0", bytearray(b"xy"), memoryview(b"xyz"), datetime.date(2020, 1, 1)),
    *(datetime.datetime(2020, 1, 1, 0, 0, 1), datetime.datetime(2020, 1, 1, 0, 0, 1, 5), datetime.timedelta(milliseconds=5)),
    *(datetime.timedelta(microseconds=5), datetime.date(9999, 1, 1)),
]
SCALARS = [
    *(np.True_, np.False_, np.int8(-1), np.int64(1 << 40), np.int64(300), np.int64((1 << 62) + (1 << 38) + 1), np.uint64((1 << 64) - 1)),
    *(np.uint8(200), np.float16(2.5), np.float32(0.1), np.float64(2.0), np.float64(2.5), np.float64(1e300), np.float32("inf")),
    *(np.longdouble("1e400"), np.longdouble(2) / 3, np.float64("nan"), np.complex64(1 + 2j), np.complex128(1), np.complex128(1e300j)),
    *(np.clongdouble(1) * np.longdouble("1e400"), np.str_("ab"), np.str_("abcde"), np.bytes_(b"ab"), np.bytes_(b"abcde"), np.void(b"abcd")),
    *(np.void(b"abcdef"), np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00:00:00.5"), np.datetime64("NaT", "s")),
    *(np.timedelta64(5, "s"), np.timedelta64(1500, "us"), np.datetime64("9999-01-01"), np.timedelta64("NaT", "s"), np.datetime64(5, "ns")),
]


def outcome(store, read, dtype):
    """Return the stored bytes, or the name of the exception class."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rejection = None
        try:
            store()
        except (TypeError, ValueError, OverflowError) as error:
            rejection = error
        if rejection is not None:
            assert type(rejection) in (TypeError, ValueError, OverflowError)
            assert "must" in str(rejection)
            return type(rejection).__name__
        found = np.zeros((), dtype)
        found[...] = read()
        if dtype.char in "gG":  # their padding is not significant
            return repr(found[()])
        return found.tobytes()


def field_type(dtype):
    if dtype in fields.SCALARS:
        return fields.SCALARS[dtype]
    return Bytes[dtype.itemsize] if dtype.kind == "S" else None


def outcomes(shm, dtype, value, is_scalar):
    """Store one value in each way; return the outcomes by the name of the way."""
    queue, found = shm.queue(2, dtype), {}
    found["put"] = outcome(lambda: queue.put(value, block=False), queue.get, dtype)
    found["put_many"] = outcome(lambda: queue.put_many([value]), lambda: queue.get_many(1)[0], dtype)
    if is_scalar:
        found["put 0-d"] = outcome(lambda: queue.put(np.array(value), block=False), queue.get, dtype)
        found["put_many array"] = outcome(lambda: queue.put_many(np.array([value])), lambda: queue.get_many(1)[0], dtype)
    assert queue.empty()
    one = field_type(dtype)
    if one is not None:
        obj = shm.new(type(Struct)("One", (Struct,), {"__annotations__": {"one": one}}))
        found["field"] = outcome(lambda: setattr(obj, "one", value), lambda: obj.one, dtype)
    if dtype.kind in FIELD_KINDS and dtype.isnative and not isinstance(value, (list, tuple)):
        obj = shm.new(type(Struct)("Many", (Struct,), {"__annotations__": {"many": Array[dtype, 2]}}))
        found["array field"] = outcome(lambda: setattr(obj, "many", [value, value]), lambda: obj.many[1], dtype)
        if is_scalar:
            found["array field, array"] = outcome(lambda: setattr(obj, "many", np.array([value, value])), lambda: obj.many[1], dtype)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_of_storing_agrees(shm, dtype):
    for value in [*VALUES, *SCALARS]:
        found = outcomes(shm, np.dtype(dtype), value, isinstance(value, np.generic))
        assert len(set(found.values())) == 1, (dtype, value, found)


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("S4", b"abcdef", ValueError),
        ("U4", "abcdef", ValueError),
        ("S4", b"ab\0\0", ValueError),
        ("S4", "ab", TypeError),
        ("S4", 5, TypeError),
        ("U4", 5, TypeError),
        ("U4", b"ab", TypeError),
        ([("id", "i8"), ("name", "S4")], (1, b"abcdef"), ValueError),
        ([("id", "i1"), ("name", "S4")], (300, b"a"), OverflowError),
        ([("id", "i1"), ("name", "S4")], (1, b"a", 2), ValueError),
        ([("id", "i1"), ("name", "S4")], 1, TypeError),
        ([("at", [("x", "i1", 2)])], (([1, 300],),), OverflowError),
        ("(2,)i1", [1, 2.5], TypeError),
        ("(2,)i1", [1, 2, 3], ValueError),
        ("i1", 300, OverflowError),
        ("u1", -1, OverflowError),
        ("f4", 1e300, OverflowError),
        ("f8", None, TypeError),
        ("f8", 1j, TypeError),
        ("f8", np.complex128(1 + 2j), TypeError),
        ("f8", "1.5", TypeError),
        ("i8", 2.7, TypeError),
        ("i8", 2.0, TypeError),
        ("i8", np.float64(2.5), TypeError),
        ("i8", "5", TypeError),
        ("i8", np.timedelta64(5, "s"), TypeError),
        ("i4", np.int64(1 << 40), OverflowError),
        ("?", 2, OverflowError),
        ("?", 1.0, TypeError),
        ("f2", 1e5, OverflowError),
        ("V4", b"abcdef", ValueError),
        ("M8[s]", "2020-01-01T00:00:00.5", ValueError),
        ("M8[s]", 2.5, TypeError),
    ],
)
def test_unsuitable_values_are_rejected(shm, dtype, value, error):
    queue = shm.queue(4, dtype)
    with pytest.raises(error, match=r"^put: the item.* must "):
        queue.put(value)
    with pytest.raises(error, match=r"^put_many: item 0.* must "):
        queue.put_many([value])
    assert queue.empty()


@pytest.mark.parametrize(
    ("dtype", "source", "stored"),
    [
        ("u1", np.array([1, 255]), [1, 255]),
        ("i1", np.array([-128, 127], "f8").astype("i8"), [-128, 127]),
        ("i8", np.array([1, 2], "u8"), [1, 2]),
        ("u1", b"ab", [97, 98]),
        ("u1", memoryview(b"ab"), [97, 98]),
        ("i2", array.array("q", [5, -6]), [5, -6]),
        ("i8", range(3), [0, 1, 2]),
        ("i8", (i for i in (4, 5)), [4, 5]),
        ("i8", [True, np.True_], [1, 1]),
        ("?", np.array([0, 1, 1]), [False, True, True]),
        ("f4", np.array([1, 2]), [1.0, 2.0]),
        ("f4", np.array([0.5, np.inf, 1e-300]), [0.5, np.inf, 0.0]),
        ("c8", np.array([1, 2]), [1 + 0j, 2 + 0j]),
        ("S3", np.array([b"abc", b"a"], "S9"), [b"abc", b"a"]),
        ("U3", np.array(["abc", "a"], "U9"), ["abc", "a"]),
        (">i2", np.array([1, -2]), [1, -2]),
        ("i8", np.array([7, None], object)[:1], [7]),
        ("f8", np.array([]), []),
        ("i8", np.array([]), []),
        ([("a", "i1"), ("b", "S2")], np.array([(1, b"xy")], [("p", "i8"), ("q", "S5")]), [(1, b"xy")]),
        ([("a", "i1", 2)], np.array([([1, 2],)], [("p", "i8", 2)]), [([1, 2],)]),
    ],
)
def test_lossless_conversions_are_accepted(shm, dtype, source, stored):
    queue = shm.queue(4, dtype)
    assert queue.put_many(source) == len(stored)
    if stored:
        found = queue.get_many(4)
        assert found.dtype == np.dtype(dtype)
        assert repr(found.tolist()) == repr(np.array(stored, dtype).tolist())


@pytest.mark.parametrize(
    ("dtype", "source", "error", "text"),
    [
        ("u1", np.array([1, 300, 400]), OverflowError, r"items\[1\] must be uint8 \(0 to 255\), got .*300"),
        ("i8", np.array([1.0, 2.5]), TypeError, r"must be int64"),
        ("i8", np.array([1.0, 2.0]), TypeError, r"must be int64"),
        ("i8", np.array([1, 1 << 63], "u8"), OverflowError, r"items\[1\]"),
        ("f4", np.array([1.0, 1e300]), OverflowError, r"items\[1\]"),
        ("c8", np.array([1.0, 1e300j]), OverflowError, r"items\[1\]"),
        ("f8", np.array([1j]), TypeError, r"must be float64"),
        ("?", np.array([0, 2]), OverflowError, r"items\[1\]"),
        ("S2", np.array([b"ab", b"abc"]), ValueError, r"items\[1\] must have at most 2 bytes, got 3"),
        ("U2", np.array(["ab", "abc"]), ValueError, r"items\[1\] must have at most 2 characters, got 3"),
        ("S2", np.array(["ab"]), TypeError, "must be bytes"),
        ("M8[s]", np.array(["2020-01-01T00:00:00.5"], "M8[ms]"), ValueError, r"items\[0\]"),
        ([("a", "i1")], np.array([(1,), (300,)], [("p", "i8")]), OverflowError, r"items\['a'\]\[1\]"),
        ([("a", "i1")], np.array([(1, 2)], "i8,i8"), ValueError, "must have 1 fields"),
        ("(2,)u1", np.array([[1, 2], [3, 300]]), OverflowError, r"items\[1\]\[1\]"),
        ("i8", np.array([1, 2.5], object), TypeError, "item 1 must be int64"),
        ("i8", np.array(5), TypeError, "no dimensions"),
    ],
)
def test_lossy_conversions_are_rejected(shm, dtype, source, error, text):
    queue = shm.queue(4, dtype)
    queue.put_many(np.zeros(1, queue.dtype))
    with pytest.raises(error, match=text):
        queue.put_many(source)
    assert queue.qsize() == 1


def test_rejected_items_leave_the_queue_unchanged(shm):
    queue = shm.queue(4, "i1")
    queue.put(5)
    for items in ([1, 2, 300], [1, 2, "x"], np.array([1, 2, 300])):
        with pytest.raises((OverflowError, TypeError)):
            queue.put_many(items)
    assert queue.get_many(4).tolist() == [5]


def test_rejected_value_leaves_the_array_field_unchanged(shm):
    class Holder(Struct):
        small: Array[shmem.int8, 2, 2]
        text: Array[np.dtype("S3"), 2]

    obj = shm.new(Holder, small=[[1, 2], [3, 4]], text=[b"a", b"b"])
    for value, error in [
        ([[9, 9], [9, 300]], OverflowError),
        ([[9, 9], [9, 2.5]], TypeError),
        (np.array([[9, 9], [9, 300]]), OverflowError),
        (np.array([9.0, 9.0]), TypeError),
        ([9, 9, 9], ValueError),
        ([[[9, 9], [9, 9]], [[9, 9], [9, 9]]], ValueError),
        ([[9, 9], 9], ValueError),
    ]:
        with pytest.raises(error, match=r"^Holder\.small"):
            obj.small = value
        assert obj.small.tolist() == [[1, 2], [3, 4]]
    for value, error in [([b"x", b"long"], ValueError), (["x", "y"], TypeError), (np.array([b"x", b"long"]), ValueError)]:
        with pytest.raises(error, match=r"^Holder\.text"):
            obj.text = value
        assert obj.text.tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    "item",
    [[5], [5, 6], (5, 6), [[5, 6]], [[5], [6]], [[5, 6], [7]], [[5, 6], 7], [[5, 6], [7, 8], [9, 10]], [],
     [[[5, 6], [7, 8]]], np.zeros(2), np.zeros((1, 2)), np.zeros((2, 1)), np.zeros((1, 2, 2)), np.zeros((3, 2)), [np.zeros(2), np.zeros(1)],
     memoryview(b"ab"), bytearray(b"abcd"), array.array("b", [1, 2])],
)  # fmt: skip
def test_queue_does_not_broadcast_arrays(shm, item):
    """An item for a dtype with a shape must have that shape, however it is put."""
    queue = shm.queue(4, "(2,2)f8")
    with pytest.raises(ValueError, match=r"^put: the item.* must have the shape"):
        queue.put(item)
    with pytest.raises(ValueError, match=r"^put_many: item 0.* must have the shape"):
        queue.put_many([item])
    if isinstance(item, np.ndarray):
        with pytest.raises(ValueError, match=r"^put_many: the items must have the shape"):
            queue.put_many(item[None])
    assert queue.empty()


@pytest.mark.parametrize("item", [[[1, 2], [3, 4]], ((1, 2), (3, 4)), [np.array([1, 2]), (3, 4)], np.array([[1, 2], [3, 4]], "i2"),
                                  memoryview(np.array([[1, 2], [3, 4]])), [range(1, 3), [np.array(3), 4]]])  # fmt: skip
def test_queue_takes_arrays_of_its_shape(shm, item):
    queue = shm.queue(4, "(2,2)f8")
    queue.put(item)
    queue.put_many([item])
    assert queue.get_many(2).tolist() == [[[1, 2], [3, 4]]] * 2


@pytest.mark.parametrize("shape", ["", "(2,)", "(2,2)"])
def test_scalar_fills_an_item(shm, shape):
    queue = shm.queue(8, f"{shape}f8")
    for scalar in (5, np.int8(5), np.array(5)):
        queue.put(scalar)
        queue.put_many([scalar])
    queue.put_many(np.array([5, 5], "i2"))
    assert queue.get_many(8).tolist() == np.full(8, 5, f"{shape}f8").tolist()
    with pytest.raises(TypeError):
        queue.put_many(np.array(5))
    assert queue.empty()


def test_array_fields_broadcast(shm):
    class Holder(Struct):
        array: Array[shmem.int16, 2, 3]

    obj = shm.new(Holder)
    for value in (
        5,
        [7],
        [1, 2, 3],
        (1, 2, 3),
        [[1], [2]],
        [[4, 5, 6]],
        range(3),
        array.array("q", [1, 2, 3]),
        bytearray(b"abc"),
        memoryview(b"abc"),
        np.arange(3),
        np.arange(6).reshape(2, 3),
        [np.arange(3), [7, 8, 9]],
    ):
        obj.array = value
        expected = np.zeros((2, 3), np.int16)
        expected[...] = value if not isinstance(value, (bytearray, memoryview)) else list(value)
        assert obj.array.tolist() == expected.tolist(), value
    deep = []
    deep.append(deep)
    for value in (deep, [], [[]], [[[1, 2, 3], [4, 5, 6]]], [[1, 2, 3]] * 3, {0: 1}, "abc"):
        with pytest.raises((ValueError, TypeError)):
            obj.array = value


def test_overlapping_array_is_copied_correctly(shm):
    class Holder(Struct):
        array: Array[shmem.int64, 4]

    obj = shm.new(Holder, array=[1, 2, 3, 4])
    obj.array = obj.array[::-1]
    assert obj.array.tolist() == [4, 3, 2, 1]


def test_nested_records(shm):
    dtype = np.dtype([("at", [("x", "i2"), ("y", "f4", (2,))]), ("names", "S3", 2), ("parts", [("a", "i1"), ("b", "U2")], 2)], align=True)
    queue = shm.queue(4, dtype)
    value = ((5, [1, 2]), (b"ab", b"c"), [(1, "x"), (2, "yz")])
    queue.put(value)
    queue.put_many([value, queue.get()])
    assert repr(queue.get_many(4).tolist()) == repr([np.array(value, dtype).item()] * 2)
    with pytest.raises(OverflowError, match=r"item\['parts'\]\[1\]\['a'\] must be int8 \(-128 to 127\), got 128"):
        queue.put((value[0], value[1], [(1, "x"), (128, "yz")]))


def test_get_returns_python_numbers(shm):
    for name in NUMBERS:
        queue = shm.queue(1, name)
        queue.put(1)
        assert type(queue.get()) in (bool, int, float, complex)


def test_unknown_kind_raises(shm, monkeypatch):
    """A kind that the codec does not know must not be read or written as another one."""
    monkeypatch.setitem(codec.NUMBERS, "<c16", 99)
    codec.make_codec.cache_clear()
    try:
        queue = shm.queue(1, "complex128")
        with pytest.raises(SystemError, match="kind 99"):
            queue.put(1j)
        with pytest.raises(SystemError, match="kind 99"):
            queue.put_many([1j])
        queue.put_many(np.array([1j]))
        with pytest.raises(SystemError, match="kind 99"):
            queue.get()
    finally:
        codec.make_codec.cache_clear()
