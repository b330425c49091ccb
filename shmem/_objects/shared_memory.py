"""The public class `SharedMemory`: the core with objects, arrays, the directory and the lock."""

import functools

from shmem import _core
from shmem._objects import finding, making, persistence, struct
from shmem._objects import lock as _lock
from shmem._objects import queue as _queue
from shmem._objects.names import Names, get_item


class SharedMemory(_core.Memory, Names):
    """A section of memory that several processes map: heap, lock, root object, directory.

    Parameters
    ----------
    file_name : path, optional
        The file to map, in which the section persists.  `shared_name` is then a label, checked when opening.
    shared_name : str, optional
        Without `file_name`: the system-wide name of an anonymous section, which its last process removes.
        Without either, a random name is generated, and is available as `.name`.
    max_size : int or str, optional
        Maximum size of the section in bytes, control pages included, or a text such as "64M" or "1GiB".  If given, a missing
        section is created; otherwise the section must exist.  Memory or disk space is allocated only as it is used.  The first
        opener of an existing section grows it if `max_size` is larger; a later one gets a `LimitWarning`.
    mode : {"read_write", "read_only"}
        With ``"read_only"`` the memory management unit rejects stores, and arrays are marked read-only.  Locks work.
    desired_address : int, optional
        Map the section at this address or raise `AddressInUse`.  A section created with an address has it in every process.
    index : {"tlsf", "next_fit"}, optional
        The index of free blocks; used at creation.
    max_participants : int, optional
        Maximum number of processes attached at the same time, 256 by default; used at creation.
    permissions : int
        Permission bits of the file, whatever the umask; used at creation.
    trust_owner : bool
        Accept a section that belongs to another user.

    Raises
    ------
    SectionNotFound, NotASection, LayoutMismatch, AddressInUse, TooManyParticipants, UntrustedOwner, AccessDenied, SectionFull

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     shm["temperature"] = [20.5, 21.0]
    ...     shm["temperature"] += 1
    ...     print(shm["temperature"])
    [21.5 22. ]
    """

    __slots__ = ()  # a misspelled attribute is refused

    # -- objects

    get_root_object, set_root_object = finding.get_root_object, finding.set_root_object
    root = property(get_root_object, set_root_object, doc="The root object; the same as `get_root_object` and `set_root_object`.")
    new = struct.new
    queue = _queue.queue

    # -- names, see `Names`

    _level = ""  # the path of this mapping

    @property
    def _memory(self):
        return self

    def _path(self, name):
        return name

    def __getitem__(self, name):
        return get_item(self, name, name)  # in fewer calls than that of `Names`

    def require_root(self, factory):
        """Return the root object; if it is unset, call `factory()` and set its value.

        Others that require the root wait meanwhile, as for `require`.  A root that is set directly meanwhile stays, and is returned.

        Parameters
        ----------
        factory : callable
            Returns an object in this section.  Called at most once, by the first process.
        """
        found = self.get_root_object()
        if found is None:
            with making.Maker(self, None):
                made = functools.cache(factory)
                while (found := self.get_root_object()) is None:
                    finding.set_root_if_unset(self, made())
        return found

    # -- the lock

    def lock(self, descriptor, timeout=None):
        """Acquire the storage lock in the mode of `descriptor`.

        Parameters
        ----------
        descriptor : LockDescriptor
            A descriptor that is not in use.
        timeout : float, optional
            Seconds; None waits forever, 0 does not wait.

        Raises
        ------
        LockTimeout
            The lock was not acquired in time.
        DeadlockError
            Another holder of the shared lock is already upgrading it.
        LockError
            The descriptor is in use.
        """
        _lock.lock(self, descriptor, timeout)

    def unlock(self, descriptor):
        """Release the lock that `descriptor` holds.

        Raises
        ------
        LockError
            The descriptor does not hold the lock, or was locked by another thread or on another section.
        """
        _lock.unlock(self, descriptor)

    # -- persistence

    recovered = property(persistence.recovered)
    flush = persistence.flush
    snapshot = persistence.snapshot

    # -- checks and statistics

    def check_heap(self):
        """Verify every invariant of the heap.

        Returns
        -------
        HeapReport

        Raises
        ------
        HeapCorruption
            A block is damaged; `offset` locates it, and the message states what was expected.
        """
        from shmem._objects.records import HeapReport

        facts = self._check_heap()
        return HeapReport(
            blocks=facts["n_used"] - facts["n_internal"] - facts["n_pending"],
            internal_blocks=facts["n_internal"],
            pending_blocks=facts["n_pending"],
            used_bytes=facts["used_bytes"],
            holes=facts["n_holes"],
            hole_bytes=facts["hole_bytes"],
            largest_hole=facts["largest_hole"],
            cached_blocks=facts["n_cached"],
            cached_bytes=facts["cached_bytes"],
        )

    def stats(self):
        """Return sizes, counts, participants, and the holders and waiters of the lock.

        Returns
        -------
        SectionStats
        """
        from shmem._objects.records import SectionStats

        heap, header = self._count_heap(), self._header_facts()
        above = header["max_size"] - header["top"]
        return SectionStats(
            used=heap["used_bytes"],
            free=above + heap["hole_bytes"] + heap["cached_bytes"],
            largest_hole=max(above, heap["largest_hole"]),
            blocks=heap["n_used"] - heap["n_internal"],
            holes=heap["n_holes"],
            cached_blocks=heap["n_cached"],
            claims=heap["n_claims"],
            claimed_bytes=heap["claimed_bytes"],
            **{key: value for key, value in header.items() if key != "heap_start"},
        )

    def __repr__(self):
        from shmem._objects import display

        return display.section_text(self)

    def _repr_html_(self):
        """Return a table of the section's objects, for notebooks."""
        from shmem._objects import display

        return display.section_html(self)

    def __reduce__(self):
        raise TypeError("cannot pickle a SharedMemory; send shm.name, or shmem.handle(shm), which multiprocessing does automatically")


_core.register_face(SharedMemory)
