"""Semaphore: named, in a section, as a field, private to a process; no unit is lost or duplicated; killed waiters."""

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import random
import signal
import threading
import weakref
from pathlib import Path

import pytest
from workers import outcome, pass_on, wait_until_has_waiters

import shmem
from shmem._base.layout import LAYOUT, NAMED_EVENT, NAMED_SEMAPHORE, NAMED_VERSION, PAGE_BYTES
from shmem._base.layout import SEMAPHORE_MAX as MAX
from shmem._objects.semaphore import has_waiters

NAMED = LAYOUT["named_t"]

FILES = {"Semaphore": "/dev/shm/shmem-semaphore.", "Event": "/dev/shm/shmem-event."}


class Node(shmem.Struct, type_name="tests.Node"):
    tag: shmem.int8
    guard: shmem.Mutex
    ready: shmem.Event
    slots: shmem.Semaphore


class Longer(Node, type_name="tests.Longer"):
    more: shmem.Semaphore


@pytest.fixture
def name():
    """Return a name that is unused before and after the test."""
    chosen = f"test-{os.getpid()}-{random.randrange(1 << 32)}"
    yield chosen
    for start in FILES.values():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(start + chosen)


@pytest.fixture(params=["local", "named", "placed", "field"])
def sem(request, name, shm):
    """A semaphore of value 0 in each kind of place."""
    if request.param == "local":
        return shmem.Semaphore()
    if request.param == "named":
        return shmem.Semaphore(name)
    if request.param == "placed":
        return shm.semaphore()
    return shm.new(Longer).more


# -- one process --------------------------------------------------------------------------------------------


def test_wait_and_signal_count(sem):
    assert sem.value == 0
    assert sem.wait(0) is False
    sem.signal()
    sem.signal(3)
    assert sem.value == 4
    assert sem.wait() is True
    assert sem.wait(timeout=0) is True
    with sem as got:
        assert got is True
        assert sem.value == 1
    assert sem.value == 2
    assert sem.wait(5)
    assert sem.wait(5)
    assert sem.wait(0.02) is False
    assert sem.value == 0


def test_overflow_raises_and_keeps_the_value(sem):
    sem.signal(MAX)
    for n in (1, MAX, MAX + 1, 1 << 32, 1 << 70):
        with pytest.raises(shmem.SemaphoreOverflow) as caught:
            sem.signal(n)
        assert caught.value.status == shmem.Status.value_overflow
        assert isinstance(caught.value, OverflowError)
        assert sem.value == MAX
    assert sem.wait(0)
    sem.signal()
    assert sem.value == MAX
    with pytest.raises(shmem.SemaphoreOverflow):
        shmem.Semaphore(value=MAX + 1)
    assert shmem.Semaphore(value=MAX).value == MAX


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.signal(0), ValueError),
        (lambda s: s.signal(-1), ValueError),
        (lambda s: s.release(0), ValueError),
        (lambda s: s.signal(1.0), TypeError),
        (lambda s: s.wait(-1), ValueError),
        (lambda s: s.wait(float("nan")), ValueError),
        (lambda s: s.wait("1"), TypeError),
        (lambda s: s.acquire(False, 1), ValueError),
        (lambda s: s.acquire(timeout=-0.5), ValueError),
        (lambda s: setattr(s, "value", 3), AttributeError),
    ],
)
def test_wrong_arguments_raise_and_keep_the_value(sem, call, error):
    sem.signal()
    with pytest.raises(error):
        call(sem)
    assert sem.value == 1


def test_first_argument_is_a_name():
    for wrong in (3, b"name", 1.5, True):
        with pytest.raises(TypeError, match="value="):
            shmem.Semaphore(wrong)
    with pytest.raises(ValueError, match="non-negative"):
        shmem.Semaphore(value=-1)
    for wrong in ("", "a/b", "a" * 201, "a b", "\0"):
        with pytest.raises(ValueError, match="characters"):
            shmem.Semaphore(wrong)


CALLS = [
    ("acquire", (), {}),
    ("acquire", (False,), {}),
    ("acquire", (), {"timeout": 0.01}),
    ("acquire", (True, 0.01), {}),
    ("acquire", (), {"blocking": False}),
    ("acquire", (False, 0.01), {}),
    ("acquire", (False, None), {}),
    ("release", (), {}),
    ("release", (2,), {}),
    ("release", (), {"n": 3}),
    ("release", (0,), {}),
    ("release", (-1,), {}),
    ("__enter__", (), {}),
    ("__exit__", (None, None, None), {}),
]


def test_behaves_like_threading_semaphore():
    """Random calls return the same results, raise the same kinds of error and leave the same value."""
    rng = random.Random(1)
    mine, theirs = shmem.Semaphore(value=2), threading.Semaphore(2)
    seen = set()
    for _ in range(600):
        method, args, kwargs = rng.choice(CALLS)
        if theirs._value == 0 and (method == "__enter__" or (method == "acquire" and not args and not kwargs)):
            continue  # would wait forever
        found = outcome(getattr(mine, method), *args, **kwargs)
        assert found == outcome(getattr(theirs, method), *args, **kwargs), (method, args, kwargs)
        assert mine.value == theirs._value
        seen.add((method, found))
    assert {("acquire", True), ("acquire", False), ("acquire", ValueError), ("release", ValueError)} <= seen


# -- waiting --------------------------------------------------------------------------------------------------


def test_weak_references(sem, shm):
    assert weakref.ref(sem)() is sem
    for made in (shmem.Event(), shm.event(), shm.mutex()):
        assert weakref.ref(made)() is made
    gone = weakref.ref(shmem.Semaphore())
    assert gone() is None


@pytest.mark.parametrize("n", [1, 3])
def test_signal_n_releases_n_threads(sem, n):
    done = shmem.Semaphore()
    threads = [threading.Thread(target=lambda: (sem.wait(), done.signal())) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until_has_waiters(sem)
    sem.signal(n)
    for _ in range(n):
        assert done.wait(20)
    assert done.wait(0.2) is False
    assert sem.value == 0
    sem.signal(5 - n)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert (sem.value, done.value) == (0, 5 - n)


def test_signal_n_releases_n_processes(name, child):
    with contextlib.closing(shmem.Semaphore(name)) as gate, contextlib.closing(shmem.Semaphore(f"{name}-done")) as done:
        code = "a, b = shmem.Semaphore(args[0]), shmem.Semaphore(args[0] + '-done'); say('up'); a.wait(); b.signal(); say('through')"
        others = [child(code, name) for _ in range(4)]
        for other in others:
            assert other.hear() == "up"
        wait_until_has_waiters(gate)
        gate.signal(2)
        assert done.wait(20)
        assert done.wait(20)
        assert done.wait(0.2) is False
        gate.signal(2)
        for other in others:
            assert other.hear() == "through"
            other.end()
        assert (gate.value, done.value) == (0, 2)
        done.unlink()
        gate.unlink()


def test_interrupted_wait_takes_nothing(name, child):
    semaphore = shmem.Semaphore(name)
    code = """
    s = shmem.Semaphore(args[0])
    try:
        say("up")
        s.wait()
    except KeyboardInterrupt:
        say("interrupted")
    sys.stdin.readline()
    say(s.wait(0))
    """
    other = child(code, name)
    assert other.hear() == "up"
    wait_until_has_waiters(semaphore)
    other.process.send_signal(signal.SIGINT)
    assert other.hear_soon() == "interrupted"
    semaphore.signal()
    assert semaphore.value == 1
    other.tell()
    assert other.hear() == "True"
    other.end()


def test_killed_waiter_takes_nothing(name, child):
    semaphore = shmem.Semaphore(name)
    other = child("s = shmem.Semaphore(args[0]); say('up'); s.wait()", name)
    assert other.hear() == "up"
    wait_until_has_waiters(semaphore)
    other.kill()
    assert has_waiters(semaphore) is False  # the killed waiter's registration is detected
    semaphore.signal()
    assert semaphore.value == 1
    assert semaphore.wait(20)


def test_nothing_is_lost_under_load(name, child):
    """One of the consumers is killed: at most the unit that it had just taken is missing."""
    semaphore = shmem.Semaphore(name)
    code = """
    s = shmem.Semaphore(args[0])
    say("up")
    taken = 0
    while s.wait(2):
        taken += 1
    say(taken)
    """
    victim = child("s = shmem.Semaphore(args[0]); n = 0; say('up')\nwhile True:\n    s.wait(); n += 1; say(n)", name)
    assert victim.hear() == "up"
    semaphore.signal()
    killed_after = int(victim.hear())  # before there are others: they could take everything, and it would wait without end
    consumers = [child(code, name) for _ in range(2)]
    for one in consumers:
        assert one.hear() == "up"
    produce = "s = shmem.Semaphore(args[0])\nfor i in range(3000):\n    s.signal(1 + i % 3)\n    if i == 100: say('busy')\nsay('done')"
    producers = [child(produce, name) for _ in range(2)]
    for one in producers:
        assert one.hear() == "busy"
    victim.process.send_signal(signal.SIGKILL)
    for line in victim.process.stdout:
        killed_after = int(line)
    for one in producers:
        assert one.hear() == "done"
        one.end()
    taken = sum(int(one.hear()) for one in consumers)
    signaled = 1 + 2 * sum(1 + i % 3 for i in range(3000))
    assert signaled - (taken + killed_after + semaphore.value) in (0, 1)


# -- closing ----------------------------------------------------------------------------------------------------


def test_closed_semaphore_raises(sem):
    sem.signal()
    sem.close()
    sem.close()
    assert sem.closed
    for call in (sem.wait, sem.signal, sem.acquire, sem.release, sem.__enter__, lambda: sem.value):
        with pytest.raises(shmem.ClosedError):
            call()
    assert "closed" in repr(sem)


def test_close_while_waiting_raises(sem):
    ended = []

    def wait():
        try:
            sem.wait()
        except shmem.ClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until_has_waiters(sem)
    sem.close()
    thread.join(20)
    assert len(ended) == 1


def mapped(name):
    return name in Path("/proc/self/maps").read_text()


def test_close_unmaps_the_memory(name):
    first, second = shmem.Semaphore(name), shmem.Semaphore(name)
    first.signal()
    assert second.value == 1
    first.close()
    assert mapped(name)
    del second
    gc.collect()
    assert not mapped(name)


def test_unlink_removes_the_name(name, child):
    semaphore = shmem.Semaphore(name, 5)
    second = shmem.Semaphore(name)
    assert os.stat(FILES["Semaphore"] + name).st_mode & 0o777 == 0o600
    semaphore.unlink()
    for one in (semaphore, second):
        with pytest.raises(shmem.SectionNotFound):
            one.unlink()
    assert second.wait()
    assert semaphore.value == 4
    other = child("s = shmem.Semaphore(args[0], 9); say(s.value); s.close(); sys.stdin.readline(); s.unlink()", name)
    assert other.hear() == "9"
    with pytest.raises(FileNotFoundError):
        semaphore.unlink()  # the name refers to another semaphore
    other.tell()
    other.end()
    assert not os.path.exists(FILES["Semaphore"] + name)
    for nameless in (shmem.Semaphore(), shmem.Event()):
        with pytest.raises(ValueError, match="no system-wide name"):
            nameless.unlink()


@pytest.mark.parametrize("cls", ["Semaphore", "Event"])
def test_failed_unlink_names_the_operation(name, cls):
    """The error names the operation that was attempted, not the one that came before it."""
    waitable = getattr(shmem, cls)(name)
    os.unlink(FILES[cls] + name)
    with pytest.raises(shmem.SectionNotFound, match=f"^cannot remove '/dev/shm/.*: this {cls.lower()} was removed"):
        waitable.unlink()


# -- names ------------------------------------------------------------------------------------------------------


def test_existing_semaphore_keeps_its_value(name, child):
    with contextlib.closing(shmem.Semaphore(name, 3)) as semaphore:
        assert semaphore.name == name
        assert semaphore.wait()
    other = child("s = shmem.Semaphore(args[0], 100); say(s.value); s.wait(); s.wait(); say(s.wait(0))", name)
    assert other.hear() == "2"
    assert other.hear() == "False"
    other.end()
    assert shmem.Semaphore(name, 7).value == 0


def test_concurrent_creation(name, child):
    """Each process requests a different value.  One of them succeeds, all processes use its value, and the file is complete."""
    code = """
    for line in sys.stdin:
        s = shmem.Semaphore(line.strip(), int(args[0]))
        say(s.value)
    """
    others = [child(code, i) for i in (10, 20, 30, 40)]
    for i in range(25):
        for other in others:
            other.tell(f"{name}-{i}")
        values = {other.hear() for other in others}
        assert len(values) == 1
        assert values <= {"10", "20", "30", "40"}
        shmem.Semaphore(f"{name}-{i}").unlink()
    for other in others:
        other.end()


def test_umask_and_permissions(name):
    before = os.umask(0)
    try:
        shmem.Semaphore(name, permissions=0o640)
    finally:
        os.umask(before)
    assert os.stat(FILES["Semaphore"] + name).st_mode & 0o777 == 0o640


def changed(content, field, value):
    """Return the content of a named semaphore's or event's file with another value in a field."""
    content = bytearray(content)
    NAMED[field].write(content, value)
    return content


def make_hostile(kind, path, own):
    """Create a file that is not a semaphore under the name."""
    if kind == "folder":
        os.mkdir(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link that leads nowhere":
        os.symlink(path + "-nowhere", path)
    else:
        good = Path(own).read_bytes()
        assert len(good) == PAGE_BYTES
        other = {NAMED_SEMAPHORE: NAMED_EVENT, NAMED_EVENT: NAMED_SEMAPHORE}[NAMED["kind"].read(good)]
        contents = {
            "empty": b"",
            "short": good[: NAMED.size - 1],
            "truncated": good[: NAMED.size],
            "long": good + good,
            "foreign": os.urandom(PAGE_BYTES),
            "zeros": bytes(PAGE_BYTES),
            "another version": changed(good, "version", NAMED_VERSION + 1),
            "the other kind": changed(good, "kind", other),
        }
        Path(path).write_bytes(contents[kind])


HOSTILE = [
    "empty", "short", "truncated", "long", "foreign", "zeros", "another version", "the other kind",
    "folder", "pipe", "link that leads nowhere",
]  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("cls", ["Semaphore", "Event"])
def test_hostile_files_are_rejected_and_not_modified(name, cls, kind):
    path = FILES[cls] + name
    good = getattr(shmem, cls)(f"{name}-good")
    make_hostile(kind, path, f"{FILES[cls]}{name}-good")
    good.unlink()
    before = os.lstat(path)
    try:
        with pytest.raises(shmem.NotASection, match=r"was not modified.*remove it, or choose another name"):
            getattr(shmem, cls)(name)
        after = os.lstat(path)
        assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    finally:
        os.rmdir(path) if kind == "folder" else os.unlink(path)


def test_event_under_a_semaphore_name_is_rejected(name):
    shmem.Event(name)
    Path(FILES["Semaphore"] + name).write_bytes(Path(FILES["Event"] + name).read_bytes())
    with pytest.raises(shmem.NotASection):
        shmem.Semaphore(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
def test_files_of_other_users_are_rejected(name):
    path = FILES["Semaphore"] + name
    shmem.Semaphore(name, 4)
    os.chown(path, 65534, 65534)
    with pytest.raises(shmem.UntrustedOwner, match="65534"):
        shmem.Semaphore(name)
    assert shmem.Semaphore(name, trust_owner=True).value == 4
    os.rename(path, path + "-target")
    os.chown(path + "-target", 0, 0)
    os.symlink(path + "-target", path)
    assert shmem.Semaphore(name).value == 4  # the user's own link is followed
    os.lchown(path, 65534, 65534)
    with pytest.raises(shmem.UntrustedOwner):
        shmem.Semaphore(name)
    os.unlink(path + "-target")


# -- sending ------------------------------------------------------------------------------------------------------


def test_named_semaphore_can_be_pickled(name):
    semaphore = shmem.Semaphore(name, 2)
    data = pickle.dumps(semaphore)
    again = pickle.loads(data)
    again.signal()
    assert (semaphore.value, again.name) == (3, name)
    semaphore.unlink()
    with pytest.raises(shmem.SectionNotFound):
        pickle.loads(data)
    assert not os.path.exists(FILES["Semaphore"] + name)
    shmem.Semaphore(name)
    with pytest.raises(shmem.NotASection, match="another"):
        pickle.loads(data)


def test_other_semaphores_cannot_be_pickled(shm):
    with pytest.raises(TypeError, match="give it a name"):
        pickle.dumps(shmem.Semaphore())
    with pytest.raises(TypeError, match=r"shmem\.handle"):
        pickle.dumps(shm.semaphore())
    with pytest.raises(TypeError, match="an Event without"):
        pickle.dumps(shmem.Event())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_sends_semaphores(shm, name, method):
    first, second, named = shm.semaphore(1), shm.semaphore(), shmem.Semaphore(name)
    ready = shm.event(True)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(pass_on, (first, second)) == ("Semaphore", "Semaphore")
        assert pool.apply(pass_on, (ready, named)) == ("Event", "Semaphore")
        with pytest.raises(TypeError, match="give it a name"):
            pool.apply(pass_on, (shmem.Semaphore(), second))
        pool.close()
        pool.join()
    assert (first.value, second.value, named.value) == (0, 1, 1)


def test_forked_child_uses_the_semaphore(name):
    semaphore = shmem.Semaphore(name)
    pid = os.fork()
    if pid == 0:
        semaphore.signal(2)
        os._exit(0)
    assert semaphore.wait(20)
    assert os.waitpid(pid, 0)[1] == 0
    assert semaphore.value == 1


# -- in a section -------------------------------------------------------------------------------------------------


def test_name_root_and_handle_of_a_semaphore(shm):
    semaphore = shm.semaphore(2, name="slots")
    assert shm["slots"] == semaphore
    assert shm["slots"].value == 2
    assert len({semaphore, shm["slots"]}) == 1
    shm["again"] = semaphore
    shm.root = semaphore
    assert shm.root == semaphore
    assert shmem.find_storage(semaphore) is shm
    assert semaphore.section is shm
    assert shmem.handle(semaphore).open() == semaphore
    with pytest.raises(shmem.NameExists):
        shm.semaphore(name="slots")
    before = shm.stats().blocks
    with pytest.raises(shmem.SemaphoreOverflow):
        shm.semaphore(MAX + 1)
    assert shm.stats().blocks == before
    with pytest.raises(TypeError, match="not an array"):
        shm["x"] = shmem.Semaphore()
    assert shmem.find_storage(shmem.Semaphore()) is None
    with pytest.raises(shmem.InvalidBlock):
        shmem.handle(shmem.Semaphore())
    shm.check_heap()


def test_freed_semaphore_raises(shm):
    semaphore = shm.semaphore(1)
    sent = shmem.handle(semaphore)
    shm.free(semaphore)
    for call in (semaphore.wait, semaphore.signal, lambda: semaphore.value):
        with pytest.raises(shmem.InvalidBlock):
            call()
    with pytest.raises(shmem.InvalidBlock):
        sent.open()
    shm.semaphore(5)  # at the same offset
    with pytest.raises(shmem.InvalidBlock):
        semaphore.wait()


@pytest.mark.parametrize("kind", ["semaphore", "event", "mutex"])
def test_free_while_waiting_leaves_the_heap_unchanged(shm, kind):
    """A waiter that slept on a freed block must not write to it."""
    made = [getattr(shm, kind)() for _ in range(20)]
    one, ended, up, over = made[10], [], shmem.Semaphore(), shmem.Semaphore()

    def hold():
        one.acquire()
        up.signal()
        over.wait()

    def wait():
        up.signal()
        try:
            one.acquire() if kind == "mutex" else one.wait()
        except shmem.InvalidBlock as error:
            ended.append(error)

    threads = [threading.Thread(target=wait)]
    if kind == "mutex":
        threads.append(threading.Thread(target=hold))
        threads[1].start()
        assert up.wait(20)
    threads[0].start()
    assert up.wait(20)
    threading.Event().wait(0.1)  # until the waiter sleeps
    for each in made[::2]:
        shm.free(each)  # a list now links them through the words that held the values
    threads[0].join(20)
    over.signal()
    threads[-1].join(20)
    assert len(ended) == 1
    shm.check_heap()


def test_read_only_handle_cannot_change_a_semaphore(place):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        section.semaphore(3, name="s")
        section.event(True, name="e")
        section.mutex(name="m")
        section["n"] = section.new(Node)
        with shmem.SharedMemory(**place, mode="read_only") as reader:
            s, e, m, n = reader["s"], reader["e"], reader["m"], reader["n"]
            assert (s.value, e.is_set(), m.locked(), m.owner_deaths, n.slots.value) == (3, True, False, 0, 0)
            for call in (s.wait, s.signal, s.acquire, s.release, s.__enter__, e.wait, e.signal, e.set, e.reset, e.clear,
                         m.acquire, m.release, m.__enter__, n.guard.acquire, n.slots.signal, n.ready.wait, reader.semaphore):  # fmt: skip
                with pytest.raises(PermissionError) as caught:
                    call()
                assert isinstance(caught.value, shmem.ReadOnlyError)
        assert section["s"].value == 3


def test_semaphore_outlives_the_handle():
    shm = shmem.SharedMemory(max_size=1 << 20)
    semaphore = shm.semaphore(1)
    shm.close()
    assert semaphore.wait()
    semaphore.signal()
    assert semaphore.value == 1


# -- fields ---------------------------------------------------------------------------------------------------------


def test_semaphore_fields(shm, child):
    node = shm.new(Node, tag=1)
    shm["node"] = node
    assert Node.dtype.fields["slots"][0].itemsize == LAYOUT["semaphore_t"].size
    assert [Node.dtype.fields[key][1] % 8 for key in ("guard", "ready", "slots")] == [0, 0, 0]
    other = child(
        """
        shm = shmem.SharedMemory(shared_name=args[0])
        node = shm["node"]
        say(type(node).__name__, type(node.guard).__name__)
        with node.guard:
            say(node.slots.wait())
        node.ready.signal()
        """,
        shm.name,
    )
    assert other.hear() == "Node Mutex"  # a generic object, because this process does not define the class
    node.slots.signal(2)
    assert other.hear() == "True"
    assert node.ready.wait(20)
    other.end()
    assert node.slots.value == 1
    assert node.slots.offset == node.offset + Node.slots.offset
    longer = shm.new(Longer)
    longer.slots.signal()
    longer.more.signal(3)
    assert (longer.slots.value, longer.more.value) == (1, 3)


def test_assigning_to_a_field_raises(shm):
    node = shm.new(Node)
    with pytest.raises(AttributeError, match="not assigned"):
        node.slots = shm.semaphore()
    with pytest.raises(AttributeError):
        shm.new(Node, slots=1)
    with pytest.raises(TypeError, match="no default"):

        class Wrong(shmem.Struct):
            slots: shmem.Semaphore = 3

    assert shmem.find_storage(node.slots) is shm
    blocks = shm.stats().blocks
    for call in (shmem.handle, shm.free, shmem.deallocate, shm.set_root_object, lambda part: shm.__setitem__("part", part)):
        with pytest.raises((TypeError, shmem.InvalidBlock), match="the object that contains it"):
            call(node.slots)
    assert shm.stats().blocks == blocks
    slots = node.slots
    shm.free(node)
    with pytest.raises(shmem.InvalidBlock):
        slots.signal()


def test_references_to_fields_are_rejected(shm):
    class Holder(shmem.Struct):
        to: shmem.Ref[shmem.Semaphore]

    holder = shm.new(Holder, to=shm.semaphore(2))
    assert holder.to.value == 2
    for wrong in (shmem.Semaphore(), shm.new(Node).slots, shm.event()):
        with pytest.raises((TypeError, shmem.InvalidBlock)):
            holder.to = wrong
    assert holder.to.value == 2


def test_kind_of_a_field_is_part_of_the_layout(shm):
    class First(shmem.Struct, type_name="tests.same"):
        x: shmem.Semaphore

    shm.new(First)

    class Second(shmem.Struct, type_name="tests.same"):
        x: shmem.Event

    with pytest.raises(shmem.LayoutMismatch, match=r"shmem\.Event here, shmem\.Semaphore there"):
        shm.new(Second)


def test_name_errors_have_errno(name):
    with pytest.raises(OSError) as caught:
        pickle.loads(pickle.dumps(shmem.Semaphore(name)).replace(name.encode(), name.encode()[::-1]))
    assert caught.value.errno == errno.ENOENT
