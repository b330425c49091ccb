"""Mutex: owned by a thread, recursive; acquiring it after its owner died raises a warning."""

import multiprocessing
import os
import random
import signal
import threading
import warnings

import pytest
from workers import add_under, outcome, wait_for, waits_for_others

import shmem


class Node(shmem.Struct, type_name="tests.GuardedNode"):
    tag: shmem.int8
    guard: shmem.Mutex


@pytest.fixture(params=["placed", "field"])
def mutex(request, shm):
    if request.param == "placed":
        shm["mutex"] = shm.mutex()
        return shm["mutex"]
    shm["mutex"] = shm.new(Node)
    return shm["mutex"].guard


MUTEX_OF_CHILD = "shm = shmem.SharedMemory(shared_name=args[0]); m = shm['mutex']; m = getattr(m, 'guard', m)\n"


def in_thread(call):
    """Return the result of `call` in another thread, which then ends."""
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(call)))
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return found[0]


CALLS = [
    ("acquire", (), {}),
    ("acquire", (False,), {}),
    ("acquire", (True, 0.01), {}),
    ("acquire", (), {"timeout": 0.01}),
    ("acquire", (), {"timeout": -1}),
    ("acquire", (), {"blocking": True}),
    ("acquire", (False, 1), {}),
    ("acquire", (True, -5), {}),
    ("acquire", (), {"timeout": float("nan")}),
    ("acquire", (), {"timeout": "1"}),
    ("__enter__", (), {}),
    *[("release", (), {})] * 5,
    *[("__exit__", (None, None, None), {})] * 3,
]


def test_behaves_like_rlock(mutex):
    """Random calls return the same results and raise the same kinds of error, also as seen from another thread."""
    rng = random.Random(3)
    theirs, seen = threading.RLock(), set()
    for step in range(800):
        method, args, kwargs = rng.choice(CALLS)
        found = outcome(getattr(mutex, method), *args, **kwargs)
        assert found == outcome(getattr(theirs, method), *args, **kwargs), (method, args, kwargs)
        assert mutex._is_owned() == theirs._is_owned()
        assert mutex.locked() == mutex._is_owned()
        if step % 50 == 0:
            expected = in_thread(lambda: theirs.acquire(False) and (theirs.release(), True)[1])
            assert in_thread(lambda: mutex.acquire(False) and (mutex.release(), True)[1]) == expected
            assert in_thread(mutex.release) is RuntimeError
        seen.add((method, found))
    assert {("acquire", True), ("release", RuntimeError), ("acquire", ValueError), ("__exit__", RuntimeError)} <= seen


def test_timeouts(mutex):
    with mutex:
        assert in_thread(lambda: mutex.acquire(timeout=0)) is False
        assert in_thread(lambda: mutex.acquire(timeout=0.06)) is False
        assert in_thread(lambda: mutex.acquire(blocking=False)) is False
        assert in_thread(lambda: mutex.acquire(False, None)) is False
        assert mutex.locked()
    assert not mutex.locked()
    assert mutex.acquire(timeout=None)
    mutex.release()


def test_misuse_raises(shm, mutex):
    with pytest.raises(TypeError, match=r"SharedMemory\.mutex"):
        shmem.Mutex()
    with pytest.raises(shmem.LockError) as caught:
        mutex.release()
    assert caught.value.status == shmem.Status.not_owner
    with mutex, pytest.raises(TypeError, match="positional"):
        mutex.acquire(1, 2, 3)
    assert not mutex.locked()
    mutex.close()
    with pytest.raises(shmem.ClosedError):
        mutex.acquire()


def test_threads_exclude_each_other(shm, mutex):
    counter = shm.zeros(1, "int64")
    threads = [threading.Thread(target=add_under, args=(mutex, counter, 2000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter[0] == 8000


def test_processes_exclude_each_other(shm):
    mutex, counter = shm.mutex(), shm.zeros(1, "int64")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=add_under, args=(mutex, counter, 3000)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert counter[0] == 9000
    assert mutex.owner_deaths == 0


def test_killed_owner(shm, mutex, child):
    other = child(MUTEX_OF_CHILD + "m.acquire(); m.acquire(); say('mine'); sys.stdin.readline()", shm.name)
    assert other.hear() == "mine"
    assert mutex.locked()
    assert mutex.acquire(timeout=0.06) is False
    other.kill()
    assert not mutex.locked()
    with pytest.warns(shmem.OwnerDiedWarning, match="may be inconsistent"):
        assert mutex.acquire(blocking=False)
    assert mutex.owner_deaths == 1
    assert mutex._is_owned()
    mutex.release()
    assert in_thread(lambda: mutex.acquire(False)) is True  # without a warning; this thread ends as the owner


def test_killed_while_others_wait(shm, mutex, child):
    other = child(MUTEX_OF_CHILD + "m.acquire(); say('mine'); sys.stdin.readline()", shm.name)
    assert other.hear() == "mine"
    quiet = "import warnings; warnings.simplefilter('ignore')\n"
    waiter = child(quiet + MUTEX_OF_CHILD + "say('up'); say(m.acquire(), m.owner_deaths); m.release()", shm.name)
    assert waiter.hear() == "up"
    other.kill()
    assert waiter.hear() == "True 1"
    waiter.end()


def test_raising_warning_releases_the_mutex(shm, mutex, child):
    other = child(MUTEX_OF_CHILD + "m.acquire(); say('mine'); sys.stdin.readline()", shm.name)
    assert other.hear() == "mine"
    other.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(shmem.OwnerDiedWarning):
            mutex.acquire()
    assert not mutex.locked()
    with mutex:
        assert mutex.owner_deaths == 1


def test_ended_thread_releases_all_levels(shm):
    first, second, third = shm.mutex(), shm.mutex(), shm.mutex()

    def hold():
        first.acquire()
        second.acquire()
        third.acquire()
        second.release()
        second.acquire()

    in_thread(hold)
    for one in (first, second, third):
        with pytest.warns(shmem.OwnerDiedWarning):
            assert one.acquire(timeout=20)
        assert one.owner_deaths == 1
        one.release()


def test_release_in_any_order(shm):
    mutexes = [shm.mutex() for _ in range(4)]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        for one in mutexes:
            one.acquire()
        for i in order:
            mutexes[i].release()
    assert in_thread(lambda: [one.acquire(False) and one.release() for one in mutexes]) == [None] * 4
    assert all(one.owner_deaths == 0 for one in mutexes)


def test_free_while_held_does_not_hang(shm):
    """Misuse must not hang, even when another mutex of the same thread reuses the block."""
    outer, freed = shm.mutex(), shm.mutex()
    outer.acquire()
    freed.acquire()
    shm.free(freed)
    with pytest.raises(shmem.InvalidBlock):
        freed.release()
    again = shm.mutex()
    assert again.offset == freed.offset
    again.acquire()
    outer.release()
    again.release()
    assert in_thread(lambda: (outer.acquire(False), again.acquire(False))) == (True, True)


def test_claim_of_another_thread_is_not_ownership(shm):
    """Between claim and signature a mutex names the dead owner's thread, whose pointer may equal this thread's, as after a fork."""
    mutex, mine = shm.mutex(), shm.mutex()
    mine.acquire()
    pid = os.fork()
    if pid == 0:
        mutex.acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    word = memoryview(shm.block(mine.offset)).cast("Q")[0]
    memoryview(shm.block(mutex.offset)).cast("Q")[0] = word  # the word that another thread of this process writes to claim it
    assert mine._is_owned()
    assert not mutex._is_owned()
    assert mutex.acquire(False) is False


def test_ctrl_c_interrupts_acquire(shm, mutex, child):
    other = child(
        MUTEX_OF_CHILD + "try:\n    say('up')\n    m.acquire()\nexcept KeyboardInterrupt:\n    say('interrupted', m._is_owned())", shm.name
    )
    with mutex:
        assert other.hear() == "up"
        wait_for(lambda: waits_for_others(other.process.pid))
        other.process.send_signal(signal.SIGINT)
        assert other.hear_soon() == "interrupted False"
        other.end()


def test_forked_child_is_not_the_owner(mutex):
    with mutex:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(shmem.LockError):
                    mutex.release()
                assert not mutex._is_owned()
                assert mutex.acquire(False) is False
                mutex.__exit__(None, None, None)  # as when leaving the parent's block
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert mutex._is_owned()
    assert not mutex.locked()


def test_forked_child_leaves_the_parents_block(mutex):
    pid = None
    with mutex:
        pid = os.fork()
    if pid == 0:
        os._exit(0 if mutex.acquire(timeout=20) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.warns(shmem.OwnerDiedWarning):
        mutex.acquire()
    mutex.release()


def test_mutex_of_a_condition(mutex):
    """`threading.Condition` accepts a mutex as an RLock."""
    condition, seen = threading.Condition(mutex), []

    def wait():
        with condition:
            condition.wait_for(lambda: seen, 20)
            seen.append(2)

    thread = threading.Thread(target=wait)
    thread.start()
    with condition:
        seen.append(1)
        condition.notify()
    thread.join(20)
    assert seen == [1, 2]
    with pytest.raises(RuntimeError):
        condition.notify()


def test_condition_restores_the_recursion_depth(mutex):
    """A waiter releases the mutex completely, and owns it at the previous depth afterwards, as with an RLock."""
    condition, seen = threading.Condition(mutex), []

    def wait():
        with condition, condition:
            seen.append("waits")
            seen.append(condition.wait_for(lambda: "go on" in seen, 20))
        seen.append(mutex._is_owned())

    thread = threading.Thread(target=wait)
    thread.start()
    while not seen:
        os.sched_yield()
    assert mutex.acquire(timeout=20)
    seen.append("go on")
    condition.notify()
    mutex.release()
    thread.join(20)
    assert seen == ["waits", "go on", True, False]
    assert not mutex.locked()
    with pytest.raises(shmem.LockError):
        mutex._release_save()


def test_owner_death_persists_in_a_file(section_file):
    """The owner died as the last process of its section.  The next process that opens the file is warned."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section.mutex(name="m")
        pid = os.fork()
        if pid == 0:
            section["m"].acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    with shmem.SharedMemory(section_file) as section:
        with pytest.warns(shmem.OwnerDiedWarning):
            section["m"].acquire()
        section["m"].release()
