"""Snapshots while other processes put, get, signal, lock and make blocks: each copy is complete, and needs no recovery."""

import os
import signal
import time
import warnings

import numpy as np
import pytest
from queues import QueueWords
from scribe import Scribe

import shmem
from shmem.__main__ import main

N_SNAPSHOTS = 15


@pytest.fixture
def large():
    """A section that is large enough for a copy to take some time."""
    with shmem.SharedMemory(max_size=1 << 27) as section:
        yield section


@pytest.fixture
def stop(tmp_path):
    """The path of a file whose existence ends the children's loops."""
    path = tmp_path / "stop"
    yield path
    path.touch()


def copies(section, path, n=N_SNAPSHOTS):
    """Take snapshots, check each one, and yield it opened read-only and read-write."""
    for _ in range(n):
        section.snapshot(path)
        assert main(["check", str(path)]) == 0
        for mode in ("read_only", "read_write"):
            with shmem.SharedMemory(path, mode=mode) as copy:
                assert (copy.stats().recoveries, copy.owner_deaths) == (0, 0)
                copy.check_heap()
                yield mode, copy


def drain(queue):
    """Return all messages; afterwards the queue must work without waiting for another process."""
    messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert queue.empty()
    queue.put_nowait(b"new")
    assert queue.get_nowait() == b"new"
    return messages


def test_messages_are_complete_and_in_order(large, tmp_path, child, stop):
    """Each message repeats one number.  The queue is full at times, and takes longer to copy than a message takes to pass through it."""
    large.queue(1000, bytes, max_bytes=20_000, name="queue")
    code = """
    queue = shmem.SharedMemory(shared_name=args[0])["queue"]; say("go"); i = 0
    while not os.path.exists(args[1]):
        try:
            {}
        except (shmem.QueueFull, shmem.QueueEmpty):
            pass
    """
    for step in ("queue.put(i.to_bytes(4, 'little') * 5000, timeout=0.1); i += 1", "queue.qsize() > 100 and queue.get(timeout=0.1)"):
        child(code.format(step), large.name, stop).hear()
    deadline = time.monotonic() + 20
    while large["queue"].qsize() < 50 and time.monotonic() < deadline:  # from then on there are at least 50
        time.sleep(0.001)
    for mode, copy in copies(large, tmp_path / "copy", 8):
        if mode == "read_only":
            assert 0 <= copy["queue"].qsize() <= 1000
            continue
        messages = drain(copy["queue"])
        assert all(message == message[:4] * 5000 for message in messages)
        numbers = [int.from_bytes(message[:4], "little") for message in messages]
        assert len(numbers) >= 50
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_queues_are_copied_at_one_moment(large, tmp_path, child, stop):
    """Marks circulate through three queues: at most one is between two queues, and none is in two.

    Large arrays lie between the queues; copying one takes many times as long as a mark takes to go round.
    """
    queues = []
    for i in range(3):
        queues.append(large.queue(100, bytes, max_bytes=50_000, name=f"q{i}"))
        large[f"between{i}"] = np.ones(35_000_000, "uint8")
    for i, mark in enumerate((b"a", b"b", b"c")):
        queues[i].put(mark * 50_000)
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); queues = [section[f"q{i}"] for i in range(3)]; say("go"); i = 0
    while not os.path.exists(args[1]):
        queues[(i + 1) % 3].put(queues[i % 3].get()); i += 1
    """
    child(code, large.name, stop).hear()
    seen = set()
    for mode, copy in copies(large, tmp_path / "copy", 8):
        if mode == "read_write":
            messages = [message for i in range(3) for message in drain(copy[f"q{i}"])]
            assert all(message == message[:1] * 50_000 for message in messages)
            assert len(set(messages)) == len(messages) >= 2
            seen.add(len(messages))
    assert seen <= {2, 3}


def test_incomplete_blocks_are_not_copied(large, tmp_path, child, stop):
    """While a large block is copied, another process fills arrays behind it; an array begun before may be complete when it is reached."""
    large["first"] = np.ones(60_000_000, "uint8")
    code = """
    import numpy as np
    section = shmem.SharedMemory(shared_name=args[0]); values = np.ones(2_000_000, "uint8"); say("go")
    while not os.path.exists(args[1]):
        section.free(section.array(values))
    """
    child(code, large.name, stop).hear()
    for _, copy in copies(large, tmp_path / "copy", 8):
        assert set(copy) == {"first"}


class Guarded(shmem.Struct, type_name="snapshot.Guarded"):
    guard: shmem.Mutex
    count: shmem.int64


def test_semaphores_events_and_mutexes(shm, tmp_path, child, stop):
    """Counts are kept; a mutex is free in the copy, and warns of a dead owner if it was held."""
    shm["guarded"] = shm.new(Guarded)
    shm.mutex(name="held"), shm.semaphore(7, name="seven"), shm.semaphore(0, name="none"), shm.event(name="event").signal()
    code = """
    class Guarded(shmem.Struct, type_name="snapshot.Guarded"):
        guard: shmem.Mutex
        count: shmem.int64
    section = shmem.SharedMemory(shared_name=args[0]); guarded = section["guarded"]; held = section["held"]; held.acquire(); say("go")
    while not os.path.exists(args[1]):
        with guarded.guard:
            guarded.count += 1
        section["seven"].wait(0); section["seven"].signal()
        section["none"].wait(timeout=0.001)
    """
    child(code, shm.name, stop).hear()
    for mode, copy in copies(shm, tmp_path / "copy"):
        assert copy["seven"].value in (6, 7)
        assert copy["none"].value == 0
        assert copy["event"].is_set()
        if mode == "read_write":
            with pytest.warns(shmem.OwnerDiedWarning):
                assert copy["held"].acquire(timeout=0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert copy["guarded"].guard.acquire(timeout=0)
            assert [one.category for one in caught] in ([], [shmem.OwnerDiedWarning])
            copy["none"].signal()
            assert copy["none"].wait(0)


def test_gate_owner_is_stopped_or_dead(shm, tmp_path, child):
    """The gates are marked directly as held by a stopped process, which is then killed."""
    queue = shm.queue(4, "int64", name="queue")
    shm.queue(4, "int64", name="other").put(2)
    queue.put(1)
    other = child("section = shmem.SharedMemory(shared_name=args[0]); section.allocate(10); say('go'); sys.stdin.readline()", shm.name)
    other.hear()
    words, scribe = QueueWords(shm, queue), Scribe(shm.path)
    gate = scribe.owner_word(scribe.entry_of(other.process.pid))
    os.kill(other.process.pid, signal.SIGSTOP)
    for place in ("producers_gate", "consumers_gate"):
        words[place] = gate
        with pytest.raises(shmem.LockTimeout, match="a process stands still"):
            shm.snapshot(tmp_path / "copy", timeout=0.3)
        shm.free(shm.allocate(100_000))  # other gates stay open
        assert shm["other"].get_nowait() == 2
        shm["other"].put_nowait(2)
        words[place] = 0
    words["producers_gate"] = words["consumers_gate"] = gate
    other.kill()
    shm.snapshot(tmp_path / "copy", timeout=20)
    assert (words["producers_gate"], words["consumers_gate"]) == (0, 0)
    assert queue.get_nowait() == 1
    assert sorted(os.listdir(tmp_path)) == ["copy"]
    with shmem.SharedMemory(tmp_path / "copy") as copy:
        copied = copy["queue"]
        words = QueueWords(copy, copied)
        found = {name: words[name] for name in ("producers_gate", "consumers_gate", "not_empty", "not_full", "head", "tail")}
        assert found == {**dict.fromkeys(found, 0), "tail": 1}  # gates and channels; one was put
        assert copied.get_nowait() == 1
