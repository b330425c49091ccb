"""Killed at every instruction: a short sweep of `python -m shmem crashtest`, and that it finds what is broken.  DESIGN 3, 4, 6."""

import subprocess
import sys
from pathlib import Path

import pytest

from shmem import _ptrace

WHY_NOT = _ptrace.why_not()
needs_ptrace = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def crashtest(*arguments, code=""):
    """Run it, after some code; (exit status, output)."""
    program = f"import sys, shmem\nfrom shmem.__main__ import main\n{code}\nsys.exit(main(['crashtest', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, arguments)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        cwd="/",
    )
    return done.returncode, done.stdout


def left_behind():
    return set(Path("/dev/shm").glob("shmem-crashtest-*"))


@needs_ptrace
@pytest.mark.parametrize(
    "names",
    [
        ["allocate: split a hole", "allocate: exact fit, next_fit", "free: both neighbours are holes"],
        ["free: the root object", "reallocate: grow in place", "reallocate: shrink", "reallocate: move the root"],
        ["directory: delete", "object: the first of its type"],
        ["lock: upgrade and downgrade", "mutex: two of them", "queue: put_many"],
    ],
    ids=["heap", "reallocate", "names", "locks"],
)
def test_every_instruction(names, tmp_path):
    """Each line of the table: stores that changed something, states, and none of them lost."""
    before = left_behind()
    status, output = crashtest("--quick", "--keep", tmp_path / "kept", *[f"--operation={name}" for name in names])
    assert status == 0, output
    lines = {line[:52].strip(): [int(number.replace(",", "")) for number in line[52:].split()] for line in output.splitlines()[1:-3]}
    assert set(lines) == set(names)
    for stepped, stores, states, checks, _, kills, failed in lines.values():
        assert stepped > 1000
        assert 2 <= states <= stores + 1
        assert checks >= 3 * states
        assert kills >= 1
        assert failed == 0
    assert "after 100.0 % of them alone" in output
    assert not (tmp_path / "kept").exists()
    assert left_behind() <= before


@needs_ptrace
def test_the_cleaner_is_killed_too():
    """The repair of a state is stepped through; one with a process beside it."""
    status, output = crashtest("--quick", "--repairs", 1, "--operation", "free: into the cache")
    assert status == 0, output
    line = output.splitlines()[1][52:].split()
    assert int(line[4]) == 1  # repairs
    assert int(line[2]) > 30  # states, of which twelve are the operation's own


TWO_STEPS = """
from shmem._crash_operations import operation, row
@operation("broken: two steps")
def _(shm):
    first, second = row(shm, 10, 20)
    yield
    shm.root = first
    shm.root = second
"""

WRITES_PAST = """
import ctypes
from shmem._crash_operations import operation, row
@operation("broken: a tag")
def _(shm):
    block, _ = row(shm, 100, 100)
    address = block.address + 104   # of the tag behind it
    tag = (ctypes.c_char * 8).from_address(address).raw
    yield
    ctypes.memset(address, 255, 8)
    ctypes.memmove(address, tag, 8)
    shm.free(block)
"""


NOT_PERMITTED = """
import errno
from shmem import _ptrace
def refuse(*arguments):
    raise OSError(errno.EPERM, "not permitted")
_ptrace.request = refuse
"""


@needs_ptrace
@pytest.mark.parametrize(("code", "wrong"), [(TWO_STEPS, "neither before nor after"), (WRITES_PAST, "HeapCorruption")])
def test_what_is_broken_is_found(code, wrong, tmp_path):
    """An operation that is visible half done, and one that breaks the chain for an instruction."""
    status, output = crashtest("--quick", "--operation", "broken", "--keep", tmp_path, code=code)
    assert status == 1
    assert wrong in output
    assert "killed after instruction" in output
    kept = [path for path in tmp_path.iterdir() if path.suffix == ""]
    assert kept
    assert all(path.stat().st_size >= 24576 for path in kept)  # sections


def test_what_cannot_be_done_is_said():
    """Wrong arguments; no ptrace here."""
    assert crashtest("--operation", "no such thing")[0] == 2
    code = "from shmem import _ptrace\n_ptrace.platform.machine = lambda: 'sparc'"
    status, output = crashtest("--quick", code=code)
    assert status == 2
    assert "sparc" in output


def test_ptrace_not_permitted():
    """A refusal of the system is an answer, not a traceback."""
    status, output = crashtest("--quick", code=NOT_PERMITTED)
    assert status == 2
    assert "SYS_PTRACE" in output
    assert "Traceback" not in output


def test_operations_are_listed():
    status, output = crashtest("--list")
    assert status == 0
    assert "allocate: split a hole" in output.splitlines()
    assert len(output.splitlines()) > 60
