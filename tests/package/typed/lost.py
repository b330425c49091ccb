"""What type checkers infer about placeholders; `tests/package/test_types.py` runs `check`, which states the same about the objects."""

from typing import Any, assert_type

import shmem


def check(shm: shmem.SharedMemory) -> None:
    lost = shmem.LostReference(shmem.InvalidBlock("freed"), shmem.handle(shm))
    assert str(assert_type(lost.lost_error, Exception)) == "freed"
    assert assert_type(lost.lost_handle, shmem.Handle[Any] | None) == shmem.handle(shm)
