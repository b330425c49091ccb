"""Helpers for the tests of queues."""

import threading
import time

from shmem._base.layout import CHANNEL_WAITERS_SHIFT, LAYOUT

QUEUE = LAYOUT["queue_t"]
ONE_WAITER = 1 << CHANNEL_WAITERS_SHIFT
PATIENCE = 20


class QueueWords:
    """The 64-bit fields of the head of a queue by name, without the checks that guard them."""

    def __init__(self, shm, queue):
        self._words = memoryview(shm.block(queue.offset)).cast("B").cast("Q")

    def __getitem__(self, name):
        return self._words[self._index(name)]

    def __setitem__(self, name, word):
        self._words[self._index(name)] = word

    def _index(self, name):
        assert QUEUE[name].ctype == "uint64"
        return QUEUE[name].offset // QUEUE[name].size

    def n_waiters(self, channel):
        """Return the number of waiters that are registered in a channel."""
        return self[channel] >> CHANNEL_WAITERS_SHIFT


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
        assert found, "the call did not return in time"
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return result
