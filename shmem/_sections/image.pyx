# cython: language_level=3
"""Images: the bytes of a section where no other process can see them.

A snapshot without a name is an image, and so is the private copy that `check` examines.  No process is attached to an image.  The code
that recovers and verifies a heap therefore works on it as for a first opener: every owner of an entry is dead.  The gates are opened
first, and nothing here waits.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from shmem._base import system_tools
from shmem._base.layout cimport free_index_t, header_t, intent_t, participant_t
from shmem._base.participants cimport LIVENESS_BYTE, N_LIVENESS_BYTES, OPENING_BYTE
from shmem._base.section cimport private_t, section_t
from shmem._base.status cimport OK
from shmem._base.system cimport boot_id, byte_range_is_locked, file_facts, file_facts_t
from shmem._heap.recovery cimport ALL_PARTICIPANTS, heap_recover
from shmem._heap.verify cimport FINE, Problem, heap_check_as_it_is, heap_facts_t, problem_name
from shmem._sections.first_and_last cimport section_quiet


cdef int image_begin(section_t* section, char* base, uint64_t size_bytes, int fd) noexcept nogil:
    cdef header_t* header = <header_t*>base
    cdef file_facts_t facts
    memset(section, 0, sizeof(section_t))
    section.private = <private_t*>calloc(1, sizeof(private_t))       # belongs to no participant
    if section.private == NULL:
        return ENOMEM
    section.base = base
    section.size_bytes = size_bytes
    section.header = header
    section.participants = <participant_t*>(base + header.participants_off)
    section.intents = <intent_t*>(base + header.intents_off)
    section.index = <free_index_t*>(base + header.index_off)
    section.salt = header.salt
    section.heap_start = header.heap_start
    section.max_participants = header.max_participants
    section.liveness_fd = section.guest_fd = section.child_fd = -1
    section.fd = fd
    section.path = b""
    if file_facts(fd, &facts) == 0:
        section.device, section.inode = facts.device, facts.inode
    section_quiet(section)
    return OK


cdef void image_end(section_t* section) noexcept nogil:
    free(section.private)


def is_in_use(int fd):
    """Return whether any process is attached to the section in the file behind a descriptor."""
    cdef bint is_locked = True
    return byte_range_is_locked(fd, LIVENESS_BYTE, N_LIVENESS_BYTES, &is_locked) != 0 or is_locked


def hold_opening(int fd, bint shared):
    """Keep processes from opening or closing the section in the file behind a descriptor, until the descriptor is closed.

    Parameters
    ----------
    fd : int
        Open for reading if `shared`, else for writing.
    shared : bool
        Allow other callers to hold it shared meanwhile.
    """
    system_tools.wait_for_byte(fd, <uint64_t>OPENING_BYTE, shared)


def check(image, int fd, bint recover):
    """Verify a heap whose chain of front tags is whole; return (problem, facts), or (None, facts) if there is no problem.

    Parameters
    ----------
    image : writable buffer
        All bytes of the section; the caller must have checked header and chain.
    fd : int
        A descriptor of the file from which the image was read.
    recover : bool
        Recover the heap first, as the first opener would.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(image, &view, PyBUF_WRITABLE)
    try:
        return _check_bytes(<char*>view.buf, view.len, fd, recover)
    finally:
        PyBuffer_Release(&view)


cdef tuple _check_bytes(char* image, uint64_t n_bytes, int fd, bint recover):
    cdef section_t section
    cdef heap_facts_t facts
    cdef Problem problem = FINE
    cdef int status = image_begin(&section, image, n_bytes, fd)
    if status != OK:
        raise MemoryError
    section.size_bytes = max(section.size_bytes, section.header.max_size)      # a bound for offsets; nothing above `top` is read
    memset(&facts, 0, sizeof(heap_facts_t))
    with nogil:
        if recover:
            boot_id(section.header.boot_id, sizeof(section.header.boot_id))    # claims of another boot end
            heap_recover(&section, ALL_PARTICIPANTS)
        problem = heap_check_as_it_is(&section, &facts)
        image_end(&section)
    return None if problem == FINE else problem_name(problem).decode(), facts
