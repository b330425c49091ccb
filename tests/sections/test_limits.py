"""Full disks, several file systems, and limits of the process: a specific exception, and no lost data."""

import contextlib
import errno
import gc
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import shmem

PIECE = 60_000
SLACK_BYTES = 64 << 10  # of a file system's own
may_mount = os.geteuid() == 0 and subprocess.run(["mount", "--version"], capture_output=True, check=False).returncode == 0

# a sanitizer that is preloaded looks for leaks in other programs too, and cannot where they are traced: that is no answer
WITHOUT_LEAKS = {**os.environ, "ASAN_OPTIONS": f"{os.environ.get('ASAN_OPTIONS', '')}:detect_leaks=0"}


class Mounted:
    """File systems mounted below a folder, unmounted in reverse order."""

    def __init__(self, folder):
        self.folder = folder
        self.points = []

    def mount(self, name, *arguments):
        """Mount a file system; skip the test with the system's message where that is not permitted."""
        if not may_mount:
            pytest.skip("only root may mount")
        point = self.folder / name
        point.mkdir()
        done = subprocess.run(["mount", *map(str, arguments), str(point)], capture_output=True, text=True, check=False, env=WITHOUT_LEAKS)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        self.points.append(point)
        return point

    def tmpfs(self, size="2m"):
        return self.mount("tmpfs", "-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def ext4(self):
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 (e2fsprogs) is not installed")
        image = self.folder / "image"
        with open(image, "wb") as file:
            file.truncate(4 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True, capture_output=True)
        return self.mount("ext4", "-o", "loop", image)

    def overlay(self):
        below = self.tmpfs()
        for name in ("lower", "upper", "work"):
            (below / name).mkdir()
        options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
        return self.mount("overlay", "-t", "overlay", "-o", options, "overlay")


@pytest.fixture
def mounted(tmp_path):
    one = Mounted(tmp_path)
    yield one
    gc.collect()
    for point in reversed(one.points):
        subprocess.run(["umount", str(point)], check=True)


@pytest.fixture(params=["tmpfs", "ext4", "overlay"])
def small(request, mounted):
    """A folder on a small file system of the given kind."""
    folder = getattr(mounted, request.param)()
    return folder, request.param


def fill(section):
    """Allocate until the file system is full; return the blocks, each filled with its number, and the error message."""
    blocks = []
    while True:
        try:
            block = section.allocate(PIECE)
        except shmem.SectionFull as error:
            return blocks, error.status, str(error)
        memoryview(block)[:] = len(blocks).to_bytes(2, "little") * (PIECE // 2)
        blocks.append(block)


def fill_up(path):
    """Write a file that takes all free space of its file system."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with open(path, "ab") as file:
        os.fsync(file.fileno())


def are_intact(blocks):
    return all(bytes(block) == i.to_bytes(2, "little") * (PIECE // 2) for i, block in enumerate(blocks) if block is not None)


# -- full ---------------------------------------------------------------------------------------------------


def test_full_file_system(small):
    """The error names the file system and its free space; the section stays usable, and allocates again after freeing."""
    folder, kind = small
    with shmem.SharedMemory(folder / "s", max_size=1 << 26) as section:
        blocks, status, text = fill(section)
        assert len(blocks) > 15
        assert status == errno.ENOSPC
        assert f"{kind} at {folder}" in text
        assert re.search(r"has [\d,]+ bytes free", text)
        assert are_intact(blocks)
        for i, block in enumerate(blocks):
            memoryview(block)[:] = i.to_bytes(2, "little") * (PIECE // 2)  # must not raise SIGBUS
        with pytest.raises(shmem.SectionFull):
            section["name"] = bytes(PIECE)
        assert "name" not in section
        section.check_heap()
        section.free(blocks[5])
        blocks[5] = section.allocate(PIECE)
        memoryview(blocks[5])[:] = (5).to_bytes(2, "little") * (PIECE // 2)
        last = blocks.pop()
        section.free(last)
        section.trim()
        fill_up(folder / "other")
        with pytest.raises(shmem.SectionFull):
            section.allocate(PIECE)
        os.unlink(folder / "other")
        blocks.append(section.allocate(PIECE, zero=False))
        memoryview(blocks[-1])[:] = (len(blocks) - 1).to_bytes(2, "little") * (PIECE // 2)
        offsets = [block.offset for block in blocks]
        assert section.check_heap().blocks == len(blocks)
        section.flush()
    del blocks, block, last
    with shmem.SharedMemory(folder / "s") as section:
        assert section.stats().recoveries == 0
        assert are_intact([section.block(offset) for offset in offsets])
        section.check_heap()


def test_failed_allocation_returns_what_it_took(small):
    """ext4 keeps a part of what it refused; nothing of it stays taken, and other files can be written."""
    folder, _ = small

    def free():
        os.sync()
        found = os.statvfs(folder)
        return found.f_bfree * found.f_frsize

    with shmem.SharedMemory(folder / "s", max_size=1 << 26) as section:
        block = section.allocate(100_000)
        section.trim()
        before = free()
        for grow in (section.allocate, lambda size: section.reallocate(block, size)):
            with pytest.raises(shmem.SectionFull):
                grow(50 << 20)
            assert free() >= before - SLACK_BYTES
        section.check_heap()
        memoryview(block)[:] = b"x" * 100_000
        section.free(section.allocate(500_000))


def test_create_on_a_full_file_system(small):
    folder, kind = small
    fill_up(folder / "filler")
    with pytest.raises(shmem.SectionFull, match=f"{kind} at"):
        shmem.SharedMemory(folder / "s", max_size=1 << 26)
    assert not (folder / "s").exists() or (folder / "s").stat().st_size == 0
    os.unlink(folder / "filler")
    with shmem.SharedMemory(folder / "s", max_size=1 << 26) as section:
        section.check_heap()


def test_snapshot_to_a_full_file_system(small, section_file):
    folder, kind = small
    with shmem.SharedMemory(section_file, max_size=1 << 26) as section:
        section["small"] = [1, 2]
        section.snapshot(folder / "copy")
        before = (folder / "copy").read_bytes()
        section["large"] = np.ones(5_000_000, "uint8")
        for name in ("copy", "new"):
            with pytest.raises(shmem.SectionFull, match=f"{kind} at {folder}") as caught:
                section.snapshot(folder / name)
            assert caught.value.status == errno.ENOSPC
        assert set(os.listdir(folder)) - {"lost+found"} == {"copy"}
        assert (folder / "copy").read_bytes() == before
        with open(folder / "filler", "wb") as file:
            file.write(bytes(1_000_000))  # the space that it had taken is free again
        del section["large"]
        section.trim()  # a small block above it is kept for the next request
        section.snapshot(folder / "new")
        section.check_heap()
    with shmem.SharedMemory(folder / "new") as copy:
        assert list(copy) == ["small"]


def test_sparse_copy_on_a_full_file_system(small, section_file):
    """The holes of the copy need disk space: opening fails until there is enough, and does not change the file."""
    folder, kind = small
    with shmem.SharedMemory(section_file, max_size=1 << 26) as section:
        section.zeros(600_000, "uint8", name="zeros")
        section["ones"] = np.ones(1000)
    subprocess.run(["cp", "--sparse=always", section_file, str(folder / "s")], check=True)
    fill_up(folder / "filler")
    before = digest(folder / "s"), os.path.getsize(folder / "s")
    with pytest.raises(shmem.SectionFull, match=f"{kind} at {folder}"):
        shmem.SharedMemory(folder / "s")
    assert os.path.getsize(folder / "s") == before[1]
    os.unlink(folder / "filler")
    with shmem.SharedMemory(folder / "s") as section:
        assert section.stats().recoveries == 0
        section["zeros"][:] = 7
        assert section["ones"].sum() == 1000
        section.check_heap()


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


# -- liveness ------------------------------------------------------------------------------------------------

HOLD = """
section = shmem.SharedMemory(args[0], max_size=1 << 22)
with shmem.exclusive_lock(section):
    say(os.getpid()); sys.stdin.readline()
say("released"); sys.stdin.readline()
"""


def test_liveness_of_processes(small, child):
    """A process counts as alive when it runs or is stopped, even after another one was killed, and as dead once it is killed."""
    path = small[0] / "s"
    with shmem.SharedMemory(path, max_size=1 << 22) as section:
        holder = child(HOLD, path)
        pid = int(holder.hear())
        assert set(section.stats().participants) == {os.getpid(), pid}
        assert section.stats().lock_holder == pid
        holder.process.send_signal(signal.SIGSTOP)
        with pytest.raises(shmem.LockTimeout), shmem.exclusive_lock(section, 0.2):
            pass
        other = child("section = shmem.SharedMemory(args[0]); say(len(section.stats().participants)); sys.stdin.readline()", path)
        assert other.hear() == "3"
        other.kill()
        assert set(section.stats().participants) == {os.getpid(), pid}
        holder.kill()
        with pytest.warns(shmem.OwnerDiedWarning), shmem.exclusive_lock(section, 20):
            pass
        assert section.stats().participants == (os.getpid(),)
        section.check_heap()


def test_liveness_through_fork(small, child):
    """The parent is killed while its forked child lives, and the other way round."""
    path = small[0] / "s"
    code = """
    section = shmem.SharedMemory(args[0], max_size=1 << 22)
    pid = os.fork()
    if pid == 0:
        section.allocate(100); os.write(1, b"%d\\n" % os.getpid()); sys.stdin.readline(); os._exit(0)
    os.write(1, b"%d\\n" % os.getpid()); os.wait(); say("child gone"); time.sleep(60)
    """
    with shmem.SharedMemory(path, max_size=1 << 22) as section:
        for first in ("parent", "child"):
            parent = child(code, path)
            pids = {int(parent.hear()), int(parent.hear())}
            assert set(section.stats().participants) == {os.getpid(), *pids}
            (forked,) = pids - {parent.process.pid}
            os.kill(parent.process.pid if first == "parent" else forked, signal.SIGKILL)
            if first == "parent":
                parent.process.wait(20)
                assert set(section.stats().participants) == {os.getpid(), forked}
                os.kill(forked, signal.SIGKILL)
            else:
                assert parent.hear() == "child gone"
                assert set(section.stats().participants) == {os.getpid(), parent.process.pid}
                parent.kill()
            section.free(section.allocate(100))
            assert wait_until(lambda: section.stats().participants == (os.getpid(),))


CLOSES = """
section = shmem.SharedMemory(args[0], max_size=1 << 24)
os.closerange(3, 1000)
files = [os.open(os.devnull, os.O_RDWR) for _ in range(10)]
{}
section.close(); del section
for file in files:
    os.fstat(file)
"""


def test_descriptors_closed_on_overlayfs(mounted, child):
    """There a descriptor keeps the liveness lock.  After closing all of them a process takes it again when it next needs the file."""
    path = mounted.overlay() / "s"
    code = """
with shmem.exclusive_lock(section):
    section.allocate(1_300_000)
    say("holds"); sys.stdin.readline()
"""
    holder = child(CLOSES.format(code), path)
    assert holder.hear() == "holds"
    with shmem.SharedMemory(path) as section:
        assert set(section.stats().participants) == {os.getpid(), holder.process.pid}
        with pytest.raises(shmem.LockTimeout), shmem.exclusive_lock(section, 0.2):
            pass
        holder.tell()
        holder.end()
        with shmem.exclusive_lock(section, 20):
            assert section.stats().participants == (os.getpid(),)


def test_liveness_lock_is_taken_again_by_a_waiter(mounted, child):
    """A process that closed all descriptors takes its liveness lock again when it asks whether the process that it waits for is alive."""
    path = mounted.overlay() / "s"
    code = """
say("closed"); sys.stdin.readline()
try: shmem.exclusive_lock(section, 0.2).__enter__()
except shmem.LockTimeout: say("timeout")
sys.stdin.readline()
"""
    with shmem.SharedMemory(path, max_size=1 << 24) as section:
        other = child(CLOSES.format(code), path)
        assert other.hear() == "closed"
        with shmem.exclusive_lock(section):
            other.tell()
            assert other.hear() == "timeout"
        assert set(section.stats().participants) == {os.getpid(), other.process.pid}
        other.tell()
        other.end()


def test_liveness_lock_of_another_process_is_not_taken(mounted, child):
    """A process that closed all descriptors, and whose entry another process has used meanwhile, does not keep the entry from others."""
    path = mounted.overlay() / "s"
    with shmem.SharedMemory(path, max_size=1 << 24, max_participants=2) as section:
        other = child(
            CLOSES.format("say('closed'); sys.stdin.readline(); section.path; section.trim(); say('ready'); sys.stdin.readline()"), path
        )
        assert other.hear() == "closed"
        opener = "section = shmem.SharedMemory(args[0]); say(len(section.stats().participants))"
        assert child(opener, path).end() == "2\n"
        other.tell()
        assert other.hear() == "ready"
        assert child(opener, path).end() == "2\n"
        assert section.stats().participants == (os.getpid(),)
        other.tell()
        other.end()


@pytest.mark.parametrize("forks", [False, True])
def test_reused_descriptor_of_the_liveness_lock(mounted, child, forks):
    """On overlayfs the number of the descriptor that kept the liveness lock may lead to a file of the user's: it is not closed."""
    path = mounted.overlay() / "s"
    code = """
os.unlink(section.path)  # so that it cannot be opened again
if args[1] == "True":
    pid = os.fork()
    if pid == 0:
        for file in files: os.fstat(file)
        os._exit(0)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert child(CLOSES.format(code), path, forks).end() == ("0\n" if forks else "")


# -- limits of the process --------------------------------------------------------------------------------------

LIMIT = """
import contextlib, resource, signal
def limit(what, soft):
    resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))
def unlimit(what):
    resource.setrlimit(what, (resource.getrlimit(what)[1],) * 2)
def fails(call, *errors):
    try:
        call()
    except errors as error:
        say(type(error).__name__, error.status, str(error))
    else:
        say("no error")
"""


def output_lines(child, code, *args):
    return child(LIMIT + code, *args).end().splitlines()


@pytest.mark.parametrize("action", ["SIG_IGN", "SIG_DFL"])
def test_file_size_limit(section_file, tmp_path, child, action):
    """The limit raises a specific exception even where the kernel would kill: a program may have restored the default of SIGXFSZ."""
    code = """
path, copy, action = args
signal.signal(signal.SIGXFSZ, getattr(signal, action))
with shmem.SharedMemory(path, max_size=1 << 22) as section:
    section["a"] = bytes(500_000)
limit(resource.RLIMIT_FSIZE, 1 << 20)
fails(lambda: shmem.SharedMemory(path), shmem.SectionFull)             # the file would have to grow to its max_size
fails(lambda: shmem.SharedMemory(path + "2", max_size=1 << 22), shmem.SectionFull)
fails(lambda: shmem.SharedMemory(max_size=1 << 22), shmem.SectionFull)
limit(resource.RLIMIT_FSIZE, 4095)
fails(lambda: shmem.Semaphore("never-made"), shmem.SectionFull)
unlimit(resource.RLIMIT_FSIZE)
with shmem.SharedMemory(path) as section:
    limit(resource.RLIMIT_FSIZE, 1 << 18)
    say(len(section["a"]))
    fails(lambda: section.snapshot(copy), shmem.SectionFull)
    say(section.free(section.allocate(2_000_000)))                      # within the present size of the file
    section.flush()
with shmem.SharedMemory(max_size=1 << 17) as section:
    section.check_heap()
"""
    lines = output_lines(child, code, section_file, tmp_path / "copy", action)
    for line in [*lines[:4], lines[5]]:
        assert line.startswith(f"SectionFull {errno.EFBIG} ")
        assert "RLIMIT_FSIZE" in line
    assert lines[4] == "500000"
    assert not os.path.exists(tmp_path / "copy")
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 0
        assert bytes(section["a"]) == bytes(500_000)


def test_small_stack(child):
    """Space for large blocks is reserved, also where zeros must be written for it, on a thread with the smallest stack."""
    code = """
    import threading
    threading.stack_size(1 << 15 if sys.version_info < (3, 14) else 1 << 16)   # 3.14 refuses less than 52 KiB
    section = shmem.SharedMemory(max_size=1 << 28)
    def allocate():
        for _ in range(20):
            section.allocate(5 << 20, zero=False)
        say("allocated")
    thread = threading.Thread(target=allocate); thread.start(); thread.join()
    section.close()
    """
    assert child(code).end() == "allocated\n"


@pytest.mark.parametrize("free", range(4))
def test_no_descriptors_left(section_file, tmp_path, child, free):
    """Opening with too few descriptors raises a specific exception; an open section works, also in a new child, and closes cleanly."""
    code = """
path, free = args[0], int(args[1])
section = shmem.SharedMemory(path, max_size=1 << 22); section["a"] = [1, 2, 3]
anonymous = shmem.SharedMemory(max_size=1 << 20); say(anonymous.path)
highest = max(int(name) for name in os.listdir("/proc/self/fd"))
fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
limit(resource.RLIMIT_NOFILE, fillers[-1] + 1)
for filler in fillers[:free]:
    os.close(filler)
say(section["a"].sum())
try:
    shmem.SharedMemory(path + "2", max_size=1 << 20).close(); say("opened")
except OSError as error:
    say(type(error).__name__, error.status, str(error))
section.free(section.allocate(2_000_000))
pid = os.fork()
if pid == 0:
    try:
        with shmem.exclusive_lock(section, 5):
            section["a"][0] = 5
        section.free(section.allocate(100)); code = 0
    except shmem.OperatingSystemError as error:
        code = 1 if error.errno == 24 else 2
        unlimit(resource.RLIMIT_NOFILE)
        with shmem.exclusive_lock(section, 5):
            section["a"][0] = 5
    os._exit(code)
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), section["a"][0])
section.close(); anonymous.close()
del section, anonymous
say("closed")
"""
    place, *lines = output_lines(child, code, section_file, free)
    assert lines[0] == "6"
    assert lines[1] == "opened" if free == 3 else lines[1].startswith(f"OperatingSystemError {errno.EMFILE} "), lines[1]
    assert lines[2] in ("0 5", "1 5")
    assert lines[3] == "closed"
    assert not os.path.exists(place)
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 0  # closed cleanly without a spare descriptor
        assert section["a"].tolist() == [5, 2, 3]
        section.check_heap()
    with shmem.SharedMemory(section_file + "2", max_size=1 << 20) as section:
        section.check_heap()


def test_operations_without_descriptors(section_file, tmp_path, child):
    """An operation that needs a descriptor raises and leaves nothing behind; an open section continues to work."""
    code = """
path, copy, name = args
section = shmem.SharedMemory(path, max_size=1 << 24); section["a"] = [1, 2, 3]
queue = section.queue(10, "int64", name="queue"); old = shmem.Semaphore(name, 1)
fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
limit(resource.RLIMIT_NOFILE, fillers[-1] + 1)
fails(lambda: section.snapshot(copy), OSError)
fails(lambda: shmem.Semaphore(name + "2"), OSError)
fails(lambda: shmem.Event(name + "2"), OSError)
fails(lambda: shmem.Semaphore(name), OSError)
fails(lambda: shmem.SharedMemory(path), OSError)
say(os.path.exists(copy))
queue.put(7); say(section["queue"].get(), shmem.handle(section["a"]).open().sum())
big = section.zeros(10_000_000, "uint8"); say(big.sum())
old.signal(); say(old.wait(0), old.wait(0), old.wait(0))
with shmem.exclusive_lock(section, 5), section.mutex():
    section.check_heap()
for filler in fillers:
    os.close(filler)
section.snapshot(copy); shmem.Semaphore(name + "2").unlink(); old.unlink(); say("again")
"""
    lines = output_lines(child, code, section_file, tmp_path / "copy", f"test-{os.getpid()}-limits")
    for line in lines[:5]:
        assert line.startswith(f"OperatingSystemError {errno.EMFILE} "), line
    assert lines[5:] == ["False", "7 6", "0", "True True False", "again"]


def test_growing_without_address_space(section_file, child):
    """Opening with a max_size larger than the address space fails and does not change the file, which opens with its own size."""
    code = """
path, name = args
with shmem.SharedMemory(path, max_size=1 << 22) as section:
    section["a"] = [1, 2, 3]
before = os.path.getsize(path)
with open("/proc/self/statm") as file:
    limit(resource.RLIMIT_AS, int(file.read().split()[0]) * 4096 + (1 << 26))
fails(lambda: shmem.SharedMemory(path, max_size=1 << 30), shmem.SectionFull)
say(os.path.getsize(path) == before)
with shmem.SharedMemory(path) as section:
    say(section.max_size == 1 << 22, section["a"].sum(), section.stats().recoveries)
    one = shmem.Semaphore(name, 1); say(one.wait(0))
    fillers = []
    import mmap
    size = 1 << 26
    while size >= 4096:
        try:
            fillers.append(mmap.mmap(-1, size))
        except (OSError, MemoryError):
            size //= 2
    fails(lambda: shmem.Semaphore(name), OSError, MemoryError)
    fails(lambda: shmem.SharedMemory(max_size=1 << 20), OSError, MemoryError)
    section["a"][0] = 5; one.signal(); say(one.wait(0), section["a"][0])
    del fillers
    one.unlink()
"""
    lines = output_lines(child, code, section_file, f"test-{os.getpid()}-space")
    assert lines[0].startswith(f"SectionFull {errno.ENOMEM} ")
    assert lines[1:4] == ["True", "True 6 0", "True"]
    for line in lines[4:6]:
        assert line.startswith(f"SectionFull {errno.ENOMEM} "), line
    assert lines[6] == "True 5"


def test_no_address_space_left(section_file, tmp_path, child):
    code = """
path = args[0]
with shmem.SharedMemory(path, max_size=1 << 30) as section:
    section["a"] = [1, 2, 3]
before = os.path.getsize(path)
with open("/proc/self/statm") as file:
    limit(resource.RLIMIT_AS, int(file.read().split()[0]) * 4096 + (1 << 28))
fails(lambda: shmem.SharedMemory(path), shmem.SectionFull)
say(os.path.getsize(path) == before)
fails(lambda: shmem.SharedMemory(path, mode="read_only"), shmem.SectionFull)
fails(lambda: shmem.SharedMemory(max_size=1 << 30), shmem.SectionFull)
with shmem.SharedMemory(path + "2", max_size=1 << 26) as section:
    section["b"] = bytes(30_000_000)
    try:
        section.snapshot(args[1]); say("copied")
        bytearray(1 << 28)
    except MemoryError as error:
        say(type(error).__name__)
    section.check_heap()
unlimit(resource.RLIMIT_AS)
with shmem.SharedMemory(path) as section:
    say(section["a"].sum(), section.stats().recoveries)
"""
    lines = output_lines(child, code, section_file, tmp_path / "copy")
    for line in (lines[0], lines[2], lines[3]):
        assert line.startswith(f"SectionFull {errno.ENOMEM} ")
        assert "RLIMIT_AS" in line
        assert f"max_size is {1 << 30:,}" in line
    assert lines[1] == "True"
    assert lines[4:] == ["copied", "MemoryError", "6 0"]


# -- /dev/shm itself, and no /proc ----------------------------------------------------------------------------


def in_namespace(mount):
    """Return a command that runs a program in a mount namespace of its own; skip the test where that is not permitted."""
    before = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    try:
        done = subprocess.run([*before, "true"], capture_output=True, text=True, check=False, env=WITHOUT_LEAKS)
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    return before


@pytest.mark.parametrize("call", ["allocate", "reallocate", "name", "open", "semaphore"])
def test_leftovers_are_removed_before_full(child, call):
    """A process that has looked for leftovers already meets those that were made since, which fill /dev/shm."""
    code = '''
import signal, subprocess
section = shmem.SharedMemory(max_size=1 << 26)
block = section.allocate(10)
killed = """
import os, shmem, signal
section = shmem.SharedMemory(max_size=1 << 26)
while True:
    try:
        section.allocate(4000, zero=False)
    except shmem.SectionFull:
        os.kill(os.getpid(), signal.SIGKILL)
"""
say(subprocess.run([sys.executable, "-P", "-c", killed]).returncode == -signal.SIGKILL, len(os.listdir("/dev/shm")))
if args[0] == "allocate":
    section.allocate(2_000_000)
elif args[0] == "reallocate":
    section.reallocate(block, 2_000_000)
elif args[0] == "name":
    section.zeros(2_000_000, "u1", name="array")
elif args[0] == "open":
    shmem.SharedMemory(shared_name="other", max_size=1 << 20).close()
else:
    shmem.Semaphore("new").unlink()
say(len(os.listdir("/dev/shm")))
'''
    lines = child(code, call, before=in_namespace("mount -t tmpfs -o size=4m tmpfs /dev/shm")).end().splitlines()
    assert lines == ["True 2", "1"]


def test_full_dev_shm(child):
    """Sections, their queues and locks, and named semaphores and events, when no page is left."""
    code = """
def full(call):
    try:
        call()
    except shmem.SectionFull as error:
        say(error.status, "tmpfs at /dev/shm" in str(error) and "bytes free" in str(error))
    else:
        say("not full")
section = shmem.SharedMemory(max_size=1 << 26)
queue = section.queue(10, "int64", name="queue"); queue.put(5); section.mutex(name="mutex"); section.semaphore(3, name="semaphore")
old = shmem.Semaphore("old", 2)
blocks = []
try:
    while True:
        blocks.append(section.allocate(60_000)); memoryview(blocks[-1])[:] = bytes([len(blocks)]) * 60_000
except shmem.SectionFull:
    say(len(blocks) > 15)
with open("/dev/shm/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(bytes(4096)):
            pass
    except OSError:
        pass
full(lambda: section.allocate(1_000_000))
full(lambda: section.queue(100_000, "int64"))
full(lambda: section.zeros(1_000_000, name="array"))
full(lambda: shmem.SharedMemory(max_size=1 << 20))
full(lambda: shmem.Semaphore("new"))
full(lambda: shmem.Event("new"))
say("array" in section, sorted(name for name in os.listdir("/dev/shm") if not name.startswith("shmem.anonymous")))
for i, block in enumerate(blocks):
    assert bytes(block) == bytes([i + 1]) * 60_000
    memoryview(block)[:] = bytes(60_000)
queue.put(6); say(queue.get(), queue.get(), old.wait(0), section["semaphore"].wait(0))
with shmem.exclusive_lock(section), section["mutex"]:
    section.check_heap()
for block in blocks[5:]:
    section.free(block)
block = section.allocate(200_000); memoryview(block)[:] = b"x" * 200_000
section.free(block); section.trim()
os.unlink("/dev/shm/filler")
shmem.Semaphore("new", 1).unlink(); shmem.Event("new").unlink(); old.unlink()
with shmem.SharedMemory(max_size=1 << 20) as other:
    other.allocate(1000)
say(section.check_heap().blocks > 5)
section.close()
del section, queue, block, blocks
import gc; gc.collect()
say(os.listdir("/dev/shm"))
"""
    lines = child(code, before=in_namespace("mount -t tmpfs -o size=2m tmpfs /dev/shm")).end().splitlines()
    assert lines[0] == "True"
    assert lines[1:7] == [f"{errno.ENOSPC} True"] * 6
    assert lines[7] == "False ['filler', 'shmem-semaphore.old']"
    assert lines[8:] == ["5 6 True True", "True", "[]"]


@pytest.mark.parametrize("hidden", ["tmpfs", "nothing"])
def test_works_without_proc(section_file, tmp_path, child, hidden):
    """Everything works, and live processes are still recognised."""
    code = """
path, copy, name = args
section = shmem.SharedMemory(path, max_size=1 << 20); section["a"] = [1]
anonymous = shmem.SharedMemory(max_size=1 << 20); anonymous.zeros(10, name="b")
with shmem.SharedMemory(path) as again:
    say(again["a"][0], os.path.exists("/proc/self/fd"))
pid = os.fork()
if pid == 0:
    with shmem.exclusive_lock(section, 5):
        section["a"][0] = 2
        os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
try:
    import warnings; warnings.simplefilter("error")
    with shmem.exclusive_lock(section, 20):
        say("no owner died")
except shmem.OwnerDiedWarning:
    say(section["a"][0], len(section.stats().participants))
section.snapshot(copy)
one = shmem.Semaphore(name, 1); say(one.wait(0)); one.unlink()
try:
    shmem.SharedMemory(path + "2")
except shmem.SectionNotFound:
    say("not found")
section.close(); anonymous.close()
"""
    before = in_namespace("mount -t tmpfs tmpfs /proc") if hidden == "tmpfs" else ()
    there = str(hidden == "nothing")
    lines = child(code, section_file, tmp_path / "copy", f"test-{os.getpid()}-proc", before=before).end().splitlines()
    assert lines == [f"1 {there}", "2 1", "True", "not found"]
    for path in (section_file, tmp_path / "copy"):
        with shmem.SharedMemory(path) as section:
            assert section.stats().recoveries == 0
            assert section["a"].tolist() == [2]
            section.check_heap()
