"""Threads of a C client while their process exits: those that are inside are waited for, and all others get `CLOSED`.

Each test builds one client, and runs it in daemon threads of other processes.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from clients import build
from workers import wait_for, wait_for_waiter

import shmem

CLIENT = '''
# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t

cimport shmem


cdef int acquire_by(shmem.section_t* section, int how, uint64_t mutex_off) noexcept nogil:
    cdef bint owner_died = False
    if how == 0:
        return shmem.lock_exclusive(section, shmem.FOREVER)
    if how == 1:
        return shmem.lock_shared(section, shmem.FOREVER)
    if how == 2:
        return shmem.mutex_lock(section, <shmem.mutex_t*>shmem.pointer(section, mutex_off), shmem.FOREVER, &owner_died)
    return shmem.enter(section)


cdef int release_by(shmem.section_t* section, int how, uint64_t mutex_off) noexcept nogil:
    if how == 0:
        return shmem.unlock_exclusive(section)
    if how == 1:
        return shmem.unlock_shared(section)
    if how == 2:
        return shmem.mutex_unlock(section, <shmem.mutex_t*>shmem.pointer(section, mutex_off))
    shmem.leave(section)
    return 0


cdef shmem.semaphore_t* semaphore_at(shmem.section_t* section, uint64_t off) noexcept nogil:
    return <shmem.semaphore_t*>shmem.pointer(section, off)


def wait(memory, uint64_t semaphore_off):
    cdef shmem.section_t* section = shmem.section_of(memory)
    with nogil:
        shmem.semaphore_wait(semaphore_at(section, semaphore_off), shmem.FOREVER)


def signal(memory, uint64_t semaphore_off):
    shmem.semaphore_signal(semaphore_at(shmem.section_of(memory), semaphore_off), 1)


def acquire(memory, int how, uint64_t mutex_off, uint64_t begun_off, uint64_t _go_off):
    """Signal `begun`, then acquire, waiting."""
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef int status
    with nogil:
        shmem.semaphore_signal(semaphore_at(section, begun_off), 1)
        status = acquire_by(section, how, mutex_off)
    return status


def hold(memory, int how, uint64_t mutex_off, uint64_t begun_off, uint64_t go_off):
    """Acquire, signal `begun`, wait for `go`, make the root the number 77, release; return the statuses, and that of a further call."""
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef uint64_t off = 0, other_off = 0
    cdef int acquired, allocated = -1000, rooted = -1000, released = -1000, late
    with nogil:
        acquired = acquire_by(section, how, mutex_off)
        if acquired == 0:
            shmem.semaphore_signal(semaphore_at(section, begun_off), 1)
            shmem.semaphore_wait(semaphore_at(section, go_off), shmem.FOREVER)
            allocated = shmem.allocate(section, 16, True, &off)
            if allocated == 0:
                (<int64_t*>shmem.pointer(section, off))[0] = 77
                rooted = shmem.set_root_offset(section, off)
            released = release_by(section, how, mutex_off)
        late = shmem.allocate(section, 16, True, &other_off)
    return acquired, allocated, rooted, released, late


def work(memory, uint64_t mutex_off, uint64_t begun_off, int n_before):
    """Do everything in turn until a call fails, and signal `begun` after `n_before` turns; return the status."""
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef uint64_t off = 0
    cdef int64_t* pair = NULL
    cdef int n_turns = 0, how = 0, status = 0
    with nogil:
        while status == 0:
            if n_turns == n_before:
                shmem.semaphore_signal(semaphore_at(section, begun_off), 1)
            n_turns += 1
            how = n_turns % 4
            status = acquire_by(section, how, mutex_off)
            if status == 0:
                pair = <int64_t*>shmem.pointer(section, shmem.root_offset(section))
                if how == 1:
                    status = -1000 if pair[0] != pair[1] else 0
                elif how == 0:
                    pair[0] += 1
                if status == 0:
                    status = shmem.allocate(section, 1000, True, &off)
                if status == 0:
                    (<int64_t*>shmem.pointer(section, off))[0] = 5
                    status = shmem.free(section, off)
                if how == 0:
                    pair[1] += 1
                if status == 0:
                    status = release_by(section, how, mutex_off)
            if status == 0:
                status = shmem.allocate(section, 100, False, &off)
            if status == 0:
                status = shmem.free(section, off)
    return status
'''

HOW = ["exclusive", "shared", "mutex", "enter"]
SIZE = 1 << 22
CLOSED = int(shmem.Status.closed)

# `late` runs after the library's own exit handler, which `import shmem` has registered
EXITS = """
sys.path.insert(0, args[0])
import atexit, threading
import client
from shmem._objects import handles
section = shmem.SharedMemory(args[1])
how, mutex_off, begun_off, go_off = map(int, args[2:])
threads, found = [], []
def start(function, *arguments):
    threads.append(threading.Thread(target=lambda: found.append(function(section, *arguments)), daemon=True)); threads[-1].start()
def end_threads():
    for thread in threads: thread.join(20); assert not thread.is_alive()
atexit.unregister(handles.leave_all)
@atexit.register
def run_late():
    try: late()
    except BaseException as error: say(repr(error)); raise
atexit.register(handles.leave_all)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The folder of the built client; removed afterwards."""
    folder = tmp_path_factory.mktemp("client")
    build(folder, CLIENT)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def words(section_file):
    """An open section with a mutex and two semaphores."""
    with shmem.SharedMemory(section_file, max_size=SIZE) as section:
        yield section, section.mutex(), section.semaphore(), section.semaphore()


def arguments(client, words, how="enter"):
    """Return the arguments of EXITS."""
    section, mutex, begun, go = words
    return client, section.path, HOW.index(how), mutex.offset, begun.offset, go.offset


def others_can_write(section, mutex):
    """Return whether another process than the holder may change what lock or mutex guard."""
    try:
        with shmem.exclusive_lock(section, 0):
            return mutex.acquire(False) and mutex.release() is None
    except shmem.LockTimeout:
        return False


@pytest.mark.parametrize("how", HOW)
def test_thread_that_stays_inside(client, words, child, how):
    """The process takes part until it has ended, no other one is given what a thread inside may use, and that completes its work."""
    section, mutex, _begun, go = words
    code = """
    def late(): say("late"); end_threads(); say(*found[0])
    start(client.hold, how, mutex_off, begun_off, go_off)
    client.wait(section, begun_off)
    """
    other = child(EXITS + code.replace("\n    ", "\n"), *arguments(client, words, how))
    assert other.hear_soon() == "late"
    assert section.stats().participants == (os.getpid(), other.process.pid)
    assert others_can_write(section, mutex) == (how == "enter")
    go.signal()
    assert other.hear_soon() == f"0 0 0 0 {CLOSED}"
    other.end()
    assert bytes(section.root)[:1] == b"\x4d"
    assert others_can_write(section, mutex)
    assert section.owner_deaths == mutex.owner_deaths == 0
    section.check_heap()


@pytest.mark.parametrize("how", HOW)
def test_thread_that_is_soon_outside(client, words, child, how):
    """The process leaves in order when the last thread inside has ended its work."""
    section, mutex, _begun, _go = words
    code = """
    def late(): end_threads(); say(*found[0]); sys.stdin.readline()
    depart = handles._core.depart_all
    def depart_all(*args): left = depart(*args); client.signal(section, go_off); return left
    handles._core.depart_all = depart_all
    start(client.hold, how, mutex_off, begun_off, go_off)
    client.wait(section, begun_off)
    """
    other = child(EXITS + code.replace("\n    ", "\n"), *arguments(client, words, how))
    assert other.hear_soon() == f"0 0 0 0 {CLOSED}"
    assert section.stats().participants == (os.getpid(),)
    assert bytes(section.root)[:1] == b"\x4d"
    assert others_can_write(section, mutex)
    assert section.owner_deaths == mutex.owner_deaths == 0
    other.tell()
    other.end()
    section.check_heap()


@pytest.mark.parametrize(
    ("how", "held"), [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive"), ("mutex", "mutex")]
)
def test_thread_that_waits(client, words, child, how, held):
    """A thread that would wait forever gets CLOSED, and the process leaves in order."""
    section, mutex, _begun, _ = words
    code = """
    def late(): end_threads(); say(*found); sys.stdin.readline()
    start(client.acquire, how, mutex_off, begun_off, go_off)
    client.wait(section, begun_off)
    say("begun"); sys.stdin.readline()
    """
    holder = {"exclusive": shmem.exclusive_lock(section), "shared": shmem.shared_lock(section), "mutex": mutex}[held]
    with holder:
        other = child(EXITS + code.replace("\n    ", "\n"), *arguments(client, words, how))
        assert other.hear_soon() == "begun"
        if how != "mutex":
            wait_for_waiter(section)
        other.tell()
        assert other.hear_soon() == str(CLOSED)
        assert section.stats().participants == (os.getpid(),)
        other.tell()
        other.end()
    assert others_can_write(section, mutex)
    section.check_heap()


def exit_at_work(client, words, child, n_before, before=()):
    """Have a process exit while three of its threads work; return what it says when they have ended."""
    section, mutex, *_ = words
    section.root = section.allocate(16)
    code = f"""
    import ctypes
    def late(): end_threads(); say(*found, getattr(ctypes.CDLL(None), "n_refused", None) and "refused"); sys.stdin.readline()
    for _ in range(3): start(client.work, mutex_off, begun_off, {n_before})
    for _ in range(3): client.wait(section, begun_off)
    """
    other = child(EXITS + code.replace("\n    ", "\n"), *arguments(client, words), before=before)
    said = other.hear_soon()
    assert section.stats().participants == (os.getpid(),)
    pair = bytes(section.root)[:16]
    assert pair[:8] == pair[8:]
    assert others_can_write(section, mutex)
    assert section.owner_deaths == mutex.owner_deaths == 0
    assert 4 <= section.check_heap().blocks <= 4 + 3  # each thread may end between two calls, with a block that it does not free
    other.tell()
    other.end()
    return said


@pytest.mark.parametrize("n_before", [0, 1, 10, 1000, 20_000])
def test_threads_at_work(client, words, child, n_before):
    """Threads in the middle of any call, at any moment of the exit, end with CLOSED and leave a sound section."""
    assert exit_at_work(client, words, child, n_before) == f"{CLOSED} {CLOSED} {CLOSED} None"


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded")
@pytest.mark.parametrize("n_before", [0, 1000])
def test_threads_at_work_without_membarrier(client, words, child, tmp_path, n_before):
    """The same on a system that cannot make all threads of a process execute a memory barrier."""
    source = Path(__file__).resolve().parents[1] / "support" / "membarrier.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", tmp_path / "membarrier.so", source, "-ldl"], check=True)
    before = "env", f"LD_PRELOAD={tmp_path / 'membarrier.so'}"
    assert exit_at_work(client, words, child, n_before, before) == f"{CLOSED} {CLOSED} {CLOSED} refused"


ENDS = {
    "a thread ended": "thread = threading.Thread(target=client.acquire, args=acquired); thread.start(); thread.join()",
    "the main thread": "client.acquire(*acquired)",
    "a handle was closed": "client.acquire(*acquired); again = section.zeros(3); section.close()",
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("end", ENDS)
def test_what_is_never_ended(client, section_file, child, how, end):
    """A thread that has ended, and the one that exits, do not count as inside, whatever they left unfinished."""
    code = """
    def late(): say("late")
    acquired = section, how, mutex_off, begun_off, go_off
    """
    with shmem.SharedMemory(section_file, max_size=SIZE) as section:
        given = arguments(client, (section, section.mutex(), section.semaphore(), section.semaphore()), how)
    other = child(EXITS + code.replace("\n    ", "\n") + ENDS[end], *given)
    assert other.hear_soon() == "late"
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        section.check_heap()


def test_forked_child_is_not_inside(client, words, child):
    """A child of a thread that is inside begins outside of everything, and exits in order."""
    section, _mutex, _begun, _go = words
    code = """
    def late(): say("late"); sys.stdin.readline()
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    client.acquire(section, 3, mutex_off, begun_off, go_off)
    if os.fork():
        say(os.waitstatus_to_exitcode(os.wait()[1]))
        os._exit(0)
    """
    other = child(EXITS + code.replace("\n    ", "\n"), *arguments(client, words))
    assert other.hear_soon() == "late"
    wait_for(lambda: len(section.stats().participants) == 2)  # the parent may still keep the child's entry, which it had taken for it
    other.tell()
    assert other.hear_soon() == "0"
    other.process.wait(20)
