"""A client of the C-level interface, compiled against the installed package as an external project."""

import shutil
import sysconfig

import pytest
from clients import build, run

CLIENT = '''
# cython: language_level=3
from libc.stdint cimport int64_t, uint64_t

cimport shmem

ctypedef struct cell_t:
    int64_t value
    uint64_t next_off


def constants():
    return shmem.FOREVER, shmem.AT_ONCE


def push(memory, int64_t value):
    """Put a cell in front of the list that the root leads to."""
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef uint64_t off = 0
    cdef cell_t* cell
    cdef int status
    with nogil:
        status = shmem.lock_exclusive(section, shmem.FOREVER)
        if status == 0:
            status = shmem.allocate(section, sizeof(cell_t), True, &off)
            if status == 0:
                cell = <cell_t*>shmem.pointer(section, off)
                cell.value = value
                cell.next_off = shmem.root_offset(section)
                shmem.set_root_offset(section, off)
            shmem.unlock_exclusive(section)
    return status


def total(memory):
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef cell_t* cell
    cdef int64_t found = 0
    cdef int status
    with nogil:
        status = shmem.lock_shared(section, shmem.FOREVER)
        cell = <cell_t*>shmem.pointer(section, shmem.root_offset(section))
        while cell != NULL:
            found += cell.value
            cell = <cell_t*>shmem.pointer(section, cell.next_off)
        shmem.unlock_shared(section)
    return status, found


def pop(memory):
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef uint64_t off = shmem.root_offset(section)
    cdef cell_t* cell = <cell_t*>shmem.pointer(section, off)
    if cell == NULL:
        return None
    assert shmem.offset(section, cell) == off
    assert shmem.offset(section, NULL) == 0
    shmem.set_root_offset(section, cell.next_off)
    return shmem.free(section, off), shmem.free(section, off)


def allocate(memory, uint64_t size):
    cdef uint64_t off = 0
    cdef int status = shmem.allocate(shmem.section_of(memory), size, False, &off)
    return status, off


def try_lock(memory, bint exclusive, int64_t timeout_ns):
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef int status
    with nogil:
        if exclusive:
            status = shmem.lock_exclusive(section, timeout_ns)
            if status == 0:
                status = shmem.unlock_exclusive(section)
        else:
            status = shmem.lock_shared(section, timeout_ns)
            if status == 0:
                status = shmem.unlock_shared(section)
    return status


def hand_over(memory, uint64_t semaphore_off, uint64_t event_off, uint64_t mutex_off):
    """Return the states of a semaphore, an event and a mutex found by offset, in this order."""
    cdef shmem.section_t* section = shmem.section_of(memory)
    cdef shmem.semaphore_t* semaphore = <shmem.semaphore_t*>shmem.pointer(section, semaphore_off)
    cdef shmem.event_t* event = <shmem.event_t*>shmem.pointer(section, event_off)
    cdef shmem.mutex_t* mutex = <shmem.mutex_t*>shmem.pointer(section, mutex_off)
    cdef bint owner_died = True
    cdef int late
    with nogil:
        shmem.semaphore_signal(semaphore, 2)
        shmem.event_signal(event)
    found = (shmem.semaphore_wait(semaphore, shmem.FOREVER), shmem.event_wait(event, shmem.FOREVER),
             shmem.mutex_lock(section, mutex, 1000000, &owner_died), owner_died, shmem.mutex_unlock(section, mutex),
             shmem.mutex_unlock(section, mutex), shmem.semaphore_wait(semaphore, 0))
    with nogil:
        late = shmem.semaphore_wait(semaphore, 1000000)
    return (*found, late)


def unlock_what_is_not_locked(memory):
    cdef shmem.section_t* section = shmem.section_of(memory)
    return shmem.unlock_exclusive(section), shmem.unlock_shared(section)
'''

USE = """
import threading
import client, shmem

def status_of(*arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(client.try_lock(*arguments)))
    thread.start()
    thread.join()
    return found[0]

with shmem.SharedMemory(max_size=1 << 20) as shm:
    assert client.constants() == (-1, 0)
    assert [client.push(shm, value) for value in (1, 20, 300)] == [0, 0, 0]
    assert client.total(shm) == (0, 321)
    assert shm.check_heap().blocks == 3
    assert int.from_bytes(bytes(shm.root)[:8], "little") == 300      # Python sees a block
    assert status_of(shm, True, 0) == status_of(shm, False, 1000) == 0
    with shmem.shared_lock(shm):
        assert status_of(shm, False, 0) == 0
        assert status_of(shm, True, 0) == shmem.Status.timeout_expired
        assert status_of(shm, True, 20_000_000) == shmem.Status.timeout_expired
    with shmem.exclusive_lock(shm):
        assert client.try_lock(shm, True, 0) == client.try_lock(shm, False, 0) == 0      # locked already, so these nest
        assert status_of(shm, False, 0) == shmem.Status.timeout_expired
    assert client.unlock_what_is_not_locked(shm) == (shmem.Status.not_owner, shmem.Status.not_owner)
    semaphore, event, mutex = shm.semaphore(), shm.event(), shm.mutex()
    late = shmem.Status.timeout_expired
    assert client.hand_over(shm, semaphore.offset, event.offset, mutex.offset) == (0, 0, 0, 0, 0, shmem.Status.not_owner, 0, late)
    assert (semaphore.value, event.is_set(), mutex.locked()) == (0, True, False)
    for one in (semaphore, event, mutex):
        shm.free(one)
    assert client.allocate(shm, 1 << 40) == (shmem.Status.no_memory, 0)
    assert [client.pop(shm) for _ in range(4)] == [(0, shmem.Status.already_freed)] * 3 + [None]
    assert shm.check_heap().blocks == 0
    assert shm.root is None
try:
    client.push(shm, 1)
except shmem.ClosedError:
    print("well")
try:
    client.push(5, 1)
except TypeError:
    print("done")
"""


@pytest.fixture
def client(tmp_path):
    """A directory with the built client; removed afterwards."""
    build(tmp_path, CLIENT)
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_outside_client(client):
    assert (client / f"client{sysconfig.get_config_var('EXT_SUFFIX')}").exists()
    done = run(client, "-W", "error", "-c", USE)
    assert done.stdout.split() == ["well", "done"]
    assert done.stderr == ""
