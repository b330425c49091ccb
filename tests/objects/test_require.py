"""`require` and `require_root`: the value of a name is made once, and only those that require the same name wait."""

import os
import signal
import threading

import numpy as np
import pytest
from workers import in_child, in_thread, wait_for, waits_for_byte

import shmem

MAKER = """
section = shmem.SharedMemory(shared_name=args[0])
def factory():
    say('making')
    sys.stdin.readline()
    return [1, 2, 3]
say(section.require('x', factory).tolist())
"""


def test_only_openers_of_the_same_name_wait(shm, child):
    """While a factory runs elsewhere, other names and the lock are free; an opener of its name gets the value made there."""
    other = child(MAKER, shm.name)
    assert other.hear() == "making"
    assert shm.require("y", lambda: [4]).tolist() == [4]
    with shmem.exclusive_lock(shm, timeout=0):
        shm["z"] = [5]
    found = []
    thread = threading.Thread(target=lambda: found.append(shm.require("x", lambda: [6]).tolist()))
    thread.start()
    wait_for(lambda: found or waits_for_byte(thread.native_id))
    assert (found, "x" in shm) == ([], False)
    other.tell("go")
    assert other.hear() == "[1, 2, 3]"
    thread.join()
    assert found == [[1, 2, 3]]


def test_killed_maker(shm, child):
    """The next process makes the value; nothing remains of the killed one."""
    other = child(MAKER, shm.name)
    assert other.hear() == "making"
    found = []
    thread = threading.Thread(target=lambda: found.append(shm.require("x", lambda: [6]).tolist()), daemon=True)
    thread.start()
    wait_for(lambda: found or waits_for_byte(thread.native_id))
    assert found == []
    other.kill()
    thread.join(20)
    assert found == [[6]]
    assert list(shm) == ["x"]


def test_forked_child_does_not_keep_the_right_to_make(shm, child):
    """A child that was forked inside a factory lives on after its parent was killed there."""
    code = """
    import os, time
    section = shmem.SharedMemory(shared_name=args[0])
    def factory():
        if os.fork() == 0:
            say(os.getpid())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    section.require('x', factory)
    """
    other = child(code, shm.name)
    forked = int(other.hear())
    other.kill()
    found = []
    thread = threading.Thread(target=lambda: found.append(shm.require("x", lambda: [6]).tolist()), daemon=True)
    thread.start()
    thread.join(20)
    os.kill(forked, signal.SIGKILL)
    assert found == [[6]]


def test_two_processes_call_the_factory_once(shm):
    shm["count"] = np.zeros(1, int)
    count = shm["count"]

    def another_waits_or_makes():
        others = [thread.native_id for thread in threads if thread.native_id not in (None, threading.get_native_id())]
        return count[0] > 1 or any(waits_for_byte(other) for other in others)

    def factory():
        count[0] += 1
        wait_for(another_waits_or_makes)
        return [7]

    with shmem.SharedMemory(shared_name=shm.name) as again:
        threads = [threading.Thread(target=lambda memory=memory: memory.require("x", factory)) for memory in (shm, again) * 4]
        for thread in threads:
            thread.start()
        assert in_child(lambda: shm.require("x", factory)) == 0
        for thread in threads:
            thread.join()
    assert count.tolist() == [1]


def test_factory_that_requires_other_names_and_its_own(shm):
    assert shm.require("a", lambda: shm.require("b", lambda: [1]) + 1).tolist() == [2]
    with pytest.raises(shmem.DeadlockError, match="same name"):
        shm.require("c", lambda: shm.require("c", lambda: [1]))
    assert shm.require("c", lambda: [3]).tolist() == [3]  # the right to make it was given up


def test_factory_that_raises(shm):
    with pytest.raises(ZeroDivisionError):
        shm.require("x", lambda: 1 / 0)
    assert in_thread(lambda: shm.require("x", lambda: [1]).tolist()) == [1]


def test_read_only_handle_calls_no_factory(shm):
    with shmem.SharedMemory(shared_name=shm.name, mode="read_only") as reader:
        with pytest.raises(shmem.ReadOnlyError, match="'x'"):
            reader.require("x", pytest.fail)
        shm["x"] = [1]
        assert reader.require("x", pytest.fail).tolist() == [1]


def test_require_root_keeps_a_root_that_was_set_meanwhile(shm):
    first = shm.allocate(10)

    def factory():
        in_thread(lambda: shm.set_root_object(first))  # another thread, without a lock
        return shm.allocate(20)

    assert shm.require_root(factory).offset == first.offset
    assert shm.root.offset == first.offset


# -- assignment in place ---------------------------------------------------------------------------------------


def test_update_in_place_does_not_name_a_deleted_array(shm, child):
    """`shm["x"] *= 2` reads the name, updates the array, and assigns the name again."""
    shm["x"] = [1, 2]
    shm["x"] *= 2
    assert shm["x"].tolist() == [2, 4]
    array = shm["x"]
    other = child("section = shmem.SharedMemory(shared_name=args[0]); del section['x']; say('deleted')", shm.name)
    assert other.hear() == "deleted"
    array *= 2
    with pytest.raises(shmem.InvalidBlock, match="deleted"):
        shm["x"] = array
    assert "x" not in shm
    shm["x"] = array.copy()
    assert shm["x"].tolist() == [4, 8]
    shm["y"] = array  # another name is meant
    del array
    shm.check_heap()
    assert shm["y"].tolist() == [4, 8]


def test_update_in_place_does_not_replace_a_new_array(shm):
    shm["x"] = [1, 2]
    array = shm["x"]
    del shm["x"]
    shm["x"] = [3]
    with pytest.raises(shmem.NameExists, match="leads to another object by now"):
        shm["x"] = array
    assert shm["x"].tolist() == [3]
