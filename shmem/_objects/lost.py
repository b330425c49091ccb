"""The placeholder of an object that could not be opened where it arrived."""

import copy

from shmem._base.errors import ClosedError, InvalidBlock, NotASection, SectionNotFound, ShmemError

# the object does not exist any more; after any other error it may, and a later attempt to open it may succeed
_GONE = (InvalidBlock, SectionNotFound, NotASection, ClosedError)


def _kept(error):
    """Return a copy of an exception that can be pickled and refers to no frames."""
    if not isinstance(error, ShmemError) and type(error).__module__ != "builtins":  # another library's may not be picklable
        return InvalidBlock(f"{type(error).__name__}: {error}")
    try:
        return copy.copy(error)
    except Exception:
        return InvalidBlock(f"{type(error).__name__}: {error}")


class LostReference:
    """What arrives in place of an object that could not be opened, because it was freed on its way or for another reason.

    Background threads of `multiprocessing` and of other libraries unpickle what a process is sent.  An exception there would end the
    thread, and the pool or queue would hang, so the exception is raised where the object is used.

    Every use raises: attributes, items, calls, comparisons, operators, iteration, conversion to an array.  `repr`, `hash`, copying and
    pickling do not.

    Parameters
    ----------
    error : Exception
        Why the object could not be opened.
    handle : Handle, optional
        What could not be opened; `Handle.open` tries again.

    Raises
    ------
    InvalidBlock
        In every use, if the object or its section does not exist any more.  Its `__cause__` is `lost_error`.
    ShmemError
        In every use, an exception of the class of `lost_error` if it is another one of this library, such as `TooManyParticipants`.

    Examples
    --------
    >>> import shmem
    >>> from multiprocessing.reduction import ForkingPickler
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     array = shm.array([1, 2, 3])
    ...     message = bytes(ForkingPickler.dumps(array))
    ...     shm.free(array)
    ...     found = ForkingPickler.loads(message)
    >>> isinstance(found, shmem.LostReference)
    True
    >>> found.sum()
    Traceback (most recent call last):
    ...
    shmem.InvalidBlock: cannot use this object: it was lost on its way to this process: ...
    """

    __slots__ = ("__weakref__", "_error", "_handle")

    def __init__(self, error, handle=None):
        object.__setattr__(self, "_error", _kept(error))
        object.__setattr__(self, "_handle", handle)

    @property
    def lost_error(self):
        """Why the object could not be opened."""
        return self._error

    @property
    def lost_handle(self):
        """What could not be opened, a `Handle`; None if that is not one object."""
        return self._handle

    def __reduce__(self):
        return LostReference, (self._error, self._handle)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return f"<shmem.LostReference, {type(self._error).__name__}: {self._error}>"

    def __format__(self, spec):
        if spec:
            raise _error_of_use(self)
        return repr(self)

    def __getattr__(self, name):
        if name[:2] == name[-2:] == "__":  # not a use: functions such as `dir` look for optional methods
            raise AttributeError(f"this reference has no {name}: {self!r}")
        raise _error_of_use(self)

    # numpy looks for these before it calls `__array__`
    @property
    def __array_interface__(self):
        raise _error_of_use(self)

    __array_struct__ = __array_interface__


def _error_of_use(lost):
    """Return a new exception for a use of a lost reference."""
    cause = lost._error
    is_gone = isinstance(cause, _GONE) or not isinstance(cause, ShmemError)
    error = InvalidBlock() if is_gone else copy.copy(cause)
    advice = "a sender must keep it until it has been opened" if is_gone else "lost_handle.open() tries again"
    error.args = (f"cannot use this object: it was lost on its way to this process: {cause}; {advice}",)
    error.__cause__ = cause
    return error


def _use(name):
    def use(self, *args, **kwargs):
        raise _error_of_use(self)

    use.__name__ = use.__qualname__ = name
    return use


_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor", "or")
_USES = (
    *_BINARY,
    *(f"r{name}" for name in _BINARY),
    *("lt", "le", "eq", "ne", "gt", "ge"),
    *("bool", "int", "float", "complex", "index", "bytes", "round", "trunc", "floor", "ceil", "abs", "neg", "pos", "invert"),
    *("call", "len", "iter", "reversed", "contains", "getitem", "setitem", "delitem", "setattr", "delattr", "enter", "exit"),
    *("array", "array_ufunc", "array_function", "buffer"),
)
for _name in _USES:
    setattr(LostReference, f"__{_name}__", _use(f"__{_name}__"))
