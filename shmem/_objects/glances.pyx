# cython: language_level=3
"""What a section shows of itself: glances at a group's names and at what they lead to.

A glance opens and pins nothing, and copies a bounded part of a table.  Each step of it waits a slice at most, since the process that keeps
the heap gate may be stopped; after a step that has waited in vain, the caller stops looking.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from shmem._base.accessors cimport payload_to_block, tag_size, tag_type
from shmem._base.layout cimport TYPE_ARRAY, TYPE_EVENT, TYPE_GROUP, TYPE_LAST_USER, TYPE_MUTEX, TYPE_PLAIN, TYPE_QUEUE, TYPE_SEMAPHORE
from shmem._base.section cimport block_at, section_t
from shmem._base.status cimport INTERRUPTED, NOT_A_GROUP, NOT_FOUND, OK
from shmem._bridge.calls cimport run_step
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.heap cimport WAIT_A_SLICE, heap_check_users_block, heap_enter, heap_leave
from shmem._heap.name_paths cimport group_at
from shmem._objects.directory cimport call_for_group, copy_step, count_step, make_room, name_call_t, take_copied

cdef enum:
    PIECES_AT_MOST = 64                   # of a table that is glanced at
    LISTED_BEFORE_CUT = 1000              # names, of which the oldest are shown
    SEEN_AT_ONCE = 64                     # blocks that are looked at in one hold of the gate

BUSY, DAMAGED, GONE = "busy", "damaged", "gone"
KINDS = {TYPE_PLAIN: "block", TYPE_ARRAY: "array", TYPE_SEMAPHORE: "semaphore", TYPE_EVENT: "event", TYPE_MUTEX: "mutex",
         TYPE_QUEUE: "queue", TYPE_GROUP: "group"}

ctypedef struct seen_t:
    uint64_t payload_off
    uint64_t serial
    uint64_t tag                          # of the block, 0 if it was freed

ctypedef struct glance_t:
    seen_t seen[SEEN_AT_ONCE]
    int n


class Glance:
    """What a glance found.

    Attributes
    ----------
    n_names : int
        Of the group.
    problem : str or None
        BUSY: another process keeps the heap gate.  DAMAGED: the table is.  GONE: there is no such group.  There may be more names then.
    names : list of str
    objects : list of tuple
        (name, kind, bytes), see `at_objects`.
    """

    __slots__ = ("n_names", "names", "objects", "problem")

    def __init__(self):
        self.n_names, self.problem, self.names, self.objects = 0, None, [], []


cdef str _problem(int status):
    if status == OK:
        return None
    return BUSY if status == INTERRUPTED else GONE if status in (NOT_FOUND, NOT_A_GROUP) else DAMAGED


cdef list _some_entries(Mapping mapping, name_call_t* call, size_t most, glance):
    """Return (value, serial, name, data) of entries in the order of their creation.

    They are all if there are fewer than `most` and the table is not much larger, otherwise some.
    """
    cdef dict found = {}
    cdef int pieces_left = PIECES_AT_MOST, status = OK
    try:
        while not call.listing.is_over and pieces_left and <size_t>len(found) < most:
            pieces_left -= 1
            if call.listing.needed_bytes or call.copied == NULL:
                make_room(call)
            status = run_step(mapping.section, copy_step, call)
            if status != OK:
                glance.problem = _problem(status)
                break
            take_copied(call, found, False)
    finally:
        free(call.copied)
        call.copied = NULL
    return [entry[1:] for entry in sorted(found.values())]


cdef list _glance(Mapping mapping, str path, size_t most, glance):
    """Fill in `n_names`, `names` and `problem`; return entries as `_some_entries` does."""
    cdef name_call_t call
    cdef bytes encoded = path.encode()
    cdef list entries = []
    call_for_group(&call, mapping.section, encoded)
    cdef int status = run_step(mapping.section, count_step, &call)
    glance.problem = _problem(status)
    if status == OK and most:
        entries = _some_entries(mapping, &call, most, glance)
    glance.names = [name.decode("utf-8", "replace") for _, _, name, _ in entries]
    glance.n_names = max(<size_t>call.n_names, <size_t>len(entries))
    return entries


def at_names(Memory memory not None, str path, size_t most):
    """Return a `Glance` at a group's names in the order of their creation: all, if there are fewer than `most`, otherwise some.

    The directory has the path "".
    """
    glance = Glance()
    _glance(memory.opened(), path, most, glance)
    return glance


# -- what names lead to ------------------------------------------------------------------------------------------

cdef int _see_step(section_t* section, void* request) noexcept nogil:
    cdef glance_t* glance = <glance_t*>request
    cdef seen_t* seen
    cdef int i, status = heap_enter(section, WAIT_A_SLICE)
    if status != OK:
        return status
    for i in range(glance.n):
        seen = &glance.seen[i]
        seen.tag = 0
        if seen.serial != 0 and (heap_check_users_block(section, seen.payload_off, seen.serial) == OK
                                 or group_at(section, seen.payload_off, seen.serial) != NULL):
            seen.tag = block_at(section, payload_to_block(seen.payload_off)).tag
    heap_leave(section)
    return OK


cdef dict _type_names(Mapping mapping):
    """Return the names of Struct classes by type id."""
    cdef name_call_t call
    memset(&call, 0, sizeof(call))
    call.anchor = &mapping.section.header.types_off
    return {value: name for value, _, name, _ in _some_entries(mapping, &call, TYPE_LAST_USER, Glance())}


cdef str _kind(uint64_t tag, dict types):
    cdef uint32_t type_id = tag_type(tag)
    if tag == 0:
        return "freed"
    name = types.get(type_id)
    return name.decode("utf-8", "replace") if name is not None else KINDS.get(type_id, f"type {type_id}")


def at_objects(Memory memory not None, str path, size_t most):
    """Return a `Glance` at the first names of a group, at most `most` of them, and what they lead to.

    The kind is "array", "queue", "group" and so on, or the type name of a Struct class.  It is "freed" with 0 bytes for a name that leads
    to an object that was freed.  The bytes are those of the block, tags included.
    """
    cdef Mapping mapping = memory.opened()
    cdef glance_t look
    cdef int i, status
    cdef size_t begin
    glance = Glance()
    entries = _glance(mapping, path, max(most, <size_t>LISTED_BEFORE_CUT), glance)[:most]
    types = _type_names(mapping) if entries else {}
    for begin in range(0, len(entries), SEEN_AT_ONCE):
        some = entries[begin:begin + SEEN_AT_ONCE]
        look.n = len(some)
        for i in range(look.n):
            look.seen[i].payload_off, look.seen[i].serial = some[i][0], some[i][1]
        status = run_step(mapping.section, _see_step, &look)
        if status != OK:
            glance.problem = _problem(status)
            break
        glance.objects += [(some[i][2].decode("utf-8", "replace"), _kind(look.seen[i].tag, types), tag_size(look.seen[i].tag))
                           for i in range(look.n)]
    return glance
