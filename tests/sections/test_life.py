"""Fork, exec, exit and death of processes that use a section.  The required outcomes are listed in docs/decisions/processes.md."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from workers import OPEN, holds, in_child, lock_byte, lock_for_parent, lock_of, pauses, take_over, wait_for, wait_for_waiter

import shmem
from shmem._base.layout import OPENING_BYTE
from shmem._cli.tstshmem_section import Control
from shmem._objects import lock as _lock

SIZE = 1 << 22
MODES = ["exclusive", "shared"]
HOLD = OPEN + "with getattr(shmem, args[1] + '_lock')(section): say('held'); sys.stdin.readline()\n"


@pytest.fixture
def section(place):
    with shmem.SharedMemory(**place, max_size=SIZE) as section:
        yield section


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
