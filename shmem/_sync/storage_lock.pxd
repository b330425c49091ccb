# cython: language_level=3
"""The storage lock: inline fast paths.  `_sync/storage_lock.pyx` has the truth table, and which event wakes which waiters.

All functions return 0 or a status; none needs the GIL.  Deadlines: `_base/deadline.pxd`.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from shmem._atomics cimport compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, fetch_sub_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64
from shmem._base.bounds cimport participants_bound
from shmem._base.owner cimport readers_count, word_has_owner
from shmem._base.participants cimport my_entry
from shmem._base.section cimport section_t, thread_find, thread_t
from shmem._base.status cimport NOT_OWNER, OK, WOULD_BLOCK
from shmem._sync.channel cimport ALL_WAITERS, channel_notify, channel_registrations

cdef enum:                              # bits of `lock_gate` between the owner's index and its generation
    # With TURN_READERS: number of readers for which the turn is still reserved.  They registered in `lock_gate_readers` with the
    # sequence in the high half
    LOCK_TURN_ONE = 0x10000
    LOCK_TURN_MOST = 0xff
    LOCK_TURN_READERS = 0x04000000      # no owner; open to readers, a writer waits for them for TURN_NS
    LOCK_TURN_WRITERS = 0x08000000      # no owner; for woken writers, a new writer waits for them for TURN_NS
    LOCK_STARVING_READERS = 0x10000000  # with an owner: the release must set TURN_READERS
    LOCK_STARVING_WRITERS = 0x20000000  # with an owner or a turn: TURN_WRITERS must follow
    # With an owner that runs signal handlers: a waiter may open the gate after RESERVED_NS.  The bits of TURN_MOST number the reservation
    LOCK_RESERVED = 0x40000000

cdef enum LockReturns:                  # when a waiting request returns INTERRUPTED to its caller
    LOCK_RETURNS_AT_EXIT                # only when the process leaves the section: after each slice
    LOCK_RETURNS_RARELY                 # to find that the handle was closed: at the gate after each slice, from a drain once per second
    LOCK_RETURNS_FOR_SIGNALS            # after each slice and each signal

ctypedef struct lock_request_t:         # one request for the lock, from the first attempt until it is acquired or abandoned
    int64_t deadline_ns
    LockReturns returns
    uint32_t claim_number               # of the claim that it kept when it returned INTERRUPTED last; 0: none
    uint32_t kind                       # determines the next three:
    uint64_t* channel                   # where it sleeps until the gate opens
    uint64_t starving_flag              # with which it requests a turn; 0: never
    uint32_t own_shares                 # shares that its drain does not wait for
    int64_t began_ns                    # 0: has not slept yet
    int64_t turn_ends_ns                # end of the others' turn that it waits for; 0: none; 1: over
    bint registered                     # it was asleep or about to be: a turn may be meant for it
    uint32_t sequence                   # of its registration: a readers' turn carries it
    bint taken_over                     # it owns the gate, whose former owner is dead

# Acquire the lock, waiting.  After INTERRUPTED the caller runs signal handlers and calls again with the same request, or abandons it
cdef int lock_shared_wait(section_t* section, lock_request_t* request) noexcept nogil
cdef int lock_exclusive_wait(section_t* section, lock_request_t* request) noexcept nogil
cdef void lock_request_abandon(section_t* section, lock_request_t* request) noexcept nogil
# Slow halves of release
cdef void lock_gate_open(section_t* section) noexcept nogil
cdef void lock_gate_notify(section_t* section) noexcept nogil
cdef void upgrade_clear(section_t* section) noexcept nogil
# Holders, and cleaning up after dead holders
cdef void lock_depths(section_t* section, uint32_t* exclusive, uint32_t* shared) noexcept nogil
cdef void lock_release_all(section_t* section) noexcept nogil
cdef void lock_reservation_drop(section_t* section) noexcept nogil
cdef void lock_thread_ended(section_t* section) noexcept nogil
cdef void lock_forget(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil
cdef int thread_register(section_t* section, thread_t** me) noexcept nogil
# SHMEM_DEBUG: check `readers` of this participant as it was before a share was released; check the gate before it opens.  An
# invalid value aborts the process
cdef void lock_verify_share(section_t* section, uint64_t readers) noexcept nogil
cdef void lock_verify_gate(section_t* section) noexcept nogil


cdef inline lock_request_t lock_request(int64_t deadline_ns, LockReturns returns) noexcept nogil:
    """Return a new request."""
    cdef lock_request_t request
    memset(&request, 0, sizeof(request))
    request.deadline_ns = deadline_ns
    request.returns = returns
    return request


cdef inline int lock_shared_try(section_t* section) noexcept nogil:
    """Acquire the lock shared if that needs neither waiting nor the slow path, else return WOULD_BLOCK."""
    cdef thread_t* me = thread_find(section)
    cdef uint64_t* readers
    if me == NULL:
        return WOULD_BLOCK
    if me.shared or me.exclusive:
        me.shared += 1
        return OK
    readers = &my_entry(section).readers
    fetch_add_seq_cst_u64(readers, 1)                       # before the gate is read; partner: a writer's swap
    if not word_has_owner(load_seq_cst_u64(&section.header.lock_gate)):       # 0 or a turn, which may stay until a writer comes
        me.counted = 1
        me.shared = 1
        return OK
    fetch_sub_seq_cst_u64(readers, 1)
    channel_notify(&section.header.drain, ALL_WAITERS)
    return WOULD_BLOCK


cdef inline int lock_exclusive_try(section_t* section) noexcept nogil:
    """Acquire the lock exclusively if that needs neither waiting nor the slow path, else return WOULD_BLOCK."""
    cdef thread_t* me = thread_find(section)
    cdef uint32_t i
    if me == NULL:
        return WOULD_BLOCK
    if me.exclusive:
        me.exclusive += 1
        return OK
    if me.shared or load_relaxed_u64(&section.header.upgrade) != 0:     # may be stale: the drain checks again
        return WOULD_BLOCK
    if not compare_exchange_seq_cst_u64(&section.header.lock_gate, 0, section.private.owner_word):
        return WOULD_BLOCK
    for i in range(participants_bound(section)):
        if readers_count(load_seq_cst_u64(&section.participants[i].readers)) != 0:
            lock_gate_open(section)
            return WOULD_BLOCK
    me.exclusive = 1
    return OK


cdef inline int unlock_shared(section_t* section) noexcept nogil:
    """Release one shared lock of this thread: NOT_OWNER if it has none."""
    cdef thread_t* me = thread_find(section)
    cdef uint64_t readers
    if me == NULL or me.shared == 0:
        return NOT_OWNER
    me.shared -= 1
    if me.shared == 0 and me.exclusive == 0:
        me.task = 0
    if me.shared == 0 and me.counted:
        me.counted = 0
        # before the channel is read; partner: a draining writer, which registers there and then reads `readers`
        readers = fetch_sub_seq_cst_u64(&my_entry(section).readers, 1)
        if section.verify != NULL:
            lock_verify_share(section, readers)
        channel_notify(&section.header.drain, ALL_WAITERS)
    return OK


cdef inline int unlock_exclusive(section_t* section) noexcept nogil:
    """Release one exclusive lock of this thread: NOT_OWNER if it has none.  If it still holds shared, this downgrades the lock."""
    cdef thread_t* me = thread_find(section)
    if me == NULL or me.exclusive == 0:
        return NOT_OWNER
    me.exclusive -= 1
    if me.exclusive:
        return OK
    if me.shared == 0:
        me.task = 0
    if section.verify != NULL:
        lock_verify_gate(section)
    if me.shared and not me.counted:
        me.counted = 1
        fetch_add_seq_cst_u64(&my_entry(section).readers, 1)
    if me.upgrading:
        me.upgrading = 0
        upgrade_clear(section)
    # before the channels are read; partner: a waiter, which registers there and then reads the gate
    if not compare_exchange_seq_cst_u64(&section.header.lock_gate, section.private.owner_word, 0):
        lock_gate_open(section)                             # there is a STARVING flag
    elif channel_registrations(
            load_seq_cst_u64(&section.header.lock_gate_readers) | load_seq_cst_u64(&section.header.lock_gate_writers)) != 0:
        lock_gate_notify(section)
    return OK
