"""What a section and a group have in common: they are mappings of names, and make objects with a name.  And the class `Group`."""

import collections.abc
import contextlib
import functools
import itertools

import numpy as np

from shmem._base import errors
from shmem._bridge.blocks import Block
from shmem._objects import arrays, changes, directory, finding, glances, making, struct
from shmem._objects import queue as _queue
from shmem._objects.attributes import Attributes
from shmem._objects.entry import Entry
from shmem._objects.event import place_event
from shmem._objects.mutex import place_mutex
from shmem._objects.semaphore import place_semaphore

NAMES_COMPLETED = 10_000
_ABSENT = object()


class _Items(collections.abc.ItemsView):
    """Items of a mapping, without names that other processes delete meanwhile."""

    def __iter__(self):
        for name in self._mapping:
            found = self._mapping.get(name)
            if found is not None:
                yield name, found

    def __contains__(self, item):
        name, value = item
        return name in self._mapping and _is_same(self._mapping[name], value)


class _Values(collections.abc.ValuesView):
    """Values of a mapping, without names that other processes delete meanwhile."""

    def __iter__(self):
        return (value for _, value in self._mapping.items())

    def __contains__(self, value):
        return any(_is_same(found, value) for found in self)


def _is_same(found, value):
    """Return whether two objects are the same one in the section, or equal."""
    if isinstance(found, np.ndarray) or isinstance(value, np.ndarray):
        return isinstance(value, np.ndarray) and isinstance(found, np.ndarray) and _is_same_array(found, value)
    return bool(found == value)


def _is_same_array(found, value):
    return (
        (found.ctypes.data, found.shape, found.strides, found.dtype) == (value.ctypes.data, value.shape, value.strides, value.dtype)
        if found.size
        else found.shape == value.shape and found.dtype == value.dtype
    )


class Names:
    """The names of one level, as a MutableMapping, and the makers of named objects.

    A subclass has `_memory`, the SharedMemory, `_level`, its own path in the section, and `_path`, which returns the path of a name in it.
    """

    __slots__ = ()

    # -- arrays

    def empty(self, shape, dtype=float, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array in the section, with undefined contents.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : dtype-like
            Any dtype without Python objects.
        order : {"C", "F"}
        name : str, optional
            Name in the directory, or in this group, assigned in the same step.  Groups of a path that are missing are made.
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
        return arrays.make(self._memory, shape, dtype, order, False, self._path(name), temporary, None, maxshape)

    def zeros(self, shape, dtype=float, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array of zeros in the section; parameters as for `empty`."""
        return arrays.make(self._memory, shape, dtype, order, True, self._path(name), temporary, None, maxshape)

    def full(self, shape, fill_value, dtype=None, order="C", *, name=None, temporary=False, maxshape=None):
        """Return a new array in the section, filled with `fill_value`; other parameters as for `empty`."""
        if dtype is None:
            dtype = np.asarray(fill_value).dtype

        def fill(array):
            np.copyto(array, fill_value, casting="unsafe")

        return arrays.make(self._memory, shape, dtype, order, False, self._path(name), temporary, fill, maxshape)

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
        return self._copy(obj, dtype, self._path(name), temporary, maxshape)

    def _copy(self, obj, dtype=None, path=None, temporary=False, maxshape=None, replaces=False):
        source = np.asarray(obj, dtype=dtype)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous and maxshape is None else "C"

        def fill(array):
            np.copyto(array, source)

        return arrays.make(self._memory, source.shape, source.dtype, order, False, path, temporary, fill, maxshape, replaces)

    def copy(self, obj, *, name=None, temporary=False):
        """Return a copy of an array in the section; other parameters as for `empty`."""
        return self.array(obj, name=name, temporary=temporary)

    # -- objects

    def semaphore(self, value=0, *, name=None):
        """Return a new `Semaphore` in the section.

        Parameters
        ----------
        value : int
            The initial value.
        name : str, optional
            Name in the directory, or in this group, assigned in the same step.
        """
        return place_semaphore(self._memory, value, self._path(name))

    def event(self, signaled=False, *, name=None):
        """Return a new `Event` in the section.

        Parameters
        ----------
        signaled : bool
            The initial state.
        name : str, optional
            Name in the directory, or in this group, assigned in the same step.
        """
        return place_event(self._memory, signaled, self._path(name))

    def mutex(self, *, name=None):
        """Return a new, unlocked `Mutex` in the section.

        Parameters
        ----------
        name : str, optional
            Name in the directory, or in this group, assigned in the same step.
        """
        return place_mutex(self._memory, self._path(name))

    # -- groups

    def create_group(self, name):
        """Make a group of names, and return it.

        Groups of a path that are missing are made too, each by a step of its own.

        Parameters
        ----------
        name : str

        Returns
        -------
        Group

        Raises
        ------
        NameExists
            The name is taken, or a part of the path leads to something that is not a group.

        Examples
        --------
        >>> import shmem
        >>> with shmem.SharedMemory(max_size="1M") as shm:
        ...     run = shm.create_group("run1")
        ...     run["grid"] = [1, 2]
        ...     print(shm["run1/grid"], list(run))
        [1 2] ['grid']
        """
        path = self._path(name)
        directory.make_group(self._memory, path)
        return Group(self._memory, path)

    def require_group(self, name):
        """Return the group with a name; make it, and groups of its path, if it is missing.

        Raises
        ------
        NameExists
            The name, or a part of the path, leads to something that is not a group.
        """
        path = self._path(name)
        if not directory.is_group(self._memory, path):
            directory.make_group(self._memory, path, True)
        return Group(self._memory, path)

    def visititems(self, func):
        """Call ``func(name, object)`` for each name, and for those in groups, until it returns something other than None.

        Parameters
        ----------
        func : callable
            Called with a path that is relative to this mapping, and the object or `Group`.  A group comes before what is in it.

        Returns
        -------
        object
            What `func` returned last, None after all names.
        """
        return self._visit(lambda name: None if (found := self.get(name)) is None else func(name, found))

    def visit(self, func):
        """Call ``func(name)`` for each name, and for those in groups: as `visititems`, without opening the objects."""
        return self._visit(func)

    def _visit(self, func, prefix=""):
        level = self if not prefix else Group(self._memory, self._path(prefix[:-1]))
        try:
            names = directory.keys_and_kinds(self._memory, level._level)
        except (KeyError, ValueError):  # it was deleted meanwhile, or moved so deep that its path is too long
            if not prefix:
                raise
            return None
        for name, is_group in names:
            found = func(prefix + name)
            if found is None and is_group:
                found = self._visit(func, f"{prefix}{name}/")
            if found is not None:
                return found
        return None

    def tree(self, level=None, max_names=50):
        """Return the names of this level and of those below it, with kinds, shapes and dtypes: a text, and a table in notebooks.

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

        return Tree(self._memory, self._level, level, max_names)

    # -- names

    def __setitem__(self, name, value):
        self._assign(self._path(name), value)

    def _assign(self, path, value, replaces=False):
        directory.check_name(path)
        _refuse_group(path, value)
        directory.refuse_freed(path, value)
        is_part = isinstance(value, memoryview) or (isinstance(value, np.ndarray) and not arrays.is_whole(value))
        if not is_part and directory.lies_in(self._memory, value):
            if not replaces and directory.is_named(self._memory, path, value):
                return
            if not replaces and arrays.got_as(value) == path:
                self._refuse_again(path)
            directory.link(self._memory, path, value, replaces)
        elif isinstance(value, (bytes, bytearray, memoryview, Block)):
            directory.put_bytes(self._memory, path, memoryview(value).cast("B"), replaces)
        else:
            self._copy(value, path=path, replaces=replaces)

    def _refuse_again(self, path):
        """Refuse to assign a name to the array that was got by it, and that it does not lead to any more."""
        if directory.contains(self._memory, path):
            raise errors.NameExists(
                f"cannot assign the name {path!r}: it leads to another object by now; shm.replace({path!r}, array.copy()) replaces that"
            )
        raise errors.InvalidBlock(
            f"cannot assign the name {path!r}: this array had the name, which was deleted or renamed meanwhile; "
            f"shm[{path!r}] = array.copy() names a copy"
        )

    def _find(self, path):
        """Return what a path leads to, None if that is nothing."""
        found = directory.get(self._memory, path)
        return Group(self._memory, path) if found is directory.A_GROUP else found

    def __getitem__(self, name):
        return get_item(self._memory, self._path(name), name)

    def __delitem__(self, name):
        directory.remove(self._memory, self._path(name))

    def __contains__(self, name):
        return directory.contains(self._memory, self._path(name))

    def __iter__(self):
        return iter(directory.keys(self._memory, self._level))

    def __reversed__(self):
        return reversed(list(self))

    def __len__(self):
        return directory.length(self._memory, self._level)

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
        found = self._find(self._path(name))
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
            The name leads to a queue or a group, which goes with its last name.
        """
        try:
            return directory.take(self._memory, self._path(name))
        except KeyError:
            if default is _ABSENT:
                raise
            return default

    def popitem(self):
        """Remove the latest name and return it with its object, as `dict.popitem`.

        Raises
        ------
        KeyError
            There is no name.
        TypeError
            The latest name leads to a queue or a group, as for `pop`.
        """
        for name in reversed(list(self)):
            with contextlib.suppress(KeyError):  # another process was faster
                return name, self.pop(name)
        raise KeyError(f"cannot take a name: {self!r} has none")

    def setdefault(self, name, default):
        """Return the object with a name; if there is none, assign it to `default` first.  `require` makes the value only if needed."""
        while (found := self.get(name)) is None:
            self._assign_unless_taken(name, default)
        return found

    def _assign_unless_taken(self, name, value):
        """Assign a name, unless it is taken meanwhile."""
        try:
            self[name] = value
        except errors.NameExists:
            directory.check_parents(self._memory, self._path(name))

    def update(self, other=(), /, **more):
        """Assign the names of a mapping, or of pairs, one after the other, as `dict.update`, but to new names only.

        Raises
        ------
        NameExists
            A name is taken by another object.  Nothing was assigned, unless another process assigned the name meanwhile.
        """
        new = dict(other, **more)
        for name, value in new.items():
            path = self._path(name)
            directory.check_name(path)
            _refuse_group(path, value)
            if name in self and not directory.is_named(self._memory, path, value):
                raise errors.NameExists(f"cannot update: the name {path!r} is taken, and nothing was assigned; delete the name first")
            directory.check_parents(self._memory, path)
            for parent in itertools.accumulate(name.split("/")[:-1], "{}/{}".format):
                if parent in new:
                    raise errors.NameExists(f"cannot update: {parent!r} and {name!r} are both to be assigned, and nothing was")
        for name, value in new.items():
            self[name] = value

    def clear(self):
        """Delete all names that there are now, one after the other, the latest first, and with a group all that is in it."""
        for name in reversed(list(self)):
            with contextlib.suppress(KeyError):  # another process was faster
                del self[name]

    def replace(self, name, value):
        """Replace the value of a name, in one step.

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
        self._assign(self._path(name), value, True)

    def move(self, source, dest):
        """Rename an object, or a group with all that is in it, in one step.

        A `Group` or `Entry` for the old name does not follow it.  `Entry.rename` does the same, and follows.

        Parameters
        ----------
        source, dest : str
            Groups of `dest` that are missing are made.  The same name changes nothing.

        Raises
        ------
        NameExists
            `dest` is taken, or a part of its path leads to something that is not a group.
        KeyError
            There is no name `source`.
        ValueError
            `dest` is inside of `source`.

        Examples
        --------
        >>> import shmem
        >>> with shmem.SharedMemory(max_size="1M") as shm:
        ...     shm["new/grid"] = [1, 2]
        ...     shm.move("new", "runs/1")
        ...     print(list(shm), shm["runs/1/grid"])
        ['runs'] [1 2]
        """
        path = self._path(source)
        directory.check_name(path)
        changes.rename(self._memory, path, self._path(dest))

    def entry(self, name):
        """Return the `Entry` of a name: the object's shape, views and other facts, and methods that change an array's shape.

        Raises
        ------
        KeyError
            There is no such name.
        TypeError
            It is the name of a group.
        """
        path = self._path(name)
        directory.check_name(path)
        return Entry(self._memory, path)

    @property
    def attrs(self):
        """The `Attributes` of the section itself, or of this group."""
        return Attributes(self._memory, self._level or None)

    def _ipython_key_completions_(self):
        """Return what IPython offers after ``shm["``: the names of this level, and the paths of those in groups, some thousands at most."""
        found, waiting = [], [""]
        for prefix in [] if self._memory.closed else waiting:  # which grows meanwhile
            path = f"{self._level}/{prefix}" if self._level else prefix
            glance = glances.at_objects(self._memory, path.removesuffix("/"), NAMES_COMPLETED - len(found))
            found += [prefix + name for name, _, _ in glance.objects]
            waiting += [f"{prefix}{name}/" for name, kind, _ in glance.objects if kind == "group"]
            if glance.problem == glances.BUSY or len(found) >= NAMES_COMPLETED:
                break
        return found

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
        path = self._path(name)
        found = self._find(path)
        if found is None:
            directory.check_parents(self._memory, path)
            with making.Maker(self._memory, path):
                made = functools.cache(factory)
                while (found := self._find(path)) is None:
                    self._assign_unless_taken(name, made())
        return found


def get_item(memory, path, name):
    """Return what a path leads to; raise KeyError if that is nothing."""
    found = directory.get(memory, path)
    if found is None:
        raise KeyError(name)
    if isinstance(found, np.ndarray):
        arrays.note_name(found, path)  # shm[name] *= 2 assigns it again, which must not bring back a name that was deleted meanwhile
    return Group(memory, path) if found is directory.A_GROUP else found


def _refuse_group(path, value):
    if isinstance(value, Group):
        raise TypeError(f"cannot assign the name {path!r}: a group has one name, and this one is {value.name!r}; assign what is in it")
    if isinstance(value, Entry):
        raise TypeError(f"cannot assign the name {path!r} to an Entry: assign its value, shm[{value.name!r}]")


class Group(Names):
    """A group of names, which is a mapping like the section: `SharedMemory.create_group`, `SharedMemory.require_group`, ``shm["run1"]``.

    Names, also those that are given to makers such as `zeros`, are relative to the group.  ``del shm["run1"]`` deletes it with all that is
    in it; views that exist stay valid.  A Group refers to a path: each use looks the group up anew, and raises KeyError if there is none.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size="1M") as shm:
    ...     run = shm.create_group("run1")
    ...     run["grid"] = [1, 2]
    ...     run["raw/mask"] = [True, False]
    ...     run.attrs["operator"] = "Ada"
    ...     print(list(run), shm["run1/grid"], run["raw"].name, run.parent is shm)
    ...     run.tree()
    ['grid', 'raw'] [1 2] run1/raw True
    run1/
    ├── grid  (2,) int64
    └── raw/
        └── mask  (2,) bool
    """

    __slots__ = ("_memory", "_name")

    def __init__(self, section, name):
        self._memory, self._name = section, name

    @property
    def _level(self):
        return self._name

    def _path(self, name):
        return self._name + "/" + name if isinstance(name, str) else name

    @functools.wraps(struct.new)
    def new(self, cls, /, *args, type_name=None, **kwargs):
        return struct.new(self._memory, cls, *args, type_name=type_name, **kwargs)

    @functools.wraps(_queue.queue)
    def queue(self, maxsize, record, *, max_bytes=None, name=None):
        return _queue.queue(self._memory, maxsize, record, max_bytes=max_bytes, name=self._path(name))

    @property
    def name(self):
        """The path of the group in the section."""
        return self._name

    @property
    def parent(self):
        """The group that this one is in, or the section."""
        above = self._name.rpartition("/")[0]
        return Group(self._memory, above) if above else self._memory

    def rename(self, new_name):
        """Rename the group, in one step.  This Group then refers to the new name, and has another hash.

        Parameters
        ----------
        new_name : str
            A path in the section.  Groups of it that are missing are made.  The same name changes nothing.

        Raises
        ------
        NameExists
            The new name is taken, or a part of its path leads to something that is not a group.
        ValueError
            The new name is in the group itself, or cannot be a name.
        KeyError, ReadOnlyError
        """
        changes.rename(self._memory, self._name, new_name)
        self._name = new_name

    def __bool__(self):
        return not self._memory.closed and directory.is_group(self._memory, self._name)

    def __eq__(self, other):
        if not isinstance(other, Group):
            return NotImplemented
        return self._name == other._name and finding.is_same_section(self._memory, other._memory)

    def __hash__(self):
        return hash(self._name)

    def __repr__(self):
        try:
            glance = glances.at_names(self._memory, self._name, 0)
        except Exception as error:
            return f"<shmem.Group {self._name!r}: {type(error).__name__}>"
        if glance.problem:
            return f"<shmem.Group {self._name!r}: {glance.problem}>"
        return f"<shmem.Group {self._name!r}: {glance.n_names:,} name{'s' if glance.n_names != 1 else ''}>"

    def _repr_html_(self):
        """Return a table of what is in the group, for notebooks."""
        from shmem._objects import display

        return display.group_html(self._memory, self._name)

    def __reduce__(self):
        raise TypeError("a Group cannot be pickled; send its name")


collections.abc.MutableMapping.register(Names)
