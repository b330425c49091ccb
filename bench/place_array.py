"""What does it cost to place an array where other processes see it, again and again?

`shm.copy(a)` is followed by `shm.free` and `del`, in a section whose memory is warm.  One peer is `multiprocessing.shared_memory`: create,
copy, close and unlink a segment each time, whose pages fault in anew.  The other is a plain copy into warm memory, the lower bound.

    .venv-bench/bin/python bench/run.py --only place
"""

import multiprocessing.shared_memory

import numpy as np
from table import Row, answer
from timing import best_of, calls

import shmem

QUESTION = "place an array"
SIZE_BYTES = 256 << 20
BAR = 1 / 15
SIZES = (  # name, bytes, seconds, bar
    ("1 KiB", 1 << 10, 4, None),
    ("1 MiB", 1 << 20, 8, BAR),
    ("100 MiB", 100 << 20, 6, None),
)


def place_in_section(shm, source):
    """Return a function that places an array and frees it."""

    def place():
        placed = shm.copy(source)
        shm.free(placed)
        del placed

    return place


def place_in_segment(source):
    """Return a function that does the same with a shared-memory segment of the standard library."""

    def place():
        segment = multiprocessing.shared_memory.SharedMemory(create=True, size=source.nbytes)
        placed = np.ndarray(source.shape, source.dtype, segment.buf)
        placed[...] = source
        del placed
        segment.close()
        segment.unlink()

    return place


def measure():
    """Measure all sizes, one after another."""
    rows = []
    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        for name, n_bytes, seconds, bar in SIZES:
            source = np.random.default_rng(1).random(n_bytes // 8)
            warm = np.zeros_like(source)
            place_in_section(shm, source)()
            best = best_of(
                seconds,
                {
                    "ours": calls(place_in_section(shm, source)),
                    "segment": calls(place_in_segment(source)),
                    "copy": calls(lambda warm=warm, source=source: np.copyto(warm, source)),
                },
            )
            work = f"shm.copy + shm.free, {name}"
            rows.append(Row(QUESTION, work, best["ours"], "multiprocessing.shared_memory", best["segment"], most_ratio=bar))
            rows.append(Row(QUESTION, work, best["ours"], "np.copyto, warm memory", best["copy"]))
    return rows


if __name__ == "__main__":
    answer(measure)
