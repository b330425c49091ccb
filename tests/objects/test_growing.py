"""Arrays that grow: `maxshape`, `Entry.append`, `Entry.resize`, and what a killed appender leaves."""

import os
import signal
import threading

import numpy as np
import pytest
from scribe import Scribe
from workers import wait_for, waits_for_others

import shmem
from shmem._base.layout import LAYOUT, OWNER_GENERATION_SHIFT, PAGE_BYTES
from shmem._cli.check import examine
from shmem._objects import growing

ARRAY = LAYOUT["array_t"]
DEAD_OWNER = 5 << OWNER_GENERATION_SHIFT | 3  # of an entry that is free


@pytest.fixture
def scribe(shm):
    return Scribe(shm.path)


def log_of(shm, n_rows=0, name="log"):
    """Return the entry of an array of pairs that can grow, with rows counted from 0."""
    shm.array(np.arange(2 * n_rows).reshape(n_rows, 2), "int64", maxshape=(None, 2), name=name)
    return shm.entry(name)


def rows(first, n):
    return np.arange(2 * first, 2 * (first + n)).reshape(n, 2)


def room(entry):
    """Return for how many rows an array has room."""
    memory, facts = entry._memory, shmem.info(entry.value)
    return ARRAY["capacity_bytes"].read(Scribe(memory.path).bytes, facts.offset) // (entry.nbytes // len(entry.value))


# -- making ---------------------------------------------------------------------------------------------------


def test_maxshape_of_every_constructor(shm):
    made = {
        "empty": shm.empty((2, 3), maxshape=(None, 3), name="empty"),
        "zeros": shm.zeros((2, 3), maxshape=(7, 3), name="zeros"),
        "full": shm.full((2, 3), 5, maxshape=[None, None], name="full"),
        "array": shm.array(np.arange(6).reshape(3, 2).T, maxshape=(4, 3), name="array"),
    }
    assert [shm.entry(name).maxshape for name in made] == [(None, 3), (7, 3), (None, None), (4, 3)]
    assert made["zeros"].tolist() == [[0] * 3] * 2
    assert made["full"].tolist() == [[5] * 3] * 2
    assert made["array"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert all(array.flags.c_contiguous for array in made.values())
    shm.zeros(3, maxshape=9, name="int")
    assert shm.entry("int").maxshape == (9,)
    shm.zeros(2, (np.int32, (3,)), maxshape=None, name="fixed")
    assert shm.entry("fixed").maxshape is None
    shm.zeros(2, (np.int32, (3,)), maxshape=(None,), name="pairs")
    assert shm.entry("pairs").maxshape == (None, 3)
    shm.check_heap()


@pytest.mark.parametrize(
    ("shape", "how", "text"),
    [
        ((), {"maxshape": ()}, "at least one"), ((2, 3), {"maxshape": (None,)}, "as many dimensions"),
        ((2, 3), {"maxshape": (1, 3)}, "not be smaller"), ((2, 3), {"maxshape": (None, 2)}, "not be smaller"),
        ((2, 3), {"maxshape": (None, 3), "order": "F"}, "order must be 'C'"), (2, {"maxshape": (1 << 64,)}, "below"),
        (2, {"maxshape": (None,), "dtype": "S0"}, "at least one byte"),
    ],
)  # fmt: skip
def test_invalid_maxshape(shm, shape, how, text):
    with pytest.raises(ValueError, match=text):
        shm.zeros(shape, **how)
    with pytest.raises(TypeError):
        shm.zeros(3, maxshape=("many",))
    assert shm.check_heap().blocks == 0


def test_room_is_reserved(shm):
    shm.zeros((1, 2), "int64", maxshape=(1000, 2), name="limited")
    shm.zeros((1, 2), "int64", maxshape=(None, 2), name="unlimited")
    shm.zeros((1000, 2), "int64", maxshape=(None, 2), name="long")
    assert [room(shm.entry(name)) for name in ("limited", "unlimited", "long")] == [1000, PAGE_BYTES // 16, 1500]
    with pytest.raises(shmem.SectionFull):
        shm.zeros(1, maxshape=(1 << 60,))


# -- appending ------------------------------------------------------------------------------------------------


def test_append(shm):
    log = log_of(shm, 2)
    before = log.value
    log.append(rows(2, 3))
    assert before.tolist() == rows(0, 2).tolist()
    assert log.value.tolist() == shm["log"].tolist() == rows(0, 5).tolist()
    assert (log.shape, log.nbytes, log.dtype, log.name) == ((5, 2), 80, np.dtype("int64"), "log")
    before[1] = 9
    assert log.value[1].tolist() == [9, 9]
    log.append(np.empty((0, 2)))
    assert log.shape == (5, 2)


def test_rows_are_converted_as_by_assignment(shm):
    log = log_of(shm)
    log.append([["1", "2"]])
    log.append(np.array([[3.7, 4.0]]))
    log.append(np.asfortranarray(rows(0, 4))[::2])
    assert log.value.tolist() == [[1, 2], [3, 4], [0, 1], [4, 5]]
    shm.zeros(0, [("a", "<i4"), ("b", "S3")], maxshape=(None,), name="records")
    shm.entry("records").append(np.array([(1, b"x")], [("a", "<i8"), ("b", "S9")]))
    assert shm["records"].tolist() == [(1, b"x")]
    with pytest.raises(ValueError, match="invalid literal"):
        log.append([["x", "y"]])
    for wrong in ([1, 2], [[1, 2, 3]], 5, [[[1, 2]]]):
        with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
            log.append(wrong)
    assert len(log.value) == 4


def test_append_within_maxshape(shm):
    shm.zeros((1, 2), maxshape=(4, 2), name="x")
    entry, view = shm.entry("x"), shm["x"]
    entry.append(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"maxshape is \(4, 2\)"):
        entry.append(np.ones((1, 2)))
    assert entry.value.tolist() == [[0, 0], *[[1, 1]] * 3]
    assert view.ctypes.data == entry.value.ctypes.data


def test_what_cannot_grow(shm):
    shm["array"], shm["bytes"] = [1, 2], b"text"
    for name, error in (("array", ValueError), ("bytes", TypeError)):
        with pytest.raises(error):
            shm.entry(name).append([1])
        with pytest.raises(error):
            shm.entry(name).resize(3)
    with pytest.raises(KeyError):
        shm.entry("missing")
    entry = log_of(shm)
    del shm["log"]
    for use in (lambda: entry.append(rows(0, 1)), lambda: entry.resize((1, 2)), lambda: entry.shape, lambda: entry.value, entry.seal):
        with pytest.raises(KeyError):
            use()
    assert repr(entry) == "<shmem.Entry 'log': KeyError>"


def test_entry_of_other_objects(shm):
    shm["bytes"] = b"text"
    entry = shm.entry("bytes")
    assert (entry.nbytes, entry.dtype, entry.shape, entry.maxshape, entry.sealed) == (4, None, None, None, False)
    assert bytes(entry.value) == b"text"
    assert entry.pins == ()
    with memoryview(entry.value):
        assert entry.pins == (os.getpid(),)
    assert repr(entry) == "<shmem.Entry 'bytes': 4 bytes>"


def test_entry_of_a_freed_object(shm):
    shm["x"] = [1, 2]
    entry = shm.entry("x")
    shm.free(shm["x"])
    with pytest.raises(shmem.InvalidBlock, match="del shm"):
        entry.append([1])


def test_dtype_with_a_long_text(shm):
    dtype = np.dtype([(f"field {i}", "<i4") for i in range(200)])
    shm.zeros(1, dtype, maxshape=(None,), name="x")
    shm.entry("x").append(np.ones(9, dtype), move=True)
    assert shm["x"].dtype == dtype
    assert shm["x"]["field 199"].tolist() == [0, *[1] * 9]


def test_update_in_place_while_rows_are_appended(shm):
    log = log_of(shm, 2)
    values = shm["log"]
    log.append(rows(2, 1))
    values += 1
    shm["log"] = values
    assert log.value.tolist() == [[1, 2], [3, 4], [4, 5]]
    with pytest.raises(shmem.NameExists):
        shm["log"] = values[:1]


def test_reference_has_the_rows_that_were_sent(shm):
    log = log_of(shm, 3)
    sent = [shmem.dumps(log.value), shmem.dumps(log.value[1:])]
    log.append(rows(3, 2))
    assert [shmem.loads(data).tolist() for data in sent] == [rows(0, 3).tolist(), rows(1, 2).tolist()]
    longer = shmem.dumps(log.value)
    log.resize((1, 2))
    assert shmem.loads(longer).tolist() == rows(0, 5).tolist()


# -- moving ---------------------------------------------------------------------------------------------------


def test_full_array_moves_when_it_is_not_viewed(shm):
    log = log_of(shm)
    for i in range(40):
        log.append(rows(100 * i, 100))
    assert log.value.tolist() == rows(0, 4000).tolist()
    assert shm.check_heap().blocks == 1
    assert list(shm) == ["log"]


def test_full_array_does_not_move_under_a_view(shm):
    log = log_of(shm, 1)
    view = log.value
    with pytest.raises(BufferError, match=f"process {os.getpid()} viewed it"):
        log.append(rows(1, 1000))
    assert (log.shape, room(log)) == ((1, 2), PAGE_BYTES // 16)
    log.append(rows(1, 200))
    assert view.ctypes.data == log.value.ctypes.data
    shm.check_heap()


def test_move_keeps_the_old_data_for_views(shm):
    log = log_of(shm, 1)
    view, other = log.value, log_of(shm, 1, "other")
    log.append(rows(1, 1000), move=True)
    view[0] = 7
    assert view.tolist() == [[7, 7]]
    assert log.value.tolist() == rows(0, 1001).tolist()
    assert shmem.info(view).names == ()
    assert shm.check_heap().blocks == 3
    del view
    assert shm.check_heap().blocks == 2
    assert other.shape == (1, 2)


def test_view_of_another_process_keeps_an_array_in_place(shm, child):
    log = log_of(shm, 1)
    other = child(
        """
        with shmem.SharedMemory(shared_name=args[0]) as shm:
            view = shm["log"]
            say("viewing")
            sys.stdin.readline()
            say(view.tolist(), shm.entry("log").shape)
        """,
        shm.name,
    )
    other.hear()
    with pytest.raises(BufferError, match=str(other.process.pid)):
        log.append(rows(1, 1000))
    log.append(rows(1, 1000), move=True)
    other.tell()
    assert other.hear() == "[[0, 1]] (1001, 2)"
    other.end()
    shm.sweep()
    assert shm.check_heap().blocks == 1


def test_claimed_array_does_not_move(shm):
    log = log_of(shm, 1)
    sent = shmem.handle(log.value, claim=600)
    assert log.pins == ()
    for change in (lambda: log.append(rows(1, 1000)), log.seal):
        with pytest.raises(BufferError, match="a message refers to it"):
            change()
    log.append(rows(1, 1000), move=True)
    view = sent.open()
    assert view.tolist() == rows(0, 1).tolist()
    assert log.shape == (1001, 2)
    assert shm.check_heap().blocks == 2
    del view
    assert shm.check_heap().blocks == 1


def test_array_with_two_names_does_not_move(shm):
    log = log_of(shm, 1)
    shm["again"] = shm["log"]
    for move in (False, True):
        with pytest.raises(BufferError, match="other names"):
            log.append(rows(1, 1000), move=move)
    del shm["again"]
    shm.root = shm["log"]
    with pytest.raises(BufferError, match="root"):
        log.append(rows(1, 1000))
    shm.root = None
    log.append(rows(1, 1000))
    assert log.shape == (1001, 2)
    shm.check_heap()


def test_section_full(shm):
    log = log_of(shm, 1)
    with pytest.raises(shmem.SectionFull):
        log.append(np.zeros((300_000, 2), "int64"))
    with pytest.raises(shmem.SectionFull):
        log.resize((1 << 50, 2))
    assert log.value.tolist() == rows(0, 1).tolist()
    log.append(rows(1, 200_000))  # fits, but not with room for half as many more
    assert len(log.value) == room(log) == 200_001
    assert shm.check_heap().blocks == 1


# -- resizing -------------------------------------------------------------------------------------------------


def test_resize(shm):
    log = log_of(shm, 4)
    view = log.value
    log.resize((2, 2))
    assert view.tolist() == rows(0, 4).tolist()
    assert log.value.tolist() == rows(0, 2).tolist()
    log.resize((3, 2))
    assert log.value.tolist() == [[0, 1], [2, 3], [0, 0]]
    log.append(rows(9, 1))
    assert view.tolist() == [[0, 1], [2, 3], [0, 0], [18, 19]]
    with pytest.raises(BufferError):
        log.resize((1000, 2))
    log.resize((1000, 2), move=True)
    assert log.value[:4].tolist() == view.tolist()
    assert not log.value[4:].any()
    log.resize([0, 2])
    assert log.shape == (0, 2)
    shm.check_heap()


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 2, 2), (4, 5, 3), (0, 3, 3), (3, 0, 3), (3, 3, 6)])
def test_other_dimensions(shm, shape):
    source = np.arange(1, 28).reshape(3, 3, 3)
    shm.array(source, maxshape=(None, None, 6), name="x")
    entry, expected = shm.entry("x"), np.zeros(shape, "int64")
    common = tuple(slice(min(a, b)) for a, b in zip(shape, source.shape, strict=True))
    expected[common] = source[common]
    view = entry.value
    if shape[1:] != (3, 3):
        with pytest.raises(BufferError):
            entry.resize(shape)
    entry.resize(shape, move=True)
    assert np.array_equal(entry.value, expected)
    assert view.tolist() == source.tolist()
    entry.append(np.full((2, *shape[1:]), 8), move=True)
    assert np.array_equal(entry.value, np.concatenate([expected, np.full((2, *shape[1:]), 8)]))
    assert shm.check_heap().blocks == 2 - (shape[1:] == (3, 3))


def test_invalid_resize(shm):
    shm.zeros((2, 3), maxshape=(5, 3), name="x")
    entry = shm.entry("x")
    for shape, text in (
        ((6, 3), "maxshape"),
        ((2, 4), "maxshape"),
        (6, "2 dimensions"),
        ((2, 3, 1), "2 dimensions"),
        ((-1, 3), "negative"),
    ):
        with pytest.raises(ValueError, match=text):
            entry.resize(shape)
    entry.resize((5, 1))
    assert entry.shape == (5, 1)


# -- several at once ------------------------------------------------------------------------------------------


N_TOGETHER = 10_000  # rows of a call: copying them, and moving the array, takes long enough for others to come


@pytest.fixture
def large():
    """Return a section with room for what several processes append."""
    with shmem.SharedMemory(max_size=1 << 27) as section:
        yield section


def append_numbers(path, which, n, move):
    """Append n batches of numbers that name this process."""
    with shmem.SharedMemory(shared_name=path) as shm:
        entry, batch = shm.entry("log"), np.full((N_TOGETHER, 2), which)
        for i in range(n):
            batch[:, 1] = np.arange(N_TOGETHER * i, N_TOGETHER * (i + 1))
            entry.append(batch, move=move)


def verify_numbers(found, n):
    """Verify that each of four appenders has all rows of n batches, and that the rows of a batch stay together."""
    assert len(found) == 4 * N_TOGETHER * n
    for which in range(4):
        assert np.array_equal(found[found[:, 0] == which, 1], np.arange(N_TOGETHER * n))
    assert (found[:, 0].reshape(-1, N_TOGETHER) == found[::N_TOGETHER, :1]).all()


@pytest.mark.parametrize("move", [False, True])
def test_processes_append_at_once(large, move):
    """No row is lost, and the rows of one call stay together, while the array moves many times."""
    log = log_of(large)
    pids = []
    for which in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                append_numbers(large.name, which, 50, move)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    if move:
        view = log.value
        while len(view) < 100 * N_TOGETHER:
            view = log.value
            for numbers in [view[view[:, 0] == which, 1] for which in range(4)]:
                assert np.array_equal(numbers, np.arange(len(numbers)))
        del view
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    verify_numbers(log.value, 50)
    assert large.check_heap().blocks == 1


def test_threads_append_at_once(large):
    log = log_of(large)
    threads = [threading.Thread(target=append_numbers, args=(large.name, i, 50, False)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verify_numbers(log.value, 50)
    assert large.check_heap().blocks == 1


# -- killed and stopped appenders -----------------------------------------------------------------------------


def find(shm, name):
    """Return the offset of an array, without a view of it."""
    return growing.look(shm, name).offset


STANDS = "shm = shmem.SharedMemory(shared_name=args[0]); shm['x'] = [1]; say(os.getpid()); sys.stdin.readline()"


def test_gate_of_a_dead_appender_is_taken_over(shm, scribe):
    """The rows that it had not committed are not there, and are overwritten."""
    log = log_of(shm, 2)
    offset = find(shm, "log")
    data = offset + ARRAY["data_off"].read(scribe.bytes, offset)
    scribe[data + 2 * 16] = 123
    scribe[ARRAY["append_gate"].at(offset)] = DEAD_OWNER
    assert log.value.tolist() == rows(0, 2).tolist()
    log.append(rows(2, 1))
    assert log.value.tolist() == rows(0, 3).tolist()
    assert scribe[ARRAY["append_gate"].at(offset)] == 0
    shm.check_heap()


def test_recovery_opens_the_gate_of_a_dead_appender(shm, scribe, child):
    log = log_of(shm, 2)
    dead = child(STANDS, shm.name)
    pid = int(dead.hear())
    index = scribe.entry_of(pid)
    offset = find(shm, "log")
    scribe[ARRAY["append_gate"].at(offset)] = scribe.owner_word(index)
    LAYOUT["participant_t"]["pins"].write(scribe.bytes, 1, scribe.entry_start(index))
    with pytest.raises(shmem.InvalidBlock):
        shm.free(shm.block(offset))  # a live participant changes it
    dead.kill()
    shm.sweep()
    assert scribe[ARRAY["append_gate"].at(offset)] == 0
    log.append(rows(2, 1))
    shm.free(shm.block(offset))


def test_array_whose_name_is_deleted_ends_with_its_appender(shm, scribe, child):
    """While a participant is inside the gate, its memory is given to nothing else; after it was killed, recovery frees the array."""
    log_of(shm, 2)
    dead = child(STANDS, shm.name)
    pid = int(dead.hear())
    index = scribe.entry_of(pid)
    scribe[ARRAY["append_gate"].at(find(shm, "log"))] = scribe.owner_word(index)
    LAYOUT["participant_t"]["pins"].write(scribe.bytes, 1, scribe.entry_start(index))
    del shm["log"]
    assert shm.check_heap().blocks == 2
    dead.kill()
    shm.sweep()
    assert shm.check_heap().blocks == 1


def test_waiting_appender_can_be_interrupted(shm, scribe, child):
    """An appender waits for one that is stopped, pins nothing meanwhile, and goes on when the array is gone."""
    log = log_of(shm, 2)
    stopped = child(STANDS, shm.name)
    index = scribe.entry_of(int(stopped.hear()))
    offset = find(shm, "log")
    scribe[ARRAY["append_gate"].at(offset)] = scribe.owner_word(index)
    waiter = child(
        """
        shm = shmem.SharedMemory(shared_name=args[0])
        say(os.getpid())
        try:
            shm.entry("log").append([[1, 2]])
        except KeyboardInterrupt:
            say("interrupted")
        try:
            shm.entry("log").append([[1, 2]])
        except KeyError:
            say("gone")
        """,
        shm.name,
    )
    pid = int(waiter.hear())
    wait_for(lambda: waits_for_others(pid))
    assert log.pins == ()
    os.kill(pid, signal.SIGINT)
    assert waiter.hear_soon() == "interrupted"
    wait_for(lambda: waits_for_others(pid))
    del shm["log"]
    assert waiter.hear_soon() == "gone"
    waiter.end()
    stopped.kill()


# -- files ----------------------------------------------------------------------------------------------------


def test_check_of_a_file_with_a_dead_appender(section_file):
    """A gate that is taken, and rows above the end, are not damage; what is wrong in the header is."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        log_of(shm, 2)
        offset = find(shm, "log")
    scribe = Scribe(section_file)
    data = offset + ARRAY["data_off"].read(scribe.bytes, offset)
    scribe[data + 2 * 16] = 123
    scribe[ARRAY["append_gate"].at(offset)] = DEAD_OWNER
    assert examine(section_file, False, False).state == "intact"
    shape = offset + ARRAY.size
    scribe[shape] = 1 << 40
    assert examine(section_file, False, False).state == "damaged"
    scribe[shape] = 2
    with shmem.SharedMemory(section_file) as shm:
        shm.entry("log").append(rows(2, 1))
        assert shm["log"].tolist() == rows(0, 3).tolist()
        assert scribe[ARRAY["append_gate"].at(offset)] == 0


def test_leak_and_lost_tag_of_an_array_that_can_grow(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        offset = shmem.info(shm.zeros((3, 2), "int64", maxshape=(None, 2))).offset
        log_of(shm, 2)
        named = find(shm, "log")
    assert [leak.type for leak in examine(section_file, False, True).leaks] == ["array (3, 2) of <i8"]
    Scribe(section_file)[named - 16] = 0
    examined = examine(section_file, False, False)
    assert any("kept as an array, named 'log'" in note for note in examined.notes), examined.notes
    assert offset < named


def test_snapshot_while_rows_are_appended(large, tmp_path):
    log = log_of(large)
    thread = threading.Thread(target=append_numbers, args=(large.name, 7, 50, False))
    thread.start()
    for i in range(5):
        path = tmp_path / f"copy {i}"
        large.snapshot(path)
        with shmem.SharedMemory(path) as copy:
            found = copy["log"]
            assert found[:, 1].tolist() == list(range(len(found)))
            del found
            copy.entry("log").append([[1, 2]])
            copy.check_heap()
    thread.join()
    assert len(log.value) == 50 * N_TOGETHER
