# cython: language_level=3
"""Intents: an operation that changes two places first records the change that it is about to make.

A participant writes its record under the heap gate, `operation` last, and clears `operation` at the end.  If it dies in
between, the process that recovers the heap finishes the change or undoes it; each step can be repeated.

SWAP_SLOT   the deciding store is `*slot = value`, to an 8-byte word of the section.  If it was made, the PENDING blocks `make_off`
            become USED with the types in `operation`, and the USED blocks `drop_off` become holes.  If not, nothing has changed,
            and the PENDING blocks become holes.
MOVE        the same for a block that moves: `slot` is the old block's tag.  If the old block was the root, the new block becomes the root.
RESIZE      the deciding store is that of the block's tag in `slot`.  If it was made, the word next to the tag, with serial and slack,
            becomes `make_off[0]`, else `drop_off[0]`.  If it was made, the bytes from `drop_off[1]` up to
            `make_off[1]` are cleared.
SWAP_TWO    as SWAP_SLOT with one block each: `make_off[0]` is made, and `drop_off[0]` is dropped.  If the store into `slot` was made, the
            word at `slot2_off` becomes `make_off[1]`, which is a number and not a block.  If `*slot` had `value` already, the second store
            may be made although the process was killed before the first: it must be right by itself.
SHRINK      as RESIZE, except that if the store was not made, the two words at the cut are still payload: they are restored to
            `drop_off[1]` and `make_off[1]`.  (They were overwritten by the new rear tag and the front tag of the remainder.)
"""

from libc.stdint cimport uint64_t
from shmem._atomics cimport store_release_u64
from shmem._base.layout cimport INTENT_FIRST_TYPE_SHIFT, INTENT_NONE, INTENT_SWAP_TWO, intent_t
from shmem._base.section cimport section_t


cdef inline intent_t* my_intent(section_t* section) noexcept nogil:
    return &section.intents[section.private.index_plus_1 - 1]


cdef inline void intent_begin(intent_t* intent, uint64_t operation, uint64_t slot_off, uint64_t value,
                              uint64_t make_0, uint64_t make_1, uint64_t drop_0, uint64_t drop_1) noexcept nogil:
    intent.slot_off = slot_off
    intent.value = value
    intent.make_off[0] = make_0
    intent.make_off[1] = make_1
    intent.drop_off[0] = drop_0
    intent.drop_off[1] = drop_1
    store_release_u64(&intent.operation, operation)      # partner: the take-over of the heap gate


cdef inline void intent_begin_two(intent_t* intent, uint64_t type_id, uint64_t slot_off, uint64_t value, uint64_t slot2_off,
                                  uint64_t value_2, uint64_t make_off, uint64_t drop_off) noexcept nogil:
    """Begin a change of two words; the block to make, if any, gets this type."""
    intent.slot2_off = slot2_off
    intent_begin(intent, INTENT_SWAP_TWO | type_id << INTENT_FIRST_TYPE_SHIFT, slot_off, value, make_off, value_2, drop_off, 0)


cdef inline void intent_end(intent_t* intent) noexcept nogil:
    store_release_u64(&intent.operation, INTENT_NONE)
