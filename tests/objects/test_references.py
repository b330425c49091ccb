"""References: what travels to another process is a reference to memory in a section, whatever view of it is sent."""

import copy
import pickle
import sys
import types
import warnings
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from workers import Point

import shmem
from shmem._objects import joining

VIEWS = {
    "whole": lambda a: a,
    "slice": lambda a: a[1:3],
    "backwards": lambda a: a[::-1, ::2],
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(-1),
    "one element": lambda a: a[1, 1, ...],
    "empty": lambda a: a[2:2],
    "diagonal": lambda a: np.einsum("ii->i", a[:, :4]),
    "other dtype": lambda a: a.view("u1"),
    "asarray": np.asarray,
    "broadcast": lambda a: np.broadcast_to(a[0], (5, 6)),
    "sliding": lambda a: np.lib.stride_tricks.sliding_window_view(a.reshape(-1), 3),
}


def send(obj):
    """Return what arrives in another process, here in the same one."""
    return ForkingPickler.loads(ForkingPickler.dumps(obj))


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def array(shm):
    return shm.array(np.arange(24.0).reshape(4, 6))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_arrive_as_views(array, view):
    sent = view(array)
    again = send(sent)
    assert type(again) is np.ndarray
    assert (address(again), again.shape, again.strides, again.dtype) == (address(sent), sent.shape, sent.strides, sent.dtype)
    assert again.flags.writeable == sent.flags.writeable
    assert (shmem.handle(sent).view is None) == (sent is array)


@pytest.mark.parametrize(
    "dtype", ["M8[ns]", "m8[s]", "S4", "U3", ">i2", "V6", [("a", "i4"), ("b", "f8", (2,))], np.dtype((np.record, [("a", "i4")]))]
)
def test_views_of_every_dtype_arrive(shm, dtype):
    sent = shm.zeros(5, "V24")[1:].view("V1").reshape(-1)[: 4 * np.dtype(dtype).itemsize].view(dtype)
    again = send(sent)
    assert (address(again), again.dtype, again.dtype.type) == (address(sent), sent.dtype, sent.dtype.type)


def test_read_only_views_arrive_read_only(array):
    view = array[1:]
    view.flags.writeable = False
    whole = array.view()
    whole.flags.writeable = False
    for sent in (view, whole, np.broadcast_to(array, array.shape), memoryview(array).toreadonly()):
        again = np.asarray(send(sent))
        assert address(again) == address(np.asarray(sent))
        assert not again.flags.writeable
    assert array.flags.writeable
    assert send(array).flags.writeable


def test_handles_can_be_opened_read_only(shm, array):
    point, block = shm.new(Point, n=1), shm.allocate(3)
    for sent in (array, array[1:]):
        again = shmem.handle(sent).open(writeable=False)
        assert again.tolist() == sent.tolist()
        with pytest.raises(ValueError, match="read-only"):
            again[0] = 7
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            again.flags.writeable = True
    found = shmem.handle(point).open(writeable=False)
    with pytest.raises(shmem.ReadOnlyError):
        found.n = 2
    with pytest.raises(TypeError, match="read-only"):
        memoryview(shmem.handle(block).open(writeable=False))[0] = 1
    array[0, 0] = 5
    assert shmem.handle(array).open(writeable=False)[0, 0] == 5


@pytest.mark.parametrize("dtype", ["f8", "u1", "i2", "?"])
def test_memoryviews_arrive(shm, dtype):
    array = shm.zeros((4, 6), dtype)
    for view in (
        memoryview(array),
        memoryview(array)[1:3],
        memoryview(array.reshape(-1))[10:12],
        memoryview(array.reshape(-1)).cast("B")[8:],
    ):
        again = send(view)
        assert type(again) is memoryview
        assert (again.format, again.shape, again.strides, again.readonly) == (view.format, view.shape, view.strides, view.readonly)
        assert address(np.asarray(again)) == address(np.asarray(view))


def test_memoryviews_of_blocks_arrive(shm):
    block = shm.allocate(10)
    again = send(memoryview(block)[2:5])
    again[:] = b"abc"
    assert bytes(block) == b"\0\0abc" + bytes(5)
    view = np.frombuffer(block, "i2")[1:]
    assert address(send(view)) == address(view)
    with pytest.raises(TypeError, match="cannot pickle 'memoryview' object"):
        send(memoryview(bytes(3)))


def test_views_that_hide_their_block_arrive(shm):
    """A sliding window has no base that leads to the block."""

    class Row(shmem.Struct):
        values: shmem.Array[shmem.float64, 6]

    block, row = shm.allocate(48), shm.new(Row)
    for values in (np.frombuffer(block), row.values):
        sent = np.lib.stride_tricks.sliding_window_view(values, 3)
        assert address(send(sent)) == address(sent)
        assert send(sent).strides == sent.strides


def test_array_fields_arrive(shm):
    class Body(shmem.Struct):
        place: shmem.Array[shmem.float64, 3]

    body = shm.new(Body)
    send(body.place[1:])[:] = 7
    assert body.place.tolist() == [0, 7, 7]


@pytest.mark.parametrize("cls", [np.recarray, np.matrix])
def test_subclasses_arrive_as_what_they_are(shm, cls):
    sent = (shm.zeros((2, 3)) if cls is np.matrix else shm.zeros(3, [("a", "i4")])).view(cls)
    again = send(sent[1:])
    assert type(again) is cls
    assert address(again) == address(sent[1:])
    private = sent.copy()
    assert type(send(private)) is cls
    assert np.array_equal(send(private), private)


@pytest.mark.parametrize("mask", ["none", "private", "shared"])
def test_masked_arrays_arrive(shm, mask):
    data = shm.array([1.0, 2.0, 3.0])
    masks = {"none": np.ma.nomask, "private": np.array([True, False, False]), "shared": shm.array([True, False, False])}
    sent = np.ma.MaskedArray(data, mask=masks[mask], fill_value=7.0, hard_mask=True, copy=False)
    again = send(sent)
    assert type(again) is np.ma.MaskedArray
    assert address(again.data) == address(data)
    assert (again.fill_value, again.hardmask, again.tolist()) == (7.0, True, sent.tolist())
    if mask == "shared":
        assert address(again.mask) == address(masks[mask])


def test_private_arrays_are_copied(shm):
    for private in (np.arange(4.0), np.arange(9).reshape(3, 3)[:, 1:], np.array([{}, None]), np.ma.masked_array([1, 2], mask=[1, 0])):
        again = send(private)
        assert type(again) is type(private)
        assert again.tolist() == private.tolist()
        assert shmem.find_storage(again) is None


def test_plain_pickle_and_copies_store_the_data(array):
    for again in (pickle.loads(pickle.dumps(array[1:])), copy.copy(array[1:]), copy.deepcopy(array[1:])):
        assert type(again) is np.ndarray
        assert shmem.find_storage(again) is None
        assert again.tolist() == array[1:].tolist()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dumps_refers_and_loads_opens(shm, array, protocol):
    point = shm.new(Point, n=1)
    block = shm.allocate(5)
    queue = shm.queue(2, "i8")
    private = np.arange(1000.0)
    data = shmem.dumps({"views": [array, array[1:]], "objects": (point, block, queue, shm)}, protocol)
    assert len(data) < 2000
    found = shmem.loads(data)
    assert [address(view) for view in found["views"]] == [address(array), address(array[1:])]
    assert found["objects"] == (point, block, queue, shm)
    assert shmem.loads(shmem.dumps(private, protocol)).tolist() == private.tolist()


def test_reference_to_a_freed_array_is_not_sent(shm):
    array = shm.zeros(3)
    shm.free(array)
    with pytest.raises(shmem.InvalidBlock, match="was freed"):
        shmem.dumps(array[1:])


# -- libraries with picklers of their own: tests/libraries has the real ones ------------------------------------------


def test_register_of_an_unknown_library():
    with pytest.raises(ValueError, match=r"'nosuch'.*joblib"):
        shmem.register("nosuch")


@pytest.mark.parametrize(
    "name", ["loky.backend.reduction", "joblib._memmapping_reducer", "joblib.pool", "multiprocess.reduction", "pyarrow.lib"]
)
def test_library_that_has_changed_is_named_in_a_warning(monkeypatch, name):
    """What a later version may lack is looked for when it is imported, not when an array is sent."""
    monkeypatch.setattr(joining, "_joined", set())
    library = types.ModuleType(name.partition(".")[0])
    library.__version__ = "99.1"
    monkeypatch.setitem(sys.modules, library.__name__, library)
    with pytest.warns(RuntimeWarning, match=f"{library.__name__} 99.1 cannot be joined, so it copies the arrays"):
        joining._join(name, types.ModuleType(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joining._join(name, types.ModuleType(name))  # says so once


HOOKS = """
import importlib.machinery, os, types
os.environ["SHMEM_HOOKS"] = args[0]
os.makedirs(f"{args[1]}/loky/backend")
for path, text in (("loky/__init__.py", ""), ("loky/backend/__init__.py", ""),
                   ("loky/backend/reduction.py", "table = {}\\ndef register(cls, reducer): table[cls] = reducer\\ndef dumps(obj): pass")):
    with open(f"{args[1]}/{path}", "w") as file: file.write(text)
sys.path.insert(0, args[1])
if args[2] == "before": import loky.backend.reduction
section = shmem.SharedMemory(max_size=1 << 20)
import loky.backend.reduction as reduction
class Later(shmem.Struct):
    x: shmem.int64
say(shmem.SharedMemory in reduction.table, Later in reduction.table)
shmem.register("loky")
say(shmem.SharedMemory in reduction.table, Later in reduction.table)
"""


@pytest.mark.parametrize("hooks", ["1", "0"])
@pytest.mark.parametrize("imported", ["before", "after"])
def test_library_is_joined_when_it_is_imported(child, tmp_path, hooks, imported):
    """The library is a stand-in, in a folder of its own, so that neither version nor installation matters."""
    other = child(HOOKS, hooks, tmp_path / "library", imported)
    assert other.hear() == str((hooks == "1", hooks == "1"))[1:-1].replace(",", "")
    assert other.hear() == "True True"
    other.end()
