"""`Queue`: order, bounds, waiting, every kind of record, many producers and consumers.  For kills see `objects/test_queue_kills.py`."""

import collections
import contextlib
import copy
import multiprocessing
import pickle
import queue as standard
import random
import signal
import time

import numpy as np
import pytest
import workers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from queues import PATIENCE, QueueWords, in_thread, wait_until
from scribe import Scribe

import shmem
from shmem._base.layout import LAYOUT


class Reading(shmem.Struct, type_name="tests.Reading"):
    sensor: shmem.int64 = 7
    values: shmem.Array[shmem.float64, 3]
    label: shmem.Bytes[8]
    next: shmem.Ref["Reading"]


class Other(shmem.Struct, type_name="tests.OtherReading"):
    sensor: shmem.int64


# -- one process ------------------------------------------------------------------------------------------


def test_first_in_first_out(shm):
    queue = shm.queue(3, "int64")
    for i in range(3):
        queue.put(i)
    with pytest.raises(shmem.QueueFull) as caught:
        queue.put_nowait(3)
    assert caught.value.status == shmem.Status.queue_full
    assert isinstance(caught.value, standard.Full)
    assert (queue.qsize(), queue.full(), queue.empty(), queue.maxsize) == (3, True, False, 3)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(shmem.QueueEmpty) as caught:
        queue.get_nowait()
    assert caught.value.status == shmem.Status.queue_empty
    assert isinstance(caught.value, standard.Empty)
    assert (queue.qsize(), queue.full(), queue.empty()) == (0, False, True)


@pytest.mark.parametrize(
    "calls",
    [
        [("put", 1), ("put", 2), ("qsize",), ("get",), ("qsize",), ("get",), ("empty",)],
        [("put", 1), ("put", 2), ("full",), ("put", 3, False), ("put_nowait", 3), ("put", 3, True, 0.01), ("get",), ("put", 3), ("get",)],
        [("get", False), ("get_nowait",), ("get", True, 0.01), ("get", False, 5), ("get", False, -1), ("empty",)],
        [("put", 1, True, None), ("put", 1, True, 0.0), ("put", 1, True, 0.0), ("get", True, 0), ("get", True, 0), ("get", True, 0)],
        [("get", True, -1), ("put", 1), ("put", 2), ("put", 3, True, -1), ("qsize",)],
    ],
)
def test_behaves_as_the_standard_queue(shm, calls):
    """The same calls on both queues return the same values and raise the same exceptions."""
    ours, theirs = shm.queue(2, "int64"), standard.Queue(2)
    for name, *args in calls:
        outcomes = []
        for queue in (ours, theirs):
            try:
                outcomes.append(getattr(queue, name)(*args))
            except (standard.Full, standard.Empty, ValueError) as error:
                outcomes.append(next(cls for cls in (standard.Full, standard.Empty, ValueError) if isinstance(error, cls)))
        assert outcomes[0] == outcomes[1], (name, args)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [-128, 127, 0]),
        ("uint8", [0, 255, 1]),
        ("int16", [-(2**15), 2**15 - 1]),
        ("uint16", [0, 2**16 - 1]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("int64", [-(2**63), 2**63 - 1, -1]),
        ("uint64", [0, 2**64 - 1]),
        ("float32", [0.5, -1.25, float("inf")]),
        ("float64", [0.1, -1e300]),
        ("bool", [True, False]),
        (">i4", [-5, 2**31 - 1]),
        ("complex128", [1 + 2j]),
        ("S5", [b"abc", b""]),
        ("U3", ["äöü"]),
        ("M8[s]", [np.datetime64("2020-01-01T00:00:00")]),
    ],
)
def test_scalar_items(shm, dtype, values):
    queue = shm.queue(10, dtype)
    for value in values:
        queue.put(value)
    found = [queue.get() for _ in values]
    assert found == values
    if np.dtype(dtype).isnative and np.dtype(dtype).kind in "iufb":
        assert {type(value) for value in found} == {type(values[0])}
    assert queue.put_many(values) == len(values)
    found = queue.get_many(10)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == np.array(values, dtype).tolist()


def test_unsuitable_items_are_rejected(shm):
    queue = shm.queue(10, "int8")
    for value in (128, -129, 2**70):
        with pytest.raises(OverflowError):
            queue.put(value)
    for value in ("x", None, (1, 2), [1, 2]):
        with pytest.raises((TypeError, ValueError)):
            queue.put(value)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        queue.put_many([1, 2, "x"])
    with pytest.raises(ValueError, match="shape"):
        queue.put_many(np.zeros((2, 2), "int8"))
    with pytest.raises(OverflowError):
        shm.queue(1, "uint64").put(-1)
    queue.put(np.int8(5))
    queue.put(np.array(6, "int8"))
    assert queue.get_many(10).tolist() == [5, 6]


def test_structured_records_are_copies(shm):
    dtype = np.dtype([("id", "i4"), ("position", "f8", 3)])
    queue = shm.queue(2, dtype)
    queue.put((1, (1, 2, 3)))
    queue.put(np.array((2, (4, 5, 6)), dtype))
    first = queue.get()
    queue.put((3, (7, 8, 9)))  # reuses the slot of the first one
    assert first["id"] == 1
    assert first["position"].tolist() == [1, 2, 3]
    assert isinstance(first, np.void)
    assert shmem.find_storage(first.base) is None
    many = queue.get_many(5)
    assert many.dtype == dtype
    assert many["id"].tolist() == [2, 3]
    assert many["position"].tolist() == [[4, 5, 6], [7, 8, 9]]


def test_array_records(shm):
    queue = shm.queue(4, "(2,2)f8")
    queue.put([[1, 2], [3, 4]])
    queue.put(5)
    assert queue.get().tolist() == [[1, 2], [3, 4]]
    assert queue.get().tolist() == [[5, 5], [5, 5]]
    assert queue.put_many(np.arange(12.0).reshape(3, 2, 2)) == 3
    with pytest.raises(ValueError, match="shape"):
        queue.put_many(np.zeros((3, 2)))
    assert queue.get_many(2).tolist() == np.arange(8.0).reshape(2, 2, 2).tolist()
    assert queue.qsize() == 1


@pytest.mark.parametrize("max_bytes", [1, 7, 8, 1000, 1024, 1025, 100000])
def test_byte_strings(shm, max_bytes):
    queue = shm.queue(4, bytes, max_bytes=max_bytes)
    assert queue.max_bytes == max_bytes
    assert queue.record is bytes
    assert queue.dtype is None
    longest = bytes(random.Random(1).randbytes(max_bytes))
    for value in (longest, b"", bytearray(longest), memoryview(b"xy")[:1]):
        queue.put(value)
    assert [queue.get() for _ in range(4)] == [longest, b"", longest, b"x"]
    with pytest.raises(ValueError, match=r"at most"):
        queue.put(longest + b"x")
    with pytest.raises(ValueError, match=r"at most"):
        queue.put_many([b"", longest + b"x"])
    for value in ("text", 5, None):
        with pytest.raises(TypeError):
            queue.put(value)
        with pytest.raises(TypeError):
            queue.put_many([b"", value])
    assert queue.empty()
    assert queue.put_many([longest, bytearray(b"a"), b""]) == 3
    assert queue.get_many(2) == [longest, b"a"]
    assert queue.get_many(2) == [b""]


def test_many_byte_strings_go_in_chunks(shm):
    """More bytes than are packed at a time, both for `put_many` and for `get_many`."""
    queue = shm.queue(300, bytes, max_bytes=5000)
    rng = random.Random(3)
    values = [rng.randbytes(rng.choice([0, 1, 100, 5000])) for _ in range(300)]
    assert queue.put_many(iter(values)) == 300
    assert queue.get_many(300) == values


def test_struct_classes(shm):
    queue = shm.queue(10, Reading)
    head = shm.new(Reading, sensor=1, label=b"first", values=(1, 2, 3))
    queue.put(head)
    queue.put({"label": b"dict", "next": head})
    queue.put((3, (4, 5, 6), b"tuple", None))
    head.sensor = 99  # after the copy
    first, second, third = queue.get(), queue.get(), queue.get()
    assert (first.sensor, first.label, first.values.tolist(), first.next) == (1, b"first", [1, 2, 3], 0)
    assert (second.sensor, second.label, second.next) == (7, b"dict", head.offset)
    assert (third.sensor, third["label"], third.values.tolist()) == (3, b"tuple", [4, 5, 6])
    assert queue.put_many([first, head, {"sensor": 5}]) == 3
    many = queue.get_many(10)
    assert many["sensor"].tolist() == [1, 99, 5]
    assert many[2].label == b""
    assert queue.put_many(many) == 3
    assert queue.get_many(3)["sensor"].tolist() == [1, 99, 5]


def test_struct_queue_rejects_other_objects(shm):
    queue = shm.queue(10, Reading)
    with pytest.raises(TypeError, match="Reading"):
        queue.put(shm.new(Other))
    with pytest.raises(TypeError, match="no field 'size'"):
        queue.put({"size": 1})
    with pytest.raises(TypeError, match="4 fields"):
        queue.put((1, 2))
    with pytest.raises(TypeError):
        queue.put({"next": shm.new(Other)})
    freed = shm.new(Reading)
    shm.free(freed)
    with pytest.raises(shmem.InvalidBlock):
        queue.put(freed)
    with shmem.SharedMemory(max_size=1 << 20) as elsewhere, pytest.raises(shmem.InvalidBlock):
        queue.put(elsewhere.new(Reading))
    assert queue.empty()


@pytest.mark.parametrize("record", ["int64", bytes, Other])
def test_items_change_during_put_many(shm, record):
    """For a list that grows while it is read, or reports a wrong length, no item is written past the reserved slots."""
    queue = shm.queue(2000, record, max_bytes=8 if record is bytes else None)

    class Item:
        def __index__(self):
            grown.extend([item] * 100)
            return 1

        __int__ = __index__

    class Liar(list):
        def __len__(self):
            return 1

    item = {"int64": 7, bytes: b"x", Other: {"sensor": 7}}[record]
    grown = [{"sensor": Item()} if record is Other else Item()] * 10
    with contextlib.suppress(TypeError, RuntimeError):  # an Item is not a byte string
        assert queue.put_many(grown) == 10
        assert len(queue.get_many(2000)) == 10
    n_put = queue.put_many(Liar([item] * 1500))
    assert n_put in (1, 1500)
    assert len(queue.get_many(2000)) == n_put
    shm.check_heap()


def test_many_wrap_around(shm):
    queue = shm.queue(7, "int32")
    sent = received = 0
    rng = random.Random(5)
    for _ in range(300):
        sent += queue.put_many(np.arange(sent, sent + rng.randrange(1, 9)), block=False)
        n = rng.randrange(1, 9)
        if not queue.empty():
            found = queue.get_many(n, block=False)
            assert found.tolist() == list(range(received, received + len(found)))
            received += len(found)
    assert sent - received == queue.qsize()
    assert received > 500


def test_put_many_returns_the_count(shm):
    queue = shm.queue(5, "int64")
    assert queue.put_many([]) == 0
    assert queue.put_many(range(3)) == 3
    assert queue.put_many(range(10), block=False) == 2
    assert queue.put_many(range(10), timeout=0.02) == 0
    result = in_thread(queue.put_many, range(100), True, PATIENCE)
    found = []
    while len(found) < 105:
        found += queue.get_many(3, timeout=PATIENCE).tolist()
    assert result() == 100
    assert found == [0, 1, 2, 0, 1, *range(100)]
    strings = shm.queue(3, bytes, max_bytes=10)
    assert strings.put_many([b"a"] * 5, block=False) == 3
    with pytest.raises(shmem.QueueEmpty):
        queue.get_many(5, block=False)
    with pytest.raises(shmem.QueueEmpty):
        queue.get_many(5, timeout=0.02)
    with pytest.raises(ValueError, match="max_items"):
        queue.get_many(0)


class AgainstDeque(RuleBasedStateMachine):
    """In one process without waiting, a queue behaves as a deque."""

    def __init__(self):
        super().__init__()
        self.shm = shmem.SharedMemory(max_size=1 << 20)
        self.queues = [self.shm.queue(6, "int64"), self.shm.queue(6, bytes, max_bytes=20)]
        self.models = [collections.deque(), collections.deque()]

    @staticmethod
    def item(which, number):
        return number if which == 0 else b"%d" % number

    @rule(which=st.integers(0, 1), number=st.integers(-(2**63), 2**63 - 1))
    def put(self, which, number):
        item = self.item(which, number)
        if len(self.models[which]) == 6:
            with pytest.raises(shmem.QueueFull):
                self.queues[which].put_nowait(item)
        else:
            self.queues[which].put(item)
            self.models[which].append(item)

    @rule(which=st.integers(0, 1))
    def get(self, which):
        if self.models[which]:
            assert self.queues[which].get() == self.models[which].popleft()
        else:
            with pytest.raises(shmem.QueueEmpty):
                self.queues[which].get_nowait()

    @rule(which=st.integers(0, 1), numbers=st.lists(st.integers(0, 1000), max_size=9))
    def put_many(self, which, numbers):
        items = [self.item(which, number) for number in numbers]
        n = min(len(items), 6 - len(self.models[which]))
        assert self.queues[which].put_many(items, block=False) == n
        self.models[which].extend(items[:n])

    @rule(which=st.integers(0, 1), n=st.integers(1, 9))
    def get_many(self, which, n):
        if self.models[which]:
            found = list(self.queues[which].get_many(n, block=False))
            assert found == [self.models[which].popleft() for _ in range(min(n, len(self.models[which])))]

    @invariant()
    def sizes(self):
        for queue, model in zip(self.queues, self.models, strict=True):
            assert (queue.qsize(), queue.empty(), queue.full()) == (len(model), not model, len(model) == 6)

    def teardown(self):
        self.shm.close()


TestAgainstDeque = AgainstDeque.TestCase
TestAgainstDeque.settings = settings(max_examples=30, stateful_step_count=40)


# -- as an object in a section ----------------------------------------------------------------------------


def test_queue_rejects_wrong_arguments(shm):
    for maxsize in (0, -1):
        with pytest.raises(ValueError, match="maxsize"):
            shm.queue(maxsize, "int64")
    for record, max_bytes in ((bytes, None), ("int64", 5), (bytes, 0), ("V0", None), (bytes, -1)):
        with pytest.raises(ValueError):
            shm.queue(1, record, max_bytes=max_bytes)
    for record in (object, [("a", "O")], "nonsense", shmem.Struct):
        with pytest.raises(TypeError):
            shm.queue(1, record)
    for maxsize, max_bytes in ((1 << 60, 1), (1 << 40, 1 << 20), (1, 1 << 40), (1 << 63, 1 << 20)):
        with pytest.raises(shmem.SectionFull):
            shm.queue(maxsize, bytes, max_bytes=max_bytes)
    with pytest.raises(TypeError):
        shmem.Queue()
    before = shm.check_heap().blocks
    shm.queue(1, shmem.int32, name="taken")
    with pytest.raises(shmem.NameExists):
        shm.queue(1, "int64", name="taken")
    assert shm.check_heap().blocks == before + 1


def test_name_root_handle_and_free(shm):
    queue = shm.queue(4, Reading, name="readings")
    shm.root = queue
    for found in (shm["readings"], shm.root, shmem.handle(queue).open(), shmem.find_storage(queue)["readings"]):
        assert found == queue
        assert hash(found) == hash(queue)
        assert found.record is Reading
        assert found.section is shm
    assert "Reading" in repr(queue)
    assert queue != shm.queue(4, Reading)
    assert queue != 5
    for store in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="handle"):
            store(queue)
    shm["another"] = queue
    del shm["readings"]
    assert shm["another"] == queue
    shm.free(queue)
    for call in (lambda: queue.put(()), queue.get, queue.qsize, queue.shutdown, lambda: queue.get_many(3), lambda: shm.free(queue)):
        with pytest.raises((shmem.InvalidBlock, TypeError)):
            call()
    assert "freed" in repr(queue)
    assert shm.root is None


def test_closed_and_read_only_queues_raise(place):
    with shmem.SharedMemory(**place, max_size=1 << 20) as shm:
        queue = shm.queue(4, "int64", name="q")
        queue.put(1)
        with shmem.SharedMemory(**place, mode="read_only") as reader:
            seen = reader["q"]
            assert (seen.qsize(), seen.full(), seen.maxsize, seen.is_shutdown) == (1, False, 4, False)
            for call in (lambda: seen.put(1), seen.get, lambda: seen.put_many([1]), lambda: seen.get_many(1), seen.shutdown):
                with pytest.raises(shmem.ReadOnlyError):
                    call()
    for call in (lambda: queue.put(1), queue.get, lambda: queue.put_many([1]), lambda: queue.get_many(1), queue.shutdown, queue.qsize):
        with pytest.raises(shmem.ClosedError):
            call()


def test_close_while_waiting_raises():
    shm = shmem.SharedMemory(max_size=1 << 20)
    result = in_thread(shm.queue(4, "int64").get)
    shm.close()
    with pytest.raises(shmem.ClosedError):
        result()


def test_free_while_waiting_raises(shm):
    """The memory has no new owner as long as the waiter may change it."""
    queue = shm.queue(4, "int64")
    n_bytes = shm.block(queue.offset).nbytes
    result = in_thread(queue.get)
    assert wait_until(lambda: QueueWords(shm, queue).n_waiters("not_empty"))  # keeps no view, which would keep the block
    shm.free(queue)
    assert shm.allocate(n_bytes).offset != queue.offset
    with pytest.raises(shmem.InvalidBlock):
        result()
    assert shm.allocate(n_bytes).offset == queue.offset


def test_queue_persists(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm.queue(10, bytes, max_bytes=100, name="q").put_many([b"a", b"bc"])
    with shmem.SharedMemory(section_file) as shm:
        assert shm["q"].get_many(5) == [b"a", b"bc"]


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown(shm, immediate):
    queue, full = shm.queue(4, "int64"), shm.queue(1, "int64")
    full.put(0)
    queue.put_many([1, 2])
    waiting = in_thread(full.put, 5)
    idle = in_thread(shm.queue(1, "int64", name="idle").get)
    for one in (queue, full, shm["idle"]):
        one.shutdown(immediate)
    for result in (waiting, idle):
        with pytest.raises(shmem.QueueShutDown):
            result()
    assert queue.is_shutdown
    assert shmem.QueueShutDown.status == shmem.Status.queue_closed
    if hasattr(standard, "ShutDown"):
        assert issubclass(shmem.QueueShutDown, standard.ShutDown)
    for call in (lambda: queue.put(3), lambda: queue.put_many([3]), lambda: queue.put_nowait(3)):
        with pytest.raises(shmem.QueueShutDown):
            call()
    if not immediate:
        assert queue.get() == 1
        assert queue.get_many(5).tolist() == [2]
    for call in (queue.get, queue.get_nowait, lambda: queue.get_many(5)):
        with pytest.raises(shmem.QueueShutDown):
            call()


# -- threads and processes --------------------------------------------------------------------------------


def test_messages_between_threads(shm):
    """Every message is received exactly once, by any of the consumers, in the order of its producer."""
    queue = shm.queue(5, "int64")
    n_each, found = 3000, []

    def produce(which):
        for i in range(n_each):
            if i % 10:
                queue.put(which << 32 | i)
            else:
                queue.put_many([which << 32 | i])

    def consume():
        mine = []
        while True:
            try:
                mine.append(queue.get()) if len(mine) % 3 else mine.extend(queue.get_many(4).tolist())
            except shmem.QueueShutDown:
                found.append(mine)
                return

    consumers = [in_thread(consume) for _ in range(3)]
    for result in [in_thread(produce, which) for which in range(3)]:
        result()
    queue.shutdown()
    for result in consumers:
        result()
    for mine in found:
        for which in range(3):
            numbers = [value & 0xFFFFFFFF for value in mine if value >> 32 == which]
            assert numbers == sorted(numbers)
    assert sorted(value for mine in found for value in mine) == [which << 32 | i for which in range(3) for i in range(n_each)]


PRODUCE = """
shm = shmem.SharedMemory(shared_name=args[0]); queue = shm["q"]; me = int(args[1]); n = int(args[2])
say("go"); sys.stdin.readline()
for i in range(0, n, 4):
    queue.put(me << 32 | i)
    queue.put_many([me << 32 | i + 1, me << 32 | i + 2])
    queue.put(me << 32 | i + 3, timeout=60)
"""
CONSUME = """
shm = shmem.SharedMemory(shared_name=args[0]); queue = shm["q"]; out = shm[f"out {args[1]}"]; n = 0
say("go"); sys.stdin.readline()
while True:
    try:
        got = [queue.get()] if n % 2 else queue.get_many(3)
    except shmem.QueueShutDown:
        break
    out[n + 1 : n + 1 + len(got)] = got
    n += len(got)
    out[0] = n
"""


@pytest.mark.parametrize("maxsize", [1, 3, 1000])
def test_messages_between_processes(shm, child, maxsize):
    queue = shm.queue(maxsize, "int64", name="q")
    n_each = 2000
    for i in range(2):
        shm.zeros(3 * n_each, "int64", name=f"out {i}")
    producers = [child(PRODUCE, shm.name, i, n_each) for i in range(2)]
    consumers = [child(CONSUME, shm.name, i) for i in range(2)]
    for one in producers + consumers:
        one.hear()
    for one in producers + consumers:
        one.tell()
    for one in producers:
        one.end()
    queue.shutdown()
    found = []
    for i, one in enumerate(consumers):
        one.end()
        mine = shm[f"out {i}"][1 : 1 + shm[f"out {i}"][0]].tolist()
        for which in range(2):
            numbers = [value for value in mine if value >> 32 == which]
            assert numbers == sorted(numbers)
        found += mine
    assert sorted(found) == [which << 32 | i for which in range(2) for i in range(n_each)]


def test_waiting_consumer_is_woken(shm, child):
    """Without wake-ups each of these waits would last until the end of a slice, 50 ms; 40 seconds together."""
    there, back = shm.queue(1, "int64", name="there"), shm.queue(1, bytes, max_bytes=20, name="back")
    other = child(
        """
        shm = shmem.SharedMemory(shared_name=args[0]); there, back = shm["there"], shm["back"]
        say("go")
        while True:
            number = there.get()
            sum(range(30000))                           # long enough for the other process to fall asleep
            back.put(b"%d" % number)
        """,
        shm.name,
    )
    other.hear()
    start = time.monotonic()
    for i in range(800):
        there.put(i)
        assert back.get(timeout=PATIENCE) == b"%d" % i
    assert time.monotonic() - start < PATIENCE


def test_waiting_producer_is_woken(shm, child):
    queue = shm.queue(1, "int64", name="q")
    other = child(
        """
        queue = shmem.SharedMemory(shared_name=args[0])["q"]
        say("go")
        for i in range(800): queue.put(i)
        """,
        shm.name,
    )
    other.hear()
    start = time.monotonic()
    for i in range(800):
        sum(range(30000))
        assert queue.get(timeout=PATIENCE) == i
    assert time.monotonic() - start < PATIENCE
    other.end()


def test_ctrl_c_interrupts_waiting(shm, child):
    queue = shm.queue(2, "int64", name="q")
    words = QueueWords(shm, queue)
    other = child(
        """
        queue = shmem.SharedMemory(shared_name=args[0])["q"]
        for call in (queue.get, lambda: queue.get_many(3), lambda: queue.put_many(range(5))):
            try:
                say("waits")
                call()
            except KeyboardInterrupt:
                say("interrupted")
        """,
        shm.name,
    )
    for _ in range(3):
        assert other.hear() == "waits"
        assert wait_until(lambda: words.n_waiters("not_empty") or words.n_waiters("not_full"))
        other.process.send_signal(signal.SIGINT)
        assert other.hear_soon() == "interrupted"
    other.end()
    assert queue.get_many(5).tolist() == [0, 1]


@pytest.mark.parametrize("side", ["get", "put"])
@pytest.mark.parametrize("timeout", [0, 0.02])
def test_signals_do_not_prolong_a_wait_for_a_gate(shm, child, side, timeout):
    """The deadline counts when signals end every slice of a wait, too: for a caller that does not wait, and after the deadline."""
    queue, scribe = shm.queue(4, "int64"), Scribe(shm.path)
    queue.put(1)
    stopped = child("section = shmem.SharedMemory(shared_name=args[0]); say('ready'); sys.stdin.readline()", shm.name)
    stopped.hear()
    gate = queue.offset + LAYOUT["queue_t"]["consumers_gate" if side == "get" else "producers_gate"].offset
    scribe[gate] = scribe.owner_word(scribe.entry_of(stopped.process.pid))  # as if the process were stopped inside
    n_signals = 0

    def handler(number, frame):
        nonlocal n_signals
        n_signals += 1
        if n_signals == 1000:  # some 5 s
            raise AssertionError("the wait does not end")

    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        with pytest.raises(shmem.QueueEmpty if side == "get" else shmem.QueueFull, match="stands still"):
            queue.get(timeout=timeout) if side == "get" else queue.put(2, timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert n_signals > 0
    scribe[gate] = 0
    assert queue.get(timeout=0) == 1


def test_another_process_finds_the_record_type(shm, child):
    shm.queue(2, [("a", "i4"), ("b", "f8", 2)], name="records")
    shm.queue(2, Reading, name="readings").put({"label": b"x"})
    shm.queue(2, bytes, max_bytes=9, name="strings")
    other = child(
        """
        shm = shmem.SharedMemory(shared_name=args[0])
        shm["records"].put((1, (2, 3))); shm["strings"].put(b"hello")
        reading = shm["readings"].get()                 # a class that is not defined here
        say(reading.sensor, reading.label)
        shm["readings"].put({"sensor": 8, "values": (1, 2, 3)})
        """,
        shm.name,
    )
    assert other.hear() == "7 b'x'"
    other.end()
    record = shm["records"].get()
    assert record["a"] == 1
    assert record["b"].tolist() == [2, 3]
    assert shm["readings"].get().values.tolist() == [1, 2, 3]
    assert shm["strings"].get() == b"hello"


def test_multiprocessing_sends_queues(shm):
    numbers, doubled = shm.queue(10, "int64"), shm.queue(10, "int64")
    process = multiprocessing.get_context("spawn").Process(target=workers.double, args=(numbers, doubled))
    process.start()
    numbers.put_many(range(10))
    assert [doubled.get(timeout=PATIENCE) for _ in range(10)] == list(range(0, 20, 2))
    numbers.shutdown()
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_forked_child_uses_the_queue(shm, child):
    """A forked child can use its parent's queue immediately, even while the parent waits in it."""
    shm.queue(2, "int64", name="there")
    shm.queue(2, "int64", name="back")
    family = child(
        """
        shm = shmem.SharedMemory(shared_name=args[0]); there, back = shm["there"], shm["back"]
        if os.fork() == 0:
            for i in range(100): there.put(back.get() + 1)
            os._exit(0)
        for i in range(100):
            back.put(i); say(there.get())
        os.wait()
        """,
        shm.name,
    )
    assert [family.hear() for _ in range(100)] == [str(i + 1) for i in range(100)]
    family.end()


def test_object_arrays_are_rejected_as_bytes(shm):
    queue = shm.queue(10, bytes, max_bytes=64)
    for put in (queue.put, lambda item: queue.put_many([item])):
        with pytest.raises(TypeError, match="Python objects"):
            put(np.array([None, "x"], object))
    assert queue.empty()
