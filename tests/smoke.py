"""Try an installed `shmem` outside of pytest: ``python -P tests/smoke.py``.  It needs only numpy.

A section in a file, with references, an array and a queue: three processes use it at once under its lock, a fourth one is killed while it
holds the lock, and the section is opened again.  Whatever interpreter runs this also runs the other processes (`sys.executable`).
"""

import os
import pathlib
import platform
import signal
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


N_WORKERS, N_ROUNDS = 3, 200
WORKER = """
import sys, shmem
with shmem.SharedMemory(sys.argv[1]) as shm:
    grid = shm["grid"]
    for _ in range(int(sys.argv[2])):
        with shmem.exclusive_lock(shm):
            grid[0] += 1
    shm["lines"].put(b"from a worker")
    del grid
"""
HOLDER = """
import os, signal, sys, shmem
shm = shmem.SharedMemory(sys.argv[1])
with shmem.exclusive_lock(shm):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(code, *arguments):
    """Start another process that runs the code."""
    return subprocess.Popen([sys.executable, "-P", "-c", code, *map(str, arguments)])


def main():
    with tempfile.TemporaryDirectory(prefix="shmem-smoke-") as folder:
        path = os.path.join(folder, "section.shm")
        with shmem.SharedMemory(path, max_size=1 << 22) as shm:
            shm["grid"] = np.zeros((2, 1000))
            shm.queue(10, bytes, max_bytes=100, name="lines")
            shm.root = shm.new(Point, x=1.5, next=shm.new(Point, x=2.5))
            workers = [start(WORKER, path, N_ROUNDS) for _ in range(N_WORKERS)]
            assert [worker.wait() for worker in workers] == [0] * N_WORKERS
            assert start(HOLDER, path).wait() == -signal.SIGKILL
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with shmem.exclusive_lock(shm, timeout=30):
                    assert shm["grid"][0].sum() == 1000 * N_WORKERS * N_ROUNDS
            assert [warning.category for warning in caught] == [shmem.OwnerDiedWarning]
            assert [shm["lines"].get_nowait() for _ in range(N_WORKERS)] == [b"from a worker"] * N_WORKERS
        with shmem.SharedMemory(path, mode="read_only") as shm:
            assert shm.root.next.x == 2.5
            assert sorted(shm) == ["grid", "lines"]
            blocks = shm.check_heap().blocks
    python = f"Python {platform.python_version()}, {platform.machine()}"
    print(f"shmem {shmem.__version__} in {pathlib.Path(shmem.__file__).parents[1].name}, {python}: {blocks} blocks, all as expected")


if __name__ == "__main__":
    main()
