"""Helpers of the tests of queues."""

import threading
import time

from shmem._base.layout import LAYOUT

QUEUE = LAYOUT["queue_t"]
CAPACITY, SLOT_BYTES, RECORD_BYTES, DATA_OFF, PRODUCERS_GATE, TAIL, CONSUMERS_GATE, HEAD, NOT_EMPTY, NOT_FULL = (
    QUEUE[name].offset
    for name in (
        "capacity", "slot_bytes", "record_bytes", "data_off", "producers_gate", "tail", "consumers_gate", "head", "not_empty", "not_full",
    )
)  # fmt: skip
PATIENCE = 20


def words_of(shm, queue):
    """Return the 64-bit words of the payload of a queue, for tests that damage them."""
    return memoryview(shm.block(queue.offset)).cast("B").cast("Q")


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def in_thread(function, *args):
    """Start `function` in a thread; return a function that waits for its result, or raises its exception."""
    found = []

    def run():
        try:
            found.append((function(*args), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(PATIENCE)
        assert found, "it still waits"
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return result
