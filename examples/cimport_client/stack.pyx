# cython: language_level=3
"""A stack of numbers in a section, through the C-level interface: lock, allocate, link and free without the GIL.

The section's root is the topmost node.  A node stores the offset of the next one, because each process may map the section
at another address.  Build and run it::

    cythonize -i stack.pyx
    python -c "import shmem, stack
    with shmem.SharedMemory(max_size=1 << 20) as shm:
        stack.push(shm, [1, 2, 3])
        print(stack.pop_all(shm))"

A process that is killed between `allocate` and `set_root_offset`, or between `set_root_offset` and `free`, leaves an intact heap
with one unreachable block.
"""

cimport shmem
from libc.stdint cimport int64_t, uint64_t

import shmem


cdef struct node_t:
    uint64_t next_off
    int64_t value


cdef int push_one(shmem.section_t* section, int64_t value) noexcept nogil:
    """Push a number; return 0 or a status."""
    cdef uint64_t node_off
    cdef node_t* node
    cdef int status = shmem.lock_exclusive(section, shmem.FOREVER)
    if status != 0:
        return status
    status = shmem.allocate(section, sizeof(node_t), False, &node_off)
    if status == 0:
        node = <node_t*>shmem.pointer(section, node_off)
        node.value = value
        node.next_off = shmem.root_offset(section)
        shmem.set_root_offset(section, node_off)      # the store that makes the node visible comes last
    shmem.unlock_exclusive(section)
    return status


cdef int pop_one(shmem.section_t* section, int64_t* value, bint* found) noexcept nogil:
    """Pop the topmost number, if there is one; return 0 or a status."""
    cdef uint64_t node_off
    cdef node_t* node
    cdef int status = shmem.lock_exclusive(section, shmem.FOREVER)
    if status != 0:
        return status
    node_off = shmem.root_offset(section)
    found[0] = node_off != 0
    if node_off != 0:
        node = <node_t*>shmem.pointer(section, node_off)
        value[0] = node.value
        shmem.set_root_offset(section, node.next_off)
        status = shmem.free(section, node_off)
    shmem.unlock_exclusive(section)
    return status


cdef int raise_status(int status) except -1:
    error = shmem.ShmemError(shmem.get_error_text(status))
    error.status = status
    raise error


def push(shm, values):
    """Push numbers onto the stack in a section.

    Parameters
    ----------
    shm : SharedMemory
    values : iterable of int
        64-bit signed integers; the last one becomes the topmost.
    """
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef int64_t value
    cdef int status
    for value in values:
        with nogil:
            status = push_one(section, value)
        if status != 0:
            raise_status(status)


def pop_all(shm):
    """Pop all numbers.

    Parameters
    ----------
    shm : SharedMemory

    Returns
    -------
    list of int
        The number that was pushed last comes first.
    """
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef int64_t value = 0
    cdef bint found = True
    cdef int status
    values = []
    while True:
        with nogil:
            status = pop_one(section, &value, &found)
        if status != 0:
            raise_status(status)
        if not found:
            return values
        values.append(value)
