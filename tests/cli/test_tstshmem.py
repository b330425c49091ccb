"""`python -m shmem tstshmem`: the table, its self-checks, and the cleanup after killed processes."""

import contextlib
import ctypes
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import shmem
from shmem.__main__ import main
from shmem._cli import tstshmem_crew, tstshmem_section, tstshmem_session, tstshmem_tree

SIZE = 1 << 25
WHOLE = "last to leave: tree empty, heap intact, no blocks left"
VARIANTS = ["python", "cython"]


class Program:
    """A running `python -m shmem tstshmem`."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", "-W", "error", "-m", "shmem", "tstshmem", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        self.pid = self.process.pid

    def end(self):
        """Return exit status, standard output and standard error."""
        try:
            out, err = self.process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGABRT)  # faulthandler prints the stack of each thread of each process
            out, err = self.process.communicate()
            raise AssertionError(f"the program hangs:\n{err}") from None
        return self.process.returncode, out, err

    def kill(self):
        """Kill the instance with SIGKILL; its members continue."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.communicate(timeout=30)


@pytest.fixture
def start():
    """Return a function that starts programs; those that still run at the end are killed with their process groups."""
    started = []

    def run(*arguments):
        started.append(Program(*arguments))
        return started[-1]

    yield run
    for one in started:
        if one.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.process.communicate()


@pytest.fixture
def memory(section_file):
    """Yield a section in a file, which stays open while programs start and end."""
    with shmem.SharedMemory(section_file, max_size=SIZE) as section:
        yield section


def wait_for(condition, seconds=60):
    """Return the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError(f"still false after {seconds} s")


def working_members(memory):
    """Return the process ids of the newest instance's members, once there are nodes in the tree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
        with shmem.shared_lock(memory):  # otherwise the instance may be freed and its memory reused
            control = memory.root
            if control is None or control.first is None or memory.stats().blocks < 100:
                return []
            return [int(pid) for pid in control.first.members if pid and int(pid) in memory.stats().participants]


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_is_printed(start, variant):
    status, out, err = start("-p", 2, "-t", 4, "-n", 300, "--variant", variant, "--size", "32M").end()
    assert (status, err) == (0, "")
    header, alone, together, verdict = out.splitlines()
    assert header.split() == ["variant", "locking", "processes", "threads", "keys", "seconds"]
    assert alone.split()[:-1] == [variant, "no", "1", "1", "300"]
    assert together.split()[:-1] == [variant, "yes", "2", "4", "2,400"]
    assert float(alone.split()[-1]) >= 0
    assert float(together.split()[-1]) > 0
    assert verdict == f"{variant}: own keys removed; {WHOLE}"


def test_json_of_both_variants(start):
    status, out, err = start("--variant", "both", "-p", 1, "-t", 2, "-n", 50, "--json", "--size", "32M").end()
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [(row["variant"], row["locking"], row["threads"]) for row in rows] == [
        ("python", False, 1), ("python", True, 2), ("cython", False, 1), ("cython", True, 2)]  # fmt: skip
    for row in rows:
        assert row["own_keys_left"] == row["blocks_left"] == row["killed"] == 0
        assert (row["is_last"], row["tree_empty"], row["heap_intact"], row["problems"]) == (True, True, True, [])


@pytest.mark.parametrize(
    "arguments",
    [["-p", "33"], ["-t", "33"], ["-p", "0"], ["-n", "0"], ["-n", "x"], ["--no-locking", "-t", "2"], ["--file", "x", "--name", "y"],
     ["--size", "1Q"], ["--variant", "perl"]],
)  # fmt: skip
def test_wrong_arguments_are_reported(capsys, arguments):
    try:
        status = main(["tstshmem", *arguments])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert capsys.readouterr().err


def test_help_is_printed(capsys):
    expected = {"--help": "fuzz", "tstshmem --help": "--no-locking", "fuzz --help": "--steps", "--version": shmem.__version__}
    for arguments, word in expected.items():
        with pytest.raises(SystemExit) as caught:
            main(arguments.split())
        assert caught.value.code == 0
        assert word in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["no-such-command"])
    assert caught.value.code == 2


def test_no_locking_on_a_file(start, section_file):
    status, out, err = start("--no-locking", "-n", 200, "--file", section_file).end()
    assert (status, err) == (0, "")
    assert [line.split()[:-1] for line in out.splitlines()[1:-1]] == [["cython", "no", "1", "1", "200"]]
    with shmem.SharedMemory(section_file) as section:
        assert section.root is None
        assert section.check_heap().blocks == 0


def test_file_is_kept_and_reused(start, section_file):
    for variant in ("python", "cython", "python"):
        status, out, err = start("-p", 1, "-n", 100, "--variant", variant, "--file", section_file, "--size", "32M").end()
        assert (status, err) == (0, "")
        assert WHOLE in out
    assert os.path.getsize(section_file) < 1 << 18


def test_several_instances_on_one_section(start):
    name = f"test-tstshmem-{os.getpid()}"
    programs = [start("-p", 2, "-t", 2, "-n", 2000, "--name", name, "--size", "32M") for _ in range(3)]
    ends = [program.end() for program in programs]
    assert [(status, err) for status, _, err in ends] == [(0, "")] * 3
    assert all("own keys removed" in out for _, out, _ in ends)
    assert any(WHOLE in out for _, out, _ in ends)
    with pytest.raises(shmem.SectionNotFound):
        shmem.SharedMemory(shared_name=name)


def test_keys_are_unique():
    shares = [tstshmem_section.keys_of_thread(number, member, thread, 50)
              for number, member, thread in itertools.product((1, 2, 1 << 20), (0, 1, 31), (0, 1, 31))]  # fmt: skip
    keys = np.concatenate(shares)
    assert len(np.unique(keys)) == len(keys) == 27 * 50
    assert keys.dtype == np.int64
    assert keys.min() < 0 < keys.max()


# -- the tree ---------------------------------------------------------------------------------------------------


def make_tree(memory, variant, class_of_python=tstshmem_section.PythonTree):
    control = memory.new(tstshmem_section.Control, variant=VARIANTS.index(variant), locking=True)
    return control, class_of_python(memory, control, True) if variant == "python" else tstshmem_section.tree_of(memory, control)


def lone(tree, key):
    """Return a key in the form that the variants' methods take."""
    return np.array([key], dtype=np.int64)


class Killed(BaseException):
    """Stand-in for a SIGKILL."""


class DyingTree(tstshmem_section.PythonTree):
    """A tree whose user is killed halfway through a removal, before a node is unlinked."""

    def _take_out(self, before, link, node, child):
        raise Killed


class DyingLaterTree(tstshmem_section.PythonTree):
    """A tree whose user is killed after a node was unlinked and before it is freed."""

    def _take_out(self, before, link, node, child):
        setattr(before, link, child)
        raise Killed


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(10))
def test_kill_before_freeing(shm, variant, seed):
    rng = random.Random(seed)
    control, tree = make_tree(shm, "python")
    dying = DyingLaterTree(shm, control, True)
    keys = rng.sample(range(1000), 150)
    for key in keys:
        tree.insert(key)
    gone = rng.sample(keys, 60)
    for n_lost, key in enumerate(gone, 1):
        with pytest.raises(Killed):
            dying.remove(key)
        assert tree.count_nodes() == 150 - n_lost
        assert tree.count_keys(np.array(gone[:n_lost])) == 0
    rest = np.array([key for key in keys if key not in gone])
    assert tree.count_keys(rest) == 90
    assert tree_of_variant(shm, control, variant).remove_keys(rest) == 90
    assert control.tree is None
    assert shm.check_heap().blocks == 1 + 60


def tree_of_variant(shm, control, variant):
    if variant == "python":
        return tstshmem_section.PythonTree(shm, control, True)
    return tstshmem_tree.Tree(shm, control.offset + tstshmem_section.Control.dtype.fields["tree"][1], True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(20))
def test_incomplete_removals_are_tolerated(shm, variant, seed):
    """Both variants tolerate the incomplete removals that a kill leaves.  They are made in Python; both variants use the same nodes."""
    rng = random.Random(seed)
    control, tree = make_tree(shm, "python")
    dying = DyingTree(shm, control, True)
    keys = rng.sample(range(1000), 150)
    for key in keys:
        tree.insert(key)
    user = tree_of_variant(shm, control, variant)
    present = set(keys)
    for key in rng.sample(keys, 60):
        with pytest.raises(Killed):
            dying.remove(key)
        if not tree.search(key):  # the node had two children, and its key was overwritten with its successor's
            present.discard(key)
        assert tree.count_nodes() == user.count_nodes() == 150
        assert user.count_keys(np.array(sorted(present))) == len(present)
    assert len(present) < 150
    for key in rng.sample(sorted(present), len(present)):
        assert user.remove_keys(lone(tree, key)) == 1
        assert user.count_keys(lone(tree, key)) == 0
        user.count_nodes()
        present.discard(key)
        assert user.count_keys(np.array(sorted(present), dtype=np.int64)) == len(present)
    assert user.count_nodes() == 0
    assert control.tree is None
    assert shm.check_heap().blocks == 1  # the control object: every node was freed, copies included


@pytest.mark.parametrize("variant", VARIANTS)
def test_tree_detects_damage(shm, variant):
    control, tree = make_tree(shm, variant)
    keys = tstshmem_section.keys_of_thread(1, 0, 0, 100)
    tree.work(keys, bytearray(1))
    assert tree.count_nodes() == tree.count_keys(keys) == tree.remove_keys(keys) == 0
    root = shm.new(tstshmem_section.Node, key=int(keys[5]), left=shm.new(tstshmem_section.Node, key=-1 if keys[5] > 0 else -(1 << 62)))
    control.tree = root
    with pytest.raises(RuntimeError, match="already in the tree"):
        tree.work(keys, bytearray(1))
    assert tree.count_keys(keys) == 1  # those inserted before it are removed
    root.left.key = (1 << 63) - 1
    with pytest.raises(RuntimeError, match="damaged"):
        tree.count_nodes()
    root.left = root
    with pytest.raises(RuntimeError, match="damaged"):
        tree.count_nodes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_section_is_left_empty(variant):
    with shmem.SharedMemory(max_size=1 << 17) as small:
        _, tree = make_tree(small, variant)
        with pytest.raises(shmem.ShmemError) as caught:
            tree.work(tstshmem_section.keys_of_thread(1, 0, 0, 10_000), bytearray(1))
        assert caught.value.status == shmem.Status.no_memory
        assert tree.count_nodes() == 0
        assert small.check_heap().blocks == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_work_leaves_nothing(variant):
    """Stopped work removes its keys.  There are enough of them that the work is not completed before the first check for a stop."""
    with shmem.SharedMemory(max_size=1 << 28) as section:
        _, tree = make_tree(section, variant)
        keys = tstshmem_section.keys_of_thread(1, 0, 0, 1_000_000)
        with pytest.raises(ZeroDivisionError):
            tstshmem_crew.work_in_threads(tree, [keys, -keys], lambda: 1 / 0)
        assert tree.count_nodes() == 0
        del tree, _


# -- self-checks can fail -------------------------------------------------------------------------------------------


def session_on(memory, **what):
    what = {"variant": "cython", "locking": True, "processes": 1, "threads": 1, "keys": 50, **what}
    outcome = tstshmem_session.Outcome(memory.name, **what)
    session = tstshmem_session.Session(memory, {"file_name": memory.path}, outcome)
    session.enter()
    return session


def test_leftover_key_block_and_node_are_detected(memory, capsys):
    session = session_on(memory)
    memory.allocate(10)
    key = tstshmem_section.keys_of_member(session.instance, 0)[0][7]
    memory.root.tree = memory.new(tstshmem_section.Node, key=int(key))
    session.prove_own_keys_gone()
    session.leave()
    assert session.outcome.problems == ["1 of this instance's keys are still in the tree", "the tree is not empty"]
    assert session.outcome.status() == 1
    memory.root.tree = None
    session = session_on(memory)  # this session starts with two existing blocks
    memory.allocate(10)
    session.leave()
    assert session.outcome.problems == ["blocks left in the heap: 1"]
    assert memory.root is None
    assert "blocks left in the heap: 1" in capsys.readouterr().err


@pytest.mark.damages
def test_broken_heap_is_detected(memory, capsys):
    session = session_on(memory)
    block = memory.allocate(40)
    ctypes.memset(block.address + block.nbytes, 0xFF, 8)
    session.leave()
    assert session.outcome.heap_intact is False
    assert session.outcome.status() == 1
    assert "overwritten" in capsys.readouterr().err


def test_unsuitable_sections_are_rejected(start, memory, section_file):
    memory.root = memory.allocate(100)
    status, out, err = start("-n", 10, "--file", section_file).end()
    assert status == 1
    assert "root object" in err
    memory.root = None
    session = session_on(memory, variant="python")
    status, _, err = start("-n", 10, "--file", section_file).end()
    assert status == 1
    assert "an instance of the python variant is running" in err
    status, _, err = start("-n", 10, "--variant", "python", "--no-locking", "--file", section_file).end()
    assert status == 1
    assert "another instance is running" in err
    status, out, err = start("-n", 10, "--variant", "python", "--file", section_file).end()
    assert (status, err) == (0, "")
    assert "other instances are still running" in out
    session.leave()
    assert session.outcome.is_last
    assert session.outcome.status() == 0


# -- killed processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_member(start, memory, section_file, variant):
    n_keys = {"python": 4000, "cython": 60_000}[variant]
    program = start("-p", 3, "-t", 2, "-n", n_keys, "--variant", variant, "--file", section_file)
    victim = wait_for(lambda: working_members(memory))[1]
    os.kill(victim, signal.SIGKILL)
    status, out, err = program.end()
    assert status == 3, err
    assert re.search(rf"member 1 \(process {victim}\) was killed by SIGKILL; removed [\d,]+ keys that it left", err)
    assert out.splitlines()[-2].split()[-1] == "-"  # no time is shown for unfinished work
    assert "own keys removed; last to leave: tree empty, heap intact" in out
    assert memory.root is None
    assert memory.check_heap().blocks <= 1  # a kill may leak one block


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_instance_is_cleaned_up(start, memory, section_file, variant):
    program = start("-p", 2, "-t", 2, "-n", 30_000, "--variant", variant, "--file", section_file)
    members = wait_for(lambda: working_members(memory))
    for pid in [program.pid, *members]:
        os.kill(pid, signal.SIGKILL)
    program.process.communicate(timeout=30)
    wait_for(lambda: len(memory.stats().participants) == 1)
    status, out, err = start("-n", 10, "-p", 1, "--file", section_file, "--variant", variant).end()
    assert status == 3, err
    found = re.search(rf"instance 1 \(process {program.pid}\) was killed; removed ([\d,]+) keys that it left", err)
    assert int(found[1].replace(",", "")) > 50
    assert f"own keys removed; {WHOLE}" in out
    assert memory.root is None


def test_members_of_a_killed_instance_clean_up(start, memory, section_file):
    program = start("-p", 2, "-t", 2, "-n", 200_000, "--file", section_file)
    wait_for(lambda: working_members(memory))
    session = session_on(memory)  # starts before the kill and ends after it
    program.kill()
    session.leave()
    assert session.outcome.is_last
    assert session.outcome.status() == 3
    assert session.outcome.tree_empty
    assert session.outcome.blocks_left == 0
    assert len(memory.stats().participants) == 1


def test_interrupt_ends_the_instance(start, memory, section_file):
    program = start("-p", 2, "-t", 2, "-n", 200_000, "--file", section_file)
    wait_for(lambda: working_members(memory))
    os.killpg(program.pid, signal.SIGINT)  # to members too, as a terminal sends it
    status, out, err = program.end()
    assert status == 130
    assert err == "tstshmem: interrupted\n"
    assert f"own keys removed; {WHOLE}" in out
    assert memory.check_heap().blocks == 0
    assert len(memory.stats().participants) == 1


def test_existing_blocks_are_not_counted(start, memory, section_file):
    """Blocks of other programs, and of an instance killed before it registered, do not count as leaks."""
    memory.allocate(100)
    memory.root = memory.new(tstshmem_section.Control)
    memory.new(tstshmem_section.Instance)
    status, out, err = start("-n", 10, "--file", section_file).end()
    assert (status, err) == (0, "")
    assert WHOLE in out
    assert memory.root is None
    assert memory.check_heap().blocks == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_kills(start, memory, section_file, variant):
    """Members of two instances are killed at random moments; then one more instance must find everything in order."""
    rng = random.Random(variant)
    n_keys = {"python": 2000, "cython": 25_000}[variant]  # work for longer than the sleeps
    programs = [start("-p", 4, "-t", 2, "-n", n_keys, "--variant", variant, "--file", section_file) for _ in range(2)]
    for _ in range(5):
        wait_for(lambda: working_members(memory) or all(program.process.poll() is not None for program in programs))
        time.sleep(rng.random() * 0.05)
        with contextlib.suppress(ProcessLookupError, IndexError, shmem.InvalidBlock):
            os.kill(rng.choice(working_members(memory)), signal.SIGKILL)
    ends = [program.end() for program in programs]
    assert {status for status, _, _ in ends} <= {0, 3}, ends
    assert any(status == 3 for status, _, _ in ends)
    status, out, err = start("-n", 100, "--variant", variant, "--file", section_file).end()
    assert (status, err) == (0, "")
    assert WHOLE in out
    memory.check_heap()
