"""POSIX semaphores over `shmem.Semaphore`: the names, arguments and errors of ``<semaphore.h>``.

The semaphore is the first argument, as in C.  Errors are both `OSError`, with the errno of POSIX, and `ShmemError`.
"""

import errno
import os
import time

from shmem._base import errors
from shmem._objects import finding
from shmem._objects.semaphore import Semaphore, has_waiters
from shmem._objects.shared_memory import SharedMemory

__all__ = ["SemaphoreUnavailable", "sem_destroy", "sem_getvalue", "sem_init", "sem_post", "sem_timedwait", "sem_trywait", "sem_wait"]


class SemaphoreUnavailable(errors.OperatingSystemError, BlockingIOError):
    """`sem_trywait` failed because the value is 0."""


def _error(cls, number, text):
    error = cls(f"{text}: {os.strerror(number)}")
    error.errno = error.status = number
    return error


def _checked(sem, what):
    """Return `sem` if it is a usable semaphore; raise EINVAL otherwise."""
    if not isinstance(sem, Semaphore):
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"{what}: not a semaphore, got {type(sem).__name__}")
    try:
        sem.value  # noqa: B018 - raises if it was closed or freed
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
        A system-wide name, as for `Semaphore`; an existing semaphore is opened and keeps its value.  Or an open section, in
        which a new block is allocated.
    value : int
        The initial value.

    Returns
    -------
    Semaphore

    Raises
    ------
    OSError
        EINVAL: `value` is negative or larger than 2**31 - 1.
    TypeError
        `place` is neither.

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
        raise TypeError(f"place must be a name or a SharedMemory, got {type(place).__name__}")
    if not 0 <= value <= 0x7FFFFFFF:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"sem_init: value must be between 0 and 2**31 - 1, got {value}")
    return Semaphore(place, value) if isinstance(place, str) else place.semaphore(value)


def sem_wait(sem):
    """Decrement the semaphore; wait while its value is 0.

    Raises
    ------
    OSError
        EINVAL: not a semaphore, or destroyed.
    """
    _wait(_checked(sem, "sem_wait"), None, "sem_wait")


def sem_trywait(sem):
    """Decrement the semaphore if its value is not 0.

    Raises
    ------
    SemaphoreUnavailable
        EAGAIN, a `BlockingIOError`: the value is 0.
    OSError
        EINVAL: not a semaphore, or destroyed.
    """
    if not _wait(_checked(sem, "sem_trywait"), 0, "sem_trywait"):
        raise _error(SemaphoreUnavailable, errno.EAGAIN, "sem_trywait")


def sem_timedwait(sem, abstime):
    """Decrement the semaphore; wait while its value is 0, but not beyond a point in time.

    Parameters
    ----------
    sem : Semaphore
    abstime : float
        When to stop waiting, in seconds of the system clock, as `time.time` returns them.  Setting the clock meanwhile has no effect.

    Raises
    ------
    LockTimeout
        ETIMEDOUT, a `TimeoutError`: the semaphore was not available in time.
    OSError
        EINVAL: not a semaphore, or destroyed, or `abstime` is NaN.
    """
    _checked(sem, "sem_timedwait")
    left = abstime - time.time()
    if left != left:
        raise _error(errors.OperatingSystemError, errno.EINVAL, f"sem_timedwait: abstime must be a time, got {abstime!r}")
    if not _wait(sem, max(left, 0), "sem_timedwait"):
        error = _error(errors.LockTimeout, errno.ETIMEDOUT, "sem_timedwait")
        error.status = errors.Status.timeout_expired
        raise error


def sem_post(sem):
    """Increment the semaphore and wake one waiter.

    Raises
    ------
    OSError
        EOVERFLOW: the value would exceed 2**31 - 1.  EINVAL: not a semaphore, or destroyed.
    """
    try:
        _checked(sem, "sem_post").signal()
    except errors.SemaphoreOverflow as error:
        raise _error(errors.OperatingSystemError, errno.EOVERFLOW, "sem_post") from error


def sem_getvalue(sem):
    """Return the value at this moment; it is 0 while threads wait.

    Raises
    ------
    OSError
        EINVAL: not a semaphore, or destroyed.
    """
    return _checked(sem, "sem_getvalue").value


def sem_destroy(sem):
    """Remove the semaphore: its name, or its block.

    Raises
    ------
    OSError
        EBUSY: a thread waits for it.  EINVAL: not a semaphore, or destroyed.
    SectionNotFound
        The name was removed already.
    """
    _checked(sem, "sem_destroy")
    if has_waiters(sem):
        raise _error(errors.OperatingSystemError, errno.EBUSY, "sem_destroy: a thread waits for the semaphore")
    if sem.name is not None:
        sem.unlink()
    elif sem.offset is not None:
        finding.deallocate(sem)
    sem.close()
