"""Timing: contenders take turns (A B C A B C) in short rounds, and the best round of each counts.

A round of a millisecond is shorter than the time slices of a busy machine, so some of hundreds are undisturbed; noise only ever adds.
Taking turns gives quiet moments to all contenders alike.
"""

import itertools
import time
import timeit

ROUND_SECONDS = 1e-3
LEAST_ROUNDS = 5
N_UNROLLED = 20


def best_of(seconds, contenders):
    """Let the contenders take turns for about `seconds`.

    Parameters
    ----------
    seconds : float
    contenders : dict of str to callable
        Each call runs one round and returns seconds per operation.

    Returns
    -------
    dict of str to float
        The least time that each returned.
    """
    best = dict.fromkeys(contenders, float("inf"))
    end = time.monotonic() + seconds
    n_rounds = 0
    while n_rounds < LEAST_ROUNDS or time.monotonic() < end:
        for name, run in contenders.items():
            best[name] = min(best[name], run())
        n_rounds += 1
    return best


def scaled(run):
    """Make a contender of `run(n)`, which returns the seconds of n operations; n is such that a round takes about ROUND_SECONDS."""
    n = 1
    while min(run(n), run(n), run(n)) < ROUND_SECONDS / 2:
        n *= 2
    return lambda: run(n) / n


def calls(function):
    """Return a contender that calls `function()`."""

    def run(n):
        start = time.perf_counter()
        for _ in itertools.repeat(None, n):
            function()
        return time.perf_counter() - start

    return scaled(run)


def with_block(lock):
    """Return a contender that enters and leaves `with lock`."""

    def run(n):
        start = time.perf_counter()
        for _ in itertools.repeat(None, n):
            with lock:
                pass
        return time.perf_counter() - start

    return scaled(run)


def statement(code, **names):
    """Return a contender that runs a short statement over local `names`, unrolled so that the loop costs next to nothing."""
    setup = "; ".join(f"{name} = _{name}" for name in names) or "pass"
    timer = timeit.Timer("; ".join([code] * N_UNROLLED), setup, globals={f"_{name}": value for name, value in names.items()})
    run = scaled(timer.timeit)
    return lambda: run() / N_UNROLLED
