"""Random operations on a heap against a model, for both indexes of free blocks; planted faults are detected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import shmem
from shmem.__main__ import main
from shmem.testing.heap_machine import HeapMachine, NextFitHeapMachine

# The same operations every time, so that a failure is due to the change under test; `python -m shmem fuzz` tries new ones.
SETTINGS = settings(
    max_examples=120, stateful_step_count=50, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip


class TestTlsf(HeapMachine.TestCase):
    settings = SETTINGS


class TestNextFit(NextFitHeapMachine.TestCase):
    settings = SETTINGS


def no_free(monkeypatch):
    free = shmem.SharedMemory.free
    monkeypatch.setattr(shmem.SharedMemory, "free", lambda self, what: None if isinstance(what, shmem.Block) else free(self, what))


def no_clearing(monkeypatch):
    allocate = shmem.SharedMemory.allocate
    monkeypatch.setattr(shmem.SharedMemory, "allocate", lambda self, size, zero=True, align=16: allocate(self, size, False, align))


def no_move(monkeypatch):
    """Lose the contents of a block that moves."""

    def reallocate(self, obj, size, zero=True):
        block = self.allocate(size)
        self.free(obj)
        return block

    monkeypatch.setattr(shmem.SharedMemory, "reallocate", reallocate)


def forgetful(monkeypatch):
    """Lose the names on closing."""
    close = shmem.SharedMemory.close

    def forget(self):
        for name in [] if self.closed else list(self):
            del self[name]
        close(self)

    monkeypatch.setattr(shmem.SharedMemory, "close", forget)


@pytest.mark.parametrize("break_it", [no_free, no_clearing, no_move, forgetful])
def test_planted_faults_are_detected(monkeypatch, break_it):
    break_it(monkeypatch)
    with pytest.raises((AssertionError, shmem.ShmemError)):
        run_state_machine_as_test(HeapMachine, settings=settings(SETTINGS, report_multiple_bugs=False, phases=[Phase.generate]))


def test_fuzz_prints_the_shortest_sequence(monkeypatch, capsys):
    no_free(monkeypatch)
    assert main(["fuzz", "--steps", "2000", "--seed", "5", "--index", "next_fit"]) == 1
    text = capsys.readouterr().err
    assert "state = NextFitHeapMachine()" in text
    steps = [line for line in text.splitlines() if line.startswith("state.") and "check()" not in line and "teardown()" not in line]
    assert 1 <= len(steps) <= 3
    assert "reproduce with --index next_fit --seed 5 --steps 2000" in text


def test_fuzz_leaves_no_files(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-m", "shmem", "fuzz", "--steps", "200", "--seed", "1"],
        cwd=tmp_path / "work",
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "no failures" in done.stderr
    assert list(Path(tmp_path).rglob("*/*")) == []


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "x"], ["--index", "best_fit"]])
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["fuzz", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err
