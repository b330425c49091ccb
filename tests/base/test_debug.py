"""`SHMEM_DEBUG`: each check detects its violation, reports it and aborts; correct use passes."""

import os
import signal
import subprocess
import sys

import pytest

from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT

LINK_BYTES = LAYOUT["block_t"].size - BLOCK_HEAD_BYTES  # at the start of a freed block

# `words(off)`: the memory from an offset on; `meanwhile(f)`: another thread calls f forever
PROGRAM = """
import ctypes, os, resource, sys, threading, warnings
import shmem
from shmem._base import debug
from shmem._base.layout import BLOCK_ALIGN_BYTES, BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES, LAYOUT, PAGE_BYTES, SLOT_REMOVED
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
section = shmem.SharedMemory(os.path.join(sys.argv[1], "section.shm"), max_size=1 << 26)
def words(off, kind=ctypes.c_uint64): return (kind * 512).from_address(section.address + off)
def meanwhile(f):
    def run():
        while True: f()
    sys.setswitchinterval(1e-4)
    threading.Thread(target=run, daemon=True).start()
HEADER, BLOCK, PARTICIPANT, TABLE, SLOT = (LAYOUT[name + "_t"] for name in ("header", "block", "participant", "name_table", "name_slot"))
GATE, HEAP_GATE, USED_BLOCKS, USED_BYTES, DIRECTORY, PARTICIPANTS = (
    HEADER[name].offset for name in ("lock_gate", "heap_gate", "used_blocks", "used_bytes", "directory_off", "participants_off"))
READERS, PENDING = (PARTICIPANT[name].at(words(PARTICIPANTS)[0]) for name in ("readers", "pending"))
PRODUCERS_GATE = LAYOUT["queue_t"]["producers_gate"].offset
def tag(block): return words(block.offset - BLOCK_HEAD_BYTES)
def link(block, name): return words(BLOCK[name].at(block.offset - BLOCK_HEAD_BYTES))
"""


def run(code, folder, level="1"):
    """Run a program with `SHMEM_DEBUG`; return its exit status and output."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM + code + "\nprint('to the end')", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SHMEM_DEBUG": level},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


TWO = "a, b = section.allocate(100), section.allocate(100)\n"
PAST_THE_END = TWO + "ctypes.memset(a.address, 1, b.address - BLOCK_HEAD_BYTES - a.address)\n"

WRONG = {
    "past the end, then the next one is freed": (
        PAST_THE_END + "section.free(b)",
        "the end of the block before the freed block was overwritten",
    ),
    "past the end, then anything": (PAST_THE_END + "section.allocate(9)", "BAD_REAR"),
    "tag behind": (
        TWO + "tag(b)[0] = 0\nsection.free(a)",
        "the tag after the freed block was overwritten",
    ),
    "tag": (TWO + "tag(a)[0] = 0\nsection.allocate(9)", "BAD_TAG"),
    "link of a hole": (
        "a, b = section.allocate(5000), section.allocate(9)\nsection.free(a)\nlink(a, 'previous_off')[0] = PAGE_BYTES\n"
        "section.allocate(50000)",
        "BAD_INDEX",
    ),
    "link of a cached block": (
        "a, b = section.allocate(100), section.allocate(9)\nsection.free(a)\nlink(a, 'next_off')[0] = PAGE_BYTES\nsection.allocate(5000)",
        "BAD_CACHE",
    ),
    "number of blocks": ("words(USED_BLOCKS)[0] += 1\nsection.allocate(9)", "BAD_COUNT"),
    "bytes": ("words(USED_BYTES)[0] += BLOCK_ALIGN_BYTES\nsection.allocate(9)", "BAD_COUNT: used, free and cached bytes do not add up"),
    "a name": (
        "section['a'] = [1]\nfirst = words(DIRECTORY)[0] + TABLE.size\n"
        "entry = next(word for i in range(512) if (word := words(SLOT['entry_off'].at(first + i * SLOT.size)))[0] > SLOT_REMOVED)\n"
        "entry[0] = PAGE_BYTES\nsection.allocate(9)",
        "BAD_NAME",
    ),
    "a share": (
        "with shmem.shared_lock(section): words(READERS)[0] = 0",
        "a share of the lock is missing from its participant's count",
    ),
    "the lock's gate": (
        "with shmem.exclusive_lock(section): words(GATE)[0] = 9",
        "the lock is released by a participant that does not own it",
    ),
    "the heap gate": (
        "section['a'] = bytes(1 << 24)\ngate = words(HEAP_GATE)\ndef scribble():\n    if gate[0] not in (0, 9): gate[0] = 9\n"
        "meanwhile(scribble)\nwhile True: section.snapshot(sys.argv[1] + '/copy')",
        "the heap gate is released by a process that does not own it",
    ),
    "a pending block": (
        "pending = words(PENDING, ctypes.c_uint32)\ndef scribble(): pending[0] = 0\nmeanwhile(scribble)\n"
        "while True: section.free(section.allocate(1 << 25))",
        "a PENDING block is missing from its maker's count",
    ),
    "the mutex under the gate": (
        "debug.pretend('heap gate')\nshmem.SharedMemory(max_size=1 << 20)",
        "lock order: the process mutex is requested under a heap gate",
    ),
    "the mutex twice": (
        "debug.pretend('process mutex')\nshmem.SharedMemory(max_size=1 << 20)",
        "lock order: the process mutex is requested by the thread that holds it",
    ),
    "the mutex under the reserve gate": (
        "debug.pretend('reserve gate')\nshmem.SharedMemory(max_size=1 << 20)",
        "lock order: the process mutex or a reserve gate is requested under a reserve gate",
    ),
    "the gate twice": (
        "a = section.zeros(5, temporary=True)\ndebug.pretend('heap gate')\ndel a",
        "lock order: a heap gate is requested under a heap gate",
    ),
    "the opening byte alone": ("debug.ask('opening byte')", "lock order: an opening byte is requested without the process mutex"),
    "the opening byte under the gate": (
        "debug.pretend('process mutex'); debug.pretend('heap gate'); debug.ask('opening byte')",
        "lock order: an opening byte is requested without the process mutex, or under a heap gate",
    ),
    "the lock under the gate": (
        "debug.pretend('heap gate'); debug.ask('storage lock')",
        "lock order: the storage lock is requested under the process mutex or a heap gate",
    ),
    "a gate that is not there": ("debug.ask('heap gate')", "a heap gate is released by a thread that does not hold it"),
    "a mutex that is not there": ("debug.ask('process mutex')", "the process mutex is released by a thread that does not hold it"),
    "Python under the gate": (
        "debug.pretend('heap gate')\nsection.allocate(9)",
        "Python code runs under the process mutex or a heap gate",
    ),
    "sleep under the gate": ("debug.pretend('heap gate'); debug.ask('sleep')", "a thread is about to sleep under a heap gate"),
    "sleep with the GIL": ("debug.ask('sleep')", "a thread is about to sleep with the GIL"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_violations_are_detected(wrong, tmp_path):
    code, words = WRONG[wrong]
    status, output = run(code, tmp_path)
    assert status == -signal.SIGABRT, output
    assert f"shmem: SHMEM_DEBUG: {words}" in output
    assert "to the end" not in output


def test_report_names_file_and_offset(tmp_path):
    """A report names the file, the offset, and the expected and found values."""
    _, output = run("a = section.allocate(100)\ntag(a)[0] = 7\nprint(hex(a.offset - BLOCK_HEAD_BYTES))\nsection.allocate(9)", tmp_path)
    where, output = output.split("\n", 1)
    assert output.startswith(f"shmem: SHMEM_DEBUG: BAD_TAG: in {tmp_path}/section.shm, at offset {where}: expected 0, found 0x7\n")


USE = """
import random
with shmem.exclusive_lock(section), shmem.shared_lock(section): section["a"] = range(1000)
random.seed(1)
blocks = []
for _ in range(3000):
    if random.random() < 0.5 or not blocks: blocks.append(section.allocate(random.choice((1, 50, 500, 5000))))
    else: section.free(blocks.pop(random.randrange(len(blocks))))
del section["a"]
with shmem.shared_lock(section):
    with shmem.exclusive_lock(section): pass
def wait():
    with shmem.exclusive_lock(section): pass
with shmem.exclusive_lock(section):
    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads: thread.start()
pid = os.fork()
if pid == 0:
    section.allocate(100); os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
for thread in threads: thread.join()
queue = section.queue(3, bytes, max_bytes=10)
thread = threading.Thread(target=queue.get); thread.start(); queue.put(b"x"); thread.join()
words(queue.offset + PRODUCERS_GATE)[0] = words(READERS)[0] | 1  # owned by entry 0
try: section.snapshot(sys.argv[1] + "/copy", timeout=0.2)
except shmem.LockTimeout: words(queue.offset + PRODUCERS_GATE)[0] = 0
section.snapshot(sys.argv[1] + "/copy")
section.trim(); section.close()
"""


@pytest.mark.parametrize("level", ["", "0", "1", "2", "yes"])
def test_correct_use_passes(level, tmp_path):
    assert run("warnings.simplefilter('ignore')" + USE, tmp_path, level) == (0, "to the end\n")


@pytest.mark.parametrize("level", ["", "0"])
def test_disabled_checks_do_not_report(level, tmp_path):
    """Without SHMEM_DEBUG the same violations are not reported."""
    assert run(PAST_THE_END + "section.allocate(9)\nos._exit(3)", tmp_path, level) == (3, "")


def test_level_2_checks_the_heap_at_each_call(tmp_path):
    """Level 1 walks the heap so often that it averages 32 blocks per call, level 2 at each call."""
    code = "blocks = [section.allocate(50) for _ in range(2000)]\nctypes.memset(blocks[1000].address, 1, 60)\n"
    once = code + "section.allocate(50)"
    assert run(once, tmp_path, "2")[0] == -signal.SIGABRT
    assert run(once + "\nos._exit(3)", tmp_path / "..", "1")[0] == 3
    assert run(code + "for _ in range(200): section.allocate(50)", tmp_path / "..", "1")[0] == -signal.SIGABRT


@pytest.mark.parametrize(("level", "seen"), [("1", "dd"), ("", "01")])
def test_freed_memory_is_filled(level, seen, tmp_path):
    code = """
a = section.allocate(100)
view = memoryview(a)
view[:] = bytes([1]) * 100
section.free(a)
print(bytes(view[BLOCK.size - BLOCK_HEAD_BYTES:]).hex())   # after the links"""
    assert run(code, tmp_path, level) == (0, seen * (100 - LINK_BYTES) + "\nto the end\n")
