"""Handles: small picklable references to what lies in a section, and how multiprocessing sends them by itself."""

import atexit
import contextlib
import dataclasses
import multiprocessing.util
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np

from shmem import _core
from shmem._base.errors import ClosedError, InvalidBlock, NotASection
from shmem._core import Block
from shmem._objects import arrays, finding, lock, struct, waitables
from shmem._objects.queue import Queue
from shmem._objects.shared_memory import SharedMemory


@dataclasses.dataclass(frozen=True)
class Handle:
    """A reference to something in a section that can be pickled and sent to another process of this machine.

    Made by `handle`.  It keeps nothing alive: the sender keeps the object until the receiver has opened it.
    """

    path: str
    name: str
    anonymous: bool
    uuid: bytes
    mode: str
    offset: int = 0
    serial: int = 0
    view: tuple | None = None

    def open(self):
        """Attach to the section if need be, and return the object.

        Raises
        ------
        SectionNotFound, NotASection
            The section is gone, or another has its name now.
        InvalidBlock
            The object was freed meanwhile.
        """
        section = finding.find_open(self.uuid, self.mode) or self._attach()
        if self.offset == 0:
            return section
        try:
            found = finding.reopen(section, self.offset, self.serial)
        except ClosedError:  # it was another thread's, which has closed it by now
            found = finding.reopen(self._attach(), self.offset, self.serial)
        return found if self.view is None else arrays.view_again(found, *self.view)

    def _attach(self):
        place = {"shared_name": self.name} if self.anonymous else {"file_name": self.path}
        section = SharedMemory(**place, mode=self.mode)
        if section.uuid != self.uuid:
            section.close()
            raise NotASection(f"open {self.path!r}: another section has this name by now")
        return section


def handle(obj):
    """A handle of an array, an object, a queue, a block or a section, to be sent to another process.

    Parameters
    ----------
    obj : SharedArray or a view of one, Struct, Queue, Block, SharedMemory

    Returns
    -------
    Handle

    Raises
    ------
    InvalidBlock
        `obj` lies in no open section.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     array = shm.array([1, 2, 3])
    ...     print(shmem.handle(array[1:]).open())
    [2 3]
    """
    section = obj if isinstance(obj, SharedMemory) else finding.find_storage(obj)
    if section is None:
        raise InvalidBlock(f"{type(obj).__name__} lies in no section that is open here")
    anonymous = section.path != section.name
    offset = serial = 0
    view = None
    if obj is not section:
        offset, serial = finding.locate(section, obj)
        if isinstance(obj, np.ndarray) and not arrays.is_whole(obj):
            view = arrays.view_facts(obj)
    return Handle(section.path, section.name, anonymous, section.uuid, section.mode, offset, serial, view)


# -- multiprocessing sends handles by itself ------------------------------------------------------------


def _open_handle(sent):
    return sent.open()


def _reduce(obj):
    return _open_handle, (handle(obj),)


def _reduce_array(array):
    return _reduce(array) if finding.find_storage(array) is not None else array.__reduce__()


ForkingPickler.register(SharedMemory, _reduce)
ForkingPickler.register(Block, _reduce)
ForkingPickler.register(Queue, _reduce)
ForkingPickler.register(arrays.SharedArray, _reduce_array)
struct.on_new_class.append(lambda cls: ForkingPickler.register(cls, _reduce))


def _reduce_waitable(waitable):
    return _reduce(waitable) if waitable.section is not None else waitable.__reduce_ex__(2)


for _kind in (waitables.Semaphore, waitables.Event, waitables.Mutex):
    ForkingPickler.register(_kind, _reduce_waitable)


def _travel_with_loky(obj):
    """loky asks its own table, which cannot be filled before it is imported: its `dump` is found among the callers."""
    frame = sys._getframe(2)
    for _ in range(6):
        if frame is None:
            return None
        if frame.f_globals.get("__name__", "").endswith("loky.backend.reduction"):
            return _reduce(obj) if not isinstance(obj, np.ndarray) or finding.find_storage(obj) is not None else None
        frame = frame.f_back
    return None


_core.register_traveller(_travel_with_loky)


# -- exit -------------------------------------------------------------------------------------------------


def _leave_all():
    """Leave every section.  Threads that are not daemons are waited for: in multiprocessing children they may still run."""
    lock.end_thread()
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    arrays.drop_all_pins()
    for _ in range(10):
        if _core.depart_all():
            return
        time.sleep(0.01)


def _depart_in_child(_):
    multiprocessing.util.Finalize(None, _leave_all, exitpriority=-100)


# Python waits for threads before it calls what atexit has: they may wait for a lock that the main program ended with
with contextlib.suppress(AttributeError, RuntimeError):  # no such function; imported in an exit handler
    threading._register_atexit(lock.end_thread)
atexit.register(_leave_all)
multiprocessing.util.register_after_fork(_depart_in_child, _depart_in_child)  # such children skip atexit
if multiprocessing.parent_process() is not None:
    _depart_in_child(None)
