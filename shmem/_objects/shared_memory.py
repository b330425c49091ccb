"""The public class `SharedMemory`: the core with objects, arrays, the directory and the lock."""

import collections.abc
import contextlib
import functools

import numpy as np

from shmem import _core
from shmem._base import errors
from shmem._bridge.blocks import Block
from shmem._objects import arrays, directory, finding, glances, making, persistence, struct
from shmem._objects import lock as _lock
from shmem._objects import queue as _queue
from shmem._objects.entry import Entry
from shmem._objects.event import place_event
from shmem._objects.mutex import place_mutex
from shmem._objects.semaphore import place_semaphore

_ABSENT = object()


class _Items(collections.abc.ItemsView):
    """Items of the directory, without names that other processes delete meanwhile."""

    def __iter__(self):
        for name in self._mapping:
            found = self._mapping.get(name)
            if found is not None:
                yield name, found


class _Values(collections.abc.ValuesView):
    """Values of the directory, without names that other processes delete meanwhile."""

    def __iter__(self):
        return (value for _, value in self._mapping.items())

    def __contains__(self, value):
        return any(found is value or found == value for found in self)


class SharedMemory(_core.Memory):
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

    # -- objects and arrays

    get_root_object, set_root_object = finding.get_root_object, finding.set_root_object
    root = property(get_root_object, set_root_object, doc="The root object; the same as `get_root_object` and `set_root_object`.")
    new = struct.new
    queue = _queue.queue

    def empty(self, shape, dtype=float, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array in the section, with undefined contents.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : dtype-like
            Any dtype without Python objects.
        order : {"C", "F"}
        name : str, optional
            Name in the directory, assigned in the same step.
        temporary : bool
            Free the array when its last view in any process is gone.
        maxshape : int or tuple, optional
            The shape up to which the array can grow, with None for a dimension without a limit, as ``(None, 3)``.  Room is reserved for
            all rows or, without a limit, for some more; `entry` has the methods that append rows.

        Returns
        -------
        numpy.ndarray
            64-byte aligned.

        Raises
        ------
        SectionFull, NameExists
        """
        return arrays.make(self, shape, dtype, order, False, name, temporary, None, maxshape)

    def zeros(self, shape, dtype=float, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array of zeros in the section; parameters as for `empty`."""
        return arrays.make(self, shape, dtype, order, True, name, temporary, None, maxshape)

    def full(self, shape, fill_value, dtype=None, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array in the section, filled with `fill_value`; other parameters as for `empty`."""
        if dtype is None:
            dtype = np.asarray(fill_value).dtype

        def fill(array):
            np.copyto(array, fill_value, casting="unsafe")

        return arrays.make(self, shape, dtype, order, False, name, temporary, fill, maxshape)

    def array(self, obj, dtype=None, *, name=None, temporary=False, maxshape=None):
        """Return a new array in the section with the values of `obj`, like `numpy.array`.

        Parameters
        ----------
        obj : array-like
        dtype : dtype-like, optional
        name, temporary, maxshape
            As for `empty`.  With `maxshape` the array is in C order.

        Returns
        -------
        numpy.ndarray
        """
        return self._copy(obj, dtype, name, temporary, maxshape)

    def _copy(self, obj, dtype=None, name=None, temporary=False, maxshape=None, replaces=False):
        source = np.asarray(obj, dtype=dtype)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous and maxshape is None else "C"

        def fill(array):
            np.copyto(array, source)

        return arrays.make(self, source.shape, source.dtype, order, False, name, temporary, fill, maxshape, replaces)

    def copy(self, obj, *, name=None, temporary=False):
        """Return a copy of an array in the section; other parameters as for `empty`."""
        return self.array(obj, name=name, temporary=temporary)

    # -- semaphores, events, mutexes

    def semaphore(self, value=0, *, name=None):
        """Return a new `Semaphore` in the section.

        Parameters
        ----------
        value : int
            The initial value.
        name : str, optional
            Name in the directory, assigned in the same step.
        """
        return place_semaphore(self, value, name)

    def event(self, signaled=False, *, name=None):
        """Return a new `Event` in the section.

        Parameters
        ----------
        signaled : bool
            The initial state.
        name : str, optional
            Name in the directory, assigned in the same step.
        """
        return place_event(self, signaled, name)

    def mutex(self, *, name=None):
        """Return a new, unlocked `Mutex` in the section.

        Parameters
        ----------
        name : str, optional
            Name in the directory, assigned in the same step.
        """
        return place_mutex(self, name)

    # -- the directory

    def __setitem__(self, name, value):
        self._name(name, value, False)

    def _name(self, name, value, replaces):
        directory.check_name(name)
        directory.refuse_freed(name, value)
        is_part = isinstance(value, memoryview) or (isinstance(value, np.ndarray) and not arrays.is_whole(value))
        if not is_part and directory.lies_in(self, value):
            if not replaces and directory.is_named(self, name, value):
                return
            if not replaces and arrays.got_as(value) == name:
                raise errors.InvalidBlock(
                    f"cannot assign the name {name!r}: this array had the name, which was deleted meanwhile; "
                    f"shm[{name!r}] = array.copy() names a copy"
                )
            directory.link(self, name, value, replaces)
        elif isinstance(value, (bytes, bytearray, memoryview, Block)):
            directory.put_bytes(self, name, memoryview(value).cast("B"), replaces)
        else:
            self._copy(value, name=name, replaces=replaces)

    def __getitem__(self, name):
        found = directory.get(self, name)
        if found is None:
            raise KeyError(name)
        if isinstance(found, np.ndarray):
            arrays.note_name(found, name)  # shm[name] *= 2 assigns it again, which must not bring back a name that was deleted meanwhile
        return found

    def __delitem__(self, name):
        directory.remove(self, name)

    def __contains__(self, name):
        return directory.contains(self, name)

    def __iter__(self):
        return iter(directory.keys(self))

    def __len__(self):
        return directory.length(self)

    def keys(self):
        """Return a view of the names in the order of their creation."""
        return collections.abc.KeysView(self)

    def values(self):
        """Return a view of the named objects, in the order of `keys`."""
        return _Values(self)

    def items(self):
        """Return a view of pairs of name and object, in the order of `keys`."""
        return _Items(self)

    def get(self, name, default=None):
        """Return the object with a name, or `default`."""
        found = directory.get(self, name)
        return default if found is None else found

    def pop(self, name, default=_ABSENT):
        """Remove a name and return its object, as `dict.pop`.

        The object stays for as long as this process has it, then it is freed if nothing else leads to it.  If several processes take
        a name, one of them gets the object.

        Parameters
        ----------
        name : str
        default : object, optional
            Returned if there is no such name.

        Raises
        ------
        KeyError
            There is no such name, and no default.
        TypeError
            The name leads to a queue, which goes with its last name.
        """
        try:
            return directory.take(self, name)
        except KeyError:
            if default is _ABSENT:
                raise
            return default

    def popitem(self):
        """Remove the latest name and return it with its object, as `dict.popitem`; KeyError if there is no name."""
        for name in reversed(directory.keys(self)):
            with contextlib.suppress(KeyError):  # another process was faster
                return name, self.pop(name)
        raise KeyError(f"cannot take a name: the section {self.path!r} has none")

    def setdefault(self, name, default):
        """Return the object with a name; if there is none, assign it to `default` first.  `require` makes the value only if needed."""
        while (found := directory.get(self, name)) is None:
            with contextlib.suppress(errors.NameExists):
                self[name] = default
        return found

    def update(self, other=(), /, **more):
        """Assign the names of a mapping, or of pairs, one after the other, as `dict.update`, but to new names only.

        Raises
        ------
        NameExists
            A name is taken by another object.  Nothing was assigned, unless another process assigned the name meanwhile.
        """
        new = dict(other, **more)
        for name, value in new.items():
            directory.check_name(name)
            if name in self and not directory.is_named(self, name, value):
                raise errors.NameExists(f"cannot update: the name {name!r} is taken, and nothing was assigned; delete the name first")
        for name, value in new.items():
            self[name] = value

    def clear(self):
        """Delete all names that there are now, one after the other, the latest first."""
        for name in reversed(directory.keys(self)):
            with contextlib.suppress(KeyError):  # another process was faster
                del self[name]

    def replace(self, name, value):
        """Let a name lead to another value, in one step.

        Every reader gets the old value or the new one.  Those that have the old one keep it: as after ``del``, it is freed with its last
        view unless another name, or the root, leads to it, and a queue is freed at once.  A missing name is created, as by `os.replace`.

        Parameters
        ----------
        name : str
        value : array-like, bytes-like or object in this section
            As for ``shm[name] = value``.  If the name leads to this very object already, it only gets a new version.

        Raises
        ------
        NameExists
            The name is that of a group.
        SectionFull

        Examples
        --------
        >>> import shmem
        >>> with shmem.SharedMemory(max_size="1M") as shm:
        ...     shm["x"] = [1, 2]
        ...     before = shm["x"]
        ...     shm.replace("x", [3.5])
        ...     print(before, shm["x"])
        [1 2] [3.5]
        """
        self._name(name, value, True)

    def entry(self, name):
        """Return the `Entry` of a name: the object's shape, views and other facts, and methods that change an array's shape.

        Raises
        ------
        KeyError
            There is no such name.
        """
        return Entry(self, name)

    def tree(self, level=None, max_names=50):
        """Return the names in the section with kinds, shapes and dtypes, as a text to print and as a table in notebooks.

        It opens and views no object, and waits for other processes for a moment at most.

        Parameters
        ----------
        level : int, optional
            How many levels of groups to show; all by default.
        max_names : int, default 50
            How many names of each group to show.  Of all groups together, four times as many are shown, upper levels first.

        Returns
        -------
        Tree
            With the names as they are now: `str` and `repr` are the text.

        Examples
        --------
        >>> import shmem
        >>> with shmem.SharedMemory(shared_name="weather", max_size="1M") as shm:
        ...     shm["mask"] = [True, False]
        ...     shm["results"] = shm.queue(10, "int64")
        ...     shm.tree()
        weather
        ├── mask  (2,) bool
        └── results  queue
        """
        from shmem._objects.tree import Tree

        return Tree(self, "", level, max_names)

    def require(self, name, factory):
        """Return the object with a name; if there is none, call `factory()` and name its value.

        While the factory runs, other threads and processes that require the same name wait.  Other names, and the storage lock, are
        free.  If its process is killed, the next one that requires the name calls its own factory.

        Parameters
        ----------
        name : str
        factory : callable
            Called at most once, by the first process.  If another process assigns the name directly meanwhile, its object is returned,
            and the value of `factory()` stays unnamed.

        Raises
        ------
        DeadlockError
            The factory requires the name that it is called for.
        """
        found = directory.get(self, name)
        if found is None:
            with making.Maker(self, name):
                made = functools.cache(factory)
                while (found := directory.get(self, name)) is None:
                    value = made()
                    with contextlib.suppress(errors.NameExists):
                        self[name] = value
        return found

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

    def _ipython_key_completions_(self):
        """Return the names that IPython offers after ``shm["``."""
        return [] if self.closed else glances.at_names(self, "", 10_000).names

    def __reduce__(self):
        raise TypeError("cannot pickle a SharedMemory; send shm.name, or shmem.handle(shm), which multiprocessing does automatically")


_core.register_face(SharedMemory)


collections.abc.MutableMapping.register(SharedMemory)
