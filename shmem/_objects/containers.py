"""Containers that cannot hold a placeholder, such as DataFrames: which of them have memory in a section.

A library's classes are added when it is imported.  A container of private memory is pickled as without this module; one with unknown
parts counts as shared, which is always correct, only larger.
"""

import numpy as np

from shmem._objects import arrival, finding

_EXTENSION_PARTS = ("_ndarray", "_pa_array", "_data", "_mask", "_left", "_right")  # of pandas' extension arrays

_parts_of = {}  # class -> function that returns the parts of an object that may be in a section; None if they are unknown
_found = {}  # class -> the same of its nearest base


def _find_parts_of(cls):
    """Return the function for a class, that of its nearest base."""
    function = next((_parts_of[base] for base in cls.__mro__ if base in _parts_of), lambda obj: None)
    _found[cls] = function
    return function


def _know(function, *classes):
    """Make known the parts of the objects of some classes."""
    _parts_of.update(dict.fromkeys(classes, function))
    _found.clear()


_know(lambda obj: (), type(None), range, str)


def is_shared(obj):
    """Return whether memory of a container or a part of it is in a section, as far as that is known."""
    if isinstance(obj, np.ndarray):
        return finding.find_storage(obj) is not None
    cls = type(obj)
    try:
        parts = (_found.get(cls) or _find_parts_of(cls))(obj)
    except AttributeError:  # another version of the library
        return True
    if parts is None:
        return True
    for part in parts:  # noqa: SIM110  -- a generator would double the time
        if is_shared(part):
            return True
    return False


def reduce_container(dumps, loads, container):
    """Reduce a container, with the functions of the pickler that does so."""
    if arrival.sends_to_background() and is_shared(container):
        return arrival.send_container(container, dumps, loads)
    return container.__reduce_ex__(4)


def with_subclasses(cls):
    """Yield a class and all classes derived from it."""
    yield cls
    for derived in cls.__subclasses__():
        yield from with_subclasses(derived)


def pandas_classes(module):
    """Return the containers of pandas."""
    extension = module.api.extensions.ExtensionArray
    _know(lambda frame: (*frame._mgr.arrays, *frame._mgr.axes), module.DataFrame, module.Series)
    _know(lambda index: (index._data,), module.Index)
    _know(lambda index: (), module.RangeIndex)
    _know(lambda index: (*index._levels, *index._codes), module.MultiIndex)
    _know(lambda array: [part for name in _EXTENSION_PARTS if (part := getattr(array, name, None)) is not None] or None, extension)
    _know(lambda array: (array._ndarray, array.dtype.categories), module.Categorical)
    return [module.DataFrame, module.Series, *with_subclasses(module.Index), *with_subclasses(extension)]


def scipy_classes(module):
    """Return the containers of scipy.sparse."""
    classes = [cls for name, cls in vars(module).items() if isinstance(cls, type) and name.endswith(("_array", "_matrix"))]

    def parts(matrix):
        for part in vars(matrix).values():
            yield from part if isinstance(part, tuple) else (part,)

    _know(lambda matrix: [part for part in parts(matrix) if isinstance(part, np.ndarray)], *classes)
    return classes


def xarray_classes(module):
    """Return the containers of xarray."""
    _know(lambda variable: (variable._data,), module.Variable)
    _know(lambda dataset: (*dataset._variables.values(), *dataset._indexes.values()), module.Dataset)
    _know(lambda array: (array._variable, *array._coords.values(), *array._indexes.values()), module.DataArray)
    _know(lambda index: (index.index,), module.indexes.PandasIndex)
    _know(lambda adapter: (adapter.array,), module.core.indexing.PandasIndexingAdapter)
    classes = [module.Variable, module.IndexVariable, module.Dataset, module.DataArray]
    if hasattr(module, "DataTree"):
        _know(lambda tree: [node.to_dataset(inherit=False) for node in tree.subtree], module.DataTree)
        classes.append(module.DataTree)
    return classes


def arrow_classes(module):
    """Return the containers of pyarrow.lib."""

    def parts_of_array(array):
        # the buffers of an array are without those of its dictionary
        return None if "dictionary" in str(array.type) else array.buffers()

    _know(lambda buffer: () if not buffer.is_cpu or finding.find_storage(buffer.address) is None else None, module.Buffer)
    _know(parts_of_array, module.Array)
    _know(lambda array: (array.indices, array.dictionary), module.DictionaryArray)
    _know(lambda array: (array.storage,), module.ExtensionArray)
    _know(lambda array: array.chunks, module.ChunkedArray)
    _know(lambda batch: batch.columns, module.RecordBatch)
    _know(lambda table: table.columns, module.Table)
    return [*with_subclasses(module.Array), module.ChunkedArray, module.RecordBatch, module.Table]
