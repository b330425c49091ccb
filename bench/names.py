"""What do operations on names cost as names become more?

The peer is a `dict` with as many names, which is in one process and holds references.

    .venv-bench/bin/python bench/run.py --only names
"""

import itertools
import time

from table import Row, answer

import shmem

SIZE_BYTES = 1 << 30
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
N_CALLS = 500


def seconds_per_call(call):
    """Return the time of one of `N_CALLS` calls of `call(i)`."""
    start = time.perf_counter()
    for i in range(N_CALLS):
        call(i)
    return (time.perf_counter() - start) / N_CALLS


def once(call):
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rows_for(shm, peer, n_names):
    """Return the rows for `n_names` names."""
    number = itertools.count()
    works = {
        "look up": (lambda i: shm[f"name {i}"], lambda i: peer[f"name {i}"]),
        "count": (lambda _: len(shm), lambda _: len(peer)),
        "delete": (lambda i: shm.__delitem__(f"name {i}"), lambda i: peer.__delitem__(f"name {i}")),
        "assign": (lambda i: shm.__setitem__(f"new {i}", b"v"), lambda i: peer.__setitem__(f"new {next(number)}", b"v")),
    }
    rows = [
        Row("names", f"{work}, {n_names:,} names", seconds_per_call(ours), "dict", seconds_per_call(theirs))
        for work, (ours, theirs) in works.items()
    ]
    rows.append(Row("names", f"list all of {n_names:,} names", once(lambda: list(shm)), "dict", once(lambda: list(peer))))
    temporary = seconds_per_call(lambda _: shm.zeros(3, temporary=True))
    rows.append(Row("names", f"temporary array beside {n_names:,} names", temporary, "-", None))
    rows.append(Row("names", f"stats beside {n_names:,} names", seconds_per_call(lambda _: shm.stats()), "-", None))
    return rows


def measure():
    """Measure at each number of names."""
    rows = []
    for n_names in COUNTS:
        with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
            peer = {}
            for i in range(n_names):
                shm[f"name {i}"] = peer[f"name {i}"] = b"v"
            rows += rows_for(shm, peer, n_names)
    return rows


if __name__ == "__main__":
    answer(measure)
