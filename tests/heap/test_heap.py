"""Blocks: sizes, alignment, misuse, and what check_heap detects.  The stateful test is in testing/test_heap_machine.py."""

import errno
import os
import resource
import subprocess

import numpy as np
import pytest

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_MAX_ALIGN_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    LAYOUT,
    STATE_USED,
)

BLOCK = LAYOUT["block_t"]
INDEXES = ["tlsf", "next_fit"]


@pytest.fixture(params=INDEXES)
def shm(request):
    with shmem.SharedMemory(max_size=1 << 22, index=request.param) as section:
        assert section.index == request.param
        yield section
        section.check_heap()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 24, 25, 40, 41, 1024, 1025, 1056, 4096, 100_000, 1_000_000])
def test_block_sizes(shm, size):
    block = shm.allocate(size)
    assert block.nbytes == len(block) == size
    assert bytes(block) == bytes(size)
    memoryview(block)[:] = b"\xff" * size
    assert shm.block(block.offset) == block
    assert bytes(shm.block(block.offset)) == b"\xff" * size
    shm.check_heap()
    shm.free(block)
    assert bytes(shm.allocate(size)) == bytes(size)


@pytest.mark.parametrize("align", [1, 2, BLOCK_ALIGN_BYTES, 32, 64, 128, BLOCK_MAX_ALIGN_BYTES])
def test_block_alignment(shm, align):
    blocks = [shm.allocate(size, align=align) for size in (1, 100, 1000, 17)]
    for block in blocks:
        assert block.offset % align == 0
        assert block.address % align == 0
        assert block.offset % BLOCK_ALIGN_BYTES == 0
    shm.check_heap()
    for block in blocks[::2] + blocks[1::2]:
        shm.free(block)
    assert shm.check_heap().blocks == 0


@pytest.mark.parametrize("align", [0, -16, 3, 48, 2 * BLOCK_MAX_ALIGN_BYTES])
def test_wrong_alignment_raises(shm, align):
    with pytest.raises(ValueError, match="power of two"):
        shm.allocate(10, align=align)


def test_wrong_sizes_raise(shm):
    with pytest.raises(ValueError, match="must be non-negative"):
        shm.allocate(-1)
    with pytest.raises(TypeError):
        shm.allocate(1.5)
    for size in (1 << 22, 1 << 40, 1 << 62, (1 << 64) - 1, 1 << 64, 1 << 200):
        with pytest.raises(shmem.SectionFull) as caught:
            shm.allocate(size)
        assert caught.value.status == shmem.Status.no_memory
        assert isinstance(caught.value, MemoryError)
    assert shm.check_heap().blocks == 0


def fill(section, blocks, size):
    while True:
        blocks.append(section.allocate(size))


def test_full_section_is_usable_after_free(shm):
    blocks = []
    with pytest.raises(shmem.SectionFull, match="bytes free"):
        fill(shm, blocks, 50_000)
    for number, block in enumerate(blocks):
        memoryview(block)[:4] = number.to_bytes(4, "little")
    assert [int.from_bytes(bytes(block)[:4], "little") for block in blocks] == list(range(len(blocks)))
    shm.free(blocks.pop())
    blocks.append(shm.allocate(50_000))
    for block in blocks:
        shm.free(block)
    shm.allocate(4_000_000)


def test_cached_blocks_are_reused_before_full(shm):
    blocks = [shm.allocate(1000) for _ in range(64)]
    for block in blocks:
        shm.free(block)
    assert shm.check_heap().cached_blocks > 0
    shm.free(shm.allocate(4_100_000))
    assert shm.check_heap().cached_blocks == 0


def test_internal_blocks_cannot_be_freed(shm):
    shm["a"] = [1.0, 2.0]
    shm["b"] = b"bytes"
    freed = 0
    for offset in range(0, shm.stats().top, BLOCK_ALIGN_BYTES):
        try:
            shm.free(shm.block(offset).offset)
            freed += 1
        except shmem.InvalidBlock:
            continue
    assert freed == 2
    assert list(shm) == ["a", "b"]
    report = shm.check_heap()
    assert (report.blocks, report.internal_blocks) == (0, 3)


def test_free_of_stale_or_foreign_blocks_raises(shm):
    block, other = shm.allocate(100), shm.allocate(100)
    shm.free(block)
    with pytest.raises(shmem.InvalidBlock, match="freed already") as caught:
        shm.free(block)
    assert isinstance(caught.value, ValueError)
    again = shm.allocate(100)
    assert again.offset == block.offset
    with pytest.raises(shmem.InvalidBlock, match="freed already"):
        shm.free(block)
    with pytest.raises(shmem.InvalidBlock, match="freed already"):
        memoryview(block)
    with shmem.SharedMemory(max_size=1 << 20) as elsewhere, pytest.raises(shmem.InvalidBlock, match="is not in section"):
        elsewhere.free(other)
    for offset in (0, 8, 17, other.offset + BLOCK_ALIGN_BYTES, other.offset - BLOCK_HEAD_BYTES, 1 << 21, 1 << 22, 1 << 63, 1 << 70, -16):
        with pytest.raises(shmem.InvalidBlock):
            shm.free(offset)
        with pytest.raises(shmem.InvalidBlock):
            shm.block(offset)
    for nonsense in (b"bytes", "text", None, 1.5, np.zeros(3)):
        with pytest.raises(shmem.InvalidBlock):
            shm.free(nonsense)
    assert shm.check_heap().blocks == 2
    shm.free(other.offset)
    shmem.deallocate(again)
    assert shm.check_heap().blocks == 0


def test_free_twice_raises(shm):
    blocks = [shm.allocate(5000) for _ in range(4)]
    for order in (0, 1, 3, 2):
        shm.free(blocks[order])
        for freed in blocks[order : order + 1]:
            with pytest.raises(shmem.InvalidBlock, match="freed already"):
                shm.free(freed.offset)
    assert shm.check_heap().used_bytes == 0


def test_offset_inside_a_block_is_rejected(shm):
    block = shm.allocate(4096)
    view, at, size = memoryview(block), 5 * BLOCK_ALIGN_BYTES, 64
    BLOCK["tag"].write(view, size | STATE_USED, at)
    BLOCK["serial"].write(view, 1, at)
    view[at + size - BLOCK_REAR_BYTES : at + size] = size.to_bytes(BLOCK_REAR_BYTES, "little")  # a rear tag with a wrong seal
    with pytest.raises(shmem.InvalidBlock):
        shm.free(block.offset + at + BLOCK_HEAD_BYTES)
    shm.free(block)


@pytest.mark.damages
def test_write_past_the_end_is_detected(shm):
    n_bytes = BLOCK_MIN_BYTES - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES
    first, second = shm.allocate(n_bytes), shm.allocate(n_bytes)
    assert second.offset == first.offset + BLOCK_MIN_BYTES
    raw = np.frombuffer(memoryview(first), "u1")
    past = np.lib.stride_tricks.as_strided(raw, (n_bytes + BLOCK_REAR_BYTES,), writeable=True)[n_bytes:]
    saved = past.copy()
    past[:] = 0x41
    with pytest.raises(shmem.HeapCorruption, match="end of this block was overwritten") as caught:
        shm.check_heap()
    assert caught.value.offset == first.offset - BLOCK_HEAD_BYTES
    with pytest.raises(shmem.HeapCorruption):
        shm.free(first)
    past[:] = saved
    shm.check_heap()
    shm.free(first)


@pytest.mark.parametrize("zero", [True, False])
def test_reallocate(shm, zero):
    block = shm.allocate(100)
    memoryview(block)[:] = bytes(range(100))
    for size in (50, 100, 101, 400, 30, 5000, 4990, 100_000, 10):
        kept = bytes(block)[:size]
        block = shm.reallocate(block, size, zero=zero)
        assert block.nbytes == size
        assert bytes(block)[: len(kept)] == kept
        if zero:
            assert not any(bytes(block)[len(kept) :])
        memoryview(block)[:] = bytes(i % 251 for i in range(size))
        shm.check_heap()
    assert shm.check_heap().blocks == 1


def test_old_handles_of_a_shrunk_block_raise(shm):
    """The bytes behind the new end may belong to another block."""
    block = shm.allocate(1000)
    other = shm.block(block.offset)
    smaller = shm.reallocate(block, 16)
    assert smaller.offset == other.offset
    for old in (block, other):
        with pytest.raises(shmem.InvalidBlock, match="made smaller"):
            memoryview(old)
    assert memoryview(smaller).nbytes == memoryview(shm.block(other.offset)).nbytes == 16


def test_reallocate_moves_and_invalidates(shm):
    block, wall = shm.allocate(100), shm.allocate(100)
    memoryview(block)[:] = b"a" * 100
    moved = shm.reallocate(block, 100_000)
    assert moved.offset != block.offset
    assert bytes(moved) == b"a" * 100 + bytes(99_900)
    with pytest.raises(shmem.InvalidBlock):
        shm.free(block)
    with pytest.raises(shmem.SectionFull):
        shm.reallocate(moved, 1 << 23)
    assert bytes(moved)[:100] == b"a" * 100
    with pytest.raises(TypeError, match="takes a Block"):
        shm.reallocate(shm.zeros(3), 100)
    shm.free(wall)


def test_reused_memory_is_zeroed(shm):
    for size in (10, 1000, 1025, 70_000, 2_000_000):
        block = shm.allocate(size, zero=False)
        memoryview(block)[:] = b"\xee" * size
        shm.free(block)
        assert not any(bytes(shm.allocate(size)))
        shm.trim()


def test_trim_releases_memory(shm):
    block = shm.allocate(3_000_000)
    memoryview(block)[:] = b"\x01" * 3_000_000
    taken = os.stat(shm.path).st_blocks
    shm.free(block)
    shm.trim()
    assert os.stat(shm.path).st_blocks < taken - 5000
    assert shm.stats().reserved < 200_000
    assert not any(bytes(shm.allocate(3_000_000)))


def test_find_storage_returns_the_section(shm):
    block, array = shm.allocate(100), shm.zeros(4)
    assert shmem.find_storage(block) is shm
    assert shmem.find_storage(memoryview(block)[3:]) is shm
    assert shmem.find_storage(array[1:]) is shm
    assert shmem.find_storage(block.address + 50) is shm
    assert shmem.find_storage(np.zeros(3)) is None
    assert shmem.find_storage(b"abc") is None
    assert shmem.find_storage(b"") is None
    assert shmem.find_storage(1 << 70) is None
    assert block.section is shm


def test_root_object(shm):
    assert shm.root is None
    block = shm.allocate(10)
    shm.root = block
    assert shm.get_root_object() == block
    assert shm.require_root(lambda: pytest.fail("there is one")) == block
    shm.set_root_object(None)
    assert shm.get_root_object() is None
    made = shm.require_root(lambda: shm.zeros(3))
    assert list(made) == [0, 0, 0]
    with pytest.raises(shmem.InvalidBlock):
        shm.root = b"bytes"
    shm.free(block)
    with pytest.raises(shmem.InvalidBlock):
        shm.root = block


def test_stats(shm):
    empty = shm.stats()
    assert empty.blocks == empty.used == 0
    assert empty.participants == (os.getpid(),)
    block = shm.allocate(1000)
    stats = shm.stats()
    assert stats.blocks == 1
    assert stats.used == 1024
    assert stats.free == empty.free - 1024
    assert stats.largest_hole <= stats.free
    assert (stats.lock_holder, stats.lock_waiters) == (None, 0)
    with shmem.exclusive_lock(shm):
        assert shm.stats().lock_holder == os.getpid()
    with shmem.shared_lock(shm):
        assert shm.stats().lock_sharers == 1
    shm.free(block)


def test_growth_reserves_space_only_as_used(tmp_path):
    with shmem.SharedMemory(tmp_path / "s", max_size=1 << 36) as section:
        assert os.stat(section.path).st_blocks * 512 < 4 << 20
        section.allocate(10 << 20)
        assert 10 << 20 <= os.stat(section.path).st_blocks * 512 < 40 << 20


def test_file_size_limit_is_section_full(tmp_path):
    """When RLIMIT_FSIZE prevents creating or growing a section, SectionFull names the file system, and no data is lost."""
    with shmem.SharedMemory(tmp_path / "s", max_size=1 << 19) as section:
        section["kept"] = [1, 2, 3]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        for path in (tmp_path / "s", tmp_path / "new"):
            with pytest.raises(shmem.SectionFull, match=r" at /.*bytes free") as caught:
                shmem.SharedMemory(path, max_size=1 << 24)
            assert caught.value.status == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with shmem.SharedMemory(tmp_path / "s", max_size=1 << 24) as section:
        assert list(section["kept"]) == [1, 2, 3]
        section.allocate(8 << 20)
        section.check_heap()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_full_file_system_is_section_full(tmp_path):
    """On a full disk allocation raises SectionFull, never SIGBUS, and succeeds again after freeing."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"mounting is not permitted here: {mount.stderr.decode()}")
    try:
        with shmem.SharedMemory(tmp_path / "s", max_size=1 << 26) as section:
            blocks = []
            with pytest.raises(shmem.SectionFull, match=f"tmpfs at {tmp_path}.*bytes free") as caught:
                fill(section, blocks, 100_000)
            assert caught.value.status == errno.ENOSPC
            assert len(blocks) > 10
            for block in blocks:
                memoryview(block)[:] = b"\x01" * 100_000
            section.free(blocks.pop())
            blocks.append(section.allocate(100_000))
            assert section.check_heap().blocks == len(blocks)
            del block, blocks, caught  # its traceback refers to the blocks
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
