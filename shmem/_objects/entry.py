"""`Entry`, what a name of the directory leads to, without a view of it; and `info`, where an object lies and who views it."""

from shmem._base.errors import InvalidBlock
from shmem._objects import changes, directory, finding, growing
from shmem._objects.attributes import Attributes


class Entry:
    """A name of the directory and the object that it leads to, as h5py has a dataset beside its array.

    `SharedMemory.entry` returns it.  It refers to the name: each use looks the object up anew.  It has no view of the object, so it keeps
    nothing from being freed, moved or sealed.

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size="1M") as shm:
    ...     shm.zeros((0, 2), maxshape=(None, 2), name="log")
    ...     log = shm.entry("log")
    ...     log.append([[1, 2], [3, 4]])
    ...     log.value
    array([], shape=(0, 2), dtype=float64)
    array([[1., 2.],
           [3., 4.]])
    """

    __slots__ = ("_memory", "_name")

    def __init__(self, section, name):
        self._memory, self._name = section, name
        growing.look(section, name)

    @property
    def name(self):
        """The name."""
        return self._name

    @property
    def value(self):
        """The object: for an array a view with all rows that it has now.  The same as ``shm[name]``."""
        return self._memory[self._name]

    @property
    def dtype(self):
        """The dtype of an array; None for any other object."""
        return growing.look(self._memory, self._name).dtype

    @property
    def shape(self):
        """The shape of an array, with the rows that other processes have appended so far; None for any other object."""
        return growing.look(self._memory, self._name).shape

    @property
    def maxshape(self):
        """The shape up to which an array can grow, with None for no limit; None if it cannot grow."""
        return growing.look(self._memory, self._name).maxshape

    @property
    def nbytes(self):
        """The bytes of an array's elements, or of any other object's block."""
        return growing.look(self._memory, self._name).nbytes

    @property
    def pins(self):
        """The ids of the processes that have views of the object, as `info` reports them."""
        facts = growing.look(self._memory, self._name)
        while True:
            try:
                return finding.viewers(self._memory, facts.offset, facts.serial)
            except InvalidBlock:  # the name may lead to another object by now
                former, facts = facts, growing.look(self._memory, self._name)
                if former.serial == facts.serial:
                    raise

    @property
    def sealed(self):
        """Whether `seal` was called."""
        return growing.look(self._memory, self._name).sealed

    @property
    def version(self):
        """A number that changes whenever the name gets another value, rows or shape, is renamed, or is touched.

        It belongs to the name: another name of the same object has its own, which does not change with it.  No version is given twice in a
        section, also not to a name that was deleted and assigned again.  Stores to elements do not change it: `touch` does.
        """
        return changes.version(self._memory, self._name)

    def touch(self):
        """Give the name a new version, and wake up those that wait for one, as after elements were written in place.

        Returns
        -------
        int
            The new version.

        Raises
        ------
        KeyError, ReadOnlyError
        """
        return changes.touch(self._memory, self._name)

    def wait_changed(self, since=None, timeout=None):
        """Wait until the name has another version, without polling.

        Parameters
        ----------
        since : int, optional
            A `version` that was read before; the wait is over if it is not the current one.  None: the version at the time of the call.
        timeout : float, optional
            In seconds; None waits without end, 0 does not wait.

        Returns
        -------
        int or None
            The new version, None when the time passed.

        Raises
        ------
        KeyError
            There is no such name any more: it was deleted or renamed.

        Examples
        --------
        >>> import shmem
        >>> with shmem.SharedMemory(max_size="1M") as shm:
        ...     shm["frame"] = [0, 0]
        ...     frame = shm.entry("frame")
        ...     seen = frame.version
        ...     frame.value[0] = 1
        ...     frame.touch() == frame.wait_changed(seen)
        True
        """
        return changes.wait_changed(self._memory, self._name, since, timeout)

    def replace(self, value):
        """Replace the value of the name, in one step: see `SharedMemory.replace`."""
        self._memory.replace(self._name, value)

    def rename(self, new_name):
        """Rename the object, in one step.  This Entry then refers to the new name.

        Parameters
        ----------
        new_name : str
            A path in the section.  Groups of it that are missing are made.  The same name changes nothing.

        Raises
        ------
        NameExists
            The new name is taken, or a part of its path leads to something that is not a group.
        KeyError, ReadOnlyError, ValueError
        """
        changes.rename(self._memory, self._name, new_name)
        self._name = new_name

    @property
    def attrs(self):
        """The `Attributes` of the object: all its names share them, and they end with it."""
        return Attributes(self._memory, self._name)

    def append(self, rows, move=False):
        """Append rows to an array that was made with `maxshape`.

        Processes and threads may append at the same time, without a lock.  The rows of one call stay together, and are there all at once;
        those of a process that is killed meanwhile are not there.  Views that exist keep their length; `value` is a longer one.

        Parameters
        ----------
        rows : array-like
            As many dimensions as the array, and its dimensions but for the first.  Values are converted as by assignment.
        move : bool
            If the room is used up, the array moves, which raises BufferError while there are views of it.  With True it moves
            nevertheless, and these views keep the old data.

        Raises
        ------
        BufferError
            The array would have to move while there are views of it, or while other names, or the root, lead to it.
        ValueError
            `rows` has another shape, the array was made without `maxshape`, or it would exceed that.
        ReadOnlyError
            The array is sealed, or the section was opened read-only.
        SectionFull, KeyError, TypeError
        """
        growing.append(self._memory, self._name, rows, move)

    def resize(self, shape, move=False):
        """Change the shape of an array that was made with `maxshape`.  New elements are zero.

        Another number of rows needs no move while there is room.  A smaller array keeps its room, and existing views keep their length.
        Any other dimension can be changed by moving the array only.

        Parameters
        ----------
        shape : int or tuple of int
        move : bool
            As for `append`.

        Raises
        ------
        BufferError, ValueError, ReadOnlyError, SectionFull, KeyError, TypeError
            As for `append`.
        """
        growing.resize(self._memory, self._name, shape, move)

    def seal(self):
        """Make every view of the array that is opened from now on read-only, in every process, also through handles and references.

        A sealed array can neither be changed in shape nor unsealed; its name can be deleted.

        Raises
        ------
        BufferError
            There are views of the array, in this process or another one: they could be written to.
        ReadOnlyError, KeyError, TypeError
        """
        growing.seal(self._memory, self._name)

    def __repr__(self):
        try:
            facts = growing.look(self._memory, self._name)
        except Exception as error:
            return f"<shmem.Entry {self._name!r}: {type(error).__name__}>"
        what = f"{facts.nbytes} bytes" if facts.dtype is None else f"{facts.dtype} {facts.shape}{', sealed' if facts.sealed else ''}"
        return f"<shmem.Entry {self._name!r}: {what}>"

    def __reduce__(self):
        raise TypeError("an Entry cannot be pickled; send its name")


def info(obj):
    """Return where an object lies, its names, and which processes have views of it.

    It pins nothing, and needs no lock.  Other processes may change what it reports at any time.

    Parameters
    ----------
    obj : numpy.ndarray, memoryview, Struct, Queue, Semaphore, Event, Mutex or Block
        An array or a memoryview may be any view of memory in a section.

    Returns
    -------
    ObjectInfo

    Raises
    ------
    InvalidBlock
        `obj` is not in an open section, or was freed.

    Examples
    --------
    >>> import os, shmem
    >>> with shmem.SharedMemory(max_size="1M") as shm:
    ...     array = shm.zeros(3, name="x")
    ...     found = shmem.info(array)
    ...     print(found.names, found.pins == (os.getpid(),))
    ('x',) True
    """
    from shmem._objects.records import ObjectInfo

    memory = finding.find_storage(obj)
    if memory is None:
        finding.refuse_names("look at", obj)
        raise InvalidBlock(f"cannot look at this {type(obj).__name__}: it was freed, or is not in a section that is open in this process")
    offset, serial = finding.locate(memory, obj)
    return ObjectInfo(memory, offset, serial, directory.names_of(memory, offset, serial), finding.viewers(memory, offset, serial))
