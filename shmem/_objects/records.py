"""The frozen records that the library returns: `Handle`, `HeapReport`, `ObjectInfo` and `SectionStats`.

This module is imported before the first section is opened, because making dataclasses is a noticeable part of an import.
"""

import contextlib
import dataclasses
import types

from shmem._base.errors import ClosedError, NotASection
from shmem._objects import arrays, claims, finding
from shmem._objects.shared_memory import SharedMemory


@dataclasses.dataclass(frozen=True)
class Handle:
    """A reference to an object in a section, which can be pickled and sent to another process of this machine.

    Handles are made by `handle`.  A handle does not keep the object alive, unless it was made with a claim: otherwise the sender must keep
    the object until the receiver has opened the handle.
    """

    __module__ = "shmem"
    path: str
    name: str
    anonymous: bool
    uuid: bytes
    device: int
    inode: int
    mode: str
    offset: int = 0
    serial: int = 0
    view: tuple | None = None
    claim: tuple | None = None

    __class_getitem__ = classmethod(types.GenericAlias)  # Handle[Node], for annotations: the type of what `open` returns

    def __reduce__(self):
        return Handle, (self.path, self.name, self.anonymous, self.uuid, self.device, self.inode, self.mode, self.offset, self.serial,
                        self.view, self.claim)  # fmt: skip

    def _with_claim(self, claim):
        return dataclasses.replace(self, claim=claim)

    def open(self, *, writeable=True):
        """Attach to the section if necessary, and return the object.

        Parameters
        ----------
        writeable : bool, default True
            If False, the object comes from a read-only mapping of the section: writing to it raises, whatever it is.

        Returns
        -------
        object
            What was passed to `handle`: an array, view, typed object, queue, block or section.

        Raises
        ------
        SectionNotFound, NotASection
            The section was removed, or its name now belongs to another section.
        InvalidBlock
            The object was freed meanwhile.
        """
        mode = self.mode if writeable else "read_only"
        section = finding.find_open(self.uuid, mode, self.device, self.inode) or self._attach(mode)
        if self.offset == 0:
            return section
        try:
            found = finding.reopen(section, self.offset, self.serial)
        except ClosedError:  # the handle of the section belonged to another thread, which has closed it
            section = self._attach(mode)
            found = finding.reopen(section, self.offset, self.serial)
        opened = found if self.view is None else arrays.view_again(found, *self.view)
        if self.claim is not None:  # last: the view of this process keeps the array from here on
            with contextlib.suppress(ClosedError):
                claims.drop(section, *self.claim)
        return opened

    def _attach(self, mode):
        """Attach by path, to the file for which the handle was made: a copy that replaced it has the same uuid, but another inode."""
        place = {"shared_name": self.name} if self.anonymous else {"file_name": self.path}
        section = SharedMemory(**place, mode=mode)
        if section.uuid != self.uuid:
            section.close()
            raise NotASection(f"cannot open {self.path!r}: the name now belongs to another section")
        if finding.file_of(section)[1] != self.inode:
            section.close()
            raise NotASection(f"cannot open {self.path!r}: the name now belongs to a copy of the section; make a new handle from the copy")
        return section


class _Shown:
    """Base of the records that notebooks show as a table."""

    __slots__ = ()

    def _repr_html_(self):
        from shmem._objects import display

        return display.record_html(self)


@dataclasses.dataclass(frozen=True)
class HeapReport(_Shown):
    """The counts of `SharedMemory.check_heap`.  Sizes are in bytes, tags included."""

    __module__ = "shmem"

    blocks: int
    """Allocated blocks of the user: arrays, objects and plain blocks."""
    internal_blocks: int
    """Blocks that hold names and types."""
    pending_blocks: int
    """Blocks that a live process is making."""
    used_bytes: int
    holes: int
    hole_bytes: int
    largest_hole: int
    cached_blocks: int
    """Freed blocks kept for the next request of their size."""
    cached_bytes: int


@dataclasses.dataclass(frozen=True)
class ObjectInfo(_Shown):
    """The results of `info`."""

    __module__ = "shmem"

    section: SharedMemory
    offset: int
    """Bytes from the start of the section to the object's block."""
    serial: int
    """The serial number of the block; it never repeats in the life of a section."""
    names: tuple[str, ...]
    """The names of the directory that lead to it, in the order of their creation."""
    pins: tuple[int, ...]
    """Process ids of the processes that have views of it, each as seen in the PID namespace of its process."""


@dataclasses.dataclass(frozen=True)
class SectionStats(_Shown):
    """The results of `SharedMemory.stats`.  Sizes are in bytes."""

    __module__ = "shmem"

    max_size: int
    used: int
    """Bytes in allocated blocks, tags included."""
    free: int
    """Bytes in holes, in cached blocks, and above the last block."""
    largest_hole: int
    """The largest free piece, the space above the last block included.

    Among more than 1,024 holes of about the same size, and with ``index="next_fit"`` among more than 1,024 holes, a larger one may exist.
    `check_heap` looks at all.
    """
    blocks: int
    holes: int
    cached_blocks: int
    top: int
    """The end of the last block."""
    reserved: int
    """The end of the part for which memory or disk space is reserved."""
    high_water: int
    """The largest value that `top` ever had."""
    participants: tuple[int, ...]
    """Process ids, each as seen in the PID namespace of its process."""
    lock_holder: int | None
    """Process id of the writer that holds the storage lock, or waits for readers to release it."""
    lock_sharers: int
    """Threads that hold the lock shared."""
    lock_waiters: int
    """Threads that wait for the lock."""
    owner_deaths: int
    recoveries: int
    claims: int
    """References, in messages that no receiver has opened yet, to arrays that are temporary or have no name."""
    claimed_bytes: int
    """Bytes in these arrays."""
