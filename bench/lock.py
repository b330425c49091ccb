"""What does the uncontended storage lock cost, from C and from Python?

From C the peer is Boost's interprocess_upgradable_mutex, also a reader/writer lock in shared memory.  From Python, `with lock:`
on an object made once is compared with the interpreter's own `threading.RLock` and with two locks between processes.

    .venv-bench/bin/python bench/run.py --only lock
"""

import multiprocessing
import threading

import lock_client
import posix_ipc
from boost import Boost
from table import Row, answer
from timing import best_of, with_block

import shmem

SIZE_BYTES = 1 << 20
N_STEPS_C = 50_000
SECONDS = 6
BAR_C, BAR_PYTHON = 0.6, 0.9


def measure_c(shm):
    """Measure lock and unlock from C."""
    with Boost() as boost:
        best = best_of(
            SECONDS,
            {
                "exclusive": lambda: lock_client.exclusive(shm, N_STEPS_C),
                **boost.contender("boost exclusive", "exclusive", N_STEPS_C),
                "shared": lambda: lock_client.shared(shm, N_STEPS_C),
                **boost.contender("boost shared", "shared", N_STEPS_C),
            },
        )
    peer = "Boost interprocess_upgradable_mutex"
    return [
        Row("lock, C", f"lock + unlock {mode}", best[mode], peer, best.get(f"boost {mode}"), most_ratio=BAR_C, note=boost.missing)
        for mode in ("exclusive", "shared")
    ]


def measure_python(shm):
    """Measure entering and leaving a `with` block."""
    semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)
    semaphore.unlink()
    locks = {
        "exclusive_lock": shmem.exclusive_lock(shm),
        "threading.RLock": threading.RLock(),
        "shared_lock": shmem.shared_lock(shm),
        "multiprocessing.RLock": multiprocessing.RLock(),
        "posix_ipc.Semaphore": semaphore,
    }
    best = best_of(SECONDS, {name: with_block(lock) for name, lock in locks.items()})
    semaphore.close()
    rows = [
        Row("lock, Python", f"with {name}", best[name], "threading.RLock", best["threading.RLock"], most_ratio=BAR_PYTHON)
        for name in ("exclusive_lock", "shared_lock")
    ]
    for peer in ("multiprocessing.RLock", "posix_ipc.Semaphore"):
        rows.append(Row("lock, Python", "with exclusive_lock", best["exclusive_lock"], peer, best[peer]))
    return rows


def measure():
    """Measure both languages."""
    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        return measure_c(shm) + measure_python(shm)


if __name__ == "__main__":
    answer(measure)
