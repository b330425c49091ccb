"""Every exception: its status, its text, and that it survives pickle."""

import errno
import pickle

import pytest

import shmem

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
    shmem.SectionNotFound: (FileNotFoundError, errno.ENOENT),
}


@pytest.mark.parametrize("cls", EXCEPTIONS)
def test_pickles_with_its_status(cls):
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


def test_statuses_in_c_are_the_same():
    """`_base/status.pxd` and `shmem.Status` name the same numbers."""
    import re
    from pathlib import Path

    text = (Path(shmem.__file__).parent / "_base/status.pxd").read_text()
    in_c = {name.lower(): int(number) for name, number in re.findall(r"^    ([A-Z_]+) = (-?\d+)$", text, re.M)}
    public = {status.name: int(status) for status in shmem.Status}
    assert {name: number for name, number in in_c.items() if number > -100} == public
