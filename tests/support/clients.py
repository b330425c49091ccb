"""Clients of the C interface, compiled against the installed package as external projects are."""

import os
import subprocess
import sys

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(name="client", ext_modules=cythonize([Extension("client", ["client.pyx"])]))
"""


def run(folder, *arguments):
    """Run Python in a folder whose modules it can import; return the completed process, which succeeded."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(folder, source):
    """Build the module `client` in a folder."""
    (folder / "client.pyx").write_text(source)
    (folder / "setup.py").write_text(SETUP)
    done = run(folder, "setup.py", "-q", "build_ext", "--inplace")
    assert "warning: client.pyx" not in done.stdout + done.stderr
