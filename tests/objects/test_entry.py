"""`info`, the facts of an `Entry`, and sealed arrays."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from workers import Point

import shmem

# -- info -----------------------------------------------------------------------------------------------------


def test_info(shm):
    array = shm.zeros((4, 2), name="b")
    shm["a"] = array
    found = shmem.info(array[1:, 0])
    assert (found.section, found.names, found.pins) == (shm, ("b", "a"), (os.getpid(),))
    handle = shmem.handle(array)
    assert (found.offset, found.serial) == (handle.offset, handle.serial)
    del shm["b"]
    assert shmem.info(array).names == ("a",)
    assert (found, hash(found)) == (found, hash(found))


def test_info_of_every_kind_of_object(shm):
    objects = {
        "array": shm.zeros(3, name="array"), "point": shm.new(Point), "queue": shm.queue(3, "int64", name="queue"),
        "semaphore": shm.semaphore(name="semaphore"), "event": shm.event(name="event"), "mutex": shm.mutex(name="mutex"),
    }  # fmt: skip
    shm["point"] = objects["point"]
    shm["block"] = b"text"
    objects["block"] = shm["block"]
    for name, obj in objects.items():
        assert shmem.info(obj).names == (name,)
        assert shmem.info(obj).offset == shmem.handle(obj).offset
    assert shmem.info(memoryview(objects["block"])[1:]).names == ("block",)
    objects["queue"].put(1)
    assert [shmem.info(obj).pins for obj in (objects["queue"], objects["event"])] == [(os.getpid(),), ()]


def test_info_pins_nothing(shm):
    block = shm.allocate(100)
    assert shmem.info(block).pins == ()
    first, second = memoryview(block), memoryview(shm.allocate(50))
    assert [shmem.info(view).pins for view in (first, second)] == [(os.getpid(),)] * 2  # a slot of the header, and a record
    first.release()
    assert shmem.info(block).pins == ()
    assert shm.check_heap().internal_blocks == 1
    second.release()
    assert shm.check_heap().internal_blocks == 0


def test_pins_of_several_processes(shm, child):
    shm["array"], shm["block"] = [1, 2], b"text"
    pids = []
    viewers = [
        child(
            """
            with shmem.SharedMemory(shared_name=args[0]) as shm:
                views = [shm["array"], memoryview(shm["block"])]
                say(os.getpid())
                sys.stdin.readline()
            """,
            shm.name,
        )
        for _ in range(2)
    ]
    pids = sorted(int(viewer.hear()) for viewer in viewers)
    assert sorted(shm.entry("array").pins) == pids
    assert sorted(shm.entry("block").pins) == pids
    viewers[0].kill()
    left = [viewers[1].process.pid]
    assert [list(shm.entry(name).pins) for name in ("array", "block")] == [left, left]
    array = shm["array"]
    assert sorted(shmem.info(array).pins) == sorted([*left, os.getpid()])


def test_info_of_what_is_not_there(shm):
    array, block = shm.zeros(3), shm.allocate(10)
    shm.free(array)
    shm.free(block)
    for obj in (array, block, np.zeros(3), "text", 5):
        with pytest.raises(shmem.InvalidBlock):
            shmem.info(obj)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(log_entry(shm))


def log_entry(shm):
    shm.zeros(2, name="x")
    return shm.entry("x")


# -- sealing --------------------------------------------------------------------------------------------------


def read_only(array):
    """Return whether the processor refuses stores to an array's memory, so that no flag of numpy can allow them."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= array.ctypes.data < end:
            return not array.flags.writeable and line.split()[1] == "r--s"
    return False


def test_sealed_array_is_read_only(shm):
    shm.array([1, 2, 3], name="x")
    entry = shm.entry("x")
    assert not entry.sealed
    entry.seal()
    entry.seal()
    assert entry.sealed
    views = [shm["x"], shmem.handle(shm["x"]).open(), shmem.loads(shmem.dumps(shm["x"])), shmem.loads(shmem.dumps(shm["x"][1:]))]
    for view in views:
        assert read_only(view)
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
    assert memoryview(views[0].base).readonly
    block = shm.block(shmem.info(views[0]).offset)
    assert memoryview(block).readonly
    assert not np.frombuffer(block, "u1").flags.writeable
    with pytest.raises(TypeError, match="read-write"):
        struct.pack_into("B", block, 0, 1)
    assert views[0].tolist() == [1, 2, 3]
    assert repr(entry) == "<shmem.Entry 'x': int64 (3,), sealed>"
    shm.check_heap()


def test_sealed_in_other_processes(place, child):
    with shmem.SharedMemory(**place, max_size=1 << 20) as shm:
        shm.array([1, 2, 3], name="x")
        shm.entry("x").seal()
        handle = pickle.dumps(shmem.handle(shm["x"]))
        other = child(
            """
            import pickle
            with shmem.SharedMemory(**eval(args[0])) as shm:
                views = [shm["x"], pickle.loads(eval(args[1])).open()]
                say([view.flags.writeable for view in views], shm.entry("x").sealed, views[1].tolist())
            """,
            place,
            handle,
        )
        assert other.hear() == "[False, False] True [1, 2, 3]"
        other.end()


def test_viewed_array_is_not_sealed(shm, child):
    view = shm.array([1, 2, 3], name="x")
    with pytest.raises(BufferError, match=str(os.getpid())):
        shm.entry("x").seal()
    view[0] = 9
    del view
    other = child(
        """
        with shmem.SharedMemory(shared_name=args[0]) as shm:
            view = shm["x"]
            say("viewing")
            sys.stdin.readline()
        """,
        shm.name,
    )
    other.hear()
    with pytest.raises(BufferError, match=str(other.process.pid)):
        shm.entry("x").seal()
    assert not shm.entry("x").sealed
    other.kill()
    shm.entry("x").seal()
    assert shm["x"].tolist() == [9, 2, 3]


def test_sealed_array_does_not_grow(shm):
    shm.zeros((2, 2), maxshape=(None, 2), name="x")
    entry = shm.entry("x")
    entry.seal()
    for change in (lambda: entry.append([[1, 2]]), lambda: entry.append([[1, 2]], move=True), lambda: entry.resize((1, 2))):
        with pytest.raises(shmem.ReadOnlyError, match="sealed"):
            change()
    assert entry.shape == (2, 2)
    del shm["x"]
    assert shm.check_heap().blocks == 0


def test_seal_lasts(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm.zeros(3, name="x")
        shm.entry("x").seal()
        shm.snapshot(section_file + ".copy")
    for path in (section_file, section_file + ".copy"):
        with shmem.SharedMemory(path) as shm:
            assert shm.entry("x").sealed
            assert not shm["x"].flags.writeable
        with shmem.SharedMemory(path, mode="read_only") as shm:
            assert shm["x"].tolist() == [0] * 3
            with pytest.raises(shmem.ReadOnlyError):
                shm.entry("x").seal()
    os.remove(section_file + ".copy")


def test_what_cannot_be_sealed(shm):
    shm["block"] = b"text"
    with pytest.raises(TypeError):
        shm.entry("block").seal()
