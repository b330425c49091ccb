"""The number that identifies a thread in the lock and in mutexes, from the intrinsic and from the fallback."""

import os
import subprocess
import sys

import pytest

MODULE = """
# cython: language_level=3
from shmem._atomics cimport thread_pointer

cdef extern from *:
    '''
    #ifdef SHMEM_THREAD_REGISTER
    #define TAKES_REGISTER 1
    #else
    #define TAKES_REGISTER 0
    #endif
    '''
    const bint TAKES_REGISTER


def pointer():
    return thread_pointer()


def takes_register():
    return TAKES_REGISTER
"""

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(name="pointer", ext_modules=cythonize([Extension("pointer", ["pointer.pyx"], extra_compile_args=EXTRA)]))
"""

USE = """
import threading, pointer

N = 8
found, barrier = {}, threading.Barrier(N)

def look():
    found[threading.get_ident()] = pointer.pointer()
    barrier.wait()                      # every thread stays alive until each has read its number
    assert found[threading.get_ident()] == pointer.pointer()

threads = [threading.Thread(target=look) for _ in range(N)]
for one in threads: one.start()
for one in threads: one.join()
assert len(found) == N == len(set(found.values())), found
assert min(found.values()) > 1, found
print(int(pointer.takes_register()), int(all(ident == number for ident, number in found.items())))
"""


@pytest.mark.parametrize("macros", [[], ["-DSHMEM_PTHREAD_SELF"]], ids=["chosen", "fallback"])
def test_live_threads_have_different_pointers(tmp_path, macros):
    """Two threads with the same number would share depths and mutexes.  The fallback is `pthread_self()`, the ident of Python."""
    (tmp_path / "pointer.pyx").write_text(MODULE)
    (tmp_path / "setup.py").write_text(SETUP.replace("EXTRA", repr(macros)))
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for arguments in (["setup.py", "-q", "build_ext", "--inplace"], ["-c", USE]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    takes_register, is_ident = done.stdout.split()
    assert is_ident == "1" or takes_register == "1"
    assert not (macros and takes_register == "1")
