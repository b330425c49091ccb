"""Threads, closing, and dropped handles.  The required outcomes are listed in docs/decisions/processes.md."""

import ctypes
import gc
import importlib
import os
import platform
import sys
import threading
import time

import numpy as np
import pytest
from scribe import HEAP_GATE, Scribe
from workers import holds, in_thread, lock_of, wait_for, wait_for_waiter

import shmem
from shmem import LockDescriptor, LockMode, exclusive_lock, shared_lock
from shmem._objects import lock as _lock

OPEN = "import gc, threading\nsection = shmem.SharedMemory(**eval(args[0]), max_size=1 << 22)\n"
HOLD = OPEN + "with getattr(shmem, args[1] + '_lock')(section): say('held'); sys.stdin.readline()\n"
SIZE = 1 << 22
MODES = ["exclusive", "shared"]
FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]  # number of the system call


def in_threads(functions):
    """Run each function in a thread of its own, all at the same time; return the exceptions raised."""
    errors = []

    def run(function):
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


# -- holders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_thread_cannot_release_another_threads_lock(shm, mode):
    lock, descriptor = lock_of(shm, mode), LockDescriptor(LockMode(mode))

    def meddle():
        for misuse in (lambda: lock.__exit__(None, None, None), lambda: shm.unlock(descriptor)):
            with pytest.raises(shmem.LockError):
                misuse()
        with pytest.raises(shmem.LockTimeout):
            exclusive_lock(shm, 0).__enter__()

    with lock:
        shm.lock(descriptor)
        assert in_thread(meddle) is None
        assert holds(shm) == mode
        shm.unlock(descriptor)
        assert holds(shm) == mode
    assert holds(shm) == "free"


def test_depth_is_per_thread(shm):
    """Threads nest one shared lock object to different depths."""
    lock = shared_lock(shm)
    barrier = threading.Barrier(4, timeout=60)

    def work(depth):
        for _ in range(depth):
            lock.__enter__()
        barrier.wait()
        assert _lock.depths(shm) == (0, depth)
        assert shm.stats().lock_sharers == 4
        barrier.wait()
        for left in reversed(range(depth)):
            lock.__exit__(None, None, None)
            assert _lock.depths(shm) == (0, left)

    assert in_threads([lambda depth=depth: work(depth) for depth in (1, 2, 3, 10)]) == []
    assert _lock.depths(shm) == (0, 0)
    assert holds(shm) == "free"


def test_many_threads_contend(shm):
    """64 threads read, write and upgrade.  The second of two upgraders fails, and no thread reads a torn value."""
    pair = shm.zeros(2, "i8")
    written = np.zeros(64, "i8")

    def write():
        pair[0] += 1
        time.sleep(0)
        pair[1] += 1

    def look():
        before = pair.tolist()
        time.sleep(0)
        assert before[0] == before[1]
        assert pair.tolist() == before

    def work(i):
        for turn in range(12):
            kind = (i + turn) % 3
            if kind == 0:
                with exclusive_lock(shm), shared_lock(shm):
                    write()
                    written[i] += 1
            elif kind == 1:
                with shared_lock(shm):
                    look()
            else:
                try:
                    with shared_lock(shm):
                        look()
                        with exclusive_lock(shm):
                            write()
                            written[i] += 1
                        look_after = pair.tolist()
                        assert look_after[0] == look_after[1]
                except shmem.DeadlockError:
                    pass
        assert _lock.depths(shm) == (0, 0)

    assert in_threads([lambda i=i: work(i) for i in range(64)]) == []
    assert pair.tolist() == [written.sum()] * 2
    assert written.sum() >= 64 * 4
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


@pytest.mark.parametrize("mode", MODES)
def test_new_thread_does_not_inherit_the_lock(shm, mode):
    """Threads end while they hold the lock; later threads at the same addresses start at depth 0."""
    seen = set()

    def leave_it_locked():
        assert _lock.depths(shm) == (0, 0)
        seen.add(threading.get_ident())
        lock_of(shm, mode).__enter__()

    for deaths in range(1, 21):
        assert in_thread(leave_it_locked) is None
        assert holds_after_death(shm) == "free"
        assert shm.owner_deaths == deaths
    assert len(seen) < 20  # otherwise no address was reused, and the test proves nothing


def holds_after_death(shm):
    with pytest.warns(shmem.OwnerDiedWarning):
        exclusive_lock(shm, 20).__enter__()
    exclusive_lock(shm).__exit__(None, None, None)
    return holds(shm)


def test_slots_of_ended_threads_are_reused(shm):
    """A section stores 4,096 threads at a time, and reuses the slots of ended ones.  Many live at once here, so that addresses differ."""
    size = threading.stack_size(256 << 10)  # smaller sizes are rejected on Arm
    count = shm.zeros(1, "i8")
    try:
        for _ in range(9):
            barrier = threading.Barrier(500, timeout=60)

            def work(barrier=barrier):
                barrier.wait()
                with exclusive_lock(shm):
                    count[0] += 1

            assert in_threads([work] * 500) == []
    finally:
        threading.stack_size(size)
    assert count[0] == 4500
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["program", "fork", "spawn"])
def test_main_program_ends_while_its_threads_wait(place, child, tmp_path, start, mode):
    """When the main thread ends, its lock is released as for any other thread, and the waiting thread continues."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys, threading, time, warnings, shmem\n"
        "def work(place, mode):\n"
        "    warnings.simplefilter('ignore', shmem.OwnerDiedWarning)\n"
        "    section = shmem.SharedMemory(**place)\n"
        "    section.lock(shmem.LockDescriptor(shmem.LockMode(mode)))\n"
        "    def wait():\n"
        "        with shmem.exclusive_lock(section): section['got in'] = [1]\n"
        "    threading.Thread(target=wait).start()\n"
        "    while not section.stats().lock_waiters: time.sleep(0.001)\n"
        "if __name__ == '__main__':\n"
        "    place, mode, start = eval(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "    if start == 'program': work(place, mode)\n"
        "    else:\n"
        "        process = multiprocessing.get_context(start).Process(target=work, args=(place, mode)); process.start(); process.join()\n"
        "        sys.exit(process.exitcode)\n"
    )
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        other = child("os.execv(sys.executable, [sys.executable, '-P', *args])", program, place, mode, start)
        other.end()
        assert section["got in"][0] == 1
        assert section.owner_deaths == 1
        assert holds(section) == "free"


# -- close() in one thread while another is inside --------------------------------------------------------------


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("wish", MODES)
def test_close_while_another_thread_waits(place, child, wish, views):
    """Closing the last handle soon raises ClosedError in the waiting thread, and leaves the lock intact."""
    section = shmem.SharedMemory(**place, max_size=SIZE)
    keep = section.zeros(3) if views else None
    other = child(HOLD, place, "exclusive")
    other.hear()
    result = []
    enter = lock_of(section, wish).__enter__
    thread = threading.Thread(target=lambda: result.append(in_thread(enter)))
    thread.start()
    wait_for_waiter(section)
    section.close()
    thread.join(20)
    assert isinstance(result[0], shmem.ClosedError)
    other.tell()
    other.end()
    del keep
    with shmem.SharedMemory(**place, max_size=SIZE) as again, exclusive_lock(again, 20):
        assert again.owner_deaths == 0
        again.check_heap()


@pytest.mark.parametrize("draining", [False, True])
def test_close_while_another_thread_upgrades(place, child, draining):
    """An upgrader checks once a second, whether it waits for a draining writer or for readers to leave."""
    section = shmem.SharedMemory(**place, max_size=SIZE)
    other = child(HOLD, place, "shared")
    other.hear()

    def upgrade():
        with shared_lock(section):
            exclusive_lock(section).__enter__()

    result = []
    thread = threading.Thread(target=lambda: result.append(in_thread(upgrade)))
    thread.start()
    wait_for_waiter(section)
    writer = child(HOLD, place, "exclusive") if draining else None
    if writer:
        wait_for(lambda: section.stats().lock_waiters == 2)
    section.close()
    thread.join(20)
    assert isinstance(result[0], shmem.ClosedError)
    other.tell()
    other.end()
    if writer:
        assert writer.hear() == "held"
        writer.tell()
        writer.end()


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("how", ["with", "descriptor"])
@pytest.mark.parametrize("mode", MODES)
def test_close_while_another_thread_holds(place, child, mode, how, views):
    """A view or a descriptor keeps the section mapped and the other thread's lock held; otherwise closing counts as a death."""
    section = shmem.SharedMemory(**place, max_size=SIZE)
    locked, closed = threading.Event(), threading.Event()
    array = section.zeros(3) if views else None
    watcher = child(
        OPEN + "say('in')\nfor line in sys.stdin:\n"
        "    try:\n        with shmem.exclusive_lock(section, float(line)): say('free', section.owner_deaths)\n"
        "    except shmem.LockTimeout: say('held')\n    except shmem.OwnerDiedWarning: say('death')\n",
        place,
    )
    watcher.hear()

    def query(timeout):
        watcher.tell(str(timeout))
        return watcher.hear()

    def work():
        if how == "with":
            with lock_of(section, mode):
                locked.set()
                closed.wait(60)
        else:
            descriptor = LockDescriptor(LockMode(mode))
            section.lock(descriptor)
            locked.set()
            closed.wait(60)
            section.unlock(descriptor)
            assert not descriptor.held
        return "done"

    watcher.tell("0")
    assert watcher.hear() == "free 0"
    result = []
    thread = threading.Thread(target=lambda: result.append(in_thread(work)))
    thread.start()
    locked.wait(60)
    section.close()
    stays = views or how == "descriptor"
    if stays:
        assert query(0.2) == "held"
    closed.set()
    thread.join(20)
    assert result == ["done"]
    assert query(20) == f"free {0 if stays else 1}"
    watcher.process.stdin.close()
    watcher.process.wait(20)
    assert watcher.process.stderr.read().count("OwnerDiedWarning") == (0 if stays else 1)
    del array


def test_close_while_another_thread_allocates(place):
    """A call in progress completes, and its block is valid; the next call raises ClosedError."""
    for _ in range(10):
        section = shmem.SharedMemory(**place, max_size=1 << 26)
        started = threading.Event()

        def work(section=section, started=started):
            blocks = []
            try:
                while True:
                    blocks.append(section.allocate(1 << 20))
                    started.set()
                    memoryview(blocks[-1])[-1] = 1
                    if len(blocks) > 5:
                        section.free(blocks.pop(0))
            except shmem.ClosedError:
                return [memoryview(block)[-1] for block in blocks]

        result = []
        thread = threading.Thread(target=lambda work=work, result=result: result.append(in_thread(work)))
        thread.start()
        started.wait(60)
        section.close()
        thread.join(20)
        assert set(result[0]) == {1}
    if "file_name" in place:
        with shmem.SharedMemory(**place) as again:
            assert again.stats().recoveries == 0
            assert again.check_heap().pending_blocks == 0


# -- handles dropped without close() -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["with", "descriptor"])
@pytest.mark.parametrize("mode", MODES)
def test_dropped_handle_releases_descriptors(place, mode, how):
    """A handle closes when the last reference to it is dropped, even if the process has another handle of the section."""
    keep = shmem.SharedMemory(**place, max_size=SIZE)
    for others in (True, False):
        section = shmem.SharedMemory(**place, max_size=SIZE)
        if not others:
            keep.close()
        if how == "with":
            lock_of(section, mode).__enter__()
        else:
            section.lock(LockDescriptor(LockMode(mode)))
        assert holds(section) == mode
        del section
        if others:
            assert holds(keep) == (mode if how == "with" else "free")
            if how == "with":
                lock_of(keep, mode).__exit__(None, None, None)
    with shmem.SharedMemory(**place, max_size=SIZE) as again, exclusive_lock(again, 0):
        assert again.owner_deaths == 0


@pytest.mark.parametrize("mode", MODES)
def test_dropped_handle_in_a_cycle(place, mode):
    section = shmem.SharedMemory(**place, max_size=SIZE)
    cycle = [section, section.zeros(3), exclusive_lock(section)]
    cycle.append(cycle)
    section.lock(LockDescriptor(LockMode(mode)))
    path = section.path
    del section, cycle
    gc.collect()
    assert os.path.exists(path) == ("file_name" in place)
    with shmem.SharedMemory(**place, max_size=SIZE) as again, exclusive_lock(again, 0):
        assert again.owner_deaths == 0


@pytest.mark.parametrize("cycle", [False, True])
def test_dropped_handle_keeps_other_threads_locks(shm, cycle):
    """A thread that drops a handle must not release a lock that another thread holds through it."""
    second = [shmem.SharedMemory(shared_name=shm.name)]
    if cycle:
        second.append([second[0]])
        second[1].append(second[1])
    descriptor = LockDescriptor(LockMode.exclusive)
    second[0].lock(descriptor)
    assert in_thread(second.clear) is None
    assert in_thread(gc.collect) >= cycle
    assert holds(shm) == "exclusive"
    assert descriptor.held
    shm.unlock(descriptor)
    assert holds(shm) == "free"
    assert shm.owner_deaths == 0


FINALISERS = {
    "globals": "lock = shmem.exclusive_lock(section); lock.__enter__(); views = section.zeros(3), section.allocate(3)",
    "descriptor": "section.lock(shmem.LockDescriptor(shmem.LockMode.exclusive)); view = section.zeros(3)",
    "cycle": "cycle = [section, shmem.exclusive_lock(section), section.zeros(3)]; cycle[1].__enter__(); cycle.append(cycle); del section",
    "__del__": "class Late:\n    def __del__(self):\n"
    "        try: self.section.allocate(10)\n        except shmem.ClosedError: say('closed')\n"
    "        self.section.close()\n"
    "late = Late(); late.section = section; late.me = late; late.lock = shmem.exclusive_lock(section); late.lock.__enter__()",
    "frame": "def f():\n    with shmem.exclusive_lock(section): yield section.zeros(3)\ng = f(); next(g); shmem.keep = g",
}


@pytest.mark.parametrize("code", FINALISERS.values(), ids=FINALISERS.keys())
def test_dropped_handle_at_shutdown(place, child, code):
    """In any order of teardown the interpreter prints nothing, and the next process can acquire the lock."""
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        other = child(OPEN + code, place)
        assert other.end() in ("", "closed\n")
        with pytest.warns(shmem.OwnerDiedWarning), exclusive_lock(section, 20):
            section.check_heap()
        assert section.owner_deaths == 1
        assert section.stats().participants == (os.getpid(),)


def test_finaliser_locks_and_closes(place, child):
    """A finaliser may run during any library call; it may acquire the lock, and close the section."""
    other = child(
        OPEN
        + """
class Owner:
    def __init__(self):
        self.section = shmem.SharedMemory(**eval(args[0])); self.array = self.section.zeros(4); self.me = self
        self.lock = shmem.exclusive_lock(self.section)
    def __del__(self):
        with self.lock: self.section.free(self.array)
        self.section.close()
section["n"] = [1]
gc.set_threshold(5)
for i in range(200):
    Owner(); section.free(section.allocate(10)); section["n"]
    with shmem.exclusive_lock(section): pass
gc.collect()
with shmem.exclusive_lock(section): say(section.check_heap().blocks)
""",
        place,
    )
    assert other.hear() == "1"
    other.end()


# -- subinterpreters ------------------------------------------------------------------------------------------------


def test_import_in_a_subinterpreter_raises(child):
    """A process may use one interpreter: another one gets an ImportError, and the first one continues to work."""
    interpreters = importlib.util.find_spec("_interpreters") or importlib.util.find_spec("_xxsubinterpreters")
    assert interpreters is not None
    other = child(
        f"""
        import importlib, textwrap
        interpreters = importlib.import_module({interpreters.name!r})
        code = textwrap.dedent('''
            import warnings; warnings.simplefilter("ignore")
            try: import shmem
            except ImportError as error: print("ImportError", error, flush=True)
            else: print("imported", shmem, flush=True)
        ''')
        section = shmem.SharedMemory(max_size=1 << 20)
        number = interpreters.create(); interpreters.run_string(number, code); interpreters.destroy(number)
        with shmem.exclusive_lock(section): section["a"] = [1]
        """
    )
    output = other.hear()
    assert output.startswith("ImportError")
    assert "interpreter" in output
    other.end()


def test_gil_is_not_awaited_inside_the_heap_gate(shm):
    """A thread that opens a block gets the heap gate while another thread keeps the GIL; it must leave the gate without the GIL."""
    libc = ctypes.PyDLL(None)  # keeps the GIL
    block, scribe = shm.allocate(10), Scribe(shm.path)
    taken = scribe[HEAP_GATE] = scribe.owner_word(scribe.entry_of(os.getpid()))
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=shm.block, args=(block.offset,))
    thread.start()
    while scribe[HEAP_GATE] == taken:  # until the thread sleeps on the gate, which a flag in the word shows
        time.sleep(0.001)
    sys.setswitchinterval(1000)
    try:
        scribe[HEAP_GATE] = 0
        libc.syscall(FUTEX, ctypes.c_void_p(shm.address + HEAP_GATE), 1, 1)  # FUTEX_WAKE
        libc.usleep(300_000)
        seen = scribe[HEAP_GATE]
    finally:
        sys.setswitchinterval(interval)
    thread.join(20)
    assert not thread.is_alive()
    assert seen == 0
