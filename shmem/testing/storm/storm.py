"""Many processes use one section in every way there is, while a random one is killed again and again; afterwards nothing is wrong.

Members allocate, free, reallocate, link and unlink objects, name and delete, lock in every mode, wait, signal, put and get, check, copy,
open, close, fork, in several threads.  One is killed at a random moment; now and then it is stopped before, or caught in the
middle of something, or kills itself there, or two are killed at once, or all.  New ones take their places.  From time to time the storm
is stopped, or all are killed, and the section examined:

* every actor (thread, or forked child) that was not killed got on with its work: none waited longer than --patience
* heap whole, by check_heap; the closed file without a fault, by `check`; every block, array, list and message has the content it should
* nobody is listed as a participant, nobody holds the lock; every entry of the closed file's table is free, with no pin, no half-made block
* the lock and the mutex were held by one at a time: only killed ones left the witness, a pair of numbers, unequal
* of each producer, every consumer got the messages in order, none twice, none lost but what killed consumers had just taken
* the semaphore has all its units but those that killed ones had
* sections that members made and left beside it are whole, and gone when the last one closes them
* no leak.  A block is lost only by who is killed between the instruction that makes it and the next one of his own that notes
  where it is.  Every actor notes beforehand what it is about to make.  Each block that nothing leads to must be of the type and the
  size that a killed actor was just making, one for each at most: they are counted as "lost", and freed.  Then there must be none.

Exit status: 0 nothing is wrong; 1 something is; 2 wrong arguments; 130 interrupted.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings

import shmem
from shmem._cli import check
from shmem._cli.progress import make_bar
from shmem._fsck.wreck import AT, AT_32
from shmem._objects import finding
from shmem._sections import image
from shmem.testing.storm import member as work

ROUND_SECONDS = 20
MERCIES = 0, 0.5, 1  # which part of the members is told to end at the end of a round, instead of killed
LOG_LINES = 60
WAYS = {"one": 40, "by itself": 20, "caught": 12, "stopped before": 7, "stopped and continued": 7, "two": 10, "all": 4}
CATCH_SECONDS = 0.1
# where things are in a section, as in _base/layout.pxd
LOCK_GATE, HEAP_GATE, OWNER_MASK = 512, 704, 0xFFFF
ENTRY_BYTES, ENTRY_PID = 64, 24


@dataclasses.dataclass
class Totals:
    """What happened in all rounds."""

    seed: int
    section: str = ""
    rounds: int = 0
    seconds: float = 0.0
    members: int = 0
    kills: int = 0
    caught: int = 0
    """Kills of somebody who was making a block, had something in hand, or was in a gate; by others, or by itself."""
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
    """How often a killed actor was the last one in the lock or the mutex."""
    owner_deaths: int = 0
    operations: dict = dataclasses.field(default_factory=dict)
    problems: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Member:
    """A process of the storm."""

    process: multiprocessing.Process
    was_killed: bool = False
    left_alone_until: float | None = None
    """It is stopped, or was told to kill itself."""
    will_be_killed: bool = False
    """By then."""
    kills_itself: bool = False
    idle_since: float | None = None
    """None of its actors works."""

    @property
    def is_stopped(self):
        """Perhaps with a gate in its hand: who waits for that gate must not be who continues it."""
        return self.left_alone_until is not None and not self.kills_itself

    def send(self, signal_number):
        """Send a signal, if it has not ended; whether it was sent.  Until `is_alive` noticed its end, its number is nobody else's."""
        if not self.process.is_alive():
            return False
        os.kill(self.process.pid, signal_number)
        return True


def describe_process(pid):
    """What the system says about a process and its threads: where each one waits."""
    lines = []
    with contextlib.suppress(OSError):
        for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            facts = []
            for what in ("wchan", "syscall", "stack"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/{what}", encoding="utf-8", errors="replace") as file:
                    facts.append(f"{what}: {' '.join(file.read().split())}")
            lines.append(f"    thread {task}: {'; '.join(facts)}")
    return "\n".join(lines)


def state_and_parent(pid):
    """A process's state, as in /proc, and its parent; of one that has gone "X" and None."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        state, parent = file.read().rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "X", None


def has_stopped(pid):
    """Whether a process that was told to stop has done so; it is, in a moment, or has ended."""
    for _ in range(1000):
        state, _ = state_and_parent(pid)
        if state in "TZX":
            return state == "T"
    return False


class Storm:
    """The section, the processes that use it, and who kills them.

    Parameters
    ----------
    options : argparse.Namespace
        As `command_arguments` declares them.
    folder : str
        Where everything lies.
    tell : callable
        Called with a text now and then.
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
        self.log = os.open(self.log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        make = {"max_size": work.MAX_SIZE, "max_participants": work.MAX_PARTICIPANTS, "index": options.index}
        self.keeper = None  # an anonymous section would go with its last process
        self.place = {"file_name": os.path.join(folder, "section")}
        if options.anonymous:
            self.place = {"shared_name": f"killstorm-{self.pid}"}
            self.keeper = shmem.SharedMemory(**self.place, **make)
        self.totals.section = "anonymous" if options.anonymous else f"file in {os.path.dirname(folder)}"
        with self.opened(**make) as shm:
            work.furnish(shm)

    @contextlib.contextmanager
    def opened(self, **more):
        """The section, attached to for a moment if it is a file."""
        if self.keeper is not None:
            yield self.keeper
        else:
            with shmem.SharedMemory(**self.place, **more) as shm:
                yield shm

    def side(self, number):
        """Which of the sections that come and go."""
        if number < work.N_SIDES:
            return {"shared_name": f"killstorm-{self.pid}-side-{number}"}
        return {"file_name": os.path.join(self.folder, f"side-{number}")}

    def problem(self, text):
        """Something is not as promised."""
        self.totals.problems.append(text)

    # -- the storm

    def blow(self, seconds):
        """One round; ends early if something is wrong."""
        self.round += 1
        self.ledger, self.members, self.seen = work.Ledger(), {}, {}
        self.totals.rounds = self.round
        with self.opened() as shm:
            work.furnish_queues(shm)
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 0.5
        n_started = 0
        while not self.totals.problems and (time.monotonic() < end or self._counts().sum() < self.options.operations):
            if not any(member.is_stopped for member in self.members.values()):  # to fork takes the heap gate of what I keep
                while len(self.members) < self.options.processes and n_started < work.MAX_ACTORS // work.ACTORS_OF_MEMBER:
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
        process = multiprocessing.get_context("fork").Process(target=work.member_main, args=(self, number, self.log), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy's threads
            process.start()
        self.members[number] = Member(process)
        self.totals.members += 1

    def _strike(self):
        """Kill, in one of the ways."""
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
        """Watch until one of them is in the middle of something, stop it, and kill it if it still is; else just kill one."""
        what = self.rng.choice([self._who_makes, self._who_has_something, self._who_is_in_a_gate])
        number, deadline = self.rng.choice(ready), time.monotonic() + CATCH_SECONDS
        with open(self.keeper.path if self.keeper is not None else self.place["file_name"], "rb") as file:
            while time.monotonic() < deadline:
                found = [one for one in what(file.fileno()) if one in ready]
                if not found:
                    continue
                number = self.rng.choice(found)
                victim = self.members[number]
                self._stop(victim)
                if has_stopped(victim.process.pid) and number in what(file.fileno()):
                    self.totals.caught += 1
                    break
                victim.send(signal.SIGCONT)
        self._kill(self.members[number])

    def _members_with(self, condition):
        return {actor // work.ACTORS_OF_MEMBER for actor in condition.nonzero()[0].tolist()}

    def _who_makes(self, fd):
        return self._members_with(self.ledger.rows[:, work.MAKING] != 0)

    def _who_has_something(self, fd):
        return self._members_with((self.ledger.rows[:, work.HAND] != 0) | (self.ledger.rows[:, work.TOKEN] == work.HAS_TOKEN))

    def _who_is_in_a_gate(self, fd):
        """Of the heap or of the lock: the word says whose entry, the entry whose process."""
        table, found = struct.unpack("<Q", os.pread(fd, 8, AT["participants_off"]))[0], set()
        for offset in (HEAP_GATE, LOCK_GATE):
            index = struct.unpack("<Q", os.pread(fd, 8, offset))[0] & OWNER_MASK
            if index:
                (pid,) = struct.unpack("<Q", os.pread(fd, 8, table + ENTRY_BYTES * (index - 1) + ENTRY_PID))
                found |= {number for number, member in self.members.items() if member.process.pid == pid}
        return found

    def _kill(self, victim):
        victim.left_alone_until = None
        if not victim.was_killed and victim.send(signal.SIGKILL):
            victim.was_killed = True
            self.totals.kills += 1

    def _look(self):
        """Who was stopped goes on or is killed; who has ended, and who does not get on."""
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

    def _actors_of(self, number):
        first = number * work.ACTORS_OF_MEMBER
        return range(first, first + work.ACTORS_OF_MEMBER)

    def _bury(self, number, member):
        status = member.process.exitcode
        if status == -signal.SIGKILL and member.kills_itself and not member.was_killed:
            self.totals.kills += 1
            self.totals.caught += 1
        elif status != 0 and not (member.was_killed and status == -signal.SIGKILL):
            self.problem(f"member {number} (process {member.process.pid}) ended with status {status}")
        for actor in self._actors_of(number):
            row = self.ledger.rows[actor]
            if row[work.STATE] == work.RUNNING:
                row[work.STATE] = work.KILLED  # its children went with it
            self.seen.pop(actor, None)
        del self.members[number]

    def _watch(self, number, now):
        for actor in self._actors_of(number):
            row = self.ledger.rows[actor]
            if row[work.STATE] == work.FAILED:
                self.problem(f"actor {actor} (process {row[work.PID]}) found something wrong, or failed")
            if row[work.STATE] != work.RUNNING:
                self.seen.pop(actor, None)
                continue
            step, since = self.seen.get(actor, (-1, now))
            if step != row[work.STEP]:
                self.seen[actor] = int(row[work.STEP]), now
            elif now - since > self.options.patience:
                self._report_stuck(self.members[number], actor, row, now - since)
        self._watch_ends(number, now)

    def _watch_ends(self, number, now):
        """A process in which nobody works begins to, or ends."""
        member = self.members[number]
        if any(self.ledger.rows[actor, work.STATE] == work.RUNNING for actor in self._actors_of(number)):
            member.idle_since = None
        elif member.idle_since is None:
            member.idle_since = now
        elif now - member.idle_since > self.options.patience:
            pid = member.process.pid
            self.problem(f"member {number} (process {pid}) neither works nor ends\n{describe_process(pid)}")
            member.send(signal.SIGABRT)  # it writes where its threads are
            member.idle_since = now
            time.sleep(0.5)

    def _report_stuck(self, member, actor, row, seconds):
        pid, name = int(row[work.PID]), work.OPERATIONS[row[work.OPERATION]][0]
        self.problem(f"actor {actor} (process {pid}) did not get on for {seconds:.0f} s in {name!r}\n{describe_process(pid)}")
        if pid == member.process.pid:
            member.send(signal.SIGABRT)  # it writes where its threads are
        elif state_and_parent(pid)[1] == member.process.pid:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.5)

    def _end(self):
        """End the round: all killed at once, or told to end, or some of both."""
        mercy = self.rng.choice(MERCIES) if not self.totals.problems else 0
        for member in list(self.members.values()):
            if member.is_stopped:
                member.left_alone_until = None  # nobody stays stopped: I would wait for one who is in a gate
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

    # -- what is left

    def _wait_until_left(self, section):
        """Nobody is attached but me, or to a file (None) nobody; the killed ones' children are gone a moment after them."""
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
        self.problem(f"participants are left when all processes have ended: {left}")

    def audit(self):
        """Examine what the round left; put right what killed clients left undone."""
        try:
            self._wait_until_left(self.keeper)
            if self.keeper is None:
                self._check_file("as it was left")
            with self.opened() as shm:
                linked, lost_at_most = self._settle(shm)
            self._find_leaks(linked, lost_at_most)
            self._audit_sides()
        except Exception as error:
            self.problem("".join(traceback.format_exception(error)[-2:]))
        self._count()

    def _settle(self, shm):
        """With nobody else attached: look at everything; the offsets of what is linked, and what may be lost."""
        with shmem.exclusive_lock(shm, 20):
            pass
        report, stats = shm.check_heap(), shm.stats()
        if report.pending_blocks or stats.participants != (self.pid,) or stats.lock_holder or stats.lock_sharers or stats.lock_waiters:
            self.problem(f"nobody else is here, and yet: {report}, {stats}")
        linked = set(work.verify_all(shm))
        lost_at_most = self._settle_hands(shm, linked)
        self._settle_witnesses(shm["witness"])
        self._settle_tokens(shm["tokens"])
        for which in range(2):
            self._settle_queue(which, shm[f"queue {which}"])
        with shm["mutex"]:
            pass
        self.totals.owner_deaths = shm.owner_deaths
        shm.check_heap()
        return linked, lost_at_most

    def _dead(self):
        """(number, row) of all that did not come to their end."""
        states = self.ledger.rows[:, work.STATE]
        for actor in (states != work.UNUSED).nonzero()[0].tolist():
            row = self.ledger.rows[actor]
            if row[work.STATE] != work.DONE:
                yield actor, row
            elif row[work.HAND] or row[work.MAKING] or row[work.TOKEN] or row[work.GETTING : work.GETTING_2 + 1].any():
                self.problem(f"actor {actor} ended well, and has something in hand: {row.tolist()}")

    def _settle_hands(self, shm, linked):
        """Free what killed actors had in hand and is linked nowhere; what they were making."""
        lost_at_most = collections.Counter()
        for _, row in self._dead():
            offset, making = int(row[work.HAND]), int(row[work.MAKING])
            in_hand = None
            if offset:
                with contextlib.suppress(shmem.InvalidBlock):
                    in_hand = finding.reopen(shm, offset, int(row[work.HAND_SERIAL]))
            if in_hand is None and making:
                lost_at_most[making, int(row[work.BYTES])] += 1
            elif in_hand is not None and offset not in linked:
                shm.free(in_hand)
                self.totals.returned += 1
            self.totals.killed_actors += 1
        return lost_at_most

    def _settle_witnesses(self, witness):
        for at, column, what in ((work.WITNESS, work.LOCK_BLAME, "lock"), (work.MUTEX_WITNESS, work.MUTEX_BLAME, "mutex")):
            if witness[at + 1] != witness[at + 2]:
                word = int(witness[at])
                self.ledger.rows[word >> work.ACTOR_SHIFT, column] = word & work.STEP_MASK
                witness[at + 2] = witness[at + 1]
            for actor in self.ledger.rows[:, column].nonzero()[0].tolist():
                row = self.ledger.rows[actor]
                self.totals.blamed += 1
                if row[work.STATE] not in (work.RUNNING, work.KILLED) or row[column] != row[work.STEP]:
                    self.problem(
                        f"somebody held the {what} after actor {actor} at step {row[column]}, which was not released, "
                        f"and the actor went on to step {row[work.STEP]}"
                    )

    def _settle_tokens(self, tokens):
        states = [int(row[work.TOKEN]) for _, row in self._dead()]
        most = work.N_TOKENS - states.count(work.HAS_TOKEN)
        least = most - states.count(work.PERHAPS)
        value = tokens.value
        if not least <= value <= most:
            self.problem(f"the semaphore's value is {value}; killed processes leave {least} to {most}")
        self.totals.lost_tokens += work.N_TOKENS - value
        if value < work.N_TOKENS:
            tokens.signal(work.N_TOKENS - value)

    def _settle_queue(self, which, queue):
        """Take what is left; then every message that was put came to somebody, but for what the killed had just taken."""
        reader = work.Actor.__new__(work.Actor)
        reader.storm, reader.number, reader.last = self, work.MAX_ACTORS - 1, {}
        queue.shutdown()  # perhaps nobody was left to be told by it
        with contextlib.suppress(shmem.QueueShutDown):
            while True:
                reader.note_message(which, reader.read(queue.get(timeout=20)))
        in_hand = sum(int(row[work.GETTING + which]) for _, row in self._dead())
        n_lost = 0
        for actor, n_put in enumerate(self.ledger.rows[:, work.DID + which].tolist()):
            n_lost += n_put - int(self.ledger.taken[which, actor, :n_put].sum())
        self.totals.lost_messages += n_lost
        if n_lost > in_hand:
            self.problem(f"queue {which}: {n_lost} messages are lost; killed consumers had taken at most {in_hand}")

    # -- the closed file

    def _check_file(self, when, path=None):
        """What `python -m shmem check --leaks` says of a closed file; the leaks."""
        path = path or self.place["file_name"]
        found = check.examine(path, False, True)
        if found.state != "whole":
            self.problem(f"check, {when}: {found.state}: {found.findings} {found.notes}")
        return found.leaks or []

    def _closed(self):
        """The path of a closed file of the section's: itself, or a copy."""
        if self.keeper is None:
            return self.place["file_name"]
        path = os.path.join(self.folder, "copy")
        self.keeper.snapshot(path)
        return path

    def _unlinked(self, when, linked):
        return [leak for leak in self._check_file(when, self._closed()) if leak.offset not in linked]

    def _find_leaks(self, linked, lost_at_most):
        """Blocks that nothing leads to must be what killed actors were making; those are freed, and then there are none."""
        lost = self._unlinked("when all have left", linked)
        for leak in lost:
            if leak.type == "bytes":
                key = work.BLOCK, leak.n_bytes
            elif leak.type.startswith("array "):
                key = work.ARRAY, int(leak.type[7:].partition(",")[0])
            else:
                key = work.NODE if leak.type == work.NODE_TYPE else leak.type, 0
            if lost_at_most[key] == 0:
                self.problem(f"leak at {leak.offset:#x}: {leak.n_bytes} bytes, {leak.type}; no killed process was making that")
            lost_at_most[key] -= 1
        self.totals.lost += len(lost)
        if self.totals.problems:
            return
        with self.opened() as shm:
            for leak in lost:
                shm.free(leak.offset)
        if self._unlinked("when what was lost is freed", linked):
            self.problem("blocks that nothing leads to are left when those were freed")
        self._check_table(self._closed())

    def _check_table(self, path):
        """Nobody is attached: every entry of the table of participants is free."""
        with open(path, "rb") as file:
            content = file.read()
        (n_entries,) = struct.unpack_from("<I", content, AT_32["max_participants"])
        table, intents = (struct.unpack_from("<Q", content, AT[name])[0] for name in ("participants_off", "intents_off"))
        for i in range(n_entries):
            sharers, _, attached, pending, pins, waiting = struct.unpack_from("<6I", content, table + ENTRY_BYTES * i)
            (operation,) = struct.unpack_from("<Q", content, intents + 64 * i)
            if sharers or attached or pending or pins or waiting or operation:
                self.problem(f"participant {i} of the closed file: {sharers=} {attached=} {pending=} {pins=} {waiting=} {operation=}")

    def _audit_sides(self):
        """What the killed left of the other sections is whole, and goes."""
        for number in range(2 * work.N_SIDES):
            place = self.side(number)
            with shmem.SharedMemory(**place, max_size=1 << 20) as side:
                self._wait_until_left(side)
                report = side.check_heap()
                for name in side:
                    work.verify_array(side[name])
                if report.blocks != len(side) or report.pending_blocks:
                    self.problem(f"{place}: {report.blocks} blocks for {len(side)} names, {report.pending_blocks} are being made")
                path = side.path
            if "shared_name" in place and os.path.exists(path):
                self.problem(f"{path} is there when its last process has closed it")

    def _counts(self):
        """How often each operation was done in this round."""
        return self.ledger.rows[:, work.FIRST_COUNT : work.FIRST_COUNT + len(work.OPERATIONS)].sum(axis=0)

    def _count(self):
        counts = self._counts().tolist()
        before = self.totals.operations
        self.totals.operations = {name: before.get(name, 0) + n for (name, *_), n in zip(work.OPERATIONS, counts, strict=True)}

    def log_tail(self):
        """The last lines that members wrote."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()[-LOG_LINES:]

    def close(self):
        """End what still runs; let go of everything."""
        for member in self.members.values():
            member.send(signal.SIGKILL)
            member.process.join()
        os.close(self.log)
        for number in range(work.N_SIDES):
            with contextlib.suppress(shmem.ShmemError), shmem.SharedMemory(**self.side(number), max_size=1 << 20) as side:
                self._wait_until_left(side)
        if self.keeper is not None:
            path = self.keeper.path
            self.keeper.close()
            if os.path.exists(path):
                self.problem(f"{path} is there when its last process has closed it")


# -- the command ------------------------------------------------------------------------------------------------


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"{text} is not between 0 and a million")
        return value

    parse.__name__ = kind.__name__
    return parse


def command_arguments(parser):
    """Declare what `python -m shmem killstorm` takes."""
    parser.add_argument("--seconds", type=_positive(float), default=600, help="how long (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="in each round at least so many (default: %(default)s)")
    parser.add_argument("--processes", type=_positive(int), default=8, help="members at the same time (default: %(default)s)")
    parser.add_argument("--kills-per-second", type=_positive(float), default=4, help="on average (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all random choices; when exactly a kill comes is not one (default: a random one)")
    parser.add_argument("--anonymous", action="store_true", help="an anonymous section instead of a file")
    parser.add_argument("--index", choices=("tlsf", "next_fit"), default="tlsf", help="of the section (default: %(default)s)")
    parser.add_argument("--folder", default="/dev/shm", help="where the file lies, in a folder of its own (default: %(default)s)")
    parser.add_argument("--patience", type=_positive(float), default=60, help="seconds until who waits is stuck (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="if something is wrong, leave section and log there")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _rounds(storm, options, bar):
    """Round after round, until the time is over or something is wrong."""
    began = time.monotonic()
    while not storm.totals.problems and (left := began + options.seconds - time.monotonic()) > 0:
        before = dataclasses.replace(storm.totals)
        try:
            storm.blow(left if left < 1.5 * ROUND_SECONDS else ROUND_SECONDS)
        except Exception as error:  # of the section, looked at meanwhile
            storm.problem("".join(traceback.format_exception(error)[-2:]))
        else:
            storm.audit()
        now = storm.totals
        now.seconds = time.monotonic() - began
        bar.stop()
        if not options.json:
            print(_round_line(before, now), flush=True)


def _round_line(before, now):
    names = {"members": "members", "kills": "kills", "returned": "blocks in hand", "lost": "lost", "blamed": "died in a lock"}
    counts = "  ".join(f"{getattr(now, field) - getattr(before, field):>4} {name}" for field, name in names.items())
    return f"round {now.rounds:>3}  {now.seconds:>5.0f} s  {counts}  {'WRONG' if now.problems else 'whole'}"


def _advancing(bar, seconds):
    """A `tell` that moves the bar on, too."""
    began, shown = time.monotonic(), 0

    def tell(text):
        nonlocal shown
        while shown < min(seconds, time.monotonic() - began):
            shown += 1
            bar.advance()
        bar.tell(text)

    return tell


def print_totals(totals, log, file):
    """The end of the report, for people."""
    said = [
        f"{totals.section}, {totals.seconds:.0f} s, {totals.rounds} rounds: {totals.members:,} members, "
        f"{totals.kills:,} SIGKILLs ({totals.caught:,} aimed), {totals.stops:,} SIGSTOPs, "
        f"{totals.killed_actors:,} threads and children killed, {sum(totals.operations.values()):,} operations:",
        "  " + ", ".join(f"{name} {n:,}" for name, n in totals.operations.items()),
        f"  in hand when killed: {totals.returned:,} blocks, {totals.lost_messages:,} messages, {totals.lost_tokens:,} units of the "
        f"semaphore; made and not yet noted: {totals.lost:,} blocks; {totals.owner_deaths:,} owners of the lock died",
    ]
    print(*said, sep="\n", file=file)
    if totals.problems:
        print(f"{len(totals.problems)} WRONG, seed {totals.seed}:", file=file)
        for problem in totals.problems:
            print(f"  {problem}", file=file)
        print("members wrote:", *log, sep="\n  ", file=file)
    else:
        print("nothing is wrong: no leak, nobody stuck, heap whole, table clean", file=file)


def _storm(options, folder, bar):
    """The storm in a folder; (totals, what members wrote)."""
    storm = Storm(options, folder, _advancing(bar, options.seconds))
    try:
        _rounds(storm, options, bar)
        return storm.totals, storm.log_tail()
    finally:
        bar.stop()
        storm.close()


def command(options):
    """Run it; the exit status."""
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    folder = tempfile.mkdtemp(prefix="shmem-killstorm-", dir=os.path.abspath(options.folder))
    keeps = False
    try:
        totals, log = _storm(options, folder, make_bar(int(options.seconds)))
        keeps = options.keep and bool(totals.problems)
    except KeyboardInterrupt:
        print("python -m shmem killstorm: interrupted", file=sys.stderr)
        return 130
    finally:
        if not keeps:
            shutil.rmtree(folder)
    if options.json:
        print(json.dumps({**dataclasses.asdict(totals), "log": log if totals.problems else []}, indent=1))
    else:
        print_totals(totals, log, sys.stdout)
        if keeps:
            print(f"kept: {folder}")
    return 1 if totals.problems else 0
