"""POSIX semaphores over `shmem.Semaphore`: the names, arguments and errors of ``<semaphore.h>``.

The semaphore is the first argument, as in C.  Errors are `OSError` with the errno that POSIX gives, and `ShmemError`.
"""

import errno
import os
import time

from shmem._base import errors
from shmem._objects import finding, waitables
from shmem._objects.shared_memory import SharedMemory
from shmem._objects.waitables import Semaphore

__all__ = ["SemaphoreUnavailable", "sem_destroy", "sem_getvalue", "sem_init", "sem_post", "sem_timedwait", "sem_trywait", "sem_wait"]


class SemaphoreUnavailable(errors.OperatingSystemError, BlockingIOError):
    """`sem_trywait` would have had to wait."""


def _error(cls, number, text):
    error = cls(f"{text}: {os.strerror(number)}")
    error.errno = error.status = number
    return error


def _checked(sem, what):
    """A semaphore that can be used, else EINVAL."""
    if not isinstance(sem, Semaphore):
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"{what}: {type(sem).__name__} is no semaphore")
    try:
        sem.value  # noqa: B018 - closed, freed?
    except (errors.ClosedError, errors.InvalidBlock) as error:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"{what}: the semaphore was destroyed") from error
    return sem


def _wait(sem, timeout, what):
    try:
        return sem.wait(timeout)
    except (errors.ClosedError, errors.InvalidBlock) as error:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"{what}: the semaphore was destroyed meanwhile") from error


def sem_init(place, value=0):
    """Make a semaphore.

    Parameters
    ----------
    place : str or SharedMemory
        A system-wide name, as for `Semaphore`; if it exists it is opened, and keeps its value.  Or an open section, in which
        a new block is allocated.
    value : int
        The initial value.

    Returns
    -------
    Semaphore

    Raises
    ------
    OSError
        EINVAL: a value that is negative or larger than 2**31 - 1.

    Examples
    --------
    >>> import shmem
    >>> from shmem.posixsem import *
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     sem = sem_init(shm, 1)
    ...     sem_wait(sem)
    ...     sem_post(sem)
    ...     sem_getvalue(sem)
    1
    """
    if not isinstance(place, (str, SharedMemory)):
        raise TypeError(f"a semaphore's place is a name or a SharedMemory, not {type(place).__name__}")
    if not 0 <= value <= 0x7FFFFFFF:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"sem_init: a value of {value}")
    return Semaphore(place, value) if isinstance(place, str) else place.semaphore(value)


def sem_wait(sem):
    """Take one, waiting until there is one.

    Raises
    ------
    OSError
        EINVAL: no semaphore, or destroyed.
    """
    _wait(_checked(sem, "sem_wait"), None, "sem_wait")


def sem_trywait(sem):
    """Take one if there is one.

    Raises
    ------
    SemaphoreUnavailable
        EAGAIN, a `BlockingIOError`: there is none.
    OSError
        EINVAL: no semaphore, or destroyed.
    """
    if not _wait(_checked(sem, "sem_trywait"), 0, "sem_trywait"):
        raise _error(SemaphoreUnavailable, errno.EAGAIN, "sem_trywait")


def sem_timedwait(sem, abstime):
    """Take one, waiting until there is one or the time has come.

    Parameters
    ----------
    sem : Semaphore
    abstime : float
        When to give up: seconds of the system clock, as `time.time` gives them.  If the clock is set meanwhile, that is not noticed.

    Raises
    ------
    LockTimeout
        ETIMEDOUT, a `TimeoutError`: the time has come.
    OSError
        EINVAL: no semaphore, or destroyed, or a time that is none.
    """
    _checked(sem, "sem_timedwait")
    left = abstime - time.time()
    if left != left:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"sem_timedwait: {abstime!r} is no time")
    if not _wait(sem, max(left, 0), "sem_timedwait"):
        error = _error(errors.LockTimeout, errno.ETIMEDOUT, "sem_timedwait")
        error.status = errors.Status.timeout_expired
        raise error


def sem_post(sem):
    """Add one.

    Raises
    ------
    OSError
        EOVERFLOW: the value would pass 2**31 - 1.  EINVAL: no semaphore, or destroyed.
    """
    try:
        _checked(sem, "sem_post").signal()
    except errors.SemaphoreOverflow as error:
        raise _error(errors.OperatingSystemError, errno.EOVERFLOW, "sem_post") from error


def sem_getvalue(sem):
    """How many there are at this moment; 0 also while somebody waits."""
    return _checked(sem, "sem_getvalue").value


def sem_destroy(sem):
    """Remove the semaphore: its name, or its block.

    Raises
    ------
    OSError
        EBUSY: somebody waits in it.  EINVAL: no semaphore, or destroyed.
    SectionNotFound
        Its name was removed already.
    """
    _checked(sem, "sem_destroy")
    if waitables.anybody_waits(sem):
        raise _error(errors.OperatingSystemError, errno.EBUSY, "sem_destroy: somebody waits")
    if sem.name is not None:
        sem.unlink()
    elif sem.offset is not None:
        finding.deallocate(sem)
    sem.close()
