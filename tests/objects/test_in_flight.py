"""Arrays without a name that pools, processes, queues and pipes send: a message keeps them, whatever becomes of its sender."""

import concurrent.futures
import gc
import multiprocessing
import signal

import numpy as np
import pytest
from in_flight import N, in_own_section, part, put_and_end, receive_and_die, send_and_die, temporary, total

import shmem

METHODS = ["fork", "spawn"]
SECONDS = 60  # for an answer; one that does not come is an error


def is_empty(shm):
    gc.collect()
    return shm.check_heap().blocks == 0 and shm.stats().claims == 0


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


@pytest.mark.parametrize("tasks_of_a_worker", [None, 1])
def test_pool(shm, context, tasks_of_a_worker):
    """A temporary array that a worker returns arrives, also if the worker ends after it; the pool goes on."""
    with context.Pool(1, maxtasksperchild=tasks_of_a_worker) as pool:
        for number in range(3):
            array = pool.apply_async(temporary, (shm, number)).get(SECONDS)
            assert (array == number).all()
            assert array.flags.writeable
        array = pool.apply_async(in_own_section, (5,)).get(SECONDS)
        assert (array == 5).all()
        pool.close()
        pool.join()
    del array
    assert is_empty(shm)


def test_argument_that_the_caller_drops(shm, context):
    with context.Pool(1) as pool:
        results = [pool.apply_async(total, (temporary(shm, number),)) for number in range(5)]
        assert [result.get(SECONDS) for result in results] == [N * number for number in range(5)]
        view = pool.apply_async(part, (temporary(shm, 9),)).get(SECONDS)
        assert view.tolist() == [9] * 10
        del view
        assert pool.map(total, [temporary(shm, number) for number in range(4)]) == [N * number for number in range(4)]
        pool.close()
        pool.join()
    assert is_empty(shm)


def test_executor_that_ends(shm, context):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        futures = [executor.submit(temporary, shm, number) for number in range(3)]
        own = executor.submit(in_own_section, 5)
    assert [future.result(SECONDS)[0] for future in futures] == [0, 1, 2]
    assert (own.result() == 5).all()
    del futures, own
    assert is_empty(shm)


def test_queue_of_a_process_that_ended(shm, context):
    """The messages are in the pipe long after their senders have left, in order: they have no clock."""
    queue = context.Queue()
    for number in range(3):
        sender = context.Process(target=put_and_end, args=(queue, shm, number))
        sender.start()
        sender.join()
    shm.sweep()
    assert shm.stats().claims == 3
    assert sorted(queue.get(timeout=SECONDS)[0] for _ in range(3)) == [0, 1, 2]
    queue.close()
    assert is_empty(shm)


@pytest.mark.parametrize("how", ["sent", "not written"])
def test_sender_that_is_killed(shm, context, how):
    here, there = context.Pipe()
    sender = context.Process(target=send_and_die, args=(there, shm, 7, how))
    sender.start()
    sender.join()
    assert sender.exitcode == -signal.SIGKILL
    shm.sweep()
    assert shm.stats().claims == 1  # for a minute
    if how == "sent":
        assert here.recv()[0] == 7
    shm.sweep(claims=0)
    assert is_empty(shm)


@pytest.mark.parametrize("how", ["before", "after"])
def test_receiver_that_is_killed(shm, context, how):
    """A message that was not opened keeps the array until it is given up; one that was opened leaves nothing."""
    here, there = context.Pipe()
    receiver = context.Process(target=receive_and_die, args=(there, how))
    receiver.start()
    here.send(temporary(shm, 7))
    receiver.join()
    assert receiver.exitcode == -signal.SIGKILL
    shm.sweep()
    assert shm.stats().claims == (how == "before")
    shm.sweep(claims=0)
    assert is_empty(shm)


def test_messages_that_are_not_opened(shm):
    """Their arrays stay until they are given up."""
    here, there = multiprocessing.Pipe()
    for number in range(5):
        there.send(temporary(shm, number))
    here.close()
    there.close()
    assert shm.sweep() == 0
    assert shm.stats().claims == shm.check_heap().blocks == 5
    assert shm.sweep(claims=0) > 5 * 8 * N
    assert is_empty(shm)


def test_many_threads_send_and_open(shm):
    """Claims are made and ended under one gate, by threads of one process as by processes."""

    def work(number):
        for _ in range(50):
            again = shmem.loads(shmem.dumps([temporary(shm, number), np.ones(3)]))
            assert (again[0] == number).all()

    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    assert is_empty(shm)
