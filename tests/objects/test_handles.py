"""Handles: multiprocessing sends them for objects in a section; opening one fails after its object was freed."""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
from workers import Point, add_number, add_one, bump, describe, fill

import shmem
from shmem._objects import finding  # not public


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_sends_handles(shm, method):
    array = shm.array(np.arange(10.0))
    point = shm.new(Point, n=1)
    block = shm.allocate(5)
    with multiprocessing.get_context(method).Pool(2) as pool:
        result = pool.apply(add_one, (array,))
        assert result.tolist() == [1.0, 2.0]
        assert shmem.find_storage(result) is shm  # returned as a handle too
        assert array.tolist() == list(range(1, 11))
        assert pool.apply(add_one, (array[4:8:2],)).tolist() == [6.0, 8.0]
        assert array.tolist() == [1, 2, 3, 4, 6, 6, 8, 8, 9, 10]
        assert pool.apply(bump, (point,)) == point
        assert point.n == 2
        assert pool.apply(describe, (shm,))[0] == "SharedMemory"
        pool.apply(fill, (block, shm))
        pool.close()
        pool.join()
    assert bytes(block) == b"xxxxx"
    assert shm["from child"][0] != os.getpid()
    shm.check_heap()


def test_concurrent_futures_sends_handles(shm):
    array = shm.zeros(4)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(add_one, [array] * 6))
    assert array.sum() == 24


def test_copy_is_sent_as_data(shm):
    array = shm.array([1, 2, 3]).copy()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(describe, (array,))[0] == "ndarray"


def test_handle_opens_in_an_unrelated_process(place, child):
    with shmem.SharedMemory(**place, max_size=1 << 22) as section:
        array = section.array(np.arange(100_000))
        data = pickle.dumps(shmem.handle(array[10:20]))
        assert len(data) < 1000
        code = """
        import pickle
        a = pickle.loads(bytes.fromhex(args[0])).open(); say(a.sum()); a[0] = 0; say(type(shmem.find_storage(a)).__name__)
        """
        other = child(code, data.hex())
        assert other.hear() == str(sum(range(10, 20)))
        assert other.hear() == "SharedMemory"
        other.end()
        assert array[10] == 0
        again = pickle.loads(data).open()
        assert shmem.find_storage(again) is section
        again[1] = -1
        assert array[11] == -1


def test_handle_of_a_read_only_section_opens_read_only(place):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        section["a"] = [1, 2]
        with shmem.SharedMemory(**place, mode="read_only") as reader:
            sent = shmem.handle(reader["a"])
            assert not sent.open().flags.writeable
        assert not sent.open().flags.writeable


def test_stale_handles_raise(shm):
    array, block = shm.zeros(10), shm.allocate(10)
    sent = [shmem.handle(array), shmem.handle(block)]
    shm.free(array)
    shm.free(block)
    for one in sent:
        with pytest.raises(shmem.InvalidBlock):
            one.open()
    shm.zeros(10)
    shm.allocate(10)
    for one in sent:
        with pytest.raises(shmem.InvalidBlock):
            one.open()
    for nothing in (np.zeros(3), b"abc", np.zeros(3)[1:]):
        with pytest.raises(shmem.InvalidBlock, match="is not in a section"):
            shmem.handle(nothing)


def test_handle_of_a_removed_section_raises(place):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        sent = shmem.handle(section.allocate(10))
    if "file_name" in place:
        os.unlink(section.path)
    with pytest.raises(shmem.SectionNotFound):
        sent.open()
    with shmem.SharedMemory(**place, max_size=1 << 20), pytest.raises(shmem.NotASection, match="another section"):
        sent.open()


def test_loky_sends_handles(shm):
    reduction = pytest.importorskip("loky.backend.reduction")
    array, point = shm.zeros(4), shm.new(Point, n=3)
    for obj in (array, array[1:], point, shm.allocate(5), shm):
        sent = reduction.dumps(obj)
        assert len(sent) < 1000
        again = pickle.loads(sent)
        assert again is obj or shmem.handle(again) == shmem.handle(obj)
    again = pickle.loads(reduction.dumps(array))
    again += 1
    assert array.sum() == 4
    assert type(pickle.loads(reduction.dumps(array.copy()))) is np.ndarray
    with loky_executor() as pool:
        assert pool.submit(add_one, array).result().tolist() == [2.0, 2.0]
    assert array.sum() == 8


def loky_executor():
    return importlib.import_module("loky").ProcessPoolExecutor(1)


def test_section_closed_while_a_handle_opens(section_file, monkeypatch):
    section = shmem.SharedMemory(section_file, max_size=1 << 20)
    sent = shmem.handle(section.array([1, 2, 3]))
    reopen = finding.reopen

    def late(found, *what):
        section.close()
        return reopen(found, *what)

    monkeypatch.setattr(finding, "reopen", late)
    assert sent.open().sum() == 6


def two_copies(tmp_path):
    """Return the paths of two copies of a section with an array `x`."""
    with shmem.SharedMemory(tmp_path / "template", max_size=1 << 20) as section:
        section.zeros(3, name="x")
    return [shutil.copy(tmp_path / "template", tmp_path / name) for name in "ab"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_copies_of_a_file_are_not_confused(tmp_path, method):
    """A copy has the uuid of the original, and both are open, in this process and in the receiver."""
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(shmem.SharedMemory(path)) for path in two_copies(tmp_path))
        assert a.uuid == b.uuid
        for section in (a, b):
            assert np.shares_memory(shmem.handle(section["x"]).open(), section["x"])
            assert shmem.handle(section).open() is section
        with multiprocessing.get_context(method).Pool(1) as pool:
            for number, section in enumerate((a, b, a), 1):
                pool.apply(add_number, (section["x"], number))
                assert pool.apply(np.ndarray.tolist, (section["x"],)) == section["x"].tolist()
        assert a["x"].tolist() == [4, 4, 4]
        assert b["x"].tolist() == [2, 2, 2]


def test_handle_of_a_section_that_a_copy_replaced(tmp_path, child):
    """The path leads to the copy, which has the same uuid; another process must not write there by mistake."""
    a, b = two_copies(tmp_path)
    with shmem.SharedMemory(a) as section:
        sent = pickle.dumps(shmem.handle(section["x"])).hex()
        os.rename(a, tmp_path / "moved")
        os.rename(b, a)
        code = """
        import pickle
        try:
            pickle.loads(bytes.fromhex(args[0])).open()[:] = 1
        except shmem.NotASection as error:
            say(error)
        """
        assert "a copy of the section" in child(code, sent).end()
        with shmem.SharedMemory(a) as copy:
            assert copy["x"].tolist() == [0, 0, 0]
            assert np.shares_memory(pickle.loads(bytes.fromhex(sent)).open(), section["x"])


def test_moved_section_reports_its_present_path(place, tmp_path, child):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        section["x"] = [1, 2]
        before = section.path
        assert section.path == before
        os.rename(before, before + "-moved")
        assert section.path == before + "-moved"
        assert section.name == (place["shared_name"] + "-moved" if "shared_name" in place else section.path)
        assert shmem.handle(section["x"]).path == section.path
        if "file_name" in place:  # an anonymous section is labelled with its name
            code = "import pickle; say(pickle.loads(bytes.fromhex(args[0])).open().tolist())"
            assert child(code, pickle.dumps(shmem.handle(section["x"])).hex()).end() == "[1, 2]\n"
        os.rename(before + "-moved", before)
        assert section.path == before
    assert section.path == before
