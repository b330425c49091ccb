# cython: language_level=3
"""The files of named semaphores and events: one page each, `named_t` at its start.

A file is written before it has a name, and gets its name in one step that fails if the name is taken.  So a
name always leads to a complete file, and a kill leaves nothing behind.  If several processes create the file at the same time, one wins
and the others open its file.  Afterwards only the state changes.

Any other file under the name is not modified.  As with sections, a user with write access can damage the file.  Therefore another user's
file is refused, and another user's symbolic link is not followed.  All checks are made when the file is opened.  Truncating a file that
other processes have open kills them (SIGBUS), as with any mapped file; replacing it, or writing any bytes, does not.
"""

from libc.errno cimport EACCES, EEXIST, EISDIR, ELOOP, ENOENT, ENXIO
from libc.string cimport memset

from shmem._base.layout cimport NAMED_MAGIC, NAMED_VERSION, PAGE_BYTES, named_t
from shmem._base.status cimport NOT_A_SECTION, OK, UNTRUSTED_OWNER
from shmem._base.system cimport (
    file_close, file_facts, file_facts_t, file_give_name, file_open, file_open_unnamed, file_remove, file_reserve, file_set_size,
    file_write, memory_map, memory_unmap, path_facts, random_bytes, system_folder, user_id)

cdef enum:
    MAX_TRIES = 100


cdef int _make(named_request_t* request, int* fd) noexcept nogil:
    """Create a file with the initial state under its name: EEXIST if another process was faster."""
    cdef named_t named
    cdef int status
    memset(&named, 0, sizeof(named_t))
    named.magic = NAMED_MAGIC
    named.version = NAMED_VERSION
    named.kind = request.kind
    named.state = request.initial
    status = random_bytes(named.uuid, sizeof(named.uuid))
    if status == OK:
        status = file_open_unnamed(system_folder, request.permissions, fd)
    if status == OK:
        status = file_set_size(fd[0], PAGE_BYTES)
    if status == OK:
        status = file_reserve(fd[0], 0, PAGE_BYTES, 0)
    if status == OK:
        status = file_write(fd[0], &named, sizeof(named_t), 0)
    if status == OK:
        status = file_give_name(fd[0], request.path)
    return status


cdef int _open_or_make(named_request_t* request, int* fd) noexcept nogil:
    cdef file_facts_t facts
    cdef int status = EEXIST, tries_left = MAX_TRIES
    while tries_left:
        tries_left -= 1
        status = file_open(request.path, False, 0, fd)
        if status == ENOENT and request.create:
            status = _make(request, fd)
            if status == EEXIST:
                file_close(fd[0])
                fd[0] = -1
                continue
        if status == ELOOP:
            request.user = 0
            return ELOOP
        if status == EISDIR or status == ENXIO:             # a folder, a socket
            return NOT_A_SECTION
        if status == EACCES and path_facts(request.path, &facts) == OK and facts.user != user_id():
            request.user = facts.user
            return UNTRUSTED_OWNER
        return status
    return NOT_A_SECTION                                    # a dangling symbolic link


cdef int _check(int fd, named_request_t* request) noexcept nogil:
    """Check that the file is trusted and valid, and map it."""
    cdef file_facts_t facts
    cdef char* base = NULL
    cdef named_t* named
    cdef int status = file_facts(fd, &facts)
    if status != OK:
        return status
    if not facts.is_regular:
        return NOT_A_SECTION
    if facts.user != user_id() and not request.trust_owner:
        request.user = facts.user
        return UNTRUSTED_OWNER
    if facts.size_bytes != PAGE_BYTES:
        return NOT_A_SECTION
    status = memory_map(fd, PAGE_BYTES, True, 0, &base)
    if status != OK:
        return status
    named = <named_t*>base
    if named.magic != NAMED_MAGIC or named.version != NAMED_VERSION or named.kind != request.kind:
        memory_unmap(base, PAGE_BYTES)
        return NOT_A_SECTION
    request.named = named
    request.device = facts.device
    request.inode = facts.inode
    return OK


cdef int named_open(named_request_t* request) noexcept nogil:
    cdef int fd = -1
    cdef int status = _open_or_make(request, &fd)
    if status == OK:
        status = _check(fd, request)
    file_close(fd)
    return status


cdef void named_unmap(named_t* named) noexcept nogil:
    memory_unmap(named, PAGE_BYTES)


cdef int named_unlink(const char* path, uint64_t device, uint64_t inode) noexcept nogil:
    cdef file_facts_t facts
    cdef int status = path_facts(path, &facts)
    if status == OK and (facts.device != device or facts.inode != inode):
        return ENOENT
    return status if status != OK else file_remove(path)
