"""`shmem.posixsem`: results and errors match POSIX."""

import contextlib
import errno
import os
import random
import threading
import time

import pytest
from workers import wait_until_has_waiters

import shmem
from shmem import posixsem
from shmem._base.layout import SEMAPHORE_MAX
from shmem.posixsem import sem_destroy, sem_getvalue, sem_init, sem_post, sem_timedwait, sem_trywait, sem_wait


@pytest.fixture(params=["named", "placed"])
def where(request, shm):
    """A place for a semaphore, as `sem_init` or `sem_open` takes it."""
    if request.param == "placed":
        yield shm
    else:
        name = f"test-{os.getpid()}-{random.randrange(1 << 32)}"
        yield name
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/dev/shm/shmem-semaphore.{name}")


def fails(number, call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    assert isinstance(caught.value, shmem.ShmemError)
    assert caught.value.errno == number
    return caught.value


def test_lifecycle(where):
    sem = sem_init(where, 2)
    sem_wait(sem)
    sem_trywait(sem)
    assert sem_getvalue(sem) == 0
    assert isinstance(fails(errno.EAGAIN, sem_trywait, sem), BlockingIOError)
    assert isinstance(fails(errno.ETIMEDOUT, sem_timedwait, sem, time.time() + 0.05), TimeoutError)
    fails(errno.ETIMEDOUT, sem_timedwait, sem, 0)
    fails(errno.EINVAL, sem_timedwait, sem, float("nan"))
    sem_post(sem)
    sem_timedwait(sem, 0)  # an available unit is taken even after the deadline
    sem_post(sem)
    sem_timedwait(sem, time.time() + 60)
    assert sem_getvalue(sem) == 0
    sem_destroy(sem)
    for call in (sem_wait, sem_trywait, sem_post, sem_getvalue, sem_destroy, lambda s: sem_timedwait(s, 0)):
        fails(errno.EINVAL, call, sem)
        fails(errno.EINVAL, call, "not a semaphore")


def test_destroy_frees_block_and_name(shm):
    blocks = shm.stats().blocks
    sem = sem_init(shm)
    assert shm.stats().blocks == blocks + 1
    sem_destroy(sem)
    assert shm.stats().blocks == blocks
    name = f"test-{os.getpid()}-{random.randrange(1 << 32)}"
    sem = sem_init(name, 3)
    assert sem_getvalue(sem_init(name, 9)) == 3
    sem_destroy(sem)
    assert not os.path.exists(f"/dev/shm/shmem-semaphore.{name}")


def test_wrong_values_are_einval(where):
    for value in (-1, SEMAPHORE_MAX + 1, 1 << 70):
        fails(errno.EINVAL, sem_init, where, value)
    with pytest.raises(TypeError):
        sem_init(3)
    sem = sem_init(where, SEMAPHORE_MAX)
    fails(errno.EOVERFLOW, sem_post, sem)
    assert sem_getvalue(sem) == SEMAPHORE_MAX
    sem_destroy(sem)


def test_destroy_while_waited_for_is_ebusy(where):
    sem = sem_init(where)
    thread = threading.Thread(target=sem_wait, args=(sem,))
    thread.start()
    wait_until_has_waiters(sem)
    fails(errno.EBUSY, sem_destroy, sem)
    sem_post(sem)
    thread.join(20)
    assert not thread.is_alive()
    sem_destroy(sem)


def test_killed_waiter_does_not_keep_a_semaphore_busy(child):
    name = f"test-{os.getpid()}-{random.randrange(1 << 32)}"
    sem = sem_init(name)
    other = child("from shmem.posixsem import *; s = sem_init(args[0]); say('up'); sem_wait(s)", name)
    assert other.hear() == "up"
    wait_until_has_waiters(sem)
    other.kill()
    sem_destroy(sem)
    assert not os.path.exists(f"/dev/shm/shmem-semaphore.{name}")


def test_close_while_another_thread_waits_is_einval(where):
    """The memory stays mapped while a call uses it; a closed semaphore is EINVAL."""
    sem, ended = sem_init(where), []

    def wait():
        try:
            sem_wait(sem)
        except OSError as error:
            ended.append(error.errno)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until_has_waiters(sem)
    sem.close()
    thread.join(20)
    assert ended == [errno.EINVAL]


def test_public_names():
    assert set(posixsem.__all__) == {name for name in vars(posixsem) if name.startswith("sem_")} | {"SemaphoreUnavailable"}
