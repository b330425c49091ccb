"""Messages of which every object is lost on its way, in a module that spawned processes can import."""

import collections
import dataclasses

import numpy as np

import shmem


@dataclasses.dataclass
class Sample:
    name: str
    array: object


Pair = collections.namedtuple("Pair", ["array", "name"])


class Node(shmem.Struct, type_name="tests.losing.Node"):
    n: shmem.int64

    def doubled(self):
        return 2 * self.n


class Losing:
    """An object that frees others when it is pickled, and arrives as an empty string."""

    def __init__(self, lose):
        self.lose = lose

    def __reduce__(self):
        lose, self.lose = self.lose, bool
        lose()
        return str, ()


def containers_of(array, column, indices, indptr):
    """Return containers of other libraries that refer to an array of 4 numbers."""
    import pandas as pd
    import pyarrow as pa
    import scipy.sparse
    import xarray as xr

    arrow = pa.Array.from_buffers(pa.float64(), 4, [None, pa.py_buffer(array)])
    return {
        "masked array": np.ma.MaskedArray(array, mask=[0, 1, 0, 0], copy=False),
        "masked array, mask": np.ma.MaskedArray(np.zeros(4), mask=column.astype(bool, copy=False), copy=False),
        "frame": pd.DataFrame(array.reshape(2, 2), columns=["x", "y"], copy=False),
        "frame of all kinds": pd.DataFrame({"x": pd.Series(array, copy=False), "text": list("abcd")}, copy=False),
        "frame, index": pd.DataFrame({"x": range(4)}, index=pd.Index(array, copy=False)),
        "series": pd.Series(array, copy=False),
        "series of dates": pd.Series(array.view("M8[ns]"), copy=False),
        "series with a mask": pd.Series(pd.arrays.FloatingArray(array, np.zeros(4, bool)), copy=False),
        "index": pd.Index(array, copy=False),
        "multi-index": pd.MultiIndex([pd.Index(array, copy=False)], [[0, 1, 2, 3]]),
        "extension array": pd.arrays.NumpyExtensionArray(array),
        "csr_matrix": scipy.sparse.csr_matrix((np.ones(4), indices, indptr), shape=(4, 4), copy=False),
        "coo_array": scipy.sparse.coo_array((array, (np.arange(4), np.arange(4))), shape=(4, 4)),
        "dataset": xr.Dataset({"t": (("a", "b"), array.reshape(2, 2))}, coords={"a": ["p", "q"]}),
        "data array": xr.DataArray(array, dims="x"),
        "coordinate": xr.Dataset(coords={"x": pd.Index(array, copy=False)}),
        "tree": xr.DataTree(xr.Dataset({"t": (("a",), array)})),
        "arrow array": arrow,
        "chunked array": pa.chunked_array([arrow, pa.array([1.0])]),
        "arrow table": pa.table({"x": arrow, "private": ["a", "b", "c", "d"]}),
        "record batch": pa.record_batch({"x": arrow}),
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 1]), arrow),
        "dictionary in a struct": pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(pa.array([0, 1]), arrow)], ["x"]),
        "arrow buffer": pa.py_buffer(array),
    }


def message(section, *, libraries=True):
    """Return objects of every kind in a section, which are freed while they are sent."""
    array = section.array([1.0, 2.0, 3.0, 4.0])
    mask = section.array([False, True, False, False])
    indices, indptr = section.array(np.arange(4, dtype="i4")), section.array(np.arange(5, dtype="i4"))
    node, queue, block, mutex = section.new(Node, n=1), section.queue(2, "i8"), section.allocate(8), section.mutex()
    objects = {
        "array": array,
        "view": array[1:3],
        "list": [1, array],
        "nested": {"a": [(array,)]},
        "dict": {"a": array},
        "tuple": (array, 1),
        "set": {node},
        "dataclass": Sample("x", array),
        "namedtuple": Pair(array, "x"),
        "objects": np.array([None, node], object),
        "record array": section.zeros(2, [("a", "i4")]).view(np.recarray),
        "memoryview": memoryview(array),
        "node": node,
        "queue": queue,
        "block": block,
        "mutex": mutex,
        "method": node.doubled,
        "method of an array": array.sum,
    }
    if libraries:
        objects |= containers_of(array, mask, indices, indptr)
    freed = [array, mask, indices, indptr, node, queue, block, mutex, objects["record array"]]
    return {**objects, "losing": Losing(lambda: [section.free(one) for one in freed])}


_INSIDE = {
    "list": lambda found: found[1],
    "nested": lambda found: found["a"][0][0],
    "dict": lambda found: found["a"],
    "tuple": lambda found: found[0],
    "set": lambda found: next(iter(found)),
    "dataclass": lambda found: found.array,
    "namedtuple": lambda found: found.array,
    "objects": lambda found: found[1],
}


def not_lost(found):
    """Return the kinds of objects in a message that did not arrive as a placeholder, or whose use raises no InvalidBlock."""
    assert found.pop("losing") == ""
    kinds = []
    for kind, obj in found.items():
        lost = _INSIDE.get(kind, lambda obj: obj)(obj)
        owner = getattr(lost, "__self__", lost)  # dill sends the function and the object of a bound method
        try:
            kinds.append((kind, type(lost), lost() if kind.startswith("method") else len(lost)))
        except shmem.InvalidBlock as error:
            if type(owner) is not shmem.LostReference or "was lost on its way" not in str(error):
                kinds.append((kind, type(lost), error))
    return kinds


def use(obj):
    """Return the class of the exception that a use of an object raises."""
    try:
        len(obj)
    except shmem.ShmemError as error:
        return type(obj), type(error), str(error)


def use_first(message):
    return use(message[0])


def same(obj):
    return obj


def send_back(message, link):
    link.send(message)
