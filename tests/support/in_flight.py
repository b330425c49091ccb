"""What the processes of tests/objects/test_in_flight.py do, in a module that spawned processes can import."""

import os
import signal
from multiprocessing.reduction import ForkingPickler

import shmem

N = 1000


def temporary(shm, number, n=N):
    return shm.full(n, number, temporary=True)


def in_own_section(number):
    section = shmem.SharedMemory(max_size=1 << 20)
    return section.full(N, number, temporary=True)


def total(array):
    return float(array.sum())


def part(array):
    return array[10:20]


def put_and_end(queue, shm, number):
    queue.put(temporary(shm, number))


def send_and_die(link, shm, number, how):
    """Send an array, or only claim it, then be killed."""
    array = temporary(shm, number)
    if how == "sent":
        link.send(array)
    else:
        ForkingPickler.dumps(array)
    os.kill(os.getpid(), signal.SIGKILL)


def receive_and_die(link, how):
    """Be killed before opening a message, or while having the array."""
    if how == "before":
        link.recv_bytes()
    else:
        array = link.recv()
        assert array[0] == 7
    os.kill(os.getpid(), signal.SIGKILL)
