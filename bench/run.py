"""The benchmarks as one table: each row beside a peer measured in the same run.

    python3 bench/make_bench.py                        the environment, then all of it (what `make bench` does)
    .venv-bench/bin/python bench/run.py --only lock    one question; see --help
    .venv-bench/bin/python bench/run.py --json FILE    the rows in a file too

Every question runs in a process of its own, with one thread per library.  Its contenders take turns (A B A B), and the best round of
each is shown, except in rows marked "worst" or "longest".  Machines differ and are shared, so the ratios are what matters.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

from table import Row, as_facts, format_table

BENCH = pathlib.Path(__file__).resolve().parent
QUESTIONS = {
    "heap": "heap_churn.py",
    "lock": "lock.py",
    "sharing": "sharing.py",
    "fairness": "fairness.py",
    "gate_hold": "gate_hold.py",
    "names": "names.py",
    "semaphore": "semaphore.py",
    "queue": "message_queue.py",
    "place": "place_array.py",
    "arrays": "array_use.py",
    "send": "send.py",
    "fields": "fields.py",
    "tstshmem": "tstshmem.py",
    "recovery": "recovery.py",
    "import": "import_time.py",
}
LIMIT_SECONDS = 300
FAILED = "failed, see above"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # malloc is slower once there are threads


def answer_of(name):
    """Return the output of a question's process.  One that takes too long is interrupted as by Ctrl-C, so that it closes its sections."""
    command = [sys.executable, str(BENCH / QUESTIONS[name]), "--rows"]
    with subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True) as process:
        try:
            answer, _ = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return answer


def ask(name):
    """Return the rows of one question; if it fails, a single row with that note."""
    try:
        return [Row(**facts) for facts in json.loads(answer_of(name).splitlines()[-1])]
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        print(f"bench: {name}: {error}", file=sys.stderr)
        return [Row(name, "-", None, "-", None, note=FAILED)]


def machine():
    """Describe the machine and the versions of the software."""
    import numpy as np

    facts = {
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "C library": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def main():
    """Run the questions and print the table; return 1 if a question failed, whether or not bars were reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="run only this question; may be repeated")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the rows to this file")
    arguments = parser.parse_args()
    if any(importlib.util.find_spec(name) is None for name in ("shmem", "crowd_client", "lmdb", "posix_ipc", "zmq")):
        raise SystemExit("bench: this Python lacks the packages to measure; run python3 bench/make_bench.py to make .venv-bench")
    about, begun, rows = machine(), time.monotonic(), []
    for name in arguments.only or QUESTIONS:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        rows += ask(name)
    print(format_table(rows))
    bars = [row.reached for row in rows if row.reached is not None]
    print(
        f"\n{about}; {time.monotonic() - begun:.0f} s; times are the best of several rounds in turn, ratio = shmem / peer; "
        f"bars reached: {sum(bars)} of {len(bars)}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "rows": [as_facts(row) for row in rows]}, indent=1) + "\n")
    return any(row.note == FAILED for row in rows)


if __name__ == "__main__":
    sys.exit(main())
