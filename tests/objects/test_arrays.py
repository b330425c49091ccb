"""Arrays, the directory of names, and pins."""

import copy
import io
import os
import pickle
import threading
import time

import numpy as np
import pytest
from scribe import BLOCK, HEAD, PARTICIPANT, Scribe

import shmem
from shmem._base.layout import LINE_BYTES, MAX_DIMS, MAX_NAME_BYTES, SERIAL_MASK

DTYPES = ["?", "i1", "<u2", ">i4", "f2", "f8", "c16", "S5", "U3", "M8[ns]", "m8[us]", "V7"]
RECORD = np.dtype([("a", "<i4"), ("b", "<f8", (2, 3)), ("c", "S4")], align=True)


def assert_same(array, expected):
    if expected.dtype.fields:  # numpy does not copy padding
        for name in expected.dtype.names:
            assert array[name].tobytes() == expected[name].tobytes()
    else:
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [*DTYPES, RECORD])
@pytest.mark.parametrize("shape", [(), 0, 5, (3, 4), (2, 0, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_roundtrip(shm, dtype, shape, order):
    expected = np.frombuffer(np.random.default_rng(1).bytes(np.zeros(shape, dtype).nbytes), "u1").view(np.dtype(dtype))
    if np.dtype(dtype).kind in "U?":
        expected = np.zeros(np.zeros(shape).size, dtype)
    expected = expected.reshape(shape, order=order)
    array = shm.array(expected, name="a")
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(dtype)
    assert_same(array, expected)
    assert array.ctypes.data % LINE_BYTES == 0
    found = shm["a"]
    assert found.dtype == array.dtype
    assert (found.shape, found.strides) == (array.shape, array.strides)
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    assert_same(found, expected)
    shm.check_heap()


def test_array_constructors(shm):
    assert shm.empty((2, 3)).shape == (2, 3)
    assert shm.zeros(4, "i4").tolist() == [0] * 4
    assert shm.full((2, 2), 7).tolist() == [[7, 7], [7, 7]]
    assert shm.full(2, 7).dtype == np.asarray(7).dtype
    assert shm.full(2, 1.5, "f4").dtype == np.float32
    assert shm.array([[1, 2], [3, 4]], "f8").tolist() == [[1, 2], [3, 4]]
    source = np.arange(12).reshape(3, 4)[:, ::2]
    assert np.array_equal(shm.copy(source), source)
    assert shm.zeros(2, (np.int32, (3,))).shape == (2, 3)
    assert shm.zeros((2, 2), order="F").flags.f_contiguous


def test_unsupported_arrays_are_rejected(shm):
    before = shm.check_heap()
    for make in (
        lambda: shm.zeros(3, object),
        lambda: shm.array([object()]),
        lambda: shm.array([{}, None]),
        lambda: shm.zeros(3, [("a", "O")]),
        lambda: shm.__setitem__("x", {"a": 1}),
    ):
        with pytest.raises(TypeError, match="Python objects"):
            make()
    for make in (
        lambda: shm.zeros(-1),
        lambda: shm.zeros((3, -2)),
        lambda: shm.zeros((1,) * (MAX_DIMS + 1)),
        lambda: shm.zeros(3, order="K"),
    ):
        with pytest.raises(ValueError):
            make()
    for make in (lambda: shm.zeros(1 << 40), lambda: shm.zeros((1 << 62, 1 << 62)), lambda: shm.zeros(1 << 21)):
        with pytest.raises(shmem.SectionFull):
            make()
    with pytest.raises(ValueError, match="mutually exclusive"):
        shm.zeros(3, name="x", temporary=True)
    with pytest.raises(ValueError):
        shm.full(3, "text", dtype="f8")  # fails while it is filled; the block is freed
    after = shm.check_heap()
    assert (after.blocks, after.pending_blocks) == (before.blocks, 0)


def test_arrays_are_numpy_arrays_and_nothing_else(shm):
    array = shm.array([3.0, 1.0, 2.0])
    results = [
        array + 1,
        np.sort(array),
        array.astype("f4"),
        np.zeros_like(array),
        array.copy(),
        np.add(array, 1, out=array),
        array[1:],
        array.T,
    ]
    assert {type(found) for found in [array, *results]} == {np.ndarray}
    assert type(array[0]) is type(array.sum()) is np.float64
    same = array
    same += 1
    assert same is array
    assert shmem.find_storage(array) is shmem.find_storage(array[1:]) is shm
    assert shmem.find_storage(array.copy()) is None


def test_plain_pickle_stores_the_data(shm, tmp_path):
    array = shm.array([1, 2, 3])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(array, protocol))
        assert type(again) is np.ndarray
        assert again.tolist() == [1, 2, 3]
    assert copy.deepcopy(array).tolist() == [1, 2, 3]
    np.save(tmp_path / "a.npy", array)
    assert np.load(tmp_path / "a.npy").tolist() == [1, 2, 3]
    np.savez(file := io.BytesIO(), a=array)
    file.seek(0)
    assert np.load(file)["a"].tolist() == [1, 2, 3]
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps(shm)
    with pytest.raises(TypeError, match="handle"):
        pickle.dumps(shm.allocate(3))


# -- the directory ------------------------------------------------------------------------------------------


def test_directory_is_a_mapping(shm):
    assert len(shm) == 0
    assert shm
    shm["b"] = [1, 2]
    shm["a"] = 5.0
    shm["c"] = b"bytes\0"
    shm["ü"] = "text"
    assert list(shm) == list(shm.keys()) == ["b", "a", "c", "ü"]
    assert len(shm) == 4
    assert "a" in shm
    assert "x" not in shm
    assert 5 not in shm
    assert shm["a"] == 5.0
    assert bytes(shm["c"]) == b"bytes\0"
    assert str(shm["ü"]) == "text"
    assert shm.get("x") is None
    assert shm.get("x", 3) == 3
    assert [name for name, _ in shm.items()] == list(shm)
    assert len(list(shm.values())) == 4
    with pytest.raises(KeyError, match="x"):
        shm["x"]
    with pytest.raises(KeyError):
        del shm["x"]
    with pytest.raises(TypeError, match="string"):
        shm[5] = [1]
    for bad in ("", "x" * (MAX_NAME_BYTES + 1)):
        with pytest.raises(ValueError, match=f"{MAX_NAME_BYTES} bytes"):
            shm[bad] = [1]
    del shm["b"], shm["a"], shm["c"], shm["ü"]
    assert list(shm) == []
    assert shm.check_heap().blocks == 0


def test_name_is_assigned_once_and_updated_in_place(shm):
    shm["x"] = [1.0, 2.0]
    first = shm["x"]
    for value in ([3.0], b"bytes", shm.zeros(2)):
        with pytest.raises(shmem.NameExists, match="update in place") as caught:
            shm["x"] = value
    assert isinstance(caught.value, ValueError)
    shm["x"] += 1
    shm["x"][...] *= 2
    assert first.tolist() == [4.0, 6.0]
    with pytest.raises(shmem.NameExists):
        shm.zeros(3, name="x")
    assert shm.check_heap().pending_blocks == 0


def test_link_and_delete_names(shm):
    array = shm.zeros(1000)
    shm["one"] = array
    shm["two"] = shm["one"]
    assert shm.check_heap().blocks == 1
    del shm["one"]
    array[0] = 5
    assert shm["two"][0] == 5
    shm["part"] = array[:10]  # a view of a part is copied
    array[0] = 6
    assert shm["part"][0] == 5
    del shm["two"]
    assert shm.check_heap().blocks == 2  # `array` still pins it
    array[0] = 7
    del array
    assert shm.check_heap().blocks == 1
    block = shm.allocate(10)
    shm["block"] = block
    shm.root = block
    del shm["block"]
    assert shm.root == block  # the root still leads there
    shm.root = None
    shm["block"] = block
    del shm["block"]
    with pytest.raises(shmem.InvalidBlock):
        shm.free(block)


def test_renamed_array_is_kept(shm):
    array = shm.zeros(10)
    shm["a"] = array
    del shm["a"]
    shm["b"] = array
    del array
    assert shm["b"].tolist() == [0] * 10
    shm.check_heap()


def test_linked_temporary_array_is_kept(shm):
    array = shm.zeros(10, temporary=True)
    shm["a"] = array
    del array
    assert shm["a"].tolist() == [0] * 10
    rooted = shm["a"]
    del shm["a"]
    shm.root = rooted
    del rooted
    assert shm.root.tolist() == [0] * 10
    shm.check_heap()


def test_name_of_a_freed_block_raises(shm):
    """A name must not resolve to a newer block at the same offset."""
    block = shm.allocate(100)
    shm["a"] = block
    shm.root = block
    shm.free(block)
    other = shm.allocate(100)
    assert other.offset == block.offset
    assert shm.root is None
    with pytest.raises(shmem.InvalidBlock, match="was freed; del"):
        shm["a"]
    del shm["a"]
    assert shm.block(other.offset) == other
    shm.check_heap()


def test_get_while_others_delete_and_assign(shm, child):
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); say('go')
    while True:
        section['x'] = [1, 2, 3]; section['y'] = b'y' * 24; del section['x']; del section['y']
        section['y'] = b'y' * 600; section['x'] = [1, 2, 3]; del section['y']; del section['x']
    """
    other = child(code, shm.name)
    other.hear()
    seen = 0
    end = time.monotonic() + 1
    while time.monotonic() < end or (seen == 0 and time.monotonic() < end + 20):  # on a busy machine the other process starts later
        found = shm.get("x")
        if found is not None:
            assert type(found) is np.ndarray
            assert found.tolist() == [1, 2, 3]
            seen += 1
    assert seen > 0
    other.kill()
    shm.check_heap()


@pytest.mark.damages
@pytest.mark.parametrize("size", [20, 300])
@pytest.mark.parametrize("after", ["raise shmem.HeapCorruption('of what is there now')", "return section.block(offset)"])
def test_get_while_another_process_frees_the_block(shm, child, after, size):
    """A block reused during the lookup is not the one that the name referred to.  A new root may lie at the same offset."""
    code = f"""
    from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT, TAG_TYPE_SHIFT, TYPE_FIRST_USER, TYPE_PLAIN
    from shmem._bridge.blocks import register_opener
    tag, unused = LAYOUT['block_t']['tag'], TYPE_FIRST_USER - 1
    def opener(mapping, offset, type_id, serial):            # for a type that does not exist
        del section['x']; section.free(offset); section.root = section.allocate({size})
        {after}
    register_opener(unused, unused, opener)
    section = shmem.SharedMemory(shared_name=args[0])
    for look in (lambda: section.get('x'), lambda: section.root):
        section['x'] = b'x' * 300
        section.root = section['x']
        offset = section.root.offset
        with open(section.path, 'r+b') as file:
            plain = tag.read_file(file.fileno(), offset - BLOCK_HEAD_BYTES)
            assert plain >> TAG_TYPE_SHIFT == TYPE_PLAIN
            tag.write_file(file.fileno(), plain | unused << TAG_TYPE_SHIFT, offset - BLOCK_HEAD_BYTES)
        found = look()
        say(found is None or found == section.root and found.nbytes == {size} and (found.offset == offset) == ({size} == 300))
    """
    other = child(code, shm.name)
    assert [other.hear(), other.hear()] == ["True", "True"]
    shm.check_heap()


@pytest.mark.damages
def test_serial_zero_matches_no_pin(shm, child):
    """A serial of 0 is read where no block begins.  It must not pin an array, nor release the pin of another one."""
    shm.root = mine = shm.array([1, 2, 3])
    scribe, serial_off = Scribe(shm.path), BLOCK["serial"].at(mine.base.offset - HEAD)
    word = scribe[serial_off]
    scribe[serial_off] = word & ~SERIAL_MASK
    with pytest.raises(shmem.InvalidBlock):
        shm.root  # noqa: B018
    scribe[serial_off] = word
    code = "section = shmem.SharedMemory(shared_name=args[0]); section.root = None; section['y'] = [7, 7, 7]; say('done')"
    assert child(code, shm.name).hear() == "done"
    assert mine.tolist() == [1, 2, 3]
    shm.check_heap()


def test_iterate_while_names_are_deleted(shm):
    for name in "abc":
        shm[name] = [1, 2, 3]
    names = []
    for name, value in shm.items():
        names.append(name)
        assert value.sum() == 6
        if "b" in shm:
            del shm["b"]
    assert names == ["a", "c"]
    n_values = 0
    for _ in shm.values():
        n_values += 1
        if "c" in shm:
            del shm["c"]
    assert n_values == 1
    shm["d"] = b"bytes"
    del shm["a"]
    assert shm["d"] in shm.values()
    assert b"other" not in shm.values()


def test_require_while_names_change(shm):
    """If another caller names a value first, that value is returned; if that name is deleted again, the value made here is named."""

    def factory():
        shm["x"] = [1, 2]
        return [3]

    assert shm.require("x", factory).tolist() == [1, 2]
    assert shm.require("y", lambda: shm.zeros(3, name="y")).tolist() == [0, 0, 0]
    assert shm.require("x", factory).tolist() == [1, 2]
    with pytest.raises(shmem.NameExists):  # the factory itself took the other name
        shm.require("z", lambda: shm.zeros(3, name="y"))


def test_many_names(shm):
    for i in range(1000):
        shm[f"name {i}"] = i
    for i in range(0, 1000, 2):
        del shm[f"name {i}"]
    for i in range(1000, 1300):
        shm[f"name {i}"] = i
    assert list(shm) == [f"name {i}" for i in [*range(1, 1000, 2), *range(1000, 1300)]]
    assert all(int(value) == int(name.split()[1]) for name, value in shm.items())
    shm.check_heap()


def test_require_calls_the_factory_once(shm):
    made = []

    def factory():
        made.append(1)
        return np.arange(3)

    def work():
        results.append(shm.require("x", factory))

    results = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(result.tolist() == [0, 1, 2] for result in results)


def test_processes_assign_the_same_names(shm, child):
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); say('ready'); sys.stdin.readline()
    won = 0
    for i in range(300):
        try:
            section[f'n{i}'] = [int(args[1])] * 3
            won += 1
        except shmem.NameExists: pass
        if i % 3 == 0:
            try: del section[f'n{i}']
            except KeyError: pass
    say(won)
    """
    others = [child(code, shm.name, i) for i in range(3)]
    for other in others:
        other.hear()
    for other in others:
        other.tell()
    assert sum(int(other.hear()) for other in others) >= 300
    for other in others:
        other.end()
    assert len(shm) >= 200
    report = shm.check_heap()
    assert report.blocks == len(shm)
    assert all(len(set(value.tolist())) == 1 for value in shm.values())


# -- pins -------------------------------------------------------------------------------------------------

LOOK = """
section = shmem.SharedMemory(shared_name=args[0]); a = section[args[1]]; say(a[0]); sys.stdin.readline()
say(a[0]); a = None; say('gone'); sys.stdin.readline()
"""


def test_pinned_array_is_not_freed(shm, child):
    shm["a"] = [5]
    other = child(LOOK, shm.name, "a")
    other.hear()
    with pytest.raises(shmem.InvalidBlock, match="another process") as caught:
        shm.free(shm["a"])
    assert caught.value.status == shmem.Status.pinned
    del shm["a"]
    assert "a" not in shm
    assert shm.check_heap().blocks == 1
    shm["a"] = [6]  # the name can be reused immediately
    other.tell()
    assert other.hear() == "5"
    other.hear()
    assert shm.check_heap().blocks == 1
    other.tell()
    other.end()


@pytest.mark.damages
def test_stale_pins_of_a_reused_entry_are_ignored(shm, child):
    """A live participant took over the entry of a killed one, and has not cleaned up yet."""
    array = shm.array([5])
    shm["a"] = array
    other = child(LOOK, shm.name, "a")
    other.hear()
    scribe, attached = Scribe(shm.path), PARTICIPANT["attached"]
    entry = scribe.entry_start(scribe.entry_of(other.process.pid))
    assert attached.read(scribe.bytes, entry) == 1
    attached.write(scribe.bytes, 2, entry)
    shm.free(array)
    del shm["a"]
    assert shm.check_heap().blocks == 0
    other.kill()


def test_pins_of_a_killed_process_are_dropped(shm, child):
    shm["a"] = [5]
    other = child(LOOK, shm.name, "a")
    other.hear()
    del shm["a"]
    assert shm.check_heap().blocks == 1
    other.kill()
    assert shm.check_heap().blocks == 0


def test_free_ignores_own_views(shm):
    array = shm.zeros(10)
    view = array[2:]
    shm.free(view)
    assert shm.check_heap().blocks == 0
    with pytest.raises(shmem.InvalidBlock):
        shm.free(array)


def test_temporary_array_is_freed_with_its_last_view(shm, child):
    array = shm.zeros(1000, temporary=True)
    view = array[5:]
    del array
    assert shm.check_heap().blocks == 1
    del view
    assert shm.check_heap().blocks == 0
    code = "section = shmem.SharedMemory(shared_name=args[0]); a = section.zeros(10, temporary=True); say('made'); time.sleep(60)"
    other = child(code, shm.name)
    other.hear()
    assert shm.check_heap().blocks == 1
    other.kill()
    assert shm.check_heap().blocks == 0


def test_pins_after_fork(shm):
    array = shm.zeros(10, name="a")
    pid = os.fork()
    if pid == 0:
        del array  # the child must not drop its parent's pin
        os._exit(0)
    os.waitpid(pid, 0)
    del shm["a"]
    array[:] = 1
    assert shm.check_heap().blocks == 1
    del array
    assert shm.check_heap().blocks == 0


def test_threads_share_one_pin(shm):
    shm["a"] = np.zeros(10)

    def work():
        for _ in range(300):
            view = shm["a"]
            view[0] += 0
            del view

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del shm["a"]
    assert shm.check_heap().blocks == 0


def test_killed_while_making_an_array(shm, child):
    code = """
    section = shmem.SharedMemory(shared_name=args[0]); say('go')
    while True:
        a = section.zeros(3000, name='x'); del section['x']; del a
        section.free(section.copy([1, 2, 3]))
    """
    for _ in range(10):
        other = child(code, shm.name)
        other.hear()
        time.sleep(0.02)
        other.kill()
        report = shm.check_heap()
        # a complete array that was not named or freed yet may remain; an incomplete one must not
        assert report.pending_blocks == 0
        if "x" in shm:
            del shm["x"]
    assert shm.check_heap().blocks <= 10
