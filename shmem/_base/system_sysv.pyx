# cython: language_level=3
"""The page of `_base.system` for System V semaphores, which only `python -m shmem semstat` needs.

Nothing here changes a set.  What Linux guarantees:

* `GETALL` returns all values of a set at one moment.  Waiters and last process are read for one semaphore at a time,
  so they may be slightly newer than the values.
* A set keeps its size.  An id is used again only after tens of thousands of others, but possibly for a larger set.
  The buffers therefore always have room for the largest set that the system allows.
* Every call needs permission to read the set.  For a set that was removed it fails with EINVAL or EIDRM.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport calloc, free

import os

SYSV_LIST = "/proc/sysvipc/sem"

cdef extern from "<sys/sem.h>" nogil:
    struct semid_ds:
        unsigned long sem_nsems
    struct seminfo:
        int semmsl
    int IPC_STAT, IPC_INFO, GETALL, GETNCNT, GETZCNT, GETPID
    int semctl(int set_id, int number, int command, ...)

cdef union semctl_argument_t:        # semctl(2) requires the caller to define it
    int value
    semid_ds* facts
    uint16_t* values
    seminfo* limits

ctypedef struct waiting_t:
    int32_t for_more
    int32_t for_zero
    int32_t last_pid


cdef int _set_size(int set_id, size_t* n_semaphores, size_t* most) noexcept nogil:
    """Find the number of semaphores in the set, and the largest number that any set can have."""
    cdef semid_ds facts
    cdef seminfo limits
    cdef semctl_argument_t argument
    argument.facts = &facts
    if semctl(set_id, 0, IPC_STAT, argument) < 0:
        return errno
    n_semaphores[0] = facts.sem_nsems
    argument.limits = &limits
    if semctl(0, 0, IPC_INFO, argument) < 0:
        return errno
    most[0] = <size_t>limits.semmsl if <size_t>limits.semmsl > facts.sem_nsems else facts.sem_nsems
    return 0


cdef int _ask(int set_id, int number, int command, int32_t* answer) noexcept nogil:
    answer[0] = semctl(set_id, number, command)
    return errno if answer[0] < 0 else 0


cdef int _read_set(int set_id, size_t n_semaphores, uint16_t* values, waiting_t* waiting) noexcept nogil:
    cdef semctl_argument_t argument
    cdef size_t i
    cdef int status
    argument.values = values
    if semctl(set_id, 0, GETALL, argument) < 0:
        return errno
    for i in range(n_semaphores):
        status = _ask(set_id, <int>i, GETNCNT, &waiting[i].for_more)
        if status == 0:
            status = _ask(set_id, <int>i, GETZCNT, &waiting[i].for_zero)
        if status == 0:
            status = _ask(set_id, <int>i, GETPID, &waiting[i].last_pid)
        if status != 0:
            return status
    return 0


def list_sets(path=SYSV_LIST):
    """Return the kernel's list of System V sets of semaphores: for each set a dict from column to text."""
    with open(path, encoding="ascii") as file:
        lines = [line.split() for line in file]
        return [dict(zip(lines[0], row, strict=True)) for row in lines[1:]]


def semaphores_of_set(int set_id):
    """Return the contents of a System V set of semaphores.

    Parameters
    ----------
    set_id : int
        The id of the set, not its key.

    Returns
    -------
    list of tuple
        For each semaphore: its value, the number of waiters for an increase, the number of waiters for zero, and the
        id of the last process that operated on it (0: none, or one outside this PID namespace).

    Raises
    ------
    OSError
        EACCES (a PermissionError): this process must not read the set.  EINVAL, EIDRM: the set does not exist, or was removed.
    """
    cdef size_t n_semaphores = 0, most = 0
    cdef uint16_t* values = NULL
    cdef waiting_t* waiting = NULL
    cdef int status
    try:
        with nogil:
            status = _set_size(set_id, &n_semaphores, &most)
            if status == 0:
                values = <uint16_t*>calloc(most, sizeof(uint16_t))
                waiting = <waiting_t*>calloc(n_semaphores, sizeof(waiting_t))
                status = ENOMEM if values == NULL or waiting == NULL else _read_set(set_id, n_semaphores, values, waiting)
        if status != 0:
            raise OSError(status, os.strerror(status))
        return [(values[i], waiting[i].for_more, waiting[i].for_zero, waiting[i].last_pid) for i in range(n_semaphores)]
    finally:
        free(values)
        free(waiting)
