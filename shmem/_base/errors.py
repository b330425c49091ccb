"""Status numbers, their texts, and the exceptions: what a user sees when something fails.

Every exception is picklable and carries ``.status``.  Own numbers are negative and fixed; a positive
one is an errno.
"""

import enum
import os
import queue

__all__ = [
    "AddressInUse",
    "ClosedError",
    "DeadlockError",
    "HeapCorruption",
    "InvalidBlock",
    "LayoutMismatch",
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
    """What a call ended in.  0 is success, own numbers are negative, a positive number is an errno."""

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


# exceptions of reading a text from a section whose memory was overwritten: to be caught and explained
DAMAGED_TEXT = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError, Warning
)  # fmt: skip


def get_error_text(status):
    """The text that goes with a status.

    Parameters
    ----------
    status : int or Status
        A negative number of the library's own, 0, or an errno.

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
    """Base of every exception that the library raises of its own.

    Attributes
    ----------
    status : int
        A `Status`, or an errno.
    """

    status = Status.corrupted

    def __reduce__(self):
        state = self.__dict__.copy()
        if isinstance(self, OSError):
            state.update(errno=self.errno, filename=self.filename)
        return type(self), self.args, state

    def __str__(self):
        return str(self.args[0]) if self.args else get_error_text(self.status)


class LockTimeout(ShmemError, TimeoutError):
    """The lock was not obtained in time."""

    status = Status.timeout_expired


class DeadlockError(ShmemError, RuntimeError):
    """A second upgrader: both hold the lock shared and want it exclusive."""

    status = Status.deadlock


class LockError(ShmemError, RuntimeError):
    """A lock descriptor was used twice, released by another thread, or never locked."""

    status = Status.not_owner


class SectionFull(ShmemError, MemoryError):
    """No room: in the section, or on the file system behind it."""

    status = Status.no_memory


class HeapCorruption(ShmemError):
    """The heap is damaged: at which offset, what was expected, what was found.

    Attributes
    ----------
    offset : int or None
        Where, in bytes from the section's start.
    """

    status = Status.corrupted
    offset = None


class NotASection(ShmemError, OSError):
    """The file is something else, or too damaged to be told for a section."""

    status = Status.not_a_section


class SectionNotFound(ShmemError, FileNotFoundError):
    """Nothing there to open, and no `max_size` to create it with."""

    status = 2


class OperatingSystemError(ShmemError, OSError):
    """The operating system refused something; `.status` and `.errno` are its number."""


class LayoutMismatch(ShmemError, TypeError):
    """A section, or a type in it, of another version or layout."""

    status = Status.layout_mismatch


class AddressInUse(ShmemError, OSError):
    """The desired address is taken in this process."""

    status = Status.address_in_use


class TooManyParticipants(ShmemError, OSError):
    """Every entry of the table of participants belongs to a live process."""

    status = Status.too_many_participants


class UntrustedOwner(ShmemError, PermissionError):
    """The section belongs to another user and `trust_owner` was not given."""

    status = Status.untrusted_owner


class ReadOnlyError(ShmemError, PermissionError):
    """A change was asked of a section that was opened read-only."""

    status = Status.read_only


class InvalidBlock(ShmemError, ValueError):
    """Not an allocated block of this section: foreign, inside another one, freed, or freed and used again."""

    status = Status.invalid_block


class NameExists(ShmemError, ValueError):
    """The directory has that name already."""

    status = Status.name_exists


class SemaphoreOverflow(ShmemError, OverflowError):
    """A semaphore's value would pass 2**31 - 1; it is as it was."""

    status = Status.value_overflow


class ClosedError(ShmemError, ValueError):
    """The handle was closed."""

    status = Status.closed


class QueueFull(ShmemError, queue.Full):
    """The queue had no room: at once, or for as long as was waited."""

    status = Status.queue_full


class QueueEmpty(ShmemError, queue.Empty):
    """The queue held nothing: at once, or for as long as was waited."""

    status = Status.queue_empty


class QueueShutDown(ShmemError, getattr(queue, "ShutDown", Exception)):
    """The queue was shut down: nothing can be put any more, and nothing is left to be got."""

    status = Status.queue_closed


class OwnerDiedWarning(UserWarning):
    """A former holder of the lock, or owner of a `Mutex`, ended without releasing it: what it was changing may be half done."""
