"""`Attributes`: a few values that belong to an object of a section, or to the section, as h5py has them."""

import collections.abc

from shmem._base import errors
from shmem._objects import attribute_calls

_ABSENT = object()


class _Values(collections.abc.ValuesView):
    """Values as they are at one moment."""

    def __iter__(self):
        return iter(self._mapping._snapshot().values())

    def __contains__(self, value):
        return any(found is value or found == value for found in self)


class _Items(collections.abc.ItemsView):
    """Items as they are at one moment."""

    def __iter__(self):
        return iter(self._mapping._snapshot().items())


class Attributes(collections.abc.MutableMapping):
    """Attributes of a section, of a group, or of the object that a name leads to: a mapping from names to small values.

    ``shm.attrs``, ``shm["group"].attrs`` and ``shm.entry(name).attrs`` return it.  It refers to the name, and each
    call looks the object up anew.

    Attributes belong to the object: all its names share them, and they end with it.  They stay with an array that moves as it grows, and
    with a block that is reallocated.  Each call is one step for all processes, which is done whole or not at all, and no change is lost if
    several processes change attributes of one object at the same time.

    Values are numbers, text, bytes, None, lists and dicts of these, and numpy arrays and scalars of any dtype without Python objects.  A
    tuple becomes a list.  What is returned is a copy: change it, and assign it again.  All attributes of one object can have 1 MiB.

    Raises
    ------
    KeyError
        There is no such attribute, or the name was deleted.
    TypeError, ValueError
        An attribute cannot have this value.
    ReadOnlyError, SectionFull

    Examples
    --------
    >>> import shmem
    >>> with shmem.SharedMemory(max_size="1M") as shm:
    ...     shm["temperature"] = [20.5, 21.0]
    ...     attrs = shm.entry("temperature").attrs
    ...     attrs.update(unit="degC", sensors=[3, 4])
    ...     attrs["unit"], dict(attrs.items())
    ('degC', {'unit': 'degC', 'sensors': [3, 4]})
    """

    __slots__ = ("_memory", "_name")

    def __init__(self, section, name=None):
        self._memory, self._name = section, name

    # -- reading

    def _of(self):
        return "the section" if self._name is None else repr(self._name)

    def _read(self):
        """Return what is encoded for each attribute."""
        return self._trees(attribute_calls.read(self._memory, self._name, f"read the attributes of {self._of()}")[0])

    def _trees(self, text):
        from shmem._objects import attribute_codec

        return self._decode(attribute_codec.from_bytes, text)

    def _decode(self, decode, encoded, name=""):
        try:
            return decode(encoded)
        except errors.DAMAGED_TEXT as error:
            attribute = f"the attribute {name!r} of {self._of()}" if name else f"the attributes of {self._of()}"
            raise errors.HeapCorruption(
                f"section {self._memory.path!r} is damaged, or was written by a later version: "
                f"{attribute} cannot be decoded: {error}; {'assign a new value, or clear() them' if name else 'clear() removes them'}"
            ) from None

    def _value(self, name, tree):
        from shmem._objects import attribute_codec

        return self._decode(attribute_codec.from_tree, tree, name)

    def _snapshot(self):
        """Return all attributes as they are at one moment."""
        return self._values(self._read())

    def _values(self, trees):
        return {name: self._value(name, tree) for name, tree in trees.items()}

    def __getitem__(self, name):
        return self._value(name, self._read()[name])

    def get(self, name, default=None):
        """Return an attribute, or `default` if there is none."""
        found = self._read()
        return self._value(name, found[name]) if name in found else default

    def __contains__(self, name):
        return name in self._read()

    def __iter__(self):
        return iter(self._read())

    def __len__(self):
        return len(self._read())

    def keys(self):
        """Return a view of the names in the order in which they were first set."""
        return collections.abc.KeysView(self)

    def values(self):
        """Return a view of the values; each iteration is over those of one moment."""
        return _Values(self)

    def items(self):
        """Return a view of the pairs of name and value; each iteration is over those of one moment."""
        return _Items(self)

    # -- changing

    def _change(self, what, change):
        """Apply `change(trees)` and write the result in one step, again if another process was faster; return what it returns."""
        from shmem._objects import attribute_codec

        attribute_calls.refuse_read_only(self._memory, what)
        while True:
            former, serial = attribute_calls.read(self._memory, self._name, what)
            trees = self._trees(former)
            result = change(trees)
            text = attribute_codec.to_bytes(trees, what)
            if text == former or attribute_calls.write(self._memory, self._name, serial, text, what):
                return result

    def __setitem__(self, name, value):
        self._put({name: value}, f"set the attribute {name!r} of {self._of()}")

    def _put(self, values, what):
        from shmem._objects import attribute_codec

        trees = {attribute_codec.checked_name(name): attribute_codec.to_tree(name, value) for name, value in values.items()}
        self._change(what, lambda found: found.update(trees))

    def __delitem__(self, name):
        self._change(f"delete the attribute {name!r} of {self._of()}", lambda found: found.pop(name))

    def pop(self, name, default=_ABSENT):
        """Remove an attribute and return it, or `default` if there is none.  If several processes take it, one of them gets it."""

        def take(found):
            if name not in found and default is not _ABSENT:
                return default
            value = self._value(name, found[name])
            del found[name]
            return value

        return self._change(f"take the attribute {name!r} of {self._of()}", take)

    def popitem(self):
        """Remove the latest attribute and return it with its name; KeyError if there is none."""

        def take(found):
            if not found:
                raise KeyError(f"cannot take an attribute: {self._of()} has none")
            name, tree = found.popitem()
            return name, self._value(name, tree)

        return self._change(f"take an attribute of {self._of()}", take)

    def clear(self):
        """Remove all attributes, in one step."""
        what = f"clear the attributes of {self._of()}"
        while True:  # without a look at what is there: it may be damaged
            serial = attribute_calls.read(self._memory, self._name, what)[1]
            if attribute_calls.write(self._memory, self._name, serial, b"", what):
                return

    def setdefault(self, name, default=None):
        """Return an attribute; if there is none, set it to `default` first, in the same step."""
        from shmem._objects import attribute_codec

        checked, tree = attribute_codec.checked_name(name), attribute_codec.to_tree(name, default)
        found = self._change(f"set the attribute {name!r} of {self._of()}", lambda found: found.setdefault(checked, tree))
        return self._value(name, found)

    def update(self, other=(), /, **more):
        """Set several attributes, as `dict.update`, in one step: all of them are set, or none."""
        if isinstance(other, Attributes):
            other = other._snapshot()
        self._put(dict(other, **more), f"update the attributes of {self._of()}")

    # -- what is shown, without waiting for a process that keeps the heap gate

    def _glance(self):
        """Return all attributes, or None if another process keeps the gate."""
        found = attribute_calls.read(self._memory, self._name, f"look at the attributes of {self._of()}", False)
        return None if found is None else self._values(self._trees(found[0]))

    def __repr__(self):
        of = "" if self._name is None else f" of {self._name!r}"
        try:
            found = self._glance()
            return f"<shmem.Attributes{of}: {'not read: another process keeps the heap' if found is None else found}>"
        except Exception as error:
            return f"<shmem.Attributes{of}: {type(error).__name__}>"

    def _repr_html_(self):
        """Return a table of the attributes, for notebooks."""
        from shmem._objects import display

        return display.attributes_html(self._glance, "" if self._name is None else repr(self._name))

    def _ipython_key_completions_(self):
        """Return the names that IPython offers after ``attrs["``."""
        try:
            return list(self._glance() or ())
        except (errors.ShmemError, KeyError):
            return []

    def __reduce__(self):
        raise TypeError("Attributes cannot be pickled; send dict(attrs.items()), or the name of the object that has them")
