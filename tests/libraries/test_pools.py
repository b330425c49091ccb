"""Arrays and objects that other libraries' pools send arrive as references."""

import gc
import importlib

import numpy as np
import pytest
from in_flight import temporary
from workers import Point, add_one, bump

import shmem

N_LARGE = 200_000  # elements: above joblib's max_nbytes


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
@pytest.mark.parametrize("n", [10, N_LARGE])
def test_joblib(shm, backend, n):
    """joblib pickles small arrays, and sends larger ones than `max_nbytes` as memory maps of temporary files."""
    joblib = importlib.import_module("joblib")
    array, point = shm.zeros(n), shm.new(Point, n=1)
    with joblib.Parallel(n_jobs=2, backend=backend, max_nbytes="1M") as parallel:
        parallel([joblib.delayed(add_one)(part) for part in (array[: n // 2], array[n // 2 :])])
        assert array.tolist() == [1.0] * n
        results = parallel([joblib.delayed(bump)(point)])
        assert point.n == 2
        assert results == [point]
        parallel([joblib.delayed(add_one)(array)])[0][:] = 9
        assert array[:2].tolist() == [9.0, 9.0]  # the result is a view of the same memory
        parallel([joblib.delayed(bump)(one) for one in np.array([point, point], object)])
        assert parallel([joblib.delayed(list)(np.array([point, None], object))]) == [[point, None]]
        private = np.zeros(n)
        parallel([joblib.delayed(np.sum)(private)])


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib_in_flight(backend):
    """A temporary array that a worker returns arrives, and so does one that the caller drops."""
    joblib = importlib.import_module("joblib")
    with shmem.SharedMemory(max_size=1 << 24) as shm:
        with joblib.Parallel(n_jobs=2, backend=backend) as parallel:
            arrays = parallel([joblib.delayed(temporary)(shm, number, N_LARGE) for number in range(3)])
            assert [array[-1] for array in arrays] == [0, 1, 2]
            del arrays
            sums = parallel([joblib.delayed(np.sum)(temporary(shm, number, N_LARGE)) for number in range(3)])
            assert sums == [0, N_LARGE, 2 * N_LARGE]
        gc.collect()
        assert shm.stats().claims == 0
        assert shm.check_heap().blocks == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocess(shm, method):
    """pathos pickles with dill, through the package multiprocess."""
    multiprocess = importlib.import_module("multiprocess")
    array, point = shm.zeros(10), shm.new(Point, n=1)
    with multiprocess.get_context(method).Pool(1) as pool:
        pool.apply(add_one, (array[2:4],))
        assert array.tolist() == [0, 0, 1, 1] + [0] * 6
        assert pool.apply(bump, (point,)) == point
        assert pool.apply(np.sum, (np.ones(3),)) == 3
        pool.close()
        pool.join()


def test_billiard(shm):
    """Celery's pool."""
    reduction = importlib.import_module("billiard.reduction")
    array, point = shm.zeros(10), shm.new(Point, n=1)
    again, found = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps((array[2:4], point)))
    again[:] = 7
    assert array[2:4].tolist() == [7, 7]
    assert found == point


def test_register_joins_at_once():
    for library in ("billiard", "joblib", "loky", "multiprocess", "pyarrow"):
        shmem.register(library)
        shmem.register(library)
