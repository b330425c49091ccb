"""Ctrl-C while another process holds the heap gate: a waiting operation can be interrupted, and leaves the section unchanged."""

import signal

import pytest
from scribe import HEAP_GATE, Scribe
from workers import wait_for

from shmem._base.layout import GATE_WAITERS
from shmem._objects import finding, lock

CHILD = """
import gc, signal, struct
import numpy as np
from shmem._objects import arrays

class Point(shmem.Struct):
    x: shmem.float64

def hold_gate(_):
    with open(section.path, "r+b") as file:
        os.pwrite(file.fileno(), struct.pack("<Q", int(args[1])), int(args[4]))

section = shmem.SharedMemory(shared_name=args[0])
block, root = section["block"], section.get_root_object()
mapping = next(found for found in gc.get_objects() if type(found).__name__ == "Mapping")
say("here")
sys.stdin.readline()
try:
    {operation}
except KeyboardInterrupt:
    say("interrupted")
else:
    say("not interrupted")
sys.stdin.readline()
{again}
say("done")
sys.stdin.readline()
"""

OPERATIONS = {
    "assign a list": "section['new'] = [1, 2]",
    "assign bytes": "section['new'] = b'12'",
    "second name": "section['new'] = block",
    "delete": "del section['block']",
    "look up": "section['array']",
    "contains": "'array' in section",
    "keys": "list(section)",
    "register a type": "section.new(Point)",
    "pin": "arrays._open(mapping, int(args[2]), 0, int(args[3]))",
    "place": "section.semaphore(name='new')",
    "reallocate": "section.reallocate(block, 100_000)",
    "trim": "section.trim()",
    "sweep": "section.sweep()",
    "set the root": "section.set_root_object(block)",
    "unset the root": "section.set_root_object(None)",
    "get the root": "section.get_root_object()",
    "allocate": "section.allocate(10)",
    "free": "section.free(root)",
    "check_heap": "section.check_heap()",
    "stats": "section.stats()",
}


def _contents(shm):
    """Return everything in the heap that an operation could change."""
    stats = shm.stats()
    return list(shm), shm.get_root_object().offset, stats.used, stats.blocks, stats.holes, stats.cached_blocks, bytes(shm["block"])


@pytest.fixture
def interrupt(shm, child):
    """Run code in another process and interrupt it while it waits for the gate; return the process and the contents before."""
    shm["array"] = range(4)
    shm["block"] = bytes(100)
    shm.set_root_object(shm.allocate(10))

    def run(operation, again, is_held):
        scribe = Scribe(shm.path)
        mine = lock.participant(shm)
        other = child(CHILD.format(operation=operation, again=again), shm.name, mine, *finding.locate(shm, shm["array"]), HEAP_GATE)
        assert other.hear() == "here"
        before = _contents(shm)
        if is_held:
            scribe[HEAP_GATE] = mine
        other.tell()
        wait_for(lambda: scribe[HEAP_GATE] == mine | GATE_WAITERS)
        other.process.send_signal(signal.SIGINT)
        assert other.hear_soon() == "interrupted"
        scribe[HEAP_GATE] = 0
        return other, before

    return run


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_interrupt_changes_nothing(shm, interrupt, operation):
    other, before = interrupt(operation, operation, True)
    assert shm.check_heap().pending_blocks == 0
    assert _contents(shm) == before
    other.tell()
    assert other.hear() == "done"
    shm.check_heap()
    other.tell()
    other.end()


def test_interrupt_between_two_gate_sections(shm, interrupt):
    """The block being filled cannot be freed without the gate.  The process frees it before it makes its next block."""
    operation = "arrays.make(section, (4,), float, 'C', True, 'new', False, hold_gate)"
    other, before = interrupt(operation, "section.array([1.0], name='another')", False)
    assert shm.check_heap().pending_blocks == 1
    assert list(shm) == before[0]
    other.tell()
    assert other.hear() == "done"
    assert shm.check_heap().pending_blocks == 0
    assert list(shm) == [*before[0], "another"]
    other.tell()
    other.end()
