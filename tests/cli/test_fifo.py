"""`python -m shmem fifo`: no message is lost or taken twice, and each producer's messages stay in order, wherever processes are killed."""

import random
import signal
import sys
import time

import pytest

import shmem
from shmem.__main__ import main
from shmem._cli import fifo

RUN = """
from shmem.__main__ import main
if args[0]:
    os.dup2(os.open(args[0], os.O_WRONLY | os.O_CREAT, 0o600), 1)
sys.exit(main(["fifo", *args[1:]]))
"""


class Killed(BaseException):
    """Stand-in for a SIGKILL at a certain line."""


def killed_at(step, function, *args):
    """Call a function for at most `step` lines of the module; return whether it completed."""
    left = step

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != fifo.__file__:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    except Killed:
        return False
    finally:
        sys.settrace(before)
    return True


@pytest.fixture
def queue(shm, monkeypatch):
    monkeypatch.setattr(fifo, "SLICE", 0.002)
    made = fifo.Queue(shm)
    yield made
    vars(made).clear()  # pytest keeps the queue, which would keep the section open


def drain(queue):
    """Take all messages, waiting for tokens."""
    found = []
    while (message := queue.get(0.01)) is not None:
        found.append(message)
    return found


def test_messages_are_in_order(queue):
    one, two = queue.add_producer(), queue.add_producer()
    for i in range(5):
        queue.put(one, i)
        queue.put(two, i)
    assert queue.check() == (10, 0)
    assert not queue.fifo.drained.is_set()
    assert drain(queue) == [(which, i) for i in range(5) for which in (1, 2)]
    assert queue.check() == (0, 0)
    assert queue.fifo.drained.is_set()
    queue.put(one, 5)
    assert queue.get(0) == (1, 5)
    assert queue.get(0) is None


def test_blocks_are_reused(queue):
    producer = queue.add_producer()
    for i in range(3):
        queue.put(producer, i)
    blocks = queue.shm.check_heap().blocks
    for i in range(3, 50):
        assert queue.get(0) == (1, i - 3)
        queue.put(producer, i)
    assert queue.shm.check_heap().blocks <= blocks + 1


def test_wrong_order_is_detected(queue):
    producer = queue.add_producer()
    for i in range(3):
        queue.put(producer, i)
    queue.fifo.first.next.next.number = 7
    with pytest.raises(fifo.Violation):
        queue.check()
    assert queue.take() == (1, 0)
    with pytest.raises(fifo.Violation, match="expected message 1, got message 7"):
        queue.take()


@pytest.mark.parametrize("n_before", [0, 2])
@pytest.mark.parametrize("n_spare", [0, 1])
@pytest.mark.parametrize("again", range(0, 16, 3))
def test_killed_at_every_line_of_put(queue, n_before, n_spare, again):
    """A process is killed during a put, and the next one during its repair."""
    producer = queue.add_producer()
    step, n_put, n_lost, is_over = 0, 0, 0, False
    while not is_over:
        for _ in range(n_spare):
            queue.put(producer, n_put)
            assert queue.take() == (1, n_put)
            n_put += 1
        for _ in range(n_before):
            queue.put(producer, n_put)
            n_put += 1
        if n_spare == 0:
            queue.fifo.spare = None
            n_lost = queue.check()[1]
        is_over = killed_at(step, queue.put, producer, n_put)
        killed_at(again, queue.take) if again else None
        queue.check()
        found = drain(queue)
        first = producer.taken - len(found)
        assert found == [(1, first + i) for i in range(len(found))]
        assert producer.taken == producer.put
        assert n_put <= producer.put <= n_put + 1
        assert producer.put == n_put + 1 or not is_over
        assert queue.check()[0] == 0
        assert queue.check()[1] - n_lost in (0, 1)  # killed between allocating a message and recording it
        n_lost = queue.check()[1]
        n_put = producer.put
        step += 1
    assert step > 12


@pytest.mark.parametrize("n_before", [1, 3])
@pytest.mark.parametrize("again", range(0, 16, 3))
def test_killed_at_every_line_of_take(queue, n_before, again):
    producer = queue.add_producer()
    step, n_put, is_over = 0, 0, False
    while not is_over:
        for _ in range(n_before):
            queue.put(producer, n_put)
            n_put += 1
        is_over = killed_at(step, queue.take)
        killed_at(again, queue.take) if again else None
        n_waiting, n_lost = queue.check()
        assert n_lost == 0
        assert n_before - 2 <= n_waiting <= n_before  # each of two killed consumers had taken at most one
        assert drain(queue) == [(1, n_put - n_waiting + i) for i in range(n_waiting)]
        assert queue.check() == (0, 0)
        step += 1
    assert step > 12


def test_ended_producers_are_removed(queue):
    living = queue.add_producer()
    gone, busy = queue.add_producer(), queue.add_producer()
    queue.put(busy, 0)
    gone.pid = busy.pid = 1 << 40
    queue.add_producer()
    assert [producer.number for producer in fifo.chain(queue.fifo.producers)] == [4, busy.number, living.number]
    assert queue.check() == (1, 0)


def test_messages_without_tokens_are_signaled_again(queue):
    """A kill between putting and signaling leaves a message without its token."""
    producer = queue.add_producer()
    for i in range(20):
        queue.put(producer, i)
    while queue.fifo.messages.wait(0):
        pass
    assert queue.get(0.01) == (1, 0)
    assert all(queue.fifo.messages.wait(0) for _ in range(19))  # all were signaled again
    assert len(drain(queue)) == 19


def test_command_line(section_file, child):
    place = ["--file", section_file]
    assert child(RUN, "", "produce", 300, *place, "--check").end().splitlines() == [
        "producer 1: 300 messages put",
        "check: 300 messages waiting, in order; heap intact; 0 blocks lost with killed processes",
    ]
    lines = child(RUN, "", "consume", "--timeout", 0, "--verbose", "--check", *place).end().splitlines()
    assert lines[:300] == [f"1 {i}" for i in range(300)]
    assert lines[300:] == [
        "consumer: 300 messages taken, producers: 1",
        "check: 0 messages waiting, in order; heap intact; 0 blocks lost with killed processes",
    ]


@pytest.mark.parametrize(
    "arguments",
    [["produce"], ["consume", "5"], ["produce", "-1"], ["consume", "--timeout", "-1"], ["consume", "--file", "a", "--name", "b"]],
)
def test_wrong_arguments_are_reported(arguments, capsys):
    assert main(["fifo", *arguments]) == 2
    assert capsys.readouterr().err.startswith("fifo: ")


def test_full_section_is_reported(section_file, capsys):
    assert main(["fifo", "produce", "1000000", "--size", str(1 << 20), "--timeout", "0.1", "--file", section_file]) == 1
    assert "SectionFull" in capsys.readouterr().err
    assert main(["fifo", "consume", "--timeout", "0", "--check", "--file", section_file]) == 0
    assert "0 messages waiting" in capsys.readouterr().out


def test_many_producers_and_consumers(section_file, tmp_path, child):
    place = ["--file", section_file]
    consumers = [child(RUN, tmp_path / f"out {i}", "consume", "--timeout", 3, "--verbose", *place) for i in range(2)]
    producers = [child(RUN, "", "produce", 1000, "--wait", *place) for _ in range(3)]
    for one in producers + consumers:
        one.end()
    found = []
    for i in range(2):
        mine = [tuple(map(int, line.split())) for line in (tmp_path / f"out {i}").read_text().splitlines()[:-1]]
        for producer in range(1, 4):
            numbers = [number for which, number in mine if which == producer]
            assert numbers == sorted(numbers)
        found += mine
    assert sorted(found) == [(producer, i) for producer in range(1, 4) for i in range(1000)]


def test_interrupt_reports_the_count(section_file, child):
    consumer = child(RUN, "", "consume", "--verbose", "--file", section_file)
    child(RUN, "", "produce", 1, "--file", section_file).end()
    assert consumer.hear() == "1 0"
    consumer.process.send_signal(signal.SIGINT)
    assert consumer.hear() == "consumer: 1 messages taken, producers: 1"
    assert consumer.process.wait(20) == 130


@pytest.mark.filterwarnings("ignore::shmem.OwnerDiedWarning")
def test_kill_storm_of_fifo_commands(section_file, tmp_path, child):
    """Every message taken was printed by a consumer, except for at most one message of each killed consumer."""
    rng = random.Random(17)
    logs, n_killed_consumers, n_killed = [], 0, 0

    def start(what):
        if what == "produce":
            return what, child(RUN, "", what, 10**9, "--timeout", 60, "--file", section_file)
        logs.append(tmp_path / f"out {len(logs)}")
        return what, child(RUN, logs[-1], what, "--timeout", 60, "--verbose", "--file", section_file)

    with shmem.SharedMemory(section_file, max_size=1 << 28) as shm:
        queue = fifo.Queue(shm)
        members = [start(what) for what in ("produce", "consume") * 2]
        for _ in range(6):
            taken = sum(log.stat().st_size for log in logs if log.exists())
            deadline = time.monotonic() + 20
            while sum(log.stat().st_size for log in logs if log.exists()) < taken + 2000:  # until the new processes work too
                assert time.monotonic() < deadline
                time.sleep(0.01 + rng.random() * 0.01)
            for which in rng.sample(range(4), 2):
                what, member = members[which]
                member.kill()
                n_killed += 1
                n_killed_consumers += what == "consume"
                members[which] = start(what)
        for what, member in members:
            member.kill()
            n_killed += 1
            n_killed_consumers += what == "consume"
        n_waiting, n_lost = queue.check()
        assert 0 <= n_lost <= n_killed
        found = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
        assert len(found) == len(set(found)), "taken twice"
        n_taken = {producer.number: producer.taken for producer in fifo.chain(queue.fifo.producers)}
        printed = [tuple(map(int, line.split())) for line in found]
        assert all(number < n_taken.get(producer, sys.maxsize) for producer, number in printed)
        printed = [(producer, number) for producer, number in printed if producer in n_taken]
        assert 0 <= sum(n_taken.values()) - len(printed) <= n_killed_consumers, "lost"
        while n_waiting:
            assert queue.get(0) is not None
            n_waiting -= 1
        assert queue.check()[0] == 0
