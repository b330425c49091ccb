"""Durability: `flush` and `snapshot`.  Full disks are tested in test_limits."""

import errno
import os
import re
import shutil
import stat
import threading

import numpy as np
import pytest
from scribe import EVERY_BIT, HEAD, HEADER, Scribe

import shmem
from shmem._base.layout import MAGIC, PAGE_BYTES, STATE_PENDING, STATE_USED, TAG_STATE_MASK, TYPE_ARRAY
from shmem._fsck.wreck import Wreck

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


# -- flush ------------------------------------------------------------------------------------------------

FLUSH = """
section = shmem.SharedMemory(args[0], max_size=1 << 22)
section["a"] = bytes(300_000)
end = section["a"].offset + 300_000
say(section.address, end)
os.write(2, b"-- begin")
try:
    section.flush(); say("flushed")
except OSError as error:
    say(type(error).__name__, error.errno, str(error))
os.write(2, b"-- end")
"""


def traced(child, tmp_path, *options):
    """Run FLUSH under strace; return its output and the system calls made in `flush`."""
    log = tmp_path / "log"
    other = child(FLUSH, tmp_path / "s", before=("strace", "-f", "-y", "-o", log, "-e", "trace=msync,fsync,write", *options))
    out, err = other.process.communicate(timeout=60)
    assert other.process.returncode == 0, err
    calls = log.read_text().partition("-- begin")[2].partition("-- end")[0]
    first, second = out.splitlines()
    return *map(int, first.split()), second, re.findall(r"(msync|fsync)\((.*)\) += (\S+)", calls)


@needs_strace
def test_flush_syncs_file_and_directory(child, tmp_path):
    address, end, output, calls = traced(child, tmp_path)
    assert output == "flushed"
    (sync, sync_arguments, _), *files = calls
    start, length, flag = sync_arguments.split(", ")
    assert (sync, int(start, 16), flag) == ("msync", address, "MS_SYNC")
    assert int(length) >= end
    assert [re.sub(r"^\d+", "", what) for _, what, _ in files] == [f"<{tmp_path}/s>", f"<{tmp_path}>"]
    assert {result for _, _, result in calls} == {"0"}


@needs_strace
@pytest.mark.parametrize("call", ["msync:when=1", "fsync:when=1", "fsync:when=2"])
def test_flush_raises_disk_errors(child, tmp_path, call):
    # the first opener has already synced the header once
    name, _, when = call.partition(":when=")
    when = int(when) + (name == "msync")
    _, _, output, calls = traced(child, tmp_path, "-e", f"inject={name}:error=EIO:when={when}")
    assert output.startswith("OperatingSystemError 5 cannot flush: Input/output error")
    assert calls[-1][0] == name


# -- snapshot ---------------------------------------------------------------------------------------------


def content(section):
    return {name: bytes(value) if isinstance(value, shmem.Block) else value.tolist() for name, value in section.items()}


@pytest.mark.parametrize("index", ["tlsf", "next_fit"])
def test_snapshot_is_complete_and_independent(place, tmp_path, index):
    with shmem.SharedMemory(**place, max_size=1 << 24, index=index) as section:
        section["a"] = np.arange(1000)
        section["b"] = b"bytes"
        section.root = section["a"]
        big = section.allocate(5_000_000)
        section["c"] = [1.5]
        section.free(big)
        before = content(section)
        assert section.snapshot(tmp_path / "copy") is None
        raw = (tmp_path / "copy").read_bytes()
        header = HEADER.read(raw)
        assert (header["magic"], header["clean"], header["broken"]) == (MAGIC, 1, 0)
        assert len(raw) == -(-header["top"] // PAGE_BYTES) * PAGE_BYTES
        section["a"][0] = 77
        with shmem.SharedMemory(tmp_path / "copy") as copy:  # together with the original, in one process
            assert content(copy) == before
            assert copy.root.tolist() == before["a"]
            assert (copy.stats().recoveries, copy.owner_deaths) == (0, 0)
            assert copy.uuid != section.uuid
            assert (copy.max_size, copy.index, copy.label) == (section.max_size, index, section.label)
            copy.check_heap()
            copy["d"] = [1]
            assert "d" not in section
            handle = shmem.handle(section["a"])
            assert handle.open()[0] == 77
        section.check_heap()
    assert set(os.listdir(tmp_path)) - {"section.shm"} == {"copy"}


def states(file):
    """Return the states of the blocks of a section in a file; each array among them must be named."""
    with open(file, "rb") as opened:
        wreck = Wreck(opened.fileno())
        wreck.examine()
    assert not wreck.findings
    tags = [wreck.tag(offset) for offset in wreck.blocks]
    assert [type_id for _, state, type_id in tags if state == STATE_USED].count(TYPE_ARRAY) == 1
    return {state for _, state, _ in tags}


def test_opening_a_snapshot_needs_no_recovery(section_file, tmp_path, child):
    """A live process makes a block, pins an array and holds a temporary one: released in the copy, kept in the section."""
    with shmem.SharedMemory(section_file, max_size=1 << 24) as section:
        section["kept"] = [1, 2]
        other = child(
            """
            section = shmem.SharedMemory(args[0])
            mine = section.zeros(50_000, temporary=True); named = section["kept"]
            say("go")
            while not os.path.exists(args[1]):
                section.free(section.allocate(3_000_000))
            """,
            section_file,
            tmp_path / "stop",
        )
        other.hear()
        for i in range(20):
            section.snapshot(tmp_path / f"copy{i}")
        (tmp_path / "stop").touch()
        other.end()
    for i in range(20):
        assert STATE_PENDING not in states(tmp_path / f"copy{i}")  # before an opener sweeps
        with shmem.SharedMemory(tmp_path / f"copy{i}") as copy:
            assert copy.stats().recoveries == 0
            report = copy.check_heap()
            assert report.pending_blocks == 0
            assert report.used_bytes < 3_100_000  # no temporary array; the large block only if it was complete
            assert report.blocks <= 2
            del copy["kept"]
            assert copy.check_heap().blocks == report.blocks - 1  # not kept by a pin


def test_pending_block_is_free_in_the_snapshot(shm, tmp_path):
    """The tag, written directly, is pending and names a live participant."""
    shm["x"] = [1]
    block = shm.allocate(5000)
    scribe, tag_off = Scribe(shm.path), block.offset - HEAD
    tag = scribe[tag_off]
    scribe[tag_off] = tag & ~TAG_STATE_MASK | STATE_PENDING
    shm.snapshot(tmp_path / "copy")
    scribe[tag_off] = tag
    shm.free(block)
    with shmem.SharedMemory(tmp_path / "copy") as copy:
        report = copy.check_heap()
        assert (report.pending_blocks, report.blocks, copy.stats().recoveries) == (0, 1, 0)


def test_snapshot_acquires_the_shared_lock(shm, tmp_path, child):
    other = child(
        "section = shmem.SharedMemory(shared_name=args[0])\nwith shmem.exclusive_lock(section):\n    say('go'); sys.stdin.readline()",
        shm.name,
    )
    other.hear()
    with pytest.raises(shmem.LockTimeout):
        shm.snapshot(tmp_path / "copy", timeout=0.1)
    assert os.listdir(tmp_path) == []
    other.tell()
    shm.snapshot(tmp_path / "copy", timeout=20)
    other.end()


def test_snapshot_is_consistent_while_others_write(shm, tmp_path, child):
    """Two arrays that a writer changes together, under the lock, and then allocates: equal in every copy.

    Between the two changes the writer waits until the snapshot waits for the lock, or is there.
    """
    shm["a"], shm["b"] = np.zeros(20_000), np.zeros(20_000)
    other = child(
        """
        section = shmem.SharedMemory(shared_name=args[0]); a, b = section["a"], section["b"]
        for i in range(5):
            with shmem.exclusive_lock(section):
                a += 1
                say("half")
                while not section.stats().lock_waiters and not os.path.exists(args[1] + str(i)): time.sleep(0.001)
                b += 1
            for _ in range(50):
                section["n"] = b"x" * 3000
                del section["n"]
            sys.stdin.readline()
        """,
        shm.name,
        tmp_path / "copy",
    )
    for i in range(5):
        assert other.hear() == "half"
        shm.snapshot(tmp_path / f"copy{i}")
        with shmem.SharedMemory(tmp_path / f"copy{i}") as copy:
            assert np.array_equal(copy["a"], copy["b"])
            assert (copy["a"] == i + 1).all()
            assert set(copy) <= {"a", "b", "n"}
            copy.check_heap()
        other.tell()
    other.end()


def test_held_lock_is_free_in_the_snapshot(shm, tmp_path):
    mutex = shm.mutex(name="mutex")
    with shmem.exclusive_lock(shm), mutex:
        shm.snapshot(tmp_path / "copy")
    with shmem.SharedMemory(tmp_path / "copy") as copy:
        with shmem.exclusive_lock(copy, 0):  # no warning, because no holder died
            pass
        assert copy.owner_deaths == 0
        with pytest.warns(shmem.OwnerDiedWarning), copy["mutex"]:
            pass


def test_snapshot_from_a_read_only_handle(section_file, tmp_path):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section["a"] = [1]
    with shmem.SharedMemory(section_file, mode="read_only") as reader:
        reader.snapshot(tmp_path / "copy")
    with shmem.SharedMemory(tmp_path / "copy") as copy:
        assert copy["a"].tolist() == [1]


def test_snapshot_replaces_the_file_and_keeps_permissions(section_file, tmp_path):
    target = tmp_path / "copy"
    target.write_bytes(b"old")
    with open(target, "rb") as old:
        with shmem.SharedMemory(section_file, max_size=1 << 20, permissions=0o640) as section:
            section.snapshot(target)
        assert old.read() == b"old"
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o640
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    with shmem.SharedMemory(section_file) as section:
        section.snapshot(tmp_path / "link")
    assert not os.path.islink(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["copy", "link", "section.shm"]


def test_snapshot_does_not_replace_other_files(section_file, tmp_path):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section, shmem.SharedMemory(tmp_path / "b", max_size=1 << 20) as other:
        os.link(section_file, tmp_path / "same")
        for target in (section_file, tmp_path / "same"):
            with pytest.raises(ValueError, match="of the section itself"):
                section.snapshot(target)
        with pytest.raises(shmem.OperatingSystemError, match="are attached") as caught:
            section.snapshot(other.path)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(shmem.OperatingSystemError) as caught:
            section.snapshot(tmp_path / "missing" / "copy")
        assert caught.value.errno == errno.ENOENT
        (tmp_path / "folder").mkdir()
        with pytest.raises(shmem.OperatingSystemError):
            section.snapshot(tmp_path / "folder")
    with pytest.raises(shmem.ClosedError):
        section.snapshot(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["b", "folder", "same", "section.shm"]


@pytest.mark.damages
def test_snapshot_of_a_damaged_heap_raises(shm, tmp_path):
    first, second = shm.allocate(100), shm.allocate(100)
    scribe, tag_off = Scribe(shm.path), second.offset - HEAD
    tag, scribe[tag_off] = scribe[tag_off], EVERY_BIT
    with pytest.raises(shmem.HeapCorruption, match="check_heap"):
        shm.snapshot(tmp_path / "copy")
    scribe[tag_off] = tag
    assert os.listdir(tmp_path) == []
    shm.free(first)
    assert shm.check_heap().blocks == 1


def test_killed_snapshot_leaves_a_complete_file(section_file, tmp_path, child):
    """The snapshot path always names a complete copy, either the old one or the new one."""
    with shmem.SharedMemory(section_file, max_size=1 << 24) as section:
        section["a"] = np.zeros(200_000)
        section.snapshot(tmp_path / "copy")
        for i in range(12):
            other = child(
                "section = shmem.SharedMemory(args[0]); say('go')\nwhile True: section.snapshot(args[1])", section_file, tmp_path / "copy"
            )
            other.hear()
            threading.Event().wait(0.003 * i)
            other.kill()
            with shmem.SharedMemory(tmp_path / "copy") as copy:
                assert copy.stats().recoveries == 0
                copy.check_heap()
                assert copy["a"].shape == (200_000,)
            section.free(section.allocate(10_000))  # takes over the gate that the killed process held
        section.check_heap()
    # a kill between linking and renaming leaves a complete copy under a temporary name
    assert all(name in ("copy", "section.shm") or re.fullmatch(r"\.copy\.[0-9a-f]{16}", name) for name in os.listdir(tmp_path))


@needs_strace
def test_snapshot_syncs_before_renaming(tmp_path, child):
    """The copy is on disk before it is renamed, and the new name is on disk before `snapshot` returns."""
    log = tmp_path / "log"
    code = """
    section = shmem.SharedMemory(max_size=1 << 20); section["a"] = [1]; open(args[0], "w").close()
    os.write(2, b"-- begin"); section.snapshot(args[0]); os.write(2, b"-- end")
    """
    (tmp_path / "f").mkdir()
    options = ("-f", "-y", "-o", log, "-e", "trace=msync,fsync,ftruncate,linkat,rename,renameat,renameat2,write")
    _, err = child(code, tmp_path / "f" / "copy", before=("strace", *options)).process.communicate(timeout=60)
    assert err == "-- begin-- end"
    calls = re.findall(r"\d+ +(\w+)\((.*)\) += (\S+)", log.read_text().partition("-- begin")[2].partition("-- end")[0])
    names = [name for name, _, result in calls if result == "0"]
    assert names[-4:] == ["fsync", "linkat", "rename", "fsync"]
    assert "msync" in names[:-4]
    assert f"<{tmp_path}/f>" in calls[-1][1]


def test_snapshot_without_o_tmpfile(section_file, tmp_path, monkeypatch):
    """On a file system without O_TMPFILE a snapshot leaves no temporary file, whether it succeeds or fails."""
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such files")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section["a"] = [5]
        section.snapshot(tmp_path / "copy")
        monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(shmem.OperatingSystemError):
            section.snapshot(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["copy", "section.shm"]
    with shmem.SharedMemory(tmp_path / "copy") as copy:
        assert copy["a"].tolist() == [5]
