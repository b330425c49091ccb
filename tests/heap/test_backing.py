"""Space in the file: reserved in pieces and outside of the heap gate, and returned after a failure and by `trim`."""

import errno
import os
import signal
import subprocess

import pytest
from workers import wait_for

import shmem


@pytest.fixture(scope="module")
def library(preloadable):
    """Return the path of a library to preload, whose `fallocate` takes time and is interrupted by signals."""
    return preloadable("fallocate")


def taken(section):
    """Return the bytes that the file takes."""
    return os.stat(section.path).st_blocks * 512


def test_signals_come_faster_than_space_is_reserved(place, child, library):
    """Each signal interrupts a reservation.  It is continued, and not begun anew; handlers run meanwhile."""
    code = """
    import signal
    n = 0
    def handler(*_):
        global n
        n += 1
    section = shmem.SharedMemory(**eval(args[0]), max_size=1 << 28)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    section.allocate(100 << 20, zero=False)
    signal.setitimer(signal.ITIMER_REAL, 0)
    say(n > 1)
    """
    other = child(code, place, before=("env", f"LD_PRELOAD={library}", "FALLOCATE_NS_PER_MIB=1000000"))
    assert other.hear_soon() == "True"
    other.end()


HOLD = """
section = shmem.SharedMemory(**eval(args[0]))
section.allocate(6 << 20, zero=False)
say("allocated"); sys.stdin.readline()
"""
OTHERS = """
section = shmem.SharedMemory(**eval(args[0]))
block = section.allocate(100); section["a"] = [1, 2]; section.free(block); del section["a"]
section.check_heap()
say("done")
"""


def test_others_use_the_heap_while_space_is_reserved(place, child, library, tmp_path):
    """The reservation takes long, and is not made under the heap gate; killed in it, the process leaves a heap that grows."""
    held = tmp_path / "held"
    with shmem.SharedMemory(**place, max_size=1 << 26) as section:
        section.allocate(100)
        slow = child(HOLD, place, before=("env", f"LD_PRELOAD={library}", f"FALLOCATE_HOLDS={held}"))
        wait_for(held.exists)
        other = child(OTHERS, place)
        assert other.hear_soon() == "done"
        other.end()
        slow.kill()
        third = child(HOLD, place)
        assert third.hear_soon() == "allocated"
        section.check_heap()
        third.kill()
        section.trim()
        section.check_heap()


def test_growing_processes_wait_for_each_other(place, child, library, tmp_path):
    """A second process that needs space waits for the first one, and can be interrupted meanwhile."""
    held = tmp_path / "held"
    with shmem.SharedMemory(**place, max_size=1 << 26) as section:
        section.allocate(100)
        slow = child(HOLD, place, before=("env", f"LD_PRELOAD={library}", f"FALLOCATE_HOLDS={held}"))
        wait_for(held.exists)
        code = HOLD.replace("section.allocate", "say('grows'); section.allocate")
        waits, interrupted = child(code, place), child(code, place)
        assert waits.hear() == interrupted.hear() == "grows"
        interrupted.process.send_signal(signal.SIGINT)
        assert interrupted.process.wait(20) != 0
        assert waits.process.poll() is None
        held.unlink()
        assert slow.hear_soon() == waits.hear_soon() == "allocated"
        assert section.check_heap().blocks == 3
        for other in (slow, waits):
            other.tell()
            other.end()


def test_trim_returns_all_that_is_not_used(shm):
    """A process that is killed while it reserves space, or a file system that keeps part of what it refused, leaves space behind."""
    for used in (0, 1_000_000):
        block = shm.allocate(used)
        with open(shm.path, "r+b") as file:
            os.posix_fallocate(file.fileno(), shm.max_size - (2 << 20), 2 << 20)
        assert taken(shm) >= 2 << 20
        shm.trim()
        assert taken(shm) < used + 200_000
        shm.check_heap()
        shm.free(block)


def test_reallocated_last_block_grows_in_place(shm):
    """Space is reserved for it outside of the heap gate, then it is looked at again."""
    block = shm.allocate(10, zero=False)
    memoryview(block)[:] = b"0123456789"
    offset = block.offset
    for size in (500_000, 3_000_000):
        block = shm.reallocate(block, size)
        assert block.offset == offset
        assert bytes(block)[:11] == b"0123456789\0"
        assert not any(bytes(block)[10:])
        shm.check_heap()
    with pytest.raises(shmem.SectionFull):
        shm.reallocate(block, shm.max_size)
    assert block.nbytes == 3_000_000
    shm.check_heap()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_full_after_a_long_reservation(child, library):
    """The file system is found full after several slices; the call fails then, and does not begin anew."""
    code = """
    section = shmem.SharedMemory(max_size=1 << 30)
    block = section.allocate(100)
    for grow in (section.allocate, lambda size: section.reallocate(block, size)):
        try:
            grow(200 << 20)
        except shmem.SectionFull as error:
            say(error.status)
    section.check_heap(); section.free(section.allocate(2 << 20))
    """
    namespace = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=40m tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    other = child(code, before=(*namespace, "env", f"LD_PRELOAD={library}", "FALLOCATE_NS_PER_MIB=4000000"))
    assert other.hear_soon() == other.hear_soon() == str(errno.ENOSPC)
    other.end()
