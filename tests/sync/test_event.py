"""Event: named, in a section, as a field, private to a process.  Files and names are tested with those of semaphores."""

import contextlib
import os
import pickle
import random
import signal
import sys
import threading
import time

import pytest
from workers import wait_for, waits_for_others

import shmem
from shmem._base.layout import CHANNEL_WAITERS_SHIFT

FILE = "/dev/shm/shmem-event."


class Stage(shmem.Struct, type_name="tests.Stage"):
    tag: shmem.int8
    ready: shmem.Event


@pytest.fixture
def name():
    chosen = f"test-{os.getpid()}-{random.randrange(1 << 32)}"
    yield chosen
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FILE + chosen)


@pytest.fixture(params=["local", "named", "placed", "field"])
def event(request, name, shm):
    if request.param == "local":
        return shmem.Event()
    if request.param == "named":
        return shmem.Event(name)
    if request.param == "placed":
        return shm.event()
    return shm.new(Stage).ready


CALLS = ["wait", "wait", "set", "clear", "is_set"]


def test_behaves_like_threading_event(event):
    rng = random.Random(2)
    theirs = threading.Event()
    for _ in range(300):
        method = rng.choice(CALLS)
        args = (0.001,) if method == "wait" else ()
        assert getattr(event, method)(*args) == getattr(theirs, method)(*args), method


def test_set_and_reset(event):
    assert not event.is_set()
    assert event.wait(0) is False
    assert event.wait(0.01) is False
    event.signal()
    event.signal()
    assert event.is_set()
    assert event.wait() is True
    assert event.wait(timeout=3) is True
    event.reset()
    event.reset()
    assert event.wait(0) is False
    event.close()
    for call in (event.wait, event.signal, event.reset, event.is_set, event.set, event.clear):
        with pytest.raises(shmem.ClosedError):
            call()


def test_rejects_wrong_arguments(shm, name):
    assert shmem.Event(signaled=True).is_set()
    assert shm.event(True, name="e") == shm["e"]
    assert shm["e"].is_set()
    for wrong in (True, 1, b"x"):
        with pytest.raises(TypeError, match="signaled="):
            shmem.Event(wrong)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            shmem.Event().wait(wrong)
    first = shmem.Event(name, signaled=True)
    second = shmem.Event(name)  # an existing event keeps its state
    assert second.is_set()
    second.reset()
    assert not first.is_set()
    assert not pickle.loads(pickle.dumps(first)).is_set()
    first.unlink()
    with pytest.raises(FileNotFoundError):
        second.unlink()


def test_signal_releases_all_waiters(event):
    through = shmem.Semaphore()
    up = shmem.Semaphore()
    threads = [threading.Thread(target=lambda: (up.signal(), event.wait(), through.signal())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert up.wait(20)
    assert through.value == 0
    event.signal()
    for thread in threads:
        thread.join(20)
    assert through.value == 6


def test_unrelated_processes(name, child):
    code = "e = shmem.Event(args[0]); say('up'); say(e.wait(60))"
    others = [child(code, name) for _ in range(3)]
    for other in others:
        assert other.hear() == "up"
    event = shmem.Event(name)
    event.signal()
    for other in others:
        assert other.hear() == "True"
        other.end()
    assert child("say(shmem.Event(args[0]).is_set())", name).hear() == "True"


def until_registered(shm, event, n):
    """Wait until `n` threads are inside `wait`; the high half of the event's word counts them."""
    word = memoryview(shm.block(event.offset)).cast("Q")
    for _ in range(20_000):
        if word[0] >> CHANNEL_WAITERS_SHIFT >= n:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"{word[0] >> CHANNEL_WAITERS_SHIFT} of {n} wait")


@pytest.mark.parametrize("busy", [False, True])
def test_pulse_releases_all_waiters(shm, busy):
    """A signal followed immediately by a reset releases every waiter.

    With `busy`, the pulse comes between two slices of a wait, while the waiter requests the GIL.  The next pulse comes only
    after every waiter has passed, so a waiter that misses one fails the test.
    """
    n_pulses = 5 if busy else 300
    event, through = shm.event(), shmem.Semaphore()

    def wait():
        for _ in range(n_pulses):
            event.wait()
            through.signal()

    threads = [threading.Thread(target=wait) for _ in range(2)]
    before = sys.getswitchinterval()
    for thread in threads:
        thread.start()
    try:
        for pulse in range(n_pulses):
            until_registered(shm, event, 2)
            if busy:
                sys.setswitchinterval(100)
                end_of_slices = time.monotonic() + 0.12
                while time.monotonic() < end_of_slices:
                    pass  # no other thread gets the GIL in the meantime
            event.signal()
            event.reset()
            sys.setswitchinterval(before)
            for _ in threads:
                assert through.wait(20), pulse
    finally:
        sys.setswitchinterval(before)
        event.signal()
        for thread in threads:
            thread.join(20)


def test_ctrl_c_interrupts_waiting(name, child):
    code = """
    e = shmem.Event(args[0])
    try:
        say("up")
        e.wait()
    except KeyboardInterrupt:
        say("interrupted", e.is_set())
    """
    other = child(code, name)
    assert other.hear() == "up"
    wait_for(lambda: waits_for_others(other.process.pid))
    other.process.send_signal(signal.SIGINT)
    assert other.hear_soon() == "interrupted False"
    other.end()


def test_killed_waiter_is_harmless(name, child):
    event = shmem.Event(name)
    other = child("e = shmem.Event(args[0]); say('up'); e.wait()", name)
    assert other.hear() == "up"
    other.kill()
    event.signal()
    assert event.wait(20)


def test_close_while_waiting_raises(event):
    ended, up = [], shmem.Semaphore()

    def wait():
        up.signal()
        try:
            event.wait()
        except shmem.ClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert up.wait(20)
    event.close()
    thread.join(20)
    assert len(ended) == 1


def test_free_while_waiting_raises(shm):
    event = shm.event()
    ended, up = [], shmem.Semaphore()

    def wait():
        up.signal()
        try:
            event.wait()
        except shmem.InvalidBlock as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert up.wait(20)
    shm.free(event)
    thread.join(20)
    assert len(ended) == 1
    shm.check_heap()
