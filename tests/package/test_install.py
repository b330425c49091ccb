"""The tests run against the installed wheel."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import shmem

ROOT = Path(__file__).resolve().parents[2]


def test_installed_package_is_tested():
    assert ROOT not in Path(shmem.__file__).resolve().parents or "site-packages" in Path(shmem.__file__).parts


def test_version_matches_the_wheel():
    assert importlib.metadata.version("shmem") == shmem.__version__


def test_import_needs_only_numpy():
    code = (
        "import sys, numpy; before = set(sys.modules); import shmem\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'shmem', 'numpy', '__mp_main__'}\n"
        "print(sorted(m for m in new if not m.startswith(('_cython', 'cython_runtime'))))"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


NOT_IMPORTED = (
    "multiprocessing", "secrets", "random", "hashlib", "dataclasses", "glob", "json", "subprocess", "socket", "signal",
    "importlib.metadata", "shmem._objects.multiprocess", "shmem._objects.records",
)  # fmt: skip


def test_optional_modules_are_not_imported():
    """A module that only some programs need is imported on first use, unless numpy has already imported it."""
    code = "import sys, numpy; before = set(sys.modules); import shmem; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert "shmem._core" in out
    assert [name for name in NOT_IMPORTED if name in out] == []


def test_import_from_an_unbuilt_checkout(tmp_path):
    shutil.copytree(Path(shmem.__file__).parent, tmp_path / "shmem", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.c"))
    (tmp_path / "shmem/_core.pyx").touch()  # an installed package does not contain it
    last = import_from(tmp_path)
    assert last.startswith(f"ImportError: import shmem failed: {tmp_path}/shmem is a source checkout whose ")
    assert "make build" in last


def test_import_from_an_outdated_checkout(tmp_path):
    """The checkout was built before a module was added."""
    shutil.copytree(Path(shmem.__file__).parent, tmp_path / "shmem", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    for module in tmp_path.glob("shmem/_objects/queue.*"):
        module.unlink()
    (tmp_path / "shmem/_objects/queue.pyx").touch()
    last = import_from(tmp_path)
    assert last.startswith(f"ImportError: import shmem failed: {tmp_path}/shmem is a source checkout whose _objects/queue.pyx is not ")


def test_other_import_errors_are_unchanged(tmp_path):
    shutil.copytree(Path(shmem.__file__).parent, tmp_path / "shmem", ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    arguments = tmp_path / "shmem/_base/arguments.py"
    arguments.write_text("import no_such_module")
    assert import_from(tmp_path) == "ModuleNotFoundError: No module named 'no_such_module'"
    arguments.write_text("from shmem._base.errors import no_such_name")
    assert import_from(tmp_path).startswith("ImportError: cannot import name 'no_such_name' from 'shmem._base.errors'")


def import_from(folder):
    """Run an import that must fail; return the last line of standard error."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import shmem"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode != 0
    return done.stderr.splitlines()[-1]


def test_public_names_have_docstrings():
    missing = [name for name in shmem.__all__ if callable(getattr(shmem, name)) and not getattr(shmem, name).__doc__]
    assert missing == []
