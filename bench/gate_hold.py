"""How long does one call keep all other processes from the heap?

Shown is the longest hold of the heap gate, in processor time of its owner, so that other work of the machine does not count.  There are
many names and blocks, and the calls are those that depend on their number: assignment over a growth of the table, deletion, listing,
`stats`, and the end of temporary arrays.  The peer is the whole call, most of which happens outside of the gate.  `check_heap`, `snapshot`
and recovery walk all blocks under the gate, and are not among the calls.

    .venv-bench/bin/python bench/run.py --only gate_hold
"""

import time

from table import Row, answer

import shmem
from shmem._base import debug

SIZE_BYTES = 1 << 30
COUNTS = (1_000, 100_000, 1_000_000)
BAR_SECONDS = 0.002


def assign(shm, start, n_names):
    for i in range(start, start + n_names):
        shm[f"name {i}"] = b"v"


def delete(shm, n_names):
    for i in range(n_names):
        del shm[f"name {i}"]


def calls(n_names):
    """Return the calls by the work that they do."""
    return {
        "assign the names, with every growth of the table": lambda shm: assign(shm, 0, n_names),
        "list": list,
        "count": len,
        "stats": lambda shm: shm.stats(),
        "temporary arrays": lambda shm: [shm.zeros(3, temporary=True) for _ in range(1000)],
        "delete the names": lambda shm: delete(shm, n_names),
    }


def measure():
    """Measure the longest hold of each call."""
    debug.set_level("holds")
    rows = []
    for n_names in COUNTS:
        with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
            for work, call in calls(n_names).items():
                debug.longest_hold()
                start = time.thread_time()
                call(shm)
                whole = time.thread_time() - start
                rows.append(
                    Row("gate_hold", f"{work}, {n_names:,} names", debug.longest_hold(), "all calls", whole, most_seconds=BAR_SECONDS)
                )
    return rows


if __name__ == "__main__":
    answer(measure)
