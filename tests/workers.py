"""What the tests run in other processes: a module of its own, so that spawned ones can import it."""

import os

import shmem


class Point(shmem.Struct, type_name="tests.Point"):
    x: shmem.float64 = 1.5
    n: shmem.int64


def add_one(array):
    array += 1
    return array[:2]


def bump(point):
    point.n += 1
    return point


def describe(obj):
    return type(obj).__name__, os.getpid()


def fill(block, section):
    memoryview(block)[:] = b"x" * block.nbytes
    with shmem.exclusive_lock(section):
        section["from child"] = [os.getpid()]


def double(numbers, doubled):
    """From one queue to another, until the first one is shut down."""
    while True:
        try:
            doubled.put(2 * numbers.get())
        except shmem.QueueShutDown:
            return


def pass_on(taken, given):
    """Take one, wait or not; give one."""
    taken.wait()
    given.signal()
    return type(taken).__name__, type(given).__name__


def add_under(mutex, counter, n):
    for _ in range(n):
        with mutex:
            counter[0] += 1
