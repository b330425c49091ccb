"""What the documentation shows works: docstrings as doctests, the README's Python as written."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmem

README = Path(__file__).resolve().parents[2] / "README.md"
MODULES = ["shmem"] + [module.name for module in pkgutil.walk_packages(shmem.__path__, "shmem.") if module.name != "shmem.__main__"]


def documented(module):
    """The module's docstring, and those of what it defines, extension types included."""
    yield module.__name__, module.__doc__
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__:
            yield f"{module.__name__}.{name}", value.__doc__
            if isinstance(value, type):
                for member, what in vars(value).items():
                    yield f"{module.__name__}.{name}.{member}", getattr(what, "__doc__", None)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    for where, text in documented(module):
        if isinstance(text, str) and ">>>" in text:
            runner.run(parser.get_doctest(text, {}, where, None, None))
    assert runner.summarize(verbose=False).failed == 0


def test_some_examples_are_found():
    assert ">>>" in shmem.SharedMemory.__doc__
    assert ">>>" in shmem.Struct.__doc__


@pytest.mark.skipif(not README.exists(), reason="tests run without the checkout")
def test_readme_runs(tmp_path):
    """The README's Python blocks, one after the other in an empty folder, each a script."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert blocks
    for i, block in enumerate(blocks):
        script = tmp_path / f"block{i}.py"
        script.write_text(block)
        done = subprocess.run([sys.executable, "-P", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block
