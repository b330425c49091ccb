"""`SharedMemory` as users meet it: the core, and on top of it objects, arrays, the directory, the lock."""

import collections.abc
import contextlib
import functools

import numpy as np

from shmem import _core
from shmem._base import errors
from shmem._core import Block
from shmem._objects import arrays, directory, finding, persistence, struct, waitables
from shmem._objects import lock as _lock
from shmem._objects import queue as _queue


class _Items(collections.abc.ItemsView):
    """Names that others delete meanwhile are passed over."""

    def __iter__(self):
        for name in self._mapping:
            found = self._mapping.get(name)
            if found is not None:
                yield name, found


class _Values(collections.abc.ValuesView):
    """The same."""

    def __iter__(self):
        return (value for _, value in self._mapping.items())

    def __contains__(self, value):
        return any(found is value or found == value for found in self)


class SharedMemory(_core.Memory):
    """A section of memory that several processes map: heap, lock, root object, directory.

    Parameters
    ----------
    file_name : path, optional
        The file to map; the section persists in it.  `shared_name` is then a label, checked when opening.
    shared_name : str, optional
        Without `file_name`: the system-wide name of an anonymous section, which the last process out removes.
        Neither: a random name, readable as `.name`.
    max_size : int, optional
        Bytes that the section may take, control pages included; created if missing.  Without it the section
        must exist.  Memory or disk is taken only as used.  The first process that opens an existing section with a
        larger `max_size` grows it.
    mode : {"read_write", "read_only"}
        In ``"read_only"`` the memory management unit refuses stores, arrays are marked read-only, locks work.
    desired_address : int, optional
        Map it there or raise `AddressInUse`.  Once created with one, every opener gets that address.
    index : {"tlsf", "next_fit"}, optional
        How free blocks are found; chosen at creation.
    max_participants : int, optional
        How many processes may be attached at the same time, 256 unless given; chosen at creation.
    permissions : int
        Of the file, at creation.
    trust_owner : bool
        Accept a section that belongs to another user.

    Raises
    ------
    SectionNotFound, NotASection, LayoutMismatch, AddressInUse, TooManyParticipants, UntrustedOwner, SectionFull

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     shm["temperature"] = [20.5, 21.0]
    ...     shm["temperature"] += 1
    ...     print(shm["temperature"])
    [21.5 22. ]
    """

    # -- objects and arrays

    get_root_object, set_root_object = finding.get_root_object, finding.set_root_object
    root = property(get_root_object, set_root_object, doc="The root object, a property over `get_root_object` and `set_root_object`.")
    new = struct.new
    queue = _queue.new

    def empty(self, shape, dtype=float, order="C", *, name=None, temporary=False):
        """A new array in the section, its contents undefined.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : dtype-like
            Anything without Python objects in it.
        order : {"C", "F"}
        name : str, optional
            Put it into the directory, in the same step.
        temporary : bool
            Free it when the last view of it, in any process, goes.

        Returns
        -------
        SharedArray
            64-byte aligned.

        Raises
        ------
        SectionFull, NameExists
        """
        return arrays.make(self, shape, dtype, order, False, name, temporary)

    def zeros(self, shape, dtype=float, order="C", *, name=None, temporary=False):
        """A new array of zeros in the section; parameters as for `empty`."""
        return arrays.make(self, shape, dtype, order, True, name, temporary)

    def full(self, shape, fill_value, dtype=None, order="C", *, name=None, temporary=False):
        """A new array in the section, filled with `fill_value`; other parameters as for `empty`."""
        if dtype is None:
            dtype = np.asarray(fill_value).dtype
        return arrays.make(self, shape, dtype, order, False, name, temporary, lambda array: np.copyto(array, fill_value, casting="unsafe"))

    def array(self, obj, dtype=None, *, name=None, temporary=False):
        """A new array in the section with the values of `obj`, as `numpy.array` would make it.

        Parameters
        ----------
        obj : array-like
        dtype : dtype-like, optional
        name, temporary
            As for `empty`.

        Returns
        -------
        SharedArray
        """
        source = np.asarray(obj, dtype=dtype)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
        return arrays.make(self, source.shape, source.dtype, order, False, name, temporary, lambda array: np.copyto(array, source))

    def copy(self, obj, *, name=None, temporary=False):
        """A copy of an array in the section; other parameters as for `empty`."""
        return self.array(obj, name=name, temporary=temporary)

    # -- what to wait for

    def semaphore(self, value=0, *, name=None):
        """A new `Semaphore` in the section.

        Parameters
        ----------
        value : int
            The initial value.
        name : str, optional
            Put it into the directory, in the same step.
        """
        return waitables.place_semaphore(self, value, name)

    def event(self, signaled=False, *, name=None):
        """A new `Event` in the section.

        Parameters
        ----------
        signaled : bool
            The initial state.
        name : str, optional
            Put it into the directory, in the same step.
        """
        return waitables.place_event(self, signaled, name)

    def mutex(self, *, name=None):
        """A new `Mutex` in the section, which nobody has.

        Parameters
        ----------
        name : str, optional
            Put it into the directory, in the same step.
        """
        return waitables.place_mutex(self, name)

    # -- the directory

    def __setitem__(self, name, value):
        is_part = isinstance(value, memoryview) or (isinstance(value, np.ndarray) and not arrays.is_whole(value))
        if not is_part and directory.lies_in(self, value):
            if not directory.is_named(self, name, value):
                directory.link(self, name, value)
        elif isinstance(value, (bytes, bytearray, memoryview, Block)):
            directory.put_bytes(self, name, memoryview(value).cast("B"))
        else:
            self.array(value, name=name)

    def __getitem__(self, name):
        found = directory.get(self, name)
        if found is None:
            raise KeyError(name)
        return found

    def __delitem__(self, name):
        directory.remove(self, name)

    def __contains__(self, name):
        return directory.contains(self, name)

    def __iter__(self):
        return iter(directory.keys(self))

    def __len__(self):
        return len(directory.keys(self))

    def keys(self):
        """The names, in the order in which they were given."""
        return collections.abc.KeysView(self)

    def values(self):
        """What has a name, in the order of `keys`."""
        return _Values(self)

    def items(self):
        """Pairs of name and value, in the order of `keys`."""
        return _Items(self)

    def get(self, name, default=None):
        """What has the name, or `default`."""
        found = directory.get(self, name)
        return default if found is None else found

    def require(self, name, factory):
        """What has the name; if nothing has, `factory()` is called under the exclusive lock and its value named.

        Parameters
        ----------
        name : str
        factory : callable
            Called at most once, whichever process comes first.  Where somebody else uses the name without the lock meanwhile, his
            is returned, and this value is nobody's.
        """
        found = directory.get(self, name)
        if found is None:
            with _lock.exclusive_lock(self):
                made = functools.cache(factory)
                while (found := directory.get(self, name)) is None:
                    value = made()
                    with contextlib.suppress(errors.NameExists):
                        self[name] = value
        return found

    def require_root(self, factory):
        """The root object; if it is unset, `factory()` is called under the exclusive lock and its value set.

        Parameters
        ----------
        factory : callable
            Returns an object in this section.  Called at most once, whichever process comes first.
        """
        found = self.get_root_object()
        if found is None:
            with _lock.exclusive_lock(self):
                made = functools.cache(factory)
                while (found := self.get_root_object()) is None:
                    self.set_root_object(made())
        return found

    # -- the lock

    def lock(self, descriptor, timeout=None):
        """Take the storage lock as `descriptor` says.

        Parameters
        ----------
        descriptor : LockDescriptor
            Not in use.
        timeout : float, optional
            Seconds; None waits for ever, 0 does not wait.

        Raises
        ------
        LockTimeout
            Not obtained in time.
        DeadlockError
            An upgrade while another holder of the shared lock upgrades already.
        LockError
            The descriptor is in use.
        """
        _lock.lock(self, descriptor, timeout)

    def unlock(self, descriptor):
        """Release what `descriptor` holds.

        Raises
        ------
        LockError
            It holds nothing, or was locked by another thread or on another section.
        """
        _lock.unlock(self, descriptor)

    # -- on disk for good

    recovered = property(persistence.recovered)
    flush = persistence.flush
    snapshot = persistence.snapshot

    # -- looking

    def check_heap(self):
        """Verify every invariant of the heap.

        Returns
        -------
        HeapReport

        Raises
        ------
        HeapCorruption
            Its `offset` says where, its text what was expected.
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
        """Sizes, counts, participants, who holds the lock and who waits.

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
            **{key: value for key, value in header.items() if key != "heap_start"},
        )

    def __repr__(self):
        state = "closed" if self.closed else f"{self.mode}, {self.max_size:,} bytes"
        return f"<shmem.SharedMemory {self.name!r} {state}>"

    def __reduce__(self):
        sent = _core.travel(self)
        if sent is not None:
            return sent
        raise TypeError("a SharedMemory is opened, not unpickled: send shm.name (or shmem.handle(shm), as multiprocessing does by itself)")


_core.register_face(SharedMemory)
