# cython: language_level=3
"""Participants: which are attached to a section, and which have died.

An entry of the table belongs to the process that holds the kernel's lock on byte `LIVENESS_BYTE + index` of the
section's file.  Liveness is asked of the kernel, never guessed from process ids.

* A word that names an owner carries index and generation (`_base/owner.pxd`).  The owner is alive if the entry has that
  generation and its byte is locked.  Load the word, ask, then compare-and-swap that same word: an entry that was
  taken again has another generation, so the answer cannot be about the wrong owner.
* `readers` holds the generation in its high half and changes owner in one store, which also
  zeroes the count of the dead owner.
* `attached` shows to which owner the pins belong: while it is 2 the entry has a new owner, which is alive, and still the pins, blocks and
  intent of its former one.  It is stored before the generation that shows every process that the former owner is dead.
* A process that exits while it has views of arrays rests: it has left, and takes part in nothing, but entry, pins and byte stay until it
  ends.  The last participant is the last one that does not rest.
* A participant also holds the guests' byte, shared with all others, and its children inherit that lock.  So a child counts as alive, and
  the file is not truncated under its views, even if no entry was free for it, no descriptor was left, or no handler saw the fork.  A
  process that leaves or rests drops its hold.  The byte tells about others only to a process that has dropped its own.
* The locks are taken through open file descriptions made for them.  A process that cannot open the file again, as after `setuid`, locks for
  itself through the section's own descriptor: the opening byte, and for a forked child its liveness byte.  A descriptor that it closes
  would release these locks.  So from the first refusal on it opens the file no more.  If user code closes one, slow paths lock again.
* "Dead" is believed only from a descriptor that still leads to the section's file and reports this participant's byte
  as locked.  A descriptor that user code closed, and that leads to another file by now, would report every participant dead.
"""

from libc.errno cimport EACCES, EAGAIN, EBADF, EPERM
from libc.stdint cimport uint32_t, uint64_t

from shmem._atomics cimport (
    compare_exchange_seq_cst_u32, compare_exchange_seq_cst_u64, load_acquire_u32, load_seq_cst_u32, load_seq_cst_u64, store_release_u32)
from shmem._base.debug cimport debug_level, debug_opening_byte
from shmem._base.owner cimport OWNER_GENERATION_SHIFT, owner_generation, owner_index, readers_count
from shmem._base.section cimport section_t
from shmem._base.status cimport OK, TOO_MANY_PARTICIPANTS
from shmem._base.system cimport (
    byte_lock, byte_lock_as_process, byte_range_is_locked, byte_unlock, file_close, file_facts, file_facts_t, file_open, file_reopen,
    liveness_drop, liveness_take, process_id)


cdef bint _descriptor_is_the_section(section_t* section, int fd) noexcept nogil:
    cdef file_facts_t facts
    return file_facts(fd, &facts) == 0 and facts.device == section.device and facts.inode == section.inode


cdef bint _is_refused(section_t* section, int status) noexcept nogil:
    """Return whether this process must not open the file again, and note it."""
    if status == EACCES or status == EPERM:
        section.locks_as_process = True
    return section.locks_as_process


cdef int section_reopen(section_t* section, int fd, int* new_fd) noexcept nogil:
    """Open a new description of the section's file: EACCES, and `locks_as_process` is set, if that is refused, or was before."""
    cdef int status = EACCES if section.locks_as_process else file_reopen(fd, section.path, new_fd)
    return EACCES if status != OK and _is_refused(section, status) else status


cdef int _liveness_take(section_t* section, int fd, uint64_t byte_off, bint inherit, void** page, int* kept_fd) noexcept nogil:
    """Lock a liveness byte for this process, or with `inherit` for a child about to be forked: EAGAIN if another one holds it."""
    cdef int status = EACCES
    page[0] = NULL
    kept_fd[0] = -1
    if not section.locks_as_process:
        status = liveness_take(fd, section.path, byte_off, False, inherit, &section.keeps_fd, page, kept_fd)
    if status == OK or not _is_refused(section, status) or inherit:
        return status
    status = byte_lock_as_process(fd, byte_off)
    if status == OK:
        section.byte_of_process = byte_off
    return status


cdef void _take_my_byte_again(section_t* section, int fd) noexcept nogil:
    """Lock this process's liveness byte again, if user code closed a descriptor on which the lock depended.

    Too late if another process has taken the entry meanwhile.  Of several threads that come here at once, one takes the byte.
    """
    cdef void* page = NULL
    cdef int kept_fd = -1
    cdef uint32_t index = section.private.index_plus_1 - 1
    if _liveness_take(section, fd, LIVENESS_BYTE + index, False, &page, &kept_fd) != 0:
        return
    section.liveness_page, section.liveness_fd = page, kept_fd
    if participant_generation(section, index) != section.private.generation:
        participant_drop_my_liveness(section)


cdef bint _keeps_my_byte(section_t* section, int fd) noexcept nogil:
    """Return whether what can be closed by user code still keeps the lock on this process's liveness byte, which is so on most systems."""
    cdef bint is_locked = True
    if section.byte_of_process != 0:
        return byte_range_is_locked(fd, section.byte_of_process, 1, &is_locked) != 0 or is_locked
    return section.liveness_fd < 0 or _descriptor_is_the_section(section, section.liveness_fd)


cdef int section_descriptor(section_t* section) noexcept nogil:
    """Return a descriptor of the section's file, opened again by its path if user code closed the old one; -1 if the path is gone.

    Every function that changes the file calls this first: the old number may lead to another file by now.  Where a descriptor keeps the
    lock on this process's liveness byte, it is verified too.
    """
    cdef int fd = _section_descriptor(section)
    if fd >= 0 and section.private.index_plus_1 != 0 and not _keeps_my_byte(section, fd):
        _take_my_byte_again(section, fd)
    return fd


cdef int _section_descriptor(section_t* section) noexcept nogil:
    cdef int fd = section.fd, new_fd = -1
    if _descriptor_is_the_section(section, fd):
        return fd
    if file_open(section.path, False, 0, &new_fd) != 0:
        return -1
    if _descriptor_is_the_section(section, new_fd) and compare_exchange_seq_cst_u32(
            <uint32_t*>&section.fd, <uint32_t>fd, <uint32_t>new_fd):
        return new_fd
    file_close(new_fd)
    return section.fd if _descriptor_is_the_section(section, section.fd) else -1


cdef void section_close_descriptor(section_t* section, int fd) noexcept nogil:
    """Close a descriptor, unless user code closed it and its number leads to another file by now, which is the user's."""
    if _descriptor_is_the_section(section, fd):
        file_close(fd)


cdef void participant_drop_liveness(section_t* section, void* page, int kept_fd) noexcept nogil:
    """Drop what keeps the lock on a liveness byte."""
    liveness_drop(page, kept_fd if _descriptor_is_the_section(section, kept_fd) else -1)


cdef void participant_drop_my_liveness(section_t* section) noexcept nogil:
    """Give up the lock on this process's own liveness byte."""
    participant_drop_liveness(section, section.liveness_page, section.liveness_fd)
    section.liveness_page = NULL
    section.liveness_fd = -1
    if section.byte_of_process != 0 and _descriptor_is_the_section(section, section.fd):
        byte_unlock(section.fd, section.byte_of_process, True)
    section.byte_of_process = 0


# -- the opening byte ---------------------------------------------------------------------------------------

cdef int opening_try(int fd, const char* path, opening_t* opening) noexcept nogil:
    """Lock the opening byte through a new description: EAGAIN if another process holds it."""
    cdef int status
    if debug_level:
        debug_opening_byte()
    opening.fd = -1
    opening.as_process = False
    status = file_reopen(fd, path, &opening.fd)
    if status == OK:
        status = byte_lock(opening.fd, OPENING_BYTE, False)
        if status != OK:
            opening_release(opening)
    return status


cdef int section_opening_try(section_t* section, int fd, bint always, opening_t* opening) noexcept nogil:
    """Do the same for a section of this process.

    If the file cannot be opened again, because that is refused, or `always` for any reason, the lock is the process's.  The caller holds
    the process mutex, so no other thread can take it for its own, and it closes no descriptor of the file while it has the lock.
    """
    cdef int status = EACCES
    opening.fd = -1
    if not section.locks_as_process:
        status = opening_try(fd, section.path, opening)
    if status == OK or status == EAGAIN or not (_is_refused(section, status) or always):
        return status
    status = byte_lock_as_process(fd, OPENING_BYTE)
    if status == OK:
        opening.fd, opening.as_process = fd, True
    return status


cdef void opening_release(opening_t* opening) noexcept nogil:
    """Release the opening byte, if it is held."""
    if opening.fd >= 0 and opening.as_process:
        byte_unlock(opening.fd, OPENING_BYTE, True)
    else:
        file_close(opening.fd)
    opening.fd = -1


# -- who is alive -------------------------------------------------------------------------------------------


cdef bint _descriptor_can_be_believed(section_t* section) noexcept nogil:
    """Return whether "not locked" means dead."""
    cdef int fd = section.fd
    cdef bint is_locked = False
    cdef uint64_t my_byte = LIVENESS_BYTE + section.private.index_plus_1 - 1
    if not _descriptor_is_the_section(section, fd):
        return False
    return section.private.index_plus_1 == 0 or (byte_range_is_locked(fd, my_byte, 1, &is_locked) == 0 and is_locked)


cdef bint participant_entry_is_alive(section_t* section, uint32_t index) noexcept nogil:
    """Return whether a live process holds the entry.  This process is alive by definition."""
    cdef bint is_locked = True
    if index + 1 == section.private.index_plus_1:
        return True
    cdef int fd = section.fd
    if byte_range_is_locked(fd, LIVENESS_BYTE + index, 1, &is_locked) != 0 or not (
            _descriptor_is_the_section(section, fd) if is_locked else _descriptor_can_be_believed(section)):
        section_descriptor(section)          # the next query goes through a new descriptor, if user code closed this one
        return True                          # unknown counts as alive
    return is_locked


cdef bint owner_is_alive(section_t* section, uint64_t word) noexcept nogil:
    """Return whether the owner that a word names by index and generation is alive."""
    cdef uint32_t index = owner_index(word)
    if index >= section.max_participants:
        return False
    if owner_generation(load_seq_cst_u64(&section.participants[index].readers)) != owner_generation(word):
        return False
    return participant_entry_is_alive(section, index)


cdef bint participants_any_alive(section_t* section) noexcept nogil:
    """Return whether any process is attached, this one included, or a guest; True if that is unknown."""
    cdef bint is_locked = True
    cdef int fd = section_descriptor(section)
    return fd < 0 or byte_range_is_locked(fd, LIVENESS_BYTE, N_LIVENESS_BYTES, &is_locked) != 0 or is_locked


cdef int guest_take(section_t* section) noexcept nogil:
    """Hold the guests' byte, unless this process has inherited that: 0 or an errno.

    The process has taken an entry before, which showed whether a mapping keeps a lock.  Of a shared byte it would not show.
    """
    if guest_is_held(section):
        return OK
    return liveness_take(section.fd, section.path, GUEST_BYTE, True, True, &section.keeps_fd, &section.guest_page, &section.guest_fd)


cdef bint guest_is_held(section_t* section) noexcept nogil:
    """Return whether the guests' byte is held for this process, which user code may have ended by closing a descriptor."""
    return section.guest_page != NULL or (section.guest_fd >= 0 and _descriptor_is_the_section(section, section.guest_fd))


cdef void guest_drop(section_t* section) noexcept nogil:
    participant_drop_liveness(section, section.guest_page, section.guest_fd)
    section.guest_page = NULL
    section.guest_fd = -1


cdef bint guests_are_alive(section_t* section) noexcept nogil:
    """Return whether any process holds the guests' byte; True if that is unknown."""
    cdef bint is_locked = True
    cdef int fd = section_descriptor(section)
    return fd < 0 or byte_range_is_locked(fd, GUEST_BYTE, 1, &is_locked) != 0 or is_locked


cdef bint _any_is_locked(int fd, uint32_t first, uint32_t end) noexcept nogil:
    """Return whether the liveness byte of any entry from `first` to before `end` is locked; True if that is unknown."""
    cdef bint is_locked = True
    if first == end:                         # a range without length would extend to the end of all bytes
        return False
    return byte_range_is_locked(fd, LIVENESS_BYTE + first, end - first, &is_locked) != 0 or is_locked


cdef bint participants_any_active(section_t* section, bint* any_rests) noexcept nogil:
    """Return whether the owner of any other entry takes part in the section; True if that is unknown.

    If not, `any_rests` is whether such an owner rests.  The caller holds the opening byte, so none joins or begins to rest meanwhile.
    Children of a process may take entries, but that process takes part.
    """
    cdef uint32_t i, me_plus_1 = section.private.index_plus_1, end = section.max_participants
    cdef bint is_locked = True
    cdef int fd = section_descriptor(section)
    any_rests[0] = False
    if fd < 0:
        return True
    if not _any_is_locked(fd, 0, me_plus_1 - 1 if me_plus_1 else 0) and not _any_is_locked(fd, me_plus_1, end):
        return False
    for i in range(section.max_participants):
        if i + 1 == me_plus_1:
            continue
        if byte_range_is_locked(fd, LIVENESS_BYTE + i, 1, &is_locked) != 0:
            return True
        if is_locked:
            if not participant_rests(section, i):
                return True
            any_rests[0] = True
    return False


cdef void _raise_high_mark(section_t* section, uint32_t n_entries) noexcept nogil:
    cdef uint32_t high
    while True:
        high = load_seq_cst_u32(&section.header.participants_high)
        if high >= n_entries or compare_exchange_seq_cst_u32(&section.header.participants_high, high, n_entries):
            return


cdef uint64_t _begin_generation(section_t* section, uint32_t index) noexcept nogil:
    """Give an entry its next generation, without shares of the lock; return the word `readers` of its former owner.

    If that one died as a reader, the notice is set before its shares are cleared; partner: a drainer, which reads the notice after it finds
    no shares.  A drainer that clears them first has set the notice and counted the death itself.
    """
    cdef uint64_t former
    cdef uint32_t generation
    while True:
        former = load_seq_cst_u64(&section.participants[index].readers)
        if readers_count(former) != 0:
            store_release_u32(&section.header.death_notice, 1)
        generation = owner_generation(former) + 1
        if generation == 0:
            generation = 1
        if compare_exchange_seq_cst_u64(&section.participants[index].readers, former, <uint64_t>generation << OWNER_GENERATION_SHIFT):
            return former


cdef int participant_take(section_t* section, bint inherit, uint32_t* index, uint64_t* former_readers,
                          void** page, int* kept_fd) noexcept nogil:
    """Take an entry for this process, or with `inherit` for a child about to be forked.

    Entries whose owner left in order are taken first, entries of dead owners second.  The caller then cleans up after a dead
    owner (`lock_forget`, `heap_recover`) and stores 1 in `attached`.  `former_readers` is that owner's word.
    """
    cdef uint32_t i, round_
    cdef int status, fd = section_descriptor(section)
    if fd < 0:
        return EBADF
    for round_ in range(2):
        for i in range(section.max_participants):
            if round_ == 0 and ((load_acquire_u32(&section.participants[i].attached) != 0 and not participant_rests(section, i))
                                or participant_left_something(section, i)):
                continue
            if participant_entry_is_alive(section, i):
                continue
            status = _liveness_take(section, fd, LIVENESS_BYTE + i, inherit, page, kept_fd)
            if status == EAGAIN:
                continue
            if status != 0:
                return status
            _raise_high_mark(section, i + 1)
            store_release_u32(&section.participants[i].attached, ATTACHED_NEW)
            former_readers[0] = _begin_generation(section, i)
            section.participants[i].waiting = 0
            section.participants[i].pid = process_id()
            index[0] = i
            return OK
    return TOO_MANY_PARTICIPANTS
