"""The storage lock while signal handlers run: a writer keeps its claim, and a long handler blocks no other process."""

import contextlib
import signal

import pytest
from scribe import GATE, UPGRADE, Scribe
from workers import holds, wait_for, wait_for_waiter

import shmem
from shmem import exclusive_lock, shared_lock
from shmem._base.layout import OWNER_INDEX_MASK

HOLD = """
section = shmem.SharedMemory(shared_name=args[0])
with shmem.shared_lock(section):
    say('held')
    sys.stdin.readline()
say('released')
sys.stdin.readline()
"""
# acquires the lock exclusively, args[1]: 'write', or 'upgrade' from shared; runs args[2] in each handler of SIGUSR1
WRITE = """
import contextlib, signal
section = shmem.SharedMemory(shared_name=args[0])
def handler(number, frame):
    say('in handler')
    exec(args[2])
signal.signal(signal.SIGUSR1, handler)
say('ready')
sys.stdin.readline()
try:
    with shmem.shared_lock(section) if args[1] == 'upgrade' else contextlib.nullcontext():
        with shmem.exclusive_lock(section):
            say('acquired')
            sys.stdin.readline()
    say('released')
except InterruptedError:
    say('raised')
sys.stdin.readline()
"""
RESERVED = 0x40000000  # in `lock_gate`: LOCK_RESERVED of _sync/storage_lock.pxd
WAITS = "sys.stdin.readline()"  # a handler that lasts until it is told to return


@pytest.fixture
def start(shm, child):
    """Return a function that starts a writer which waits for a reader, and returns (reader, writer)."""

    def start(how, handler):
        reader, writer = child(HOLD, shm.name), child(WRITE, shm.name, how, handler)
        assert reader.hear() == "held"
        assert writer.hear() == "ready"
        writer.tell()
        wait_for_waiter(shm)
        wait_for(lambda: Scribe(shm.path)[GATE] & OWNER_INDEX_MASK)
        return reader, writer

    return start


def interrupt(writer):
    """Send the signal and wait until its handler runs."""
    writer.process.send_signal(signal.SIGUSR1)
    assert writer.hear_soon() == "in handler"


def finish(shm, reader, writer):
    """Let the reader leave; the writer must acquire the lock."""
    reader.tell()
    assert reader.hear_soon() == "released"
    assert writer.hear_soon() == "acquired"
    assert holds(shm) == "exclusive"
    writer.tell()
    assert writer.hear_soon() == "released"
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


@pytest.mark.parametrize("how", ["write", "upgrade"])
def test_writer_keeps_its_claim_while_a_handler_runs(shm, start, how):
    """A reader that comes while the handler runs must not get in: overlapping readers would starve the writer."""
    reader, writer = start(how, WAITS)
    for _ in range(5):
        interrupt(writer)
        with pytest.raises(shmem.LockTimeout):
            shared_lock(shm, 0).__enter__()
        writer.tell()
    finish(shm, reader, writer)


@pytest.mark.parametrize("how", ["write", "upgrade"])
def test_writer_keeps_its_claim_in_a_thread_without_handlers(shm, child, how):
    """Such a thread returns from its wait once a second, to see whether its handle was closed; readers stay out meanwhile."""
    reader, flags = child(HOLD, shm.name), shm.zeros(2, "int64", name="flags")
    assert reader.hear() == "held"
    writer = child(
        """
        import contextlib, mmap, threading
        from shmem._base.layout import LAYOUT
        gate, RESERVED = LAYOUT["header_t"]["lock_gate"], int(args[1])
        section = shmem.SharedMemory(shared_name=args[0])
        flags = section["flags"]
        with open(section.path, "rb") as file:
            words = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        def write():
            with shmem.shared_lock(section) if args[2] == "upgrade" else contextlib.nullcontext(), shmem.exclusive_lock(section):
                say("acquired")
        thread = threading.Thread(target=write)
        thread.start()
        while not section.stats().lock_waiters: time.sleep(0.001)
        sys.setswitchinterval(1000)
        while not gate.read(words) & RESERVED: pass     # from now on the thread waits for the GIL
        flags[0] = 1
        while not flags[1]: pass
        thread.join()
        """,
        shm.name,
        RESERVED,
        how,
    )
    wait_for(lambda: flags[0])
    with pytest.raises(shmem.LockTimeout):
        shared_lock(shm, 0).__enter__()
    flags[1] = 1
    reader.tell()
    assert reader.hear_soon() == "released"
    assert writer.hear_soon() == "acquired"
    writer.end()
    assert shm.owner_deaths == 0


@pytest.mark.parametrize("how", ["write", "upgrade"])
@pytest.mark.parametrize("timeout", [20, 0.01, 0])
def test_long_handler_blocks_no_other_process(shm, start, how, timeout):
    """A handler may wait for a process that waits for the lock, so a reader gets in, even with short time-outs; the writer comes later."""
    reader, writer = start(how, WAITS)
    interrupt(writer)

    def enter():
        with contextlib.suppress(shmem.LockTimeout), shared_lock(shm, timeout):
            return True
        return False

    wait_for(enter)
    writer.tell()
    finish(shm, reader, writer)


def test_second_upgrader_fails_while_the_first_runs_a_handler(shm, start):
    """The first one keeps its place, so the second one gets the DeadlockError: it waits for the first one's share."""
    with shared_lock(shm):
        reader, writer = start("upgrade", WAITS)
        for _ in range(5):
            interrupt(writer)
            with pytest.raises(shmem.DeadlockError):
                exclusive_lock(shm, 20).__enter__()
            writer.tell()
    finish(shm, reader, writer)


@pytest.mark.parametrize(
    "request_",
    [
        "with shmem.shared_lock(section, 20): pass",
        "with contextlib.suppress(shmem.LockTimeout), shmem.exclusive_lock(section, 0.01): pass",
        "shmem.SharedMemory(shared_name=args[0]).close()",
    ],
)
@pytest.mark.parametrize("how", ["write", "upgrade"])
def test_handler_requests_the_lock(shm, start, how, request_):
    """A request in a handler interrupts the writer's own, which begins anew."""
    reader, writer = start(how, request_ + "\nsay('done')")
    for _ in range(3):
        interrupt(writer)
        assert writer.hear_soon() == "done"
    finish(shm, reader, writer)


@pytest.mark.parametrize("how", ["write", "upgrade"])
def test_handler_that_raises_releases_the_claim(shm, start, how):
    reader, writer = start(how, "raise InterruptedError")
    interrupt(writer)
    assert writer.hear_soon() == "raised"
    scribe = Scribe(shm.path)
    assert (scribe[GATE] & OWNER_INDEX_MASK, scribe[UPGRADE]) == (0, 0)
    reader.tell()
    assert reader.hear_soon() == "released"
    with exclusive_lock(shm, 20):
        assert shm.owner_deaths == 0


@pytest.mark.parametrize("how", ["write", "upgrade"])
def test_killed_in_a_handler(shm, start, how):
    """The reservation of a dead writer is taken over like its gate."""
    reader, writer = start(how, WAITS)
    interrupt(writer)
    writer.kill()
    with pytest.warns(shmem.OwnerDiedWarning), shared_lock(shm, 20):
        pass
    reader.tell()
    assert reader.hear_soon() == "released"
    with exclusive_lock(shm, 20):
        assert shm.owner_deaths == 1


def test_fork_in_a_handler(shm, start):
    """The child has no claim; its request begins anew."""
    reader, writer = start("write", "import os\nif os.fork() == 0:\n    sys.stdin = open(os.devnull)\nelse:\n    os.wait()")
    interrupt(writer)
    reader.tell()
    assert sorted(writer.hear_soon() for _ in range(3)) == ["acquired", "acquired", "released"]
    writer.tell()
    assert writer.hear_soon() == "released"


def test_exit_with_a_reserved_gate(shm, child):
    """A thread that exit finds between two steps of its request has reserved the gate; that is not the death of a holder."""
    reader = child(HOLD, shm.name)
    assert reader.hear() == "held"
    leaver = child(
        """
        import mmap, threading
        from shmem import _core
        from shmem._base.layout import LAYOUT
        gate, RESERVED = LAYOUT["header_t"]["lock_gate"], int(args[1])
        section = shmem.SharedMemory(shared_name=args[0])
        file = open(section.path, "rb")
        threading.Thread(target=shmem.exclusive_lock(section).__enter__, daemon=True).start()
        while not section.stats().lock_waiters: time.sleep(0.001)
        say("waits")
        sys.setswitchinterval(1000)
        words = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        while not gate.read(words) & RESERVED: pass     # from now on the thread waits for the GIL
        say("left" if _core.depart_all() else "busy")   # the first thing at exit that matters here; the GIL is not released before
        os._exit(0)
        """,
        shm.name,
        RESERVED,
    )
    assert leaver.hear_soon() == "waits"
    assert leaver.hear_soon() == "left"
    leaver.end()
    assert Scribe(shm.path)[GATE] & (RESERVED | OWNER_INDEX_MASK) == 0
    with shared_lock(shm, 20):
        pass
    reader.tell()
    assert reader.hear_soon() == "released"
    with exclusive_lock(shm, 20):
        assert shm.owner_deaths == 0
