"""What type checkers infer about queues; `tests/package/test_types.py` runs `check`, which states the same about the objects."""

from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import numpy.typing as npt

import shmem

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Reading(shmem.Struct, type_name="typed.Reading"):
    station: shmem.int64


def first(queue: shmem.Queue[int]) -> int:
    """The annotation is evaluated when the function is defined."""
    return queue.get()


def check(shm: shmem.SharedMemory) -> None:
    numbers = shm.queue(10, shmem.int64, name="typed-numbers")
    assert numbers.put_many(range(3)) == assert_type(numbers.qsize(), int) == 3
    numbers.put(np.int64(3))
    assert assert_type(first(numbers), int) == 0
    assert assert_type(numbers.get_many(10), npt.NDArray[Any]).tolist() == [1, 2, 3]
    assert assert_type(numbers.max_bytes, int | None) is None

    lines: shmem.Queue[bytes, Buffer] = shm.queue(10, bytes, max_bytes=10)
    lines.put_many([b"one", bytearray(b"two"), memoryview(b"three")])
    assert assert_type(lines.get(), bytes) == b"one"
    assert assert_type(lines.get_many(10), list[bytes]) == [b"two", b"three"]

    truths = shm.queue(10, shmem.bool_)
    truths.put_nowait(True)
    assert assert_type(truths.get_nowait(), bool) is True
    weights = shm.queue(10, float)
    weights.put(1)
    assert assert_type(weights.get(timeout=1), float) == 1

    records = shm.queue(10, "int64, (3,)float64")
    records.put((1, (1.0, 2.0, 3.0)))
    assert_type(records.get(), Any)
    readings = shm.queue(10, Reading)
    readings.put(shm.new(Reading, station=3))
    readings.put({"station": 4})
    assert assert_type(readings.get(), np.record).station == 3


def mistakes(shm: shmem.SharedMemory) -> None:
    """Each line has an error that type checkers find."""
    shm.queue(10, float, max_bytes=3)  # type: ignore  # pyright: ignore
    shm.queue(10, bytes, max_bytes=3).put("text")  # type: ignore  # pyright: ignore
    shm.queue(10, shmem.int64).put("text")  # type: ignore  # pyright: ignore
