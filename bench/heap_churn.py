"""What does the heap cost in steady state, from C, without the GIL?

There are 10,000 live blocks of 16 to 1024 bytes.  Each step frees a random one, allocates a random size without clearing it
(`zero=False`), and writes its first word.  The same loop runs with the same random numbers on glibc's malloc and on Boost's
managed_shared_memory.

    .venv-bench/bin/python bench/run.py --only heap
"""

import churn_client
from boost import Boost
from table import Row, answer
from timing import best_of

import shmem

QUESTION = "heap churn, C"
SIZE_BYTES = 64 << 20
N_LIVE = 10_000
N_STEPS = 40_000
N_STEPS_FIRST = 10_000  # not timed: the other contenders used the caches meanwhile
N_STEPS_BOOST = 6_000  # which take as long as the other contenders' rounds
SECONDS = 10
BAR = 3.0


def measure():
    """Compare both free-block indexes with malloc and Boost."""
    with (
        Boost() as boost,
        shmem.SharedMemory(max_size=SIZE_BYTES, index="tlsf") as tlsf,
        shmem.SharedMemory(max_size=SIZE_BYTES, index="next_fit") as next_fit,
    ):
        churns = {"malloc": churn_client.MallocChurn(N_LIVE)}
        churns |= {shm.index: churn_client.SectionChurn(shm, N_LIVE) for shm in (tlsf, next_fit)}
        contenders = {name: lambda churn=churn: churn.run(N_STEPS_FIRST, N_STEPS) for name, churn in churns.items()}
        best = best_of(SECONDS, contenders | boost.contender("boost", "churn", N_LIVE, N_STEPS_FIRST, N_STEPS_BOOST))
        tlsf.check_heap()
        next_fit.check_heap()
    work = "free + allocate 16-1024 bytes, index={}"
    rows = []
    for index in ("tlsf", "next_fit"):
        rows.append(Row(QUESTION, work.format(index), best[index], "glibc malloc", best["malloc"], most_ratio=BAR))
        rows.append(Row(QUESTION, work.format(index), best[index], "Boost managed_shared_memory", best.get("boost"), note=boost.missing))
    return rows


if __name__ == "__main__":
    answer(measure)
