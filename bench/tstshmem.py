"""What does the lock cost a whole program?  `tstshmem` has threads of several processes work on one search tree.

Each key is inserted, searched for ten times and removed, every step under the lock.  The peer is the command's own row without locks: one
thread of one process.  Times are per key, over all threads.

    .venv-bench/bin/python bench/run.py --only tstshmem
"""

import importlib.util
import json
import subprocess
import sys

from table import Row, answer

QUESTION = "tstshmem"
N_PROCESSES, N_THREADS, N_KEYS = 2, 2, 2_000
VARIANTS = ("cython", "python")
N_RUNS = 5
LIMIT_SECONDS = 60


def run_once(variant):
    """Return the seconds per key, with locks and without."""
    command = [
        sys.executable,
        "-m",
        "shmem",
        "tstshmem",
        "--variant",
        variant,
        "--json",
        "-p",
        str(N_PROCESSES),
        "-t",
        str(N_THREADS),
        "-n",
        str(N_KEYS),
    ]
    # in the checkout `-m shmem` would run the source; in the environment's folder it runs the installed package
    finished = subprocess.run(command, cwd=sys.prefix, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, check=True)
    answered = json.loads(finished.stdout)
    rows = answered if isinstance(answered, list) else answered["rows"]
    by_locking = {row["locking"]: row["seconds"] / (row["processes"] * row["threads"] * N_KEYS) for row in rows}
    return by_locking[True], by_locking[False]


def measure():
    """Measure both variants; if this version has no such command, return a row with that note."""
    if importlib.util.find_spec("shmem.__main__") is None:
        return [Row(QUESTION, "-", None, "-", None, note="not in this version")]
    rows = []
    for variant in VARIANTS:
        runs = [run_once(variant) for _ in range(N_RUNS)]
        locked, alone = map(min, zip(*runs, strict=True))
        work = f"{N_PROCESSES} processes x {N_THREADS} threads, {variant}, per key"
        rows.append(Row(QUESTION, work, locked, "1 thread, no locks, per key", alone))
    return rows


if __name__ == "__main__":
    answer(measure)
