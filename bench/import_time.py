"""How much does `import shmem` add to importing numpy?

Each round is a new process that imports numpy, then shmem, and times both imports.  The files are in the page cache after the first round.

    .venv-bench/bin/python bench/run.py --only import
"""

import json
import subprocess
import sys

from table import Row, answer

N_ROUNDS = 9
BAR_SECONDS = 0.012
TIMED = """
import json, time
begin = time.perf_counter()
import numpy
middle = time.perf_counter()
import shmem
print(json.dumps([middle - begin, time.perf_counter() - middle]))
"""


def measure():
    """Time the imports in `N_ROUNDS` processes and take the best of each."""
    rounds = []
    for _ in range(N_ROUNDS):
        done = subprocess.run([sys.executable, "-P", "-c", TIMED], capture_output=True, text=True, check=True, cwd="/")
        rounds.append(json.loads(done.stdout))
    numpy_seconds, shmem_seconds = map(min, zip(*rounds, strict=True))
    return [Row("import", "import shmem, after numpy", shmem_seconds, "import numpy", numpy_seconds, most_seconds=BAR_SECONDS)]


if __name__ == "__main__":
    answer(measure)
