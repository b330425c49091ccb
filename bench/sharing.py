"""Do two processes that hold the shared lock at the same time slow each other down, from C?

Each locks and unlocks in a tight loop for the same time, and their rates are added.  The comparison is with one process alone, and with
Boost's interprocess_sharable_mutex, used by one and by two.  A round in which a process lost its core to another program does not count:
meanwhile the other process had the lock to itself.

    .venv-bench/bin/python bench/run.py --only sharing
"""

import os

import crowd_client
from boost import Boost
from crew import Crew
from table import Row, answer
from timing import best_of

import shmem

QUESTION = "sharing, C"
PEER = "Boost interprocess_sharable_mutex"
SIZE_BYTES = 1 << 20
ROUND_SECONDS = 2e-3  # on a busy machine, longer rounds are always disturbed
SECONDS = 12
BAR_ONE, BAR_BOOST = 1 / 1.8, 1 / 8
DISTURBED = float("inf")


def ours(crew, n_processes):
    """Return a contender: seconds per pair, over all processes."""

    def run():
        rates, undisturbed = crew.run([crowd_client.share] * n_processes, ROUND_SECONDS)
        return 1 / sum(rates) if undisturbed else DISTURBED

    return run


def boosts(boost, n_processes):
    """Return the same for the peer, which answers -1 after a disturbed round."""

    def run():
        seconds = boost.ask("sharing", n_processes, ROUND_SECONDS)
        return seconds if seconds >= 0 else DISTURBED

    return {} if boost.missing else {f"boost {n_processes}": run}


def measure():
    """Measure one and two processes, with shmem and with Boost."""
    name = f"bench-{os.getpid()}"
    with shmem.SharedMemory(max_size=SIZE_BYTES, shared_name=name), Crew(name, 2, own_cores=True) as crew, Boost() as boost:
        best = best_of(SECONDS, {"one": ours(crew, 1), "two": ours(crew, 2), **boosts(boost, 1), **boosts(boost, 2)})
    note = boost.missing or "never two cores undisturbed"
    one, two, boost_one, boost_two = (
        None if best.get(name, DISTURBED) == DISTURBED else best[name] for name in ("one", "two", "boost 1", "boost 2")
    )
    return [
        Row(QUESTION, "lock + unlock by two at once, per pair", two, "one alone", one, most_ratio=BAR_ONE, note=note),
        Row(QUESTION, "lock + unlock by two at once, per pair", two, f"{PEER}, two", boost_two, most_ratio=BAR_BOOST, note=note),
        Row(QUESTION, "lock + unlock by one, per pair", one, f"{PEER}, one", boost_one, note=note),
    ]


if __name__ == "__main__":
    answer(measure)
