"""How long does one process wait for the lock while several others take it in a tight loop?

Three processes take the lock exclusively in a tight loop and one takes it shared; then the other way round; from C and from Python.
Measured are the longest wait of the single process, which is bounded by a promise, and its time per turn beside that of the others.
Then a writer beside readers that hold the lock for long and overlap, also while a timer interrupts the writer.  It waits for the readers
that were in before it, so at most as long as one of them holds the lock.  Then a crowd of processes, all exclusive.
The peer is Boost's interprocess_upgradable_mutex in the same arrangement, except for the long holds; its longest wait cannot exceed the
measurement.

The holder of the lock, and a process that has just been given it, may wait for a core like any program.  Loops without a lock show how
long that takes.  On a machine that is busy otherwise, it is most of the longest wait.

    .venv-bench/bin/python bench/run.py --only fairness
"""

import functools
import os
import signal
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
HOLDS_SECONDS = 0.1, 1, 3
TIMER_SECONDS = 0.010


def _turns(lock, start, end):
    """Take the lock and release it in a tight loop; return the number of turns and the longest wait."""
    n_turns, longest, clock = 0, 0.0, time.monotonic
    time.sleep(max(0, start - clock()))
    while (asked := clock()) < end:
        with lock:
            got = clock()
        longest = max(longest, got - asked)
        n_turns += 1
    return n_turns, longest


def write_turns(shm, start, end):
    """Take turns with the exclusive lock, as the C client does."""
    return _turns(shmem.exclusive_lock(shm), start, end)


def read_turns(shm, start, end):
    """Take turns with the shared lock, as the C client does."""
    return _turns(shmem.shared_lock(shm), start, end)


def hold_shared(hold_seconds, offset, shm, start, end):
    """Hold the shared lock for `hold_seconds` again and again, from `start` and the offset on."""
    time.sleep(max(0, start + offset - time.monotonic()))
    while time.monotonic() < end:
        with shmem.shared_lock(shm):
            time.sleep(hold_seconds)


def write_among_holders(hold_seconds, timer_seconds, shm, start, end):
    """Take the exclusive lock again and again while readers hold the lock, and return the longest wait."""
    longest = 0.0
    time.sleep(max(0, start + hold_seconds - time.monotonic()))  # all readers are in
    former = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, timer_seconds, timer_seconds)
    while (asked := time.monotonic()) < end:
        with shmem.exclusive_lock(shm):
            longest = max(longest, time.monotonic() - asked)
        time.sleep(hold_seconds / 2)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)
    return longest


LANGUAGES = {"C": (crowd_client.write_turns, crowd_client.read_turns), "Python": (write_turns, read_turns)}


def ask_peer(boost, n_writers, n_readers, seconds):
    """Run the same arrangement with Boost; return the writers' and readers' longest waits and the number of turns, or None for each."""
    if boost.missing:
        return None, None, None
    writers_longest, n_writes, readers_longest, n_reads = boost.ask_all("turns", n_writers, n_readers, seconds)
    return writers_longest, readers_longest, n_writes + n_reads


def one_beside_others(crew, boost, language, one_reads):
    """Return rows for the longest wait of the single process, and for its time per turn beside the others'."""
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
    name = "reader" if one_reads else "writer"
    what = f"1 {name}, {N_OTHERS} {'writers' if one_reads else 'readers'}: the {name}'s "
    return [
        Row(question, f"{what}longest wait in {SECONDS} s", longest, peer, theirs, most_seconds=BAR_SECONDS, note=note),
        Row(question, f"{what}time per turn", SECONDS / n_mine, "time per turn of each other", SECONDS / n_each),
    ]


def without_lock(crew):
    """Return a row for as many loops without a lock: the longest time for which the system kept one from running."""
    pauses, _ = crew.run([crowd_client.look] * (1 + N_OTHERS), SECONDS, LEAD_SECONDS)
    return [Row(f"{QUESTION}, no lock", f"{1 + N_OTHERS} loops without a lock: the longest pause in {SECONDS} s", max(pauses), "-", None)]


def crowd(crew, boost):
    """Return rows for the longest wait in a crowd of writers, and for the time per turn of all together."""
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


def long_holds(crew, hold_seconds, timer_seconds):
    """Return a row for the longest wait of a writer beside readers whose long holds overlap."""
    readers = [functools.partial(hold_shared, hold_seconds, i * hold_seconds / N_OTHERS) for i in range(N_OTHERS)]
    writer = functools.partial(write_among_holders, hold_seconds, timer_seconds)
    (longest, *_), _ = crew.run([writer, *readers], max(2, 4 * hold_seconds), LEAD_SECONDS)
    timer = f", a timer of {timer_seconds * 1e3:.0f} ms" if timer_seconds else ""
    what = f"1 writer, {N_OTHERS} readers that hold for {hold_seconds:g} s{timer}: the writer's longest wait"
    return Row(f"{QUESTION}, long holds", what, longest, "one reader's hold", hold_seconds, most_seconds=hold_seconds + BAR_SECONDS)


def measure():
    """Measure a single reader, a single writer, a writer beside long holds, and a crowd."""
    rows = []
    name = f"bench-{os.getpid()}"
    with shmem.SharedMemory(max_size=SIZE_BYTES, shared_name=name), Boost() as boost:
        with Crew(name, 1 + N_OTHERS) as crew:
            for language in LANGUAGES:
                for one_reads in (True, False):
                    rows += one_beside_others(crew, boost, language, one_reads)
            rows += [long_holds(crew, hold, timer) for hold in HOLDS_SECONDS for timer in (0, TIMER_SECONDS)]
            rows += without_lock(crew)
        with Crew(name, N_CROWD) as crew:
            rows += crowd(crew, boost)
    return rows


if __name__ == "__main__":
    answer(measure)
