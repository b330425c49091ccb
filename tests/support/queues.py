"""What the tests of queues share."""

import threading
import time

# where things lie in a queue's block
CAPACITY, SLOT_BYTES, RECORD_BYTES, DATA_OFF, PRODUCERS_GATE, TAIL, CONSUMERS_GATE, HEAD, NOT_EMPTY, NOT_FULL = (
    0,
    8,
    16,
    24,
    64,
    128,
    192,
    256,
    320,
    384,
)
PATIENCE = 20


def words_of(shm, queue):
    """The 64-bit words of a queue's block, to be damaged."""
    return memoryview(shm.block(queue.offset)).cast("B").cast("Q")


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def in_thread(function, *args):
    """Start it; a function that waits for its result, or raises what it raised."""
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
