"""From a status to an exception that says what was asked, what was found, and what to do."""

import errno
import os

from shmem._base import errors as _errors
from shmem._base.errors import Status
from shmem._base.layout import MAX_THREADS, PAGE_BYTES
from shmem._base.system_tools import describe_file_system, free_bytes_at

_PLAIN = {
    Status.timeout_expired: (_errors.LockTimeout, "{what}: not obtained in time; {holder}"),
    Status.deadlock: (
        _errors.DeadlockError,
        "{what}: another holder of the shared lock is upgrading already, and each would wait for the other's share; "
        "release the shared lock, then take it exclusive",
    ),
    Status.corrupted: (
        _errors.HeapCorruption,
        "{what}: the heap of {section} is damaged; check_heap() reports where. A process wrote past the end of a block, "
        "or the machine lost power. What can be reached can still be read",
    ),
    Status.too_many_participants: (
        _errors.TooManyParticipants,
        "{what}: all entries of the table of participants of {section} belong to live processes; "
        "max_participants is chosen when a section is created",
    ),
    Status.invalid_block: (_errors.InvalidBlock, "{what}: no allocated block of {section} begins there"),
    Status.already_freed: (_errors.InvalidBlock, "{what}: that block of {section} was freed already"),
    Status.pinned: (
        _errors.InvalidBlock,
        "{what}: another process has a view of this array in {section}; it is freed when the last view goes if its name is deleted instead",
    ),
    Status.closed: (_errors.ClosedError, "{what}: {section} is closed"),
    Status.read_only: (_errors.ReadOnlyError, '{what}: {section} was opened with mode="read_only"'),
    Status.not_owner: (_errors.LockError, "{what}: this thread does not hold the lock"),
    Status.too_many_threads: (
        _errors.LockError,
        f"{{what}}: {MAX_THREADS} threads of this process use {{section}} at the same time; that is the limit",
    ),
}

_LIMITS = {
    errno.EFBIG: " for this process (RLIMIT_FSIZE, `ulimit -f`) or the file system",
    errno.ENOMEM: ": no address space is left for it in this process (RLIMIT_AS, `ulimit -v`), or no memory in the machine",
    errno.ENOSYS: ": /proc is not mounted here, and the system offers no other way",
}
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _with_status(error, status, **attributes):
    error.status = int(status)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def _free_bytes(path):
    found = free_bytes_at(path)
    return "an unknown number of" if found is None else f"{found:,}"


def _limit_text(status):
    """The system's words, and which limit of the process may be meant by them."""
    return os.strerror(status) + _LIMITS.get(status, "")


def explain(status, what, facts):
    """The exception for a status that came back from an open section.

    Parameters
    ----------
    status : int
    what : str
        What was asked, as "allocate 100 bytes".
    facts : dict
        ``section`` (how to call it), ``path``, ``room`` (bytes above `top` and in holes), ``max_size``, ``holder``.
    """
    if status == Status.no_memory:
        return _with_status(
            _errors.SectionFull(
                f"{what}: {facts['section']} has {facts['room']:,} of its {facts['max_size']:,} bytes free, "
                "not in one piece of that size; free something, or open it first with a larger max_size"
            ),
            status,
        )
    if status in _OUT_OF_SPACE:
        return _with_status(
            _errors.SectionFull(
                f"{what}: {_limit_text(status)}; {describe_file_system(facts['path'])}, which holds {facts['section']}, "
                f"has {_free_bytes(facts['path'])} bytes free"
            ),
            status,
        )
    if status in _PLAIN:
        cls, text = _PLAIN[status]
        return _with_status(cls(text.format(what=what, **facts)), status)
    error = _errors.OperatingSystemError(f"{what}: {_errors.get_error_text(status)}{_LIMITS.get(status, '')} ({facts['section']})")
    error.errno = status
    return _with_status(error, status)


def _refusal(status, path, shared_name, request):
    """Class and text of the exception for what this library itself does not open; None if it was the system that refused."""
    found, wanted = request["found"], request["wanted"]
    if status == Status.not_a_section:
        if wanted > found:
            return _errors.NotASection, f"it is cut off: {wanted:,} bytes are in use, the file has {found:,}; it was left as it was"
        return _errors.NotASection, "it is no shmem section, or its header is damaged; it was left as it was"
    if status == Status.layout_mismatch:
        text = f"the section has layout version {found}, this library another; open it with the one that made it"
        return _errors.LayoutMismatch, text
    if status == Status.label_mismatch:
        return _errors.NotASection, f"the section carries the shared name {request['found_label']!r}, not {shared_name!r}"
    if status == Status.untrusted_owner:
        text = f"it belongs to user {found}, this process runs as {os.geteuid()}; trust_owner=True accepts that"
        return _errors.UntrustedOwner, text
    if status == errno.ELOOP:
        return _errors.UntrustedOwner, "a symbolic link that belongs to another user is not followed"
    if status == Status.address_in_use:
        text = f"address {wanted:#x} is not free in this process" if wanted else f"the section was created for address {found:#x}"
        return _errors.AddressInUse, text
    if status == Status.too_many_participants:
        return _errors.TooManyParticipants, "every entry of its table of participants belongs to a live process"
    if status == Status.unsupported_file_system:
        where = f"on {describe_file_system(path)} mappings or locks are not coherent between processes"
        return _errors.OperatingSystemError, f"{where}; use a local file system or an anonymous section"
    if status in _OUT_OF_SPACE or status == errno.ENOMEM:
        room = f"{describe_file_system(path)} has {_free_bytes(path)} bytes free, max_size is {request['max_size']:,}"
        return _errors.SectionFull, f"{_limit_text(status)}; {room}"
    return None


def explain_opening(status, path, shared_name, request):
    """The exception for a section that could not be opened.

    `request` has what was found: ``found``, ``wanted``, ``found_label``, ``max_size``, ``max_participants``.
    """
    what = f"open {path!r}"
    refusal = _refusal(status, path, shared_name, request)
    if refusal is not None:
        cls, text = refusal
        return _with_status(cls(f"{what}: {text}"), status)
    if status == errno.ENOENT:
        cls, text = _errors.SectionNotFound, "there is no such section; give max_size to create it"
    else:
        cls = _errors.ReadOnlyError if status in (errno.EACCES, errno.EPERM, errno.EROFS) else _errors.OperatingSystemError
        text = _errors.get_error_text(status) + _LIMITS.get(status, "")
    return _with_status(cls(f"{what}: {text}"), status, errno=status, filename=path)


def explain_named(status, kind, path, user):
    """The exception for a named semaphore or event that could not be opened or removed.

    `user` is whom it belongs to, where that is what is wrong.
    """
    what = f"open {path!r}"
    if status == errno.ENOENT:
        return _with_status(
            _errors.SectionNotFound(f"{path!r}: there is no such {kind} any more; another one may have its name"),
            status,
            errno=status,
            filename=path,
        )
    if status == Status.not_a_section:
        return _with_status(
            _errors.NotASection(
                f"{what}: what has this name is no {kind} of this library's version; it was left as it was: "
                "remove it, or choose another name"
            ),
            status,
        )
    return explain_opening(status, path, None, {"found": user, "wanted": 0, "max_size": PAGE_BYTES})


def explain_problem(problem, section, facts):
    """Return the exception for a problem that `check_heap` found.

    `problem` is its text; `facts` has ``bad_off``, ``expected`` and ``found``.
    """
    offset = facts["bad_off"]
    return _with_status(
        _errors.HeapCorruption(f"{section}, offset {offset:#x}: {problem} (expected {facts['expected']:#x}, found {facts['found']:#x})"),
        Status.corrupted,
        offset=offset,
    )
