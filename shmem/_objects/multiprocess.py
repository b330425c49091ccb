"""The registration with multiprocessing: its pickler sends handles, and its children leave every section when they exit.

This module is imported before the process opens its first section, so that `import shmem` alone does not import multiprocessing.
Only objects in an open section need it.
"""

import multiprocessing.util
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


def _register_class(cls):
    ForkingPickler.register(cls, handles.reduce_to_handle)


def _with_subclasses(cls):
    yield cls
    for derived in cls.__subclasses__():
        yield from _with_subclasses(derived)


def _leave_at_end(_):
    multiprocessing.util.Finalize(None, handles.leave_all, exitpriority=-100)


for _cls in (SharedMemory, Block, Queue):
    _register_class(_cls)
ForkingPickler.register(arrays.SharedArray, _reduce_array)
for _cls in (Semaphore, Event, Mutex):
    ForkingPickler.register(_cls, _reduce_waitable)
struct.on_new_class.append(_register_class)  # before the walk: another thread may define a class meanwhile
for _cls in list(_with_subclasses(struct.Struct)):
    _register_class(_cls)

multiprocessing.util.register_after_fork(_leave_at_end, _leave_at_end)  # the children of multiprocessing skip atexit
if multiprocessing.parent_process() is not None:
    _leave_at_end(None)
