"""Processes that use a section but could not join it, or may not open its file again: forked children without an entry, and after setuid.

The required outcomes are listed in docs/decisions/processes.md.
"""

import os
import signal
import threading

import pytest
from scribe import HEAP_GATE, Scribe
from workers import OPEN, lock_byte, pauses, take_over, wait_for, waits_for_mutex

import shmem
from shmem._base.layout import GATE_WAITERS, LAYOUT, OPENING_BYTE

HEADER = LAYOUT["header_t"]
SIZE = 1 << 22
SECONDS = 20


# -- children without an entry or a descriptor, or whose fork no handler saw --------------------------------


@pytest.fixture
def section(place):
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        yield section


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
