"""A section of memory that several processes map: a heap, a reader/writer lock, typed objects, numpy arrays."""

from shmem._arrays import SharedArray
from shmem._core import Block, deallocate, find_storage
from shmem._errors import (
    AddressInUse,
    ClosedError,
    DeadlockError,
    HeapCorruption,
    InvalidBlock,
    LayoutMismatch,
    LockError,
    LockTimeout,
    NameExists,
    NotASection,
    OperatingSystemError,
    OwnerDiedWarning,
    ReadOnlyError,
    SectionFull,
    SectionNotFound,
    ShmemError,
    Status,
    TooManyParticipants,
    UntrustedOwner,
    get_error_text,
)
from shmem._handles import Handle, handle
from shmem._locking import LockDescriptor, LockMode, exclusive_lock, shared_lock
from shmem._shared_memory import HeapReport, SectionStats, SharedMemory

__version__ = "0.1.0"
