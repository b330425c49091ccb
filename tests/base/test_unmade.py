"""Objects that `__new__` made and no `__init__` followed: each use returns or raises, and none crashes."""

import copy
import importlib
import operator
import os
import pickle
import pkgutil

import numpy as np
import pytest
from scribe import outcome

import shmem
from shmem._cli.tstshmem_tree import Tree
from shmem._objects import directory, lock

HEAP_TYPE = 1 << 9  # in `type.__flags__`: made by a class statement
SKIPPED = {"__new__", "__init__"}


class Item(shmem.Struct):
    key: shmem.int64
    next: shmem.Ref["Item"]


def is_extension_type(cls):
    """Return whether a class is one of the package's of the C level."""
    return not cls.__flags__ & HEAP_TYPE and cls.__module__.split(".")[0] == "shmem"


def own_types():
    """Return all classes of the package, public and private, that are of the C level or derived from one that is, by name."""
    found = {}
    for module in pkgutil.walk_packages(shmem.__path__, "shmem."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and any(is_extension_type(cls) for cls in value.__mro__):
                    found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


TYPES = own_types()

OPERATIONS = {
    "repr": repr, "str": str, "hash": hash, "bool": bool, "len": len, "iter": lambda it: list(zip(range(3), it, strict=False)),
    "==": lambda it: (it == it, it == 1, it == type(it).__new__(type(it))), "<": lambda it: it < it, "in": lambda it: 1 in it,
    "[]": lambda it: it[0], "[]=": lambda it: operator.setitem(it, 0, 0), "del []": lambda it: operator.delitem(it, 0),
    "memoryview": lambda it: bytes(memoryview(it)), "writable": lambda it: np.frombuffer(it, "u1"), "array": np.array,
    "copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps, "call": lambda it: it(), "decorate": lambda it: it(len)([]),
    "with": lambda it: it.__enter__(), "with lock": lambda it: shmem.exclusive_lock(it).__enter__(), "handle": shmem.handle,
    "storage": shmem.find_storage, "annotation": lambda it: type(shmem.Struct)("Made", (shmem.Struct,), {"__annotations__": {"x": it}}),
    "array of": lambda it: shmem.Array[it, 2], "reference to": lambda it: shmem.Ref[it],
}  # fmt: skip
SHM_OPERATIONS = {
    "root": lambda shm, it: setattr(shm, "root", it), "name": lambda shm, it: operator.setitem(shm, "x", it),
    "free": lambda shm, it: shm.free(it),
    "reallocate": lambda shm, it: shm.reallocate(it, 10), "lock": lambda shm, it: shm.lock(it), "unlock": lambda shm, it: shm.unlock(it),
    "new": lambda shm, it: shm.new(it), "queue": lambda shm, it: shm.queue(4, it),
    "refer": lambda shm, it: setattr(shm.new(Item), "next", it),
    "put": lambda shm, it: shm.queue(4, Item).put(it),
}  # fmt: skip


ARGUMENTS = {
    "": lambda shm, it: (), "None": lambda shm, it: (None,), "None, None": lambda shm, it: (None, None),
    "None, None, None": lambda shm, it: (None, None, None), "0": lambda shm, it: (0,), "itself": lambda shm, it: (it,),
    "item": lambda shm, it: (shm.root,), "item, class": lambda shm, it: (shm.root, Item), "item, 0": lambda shm, it: (shm.root, 0),
    "section": lambda shm, it: (shm,), "section, 0": lambda shm, it: (shm, 0),
}  # fmt: skip


def uses(cls):
    """Return {name: function of a section and an object}: each operation, and each attribute, read, written, and called."""
    found = {name: lambda shm, it, use=use: use(it) for name, use in OPERATIONS.items()}
    found |= {f"shm {name}": use for name, use in SHM_OPERATIONS.items()}
    for name in sorted(set(dir(cls)) - SKIPPED):
        if getattr(cls, name, None) is getattr(object, name, cls):
            continue
        found[f".{name}"] = lambda shm, it, name=name: getattr(it, name)
        found[f".{name} = 1"] = lambda shm, it, name=name: setattr(it, name, 1)
        found |= {
            f".{name}({text})": lambda shm, it, name=name, make=make: getattr(it, name)(*make(shm, it)) for text, make in ARGUMENTS.items()
        }
    return found


def use_all(cls, shm, fd):
    """Make an object for each use, and use it; note the use in a file before.  Return the names of the exceptions."""
    raised = set()
    for name, use in uses(cls).items():
        os.pwrite(fd, name.ljust(80).encode(), 0)
        try:
            it = cls.__new__(cls)
            use(shm, it)
        except Exception as error:
            raised.add(type(error).__name__)
        it = None
    return " ".join(sorted(raised))


def test_types_are_found():
    assert {"shmem.Block", "shmem.Queue", "shmem.exclusive_lock", "shmem.Semaphore", "shmem.SharedMemory"} <= set(TYPES)
    assert len(TYPES) > 30


@pytest.mark.parametrize("name", TYPES)
def test_unmade(shm, tmp_path, name):
    cls, last = TYPES[name], tmp_path / "last use"
    try:
        cls.__new__(cls)
    except TypeError:
        return  # no such object can exist: see below
    shm.root = shm.new(Item)
    with open(last, "wb") as file:
        found = outcome(lambda: use_all(cls, shm, file.fileno()))
    assert not found.startswith("SIG"), f"{last.read_text()}: {found}"
    assert "SystemError" not in found


@pytest.mark.parametrize("name", ["Block", "Queue", "Mutex", "_bridge.blocks.Placed", "_bridge.mapping.Mapping",
                                  "_objects.arrays.ArrayHold", "_objects.waitables.Waitable", "_objects.struct.StructBase",
                                  "Struct"])  # fmt: skip
def test_what_only_shmem_makes(name):
    """Neither the class nor a class derived from it can be called, however the object is made."""
    cls = TYPES[f"shmem.{name}"]
    derived = [type(cls)("Derived", (cls,), {"__init__": lambda self: None})] if name != "Mutex" else []
    for one in (cls, *derived):
        for make in (one, lambda one=one: one.__new__(one), lambda one=one: cls.__new__(one), lambda one=one: object.__new__(one)):
            assert outcome(make) == "TypeError"


def test_none_is_no_object(shm):
    """A parameter of a class of the C level takes no None."""
    for use in (lambda: shm.lock(None), lambda: shm.unlock(None), lambda: shmem.exclusive_lock(None), lambda: lock.participant(None),
                lambda: directory.keys(None), lambda: Tree(None, 0, False), lambda: Tree(1, 0, False)):  # fmt: skip
        assert outcome(use) == "TypeError"


def test_copies_of_a_lock(shm):
    """A lock has no state of its own, and is copied by its arguments."""
    again = copy.copy(shmem.exclusive_lock(shm, timeout=2.5))
    assert (type(again), again.section, again.timeout) == (shmem.exclusive_lock, shm, 2.5)
    with again:
        assert lock.depths(shm) == (1, 0)
