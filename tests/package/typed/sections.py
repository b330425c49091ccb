"""What type checkers infer about sections; `tests/package/test_types.py` runs `check`, which states the same about the objects."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import shmem
from shmem import posixsem


def check(shm: shmem.SharedMemory) -> None:
    check_arrays(shm)
    check_entries(shm)
    check_blocks(shm)
    check_directory(shm)
    check_groups(shm)
    check_changes(shm)
    check_locks(shm)
    check_waitables(shm)
    check_records(shm)
    with shmem.SharedMemory(max_size="1M", mode="read_write") as other:
        assert type(assert_type(other, shmem.SharedMemory)) is shmem.SharedMemory


def check_arrays(shm: shmem.SharedMemory) -> None:
    assert assert_type(shm.zeros(3), npt.NDArray[np.float64]).dtype == np.float64
    assert assert_type(shm.empty((2, 3), np.int32, "F"), npt.NDArray[np.int32]).dtype == np.int32
    assert assert_type(shm.zeros([2], dtype=np.dtype(np.int8)), npt.NDArray[np.int8]).dtype == np.int8
    assert assert_type(shm.zeros(3, "int8"), npt.NDArray[Any]).dtype == np.int8
    assert assert_type(shm.zeros(3, shmem.float32), npt.NDArray[Any]).dtype == np.float32
    assert assert_type(shm.full(3, 1, np.uint8), npt.NDArray[np.uint8]).tolist() == [1, 1, 1]
    assert assert_type(shm.full((), 1.5), npt.NDArray[Any]).dtype == np.float64
    assert assert_type(shm.array(np.zeros(3, np.float32)), npt.NDArray[np.float32]).dtype == np.float32
    assert assert_type(shm.array([1, 2], np.int16), npt.NDArray[np.int16]).dtype == np.int16
    assert assert_type(shm.array([1, 2], temporary=True), npt.NDArray[Any]).tolist() == [1, 2]
    assert assert_type(shm.copy(np.zeros(3, np.float32)), npt.NDArray[np.float32]).dtype == np.float32


def check_entries(shm: shmem.SharedMemory) -> None:
    array = assert_type(shm.zeros((1, 2), np.int8, maxshape=(None, 2), name="log"), npt.NDArray[np.int8])
    entry = assert_type(shm.entry("log"), shmem.Entry)
    entry.append([[1, 2]])
    entry.resize([3, 2])
    assert assert_type(entry.maxshape, tuple[int | None, ...] | None) == (None, 2)
    assert assert_type(entry.shape, tuple[int, ...] | None) == (3, 2)
    assert assert_type(shmem.info(array), shmem.ObjectInfo).names == ("log",)


def check_blocks(shm: shmem.SharedMemory) -> None:
    block = shm.allocate("1K")
    assert type(assert_type(block, shmem.Block)) is shmem.Block
    memoryview(block)[:5] = b"hello"
    assert bytes(block)[:5] == b"hello"
    assert len(block) == assert_type(block.nbytes, int) == 1024
    block = shm.reallocate(block, 10)
    assert assert_type(shm.block(block.offset), shmem.Block) == block
    assert assert_type(shmem.find_storage(block), shmem.SharedMemory | None) is shm
    shm.free(block)
    shm.free(shm.zeros(3))
    shmem.deallocate(shm.mutex())


def first_name(mapping: Mapping[str, Any]) -> str:
    return next(iter(mapping))


def check_directory(shm: shmem.SharedMemory) -> None:
    shm["typed"] = [1, 2, 3]
    assert_type(shm["typed"], Any)
    assert first_name(shm) in shm  # a section is a mapping
    assert assert_type(list(shm.keys()), list[str]) == list(shm)
    assert dict(assert_type(list(shm.items()), list[tuple[str, Any]])).keys() == shm.keys()
    assert shm.get("nothing") is None
    assert "typed" in shm
    grid = shm.require("typed-grid", lambda: shm.zeros(3, np.int32))
    assert assert_type(grid, npt.NDArray[np.int32]).dtype == np.int32
    assert_type(shm.require("typed", lambda: [1, 2, 3]), Any)
    assert type(assert_type(shm.require_root(shm.mutex), shmem.Mutex)) is shmem.Mutex
    shm.root = None
    shm.set_root_object(grid)
    del shm["typed"]


def check_groups(shm: shmem.SharedMemory) -> None:
    group = assert_type(shm.create_group("typed-group"), shmem.Group)
    assert assert_type(group.zeros(3, np.int16, name="grid"), npt.NDArray[np.int16]).dtype == np.int16
    assert_type(shm["typed-group"], Any)
    assert assert_type(shm.require_group("typed-group").name, str) == "typed-group"
    assert assert_type(group.parent, shmem.Group | shmem.SharedMemory) is shm
    assert assert_type(list(group), list[str]) == ["grid"]
    assert group.visititems(lambda name, found: name if len(found) == 3 else None) == "grid"
    attrs = assert_type(group.entry("grid").attrs, shmem.Attributes)
    attrs["unit"] = "K"
    shm.attrs.update(levels=[850, 500], scale=np.float32(2))
    assert assert_type(list(shm.attrs), list[str]) == ["levels", "scale"]
    assert str(group.tree(level=1)).startswith("typed-group/")
    assert isinstance(assert_type(group._repr_html_(), str), str)
    del shm["typed-group"]


def check_changes(shm: shmem.SharedMemory) -> None:
    shm["typed-frame"] = [1]
    entry = shm.entry("typed-frame")
    seen = assert_type(entry.version, int)
    entry.replace(b"bytes")
    assert assert_type(entry.wait_changed(seen, timeout=1.5), int | None) == entry.version
    assert assert_type(entry.touch(), int) == entry.version
    entry.rename("typed-last")
    shm.replace("typed-last", [1.5])
    shm.move("typed-last", "typed-first")
    del shm["typed-first"]


def check_locks(shm: shmem.SharedMemory) -> None:
    with shmem.exclusive_lock(shm, timeout=5) as locked:
        assert assert_type(locked, shmem.SharedMemory) is shm

    @shmem.shared_lock(shm)
    def add(one: int, two: int = 2) -> int:
        return one + two

    assert assert_type(add(1, two=3), int) == 4
    descriptor = shmem.LockDescriptor(shmem.LockMode.shared)
    shm.lock(descriptor, 0)
    assert assert_type(descriptor.held, bool)
    shm.unlock(descriptor)


def check_waitables(shm: shmem.SharedMemory) -> None:
    slots, ready, guard = shm.semaphore(1), shm.event(), shm.mutex(name="typed-guard")
    with slots as taken, guard:
        assert assert_type(taken, bool)
        assert assert_type(slots.value, int) == 0
        assert assert_type(guard.locked(), bool)
    ready.signal()
    assert assert_type(ready.wait(1.5), bool)
    assert assert_type(shmem.Event(signaled=True).name, str | None) is None
    semaphore = assert_type(posixsem.sem_init(shm, 1), shmem.Semaphore)
    posixsem.sem_wait(semaphore)
    assert assert_type(posixsem.sem_getvalue(semaphore), int) == 0


def check_records(shm: shmem.SharedMemory) -> None:
    assert type(assert_type(shm.stats(), shmem.SectionStats)) is shmem.SectionStats
    assert type(assert_type(shm.stats().participants, tuple[int, ...])) is tuple
    assert assert_type(shm.check_heap().blocks, int) > 0
    assert assert_type(shm.sweep(), int) >= 0
    assert assert_type(shm.sweep(claims=60), int) >= 0
    assert assert_type(shm.stats().claims, int) == 0
    array = shm.array([1, 2, 3], np.int64)
    handle = assert_type(shmem.handle(array), shmem.Handle[npt.NDArray[np.int64]])
    again = assert_type(handle.open(writeable=False), npt.NDArray[np.int64])
    assert again.tolist() == [1, 2, 3]
    assert assert_type(shmem.handle(shm).open(), shmem.SharedMemory) is shm
    assert_type(shmem.loads(shmem.dumps(pickle.HIGHEST_PROTOCOL)), Any)
    assert shmem.Handle[int] is not shmem.Handle
    error: Exception = shmem.SectionFull("full")
    assert isinstance(error, MemoryError)
    assert assert_type(shmem.SectionFull().status, int) == shmem.Status.no_memory


def mistakes(shm: shmem.SharedMemory) -> None:
    """Each line has an error that type checkers find."""
    shmem.SharedMemory(max_size=1.5)  # type: ignore  # pyright: ignore
    shmem.SharedMemory(Path("x"), mode="write")  # type: ignore  # pyright: ignore
    shm.zeros(3, order="A")  # type: ignore  # pyright: ignore
    shm.closed = True  # type: ignore  # pyright: ignore
    shm.stats().used = 3  # type: ignore  # pyright: ignore
    shm["name"] = print  # type: ignore  # pyright: ignore
    shm[3]  # type: ignore  # pyright: ignore
    shmem.exclusive_lock(3)  # type: ignore  # pyright: ignore
    shmem.register("dask")  # type: ignore  # pyright: ignore
