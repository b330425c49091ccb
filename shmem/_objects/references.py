"""References: what pickles to another process of this machine send in place of the objects of a section.

`reducers` has a function for each class of objects that can lie in a section, as in a pickler's dispatch table.  The classes of a
pickler that sends to another process are joined by `add_table`; a Struct class that is defined later is added to all of them.
An object that is in no section is pickled as without this module.
A reference that cannot be opened where it arrives is treated in `arrival`.
"""

import collections
import copyreg
import functools
import io
import pickle
import types

import numpy as np

from shmem._bridge.blocks import Block
from shmem._objects import arrival, containers, finding, struct
from shmem._objects.event import Event
from shmem._objects.handles import dropping_claims_of_failures, reference
from shmem._objects.mutex import Mutex
from shmem._objects.queue import Queue
from shmem._objects.semaphore import Semaphore
from shmem._objects.shared_memory import SharedMemory

reducers = {}  # class -> function that returns what `__reduce__` does
container_classes = []  # classes of containers that cannot hold a placeholder
_tables = []  # of each joined pickler: the function (class, reducer) that adds a reducer, and the function that reduces a container


def add_table(add, dumps, loads=pickle.loads):
    """Join a pickler that sends to another process.

    Parameters
    ----------
    add : callable
        `add(class, reducer)` is called for every class, those included that are defined later.
    dumps, loads : callable
        Functions that pickle to bytes with this pickler, and unpickle.
    """
    reduce_container = functools.partial(containers.reduce_container, dumps, loads)
    _tables.append((add, reduce_container))  # before the walk: another thread may define a class meanwhile
    for cls, reducer in list(reducers.items()):
        add(cls, reducer)
    for cls in list(container_classes):
        add(cls, reduce_container)


def add_reducer(cls, reducer):
    """Add a reducer to all picklers that are or will be joined."""
    reducers[cls] = reducer
    for add, _ in list(_tables):
        add(cls, reducer)


def add_containers(classes):
    """Add classes of containers that cannot hold a placeholder to all picklers that are or will be joined."""
    container_classes.extend(classes)
    for add, reduce_container in list(_tables):
        for cls in classes:
            add(cls, reduce_container)


# -- reducers


def _open_as(sent, cls):
    return sent.open().view(cls)


def _masked(cls, data, mask, fill_value, hard_mask):
    array = np.ma.MaskedArray(data, mask=mask, copy=False, hard_mask=hard_mask).view(cls)
    array._fill_value = fill_value
    return array


def reduce_to_handle(obj):
    """Reduce an object to its handle, which keeps an array without a name until it is opened."""
    return arrival.sent_handle(reference(obj))


def reduce_array(array):
    """Reduce an array to a handle if its memory is in a section, otherwise as numpy does."""
    return reduce_to_handle(array) if finding.find_storage(array) is not None else array.__reduce__()


def _reduce_view(array):
    """Reduce an array of a subclass that has no state of its own."""
    if finding.find_storage(array) is None:
        return array.__reduce__()
    return arrival.sent(_open_as, reference(array), type(array))


def _reduce_masked(array):
    """Reduce a masked array to its two arrays, of which each may be in a section."""
    data, mask = array._data.view(np.ndarray), array._mask
    if finding.find_storage(data) is None and finding.find_storage(mask) is None:
        return array.__reduce__()
    return arrival.sent(_masked, type(array), data, mask, array._fill_value, array._hardmask)


def _reduce_memoryview(view):
    if finding.find_storage(view) is None:
        raise TypeError("cannot pickle 'memoryview' object: its memory is in no section; send bytes(view)")
    return reduce_to_handle(view)


def _reduce_waitable(waitable):
    if waitable.section is not None:
        return reduce_to_handle(waitable)
    function, args = waitable.__reduce_ex__(2)
    return arrival.sent(function, *args)


def _reduce_method(method):
    """Reduce a bound method, which the receiver looks up in the object."""
    obj = method.__self__
    if type(obj) in reducers and (isinstance(obj, SharedMemory) or finding.find_storage(obj) is not None):
        return arrival.sent(getattr, obj, method.__name__)
    return method.__reduce__()


reducers.update(dict.fromkeys((SharedMemory, Block, Queue), reduce_to_handle))
reducers.update(dict.fromkeys((Semaphore, Event, Mutex), _reduce_waitable))
reducers.update({np.ndarray: reduce_array, np.ma.MaskedArray: _reduce_masked, memoryview: _reduce_memoryview})
reducers.update(dict.fromkeys((np.recarray, np.matrix), _reduce_view))
reducers.update(dict.fromkeys((types.MethodType, types.BuiltinMethodType), _reduce_method))
struct.on_new_class.append(lambda cls: add_reducer(cls, reduce_to_handle))
for _cls in list(containers.with_subclasses(struct.Struct)):
    reducers.setdefault(_cls, reduce_to_handle)


# -- the public pickler


_dispatch_table = collections.ChainMap(reducers, copyreg.dispatch_table)


def dumps_for_background(obj, protocol):
    """Pickle an object, with references that arrive as placeholders if they cannot be opened."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.dispatch_table = _dispatch_table
    with dropping_claims_of_failures():
        pickler.dump(obj)
    return file.getvalue()


def dumps(obj, protocol=None):
    """Pickle an object for another process of this machine, with references to what is in a section.

    Pipes, sockets, MPI and other programs' queues send the result.  It is small, whatever the size of the arrays.

    Parameters
    ----------
    obj : object
        Anything that `pickle` accepts, and objects in a section: arrays and their views, typed objects, queues, blocks, sections.
    protocol : int, optional
        The protocol of `pickle`.

    Returns
    -------
    bytes

    Raises
    ------
    InvalidBlock
        An object's block was freed.

    See Also
    --------
    loads : The inverse.
    handle : A reference to one object, which every pickler accepts.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     array = shm.array([1, 2, 3])
    ...     again = shmem.loads(shmem.dumps({"values": array[1:]}))
    ...     again["values"][0] = 7
    ...     print(array)
    [1 7 3]
    """
    with arrival.by_hand():
        return dumps_for_background(obj, protocol)


def loads(data):
    """Return the object that `dumps` pickled, and attach to the sections that it refers to.

    As with `pickle.loads`, the data must come from a source that is trusted.

    Parameters
    ----------
    data : bytes-like object

    Raises
    ------
    InvalidBlock
        An object's block was freed meanwhile.
    SectionNotFound
        The section was removed meanwhile.
    """
    return pickle.loads(data)
