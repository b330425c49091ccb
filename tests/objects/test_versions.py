"""Versions of names, waiting for a change, replacing a value, renaming."""

import os
import signal
import threading

import numpy as np
import pytest
from scribe import ABSENT_OWNER, HEADER, HEAP_GATE, Scribe
from workers import Point

import shmem
from shmem._base.layout import CHANGE_CHANNELS, CHANNEL_WAITERS_SHIFT, LAYOUT, SLOT_REMOVED

ARRAY, ENTRY, TABLE, SLOT = (LAYOUT[name] for name in ("array_t", "name_entry_t", "name_table_t", "name_slot_t"))
CHANGE_COUNT = HEADER["change_count"].offset


def version_off(scribe, name):
    """Return the offset of the version of a name of the directory, whose table does not grow."""
    table = scribe[HEADER["directory_off"].offset]
    for i in range(scribe[TABLE["capacity"].at(table)]):
        entry = scribe[SLOT["entry_off"].at(table + TABLE.size + SLOT.size * i)]
        if entry > SLOT_REMOVED:
            n_bytes = ENTRY["name_bytes"].read(scribe.bytes, entry)
            if bytes(scribe.bytes[entry + ENTRY.size : entry + ENTRY.size + n_bytes]) == name.encode():
                return ENTRY["version"].at(entry)
    raise AssertionError(name)


def await_sleepers(scribe, n):
    """Return when that many threads are registered on the channels of changes."""
    channels = HEADER["change_channels"].offset
    while sum(scribe[channels + 8 * i] >> CHANNEL_WAITERS_SHIFT for i in range(CHANGE_CHANNELS)) < n:
        os.sched_yield()


@pytest.fixture
def waiter(shm, child):
    """Return a function that starts a process which waits for a change of a name; it sleeps when this returns."""
    n_waiters = 0

    def start(name, mode="read_write"):
        nonlocal n_waiters
        one = child(
            """
            with shmem.SharedMemory(shared_name=args[0], mode=args[2]) as shm:
                entry = shm.entry(args[1])
                since = entry.version
                try:
                    found = entry.wait_changed(since)
                    say("changed", found > since)
                except KeyError as error:
                    say("gone", error)
            """,
            shm.name,
            name,
            mode,
        )
        n_waiters += 1
        await_sleepers(Scribe(shm.path), n_waiters)
        return one

    return start


# -- versions -------------------------------------------------------------------------------------------------


def test_what_changes_a_version(shm):
    """Each change gives a version that is larger than all before."""
    shm.zeros((2, 2), maxshape=(4, None), name="x")
    entry = shm.entry("x")
    versions = [entry.version]
    for change in (
        lambda: entry.append([[1, 2]]),
        lambda: entry.resize((1, 2)),
        lambda: entry.resize((4, 300)),  # the array moves
        entry.touch,
        lambda: entry.replace([3]),
        lambda: shm.replace("x", b"text"),
        lambda: entry.replace(entry.value),
        lambda: entry.rename("y"),
    ):
        change()
        versions.append(entry.version)
    assert versions == sorted({*versions})


def test_version_of_an_array_that_moves(shm):
    shm.zeros((1, 1000), maxshape=(None, 1000), name="x")
    entry = shm.entry("x")
    versions = [entry.version]
    for _ in range(3):
        entry.append(np.ones((5, 1000)))
        versions.append(entry.version)
    assert versions == sorted({*versions})
    assert shm["x"].shape == (16, 1000)


def test_what_does_not_change_a_version(shm):
    shm.zeros(3, maxshape=5, name="x")
    shm["also"] = shm["x"]
    entry, other = shm.entry("x"), shm.entry("also")
    before, before_other = entry.version, other.version
    shm["x"][:] = 1
    shm["x"] += 1
    shm["x"] = shm["x"]
    entry.rename("x")
    entry.append([])
    assert entry.version == before
    entry.append([1])
    assert other.version == before_other  # another name of the same array
    before = entry.version
    with pytest.raises(ValueError, match="maxshape"):
        entry.append([1, 2, 3])
    assert entry.version == before


def test_version_never_repeats(section_file):
    """No other name, none that was deleted and assigned again, and none of the next opener gets a version that was given."""
    seen = []
    for _ in range(2):
        with shmem.SharedMemory(section_file, max_size="1M") as shm:
            for name in "xyxx":
                if name in shm:
                    del shm[name]
                shm[name] = [1]
                seen.append(shm.entry(name).version)
                seen.append(shm.entry(name).touch())
            assert shm.entry(name).version == seen[-1]
    assert seen == sorted({*seen})


@pytest.mark.damages
def test_overwritten_version_does_not_wrap_the_count(shm):
    shm["x"] = [1]
    scribe, version = Scribe(shm.path), shm.entry("x").touch()
    scribe[version_off(scribe, "x")] = (1 << 64) - 1
    scribe[HEAP_GATE] = ABSENT_OWNER
    shm.check_heap()
    assert shm.entry("x").touch() == version + 1


@pytest.mark.damages
def test_versions_are_counted_by_recovery(shm):
    """With a count that is too small versions would be given twice."""
    shm["x"] = [1]
    scribe, version = Scribe(shm.path), shm.entry("x").touch()
    scribe[CHANGE_COUNT] = version - 1
    with pytest.raises(shmem.HeapCorruption):
        shm.check_heap()
    scribe[HEAP_GATE] = ABSENT_OWNER  # the next owner of the gate recovers the heap
    assert shm.entry("x").touch() == version + 1
    shm.check_heap()


def test_version_of_what_is_not_there(shm):
    shm["x"] = b"text"
    entry = shm.entry("x")
    shm.free(shm["x"])
    assert entry.touch() == entry.version  # the name is there
    del shm["x"]
    for use in (lambda: entry.version, entry.touch, lambda: entry.rename("y"), lambda: entry.rename("x"), entry.wait_changed):
        with pytest.raises(KeyError, match="x"):
            use()


def test_read_only_section(section_file):
    with shmem.SharedMemory(section_file, max_size="1M") as shm:
        shm["x"] = [1]
    with shmem.SharedMemory(section_file, mode="read_only") as shm:
        entry = shm.entry("x")
        assert entry.wait_changed(entry.version, timeout=0) is None
        for change in (entry.touch, lambda: entry.replace([2]), lambda: entry.rename("y"), lambda: shm.replace("z", [1])):
            with pytest.raises(shmem.ReadOnlyError):
                change()
        assert (list(shm), entry.name) == (["x"], "x")


# -- waiting --------------------------------------------------------------------------------------------------

CHANGES = {
    "replace": lambda shm: shm.replace("x", [2]),
    "replace by the same": lambda shm: shm.replace("x", shm["x"]),
    "touch": lambda shm: shm.entry("x").touch(),
    "append": lambda shm: shm.entry("x").append([1]),
    "append, the array moves": lambda shm: shm.entry("x").append(np.zeros(10_000)),
    "resize": lambda shm: shm.entry("x").resize(1),
    "delete": lambda shm: shm.pop("x"),
    "rename": lambda shm: shm.entry("x").rename("y"),
    "delete, and assign again": lambda shm: [shm.pop("x"), shm.update(x=[1])],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_wakes_a_waiter(shm, waiter, change):
    """The sequence of a channel shows that the waiter was notified, and did not only look again at the end of its slice."""
    shm.zeros(2, maxshape=(None,), name="x")
    one = waiter("x")
    scribe = Scribe(shm.path)
    CHANGES[change](shm)
    allowed = {"changed True"} if "x" in shm else {"gone 'x'"}
    assert one.hear_soon() in allowed | ({"gone 'x'"} if "again" in change else set())
    one.end()
    channels = HEADER["change_channels"].offset
    assert any(scribe[channels + 8 * i] & 0xFFFF_FFFF for i in range(CHANGE_CHANNELS))


def test_reader_waits(shm, waiter):
    """In a process that has opened the section read-only too."""
    shm["x"] = [1]
    one = waiter("x", "read_only")
    shm.entry("x").touch()
    assert one.hear_soon() == "changed True"
    one.end()


def test_all_waiters_are_woken(shm, waiter):
    shm["x"], shm["y"] = [1], [2]
    several = [waiter("x") for _ in range(3)]
    shm.entry("y").touch()
    shm.entry("x").touch()
    assert [one.hear_soon() for one in several] == ["changed True"] * 3


def test_wait_for_what_has_changed_already(shm):
    shm["x"] = [1]
    entry = shm.entry("x")
    since = entry.version
    assert entry.wait_changed(since, timeout=0) is None
    assert entry.wait_changed(timeout=0) is None
    assert entry.wait_changed(since, timeout=0.05) is None
    version = entry.touch()
    assert entry.wait_changed(since) == entry.wait_changed(since, timeout=0) == version
    assert entry.wait_changed(timeout=0) is None
    del shm["x"]
    shm["x"] = [1]
    assert entry.wait_changed(version) == entry.version  # it was deleted and assigned meanwhile


def test_arguments_of_a_wait(shm):
    shm["x"] = [1]
    entry = shm.entry("x")
    for since in (-1, 1 << 64):
        with pytest.raises(ValueError, match="since"):
            entry.wait_changed(since)
    for since in ("1", 1.0):
        with pytest.raises(TypeError):
            entry.wait_changed(since)
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            entry.wait_changed(timeout=timeout)
    assert entry.wait_changed((1 << 64) - 1) == entry.version


def test_change_of_a_process_that_was_killed_before_it_notified(shm, waiter):
    """The waiter looks again after its slice.  What such a process leaves is the new version alone."""
    shm["x"] = [1]
    one, scribe = waiter("x"), Scribe(shm.path)
    scribe[CHANGE_COUNT] += 1
    scribe[version_off(scribe, "x")] = scribe[CHANGE_COUNT]
    assert one.hear_soon() == "changed True"
    one.end()


def test_recovery_completes_a_change_that_is_waited_for(shm, waiter):
    """The process was killed under the gate: the waiter takes the gate over at the end of its slice."""
    shm["x"] = [1]
    one, scribe = waiter("x"), Scribe(shm.path)
    scribe[CHANGE_COUNT] += 1
    scribe[version_off(scribe, "x")] = scribe[CHANGE_COUNT]
    scribe[HEAP_GATE] = ABSENT_OWNER
    assert one.hear_soon() == "changed True"
    one.end()


def test_killed_waiter(shm, waiter):
    """It leaves a registration, which costs a system call; the other waiters are woken."""
    shm["x"] = [1]
    dead, alive = waiter("x"), waiter("x")
    dead.kill()
    for _ in range(3):
        shm.entry("x").touch()
    assert alive.hear_soon() == "changed True"
    alive.end()
    shm.sweep()
    shm.check_heap()


def test_waiter_is_interrupted(shm, child):
    shm["x"] = [1]
    one = child(
        """
        with shmem.SharedMemory(shared_name=args[0]) as shm:
            try:
                shm.entry("x").wait_changed()
            except KeyboardInterrupt:
                say("interrupted")
        """,
        shm.name,
    )
    await_sleepers(Scribe(shm.path), 1)
    one.process.send_signal(signal.SIGINT)
    assert one.hear_soon() == "interrupted"
    one.end()


def test_close_ends_a_wait(shm):
    """Of another thread of this process."""
    errors = []

    def wait(entry):
        try:
            entry.wait_changed()
        except shmem.ClosedError as error:
            errors.append(error)

    shm["x"] = [1]
    with shmem.SharedMemory(shared_name=shm.name) as other:
        thread = threading.Thread(target=wait, args=(other.entry("x"),))
        thread.start()
        await_sleepers(Scribe(shm.path), 1)
    thread.join(60)
    assert len(errors) == 1


def test_waiters_see_the_last_of_many_changes(shm, child):
    """A reader that waits for another version than the one before its last look does not miss the last change."""
    shm["x"] = [0]
    readers = [
        child(
            """
            with shmem.SharedMemory(shared_name=args[0]) as shm:
                entry = shm.entry("x")
                since = entry.version
                assert entry.value[0] == 0
                say("ready")
                while entry.value[0] < 300:
                    since = entry.wait_changed(since)
                say("end")
            """,
            shm.name,
        )
        for _ in range(2)
    ]
    assert [reader.hear_soon() for reader in readers] == ["ready", "ready"]
    for i in range(1, 301):
        if i % 3:
            shm["x"][0] = i
            shm.entry("x").touch()
        else:
            shm.replace("x", [i])
    assert [reader.hear_soon() for reader in readers] == ["end", "end"]


# -- replacing ------------------------------------------------------------------------------------------------


def test_replace_by_every_kind_of_value(shm):
    shm["x"] = [1, 2]
    before = shm["x"]
    shm.replace("x", b"text")
    assert bytes(shm["x"]) == b"text"
    shm.entry("x").replace([[1.5]])
    assert shm["x"].tolist() == [[1.5]]
    shm.replace("x", shm.new(Point, x=3))
    assert shm["x"].x == 3
    shm.replace("x", shm.event(True))
    assert shm["x"].is_set()
    shm.replace("x", before)
    assert shm["x"].tolist() == [1, 2]
    shm.replace("x", before[:1])  # a part is copied
    before[0] = 7
    assert shm["x"].tolist() == [1]
    assert list(shm) == ["x"]
    del before
    assert shm.stats().blocks == 1  # whatever was replaced has been freed
    shm.check_heap()


def test_readers_keep_what_was_replaced(shm, child):
    shm["x"] = [1, 2]
    reader = child(
        """
        with shmem.SharedMemory(shared_name=args[0]) as shm:
            array = shm["x"]
            say("has it")
            sys.stdin.readline()
            say(array.tolist(), shm["x"].tolist())
            del array
        """,
        shm.name,
    )
    assert reader.hear() == "has it"
    shm.replace("x", [3])
    assert shm.stats().blocks == 2
    reader.tell()
    assert reader.hear() == "[1, 2] [3]"
    reader.end()
    assert shm.stats().blocks == 1


def test_replace_creates_a_missing_name(shm):
    shm.replace("x", [1])
    shm.replace("y", shm["x"])
    shm.replace("z", b"text")
    assert list(shm) == ["x", "y", "z"]
    with pytest.raises(KeyError, match="none"):
        shm.entry("none")
    entry = shm.entry("z")
    del shm["z"]
    entry.replace([2])
    assert shm["z"].tolist() == [2]


def test_value_that_something_else_leads_to_stays(shm):
    shm["x"] = shm["also"] = shm.zeros(3)
    shm.root = root = shm.new(Point, x=1)
    shm["root"] = root
    for name in ("x", "root"):
        shm.replace(name, [1])
    assert shm["also"].tolist() == [0, 0, 0]
    assert shm.root == root
    assert shm.stats().blocks == 4
    shm.check_heap()


def test_replaced_queue_is_freed(shm):
    """As with `del`, also while it is used."""
    queue = shm.queue(3, "int64", name="x")
    queue.put(1)
    shm.replace("x", [1])
    with pytest.raises(shmem.InvalidBlock):
        queue.get()
    shm.check_heap()


def test_replaced_by_itself(shm):
    """It is neither freed nor counted twice."""
    shm["x"] = [1]
    shm.replace("x", shm["x"])
    shm.check_heap()
    del shm["x"]
    assert shm.stats().blocks == 0


def test_replace_what_was_freed(shm):
    shm["x"] = block = shm.allocate(100)
    shm.free(block)
    with pytest.raises(shmem.InvalidBlock):
        shm.replace("x", block)
    with pytest.raises(shmem.InvalidBlock):
        _ = shm["x"]
    shm.replace("x", [1])
    assert shm["x"].tolist() == [1]
    shm.check_heap()


def test_replace_by_an_array_whose_name_was_deleted(shm):
    """It is asked for: `shm[name] = array` refuses it, since `shm[name] *= 2` would bring the name back."""
    shm["x"] = [1]
    array = shm["x"]
    del shm["x"]
    shm.replace("x", array)
    del array
    assert shm["x"].tolist() == [1]


def test_temporary_array_stays_with_its_name(shm):
    shm["x"] = [1]
    array = shm.zeros(2, temporary=True)
    shm.replace("x", array)
    del array
    assert shm["x"].tolist() == [0, 0]


def test_replace_in_a_full_section(shm):
    shm["x"] = [1]
    version = shm.entry("x").version
    with pytest.raises(shmem.SectionFull):
        shm.replace("x", np.zeros(1 << 30, "u1"))
    assert (shm["x"].tolist(), shm.entry("x").version) == ([1], version)
    shm.check_heap()


def test_appender_whose_array_is_replaced(child):
    """It appends to the new array: no row goes to an array after the name leads to another one."""
    n_rows = 1 << 24  # they take a while to copy
    with shmem.SharedMemory(max_size="128M") as shm:
        was_inside = False
        while not was_inside:
            shm.zeros(0, "u1", maxshape=n_rows, name="x")
            shm["former"] = shm["x"]
            writer = child(
                """
                with shmem.SharedMemory(shared_name=args[0]) as shm:
                    rows = bytearray(int(args[1]))
                    shm.entry("x").append(memoryview(rows))
                """,
                shm.name,
                n_rows,
            )
            scribe, gate = Scribe(shm.path), ARRAY["append_gate"].at(shmem.info(shm["x"]).offset)
            while scribe[gate] == 0 and len(shm["x"]) == 0:
                os.sched_yield()
            shm.replace("x", shm.zeros(0, "u1", maxshape=n_rows))
            was_inside = scribe[gate] != 0
            n_former = len(shm["former"])
            writer.end()
            assert len(shm["former"]) == n_former
            assert len(shm["x"]) + n_former == n_rows
            shm.check_heap()
            shm.clear()


# -- renaming -------------------------------------------------------------------------------------------------


def test_rename(shm):
    shm["x"] = [1]
    array, entry = shm["x"], shm.entry("x")
    entry.rename("y")
    assert (list(shm), entry.name, entry.value.tolist()) == (["y"], "y", [1])
    array[0] = 2
    assert shm["y"].tolist() == [2]
    assert shmem.info(array).names == ("y",)
    with pytest.raises(KeyError):
        shm.entry("x")
    shm.check_heap()
    del shm["y"], array
    assert shm.stats().blocks == 0


def test_rename_to_a_taken_name(shm):
    shm["x"], shm["y"] = [1], [2]
    entry = shm.entry("x")
    version = entry.version
    with pytest.raises(shmem.NameExists, match="y"):
        entry.rename("y")
    assert (entry.name, entry.version, entry.value.tolist(), shm["y"].tolist()) == ("x", version, [1], [2])
    with pytest.raises(ValueError, match="inside"):
        entry.rename("x/y")
    for invalid in ("", "/y", "y/", "a//b", "..", "y" * 70_000):
        with pytest.raises(ValueError):
            entry.rename(invalid)
    with pytest.raises(TypeError):
        entry.rename(b"y")
    shm.check_heap()


def test_rename_one_of_two_names(shm):
    shm["x"] = shm["also"] = shm.zeros(2)
    shm.entry("x").rename("y")
    del shm["also"]
    assert shm["y"].tolist() == [0, 0]
    shm.check_heap()


@pytest.mark.parametrize("n", [23, 24, 30, 96, 200])
def test_rename_while_the_table_grows(shm, n):
    """The names of both may be in the new table or in the old one, and the new name may need the larger table."""
    for i in range(n):
        shm[f"name {i}"] = [i]
    for i in range(n):
        shm.entry(f"name {i}").rename(f"new {i}")
        shm.check_heap()
    assert {name: int(shm[name][0]) for name in shm} == {f"new {i}": i for i in range(n)}


def test_reader_finds_one_of_the_two_names(shm, child):
    """At no moment none or both of them: the rename is one step."""
    shm["a"] = [1]
    renamer = child(
        """
        with shmem.SharedMemory(shared_name=args[0]) as shm:
            entry = shm.entry("a")
            for _ in range(300):
                entry.rename("b")
                entry.rename("a")
        """,
        shm.name,
    )
    while renamer.process.poll() is None:
        assert len(shm) == 1
    renamer.end()
    assert (list(shm), shm["a"].tolist()) == (["a"], [1])


def test_rename_into_groups(shm):
    """Groups of the new path are made; source and target are in different tables."""
    shm["x"] = [1]
    entry = shm.entry("x")
    entry.rename("a/b/x")
    assert (entry.name, shm["a/b/x"].tolist(), list(shm)) == ("a/b/x", [1], ["a"])
    entry.rename("a/y")
    assert (list(shm["a"]), list(shm["a/b"])) == (["b", "y"], [])
    entry.rename("y")
    assert (list(shm["a"]), shm["y"].tolist()) == (["b"], [1])
    with pytest.raises(shmem.NameExists, match="not a group"):
        shm.move("a/b", "y/b")
    with pytest.raises(shmem.NameExists, match="taken"):
        shm.move("y", "a/b")
    for missing in ("a/x", "none/x", "y/x"):
        with pytest.raises(KeyError, match=missing):
            shm.move(missing, "z")
    shm.check_heap()


def test_group_is_renamed_with_what_is_in_it(shm):
    shm["a/b/x"] = [1]
    group, version = shm["a"], shm.entry("a/b/x").version
    group.move("b", "c")
    shm.move("a", "d/e")
    assert shm["d/e/c/x"].tolist() == [1]
    assert shm.entry("d/e/c/x").version == version
    assert (list(shm), bool(group)) == (["d"], False)
    for inside in ("d/e/c", "d/e/c/x/y", "d/e/f"):
        with pytest.raises(ValueError, match="inside"):
            shm.move("d/e", inside)
    shm.move("d/e", "d/e")
    shm.check_heap()
    del shm["d"]
    assert shm.stats().blocks == 0


@pytest.mark.parametrize("change", ["delete", "rename"])
def test_what_wakes_a_waiter_in_a_group(shm, waiter, change):
    """A change of the group is one of each name in it."""
    shm["a/b/x"] = [1]
    one, scribe = waiter("a/b/x"), Scribe(shm.path)
    if change == "delete":
        del shm["a"]
    else:
        shm.move("a", "c")
    assert one.hear_soon() == "gone 'a/b/x'"
    one.end()
    channels = HEADER["change_channels"].offset
    assert any(scribe[channels + 8 * i] & 0xFFFF_FFFF for i in range(CHANGE_CHANNELS))


def test_replace_in_groups(shm):
    shm.replace("a/b/x", [1])
    assert shm["a/b/x"].tolist() == [1]
    shm["a/b"].replace("x", [2])
    shm["a"].entry("b/x").replace([3])
    assert shm["a/b/x"].tolist() == [3]
    with pytest.raises(shmem.NameExists, match="group"):
        shm.replace("a/b", [1])
    with pytest.raises(shmem.NameExists, match="not a group"):
        shm.replace("a/b/x/y", [1])
    with pytest.raises(TypeError, match="group"):
        shm.replace("x", shm["a"])
    shm.check_heap()
    assert shm.stats().blocks == 1


@pytest.mark.parametrize("n", [23, 24, 30, 200])
def test_rename_to_another_group_while_its_table_grows(shm, n):
    for i in range(n):
        shm[f"a/{i}"] = [i]
        shm[f"b/{i}"] = [i]
    for i in range(n):
        shm.move(f"a/{i}", f"b/of a {i}")
        shm.check_heap()
    assert (len(shm["a"]), len(shm["b"])) == (0, 2 * n)
