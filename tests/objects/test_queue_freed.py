"""A queue is freed while another process is stopped inside it: its memory is given to nothing else until that process is out of it."""

import os
import signal

import pytest
from queues import QueueWords, wait_until

import shmem
from shmem._base.layout import LAYOUT
from shmem.testing.crash import ptrace
from shmem.testing.crash.stepping import Watch

QUEUE = LAYOUT["queue_t"]
COMMITS = ("head", "tail", "closed")
CAPACITY = 8


OPERATIONS = {
    "put": lambda queue: queue.put(7),
    "get": lambda queue: queue.get(),
    "put_many": lambda queue: queue.put_many([7] * 5),  # around the ring's end
    "get_many": lambda queue: queue.get_many(3),
    "put, full": lambda queue: queue.put(7, timeout=0),
    "shutdown": lambda queue: queue.shutdown(),
}
FREEING = {"free": lambda section: section.free(section["queue"]), "del": lambda section: section.__delitem__("queue")}
CASES = [*[(name, "free") for name in OPERATIONS], ("put", "del")]


def use(path, name, report):
    """Run an operation between two pauses, and report how it ended."""
    with shmem.SharedMemory(path) as section:
        queue = section["queue"]
        queue.put(1)
        queue.get()
        if name == "put, full":
            queue.put_many(range(CAPACITY), timeout=0)
        ptrace.pause()
        try:
            OPERATIONS[name](queue)
            os.write(report, b"done")
        except shmem.ShmemError as error:
            os.write(report, type(error).__name__.encode())
        ptrace.pause()


class Stopped:
    """A process that is stopped in an operation, and this process, which frees the queue."""

    def __init__(self, path, name):
        self.read, self.write = os.pipe()
        self.path = str(path)
        with shmem.SharedMemory(self.path, max_size="256K") as section:
            queue = section.queue(CAPACITY, "int64", name="queue")
            queue.put_many(range(5))
            queue.get_many(3)
        self.tracee = ptrace.Tracee(use, self.path, name, self.write)
        self.section = shmem.SharedMemory(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tracee.kill()
        self.section.close()
        os.close(self.read)
        os.close(self.write)
        os.unlink(self.path)

    def places(self):
        """Step through the operation.

        Return the numbers of instructions before and after each one that changes the section, and the number of the one that commits.
        """
        watch, found, n_steps, start, commit = Watch(self.path, False), set(), 0, commits(self.content()), None
        while self.tracee.step():
            n_steps += 1
            if watch.changed() is not None:
                found |= {n_steps - 1, n_steps}
                if commit is None and commits(self.content()) != start:
                    commit = n_steps
        watch.close()
        return sorted(found), commit

    def content(self):
        """Return the bytes of the queue's block."""
        return bytes(self.section.block(self.section["queue"].offset))


def reuse(section, content):
    """Allocate what is free; fill it so that a process that takes it for its queue finds what it expects there."""
    blocks = [section.allocate(len(content)) for _ in range(3)]
    for block in blocks:
        memoryview(block)[:] = content
    return blocks


def commits(content):
    return [QUEUE[name].read(content, 0) for name in COMMITS]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_freed_while_a_process_is_stopped_inside(tmp_path, name, how):
    """Whatever store the process makes next, it makes none to the memory of others; it raises unless it was done before.

    A get that has only its commit left to make is done.
    """
    path = tmp_path / "section"
    with Stopped(path, name) as stopped:
        places, commit = stopped.places()
    done_from = (commit or places[-1] + 1) - name.startswith("get")
    assert len(places) >= 4
    for place in places:
        with Stopped(path, name) as stopped:
            assert all(stopped.tracee.step() for _ in range(place))
            offset, content = stopped.section["queue"].offset, stopped.content()
            FREEING[how](stopped.section)
            blocks = reuse(stopped.section, content)
            stopped.tracee.go()
            result = os.read(stopped.read, 100).decode()
            assert [bytes(block) for block in blocks] == [content] * 3, place
            assert result == "InvalidBlock" or place >= done_from or result == "QueueFull", place
            stopped.section.check_heap()
            if result == "InvalidBlock":
                assert stopped.section.allocate(len(content)).offset == offset, "the process that left the queue last did not free it"


def test_killed_while_it_is_stopped_inside(tmp_path):
    """The memory of the freed queue is free again."""
    path = tmp_path / "section"
    with Stopped(path, "put") as stopped:
        _, commit = stopped.places()
    with Stopped(path, "put") as stopped:
        assert all(stopped.tracee.step() for _ in range(commit - 1))
        offset, content = stopped.section["queue"].offset, stopped.content()
        stopped.section.free(stopped.section["queue"])
        assert offset not in [block.offset for block in reuse(stopped.section, content)]
        stopped.tracee.kill()
        assert stopped.section.sweep() > len(content)
        block = stopped.section.allocate(len(content))
        assert block.offset <= offset < block.offset + block.nbytes
        stopped.section.check_heap()


def test_freed_while_a_waiting_process_is_stopped(section_file, child):
    with shmem.SharedMemory(section_file, max_size="256K") as section:
        queue = section.queue(CAPACITY, "int64", name="queue")
        offset, content, words = queue.offset, bytes(section.block(queue.offset)), QueueWords(section, queue)
        waiter = child(
            """
with shmem.SharedMemory(args[0]) as section:
    queue = section["queue"]
    try:
        queue.get()
    except shmem.InvalidBlock:
        say("freed")
    sys.stdin.readline()
""",
            section_file,
        )
        assert wait_until(lambda: words.n_waiters("not_empty"))
        os.kill(waiter.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, waiter.process.pid, os.WSTOPPED | os.WNOWAIT)
        section.free(queue)
        blocks = reuse(section, content)
        os.kill(waiter.process.pid, signal.SIGCONT)
        assert waiter.hear() == "freed"
        assert [bytes(block) for block in blocks] == [content] * 3
        assert section.allocate(len(content)).offset == offset  # although the waiter still has the queue
        waiter.tell()
        waiter.end()


def test_forked_child_that_uses_the_queue_of_its_parent(section_file, child):
    program = child(
        """
import os
with shmem.SharedMemory(args[0], max_size="256K") as section:
    queue = section.queue(8, "int64")
    queue.put(1)
    offset, n_bytes = queue.offset, section.block(queue.offset).nbytes
    (read, answer), (wait, go_on) = os.pipe(), os.pipe()
    if os.fork() == 0:
        queue.get()
        os.write(answer, b"used ")
        os.read(wait, 1)
        try:
            queue.put(1)
        except shmem.InvalidBlock:
            os.write(answer, b"freed")
        os.read(wait, 1)
        os._exit(0)
    assert os.read(read, 5) == b"used "
    section.free(queue)
    assert section.allocate(n_bytes).offset != offset
    os.write(go_on, b"x")
    assert os.read(read, 5) == b"freed"
    assert section.allocate(n_bytes).offset == offset
    os.write(go_on, b"x")
""",
        section_file,
    )
    program.end()


def test_process_that_used_a_queue_leaves_nothing_at_its_exit(section_file, child):
    """No process must recover the heap after it."""
    with shmem.SharedMemory(section_file, max_size="256K") as section:
        section.queue(8, "int64", name="queue")
        child("queue = shmem.SharedMemory(args[0])['queue']; queue.put(1)", section_file).end()
        assert (section.sweep(), section.stats().recoveries, section["queue"].get()) == (0, 0, 1)
