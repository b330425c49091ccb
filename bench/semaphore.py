"""What does a semaphore without waiters cost, from Python?

`wait` and `signal`, one after the other, are measured on a semaphore placed in a section, one found by name, and one local to the process;
so is the `with` block.  The peers are posix_ipc's semaphore, which is the system's own, and the two of the standard library.

    .venv-bench/bin/python bench/run.py --only semaphore
"""

import contextlib
import multiprocessing
import os
import threading

import posix_ipc
from table import Row, answer
from timing import best_of, statement, with_block

import shmem

QUESTION = "semaphore, Python"
SIZE_BYTES = 1 << 20
SECONDS = 6
BAR = 0.6
PLACED = "in a section"


@contextlib.contextmanager
def semaphores():
    """Yield all semaphores, each with one unit."""
    peer = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)
    peer.unlink()
    named = shmem.Semaphore(f"bench-{os.getpid()}", 1)
    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        ours = {PLACED: shm.semaphore(1), "by name": named, "local": shmem.Semaphore(value=1)}
        peers = {"posix_ipc": peer, "multiprocessing": multiprocessing.Semaphore(1), "threading": threading.Semaphore(1)}
        yield ours, peers
    named.close()
    named.unlink()
    peer.close()


def measure():
    """Measure both ways to use a semaphore."""
    with semaphores() as (ours, peers):
        calls = {name: statement("s.wait(); s.signal()", s=semaphore) for name, semaphore in ours.items()}
        calls |= {name: statement("s.acquire(); s.release()", s=semaphore) for name, semaphore in peers.items()}
        best = best_of(SECONDS, calls)
        best_with = best_of(SECONDS, {name: with_block(semaphore) for name, semaphore in (ours | peers).items()})
    rows = [Row(QUESTION, f"wait + signal, {name}", best[name], "posix_ipc.Semaphore", best["posix_ipc"], most_ratio=BAR) for name in ours]
    for peer in ("multiprocessing", "threading"):
        rows.append(Row(QUESTION, f"wait + signal, {PLACED}", best[PLACED], f"{peer}.Semaphore", best[peer]))
    rows += [Row(QUESTION, f"with semaphore, {PLACED}", best_with[PLACED], f"{peer}.Semaphore", best_with[peer]) for peer in peers]
    return rows


if __name__ == "__main__":
    answer(measure)
