"""`python -m shmem killstorm`: a short storm does not find a problem, and each broken promise is detected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shmem.testing.storm.actor import OPERATIONS


@pytest.fixture
def killstorm(tmp_path):
    """A function that runs a storm after some code, which members inherit; it returns the exit status and the report."""

    def run(*arguments, code="", kills_per_second=8):
        program = (
            "import os, sys, time, contextlib, signal, ctypes, shmem\n"
            "from shmem.testing.storm import actor, contents, ledger, member, storm\n"
            "from shmem.testing.storm.actor import Actor\nfrom shmem.testing.storm.storm import Storm\nfrom shmem.__main__ import main\n"
            f"{code}\nsys.exit(main(['killstorm', *sys.argv[1:]]))"
        )
        if "--seconds" not in arguments:
            arguments = "--seconds", 1, *arguments
        more = f"--folder={tmp_path}", "--json", "--processes=4", f"--kills-per-second={kills_per_second}", *map(str, arguments)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
        with subprocess.Popen([sys.executable, "-P", "-c", program, *more], **pipes) as process:
            try:
                out, err = process.communicate(timeout=180)
            finally:
                process.kill()  # this also kills its members
        assert err == ""
        assert list(tmp_path.iterdir()) == []
        assert list(Path("/dev/shm").glob(f"shmem.killstorm-{process.pid}*")) == []
        return process.returncode, json.loads(out)

    return run


@pytest.mark.parametrize("kind", ["file", "anonymous"])
def test_storm_finds_no_problem(kind, killstorm):
    """Every common operation is performed, and some members are killed while they work."""
    more = ["--anonymous", "--index", "next_fit"] if kind == "anonymous" else []
    code = until_kills(5, "self.totals.kills - self.totals.idle_kills")
    status, report = killstorm("--seconds", 6, "--operations", 2000, *more, code=code)
    assert report["problems"] == []
    assert status == 0
    assert report["kills"] - report["idle_kills"] >= 5
    assert report["members"] >= report["kills"]
    assert report["killed_actors"] >= report["kills"] - report["idle_kills"]
    common = {name for name, weight, _ in OPERATIONS if weight > 2}
    assert common <= {name for name, n in report["operations"].items() if n > 0}


HEAP = ["own block", "temporary", "name: array", "check_heap"]  # what changes the heap without the lock, and the check of the heap


@pytest.mark.parametrize("index", ["tlsf", "next_fit"])
def test_storm_of_the_heap_alone_finds_no_problem(index, killstorm):
    """Without the other operations, members use the heap at the same moment far more often."""
    chosen = f"actor.OPERATIONS[:] = [one for one in actor.OPERATIONS if one[0] in {HEAP}]\n"
    code = chosen + until_kills(5, "self.totals.kills - self.totals.idle_kills")
    status, report = killstorm("--seconds", 3, "--operations", 2000, "--index", index, code=code)
    assert report["problems"] == []
    assert status == 0
    assert report["kills"] - report["idle_kills"] >= 5
    assert sorted(report["operations"]) == sorted(HEAP)
    assert min(report["operations"].values()) > 100


def until_kills(n, kills):
    """Return code that extends a round with `--operations` until `kills` reaches `n`."""
    return f"counts = Storm.counts\nStorm.counts = lambda self: counts(self) * ({kills} >= {n} or bool(self.ledger.stop[0]))"


def test_objects_of_killed_members_are_accounted_for(killstorm):
    """Members kill themselves between making a block and recording its offset, before linking or freeing it, or inside a lock."""
    code = f"storm.WAYS = {{'by itself': 1}}\n{until_kills(10, 'self.totals.caught')}"
    status, report = killstorm("--operations", 1000, code=code)
    assert report["problems"] == []
    assert status == 0
    assert report["caught"] >= 10
    assert report["returned"] + report["lost"] + report["blamed"] + report["lost_tokens"] + report["lost_messages"] > 0


# One thread of each member kills the process after its tenth step, between making a block and recording its offset.
DIES = """
take, noted, bury = Actor.take, Actor.about_to_make, Storm._bury
def die(self, it):
    if self.row[ledger.MAKING] == ledger.BLOCK and self.step > 10: os.kill(os.getpid(), signal.SIGKILL)
    return take(self, it)
def expect_it(self, number, member):
    member.was_killed = True
    bury(self, number, member)
Actor.take, Storm._bury = die, expect_it
"""


def test_unrecorded_blocks_are_accounted_for(killstorm):
    """A block that was made but not yet recorded is counted as lost, and freed."""
    status, report = killstorm("--operations", 500, code=DIES, kills_per_second=1)
    assert report["problems"] == []
    assert status == 0
    assert report["lost"] > 0


# Members are not killed, but end by themselves: a fault cannot disappear with its process, nor be attributed to a kill.
NO_KILLS = "storm.WAYS, storm.MERCIES = {'stopped and continued': 1}, (1,)\n"

BROKEN = {
    "leak": (
        "Actor.use_temporary = lambda self: self.shm.allocate(77)",
        ["leak at", "77 bytes, bytes; no killed process was making such a block"],
    ),
    "leak of a killed process, of another size": (
        DIES + "Actor.about_to_make = lambda self, what, n=0: noted(self, what, n + 1)",
        ["leak at", "no killed process was making such a block"],
    ),
    "lock without effect": (
        "class Nothing(contextlib.nullcontext):\n    def __init__(self, *_, **__): super().__init__()\nshmem.exclusive_lock = Nothing\n"
        "for lock in ('lock', 'unlock'): setattr(shmem.SharedMemory, lock, lambda *_, **__: None)",
        ["actor "],
    ),
    "mutex": (
        "leave = Actor._leave\nActor._leave = lambda self, at: None if at == contents.MUTEX_WITNESS else leave(self, at)",
        ["the mutex was acquired after actor", "went on to step"],
    ),
    "message twice": (
        "message = Actor._message\nActor._message = lambda self, which, n: message(self, which, n // 3 * 3)",
        ["came twice"],
    ),
    "message lost": (
        NO_KILLS
        + "note = Actor.note_message\nActor.note_message = lambda self, which, word: note(self, which, word) if word % 8 else None",
        ["messages are lost, but killed consumers had taken at most"],
    ),
    "semaphore": (
        "Actor.use_token = lambda self: self.tokens.signal()",
        ["the semaphore's value is"],
    ),
    "stuck": (  # only in check_heap, because an actor that waits for others would be reported as stuck first
        NO_KILLS + "Actor.use_event = Actor.consume = lambda self: None\nActor.check_heap = lambda self: shmem.Event().wait()",
        ["made no progress for", "in 'check_heap'", "Fatal Python error: Aborted", "thread"],
    ),
    "written past the end": (
        "fill = contents.fill\ndef fill_more(block, number):\n    fill(block, number)\n"
        "    ctypes.memset(block.address + block.nbytes, 7, 24)\ncontents.fill = fill_more",
        ["HeapCorruption|Violation"],  # the damaged tag is met first, or the next block's content
    ),
    "content": (
        "def spoil(self):\n    with shmem.exclusive_lock(self.shm):\n        for offset in self.slots.tolist():\n"
        "            if offset: memoryview(self.shm.block(offset))[-1:] = b'?'\nActor.use_temporary = spoil",
        ["Violation"],
    ),
    "content of a reallocated block": (
        "reallocate = shmem.SharedMemory.reallocate\ndef spoil(self, block, size):\n    block = reallocate(self, block, size)\n"
        "    memoryview(block)[8] ^= 1\n    return block\nshmem.SharedMemory.reallocate = spoil\n"
        "Actor._reallocate_slot = lambda *_: None",
        ["use_own_block", "Violation"],
    ),
    "does not end": (
        NO_KILLS + "member.end_member = lambda *_: time.sleep(60)",
        ["neither works nor ends"],
    ),
    "a name is lost": (
        "Actor.change_root = lambda self: self.shm.__delitem__('anchor 1')",
        ["KeyError: 'anchor 1'"],
    ),
    "participant stays": (  # only one process, because several could fill the table of participants first
        NO_KILLS + "def stay(self):\n    Actor.use_temporary = lambda self: None\n"
        "    try: os.close(os.open(os.path.join(self.storm.folder, 'stayed'), os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError: return\n"
        "    if os.fork() == 0:\n"
        "        os.close(1), os.close(2)\n"
        "        while os.path.exists(f'/proc/{self.storm.pid}'): time.sleep(0.05)\n        os._exit(0)\n"
        "Actor.use_temporary, Actor.use_side = stay, lambda self: None",
        ["participants are left"],
    ),
}
PATIENCE = {"stuck": 5, "does not end": 5, "participant stays": 5}  # seconds; long enough for slow machines


@pytest.mark.damages
@pytest.mark.parametrize("what", BROKEN)
def test_broken_promises_are_detected(what, killstorm):
    """Each promise is broken, by a client or by a primitive that misbehaves, and the storm reports it."""
    code, texts = BROKEN[what]
    n_operations = 20_000 if what == "stuck" else 1000
    status, report = killstorm("--operations", n_operations, "--patience", PATIENCE.get(what, 60), code=code, kills_per_second=0.2)
    assert status == 1
    output = "\n".join(report["problems"] + report["log"])
    assert all(any(one in output for one in text.split("|")) for text in texts), output
    assert report["seed"] >= 0


def test_wrong_arguments():
    for argument in ("--seconds=-1", "--kills-per-second=x"):
        done = subprocess.run([sys.executable, "-m", "shmem", "killstorm", argument], check=False, capture_output=True, text=True, cwd="/")
        assert done.returncode == 2
        assert f"error: argument {argument.partition('=')[0]}" in done.stderr
