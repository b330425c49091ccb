"""`python -m shmem crashtest`: kills at every instruction do not find a failure, and broken operations are detected."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from scribe import HEADER, HEAP_GATE, PARTICIPANT, Scribe

import shmem
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    INTENT_MOVE,
    LAYOUT,
    OWNER_GENERATION_SHIFT,
    STATE_HOLE,
    STATE_PENDING,
    make_tag,
    read_tag,
)
from shmem.testing.crash import ptrace

INTENT = LAYOUT["intent_t"]
WHY_NOT = ptrace.why_not()
# each instrumented access takes several instructions, and its store to shadow memory is not a store to the section
pytestmark = pytest.mark.no_sanitizer("a process is stepped instruction by instruction: several times as many, for minutes")
needs_ptrace = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def crashtest(*arguments, code=""):
    """Run the command after some code; return the exit status and the output."""
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


def table(output):
    """Return the numbers of each line by operation; the last line is named "total"."""
    found = {}
    for line in output.splitlines()[1:]:
        fields = line[55:].split()
        if len(fields) == 9 and all(field.replace(",", "").isdigit() for field in fields):
            name = "total" if " operations, " in line else line[:55].strip()
            found[name] = [int(field.replace(",", "")) for field in fields]
    return found


@pytest.fixture
def memory_folder():
    """A folder of its own on the memory file system, which must be empty at the end."""
    folder = Path(tempfile.mkdtemp(prefix="test-crash-points-", dir="/dev/shm"))
    yield folder
    assert list(folder.iterdir()) == []
    folder.rmdir()


@needs_ptrace
@pytest.mark.parametrize(
    "names",
    [
        ["allocate: split a hole", "allocate: exact fit, next_fit", "free: both neighbours are holes"],
        ["free: the root object", "reallocate: grow in place", "reallocate: shrink", "reallocate: move the root"],
        ["directory: delete", "object: the first of its type"],
        ["claims: send a temporary array", "claims: open a message", "claims: free an array that was sent twice"],
        ["lock: upgrade and downgrade", "mutex: two mutexes", "queue: put_many"],
        ["array: append in place", "array: resize, another dimension", "array: seal"],
    ],
    ids=["heap", "reallocate", "names", "messages", "locks", "arrays"],
)
def test_every_instruction(names, tmp_path, memory_folder):
    """Each line of the table counts changing stores, states and kills; every recovery succeeds, and every store is seen."""
    options = "--keep", tmp_path / "kept", "--folder", memory_folder
    status, output = crashtest("--quick", *options, *[f"--operation={name}" for name in names])
    assert status == 0, output
    lines = table(output)
    assert set(lines) == {*names, "total"}
    for stepped, stores, states, checks, _, _, _, kills, failed in [lines[name] for name in names]:
        assert stepped > 1000
        assert 2 <= states <= stores + 1
        assert checks > states  # states that differ only in the payload of PENDING blocks have one check each, others three
        assert kills >= 1
        assert failed == 0
    assert "after 100.0 % of them a copy was kept at once" in output
    assert "stepping saw 100.0 % of them" in output  # write protection does not find other stores
    assert not (tmp_path / "kept").exists()


@needs_ptrace
def test_every_instruction_of_exit_and_sweep():
    """The same for what a process does at its exit while it has views, and for what frees the blocks of a process killed before."""
    names = ["exit: with a view of a deleted array, the last process", "sweep: arrays, one of them half made"]
    status, output = crashtest("--repairs", "none", *[f"--operation={name}" for name in names])
    assert status == 0, output
    for _, stores, states, checks, _, _, _, kills, failed in [table(output)[name] for name in names]:
        assert 10 <= states <= stores + 1, output
        assert checks > states, output
        assert kills >= 10, output
        assert failed == 0, output
    assert "after 100.0 % of them a copy was kept at once" in output, output
    assert "stepping saw 100.0 % of them" in output, output


@needs_ptrace
def test_killed_recovery_is_completed():
    """The recovery of each state is followed, and so is that of each state inside the recovery, recursively."""
    status, output = crashtest("--quick", "--repairs", "alike", "--operation", "free: into the cache")
    assert status == 0, output
    _, _, states, _, repairs, again, inside, _, failed = table(output)["free: into the cache"]
    assert states <= 20
    assert repairs - again <= 3 * states  # of the operation's own states, in three ways: open, join, live
    assert again >= inside > 50
    assert failed == 0


# Pauses before the second operation's repairs for longer than a single repair may take.
IDLE = """
import time
from shmem.testing.crash import repairs as _repairs
_repairs.LONGEST_SECONDS = 8
run, runs = _repairs.Closure.run, []
def later(self, tell):
    if runs:
        time.sleep(9)
    runs.append(self)
    yield from run(self, tell)
_repairs.Closure.run = later
"""


@needs_ptrace
def test_idle_repairer_does_not_count_as_hanging():
    """A repairer may wait between the repairs of two operations."""
    names = ["lock: shared", "lock: exclusive"]
    status, output = crashtest("--quick", "--jobs=1", "--repairs", "alike", *[f"--operation={name}" for name in names], code=IDLE)
    assert status == 0, output
    assert all(table(output)[name][4] > 0 for name in names)


def test_intent_in_a_reused_entry_is_completed(tmp_path, child):
    """Two participants are dead: one has an intent to move the root, the other owns the heap gate.

    The process that reuses the first one's entry completes the move.
    """
    path = tmp_path / "s"
    with shmem.SharedMemory(path, max_size=1 << 16, max_participants=3) as shm:
        shm.root, new = shm.allocate(200), shm.allocate(500)
        memoryview(new)[:4] = b"here"
        old, moved = shm.root.offset - BLOCK_HEAD_BYTES, new.offset - BLOCK_HEAD_BYTES
        scribe = Scribe(path)
        hole_tag = make_tag(read_tag(scribe[old]).size, STATE_HOLE)
        intent = {"operation": INTENT_MOVE, "slot_off": old, "value": hole_tag, "make_off": (new.offset, 0)}
        for name, value in intent.items():
            INTENT[name].write(scribe.bytes, value, HEADER["intents_off"].read(scribe.bytes) + INTENT.size)  # participant 1's
        scribe[old] = hole_tag  # committed
        serial = scribe[LAYOUT["block_t"]["serial"].at(moved)]
        scribe[moved] = make_tag(read_tag(scribe[moved]).size, STATE_PENDING, 1, serial)  # participant 1's
        for i, n_pending in ((1, 1), (2, 0)):
            for name, value in {"readers": 1 << OWNER_GENERATION_SHIFT, "attached": 1, "pending": n_pending}.items():
                PARTICIPANT[name].write(scribe.bytes, value, scribe.entry_start(i))
        scribe[HEAP_GATE] = scribe.owner_word(2)
        HEADER["participants_high"].write(scribe.bytes, 3)
        code = "shm = shmem.SharedMemory(args[0]); shm.check_heap(); say(bytes(shm.root)[:4] if shm.root is not None else None)"
        assert child(code, str(path)).hear() == str(b"here")
        assert shm.root.offset == new.offset


LOSES_A_FILE = """
import os
from shmem.testing.crash.files import _add, files_of
def names(prefix):
    return files_of(prefix).get("file")
@_add("broken: written in place", names, small=True)
def _(prefix):
    with open(prefix + "file", "wb") as file:
        file.write(b"old")
    yield
    with open(prefix + "file", "wb") as file:
        file.write(b"new")
"""


@needs_ptrace
def test_files_are_replaced_atomically():
    """A folder is intact between any two system calls of a process that creates, replaces or repairs a file."""
    names = ["file: create a section", "file: snapshot, replacing another", "file: make a named semaphore"]
    status, output = crashtest(*[f"--operation={name}" for name in names])
    assert status == 0, output
    lines = table(output)
    assert set(lines) == {*names, "total"}
    assert all(line[2] >= 2 for line in lines.values())
    status, output = crashtest("--operation", "broken", code=LOSES_A_FILE)
    assert status == 1
    assert "neither before nor after: b''" in output


TWO_STEPS = """
from shmem.testing.crash.operations import operation, row
@operation("broken: two steps")
def _(shm):
    first, second = row(shm, 10, 20)
    yield
    shm.root = first
    shm.root = second
"""

WRITES_PAST = """
import ctypes
from shmem._base.layout import BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES
from shmem.testing.crash.operations import operation, row
@operation("broken: a tag")
def _(shm):
    block, following = row(shm, 100, 100)
    address = following.address - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES   # of the block's rear tag
    tag = (ctypes.c_char * BLOCK_REAR_BYTES).from_address(address).raw
    yield
    ctypes.memset(address, 255, BLOCK_REAR_BYTES)
    ctypes.memmove(address, tag, BLOCK_REAR_BYTES)
    shm.free(block)
"""


NOT_PERMITTED = """
import errno
from shmem.testing.crash import ptrace
def refuse(*arguments):
    raise OSError(errno.EPERM, "not permitted")
ptrace.request = refuse
"""


@needs_ptrace
@pytest.mark.parametrize(("code", "wrong"), [(TWO_STEPS, "neither before nor after"), (WRITES_PAST, "HeapCorruption")])
def test_broken_operations_are_detected(code, wrong, tmp_path):
    """An operation that is visible half done is detected, and so is one that breaks the chain of blocks for one instruction."""
    status, output = crashtest("--quick", "--operation", "broken", "--keep", tmp_path, code=code)
    assert status == 1
    assert wrong in output
    assert "killed after instruction" in output
    kept = [path for path in tmp_path.iterdir() if path.suffix == ""]
    assert kept
    assert all(path.stat().st_size >= 24576 for path in kept)  # sections


def test_unsupported_requests_are_reported():
    """Wrong arguments, an unsupported processor, and an Arm processor without LSE are reported."""
    assert crashtest("--operation", "no such thing")[0] == 2
    status, output = crashtest("--quick", "--jobs=0")
    assert status == 2
    assert "--jobs must be at least 1, got 0" in output
    code = "from shmem.testing.crash import registers as r\nr.NAME, r.MACHINE, r._HWCAP_ATOMICS = 'sparc', None, 0"
    status, output = crashtest("--quick", code=code)
    assert status == 2
    assert "sparc" in output
    status, output = crashtest("--quick", code=code.replace("'sparc', None", "'aarch64', r.MACHINE"))
    assert status == 2
    assert "LSE" in output


def test_ptrace_not_permitted():
    """A refusal by the system is reported without a traceback."""
    status, output = crashtest("--quick", code=NOT_PERMITTED)
    assert status == 2
    assert "SYS_PTRACE" in output
    assert "Traceback" not in output


def test_operations_are_listed():
    status, output = crashtest("--list")
    assert status == 0
    assert "allocate: split a hole" in output.splitlines()
    assert len(output.splitlines()) > 60
