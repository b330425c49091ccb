"""Objects whose block was only partly freed: the freeing process was killed after the first store."""

import contextlib

import numpy as np
import pytest
from scribe import HEAD, Scribe

import shmem
from shmem import Array, Bytes, Ref, Struct, int64
from shmem._base.layout import STATE_CACHED, STATE_HOLE, STATE_USED, make_tag, read_tag

pytestmark = pytest.mark.damages


class Item(Struct):
    key: int64
    label: Bytes[8]
    values: Array[int64, 3]
    next: Ref["Item"]
    event: shmem.Event


@contextlib.contextmanager
def killed_while_freeing(shm, obj, state):
    """Put the block into the state left by a process killed between the stores of the tag and of the serial."""
    memory, tag_off = Scribe(shm.path), obj.offset - HEAD
    tag = memory[tag_off]
    assert read_tag(tag).state == STATE_USED
    memory[tag_off] = make_tag(read_tag(tag).size, state)
    try:
        yield
    finally:
        memory[tag_off] = tag


def assert_all_raise(uses):
    for name, use in uses.items():
        with pytest.raises(shmem.InvalidBlock):
            pytest.fail(f"{name} returned {use()!r}")


@pytest.fixture(params=[STATE_HOLE, STATE_CACHED], ids=["hole", "cached"])
def freed(request, shm):
    return lambda obj: killed_while_freeing(shm, obj, request.param)


def test_stale_block(shm, freed):
    block = shm.allocate(100)
    memoryview(block)[:5] = b"hello"
    with freed(block):
        assert_all_raise(
            {
                "memoryview": lambda: memoryview(block),
                "bytes": lambda: bytes(block),
                "root": lambda: setattr(shm, "root", block),
                "name": lambda: shm.__setitem__("x", block),
                "handle": lambda: shmem.handle(block),
                "block": lambda: shm.block(block.offset),
                "free": lambda: shm.free(block),
            }
        )
    assert bytes(block)[:5] == b"hello"


def test_stale_object(shm, freed):
    item, other = shm.new(Item, key=5), shm.new(Item)
    event = item.event
    with freed(item):
        assert_all_raise(
            {
                "read a number": lambda: item.key,
                "write a number": lambda: setattr(item, "key", 6),
                "read bytes": lambda: item.label,
                "read an array": lambda: item.values,
                "write an array": lambda: setattr(item, "values", 6),
                "follow": lambda: item.next,
                "refer from": lambda: setattr(item, "next", other),
                "refer to": lambda: setattr(other, "next", item),
                "memoryview": lambda: memoryview(item),
                "event": event.is_set,
                "root": lambda: setattr(shm, "root", item),
                "name": lambda: shm.__setitem__("x", item),
            }
        )
        assert "freed" in repr(item)
    assert item.key == 5


def test_stale_array(shm, freed):
    class Holder(Struct):
        array: Ref[np.ndarray]

    array, holder = shm.array(np.arange(10)), shm.new(Holder)
    block = shmem.find_storage(array).block(array.base.offset)
    with freed(block):
        assert_all_raise(
            {
                "root": lambda: setattr(shm, "root", array),
                "name": lambda: shm.__setitem__("x", array),
                "name a part": lambda: shm.__setitem__("x", array[3:]),
                "refer to": lambda: setattr(holder, "array", array),
                "handle": lambda: shmem.handle(array),
                "buffer": lambda: memoryview(array.base),
                "new array": lambda: np.frombuffer(array.base, np.int64),
            }
        )
    holder.array = array
    assert holder.array.tolist() == list(range(10))


def test_stale_queue(shm, freed):
    queue = shm.queue(4, "int64")
    queue.put(5)
    with freed(queue):
        assert_all_raise(
            {
                "put": lambda: queue.put(1),
                "put_many": lambda: queue.put_many([1, 2]),
                "get": queue.get,
                "get_many": lambda: queue.get_many(2),
                "qsize": queue.qsize,
                "is_shutdown": lambda: queue.is_shutdown,
                "shutdown": queue.shutdown,
                "root": lambda: setattr(shm, "root", queue),
                "name": lambda: shm.__setitem__("x", queue),
            }
        )
        assert "freed" in repr(queue)
    assert queue.get() == 5


def test_buffer_of_a_freed_array(shm):
    array = shm.array(np.arange(10))
    hold = array.base
    assert np.frombuffer(hold, array.dtype).tolist() == list(range(10))
    n_bytes = shm.block(hold.offset).nbytes
    shm.free(array)
    with pytest.raises(shmem.InvalidBlock):
        memoryview(hold)
    assert shm.allocate(n_bytes).offset == hold.offset
    with pytest.raises(shmem.InvalidBlock):
        memoryview(hold)
