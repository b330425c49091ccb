"""Imports run downward only: the check of `tests/layers.py` passes on the package and finds planted violations."""

import pytest
from layers import ROOT, violations


def test_package_has_no_violations():
    assert violations(ROOT) == []


@pytest.fixture
def package(tmp_path):
    """A function that writes a package of one file and returns its violations."""

    def write(path, text):
        place = tmp_path / "shmem" / path
        place.parent.mkdir(parents=True)
        place.write_text(text)
        return violations(tmp_path)

    return write


UPWARD = {
    "cimport of a module": ("_sync/gate.pxd", "from shmem._heap.heap cimport heap_enter\n", "shmem/_sync/gate.pxd:1: _sync"),
    "several lines": ("_heap/heap.pyx", "\nfrom shmem import (\n    _core,  # the bridge\n)\n", "shmem/_heap/heap.pyx:2: _heap"),
    "inside a function": ("_base/errors.py", "def f():\n    import shmem._objects.queue\n", "shmem/_base/errors.py:2: _base"),
    "of the face": ("_objects/queue.pyx", "from shmem import Block\n", "shmem/_objects/queue.pyx:1: _objects"),
    "the second of a line": ("_cli/check.py", "import os, shmem.testing.storm\n", "shmem/_cli/check.py:1: _cli"),
    "under another name": ("_sections/opening.pyx", "from shmem import _core as core\n", "shmem/_sections/opening.pyx:1: _sections"),
}


@pytest.mark.parametrize("what", UPWARD)
def test_upward_import_is_found(what, package):
    path, text, found = UPWARD[what]
    [violation] = package(path, text)
    assert violation.startswith(found)


def test_relative_import_is_found(package):
    [violation] = package("_objects/queue.pyx", "from . import arrays\n")
    assert "relative import" in violation


def test_room_without_floor_is_found(package):
    [violation] = package("_new/thing.py", "import os\n")
    assert "_new has no floor" in violation


DOWNWARD = {
    "a lower floor": ("_cli/check.py", "import shmem\nfrom shmem._base import errors\n"),
    "its own room": ("_heap/heap.pyx", "from shmem._heap.recovery cimport heap_recover\n"),
    "in a docstring": ("_sync/gate.pyx", '"""Use it so::\n\n    import shmem\n"""\n'),
    "another package": ("_base/errors.py", "import shmemory.testing\n"),
}


@pytest.mark.parametrize("what", DOWNWARD)
def test_permitted_imports_pass(what, package):
    assert package(*DOWNWARD[what]) == []
