# cython: language_level=3
"""What `cimport shmem` gives: see `_client.pxd`."""

from shmem._client cimport (AT_ONCE, FOREVER, allocate, free, lock_exclusive, lock_shared, offset, pointer, root_offset,
                            section_t, set_root_offset, unlock_exclusive, unlock_shared)
from shmem._core cimport section_of
