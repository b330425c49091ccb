"""What type checkers infer about Struct classes; `tests/package/test_types.py` runs `check`, which states the same about the objects."""

from typing import Annotated, Any, Literal, Self, assert_type

import numpy as np
import numpy.typing as npt

import shmem


class Node(shmem.Struct, type_name="typed.Node"):
    key: shmem.int64 = 7
    height: shmem.float32
    phase: shmem.complex64
    seen: shmem.bool_
    name: shmem.Bytes[Literal[16]] = b"none"
    next: shmem.Ref["Node"] = None
    other: shmem.Ref[Self]
    anything: shmem.Ref[Any]
    samples: shmem.Ref[np.ndarray]
    position: shmem.Array[shmem.float64, Literal[3]]
    grid: shmem.Array[np.float32, Literal[2], Literal[3]]
    mask: Annotated[npt.NDArray[np.bool_], shmem.Array[np.bool_, 4]]
    guard: shmem.Mutex
    done: shmem.Event
    slots: shmem.Semaphore

    def length(self) -> int:
        return 1 if self.next is None else 1 + self.next.length()


class Derived(Node):
    extra: shmem.uint8


class Counted(shmem.Struct):
    count: shmem.int64

    def __init__(self, start: int, step: int = 1) -> None:
        self.count = start * step


def check(shm: shmem.SharedMemory) -> None:
    node = shm.new(Node, key=1, height=2.5, position=(1, 2, 3), type_name="typed.Renamed")
    assert type(assert_type(node, Node)) is Node
    assert type(assert_type(node.key, int)) is int
    assert type(assert_type(node.height, float)) is float
    assert type(assert_type(node.phase, complex)) is complex
    assert type(assert_type(node.seen, bool)) is bool
    assert type(assert_type(node.name, bytes)) is bytes
    assert assert_type(node.other, Node | None) is None
    assert type(assert_type(node.offset, int)) is int
    assert assert_type(node.section, shmem.SharedMemory | None) is shm
    assert type(assert_type(node.guard, shmem.Mutex)) is shmem.Mutex
    assert type(assert_type(node.done, shmem.Event)) is shmem.Event
    assert type(assert_type(node.slots, shmem.Semaphore)) is shmem.Semaphore
    assert isinstance(assert_type(node.dtype, np.dtype[np.void]), np.dtype)
    check_arrays(node)
    check_references(shm, node)
    check_classes(shm)


def check_arrays(node: Node) -> None:
    assert assert_type(node.position, npt.NDArray[Any]).tolist() == [1, 2, 3]
    assert assert_type(node.grid, npt.NDArray[np.float32]).dtype == np.float32
    assert assert_type(node.mask, npt.NDArray[np.bool_]).shape == (4,)
    node.position = 0
    node.position = [1, 2, 3]
    node.position[0] += 1
    node.grid = np.zeros((2, 3))


def check_references(shm: shmem.SharedMemory, node: Node) -> None:
    node.next = shm.new(Node)
    assert assert_type(node.next, Node).key == 7
    assert assert_type(node.length(), int) == 2
    node.next.key += 1
    node.next = None
    node.samples = shm.zeros(3)
    node.anything = node


def check_classes(shm: shmem.SharedMemory) -> None:
    derived = shm.new(Derived, key=2, extra=3)
    assert type(assert_type(derived, Derived)) is Derived
    counted = shm.new(Counted, 3, step=2)
    assert assert_type(counted, Counted).count == 6
    assert {counted: derived == counted} == {counted: False}
    assert assert_type(shm.new(np.int64), npt.NDArray[np.int64]).shape == ()
    assert assert_type(shm.new(shmem.int64), npt.NDArray[Any]).shape == ()


def mistakes(shm: shmem.SharedMemory, node: Node) -> None:
    """Each line has an error that type checkers find."""
    node.key = "1"  # type: ignore  # pyright: ignore
    node.name = "text"  # type: ignore  # pyright: ignore
    node.next = 3  # type: ignore  # pyright: ignore
    node.position = shm  # type: ignore  # pyright: ignore
    node.wrong  # type: ignore  # pyright: ignore  # noqa: B018
    node.other.key  # type: ignore  # pyright: ignore  # noqa: B018
    shm.new(Counted, "3", stop=2)  # type: ignore  # pyright: ignore
    shm.new(str)  # type: ignore  # pyright: ignore

    class Wrong(shmem.Struct):
        key: shmem.int64 = "text"  # type: ignore  # pyright: ignore
