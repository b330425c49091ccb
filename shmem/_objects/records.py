"""The frozen records that the library returns: `Handle`, `HeapReport` and `SectionStats`.

This module is imported before the first section is opened, because making dataclasses is a noticeable part of an import.
"""

import dataclasses

from shmem._base.errors import ClosedError, NotASection
from shmem._objects import arrays, finding
from shmem._objects.shared_memory import SharedMemory


@dataclasses.dataclass(frozen=True)
class Handle:
    """A reference to something in a section that can be pickled and sent to another process of this machine.

    Made by `handle`.  It keeps nothing alive: the sender keeps the object until the receiver has opened it.
    """

    __module__ = "shmem"
    path: str
    name: str
    anonymous: bool
    uuid: bytes
    mode: str
    offset: int = 0
    serial: int = 0
    view: tuple | None = None

    def open(self):
        """Attach to the section if need be, and return the object.

        Raises
        ------
        SectionNotFound, NotASection
            The section is gone, or another has its name now.
        InvalidBlock
            The object was freed meanwhile.
        """
        section = finding.find_open(self.uuid, self.mode) or self._attach()
        if self.offset == 0:
            return section
        try:
            found = finding.reopen(section, self.offset, self.serial)
        except ClosedError:  # it was another thread's, which has closed it by now
            found = finding.reopen(self._attach(), self.offset, self.serial)
        return found if self.view is None else arrays.view_again(found, *self.view)

    def _attach(self):
        place = {"shared_name": self.name} if self.anonymous else {"file_name": self.path}
        section = SharedMemory(**place, mode=self.mode)
        if section.uuid != self.uuid:
            section.close()
            raise NotASection(f"cannot open {self.path!r}: the name now belongs to another section")
        return section


@dataclasses.dataclass(frozen=True)
class HeapReport:
    """What `SharedMemory.check_heap` counted.  Sizes are bytes, tags included."""

    __module__ = "shmem"

    blocks: int
    """Allocated blocks of the user's: arrays, objects, plain ones."""
    internal_blocks: int
    """Blocks that hold names and types."""
    pending_blocks: int
    """Blocks that a live process is just making."""
    used_bytes: int
    holes: int
    hole_bytes: int
    largest_hole: int
    cached_blocks: int
    """Freed blocks that wait for the next request of their size."""
    cached_bytes: int


@dataclasses.dataclass(frozen=True)
class SectionStats:
    """What `SharedMemory.stats` found.  Sizes are bytes."""

    __module__ = "shmem"

    max_size: int
    used: int
    """In allocated blocks, tags included."""
    free: int
    """In holes, in cached blocks, and above the last block."""
    largest_hole: int
    """The largest free piece, the space above the last block included."""
    blocks: int
    holes: int
    cached_blocks: int
    top: int
    """Where the last block ends."""
    reserved: int
    """Up to here memory or disk space is taken."""
    high_water: int
    """The largest that `top` ever was."""
    participants: tuple[int, ...]
    """Process ids, each as the process itself sees it: in another PID namespace it has another."""
    lock_holder: int | None
    """Process id of who holds the storage lock exclusively, or waits for readers to leave."""
    lock_sharers: int
    """Threads that hold it shared."""
    lock_waiters: int
    """Threads asleep on it."""
    owner_deaths: int
    recoveries: int
