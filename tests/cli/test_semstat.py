"""`python -m shmem semstat`: the semaphores and events that it shows match those that the tests created."""

import contextlib
import ctypes
import datetime
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import shmem
from shmem.__main__ import main
from shmem._base.layout import (
    CHANNEL_WAITERS_SHIFT,
    LAYOUT,
    MAGIC,
    NAMED_EVENT,
    NAMED_MAGIC,
    NAMED_SEMAPHORE,
    NAMED_VERSION,
    PAGE_BYTES,
    SEMAPHORE_MAX,
)
from shmem._cli import semstat

IPC_PRIVATE, IPC_CREAT, IPC_RMID, SETVAL = 0, 0o1000, 0, 16
FOLDER = Path("/dev/shm")
NAMED, SEMAPHORE, EVENT = LAYOUT["named_t"], LAYOUT["semaphore_t"], LAYOUT["event_t"]
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.sem_open.restype = ctypes.c_void_p
LIBC.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_uint]

# Operates on a System V semaphore, after printing its process id.
SEMOP = """
import ctypes, struct
set_id, number, operation = map(int, args)
say(os.getpid())
done = ctypes.CDLL(None).semop(set_id, struct.pack("Hhh", number, operation, 0), 1)
say("done", done)
sys.stdin.readline()
"""
SEM_WAIT = """
import ctypes
libc = ctypes.CDLL(None)
libc.sem_open.restype = ctypes.c_void_p
semaphore = ctypes.c_void_p(libc.sem_open(args[0].encode(), 0))
say("waits")
say("done", libc.sem_wait(semaphore))
"""
# Runs without privileges, even for root.
UNPRIVILEGED = """
import contextlib, io
from shmem.__main__ import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["semstat", *args])        # import everything first: the unprivileged user may have no access to Python's folder
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main(["semstat", *args]))
"""


def named_bytes(kind, layout, state, magic=NAMED_MAGIC, version=NAMED_VERSION):
    """Return the file contents of a named semaphore or event, with a state of the given layout and values."""
    content = bytearray(PAGE_BYTES)
    for name, value in {"magic": magic, "version": version, "kind": kind, "uuid": uuid.uuid4().bytes}.items():
        NAMED[name].write(content, value)
    for name, value in state.items():
        layout[name].write(content, value, NAMED["state"].offset)
    return bytes(content)


def semaphore_bytes(value, n_waiters, kind=NAMED_SEMAPHORE, **others):
    return named_bytes(kind, SEMAPHORE, {"value": value, "channel": n_waiters << CHANNEL_WAITERS_SHIFT | 77}, **others)


def event_bytes(low_half, n_waiters, **others):
    return named_bytes(NAMED_EVENT, EVENT, {"word": n_waiters << CHANNEL_WAITERS_SHIFT | low_half}, **others)


def posix_bytes(value, n_waiters, mark=0x80):
    return struct.pack("<III20x", value, n_waiters, mark)


def result(value):
    """Return the result of a C library call; raise OSError if it failed."""
    if value == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value


@pytest.fixture
def new_set():
    """A function that creates System V sets with given values; they are removed afterwards."""
    made = []

    def make(values, key=IPC_PRIVATE, permissions=0o600):
        made.append(result(LIBC.semget(key, len(values), permissions | IPC_CREAT)))
        for number, value in enumerate(values):
            if value:  # otherwise it has no last process
                result(LIBC.semctl(made[-1], number, SETVAL, value))
        return made[-1]

    yield make
    for one in made:
        LIBC.semctl(one, 0, IPC_RMID)


@pytest.fixture
def unique():
    """A unique name; files whose names end with it are removed afterwards."""
    name = f"semstat-{uuid.uuid4().hex}"
    yield name
    for path in FOLDER.glob(f"*{name}"):
        path.unlink()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of /dev/shm."""
    monkeypatch.setattr(semstat, "FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def entries(capsys):
    """A function that returns the parsed output of `--json`."""

    def read(*arguments):
        assert main(["semstat", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return read


@pytest.fixture
def table(capsys):
    """A function that returns the lines of the table."""

    def read(*arguments):
        assert main(["semstat", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return read


@pytest.fixture
def entry_of(entries):
    """A function that returns the only entry with a name, or of the set with an id."""

    def read(name_or_id):
        key = "id" if isinstance(name_or_id, int) else "name"
        [entry] = [entry for entry in entries() if entry.get(key) == name_or_id]
        return entry

    return read


def lines_of_set(lines, set_id):
    """Return the line of a set in the table, and the lines of its semaphores."""
    [first] = [i for i, line in enumerate(lines) if line.startswith("0x") and line.split()[1] == str(set_id)]
    last = first + 1
    while last < len(lines) and lines[last].startswith("    "):
        last += 1
    return lines[first:last]


def wait_for(condition, seconds=20):
    """Return the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("the condition did not become true in time")


# -- semaphores and events of shmem -----------------------------------------------------------------------------


def test_named_semaphore(unique, entry_of, table):
    path = FOLDER / f"shmem-semaphore.{unique}"
    path.write_bytes(semaphore_bytes(SEMAPHORE_MAX, 5))
    path.chmod(0o640)
    entry = entry_of(unique)
    assert (entry["uid"], entry["gid"]) == (os.geteuid(), path.stat().st_gid)
    del entry["owner"], entry["uid"], entry["group"], entry["gid"]
    assert entry == {
        "kind": "shmem",
        "type": "semaphore",
        "name": unique,
        "path": str(path),
        "permissions": "0640",
        "value": SEMAPHORE_MAX,
        "signaled": None,
        "waiters": 5,
        "error": None,
    }
    [line] = [line for line in table("--kind", "shmem") if unique in line]
    assert line.split()[:3] == ["semaphore", str(SEMAPHORE_MAX), "5"]
    assert line.split()[-2:] == ["0640", unique]


@pytest.mark.parametrize(("low_half", "is_signaled", "word"), [(6, False, "reset"), (7, True, "signaled"), (0, False, "reset")])
def test_named_event(unique, entry_of, table, low_half, is_signaled, word):
    (FOLDER / f"shmem-event.{unique}").write_bytes(event_bytes(low_half, 0x80000001))
    entry = entry_of(unique)
    assert (entry["type"], entry["signaled"], entry["waiters"], entry["value"]) == ("event", is_signaled, 0x80000001, None)
    [line] = [line for line in table("--kind", "shmem") if unique in line]
    assert line.split()[:3] == ["event", word, "2147483649"]


NOT_SEMAPHORES = {
    "empty": (b"", "not made by this library"),
    "zeros": (bytes(PAGE_BYTES), "not made by this library"),
    "foreign": (b"#!/bin/sh\n" * 50, "not made by this library"),
    "short-foreign": (b"x", "not made by this library"),
    "section": (semaphore_bytes(1, 0, magic=MAGIC), "not made by this library"),
    "cut": (semaphore_bytes(1, 0)[: PAGE_BYTES - 1], f"damaged: must have {PAGE_BYTES} bytes, got {PAGE_BYTES - 1}"),
    "magic-only": (semaphore_bytes(1, 0)[: NAMED["magic"].end], f"damaged: must have {PAGE_BYTES} bytes, got {NAMED['magic'].end}"),
    "long": (semaphore_bytes(1, 0) + b"x", f"damaged: must have {PAGE_BYTES} bytes, got {PAGE_BYTES + 1}"),
    "version": (semaphore_bytes(1, 0, version=9), f"layout version must be {NAMED_VERSION}, got 9"),
    "an-event": (event_bytes(1, 0), "must be a semaphore, got an event"),
    "kind": (semaphore_bytes(1, 0, kind=3), "unknown kind 3"),
    "negative": (semaphore_bytes(SEMAPHORE_MAX + 1, 0), "damaged"),
}
NOT_EVENTS = {
    "cut": (event_bytes(1, 0)[:70], f"damaged: must have {PAGE_BYTES} bytes, got 70"),
    "a-semaphore": (semaphore_bytes(1, 0), "must be an event, got a semaphore"),
}
NOT_POSIX = {
    "empty": (b"", "must have 32 bytes, got 0"),
    "short": (posix_bytes(3, 0)[:31], "must have 32 bytes, got 31"),
    "long": (posix_bytes(3, 0) + b"\0", "must have 32 bytes, got 33"),
    "huge": (bytes(1 << 20), "must have 32 bytes, got 1048576"),
    "mark": (posix_bytes(3, 0, mark=0), "not the layout of a 64-bit glibc"),
    "before-2.21": (struct.pack("<IIQ16x", 3, 0x80, 2), "not the layout of a 64-bit glibc"),
    "negative": (posix_bytes(1 << 31, 0), "damaged"),
}


@pytest.mark.parametrize(
    ("prefix", "files"), [("shmem-semaphore.", NOT_SEMAPHORES), ("shmem-event.", NOT_EVENTS), ("sem.", NOT_POSIX)], ids=["s", "e", "p"]
)
def test_foreign_and_truncated_files_are_reported(folder, entries, table, prefix, files):
    for name, (content, _) in files.items():
        (folder / (prefix + name)).write_bytes(content)
    found = {entry["name"].removeprefix("/"): entry for entry in entries("--kind", "shmem", "--kind", "posix")}
    lines = table("--kind", "shmem", "--kind", "posix")
    assert found.keys() == files.keys()
    for name, (_, reason) in files.items():
        assert reason in found[name]["error"], name
        assert [found[name].get(key) for key in ("value", "signaled", "waiters")] == [None] * 3
        [at] = [i for i, line in enumerate(lines) if line.endswith((f" {name}", f" /{name}"))]
        assert lines[at].split().count("-") == 2
        assert lines[at + 1] == f"    cannot be read: {found[name]['error']}"


@pytest.mark.parametrize("prefix", ["shmem-semaphore.", "shmem-event.", "sem."])
def test_irregular_files_are_reported(folder, entries, prefix):
    (folder / f"{prefix}folder").mkdir()
    os.mkfifo(folder / f"{prefix}fifo")  # opening it would block
    (folder / "elsewhere").write_bytes(posix_bytes(1, 0))
    (folder / f"{prefix}link").symlink_to(folder / "elsewhere")
    (folder / prefix).write_bytes(b"a prefix is not a name")
    found = entries("--kind", "shmem", "--kind", "posix")
    assert [entry["name"].removeprefix("/") for entry in found] == ["fifo", "folder", "link"]
    assert {entry["error"] for entry in found} == {"not a regular file"}


def test_names_are_escaped(folder, entries, table):
    names = [b"sem.\x1b[31mred", b"sem.two\nlines", b"sem.\xff\xfe", "sem.gr\u00fc\u00df".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(posix_bytes(4, 1))
    found = entries("--kind", "posix")
    assert sorted(b"sem." + os.fsencode(entry["name"][1:]) for entry in found) == sorted(names)
    title, header, *lines = table("--kind", "posix")
    assert len(lines) == 4
    assert all(line.split()[:2] == ["4", "1"] and line.isprintable() for line in [title, header, *lines][2:])


def test_removed_file_is_skipped(folder, entries, monkeypatch):
    (folder / "sem.there").write_bytes(posix_bytes(4, 1))
    monkeypatch.setattr(semstat.os, "listdir", lambda _: ["sem.gone", "sem.there"])
    assert [entry["name"] for entry in entries("--kind", "posix")] == ["/there"]


def test_files_are_not_modified(folder, entries):
    path = folder / "shmem-semaphore.x"
    path.write_bytes(semaphore_bytes(3, 2))
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns
    [entry] = entries("--kind", "shmem")
    assert entry["value"] == 3
    assert before == (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns)


def test_objects_of_the_classes_are_shown(unique, entry_of, child):
    with contextlib.closing(shmem.Semaphore(unique, 2)) as semaphore:
        entry = entry_of(unique)
        assert (entry["type"], entry["value"], entry["waiters"], entry["error"]) == ("semaphore", 2, 0, None)
        assert semaphore.wait(0)
        assert semaphore.wait(0)
        waiter = child("s = shmem.Semaphore(args[0]); say('waits'); say(s.wait(60))", unique)
        assert waiter.hear() == "waits"
        wait_for(lambda: entry_of(unique)["waiters"] == 1)
        assert entry_of(unique)["value"] == 0
        semaphore.signal(3)
        assert waiter.hear() == "True"
        assert entry_of(unique)["value"] == 2
        semaphore.unlink()
    with contextlib.closing(shmem.Event(unique)) as event:
        assert (entry_of(unique)["type"], entry_of(unique)["signaled"]) == ("event", False)
        waiter = child("e = shmem.Event(args[0]); say('waits'); say(e.wait(60))", unique)
        assert waiter.hear() == "waits"
        wait_for(lambda: entry_of(unique)["waiters"] == 1)
        event.signal()
        assert waiter.hear() == "True"
        assert (entry_of(unique)["signaled"], entry_of(unique)["waiters"]) == (True, 0)
        event.unlink()


# -- POSIX --------------------------------------------------------------------------------------------------------


def test_posix_semaphore_and_its_waiter(unique, entry_of, table, child):
    semaphore = ctypes.c_void_p(LIBC.sem_open(f"/{unique}".encode(), os.O_CREAT | os.O_EXCL, 0o600, 3))
    assert semaphore
    entry = entry_of(f"/{unique}")
    assert (entry["kind"], entry["value"], entry["waiters"], entry["permissions"], entry["error"]) == ("posix", 3, 0, "0600", None)
    [line] = [line for line in table("--kind", "posix") if unique in line]
    assert line.split()[:2] == ["3", "0"]

    for _ in range(3):
        assert LIBC.sem_trywait(semaphore) == 0
    waiter = child(SEM_WAIT, f"/{unique}")
    assert waiter.hear() == "waits"
    wait_for(lambda: entry_of(f"/{unique}")["waiters"] == 1)
    assert entry_of(f"/{unique}")["value"] == 0
    LIBC.sem_post(semaphore)
    assert waiter.hear() == "done 0"
    assert entry_of(f"/{unique}")["waiters"] == 0
    LIBC.sem_close(semaphore)


# -- System V -------------------------------------------------------------------------------------------------------


def test_system_v_set(new_set, entry_of, table):
    key = -(uuid.uuid4().int & 0x7FFFFFFF) - 1
    before = int(time.time())
    set_id = new_set([4, 0, 32767], key, 0o640)
    entry = entry_of(set_id)
    assert (entry["kind"], entry["key"], entry["permissions"], entry["size"]) == ("sysv", key, "0640", 3)
    assert (entry["uid"], entry["gid"], entry["creator_uid"], entry["creator_gid"]) == (os.geteuid(), os.getegid()) * 2
    assert (entry["last_operation"], entry["error"]) == (None, None)
    changed = datetime.datetime.fromisoformat(entry["changed"])
    assert changed.utcoffset() is not None
    assert before - 1 <= changed.timestamp() <= time.time() + 1
    assert [one["value"] for one in entry["semaphores"]] == [4, 0, 32767]
    assert {(one["waiting_for_increase"], one["waiting_for_zero"]) for one in entry["semaphores"]} == {(0, 0)}

    line, values, *_ = lines_of_set(table("--kind", "sysv"), set_id)
    assert line.split()[:2] == [f"0x{key & 0xFFFFFFFF:08x}", str(set_id)]
    assert line.split()[4:7] == ["0640", "3", "never"]
    assert values.split() == ["0", "values", "4", "0", "32767"]


def test_waiters_of_a_set_and_its_last_process(new_set, entry_of, table, child):
    set_id = new_set([2, 0, 9])
    operator = child(SEMOP, set_id, 2, 1)
    pid = int(operator.hear())
    assert operator.hear() == "done 0"
    assert entry_of(set_id)["semaphores"][2] == {"value": 10, "waiting_for_increase": 0, "waiting_for_zero": 0, "last_pid": pid}
    assert time.time() - 60 < datetime.datetime.fromisoformat(entry_of(set_id)["last_operation"]).timestamp() <= time.time() + 1

    waiters = [child(SEMOP, set_id, *what) for what in [(0, 0), (1, -1), (1, -2)]]
    pids = [int(waiter.hear()) for waiter in waiters]

    def waiting():
        return [(one["waiting_for_increase"], one["waiting_for_zero"]) for one in entry_of(set_id)["semaphores"]]

    wait_for(lambda: waiting() == [(0, 1), (2, 0), (0, 0)])
    lines = [line.split() for line in lines_of_set(table("--kind", "sysv"), set_id)[1:]]
    assert lines[:3] == [["0", "values", "2", "0", "10"], ["wait", "for", "more", "0", "2", "0"], ["wait", "for", "zero", "1", "0", "0"]]
    assert (lines[3][:2], lines[3][4]) == (["last", "process"], str(pid))

    LIBC.semctl(set_id, 0, SETVAL, 0)
    assert waiters[0].hear() == "done 0"
    assert waiting() == [(0, 0), (2, 0), (0, 0)]
    assert entry_of(set_id)["semaphores"][0]["last_pid"] == pids[0]


def test_large_set(new_set, entry_of, table):
    values = [7] * 160 + list(range(32700, 32740))
    set_id = new_set(values)
    assert [one["value"] for one in entry_of(set_id)["semaphores"]] == values
    lines = lines_of_set(table("--kind", "sysv"), set_id)
    assert max(map(len, lines)) <= 100
    shown = {}
    for line in lines[1:]:
        words = line.split()
        if words[1:2] == ["values"]:
            assert len(words) - 2 <= 16
            shown |= {int(words[0]) + i: int(value) for i, value in enumerate(words[2:])}
    assert [shown[i] for i in range(160, 200)] == values[160:]
    assert shown[0] == 7
    assert 80 not in shown  # omitted, because its row equals the one before
    assert [line.strip() for line in lines].count("*") == 1


def test_lines_of_a_set(new_set, table):
    set_id = new_set([0] * 20)
    lines = lines_of_set(table("--kind", "sysv"), set_id)
    assert [line.split() for line in lines[1:]] == [["0", "values", *"0" * 16], ["16", "values", *"0" * 4]]


def test_largest_set(new_set, entry_of):
    most = int(Path("/proc/sys/kernel/sem").read_text().split()[0])
    set_id = result(LIBC.semget(IPC_PRIVATE, most, 0o600))
    try:
        assert len(entry_of(set_id)["semaphores"]) == most
    finally:
        LIBC.semctl(set_id, 0, IPC_RMID)


def test_removed_set_is_skipped(new_set, entries, tmp_path, monkeypatch):
    stays, goes = new_set([1]), new_set([2])
    copy = tmp_path / "sem"
    copy.write_text(Path("/proc/sysvipc/sem").read_text())
    LIBC.semctl(goes, 0, IPC_RMID)
    monkeypatch.setattr(semstat, "SYSV_LIST", str(copy))
    ids = [entry["id"] for entry in entries("--kind", "sysv")]
    assert stays in ids
    assert goes not in ids


@pytest.mark.skipif(shutil.which("ipcs") is None, reason="no ipcs to compare with")
def test_agrees_with_ipcs(new_set, entry_of, child):
    set_id = new_set([5, 0, 1], uuid.uuid4().int & 0x7FFFFFFF, 0o604)
    child(SEMOP, set_id, 1, -1).hear()
    wait_for(lambda: entry_of(set_id)["semaphores"][1]["waiting_for_increase"] == 1)
    entry = entry_of(set_id)
    rows = subprocess.run(["ipcs", "-s"], capture_output=True, text=True, check=True).stdout.splitlines()
    [row] = [row.split() for row in rows if row.split()[1:2] == [str(set_id)]]
    assert row == [f"0x{entry['key']:08x}", str(set_id), entry["owner"], entry["permissions"].lstrip("0"), "3"]
    details = subprocess.run(["ipcs", "-s", "-i", str(set_id)], capture_output=True, text=True, check=True).stdout.splitlines()
    numbers = [list(map(int, line.split())) for line in details if line and all(word.isdigit() for word in line.split())]
    assert numbers == [[i, *one.values()] for i, one in enumerate(entry["semaphores"])]


# -- all kinds together -----------------------------------------------------------------------------------------


def test_unreadable_objects_are_listed(unique, new_set, child):
    """Run by root, the objects belong to root and the reader is unprivileged; otherwise they are the user's own without read permission."""
    permissions = 0o600 if os.geteuid() == 0 else 0o200
    closed_set, open_set = new_set([1, 2], permissions=permissions), new_set([3], permissions=0o644)
    for prefix, content in [("shmem-semaphore.", semaphore_bytes(1, 0)), ("shmem-event.", event_bytes(1, 0)), ("sem.", posix_bytes(1, 0))]:
        path = FOLDER / (prefix + unique)
        path.write_bytes(content)
        path.chmod(permissions)
    found = json.loads(child(UNPRIVILEGED, "--json").end())
    mine = [entry for entry in found if unique in (entry.get("name") or "")]
    assert [(entry["kind"], entry["type"]) for entry in mine] == [("shmem", "semaphore"), ("shmem", "event"), ("posix", "semaphore")]
    [closed] = [entry for entry in found if entry.get("id") == closed_set]
    for entry in [*mine, closed]:
        assert entry["error"] == "Permission denied"
        assert (entry["uid"], entry["permissions"]) == (os.geteuid(), f"{permissions:04o}")
    assert (closed["semaphores"], closed["size"]) == (None, 2)
    [readable] = [entry for entry in found if entry.get("id") == open_set]
    assert [one["value"] for one in readable["semaphores"]] == [3]

    lines = child(UNPRIVILEGED).end().splitlines()
    assert lines_of_set(lines, closed_set)[1:] == ["    cannot be read: Permission denied"]
    assert sum(unique in line for line in lines) == 3


def test_nothing_to_show(folder, table, entries, tmp_path, monkeypatch):
    header = tmp_path / "header"
    header.write_text(Path("/proc/sysvipc/sem").read_text().splitlines(keepends=True)[0])
    monkeypatch.setattr(semstat, "SYSV_LIST", str(header))
    assert table() == [
        "Semaphores and events of shmem",
        "none",
        "",
        "POSIX named semaphores",
        "none",
        "",
        "System V semaphore sets",
        "none",
    ]
    assert entries() == []


def test_missing_sources_are_reported(table, entries, tmp_path, monkeypatch):
    monkeypatch.setattr(semstat, "FOLDER", str(tmp_path / "missing"))
    monkeypatch.setattr(semstat, "SYSV_LIST", str(tmp_path / "missing"))
    assert [(entry["kind"], entry["error"]) for entry in entries()] == [
        ("shmem", "No such file or directory"),
        ("shmem", "No such file or directory"),
        ("posix", "No such file or directory"),
        ("sysv", f"{tmp_path / 'missing'}: No such file or directory"),
    ]
    assert sum("cannot be read" in line for line in table()) == 4


def test_entries_of_a_kind_have_the_same_keys(unique, new_set, entries, tmp_path, monkeypatch):
    (FOLDER / f"shmem-semaphore.{unique}").write_bytes(semaphore_bytes(1, 0))
    (FOLDER / f"shmem-event.{unique}").write_bytes(b"")
    (FOLDER / f"sem.{unique}").write_bytes(posix_bytes(1, 0))
    new_set([1])
    found = entries()
    monkeypatch.setattr(semstat, "FOLDER", str(tmp_path / "missing"))
    monkeypatch.setattr(semstat, "SYSV_LIST", str(tmp_path / "missing"))
    found += entries()
    assert {entry["kind"] for entry in found} == {"shmem", "posix", "sysv"}
    for kind in ("shmem", "posix", "sysv"):
        assert len({tuple(entry) for entry in found if entry["kind"] == kind}) == 1
    common = set.intersection(*(set(entry) for entry in found))
    assert common == {"kind", "type", "owner", "uid", "group", "gid", "permissions", "error"}


@pytest.mark.parametrize("kinds", [("shmem",), ("posix",), ("sysv",), ("sysv", "shmem")])
def test_kinds_are_selected(unique, new_set, entries, table, kinds):
    (FOLDER / f"shmem-semaphore.{unique}").write_bytes(semaphore_bytes(1, 0))
    (FOLDER / f"sem.{unique}").write_bytes(posix_bytes(1, 0))
    new_set([1])
    arguments = [word for kind in kinds for word in ("--kind", kind)]
    assert {entry["kind"] for entry in entries(*arguments)} == set(kinds)
    titles = {"Semaphores": "shmem", "POSIX": "posix", "System": "sysv"}
    assert {titles[line.split()[0]] for line in table(*arguments) if line.split()[:1] and line.split()[0] in titles} == set(kinds)


def test_wrong_kind_is_an_error():
    with pytest.raises(SystemExit) as stopped:
        main(["semstat", "--kind", "mutex"])
    assert stopped.value.code == 2


def test_owners_without_names_are_numbers():
    assert (semstat.user_name(3999999999), semstat.group_name(3999999999)) == ("3999999999", "3999999999")


def test_run_as_a_program(unique, new_set):
    (FOLDER / f"sem.{unique}").write_bytes(posix_bytes(12, 0))
    set_id = new_set([31])
    command = [sys.executable, "-P", "-W", "error", "-m", "shmem", "semstat"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert any(line.split()[:2] == ["12", "0"] and unique in line for line in done.stdout.splitlines())
    assert lines_of_set(done.stdout.splitlines(), set_id)[1].split() == ["0", "values", "31"]


def test_closed_output_is_ignored(new_set):
    new_set([1] * 200)
    command = [sys.executable, "-P", "-W", "error", "-m", "shmem", "semstat", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        assert process.returncode == 0
