# cython: language_level=3
"""Opening: a process joins a section by path, and leaves it with its last handle.

Lock order: the process mutex, then the opening byte of one section's file, then that section's heap gate.  No thread acquires the GIL
while it holds any of them.

The opening byte is a kernel lock, which a killed process drops.  It is taken through an open file description made for this one opening
or closing.  A fork cannot copy that description, because the fork handler waits for the process mutex.  A thread that finds the byte locked
gives up description and mutex, and tries again after a pause: another process may hold the byte for long.  Once the opener has locked the
byte, it checks that path and descriptor still lead to the same file.

Life of a section's file::

    (none) or empty    a process is creating it, or died before the first write
    BEING_MADE         first write of a creator; the next opener creates the section anew
    MAGIC, clean = 1   whole, no process attached but such as rest: they exit, and only have views
    MAGIC, clean = 0   in use; if no participant is alive, the next opener is the first one and recovers the heap

Around this file: `header.pyx` checks a header, `membership.pyx` makes the process a participant, `first_and_last.pyx` creates, recovers and
closes, `process.pyx` handles fork, thread end and exit.
"""

from libc.errno cimport EAGAIN, EBADF, EEXIST, ENOENT, ENOMEM, EPERM
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memset, strdup

from shmem._base.accessors cimport control_bytes, round_up
from shmem._base.debug cimport debug_level
from shmem._base.layout cimport (
    LAYOUT_VERSION, MAGIC, MAGIC_BEING_MADE, PAGE_BYTES, free_index_t, header_t, intent_t, layout_fingerprint, participant_t)
from shmem._base.participants cimport (
    LIVENESS_BYTE, N_LIVENESS_BYTES, guest_take, opening_release, opening_t, opening_try, participants_any_alive, section_descriptor)
from shmem._base.section cimport private_t, section_t
from shmem._base.status cimport ADDRESS_IN_USE, INTERRUPTED, NOT_A_SECTION, OK, UNSUPPORTED_FILE_SYSTEM, UNTRUSTED_OWNER
from shmem._base.system cimport (
    boot_ns, byte_range_is_locked, file_close, file_facts, file_facts_t, file_open, file_read, file_remove, file_reserve, file_set_size,
    file_system_is_coherent, file_system_kind, memory_map, memory_wiped_by_fork, path_facts, pause_longer,
    process_mutex_lock, process_mutex_unlock, user_id)
from shmem._heap.heap cimport LOOK_EVERY
from shmem._heap.verify cimport heap_verify
from shmem._sections.first_and_last cimport (
    departure_sync, departure_t, departure_wait, first_create, first_recover, first_reserved, first_reset, mark_in_use, section_depart)
from shmem._sections.header cimport header_check
from shmem._sections.membership cimport attach_child, become_participant, cease_to_participate, section_destroy, sweep_after_joining
from shmem._sections.process cimport leaving_pause, leaving_resume, leaving_t, sections_add, sections_find, sections_remove

cdef enum:
    OPEN_AGAIN = 1 << 20         # the path leads to another file by now; larger than any errno
    OPENING_IS_HELD

cdef uint64_t _n_sections_made = 0


# -- mapping --------------------------------------------------------------------------------------------------

cdef section_t* _create(int fd, open_request_t* request, const file_facts_t* facts) noexcept nogil:
    global _n_sections_made
    cdef section_t* section = <section_t*>calloc(1, sizeof(section_t))
    if section == NULL:
        return NULL
    section.fd = fd
    section.liveness_fd = section.guest_fd = section.child_fd = -1
    section.device = facts.device
    section.inode = facts.inode
    section.anonymous = request.anonymous
    section.attach = attach_child
    section.n_until_look = LOOK_EVERY
    if debug_level:
        section.verify = heap_verify
    section.n_holds = 1
    section.path = strdup(request.path)
    section.private = <private_t*>memory_wiped_by_fork(sizeof(private_t))
    _n_sections_made += 1
    section.id = _n_sections_made
    if section.path == NULL or section.private == NULL:
        section.fd = -1
        section_destroy(section)
        return NULL
    return section


cdef int _map(section_t* section, const header_t* header, open_request_t* request) noexcept nogil:
    """Map the file and locate its parts.  The address is for the mapping that views will use."""
    cdef uint64_t address = request.desired_address if request.desired_address else header.desired_address
    cdef int status = memory_map(section.fd, section.size_bytes, True, 0 if request.read_only else address, &section.base)
    if status == OK:
        section.header = <header_t*>section.base
        section.participants = <participant_t*>(section.base + header.participants_off)
        section.intents = <intent_t*>(section.base + header.intents_off)
        section.index = <free_index_t*>(section.base + header.index_off)
        section.salt = header.salt
        section.heap_start = header.heap_start
        section.max_participants = header.max_participants
        if request.read_only:
            status = section_map_read_only(section, address)
    request.wanted = address
    return ADDRESS_IN_USE if status == EEXIST or (address != 0 and status == EPERM) else status      # EPERM: too low for any process


cdef int section_map_read_only(section_t* section, uint64_t address) noexcept nogil:
    """Map the section for the views of a read-only handle, unless it is mapped already: 0 or an errno."""
    if section.read_only_base != NULL:
        return OK if address == 0 or <uint64_t>section.read_only_base == address else EEXIST
    cdef int fd = section_descriptor(section)
    return memory_map(fd, section.size_bytes, False, address, &section.read_only_base) if fd >= 0 else EBADF


cdef int section_need_read_only(section_t* section) noexcept nogil:
    cdef int status
    process_mutex_lock()
    status = section_map_read_only(section, 0)
    process_mutex_unlock()
    return status


# -- joining --------------------------------------------------------------------------------------------------

cdef bint _has_ended(section_t* section, const header_t* header, size_t n_bytes) noexcept nogil:
    """Return whether this is an anonymous section that was kept for messages in flight, and the time for that is over."""
    return (section.anonymous and n_bytes == sizeof(header_t) and header.magic == MAGIC and header.version == LAYOUT_VERSION
            and header.fingerprint == layout_fingerprint() and header.clean == 1 and header.claims_until != 0
            and header.claims_until <= boot_ns() and not participants_any_alive(section))


cdef int _join_locked(section_t* section, open_request_t* request, const file_facts_t* facts) noexcept nogil:
    """With the opening byte locked: read the header, create or grow the file, map it, become a participant."""
    cdef header_t header
    cdef size_t got = 0
    cdef uint64_t file_bytes = facts.size_bytes
    cdef bint is_first
    cdef int status = file_read(section.fd, &header, sizeof(header_t), 0, &got)
    if status != OK:
        return status
    if _has_ended(section, &header, got):
        if request.max_size == 0:
            file_remove(section.path)
        header.magic = MAGIC_BEING_MADE
    if file_bytes == 0 or (got >= 8 and header.magic == MAGIC_BEING_MADE):
        if request.max_size == 0:
            return ENOENT
        status = first_create(section.fd, request)
        request.was_made = True
        if status == OK:
            status = file_read(section.fd, &header, sizeof(header_t), 0, &got)
        file_bytes = control_bytes(request.max_participants)
    if status == OK:
        status = header_check(&header, file_bytes, request) if got == sizeof(header_t) else NOT_A_SECTION
    if status != OK:
        return status
    section.size_bytes = header.max_size
    section.max_participants = header.max_participants
    is_first = not participants_any_alive(section)
    if is_first:
        if request.max_size > section.size_bytes:
            section.size_bytes = request.max_size
        if section.size_bytes < facts.size_bytes and file_bytes == facts.size_bytes:
            section.size_bytes = round_up(facts.size_bytes, PAGE_BYTES)     # a larger file keeps its size
        status = file_set_size(section.fd, section.size_bytes)
        if status == OK:                     # before it is mapped, because on tmpfs reading a hole allocates memory
            status = file_reserve(section.fd, 0, first_reserved(&header, file_bytes), section.size_bytes)
    elif file_bytes < section.size_bytes and header.clean:       # the last participant has left it whole, and rests
        status = file_set_size(section.fd, section.size_bytes)
    elif file_bytes < section.size_bytes:
        request.found, request.wanted = file_bytes, section.size_bytes
        return NOT_A_SECTION
    request.size_bytes = section.size_bytes
    if status == OK:
        status = _map(section, &header, request)
    if status == OK and is_first:
        section.header.max_size = section.size_bytes
        status = first_reset(section, request, file_bytes)
    if status == OK:
        status = become_participant(section)
    if status == OK and is_first:
        status = first_recover(section, request.was_unclean)
    elif status == OK:
        if section.header.clean:
            status = mark_in_use(section)
    if status == OK:
        sweep_after_joining(section)
    if status != OK and is_first and not request.was_made:
        file_set_size(section.fd, facts.size_bytes)         # restore the size that was found
    return status


cdef int _join_again(section_t* section, open_request_t* request) noexcept nogil:
    """Add a hold to a section that this process has joined already, and for a read-only handle the other mapping."""
    cdef uint64_t address = request.desired_address if request.desired_address else section.header.desired_address
    cdef file_facts_t facts
    cdef int status
    request.size_bytes = section.size_bytes
    facts.size_bytes = 0
    if file_facts(section_descriptor(section), &facts) != 0:
        facts.size_bytes = section.size_bytes
    status = header_check(section.header, facts.size_bytes, request)
    if status != OK:
        return status
    if request.read_only:
        status = section_map_read_only(section, address)
    elif address != 0 and <uint64_t>section.base != address:
        status = EEXIST
    if status != OK:
        request.wanted = address
        return ADDRESS_IN_USE if status == EEXIST else status
    if section.private.index_plus_1 != 0:
        status = guest_take(section)         # a fork may have dropped it while another thread was leaving
        if status != OK:
            return status
    section.n_holds += 1
    return OK


cdef int _check_file(int fd, open_request_t* request, file_facts_t* facts) noexcept nogil:
    """Check that the file may be used at all: regular, of a trusted owner, on a coherent file system."""
    cdef int status = file_facts(fd, facts)
    if status != OK:
        return status
    request.found = facts.user
    if not facts.is_regular:
        return NOT_A_SECTION
    if facts.user != user_id() and not request.trust_owner:
        return UNTRUSTED_OWNER
    request.found = file_system_kind(fd)
    return OK if file_system_is_coherent(request.found) else UNSUPPORTED_FILE_SYSTEM


cdef bint _path_means(const char* path, const file_facts_t* facts) noexcept nogil:
    cdef file_facts_t now
    return path_facts(path, &now) == 0 and now.device == facts.device and now.inode == facts.inode


cdef section_t* _joined_by_path(const char* path, bint as_process) noexcept nogil:
    """Return this process's section in the file, or NULL; with `as_process` only one whose locks a closed descriptor would release."""
    cdef file_facts_t facts
    cdef section_t* found = sections_find(&facts) if path_facts(path, &facts) == OK else NULL
    return found if found != NULL and (found.locks_as_process or not as_process) else NULL


cdef int _join_once(open_request_t* request, section_t** section) noexcept nogil:
    """Make one attempt.

    OPENING_IS_HELD if another process holds the opening byte; OPEN_AGAIN if the path leads to another file by the time the byte is locked.
    """
    cdef int fd = -1
    cdef opening_t opening
    cdef file_facts_t facts
    cdef section_t* made = _joined_by_path(request.path, True)
    cdef int status
    opening.fd = -1
    if made != NULL:
        section[0] = made
        return _join_again(made, request)
    status = file_open(request.path, request.max_size != 0, request.permissions, &fd)
    if status != OK:
        return status
    status = _check_file(fd, request, &facts)
    if status == OK:
        made = sections_find(&facts)
        if made != NULL:
            file_close(fd)
            section[0] = made
            return _join_again(made, request)
        status = opening_try(fd, request.path, &opening)
        if status == EAGAIN:
            status = OPENING_IS_HELD
    if status == OK and not _path_means(request.path, &facts):
        status = OPEN_AGAIN
    if status == OK:
        status = _check_file(fd, request, &facts)           # its size may have changed meanwhile
    if status == OK:
        made = _create(fd, request, &facts)
        status = _join_locked(made, request, &facts) if made != NULL else ENOMEM
    if status == OK:
        sections_add(made)
        section[0] = made
    elif made != NULL:
        if request.was_made:                                # leave no incomplete or unused section behind
            file_set_size(fd, 0)
            if request.anonymous:
                file_remove(request.path)
        _cease_after_failure(made)
    else:
        file_close(fd)
    opening_release(&opening)
    return status


cdef void _cease_after_failure(section_t* section) noexcept nogil:
    if section.base != NULL:
        cease_to_participate(section)
    section_destroy(section)


cdef int section_join(open_request_t* request, section_t** section) noexcept nogil:
    """Open or create a section: 0, INTERRUPTED (handle signals, then call again), or an error."""
    cdef int status = OPEN_AGAIN
    request.size_bytes = request.max_size
    process_mutex_lock()
    while status == OPEN_AGAIN:
        status = _join_once(request, section)
    process_mutex_unlock()
    if status == OPENING_IS_HELD:
        pause_longer(&request.waited_ns)
        status = INTERRUPTED
    return status


# -- leaving --------------------------------------------------------------------------------------------------

cdef void section_leave(section_t* section) noexcept nogil:
    """Drop one hold; with the last one the process leaves the section and unmaps it.

    What may take long is done without the process mutex, while the hold still counts.
    """
    cdef departure_t departure
    cdef leaving_t leaving
    memset(&departure, 0, sizeof(departure_t))
    process_mutex_lock()
    while section.n_holds == 1 and not section.kept and not section.departed and not section_depart(section, False, &departure):
        leaving_pause(&leaving, section)     # another thread may join the section meanwhile, and leave it again
        departure_wait(section, &departure)
        leaving_resume(&leaving)
    if section.n_holds == 1 and departure.must_sync:
        leaving_pause(&leaving, section)
        departure_sync(section)
        leaving_resume(&leaving)
    section.n_holds -= 1
    if section.n_holds == 0 and not section.kept:
        sections_remove(section)
        section_destroy(section)
    process_mutex_unlock()


cdef bint _has_messages(int fd) noexcept nogil:
    """Return whether a section's last claims, of messages that were in flight when its processes ended, have not ended yet."""
    cdef header_t header
    cdef size_t got = 0
    return (file_read(fd, &header, sizeof(header_t), 0, &got) == OK and got == sizeof(header_t) and header.magic == MAGIC
            and header.version == LAYOUT_VERSION and header.fingerprint == layout_fingerprint() and header.n_claims != 0
            and header.claims_until > boot_ns())


cdef bint section_remove_abandoned(const char* path) noexcept nogil:
    """Remove a section of this user that no process is attached to or is opening; return whether that was done."""
    cdef int fd = -1
    cdef opening_t opening
    cdef bint removed = False
    cdef bint is_locked = True
    cdef file_facts_t facts
    opening.fd = -1
    process_mutex_lock()
    if (_joined_by_path(path, False) == NULL and file_open(path, False, 0, &fd) == OK and file_facts(fd, &facts) == OK
            and facts.user == user_id()):
        if sections_find(&facts) == NULL and opening_try(fd, path, &opening) == OK:
            if (byte_range_is_locked(fd, LIVENESS_BYTE, N_LIVENESS_BYTES, &is_locked) == OK and not is_locked and not _has_messages(fd)
                    and _path_means(path, &facts)):
                removed = file_remove(path) == OK
    opening_release(&opening)
    file_close(fd)
    process_mutex_unlock()
    return removed
