# cython: language_level=3
"""The storage lock: inline fast paths.  The truth table and who wakes whom stand in `_sync/storage_lock.pyx`.

All functions return 0 or a status; none needs the GIL.  A deadline is in nanoseconds of the monotonic
clock; `FOREVER` waits without end, `AT_ONCE` does not wait.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._atomics cimport compare_exchange_seq_cst_u64, fetch_add_seq_cst_u64, fetch_sub_seq_cst_u64, load_relaxed_u64, load_seq_cst_u64
from shmem._base.bounds cimport participants_bound
from shmem._base.owner cimport readers_count, word_has_owner
from shmem._base.section cimport section_t, thread_find, thread_t
from shmem._base.status cimport NOT_OWNER, OK, WOULD_BLOCK
from shmem._sync.channel cimport EVERYBODY, channel_notify

cdef enum:
    # beside TURN_READERS: number of readers that have it, of those registered in `lock_gate_readers` with the sequence in the high half
    LOCK_TURN_ONE = 0x10000
    LOCK_TURN_MOST = 0xff
    LOCK_TURN_READERS = 0x04000000      # no owner; open to readers, a writer leaves it to them for 0.1 ms
    LOCK_TURN_WRITERS = 0x08000000      # no owner; for writers that were woken, one that comes now leaves it to them
    LOCK_STARVING_READERS = 0x10000000  # beside an owner: the release is to leave TURN_READERS
    LOCK_STARVING_WRITERS = 0x20000000  # beside an owner or a turn: TURN_WRITERS is to come

# Take the lock, waiting.  INTERRUPTED comes back only with `stop_for_signals`, with nothing claimed.
cdef int lock_shared_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
cdef int lock_exclusive_wait(section_t* section, int64_t deadline_ns, bint stop_for_signals) noexcept nogil
# Slow halves of release
cdef void lock_gate_open(section_t* section) noexcept nogil
cdef void lock_gate_notify(section_t* section) noexcept nogil
cdef void upgrade_clear(section_t* section) noexcept nogil
# Who holds it, what the dead left
cdef void lock_depths(section_t* section, uint32_t* exclusive, uint32_t* shared) noexcept nogil
cdef void lock_release_all(section_t* section) noexcept nogil
cdef void lock_thread_ended(section_t* section) noexcept nogil
cdef void lock_forget(section_t* section, uint32_t index, uint64_t former_readers) noexcept nogil
cdef int thread_register(section_t* section, thread_t** me) noexcept nogil
# SHMEM_DEBUG: my participant's `readers` before a share was given back; the gate before it opens.  Each aborts if that cannot be
cdef void lock_verify_share(section_t* section, uint64_t readers) noexcept nogil
cdef void lock_verify_gate(section_t* section) noexcept nogil


cdef inline int lock_shared_try(section_t* section) noexcept nogil:
    """Take the lock shared if that needs no waiting and nothing unusual, else WOULD_BLOCK."""
    cdef thread_t* me = thread_find(section)
    cdef uint64_t* readers
    if me == NULL:
        return WOULD_BLOCK
    if me.shared or me.exclusive:
        me.shared += 1
        return OK
    readers = &section.participants[section.private.index_plus_1 - 1].readers
    fetch_add_seq_cst_u64(readers, 1)                       # before the look at the gate; partner: the writer's swap
    if not word_has_owner(load_seq_cst_u64(&section.header.lock_gate)):       # 0 or a turn, which may stay until a writer comes
        me.counted = 1
        me.shared = 1
        return OK
    fetch_sub_seq_cst_u64(readers, 1)
    channel_notify(&section.header.drain, EVERYBODY)
    return WOULD_BLOCK


cdef inline int lock_exclusive_try(section_t* section) noexcept nogil:
    """Take the lock exclusive if that needs no waiting and nothing unusual, else WOULD_BLOCK."""
    cdef thread_t* me = thread_find(section)
    cdef uint32_t i
    if me == NULL:
        return WOULD_BLOCK
    if me.exclusive:
        me.exclusive += 1
        return OK
    if me.shared or load_relaxed_u64(&section.header.upgrade) != 0:     # a stale look: the drain looks again
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
    """Undo one shared lock of this thread: NOT_OWNER when it has none."""
    cdef thread_t* me = thread_find(section)
    cdef uint64_t readers
    if me == NULL or me.shared == 0:
        return NOT_OWNER
    me.shared -= 1
    if me.shared == 0 and me.counted:
        me.counted = 0
        # before the look at the channel; partner: a draining writer, which registers there and then looks at the readers
        readers = fetch_sub_seq_cst_u64(&section.participants[section.private.index_plus_1 - 1].readers, 1)
        if section.verify != NULL:
            lock_verify_share(section, readers)
        channel_notify(&section.header.drain, EVERYBODY)
    return OK


cdef inline int unlock_exclusive(section_t* section) noexcept nogil:
    """Undo one exclusive lock of this thread: NOT_OWNER when it has none.  Shared still held: a downgrade."""
    cdef thread_t* me = thread_find(section)
    if me == NULL or me.exclusive == 0:
        return NOT_OWNER
    me.exclusive -= 1
    if me.exclusive:
        return OK
    if section.verify != NULL:
        lock_verify_gate(section)
    if me.shared and not me.counted:
        me.counted = 1
        fetch_add_seq_cst_u64(&section.participants[section.private.index_plus_1 - 1].readers, 1)
    if me.upgrading:
        me.upgrading = 0
        upgrade_clear(section)
    # before the looks at the channels; partner: who registers there and then looks at the gate
    if not compare_exchange_seq_cst_u64(&section.header.lock_gate, section.private.owner_word, 0):
        lock_gate_open(section)                                  # somebody starves
    elif (load_seq_cst_u64(&section.header.lock_gate_readers) | load_seq_cst_u64(&section.header.lock_gate_writers)) >> 32 != 0:
        lock_gate_notify(section)
    return OK
