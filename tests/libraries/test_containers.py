"""Other libraries' containers of arrays arrive with references to the memory in a section."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import xarray as xr

import shmem


def send(obj):
    data = ForkingPickler.dumps(obj)
    assert len(data) < 5000
    return ForkingPickler.loads(data)


@pytest.fixture
def array(shm):
    return shm.array(np.arange(2000.0).reshape(-1, 2))


def test_pandas(array):
    frame = pd.DataFrame(array, columns=["x", "y"], copy=False)
    again = send(frame)
    array[0, 0] = 77
    assert again["x"].iloc[0] == 77
    column = send(frame["y"])
    array[1, 1] = 78
    assert column.iloc[1] == 78


def test_pandas_dates(shm):
    dates = shm.array(np.arange("2026-01", "2026-07", dtype="M8[D]").astype("M8[ns]"))
    again = send(pd.Series(dates, copy=False))
    dates[0] = "2030-01-01"
    assert again.iloc[0].year == 2030


@pytest.mark.parametrize("cls", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_scipy(shm, cls):
    data, indices, indptr = shm.array(np.ones(1000)), shm.array(np.arange(1000, dtype="i4")), shm.array(np.arange(1001, dtype="i4"))
    matrix = cls((data, indices, indptr), shape=(1000, 1000), copy=False)
    again = send(matrix)
    data[3] = 5
    assert again[3, 3] == 5


def test_xarray(array):
    dataset = xr.Dataset({"t": (("a", "b"), array)})
    again = send(dataset)
    array[0, 0] = 77
    assert float(again["t"][0, 0]) == 77


def test_arrow(shm):
    values = shm.array(np.arange(1000.0))
    column = pa.Array.from_buffers(pa.float64(), 1000, [None, pa.py_buffer(values)])
    again = send(pa.table({"x": column}))
    values[3] = -1
    assert again["x"][3].as_py() == -1
    view = column.to_numpy()[10:20]
    assert shmem.handle(view).open().__array_interface__["data"] == view.__array_interface__["data"]
    assert send(pa.py_buffer(b"private")).to_pybytes() == b"private"
