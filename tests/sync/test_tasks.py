"""Asyncio tasks and greenlets of one thread do not enter each other's locks."""

import asyncio
import contextvars

import greenlet
import pytest
from workers import holds, in_thread

import shmem
from shmem import LockDescriptor, LockMode, exclusive_lock, shared_lock

LOCKS = {"exclusive_lock": exclusive_lock, "Mutex": lambda shm: shm.mutex(name="guard") if "guard" not in shm else shm["guard"]}


@pytest.fixture(params=LOCKS)
def lock(request, shm):
    return LOCKS[request.param](shm)


def run_second(first, second):
    """Run `second` in a task while another task is suspended inside `first`; return what the second one raised, or None."""

    async def hold(held, done):
        with first:
            held.set()
            await done.wait()

    async def enter():
        with second:
            return None

    async def main():
        held, done = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(held, done))
        await held.wait()
        (result,) = await asyncio.gather(asyncio.create_task(enter()), return_exceptions=True)
        done.set()
        await holder
        return result

    return asyncio.run(main())


def test_second_task_is_refused(shm, lock):
    error = run_second(lock, lock)
    assert isinstance(error, shmem.DeadlockError)
    assert "another asyncio task or greenlet" in str(error)
    assert holds(shm) == "free"
    with lock:  # the refused task has changed nothing
        pass


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [(shared_lock, exclusive_lock, True), (exclusive_lock, shared_lock, True), (shared_lock, shared_lock, False)],
)
def test_modes_of_two_tasks(shm, first, second, refused):
    """Tasks may share the lock; neither a writer nor an upgrade comes beside another task's share."""
    error = run_second(first(shm), second(shm))
    assert isinstance(error, shmem.DeadlockError) == refused
    assert refused or error is None
    assert holds(shm) == "free"
    with shared_lock(shm), exclusive_lock(shm):
        pass


def test_descriptor_of_a_second_task_is_refused(shm):
    class Descriptor:
        def __enter__(self):
            self.descriptor = LockDescriptor(LockMode.exclusive)
            shm.lock(self.descriptor)

        def __exit__(self, *args):
            shm.unlock(self.descriptor)

    assert isinstance(run_second(exclusive_lock(shm), Descriptor()), shmem.DeadlockError)
    assert holds(shm) == "free"


def test_one_task_nests(lock):
    """Also across awaits, in a function that runs in another context, and in a thread that is waited for elsewhere."""

    async def main():
        with lock:
            await asyncio.sleep(0)
            with lock:
                await asyncio.sleep(0)
                contextvars.copy_context().run(enter)

    def enter():
        with lock, lock:
            pass

    asyncio.run(main())
    enter()
    assert in_thread(enter) is None


def test_caller_of_the_loop_encloses_its_tasks(shm, lock):
    async def enter():
        with lock:
            return holds(shm)

    with lock:
        asyncio.run(enter())
    asyncio.run(enter())


def test_tasks_take_turns(shm, lock):
    """Tasks that hold the lock one after the other, without being suspended inside, do not disturb each other."""

    async def enter():
        for _ in range(10):
            with lock:
                pass
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(enter(), enter(), enter())

    asyncio.run(main())
    assert holds(shm) == "free"


def test_second_greenlet_is_refused(shm, lock):
    result = []

    def hold():
        with lock:
            greenlet.getcurrent().parent.switch()

    def enter():
        try:
            with lock:
                result.append("entered")
        except shmem.DeadlockError:
            result.append("refused")

    holder = greenlet.greenlet(hold)
    holder.switch()
    greenlet.greenlet(enter).switch()
    assert result == ["refused"]
    holder.switch()
    greenlet.greenlet(enter).switch()
    assert result == ["refused", "entered"]
    assert holds(shm) == "free"
