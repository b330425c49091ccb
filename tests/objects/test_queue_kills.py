"""`Queue`: processes killed, stopped or interrupted at any moment; wake-ups of a waiter that leaves without checking the queue."""

import os
import random
import signal
import time

import pytest
from queues import ONE_WAITER, PATIENCE, QueueWords, in_thread, wait_until

import shmem
from shmem._base.layout import OWNER_INDEX_MASK
from shmem._objects import lock

# A member records in the section what it is about to do, and afterwards what it did.
KILLED_PRODUCER = """
shm = shmem.SharedMemory(shared_name=args[0]); queue = shm["q"]; me = int(args[1]); about, did = shm["about"], shm["did"]
say("go"); i = 0
while True:
    about[me] = i + 3
    queue.put(me << 32 | i)
    did[me] = i + 1
    queue.put_many([me << 32 | i + 1, me << 32 | i + 2])
    did[me] = i = i + 3
"""
KILLED_CONSUMER = """
shm = shmem.SharedMemory(shared_name=args[0]); queue = shm["q"]; out = shm[f"out {args[1]}"]; n = 0
say("go")
while n < len(out) - 5:
    got = [queue.get()] if n % 2 else queue.get_many(3)
    out[n + 1 : n + 1 + len(got)] = got
    n += len(got)
    out[0] = n
queue.shutdown()
"""


@pytest.mark.parametrize("maxsize", [2, 50])
def test_kill_storm_of_producers_and_consumers(child, maxsize):
    """Every message of a producer is delivered once, except those that killed consumers had just taken, at most three each."""
    rng = random.Random(11 + maxsize)
    with shmem.SharedMemory(max_size=1 << 28) as shm:
        queue = shm.queue(maxsize, "int64", name="q")
        about, did = shm.zeros(100, "int64", name="about"), shm.zeros(100, "int64", name="did")
        n_started = 0

        def start(code):
            nonlocal n_started
            if code == KILLED_CONSUMER:
                shm.zeros(1 << 20, "int64", name=f"out {n_started}")
            n_started += 1
            return code, child(code, shm.name, n_started - 1)

        members = [start(code) for code in (KILLED_PRODUCER, KILLED_CONSUMER) * 2]
        n_killed_consumers = 0
        heard = [member for _, member in members if member.hear()]
        for _ in range(6):
            time.sleep(rng.random() * 0.1)
            for which in rng.sample(range(4), 2):
                code, member = members[which]
                member.kill()
                n_killed_consumers += code == KILLED_CONSUMER
                members[which] = start(code)
            for _, member in members:
                if member not in heard:
                    member.hear()
                    heard.append(member)
        for code, member in members:
            member.kill()
            n_killed_consumers += code == KILLED_CONSUMER
        assert not queue.is_shutdown  # none of the outputs is full
        outputs = [shm[name] for name in shm if name.startswith("out ")]
        outputs = [out[1 : 1 + out[0]].tolist() for out in outputs]
        outputs.append([queue.get(timeout=PATIENCE) for _ in range(queue.qsize())])
        for out in outputs:
            for producer in {value >> 32 for value in out}:
                numbers = [value for value in out if value >> 32 == producer]
                assert numbers == sorted(numbers)
        found = [value for out in outputs for value in out]
        assert len(found) == len(set(found)), "delivered twice"
        assert all(value & 0xFFFFFFFF < about[value >> 32] for value in found), "delivered and never put"
        put = {producer << 32 | i for producer in range(100) for i in range(did[producer])}
        assert len(put - set(found)) <= 3 * n_killed_consumers, "lost"
        assert len(found) > 1000
        queue.put(5, timeout=PATIENCE)
        assert queue.get(timeout=PATIENCE) == 5
        shm.check_heap()


def stop_inside(member, words, gate):
    """Stop a process while it is inside a gate."""
    rng = random.Random(23)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(rng.random() * 0.003)  # so that it reaches another place
        os.kill(member.process.pid, signal.SIGSTOP)
        os.waitpid(member.process.pid, os.WUNTRACED)
        if words[gate] & OWNER_INDEX_MASK:
            return
        os.kill(member.process.pid, signal.SIGCONT)
    raise AssertionError("the process was never stopped inside the gate")


@pytest.mark.parametrize("gate", ["producers_gate", "consumers_gate"])
def test_stopped_and_killed_inside_a_gate(child, gate):
    """The other processes wait for a stopped one, which may continue; once it is dead they go on, and no operation is half done."""
    with shmem.SharedMemory(max_size=1 << 24) as shm:
        queue = shm.queue(1 << 18, "int64", name="q")
        words = QueueWords(shm, queue)
        member = child(
            """
            import numpy as np
            queue = shmem.SharedMemory(shared_name=args[0])["q"]; numbers = np.arange(1 << 18)
            say("go")
            while True:
                queue.put_many(numbers)
                queue.get_many(1 << 18)
            """,
            shm.name,
        )
        member.hear()
        stop_inside(member, words, gate)
        call, empty_or_full = (
            (lambda: queue.put(7, timeout=0.2), shmem.QueueFull)
            if gate == "producers_gate"
            else (lambda: queue.get(timeout=0.2), shmem.QueueEmpty)
        )
        with pytest.raises(empty_or_full, match="stands still"):
            call()
        n_there = queue.qsize()
        with pytest.raises(empty_or_full, match="stands still"):
            queue.put_nowait(7) if gate == "producers_gate" else queue.get_nowait()
        member.kill()
        if gate == "producers_gate":
            assert n_there == 0
            assert queue.put(7, timeout=PATIENCE) is None
            assert queue.get() == 7
        else:
            found = queue.get_many(1 << 18, timeout=PATIENCE)
            assert len(found) == n_there == 1 << 18
            assert found.tolist() == list(range(1 << 18))
        assert queue.empty()


def test_woken_waiter_that_leaves_passes_the_wake_on(shm):
    """One of two sleeping waiters is woken, but blocked at the gate until it checks for signals.  Its wake-up goes to the other one."""
    queue = shm.queue(4, "int64")
    words, me = QueueWords(shm, queue), lock.participant(shm)
    results = [in_thread(queue.get) for _ in range(2)]
    for _ in range(100):  # their slices may end at this very moment
        assert wait_until(lambda: words.n_waiters("not_empty") == 2)
        before = words["not_empty"]
        words["consumers_gate"] = me
        queue.put(1)
        if words["not_empty"] == before - ONE_WAITER + 1:  # one is woken
            break
        words["consumers_gate"] = 0
        results = [*results, in_thread(queue.get)]
    assert wait_until(lambda: words["not_empty"] == before - 2 * ONE_WAITER + 2)
    words["consumers_gate"] = 0
    queue.put(2)
    for result in results:
        result()
    assert queue.empty()


def test_ctrl_c_interrupts_put_many_that_keeps_progressing(child):
    """The call never sleeps for a whole slice, and would take minutes to complete."""
    other = child(
        """
        import signal, threading
        import numpy as np
        shm = shmem.SharedMemory(max_size=1 << 20)
        queue = shm.queue(1, "int8")
        def consume():
            while True: queue.get_many(1)
        threading.Thread(target=consume, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})   # the signal must interrupt the sleep of the other thread
        try:
            say("puts")
            queue.put_many(np.zeros(1 << 26, "int8"))
            say("all put")
        except KeyboardInterrupt:
            say("interrupted")
        """
    )
    assert other.hear() == "puts"
    other.process.send_signal(signal.SIGINT)
    assert other.hear() == "interrupted"
    other.end()
