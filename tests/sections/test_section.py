"""Opening, closing, reopening and growing a section."""

import contextlib
import errno
import gc
import os
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from workers import in_child

import shmem
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    BLOCK_MIN_BYTES,
    MAGIC,
    MAX_LABEL_BYTES,
    MAX_PARTICIPANTS,
    MAX_SECTION_BYTES,
    PAGE_BYTES,
    heap_start,
)

ATTACH = "section = shmem.SharedMemory(**eval(args[0]))"


def test_attach_by_name(place, child):
    with shmem.SharedMemory(**place, max_size=1 << 22) as section:
        section["a"] = np.arange(5)
        other = child(f"{ATTACH}; say(section['a'].sum()); section['a'][0] = 100; section.close()", place)
        assert other.hear() == "10"
        other.end()
        assert section["a"][0] == 100


def test_missing_section_needs_max_size(place):
    with pytest.raises(shmem.SectionNotFound, match="pass max_size to create it") as caught:
        shmem.SharedMemory(**place)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.status == errno.ENOENT


def test_limits_that_are_not_in_force_are_reported(place):
    """Only the first opener makes a section larger, and only the creator sets the number of participants."""
    with shmem.SharedMemory(**place, max_size=1 << 20, max_participants=8):
        for mode in ("read_write", "read_only"):
            with shmem.SharedMemory(**place, max_size=1 << 20, max_participants=8, mode=mode):
                pass
            with shmem.SharedMemory(**place, max_size=100_000, max_participants=4, mode=mode):
                pass
            with (
                pytest.warns(shmem.LimitWarning, match=f"max_size is {1 << 20:,}, not {1 << 21:,}") as caught,
                shmem.SharedMemory(**place, max_size=1 << 21, mode=mode) as section,
            ):
                assert section.max_size == 1 << 20
            assert caught[0].filename == __file__
            with (
                pytest.warns(shmem.LimitWarning, match="max_participants is 8, not 9"),
                shmem.SharedMemory(**place, max_participants=9, mode=mode),
            ):
                pass
    if "file_name" in place:
        with (
            pytest.warns(shmem.LimitWarning, match="max_participants is 8, not 9"),
            shmem.SharedMemory(**place, max_size=1 << 21, max_participants=9) as section,
        ):
            assert section.max_size == 1 << 21


def test_section_persists_in_a_file(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 24) as section:
        section["a"] = np.arange(100_000.0)
        section.root = section["a"]
        assert os.stat(section_file).st_size == 1 << 24
    assert os.stat(section_file).st_size < 1 << 20
    with shmem.SharedMemory(section_file) as section:
        assert section.max_size == 1 << 24
        assert np.array_equal(section.root, np.arange(100_000.0))
        assert section.stats().recoveries == 0
        section.check_heap()


def test_anonymous_section_has_a_random_name():
    with shmem.SharedMemory(max_size=1 << 20) as section:
        assert Path(section.path).name == f"shmem.{section.name}"
        with shmem.SharedMemory(shared_name=section.name) as same:
            assert same.uuid == section.uuid
    assert not os.path.exists(section.path)
    with pytest.raises(ValueError, match="max_size"):
        shmem.SharedMemory()


def test_last_process_removes_an_anonymous_section(child, tmp_path):
    name = f"test-{os.getpid()}"
    section = shmem.SharedMemory(shared_name=name, max_size=1 << 20)
    other = child("section = shmem.SharedMemory(shared_name=args[0]); say(1); sys.stdin.readline()", name)
    other.hear()
    section.close()
    assert os.path.exists(section.path)
    other.tell()
    other.end()
    assert not os.path.exists(section.path)


def test_anonymous_section_of_killed_processes_is_removed(child):
    """The file of a section without a chosen name, left by a killed process, is removed when the next such section is created."""
    code = "section = shmem.SharedMemory(max_size=1 << 20); say(section.path); time.sleep(60)"
    killed, living = child(code), child(code)
    left, kept = killed.hear(), living.hear()
    killed.kill()
    assert os.path.exists(left)
    other = child("section = shmem.SharedMemory(max_size=1 << 20); say('made')")
    other.hear()
    other.end()
    assert not os.path.exists(left)
    assert os.path.exists(kept)
    living.kill()
    os.unlink(kept)


@pytest.mark.parametrize("maker", ["the parent", "another child"])
def test_forked_processes_remove_what_killed_ones_left(maker):
    """Processes that are forked from one that has looked already, and are killed: their sections are removed by the next one."""
    shmem.SharedMemory(max_size=1 << 20).close()  # this process has looked
    before = set(Path("/dev/shm").glob("shmem.*"))

    def leave():
        section = shmem.SharedMemory(max_size=1 << 20)
        os.kill(os.getpid(), signal.SIGKILL)
        section.close()

    assert in_child(leave) == -signal.SIGKILL
    left = set(Path("/dev/shm").glob("shmem.*")) - before
    assert len(left) == 1

    def make():
        shmem.SharedMemory(max_size=1 << 20).close()
        assert not any(path.exists() for path in left)

    if maker == "the parent":
        make()
    else:
        assert in_child(make) == 0


def test_named_section_of_a_killed_process_is_kept(section_file, child):
    other = child("section = shmem.SharedMemory(args[0], max_size=1 << 22); section['a'] = [1, 2]; say(1); time.sleep(60)", section_file)
    other.hear()
    other.kill()
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 1
        assert list(section["a"]) == [1, 2]
        assert section.stats().participants == (os.getpid(),)
        section.check_heap()


def test_grows_when_opened_first(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section["a"] = [1]
        with pytest.warns(shmem.LimitWarning), shmem.SharedMemory(section_file, max_size=1 << 23) as later:
            assert later.max_size == 1 << 20  # no effect, because it is not the first opener
    with shmem.SharedMemory(section_file, max_size=1 << 23) as section:
        assert section.max_size == 1 << 23
        section.allocate(5 << 20)
        assert list(section["a"]) == [1]
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        assert section.max_size == 1 << 23


def test_larger_file_keeps_its_size(section_file):
    shmem.SharedMemory(section_file, max_size=1 << 20).close()
    os.truncate(section_file, 1 << 22)
    with shmem.SharedMemory(section_file, max_size=1 << 21) as section:
        assert section.max_size == 1 << 22


def test_label_is_stored(section_file):
    shmem.SharedMemory(section_file, "terrain", max_size=1 << 20).close()
    with shmem.SharedMemory(section_file, "terrain") as section:
        assert section.label == "terrain"
        with pytest.raises(shmem.NotASection, match="'terrain', not 'weather'") as caught:
            shmem.SharedMemory(section_file, "weather")
        assert caught.value.status == shmem.Status.label_mismatch


@pytest.mark.parametrize("name", ["a/b", "", "x" * (MAX_LABEL_BYTES + 1), "a b", "ä", "a\0b"])
def test_wrong_names_raise(name):
    with pytest.raises(ValueError, match="no slash"):
        shmem.SharedMemory(shared_name=name, max_size=1 << 20)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_size": -1},
        {"max_size": 0},
        {"max_size": PAGE_BYTES},
        {"max_size": MAX_SECTION_BYTES + 1},
        {"max_size": 1 << 20, "mode": "r"},
        {"max_size": 1 << 20, "index": "best_fit"},
        {"max_size": 1 << 20, "max_participants": 0},
        {"max_size": 1 << 20, "max_participants": MAX_PARTICIPANTS + 1},
        {"max_size": 1 << 20, "desired_address": PAGE_BYTES + 1},
        {"max_size": 1 << 20, "desired_address": -PAGE_BYTES},
    ],
)
def test_wrong_arguments_raise(arguments):
    with pytest.raises(ValueError):
        shmem.SharedMemory(**arguments)


@pytest.mark.parametrize("content", [b"hello", b"x" * PAGE_BYTES, b"PK\x03\x04" + bytes(8000), MAGIC.to_bytes(8, "little"), b"\0" * 5000])
def test_foreign_file_is_not_modified(section_file, content):
    Path(section_file).write_bytes(content)
    for arguments in ({}, {"max_size": 1 << 20}):
        with pytest.raises(shmem.NotASection, match="not a shmem section") as caught:
            shmem.SharedMemory(section_file, **arguments)
        assert isinstance(caught.value, OSError)
        assert Path(section_file).read_bytes() == content


def test_truncated_file_is_rejected(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 22) as section:
        section["a"] = np.ones(100_000)
    os.truncate(section_file, 500_000)
    before = Path(section_file).read_bytes()
    with pytest.raises(shmem.NotASection, match="file is truncated"):
        shmem.SharedMemory(section_file, max_size=1 << 22)
    assert Path(section_file).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SHMEMNEW", b"SHMEMNEW" + bytes(9000)])
def test_unfinished_file_is_created_again(section_file, content):
    Path(section_file).write_bytes(content)
    with pytest.raises(shmem.SectionNotFound):
        shmem.SharedMemory(section_file)
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section.check_heap()


def test_folders_and_pipes_are_rejected(tmp_path):
    with pytest.raises(OSError, match=r"^cannot open"):
        shmem.SharedMemory(tmp_path, max_size=1 << 20)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(shmem.NotASection):
        shmem.SharedMemory(tmp_path / "fifo", max_size=1 << 20)
    with pytest.raises(shmem.SectionNotFound):
        shmem.SharedMemory(tmp_path / "missing" / "section", max_size=1 << 20)


def test_file_mode(section_file, tmp_path):
    with shmem.SharedMemory(section_file, max_size=1 << 20):
        assert stat.S_IMODE(os.stat(section_file).st_mode) == 0o600
    with shmem.SharedMemory(tmp_path / "other", max_size=1 << 20, permissions=0o640) as section:
        assert stat.S_IMODE(os.stat(section.path).st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_section_of_another_user(section_file, tmp_path):
    shmem.SharedMemory(section_file, max_size=1 << 20).close()
    os.chown(section_file, 12345, -1)
    with pytest.raises(shmem.UntrustedOwner, match="user 12345") as caught:
        shmem.SharedMemory(section_file)
    assert isinstance(caught.value, PermissionError)
    shmem.SharedMemory(section_file, trust_owner=True).close()
    os.chown(section_file, 0, -1)
    os.symlink(section_file, tmp_path / "link")
    shmem.SharedMemory(tmp_path / "link").close()
    os.lchown(tmp_path / "link", 12345, -1)
    with pytest.raises(shmem.UntrustedOwner, match="symbolic link"):
        shmem.SharedMemory(tmp_path / "link")


@pytest.mark.no_sanitizer("a child is to die of SIGSEGV, which is what a sanitizer reports")
def test_read_only_memory_is_protected(place, child):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        section["a"] = [1, 2, 3]
        block = section.allocate(10)
        with shmem.SharedMemory(**place, mode="read_only") as reader:
            array = reader["a"]
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 5
            assert memoryview(reader.block(block.offset)).readonly
            for change in (
                lambda: reader.allocate(10),
                lambda: reader.free(block.offset),
                lambda: reader.set_root_object(None),
                lambda: reader.zeros(3),
                lambda: reader.__setitem__("b", [1]),
                lambda: reader.__delitem__("a"),
                reader.trim,
                reader.sweep,
            ):
                with pytest.raises(shmem.ReadOnlyError) as caught:
                    change()
                assert isinstance(caught.value, PermissionError)
            with shmem.exclusive_lock(reader), shmem.shared_lock(reader):
                assert reader.stats().lock_holder == os.getpid()
            reader.check_heap()
        crash = child(
            "import ctypes; section = shmem.SharedMemory(**eval(args[0]), mode='read_only'); a = section['a']; say(int(a[0]))\n"
            "ctypes.memset(a.ctypes.data, 0, 8); say('written')",
            place,
        )
        assert crash.hear() == "1"
        crash.process.wait(30)
        assert crash.process.returncode == -signal.SIGSEGV  # the memory management unit rejected the write
        assert list(section["a"]) == [1, 2, 3]


def test_read_only_needs_a_section(place):
    with pytest.raises(shmem.SectionNotFound):
        shmem.SharedMemory(**place, mode="read_only", max_size=1 << 20)


def test_desired_address(place, child):
    address = 0x5500_0000_0000
    with shmem.SharedMemory(**place, max_size=1 << 20, desired_address=address) as section:
        assert section.address == address
        found = section.allocate(10).address
        end = heap_start(256) + section.check_heap().used_bytes
        assert found == address + end - BLOCK_MIN_BYTES + BLOCK_HEAD_BYTES
        other = child("section = shmem.SharedMemory(**eval(args[0])); say(section.address); sys.stdin.readline()", place)
        assert int(other.hear()) == address
        with pytest.raises(shmem.AddressInUse, match="was created for address 0x550000000000"):
            shmem.SharedMemory(**place, desired_address=address + PAGE_BYTES)
        other.tell()
        other.end()
        with shmem.SharedMemory(max_size=1 << 20) as elsewhere, pytest.raises(shmem.AddressInUse, match="not free") as caught:
            shmem.SharedMemory(elsewhere.path + ".x", max_size=1 << 20, desired_address=address)
        assert caught.value.status == shmem.Status.address_in_use
        os.unlink(elsewhere.path + ".x")


def test_handles_share_one_participant(place):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        with shmem.SharedMemory(**place) as second, shmem.SharedMemory(**place, mode="read_only"):
            assert second.address == section.address
            assert len(section.stats().participants) == 1
            second["a"] = [1]
        assert list(section["a"]) == [1]


def test_closed_handle_raises(place):
    section = shmem.SharedMemory(**place, max_size=1 << 20)
    assert section
    assert not section.closed
    lock = shmem.exclusive_lock(section)
    section.close()
    section.close()
    assert not section
    assert section.closed
    assert "closed" in repr(section)
    for use in (
        lambda: section.allocate(10),
        lambda: section["a"],
        lambda: "a" in section,
        lambda: section.root,
        section.stats,
        section.check_heap,
        lambda: section.zeros(3),
        section.__enter__,
        lock.__enter__,
        section.flush,
    ):
        with pytest.raises(shmem.ClosedError) as caught:
            use()
        assert isinstance(caught.value, ValueError)


def test_views_outlive_close(place):
    section = shmem.SharedMemory(**place, max_size=1 << 22)
    array = section.full(300_000, 7.0)
    block = section.allocate(10)
    section.close()
    array += 1
    assert array.sum() == 2_400_000
    memoryview(block)[:] = b"0123456789"
    assert os.path.exists(section.path)
    assert os.stat(section.path).st_size == 1 << 22
    assert shmem.find_storage(array) is None
    del array
    assert os.stat(section.path).st_size == 1 << 22
    del block
    assert os.path.exists(section.path) == ("file_name" in place)
    if "file_name" in place:
        assert os.stat(section.path).st_size < 1 << 22


def test_flush_before_copying_the_file(section_file, tmp_path):
    with shmem.SharedMemory(section_file, max_size=1 << 22) as section:
        section["a"] = [1, 2, 3]
        section.flush()
        shutil.copyfile(section_file, tmp_path / "copy")
    with shmem.SharedMemory(tmp_path / "copy") as copy:  # copied while it was open, and therefore recovered
        assert copy.stats().recoveries == 1
        assert list(copy["a"]) == [1, 2, 3]


def test_sparse_copy_has_backing(section_file, tmp_path):
    with shmem.SharedMemory(section_file, max_size=1 << 22) as section:
        section.zeros(100_000, name="a")
    data = Path(section_file).read_bytes()
    with open(tmp_path / "sparse", "wb") as file:
        for start in range(0, len(data), PAGE_BYTES):
            if data[start : start + PAGE_BYTES].strip(b"\0"):
                file.seek(start)
                file.write(data[start : start + PAGE_BYTES])
        file.truncate(len(data))
        os.fsync(file.fileno())
    assert os.stat(tmp_path / "sparse").st_blocks < os.stat(section_file).st_blocks - 1000
    with shmem.SharedMemory(tmp_path / "sparse"):
        assert os.stat(tmp_path / "sparse").st_blocks * 512 >= len(data)


def test_participant_table_full(section_file, child):
    section = shmem.SharedMemory(section_file, max_size=1 << 20, max_participants=2)
    code = "section = shmem.SharedMemory(args[0]); say('in'); sys.stdin.readline()"
    second = child(code, section_file)
    second.hear()
    refused = child("try: shmem.SharedMemory(args[0])\nexcept shmem.TooManyParticipants as e: say(e.status)", section_file)
    assert refused.hear() == str(int(shmem.Status.too_many_participants))
    refused.end()
    second.kill()
    third = child(code, section_file)  # takes over the dead participant's entry
    assert third.hear() == "in"
    assert len(section.stats().participants) == 2
    third.tell()
    third.end()
    section.close()


def test_replaced_file_is_detected(section_file):
    first = shmem.SharedMemory(section_file, max_size=1 << 20)
    os.unlink(section_file)
    second = shmem.SharedMemory(section_file, max_size=1 << 20)
    assert first.uuid != second.uuid
    first["a"] = [1]
    assert "a" not in second
    first.close()
    assert os.path.exists(section_file)
    second.close()


@pytest.mark.parametrize("reused", [False, True])
def test_closerange_does_not_count_as_death(place, child, reused):
    """After user code closes all descriptors, and opens files under their numbers, the process counts as alive, and so do all others."""
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        other = child(
            """
            section = shmem.SharedMemory(**eval(args[0])); os.closerange(3, 1000)
            files = [os.open(os.devnull, os.O_RDWR) for _ in range(10 if args[1] == "True" else 0)]
            with shmem.exclusive_lock(section):
                say("held"); sys.stdin.readline()
            say("released"); sys.stdin.readline()
            try: shmem.exclusive_lock(section, 0.3).__enter__()
            except shmem.LockTimeout: say("timeout")
            """,
            place,
            reused,
        )
        assert other.hear() == "held"
        with pytest.raises(shmem.LockTimeout):
            shmem.exclusive_lock(section, 0.2).__enter__()
        assert len(section.stats().participants) == 2
        other.tell()
        assert other.hear() == "released"
        with shmem.exclusive_lock(section):
            other.tell()
            assert other.hear() == "timeout"
        other.end()  # before this process leaves, because a killed last participant would leave the section behind
        assert section.owner_deaths == 0


# -- exit -----------------------------------------------------------------------------------------------


def test_exit_without_close_is_clean(section_file, child):
    other = child("section = shmem.SharedMemory(args[0], max_size=1 << 20); a = section.zeros(10, name='a')", section_file)
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 0
        assert os.stat(section_file).st_size == 1 << 20


def test_multiprocessing_child_leaves_cleanly(section_file, child):
    other = child(
        "import multiprocessing\n"
        "def work(path): shmem.SharedMemory(path, max_size=1 << 20)['a'] = [1]\n"
        "process = multiprocessing.get_context('fork').Process(target=work, args=(args[0],)); process.start(); process.join()\n"
        "say(process.exitcode)",
        section_file,
    )
    assert other.hear() == "0"
    other.end()
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 0
        assert list(section["a"]) == [1]


# -- user code that interferes --------------------------------------------------------------------------


def test_reused_descriptor_is_not_written_to(tmp_path, child):
    """A file opened after closerange() may get the section's old descriptor; it must not be truncated, extended or punched."""
    user_file = tmp_path / "precious"
    other = child(
        """
        section = shmem.SharedMemory(args[0], max_size=1 << 24)
        block = section.allocate(3 << 20); memoryview(block)[:] = b"x" * (3 << 20); section.free(block)
        os.closerange(3, 1000)
        files = [open(args[1], "w+b") for _ in range(5)]; files[0].write(b"y" * 2_000_000); files[0].flush()
        section.trim(); section.allocate(5 << 20); section.flush(); section.close()
        say("closed")
        """,
        tmp_path / "s",
        user_file,
    )
    assert other.hear() == "closed"
    other.end()
    assert user_file.read_bytes() == b"y" * 2_000_000
    with shmem.SharedMemory(tmp_path / "s") as section:
        section.check_heap()


REUSE = """
    section = shmem.SharedMemory(**eval(args[0]), max_size=1 << 20); section["a"] = [1]
    os.closerange(3, 1000)
    files = [os.open(args[1], os.O_RDWR | os.O_CREAT) for _ in range(10)]
"""
END_REUSE = """
    section.close()
    del section
    import gc; gc.collect()
    for file in files:
        os.fstat(file)
    say("all open")
"""
USES = {
    "open": "with shmem.SharedMemory(**eval(args[0])) as again: say(again.uuid == section.uuid, again['a'].tolist())",
    "remove": "os.unlink(section.path); say('True [1]')",
    "none": "say('True [1]')",
}


@pytest.mark.parametrize("use", USES)
def test_reused_descriptors(place, child, tmp_path, use):
    """After closerange() the numbers lead to the user's files: the section is opened again all the same, and none of them is closed."""
    assert child(REUSE + "    " + USES[use] + END_REUSE, place, tmp_path / "mine").end().splitlines() == ["True [1]", "all open"]


def test_fork_with_reused_descriptors(place, child, tmp_path):
    """The entry of a child is taken in the section's file, so that other processes see that the child lives."""
    code = """
    pid = os.fork()
    if pid == 0:
        with shmem.exclusive_lock(section, 5):
            say(os.getpid()); sys.stdin.readline()
        os._exit(0)
    os.waitpid(pid, 0)
    """
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        parent = child(REUSE + code + END_REUSE, place, tmp_path / "mine")
        pid = int(parent.hear())
        assert sorted(section.stats().participants) == sorted((os.getpid(), parent.process.pid, pid))
        with pytest.raises(shmem.LockTimeout):
            shmem.exclusive_lock(section, 0.2).__enter__()
        parent.tell()
        assert parent.end() == "all open\n"
        assert section.owner_deaths == 0


def test_descriptor_of_another_section(tmp_path, child):
    """After closerange() the number of a section's descriptor leads to another section, whose bytes are locked.  The dead are detected."""
    code = """
    section = shmem.SharedMemory(args[0], max_size=1 << 20)
    say("open"); sys.stdin.readline()
    os.closerange(3, 1000)
    others = [shmem.SharedMemory(f"{args[1]}/other{i}", max_size=1 << 20) for i in range(4)]
    say("closed"); sys.stdin.readline()
    import warnings; warnings.simplefilter("ignore")
    with shmem.exclusive_lock(section, 20):
        say(len(section.stats().participants))
    """
    holder = "section = shmem.SharedMemory(args[0]); lock = shmem.exclusive_lock(section); lock.__enter__(); say(1); sys.stdin.readline()"
    with contextlib.ExitStack() as stack:
        for i in range(4):
            other = stack.enter_context(shmem.SharedMemory(tmp_path / f"other{i}", max_size=1 << 20))
            keep = child("section = shmem.SharedMemory(args[0]); say(1); sys.stdin.readline()", other.path)
            assert keep.hear() == "1"
        one = child(code, tmp_path / "s", tmp_path)
        assert one.hear() == "open"
        second = child(holder, tmp_path / "s")
        assert second.hear() == "1"
        one.tell()
        assert one.hear() == "closed"
        second.kill()
        one.tell()
        assert one.hear_soon() == "1"
        one.end()


@pytest.mark.parametrize("work", ["section.free(section.allocate(200_000))", "with shmem.exclusive_lock(section): pass", "section['a']"])
def test_exit_while_daemon_threads_work(section_file, child, work):
    """The process does not crash, stderr stays empty, and the file is closed correctly."""
    for _ in range(3):
        other = child(
            f"""
            import threading, warnings
            warnings.simplefilter("ignore", shmem.OwnerDiedWarning)  # the previous run may have ended inside the lock
            section = shmem.SharedMemory(args[0], max_size=1 << 24); section.get("a") is None and section.zeros(100, name="a")
            def work():
                while True:
                    {work}
            for _ in range(3): threading.Thread(target=work, daemon=True).start()
            time.sleep(0.05)
            """,
            section_file,
        )
        other.end()
        with shmem.SharedMemory(section_file) as section:
            section.check_heap()
            assert section["a"].tolist() == [0] * 100


def test_finalisers_run_during_any_call(shm):
    """Garbage that holds arrays may be collected during any call."""
    shm.zeros(10, name="a")
    for i in range(300):
        shm[f"n{i}"] = i
    for _ in range(50):
        cycle = [shm["a"]]
        cycle.append(cycle)
        del cycle
        gc.set_threshold(1)
        try:
            assert len(list(shm)) == 301
        finally:
            gc.set_threshold(700, 10, 10)
    shm.check_heap()
