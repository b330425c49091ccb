"""Overwritten objects, arrays, queues and mutexes raise specific errors, and never cause a crash or an endless loop."""

import queue as standard
import threading

import numpy as np
import pytest
from scribe import ABSENT_OWNER, BLOCK, EVERY_BIT, ROOT_OFF, TOP, USED, Scribe, outcome

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    LAYOUT,
    MAX_DIMS,
    SLACK_SHIFT,
    TAG_SIZE_MASK,
    TAG_TYPE_SHIFT,
    TYPE_ARRAY,
    TYPE_FIRST_USER,
    TYPE_LAST_USER,
    TYPE_MUTEX,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
    TYPE_QUEUE,
)

pytestmark = pytest.mark.damages

MAX_SIZE = 1 << 20
WORD_BYTES, HALF = 8, (1 << 32) - 1
ARRAY, QUEUE, ENTRY = LAYOUT["array_t"], LAYOUT["queue_t"], LAYOUT["name_entry_t"]
SEMAPHORE, EVENT, MUTEX = LAYOUT["semaphore_t"], LAYOUT["event_t"], LAYOUT["mutex_t"]


class Node(shmem.Struct):
    key: shmem.int64
    next: shmem.Ref["Node"]
    position: shmem.Array[shmem.float64, 3]


class Large(shmem.Struct):
    filling: shmem.Array[shmem.uint8, 65536]
    last: shmem.int64


class Base(shmem.Struct):
    key: shmem.int64


class Derived(Base):
    other: shmem.int64


@pytest.fixture
def shm():
    with shmem.SharedMemory(max_size=MAX_SIZE) as section:
        yield section


@pytest.fixture
def scribe(shm):
    return Scribe(shm.path)


def set_tag(scribe, offset, *, size=None, type_id=None):
    """Change the front tag of the block whose payload is at `offset`."""
    tag = scribe[offset - BLOCK_HEAD_BYTES]
    size = tag & TAG_SIZE_MASK if size is None else size
    type_id = tag >> TAG_TYPE_SHIFT if type_id is None else type_id
    scribe[offset - BLOCK_HEAD_BYTES] = type_id << TAG_TYPE_SHIFT | size | USED


# -- objects


@pytest.mark.parametrize("target", [(1 << 64) - 16, (1 << 64) - 32, 1 << 63, 16, 8, MAX_SIZE, MAX_SIZE - 16], ids=hex)
def test_reference_outside_the_section(shm, scribe, target):
    node = shm.new(Node)
    scribe[node.offset + Node.next.offset] = target
    assert outcome(lambda: node.next) == "InvalidBlock"
    scribe[ROOT_OFF] = target
    assert outcome(lambda: shm.root) == "InvalidBlock"


@pytest.mark.parametrize("size", [0, BLOCK_ALIGN_BYTES, 1 << 40], ids=hex)
def test_reference_to_a_block_of_impossible_size(shm, scribe, size):
    """The block lies near the end, so that the object would extend past the section."""
    node, large = shm.new(Node), shm.new(Large)
    scribe[node.offset + Node.next.offset] = large.offset
    assert node.next.last == 0  # the class is known from this read on
    type_id = scribe[large.offset - BLOCK_HEAD_BYTES] >> TAG_TYPE_SHIFT
    shm.allocate(MAX_SIZE - scribe[TOP] - 2000)
    small = shm.allocate(100)
    scribe[node.offset + Node.next.offset] = small.offset
    set_tag(scribe, small.offset, size=size, type_id=type_id)
    assert outcome(lambda: node.next.last) == "InvalidBlock"


def test_object_in_an_oversized_block(shm, scribe):
    node = shm.new(Node)
    set_tag(scribe, node.offset, size=1 << 40)
    assert outcome(lambda: bytes(memoryview(node)[1 << 30 :][:1])) == "HeapCorruption"
    assert outcome(lambda: node.position[1]) == "HeapCorruption"
    assert outcome(lambda: node.key) == "0"  # the field's offset was checked when the object was made


def test_object_with_too_much_slack(shm, scribe):
    node = shm.new(Node)
    scribe[BLOCK["serial"].at(node.offset - BLOCK_HEAD_BYTES)] |= 0xFF << SLACK_SHIFT
    assert outcome(lambda: memoryview(node)) == "HeapCorruption"


def open_again(shm):
    """Return the root object through another handle, which has not read any description of a type yet."""
    with shmem.SharedMemory(shared_name=shm.name) as other:
        return other.root


def make_again(shm):
    """Make an object through another handle, which has not read any description of a type yet."""
    with shmem.SharedMemory(shared_name=shm.name) as other:
        return other.new(Base)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"fields"', b'{"fie'),
        (b'{"fields"', b'{"xields"'),
        (b'["key","<i8"]', b"5"),
        (b'["key","<i8"]', b'[5,"<i8"]'),
        (b'["key","<i8"]', b'["key",[1]]'),
        (b'["key","<i8"]', b'["key","O"]'),
        (b'["key","<i8"]', b'["key","!!!"]'),
        (b"fields", b"f\xff\x00lds"),
        (b'"bases"', b'\xff\xfeases"'),
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
def test_damaged_type_description_is_another_layout(shm, scribe, old, new, is_known):
    shm.root = shm.new(Base)
    if not is_known:
        scribe.replace(f"{__name__}.Base".encode(), f"{__name__}.Bas_".encode())
    scribe.replace(old, new)
    assert outcome(lambda: open_again(shm)) == "LayoutMismatch"
    if is_known:
        assert outcome(lambda: make_again(shm)) == "LayoutMismatch"


def test_base_classes_are_not_names(shm, scribe):
    shm.root = shm.new(Derived)
    scribe.replace(f'"bases":["{__name__}.Base"]'.encode(), b'"bases":[[1]]')
    assert outcome(lambda: open_again(shm)) == "LayoutMismatch"
    scribe.replace(f"{__name__}.Derived".encode(), b"x")
    assert outcome(lambda: open_again(shm)) == "LayoutMismatch"


def test_type_name_is_not_text(shm, scribe):
    shm.root = shm.new(Base)
    scribe.replace(f"{__name__}.Base".encode(), b"\xff\xfe")
    assert outcome(lambda: open_again(shm).key) == "0"


@pytest.mark.parametrize("number", [0, 1, TYPE_FIRST_USER - 1])
def test_invalid_type_number(shm, scribe, number):
    """Found by the fuzzer: a class was registered under the number that denotes an error inside the library."""
    shm.new(Base)
    scribe[ENTRY["value"].at(scribe.bytes.find(f"{__name__}.Base".encode()) - ENTRY.size)] = number

    def make():
        with shmem.SharedMemory(shared_name=shm.name) as again:
            again.new(Derived)
            again.new(Base)

    assert outcome(make) == "HeapCorruption"


@pytest.mark.parametrize("type_id", [TYPE_ARRAY, TYPE_NAME_TABLE, TYPE_NAME_ENTRY, TYPE_MUTEX, TYPE_QUEUE, TYPE_FIRST_USER, TYPE_LAST_USER])
def test_block_with_the_wrong_type(shm, scribe, type_id):
    """A block of the smallest size is too small for an array, a mutex or a queue."""
    shm.root = shm.allocate(8)
    set_tag(scribe, shm.root.offset, type_id=type_id)
    assert outcome(lambda: shm.root) in ("HeapCorruption", "InvalidBlock")


# -- arrays and queues


def offset_of(array):
    return array.base.offset


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", 1 << 63), ("shape", 1 << 61), ("shape", 6),
        ("strides", 1 << 62), ("strides", 1 << 63), ("strides", EVERY_BIT), ("strides", 16),
        ("data_off", EVERY_BIT), ("data_off", MAX_SIZE), ("data_bytes", EVERY_BIT), ("data_bytes", MAX_SIZE),
        ("n_dims", 0xFFFF), ("n_dims", MAX_DIMS + 1), ("n_dims", 0), ("dtype_bytes", 0xFFFF), ("dtype_bytes", 0), ("n_pin_words", HALF),
    ],
)  # fmt: skip
def test_array_header_outside_the_block(shm, scribe, field, value):
    array = shm.zeros(5, "int64", name="array")
    head, behind = offset_of(array), offset_of(array) + ARRAY.size  # the shape and the stride of the only dimension
    if field in ARRAY:
        ARRAY[field].write(scribe.bytes, value, head)
    else:
        scribe[behind + (WORD_BYTES if field == "strides" else 0)] = value

    def look():
        found = shm["array"]
        return found[1] + found[4]

    assert outcome(look) == "HeapCorruption"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", 1 << 63), ("shape", 1 << 61), ("shape", 1000), ("strides", 0), ("strides", 1 << 63), ("strides", 16),
        ("data_off", EVERY_BIT), ("data_bytes", 16), ("capacity_bytes", EVERY_BIT), ("capacity_bytes", 1 << 20), ("n_dims", 0),
        ("n_dims", 2), ("n_dims", MAX_DIMS), ("dtype_bytes", 0xFFFF), ("maxshape", 4),
    ],
)  # fmt: skip
def test_header_of_an_array_that_can_grow(shm, scribe, field, value):
    shm.zeros(5, "int64", name="array", maxshape=(None,))
    entry = shm.entry("array")
    head = shmem.info(entry.value).offset
    places = {"shape": head + ARRAY.size, "strides": head + ARRAY.size + WORD_BYTES,
              "maxshape": head + ARRAY["data_off"].read(scribe.bytes, head) - WORD_BYTES}  # fmt: skip
    if field in ARRAY:
        ARRAY[field].write(scribe.bytes, value, head)
    else:
        scribe[places[field]] = value
    uses = {
        "append": lambda: entry.append([1]),
        "resize": lambda: entry.resize(9),
        "look": lambda: shm["array"],
        "shape": lambda: entry.shape,
    }
    if (field, value) != ("strides", 16):  # which needs the dtype
        uses["check"] = shm.check_heap
    for name, use in uses.items():
        assert (name, outcome(use)) == (name, "HeapCorruption")


def test_gate_of_an_array_is_damaged(shm, scribe):
    shm.zeros(5, "int64", name="array", maxshape=(100,))
    gate = ARRAY["append_gate"].at(shmem.info(shm["array"]).offset)
    for word in (EVERY_BIT, 1, HALF):
        scribe[gate] = word
        assert outcome(lambda: shm.entry("array").append([1])) == "None"


def test_damaged_header_of_an_open_array(shm, scribe):
    array = shm.zeros(5, "int64")
    ARRAY["n_dims"].write(scribe.bytes, 0xFFFF, offset_of(array))
    assert outcome(lambda: shmem.handle(array)) == "HeapCorruption"
    assert outcome(array.sum) == "0"


TEXT_BYTES = 12  # the text of a dtype, and some bytes after it


def queue_text(scribe, queue):
    """Return the offset of the text of a queue's dtype, which follows the pins."""
    return queue.offset + QUEUE.size + 8 * QUEUE["n_pin_words"].read(scribe.bytes, queue.offset)


INVALID_DTYPES = [b"()", b"[]", b"{}", b"5", b"'O'", b"[1]", b"-" * 5, b"(1,)", b"'\\x'", b"\xff", b"'V0'", b"'V9'"]


@pytest.mark.parametrize("text", INVALID_DTYPES)
def test_invalid_dtype(shm, scribe, text):
    array = shm.zeros(5, "int64", name="array")
    queue = shm.queue(5, "int64", name="queue")
    at = scribe.bytes.find(b"'<i8'", offset_of(array))
    scribe.bytes[at : at + 5] = text.ljust(5)
    at = queue_text(scribe, queue)
    scribe.bytes[at : at + 5] = text.ljust(5)
    assert outcome(lambda: shm["array"]) == "HeapCorruption"
    assert outcome(lambda: shm["queue"]) == "HeapCorruption"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", 0), ("capacity", EVERY_BIT), ("slot_bytes", EVERY_BIT), ("record_bytes", 0), ("record_bytes", EVERY_BIT),
        ("data_off", 0), ("data_off", QUEUE.size + 1), ("data_off", EVERY_BIT), ("kind", 0), ("kind", 9), ("text_bytes", HALF),
        ("n_pin_words", 0), ("n_pin_words", 1 << 31),
    ],
)  # fmt: skip
def test_queue_header_outside_the_block(shm, scribe, field, value):
    queue = shm.queue(5, bytes, max_bytes=100, name="queue")
    QUEUE[field].write(scribe.bytes, value, queue.offset)
    assert outcome(lambda: shm["queue"]) == "HeapCorruption"


@pytest.mark.parametrize(("record", "max_bytes"), [("int64", None), (bytes, 8), (Node, None)], ids=["number", "bytes", "object"])
def test_any_damage_to_a_queue_header(shm, scribe, record, max_bytes):
    """Opening the queue raises an error, or returns a queue that stays within its block."""
    queue = shm.queue(4, record, max_bytes=max_bytes, name="queue")
    after = shm.array(np.arange(100))
    block = slice(queue.offset, queue.offset + shm.block(queue.offset).nbytes)
    saved = scribe.bytes[block]

    def count_refusals():
        n_refused = 0
        text_off = queue_text(scribe, queue) - queue.offset
        for at in [
            *range(QUEUE["closed"].offset),
            *range(QUEUE["n_pin_words"].offset, QUEUE["spare0"].offset),
            *range(text_off, text_off + TEXT_BYTES),
        ]:
            for value in (0, 1, 2, 3, 0x7F, 0x80, 0xFF):
                scribe.bytes[queue.offset + at] = value
                try:
                    found = shm["queue"]
                    found.put_many([b""] * 9 if record is bytes else np.zeros(9, found.dtype), block=False)
                    found.get_many(9, block=False)
                except (shmem.ShmemError, standard.Empty):
                    n_refused += 1
                scribe.bytes[block] = saved
        return n_refused

    n_refused = outcome(count_refusals)
    assert n_refused.isdigit(), n_refused
    assert int(n_refused) > 100
    assert after.tolist() == list(range(100))
    shm.check_heap()


COUNTERS = [("tail", 1 << 63), ("tail", 6), ("tail", 7), ("head", 7), ("head", 77), ("head", (1 << 64) - 30)]


@pytest.mark.parametrize(("field", "value"), COUNTERS)
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize(("record", "items"), [("int64", [1, 2]), (bytes, [b"1", b"2"])], ids=["number", "bytes"])
def test_impossible_queue_counters(shm, scribe, field, value, is_cached, record, items):
    """Each call reports the offset of the queue, except a put that needs no new look at the head: the last one that it read leaves room."""
    queue = shm.queue(4, record, max_bytes=None if record == "int64" else 100)
    queue.put(items[0])
    block = slice(queue.offset, queue.offset + shm.block(queue.offset).nbytes)
    saved = scribe.bytes[block]
    damage = {field: value} if is_cached else {field: value, "head_seen": 12345, "tail_seen": 12345}
    calls = {
        "put": lambda: queue.put(items[1], timeout=1),
        "put_many": lambda: queue.put_many(items * 5, timeout=1),
        "get": lambda: queue.get(timeout=1),
        "get_many": lambda: queue.get_many(9, timeout=1),
        "qsize": queue.qsize,
    }
    for name, call in calls.items():

        def call_or_find_offset(call=call):
            try:
                return call()
            except shmem.HeapCorruption as error:
                return f"damaged at {error.offset}"

        for damaged_field, word in damage.items():
            scribe[QUEUE[damaged_field].at(queue.offset)] = word
        needs_no_head = name == "put" and field == "head" and is_cached
        assert outcome(call_or_find_offset) == ("None" if needs_no_head else f"damaged at {queue.offset}"), name
        scribe.bytes[block] = saved
    queue.put(items[1])
    assert list(queue.get_many(9)) == items


def test_byte_string_longer_than_the_queue_allows(shm, scribe):
    queue = shm.queue(4, bytes, max_bytes=10)
    queue.put(b"x")
    scribe[queue.offset + QUEUE["data_off"].read(scribe.bytes, queue.offset)] = queue.max_bytes + 1
    for call in (queue.get, lambda: queue.get_many(3)):
        assert outcome(call) == "HeapCorruption"


@pytest.mark.parametrize("gate", ["producers_gate", "consumers_gate"])
def test_queue_gates_of_absent_owners_are_taken_over(shm, scribe, gate):
    queue = shm.queue(5, "int64")
    for owner in (ABSENT_OWNER, EVERY_BIT, 0xDEAD_0000_0000):
        scribe[QUEUE[gate].at(queue.offset)] = owner
        assert outcome(lambda: (queue.put(1, timeout=5), queue.get(timeout=5))[1]) == "1"


# -- semaphores, events, mutexes


def test_mutex_of_an_absent_owner(shm, scribe):
    mutex = shm.mutex()
    for owner in (ABSENT_OWNER, EVERY_BIT, 0xDEAD_0000_0000):
        scribe[MUTEX["owner"].at(mutex.offset)] = owner
        scribe[MUTEX["channel"].at(mutex.offset)] = EVERY_BIT
        assert outcome(lambda: mutex.acquire(timeout=5)) in ("True", "OwnerDiedWarning")


def test_circular_list_of_held_mutexes(shm, scribe):
    def three():
        first, second, third = shm.mutex(), shm.mutex(), shm.mutex()
        first.acquire()
        second.acquire()
        scribe[MUTEX["next_held_off"].at(first.offset)] = second.offset
        third.acquire()
        first.release()
        third.release()
        return second.locked(), first.locked()

    assert outcome(three) == "(True, False)"


@pytest.mark.parametrize("depth", [0, 1 << 31])
def test_impossible_mutex_depth(shm, scribe, depth):
    def wait():
        mutex = shm.mutex()
        condition = threading.Condition(mutex)
        with condition:
            MUTEX["depth"].write(scribe.bytes, depth, mutex.offset)
            return condition.wait(timeout=0.01)

    assert outcome(wait) == "False"


def test_release_at_depth_zero(shm, scribe):
    def release():
        mutex = shm.mutex()
        mutex.acquire()
        MUTEX["depth"].write(scribe.bytes, 0, mutex.offset)
        mutex.release()
        return mutex.locked()

    assert outcome(release) == "False"


def test_semaphore_and_event_with_all_bits_set(shm, scribe):
    semaphore, event = shm.semaphore(0), shm.event()
    for block, structure in ((semaphore, SEMAPHORE), (event, EVENT)):
        scribe.bytes[block.offset : block.offset + structure.size] = b"\xff" * structure.size
    assert outcome(lambda: semaphore.wait(timeout=1)) == "True"
    assert outcome(semaphore.signal) == "SemaphoreOverflow"
    assert outcome(lambda: event.wait(timeout=1)) == "True"
    assert outcome(lambda: (event.reset(), event.wait(timeout=0.1), event.signal(), event.wait(timeout=1))) == "(None, False, None, True)"
