"""Processes killed during heap operations: the others continue, the heap is intact, and no allocated block is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

import shmem
from shmem._base.layout import BLOCK_ALIGN_BYTES, BLOCK_HEAD_BYTES, LAYOUT, OWNER_INDEX_MASK

HEADER, BLOCK, PARTICIPANT = LAYOUT["header_t"], LAYOUT["block_t"], LAYOUT["participant_t"]
MANY = 1000  # allocations, of which at least one looks for what dead participants left


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_killed_holding_the_lock_and_allocating(shm, child):
    """SIGKILL while a process holds the exclusive lock and is allocating."""
    for _ in range(5):
        other = child(
            "section = shmem.SharedMemory(shared_name=args[0])\n"
            "with shmem.exclusive_lock(section):\n    say('go')\n    while True: section.free(section.allocate(3000))",
            shm.name,
        )
        other.hear()
        time.sleep(0.01)
        other.kill()
        with pytest.warns(shmem.OwnerDiedWarning), shmem.exclusive_lock(shm, 5):
            shm.free(shm.allocate(3000))
        report = shm.check_heap()
        assert report.blocks <= 1
        for offset in blocks_of(shm):
            shm.free(offset)


def blocks_of(shm):
    """Return the offsets of plain blocks by trying every offset (the section is small)."""
    found = []
    with open(shm.path, "rb") as file:
        start = HEADER["heap_start"].read_file(file.fileno())
    for offset in range(start + BLOCK_HEAD_BYTES, shm.stats().top, BLOCK_ALIGN_BYTES):
        try:
            found.append(shm.block(offset).offset)
        except shmem.InvalidBlock:
            continue
    return found


def stop(pid):
    """Send SIGSTOP, and wait until the process has stopped."""
    os.kill(pid, signal.SIGSTOP)

    def has_stopped():
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    assert wait_until(has_stopped)


def test_killed_heap_gate_owner(shm, child):
    """Stop a member repeatedly until it is inside the heap gate, and kill it there."""
    code = "section = shmem.SharedMemory(shared_name=args[0]); say('go')\nwhile True: section.free(section.allocate(100000, zero=False))"
    for caught in range(1, 4):
        other = child(code, shm.name)
        other.hear()
        for _ in range(10_000):
            stop(other.process.pid)
            if gate_is_taken(shm):
                break
            os.kill(other.process.pid, signal.SIGCONT)
        assert gate_is_taken(shm)
        other.kill()
        begin = time.monotonic()
        shm.free(shm.allocate(50_000))
        assert time.monotonic() - begin < 5
        assert shm.stats().recoveries == caught
        shm.check_heap()
    for offset in blocks_of(shm):
        shm.free(offset)
    assert shm.check_heap().blocks == 0


def gate_is_taken(shm):
    """Return whether the heap gate has an owner."""
    with open(shm.path, "rb") as file:
        return HEADER["heap_gate"].read_file(file.fileno()) & OWNER_INDEX_MASK != 0


@pytest.mark.parametrize("idle", [False, True])
def test_unclean_file_is_recovered(section_file, child, idle):
    """The only process dies; the next opener recovers the heap, where nothing is left to free, too, and frees the block being made."""
    other = child(
        "section = shmem.SharedMemory(args[0], max_size=1 << 28); section['a'] = [1, 2, 3]; say('go')\n"
        "while args[1] == 'True': time.sleep(60)\n"
        "while True: section.free(section.allocate(100_000_000))",
        section_file,
        idle,
    )
    other.hear()
    time.sleep(0.05)
    other.kill()
    with shmem.SharedMemory(section_file) as section:
        assert section.recovered
        assert section.stats().recoveries == 1
        report = section.check_heap()
        assert report.pending_blocks == 0
        assert report.blocks <= 2
        assert section["a"].tolist() == [1, 2, 3]
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered


def allocate_and_free(shm, size):
    for _ in range(MANY):
        shm.free(shm.allocate(size))


@pytest.mark.parametrize("way", ["attach", "sweep", "allocate little", "allocate much"])
def test_remains_of_killed_processes_are_swept(shm, child, way):
    """A temporary array of a killed process, where no allocation fails, and no process takes the place of the dead one."""
    kept = shm.zeros(10, temporary=True)
    allocate_and_free(shm, 10)  # one of them looks for remains: not only the first that does so may find them
    other = child(
        "section = shmem.SharedMemory(shared_name=args[0]); a = section.zeros(100_000, temporary=True); say(1); time.sleep(60)", shm.name
    )
    other.hear()
    assert shm.sweep() == 0
    other.kill()
    assert shm.stats().used > 800_000
    if way == "attach":
        other = child("section = shmem.SharedMemory(shared_name=args[0]); say(section.stats().used); time.sleep(60)", shm.name)
        assert int(other.hear()) < 800_000
        other.kill()
    elif way == "sweep":
        assert 800_000 < shm.sweep() < 810_000
        assert shm.sweep() == 0
    else:
        allocate_and_free(shm, 10 if way == "allocate little" else 100_000)
    assert shm.stats().used < 800_000
    assert kept.sum() == 0
    assert shm.check_heap().blocks == 1


def test_remains_in_an_entry_that_was_just_taken(shm, child):
    """While `attached` is 2, an entry has a new owner, which is alive, and still what its former owner left in the heap."""
    other = child(
        "section = shmem.SharedMemory(shared_name=args[0]); a = section.zeros(100_000, temporary=True); say(1); time.sleep(60)", shm.name
    )
    other.hear()
    entry = HEADER["participants_off"].read(Path(shm.path).read_bytes()) + LAYOUT["participant_t"].size
    with open(shm.path, "r+b") as file:
        assert PARTICIPANT["pid"].read_file(file.fileno(), entry) == other.process.pid
        PARTICIPANT["attached"].write_file(file.fileno(), 2, entry)
    assert shm.sweep() > 800_000
    assert shm.check_heap().blocks == 0


def test_pending_block_of_a_dead_process_is_reused(child):
    """A member dies while it clears a large block.  Another process can allocate the memory without reopening the section."""
    with shmem.SharedMemory(max_size=1 << 26) as section:
        code = "section = shmem.SharedMemory(shared_name=args[0]); say('go')\nwhile True: section.free(section.allocate(60_000_000))"
        other = child(code, section.name)
        other.hear()
        assert wait_until(lambda: section.stats().used > 50_000_000)
        other.kill()
        try:
            section.free(section.allocate(60_000_000))
        except shmem.SectionFull:  # it died between the last store and free(): the block is used, a leak of the dead program
            assert section.check_heap().blocks == 1


def test_killed_opener(section_file, child):
    """After a kill anywhere in opening or closing, the next process can open the section."""
    shmem.SharedMemory(section_file, max_size=1 << 20).close()
    for i in range(15):
        other = child("say('go')\nwhile True: shmem.SharedMemory(args[0]).close()", section_file)
        other.hear()
        time.sleep(0.003 * (i % 5 + 1))
        other.kill()
        with shmem.SharedMemory(section_file) as section:
            section.check_heap()
            assert section.stats().participants == (os.getpid(),)


def test_killed_creator(tmp_path, child):
    for i in range(10):
        other = child(
            """
            n = 0; say('go')
            while True:
                n += 1; path = args[0] + str(n % 3); shmem.SharedMemory(path, max_size=1 << 20).close(); os.unlink(path)
            """,
            tmp_path / "s",
        )
        other.hear()
        time.sleep(0.002 * (i % 5 + 1))
        other.kill()
        for n in range(3):
            with shmem.SharedMemory(str(tmp_path / "s") + str(n), max_size=1 << 20) as section:
                section.check_heap()
            os.unlink(str(tmp_path / "s") + str(n))


def test_damaged_chain_is_read_but_not_changed(section_file):
    """After a front tag was overwritten in the file, reading works and changes raise."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section["a"] = [1, 2, 3]
        first, second = section.allocate(100), section.allocate(5000)
        offset = second.offset - BLOCK_HEAD_BYTES
        del first, second
    with open(section_file, "r+b") as file:
        BLOCK["tag"].write_file(file.fileno(), (1 << 64) - 1, offset)
        HEADER["clean"].write_file(file.fileno(), 0)
    with shmem.SharedMemory(section_file) as section:
        assert section["a"].tolist() == [1, 2, 3]
        for change in (lambda: section.allocate(10), lambda: section.free(section["a"]), lambda: section.__setitem__("b", [1])):
            with pytest.raises(shmem.HeapCorruption) as caught:
                change()
            assert caught.value.status == shmem.Status.corrupted
        with pytest.raises(shmem.HeapCorruption, match="front tag") as caught:
            section.check_heap()
        assert caught.value.offset == offset
