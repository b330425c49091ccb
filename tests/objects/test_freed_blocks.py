"""A Block whose block was freed keeps no section mapped."""

import gc
import os

import numpy as np
import pytest

import shmem


def is_mapped(path):
    with open("/proc/self/maps") as file:
        return any(line.rstrip().endswith(path) for line in file)


FREE = {
    "free": lambda shm, block: shm.free(block),
    "deallocate": lambda shm, block: shmem.deallocate(block),
    "reallocate": lambda shm, block: shm.free(shm.reallocate(block, 100_000).offset),
}


@pytest.mark.parametrize("how", FREE)
def test_freed_block_does_not_keep_the_section(section_file, how):
    shm = shmem.SharedMemory(section_file, max_size=1 << 20)
    block, behind = shm.allocate(1000), shm.allocate(10)
    offset, before = block.offset, hash(block)
    FREE[how](shm, block)
    shm.free(behind)
    shm.close()
    assert not is_mapped(section_file)
    assert os.path.getsize(section_file) < 100_000
    assert (block.offset, block.nbytes, hash(block)) == (offset, 1000, before)
    assert block == block
    assert block.section is shm
    assert "1000 bytes" in repr(block)
    for use in (memoryview, bytes, shmem.deallocate, shmem.handle, lambda it: shmem.SharedMemory(section_file).set_root_object(it)):
        with pytest.raises(shmem.InvalidBlock, match="freed"):
            use(block)


def test_views_of_a_freed_block_keep_the_section(section_file):
    shm = shmem.SharedMemory(section_file, max_size=1 << 20)
    block = shm.allocate(1000)
    view, array = memoryview(block), np.frombuffer(block, np.uint8)
    shm.free(block)
    shm.close()
    assert is_mapped(section_file)
    assert view[0] == array[0]
    view.release()
    assert is_mapped(section_file)
    del array
    gc.collect()
    assert not is_mapped(section_file)
    with pytest.raises(shmem.InvalidBlock):
        memoryview(block)


def test_refused_free_changes_nothing(section_file):
    shm = shmem.SharedMemory(section_file, max_size=1 << 20)
    block = shm.allocate(1000)
    same = shm.block(block.offset)
    shm.free(same)
    with pytest.raises(shmem.InvalidBlock):
        shm.free(block)
    del block, same
    shm.close()
    assert not is_mapped(section_file)
