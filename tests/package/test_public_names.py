"""Public classes, exceptions and functions report the module that users import them from."""

import enum
import inspect
import pickle
import subprocess
import sys
import traceback

import pytest

import shmem
from shmem import posixsem

PUBLIC = [
    (module, name)
    for module in (shmem, posixsem)
    for name in module.__all__
    if isinstance(getattr(module, name), type) or inspect.isroutine(getattr(module, name))
]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_module_is_the_public_one(module, name):
    value = getattr(module, name)
    assert value.__module__ == module.__name__
    assert (value.__name__, value.__qualname__) == (name, name)
    if isinstance(value, type):
        assert f"{module.__name__}.{name}'" in repr(value) or repr(value) == f"<enum '{name}'>"


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_pickle_names_the_public_module(module, name):
    value = getattr(module, name)
    pickled = pickle.dumps(value)
    assert b"shmem._" not in pickled
    assert pickle.loads(pickled) is value


@pytest.mark.parametrize("cls", [value for value in map(vars(shmem).get, shmem.__all__) if isinstance(value, type)])
def test_exceptions_and_members_pickle_without_private_names(cls):
    values = [cls("text")] if issubclass(cls, Exception) else list(cls) if isinstance(cls, enum.EnumType) else []
    for value in values:
        pickled = pickle.dumps(value)
        assert b"shmem._" not in pickled
        assert type(pickle.loads(pickled)) is cls


def test_records_and_named_objects_pickle_without_private_names():
    semaphore = shmem.Semaphore("test-public-names", 3)
    with shmem.SharedMemory(max_size=1 << 20) as shm:
        for value in (shm.stats(), shm.check_heap(), shmem.handle(shm), semaphore):
            pickled = pickle.dumps(value)
            assert b"shmem._" not in pickled
            again = pickle.loads(pickled)
            assert again.value == 3 if value is semaphore else again == value
    semaphore.unlink()


def test_traceback_shows_the_public_name():
    with pytest.raises(shmem.SectionNotFound) as caught:
        shmem.SharedMemory("/nowhere/at/all")
    assert traceback.format_exception_only(caught.value)[0].startswith("shmem.SectionNotFound: ")


def test_module_attributes():
    assert set(shmem.__all__) <= set(dir(shmem))
    with pytest.raises(AttributeError, match="no attribute 'Handel'"):
        shmem.Handel  # noqa: B018


def test_records_are_found_before_the_first_use():
    code = "import pickle, shmem; print(shmem.Handle, shmem.HeapReport, shmem.SectionStats)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<class 'shmem.Handle'> <class 'shmem.HeapReport'> <class 'shmem.SectionStats'>\n"
