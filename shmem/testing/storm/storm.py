"""The storm: the section, the member processes that use it, and the strikes that kill them."""

import contextlib
import dataclasses
import multiprocessing
import os
import random
import signal
import time
import warnings

import shmem
from shmem._base.layout import LAYOUT, OWNER_INDEX_MASK
from shmem._base.system_tools import describe_process, open_log, state_and_parent
from shmem._sections import image
from shmem.testing.storm import actor as acting
from shmem.testing.storm import contents, ledger
from shmem.testing.storm.member import member_main

MERCIES = 0, 0.5, 1  # the part of the members that may end by themselves at the end of a round instead of being killed
LOG_LINES = 200  # of the members' log in the report
WAYS = {"one": 40, "by itself": 20, "caught": 12, "stopped before": 7, "stopped and continued": 7, "two": 10, "all": 4}
CATCH_SECONDS = 0.1
DUMP_SECONDS = 20  # for an aborted process to write where its threads are
HEADER, PARTICIPANT = LAYOUT["header_t"], LAYOUT["participant_t"]


@dataclasses.dataclass
class Totals:
    """What happened in all rounds."""

    seed: int
    section: str = ""
    rounds: int = 0
    seconds: float = 0.0
    members: int = 0
    kills: int = 0
    idle_kills: int = 0
    """Kills of members none of whose actors was at work: before the first began, or after the last was done."""
    caught: int = 0
    """Kills of members that were making a block, had something in hand or were in a gate, by the storm or by themselves."""
    stops: int = 0
    killed_actors: int = 0
    """Threads and children among the killed."""
    returned: int = 0
    """Blocks that killed actors had in hand."""
    lost: int = 0
    """Blocks that killed actors had made and not noted."""
    lost_messages: int = 0
    lost_tokens: int = 0
    blamed: int = 0
    """How often a killed actor was the last holder of the lock or the mutex."""
    owner_deaths: int = 0
    operations: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Member:
    """A member process as the storm sees it."""

    process: multiprocessing.Process
    was_killed: bool = False
    left_alone_until: float | None = None
    """Set while the process is stopped, or expected to kill itself."""
    will_be_killed: bool = False
    """Whether it is killed at that time; otherwise it is continued."""
    kills_itself: bool = False
    idle_since: float | None = None
    """Since when none of its actors has been at ledger."""

    @property
    def is_stopped(self):
        """Whether the process is stopped.  It may hold a gate, so the process that will continue it must not wait for that gate."""
        return self.left_alone_until is not None and not self.kills_itself

    def send(self, signal_number):
        """Send a signal unless the process has ended; return whether it was sent.

        Until `is_alive` notices its end, the process is a zombie and no other process has its id.
        """
        if not self.process.is_alive():
            return False
        os.kill(self.process.pid, signal_number)
        return True


def has_stopped(pid):
    """Wait for a process that was sent SIGSTOP; return whether it has stopped, rather than ended."""
    for _ in range(1000):
        state, _ = state_and_parent(pid)
        if state in "TZX":
            return state == "T"
    return False


class Storm:
    """The section, the member processes that use it, and the strikes that kill them.

    Parameters
    ----------
    options : argparse.Namespace
        As `command_arguments` declares them.
    folder : str
        The folder for all files of the storm.
    tell : callable
        Called with a progress text from time to time.
    """

    def __init__(self, options, folder, tell):
        self.options, self.folder, self.tell = options, folder, tell
        self.totals = Totals(options.seed)
        self.rng = random.Random(options.seed)
        self.pid = os.getpid()
        self.round = 0
        self.ledger = None
        self.members = {}
        self.seen = {}  # actor -> (its step, since when)
        self.log_path = os.path.join(folder, "log")
        self.log = open_log(self.log_path)
        make = {"max_size": contents.MAX_SIZE, "max_participants": contents.MAX_PARTICIPANTS, "index": options.index}
        self.keeper = None  # an anonymous section would go with its last process
        self.place = {"file_name": os.path.join(folder, "section")}
        if options.anonymous:
            self.place = {"shared_name": f"killstorm-{self.pid}"}
            self.keeper = shmem.SharedMemory(**self.place, **make)
        self.totals.section = "anonymous" if options.anonymous else f"file in {os.path.dirname(folder)}"
        with self.opened(**make) as shm:
            contents.furnish(shm)

    @contextlib.contextmanager
    def opened(self, **more):
        """Yield the section; one in a file is opened for the duration of the block."""
        if self.keeper is not None:
            yield self.keeper
        else:
            with shmem.SharedMemory(**self.place, **more) as shm:
                yield shm

    def side(self, number):
        """Return the arguments that open one of the sections beside the main one."""
        if number < contents.N_SIDES:
            return {"shared_name": f"killstorm-{self.pid}-side-{number}"}
        return {"file_name": os.path.join(self.folder, f"side-{number}")}

    def problem(self, text):
        """Note a violated guarantee."""
        self.totals.problems.append(text)

    # -- the storm

    def blow(self, seconds):
        """Run one round; it ends early when there is a problem."""
        self.round += 1
        self.ledger, self.members, self.seen = ledger.Ledger(), {}, {}
        self.totals.rounds = self.round
        with self.opened() as shm:
            contents.furnish_round(shm)
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 0.5
        n_started = 0
        while not self.totals.problems and (time.monotonic() < end or self.counts().sum() < self.options.operations):
            if not any(member.is_stopped for member in self.members.values()):  # a fork takes the heap gate of the keeper's section
                while len(self.members) < self.options.processes and n_started < ledger.MAX_ACTORS // ledger.ACTORS_OF_MEMBER:
                    self._start(n_started)
                    n_started += 1
            if not self.members:
                break  # the ledger is full
            if time.monotonic() > next_kill:
                self._strike()
                next_kill = time.monotonic() + self.rng.expovariate(self.options.kills_per_second)
            self._look()
            self.tell(f"round {self.round}: {self.totals.kills} kills")
            time.sleep(0.01)
        self._end()

    def _start(self, number):
        process = multiprocessing.get_context("fork").Process(target=member_main, args=(self, number, self.log), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy's threads
            process.start()
        self.members[number] = Member(process)
        self.totals.members += 1

    def _strike(self):
        """Kill or stop members in one of the ways."""
        ready = [number for number, member in self.members.items() if not member.was_killed and member.left_alone_until is None]
        ready = [number for number in ready if self.members[number].process.is_alive()]
        if not ready:
            return
        way = self.rng.choices(list(WAYS), WAYS.values())[0]
        number = self.rng.choice(ready)
        victim = self.members[number]
        if way == "caught":
            self._catch(ready)
        elif way == "by itself":
            self.ledger.wishes[number] = self.rng.randrange(1, 10)
            victim.kills_itself = victim.will_be_killed = True
            victim.left_alone_until = time.monotonic() + 1
        elif way.startswith("stopped"):
            self._stop(victim)
            victim.left_alone_until = time.monotonic() + self.rng.random() * 0.3
            victim.will_be_killed = way == "stopped before"
        else:
            n_victims = {"one": 1, "two": 2}.get(way, len(ready))
            for number in self.rng.sample(ready, min(n_victims, len(ready))):
                self._kill(self.members[number])

    def _stop(self, victim):
        victim.send(signal.SIGSTOP)
        self.totals.stops += 1

    def _catch(self, ready):
        """Stop a member in the middle of something, and kill it if it still is there; after CATCH_SECONDS kill any member."""
        find = self.rng.choice([self._members_making, self._members_with_something, self._members_in_a_gate])
        number, deadline = self.rng.choice(ready), time.monotonic() + CATCH_SECONDS
        with open(self.keeper.path if self.keeper is not None else self.place["file_name"], "rb") as file:
            while time.monotonic() < deadline:
                found = [one for one in find(file.fileno()) if one in ready]
                if not found:
                    continue
                number = self.rng.choice(found)
                victim = self.members[number]
                self._stop(victim)
                if has_stopped(victim.process.pid) and number in find(file.fileno()):
                    self.totals.caught += 1
                    break
                victim.send(signal.SIGCONT)
        self._kill(self.members[number])

    def _members_with(self, condition):
        return {actor // ledger.ACTORS_OF_MEMBER for actor in condition.nonzero()[0].tolist()}

    def _members_making(self, fd):
        return self._members_with(self.ledger.rows[:, ledger.MAKING] != 0)

    def _members_with_something(self, fd):
        return self._members_with((self.ledger.rows[:, ledger.HAND] != 0) | (self.ledger.rows[:, ledger.TOKEN] == ledger.HAS_TOKEN))

    def _members_in_a_gate(self, fd):
        """Return the members in the gate of the heap or the lock: the gate's word names the entry, the entry the process."""
        table, found = HEADER["participants_off"].read_file(fd), set()
        for gate in ("heap_gate", "reserve_gate", "lock_gate"):
            index = HEADER[gate].read_file(fd) & OWNER_INDEX_MASK
            if index:
                pid = PARTICIPANT["pid"].read_file(fd, table + PARTICIPANT.size * (index - 1))
                found |= {number for number, member in self.members.items() if member.process.pid == pid}
        return found

    def _kill(self, victim):
        victim.left_alone_until = None
        if not victim.was_killed and victim.send(signal.SIGKILL):
            victim.was_killed = True
            self.totals.kills += 1

    def _look(self):
        """Continue or kill members whose time alone is over, account for those that have ended, and watch the others."""
        now = time.monotonic()
        for number, member in list(self.members.items()):
            if member.left_alone_until is not None and now > member.left_alone_until:
                if member.will_be_killed:
                    self._kill(member)
                else:
                    member.left_alone_until = None
                    member.send(signal.SIGCONT)
            if not member.process.is_alive():
                self._bury(number, member)
            elif member.left_alone_until is None and not member.was_killed:
                self._watch(number, now)

    def _bury(self, number, member):
        """Account for a member that has ended."""
        status = member.process.exitcode
        if status == -signal.SIGKILL and member.kills_itself and not member.was_killed:
            self.totals.kills += 1
            self.totals.caught += 1
        elif status != 0 and not (member.was_killed and status == -signal.SIGKILL):
            self.problem(f"member {number} (process {member.process.pid}) ended with status {status}")
        was_at_work = False
        for actor in ledger.actors_of(number):
            row = self.ledger.rows[actor]
            if row[ledger.STATE] == ledger.RUNNING:
                row[ledger.STATE] = ledger.KILLED  # its children went with it
                was_at_work = True
            self.seen.pop(actor, None)
        self.totals.idle_kills += (member.was_killed or status == -signal.SIGKILL) and not was_at_work
        del self.members[number]

    def _watch(self, number, now):
        """Report each actor that failed, or makes no progress for longer than `--patience`."""
        for actor in ledger.actors_of(number):
            row = self.ledger.rows[actor]
            if row[ledger.STATE] == ledger.FAILED:
                self.problem(f"actor {actor} (process {row[ledger.PID]}) found a violation, or raised an exception")
            if row[ledger.STATE] != ledger.RUNNING:
                self.seen.pop(actor, None)
                continue
            step, since = self.seen.get(actor, (-1, now))
            if step != row[ledger.STEP]:
                self.seen[actor] = int(row[ledger.STEP]), now
            elif now - since > self.options.patience:
                self._report_stuck(self.members[number], actor, row, now - since)
        self._watch_ends(number, now)

    def _watch_ends(self, number, now):
        """Report a member without an actor at work that neither begins nor ends within `--patience`."""
        member = self.members[number]
        if any(self.ledger.rows[actor, ledger.STATE] == ledger.RUNNING for actor in ledger.actors_of(number)):
            member.idle_since = None
        elif member.idle_since is None:
            member.idle_since = now
        elif now - member.idle_since > self.options.patience:
            pid = member.process.pid
            self.problem(f"member {number} (process {pid}) neither works nor ends\n{describe_process(pid)}")
            self._abort(member, pid)
            member.idle_since = now

    def _report_stuck(self, member, actor, row, seconds):
        pid, name = int(row[ledger.PID]), acting.OPERATIONS[row[ledger.OPERATION]][0]
        self.problem(f"actor {actor} (process {pid}) made no progress for {seconds:.0f} s in {name!r}\n{describe_process(pid)}")
        self._abort(member, pid)

    def _abort(self, member, pid):
        """Have faulthandler write where the threads of a member, or of its child, are; return when the process has ended."""
        if pid == member.process.pid:
            member.send(signal.SIGABRT)
        elif state_and_parent(pid)[1] == member.process.pid:
            os.kill(pid, signal.SIGABRT)
        deadline = time.monotonic() + DUMP_SECONDS
        while state_and_parent(pid)[0] not in "ZX" and time.monotonic() < deadline:
            time.sleep(0.01)

    def _end(self):
        """End the round: kill all members at once, or tell all to end, or some of both."""
        mercy = self.rng.choice(MERCIES) if not self.totals.problems else 0
        for member in list(self.members.values()):
            if member.is_stopped:
                member.left_alone_until = None  # no member stays stopped in a gate that this process would wait for
                if member.will_be_killed:
                    self._kill(member)
                else:
                    member.send(signal.SIGCONT)
            if member.process.is_alive() and self.rng.random() >= mercy:
                self._kill(member)
        self.ledger.stop[0] = 1
        while self.members:
            self.ledger.stop[1] = 1
            with self.opened() as shm:
                for number in range(2):
                    shm[f"queue {number}"].shutdown()
                shm["bell"].signal()
            self._look()
            if self.totals.problems:
                for member in self.members.values():
                    self._kill(member)
            time.sleep(0.05)

    def counts(self):
        """Return how often each operation was done in this round."""
        return self.ledger.rows[:, ledger.FIRST_COUNT : ledger.FIRST_COUNT + len(acting.OPERATIONS)].sum(axis=0)

    # -- the end

    def wait_until_left(self, section):
        """Wait until no other process is attached to a section, or with None, until none has the section's file open.

        Children of killed members end a moment after them.
        """
        deadline = time.monotonic() + self.options.patience
        while time.monotonic() < deadline:
            if section is not None:
                left = [pid for pid in section.stats().participants if pid != self.pid]
            else:
                with open(self.place["file_name"], "rb") as file:
                    left = image.is_in_use(file.fileno())
            if not left:
                return
            time.sleep(0.01)
        self.problem(f"participants are left although all members have ended: {left}")

    def log_tail(self):
        """Return the last lines that members wrote."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()[-LOG_LINES:]

    def close(self):
        """Kill the members that still run, and close all sections and files."""
        for member in self.members.values():
            member.send(signal.SIGKILL)
            member.process.join()
        os.close(self.log)
        for number in range(contents.N_SIDES):
            with contextlib.suppress(shmem.ShmemError), shmem.SharedMemory(**self.side(number), max_size=contents.SIDE_BYTES) as side:
                self.wait_until_left(side)
        if self.keeper is not None:
            path = self.keeper.path
            self.keeper.close()
            if os.path.exists(path):
                self.problem(f"{path} still exists although its last process has closed it")
