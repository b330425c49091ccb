"""What a process leaves at its exit: threads that are still inside, and views that exit handlers still read."""

import os
import sys

import numpy as np
import pytest
from workers import wait_for

import shmem

SIZE = 1 << 24
N = 100_000

# `late` runs after the library's own exit handler, which `import shmem` has registered
LATE = """
import atexit, threading, warnings
import numpy as np
from shmem._objects import arrays, handles
atexit.unregister(handles.leave_all)
@atexit.register
def run_late():
    try: late()
    except BaseException as error: say(repr(error)); raise
atexit.register(handles.leave_all)
section = shmem.SharedMemory(**eval(args[0]))
"""

FILLS = """
filling = threading.Event()
def work():
    def fill(array): keep.append(array); filling.set(); threading.Event().wait()
    arrays.make(section, 100_000, float, "C", False, None, False, fill)
keep = []
threading.Thread(target=work, daemon=True).start(); filling.wait()
"""

VIEWS = {
    "temporary": "view = section.full(100_000, 1.0, temporary=True)",
    "deleted": "section['x'] = np.ones(100_000); view = section['x']; del section['x']",
    "unnamed": "view = section.full(100_000, 1.0)",
    "named": "section['x'] = np.ones(100_000); view = section['x']",
    "deleted block": "section['x'] = np.ones(100_000).tobytes(); view = np.frombuffer(section['x']); del section['x']",
    "second block": "section['y'] = b'y'; first = memoryview(section['y']); del section['y']\n"
    "section['x'] = np.ones(100_000).tobytes(); view = np.frombuffer(section['x']); del section['x']",
    "object": "class Many(shmem.Struct): many: shmem.Array[shmem.float64, 100_000]\n"
    "section['x'] = section.new(Many, many=1); view = section['x'].many; del section['x']",
}
STAYS = "unnamed", "named"  # are in use after the last view is gone


def fill_up(section):
    """Allocate all memory that is left, in blocks of ones; return these."""
    blocks = []
    size = SIZE
    while size >= 16:
        try:
            blocks.append(section.allocate(size, zero=False))
        except shmem.SectionFull:
            size //= 2
        else:
            memoryview(blocks[-1])[:] = b"\1" * len(memoryview(blocks[-1]))
    return blocks


def test_thread_that_fills_an_array_at_exit(place, child):
    """The block that a thread fills while its process exits is not given to others before the process has ended."""
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        code = "def late():\n    say('late'); sys.stdin.readline(); keep[0][:] = 7.0; say('written')\n"
        other = child(LATE + code + FILLS, place)
        assert other.hear() == "late"
        blocks = fill_up(section)
        other.tell()
        assert other.hear() == "written"
        assert all(set(bytes(block)) <= {1} for block in blocks)
        other.end()
        section.free(section.allocate(8 * N))  # the dead process's block
        assert section.check_heap().blocks == len(blocks)


def test_thread_that_fills_is_not_cut_off(section_file, child):
    """A thread may go on to fill its array, and finish it, in the last process's exit: the file is left as after a kill."""
    code = "def late():\n    keep[0][:] = 7.0; say('late', keep[0].sum())\n"
    other = child(LATE + code + FILLS, {"file_name": section_file, "max_size": SIZE})
    assert other.hear() == f"late {7.0 * N}"
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert section.recovered
        assert section.check_heap().blocks == 0


def test_thread_that_ends_soon_does_not_prevent_a_clean_exit(section_file, child):
    """A thread that needs the GIL to finish its array gets it, and the file is closed in order."""
    code = """
    go = threading.Event(); filling = threading.Event()
    def fill(array): filling.set(); go.wait()
    def work(): arrays.make(section, 100_000, float, "C", True, "x", False, fill)
    threading.Thread(target=work, daemon=True).start(); filling.wait()
    depart = handles._core.depart_all
    def depart_all(*args): left = depart(*args); go.set(); return left
    handles._core.depart_all = depart_all
    def late(): pass
    """
    other = child(LATE + "\n".join(line[4:] for line in code.splitlines()), {"file_name": section_file, "max_size": SIZE})
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section["x"].sum() == 0
        section.check_heap()


@pytest.mark.parametrize("how", VIEWS)
def test_views_at_exit_of_the_last_process(section_file, child, how):
    """Exit handlers may read views; the file is truncated and closed in order, and the next opener frees what only the views kept."""
    code = "def late():\n    say(view.sum(), section.path)\n"
    other = child(LATE + code + VIEWS[how], {"file_name": section_file, "max_size": SIZE})
    assert other.hear() == f"{float(N)} {section_file}"
    other.end()
    assert 8 * N < os.stat(section_file).st_size < 9 * N
    for _ in range(2):
        with shmem.SharedMemory(section_file) as section:
            assert not section.recovered
            assert section.stats().recoveries == 0
            assert section.check_heap().blocks == (how in STAYS)
            if how == "named":
                section["x"].sum()


@pytest.mark.parametrize("how", VIEWS)
def test_views_at_exit_while_others_use_the_section(place, child, how):
    """Others are not given what the views of an exiting process lie in, and have it once the process has ended."""
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        code = "def late():\n    say('late'); sys.stdin.readline(); say(view.sum())\n"
        other = child(LATE + code + VIEWS[how], place)
        assert other.hear() == "late"
        if how == "named":
            del section["x"]
        blocks = fill_up(section)
        other.tell()
        assert other.hear() == f"{float(N)}"
        other.end()
        if how == "unnamed":
            with pytest.raises(shmem.SectionFull):
                section.allocate(8 * N)
        else:
            section.free(section.allocate(8 * N))
        assert section.stats().participants == (os.getpid(),)
        for block in blocks:
            section.free(block)
        section.check_heap()


def test_view_of_a_freed_array_at_exit(section_file, child):
    """A view of memory above the end of the truncated file can be read; its contents are not defined."""
    code = "def late():\n    say(len(view.tobytes()))\nview = section.zeros(100_000); section.free(view)"
    other = child(LATE + code, {"file_name": section_file, "max_size": SIZE})
    assert other.hear() == str(8 * N)
    other.end()
    assert os.stat(section_file).st_size < 8 * N


@pytest.mark.parametrize("how", VIEWS)
def test_section_is_opened_while_a_process_exits(section_file, child, how):
    """A process that exits with views does not take part: the next one opens a section that was closed, and closes it."""
    code = "def late():\n    say('late'); sys.stdin.readline(); say(view.sum())\n"
    other = child(LATE + code + VIEWS[how], {"file_name": section_file, "max_size": SIZE})
    assert other.hear() == "late"
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section.max_size == SIZE
        section["y"] = np.full(SIZE // 16, 3.0)
        assert len(fill_up(section)) > 0
        section.check_heap()
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section["y"].sum() == 3.0 * (SIZE // 16)
    other.tell()
    assert other.hear() == f"{float(N)}"
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 0
        assert section["y"].sum() == 3.0 * (SIZE // 16)
        section.check_heap()


def test_guest_at_its_exit(section_file, child):
    """A child without an entry may read inherited views to its end, although all others leave after it has left."""
    code = "def late():\n    if not pid: say('late', section.path); sys.stdin.readline(); say(len(view.tobytes()))\n"
    code += VIEWS["temporary"] + "\npid = os.fork()\n"
    code += "if pid: os.close(0); section.close(); del view, section; os.wait()\nelse: sys.stdin.readline()"
    with shmem.SharedMemory(section_file, max_size=SIZE, max_participants=2) as section:
        other = child(LATE + code, {"file_name": section_file, "max_size": SIZE})
        other.tell()
        assert other.hear() == f"late {section_file}"
        wait_for(lambda: len(section.stats().participants) == 1)  # the parent has left, and freed the array
    other.tell()
    assert other.hear() == str(8 * N)
    other.end()


def test_guest_is_the_last_one_at_its_exit(section_file, child):
    """The parent left before: the child's exit leaves the file truncated and clean."""
    code = "def late():\n    if not pid: say(view.sum(), section.path); os._exit(0)\n" + VIEWS["named"] + "\n"
    code += "readable, writable = os.pipe(); pid = os.fork()\n"
    code += "if pid: section.close(); del view, section; os.write(writable, b'x'); os.wait()\nelse: os.read(readable, 1)"
    other = child(LATE + code, {"file_name": section_file, "max_size": SIZE, "max_participants": 1})
    assert other.hear() == f"{float(N)} {section_file}"
    other.end()
    assert 8 * N < os.stat(section_file).st_size < 9 * N
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section["x"].sum() == N
        section.check_heap()


def test_anonymous_section_is_removed_while_another_process_exits(child):
    """The last process that takes part removes the file; one that exits with views does not keep it."""
    with shmem.SharedMemory(max_size=SIZE) as section:
        path = section.path
        code = "def late():\n    say('late'); sys.stdin.readline(); say(view.sum())\n"
        other = child(LATE + code + VIEWS["temporary"], {"shared_name": section.name})
        assert other.hear() == "late"
    assert not os.path.exists(path)
    other.tell()
    assert other.hear() == f"{float(N)}"
    other.end()


def test_entries_of_ended_processes_are_used_again(section_file, child):
    """A process that exited with views does not cost the next one another entry."""
    with shmem.SharedMemory(section_file, max_size=SIZE, max_participants=2) as section:
        for _ in range(3):
            other = child(LATE + "def late(): say(view.sum())\n" + VIEWS["temporary"], {"file_name": section_file})
            assert other.hear() == f"{float(N)}"
            other.end()
        section.free(section.allocate(8 * N))
        section.check_heap()


# -- threads ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12 starts no threads in exit handlers")
def test_exit_handler_that_joins_its_thread(place, child):
    """A thread that a late exit handler starts and joins gets an exception; only daemon threads are blocked."""
    code = """
def late():
    def use():
        for call in (lambda: section.allocate(10), lambda: section["a"], lambda: shmem.exclusive_lock(section).__enter__()):
            try: call()
            except shmem.ClosedError as error: say(type(error).__name__)
    thread = threading.Thread(target=use, daemon=False); thread.start(); thread.join(); say("joined")
section["a"] = [1]
"""
    with shmem.SharedMemory(**place, max_size=SIZE):
        other = child(LATE + code, place)
        assert [other.hear_soon() for _ in range(4)] == ["ClosedError"] * 3 + ["joined"]
        other.end()


MULTIPROCESSING = """
import concurrent.futures, multiprocessing, threading
def work(keywords, how):
    global pool, section  # not shut down: they live to the process's end
    section = shmem.SharedMemory(**keywords)
    if how == "executor":
        pool = concurrent.futures.ThreadPoolExecutor(1)
        pool.submit(int).result()
        pool.submit(lambda: (time.sleep(0.1), section.zeros(10, name="x"))[0])
    else:
        threading.Thread(target=lambda: (threading.main_thread().join(), section.zeros(10, name="x"))).start()
process = multiprocessing.get_context("fork").Process(target=work, args=(eval(args[0]), args[1])); process.start(); process.join(20)
say(process.exitcode); process.kill()
"""


@pytest.mark.parametrize("how", ["executor", "thread"])
def test_threads_at_the_end_of_a_multiprocessing_child(section_file, child, how):
    """The child ends although a thread waits for its main thread's end; its threads finish their work, then it leaves in order."""
    other = child(MULTIPROCESSING, {"file_name": section_file, "max_size": SIZE}, how)
    assert other.hear() == "0"
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert not section.recovered
        assert section["x"].sum() == 0
        section.check_heap()


QUEUE = """
import atexit, multiprocessing.util, sys, threading, time  # before shmem: its function comes last at exit
import shmem
class Late:
    def __reduce__(self):  # called by the queue's thread, which goes on long after this process would have left its sections
        exiting.wait(20)
        time.sleep(1)
        return str, ()
section = shmem.SharedMemory(sys.argv[1])
exiting = threading.Event()
atexit.register(exiting.set)
queue = multiprocessing.Queue()
queue.put((Late(), section.full(10, 7, temporary=True)))
"""


def test_queue_sends_what_was_put_before_the_exit(section_file, child):
    """multiprocessing joins the thread of a queue at exit, which pickles; it must not find that its section was left."""
    with shmem.SharedMemory(section_file, max_size=SIZE) as section:
        other = child("os.execv(sys.executable, [sys.executable, '-P', '-c', args[0], args[1]])", QUEUE, section_file)
        wait_for(lambda: other.process.poll() is not None)
        other.end()
        assert section.stats().claims == 1  # no process will open the message
        section.sweep(claims=0)
        assert section.check_heap().blocks == 0
