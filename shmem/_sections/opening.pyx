# cython: language_level=3
"""Joining and leaving a section: open, create, close, fork, thread end, exit.

Order of locks here: the process mutex, then the opening byte of one section's file, then that section's
heap gate.  Nobody asks for the GIL while holding any of them.

The opening byte is a kernel lock that a killed process drops, taken through a description opened for this one
opening or closing.  A fork cannot copy that description: the fork handler waits for the process mutex.
Having the byte, the opener looks whether path and descriptor still mean the same file.

Life of a section's file::

    (none) or empty    somebody creates it, or died before the first write
    BEING_MADE         first write of a creator; made anew by the next opener
    MAGIC, clean = 1   whole, nobody attached
    MAGIC, clean = 0   in use; if no participant lives, the next opener is the first one and recovers the heap

First opener: no liveness byte is locked.  It alone may change the size, for nobody else has it mapped.  Last one out:
no liveness byte is locked after it dropped its own; it holds the opening byte, so nobody can come in.

Fork.  Before: take an entry for the child, through a description and a page that the child inherits.
Parent, after: drop page and descriptor; the child's remain.  Child: sign with the new entry.  The child's private
page came up wiped: it holds no lock, and the parent's liveness page is not mapped in it.
"""

from libc.errno cimport EBADF, EEXIST, EINTR, ENOENT, ENOMEM, EPERM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strcmp, strdup, strncpy

from shmem._atomics cimport load_seq_cst_u32, store_release_u32, store_release_u64
from shmem._base.debug cimport debug_forked, debug_level
from shmem._base.layout cimport (
    LAYOUT_VERSION, MAGIC, MAGIC_BEING_MADE, MAX_LABEL_BYTES, MAX_PARTICIPANTS, PAGE_BYTES, control_bytes, free_index_t, header_t, intent_t,
    layout_fingerprint, participant_t, participants_bytes, round_up)
from shmem._base.owner cimport owner_word, readers_count, readers_none, word_has_owner
from shmem._base.participants cimport (
    LIVENESS_BYTE, OPENING_BYTE, participant_generation, participant_left_something, participant_take,
    participants_any_alive, section_descriptor)
from shmem._base.section cimport private_t, section_t
from shmem._base.status cimport (
    ADDRESS_IN_USE, CLOSED, INTERRUPTED, LABEL_MISMATCH, LAYOUT_MISMATCH, NOT_A_SECTION, OK, UNSUPPORTED_FILE_SYSTEM, UNTRUSTED_OWNER)
from shmem._base.system cimport (
    at_fork, at_thread_end, boot_id, byte_lock, byte_range_is_locked, file_close, file_facts, file_facts_t, file_open, file_read,
    file_remove, file_reopen, file_reserve, file_set_size, file_sync, file_system_is_coherent, file_system_kind, file_write,
    liveness_do_not_inherit, liveness_drop, memory_map, memory_sync, memory_unmap, memory_wiped_by_fork, path_facts, pause_ns, process_id,
    process_mutex_lock, process_mutex_unlock, random_bytes, user_id)
from shmem._heap.heap cimport WAIT_FOREVER, heap_enter, heap_flush_cache, heap_leave, heap_top_is_right
from shmem._heap.recovery cimport ALL_PARTICIPANTS, heap_recover
from shmem._heap.verify cimport heap_verify
from shmem._sync.channel cimport SLICE_NS  # no-cython-lint: the assertion below uses the macro
from shmem._sync.primitives cimport mutexes_release_all
from shmem._sync.storage_lock cimport lock_forget, lock_release_all, lock_thread_ended, unlock_exclusive, unlock_shared

cdef enum:
    OPEN_AGAIN = 1 << 20         # the path means another file by now; no errno is as large

cdef extern from *:
    """
    #define MAX_WAITS 1000
    #define WAIT_NS 100000
    _Static_assert((long long)MAX_WAITS * WAIT_NS > SLICE_NS, "at exit, a thread that sleeps on the lock is waited for");
    """
    enum: MAX_WAITS
    enum: WAIT_NS

cdef section_t* _sections = NULL             # of this process; under the process mutex
cdef uint64_t _n_sections_made = 0


cdef void _fill_header(header_t* header, open_request_t* request) noexcept nogil:
    cdef uint64_t part = participants_bytes(request.max_participants)
    header.version = LAYOUT_VERSION
    header.header_bytes = sizeof(header_t)
    header.fingerprint = layout_fingerprint()
    strncpy(header.label, request.label, MAX_LABEL_BYTES)
    header.max_size = request.max_size
    header.desired_address = request.desired_address
    header.index_kind = request.index_kind
    header.max_participants = request.max_participants
    header.clean = 1
    header.participants_off = PAGE_BYTES
    header.intents_off = PAGE_BYTES + part
    header.index_off = PAGE_BYTES + 2 * part
    header.heap_start = control_bytes(request.max_participants)
    header.top = header.reserved = header.high_water = header.heap_start
    header.next_serial = 1


cdef int _check_header(const header_t* header, uint64_t file_bytes, open_request_t* request) noexcept nogil:
    """Whether the file is a section of this layout, whole enough to be mapped."""
    cdef uint64_t part
    if header.magic != MAGIC:
        return NOT_A_SECTION
    request.found = header.version
    if header.version != LAYOUT_VERSION or header.fingerprint != layout_fingerprint():
        return LAYOUT_MISMATCH
    part = participants_bytes(header.max_participants)
    if (header.max_participants == 0 or header.max_participants > MAX_PARTICIPANTS or header.participants_off != PAGE_BYTES
            or header.intents_off != PAGE_BYTES + part or header.index_off != PAGE_BYTES + 2 * part
            or header.heap_start != control_bytes(header.max_participants) or header.max_size & (PAGE_BYTES - 1)
            or header.max_size > <uint64_t>1 << 47 or header.top < header.heap_start or header.top > header.max_size
            or header.desired_address & (PAGE_BYTES - 1) or header.desired_address >> 47):
        return NOT_A_SECTION
    request.found = file_bytes
    request.wanted = header.top
    if file_bytes < header.top:
        return NOT_A_SECTION
    memcpy(request.found_label, header.label, sizeof(request.found_label))
    request.found_label[MAX_LABEL_BYTES] = 0
    if request.label[0] != 0 and strcmp(request.label, request.found_label) != 0:
        return LABEL_MISMATCH
    if header.desired_address != 0 and request.desired_address != 0 and header.desired_address != request.desired_address:
        request.found, request.wanted = header.desired_address, 0
        return ADDRESS_IN_USE
    return OK


# -- becoming a participant, and ceasing to be one ----------------------------------------------------------

cdef void _clear_up_after(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil:
    """What the former owner of an entry left, if it died: in the lock, in the heap."""
    lock_forget(section, index, former_readers)
    if participant_left_something(section, index) and heap_enter(section, WAIT_FOREVER) == OK:
        heap_recover(section, index)
        heap_leave(section)
    store_release_u32(&section.participants[index].attached, 1)


cdef void _sign_with(section_t* section, uint32_t index, uint32_t generation) noexcept nogil:
    section.private.generation = generation
    section.private.owner_word = owner_word(index, generation)
    section.private.index_plus_1 = index + 1


cdef int _become_participant(section_t* section) noexcept nogil:
    cdef uint32_t index = 0
    cdef uint64_t former_readers = 0
    cdef int status
    if section.departed:
        return CLOSED
    status = participant_take(section, False, &index, &former_readers, &section.liveness_page, &section.liveness_fd)
    if status != OK:
        return status
    _sign_with(section, index, participant_generation(section, index))
    _clear_up_after(section, index, former_readers)
    return OK


cdef int _attach(section_t* section) noexcept nogil:
    """A child that no handler saw uses the section: make it a participant of its own, if anybody is there still."""
    cdef int status = OK, opening_fd = -1, fd
    process_mutex_lock()
    if section.private.index_plus_1 == 0:
        fd = section_descriptor(section)
        status = CLOSED if fd < 0 or section.departed else file_reopen(fd, section.path, &opening_fd)
        if status == OK:
            status = byte_lock(opening_fd, OPENING_BYTE, True)
        if status == OK and not participants_any_alive(section):
            status = CLOSED                  # the last one out has cut or removed the file
        if status == OK:
            section.n_forks += 1
            status = _become_participant(section)
        file_close(opening_fd)
    process_mutex_unlock()
    return status


cdef void _cease(section_t* section) noexcept nogil:
    """Leave by the door: the entry free, the liveness byte dropped.

    What other threads of this process hold of the lock stays as it is, and is taken over as after a kill: they will never release it.
    """
    cdef uint32_t index = section.private.index_plus_1 - 1
    if section.private.index_plus_1 == 0:
        return
    section.participants[index].pid = 0
    store_release_u32(&section.participants[index].attached, 0)
    memset(section.private, 0, sizeof(private_t))
    liveness_drop(section.liveness_page, section.liveness_fd)
    section.liveness_page = NULL
    section.liveness_fd = -1


# -- first in, last out -------------------------------------------------------------------------------------

cdef int _make_anew(int fd, open_request_t* request) noexcept nogil:
    """An empty section: the mark first, the magic last."""
    cdef uint64_t mark = MAGIC_BEING_MADE
    cdef uint64_t heap_start = control_bytes(request.max_participants)
    cdef header_t header
    cdef int status
    memset(&header, 0, sizeof(header_t))
    _fill_header(&header, request)
    status = random_bytes(&header.salt, sizeof(header.salt))
    if status == OK:
        status = random_bytes(header.uuid, sizeof(header.uuid))
    if status == OK:
        status = file_set_size(fd, 0)
    if status == OK:
        status = file_write(fd, &mark, sizeof(mark), 0)
    if status == OK:
        status = file_set_size(fd, request.max_size)
    if status == OK:
        status = file_reserve(fd, 0, heap_start, sizeof(mark))
    if status == OK:
        status = file_write(fd, <char*>&header + sizeof(mark), sizeof(header_t) - sizeof(mark), sizeof(mark))
    mark = MAGIC
    if status == OK:
        status = file_write(fd, &mark, sizeof(mark), 0)
    return status


cdef void section_quiet(section_t* section) noexcept nogil:
    """Nobody is in it: open what was locked, free every entry.  Generations stay, so that no old signature comes to mean somebody."""
    cdef header_t* header = section.header
    cdef uint32_t i
    cdef uint32_t n_holders = word_has_owner(header.lock_gate)
    header.lock_gate = header.upgrade = header.heap_gate = 0
    header.lock_gate_readers = header.lock_gate_writers = header.drain = 0
    header.participants_high = 0
    for i in range(section.max_participants):
        n_holders += readers_count(section.participants[i].readers)
        section.participants[i].readers = readers_none(section.participants[i].readers)
        section.participants[i].attached = section.participants[i].waiting = 0
    if n_holders:                        # whoever held the lock was killed, the last one in: the next holder is told
        header.owner_deaths += 1
        header.death_notice = 1


cdef uint64_t _reserved(const header_t* header, uint64_t file_bytes) noexcept nogil:
    """Up to where a first opener has backing: the file may have been copied by who leaves holes."""
    cdef uint64_t reserved = header.reserved if header.reserved < file_bytes else file_bytes
    return reserved if reserved > header.top else header.top


cdef int _prepare_first(section_t* section, open_request_t* request, uint64_t file_bytes) noexcept nogil:
    """No participant lives: reset what is volatile.  What is used has backing."""
    cdef header_t* header = section.header
    request.was_unclean = header.clean == 0
    section_quiet(section)
    header.reserved = _reserved(header, file_bytes)
    header.high_water = file_bytes       # whatever somebody appended to a clean file is not zero
    if header.high_water < header.top:
        header.high_water = header.top
    return boot_id(header.boot_id, sizeof(header.boot_id))


cdef int _recover_first(section_t* section, bint was_unclean) noexcept nogil:
    cdef int status = OK
    section.was_recovered = was_unclean
    if was_unclean or section.header.broken:
        status = heap_enter(section, WAIT_FOREVER)
        if status == OK:
            heap_recover(section, ALL_PARTICIPANTS)         # a broken heap can still be read
            heap_leave(section)
    store_release_u32(&section.header.clean, 0)
    if status == OK and not section.anonymous:
        status = memory_sync(section.base, PAGE_BYTES)   # on disk before the first change: power may fail
    return status


cdef void _last_out(section_t* section) noexcept nogil:
    """Nobody is attached any more, and nobody can come in: remove it, or leave a clean file cut to what is used."""
    cdef header_t* header = section.header
    cdef file_facts_t facts
    cdef uint64_t keep
    cdef int fd = section_descriptor(section)
    if section.anonymous:
        if path_facts(section.path, &facts) == 0 and facts.device == section.device and facts.inode == section.inode:
            file_remove(section.path)
        return
    if header.broken or fd < 0 or not heap_top_is_right(section):
        return
    keep = round_up(header.top, PAGE_BYTES)
    if memory_sync(section.base, keep) != 0:
        return                                       # not on disk: the next opener recovers
    store_release_u64(&header.reserved, keep)
    if header.high_water > keep:
        store_release_u64(&header.high_water, keep)
    if file_set_size(fd, keep) != 0:
        return
    store_release_u32(&header.clean, 1)
    memory_sync(section.base, PAGE_BYTES)
    file_sync(fd)


cdef bint _anyone_left_something(section_t* section) noexcept nogil:
    cdef uint32_t i
    for i in range(section.max_participants):
        if participant_left_something(section, i):
            return True
    return False


cdef bint _exchange_descriptor(section_t* section, int* opening_fd) noexcept nogil:
    """No descriptor is left: give up the section's own for one that can be locked.  The process mutex is mine: no child has it."""
    file_close(section.fd)
    section.fd = -1
    section.fd = section_descriptor(section)
    opening_fd[0] = section.fd
    return section.fd >= 0


cdef void _depart(section_t* section, bint at_exit) noexcept nogil:
    """Leave the section, and if nobody else lives leave it whole.  The process mutex is mine.

    Who exits with the lock in hand may have left things half done: that is a holder's death.
    """
    cdef int opening_fd = -1
    cdef int fd = section_descriptor(section)
    cdef bint is_serialised = fd >= 0 and (file_reopen(fd, section.path, &opening_fd) == 0 or _exchange_descriptor(section, &opening_fd))
    cdef bint must_recover
    mutexes_release_all(section)
    if at_exit:
        lock_thread_ended(section)
    lock_release_all(section)
    if is_serialised:
        while byte_lock(opening_fd, OPENING_BYTE, True) == EINTR:
            pass
    _cease(section)
    if is_serialised and not participants_any_alive(section):
        _sign_with(section, 0, participant_generation(section, 0))     # nobody is there to be confused
        must_recover = section.header.heap_gate != 0 or _anyone_left_something(section)
        section.header.heap_gate = 0
        if not section.anonymous and heap_enter(section, WAIT_FOREVER) == OK:
            if must_recover:
                heap_recover(section, ALL_PARTICIPANTS)
            elif section.header.broken == 0:
                heap_flush_cache(section)
            heap_leave(section)
        _last_out(section)
        memset(section.private, 0, sizeof(private_t))
    if section.fd == opening_fd:
        section.fd = -1
    file_close(opening_fd)
    section.departed = True


# -- joining ------------------------------------------------------------------------------------------------

cdef void _destroy(section_t* section) noexcept nogil:
    memory_unmap(section.base, section.size_bytes)
    memory_unmap(section.read_only_base, section.size_bytes)
    memory_unmap(section.private, sizeof(private_t))
    file_close(section.fd)
    free(section.path)
    free(section)


cdef section_t* _create(int fd, open_request_t* request, const file_facts_t* facts) noexcept nogil:
    global _n_sections_made
    cdef section_t* section = <section_t*>calloc(1, sizeof(section_t))
    if section == NULL:
        return NULL
    section.fd = fd
    section.liveness_fd = section.child_fd = -1
    section.device = facts.device
    section.inode = facts.inode
    section.anonymous = request.anonymous
    section.attach = _attach
    if debug_level:
        section.verify = heap_verify
    section.n_holds = 1
    section.path = strdup(request.path)
    section.private = <private_t*>memory_wiped_by_fork(sizeof(private_t))
    _n_sections_made += 1
    section.id = _n_sections_made
    if section.path == NULL or section.private == NULL:
        section.fd = -1
        _destroy(section)
        return NULL
    return section


cdef int _map(section_t* section, const header_t* header, open_request_t* request) noexcept nogil:
    """Map the file and find the parts.  The address is for the mapping that views will use."""
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
    return ADDRESS_IN_USE if status == EEXIST or (address != 0 and status == EPERM) else status      # EPERM: so low that nobody gets it


cdef int section_map_read_only(section_t* section, uint64_t address) noexcept nogil:
    """The mapping that views of a read-only handle use; 0 when it is there."""
    if section.read_only_base != NULL:
        return OK if address == 0 or <uint64_t>section.read_only_base == address else EEXIST
    cdef int fd = section_descriptor(section)
    return memory_map(fd, section.size_bytes, False, address, &section.read_only_base) if fd >= 0 else EBADF


cdef int _join_locked(section_t* section, open_request_t* request, const file_facts_t* facts) noexcept nogil:
    """The opening byte is mine: read the header, make or grow the file, map it, become a participant."""
    cdef header_t header
    cdef size_t got = 0
    cdef uint64_t file_bytes = facts.size_bytes
    cdef bint is_first
    cdef int status = file_read(section.fd, &header, sizeof(header_t), 0, &got)
    if status != OK:
        return status
    if file_bytes == 0 or (got >= 8 and header.magic == MAGIC_BEING_MADE):
        if request.max_size == 0:
            return ENOENT
        status = _make_anew(section.fd, request)
        request.was_made = True
        if status == OK:
            status = file_read(section.fd, &header, sizeof(header_t), 0, &got)
        file_bytes = control_bytes(request.max_participants)
    if status == OK:
        status = _check_header(&header, file_bytes, request) if got == sizeof(header_t) else NOT_A_SECTION
    if status != OK:
        return status
    section.size_bytes = header.max_size
    section.max_participants = header.max_participants
    is_first = not participants_any_alive(section)
    if is_first:
        if request.max_size > section.size_bytes:
            section.size_bytes = request.max_size
        if section.size_bytes < facts.size_bytes and file_bytes == facts.size_bytes:
            section.size_bytes = round_up(facts.size_bytes, PAGE_BYTES)     # a file larger than that keeps its size
        status = file_set_size(section.fd, section.size_bytes)
        if status == OK:                     # before it is mapped: a look at a hole takes memory on tmpfs
            status = file_reserve(section.fd, 0, _reserved(&header, file_bytes), section.size_bytes)
    elif file_bytes < section.size_bytes:
        request.found, request.wanted = file_bytes, section.size_bytes
        return NOT_A_SECTION
    request.size_bytes = section.size_bytes
    if status == OK:
        status = _map(section, &header, request)
    if status == OK and is_first:
        section.header.max_size = section.size_bytes
        status = _prepare_first(section, request, file_bytes)
    if status == OK:
        status = _become_participant(section)
    if status == OK and is_first:
        status = _recover_first(section, request.was_unclean)
    if status != OK and is_first and not request.was_made:
        file_set_size(section.fd, facts.size_bytes)         # as it was found
    return status


cdef section_t* _find_section(const file_facts_t* facts) noexcept nogil:
    cdef section_t* section = _sections
    while section != NULL and (section.device != facts.device or section.inode != facts.inode or section.departed):
        section = section.next
    return section


cdef int _join_again(section_t* section, open_request_t* request) noexcept nogil:
    """This process has the section already: one more hold, and for a read-only handle the other mapping."""
    cdef uint64_t address = request.desired_address if request.desired_address else section.header.desired_address
    cdef file_facts_t facts
    cdef int status
    request.size_bytes = section.size_bytes
    facts.size_bytes = 0
    if file_facts(section.fd, &facts) != 0:
        facts.size_bytes = section.size_bytes
    status = _check_header(section.header, facts.size_bytes, request)
    if status != OK:
        return status
    if request.read_only:
        status = section_map_read_only(section, address)
    elif address != 0 and <uint64_t>section.base != address:
        status = EEXIST
    if status != OK:
        request.wanted = address
        return ADDRESS_IN_USE if status == EEXIST else status
    section.n_holds += 1
    return OK


cdef int _check_file(int fd, open_request_t* request, file_facts_t* facts) noexcept nogil:
    """Whether this is a file that may be touched at all."""
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


cdef int _join_once(open_request_t* request, section_t** section) noexcept nogil:
    """One attempt: OPEN_AGAIN when the path meant another file by the time the opening byte was mine."""
    global _sections
    cdef int fd = -1, opening_fd = -1
    cdef file_facts_t facts
    cdef section_t* made = NULL
    cdef int status = file_open(request.path, request.max_size != 0, request.permissions, &fd)
    if status != OK:
        return status
    status = _check_file(fd, request, &facts)
    if status == OK:
        made = _find_section(&facts)
        if made != NULL:
            file_close(fd)
            section[0] = made
            return _join_again(made, request)
        status = file_reopen(fd, request.path, &opening_fd)
    if status == OK:
        status = byte_lock(opening_fd, OPENING_BYTE, True)
        if status == EINTR:
            status = INTERRUPTED
    if status == OK and not _path_means(request.path, &facts):
        status = OPEN_AGAIN
    if status == OK:
        status = _check_file(fd, request, &facts)           # its size may have changed while I waited
    if status == OK:
        made = _create(fd, request, &facts)
        status = _join_locked(made, request, &facts) if made != NULL else ENOMEM
    if status == OK:
        made.next = _sections
        _sections = made
        section[0] = made
    elif made != NULL:
        if request.was_made:                                # leave no half-made, or unused, section
            file_set_size(fd, 0)
            if request.anonymous:
                file_remove(request.path)
        _cease_after_failure(made)
    else:
        file_close(fd)
    file_close(opening_fd)
    return status


cdef void _cease_after_failure(section_t* section) noexcept nogil:
    if section.base != NULL:
        _cease(section)
    _destroy(section)


cdef int section_join(open_request_t* request, section_t** section) noexcept nogil:
    """Open or create: 0, INTERRUPTED (a signal came: look, then call again), or what went wrong."""
    cdef int status = OPEN_AGAIN
    request.size_bytes = request.max_size
    process_mutex_lock()
    while status == OPEN_AGAIN:
        status = _join_once(request, section)
    process_mutex_unlock()
    return status


cdef void section_remove_abandoned(const char* path) noexcept nogil:
    """Remove a section of this user's that nobody is attached to, or just opens."""
    cdef int fd = -1, opening_fd = -1
    cdef bint is_locked = True
    cdef file_facts_t facts
    process_mutex_lock()
    if file_open(path, False, 0, &fd) == OK and file_facts(fd, &facts) == OK and facts.user == user_id():
        if (_find_section(&facts) == NULL and file_reopen(fd, path, &opening_fd) == OK
                and byte_lock(opening_fd, OPENING_BYTE, False) == OK):
            if (byte_range_is_locked(fd, LIVENESS_BYTE, MAX_PARTICIPANTS, &is_locked) == OK and not is_locked
                    and _path_means(path, &facts)):
                file_remove(path)
    file_close(opening_fd)
    file_close(fd)
    process_mutex_unlock()


cdef void section_leave(section_t* section) noexcept nogil:
    """Give up one hold; with the last one the process leaves the section and unmaps it."""
    global _sections
    cdef section_t** link = &_sections
    process_mutex_lock()
    section.n_holds -= 1
    if section.n_holds == 0:
        while link[0] != section:
            link = &link[0].next
        link[0] = section.next
        if not section.departed:
            _depart(section, False)
        _destroy(section)
    process_mutex_unlock()


cdef section_t* section_of_address(uint64_t address) noexcept nogil:
    """The section of this process that an address lies in, or NULL."""
    cdef section_t* section
    process_mutex_lock()
    section = _sections
    while section != NULL:
        if address - <uint64_t>section.base < section.size_bytes or (
                section.read_only_base != NULL and address - <uint64_t>section.read_only_base < section.size_bytes):
            break
        section = section.next
    process_mutex_unlock()
    return section


cdef void section_unlock(uint64_t section_id, bint exclusive) noexcept nogil:
    """Undo one lock of this thread on the section with that id, if this process still has it."""
    cdef section_t* section
    process_mutex_lock()
    section = _sections
    while section != NULL and section.id != section_id:
        section = section.next
    if section != NULL and exclusive:
        unlock_exclusive(section)
    elif section != NULL:
        unlock_shared(section)
    process_mutex_unlock()


cdef uint32_t sections_depart() noexcept nogil:
    """At exit: leave every section that no thread is busy in; how many are left over.  Views may live on: nothing in use is cut.

    The caller has the GIL, so no thread becomes busy meanwhile.
    """
    cdef section_t* section
    cdef uint32_t n_left = 0, waits_left
    process_mutex_lock()
    section = _sections
    while section != NULL:
        if not section.departed and section.private.index_plus_1 != 0:
            store_release_u32(&section.leaves, 1)
            waits_left = MAX_WAITS           # longer than SLICE_NS: a thread asleep on the lock leaves meanwhile
            while load_seq_cst_u32(&section.n_busy) != 0 and waits_left:
                pause_ns(WAIT_NS)
                waits_left -= 1
            if load_seq_cst_u32(&section.n_busy) == 0:
                _depart(section, True)
            else:
                n_left += 1
        section = section.next
    process_mutex_unlock()
    return n_left


# -- fork and the end of threads ------------------------------------------------------------------------------

cdef void _before_fork() noexcept nogil:
    cdef section_t* section
    cdef uint32_t index = 0
    cdef uint64_t former_readers = 0
    process_mutex_lock()
    section = _sections
    while section != NULL:
        section.child_index_plus_1 = 0
        section.child_page = NULL
        section.child_fd = -1
        if section.private.index_plus_1 != 0 and participant_take(
                section, True, &index, &former_readers, &section.child_page, &section.child_fd) == OK:
            section.child_index_plus_1 = index + 1
            section.child_generation = participant_generation(section, index)
            _clear_up_after(section, index, former_readers)
        section = section.next


cdef void _after_fork_in_parent() noexcept nogil:
    cdef section_t* section = _sections
    while section != NULL:
        liveness_drop(section.child_page, section.child_fd)
        section.child_page = NULL
        section.child_fd = -1
        section = section.next
    process_mutex_unlock()


cdef void _after_fork_in_child() noexcept nogil:
    cdef section_t* section = _sections
    if debug_level:
        debug_forked()
    while section != NULL:
        file_close(section.liveness_fd)              # the parent's: only a descriptor is closed, no lock undone
        section.liveness_page = section.child_page
        section.liveness_fd = section.child_fd
        section.child_page = NULL
        section.child_fd = -1
        liveness_do_not_inherit(section.liveness_page)
        section.n_forks += 1
        section.n_busy = 0
        if section.child_index_plus_1 != 0:
            _sign_with(section, section.child_index_plus_1 - 1, section.child_generation)
            section.participants[section.child_index_plus_1 - 1].pid = process_id()
        section = section.next
    process_mutex_unlock()


cdef void thread_ended(void* unused) noexcept nogil:
    """This thread ends: what it holds in any section is released, as by a death."""
    cdef section_t* section
    process_mutex_lock()
    section = _sections
    while section != NULL:
        if section.private.index_plus_1 != 0:
            mutexes_release_all(section)
            lock_thread_ended(section)
        section = section.next
    process_mutex_unlock()


cdef int opening_setup() noexcept nogil:
    """Register the handlers, once per process: 0 or an errno."""
    cdef int status = at_fork(_before_fork, _after_fork_in_parent, _after_fork_in_child)
    return status if status != 0 else at_thread_end(thread_ended)
