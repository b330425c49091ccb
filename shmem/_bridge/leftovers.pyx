# cython: language_level=3
"""Leftovers: sections with generated names whose processes were all killed.  No process will open them again, so they are removed.

They are looked for when this process creates its first such section, again after each fork, and before a lack of space is reported,
because they may be what fills the file system.
"""

import os

from shmem._base.system_tools import section_path

from libc.errno cimport EDQUOT, ENOSPC
from libc.stdint cimport uint64_t

from shmem._base.system cimport process_id
from shmem._sections.opening cimport section_remove_abandoned
from shmem._sections.process cimport process_fork_count

GENERATED = "anonymous-"                     # prefix of generated names

cdef uint64_t _looked_in_process = 0         # where and when this process, or the one that forked it, looked last
cdef uint64_t _looked_after_forks = 0


cdef int remove_leftovers() except -1:
    """Remove all leftovers of this user; return how many there were."""
    global _looked_in_process, _looked_after_forks
    cdef bytes path
    cdef const char* place
    cdef bint removed
    cdef int n_removed = 0
    _looked_in_process = process_id()
    _looked_after_forks = process_fork_count()
    folder, prefix = os.path.split(section_path(GENERATED))
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    for name in names:
        if name.startswith(prefix):
            path = os.fsencode(f"{folder}/{name}")
            place = path
            with nogil:
                removed = section_remove_abandoned(place)
            n_removed += removed
    return n_removed


cdef int remove_leftovers_once() except -1:
    """Remove the leftovers, unless this process has done so since it was forked and since it forked last."""
    if _looked_in_process != process_id() or _looked_after_forks != process_fork_count():
        remove_leftovers()
    return 0


cdef bint made_room(int status) except -1:
    """Return whether a call that failed for lack of space may succeed now, because leftovers were removed."""
    return (status == ENOSPC or status == EDQUOT) and remove_leftovers() != 0
