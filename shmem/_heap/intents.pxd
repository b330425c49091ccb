# cython: language_level=3
"""Intents: what must change two places says first what it is about to do.

A participant's record is written under the heap gate, `operation` last, and cleared last.  If its owner dies in
between, the process that recovers the heap finishes the change or leaves it undone; each step can be repeated.

SWAP_SLOT   the one store that decides is `*slot = value`, some 8-byte word of the section.  If it was
            made: the PENDING blocks `make_off` become USED with the types in `operation`, the USED blocks
            `drop_off` become holes.  If not: nothing happened, and blocks that are PENDING become holes.
MOVE        the same for a block that moves: `slot` is the old one's tag.  A root that was the old block becomes the new one.
RESIZE      the store that decides is the block's tag in `slot`.  If it was made, the word beside it becomes
            `make_off[0]`, else `drop_off[0]`: serial and slack, new and old.  If it was made, what lies from `drop_off[1]` up to
            `make_off[1]` is cleared.
SHRINK      the same, but: if it was not made, the two words at the cut, new rear tag and front tag of the remainder, were
            payload still, and become `drop_off[1]` and `make_off[1]`.
"""

from libc.stdint cimport uint64_t
from shmem._atomics cimport store_release_u64
from shmem._base.layout cimport INTENT_NONE, intent_t
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


cdef inline void intent_end(intent_t* intent) noexcept nogil:
    store_release_u64(&intent.operation, INTENT_NONE)
