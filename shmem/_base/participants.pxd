# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t
from shmem._atomics cimport load_acquire_u32
from shmem._base.layout cimport participant_t
from shmem._base.owner cimport owner_generation
from shmem._base.section cimport section_t

cdef enum:                                   # of `participant_t.attached`
    ATTACHED_NEW = 2                         # taken; what its former owner left is still there
    ATTACHED_RESTS = 3                       # left at exit: its process only has views, and keeps its pins until it ends

cdef enum:
    OPENING_BYTE = 0x2000000000000000        # far past the end of any file; held while opening or closing
    LIVENESS_BYTE = 0x2000000000000001       # plus the index: held while the participant lives
    GUEST_BYTE = 0x200000000000ffff          # behind the last of them: held shared while a process, or a child of one, has the file mapped
    N_LIVENESS_BYTES = 65535                 # of participants, and this one
    NAMING_BYTE = 0x3000000000000000         # plus NAMING_BITS bits of a name's hash: held while its value is made
    NAMING_BITS = 60

ctypedef struct opening_t:                   # how this thread holds the opening byte
    int fd                                   # a description of its own, closed to release the byte; -1: not held
    bint as_process                          # `fd` is the section's own descriptor, and the lock belongs to the process

cdef bint owner_is_alive(section_t* section, uint64_t word) noexcept nogil
cdef bint participant_entry_is_alive(section_t* section, uint32_t index) noexcept nogil
cdef int section_descriptor(section_t* section) noexcept nogil
cdef void section_close_descriptor(section_t* section, int fd) noexcept nogil
cdef int section_reopen(section_t* section, int fd, int* new_fd) noexcept nogil
cdef int opening_try(int fd, const char* path, opening_t* opening) noexcept nogil
cdef int section_opening_try(section_t* section, int fd, bint always, opening_t* opening) noexcept nogil
cdef void opening_release(opening_t* opening) noexcept nogil
cdef void participant_drop_liveness(section_t* section, void* page, int kept_fd) noexcept nogil
cdef void participant_drop_my_liveness(section_t* section) noexcept nogil
cdef int guest_take(section_t* section) noexcept nogil
cdef void guest_drop(section_t* section) noexcept nogil
cdef bint guest_is_held(section_t* section) noexcept nogil
cdef bint guests_are_alive(section_t* section) noexcept nogil
cdef bint participants_any_alive(section_t* section) noexcept nogil
cdef bint participants_any_active(section_t* section, bint* any_rests) noexcept nogil
cdef int participant_take(section_t* section, bint inherit, uint32_t* index, uint64_t* former_readers,
                          void** page, int* kept_fd) noexcept nogil


cdef inline bint is_guest(section_t* section) noexcept nogil:
    """Return whether this process holds the guests' byte: it, or an ancestor, has joined, and it has not left."""
    return section.guest_page != NULL or section.guest_fd >= 0


cdef inline participant_t* my_entry(section_t* section) noexcept nogil:
    """Return the entry of this process, which must be attached."""
    return &section.participants[section.private.index_plus_1 - 1]


cdef inline bint participant_rests(section_t* section, uint32_t index) noexcept nogil:
    """Return whether the owner of an entry has left the section at exit, and keeps the entry for its views until it ends."""
    return load_acquire_u32(&section.participants[index].attached) == ATTACHED_RESTS


cdef inline bint participant_left_something(section_t* section, uint32_t index) noexcept nogil:
    """Return whether the owner of an entry left something in the heap: blocks being made, pins, claims, an intent."""
    return (section.participants[index].pending != 0 or section.participants[index].pins != 0
            or section.participants[index].claims != 0 or section.intents[index].operation != 0)


cdef inline uint32_t participant_generation(section_t* section, uint32_t index) noexcept nogil:
    return owner_generation(section.participants[index].readers)
