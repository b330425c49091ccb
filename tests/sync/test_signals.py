"""Signals that come more often than sleep slices end, as from a profiler's timer: a waiter must still detect a dead owner."""

import signal

import pytest
from queues import QUEUE
from scribe import HEAP_GATE, UPGRADE, Scribe

import shmem

WAITER = """
import signal, warnings
section = shmem.SharedMemory(shared_name=args[0])
mutex, queue = section['mutex'], section['queue']
say('here')
sys.stdin.readline()
warnings.simplefilter('ignore')
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
{}
signal.setitimer(signal.ITIMER_REAL, 0)
say('got it')
"""
EXCLUSIVE = "with shmem.exclusive_lock(section): pass"
SHARED = "with shmem.shared_lock(section): pass"
LOCK = "section.lock(shmem.LockDescriptor(shmem.LockMode.{}))"


@pytest.mark.parametrize(
    ("holds", "place", "waits"),
    [
        (LOCK.format("exclusive"), None, EXCLUSIVE),
        (LOCK.format("exclusive"), None, SHARED),
        (LOCK.format("shared"), None, EXCLUSIVE),
        ("", "upgrade", EXCLUSIVE),
        ("section['mutex'].acquire()", None, "mutex.acquire()"),
        ("", "heap gate", "section.allocate(10)"),
        ("", "heap gate", "section['b'] = [1]"),
        ("", "queue", "queue.put(1)"),
    ],
    ids=["writer", "reader", "drain", "upgrade", "mutex", "heap gate", "heap gate, names", "queue"],
)
def test_dead_owner_is_detected_despite_signals(shm, child, holds, place, waits):
    shm["mutex"] = shm.mutex()
    queue = shm.queue(4, "int64", name="queue")
    holder = child(f"section = shmem.SharedMemory(shared_name=args[0])\n{holds}\nsay('go')\ninput()", shm.name)
    assert holder.hear() == "go"
    other = child(WAITER.format(waits), shm.name)
    assert other.hear() == "here"
    if place is not None:
        scribe = Scribe(shm.path)
        places = {"upgrade": UPGRADE, "heap gate": HEAP_GATE, "queue": QUEUE["producers_gate"].at(queue.offset)}
        scribe[places[place]] = scribe.owner_word(scribe.entry_of(holder.process.pid))
    holder.kill()
    output, errors = other.process.communicate("\n", timeout=20)
    assert (output, errors) == ("got it\n", "")


DEADLINES = {
    "exclusive": ("section.lock(shmem.LockDescriptor(shmem.LockMode.shared))", "shmem.exclusive_lock(shm, timeout).__enter__()"),
    "shared": ("section.lock(shmem.LockDescriptor(shmem.LockMode.exclusive))", "shmem.shared_lock(shm, timeout).__enter__()"),
    "mutex": ("section['mutex'].acquire()", "assert shm['mutex'].acquire(timeout=timeout)"),
    "semaphore": ("", "assert shm['semaphore'].acquire(timeout=timeout)"),
    "event": ("", "assert shm['event'].wait(timeout)"),
    "get": ("section['queue'].get()", "shm['queue'].get(timeout=timeout)"),
    "put": ("", "shm['queue'].put(2, timeout=timeout)"),
}


@pytest.mark.parametrize("what", DEADLINES)
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_waits_end_in_time_despite_signals(shm, child, what, timeout):
    """A wait whose every sleep a signal ends is over once its deadline has passed."""
    shm["mutex"], shm["semaphore"], shm["event"] = shm.mutex(), shm.semaphore(), shm.event()
    shm.queue(1, "int64", name="queue").put(1)
    holds, waits = DEADLINES[what]
    other = child(f"section = shmem.SharedMemory(shared_name=args[0])\n{holds}\nsay('go')\ninput()", shm.name)
    assert other.hear() == "go"
    signals = []

    def handler(number, frame):
        signals.append(number)
        if len(signals) == 2000:
            raise AssertionError("the wait does not end")

    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        with pytest.raises((shmem.LockTimeout, shmem.QueueEmpty, shmem.QueueFull, AssertionError)) as caught:
            exec(waits, {"shm": shm, "shmem": shmem, "timeout": timeout})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert "does not end" not in str(caught.value)
    other.tell()
    other.end()
