# cython: language_level=3
"""What an `Entry` does with its name: its version, waiting for another one, another name.  Calls of `name_versions` and `name_changes`."""

import operator

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t
from libc.string cimport memset

from shmem._base import errors

from shmem._base.section cimport section_t
from shmem._base.status cimport INTERRUPTED, NAME_EXISTS, NOT_A_GROUP, NOT_FOUND, TIMEOUT_EXPIRED
from shmem._bridge.calls cimport deadline_argument, run_step, run_steps
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._heap.heap cimport WAIT_A_SLICE
from shmem._heap.name_changes cimport renaming_t, table_rename
from shmem._heap.name_paths cimport path_make
from shmem._heap.name_slots cimport name_t
from shmem._heap.name_versions cimport name_wait_t, version_of, version_touch, version_wait
from shmem._objects.directory cimport check_found, make_groups, name_bytes, refuse_path

ctypedef struct version_call_t:
    uint64_t* anchor                     # arguments
    name_t name
    uint64_t value                       # results
    uint64_t version

ctypedef struct rename_call_t:
    uint64_t* anchor
    renaming_t names


cdef int _version_step(section_t* section, void* request) noexcept nogil:
    cdef version_call_t* call = <version_call_t*>request
    return version_of(section, call.anchor, &call.name, &call.value, &call.version, WAIT_A_SLICE)


cdef int _touch_step(section_t* section, void* request) noexcept nogil:
    cdef version_call_t* call = <version_call_t*>request
    return version_touch(section, call.anchor, &call.name, &call.version, WAIT_A_SLICE)


cdef int _wait_step(section_t* section, void* request) noexcept nogil:
    return version_wait(section, <name_wait_t*>request)


cdef int _rename_step(section_t* section, void* request) noexcept nogil:
    cdef rename_call_t* call = <rename_call_t*>request
    return table_rename(section, call.anchor, &call.names, WAIT_A_SLICE)


def version(Memory memory, str name):
    """Return the version of a name."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = name_bytes(name)
    cdef version_call_t call
    call.anchor = &mapping.section.header.directory_off
    call.name = path_make(encoded, <uint64_t>len(encoded))
    check_found(run_steps(mapping.section, _version_step, &call), mapping, name, f"look at {name!r}")
    return call.version


def touch(Memory memory, str name):
    """Give a name a new version, and return it."""
    cdef Mapping mapping = memory.writable_mapping(f"touch {name!r}")
    cdef bytes encoded = name_bytes(name)
    cdef version_call_t call
    call.anchor = &mapping.section.header.directory_off
    call.name = path_make(encoded, <uint64_t>len(encoded))
    check_found(run_steps(mapping.section, _touch_step, &call), mapping, name, f"touch {name!r}")
    return call.version


def wait_changed(Memory memory, str name, since, timeout):
    """Wait until a name has another version than `since`, and return that; None when the time has passed."""
    cdef Mapping mapping = memory.opened()
    cdef bytes encoded = name_bytes(name)
    cdef name_wait_t call
    cdef int status
    memset(&call, 0, sizeof(call))
    call.anchor = &mapping.section.header.directory_off
    call.name = path_make(encoded, <uint64_t>len(encoded))
    if since is not None:
        number = operator.index(since)
        if not 0 <= number < 1 << 64:
            raise ValueError(f"since must be a version, or None, got {number}")
        call.since, call.has_since = number, True
    call.deadline_ns = deadline_argument(timeout)
    status = run_step(mapping.section, _wait_step, &call)
    while status == INTERRUPTED:
        PyErr_CheckSignals()
        memory.opened()                  # another thread may have closed it
        status = run_step(mapping.section, _wait_step, &call)
    if status == TIMEOUT_EXPIRED:
        return None
    check_found(status, mapping, name, f"wait for a change of {name!r}")
    return call.version


def rename(Memory memory, str name, new_name):
    """Rename an object or a group."""
    cdef str what = f"rename {name!r} to {new_name!r}"
    cdef Mapping mapping = memory.writable_mapping(what)
    cdef bytes encoded = name_bytes(name), new_encoded = name_bytes(new_name)
    cdef rename_call_t call
    cdef int status
    if new_encoded == encoded:
        version(memory, name)            # it is there
        return
    if new_encoded.startswith(encoded + b"/"):
        raise ValueError(f"cannot {what}: that would be inside of itself")
    memset(&call, 0, sizeof(call))
    call.anchor = &mapping.section.header.directory_off
    call.names.former = path_make(encoded, <uint64_t>len(encoded))
    call.names.name = path_make(new_encoded, <uint64_t>len(new_encoded))
    status = run_steps(mapping.section, _rename_step, &call)
    while status == NOT_FOUND and call.names.is_of_path:
        make_groups(mapping, new_encoded, what, False)
        status = run_steps(mapping.section, _rename_step, &call)
    if status == NOT_A_GROUP and call.names.is_of_path:
        refuse_path(mapping, new_encoded, what)
    if status == NAME_EXISTS:
        raise errors.NameExists(f"cannot {what}: the name {new_name!r} is taken; delete it first, or use replace")
    check_found(status, mapping, name, what)
