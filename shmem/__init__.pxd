# cython: language_level=3
"""The names that `cimport shmem` provides; see `_client.pxd`."""

from shmem._base.status cimport CLOSED
from shmem._client cimport (
    AT_ONCE, FOREVER, allocate, block_bytes, enter, event_reset, event_signal, event_t, event_wait, free, leave, lock_exclusive,
    lock_shared, mutex_lock, mutex_t, mutex_unlock, offset, pointer, root_offset, section_t, semaphore_signal, semaphore_t, semaphore_wait,
    set_root_offset, unlock_exclusive, unlock_shared)
from shmem._core cimport section_of
