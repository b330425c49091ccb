"""Exceptions: status, text, and pickling."""

import errno
import pickle

import pytest

import shmem
from shmem._base import arguments, explain
from shmem._base.layout import PAGE_BYTES, heap_start

EXCEPTIONS = [value for value in vars(shmem).values() if isinstance(value, type) and issubclass(value, shmem.ShmemError)]
EXPECTED = {
    shmem.LockTimeout: (TimeoutError, -1),
    shmem.DeadlockError: (RuntimeError, -2),
    shmem.SectionFull: (MemoryError, -4),
    shmem.HeapCorruption: (Exception, -5),
    shmem.NotASection: (OSError, -6),
    shmem.LayoutMismatch: (TypeError, -7),
    shmem.AddressInUse: (OSError, -8),
    shmem.TooManyParticipants: (OSError, -9),
    shmem.InvalidBlock: (ValueError, -10),
    shmem.NameExists: (ValueError, -12),
    shmem.ClosedError: (ValueError, -13),
    shmem.ReadOnlyError: (PermissionError, -15),
    shmem.LockError: (RuntimeError, -16),
    shmem.UntrustedOwner: (PermissionError, -18),
    shmem.SemaphoreOverflow: (OverflowError, -21),
    shmem.AccessDenied: (PermissionError, errno.EACCES),
    shmem.SectionNotFound: (FileNotFoundError, errno.ENOENT),
}


@pytest.mark.parametrize("cls", EXCEPTIONS)
def test_exceptions_pickle_with_their_status(cls):
    error = cls("what was asked: what was found")
    error.status = 77
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == "what was asked: what was found"
    assert again.status == 77


@pytest.mark.parametrize("cls", EXPECTED)
def test_base_and_status_are_fixed(cls):
    base, status = EXPECTED[cls]
    assert issubclass(cls, (shmem.ShmemError, base))
    assert issubclass(cls, base)
    assert cls.status == status


def test_every_status_has_a_text():
    assert [int(status) for status in shmem.Status] == list(range(0, -25, -1))
    texts = [shmem.get_error_text(status) for status in shmem.Status]
    assert len(set(texts)) == len(texts)
    assert shmem.get_error_text(errno.ENOSPC) == "No space left on device"
    assert "unknown" in shmem.get_error_text(-1000)


def test_every_status_is_explained_by_operation_and_section():
    """Each message starts with the operation that failed, and names the section where one is meant."""
    facts = {"section": "section '/x'", "path": "/", "room": 10, "max_size": 20, "holder": "readers hold it"}
    for status in [*shmem.Status, errno.ENOSPC, errno.ENOMEM, errno.EIO]:
        error = explain.explain(status, "free a block", facts)
        assert error.status == status
        assert str(error).startswith("cannot free a block: ")
        assert "section '/x'" in str(error) or status in (shmem.Status.timeout_expired, shmem.Status.deadlock, shmem.Status.not_owner)
    request = {"found": 1, "wanted": 2, "found_label": "a", "max_size": 4096}
    for status in [*shmem.Status, errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOSPC, errno.EIO]:
        assert str(explain.explain_opening(status, "/x", "b", request)).startswith("cannot open '/x': ")
    for status in (shmem.Status.not_a_section, shmem.Status.untrusted_owner, errno.ENOENT, errno.EACCES, errno.ELOOP, errno.EIO):
        for operation in ("open", "remove"):
            assert str(explain.explain_named(status, operation, "event", "/x", 1)).startswith(f"cannot {operation} '/x': ")


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("mode", "rw"), ("max_participants", 0), ("index", "best_fit"), ("desired_address", 5), ("align", 3), ("path", "a\0b"),
    ],
)  # fmt: skip
def test_wrong_argument_raises(function, value):
    with pytest.raises(ValueError, match=rf"^(a )?{function} must .*, got "):
        getattr(arguments, function)(value)


def test_wrong_sizes_and_names_raise():
    least = heap_start(256) + PAGE_BYTES
    refused = {-1: "non-negative, got -1", 10: f"at least {least:,} bytes .*, got 10", 1 << 50: f"at most .* bytes, got {1 << 50:,}"}
    for size, text in refused.items():
        with pytest.raises(ValueError, match=f"^max_size must be {text}"):
            arguments.max_size(size, heap_start(256), 256)
    with pytest.raises(ValueError, match=r"^shared_name must be 1 to 200 of the characters .* got 'a/b'"):
        arguments.name("a/b", "shared_name")
    with pytest.raises(TypeError, match=r"^name must be a string, got int"):
        arguments.name(1, "name")


def test_statuses_in_c_match():
    """`_base/status.pxd` and `shmem.Status` define the same names and numbers."""
    import re
    from pathlib import Path

    text = (Path(shmem.__file__).parent / "_base/status.pxd").read_text()
    in_c = {name.lower(): int(number) for name, number in re.findall(r"^    ([A-Z_]+) = (-?\d+)$", text, re.M)}
    public = {status.name: int(status) for status in shmem.Status}
    assert {name: number for name, number in in_c.items() if number > -100} == public
