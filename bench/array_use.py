"""Does an array in a section cost more to use than a private one?

It is a plain `numpy.ndarray`, so ufuncs, indexing and numba's dispatch, which looks at the type of each argument, should cost the same.

    .venv-bench/bin/python bench/run.py --only arrays
"""

import numpy as np
from table import Row, answer
from timing import best_of, statement

import shmem

try:
    import numba
except ImportError as error:
    numba, why_not = None, f"numba: {error}"

QUESTION = "use an array"
SIZE_BYTES = 1 << 20
SECONDS = 2
BAR = 1.1
N = 10  # elements: few, so that the work outside of the loop over them counts
PEER = "private array"
WORK = {
    "a + 1": "a + 1",
    "np.add(a, a, out=a)": "np.add(a, a, out=a)",
    "a.sum()": "a.sum()",
    "a[3]": "a[3]",
    "a[2:5]": "a[2:5]",
}


def first_of_numba():
    """Return a compiled function that does next to nothing with an array."""

    @numba.njit
    def first(array):
        return array[0]

    return first


def measure():
    """Measure each statement on both arrays, in turn."""
    rows = []
    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        arrays = {"ours": shm.zeros(N), PEER: np.zeros(N)}
        for work, code in WORK.items():
            best = best_of(SECONDS, {name: statement(code, a=array, np=np) for name, array in arrays.items()})
            rows.append(Row(QUESTION, f"{work}, {N} elements", best["ours"], PEER, best[PEER], most_ratio=BAR))
        work = "call of a numba function"
        if numba is None:
            rows.append(Row(QUESTION, work, None, PEER, None, note=why_not))
        else:
            best = best_of(SECONDS, {name: statement("first(a)", a=array, first=first_of_numba()) for name, array in arrays.items()})
            rows.append(Row(QUESTION, work, best["ours"], PEER, best[PEER], most_ratio=BAR))
    return rows


if __name__ == "__main__":
    answer(measure)
