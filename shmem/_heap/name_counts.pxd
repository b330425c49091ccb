# cython: language_level=3
"""How many names of the directory lead to a block: an index of the directory, kept with each block.

An array counts its names exactly, in its header.  Every other block has two bits in its serial word, which tell 0, 1 and 2, and "three or
more".  When one name of three or more is removed, the others are counted by a walk over all blocks, which holds the gate for as long as
that takes.  A name counts while its entry has the block's offset and serial.  Every change is
made under the heap gate, beside the change of the slot, and recovery counts anew.  While the gate is free, the counts are therefore right.
"""

from libc.stdint cimport uint32_t, uint64_t
from shmem._base.layout cimport name_entry_t
from shmem._base.section cimport section_t

# All calls are made under the gate, for a used block.  How many names lead to the block; 3 means three or more, unless it is an array.
cdef uint32_t names_of(section_t* section, uint64_t payload_off) noexcept nogil
# A name was given to the block.  From now on the block ends under the gate only.
cdef void names_add(section_t* section, uint64_t payload_off) noexcept nogil
# A name of the block was removed from its slot; its entry is still a block in use.
cdef void names_drop(section_t* section, uint64_t payload_off) noexcept nogil
# Whether an entry of the directory leads to the block that it was made for, and that is in use.
cdef bint entry_leads_to_block(section_t* section, const name_entry_t* entry) noexcept nogil
# A table, an entry or a group is about to be freed: `name_blocks` counts it no more.
cdef void name_block_gone(section_t* section) noexcept nogil
# The next group of the chain, from the block at `off` on, which moves behind it; 0 if there is none.
cdef uint64_t group_next(section_t* section, uint64_t* off) noexcept nogil
# Count all names, and all slots of the tables of names, and list the groups without a name, after the chain was found to be whole.
cdef void names_recount(section_t* section) noexcept nogil
