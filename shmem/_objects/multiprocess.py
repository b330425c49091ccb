"""The registration with multiprocessing and loky: their picklers send handles, and multiprocessing's children leave every section at exit.

This module is imported before the process opens its first section, so that `import shmem` alone does not import multiprocessing.
Only objects in an open section need it.

Each pickler that sends to another process has a table of reducers, and finds a reducer by the exact class of an object.
loky's table exists only once loky is imported, and joblib contains a loky of its own.
So a finder on `sys.meta_path` recognizes such a module when it is imported, and fills its table after the module has run.
"""

import multiprocessing.util
import sys
from multiprocessing.reduction import ForkingPickler

from shmem._bridge.blocks import Block
from shmem._objects import arrays, finding, handles, struct
from shmem._objects.event import Event
from shmem._objects.mutex import Mutex
from shmem._objects.queue import Queue
from shmem._objects.semaphore import Semaphore
from shmem._objects.shared_memory import SharedMemory


def _reduce_array(array):
    return handles.reduce_to_handle(array) if finding.find_storage(array) is not None else array.__reduce__()


def _reduce_waitable(waitable):
    return handles.reduce_to_handle(waitable) if waitable.section is not None else waitable.__reduce_ex__(2)


def _with_subclasses(cls):
    yield cls
    for derived in cls.__subclasses__():
        yield from _with_subclasses(derived)


_REDUCERS = {
    **dict.fromkeys((SharedMemory, Block, Queue), handles.reduce_to_handle),
    **dict.fromkeys((Semaphore, Event, Mutex), _reduce_waitable),
    arrays.SharedArray: _reduce_array,
}

_registrations = []  # of each table of reducers: the function (class, reducer) that fills it


def _fill(register):
    """Register every class with one table, and every Struct class that is defined later."""
    _registrations.append(register)  # before the walk: another thread may define a class meanwhile
    for cls, reducer in _REDUCERS.items():
        register(cls, reducer)
    for cls in list(_with_subclasses(struct.Struct)):
        register(cls, handles.reduce_to_handle)


def _register_class(cls):
    for register in _registrations:
        register(cls, handles.reduce_to_handle)


def _is_table_of_loky(name):
    """Return whether a module of this name has a table of loky's: ``loky.backend.reduction`` or a vendored copy of it."""
    return f".{name}".endswith(".loky.backend.reduction")


def _fill_module(module):
    register = getattr(module, "register", None)
    if register is not None:
        _fill(register)


class _LokyFinder:
    """A finder that has the other finders find loky's module, and fills its table once the module has run."""

    def find_spec(self, name, path=None, target=None):
        if not _is_table_of_loky(name):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self and hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        else:
            return None
        run = getattr(spec.loader, "exec_module", None)

        def run_and_fill(module):
            run(module)
            _fill_module(module)

        if run is not None:
            spec.loader.exec_module = run_and_fill
        return spec


def _leave_at_end(_):
    multiprocessing.util.Finalize(None, handles.leave_at_end, exitpriority=-100)


struct.on_new_class.append(_register_class)
_fill(ForkingPickler.register)
sys.meta_path.insert(0, _LokyFinder())
for _name, _module in list(sys.modules.items()):
    if _is_table_of_loky(_name):
        _fill_module(_module)

multiprocessing.util.register_after_fork(_leave_at_end, _leave_at_end)  # the children of multiprocessing skip atexit
if multiprocessing.parent_process() is not None:
    _leave_at_end(None)
