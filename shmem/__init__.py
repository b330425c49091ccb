"""A section of memory that several processes map: a heap, a reader/writer lock, typed objects, numpy arrays."""

try:
    from shmem._bridge.blocks import Block  # before numpy, because its error explains why a second interpreter cannot import it
    from shmem._objects.handles import handle  # imports every compiled module
except ImportError as _error:
    from shmem._base.unbuilt import explain_missing

    explain_missing(_error)
    raise

from shmem._base.errors import (
    AccessDenied,
    AddressInUse,
    ClosedError,
    DeadlockError,
    HeapCorruption,
    InvalidBlock,
    LayoutMismatch,
    LimitWarning,
    LockError,
    LockTimeout,
    NameExists,
    NotASection,
    OperatingSystemError,
    OwnerDiedWarning,
    QueueEmpty,
    QueueFull,
    QueueShutDown,
    ReadOnlyError,
    SectionFull,
    SectionNotFound,
    SemaphoreOverflow,
    ShmemError,
    Status,
    TooManyParticipants,
    UntrustedOwner,
    get_error_text,
)
from shmem._base.public import set_module as _set_module
from shmem._objects.attributes import Attributes
from shmem._objects.entry import Entry, info
from shmem._objects.event import Event
from shmem._objects.fields import (
    Array,
    Bytes,
    Ref,
    bool_,
    complex64,
    complex128,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from shmem._objects.finding import deallocate, find_storage
from shmem._objects.joining import register
from shmem._objects.lock import LockDescriptor, LockMode, exclusive_lock, shared_lock
from shmem._objects.lost import LostReference
from shmem._objects.mutex import Mutex
from shmem._objects.names import Group
from shmem._objects.queue import Queue
from shmem._objects.references import dumps, loads
from shmem._objects.semaphore import Semaphore
from shmem._objects.shared_memory import SharedMemory
from shmem._objects.struct import Struct

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "AddressInUse",
    "Array",
    "Attributes",
    "Block",
    "Bytes",
    "ClosedError",
    "DeadlockError",
    "Entry",
    "Event",
    "Group",
    "Handle",
    "HeapCorruption",
    "HeapReport",
    "InvalidBlock",
    "LayoutMismatch",
    "LockDescriptor",
    "LimitWarning",
    "LockError",
    "LockMode",
    "LockTimeout",
    "LostReference",
    "Mutex",
    "NameExists",
    "NotASection",
    "ObjectInfo",
    "OperatingSystemError",
    "OwnerDiedWarning",
    "Queue",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "ReadOnlyError",
    "Ref",
    "SectionFull",
    "SectionNotFound",
    "SectionStats",
    "Semaphore",
    "SemaphoreOverflow",
    "SharedMemory",
    "ShmemError",
    "Status",
    "Struct",
    "TooManyParticipants",
    "UntrustedOwner",
    "bool_",
    "complex128",
    "complex64",
    "deallocate",
    "dumps",
    "exclusive_lock",
    "find_storage",
    "float32",
    "float64",
    "get_error_text",
    "handle",
    "info",
    "int16",
    "int32",
    "int64",
    "int8",
    "loads",
    "register",
    "shared_lock",
    "uint16",
    "uint32",
    "uint64",
    "uint8",
]

_RECORDS = ("Handle", "HeapReport", "ObjectInfo", "SectionStats")  # imported on first use, see _objects/records.py
_set_module(__name__, globals(), [name for name in __all__ if name not in _RECORDS])


def __getattr__(name):
    if name not in _RECORDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shmem._objects import records

    return getattr(records, name)


def __dir__():
    return sorted({*globals(), *_RECORDS})
