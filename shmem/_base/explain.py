"""From a status to an exception that states the operation that failed, what was found, and what to do."""

import errno
import os

from shmem._base import errors as _errors
from shmem._base.errors import Status
from shmem._base.layout import MAX_THREADS, PAGE_BYTES
from shmem._base.system_tools import describe_file_system, free_bytes_at

_PLAIN = {
    Status.timeout_expired: (_errors.LockTimeout, "cannot {what}: {holder}"),
    Status.deadlock: (
        _errors.DeadlockError,
        "cannot {what}: another holder of the shared lock is upgrading already, and each would wait for the other; "
        "release the shared lock, then acquire it exclusively",
    ),
    Status.corrupted: (
        _errors.HeapCorruption,
        "cannot {what}: the heap of {section} is damaged, as by a write past the end of a block or by a loss of power; "
        "check_heap() reports where, and objects that can be reached can still be read",
    ),
    Status.too_many_participants: (
        _errors.TooManyParticipants,
        "cannot {what}: every entry in the participant table of {section} belongs to a live process; "
        "max_participants is set when a section is created",
    ),
    Status.invalid_block: (_errors.InvalidBlock, "cannot {what}: no allocated block of {section} begins there"),
    Status.already_freed: (_errors.InvalidBlock, "cannot {what}: this block of {section} was freed already"),
    Status.pinned: (
        _errors.InvalidBlock,
        "cannot {what}: another process has a view of this block in {section}; delete its name instead, and it is freed with its last view",
    ),
    Status.closed: (_errors.ClosedError, "cannot {what}: {section} is closed"),
    Status.read_only: (_errors.ReadOnlyError, 'cannot {what}: {section} was opened read-only; open it with mode="read_write"'),
    Status.not_owner: (_errors.LockError, "cannot {what}: this thread does not hold the lock"),
    Status.too_many_threads: (
        _errors.LockError,
        f"cannot {{what}}: {MAX_THREADS} threads of this process use {{section}} at the same time, which is the limit",
    ),
}

_LIMITS = {
    errno.EFBIG: " for this process (RLIMIT_FSIZE, `ulimit -f`) or the file system",
    errno.ENOMEM: ": this process has too little address space left (RLIMIT_AS, `ulimit -v`), or the machine too little memory",
    errno.ENOSYS: ": /proc is not mounted, and the kernel offers no other way",
}
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DENIED_TEXT = "; read and write permission is needed in every mode, because the locks are in the file"
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
    """Return the system's text for an errno, and the limit of the process that may have caused it."""
    return os.strerror(status) + _LIMITS.get(status, "")


def explain(status, what, facts):
    """Return the exception for an operation on an open section that returned a status.

    Parameters
    ----------
    status : int
    what : str
        The operation, a verb phrase that follows "cannot", as "allocate 100 bytes".
    facts : dict
        ``section`` (the words for it), ``path``, ``room`` (free bytes), ``max_size``, ``holder`` (why the lock was not acquired).
    """
    if status == Status.no_memory:
        return _with_status(
            _errors.SectionFull(
                f"cannot {what}: {facts['section']} has {facts['room']:,} of its {facts['max_size']:,} bytes free, "
                "but not in one piece of that size; free something, or have the first opener pass a larger max_size"
            ),
            status,
        )
    if status in _OUT_OF_SPACE:
        return _with_status(
            _errors.SectionFull(
                f"cannot {what}: {_limit_text(status)}; {describe_file_system(facts['path'])}, which holds {facts['section']}, "
                f"has {_free_bytes(facts['path'])} bytes free"
            ),
            status,
        )
    if status in _PLAIN:
        cls, text = _PLAIN[status]
        return _with_status(cls(text.format(what=what, **facts)), status)
    error = _errors.OperatingSystemError(f"cannot {what}: {_errors.get_error_text(status)}{_LIMITS.get(status, '')} ({facts['section']})")
    error.errno = status
    return _with_status(error, status)


def _refusal(status, path, shared_name, request):
    """Return class and text of the exception for a file that this library refuses to open; None if the system refused."""
    found, wanted = request["found"], request["wanted"]
    if status == Status.not_a_section:
        if wanted > found:
            return _errors.NotASection, f"the file is truncated: {wanted:,} bytes are in use, but it has {found:,} (it was not modified)"
        return _errors.NotASection, "not a shmem section, or its header is damaged (the file was not modified)"
    if status == Status.layout_mismatch:
        text = f"the layout of the section (version {found}) differs from that of this library; open it with the version that created it"
        return _errors.LayoutMismatch, text
    if status == Status.label_mismatch:
        return _errors.NotASection, f"the shared name of the section is {request['found_label']!r}, not {shared_name!r}"
    if status == Status.untrusted_owner:
        text = f"it belongs to user {found}, but this process runs as user {os.geteuid()}; pass trust_owner=True to accept that"
        return _errors.UntrustedOwner, text
    if status == errno.ELOOP:
        return _errors.UntrustedOwner, "the path is a symbolic link of another user, or a loop of links, and is not followed"
    if status == Status.address_in_use:
        text = (
            f"address {wanted:#x} is not free in this process"
            if wanted
            else f"the section was created for address {found:#x}; pass that desired_address, or none"
        )
        return _errors.AddressInUse, text
    if status == Status.too_many_participants:
        return (
            _errors.TooManyParticipants,
            "every entry in its participant table belongs to a live process; max_participants is set when a section is created",
        )
    if status == Status.unsupported_file_system:
        where = f"mappings or locks on {describe_file_system(path)} are not coherent between processes"
        return _errors.OperatingSystemError, f"{where}; use a local file system or an anonymous section"
    if status in _OUT_OF_SPACE or status == errno.ENOMEM:
        room = f"{describe_file_system(path)} has {_free_bytes(path)} bytes free, and max_size is {request['max_size']:,}"
        return _errors.SectionFull, f"{_limit_text(status)}; {room}"
    return None


def explain_opening(status, path, shared_name, request, operation="open"):
    """Return the exception for a section that could not be opened.

    `request` has what was found: ``found``, ``wanted``, ``found_label``, ``max_size``.
    """
    what = f"cannot {operation} {path!r}"
    refusal = _refusal(status, path, shared_name, request)
    if refusal is not None:
        cls, text = refusal
        return _with_status(cls(f"{what}: {text}"), status)
    if status == errno.ENOENT:
        cls, text = _errors.SectionNotFound, "the section does not exist; pass max_size to create it"
    else:
        cls = _errors.AccessDenied if status in _DENIED else _errors.OperatingSystemError
        text = _errors.get_error_text(status) + (_DENIED_TEXT if status in _DENIED else _LIMITS.get(status, ""))
    return _with_status(cls(f"{what}: {text}"), status, errno=status, filename=path)


def explain_named(status, operation, kind, path, user):
    """Return the exception for a named semaphore or event that could not be opened or removed.

    Parameters
    ----------
    status : int
    operation : str
        ``"open"`` or ``"remove"``.
    kind : str
        ``"semaphore"`` or ``"event"``.
    path : str
    user : int
        The owner of the file, where that is why it was refused.
    """
    what = f"cannot {operation} {path!r}"
    if status == errno.ENOENT:
        return _with_status(
            _errors.SectionNotFound(f"{what}: this {kind} was removed, and another one may have its name by now"),
            status,
            errno=status,
            filename=path,
        )
    if status == Status.not_a_section:
        return _with_status(
            _errors.NotASection(
                f"{what}: not {'an' if kind == 'event' else 'a'} {kind} of this version of the library (the file was not modified); "
                "remove it, or choose another name"
            ),
            status,
        )
    return explain_opening(status, path, None, {"found": user, "wanted": 0, "max_size": PAGE_BYTES}, operation)


def explain_problem(problem, section, facts):
    """Return the exception for a problem that `check_heap` found.

    `problem` is its text.  `facts` has ``bad_off``, ``expected`` and ``found``.
    """
    offset = facts["bad_off"]
    return _with_status(
        _errors.HeapCorruption(
            f"{section} is damaged at offset {offset:#x}: {problem} (expected {facts['expected']:#x}, found {facts['found']:#x})"
        ),
        Status.corrupted,
        offset=offset,
    )
