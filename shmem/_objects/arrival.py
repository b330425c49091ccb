"""How references are opened where they arrive: what a reducer has the receiver call, and what becomes of an exception there.

* Background threads of other libraries unpickle messages.  An exception would end such a thread, and its pool or queue would hang.  So
  `arrive` returns a placeholder, a `LostReference`, whatever the exception is.  `open_arrived` does so for a handle, which is what most
  references are.
* A container that needs real arrays while it is unpickled, such as a DataFrame, is pickled apart (`send_container`).  There an exception
  travels up to `arrive_container`, which returns a placeholder for the whole.
* What `shmem.loads` opens raises at once: its caller is there to catch it.

The sender decides among these, because every receiver unpickles in the same way.
"""

import contextlib
import threading

from shmem._objects.lost import LostReference


class _PartIsLost(Exception):
    """A part of a container is lost; the argument is the placeholder."""


def arrive(function, *args):
    """Return `function(*args)`; if it raises, or if one of the arguments is a placeholder, return a placeholder."""
    for arg in args:
        if type(arg) is LostReference:
            return arg
    try:
        return function(*args)
    except Exception as error:
        from shmem._objects.records import Handle

        return LostReference(error, next((arg for arg in args if isinstance(arg, Handle)), None))


def open_arrived(handle):
    """Return what a handle refers to; if it cannot be opened, return a placeholder."""
    try:
        return handle.open()
    except Exception as error:
        return LostReference(error, handle)


def _must_arrive(found):
    """Return what has arrived; if that is a placeholder, have `arrive_container` return it."""
    if type(found) is LostReference:
        raise _PartIsLost(found)
    return found


def arrive_as_part(function, *args):
    """Return `function(*args)`; if it raises, have `arrive_container` return a placeholder."""
    return _must_arrive(arrive(function, *args))


def open_as_part(handle):
    """Return what a handle refers to; if it cannot be opened, have `arrive_container` return a placeholder."""
    return _must_arrive(open_arrived(handle))


def _open(handle):
    return handle.open()


def arrive_container(loads, data):
    """Unpickle a container; return a placeholder if one of its parts is lost."""
    try:
        return loads(data)
    except _PartIsLost as error:
        return error.args[0]


_OPENED_BY = {arrive: open_arrived, arrive_as_part: open_as_part, None: _open}


class _Sending(threading.local):
    how = staticmethod(arrive)  # of this thread; None: directly


_sending = _Sending()


def sent(function, *args):
    """Return what a reducer returns in order to have the receiver call `function(*args)`, which opens a reference."""
    how = _sending.how
    return (function, args) if how is None else (how, (function, *args))


def sent_handle(handle):
    """Return what a reducer returns in order to have the receiver open a handle."""
    return _OPENED_BY[_sending.how], (handle,)


@contextlib.contextmanager
def _sending_for(how):
    before = _sending.how
    _sending.how = how
    try:
        yield
    finally:
        _sending.how = before


def by_hand():
    """Return a context in which references are pickled for a receiver that catches the exceptions."""
    return _sending_for(None)


def sends_to_background():
    """Return whether placeholders are to arrive, rather than exceptions."""
    return _sending.how is arrive


def send_container(container, dumps, loads):
    """Return what a reducer returns for a container that cannot hold placeholders: it is pickled apart."""
    with _sending_for(arrive_as_part):
        return arrive_container, (loads, bytes(dumps(container)))
