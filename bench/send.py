"""What does it cost to pickle what is sent to another process, and to open it there?

Private arrays are pickled by `ForkingPickler`, the pickler of multiprocessing, in a process that has imported shmem and opened a section,
and in one that has not: the two processes take turns.

What is in a section is sent as a reference, whatever its size.  The peers are messages of about the same size, a tuple of numbers and
bytes; a reference must also be found in the section and be pinned, and an array without a name is claimed by its message.

    .venv-bench/bin/python bench/run.py --only send
"""

import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
from table import Row, answer
from timing import best_of, calls

QUESTION = "send"
SIZE_BYTES = 16 << 20
SECONDS = 3
BAR = 1.1
SIZES = {"80 B": 10, "8 KiB": 1 << 10, "8 MiB": 1 << 20}  # numbers of elements
WITHOUT = "the same, shmem not imported"


class OtherProcess:
    """A process that has not imported shmem, and times the pickling of private arrays when it is asked to."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--answer-rounds"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def contender(self, n):
        """Return a contender that pickles a private array of n elements in that process."""

        def run():
            self.process.stdin.write(f"{n}\n")
            return float(self.process.stdout.readline())

        return run

    def end(self):
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def answer_rounds():
    """Run a round for each line, as that process."""
    rounds = {n: pickling(np.zeros(n)) for n in SIZES.values()}
    for line in sys.stdin:
        print(rounds[int(line)](), flush=True)


def pickling(obj):
    """Return a contender that pickles an object for another process."""
    return calls(lambda: ForkingPickler.dumps(obj))


def there_and_back(obj):
    """Return a contender that pickles an object, and unpickles it in the same process."""
    return calls(lambda: ForkingPickler.loads(ForkingPickler.dumps(obj)))


def opening(handle):
    """Return a contender that pickles a handle by hand, unpickles and opens it."""
    return calls(lambda: pickle.loads(pickle.dumps(handle)).open())


def private_arrays():
    """Measure the pickling of private arrays; a section must be open."""
    rows, other = [], OtherProcess()
    try:
        for name, n in SIZES.items():
            best = best_of(SECONDS, {"ours": pickling(np.zeros(n)), WITHOUT: other.contender(n)})
            rows.append(Row(QUESTION, f"pickle a private array, {name}", best["ours"], WITHOUT, best[WITHOUT], most_ratio=BAR))
    finally:
        other.end()
    return rows


def references(shmem, shm):
    """Measure references to objects in a section, beside messages of about their size."""
    array, named = shm.zeros(SIZE_BYTES // 16), shm.zeros(100, name="named")
    data = bytes(len(pickle.dumps(shmem.handle(array))))
    numbers = tuple(range(1000, 1090))
    sent = {"an array": array, "an array with a name": named, "a slice of it": named[10:20], "the section": shm}
    peers = {f"tuple of {len(numbers)} numbers": numbers, f"{len(data)} bytes": data, "private array, 8 MiB": np.zeros(1 << 20)}
    best = best_of(
        SECONDS * 2, {name: there_and_back(obj) for name, obj in (sent | peers).items()} | {"its handle": opening(shmem.handle(named))}
    )
    rows = [
        Row(QUESTION, f"pickle and open {name}", best[name], peer, best[peer]) for name in [*sent, "its handle"] for peer in list(peers)[:2]
    ]
    rows.append(Row(QUESTION, "pickle and open an array, 8 MiB", best["an array"], list(peers)[2], best[list(peers)[2]], most_ratio=1 / 10))
    return rows


def measure():
    """Measure private arrays and references."""
    import shmem

    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        return private_arrays() + references(shmem, shm)


if __name__ == "__main__":
    answer_rounds() if "--answer-rounds" in sys.argv[1:] else answer(measure)
