"""A reference that is lost on its way hangs and breaks no pool: a placeholder arrives, which raises when it is used."""

import concurrent.futures
import importlib
import io
import multiprocessing
import os
import pickle
import queue
from multiprocessing.reduction import ForkingPickler

import losing
import numpy as np
import pytest

import shmem

SECONDS = 30  # after which a pool counts as hanging
METHODS = ["fork", "spawn", "forkserver"]
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # executors of other tests have threads


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


def verify(shm, call):
    """Verify that what `call(function, *args)` sends and returns may be lost, and that the pool works afterwards."""
    assert call(losing.not_lost, losing.message(shm)) == []
    assert losing.not_lost(call(losing.message, shm)) == []
    assert call(abs, -1) == 1
    array = shm.array([1.0])
    assert call(np.sum, array) == 1


def test_multiprocessing_pool(shm, context):
    with context.Pool(1) as pool:
        verify(shm, lambda function, *args: pool.apply_async(function, args).get(SECONDS))
        assert [losing.not_lost(found) for found in pool.map_async(losing.message, [shm] * 2).get(SECONDS)] == [[], []]
        found = next(pool.imap(losing.message, [shm]))
        assert losing.not_lost(found) == []


def test_executor(shm, context):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        verify(shm, lambda *call: executor.submit(*call).result(SECONDS))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_process(shm, method):
    """The arguments of a process are unpickled before its function runs; a placeholder is sent on as itself."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(False)
    process = context.Process(target=losing.send_back, args=(losing.message(shm, libraries=False), sender))
    process.start()
    assert receiver.poll(SECONDS)
    assert losing.not_lost(receiver.recv()) == []
    process.join()
    assert process.exitcode == 0
    receiver.close()
    sender.close()


def test_queues_and_pipes(shm):
    sender, receiver = multiprocessing.Pipe()
    sender.send(losing.message(shm))
    assert losing.not_lost(receiver.recv()) == []
    simple, fed = multiprocessing.SimpleQueue(), multiprocessing.Queue()
    simple.put(losing.message(shm))
    assert losing.not_lost(simple.get()) == []
    fed.put(losing.message(shm))
    assert losing.not_lost(fed.get(timeout=SECONDS)) == []
    for one in (sender, receiver, simple, fed):
        one.close()


def test_manager(shm, context):
    """A placeholder is sent on as itself."""
    with context.Manager() as manager:
        kept, waiting = manager.list(), manager.Queue()
        kept.append(losing.message(shm))
        assert losing.not_lost(kept[0]) == []
        assert losing.not_lost(kept[0]) == []
        waiting.put(losing.message(shm))
        assert losing.not_lost(waiting.get(timeout=SECONDS)) == []
        with pytest.raises(queue.Empty):
            waiting.get_nowait()


def test_loky(shm):
    loky = importlib.import_module("loky")
    with loky.ProcessPoolExecutor(1) as executor:
        verify(shm, lambda *call: executor.submit(*call).result(SECONDS))


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib(shm, backend):
    joblib = importlib.import_module("joblib")
    with joblib.Parallel(n_jobs=2, backend=backend, timeout=SECONDS) as parallel:
        verify(shm, lambda function, *args: parallel([joblib.delayed(function)(*args)])[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_mpire(shm, method):
    mpire = importlib.import_module("mpire")
    with mpire.WorkerPool(1, start_method=method) as pool:
        verify(shm, lambda function, *args: pool.apply_async(function, args).get(timeout=SECONDS))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocess(shm, method):
    multiprocess = importlib.import_module("multiprocess")
    with multiprocess.get_context(method).Pool(1) as pool:
        verify(shm, lambda function, *args: pool.apply_async(function, args).get(SECONDS))


def test_billiard(shm):
    reduction = importlib.import_module("billiard.reduction")
    assert losing.not_lost(reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(losing.message(shm)))) == []


# -- other reasons ----------------------------------------------------------------------------------------------------


def test_section_is_gone(tmp_path):
    path = tmp_path / "section.shm"
    with multiprocessing.get_context("spawn").Pool(1) as pool, shmem.SharedMemory(path, max_size="1M") as section:
        for obj in (section.zeros(3), section):
            message = (obj, losing.Losing(lambda: path.rename(tmp_path / "moved")))
            cls, error, text = pool.apply_async(losing.use_first, (message,)).get(SECONDS)
            assert (cls, error) == (shmem.LostReference, shmem.InvalidBlock)
            assert "no such section" in text or "does not exist" in text
            (tmp_path / "moved").rename(path)
        assert pool.apply_async(np.sum, (section.zeros(3),)).get(SECONDS) == 0


def test_participant_table_is_full():
    """The object exists, and may be opened when an entry is free."""
    with multiprocessing.get_context("spawn").Pool(1) as pool, shmem.SharedMemory(max_size="1M", max_participants=1) as section:
        array = section.zeros(3)
        cls, error, text = pool.apply_async(losing.use, (array,)).get(SECONDS)
        assert (cls, error) == (shmem.LostReference, shmem.TooManyParticipants)
        assert "lost_handle.open() tries again" in text
        lost = pool.apply_async(losing.same, (array,)).get(SECONDS)
        assert (lost.lost_handle.offset, lost.lost_handle.serial) == (shmem.handle(array).offset, shmem.handle(array).serial)
        lost.lost_handle.open()[0] = 7
        assert array[0] == 7
        section.sweep(claims=0)  # the first message was not opened


def test_named_semaphore_is_gone():
    semaphore = shmem.Semaphore(f"test-{os.getpid()}-lost", 1)
    with shmem.SharedMemory(max_size="1M"):  # the pickler is joined by the first section
        sent = bytes(ForkingPickler.dumps(semaphore))
        semaphore.unlink()
        assert losing.use(ForkingPickler.loads(sent))[:2] == (shmem.LostReference, shmem.InvalidBlock)


# -- what is not lost -------------------------------------------------------------------------------------------------


def test_by_hand_raises_at_once(shm):
    """The caller of `loads` is there to catch the exception."""
    for sent in losing.message(shm).values():
        if not isinstance(sent, losing.Losing):
            array = shm.array([1.0])
            data, reference = shmem.dumps([array, sent]), shmem.handle(array)
            shm.free(array)
            with pytest.raises(shmem.InvalidBlock):
                shmem.loads(data)
            with pytest.raises(shmem.InvalidBlock):
                pickle.loads(data)
            with pytest.raises(shmem.InvalidBlock):
                reference.open()
    shm.sweep(claims=0)  # of what came after the first object in each message


def without_shmem(obj):
    """Pickle as ForkingPickler does where shmem is not imported."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.dispatch_table = ForkingPickler._copyreg_dispatch_table
    pickler.dump(obj)
    return buffer.getvalue()


def test_private_containers_are_pickled_as_without_shmem(shm):
    arrays = np.arange(4.0), np.zeros(4), np.arange(4, dtype="i4"), np.arange(5, dtype="i4")
    for kind, container in losing.containers_of(*arrays).items():
        without_shmem(container)  # xarray makes some attributes when they are first needed
        same = bytes(ForkingPickler.dumps(container)) == without_shmem(container)
        assert same or kind == "dictionary in a struct"  # of unknown parts
        assert type(ForkingPickler.loads(ForkingPickler.dumps(container))) is type(container)


def test_private_parts_of_a_shared_container_arrive(shm):
    pd = importlib.import_module("pandas")
    array = shm.array([1.0, 2.0])
    frame = pd.DataFrame({"x": pd.Series(array, copy=False), "text": ["a", "b"], "object": [{1}, losing.Pair(2, 3)]}, copy=False)
    again = ForkingPickler.loads(ForkingPickler.dumps(frame))
    array[0] = 7
    assert again["x"].tolist() == [7, 2]
    assert again["text"].tolist() == ["a", "b"]
    assert again["object"].tolist() == [{1}, (2, 3)]
