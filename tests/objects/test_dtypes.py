"""Dtypes: what comes back is the dtype that went in, or it is refused with a message of the library's own."""

import ast
import gc
import pickle
import threading
import time

import numpy as np
import pytest

import shmem
from shmem._objects import dtypes

OVERLAPPING = np.dtype({"names": ["whole", "low"], "formats": ["u4", "u2"], "offsets": [0, 0], "itemsize": 4})
UNORDERED = np.dtype({"names": ["z", "x"], "formats": ["f4", "u1"], "offsets": [4, 0], "itemsize": 8})
RECORD = np.dtype((np.record, [("x", "f4"), ("y", "i2")]))
ALIGNED = np.dtype("u1,u1,i4,u1,i8,u2", align=True)

DTYPES = {
    "date": np.dtype("M8[ns]"),
    "date of 25 s": np.dtype("M8[25s]"),
    "date without unit": np.dtype("M8"),
    "duration": np.dtype("m8[D]"),
    "big-endian": np.dtype(">f8"),
    "bool": np.dtype("?"),
    "longdouble": np.dtype("g"),
    "complex longdouble": np.dtype("G"),
    "text": np.dtype("U5"),
    "bytes": np.dtype("S5"),
    "raw": np.dtype("V7"),
    "padded": np.dtype({"names": ["A", "B"], "formats": ["f4", "f4"], "offsets": [0, 8], "itemsize": 16}),
    "aligned": ALIGNED,
    "aligned and packed": np.dtype("i8,f8", align=True),
    "unordered": UNORDERED,
    "overlapping": OVERLAPPING,
    "titles": np.dtype([(("title a", "a"), "f8"), ("b", "f8")]),
    "title that is an int": np.dtype({"names": ["a"], "formats": ["f8"], "titles": [3]}),
    "titles and a gap": np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8], "titles": ["t", None]}),
    "nested": np.dtype([("p", [("x", "f4"), ("t", "M8[us]")]), ("m", "f8", (2, 3))]),
    "nested and aligned": np.dtype([("a", "i1"), ("b", ALIGNED), ("c", ALIGNED, (2,))]),
    "nested and unordered": np.dtype([("a", UNORDERED, (2, 2)), ("b", OVERLAPPING)]),
    "one element": np.dtype([("a", "f8", (1,)), ("b", "f8", 1)]),
    "names": np.dtype([("größe", "f4"), ("長さ", "i2"), ("a b", "i1"), ("it's", "i1"), ('"', "i1"), ("\\\n\t\x01\udc80", "i1")]),
    "empty name": np.dtype({"names": ["", "b"], "formats": ["V3", "i1"], "offsets": [0, 3], "itemsize": 4}),
    "record": RECORD,
    "record in a field": np.dtype([("r", RECORD), ("s", RECORD, (2,))]),
    "record, aligned": np.dtype((np.record, ALIGNED)),
    "no fields": np.dtype([]),
    "600 fields": np.dtype([(f"column_number_{i}", "f8") for i in range(600)]),
}  # fmt: skip

REFUSED = {
    "metadata": np.dtype("f4", metadata={"unit": "m"}),
    "metadata in a field": np.dtype([("a", np.dtype("f4", metadata={"unit": "m"}))]),
    "metadata of fields": np.dtype([("a", "f4")], metadata={"unit": "m"}),
    "metadata in a sub-array": np.dtype([("a", np.dtype("f4", metadata={"unit": "m"}), (2,))]),
    "objects": np.dtype("O"),
    "objects in a field": np.dtype([("a", "i4"), ("b", "O")]),
    "title that is a tuple": np.dtype({"names": ["a"], "formats": ["f8"], "titles": [(1, 2)]}),
    "class of its own": np.dtype((type("Mine", (np.void,), {}), [("x", "f4")])),
    "very long": np.dtype([(f"a_long_name_for_the_column_with_the_number_{i}", "f8") for i in range(1500)]),
}


def facts(dtype):
    """Return all that numpy distinguishes."""
    fields = [(name, *dtype.fields[name][1:], facts(dtype.fields[name][0])) for name in dtype.names or ()]
    base = facts(dtype.base) if dtype.subdtype else None
    return dtype.str, dtype.itemsize, dtype.isalignedstruct, dtype.type, dtype.metadata, dtype.shape, base, fields


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_dtype_is_returned_unchanged(shm, dtype):
    array = shm.zeros(3, dtype)
    again = shmem.handle(array[1:]).open()
    fresh = dtypes.from_text(dtypes.to_text(dtype))
    assert facts(array.dtype) == facts(again.dtype) == facts(fresh) == facts(dtype)
    shm["x"] = np.zeros(2, dtype)
    assert facts(shm["x"].dtype) == facts(dtype)
    if dtype.itemsize:
        assert facts(shmem.handle(shm.queue(2, dtype)).open().dtype) == facts(dtype)


def test_dtype_is_returned_unchanged_in_another_process(place, child):
    with shmem.SharedMemory(**place, max_size="16M") as section:
        expected = {}
        for what, dtype in DTYPES.items():
            section[what] = np.zeros(2, dtype)
            expected[what] = facts(dtype)
        program = child(
            """
            import pickle
            import numpy as np
            def facts(dtype):
                fields = [(name, *dtype.fields[name][1:], facts(dtype.fields[name][0])) for name in dtype.names or ()]
                base = facts(dtype.base) if dtype.subdtype else None
                return dtype.str, dtype.itemsize, dtype.isalignedstruct, dtype.type, dtype.metadata, dtype.shape, base, fields
            expected = pickle.loads(bytes.fromhex(sys.stdin.readline()))
            with shmem.SharedMemory(**eval(args[0])) as section:
                for what in expected:
                    assert facts(section[what].dtype) == expected[what], what
            """,
            place,
        )
        program.tell(pickle.dumps(expected).hex())
        program.end()


@pytest.mark.parametrize("dtype", REFUSED.values(), ids=REFUSED)
def test_dtype_is_refused(shm, dtype):
    before = shm.stats().blocks
    for make in (lambda: shm.zeros(3, dtype), lambda: shm.queue(2, dtype), lambda: shm.new(dtype)):
        with pytest.raises(TypeError, match=r"a section|description of a dtype must"):
            make()
    assert shm.stats().blocks == before


def test_metadata_is_refused_in_fields():
    """Its `dtype` and its arrays would lose it, in this process or in others."""
    dtype = np.dtype("f4", metadata={"unit": "m"})
    for annotation in (dtype, np.dtype((dtype, (2,)))):
        with pytest.raises(TypeError, match="has metadata, which a section cannot hold"):
            type(shmem.Struct)("Measured", (shmem.Struct,), {"__annotations__": {"x": annotation}, "__module__": __name__})
    with pytest.raises(TypeError, match="has metadata, which a section cannot hold"):
        shmem.Array[dtype, 3]


@pytest.mark.parametrize("dtype", [OVERLAPPING, UNORDERED, ALIGNED], ids=["overlapping", "unordered", "aligned"])
def test_values_in_unusual_dtypes(shm, dtype):
    values = [tuple(range(i, i + len(dtype.names))) for i in range(3)]
    expected = np.array(values, dtype)
    array, queue = shm.array(expected), shm.queue(5, dtype)
    queue.put_many(expected)
    queue.put(values[1])
    assert array.tolist() == expected.tolist()
    assert [queue.get().tolist() for _ in range(4)] == [*expected.tolist(), expected[1].tolist()]


def test_equal_dtypes_are_not_confused(shm):
    """numpy calls these dtypes equal; a table keyed by equality would return one for the other."""
    pairs = [
        (np.dtype("u1,i4", align=True), np.dtype({"names": ["f0", "f1"], "formats": ["u1", "i4"], "offsets": [0, 4], "itemsize": 8})),
        (np.dtype([("x", "f4")]), np.dtype((np.record, [("x", "f4")]))),
        (np.dtype("M8[us]"), np.dtype("M8[1000ns]")),
        (np.dtype("i8,f8"), np.dtype("i8,f8", align=True)),
    ]
    for pair in pairs:
        for dtype in (*pair, *reversed(pair)):
            assert facts(shmem.handle(shm.zeros(1, dtype)).open().dtype) == facts(dtype)


def test_names_changed_in_place(shm):
    """numpy lets the names of a dtype be changed in place, which must not change the dtype of other arrays."""
    shm["x"] = np.zeros(1, [("a", "f8")])
    array = shm["x"]
    array.dtype.names = ("b",)
    assert shm["x"].dtype.names == ("a",)
    dtype = np.dtype([("c", "f8")])
    shm.zeros(1, dtype)
    dtype.names = ("d",)
    assert shmem.handle(shm.zeros(1, dtype)).open().dtype.names == ("d",)


# -- the text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_text_is_a_literal(dtype):
    """As docs/format.md describes it, for readers other than this library."""
    text = dtypes.to_text(dtype).decode()
    literal = ast.literal_eval(text)
    assert repr(literal) == text
    if "numpy.record" not in text:
        assert np.dtype(literal) == dtype


def test_padding_without_a_name(shm):
    """Earlier versions described gaps by void fields without a name, as the .npy format does."""
    text = b"[('A', '<f4'), ('', '|V4'), (('title', 'B'), '<f4', (2,)), ('', '|V1')]"
    found = dtypes.from_text(text)
    assert found.names == ("A", "B")
    assert found.itemsize == 17
    assert found.fields["B"][1:] == (8, "title")


TEXTS = [b"'<f8' x", b"'<f8''<f8'", b"['<f8'", b"[('a' '<f8')]", b"{'names': ['a']}", b"{'names'}", b"'\\q'", b"'f8,f8'", b"'<f8",
         b"1", b"None", b"1e5", b"('<f8', 3)", b"('<f8', (True,))", b"('<f8', (-1,))", b"(,)", b"{[]: 1}", b"[,]", b"", b"f'<f8'",
         b"b'<f8'", b"'<f8'#", b"__import__('os')", b"('numpy.record', '|O')", b"'|O'", b"'<M8[\n]'", b"-" * 40_000, b"(" * 40_000,
         b"9" * 40_000]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_other_text_is_refused(text):
    with pytest.raises((TypeError, ValueError)):
        dtypes.from_text(text)


def test_many_threads_read_texts():
    """`ast.literal_eval` raises SystemError if the garbage collector lets another thread call it in the middle, up to CPython 3.11.7."""
    literal = dtypes.to_text(DTYPES["nested and unordered"])
    texts = [literal[:-1] + b", ('n%d', '<f8')]" % i for i in range(40)]
    failures = []

    def read():
        try:
            for text in texts:
                dtypes._parse.cache_clear()
                assert dtypes.from_text(text).names[-1].encode() in text[-20:]
        except BaseException as error:
            failures.append(error)

    def let_others_run(phase, info):
        time.sleep(0)

    threshold = gc.get_threshold()
    gc.callbacks.append(let_others_run)
    gc.set_threshold(5)
    try:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(let_others_run)
    assert failures == []
