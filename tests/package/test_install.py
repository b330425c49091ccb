"""The tests are about the installed wheel."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import shmem

ROOT = Path(__file__).resolve().parents[2]


def test_installed_package_is_tested():
    assert ROOT not in Path(shmem.__file__).resolve().parents or "site-packages" in Path(shmem.__file__).parts


def test_version_is_the_wheels():
    assert importlib.metadata.version("shmem") == shmem.__version__


def test_import_needs_numpy_alone():
    code = (
        "import sys, numpy; before = set(sys.modules); import shmem\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'shmem', 'numpy', '__mp_main__'}\n"
        "print(sorted(m for m in new if not m.startswith(('_cython', 'cython_runtime'))))"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_public_names_have_docstrings():
    missing = [name for name in shmem.__all__ if callable(getattr(shmem, name)) and not getattr(shmem, name).__doc__]
    assert missing == []
