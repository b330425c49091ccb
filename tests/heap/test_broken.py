"""A heap that is marked as damaged, `header.broken`, can be read; nothing changes it until recovery has succeeded."""

import threading

import numpy as np
import pytest
from scribe import HEAD, HEADER, HOLE, Scribe

import shmem
from shmem._objects import arrays

pytestmark = pytest.mark.damages
LARGE = 100_000
ATTEMPTS = 20


class Point(shmem.Struct):
    x: shmem.float64


class Other(shmem.Struct):
    y: shmem.float64


class Marker(Scribe):
    """The mark in the header of a section."""

    def set(self, value):
        HEADER["broken"].write(self.bytes, value)

    def heap(self):
        """All that lies in the heap, and what leads there."""
        start, end = HEADER["heap_start"].read(self.bytes), HEADER["high_water"].read(self.bytes)
        return self.bytes[start:end], [HEADER[name].read(self.bytes) for name in ("top", "root_off", "directory_off", "types_off")]


@pytest.fixture(params=["tlsf", "next_fit"])
def shm(request):
    with shmem.SharedMemory(max_size=1 << 26, index=request.param) as section:
        yield section


@pytest.fixture
def marker(shm):
    return Marker(shm.path)


CHANGES = {
    "allocate": lambda shm, _: shm.allocate(10),
    "allocate much": lambda shm, _: shm.allocate(LARGE),
    "free": lambda shm, block: shm.free(block),
    "free an array": lambda shm, _: shm.free(shm["array"]),
    "grow": lambda shm, block: shm.reallocate(block, LARGE),
    "shrink": lambda shm, block: shm.reallocate(block, 10),
    "trim": lambda shm, _: shm.trim(),
    "sweep": lambda shm, _: shm.sweep(),
    "set the root": lambda shm, block: shm.set_root_object(block),
    "unset the root": lambda shm, _: shm.set_root_object(None),
    "name a new array": lambda shm, _: shm.__setitem__("new", [1, 2]),
    "name a block": lambda shm, block: shm.__setitem__("new", block),
    "name bytes": lambda shm, _: shm.__setitem__("new", b"12"),
    "replace": lambda shm, block: shm.__setitem__("array", block),
    "delete": lambda shm, _: shm.__delitem__("array"),
    "array": lambda shm, _: shm.zeros(10),
    "object": lambda shm, _: shm.new(Point),
    "object of a new class": lambda shm, _: shm.new(Other),
    "queue": lambda shm, _: shm.queue(4, "int64"),
    "semaphore": lambda shm, _: shm.semaphore(name="new"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_refused(shm, marker, change):
    shm["array"] = range(4)
    point, block = shm.new(Point, x=1.5), shm.allocate(1000)
    shm.allocate(100)
    shm.root = point
    kept = shm["array"]
    marker.set(1)
    before = marker.heap()
    with pytest.raises(shmem.HeapCorruption):
        change(shm, block)
    assert marker.heap() == before
    assert (shm.root.x, shm["array"].tolist(), list(shm), len(bytes(block))) == (1.5, [0, 1, 2, 3], ["array"], 1000)
    marker.set(0)
    assert kept.tolist() == [0, 1, 2, 3]
    shm.check_heap()


def test_marked_while_a_block_moves(shm, marker):
    """The copy is made without the gate, and the mark may come meanwhile: the block stays where it was."""
    for _ in range(ATTEMPTS):
        block, _behind, outcomes = shm.allocate(20_000_000), shm.allocate(100), []
        bytes_used = HEADER["used_bytes"].read(marker.bytes)

        def move(block=block, outcomes=outcomes):
            try:
                outcomes.append(shm.reallocate(block, 20_000_100))
            except shmem.HeapCorruption as error:
                outcomes.append(error)

        thread = threading.Thread(target=move)
        thread.start()
        while HEADER["used_bytes"].read(marker.bytes) == bytes_used and not outcomes:
            pass
        marker.set(1)
        thread.join()
        used_before = shm.stats().used
        marker.set(0)
        if isinstance(outcomes[0], shmem.HeapCorruption):
            break
        shm.free(outcomes[0])
        shm.free(_behind)
    else:
        pytest.fail("the block was moved")
    assert len(memoryview(block)) == 20_000_000
    assert used_before > 40_000_000  # the copy stays PENDING until this process makes the next one
    assert shm.check_heap().pending_blocks == 1
    shm.zeros(1)
    assert shm.check_heap().pending_blocks == 0
    assert shm.stats().used < 30_000_000


def test_what_was_being_made_stays_pending(shm, marker):
    """Not even a block that no other process has seen is freed."""
    with pytest.raises(shmem.HeapCorruption):
        arrays.make(shm, (4,), float, "C", True, "new", False, lambda _: marker.set(1))
    assert HEADER["used_blocks"].read(marker.bytes) > 0
    marker.set(0)
    assert shm.check_heap().pending_blocks == 1
    shm.zeros(1, name="next")
    assert shm.check_heap().pending_blocks == 0


def test_the_last_view_frees_nothing(shm, marker):
    temporary, unnamed = shm.zeros(1000, temporary=True), shm.zeros(1000, name="unnamed")
    del shm["unnamed"]
    n_blocks = shm.stats().blocks
    marker.set(1)
    del temporary, unnamed
    assert shm.stats().blocks == n_blocks
    marker.set(0)
    shm.check_heap()


def test_a_root_that_could_not_be_freed_stays_the_root(shm, marker):
    root, behind = shm.allocate(5000), shm.allocate(5000)
    np.frombuffer(root, np.uint8)[:] = 7
    shm.root = root
    marker[behind.offset - HEAD] = 1 << 40 | HOLE
    with pytest.raises(shmem.HeapCorruption):
        shm.free(root)
    assert shm.root == root
    assert set(bytes(shm.root)) == {7}


DIES_WHILE_IT_MAKES = """
from shmem._objects import arrays
section = shmem.SharedMemory(shared_name=args[0])
arrays.make(section, (4,), float, "C", True, None, False, lambda _: (say("making"), time.sleep(60)))
"""


def test_a_full_heap_that_cannot_be_recovered_is_not_called_full(shm, marker, child):
    """What a dead process left would be recovered before the section counts as full."""
    other = child(DIES_WHILE_IT_MAKES, shm.name)
    assert other.hear() == "making"
    blocks = [shm.allocate(1000) for _ in range(3)]
    shm.allocate(60_000_000)
    other.kill()
    marker[blocks[1].offset - HEAD] = 1 << 40 | HOLE
    with pytest.raises(shmem.HeapCorruption):
        shm.allocate(30_000_000)
    assert HEADER["broken"].read(marker.bytes) == 1


def test_array_that_is_read_is_pinned(shm, marker):
    """Reading goes on, and what is read must not be freed by others once the heap has been recovered."""
    shm["array"] = np.arange(1000)
    marker.set(1)
    array = shm["array"]
    marker.set(0)
    del shm["array"]
    assert array.tolist() == list(range(1000))
    n_blocks = shm.stats().blocks
    del array
    assert shm.stats().blocks == n_blocks - 1
