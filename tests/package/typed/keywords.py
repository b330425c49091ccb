"""The keywords of `SharedMemory.new` are the fields, none of which is required: type checkers know that if their target is CPython 3.13."""

from typing import Literal, assert_type

import shmem


class Point(shmem.Struct):
    x: shmem.float64
    label: shmem.Bytes[Literal[8]]
    place: shmem.Array[shmem.float64, Literal[2]]
    guard: shmem.Mutex


class Sample(Point):
    time: shmem.int64 = 3


def check(shm: shmem.SharedMemory) -> None:
    assert assert_type(shm.new(Point), Point).x == 0
    assert assert_type(shm.new(Point, place=1.5, x=2), Point).x == 2
    assert assert_type(shm.new(Sample, x=1, time=2, label=b"a"), Sample).time == 2


def mistakes(shm: shmem.SharedMemory) -> None:
    """Each line has an error that type checkers find."""
    shm.new(Point, y=1)  # type: ignore  # pyright: ignore
    shm.new(Point, x="text")  # type: ignore  # pyright: ignore
    shm.new(Point, 1)  # type: ignore  # pyright: ignore
    shm.new(Sample, label="text")  # type: ignore  # pyright: ignore
