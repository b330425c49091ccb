"""How long does one who wants the lock wait beside many who never let it rest?

Three processes take it exclusive in a tight loop and one shared; then the other way round; from C and from Python.  The longest wait
of the one, which is a promise, and its turns beside those of the others.  Then a crowd, all exclusive.  The peer is Boost's
interprocess_upgradable_mutex in the same arrangement; its longest wait can be no longer than the measurement.

Who holds the lock, and who has just been given it, waits for a core as any program does.  How long that takes, loops without a lock
show: on a machine that is busy otherwise, most of the longest wait is of this kind.

    .venv-bench/bin/python bench/run.py --only fairness
"""

import os
import time

import crowd_client
from boost import Boost
from crew import Crew
from table import Row, answer

import shmem

QUESTION = "fairness"
PEER = "Boost interprocess_upgradable_mutex"
SIZE_BYTES = 1 << 20
N_OTHERS = 3
SECONDS = 10
N_CROWD = 16
CROWD_SECONDS = 3
LEAD_SECONDS = 0.02
BAR_SECONDS = 0.050


def _turns(lock, start, end):
    """Take the lock and release it in a tight loop; how often, and the longest wait."""
    n_turns, longest, clock = 0, 0.0, time.monotonic
    time.sleep(max(0, start - clock()))
    while (asked := clock()) < end:
        with lock:
            got = clock()
        longest = max(longest, got - asked)
        n_turns += 1
    return n_turns, longest


def write_turns(shm, start, end):
    """As in the C client."""
    return _turns(shmem.exclusive_lock(shm), start, end)


def read_turns(shm, start, end):
    """As in the C client."""
    return _turns(shmem.shared_lock(shm), start, end)


LANGUAGES = {"C": (crowd_client.write_turns, crowd_client.read_turns), "Python": (write_turns, read_turns)}


def ask_peer(boost, n_writers, n_readers, seconds):
    """The same arrangement there: (writers' longest wait, readers' longest wait, number of turns), None each where Boost is missing."""
    if boost.missing:
        return None, None, None
    writers_longest, n_writes, readers_longest, n_reads = boost.ask_all("turns", n_writers, n_readers, seconds)
    return writers_longest, readers_longest, n_writes + n_reads


def one_beside_others(crew, boost, language, one_reads):
    """Rows: the longest wait of the one; its seconds per turn beside the others'."""
    write, read = LANGUAGES[language]
    one, other = (read, write) if one_reads else (write, read)
    (mine, *others), _ = crew.run([one, *[other] * N_OTHERS], SECONDS, LEAD_SECONDS)
    n_mine, longest = mine
    n_each = sum(n_turns for n_turns, _ in others) / N_OTHERS
    peer, note, theirs = "-", "", None
    if language == "C":
        writers_longest, readers_longest, _ = ask_peer(boost, *((N_OTHERS, 1) if one_reads else (1, N_OTHERS)), SECONDS)
        peer, note, theirs = PEER, boost.missing, readers_longest if one_reads else writers_longest
    question = f"{QUESTION}, {language}"
    what = f"1 {'reader' if one_reads else 'writer'}, {N_OTHERS} {'writers' if one_reads else 'readers'}: the one's "
    return [
        Row(question, f"{what}longest wait in {SECONDS} s", longest, peer, theirs, most_seconds=BAR_SECONDS, note=note),
        Row(question, f"{what}time per turn", SECONDS / n_mine, "each other's time per turn", SECONDS / n_each),
    ]


def without_lock(crew):
    """Row: as many loops that want nothing; how long the system kept one of them from running."""
    pauses, _ = crew.run([crowd_client.look] * (1 + N_OTHERS), SECONDS, LEAD_SECONDS)
    return [Row(f"{QUESTION}, no lock", f"{1 + N_OTHERS} loops without a lock: the longest pause in {SECONDS} s", max(pauses), "-", None)]


def crowd(crew, boost):
    """Rows: the longest wait in a crowd of writers, and what they get done together."""
    turns, _ = crew.run([crowd_client.write_turns] * N_CROWD, CROWD_SECONDS, LEAD_SECONDS)
    longest = max(wait for _, wait in turns)
    each = CROWD_SECONDS / sum(n_turns for n_turns, _ in turns)
    peers_longest, _, n_turns = ask_peer(boost, N_CROWD, 0, CROWD_SECONDS)
    peers_each = CROWD_SECONDS / n_turns if n_turns else None
    question = f"crowd of {N_CROWD} writers, C"
    return [
        Row(question, f"the longest wait in {CROWD_SECONDS} s", longest, PEER, peers_longest, note=boost.missing),
        Row(question, "time per turn, all together", each, PEER, peers_each, note=boost.missing),
    ]


def measure():
    """The one who reads, the one who writes, the crowd."""
    rows = []
    name = f"bench-{os.getpid()}"
    with shmem.SharedMemory(max_size=SIZE_BYTES, shared_name=name), Boost() as boost:
        with Crew(name, 1 + N_OTHERS) as crew:
            for language in LANGUAGES:
                for one_reads in (True, False):
                    rows += one_beside_others(crew, boost, language, one_reads)
            rows += without_lock(crew)
        with Crew(name, N_CROWD) as crew:
            rows += crowd(crew, boost)
    return rows


if __name__ == "__main__":
    answer(measure)
