# cython: language_level=3
"""Membership: how this process becomes a participant of a section, and how it ceases to be one.

A participant owns an entry of the table, and the kernel's lock on the entry's liveness byte.  Its signature is index and generation.
A forked child for which no entry could be taken is a guest: it may read views, and its first operation makes it a participant.
A participant that takes over the entry of a dead owner first clears up what that owner left in the lock and in the heap.
"""

from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from shmem._atomics cimport store_release_u32
from shmem._base.layout cimport MAGIC
from shmem._base.owner cimport owner_word
from shmem._base.participants cimport (
    ATTACHED_RESTS, guest_drop, guest_is_held, guest_take, guests_are_alive, opening_release, opening_t, participant_drop_my_liveness,
    participant_generation, participant_left_something, participant_take, participants_any_active,
    section_close_descriptor, section_descriptor, section_opening_try)
from shmem._base.section cimport private_t, section_t
from shmem._base.status cimport CLOSED, OK
from shmem._base.system cimport (
    file_facts, file_facts_t, memory_unmap, memory_wiped_by_fork, pause_longer, process_mutex_lock, process_mutex_unlock)
from shmem._heap.heap cimport WAIT_A_SLICE, WAIT_FOREVER, heap_enter, heap_leave, heap_sweep
from shmem._heap.name_groups cimport groups_empty
from shmem._heap.recovery cimport dead_left_something, heap_recover
from shmem._sync.storage_lock cimport lock_forget

cdef enum:
    HOLDS_WHEN_JOINING = 256                 # of the heap gate, for groups that others deleted


cdef void clear_up_after(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil:
    """Clear up what the former owner of an entry left in the lock and in the heap, if it died."""
    lock_forget(section, index, former_readers)
    if participant_left_something(section, index) and heap_enter(section, WAIT_FOREVER) == OK:
        heap_recover(section, index)
        heap_leave(section)
    store_release_u32(&section.participants[index].attached, 1)


cdef void sign_with(section_t* section, uint32_t index, uint32_t generation) noexcept nogil:
    section.private.generation = generation
    section.private.owner_word = owner_word(index, generation)
    store_release_u32(&section.private.index_plus_1, index + 1)          # last: a thread that finds it uses the two above


cdef int become_participant(section_t* section) noexcept nogil:
    cdef uint32_t index = 0
    cdef uint64_t former_readers = 0
    cdef int status
    if section.departed:
        return CLOSED
    status = participant_take(section, False, &index, &former_readers, &section.liveness_page, &section.liveness_fd)
    if status != OK:
        return status
    sign_with(section, index, participant_generation(section, index))
    clear_up_after(section, index, former_readers)
    status = guest_take(section)
    if status != OK:
        cease_to_participate(section)
    return status


cdef int _become_beside_threads(section_t* section) noexcept nogil:
    """Become a participant while other threads of this process use the section.

    The entry is cleared up under a copy of the section with private pages of its own.  The other threads find the signature afterwards.
    Otherwise what they take would be cleared up as the former owner's.
    """
    cdef section_t cleaner = section[0]
    cdef int status
    cleaner.private = <private_t*>memory_wiped_by_fork(sizeof(private_t))
    if cleaner.private == NULL:
        return ENOMEM
    status = become_participant(&cleaner)
    if status == OK:
        sweep_after_joining(&cleaner)
        section.keeps_fd = cleaner.keeps_fd
        section.liveness_page = cleaner.liveness_page
        section.liveness_fd = cleaner.liveness_fd
        section.guest_page = cleaner.guest_page
        section.guest_fd = cleaner.guest_fd
        section.byte_of_process = cleaner.byte_of_process
        section.n_forks += 1
        sign_with(section, cleaner.private.index_plus_1 - 1, cleaner.private.generation)
    section.locks_as_process = cleaner.locks_as_process
    section.fd = cleaner.fd                  # it is opened again when user code has closed it
    memory_unmap(cleaner.private, sizeof(private_t))
    return status


cdef bint is_mapped_whole(section_t* section, int fd) noexcept nogil:
    """Return whether the file is still what this process has mapped: no first opener has created it anew or let it grow meanwhile."""
    cdef file_facts_t facts
    return (file_facts(fd, &facts) == OK and facts.size_bytes >= section.size_bytes and section.header.magic == MAGIC
            and section.header.salt == section.salt and section.header.max_size == section.size_bytes)


cdef int _attach(section_t* section) noexcept nogil:
    """Make one attempt: EAGAIN if the opening byte is needed, and another process holds it.

    A guest does not need it: as long as it is one, no process is a first opener or the last participant.
    """
    cdef bint any_rests = False
    cdef opening_t opening
    cdef int fd = section_descriptor(section)
    cdef int status = CLOSED if fd < 0 or section.departed else OK
    opening.fd = -1
    if status == OK and not guest_is_held(section):
        status = section_opening_try(section, fd, False, &opening)
        if status == OK and not (guests_are_alive(section) or participants_any_active(section, &any_rests)):
            status = CLOSED                  # the last participant has truncated or removed the file
    if status == OK and not is_mapped_whole(section, fd):
        status = CLOSED
    if status == OK:
        status = _become_beside_threads(section)
    opening_release(&opening)
    return status


cdef int attach_child(section_t* section) noexcept nogil:
    """Make a child that got no entry at its fork a participant of its own, as long as the section is in use, at least by this guest."""
    cdef int status = EAGAIN
    cdef int64_t waited_ns = 0
    while status == EAGAIN:
        process_mutex_lock()
        status = OK if section.private.index_plus_1 != 0 else _attach(section)
        process_mutex_unlock()
        if status == EAGAIN:
            pause_longer(&waited_ns)
    return status


cdef void sweep_after_joining(section_t* section) noexcept nogil:
    """Free what participants left that died in other entries, and deleted groups, if they are not too large and the heap gate is free."""
    cdef uint64_t n_bytes = 0
    if dead_left_something(section):
        heap_sweep(section, WAIT_A_SLICE, &n_bytes)
    groups_empty(section, WAIT_A_SLICE, HOLDS_WHEN_JOINING, &n_bytes)


cdef void cease_to_participate(section_t* section) noexcept nogil:
    """Leave in order: free the entry and drop the liveness byte.

    Locks that other threads of this process hold stay as they are.  Those threads will never release them, so they are taken over as after
    a kill.
    """
    cdef uint32_t index = section.private.index_plus_1 - 1
    guest_drop(section)
    if section.private.index_plus_1 == 0:
        return
    section.participants[index].pid = 0
    store_release_u32(&section.participants[index].attached, 0)
    memset(section.private, 0, sizeof(private_t))
    participant_drop_my_liveness(section)


cdef void rest_with_views(section_t* section) noexcept nogil:
    """Leave at exit with views alive: take part in nothing any more, but keep entry, pins and liveness byte until the process ends.

    The caller holds the opening byte.  Exit handlers may still read the views, and threads write to them.  So what they lie in must not be
    given to others before the kernel drops the byte; then the pins are those of a dead participant.
    """
    store_release_u32(&section.participants[section.private.index_plus_1 - 1].attached, ATTACHED_RESTS)
    memset(section.private, 0, sizeof(private_t))
    guest_drop(section)


cdef void section_destroy(section_t* section) noexcept nogil:
    """Unmap a section that this process has left, and forget it."""
    memory_unmap(section.base, section.size_bytes)
    memory_unmap(section.read_only_base, section.size_bytes)
    memory_unmap(section.private, sizeof(private_t))
    participant_drop_my_liveness(section)                # of a process that rested; its last view is gone
    guest_drop(section)
    section_close_descriptor(section, section.fd)
    free(section.path)
    free(section)
