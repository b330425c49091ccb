# cython: language_level=3
"""Status numbers: 0 is success, a negative number is the library's own and never changes, a positive number is an errno.

`shmem.Status` has the same numbers for users; a test verifies that the two agree.
"""

cdef enum Status:
    OK = 0
    TIMEOUT_EXPIRED = -1
    DEADLOCK = -2
    OWNER_DIED = -3
    NO_MEMORY = -4
    CORRUPTED = -5
    NOT_A_SECTION = -6
    LAYOUT_MISMATCH = -7
    ADDRESS_IN_USE = -8
    TOO_MANY_PARTICIPANTS = -9
    INVALID_BLOCK = -10
    ALREADY_FREED = -11
    NAME_EXISTS = -12
    CLOSED = -13
    PINNED = -14
    READ_ONLY = -15
    NOT_OWNER = -16
    LABEL_MISMATCH = -17
    UNTRUSTED_OWNER = -18
    UNSUPPORTED_FILE_SYSTEM = -19
    TOO_MANY_THREADS = -20
    VALUE_OVERFLOW = -21
    QUEUE_FULL = -22
    QUEUE_EMPTY = -23
    QUEUE_CLOSED = -24
    # never leave the core
    WOULD_BLOCK = -100
    INTERRUPTED = -101
    NOT_FOUND = -102
    NEEDS_BACKING = -103
    CHANGED = -104               # the name leads to another object by now
    NOT_GROWABLE = -105
    BEYOND_MAXIMUM = -106
    SEALED = -107
    SHARED = -108                # more than this name leads to the array
    NOT_A_GROUP = -109           # a component of a path leads to another object
    TABLE_FULL = -110
    ATTRIBUTES_CHANGED = -111    # of a block that is about to move
    IS_A_GROUP = -112
