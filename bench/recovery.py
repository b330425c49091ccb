"""How long do other processes wait after a process was killed in the worst place?

1. Killed while holding the exclusive lock.  The bar's time starts when the kernel releases the dead process's liveness byte; until then
   the process counts as alive by definition.  The peers are `flock`, a lock that the kernel itself passes on (both measured from the
   kill), and Boost's mutex, which never recovers.
2. Killed inside the heap gate: the next `allocate`, and the recovery in it alone, by number of blocks.  The baseline is `check_heap`, which
   walks the same blocks and changes nothing.

Of the waits the worst trial is shown, since they are bounded by a promise.  A wait has slices (SLICE_NS), after each of which the waiter
asks whether the owner is alive.  Of recovery alone, which has none, the best round is shown.

    .venv-bench/bin/python bench/run.py --only recovery
"""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import struct
import time
import warnings

import recovery_client
from boost import Boost
from table import Row, answer
from timing import best_of

import shmem

LOCK, HEAP = "killed in the lock", "killed in the heap gate"
SIZE_BYTES = 128 << 20
N_TRIALS = 12
SECONDS = 1
BLOCK_COUNTS = (1_000, 10_000, 100_000)
BAR_SECONDS = 0.250
BOOST_LIMIT_SECONDS = 1.0
N_ENTRIES = 64
PATIENCE_SECONDS = 20

spawn = multiprocessing.get_context("spawn")


# -- what the other processes do ------------------------------------------------------------------------


@contextlib.contextmanager
def flock(path):
    """Hold a file's lock, which the kernel passes on when its holder dies."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def section_lock(name):
    """Hold the lock of a section exclusively."""
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    with shmem.SharedMemory(shared_name=name) as shm, shmem.exclusive_lock(shm, PATIENCE_SECONDS):
        yield


def hold(take, name, pipe):
    """Take the lock, send "held", and wait to be killed."""
    with take(name):
        pipe.send("held")
        time.sleep(PATIENCE_SECONDS)


def wait_for(take, name, pipe):
    """Take the lock on each message, and answer with the time."""
    while pipe.recv():
        with take(name):
            got = time.monotonic()
        pipe.send(got)


def wait_for_section(name, pipe):
    """Do the same with the section's lock, and keep the section open in between."""
    with shmem.SharedMemory(shared_name=name):
        wait_for(section_lock, name, pipe)


def die_in_the_gate(name):
    """Kill this process inside the heap gate."""
    with shmem.SharedMemory(shared_name=name) as shm:
        recovery_client.die_in_the_gate(shm)


# -- the lock ---------------------------------------------------------------------------------------------


class LivenessBytes:
    """The kernel's locks on the section's liveness bytes, which show the live participants, seen through a separate file description."""

    def __init__(self, path):
        self._file = os.open(path, os.O_RDWR)

    def is_locked(self, index):
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, recovery_client.FIRST_LIVENESS_BYTE + index, 1, 0)
        return struct.unpack_from("h", fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK

    def alive(self):
        return {index for index in range(N_ENTRIES) if self.is_locked(index)}

    def close(self):
        os.close(self._file)


@contextlib.contextmanager
def running(target, *arguments):
    """Yield a process and this end of its pipe.  The process does not outlive the block, nor the section around it."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        here.close()


def trial(take, name, waiter, sleep_seconds, liveness=None):
    """Kill a holder while `waiter` sleeps; return the seconds to the next holder, from the kill and from the liveness byte's release."""
    before = liveness.alive() if liveness else set()
    with running(hold, take, name) as (holder, pipe):
        pipe.recv()
        indices = liveness.alive() - before if liveness else set()
        waiter.send(True)
        time.sleep(sleep_seconds)
        killed = time.monotonic()
        os.kill(holder.pid, signal.SIGKILL)
        while any(liveness.is_locked(index) for index in indices):
            pass
        released = time.monotonic()
        got = waiter.recv()
    return got - killed, got - released


def trials(take, name, wait, *arguments, liveness=None):
    """Return the worst of all trials; in each the kill comes at another moment of the waiter's sleep."""
    with running(wait, *arguments) as (process, waiter):
        waits = [trial(take, name, waiter, 0.2 + 0.0047 * i, liveness) for i in range(N_TRIALS)]
        waiter.send(False)
        process.join()
    return tuple(map(max, zip(*waits, strict=True)))


def measure_lock():
    """Measure kills of holders of the section's lock, of `flock` and of Boost's mutex."""
    with shmem.SharedMemory(max_size=1 << 20, shared_name=f"bench-{os.getpid()}") as shm:
        liveness = LivenessBytes(shm.path)
        from_kill, from_release = trials(section_lock, shm.name, wait_for_section, shm.name, liveness=liveness)
        liveness.close()
        flock_from_kill, _ = trials(flock, shm.path, wait_for, flock, shm.path)  # any file serves; this one is in memory
    with Boost() as boost:
        seconds = -1 if boost.missing else boost.ask("death", BOOST_LIMIT_SECONDS)
    boost_from_kill = seconds if seconds >= 0 else None
    note = boost.missing or f"not within {BOOST_LIMIT_SECONDS:g} s"
    work = f"next holder, worst of {N_TRIALS}, since "
    return [
        Row(LOCK, work + "the liveness byte", from_release, "-", None, most_seconds=BAR_SECONDS),
        Row(LOCK, work + "SIGKILL", from_kill, "flock", flock_from_kill),
        Row(LOCK, work + "SIGKILL", from_kill, "Boost interprocess_upgradable_mutex", boost_from_kill, note=note),
    ]


# -- the heap ---------------------------------------------------------------------------------------------


def next_allocate(shm):
    """Kill a process inside the heap gate; return the seconds that the next `allocate` takes."""
    process = spawn.Process(target=die_in_the_gate, args=(shm.name,))
    process.start()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process was not killed inside the gate, but ended with exit code {process.exitcode}")
    begun = time.perf_counter()
    block = shm.allocate(64)
    taken = time.perf_counter() - begun
    shm.free(block)
    return taken


def measure_heap():
    """Measure kills in the gate of heaps of several sizes."""
    rows = []
    for n_blocks in BLOCK_COUNTS:
        with shmem.SharedMemory(max_size=SIZE_BYTES, shared_name=f"bench-{os.getpid()}-{n_blocks}") as shm:
            recovery_client.fill(shm, n_blocks)
            before = shm.stats().recoveries
            after_death = next_allocate(shm)
            if shm.stats().recoveries == before:
                raise RuntimeError("the heap was not recovered")
            best = best_of(SECONDS, {"recover": lambda shm=shm: recovery_client.recover(shm), "check": lambda shm=shm: check_seconds(shm)})
            report = shm.check_heap()
        n_walked = report.blocks + report.holes
        rows.append(Row(HEAP, f"next allocate, {n_blocks:,} blocks", after_death, "-", None))
        rows.append(Row(HEAP, f"recovery alone, {n_blocks:,} blocks", best["recover"], "check_heap", best["check"]))
        rows.append(
            Row(
                HEAP,
                f"recovery alone, {n_blocks:,} blocks, per block",
                best["recover"] / n_walked,
                "check_heap, per block",
                best["check"] / n_walked,
            )
        )
    return rows


def check_seconds(shm):
    """Return the seconds of the baseline."""
    begun = time.perf_counter()
    shm.check_heap()
    return time.perf_counter() - begun


def measure():
    """Measure the lock, then the heap."""
    return measure_lock() + measure_heap()


if __name__ == "__main__":
    answer(measure)
