"""Stubs, signatures and docstrings of the public names; `tools/check_types.py`, part of `make lint`, has type checkers verify the stubs."""

import ast
import importlib
import importlib.util
import inspect
import pydoc
from pathlib import Path

import pytest

import shmem
from shmem import posixsem

PACKAGE = Path(shmem.__file__).parent
MODULES = ["shmem", "shmem.posixsem", "shmem.testing"]
TYPED = sorted((Path(__file__).parent / "typed").glob("*.py"))


def stub_of(module):
    found = importlib.util.find_spec(module)
    return ast.parse(Path(found.origin).with_suffix(".pyi").read_text(encoding="utf-8"))


def stub_names(tree):
    """Return the names that a stub defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names.update(name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
    return names


# -- stubs ------------------------------------------------------------------------------------------------------


def test_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").read_bytes() == b""


@pytest.mark.parametrize("module", MODULES)
def test_stub_has_the_public_names(module):
    tree = stub_of(module)
    (listed,) = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    assert listed == importlib.import_module(module).__all__
    assert set(listed) <= stub_names(tree)


@pytest.mark.parametrize("path", TYPED, ids=lambda path: path.stem)
def test_types_are_those_of_the_objects(path):
    """What type checkers infer in these files is so: each assertion holds when the file runs."""
    spec = importlib.util.spec_from_file_location(f"typed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with shmem.SharedMemory(max_size=1 << 24) as shm:
        module.check(shm)


def test_typed_files_are_found():
    assert {path.stem for path in TYPED} >= {"keywords", "queues", "sections", "structs"}


def test_generic_classes_take_types_between_brackets():
    for cls in (shmem.Queue, shmem.Handle):
        assert cls[int].__origin__ is cls
        assert cls[int].__args__ == (int,)
    assert shmem.Queue[int, float].__args__ == (int, float)


# -- signatures and help ----------------------------------------------------------------------------------------


def public_objects():
    """Yield (name, object) for public functions and classes, and for their methods and properties that this package defines."""
    for module in (shmem, posixsem):
        for name in module.__all__:
            value = getattr(module, name)
            if not (isinstance(value, type) or inspect.isroutine(value)):
                continue
            yield f"{module.__name__}.{name}", value
            if isinstance(value, type) and not issubclass(value, int | BaseException):
                for member in dir(value):
                    if not member.startswith("_"):
                        yield f"{module.__name__}.{name}.{member}", inspect.getattr_static(value, member)


PUBLIC = dict(public_objects())
FIELD_TYPES = ("Array", "Bytes", "Ref")  # their members describe them to other modules of the package


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if callable(value)])
def test_signature_is_available(name):
    assert "memory" not in inspect.signature(PUBLIC[name]).parameters  # the name of `self` in some functions


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.split(".")[1] not in FIELD_TYPES or name.count(".") == 1])
def test_help_begins_with_a_sentence(name):
    """And not with the arguments, which `help` shows anyway.  An attribute of the C level can have no docstring."""
    value = PUBLIC[name]
    doc = value.__doc__
    if callable(value) or (hasattr(type(value), "__get__") and (doc is not None or not inspect.isgetsetdescriptor(value))):
        first = doc.strip().splitlines()[0]
        assert first.endswith((".", ":")), first
        assert not first.startswith(f"{name.rpartition('.')[2]}(")


def test_signatures_of_extension_types():
    signature = inspect.signature(shmem.SharedMemory)
    assert list(signature.parameters)[:3] == ["file_name", "shared_name", "max_size"]
    assert signature.parameters["permissions"].default == 0o600
    assert signature.parameters["index"].kind is inspect.Parameter.KEYWORD_ONLY
    assert str(inspect.signature(shmem.exclusive_lock)) == "(section, timeout=None)"
    assert str(inspect.signature(shmem.LockDescriptor)) == "(mode)"
    assert list(inspect.signature(shmem.SharedMemory.queue).parameters)[:3] == ["self", "maxsize", "record"]
    assert inspect.signature(shmem.Semaphore.__init__).parameters["value"].default == 0
    assert shmem.Semaphore.__doc__.startswith("A counting semaphore")


def test_signature_of_a_derived_class_is_its_own():
    class Named(shmem.SharedMemory):
        def __init__(self, name):
            super().__init__(shared_name=name)

    assert str(inspect.signature(Named)) == "(name)"


def test_help_shows_arguments():
    lines = pydoc.render_doc(shmem.SharedMemory, renderer=pydoc.plaintext).splitlines()
    text = " ".join(line.strip(" |") for line in lines).replace(
        "( ", "("
    )  # since CPython 3.13 long signatures have a line for each argument
    assert "class SharedMemory(shmem._core.Memory, " in text
    assert "SharedMemory(file_name=None, shared_name=None, max_size=None, mode='read_write'" in text
    assert "queue(self, maxsize, record, *, max_bytes=None, name=None)" in text
    assert "new(self, cls, /, *args, type_name=None, **kwargs)" in text
    assert "Memory not None" not in text
