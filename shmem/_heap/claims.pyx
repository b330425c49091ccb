# cython: language_level=3
"""Claims: a message owns the array that it refers to, whatever becomes of its sender.

A temporary array, or one whose last name was deleted, is freed with its last pin.  A message in a pipe has no pin: its sender may have
dropped the array, and may have ended, before the receiver reads it.  So the sender makes a claim, a block of type TYPE_CLAIM, which has
offset and serial of the array; the message has offset and serial of the claim.  An array with claims is not freed by forgetting.  The
receiver pins the array, then ends the claim: the claim becomes its pin.

States of a claim.  The owner of the gate may be killed between any two steps; the next owner recovers::

    PENDING, filled    the sender was killed before the message could be sent: recovery frees the claim
    USED               heap_commit in `claim_send`: the array stays.  Without a place in the list: recovery gives it one
    in the list        counted by the header, the array and the sender: the message may be sent
    array pinned       by the receiver (`pinning.pyx`).  A receiver that is killed here loses its pin, and the claim stays
    out of the list    and of the counts, but still USED: recovery puts it back
    freed              heap_release in `_end`.  An array that nothing else keeps: recovery frees it, by its flags
    array freed        heap_release_with_pins in `_end`

An array that is freed explicitly is freed first, then its claims: recovery frees claims whose array is not there.

When a claim ends by itself.  The clock is that of the boot, which all processes share::

    sender lives, or left in order     never, unless it has set an end.  It may have left long before the message is read
    sender was killed                  CLAIM_ORPHAN_NS after that was found out.  It may have been killed just after it had answered:
                                       the message may be in the pipe, or may not have been written
    section is full                    claims that have expired, then those older than CLAIM_AGED_NS whose sender is gone
    another boot                       at once: no message has outlived it

A sender that leaves erases itself in its claims (`claims_leave`); a kill before the end of that leaves some as those of a killed sender.
Recovery stores the end of a killed sender's claim first, then erases the sender, so that a second recovery does not take it for one that
left in order.

The list, which is doubly linked from `header.claims_off`, and the counts (`n_claims` of header and arrays, `claims` of participants,
`claimed_bytes`) are an index, changed under the gate only.  The chain of front tags has the truth, and recovery builds the index anew.
It does so before it frees any array.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from shmem._atomics cimport store_release_u64
from shmem._base.accessors cimport block_to_payload, payload_bytes, payload_to_block, tag_size, tag_state, tag_type
from shmem._base.bounds cimport block_is_stale, damaged, heap_top, used_tag
from shmem._base.layout cimport CLAIM_ENDS, SERIAL_MASK, STATE_USED, TYPE_ARRAY, TYPE_CLAIM, array_t, claim_t, hash_name
from shmem._base.owner cimport owner_index
from shmem._base.participants cimport my_entry
from shmem._base.section cimport block_at, block_step, section_t
from shmem._base.status cimport CORRUPTED, INVALID_BLOCK, OK, WOULD_BLOCK
from shmem._base.system cimport boot_ns
from shmem._heap.backing cimport is_out_of_space
from shmem._heap.chain cimport tag_is_plausible
from shmem._heap.heap cimport (
    DO_NOT_WAIT, HEAP_PENDING, HEAP_STOP, WAIT_A_SLICE, heap_abandon, heap_allocate, heap_allocate_at_hand, heap_check_block, heap_commit,
    heap_enter, heap_enter_to_change, heap_leave, heap_release, heap_release_with_pins, heap_wait_t)
from shmem._heap.pins cimport block_is_pinned, block_is_unreachable
from shmem._heap.recovery cimport NO_PARTICIPANT, heap_recover

cdef enum:
    MOST_SLICES = 20                     # for which a process that leaves waits for the gate

cdef uint64_t NO_AGE = <uint64_t>-1      # no claim is that old


ctypedef struct which_t:                 # the claims that are to end
    uint64_t now
    uint64_t age_ns                      # those that are as old
    uint64_t age_without_sender_ns       # the same, for those without a sender
    uint64_t target_off                  # those on this array, and no others; or 0
    uint64_t serial


# -- what is there ----------------------------------------------------------------------------------------

cdef array_t* _array(section_t* section, uint64_t payload_off) noexcept nogil:
    """Return the header of the array at an unchecked offset, or NULL."""
    cdef uint64_t tag = used_tag(section, payload_off)
    if tag == 0 or tag_type(tag) != TYPE_ARRAY or payload_bytes(tag_size(tag)) < sizeof(array_t):
        return NULL
    return <array_t*>(section.base + payload_off)


cdef bint claim_target_is_right(section_t* section, uint64_t target_off, uint64_t serial) noexcept nogil:
    return _array(section, target_off) != NULL and not block_is_stale(block_at(section, payload_to_block(target_off)), serial)


cdef claim_t* claim_at(section_t* section, uint64_t claim_off) noexcept nogil:
    cdef uint64_t tag = used_tag(section, claim_off)
    if tag == 0 or tag_type(tag) != TYPE_CLAIM or payload_bytes(tag_size(tag)) < sizeof(claim_t):
        return NULL
    return <claim_t*>(section.base + claim_off)


cdef bint claim_is_listed(section_t* section, uint64_t claim_off) noexcept nogil:
    cdef claim_t* claim = claim_at(section, claim_off)
    cdef claim_t* neighbour
    if claim == NULL or claim.previous_off == CLAIM_ENDS:
        return False
    neighbour = claim_at(section, claim.next_off) if claim.next_off != 0 else NULL
    if claim.next_off != 0 and (neighbour == NULL or neighbour.previous_off != claim_off):
        return False
    if claim.previous_off == 0:
        return section.header.claims_off == claim_off
    neighbour = claim_at(section, claim.previous_off)
    return neighbour != NULL and neighbour.next_off == claim_off


cdef uint32_t claims_of(section_t* section, uint64_t payload_off) noexcept nogil:
    cdef array_t* array = _array(section, payload_off)
    return array.n_claims if array != NULL else 0


cdef inline uint64_t _boot(section_t* section) noexcept nogil:
    return hash_name(section.header.boot_id, sizeof(section.header.boot_id))


cdef bint claims_are_of_another_boot(section_t* section) noexcept nogil:
    return section.header.n_claims != 0 and section.header.claims_boot != _boot(section)


# -- list and counts --------------------------------------------------------------------------------------

cdef void _put_in(section_t* section, uint64_t claim_off) noexcept nogil:
    """Put a claim on an array that is there into the list, and count it."""
    cdef claim_t* claim = <claim_t*>(section.base + claim_off)
    cdef claim_t* next_claim = claim_at(section, section.header.claims_off)
    cdef array_t* array = _array(section, claim.target_off)
    claim.previous_off = 0
    claim.next_off = section.header.claims_off if next_claim != NULL else 0
    if next_claim != NULL:
        next_claim.previous_off = claim_off
    section.header.claims_off = claim_off
    section.header.n_claims += 1
    if array.n_claims == 0:
        section.header.claimed_bytes += tag_size(block_at(section, payload_to_block(claim.target_off)).tag)
    array.n_claims += 1
    if claim.sender != 0:
        section.participants[owner_index(claim.sender)].claims += 1


cdef int _take_out(section_t* section, uint64_t claim_off) noexcept nogil:
    """Take a claim out of the list and the counts: OK, or CORRUPTED with nothing changed."""
    cdef claim_t* claim = claim_at(section, claim_off)
    cdef array_t* array
    cdef uint32_t index
    if damaged(not claim_is_listed(section, claim_off)):
        return CORRUPTED
    if claim.next_off != 0:
        claim_at(section, claim.next_off).previous_off = claim.previous_off
    if claim.previous_off != 0:
        claim_at(section, claim.previous_off).next_off = claim.next_off
    else:
        section.header.claims_off = claim.next_off
    if section.header.n_claims:
        section.header.n_claims -= 1
    if claim_target_is_right(section, claim.target_off, claim.serial):
        array = _array(section, claim.target_off)
        if array.n_claims:
            array.n_claims -= 1
            if array.n_claims == 0:
                section.header.claimed_bytes -= tag_size(block_at(section, payload_to_block(claim.target_off)).tag)
    index = owner_index(claim.sender)
    if claim.sender != 0 and index < section.max_participants and section.participants[index].claims:
        section.participants[index].claims -= 1
    return OK


cdef bint _clear_counts(section_t* section) noexcept nogil:
    """Set every count to 0; return whether there is a claim."""
    cdef uint64_t off = section.heap_start, top = heap_top(section), tag
    cdef array_t* array
    cdef uint32_t i
    cdef bint found = False
    section.header.claims_off = section.header.n_claims = section.header.claimed_bytes = 0
    for i in range(section.max_participants):
        if section.participants[i].claims != 0:
            section.participants[i].claims = 0
    while off < top:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return found                 # damaged meanwhile: the sweep reports it
        if tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_ARRAY:
            array = _array(section, block_to_payload(off))
            if array != NULL and array.n_claims != 0:
                array.n_claims = 0
        elif tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_CLAIM:
            found = True
        off = block_step(section, off, tag_size(tag))
    return found


cdef inline bint _has_expired(const claim_t* claim, uint64_t now) noexcept nogil:
    return claim.expires_at != 0 and claim.expires_at <= now


cdef void claims_index_anew(section_t* section) noexcept nogil:
    cdef uint64_t off = section.heap_start, top = heap_top(section), now, tag
    cdef claim_t* claim
    cdef bint is_this_boot = section.header.claims_boot == _boot(section)
    if not _clear_counts(section):
        return
    now = boot_ns()
    while off < top:
        tag = block_at(section, off).tag
        if not tag_is_plausible(off, tag, top):
            return
        claim = claim_at(section, block_to_payload(off)) if tag_state(tag) == STATE_USED and tag_type(tag) == TYPE_CLAIM else NULL
        if claim != NULL:
            if claim.sender != 0 and owner_index(claim.sender) >= section.max_participants:
                claim.sender = 0
            if is_this_boot and not _has_expired(claim, now) and claim_target_is_right(section, claim.target_off, claim.serial):
                _put_in(section, block_to_payload(off))
            else:
                claim.previous_off = CLAIM_ENDS
        off = block_step(section, off, tag_size(tag))


# -- sending ----------------------------------------------------------------------------------------------

cdef int _check_array(section_t* section, claiming_t* claiming) noexcept nogil:
    cdef int status = heap_check_block(section, claiming.target_off, claiming.serial)
    if status == OK and _array(section, claiming.target_off) == NULL:
        status = INVALID_BLOCK
    return status


cdef int _mend_list(section_t* section) noexcept nogil:
    """Recover if the list does not begin as it must."""
    cdef uint64_t first_off = section.header.claims_off
    if damaged((first_off != 0) != (section.header.n_claims != 0) or (first_off != 0 and not claim_is_listed(section, first_off))):
        return heap_recover(section, NO_PARTICIPANT)
    return OK


cdef void _fill(section_t* section, claiming_t* claiming, uint64_t claim_off) noexcept nogil:
    cdef claim_t* claim = <claim_t*>(section.base + claim_off)
    cdef uint64_t now = boot_ns(), until
    memset(claim, 0, sizeof(claim_t))
    claim.target_off = claiming.target_off
    claim.serial = claiming.serial & SERIAL_MASK
    claim.sender = section.private.owner_word
    claim.made_at = now
    claim.expires_at = now + claiming.lifetime_ns if claiming.lifetime_ns != 0 else 0
    claiming.claim_off = claim_off
    claiming.claim_serial = block_at(section, payload_to_block(claim_off)).serial & SERIAL_MASK
    until = claim.expires_at if claim.expires_at != 0 else now + CLAIM_ORPHAN_NS
    if section.header.claims_until < until:
        section.header.claims_until = until
    if section.header.n_claims == 0:
        section.header.claims_boot = _boot(section)


cdef int _send_once(section_t* section, claiming_t* claiming, uint64_t* block_off, heap_wait_t wait) noexcept nogil:
    """Make one attempt: WOULD_BLOCK if the caller must bring a block, in `block_off`; 0 afterwards if it was used."""
    cdef int status = heap_enter_to_change(section, wait)
    if status != OK:
        return status
    claiming.claim_off = claiming.claim_serial = 0
    status = _check_array(section, claiming)
    if status == OK and (claiming.even_named or _array(section, claiming.target_off).n_names == 0):
        status = _mend_list(section)
        if status == OK and block_off[0] == 0:
            status = heap_allocate_at_hand(section, sizeof(claim_t), block_off)
        if status == OK:
            _fill(section, claiming, block_off[0])
            heap_commit(section, block_off[0], TYPE_CLAIM)                                          # commit
            _put_in(section, block_off[0])
            block_off[0] = 0
    heap_leave(section)
    return status


cdef int claim_send(section_t* section, claiming_t* claiming, heap_wait_t wait) noexcept nogil:
    cdef uint64_t block_off = 0
    cdef int status = _send_once(section, claiming, &block_off, wait)
    if status != WOULD_BLOCK and not is_out_of_space(status):
        return status
    if wait == DO_NOT_WAIT:
        return WOULD_BLOCK
    status = heap_allocate(section, sizeof(claim_t), 16, 0, HEAP_PENDING | (HEAP_STOP if wait == WAIT_A_SLICE else 0), &block_off)
    if status == OK:
        status = _send_once(section, claiming, &block_off, wait)
    if block_off != 0:           # not used: the array has a name or is gone meanwhile
        heap_abandon(section, block_off)
    return status


# -- ending -----------------------------------------------------------------------------------------------

cdef int _end(section_t* section, uint64_t claim_off) noexcept nogil:
    """End a claim, and the array that nothing else keeps."""
    cdef claim_t* claim = claim_at(section, claim_off)
    cdef uint64_t target_off = claim.target_off, serial = claim.serial
    cdef int status = _take_out(section, claim_off)
    if status != OK:
        status = heap_recover(section, NO_PARTICIPANT)
        if status != OK or claim_at(section, claim_off) == NULL:     # it has expired
            return status
        status = _take_out(section, claim_off)
    if status == OK:
        status = heap_release(section, claim_off)                                                   # commit
    if status != OK or not claim_target_is_right(section, target_off, serial) or claims_of(section, target_off) != 0:
        return status
    if block_is_unreachable(section, target_off) and not block_is_pinned(section, target_off, False, True):
        status = heap_release_with_pins(section, target_off)
    return status


cdef bint _is_meant(const claim_t* claim, const which_t* which) noexcept nogil:
    cdef uint64_t age_ns = which.now - claim.made_at if which.now > claim.made_at else 0
    if which.target_off != 0:
        return claim.target_off == which.target_off and (claim.serial ^ which.serial) & SERIAL_MASK == 0
    return (_has_expired(claim, which.now) or age_ns >= which.age_ns
            or (claim.sender == 0 and age_ns >= which.age_without_sender_ns))


cdef int _end_some(section_t* section, const which_t* which, uint64_t* n_ended) noexcept nogil:
    """End the claims that are meant: OK, or CORRUPTED if the list is damaged, or was built anew meanwhile."""
    cdef uint64_t off = section.header.claims_off, n_left = section.header.n_claims, next_off
    cdef claim_t* claim
    cdef int status = OK
    while off != 0 and n_left != 0 and status == OK:
        if damaged(not claim_is_listed(section, off)):
            return CORRUPTED
        claim = claim_at(section, off)
        next_off = claim.next_off
        if _is_meant(claim, which):
            status = _end(section, off)
            n_ended[0] += 1
        off = next_off
        n_left -= 1
    return CORRUPTED if status == OK and (off != 0) != (n_left != 0) else status


cdef int _end_those(section_t* section, which_t* which, uint64_t* n_ended) noexcept nogil:
    cdef int status
    which.now = boot_ns()
    n_ended[0] = 0
    status = _end_some(section, which, n_ended)
    if status == CORRUPTED and heap_recover(section, NO_PARTICIPANT) == OK:
        status = _end_some(section, which, n_ended)
    return status


cdef int claim_drop(section_t* section, uint64_t claim_off, uint64_t claim_serial, heap_wait_t wait) noexcept nogil:
    cdef int status = heap_enter(section, wait)
    if status != OK:
        return status
    if (section.header.broken == 0 and claim_serial != 0 and claim_at(section, claim_off) != NULL
            and not block_is_stale(block_at(section, payload_to_block(claim_off)), claim_serial)):
        status = _end(section, claim_off)
    heap_leave(section)
    return status


cdef int claims_forget(section_t* section, uint64_t target_off, uint64_t serial, uint64_t block_bytes) noexcept nogil:
    cdef which_t which
    cdef uint64_t n_ended = 0
    memset(&which, 0, sizeof(which_t))
    which.target_off, which.serial = target_off, serial
    section.header.claimed_bytes -= block_bytes
    return _end_those(section, &which, &n_ended)


cdef bint claims_make_room(section_t* section) noexcept nogil:
    cdef which_t which
    cdef uint64_t n_ended = 0
    if section.header.n_claims == 0:
        return False
    memset(&which, 0, sizeof(which_t))
    which.age_ns = which.age_without_sender_ns = NO_AGE
    if _end_those(section, &which, &n_ended) == OK and n_ended == 0:
        which.age_without_sender_ns = CLAIM_AGED_NS
        _end_those(section, &which, &n_ended)
    return n_ended != 0


cdef int claims_sweep(section_t* section, uint64_t age_ns, heap_wait_t wait, uint64_t* n_bytes) noexcept nogil:
    cdef which_t which
    cdef uint64_t n_ended = 0, used_bytes
    cdef int status = heap_enter_to_change(section, wait)
    n_bytes[0] = 0
    if status != OK:
        return status
    used_bytes = section.header.used_bytes
    memset(&which, 0, sizeof(which_t))
    which.age_ns, which.age_without_sender_ns = age_ns, NO_AGE
    status = _end_those(section, &which, &n_ended)
    if status == OK and section.header.used_bytes < used_bytes:
        n_bytes[0] = used_bytes - section.header.used_bytes
    heap_leave(section)
    return status


# -- senders that go --------------------------------------------------------------------------------------

cdef int _erase_sender(section_t* section, uint32_t index, uint64_t expires_at) noexcept nogil:
    """Erase a participant in the claims that it has sent; with `expires_at`, set the end of those that have none."""
    cdef uint64_t off = section.header.claims_off, n_left = section.header.n_claims
    cdef claim_t* claim
    while off != 0 and n_left != 0:
        if damaged(not claim_is_listed(section, off)):
            return CORRUPTED
        claim = claim_at(section, off)
        if claim.sender != 0 and owner_index(claim.sender) == index:
            if expires_at != 0 and claim.expires_at == 0:
                claim.expires_at = expires_at
            store_release_u64(&claim.sender, 0)                                                     # commit
        off = claim.next_off
        n_left -= 1
    section.participants[index].claims = 0
    return OK


cdef void claims_orphan(section_t* section, uint32_t index) noexcept nogil:
    if section.participants[index].claims != 0:
        _erase_sender(section, index, boot_ns() + CLAIM_ORPHAN_NS)


cdef void claims_leave(section_t* section) noexcept nogil:
    """Erase this process as a sender.  If the gate is not to be had for a second, its claims end as those of a killed sender."""
    cdef uint32_t slices_left = MOST_SLICES
    if section.private.index_plus_1 == 0 or section.header.broken:
        return
    while my_entry(section).claims != 0 and slices_left:
        slices_left -= 1
        if heap_enter(section, WAIT_A_SLICE) == OK:
            if section.header.broken == 0 and _erase_sender(section, section.private.index_plus_1 - 1, 0) != OK:
                heap_recover(section, NO_PARTICIPANT)        # once more, with the list built anew
            heap_leave(section)


cdef uint64_t claims_end(section_t* section) noexcept nogil:
    cdef uint64_t off = section.header.claims_off, n_left = section.header.n_claims, last = 0, end
    cdef claim_t* claim
    while off != 0 and n_left != 0 and claim_is_listed(section, off):
        claim = claim_at(section, off)
        end = claim.expires_at if claim.expires_at != 0 else claim.made_at + CLAIM_ORPHAN_NS
        if end > last:
            last = end
        off = claim.next_off
        n_left -= 1
    return last
