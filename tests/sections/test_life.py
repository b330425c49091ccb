"""Fork, exec, exit and death of processes that use a section.  The required outcomes are listed in docs/decisions/processes.md."""

import fcntl
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from scribe import HEAP_GATE, Scribe
from workers import holds, in_child, lock_for_parent, lock_of, pauses, wait_for, wait_for_waiter, waits_for_mutex

import shmem
from shmem._base.layout import GATE_WAITERS, LAYOUT, OPENING_BYTE
from shmem._cli.tstshmem_section import Control
from shmem._objects import lock as _lock

HEADER, PARTICIPANT = LAYOUT["header_t"], LAYOUT["participant_t"]
F_OFD_SETLK = 37
SIZE = 1 << 22
SECONDS = 20
MODES = ["exclusive", "shared"]
OPEN = "import threading, warnings\nsection = shmem.SharedMemory(**eval(args[0]))\n"
HOLD = OPEN + "with getattr(shmem, args[1] + '_lock')(section): say('held'); sys.stdin.readline()\n"


@pytest.fixture
def section(place):
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        yield section


def lock_byte(fd, offset):
    """Lock a byte of a file through a description of its own."""
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))


def take_over(section, deaths, warned=True):
    """Acquire the exclusive lock after `deaths` deaths, with a warning if `warned`; the section must be intact."""
    if deaths and warned:
        with pytest.warns(shmem.OwnerDiedWarning), shmem.exclusive_lock(section, 20):
            pass
    else:
        with shmem.exclusive_lock(section, 20):
            pass
    assert section.owner_deaths == deaths
    section.check_heap()


# -- fork -----------------------------------------------------------------------------------------------


def test_child_is_a_separate_participant(section):
    def child():
        assert len(section.stats().participants) == 2
        assert os.getpid() in section.stats().participants
        with shmem.exclusive_lock(section):
            section["b"] = [1]

    assert in_child(child) == 0
    assert list(section["b"]) == [1]
    assert section.stats().participants == (os.getpid(),)
    assert section.owner_deaths == 0


def test_fork_while_a_descriptor_holds(section):
    """The child does not hold the lock through the parent's descriptor, and cannot release it by unlocking that descriptor."""
    descriptor = shmem.LockDescriptor(shmem.LockMode.exclusive)

    def child():
        for lock in (shmem.exclusive_lock(section, 0.1), shmem.shared_lock(section, 0)):
            with pytest.raises(shmem.LockTimeout):
                lock.__enter__()
        section.unlock(descriptor)
        assert not descriptor.held

    section.lock(descriptor)
    with shmem.shared_lock(section):
        assert in_child(child) == 0
    assert descriptor.held
    assert section.stats().lock_holder == os.getpid()
    section.unlock(descriptor)


@pytest.mark.parametrize("mode", MODES)
def test_fork_inside_a_with_block(section, mode):
    """The parent keeps the lock.  The child does not hold it, and leaving the block there has no effect; it can then lock by itself."""
    lock = lock_of(section, mode)
    array = section.zeros(2, name="a")

    def child():
        assert _lock.depths(section) == (0, 0)
        lock.__exit__(None, None, None)
        with pytest.raises(shmem.LockTimeout):
            shmem.exclusive_lock(section, 0).__enter__()
        if mode == "shared":
            with lock:
                assert _lock.depths(section) == (0, 1)
        array[0] = section["a"][1] = 1

    with lock:
        assert in_child(child) == 0
        assert _lock.depths(section) == ((1, 0) if mode == "exclusive" else (0, 1))
        assert holds(section) == mode
    assert holds(section) == "free"
    assert array.tolist() == [1, 1]
    assert section.owner_deaths == 0


@pytest.mark.parametrize("mode", MODES)
def test_forked_child_killed_while_it_holds(section, mode):
    with shmem.shared_lock(section):
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if mode == "exclusive":
                    os.write(writable, b"x")
                lock_of(section, mode).__enter__()
                os.write(writable, b"x")
                signal.pause()
            finally:
                os._exit(1)
        assert os.read(readable, 1) == b"x"
        if mode == "exclusive":
            wait_for_waiter(section)
    if mode == "exclusive":
        assert os.read(readable, 1) == b"x"
    assert holds(section) == mode
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    take_over(section, deaths=1)
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("mode", MODES)
def test_fork_while_another_thread_holds(section, mode):
    held, go = threading.Event(), threading.Event()

    def hold():
        with lock_of(section, mode):
            held.set()
            go.wait()

    def child():
        with pytest.raises(shmem.LockTimeout):
            shmem.exclusive_lock(section, 0.1).__enter__()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert in_child(child) == 0
    assert holds(section) == mode
    go.set()
    thread.join()
    assert in_child(lambda: shmem.exclusive_lock(section, 20).__enter__()) == 0  # the child ends without releasing it
    take_over(section, deaths=1)


@pytest.mark.parametrize("mode", MODES)
def test_fork_while_another_thread_waits(section, place, child, mode):
    holder = child(HOLD, place, "exclusive")
    holder.hear()
    done = []

    def wait():
        with lock_of(section, mode):
            done.append(1)

    def forked():
        assert section.stats().lock_waiters <= 1
        wait_for(lambda: section.stats().lock_waiters == 1)  # the parent's thread; not counted between two slices of its sleep
        with pytest.raises(shmem.LockTimeout):
            shmem.shared_lock(section, 0.1).__enter__()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for_waiter(section)
    assert in_child(forked) == 0
    holder.tell()
    holder.end()
    thread.join(20)
    assert done == [1]
    assert holds(section) == "free"


def test_fork_while_other_threads_work(section):
    """The heap gate and the storage lock belong to the parent; the child waits for them as for any other process."""
    stop = threading.Event()
    counter = section.zeros(1, "int64")

    def allocate():
        while not stop.is_set():
            section.free(section.allocate(100_000))
            section.free(section.allocate(200_000, zero=False))

    def lock():
        while not stop.is_set():
            with shmem.exclusive_lock(section):
                counter[0] += 1
                section.free(section.allocate(100))

    def child():
        with shmem.exclusive_lock(section):
            counter[0] += 1
        for _ in range(20):
            section.free(section.allocate(100_000))
        section.zeros(10, name=str(os.getpid()))
        section.check_heap()

    threads = [threading.Thread(target=work) for work in (allocate, allocate, lock, lock)]
    for thread in threads:
        thread.start()
    try:
        assert [in_child(child) for _ in range(30)] == [0] * 30
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(section) == 30
    assert section.check_heap().pending_blocks == 0


def test_child_without_fork_handlers(section, place, child):
    """`_Fork` does not run fork handlers.  Such a child joins at its first use of the section, and does not keep its parent alive."""
    other = child(
        OPEN + "import ctypes; keep = shmem.exclusive_lock(section); keep.__enter__(); a = section.zeros(1, name='a')\n"
        "if ctypes.PyDLL(None)._Fork() == 0:\n"
        "    say('born', os.getpid()); time.sleep(60); os._exit(0)\n"
        "time.sleep(60)",
        place,
    )
    _, pid = other.hear().split()
    assert len(section.stats().participants) == 2
    other.kill()
    take_over(section, deaths=1)
    assert len(section.stats().participants) == 1
    os.kill(int(pid), signal.SIGKILL)
    using = child(
        OPEN + "import ctypes; a = section['a']\n"
        "with shmem.shared_lock(section):\n"
        "    pid = ctypes.PyDLL(None)._Fork()\n"
        "    if pid == 0:\n"
        "        with shmem.shared_lock(section): a[0] = len(section.stats().participants)\n"
        "    else:\n"
        "        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "if pid == 0: os._exit(0)\n",
        place,
    )
    assert using.hear() == "0"
    using.end()
    assert section["a"][0] == 3
    take_over(section, deaths=1, warned=False)


FORKED = (
    OPEN + "import ctypes, signal, threading\n"
    "array = section.zeros(1, temporary=True)\n"
    "if ctypes.PyDLL(None)._Fork():\n    os.wait(); say('over'); sys.exit()\n"
    "say('born'); sys.stdin.readline()\n"
)


@pytest.mark.parametrize("lack", ["entry", "descriptors", "handlers"])
def test_child_without_an_entry_keeps_the_file(place, child, lack):
    """The parent leaves, and another process frees and closes: the file must not be truncated under the child's view."""
    code = (
        "import ctypes, gc, resource\n"
        "section = shmem.SharedMemory(**eval(args[0]), max_size=1 << 24, max_participants=1 if args[1] == 'entry' else 4)\n"
        "section['x'] = [1.0] * 500_000; x = section['x']\n"
        "if args[1] == 'descriptors': resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir('/proc/self/fd'))), 4096))\n"
        "pid = ctypes.PyDLL(None)._Fork() if args[1] == 'handlers' else os.fork()\n"
        "if pid == 0:\n    sys.stdin.readline(); say(len(x.tobytes()))\n    del x, section; gc.collect(); os._exit(0)\n"
        "say(len(section.stats().participants)); del x; section.close(); del section; say('left')\n"
        "say(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    other = child(code, place, lack)
    assert other.hear() == "1"
    assert other.hear() == "left"
    freeing = child("section = shmem.SharedMemory(**eval(args[0])); del section['x']; section.close()", place)
    freeing.end()
    other.tell()
    assert other.hear() == str(8 * 500_000)
    assert other.hear() == "0"
    other.end()
    if "file_name" in place:
        assert os.path.getsize(place["file_name"]) < 1 << 24
        with shmem.SharedMemory(**place) as section:
            assert not section.recovered
            section.check_heap()
    else:
        assert not os.path.exists("/dev/shm/shmem." + place["shared_name"])


def test_child_without_an_entry_attaches_when_one_is_free(section_file, child):
    """The parent is killed with the lock and a new block: its child takes over, in the entry that the parent had."""
    code = (
        "import warnings\nsection = shmem.SharedMemory(**eval(args[0]), max_participants=1)\n"
        "held = shmem.exclusive_lock(section); held.__enter__(); array = section.zeros(10, temporary=True)\n"
        "if os.fork():\n    sys.stdin.readline()\n    os.kill(os.getpid(), 9)\n"
        "try: section.allocate(10)\nexcept shmem.TooManyParticipants: say('full')\n"
        "while os.getppid() == int(args[1]): time.sleep(0.001)\n"
        "with warnings.catch_warnings(record=True) as caught, shmem.exclusive_lock(section): say(len(caught))\n"
        "say(section.owner_deaths, section.check_heap().blocks); section.close(); del array, section; say('closed')"
    )
    other = child("import os, sys\nargs.append(os.getpid())\n" + code, {"file_name": section_file, "max_size": SIZE})
    assert other.hear() == "full"
    other.tell()
    assert other.hear() == "1"
    assert other.hear() == "1 0"
    assert other.hear() == "closed"
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered


def test_attachment_does_not_wait_for_openers(place, child):
    """A child whose fork no handler saw attaches while another process is stopped in an opening or closing."""
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        other = child(FORKED + "try:\n    with shmem.shared_lock(section): say('locked')\nfinally: os._exit(0)", place)
        assert other.hear() == "born"
        with open(section.path, "r+b") as file:
            lock_byte(file.fileno(), OPENING_BYTE)
            other.tell()
            assert other.hear_soon() == "locked"
        assert other.hear() == "over"
        other.end()


@pytest.mark.damages
def test_attachment_after_the_file_grew(place, child):
    """A first opener that let the file grow, while a child whose fork no handler saw was not attached: it has mapped too little."""
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        code = "try:\n    section.allocate(10); say('allocated')\nexcept shmem.ClosedError:\n    say('closed')\nos._exit(0)"
        other = child(FORKED + code, place)
        assert other.hear() == "born"
        with open(section.path, "r+b") as file:
            HEADER["max_size"].write_file(file.fileno(), 2 * SIZE)
        other.tell()
        assert other.hear() == "closed"
        with open(section.path, "r+b") as file:
            HEADER["max_size"].write_file(file.fileno(), SIZE)
        assert other.hear() == "over"
        other.end()


ATTACHES = """
def use(what):
    os.write(1, f"{what} {threading.get_native_id()}\\n".encode())
    with shmem.shared_lock(section): os.write(1, f"{what} is in\\n".encode())
threads = [threading.Thread(target=use, args=(what,)) for what in ('first', 'second')]
for thread in threads:
    thread.start(); sys.stdin.readline()
for thread in threads:
    thread.join()
os._exit(0)
"""


def test_attachment_is_complete_before_other_threads_use_it(place, child):
    """One thread of such a child clears up after the dead owner of the entry; another one does not use the entry before."""
    with shmem.SharedMemory(**place, max_size=SIZE, max_participants=3) as section:
        dead = child(OPEN + "array = section.zeros(1, temporary=True); say('ready'); time.sleep(60)", place)
        dead.hear()
        other = child(FORKED + ATTACHES, place)
        assert other.hear() == "born"
        dead.kill()
        wait_for(lambda: len(section.stats().participants) == 2)  # the kernel may end its mappings a moment after the process
        scribe, lines = Scribe(section.path), []
        reader = threading.Thread(target=lambda: lines.extend(iter(other.process.stdout.readline, "")), daemon=True)
        reader.start()
        scribe[HEAP_GATE] = scribe.owner_word(0)  # the heap is busy
        try:
            other.tell()
            wait_for(lambda: scribe[HEAP_GATE] & GATE_WAITERS)
            assert scribe[scribe.entry(1, "attached")] & 0xFFFFFFFF == 2
            other.tell()
            wait_for(lambda: len(lines) >= 2)
            wait_for(lambda: len(lines) > 2 or waits_for_mutex(int(lines[1].split()[1])))
            assert [line.split()[0] for line in lines] == ["first", "second"]
        finally:
            scribe[HEAP_GATE] = 0
        other.tell()
        reader.join(SECONDS)
        assert sorted(lines[2:4]) == ["first is in\n", "second is in\n"]
        assert lines[4:] == ["over\n"]
        other.end()
        section.check_heap()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("mode", MODES)
def test_multiprocessing_started_inside_a_with_block(section, method, mode):
    """The child waits while the parent holds the lock; then the child holds it, and the parent waits."""
    context = multiprocessing.get_context(method)
    link, others = context.Pipe()
    array = section.zeros(1, name="a")
    with lock_of(section, mode):
        process = context.Process(target=lock_for_parent, args=(section, array, others))
        process.start()
        assert link.recv() == "kept out"
        wait_for_waiter(section)
        assert array[0] == 0
        assert _lock.depths(section) == ((1, 0) if mode == "exclusive" else (0, 1))
    assert link.recv() == "held"
    assert holds(section) == "exclusive"
    link.send("release")
    process.join(60)
    assert process.exitcode == 0
    assert array[0] == 1
    take_over(section, deaths=0)
    link.close()
    others.close()


# -- fork while a thread opens or closes --------------------------------------------------------------------

WORKS_BESIDE = (
    "import threading, warnings, numpy as np\n"
    "warnings.simplefilter('ignore', DeprecationWarning)\n"  # about forking with threads, which is what these tests do
    "keep = shmem.SharedMemory(max_size=1 << 20)\n"
    "def use():\n    with shmem.shared_lock(keep): pass\n"
    "def fork():\n"
    "    use(); pid = os.fork()\n"
    "    if pid == 0: say(args[0] in open('/proc/self/maps').read()); os._exit(0)\n"
    "    os.waitpid(pid, 0); one = threading.Thread(target=use); one.start(); one.join(); say('forked')\n"
)


@pytest.mark.parametrize("what", ["open", "close"])
def test_fork_while_a_thread_waits_for_the_opening_byte(section_file, child, what):
    """Another process is stopped while it opens: a thread that waits for it keeps neither forks nor the ends of threads waiting."""
    code = (
        "def work():\n    global section\n    say(threading.get_native_id())\n"
        "    if args[1] == 'open': section = shmem.SharedMemory(args[0])\n    else: section.close(); section = None\n"
        "section = shmem.SharedMemory(args[0], max_size=1 << 20)\n"
        "if args[1] == 'open': section.close(); section = None\n"
        "thread = threading.Thread(target=work); say('ready'); sys.stdin.readline(); thread.start(); sys.stdin.readline()\n"
        "fork(); thread.join(); say(section is not None)"
    )
    other = child(WORKS_BESIDE + code, section_file, what)
    assert other.hear() == "ready"
    with open(section_file, "r+b") as file:
        lock_byte(file.fileno(), OPENING_BYTE)
        other.tell()
        thread = int(other.hear())
        wait_for(lambda: pauses(thread))
        other.tell()
        assert [other.hear_soon() for _ in range(2)] == ["False", "forked"]
    assert other.hear() == str(what == "open")
    other.end()


@pytest.mark.parametrize("call", ["MSYNC", "FSYNC"])
def test_disk_is_slow_while_a_thread_closes(section_file, tmp_path, child, preloadable, call):
    """Writing to disk keeps waiting neither forks nor processes that open the section; a child is not handed what is being closed."""
    code = (
        "def work():\n    global section\n    section.close(); section = None\n"
        "section = shmem.SharedMemory(args[0], max_size=1 << 24); section['x'] = np.ones(100_000)\n"
        "thread = threading.Thread(target=work); thread.start(); sys.stdin.readline()\n"
        "fork(); thread.join(); say('closed')"
    )
    held = tmp_path / "held"
    other = child(WORKS_BESIDE + code, section_file, before=("env", f"LD_PRELOAD={preloadable('holding')}", f"HOLD_{call}={held}"))
    wait_for(held.exists)
    opener = child(
        "section = shmem.SharedMemory(args[0]); say(section.recovered, *section.stats().participants); sys.stdin.readline()", section_file
    )
    recovered, *participants = opener.hear_soon().split()
    assert recovered == "False"
    assert (str(other.process.pid) in participants) == (call == "MSYNC")
    other.tell()
    assert [other.hear_soon() for _ in range(2)] == ["False", "forked"]
    held.unlink()
    assert other.hear() == "closed"
    other.end()
    opener.tell()
    opener.end()
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section["x"].sum() == 100_000
        section.check_heap()


def test_section_is_opened_while_a_thread_of_the_process_closes_it(section_file, tmp_path, child, preloadable):
    """The process stays in the section, its forked children are participants, and the last handle leaves in order."""
    code = (
        "def work():\n    global section\n    section.close(); section = None\n"
        "section = shmem.SharedMemory(args[0], max_size=1 << 24, max_participants=1); section['x'] = np.ones(100_000)\n"
        "thread = threading.Thread(target=work); thread.start(); sys.stdin.readline()\n"
        "fork(); again = shmem.SharedMemory(args[0]); say(again['x'].sum())\n"
        "os.unlink(args[1]); thread.join(); x = again.full(100_000, 1.0, temporary=True); pid = os.fork()\n"
        "if pid == 0:\n    sys.stdin.readline(); say(len(x.tobytes())); os._exit(0)\n"
        "del x; again.close(); del again; say('left'); os.wait()"
    )
    held = tmp_path / "held"
    before = ("env", f"LD_PRELOAD={preloadable('holding')}", f"HOLD_MSYNC={held}")
    other = child(WORKS_BESIDE + code, section_file, held, before=before)
    wait_for(held.exists)
    other.tell()
    assert [other.hear_soon() for _ in range(4)] == ["False", "forked", "100000.0", "left"]
    shmem.SharedMemory(section_file).close()
    other.tell()
    assert other.hear() == str(8 * 100_000)
    other.end()


# -- a process that may not open the file again -------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its privileges")
DROPPED = (
    "import threading\nsection = shmem.SharedMemory(**eval(args[0]), max_size=1 << 22); section['a'] = [1]\n"
    "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
)


@needs_root
def test_fork_after_setuid(section_file, child):
    """A forked child is a participant by locks of its own, holds and waits, and dies like any other."""
    code = (
        "if os.fork():\n    sys.stdin.readline(); os.wait(); section.close(); del section; say('left')\n"
        "else:\n    shmem.exclusive_lock(section).__enter__(); array = section.zeros(10, temporary=True)\n"
        "    say(len(section.stats().participants), os.getpid()); time.sleep(60)"
    )
    parent = child(DROPPED + code, {"file_name": section_file})
    n, pid = map(int, parent.hear_soon().split())
    with shmem.SharedMemory(section_file) as section:
        assert n == 2
        assert set(section.stats().participants) == {os.getpid(), parent.process.pid, pid}
        with pytest.raises(shmem.LockTimeout), shmem.exclusive_lock(section, 0.2):
            pass
        os.kill(pid, signal.SIGKILL)
        take_over(section, deaths=1)
        assert section.check_heap().blocks == 1
        parent.tell()
        assert parent.hear() == "left"
        assert section.stats().participants == (os.getpid(),)
    parent.end()


@needs_root
@pytest.mark.parametrize("last", ["parent", "child"])
def test_closing_after_setuid(place, child, last):
    """Of parent and child, whichever leaves last closes the file in order, and empties one that it may not remove."""
    code = (
        "readable, writable = os.pipe(); pid = os.fork(); me = 'parent' if pid else 'child'; section['a']\n"
        "with shmem.exclusive_lock(section): pass\n"
        "if me == args[1]: os.close(writable); os.read(readable, 1)\n"
        "section.close(); del section; os.close(writable) if me != args[1] else None\n"
        "if pid: os.wait()"
    )
    child(DROPPED + code, place, last).end()
    if "file_name" in place:
        assert 0 < os.path.getsize(place["file_name"]) < SIZE
        with shmem.SharedMemory(**place) as section:
            assert not section.recovered
            section.check_heap()
    else:
        path = "/dev/shm/shmem." + place["shared_name"]
        assert os.path.getsize(path) == 0
        os.unlink(path)


@needs_root
def test_one_opens_and_closes_at_a_time_after_setuid(section_file, child):
    """The process waits for the opening byte before it leaves, and another opener waits while it leaves."""
    other = child(DROPPED + "say('open'); sys.stdin.readline(); section.close(); del section; say('left')", {"file_name": section_file})
    assert other.hear() == "open"
    with open(section_file, "r+b") as file:
        lock_byte(file.fileno(), OPENING_BYTE)
        other.tell()
        wait_for(lambda: pauses(other.process.pid))
        assert os.path.getsize(section_file) == SIZE
    assert other.hear() == "left"
    other.end()
    assert os.path.getsize(section_file) < SIZE


@needs_root
def test_require_after_setuid(section_file, child):
    """Threads and processes that may not open the file again call the factory of a name once."""
    code = (
        "calls = section.zeros(1, 'int64', name='calls')\n"
        "def make():\n    calls[0] += 1; time.sleep(0.2); return [7]\n"
        "def require():\n    made.append(int(section.require('made', make)[0]))\n"
        "made = []; pid = os.fork(); threads = [threading.Thread(target=require) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "if pid == 0: os._exit(0 if made == [7] * 3 else 1)\n"
        "say(os.waitstatus_to_exitcode(os.wait()[1]), made, calls[0])"
    )
    other = child(DROPPED + code, {"file_name": section_file})
    assert other.hear_soon() == "0 [7, 7, 7] 1"
    other.end()


@needs_root
def test_privileges_that_come_back(section_file, child):
    """A process that closes a descriptor of the file has its locks again when it opens the section again by path, and keeps them."""
    code = DROPPED.replace("os.setgid(65534); os.setuid(65534)", "os.seteuid(65534)") + (
        "pid = os.fork()\n"
        "if pid:\n    os.wait(); sys.exit()\n"
        "shmem.exclusive_lock(section).__enter__(); os.seteuid(0); os.close(os.open(args[1], os.O_RDONLY))\n"
        "again = shmem.SharedMemory(**eval(args[0])); again.close(); del again\n"
        "say(os.getpid()); sys.stdin.readline()"
    )
    other = child(code, {"file_name": section_file}, section_file)
    pid = int(other.hear())
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().lock_holder == pid
        with pytest.raises(shmem.LockTimeout), shmem.exclusive_lock(section, 0.2):
            pass
        other.tell()
        other.end()


# -- other programs: vfork, posix_spawn, exec ---------------------------------------------------------------

STARTERS = {
    "vfork": "p = subprocess.Popen(['sleep', '60'], close_fds=False).pid",
    "posix_spawn": "p = os.posix_spawn('/bin/sleep', ['sleep', '60'], os.environ)",
    "fork": "p = subprocess.Popen(['sleep', '60'], close_fds=False, preexec_fn=lambda: None).pid",
}


@pytest.mark.parametrize("start", STARTERS.values(), ids=STARTERS.keys())
@pytest.mark.parametrize("mode", MODES)
def test_started_program_inherits_no_locks(section, place, child, start, mode):
    """A started program keeps neither its parent's entry, nor its lock, nor the opening lock; all end with the parent."""
    other = child(
        OPEN + "import subprocess\n"
        "def churn():\n"
        "    while True: shmem.SharedMemory(section.path + '.x', max_size=1 << 20).close()\n"
        "threading.Thread(target=churn, daemon=True).start(); time.sleep(0.02)\n"
        "getattr(shmem, args[1] + '_lock')(section).__enter__()\n"
        f"for _ in range(5): {start}; say(p)\n"
        "time.sleep(60)",
        place,
        mode,
    )
    pids = [int(other.hear()) for _ in range(5)]
    other.kill()
    try:
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
        take_over(section, deaths=1)
        assert section.stats().participants == (os.getpid(),)
        shmem.SharedMemory(section.path + ".x", max_size=1 << 20).close()
    finally:
        os.unlink(section.path + ".x")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


AGAIN = """
import shmem, sys, warnings
with shmem.SharedMemory(**eval(sys.argv[1])) as section, warnings.catch_warnings(record=True) as caught, shmem.exclusive_lock(section, 20):
    print(len(caught), section.owner_deaths, section['a'][0], len(section.stats().participants), flush=True)
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alone", [False, True])
def test_exec_while_holding(place, child, mode, alone):
    """Exec ends the old program: its lock is taken over and counted as a death, and the new program opens the section again."""
    section = shmem.SharedMemory(**place, max_size=SIZE)
    section["a"] = [7]
    code = OPEN + "a = section['a']; getattr(shmem, args[1] + '_lock')(section).__enter__(); say('held'); sys.stdin.readline()\n"
    other = child(code + "os.execv(sys.executable, [sys.executable, '-P', '-c', args[2], args[0]])", place, mode, AGAIN)
    other.hear()
    assert holds(section) == mode
    if alone:
        section.close()
    other.tell()
    assert other.hear() == f"1 1 7 {1 if alone else 2}"
    other.end()
    section.close()


@pytest.mark.parametrize("mode", MODES)
def test_exec_in_a_forked_child(section, mode):
    """Exec releases only the locks that the child itself held; the parent keeps its lock."""
    with lock_of(section, mode):
        pid = os.fork()
        if pid == 0:
            try:
                if mode == "shared":
                    lock_of(section, mode).__enter__()
                os.execv("/bin/sleep", ["sleep", "60"])
            finally:
                os._exit(1)
        wait_for(lambda: section.stats().participants == (os.getpid(),))
        assert holds(section) == mode
        assert section.owner_deaths == 0
    take_over(section, deaths=int(mode == "shared"))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# -- exit -------------------------------------------------------------------------------------------------

HOLDERS = {
    "with": "with getattr(shmem, mode + '_lock')(section): end()",
    "descriptor": "section.lock(shmem.LockDescriptor(shmem.LockMode(mode))); end()",
    "thread": "d = shmem.LockDescriptor(shmem.LockMode(mode)); ready = threading.Event()\n"
    "def hold(): section.lock(d); ready.set(); time.sleep(60)\n"
    "threading.Thread(target=hold, daemon=True).start(); ready.wait(); end()",
}
ENDS = {
    "sys.exit": ("sys.exit(0)", 0, ""),
    "end": ("pass", 0, ""),
    "os._exit": ("os._exit(0)", 0, ""),
    "exception": ("raise RuntimeError('as meant')", 1, "RuntimeError: as meant\n"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, ""),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT, "KeyboardInterrupt\n"),
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(("place", "mode"), [("file", "exclusive"), ("anonymous", "shared")], indirect=["place"])
def test_process_ends_while_it_holds(section, place, child, holder, how, mode):
    """Leaving a `with` block releases the lock.  Any other end while holding it counts as a death, and the next holder is warned."""
    action, status, last_line = ENDS[how]
    code = f"import signal\nmode = args[1]; views = section.zeros(3), section.allocate(10)\ndef end():\n    say('held'); {action}\n"
    other = child(OPEN + code + HOLDERS[holder], place, mode)
    assert other.hear() == "held"
    _, err = other.process.communicate(timeout=60)
    assert other.process.returncode == status
    assert "Exception ignored" not in err
    assert err.endswith(last_line)
    assert bool(err) == bool(last_line)
    released = holder == "with" and how not in ("os._exit", "SIGTERM")
    take_over(section, deaths=int(not released))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wish", ["exclusive", "shared", "upgrade"])
def test_exit_while_daemon_threads_wait(section, place, child, wish, mode):
    """The process ends immediately, and the lock that it waited for stays intact."""
    holder = child(HOLD, place, "shared" if wish == "upgrade" else mode)
    holder.hear()
    code = "def wait():\n    if wish == 'upgrade': shmem.shared_lock(section).__enter__(); wish_ = 'exclusive'\n    else: wish_ = wish\n"
    code += "    getattr(shmem, wish_ + '_lock')(section).__enter__(); keep.append(wish_); time.sleep(60)\n"
    code = "wish = args[1]; keep = []\n" + code + "threading.Thread(target=wait, daemon=True).start(); say('go'); sys.stdin.readline()"
    other = child(OPEN + code, place, wish)
    other.hear()
    if (wish, mode) != ("shared", "shared"):
        wait_for_waiter(section)
    other.tell()
    other.end()
    holder.tell()
    holder.end()
    take_over(section, deaths=int(wish == "upgrade" or mode == wish == "shared"))  # in these cases the process held the shared lock


@pytest.mark.parametrize("wish", ["exclusive", "upgrade"])
def test_draining_writer_stops_at_exit(section, place, child, wish):
    """A draining writer owns the gate, and checks only once a second; at exit it must notice sooner."""
    holder = child(HOLD, place, "shared")
    holder.hear()
    code = "from shmem import _core\ndef wait():\n    with contextlib.ExitStack() as stack:\n"
    code += "        if args[1] == 'upgrade': stack.enter_context(shmem.shared_lock(section))\n"
    code += "        stack.enter_context(shmem.exclusive_lock(section))\n"
    code += "threading.Thread(target=wait, daemon=True).start(); say('go'); sys.stdin.readline()\n"
    code += "say(any(_core.depart_all() for _ in range(5)))"  # each waits for about 100 ms
    other = child("import contextlib\n" + OPEN + code, place, wish)
    other.hear()
    wait_for_waiter(section)
    other.tell()
    assert other.hear() == "True"
    other.end()
    holder.tell()
    holder.end()
    take_over(section, deaths=int(wish == "upgrade"))


AT_EXIT = """
import atexit, sys, os
order = []
def late():
    try:
        order.append(views[0].tolist())
        for use in (lambda: section.allocate(100), lambda: section["a"], lambda: section.zeros(1), lambda: section.free(views[1]),
                    lambda: shmem.exclusive_lock(section).__enter__(), section.stats, section.check_heap):
            try: use()
            except shmem.ClosedError: order.append(1)
        section.close(); section.close()
        with shmem.SharedMemory(**eval(sys.argv[1])) as again: again["late"] = [3]
        print(order, flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
atexit.register(late)
import shmem
def early():
    with shmem.exclusive_lock(section): section["early"] = [2]
atexit.register(early)
section = shmem.SharedMemory(**eval(sys.argv[1]))
section["a"] = [1]
views = section["a"], section.allocate(10)
"""


def test_exit_handlers_that_use_the_section(section, place, child):
    """Handlers that run before the library's work normally.  Later ones can read views and reopen; other calls raise ClosedError."""
    other = child("os.execv(sys.executable, [sys.executable, '-P', '-c', args[1], args[0]])", place, AT_EXIT)
    output = other.end().strip()
    assert section["early"][0] == 2
    assert output == "[[1], 1, 1, 1, 1, 1, 1, 1]"
    assert section["late"][0] == 3
    assert section.stats().participants == (os.getpid(),)
    take_over(section, deaths=0)


def test_import_in_an_exit_handler(section, place, child):
    """The first use of the library in an exit handler works, and the process leaves the section cleanly."""
    code = "import atexit, sys\ndef late():\n    import shmem\n    with shmem.SharedMemory(**eval(sys.argv[1])) as one: one['a'] = [1]\n"
    child("os.execv(sys.executable, [sys.executable, '-P', '-c', args[1], args[0]])", place, code + "atexit.register(late)").end()
    assert section["a"][0] == 1
    assert section.stats().participants == (os.getpid(),)


# -- PID namespaces -----------------------------------------------------------------------------------------


def can_unshare():
    try:
        return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="`unshare --pid --fork true` is not permitted here")
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@needs_namespaces
@pytest.mark.parametrize("mode", MODES)
def test_holder_in_another_pid_namespace(section, place, child, mode):
    """A holder in another namespace counts as alive until it dies, in both directions."""
    other = child(HOLD + "say('released'); sys.stdin.readline()\n" + HOLD, place, mode, before=NAMESPACE)
    other.hear()
    assert 1 in section.stats().participants  # its own process id, as seen in its namespace
    with pytest.raises(shmem.LockTimeout):
        shmem.exclusive_lock(section, 0.3).__enter__()
    other.tell()
    assert other.hear() == "released"
    with shmem.exclusive_lock(section, 20):
        other.tell()
        wait_for_waiter(section)
        time.sleep(0.2)  # it checks several times whether this process is alive
    assert other.hear() == "held"
    assert section.owner_deaths == 0
    other.kill()  # this also kills the processes that it started
    take_over(section, deaths=1)


@needs_namespaces
@pytest.mark.parametrize("mode", MODES)
def test_holder_in_the_outer_namespace_is_killed(section, place, child, mode):
    holder = child(HOLD, place, mode)
    holder.hear()
    waiter = child(
        OPEN + "with warnings.catch_warnings(record=True) as caught, shmem.exclusive_lock(section): say(len(caught))",
        place,
        before=NAMESPACE,
    )
    wait_for_waiter(section)
    holder.kill()
    assert waiter.hear() == "1"
    waiter.end()
    take_over(section, deaths=1, warned=False)


@needs_namespaces
def test_equal_process_ids_in_two_namespaces(section, place, child):
    """Two processes are each process 1 of a namespace.  One dies, which the other, live one must not hide."""
    first, second = (child(HOLD, place, "shared", before=NAMESPACE) for _ in range(2))
    for one in (first, second):
        one.hear()
    assert sorted(section.stats().participants) == [1, 1, os.getpid()]
    first.kill()
    wait_for(lambda: sorted(section.stats().participants) == [1, os.getpid()])
    with pytest.raises(shmem.LockTimeout):
        shmem.exclusive_lock(section, 0.2).__enter__()
    second.tell()
    take_over(section, deaths=1)
    second.end()


@needs_namespaces
def test_tstshmem_in_pid_namespaces(section_file, child):
    """A killed instance that was process 1 of its namespace counts as dead, although process 1 of another namespace is attached."""
    arguments = ["tstshmem", "-p", 1, "-t", 1, "--variant", "cython", "--file", section_file, "--size", SIZE, "-n"]
    with shmem.SharedMemory(section_file, max_size=SIZE) as section:
        bystander = child(OPEN + "say('in'); sys.stdin.readline()", {"file_name": section_file}, before=NAMESPACE)
        bystander.hear()
        instance = child("from shmem.__main__ import main; sys.exit(main(args))", *arguments, 50_000, before=NAMESPACE)
        wait_for(lambda: isinstance(section.root, Control) and section.root.first is not None and section.root.first.crew[0])
        assert section.root.first.pid == 1
        instance.kill()
        wait_for(lambda: sorted(section.stats().participants) == [1, os.getpid()])
        again = subprocess.run(
            [sys.executable, "-P", "-m", "shmem", *map(str, arguments), "100"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            check=False,
        )
        assert "instance 1 (process 1) was killed" in again.stderr
        assert again.returncode == 3
        assert "tree empty, heap intact" in again.stdout
        bystander.tell()
        bystander.end()
