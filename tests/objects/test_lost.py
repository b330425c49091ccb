"""Placeholders of objects that were lost on their way: every use raises, and nothing else does."""

import copy
import operator
import pickle
import traceback
import weakref

import numpy as np
import pytest

import shmem
from shmem._objects.arrival import arrive

GONE = (shmem.InvalidBlock, shmem.SectionNotFound, shmem.NotASection, shmem.ClosedError)
ERRORS = [cls for cls in vars(shmem).values() if isinstance(cls, type) and issubclass(cls, shmem.ShmemError)]


class ForeignError(Exception):
    def __init__(self, one, two):
        super().__init__("foreign")


def lost_by(error):
    def fail(handle):
        raise error

    return arrive(fail, "handle")


@pytest.fixture
def lost():
    return lost_by(shmem.InvalidBlock("it was freed"))


USES = {
    "attribute": lambda x: x.shape,
    "private attribute": lambda x: x._data,
    "hasattr": lambda x: hasattr(x, "shape"),
    "setting": lambda x: setattr(x, "n", 1),
    "setting what it has": lambda x: setattr(x, "lost_error", 1),
    "deleting": lambda x: delattr(x, "n"),
    "item": lambda x: x[0],
    "setting an item": lambda x: operator.setitem(x, 0, 1),
    "deleting an item": lambda x: operator.delitem(x, 0),
    "in": lambda x: 1 in x,
    "len": len,
    "iteration": list,
    "unpacking": lambda x: (*x,),
    "reversed": reversed,
    "sorted": sorted,
    "call": lambda x: x(),
    "with": lambda x: x.__enter__(),
    "bool": bool,
    "not": operator.not_,
    "int": int,
    "float": float,
    "complex": complex,
    "index": lambda x: [1, 2][x],
    "bytes": bytes,
    "round": round,
    "format": lambda x: f"{x:.3f}",
    "add": lambda x: x + 1,
    "added to": lambda x: 1 + x,
    "in place": lambda x: operator.iadd(x, 1),
    "added to an array": lambda x: np.ones(2) + x,
    "added to an array in place": lambda x: operator.iadd(np.ones(2), x),
    "matmul": lambda x: np.ones(2) @ x,
    "power": lambda x: x**2,
    "negative": operator.neg,
    "absolute": abs,
    "invert": operator.invert,
    "equal": lambda x: x == 1,
    "equal to an array": lambda x: np.ones(2) == x,
    "not equal": lambda x: x != 1,
    "less": lambda x: x < 1,
    "asarray": np.asarray,
    "array": lambda x: np.array([x, x]),
    "filling an array": lambda x: operator.setitem(np.ones(2), slice(None), x),
    "interface": lambda x: x.__array_interface__,
    "ufunc": np.sqrt,
    "reduction": np.sum,
    "concatenate": lambda x: np.concatenate([x, np.ones(2)]),
    "copyto": lambda x: np.copyto(np.ones(2), x),
    "max": lambda x: max(x, 1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_raises(lost, use):
    with pytest.raises(shmem.InvalidBlock, match="was lost on its way to this process: it was freed; ") as caught:
        use(lost)
    assert caught.value.__cause__ is lost.lost_error
    assert "it was freed" in "".join(traceback.format_exception(caught.value)).partition("direct cause")[0]


def test_what_is_no_use(lost):
    """What containers, picklers and debuggers do raises nothing."""
    assert repr(lost) == str(lost) == f"{lost}" == "<shmem.LostReference, InvalidBlock: it was freed>"
    assert isinstance(lost, shmem.LostReference)
    assert lost is not None
    assert not isinstance(lost, np.ndarray)
    assert lost in {lost: 1}
    assert lost in [lost]
    assert weakref.ref(lost)() is lost
    assert copy.copy(lost) is lost
    assert copy.deepcopy([lost])[0] is lost
    assert "lost_error" in dir(lost)
    assert not hasattr(lost, "__wrapped__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(shm, protocol):
    array = shm.zeros(3)
    handle = shmem.handle(array)
    shm.free(array)
    lost = arrive(shmem.Handle.open, handle)
    data = pickle.dumps(lost, protocol)
    assert b"shmem._" not in data
    again = pickle.loads(data)
    assert type(again) is shmem.LostReference
    assert again.lost_handle == handle
    assert repr(again) == repr(lost)
    with pytest.raises(shmem.InvalidBlock, match="was freed already"):
        len(again)


@pytest.mark.parametrize("cls", ERRORS)
def test_errors_of_this_library(cls):
    """If the object may exist, the class of the error states why it could not be opened; otherwise it is an InvalidBlock."""
    error = cls("the reason")
    error.status = 77
    lost = lost_by(error)
    for found in (lost, pickle.loads(pickle.dumps(lost))):
        assert type(found.lost_error) is cls
        assert found.lost_error.status == 77
        assert found.lost_error.__traceback__ is None
        with pytest.raises(shmem.InvalidBlock if cls in GONE else cls, match="the reason") as caught:
            found.sum()
        assert type(caught.value) is (shmem.InvalidBlock if cls in GONE else cls)
        assert caught.value.__cause__ is found.lost_error
        assert ("tries again" in str(caught.value)) == (cls not in GONE)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError(), ForeignError(1, 2), UserWarning("as an error")])
def test_other_errors(error):
    """Whatever the opening raises, it must not end the thread of a pool."""
    lost = pickle.loads(pickle.dumps(lost_by(error)))
    with pytest.raises(shmem.InvalidBlock, match=r"was lost on its way"):
        lost.sum()
    assert str(error) in repr(lost)


def test_raised_exceptions_are_new(lost):
    """Threads that use a placeholder do not share an exception, whose traceback would grow."""
    raised = []
    for _ in range(2):
        with pytest.raises(shmem.InvalidBlock) as caught:
            lost.sum()
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_interrupts_are_raised():
    with pytest.raises(KeyboardInterrupt):
        lost_by(KeyboardInterrupt())
