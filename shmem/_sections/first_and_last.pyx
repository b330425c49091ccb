# cython: language_level=3
"""The first opener and the last participant of a section.  All calls are made with the opening byte locked, under the process mutex.

An opener is the first one if no liveness byte is locked.  Only it may change the file's size, because no other process has the file mapped.
It creates the section (marked BEING_MADE first, MAGIC last), or it resets the volatile state and recovers the heap if the section was not
closed.

A participant is the last one if no other process takes part: each other liveness byte is free, or its process rests (it exits, and only
has views), and no guest is left.  A guest that leaves may be the last one too.  If it is not, it stays a guest from its exit to its end,
since it has no entry that could keep its views.  The last one holds the opening byte, so no other process can join.  It removes the file
of an anonymous section.  Any other file it leaves clean, truncated to the pages in use, or with their space returned if a resting process
may read beyond them.

If messages in flight refer to arrays of an anonymous section (`_heap/claims.pyx`), the last one keeps its file until the last of these
claims ends, `claims_until`, and marks it clean.  An opener that comes in time, to open the message, finds the section; after that the file
counts as removed.

Writing to disk may take long, which must not keep other processes from opening.  The last participant writes what is in use before it
takes the opening byte for good, and then only what has changed since.  The clean mark is written to disk after the byte is released.

What views of this process may still read at its exit is in use, since their pins stay.  Its mapping above the end of the file is replaced
by memory of its own, for views of blocks that were freed.  The next opener that finds pins in a clean file frees what only they kept.
"""

from libc.errno cimport EAGAIN, EBADF
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport store_release_u32, store_release_u64
from shmem._base.accessors cimport control_bytes, round_up
from shmem._base.layout cimport MAGIC, MAGIC_BEING_MADE, PAGE_BYTES, header_t
from shmem._base.owner cimport readers_count, readers_none, word_has_owner
from shmem._base.participants cimport (
    guest_drop, guest_take, guests_are_alive, is_guest, my_entry, opening_release, opening_t, participant_entry_is_alive,
    participant_generation, participant_left_something, participants_any_active, section_descriptor, section_opening_try)
from shmem._base.section cimport private_t, section_t
from shmem._base.status cimport OK
from shmem._base.system cimport (
    boot_id, boot_ns, file_facts, file_facts_t, file_remove, file_reserve, file_set_permissions, file_set_size, file_sync, file_write,
    memory_detach, memory_sync, path_facts, pause_longer, random_bytes, user_id)
from shmem._heap.backing cimport backing_give_back, backing_lower
from shmem._heap.claims cimport claims_are_of_another_boot, claims_end, claims_leave
from shmem._heap.heap cimport WAIT_FOREVER, heap_enter, heap_flush_cache, heap_leave, heap_top_is_right
from shmem._heap.recovery cimport ALL_PARTICIPANTS, NO_PARTICIPANT, dead_left_something, heap_recover
from shmem._sections.header cimport header_fill
from shmem._sections.membership cimport cease_to_participate, is_mapped_whole, rest_with_views, sign_with
from shmem._sync.primitives cimport mutexes_release_all
from shmem._sync.storage_lock cimport lock_release_all, lock_reservation_drop, lock_thread_ended


# -- the first opener ---------------------------------------------------------------------------------------

cdef int first_create(int fd, open_request_t* request) noexcept nogil:
    """Write an empty section to the file: the mark first, the magic last."""
    cdef uint64_t mark = MAGIC_BEING_MADE
    cdef uint64_t heap_start = control_bytes(request.max_participants)
    cdef header_t header
    cdef file_facts_t facts
    cdef int status
    memset(&header, 0, sizeof(header_t))
    header_fill(&header, request)
    status = file_facts(fd, &facts)
    if status == OK and facts.user == user_id():         # the file may have existed, empty, or its maker died before it set them
        status = file_set_permissions(fd, request.permissions)
    if status == OK:
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
    """Reset a section without participants: open its gates and locks, free every entry.

    Generations are kept, so that no old signature ever becomes valid again.
    """
    cdef header_t* header = section.header
    cdef uint32_t i
    cdef uint32_t n_holders = word_has_owner(header.lock_gate)
    header.lock_gate = header.upgrade = header.heap_gate = header.reserve_gate = 0
    header.lock_gate_readers = header.lock_gate_writers = header.drain = 0
    header.participants_high = 0
    for i in range(section.max_participants):
        n_holders += readers_count(section.participants[i].readers)
        section.participants[i].readers = readers_none(section.participants[i].readers)
        section.participants[i].attached = section.participants[i].waiting = 0
    if n_holders:                        # a holder of the lock died as the last participant: the next holder is warned
        header.owner_deaths += 1
        header.death_notice = 1


cdef uint64_t first_reserved(const header_t* header, uint64_t file_bytes) noexcept nogil:
    """Return the offset below which a first opener needs backing; the file may be a copy with holes."""
    cdef uint64_t reserved = header.reserved if header.reserved < file_bytes else file_bytes
    return reserved if reserved > header.top else header.top


cdef int first_reset(section_t* section, open_request_t* request, uint64_t file_bytes) noexcept nogil:
    """Reset the volatile state, since no participant is alive.  What is in use has backing already."""
    cdef header_t* header = section.header
    request.was_unclean = header.clean == 0
    section_quiet(section)
    header.reserved = first_reserved(header, file_bytes)
    header.high_water = file_bytes       # bytes appended to a clean file need not be zero
    if header.high_water < header.top:
        header.high_water = header.top
    return boot_id(header.boot_id, sizeof(header.boot_id))


cdef int first_recover(section_t* section, bint was_unclean) noexcept nogil:
    cdef int status = OK
    section.was_recovered = was_unclean
    if was_unclean or section.header.broken:
        status = heap_enter(section, WAIT_FOREVER)
        if status == OK:
            heap_recover(section, ALL_PARTICIPANTS)         # even if that fails, the heap can be read
            heap_leave(section)
    elif _anyone_left_something(section) and heap_enter(section, WAIT_FOREVER) == OK:      # views were alive at the exit of the last one
        heap_recover(section, ALL_PARTICIPANTS)
        heap_leave(section)
    return status if status != OK else mark_in_use(section)


cdef int mark_in_use(section_t* section) noexcept nogil:
    store_release_u32(&section.header.clean, 0)
    return OK if section.anonymous else memory_sync(section.base, PAGE_BYTES)   # on disk before the first change, in case power fails


# -- the last participant -----------------------------------------------------------------------------------

cdef bint _detach_above(section_t* section, uint64_t keep) noexcept nogil:
    """Prepare the mappings, which views may outlive, for a file that ends at `keep`."""
    if memory_detach(section.base + keep, section.size_bytes - keep, True) != 0:
        return False
    return section.read_only_base == NULL or memory_detach(section.read_only_base + keep, section.size_bytes - keep, False) == 0


cdef void _last_out(section_t* section, bint at_exit, bint others_rest, departure_t* departure) noexcept nogil:
    """Remove the file of an anonymous section without claims; leave any other clean and truncated.  No other process can join."""
    cdef header_t* header = section.header
    cdef file_facts_t facts
    cdef uint64_t keep
    cdef int fd = section_descriptor(section)
    if section.anonymous and header.n_claims != 0 and header.broken == 0 and header.claims_until > boot_ns():
        header.clean = 1
        return
    if section.anonymous:
        if path_facts(section.path, &facts) == 0 and facts.device == section.device and facts.inode == section.inode:
            if file_remove(section.path) != OK and not at_exit and not others_rest and _detach_above(section, 0):
                file_set_size(fd, 0)                 # this process has given up its privileges: what remains is an empty file
        return
    if header.broken or fd < 0 or not heap_top_is_right(section):
        return
    keep = round_up(header.top, PAGE_BYTES)
    if memory_sync(section.base, keep) != 0:
        return                                       # not on disk: the next opener recovers
    if others_rest or (at_exit and not _detach_above(section, keep)):
        if backing_give_back(section, backing_lower(section)) != OK:
            return
    elif file_set_size(fd, keep) != 0:
        return
    store_release_u64(&header.reserved, keep)
    header.claims_until = 0                          # of anonymous sections only
    if header.high_water > keep:
        store_release_u64(&header.high_water, keep)
    store_release_u32(&header.clean, 1)
    departure.must_sync = True


cdef bint _anyone_left_something(section_t* section) noexcept nogil:
    cdef uint32_t i
    for i in range(section.max_participants):
        if participant_left_something(section, i):
            return True
    return claims_are_of_another_boot(section)


cdef bint _borrow_entry(section_t* section) noexcept nogil:
    """Sign as a guest that is the last one with an entry that no process has; prefer one that left nothing.  False if all others rest."""
    cdef uint32_t i, found = section.max_participants
    for i in range(section.max_participants):
        if participant_entry_is_alive(section, i):
            continue
        if found == section.max_participants or participant_left_something(section, found):
            found = i
        if not participant_left_something(section, found):
            break
    if found < section.max_participants:
        sign_with(section, found, participant_generation(section, found))        # no process is left that could mistake it
    return found < section.max_participants


cdef void _leave_whole(section_t* section, bint at_exit, bint rests, bint others_rest, departure_t* departure) noexcept nogil:
    """As the last participant, finish what dead ones left, and leave the file."""
    cdef bint keeps_pins = rests or others_rest
    cdef bint must_recover = section.header.heap_gate != 0 or (
        dead_left_something(section) if keeps_pins else _anyone_left_something(section))
    if section.private.index_plus_1 == 0 and not _borrow_entry(section):
        return
    section.header.heap_gate = 0
    if (not section.anonymous or section.header.n_claims != 0) and heap_enter(section, WAIT_FOREVER) == OK:
        if must_recover:
            heap_recover(section, NO_PARTICIPANT if keeps_pins else ALL_PARTICIPANTS)
        elif section.header.broken == 0:
            heap_flush_cache(section)
        section.header.claims_until = claims_end(section)
        heap_leave(section)
    _last_out(section, at_exit, others_rest, departure)


cdef bint _is_last(section_t* section, int fd, opening_t* opening, bint* others_rest) noexcept nogil:
    """Return whether no other process takes part and no guest is left; then this process is no guest any more."""
    if participants_any_active(section, others_rest):
        return False
    guest_drop(section)                      # only a process without a hold on the guests' byte can see whether others have one
    if opening.as_process and section.keeps_fd:                    # the descriptor that was closed has released the opening byte
        if section_opening_try(section, fd, True, opening) != OK or participants_any_active(section, others_rest):
            return False
    return not guests_are_alive(section) and (section.private.index_plus_1 != 0 or is_mapped_whole(section, fd))


cdef void departure_wait(section_t* section, departure_t* departure) noexcept nogil:
    """Do what `section_depart` needs before its next attempt: write to disk, or wait until another process has opened or closed."""
    cdef uint64_t in_use = round_up(section.header.top, PAGE_BYTES)
    if departure.must_write:
        memory_sync(section.base, in_use if in_use < section.size_bytes else section.size_bytes)     # `_last_out` reports a failure
        departure.must_write, departure.is_written = False, True
    else:
        pause_longer(&departure.waited_ns)


cdef void departure_sync(section_t* section) noexcept nogil:
    """Have the clean mark written to disk, after the section was left."""
    file_sync(section_descriptor(section))


cdef bint section_depart(section_t* section, bint at_exit, departure_t* departure) noexcept nogil:
    """Leave the section; if no other participant is alive, leave it whole.  The caller holds the process mutex.

    Return False, with this process's locks released, if another process holds the opening byte, or much is to be written first.

    A thread that exits while it holds the lock may leave data half-updated, which counts as the death of a holder.
    """
    cdef opening_t opening
    cdef int fd = section_descriptor(section)
    cdef int status = EBADF
    cdef bint was_attached = section.private.index_plus_1 != 0
    cdef bint rests = at_exit and was_attached and my_entry(section).pins != 0
    cdef bint others_rest = False, is_last
    opening.fd = -1
    mutexes_release_all(section)
    if at_exit:
        lock_thread_ended(section)
    lock_release_all(section)
    lock_reservation_drop(section)
    claims_leave(section)
    if fd >= 0:
        status = section_opening_try(section, fd, True, &opening)
        if status == EAGAIN:
            return False
    if status == OK and not (section.anonymous or departure.is_written or participants_any_active(section, &others_rest)):
        departure.must_write = True
        opening_release(&opening)
        return False
    is_last = status == OK and _is_last(section, fd, &opening, &others_rest)
    if is_last:
        _leave_whole(section, at_exit, rests, others_rest, departure)
    if not was_attached:
        memset(section.private, 0, sizeof(private_t))
        if not at_exit or is_last:
            guest_drop(section)
        elif not is_guest(section):
            guest_take(section)              # the other guest may be the last one, and exit handlers of this process may still read views
    elif rests:
        rest_with_views(section)
    else:
        cease_to_participate(section)
    opening_release(&opening)
    section.departed = True
    return True
