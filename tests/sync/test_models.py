"""The Promela models in `models`: each is free of errors, each seeded error is found, and each marked place is reached.

A row of the table is a model, its switches (`-D`, for `spin -a`) and the verdict that Spin must reach.  A new model needs a few rows.
`-DREACH=n` asserts that place n is never reached.  Spin must refute it; otherwise a clean run proves nothing about the place.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[1] / "models"

CLEAN = "errors: 0"
ASSERTION = "assertion violated"
DEADLOCK = "invalid end state"
STARVED = "non-progress cycle"
REACHED = "assertion violated (REACH)"

# messages of pan after an incomplete search, for which "errors: 0" proves nothing
GAVE_UP = ["max search depth too small", "out of memory", "-DMEMLIM bound", "Search not completed", "aborting", "Bit statespace"]

SAFETY = (["-DSAFETY"], [])
SMALL = (["-DSAFETY", "-O0"], [])  # the search takes less time than optimised compilation
LIVENESS = (["-DNP", "-DNFAIR=3"], ["-l", "-f"])  # no fair non-progress cycle

TABLE = [
    # the storage lock
    ("gate.pml", "KILLS=0 OPS0=5 OPS1=5 OPS2=5", CLEAN, SAFETY),
    ("gate.pml", "KILLS=0 N0=2 OPS0=4 OPS1=4 OPS2=1 IMPATIENT=4", CLEAN, SAFETY),
    ("gate.pml", "KILLS=0 OPS0=4 OPS1=1 OPS2=2 IMPATIENT=5", CLEAN, SAFETY),
    ("gate.pml", "OPS0=4 OPS1=1 OPS2=4", CLEAN, SAFETY),
    ("gate.pml", "QUIET N0=2 OPS0=4 OPS1=4 OPS2=1", CLEAN, SAFETY),
    ("gate.pml", "QUIET OPS0=4 OPS1=2 OPS2=3", CLEAN, SAFETY),
    ("gate.pml", "QUIET OPS0=8 OPS1=5 OPS2=8", CLEAN, SAFETY),
    ("gate.pml", "QUIET TWO=1 OPS0=1 OPS1=4 OPS2=2", CLEAN, SAFETY),
    ("gate.pml", "QUIET REUSE=1 OPS0=4 OPS1=0 OPS2=5", CLEAN, SAFETY),
    *(("gate.pml", f"OPS0=5 OPS1=4 OPS2=5 REACH={n}", REACHED, SAFETY) for n in (1, 5)),
    *(("gate.pml", f"KILLS=0 N0=2 OPS0=4 OPS1=4 OPS2=1 REACH={n}", REACHED, SAFETY) for n in (2, 3, 7)),
    ("gate.pml", "OPS0=4 OPS1=2 OPS2=1 REACH=4", REACHED, SAFETY),
    ("gate.pml", "QUIET REUSE=1 OPS0=4 OPS1=0 OPS2=5 REACH=6", REACHED, SAFETY),
    ("gate.pml", "NO_WAKE_WRITER KILLS=0 OPS0=4 OPS1=4 OPS2=1", DEADLOCK, SAFETY),
    ("gate.pml", "NO_WAKE_UPGRADER KILLS=0 OPS0=4 OPS1=2 OPS2=1", DEADLOCK, SAFETY),
    ("gate.pml", "NO_DRAIN_NOTIFY KILLS=0 OPS0=4 OPS1=1 OPS2=1", DEADLOCK, SAFETY),
    ("gate.pml", "NO_YIELD KILLS=0 OPS0=4 OPS1=2 OPS2=1", DEADLOCK, SAFETY),
    ("gate.pml", "NO_OWN TWO=1 OPS0=1 OPS1=4 OPS2=2", ASSERTION, SAFETY),
    ("gate.pml", "NO_TAKE_OVER QUIET OPS0=4 OPS1=1 OPS2=4", DEADLOCK, SAFETY),
    ("gate.pml", "NO_GENERATION QUIET REUSE=1 OPS0=4 OPS1=0 OPS2=5", DEADLOCK, SAFETY),
    ("gate.pml", "NO_ORDER QUIET REUSE=1 OPS0=4 OPS1=0 OPS2=5", DEADLOCK, SAFETY),
    # the lock while signal handlers run in a drain: the claim is kept, or lost to a waiter, released, or taken over
    ("gate.pml", "SIGNALS=1 KILLS=0 IMPATIENT=1 OPS0=4 OPS1=1 OPS2=1", CLEAN, SAFETY),
    ("gate.pml", "SIGNALS=1 KILLS=0 OPS0=2 OPS1=4 OPS2=1", CLEAN, SAFETY),
    ("gate.pml", "SIGNALS=1 KILLS=0 HANDLER_WAITS OPS0=4 OPS1=1 OPS2=1", CLEAN, SAFETY),
    *(("gate.pml", f"SIGNALS=1 KILLS=0 OPS0=4 OPS1=1 OPS2=1 REACH={n}", REACHED, SAFETY) for n in (8, 9)),
    ("gate.pml", "SIGNALS=1 KILLS=0 OPS0=2 OPS1=4 OPS2=1 REACH=10", REACHED, SAFETY),
    ("gate.pml", "SIGNALS=1 KILLS=0 NO_BREAK HANDLER_WAITS OPS0=4 OPS1=1 OPS2=1", DEADLOCK, SAFETY),
    ("gate.pml", "SIGNALS=1 VICTIM=0 OPS0=4 OPS1=0 OPS2=1", CLEAN, SAFETY),
    ("gate.pml", "SIGNALS=1 NO_CLEAR QUIET VICTIM=0 OPS0=4 OPS1=4 OPS2=1", ASSERTION, SAFETY),
    ("gate.pml", "SIGNALS=4 NO_CLEAR QUIET REUSE=1 N0=2 OPS0=5 OPS1=0 OPS2=4", ASSERTION, SAFETY),
    # the death of a reader, found by a writer and by the one that takes the reader's entry
    ("death_notice.pml", "", CLEAN, SMALL),
    *(("death_notice.pml", f"REACH={n}", REACHED, SMALL) for n in (1, 2, 3)),
    ("death_notice.pml", "NOTICE_LATE", ASSERTION, SMALL),
    ("death_notice.pml", "BLIND_STORE", ASSERTION, SMALL),
    # fairness of the lock: thread 2 is never starved, as a reader among writers, a writer among readers, or a writer among both
    ("gate.pml", "WATCHED=2 KILLS=0 OPS0=4 OPS1=4 OPS2=1", CLEAN, LIVENESS),
    ("gate.pml", "WATCHED=2 KILLS=0 OPS0=4 OPS1=1 OPS2=1", CLEAN, LIVENESS),
    ("gate.pml", "WATCHED=2 KILLS=0 OPS0=1 OPS1=1 OPS2=4", CLEAN, LIVENESS),
    ("gate.pml", "WATCHED=2 KILLS=0 OPS0=4 OPS1=1 OPS2=4", CLEAN, LIVENESS),
    ("gate.pml", "SIGNALS=4 NO_BREAK NO_STARVING WATCHED=2 KILLS=0 OPS0=1 OPS1=1 OPS2=4", CLEAN, LIVENESS),
    ("gate.pml", "SIGNALS=4 GIVE_BACK WATCHED=2 KILLS=0 OPS0=1 OPS1=1 OPS2=4", STARVED, LIVENESS),
    ("gate.pml", "SIGNALS=4 GIVE_BACK WATCHED=2 KILLS=0 OPS0=1 OPS1=0 OPS2=4", STARVED, LIVENESS),
    ("gate.pml", "NO_STARVING WATCHED=2 KILLS=0 OPS0=4 OPS1=0 OPS2=1", STARVED, LIVENESS),
    ("gate.pml", "NO_STARVING WATCHED=2 KILLS=0 OPS0=4 OPS1=0 OPS2=4", STARVED, LIVENESS),
    ("gate.pml", "NO_END_TURN WATCHED=2 KILLS=0 OPS0=4 OPS1=1 OPS2=4", STARVED, LIVENESS),
    ("gate.pml", "NO_FLAG_KEPT WATCHED=2 KILLS=0 OPS0=4 OPS1=1 OPS2=4", STARVED, LIVENESS),
    # the channel, and on it the semaphore
    ("channel.pml", "", CLEAN, SAFETY),
    ("channel.pml", "NO_KILLS", CLEAN, SAFETY),
    ("channel.pml", "BINARY", CLEAN, SAFETY),
    *(("channel.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 8)),
    ("channel.pml", "NOTIFY_WITHOUT_SEQUENCE", ASSERTION, SAFETY),
    ("channel.pml", "LOOK_BEFORE_REGISTER", DEADLOCK, SAFETY),
    ("channel.pml", "WITHDRAW_BLINDLY", ASSERTION, SAFETY),
    ("channel.pml", "CLEAR_BLINDLY", ASSERTION, SAFETY),
    ("channel.pml", "NOTIFY_BEFORE_CHANGE", DEADLOCK, SAFETY),
    ("channel.pml", "NO_WAKE", DEADLOCK, SAFETY),
    ("channel.pml", "NO_KILLS WAKE_ONE", DEADLOCK, SAFETY),
    ("channel.pml", "BINARY GIVE_UP_WITHOUT_LOOK", DEADLOCK, SAFETY),
    ("channel.pml", "PLAIN_TAKE", ASSERTION, SAFETY),
    # the event
    ("event.pml", "", CLEAN, SAFETY),
    ("event.pml", "NO_KILLS", CLEAN, SAFETY),
    *(("event.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 6)),
    ("event.pml", "LOOK_AT_STATE_ALONE", DEADLOCK, SAFETY),
    ("event.pml", "SIGNAL_DOES_NOT_COUNT", DEADLOCK, SAFETY),
    ("event.pml", "SINCE_TAKEN_ANEW", DEADLOCK, SAFETY),
    ("event.pml", "SIGNAL_WITHOUT_SWAP", ASSERTION, SAFETY),
    ("event.pml", "WAKE_ONE", ASSERTION, SAFETY),
    ("event.pml", "NO_WAKE", DEADLOCK, SAFETY),
    # the mutex
    ("mutex.pml", "", CLEAN, SAFETY),
    ("mutex.pml", "NO_KILLS", CLEAN, SAFETY),
    ("mutex.pml", "REUSED EARLY=2", CLEAN, SAFETY),
    *(("mutex.pml", f"NO_KILLS REACH={n}", REACHED, SAFETY) for n in (1, 5)),
    *(("mutex.pml", f"REUSED REACH={n}", REACHED, SAFETY) for n in (2, 3, 4)),
    ("mutex.pml", "THREAD_POINTER_ALONE", ASSERTION, SAFETY),
    ("mutex.pml", "NO_KILLS THREAD_POINTER_ALONE", ASSERTION, SAFETY),
    ("mutex.pml", "NO_KILLS THREAD_NOT_WIPED", ASSERTION, SAFETY),
    ("mutex.pml", "REUSED NO_TAKE_OVER", DEADLOCK, SAFETY),
    ("mutex.pml", "REUSED TAKE_OVER_BLINDLY", ASSERTION, SAFETY),
    ("mutex.pml", "REUSED GENERATION_NOT_COMPARED", DEADLOCK, SAFETY),
    ("mutex.pml", "REUSED DEATH_NOT_REPORTED", ASSERTION, SAFETY),
    ("mutex.pml", "NO_KILLS DEATH_REPORTED_TWICE", ASSERTION, SAFETY),
    ("mutex.pml", "NO_NOTIFY", DEADLOCK, SAFETY),
    # the heap gate
    ("heap_gate.pml", "EARLY=2", CLEAN, SAFETY),
    ("heap_gate.pml", "NO_KILLS", CLEAN, SMALL),
    *(("heap_gate.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 6)),
    ("heap_gate.pml", "NO_RECOVERY", ASSERTION, SAFETY),
    ("heap_gate.pml", "NO_TAKE_OVER", DEADLOCK, SAFETY),
    ("heap_gate.pml", "GENERATION_NOT_COMPARED", DEADLOCK, SAFETY),
    ("heap_gate.pml", "TAKE_OVER_BLINDLY", ASSERTION, SAFETY),
    ("heap_gate.pml", "NO_KILLS WAITERS_NOT_KEPT", DEADLOCK, SAFETY),
    ("heap_gate.pml", "NO_KILLS WAITERS_NOT_SET", DEADLOCK, SAFETY),
    ("heap_gate.pml", "NO_KILLS NO_WAKE", DEADLOCK, SAFETY),
    # backing above `top`
    ("backing.pml", "", CLEAN, SAFETY),
    *(("backing.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 5)),
    ("backing.pml", "RESERVED_FIRST", ASSERTION, SAFETY),
    ("backing.pml", "NOT_ASKED_AGAIN", ASSERTION, SAFETY),
    ("backing.pml", "TRIM_WITHOUT_RESERVE_GATE", ASSERTION, SAFETY),
    ("backing.pml", "PUNCH_FIRST", ASSERTION, SAFETY),
    ("backing.pml", "UNDO_WITHOUT_RESERVE_GATE", ASSERTION, SAFETY),
    ("backing.pml", "LOWER_WITHOUT_HEAP_GATE", ASSERTION, SAFETY),
    ("backing.pml", "NO_TAKE_OVER", DEADLOCK, SAFETY),
    # a name table that grows
    ("name_growth.pml", "", CLEAN, SAFETY),
    *(("name_growth.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 5)),
    ("name_growth.pml", "SLOT_CLEARED_FIRST", ASSERTION, SAFETY),
    ("name_growth.pml", "CURSOR_FIRST", ASSERTION, SAFETY),
    ("name_growth.pml", "DUPLICATES_STAY", ASSERTION, SAFETY),
    ("name_growth.pml", "COUNTS_STAY", ASSERTION, SAFETY),
    ("name_growth.pml", "DROPPED_EARLY", ASSERTION, SAFETY),
    ("name_growth.pml", "DROPPED_WITHOUT_INTENT", ASSERTION, SAFETY),
    ("name_growth.pml", "LOOK_UP_NEW_ONLY", ASSERTION, SAFETY),
    # the exit of a process
    ("exit.pml", "", CLEAN, SAFETY),
    ("exit.pml", "STAYS", CLEAN, SAFETY),
    *(("exit.pml", f"STAYS REACH={n}", REACHED, SAFETY) for n in range(1, 10)),
    ("exit.pml", "LOOK_BEFORE_COUNT", ASSERTION, SAFETY),
    ("exit.pml", "CHECK_BEFORE_LEAVES", ASSERTION, SAFETY),
    ("exit.pml", "LOOK_WITHOUT_GIL", ASSERTION, SAFETY),
    ("exit.pml", "FILLING_NOT_BUSY", ASSERTION, SAFETY),
    ("exit.pml", "LOCK_NOT_BUSY", ASSERTION, SAFETY),
    ("exit.pml", "NESTED_CALL_TURNS_BACK", ASSERTION, SAFETY),
    ("exit.pml", "STAYS DEPART_WHILE_BUSY", ASSERTION, SAFETY),
    ("exit.pml", "VIEWS_NOT_KEPT", ASSERTION, SAFETY),
    ("exit.pml", "RESTING_IS_DEAD", ASSERTION, SAFETY),
    ("exit.pml", "WAITER_STAYS", ASSERTION, SAFETY),
    ("exit.pml", "LEAVE_WITHOUT_OPENING_BYTE", ASSERTION, SAFETY),
    # the queue's ring
    ("ring.pml", "", CLEAN, SAFETY),
    ("ring.pml", "TWO_PRODUCERS", CLEAN, SAFETY),
    ("ring.pml", "GIVES_UP", CLEAN, SAFETY),
    *(("ring.pml", f"REACH={n}", REACHED, SAFETY) for n in range(1, 6)),
    ("ring.pml", "GIVES_UP REACH=6", REACHED, SAFETY),
    ("ring.pml", "GIVES_UP WAKE_NOT_PASSED_ON", DEADLOCK, SAFETY),
    ("ring.pml", "LOOK_BEFORE_REGISTER", DEADLOCK, SAFETY),
    ("ring.pml", "NOTIFY_BEFORE_COMMIT", DEADLOCK, SAFETY),
    ("ring.pml", "NO_WAKE", DEADLOCK, SAFETY),
    ("ring.pml", "TAIL_BEFORE_COPY", ASSERTION, SAFETY),
    ("ring.pml", "HEAD_BEFORE_COPY", ASSERTION, SAFETY),
    ("ring.pml", "TWO_PRODUCERS NO_GATE", ASSERTION, SAFETY),
    # memory order: with store buffers as on x86 the check may be a plain load; on Arm every access needs ordering
    *(("store_buffer.pml", f"{processor} PAIR={pair}", CLEAN, SMALL) for pair in (1, 2, 3, 4, 5) for processor in ("TSO", "WEAK")),
    *(("store_buffer.pml", f"WEAK PAIR={pair} REACH={n}", REACHED, SMALL) for pair in (1, 2, 3, 4, 5) for n in (1, 2)),
    *(("store_buffer.pml", f"{processor} PAIR=5 PLAIN=3", ASSERTION, SMALL) for processor in ("TSO", "WEAK")),
    *(("store_buffer.pml", f"TSO PAIR={pair} PLAIN={n}", ASSERTION, SMALL) for pair in (1, 2, 3) for n in (1, 3)),
    *(("store_buffer.pml", f"TSO PAIR=1 PLAIN={n}", CLEAN, SMALL) for n in (2, 4)),
    *(("store_buffer.pml", f"WEAK PAIR={pair} PLAIN={n}", ASSERTION, SMALL) for pair in (1, 2, 3) for n in (1, 2, 3, 4)),
    *(("store_buffer.pml", f"TSO PAIR=4 PLAIN={n}", CLEAN, SMALL) for n in (2, 3)),
    *(("store_buffer.pml", f"WEAK PAIR=4 PLAIN={n}", ASSERTION, SMALL) for n in (2, 3)),
]

pytestmark = [
    pytest.mark.skipif(not MODELS.is_dir(), reason="tests run without the models"),
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed (Debian's package spin)"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler: gcc is not installed"),
]


def call(folder, *command):
    """Run a command, which must succeed; return its output."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def search(folder, model, switches, expected, kind):
    """Generate Spin's verifier for a model and run it; return its output."""
    of_compiler, of_verifier = kind
    call(folder, "spin", *(f"-D{switch}" for switch in switches.split()), "-a", str(MODELS / model))
    # an error is found in less time than optimised compilation takes
    call(folder, "gcc", "-O2" if expected == CLEAN else "-O0", "-DMEMLIM=6000", "-DCOLLAPSE", *of_compiler, "-o", "pan", "pan.c")
    return call(folder, "./pan", "-m300000", "-w24" if expected == CLEAN else "-w18", *of_verifier)


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory):
    """Run the selected rows of the table, one per processor at a time; return a dictionary (model, switches) -> future."""
    chosen = [item.callspec.params for item in request.session.items if getattr(item, "originalname", "") == "test_model"]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {(line["model"], line["switches"]): pool.submit(search, tmp_path_factory.mktemp("model"), **line) for line in chosen}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("model", "switches", "expected", "kind"), TABLE, ids=lambda cell: cell if isinstance(cell, str) else "")
def test_model(runs, model, switches, expected, kind):
    output = runs[model, switches].result()
    errors = re.search(r"State-vector \d+ byte, depth reached \d+, errors: (\d+)", output)
    assert errors, output
    found = re.findall(r"^pan:\d+: (.*) \(at depth \d+\)$", output, re.M)
    if expected == CLEAN:
        assert (errors[1], found) == ("0", []), output
        assert not any(words in output for words in GAVE_UP), output
        return
    assert errors[1] == "1", output
    assert len(found) == 1, output
    if expected == REACHED:
        place = switches.split("REACH=")[1]
        assert found[0] == f"{ASSERTION} ({place}!={place})", output
    else:
        assert found[0].startswith(expected), output


def test_every_model_is_in_the_table():
    assert {row[0] for row in TABLE} == {path.name for path in MODELS.glob("*.pml")}


def test_every_model_has_seeded_errors():
    """A model that does not find errors in broken code proves nothing about the code."""
    for model in {row[0] for row in TABLE}:
        expected = [row[2] for row in TABLE if row[0] == model]
        assert CLEAN in expected
        assert REACHED in expected
        assert len([one for one in expected if one not in (CLEAN, REACHED)]) >= 2
