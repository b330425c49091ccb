"""The waiting operations that `crashtest` kills in the middle: lock, semaphores, events, mutexes, queues; also opening and closing."""

import contextlib

import shmem
from shmem.testing.crash.checker import MAX_PARTICIPANTS, MAX_SIZE
from shmem.testing.crash.operations import OPERATIONS, SMALL, Operation, operation

WAIT = 4  # seconds: stepped, a lock spins for a second or two before it sleeps

# -- the lock -------------------------------------------------------------------------------------------------


@operation("lock: shared", same=True)
def _(shm):
    lock = shmem.shared_lock(shm)
    yield
    with lock:
        pass


@operation("lock: exclusive", same=True)
def _(shm):
    lock = shmem.exclusive_lock(shm)
    yield
    with lock:
        pass


@operation("lock: upgrade and downgrade", same=True)
def _(shm):
    shared, exclusive = shmem.shared_lock(shm), shmem.exclusive_lock(shm)
    yield
    with shared, exclusive:
        pass


@operation("lock: nested, released in another order", same=True)
def _(shm):
    modes = shmem.LockMode.shared, shmem.LockMode.exclusive, shmem.LockMode.shared
    shared, exclusive, inner = map(shmem.LockDescriptor, modes)
    yield
    shm.lock(exclusive)
    shm.lock(shared)
    shm.unlock(exclusive)
    shm.lock(inner)
    shm.unlock(shared)
    shm.unlock(inner)


def _holding(kind):
    @contextlib.contextmanager
    def hold(shm):
        with kind(shm, 20):
            yield

    return hold


def _wait_timed_out(lock):
    with contextlib.suppress(shmem.LockTimeout), lock:
        pass


for kind, other in (("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")):
    locks = {"exclusive": shmem.exclusive_lock, "shared": shmem.shared_lock}

    @operation(f"lock: {kind}, while held {other} by another process", same=True, beside=_holding(locks[other]), small=False)
    def _(shm, lock_class=locks[kind]):
        lock = lock_class(shm, WAIT)
        yield
        _wait_timed_out(lock)


for kind, other in (("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")):

    @operation(f"lock: {kind}, acquired when {other} is released", same=True, beside=_holding(locks[other]), let_go_after=2, small=False)
    def _(shm, lock_class=locks[kind]):
        lock = lock_class(shm, 60)
        yield
        with lock:
            pass


@operation("lock: upgrade, acquired when the other sharer leaves", same=True, beside=_holding(shmem.shared_lock), let_go_after=3,
           small=False)  # fmt: skip
def _(shm):
    shared, exclusive = shmem.shared_lock(shm), shmem.exclusive_lock(shm, 60)
    yield
    with shared, exclusive:
        pass


@operation("lock: upgrade, while another process shares it", same=True, beside=_holding(shmem.shared_lock), small=False)
def _(shm):
    shared, exclusive = shmem.shared_lock(shm), shmem.exclusive_lock(shm, WAIT)
    yield
    with shared:
        _wait_timed_out(exclusive)


# -- semaphores, events, mutexes, queues ------------------------------------------------------------------------


@operation("semaphore: make")
def _(shm):
    yield
    shm.semaphore(3, name="new")


@operation("semaphore: wait")
def _(shm):
    semaphore = shm.semaphore(3, name="new")
    yield
    semaphore.wait()


@operation("semaphore: wait, timed out", same=True, small=False)
def _(shm):
    semaphore = shm.semaphore(0, name="new")
    yield
    semaphore.wait(0.12)


@operation("semaphore: signal")
def _(shm):
    semaphore = shm.semaphore(3, name="new")
    yield
    semaphore.signal(2)


@operation("event: signal")
def _(shm):
    event = shm.event(name="new")
    yield
    event.signal()


@operation("event: reset")
def _(shm):
    event = shm.event(True, name="new")
    yield
    event.reset()


@operation("event: wait, timed out", same=True, small=False)
def _(shm):
    event = shm.event(name="new")
    yield
    event.wait(0.12)


@operation("mutex: make")
def _(shm):
    yield
    shm.mutex(name="new")


@operation("mutex: acquire and release, nested", same=True)
def _(shm):
    mutex = shm.mutex(name="new")
    yield
    with mutex, mutex:
        pass


@operation("mutex: two mutexes", same=True)
def _(shm):
    first, second = shm.mutex(name="first"), shm.mutex(name="second")
    yield
    with first, second:
        pass


@operation("queue: make")
def _(shm):
    yield
    shm.queue(4, "int64", name="new")


@operation("queue: first use")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    yield
    queue.put(1)


@operation("queue: free one in use")
def _(shm):
    queue = shm.queue(4, "int64")
    queue.put(1)
    yield
    shm.free(queue)


@operation("queue: delete the name of one in use, drop it")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    queue.put(1)
    queues = [queue]
    del queue
    yield
    del shm["new"]
    queues.clear()


@operation("queue: put")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    queue.put(1)
    yield
    queue.put(2)


@operation("queue: get")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    queue.put_many([1, 2, 3])
    yield
    queue.get()


@operation("queue: put_many")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    queue.put_many([1, 2, 3, 4])
    queue.get_many(3)
    yield
    queue.put_many([5, 6, 7])


@operation("queue: get_many")
def _(shm):
    queue = shm.queue(4, "int64", name="new")
    queue.put_many([1, 2, 3, 4])
    queue.get_many(3)
    queue.put_many([5, 6])
    yield
    queue.get_many(3)


@operation("queue: put, full", same=True, small=False)
def _(shm):
    queue = shm.queue(2, "int64", name="new")
    queue.put_many([1, 2])
    yield
    with contextlib.suppress(shmem.QueueFull):
        queue.put(3, timeout=0.12)


def _afterwards(action):
    """Return an activity that does nothing until it ends, and then calls `action` with the object named `new`."""

    @contextlib.contextmanager
    def beside(shm):
        yield
        if "new" in shm:  # it is missing if a later state is about to be poured in
            action(shm["new"])

    return beside


def _named(value):
    """Return a `between`: the object named `new` as the process beside the victim leaves it after the victim's death."""
    return lambda before, after: [{**before, "names": {**before["names"], "new": value}}]


@contextlib.contextmanager
def _having_the_mutex(shm):
    with shm["mutex"]:
        yield


@operation("mutex: acquired when another process releases it", same=True, beside=_having_the_mutex, let_go_after=2, small=False)
def _(shm):
    mutex = shm["mutex"]
    yield
    with mutex:
        pass


@operation("semaphore: acquired when another process signals", same=True, beside=_afterwards(lambda semaphore: semaphore.signal()),
           between=_named(("semaphore", 1)), let_go_after=1, small=False)  # fmt: skip
def _(shm):
    semaphore = shm.semaphore(0, name="new")
    yield
    semaphore.wait(60)


@operation("event: wait until another process signals", beside=_afterwards(lambda event: event.signal()), let_go_after=1, small=False)
def _(shm):
    event = shm.event(name="new")
    yield
    event.wait(60)


@operation("queue: get what another process puts", same=True, beside=_afterwards(lambda queue: queue.put(5)),
           between=_named(("queue", "[5]", "0")), let_go_after=3, small=False)  # fmt: skip
def _(shm):
    queue = shm.queue(2, "int64", name="new")
    yield
    queue.get(timeout=60)


@operation("queue: put when another process gets", beside=_afterwards(lambda queue: queue.get()),
           between=_named(("queue", "[2]", "0")), let_go_after=3, small=False)  # fmt: skip
def _(shm):
    queue = shm.queue(2, "int64", name="new")
    queue.put_many([1, 2])
    yield
    queue.put(3, timeout=60)


@operation("queue: shutdown", same=True)
def _(shm):
    queue = shm.queue(4, "int64")
    queue.put(1)
    yield
    queue.shutdown()


@operation("queue: byte strings, put and get", between=lambda before, after: [_with_queue(before, [b"first", b"second"])])
def _(shm):
    queue = shm.queue(4, bytes, max_bytes=32, name="new")
    queue.put(b"first")
    yield
    queue.put(b"second")
    queue.get()


def _with_queue(seen, items):
    return {**seen, "names": {**seen["names"], "new": ("queue", repr(items), "b'again'")}}


# -- opening and closing ----------------------------------------------------------------------------------------


def opening(name, size=MAX_SIZE, mode="read_write", **how):
    """Add an operation that opens a section; `mode` is that of `SharedMemory`."""

    def run(path, _):
        OPENED.append(shmem.SharedMemory(path, max_size=size, max_participants=MAX_PARTICIPANTS, mode=mode))

    OPERATIONS[name] = Operation(name, lambda path: None, run, opens=True, same=True, small=False, **how)


OPENED = []  # sections that stay open until their process is killed
opening("open: create", alone=True)
opening("open: first opener", alone=True)
opening("open: first opener, with a larger max_size", alone=True, size=MAX_SIZE + 8192)
opening("open: join")


@operation("close: another process stays", same=True, small=False)
def _(shm):
    shm.free(shm.allocate(SMALL))
    yield
    shm.close()


@operation("close: the last process", same=True, alone=True, small=False)
def _(shm):
    shm.free(shm.allocate(SMALL))
    yield
    shm.close()


@operation("close: holding the lock", same=True, small=False)
def _(shm):
    shm.lock(shmem.LockDescriptor(shmem.LockMode.exclusive))
    yield
    shm.close()
