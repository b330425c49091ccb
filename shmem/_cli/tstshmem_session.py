"""A session of `tstshmem`: one instance registers in a section, works, proves its claims and leaves."""

import dataclasses
import os
import signal
import sys
import time

import shmem
from shmem._cli.tstshmem_crew import PATIENCE, Crew, work_in_threads
from shmem._cli.tstshmem_section import VARIANTS, Control, Instance, keys_of_member, tree_of
from shmem._objects import lock as _lock


class Refused(Exception):
    """This instance cannot work on the section."""


@dataclasses.dataclass
class Outcome:
    """A row of the table, and the results of the proofs."""

    section: str
    variant: str
    locking: bool
    processes: int
    threads: int
    keys: int
    seconds: float | None = None
    own_keys_left: int | None = None
    is_last: bool = False
    tree_empty: bool | None = None
    heap_intact: bool | None = None
    blocks_left: int | None = None
    killed: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def status(self):
        """Return the exit status of the program."""
        return 1 if self.problems else 3 if self.killed else 0


def say(text):
    """Print a message to standard error."""
    print(f"tstshmem: {text}", file=sys.stderr, flush=True)


class Session:
    """One instance of the program on one section.

    Parameters
    ----------
    memory : SharedMemory
    place : dict
        The arguments with which members open the section.
    outcome : Outcome
        The work to do; the results are filled in.
    """

    def __init__(self, memory, place, outcome):
        self.memory = memory
        self.place = place
        self.outcome = outcome
        self.exclusive = shmem.exclusive_lock(memory)
        self.control = None
        self.instance = None
        self.tree = None

    # -- arriving

    def enter(self):
        """Clean up after instances that were killed, then register; raise `Refused` if the instance cannot work here."""
        while True:
            with self.exclusive:
                self.control = self._find_control()
                dead = self._adopt()
                if not dead:
                    self._join()
                    return
            self._bury(dead)

    def _find_control(self):
        control = self.memory.root
        if control is None:
            control = self.memory.new(Control)
            self.memory.root = control
        if not isinstance(control, Control):
            raise Refused(f"cannot use {self.memory.name}: its root object belongs to another program: {control!r}; choose another section")
        return control

    def _join(self):
        control, outcome = self.control, self.outcome
        if control.first is None:
            self._begin()
        elif VARIANTS[control.variant] != outcome.variant:
            raise Refused(f"cannot join {self.memory.name}: an instance of the {VARIANTS[control.variant]} variant is running there")
        elif not (control.locking and outcome.locking):
            raise Refused(f"cannot run without locks on {self.memory.name}: another instance is running there")
        self.tree = tree_of(self.memory, control, outcome.locking)
        control.n_started += 1
        self.instance = self.memory.new(
            Instance, number=control.n_started, pid=os.getpid(), owner=_lock.participant(self.memory), processes=outcome.processes,
            threads=outcome.threads, keys=outcome.keys, next=control.first)  # fmt: skip
        control.first = self.instance

    def _begin(self):
        """Note what is in the section before the first instance begins."""
        control = self.control
        n_nodes = tree_of(self.memory, control).count_nodes()
        if n_nodes:
            raise Refused(f"cannot use {self.memory.name}: its tree has {n_nodes} nodes that do not belong to any instance")
        control.variant = VARIANTS.index(self.outcome.variant)
        control.locking = self.outcome.locking
        control.blocks_before = self.memory.check_heap().blocks - 1
        control.deaths_before = self.memory.owner_deaths

    # -- cleaning up after the dead

    def _adopt(self):
        """Take over the instances without a live process; return each with its former process id.  The caller holds the lock."""
        dead = [one for one in self.control.instances() if not one.is_alive(self.memory)]
        former = [one.pid for one in dead]
        for one in dead:
            one.members[:] = one.crew[:] = 0
            one.pid, one.owner = os.getpid(), _lock.participant(self.memory)
        return list(zip(dead, former, strict=True))

    def _bury(self, dead):
        """Remove the keys of adopted instances, and forget the instances."""
        tree = tree_of(self.memory, self.control)
        for instance, pid in dead:
            n_keys = sum(tree.remove_keys(keys) for keys in instance.all_keys())
            say(f"instance {instance.number} (process {pid}) was killed; removed {n_keys:,} keys that it left")
            self.outcome.killed += 1
            with self.exclusive:
                self.control.forget(instance)

    # -- working

    def work(self):
        """Do the work, and remove what killed or failed members left of it.  Ctrl-C ends it early."""
        if not self.outcome.locking:
            started, ended = work_in_threads(self.tree, keys_of_member(self.instance, 0), lambda: False)
            self.outcome.seconds = ended - started
            return
        crew = Crew(self.place, self.instance)
        try:
            if crew.make_ready():
                crew.work()
        finally:
            try:
                crew.stop(PATIENCE)
            except KeyboardInterrupt:  # the second Ctrl-C
                crew.stop(0)
            self._settle(crew)

    def _settle(self, crew):
        """Remove the keys of members that did not finish, and report how members ended; all have ended."""
        times = [member.times for member in crew.members if member.times]
        if len(times) == len(crew.members):
            self.outcome.seconds = max(ended for _, ended in times) - min(started for started, _ in times)
        for member in crew.members:
            name = f"member {member.number} (process {member.process.pid})"
            n_keys = 0
            if member.times is None:
                n_keys = sum(self.tree.remove_keys(keys) for keys in keys_of_member(self.instance, member.number))
            if member.error:
                self.problem(f"{name}: {member.error}")
            if member.exitcode < 0:
                self.outcome.killed += 1
                say(f"{name} was killed by {signal.Signals(-member.exitcode).name}; removed {n_keys:,} keys that it left")
            elif member.exitcode > 0 or (n_keys and not member.error):
                self.problem(f"{name} ended with exit status {member.exitcode} and left {n_keys:,} keys")

    def problem(self, text):
        """Note and print a failed proof or an error."""
        self.outcome.problems.append(text)
        say(text)

    # -- leaving

    def prove_own_keys_gone(self):
        """Search for each key of this instance once more."""
        left = sum(self.tree.count_keys(keys) for keys in self.instance.all_keys())
        self.outcome.own_keys_left = left
        if left:
            self.problem(f"{left:,} of this instance's keys are still in the tree")

    def leave(self):
        """Unregister; the last instance proves that nothing is left."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with self.exclusive:
                dead = self._adopt()
                if not dead and (not self._orphans() or time.monotonic() > deadline):
                    orphans = self._orphans()
                    self.control.forget(self.instance)
                    if self.control.first is None:
                        self._prove_all_gone()
                    for one in orphans:
                        self.problem(f"instance {one.number} (process {one.pid}) was killed, but its members still run")
                    return
            self._bury(dead)
            if not dead:
                time.sleep(0.05)

    def _orphans(self):
        """Return the instances that were killed but have live members, which clean up and end by themselves."""
        return [one for one in self.control.instances() if not one.has_owner(self.memory)]

    def _prove_all_gone(self):
        """Verify that tree and heap are empty.  This is the last instance, and holds the lock."""
        outcome, control = self.outcome, self.control
        outcome.is_last = True
        outcome.tree_empty = outcome.heap_intact = False
        try:
            outcome.tree_empty = self.tree.count_nodes() == 0
            report = self.memory.check_heap()
            outcome.heap_intact = True
        except (shmem.ShmemError, RuntimeError) as error:
            self.problem(str(error))
            return
        if not outcome.tree_empty:
            self.problem("the tree is not empty")
            return
        outcome.blocks_left = report.blocks - 1 - control.blocks_before
        may_be_lost = self.memory.owner_deaths - control.deaths_before
        if not 0 <= outcome.blocks_left <= may_be_lost:
            self.problem(f"blocks left in the heap: {outcome.blocks_left}")
        elif outcome.blocks_left:
            outcome.killed = max(outcome.killed, outcome.blocks_left)
            say(f"blocks lost by processes killed while holding the lock: {outcome.blocks_left} ({may_be_lost} processes)")
        self.memory.free(control)  # which unsets the root object


def run_session(memory, place, outcome):
    """Run one row of the table.  KeyboardInterrupt is passed on after everything is cleaned up."""
    session = Session(memory, place, outcome)
    session.enter()
    try:
        session.work()
    except (shmem.ShmemError, RuntimeError, OSError) as error:
        session.problem(f"{type(error).__name__}: {error}")
    finally:
        session.prove_own_keys_gone()
        session.leave()
