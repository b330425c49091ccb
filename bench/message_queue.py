"""How fast do messages pass from one process to another, from Python?

There are one producer, one consumer, and messages of 64 and of 8 bytes, in order.  The time is from the order to produce until the last
message has arrived.  One message at a time is compared with multiprocessing.SimpleQueue.  `put_many` and `get_many` are compared with
zmq's push and pull over ipc, which gathers messages into larger writes by itself.  multiprocessing.Queue, which has a thread for that,
serves for orientation.

    .venv-bench/bin/python bench/run.py --only queue
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import time

import numpy as np
import zmq
from table import Row, answer
from timing import best_of

import shmem

QUESTION = "queue, two processes"
SIZE_BYTES = 8 << 20
STRING = bytes(range(64))
NUMBER = 123_456_789
RECORD = np.dtype([("values", "f8", 8)])
MAX_MESSAGES = 1024  # in a queue; zmq holds 1000 at either end
N_TOGETHER = 256  # in one `put_many`
N_OTHERS = 10_000  # in a round, through the system's pipes and sockets
N_EACH = 20 * N_OTHERS  # in a round, one by one through shmem
N_MANY = 4000 * N_TOGETHER
SECONDS = 20
BAR_EACH, BAR_MANY = 1 / 4, 1.0

spawn = multiprocessing.get_context("spawn")


# -- ways to send: `put(n)` in the producer, `get(n)` in the consumer ------------------------------------------


class OneByOne:
    """One message at a time, with `put` and `get` of any queue."""

    def __init__(self, queue, message):
        self.queue, self.message = queue, message

    def put(self, n):
        put, message = self.queue.put, self.message
        for _ in itertools.repeat(None, n):
            put(message)

    def get(self, n):
        get = self.queue.get
        for _ in itertools.repeat(None, n):
            get()


class Together:
    """Many messages at a time, with `put_many` and `get_many`."""

    def __init__(self, queue, messages):
        self.queue, self.messages = queue, messages

    def put(self, n):
        for _ in range(0, n, len(self.messages)):
            self.queue.put_many(self.messages)

    def get(self, n):
        while n:
            n -= len(self.queue.get_many(n))


class PushPull:
    """One message at a time with zmq, which has no other way; a zmq message may hold several messages."""

    def __init__(self, name, message, n_in_one=1):
        self.address = f"ipc://@shmem-bench-{os.getpid()}-{name}"  # an abstract address, which leaves no file behind
        self.message, self.n_in_one = message, n_in_one

    @functools.cached_property
    def sender(self):
        socket = zmq.Context.instance().socket(zmq.PUSH)
        socket.connect(self.address)
        return socket

    @functools.cached_property
    def receiver(self):
        socket = zmq.Context.instance().socket(zmq.PULL)
        socket.bind(self.address)
        return socket

    def put(self, n):
        send, message = self.sender.send, self.message
        for _ in itertools.repeat(None, n // self.n_in_one):
            send(message)

    def get(self, n):
        receive = self.receiver.recv
        for _ in itertools.repeat(None, n // self.n_in_one):
            receive()


# -- the two processes ------------------------------------------------------------------------------------------


def produce(pipe, ways):
    """Produce the messages of each order (way to send, number of messages), until the order None."""
    while (order := pipe.recv()) is not None:
        name, n = order
        ways[name].put(n)
    zmq.Context.instance().destroy()


@contextlib.contextmanager
def producer(ways):
    """Yield the pipe of a running producer."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=produce, args=(there, ways), daemon=True)
    process.start()
    try:
        yield here
        here.send(None)
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        zmq.Context.instance().destroy()


def contender(pipe, name, way, n):
    """Return a contender that orders n messages and consumes them; it returns seconds per message."""

    def run():
        begun = time.perf_counter()
        pipe.send((name, n))
        way.get(n)
        return (time.perf_counter() - begun) / n

    return run


def ways_to_send(shm):
    """Return all ways to send, with the number of messages in a round."""
    records = np.zeros(N_TOGETHER, RECORD)
    numbers = np.full(N_TOGETHER, NUMBER)
    return {
        "each string": (OneByOne(shm.queue(MAX_MESSAGES, bytes, max_bytes=len(STRING)), STRING), N_EACH),
        "each number": (OneByOne(shm.queue(MAX_MESSAGES, numbers.dtype), NUMBER), N_EACH),
        "many strings": (Together(shm.queue(MAX_MESSAGES, bytes, max_bytes=len(STRING)), [STRING] * N_TOGETHER), N_MANY),
        "many records": (Together(shm.queue(MAX_MESSAGES, RECORD), records), N_MANY),
        "many numbers": (Together(shm.queue(MAX_MESSAGES, numbers.dtype), numbers), N_MANY),
        "SimpleQueue string": (OneByOne(spawn.SimpleQueue(), STRING), N_OTHERS),
        "SimpleQueue number": (OneByOne(spawn.SimpleQueue(), NUMBER), N_OTHERS),
        "Queue string": (OneByOne(spawn.Queue(), STRING), N_OTHERS),
        "zmq string": (PushPull("string", STRING), N_OTHERS),
        "zmq number": (PushPull("number", numbers[:1].tobytes()), N_OTHERS),
        "zmq batch": (PushPull("batch", records.tobytes(), N_TOGETHER), N_MANY),
    }


def measure():
    """Measure all ways in turn."""
    with shmem.SharedMemory(max_size=SIZE_BYTES, shared_name=f"bench-{os.getpid()}") as shm:
        ways = ways_to_send(shm)
        with producer({name: way for name, (way, _) in ways.items()}) as pipe:
            best = best_of(SECONDS, {name: contender(pipe, name, way, n) for name, (way, n) in ways.items()})
    simple, push_pull = "multiprocessing.SimpleQueue", "zmq push, pull over ipc"
    compared = [  # work, shmem's name in `best`, peer, its name in `best`, bar
        ("put, get: 64 bytes", "each string", simple, "SimpleQueue string", BAR_EACH),
        ("put, get: int64", "each number", simple, "SimpleQueue number", BAR_EACH),
        ("put, get: 64 bytes", "each string", "multiprocessing.Queue", "Queue string", None),
        ("put, get: 64 bytes", "each string", push_pull, "zmq string", None),
        ("put_many, get_many: 64 bytes, each", "many strings", push_pull, "zmq string", BAR_MANY),
        ("put_many, get_many: 64-byte record, each", "many records", push_pull, "zmq string", BAR_MANY),
        ("put_many, get_many: int64, each", "many numbers", push_pull, "zmq number", BAR_MANY),
        ("put_many, get_many: 64-byte record, each", "many records", f"{push_pull}, {N_TOGETHER} in a message", "zmq batch", None),
    ]
    return [Row(QUESTION, work, best[ours], peer, best[theirs], most_ratio=bar) for work, ours, peer, theirs, bar in compared]


if __name__ == "__main__":
    answer(measure)
