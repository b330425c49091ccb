"""The storage lock: nesting, time-outs, upgrades, misuse, threads, processes, dead holders."""

import asyncio
import copy
import itertools
import os
import pickle
import signal
import threading
import time
import warnings

import pytest
from scribe import GATE_WRITERS, Scribe
from workers import holds, wait_for, wait_for_waiter

import shmem
from shmem import LockDescriptor, LockMode, exclusive_lock, shared_lock
from shmem._base.layout import CHANNEL_WAITERS_SHIFT

EXCLUSIVE, SHARED = LockMode.exclusive, LockMode.shared
HOLD = """
section = shmem.SharedMemory(shared_name=args[0])
with shmem.exclusive_lock(section) if args[1] == 'exclusive' else shmem.shared_lock(section):
    say('held')
    sys.stdin.readline()
say('released')
sys.stdin.readline()
"""


# -- one thread -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", list(itertools.product([EXCLUSIVE, SHARED], repeat=3)))
def test_nesting_in_every_order(shm, modes):
    """For every order of acquiring and releasing, the lock is in the strongest mode that is held."""
    for order in itertools.permutations(range(3)):
        descriptors = [LockDescriptor(mode) for mode in modes]
        for descriptor in descriptors:
            shm.lock(descriptor)
        left = set(range(3))
        for i in order:
            expected = "exclusive" if any(modes[j] is EXCLUSIVE for j in left) else "shared"
            assert holds(shm) == expected
            shm.unlock(descriptors[i])
            left.discard(i)
        assert holds(shm) == "free"


def test_context_managers_are_reusable_and_nestable(shm):
    lock = exclusive_lock(shm)
    for _ in range(3):
        with lock, lock, shared_lock(shm), lock:
            assert holds(shm) == "exclusive"
        assert holds(shm) == "free"


def test_lock_is_released_when_the_block_raises(shm):
    with pytest.raises(KeyError), exclusive_lock(shm):
        raise KeyError
    assert holds(shm) == "free"


def test_lock_as_decorator(shm):
    @exclusive_lock(shm)
    def work(a, b=2):
        """Doc."""
        return holds(shm), a, b

    assert work(1, b=3) == ("exclusive", 1, 3)
    assert work.__doc__ == "Doc."
    assert holds(shm) == "free"

    def generator():
        yield

    async def coroutine():
        await asyncio.sleep(0)

    for bad in (generator, coroutine):
        with pytest.raises(TypeError, match="generator or coroutine"):
            shared_lock(shm)(bad)
    with pytest.raises(TypeError):
        exclusive_lock("section")


def test_descriptor_misuse_raises(shm):
    descriptor = LockDescriptor(EXCLUSIVE)
    with pytest.raises(shmem.LockError, match="never locked"):
        shm.unlock(descriptor)
    shm.lock(descriptor)
    assert descriptor.held
    with pytest.raises(shmem.LockError, match="in use"):
        shm.lock(descriptor)
    with shmem.SharedMemory(max_size=1 << 20) as other, pytest.raises(shmem.LockError, match="another section"):
        other.unlock(descriptor)
    caught = []

    def unlock():
        try:
            shm.unlock(descriptor)
        except shmem.LockError as error:
            caught.append(str(error))

    thread = threading.Thread(target=unlock)
    thread.start()
    thread.join()
    assert "another thread" in caught[0]
    assert holds(shm) == "exclusive"
    shm.unlock(descriptor)
    with pytest.raises(shmem.LockError, match="already unlocked"):
        shm.unlock(descriptor)
    assert isinstance(pickle.loads(pickle.dumps(shmem.LockError("x"))), RuntimeError)
    with pytest.raises(ValueError):
        LockDescriptor("exlusive")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps, lambda it: pickle.dumps(it, 0)])
def test_descriptors_are_not_copied(shm, duplicate):
    """A copy of a held descriptor would release the original's lock."""
    descriptor = LockDescriptor(EXCLUSIVE)
    for _ in range(2):
        with pytest.raises(TypeError, match="make a new one"):
            duplicate(descriptor)
        if not descriptor.held:
            shm.lock(descriptor)
    assert holds(shm) == "exclusive"
    shm.unlock(descriptor)
    assert holds(shm) == "free"


def test_held_descriptor_is_kept_alive(shm):
    shm.lock(LockDescriptor(EXCLUSIVE))
    assert holds(shm) == "exclusive"


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_wrong_timeouts_raise(shm, timeout):
    for use in (lambda: exclusive_lock(shm, timeout), lambda: shared_lock(shm, timeout), lambda: shm.lock(LockDescriptor(SHARED), timeout)):
        with pytest.raises(ValueError, match="timeout"):
            use()
    with pytest.raises(TypeError):
        exclusive_lock(shm, "soon")
    with exclusive_lock(shm, float("inf")):
        pass


def test_close_releases_the_lock(shm):
    keep = shm.zeros(1)
    name = shm.name
    exclusive_lock(shm).__enter__()
    shm.lock(LockDescriptor(EXCLUSIVE))
    shm.close()
    with shmem.SharedMemory(shared_name=name) as again:
        assert holds(again) == "free"
    del keep


def test_close_one_of_two_handles(shm):
    with shmem.SharedMemory(shared_name=shm.name) as second:
        second.lock(LockDescriptor(EXCLUSIVE))
        with exclusive_lock(shm):
            with shared_lock(second):
                second.close()
                assert holds(shm) == "exclusive"
            assert holds(shm) == "exclusive"
        assert holds(shm) == "free"


def test_close_while_another_thread_holds_a_descriptor(shm):
    """The thread that locked it, and only that thread, can still unlock it."""
    second = shmem.SharedMemory(shared_name=shm.name)
    locked, closed = threading.Event(), threading.Event()

    def work():
        descriptor = LockDescriptor(EXCLUSIVE)
        second.lock(descriptor)
        locked.set()
        closed.wait()
        second.unlock(descriptor)

    thread = threading.Thread(target=work)
    thread.start()
    locked.wait()
    second.close()
    assert holds(shm) == "exclusive"
    closed.set()
    thread.join()
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


# -- threads ------------------------------------------------------------------------------------------------


def test_threads_exclude_each_other(shm):
    value = [0]

    def work():
        for _ in range(300):
            with exclusive_lock(shm):
                seen = value[0]
                time.sleep(0)
                value[0] = seen + 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value[0] == 2400


def test_ended_thread_is_an_owner_death(shm):
    def work(mode):
        shm.lock(LockDescriptor(mode))

    for deaths, mode in enumerate((EXCLUSIVE, SHARED), 1):
        thread = threading.Thread(target=work, args=(mode,))
        thread.start()
        thread.join()
        with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(shm, 10):
            pass
        assert shm.owner_deaths == deaths
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with exclusive_lock(shm):
            pass


def test_many_successive_threads(shm):
    def work():
        with shared_lock(shm):
            pass

    for _ in range(300):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


def test_second_upgrader_fails_immediately(shm):
    ready, go = threading.Barrier(2), threading.Event()
    result = []

    def first():
        with shared_lock(shm):
            ready.wait()
            with exclusive_lock(shm, 20):
                result.append("upgraded")

    thread = threading.Thread(target=first)
    with shared_lock(shm):
        thread.start()
        ready.wait()
        while shm.stats().lock_waiters == 0:
            time.sleep(0.001)
        for timeout in (None, 0, 10):
            begin = time.monotonic()
            with pytest.raises(shmem.DeadlockError, match="release the shared lock") as caught:
                exclusive_lock(shm, timeout).__enter__()
            assert time.monotonic() - begin < 5
        assert isinstance(caught.value, RuntimeError)
        assert caught.value.status == shmem.Status.deadlock
        assert result == []
        go.set()
    thread.join()
    assert result == ["upgraded"]
    assert holds(shm) == "free"


def test_draining_writer_yields_to_an_upgrader(shm):
    """A writer waits for a reader that upgrades.  The writer must give way, or each would wait for the other."""
    done = []

    def writer():
        with exclusive_lock(shm, 20):
            done.append("writer")

    thread = threading.Thread(target=writer)
    with shared_lock(shm):
        thread.start()
        while shm.stats().lock_waiters == 0:
            time.sleep(0.001)
        with exclusive_lock(shm, 20):
            done.append("upgrader")
    thread.join()
    assert done == ["upgrader", "writer"]


def test_upgrade_timeout_keeps_the_shared_lock(shm):
    ready, go = threading.Barrier(2), threading.Event()

    def reader():
        with shared_lock(shm):
            ready.wait()
            go.wait()

    thread = threading.Thread(target=reader)
    thread.start()
    ready.wait()
    with shared_lock(shm):
        for timeout in (0, 0.1):
            with pytest.raises(shmem.LockTimeout):
                exclusive_lock(shm, timeout).__enter__()
        assert holds(shm) == "shared"
        go.set()
        thread.join()
        with exclusive_lock(shm, 10):
            assert holds(shm) == "exclusive"
        assert holds(shm) == "shared"
    assert holds(shm) == "free"


# -- processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_processes_exclude_each_other(shm, child, mode):
    other = child(HOLD, shm.name, mode)
    other.hear()
    for timeout in (0, 0.2):
        begin = time.monotonic()
        with pytest.raises(shmem.LockTimeout) as caught:
            exclusive_lock(shm, timeout).__enter__()
        assert time.monotonic() - begin >= timeout
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.status == shmem.Status.timeout_expired
    if mode == "exclusive":
        assert f"cannot acquire the exclusive lock within 0.2 s: process {other.process.pid} holds it" in str(caught.value)
        with pytest.raises(shmem.LockTimeout):
            shared_lock(shm, 0).__enter__()
    else:
        with shared_lock(shm, 0):
            pass
    other.tell()
    other.hear()
    with exclusive_lock(shm, 0):
        pass


def test_increments_are_not_lost(shm, child):
    counter = shm.zeros(2, "i8", name="counter")
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); counter = section['counter']; lock = shmem.exclusive_lock(section)
    say('ready'); sys.stdin.readline()
    for _ in range(20_000):
        with lock:
            counter[0] += 1
            counter[1] += 1
    """
    others = [child(code, shm.name) for _ in range(4)]
    for other in others:
        other.hear()
    for other in others:
        other.tell()
    lock = shared_lock(shm)
    torn = 0
    while counter[0] < 80_000 and any(other.process.poll() is None for other in others):
        with lock:
            torn += counter[0] != counter[1]
    for other in others:
        other.end()
    assert list(counter) == [80_000, 80_000]
    assert torn == 0


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
@pytest.mark.parametrize("timeout", [None, 0])
def test_killed_holder(shm, child, mode, timeout):
    other = child(HOLD, shm.name, mode)
    other.hear()
    other.kill()
    begin = time.monotonic()

    def poll():
        while True:
            try:
                with exclusive_lock(shm, timeout):
                    return
            except shmem.LockTimeout:  # polling without waiting recovers too
                assert time.monotonic() - begin < 5

    with pytest.warns(shmem.OwnerDiedWarning):
        poll()
    assert time.monotonic() - begin < 5
    assert shm.owner_deaths == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with exclusive_lock(shm), shared_lock(shm):
            pass


def test_killed_reader_while_other_readers_wait(shm, child):
    """Readers queued behind a writer retry and give up again; the writer must still detect a dead reader."""
    holder = child(HOLD, shm.name, "shared")
    holder.hear()
    code = """
    import warnings; warnings.simplefilter('ignore')
    section = shmem.SharedMemory(shared_name=args[0]); say('here'); sys.stdin.readline()
    with getattr(shmem, args[1])(section): say('in')
    """
    writer = child(code, shm.name, "exclusive_lock")
    readers = [child(code, shm.name, "shared_lock") for _ in range(6)]
    for other in (writer, *readers):
        other.hear()
    writer.tell()
    wait_for_waiter(shm)
    for reader in readers:  # started only now, because the writer reopens the gate once a second, and they would pass
        reader.tell()
    wait_for(lambda: shm.stats().lock_waiters == 7)
    holder.kill()
    begin = time.monotonic()
    while writer.process.poll() is None and time.monotonic() - begin < 5:
        time.sleep(0.01)
    assert writer.process.poll() == 0
    for other in (writer, *readers):
        other.end()


def test_killed_only_participant(tmp_path, child):
    code = "section = shmem.SharedMemory(args[0], max_size=1 << 20); shmem.exclusive_lock(section).__enter__(); say('held'); time.sleep(60)"
    other = child(code, tmp_path / "s")
    other.hear()
    other.kill()
    with shmem.SharedMemory(tmp_path / "s") as section:
        assert section.owner_deaths == 1
        with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(section, 10):
            pass


def test_killed_upgrader_is_one_owner_death(shm, child):
    other = child(
        "section = shmem.SharedMemory(shared_name=args[0])\n"
        "with shmem.shared_lock(section), shmem.exclusive_lock(section): say('held'); time.sleep(60)",
        shm.name,
    )
    other.hear()
    other.kill()
    with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(shm, 10):
        pass
    assert shm.owner_deaths == 1


@pytest.mark.parametrize("wish", ["upgrade", "exclusive"])
def test_killed_while_upgrading(shm, child, wish):
    other = child(
        "section = shmem.SharedMemory(shared_name=args[0])\n"
        "with shmem.shared_lock(section):\n    say('in'); shmem.exclusive_lock(section).__enter__()",
        shm.name,
    )
    with shared_lock(shm):
        other.hear()
        while shm.stats().lock_waiters == 0:
            time.sleep(0.001)
        other.kill()
        if wish == "upgrade":
            with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(shm, 10):  # its registration is replaced, its share dropped
                pass
    if wish == "exclusive":
        with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(shm, 10):  # its registration is cleared
            pass
    assert holds(shm) == "free"
    assert shm.owner_deaths == 1


def test_raising_warning_releases_the_lock(shm, child):
    for _ in range(2):
        other = child(HOLD, shm.name, "exclusive")
        other.hear()
        other.kill()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(shmem.OwnerDiedWarning):
                exclusive_lock(shm, 10).__enter__()
        assert holds(shm) == "free"


def test_killed_reader_in_a_reused_entry(shm, child):
    other = child(HOLD, shm.name, "shared")
    other.hear()
    other.kill()
    again = child(HOLD, shm.name, "shared")  # takes over the entry of the dead reader, including its shared lock
    again.hear()
    again.tell()
    again.hear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with exclusive_lock(shm, 10):
            pass


def test_stopped_process_is_alive(shm, child):
    other = child(HOLD, shm.name, "exclusive")
    other.hear()
    os.kill(other.process.pid, signal.SIGSTOP)
    with pytest.raises(shmem.LockTimeout):
        exclusive_lock(shm, 0.5).__enter__()
    os.kill(other.process.pid, signal.SIGCONT)
    other.tell()
    other.hear()
    with exclusive_lock(shm, 10):
        pass
    assert shm.owner_deaths == 0


@pytest.mark.parametrize("held", ["exclusive", "shared"])
@pytest.mark.parametrize("wanted", ["exclusive_lock", "shared_lock"])
def test_ctrl_c_while_waiting(shm, child, held, wanted):
    if (held, wanted) == ("shared", "shared_lock"):
        held = "exclusive"
    holder = child(HOLD, shm.name, held)
    holder.hear()
    waiter = child(
        f"section = shmem.SharedMemory(shared_name=args[0]); say('waiting')\n"
        f"try:\n    shmem.{wanted}(section).__enter__()\nexcept KeyboardInterrupt: say('interrupted')\n"
        "sys.stdin.readline()",
        shm.name,
    )
    waiter.hear()
    while shm.stats().lock_waiters == 0:
        time.sleep(0.001)
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.hear_soon() == "interrupted"
    holder.tell()
    holder.hear()
    assert holds(shm) == "free"  # the interrupted process does not hold the lock
    assert shm.owner_deaths == 0


def test_close_while_another_thread_waits(shm, child):
    holder = child(HOLD, shm.name, "exclusive")
    holder.hear()
    second = shmem.SharedMemory(shared_name=shm.name)
    caught = []

    def wait():
        try:
            exclusive_lock(second).__enter__()
        except shmem.ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while shm.stats().lock_waiters == 0:
        time.sleep(0.001)
    second.close()
    thread.join(20)
    assert len(caught) == 1
    holder.tell()
    holder.hear()


def test_waiter_is_warned_after_an_opener_freed_the_lock(child):
    """An opener of the section reuses the killed holder's entry.  The waiter acquires the lock next, and is warned of the death."""
    wait = """
    import warnings
    section = shmem.SharedMemory(shared_name=args[0]); say('ready')
    for line in sys.stdin:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            with shmem.exclusive_lock(section): say(len(caught))
    """
    open_ = """
    say('ready')
    for line in sys.stdin:
        with shmem.SharedMemory(shared_name=args[0]): say('opened'); sys.stdin.readline()
        say('closed')
    """
    with shmem.SharedMemory(max_size=1 << 20, max_participants=3) as section:
        waiter, opener = child(wait, section.name), child(open_, section.name)
        assert waiter.hear() == opener.hear() == "ready"
        for _ in range(8):
            holder = child(HOLD, section.name, "exclusive")
            holder.hear()
            waiter.tell()
            wait_for_waiter(section)
            holder.kill()
            opener.tell()
            assert waiter.hear() == "1"
            assert opener.hear() == "opened"
            opener.tell()
            assert opener.hear() == "closed"
        for other in (waiter, opener):
            other.process.communicate(timeout=20)


def test_abandoned_registrations_are_removed(shm):
    """Writers that time out after another one was woken leave registrations in the channel; the next release removes them."""
    n_threads, gave_up, got = 6, threading.Semaphore(0), []

    def write():
        try:
            with exclusive_lock(shm, 3):  # all of them wait by then
                got.append(1)
                for _ in range(n_threads - 1):
                    assert gave_up.acquire(timeout=20)
        except shmem.LockTimeout:
            gave_up.release()

    threads = [threading.Thread(target=write) for _ in range(n_threads)]
    with exclusive_lock(shm):
        for thread in threads:
            thread.start()
        wait_for(lambda: shm.stats().lock_waiters == n_threads)
    for thread in threads:
        thread.join(20)
    assert len(got) == 1
    assert Scribe(shm.path)[GATE_WRITERS] >> CHANNEL_WAITERS_SHIFT == 0


def test_readers_and_writers_do_not_starve(shm, child):
    """Readers in a tight loop must not starve a writer, nor writers a reader."""
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); lock = getattr(shmem, args[1])(section)
    say('ready'); sys.stdin.readline()
    end = time.monotonic() + 2; n = 0
    while time.monotonic() < end:
        with lock: n += 1
    say(n)
    """
    others = [child(code, shm.name, kind) for kind in ("exclusive_lock", "exclusive_lock", "shared_lock", "shared_lock")]
    for other in others:
        other.hear()
    for other in others:
        other.tell()
    assert all(int(other.hear()) > 10 for other in others)
