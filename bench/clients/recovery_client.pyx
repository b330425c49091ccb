# cython: language_level=3
"""Operations that no public function offers: dying inside the heap gate, and recovering a heap that does not need it."""

cimport shmem

from bench_clock cimport now
from libc.signal cimport SIGKILL
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.signal cimport kill
from posix.unistd cimport getpid

from shmem._heap.heap cimport WAIT_FOREVER, heap_enter, heap_leave
from shmem._base.participants cimport LIVENESS_BYTE
from shmem._heap.recovery cimport NO_PARTICIPANT, heap_recover

FIRST_LIVENESS_BYTE = LIVENESS_BYTE


def fill(shm, uint64_t n_blocks):
    """Allocate `n_blocks` of 16 to 1024 bytes, then free every fourth."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef uint64_t* blocks = <uint64_t*>calloc(n_blocks, sizeof(uint64_t))
    cdef uint64_t i
    cdef int status = 0
    for i in range(n_blocks):
        status |= shmem.allocate(section, 16 + i * 389 % 1009, False, &blocks[i])
    if status == 0:
        for i in range(0, n_blocks, 4):
            status |= shmem.free(section, blocks[i])
    free(blocks)
    if status != 0:
        raise RuntimeError(f"the heap operation failed: status {status}")


def die_in_the_gate(shm):
    """Take the heap gate, then kill this process."""
    if heap_enter(shmem.section_of(shm), WAIT_FOREVER) == 0:
        kill(getpid(), SIGKILL)


def recover(shm):
    """Recover the heap as after a death; return the seconds."""
    cdef shmem.section_t* section = shmem.section_of(shm)
    cdef double start
    cdef int status = heap_enter(section, WAIT_FOREVER)
    if status == 0:
        start = now()
        status = heap_recover(section, NO_PARTICIPANT)
        start = now() - start
        heap_leave(section)
    if status != 0:
        raise RuntimeError(f"the heap operation failed: status {status}")
    return start
