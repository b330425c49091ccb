"""Processes that have one section open and run work on request, all between the same two moments of the system's clock."""

import itertools
import multiprocessing
import os
import time

import shmem

LEAD_SECONDS = 2e-3  # from the order to the start: time for the order to arrive
MOST_DELAY = 0.02  # of a round; see `run`

spawn = multiprocessing.get_context("spawn")


def _delay_seconds():
    """Return for how long this process has waited for a core."""
    with open("/proc/self/schedstat") as file:
        return int(file.read().split()[1]) * 1e-9


def _member(name, pipe, core):
    """Run each order until the order None; answer with the result and the seconds during which a core was missing."""
    if core is not None:
        os.sched_setaffinity(0, [core])
    with shmem.SharedMemory(shared_name=name) as shm:
        pipe.send("here")
        while (order := pipe.recv()) is not None:
            work, start, end = order
            before, late = _delay_seconds(), max(0, time.monotonic() - start)
            answer = work(shm, start, end)
            pipe.send((answer, late + _delay_seconds() - before))


class Crew:
    """`n_members` processes that are attached to the section `name` and ready; with `own_cores` each keeps to a core of its own."""

    def __init__(self, name, n_members, own_cores=False):
        self._pipes, self._processes = [], []
        cores = itertools.cycle(sorted(os.sched_getaffinity(0)) if own_cores else [None])
        for core in itertools.islice(cores, n_members):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_member, args=(name, there, core), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self):
        for pipe in self._pipes:
            pipe.recv()
        return self

    def __exit__(self, exc_type, exc, traceback):
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if exc_type is None:
                pipe.send(None)
            else:
                process.kill()
            process.join()
            pipe.close()

    def run(self, works, seconds, lead_seconds=LEAD_SECONDS):
        """Run `work(shm, start, end)` in the first members, one for each of `works`.

        Returns
        -------
        answers : list
        undisturbed : bool
            Whether each had a core all the time.  With a core too few, members take turns instead of working at the same time.
        """
        start = time.monotonic() + lead_seconds
        at_work = self._pipes[: len(works)]
        for pipe, work in zip(at_work, works, strict=True):
            pipe.send((work, start, start + seconds))
        answers, delays = zip(*[pipe.recv() for pipe in at_work], strict=True)
        return list(answers), max(delays) <= MOST_DELAY * seconds
