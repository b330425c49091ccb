"""Status numbers, their texts, and the exceptions.

Every exception can be pickled and carries ``.status``.  The library's own numbers are negative and never change; a positive number is an
errno.
"""

import enum
import os
import queue

__all__ = [
    "AccessDenied",
    "AddressInUse",
    "ClosedError",
    "DeadlockError",
    "HeapCorruption",
    "InvalidBlock",
    "LayoutMismatch",
    "LimitWarning",
    "LockError",
    "LockTimeout",
    "NameExists",
    "NotASection",
    "OperatingSystemError",
    "OwnerDiedWarning",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "ReadOnlyError",
    "SectionFull",
    "SectionNotFound",
    "SemaphoreOverflow",
    "ShmemError",
    "Status",
    "TooManyParticipants",
    "UntrustedOwner",
    "get_error_text",
]


class Status(enum.IntEnum):
    """The status of a call: 0 is success, a negative number is the library's own, a positive number is an errno."""

    ok = 0
    timeout_expired = -1
    deadlock = -2
    owner_died = -3
    no_memory = -4
    corrupted = -5
    not_a_section = -6
    layout_mismatch = -7
    address_in_use = -8
    too_many_participants = -9
    invalid_block = -10
    already_freed = -11
    name_exists = -12
    closed = -13
    pinned = -14
    read_only = -15
    not_owner = -16
    label_mismatch = -17
    untrusted_owner = -18
    unsupported_file_system = -19
    too_many_threads = -20
    value_overflow = -21
    queue_full = -22
    queue_empty = -23
    queue_closed = -24


_TEXTS = {
    Status.ok: "success",
    Status.timeout_expired: "the lock was not acquired before the timeout expired",
    Status.deadlock: "two holders of the shared lock tried to upgrade, and each would wait for the other",
    Status.owner_died: "a holder of the lock died without releasing it",
    Status.no_memory: "the section is full",
    Status.corrupted: "the heap is damaged",
    Status.not_a_section: "not a shmem section",
    Status.layout_mismatch: "the version or layout differs",
    Status.address_in_use: "the desired address is in use in this process",
    Status.too_many_participants: "the participant table is full",
    Status.invalid_block: "not an allocated block of this section",
    Status.already_freed: "the block was freed already",
    Status.name_exists: "the name is already in use",
    Status.closed: "the handle is closed",
    Status.pinned: "another process holds a view of the block",
    Status.read_only: "the section was opened read-only",
    Status.not_owner: "this thread does not hold the lock",
    Status.label_mismatch: "the section has another shared name",
    Status.untrusted_owner: "the section belongs to another user",
    Status.unsupported_file_system: "mappings or locks of this file system are not coherent between processes",
    Status.too_many_threads: "too many threads of this process use the section",
    Status.value_overflow: "the semaphore's value would exceed its maximum",
    Status.queue_full: "the queue is full",
    Status.queue_empty: "the queue is empty",
    Status.queue_closed: "the queue was shut down",
}


# what parsing a text from a section may raise if its memory was overwritten; callers catch it and raise HeapCorruption
DAMAGED_TEXT = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError, Warning
)  # fmt: skip


def get_error_text(status):
    """Return the text of a status.

    Parameters
    ----------
    status : int or Status
        0, one of the library's own (negative) numbers, or an errno.

    Returns
    -------
    str

    Examples
    --------
    >>> import shmem
    >>> shmem.get_error_text(shmem.Status.deadlock)
    'two holders of the shared lock tried to upgrade, and each would wait for the other'
    >>> shmem.get_error_text(28)
    'No space left on device'
    """
    if status > 0:
        return os.strerror(status)
    try:
        return _TEXTS[Status(status)]
    except ValueError:
        return f"unknown status {int(status)}"


class ShmemError(Exception):
    """Base class of the exceptions of this library.

    Attributes
    ----------
    status : int
        A `Status`, or an errno.
    """

    status = Status.corrupted

    def __init__(self, *args):  # as that of `Exception`, which has no signature
        super().__init__(*args)

    def __reduce__(self):
        state = self.__dict__.copy()
        if isinstance(self, OSError):
            state.update(errno=self.errno, filename=self.filename)
        return type(self), self.args, state

    def __str__(self):
        return str(self.args[0]) if self.args else get_error_text(self.status)


class LockTimeout(ShmemError, TimeoutError):
    """The lock was not acquired in time."""

    status = Status.timeout_expired


class DeadlockError(ShmemError, RuntimeError):
    """A second holder of the shared lock tried to upgrade it, or a task tried to enter the lock of another task of its thread."""

    status = Status.deadlock


class LockError(ShmemError, RuntimeError):
    """A lock descriptor was used twice, unlocked by another thread or never locked, or a `Mutex` was released by a non-owner."""

    status = Status.not_owner


class SectionFull(ShmemError, MemoryError):
    """The section, or the file system that backs it, has no room."""

    status = Status.no_memory


class HeapCorruption(ShmemError):
    """The heap is damaged; the message states the offset, the expected value and the value found.

    Attributes
    ----------
    offset : int or None
        The place of the damage, in bytes from the start of the section.
    """

    status = Status.corrupted
    offset = None


class NotASection(ShmemError, OSError):
    """The file is not a section, semaphore or event, or is too damaged to be opened; it is not modified."""

    status = Status.not_a_section


class SectionNotFound(ShmemError, FileNotFoundError):
    """The section does not exist, and `max_size` was not passed to create it."""

    status = 2


class OperatingSystemError(ShmemError, OSError):
    """The operating system refused a request; `.status` and `.errno` are the error number."""


class AccessDenied(ShmemError, PermissionError):
    """This process may not read and write the file, or not create it."""

    status = 13


class LayoutMismatch(ShmemError, TypeError):
    """A section, or a type in it, has another version or layout."""

    status = Status.layout_mismatch


class AddressInUse(ShmemError, OSError):
    """The desired address is in use in this process."""

    status = Status.address_in_use


class TooManyParticipants(ShmemError, OSError):
    """Every entry in the participant table belongs to a live process."""

    status = Status.too_many_participants


class UntrustedOwner(ShmemError, PermissionError):
    """The section belongs to another user, and `trust_owner=True` was not passed."""

    status = Status.untrusted_owner


class ReadOnlyError(ShmemError, PermissionError):
    """The operation would change a section that was opened read-only."""

    status = Status.read_only


class InvalidBlock(ShmemError, ValueError):
    """Not an allocated block of this section: foreign, inside another one, freed, or freed and used again."""

    status = Status.invalid_block


class NameExists(ShmemError, ValueError):
    """The name is already in use in the directory."""

    status = Status.name_exists


class SemaphoreOverflow(ShmemError, OverflowError):
    """A semaphore's value would exceed 2**31 - 1; it is unchanged."""

    status = Status.value_overflow


class ClosedError(ShmemError, ValueError):
    """The handle was closed."""

    status = Status.closed


class QueueFull(ShmemError, queue.Full):
    """The queue was full, and stayed full until the timeout."""

    status = Status.queue_full


class QueueEmpty(ShmemError, queue.Empty):
    """The queue was empty, and stayed empty until the timeout."""

    status = Status.queue_empty


class QueueShutDown(ShmemError, getattr(queue, "ShutDown", Exception)):
    """The queue was shut down: no item can be put, or none is left to get."""

    status = Status.queue_closed


class LimitWarning(UserWarning):
    """A section was opened with a larger `max_size` or `max_participants` than it has; the message states the values in force."""

    def __init__(self, *args):
        super().__init__(*args)


class OwnerDiedWarning(UserWarning):
    """A previous holder of the lock, or owner of a `Mutex`, died without releasing it; the data it protects may be inconsistent."""

    def __init__(self, *args):
        super().__init__(*args)
