"""Try an installed `shmem` outside of pytest: ``python -P tests/smoke.py``.  It needs only numpy.

It creates a section in a file and opens it again after two other processes used it, one of them killed while it held the lock.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np

import shmem


class Point(shmem.Struct):
    """An object with a reference."""

    x: shmem.float64
    next: shmem.Ref["Point"]


WORKER = """
import sys, shmem
with shmem.SharedMemory(sys.argv[1]) as shm, shmem.exclusive_lock(shm):
    shm["grid"][0] += 1
    shm["lines"].put(b"from the worker")
"""
HOLDER = """
import os, signal, sys, shmem
shm = shmem.SharedMemory(sys.argv[1])
with shmem.exclusive_lock(shm):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code, path):
    """Run code in another process; return its exit status."""
    return subprocess.run([sys.executable, "-P", "-c", code, path], check=False).returncode


def main():
    with tempfile.TemporaryDirectory(prefix="shmem-smoke-") as folder:
        path = os.path.join(folder, "section.shm")
        with shmem.SharedMemory(path, max_size=1 << 22) as shm:
            shm["grid"] = np.zeros((2, 1000))
            shm.queue(10, bytes, max_bytes=100, name="lines")
            shm.root = shm.new(Point, x=1.5, next=shm.new(Point, x=2.5))
            assert run(WORKER, path) == 0
            assert run(HOLDER, path) == -9
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with shmem.exclusive_lock(shm, timeout=30):
                    assert shm["grid"][0].sum() == 1000
            assert [warning.category for warning in caught] == [shmem.OwnerDiedWarning]
            assert shm["lines"].get() == b"from the worker"
        with shmem.SharedMemory(path, mode="read_only") as shm:
            assert shm.root.next.x == 2.5
            assert sorted(shm) == ["grid", "lines"]
            blocks = shm.check_heap().blocks
    print(f"shmem {shmem.__version__} in {pathlib.Path(shmem.__file__).parent.parent.name}: {blocks} blocks, all as expected")


if __name__ == "__main__":
    main()
