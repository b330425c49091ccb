"""Libraries that send objects with picklers of their own: each is joined when it is imported, so that it sends references.

Libraries of containers are joined too, so that a container of which a part is lost arrives as a placeholder.

A finder on `sys.meta_path` recognizes the module that has a library's pickler, and joins the library once the module has run.  Libraries
that were imported before the first section was opened are joined then.  ``SHMEM_HOOKS=0`` in the environment switches this off.
What is changed in a library is in no case its public interface, so each change is guarded: where the expected attribute is missing, a
warning says that the library copies arrays.
"""

import collections
import functools
import importlib
import io
import os
import sys
import warnings

import numpy as np

from shmem._objects import arrival, containers, finding, references


def _join_loky(module):
    references.add_table(module.register, module.dumps)


def _join_forking_pickler(module):
    references.add_table(module.ForkingPickler.register, module.ForkingPickler.dumps)


def _join_dill(module):
    """multiprocess pickles with dill, which has a function for every class of arrays in a dispatch dict, asked before any reducer."""
    pickler = module.ForkingPickler
    saving = {}
    pickler.dispatch = collections.ChainMap(saving, pickler.dispatch)

    def add(cls, reducer):
        pickler.register(cls, reducer)
        if issubclass(cls, np.ndarray):
            saving[cls] = lambda self, obj: self.save_reduce(*reducer(obj), obj=obj)

    references.add_table(add, pickler.dumps, pickler.loads)


def _join_joblib_arrays(module):
    """joblib reduces arrays itself, and sends large ones as memory maps of temporary files: those in a section are excepted.

    Other arrays it pickles at once, with plain pickle.  A worker has got the function that does so before this module is joined there.
    """
    cls, plain_dumps = module.ArrayMemmapForwardReducer, module.dumps
    original = cls.__call__

    @functools.wraps(original)
    def call(self, array):
        return references.reduce_to_handle(array) if finding.find_storage(array) is not None else original(self, array)

    def dumps(array, protocol):
        has_references = finding.find_storage(array) is not None or array.dtype.hasobject
        return (references.dumps_for_background if has_references else plain_dumps)(array, protocol)

    cls.__call__ = call
    module.dumps = dumps


def _join_joblib_pool(module):
    """The pickler of joblib's backend "multiprocessing" has no table for all instances: each new one gets what it lacks."""
    cls = module.CustomizablePickler
    original = cls.__init__
    cls(io.BytesIO()).dispatch_table.update()  # AttributeError now, not in each instance

    @functools.wraps(original)
    def init(self, writer, reducers=None, *args, **kwargs):
        def dumps(container):
            buffer = io.BytesIO()
            cls(buffer, reducers).dump(container)
            return buffer.getvalue()

        original(self, writer, reducers, *args, **kwargs)
        reduce_container = functools.partial(containers.reduce_container, dumps, references.loads)
        self.dispatch_table |= references.reducers | dict.fromkeys(references.container_classes, reduce_container) | (reducers or {})

    cls.__init__ = init


def _join_arrow(module):
    def reduce_buffer(buffer):
        if not buffer.is_cpu or finding.find_storage(buffer.address) is None:
            return buffer.__reduce_ex__(4)
        return arrival.sent(module.py_buffer, memoryview(buffer))

    references.add_reducer(module.Buffer, reduce_buffer)
    references.add_containers(containers.arrow_classes(module))


def _joins_containers(find_classes):
    """Return a function that joins a module of containers."""
    return lambda module: references.add_containers(find_classes(module))


# library -> (end of the name of a module, the function that joins it), ...; joblib has a copy of loky
_LIBRARIES = {
    "loky": [("loky.backend.reduction", _join_loky)],
    "joblib": [
        ("joblib.externals.loky.backend.reduction", _join_loky),
        ("joblib._memmapping_reducer", _join_joblib_arrays),
        ("joblib.pool", _join_joblib_pool),
    ],
    "multiprocess": [("multiprocess.reduction", _join_dill)],
    "billiard": [("billiard.reduction", _join_forking_pickler)],
    "pyarrow": [("pyarrow.lib", _join_arrow)],
}
_CONTAINERS = {
    "pandas": containers.pandas_classes,
    "scipy.sparse": containers.scipy_classes,
    "xarray": containers.xarray_classes,
}
_ANYWHERE = "loky.backend.reduction"  # vendored by other libraries than joblib, too
_JOINS = {name: join for modules in _LIBRARIES.values() for name, join in modules}
_JOINS.update((name, _joins_containers(find_classes)) for name, find_classes in _CONTAINERS.items())
_joined = set()  # names of modules


def _join_for(name):
    """Return the function that joins a module, or None."""
    return _JOINS.get(name) or (_join_loky if name.endswith("." + _ANYWHERE) else None)


def _join(name, module):
    """Join a module that has run, once."""
    if name in _joined:
        return
    try:
        _join_for(name)(module)
    except AttributeError as error:
        library = name.partition(".")[0]
        if name in _CONTAINERS:
            effect = "so a pool may hang that is sent one of its containers with an array that was freed meanwhile"
        else:
            effect = "so it copies the arrays that it sends, and changes of the copies are lost"
        version = getattr(sys.modules.get(library), "__version__", "")
        warnings.warn(f"{library} {version} cannot be joined, {effect}: {error}; send shmem.handle(array)", RuntimeWarning, stacklevel=3)
    _joined.add(name)


class _Finder:
    """A finder that has the other finders find a module, and joins it once it has run."""

    def find_spec(self, name, path=None, target=None):
        if _join_for(name) is None:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        else:
            return None
        run = getattr(spec.loader, "exec_module", None)

        def run_and_join(module):
            run(module)
            _join(name, module)

        if run is not None:
            spec.loader.exec_module = run_and_join
        return spec


def register(library):
    """Have a library send references to objects in a section, where it would copy them.

    This happens by itself when the library is imported, unless the environment has ``SHMEM_HOOKS=0``.

    Parameters
    ----------
    library : {"billiard", "joblib", "loky", "multiprocess", "pyarrow"}
        `multiprocessing` and `concurrent.futures` need no registration.

    Raises
    ------
    ValueError
        The library is not known.
    ImportError
        The library is not installed.

    Warns
    -----
    RuntimeWarning
        The library is of a version that cannot be joined: it copies arrays.
    """
    if library not in _LIBRARIES:
        raise ValueError(f"cannot register {library!r}: the libraries that can be are {', '.join(sorted(_LIBRARIES))}")
    for name, _ in _LIBRARIES[library]:
        _join(name, importlib.import_module(name))


def join_all():
    """Join the libraries that are imported, and from now on those that will be, unless the user has switched this off."""
    if os.environ.get("SHMEM_HOOKS") == "0":
        return
    sys.meta_path.insert(0, _Finder())
    for name, module in list(sys.modules.items()):
        if _join_for(name) is not None and module is not None:
            _join(name, importlib.import_module(name))  # waits for a thread that is importing it
