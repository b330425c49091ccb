# cython: language_level=3
"""The list of this process's sections, and what a fork, the end of a thread and the exit of the process do to each of them.

The list is read and changed under the process mutex, which the fork handlers hold from before the fork until after it.

Before a fork, an entry is taken for the child, through an open file description and a page that the child inherits.
After it, the parent drops page and descriptor, and the child keeps its own copies and signs with the new entry.
The fork wipes the private pages, so the child holds no lock; the parent's liveness page is not mapped in it.
A section that a thread is leaving, with the last hold, is not handed to the child: see `leaving_t`.
A child for which no entry could be taken is a guest, since it inherits the hold on the guests' byte: see `_base/participants.pyx`.

Exit.  A section goes through these states; only a child that is forked meanwhile begins anew::

    in use                     attached, `leaves` 0
    leaving   `leaves`         no thread becomes busy any more; waiters return after their slice; busy threads are waited for
    departed  `departed`       no thread was busy: private pages cleared, entry and liveness byte given up
     rests    ATTACHED_RESTS   the same, but views were alive: entry, pins, liveness byte and mapping stay until the process ends
    kept      `kept`           a thread was busy to the last: nothing is given up, and the rest is as after a kill

Busy is a thread of Python code in a step without the GIL (`n_busy`), one that fills a PENDING block, and one inside the C interface
(`thread_t.inside`).  Python code looks at `leaves` with the GIL, which the exiting thread holds.  The C interface has a handshake
instead: a thread stores `inside`, then reads `leaves`; the exiting thread stores `leaves`, then reads `inside`.  At least one of the two
sees the other: the thread turns back, or is waited for.  That needs a barrier on both sides.  The exiting thread makes all threads
execute one, where the system can (`has_barrier`); elsewhere the thread has its own.  A thread that is inside may do more, whatever
`leaves` says.  The exit is model-checked: `tests/models/exit.pml`.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport fence_seq_cst, load_seq_cst_u32, store_release_u32
from shmem._base.debug cimport debug_forked, debug_level
from shmem._base.participants cimport (
    guest_drop, is_guest, participant_drop_liveness, participant_generation, participant_take, section_close_descriptor)
from shmem._base.section cimport MAX_THREADS, section_t, thread_find, thread_t
from shmem._base.status cimport OK
from shmem._base.system cimport (
    at_fork, at_thread_end, barrier_on_all_threads, file_facts_t, liveness_do_not_inherit, pause_ns, process_id,
    process_mutex_lock, process_mutex_unlock)
from shmem._heap.claims cimport claims_leave
from shmem._heap.heap cimport heap_is_filled
from shmem._sections.first_and_last cimport departure_sync, departure_t, departure_wait, section_depart
from shmem._sections.membership cimport clear_up_after, section_destroy, sign_with
from shmem._sync.primitives cimport mutexes_release_all
from shmem._sync.storage_lock cimport lock_thread_ended, unlock_exclusive, unlock_shared

cdef extern from *:
    """
    #define MAX_WAITS 1000
    #define WAIT_NS 100000
    _Static_assert((long long)MAX_WAITS * WAIT_NS > SLICE_NS, "exit must wait longer than a sleeper on the lock");
    """
    enum: MAX_WAITS
    enum: WAIT_NS

cdef section_t* _sections = NULL             # of this process
cdef leaving_t* _leaving = NULL              # threads of this process that leave a section; on their stacks
cdef uint64_t _n_forks = 0                   # that the handlers saw, in this process and in those that it descends from


cdef void sections_add(section_t* section) noexcept nogil:
    global _sections
    section.next = _sections
    _sections = section


cdef void sections_remove(section_t* section) noexcept nogil:
    global _sections
    cdef section_t** link = &_sections
    while link[0] != section:
        link = &link[0].next
    link[0] = section.next


cdef section_t* sections_find(const file_facts_t* facts) noexcept nogil:
    cdef section_t* section = _sections
    while section != NULL and (section.device != facts.device or section.inode != facts.inode or section.departed):
        section = section.next
    return section


cdef void leaving_pause(leaving_t* leaving, section_t* section) noexcept nogil:
    """Release the process mutex while this thread, which has a hold on the section, leaves it."""
    global _leaving
    leaving.section = section
    leaving.next = _leaving
    _leaving = leaving
    process_mutex_unlock()


cdef void leaving_resume(leaving_t* leaving) noexcept nogil:
    """Acquire the process mutex again."""
    cdef leaving_t** link = &_leaving
    process_mutex_lock()
    while link[0] != leaving:
        link = &link[0].next
    link[0] = leaving.next


cdef bint _is_being_left(section_t* section) noexcept nogil:
    """Return whether the only hold on a section is that of a thread that leaves it."""
    cdef leaving_t* leaving = _leaving
    while leaving != NULL and leaving.section != section:
        leaving = leaving.next
    return leaving != NULL and section.n_holds == 1


cdef section_t* section_of_address(uint64_t address) noexcept nogil:
    """Return the section of this process that contains an address, or NULL."""
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
    """Release one lock of this thread on the section with that id, if this process still has the section."""
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


# -- the end of the process, and of threads -----------------------------------------------------------------

cdef bint _any_inside(section_t* section) noexcept nogil:
    """Return whether another thread is inside the C interface.

    A thread that is not seen here will see `leaves`, which the caller has set; what one that was inside has written is visible.
    """
    cdef thread_t* me = thread_find(section)
    cdef thread_t* thread = section.private.threads
    cdef thread_t* end = thread + MAX_THREADS
    fence_seq_cst()                          # after `leaves` was set; partner: inside_begin
    while thread < end and (thread.inside == 0 or thread == me):
        thread += 1
    fence_seq_cst()
    return thread < end


cdef inline bint _is_busy(section_t* section) noexcept nogil:
    """Return whether a thread is inside the library, or between allocating a block and its commit.  The latter may need the GIL."""
    return load_seq_cst_u32(&section.n_busy) != 0 or (section.private.index_plus_1 != 0 and heap_is_filled(section)) or _any_inside(section)


cdef uint32_t sections_depart(bint is_last_attempt) noexcept nogil:
    """Leave, at exit, every section in which no thread is busy; return the number of sections that could not be left.

    Views may outlive the call: nothing in use is truncated.  A section that the last attempt cannot leave is left to the kernel, as after
    a kill: its busy threads go on with an entry, pins and a mapping that stay theirs until the process ends.

    The caller holds the GIL, so no thread of Python code becomes busy meanwhile, and the C interface has the handshake above.
    """
    cdef section_t* section
    cdef uint32_t n_left = 0, waits_left
    cdef departure_t departure
    cdef bint handshake
    process_mutex_lock()
    section = _sections
    while section != NULL:
        if not section.departed and not section.kept and (section.private.index_plus_1 != 0 or is_guest(section)):
            store_release_u32(&section.leaves, 1)
            handshake = not section.has_barrier or barrier_on_all_threads()
            waits_left = MAX_WAITS           # longer than SLICE_NS: a thread asleep on the lock returns meanwhile
            while _is_busy(section) and waits_left:
                pause_ns(WAIT_NS)
                waits_left -= 1
            if handshake and not _is_busy(section):
                memset(&departure, 0, sizeof(departure_t))
                while not section_depart(section, True, &departure):
                    departure_wait(section, &departure)
                if departure.must_sync:
                    departure_sync(section)
            else:
                section.kept = is_last_attempt
                if is_last_attempt:
                    claims_leave(section)
                n_left += 1
        section = section.next
    process_mutex_unlock()
    return n_left


cdef void thread_ended(void* unused) noexcept nogil:
    """Release what an ending thread holds in any section, as after the death of the holder."""
    cdef section_t* section
    process_mutex_lock()
    section = _sections
    while section != NULL:
        if section.private.index_plus_1 != 0:
            mutexes_release_all(section)
            lock_thread_ended(section)
        section = section.next
    process_mutex_unlock()


# -- fork ---------------------------------------------------------------------------------------------------

cdef uint64_t process_fork_count() noexcept nogil:
    """Return a number that changes with each fork, in the parent and in the child."""
    return _n_forks


cdef void _before_fork() noexcept nogil:
    global _n_forks
    cdef section_t* section
    cdef uint32_t index = 0
    cdef uint64_t former_readers = 0
    process_mutex_lock()
    _n_forks += 1
    section = _sections
    while section != NULL:
        section.child_index_plus_1 = 0
        section.child_page = NULL
        section.child_fd = -1
        if section.private.index_plus_1 != 0 and _is_being_left(section):
            guest_drop(section)              # the child does not get the section; this process keeps its entry until it has left
        elif section.private.index_plus_1 != 0 and participant_take(
                section, True, &index, &former_readers, &section.child_page, &section.child_fd) == OK:
            section.child_index_plus_1 = index + 1
            section.child_generation = participant_generation(section, index)
            clear_up_after(section, index, former_readers)
        section = section.next


cdef void _after_fork_in_parent() noexcept nogil:
    cdef section_t* section = _sections
    while section != NULL:
        participant_drop_liveness(section, section.child_page, section.child_fd)
        section.child_page = NULL
        section.child_fd = -1
        section = section.next
    process_mutex_unlock()


cdef void _drop_holds_of_leaving_threads() noexcept nogil:
    """Forget, in a child, the sections that threads of the parent were leaving, since the child does not have these threads."""
    global _leaving
    cdef section_t* section
    while _leaving != NULL:
        section = _leaving.section
        _leaving = _leaving.next
        section.n_holds -= 1
        if section.n_holds == 0:
            sections_remove(section)
            section_destroy(section)


cdef void _after_fork_in_child() noexcept nogil:
    cdef section_t* section = _sections
    if debug_level:
        debug_forked()
    while section != NULL:
        section_close_descriptor(section, section.liveness_fd)       # the parent's: closing this copy releases no lock
        section.liveness_page = section.child_page
        section.liveness_fd = section.child_fd
        section.child_page = NULL
        section.child_fd = -1
        section.byte_of_process = 0          # the parent's too: a lock of a process is not inherited
        liveness_do_not_inherit(section.liveness_page)
        section.n_forks += 1
        section.n_busy = 0
        section.kept = False
        section.leaves = section.departed
        if section.child_index_plus_1 != 0:
            sign_with(section, section.child_index_plus_1 - 1, section.child_generation)
            section.participants[section.child_index_plus_1 - 1].pid = process_id()
        section = section.next
    _drop_holds_of_leaving_threads()
    process_mutex_unlock()


cdef int process_setup() noexcept nogil:
    """Register the handlers, once per process: 0 or an errno."""
    cdef int status = at_fork(_before_fork, _after_fork_in_parent, _after_fork_in_child)
    return status if status != 0 else at_thread_end(thread_ended)
