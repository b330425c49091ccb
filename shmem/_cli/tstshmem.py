"""The test program of the original: many threads of many processes work on one search tree in a section.

Each thread inserts its keys, searches each ten times, and removes them; insert and remove under the
exclusive lock, search under the shared one.  One row of the table is a run in one thread without
locks, in a section of its own.  Each instance proves that its own keys are gone, and the last one
to leave a section that the tree is empty, the heap whole and no block left.

Processes may be killed.  A member's parent removes what the member left, and an instance that was
killed as a whole is cleared up after by the next one to come or to leave.  A kill between allocating
a block and linking it, or between unlinking it and freeing it, loses that block: one at most for each
process killed.

Exit status: 0 all proofs hold; 1 one does not, or an error; 2 wrong arguments; 3 processes were
killed, everything else holds; 130 interrupted.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import warnings

import numpy as np

import shmem
from shmem._cli import tstshmem_tree
from shmem._objects import lock as _lock

MAX_PROCESSES = 32
MAX_THREADS = 32
N_SEARCHES = 10
BLOCK_BYTES = 48                     # a node with its tags
MIN_SIZE = 1 << 30                   # of the section; memory or disk is taken only as used
PATIENCE = 10                        # seconds for members to end by themselves
VARIANTS = ("python", "cython")


# -- what lies in the section -----------------------------------------------------------------------------


class Node(shmem.Struct):
    """A node of the tree (of the Python variant; the other has the same in C)."""

    key: shmem.int64
    left: shmem.Ref["Node"]
    right: shmem.Ref["Node"]


class Instance(shmem.Struct):
    """A running instance: which processes it has, and from which its keys can be computed.

    Whether a process lives the section is asked, by the number that each has in it: `owner`, and `crew` for the members.
    Process ids are for people to read.
    """

    number: shmem.int64
    pid: shmem.int64
    owner: shmem.uint64
    processes: shmem.int64
    threads: shmem.int64
    keys: shmem.int64
    next: shmem.Ref["Instance"]
    members: shmem.Array[shmem.int64, MAX_PROCESSES]
    crew: shmem.Array[shmem.uint64, MAX_PROCESSES]

    def has_owner(self, memory):
        """Whether the process that registered or adopted it is attached."""
        return _lock.participant_lives(memory, self.owner)

    def is_alive(self, memory):
        """Whether any process of it is attached."""
        return self.has_owner(memory) or any(_lock.participant_lives(memory, int(one)) for one in self.crew if one)

    def all_keys(self):
        """The keys of each of its threads."""
        for member in range(self.processes):
            yield from keys_of_member(self, member)


class Control(shmem.Struct):
    """The root object: the tree, and who works on it.  Changed under the exclusive lock."""

    variant: shmem.int64
    locking: shmem.bool_
    n_started: shmem.int64
    blocks_before: shmem.int64
    deaths_before: shmem.int64
    tree: shmem.Ref["Node"]
    first: shmem.Ref["Instance"]

    def instances(self):
        """All that are registered, the newest first."""
        instance = self.first
        while instance is not None:
            yield instance
            instance = instance.next

    def forget(self, gone):
        """Unlink an instance and free it: by one store, so a kill leaves the list whole."""
        before, link = self, "first"
        while getattr(before, link) != gone:
            before, link = getattr(before, link), "next"
        setattr(before, link, gone.next)
        shmem.deallocate(gone)


def keys_of_thread(number, member, thread, n_keys):
    """Keys that no other thread of any instance has, in an order that keeps the tree balanced on average.

    The mixing function (the finalizer of SplitMix64) is one-to-one, so different threads and indexes give different keys.
    """
    first = ((number * MAX_PROCESSES + member) * MAX_THREADS + thread) << 32
    mixed = np.arange(first, first + n_keys, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


def keys_of_member(instance, member):
    """A list, for each thread of a member process its keys."""
    return [keys_of_thread(instance.number, member, thread, instance.keys) for thread in range(instance.threads)]


# -- the tree in Python -------------------------------------------------------------------------------------


class PythonTree:
    """The tree with nodes that are typed objects.  How it survives a kill is told in `tstshmem_tree.pyx`.

    Parameters
    ----------
    memory : SharedMemory
    control : Control
        Its field `tree` is the root node.
    locking : bool
        Whether to take locks.
    """

    def __init__(self, memory, control, locking):
        self.memory = memory
        self.control = control
        self.exclusive = shmem.exclusive_lock(memory) if locking else contextlib.nullcontext()
        self.shared = shmem.shared_lock(memory) if locking else contextlib.nullcontext()

    def _find(self, key):
        """(object, name of its field that leads to the node, the node or None)."""
        before, link, node = self.control, "tree", self.control.tree
        while node is not None:
            here = node.key
            if here == key:
                break
            before = node
            if key < here:
                link, node = "left", node.left
            else:
                link, node = "right", node.right
        return before, link, node

    def _take_out(self, before, link, node, child):
        setattr(before, link, child)
        self.memory.free(node)

    def insert(self, key):
        """Insert a key that is not there."""
        with self.exclusive:
            before, link, node = self._find(key)
            if node is not None:
                raise RuntimeError("a key that was not inserted is in the tree already")
            setattr(before, link, self.memory.new(Node, key=key))

    def search(self, key):
        """Whether a key is there."""
        with self.shared:
            return self._find(key)[2] is not None

    def remove(self, key):
        """Remove a key; whether it was there."""
        with self.exclusive:
            before, link, node = self._find(key)
            if node is None:
                return False
            while node.right is not None:
                above, way, successor = node, "right", node.right
                while successor.left is not None:
                    above, way, successor = successor, "left", successor.left
                is_copy = successor.key == key  # a remover was killed half way
                if node.left is None and not is_copy:
                    self._take_out(before, link, node, node.right)
                    return True
                if not is_copy:
                    node.key = successor.key  # from here on the key is gone
                self._take_out(above, way, successor, successor.right)
                if not is_copy:
                    return True
            self._take_out(before, link, node, node.left)
            return True

    def work(self, keys, stop):
        """Insert every key, search each ten times, remove them.  Ends early, with its keys removed, when `stop[0]` is set."""
        keys = keys.tolist()
        n_inserted = 0
        try:
            for key in keys:
                if stop[0]:
                    break
                self.insert(key)
                n_inserted += 1
            for _ in range(N_SEARCHES):
                for key in keys[:n_inserted]:
                    if stop[0]:
                        break
                    if not self.search(key):
                        raise RuntimeError("a key that was inserted is not in the tree")
        finally:
            n_removed = sum(self.remove(key) for key in keys[:n_inserted])
        if n_removed != n_inserted:
            raise RuntimeError("a key that was inserted is not in the tree")

    def remove_keys(self, keys):
        """Remove those of the keys that are there; how many there were."""
        return sum(self.remove(key) for key in keys.tolist())

    def count_keys(self, keys):
        """How many of the keys are in the tree."""
        return sum(self.search(key) for key in keys.tolist())

    def count_nodes(self):
        """How many nodes there are.  RuntimeError when the tree is out of order or has no end.  The caller holds the lock."""
        n_most = self.memory.stats().blocks
        n_nodes = 0
        ways = [(self.control.tree, -(1 << 63), (1 << 63) - 1)]
        while ways:
            node, low, high = ways.pop()
            if node is None:
                continue
            n_nodes += 1
            if not low <= node.key <= high or n_nodes > n_most:
                raise RuntimeError(f"the tree is damaged at offset {node.offset:#x}")
            ways += [(node.left, low, node.key), (node.right, node.key, high)]
        return n_nodes


def tree_of(memory, control, locking=True):
    """The tree in the variant that the section has."""
    if VARIANTS[control.variant] == "python":
        return PythonTree(memory, control, locking)
    return tstshmem_tree.Tree(memory, control.offset + Control.dtype.fields["tree"][1], locking)


# -- members: the processes that work ---------------------------------------------------------------------------


def work_in_threads(tree, shares, is_stopped):
    """Have one thread for each share of keys work; when they began and ended, on the clock that all processes share."""
    stop = bytearray(1)
    errors = []
    ended = threading.Semaphore(0)

    def work(keys):
        try:
            tree.work(keys, stop)
        except Exception as error:
            errors.append(error)
            stop[0] = 1
        finally:
            ended.release()

    threads = [threading.Thread(target=work, args=(keys,)) for keys in shares]
    started = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            while not ended.acquire(timeout=0.05):
                stop[0] |= is_stopped()
        return started, time.monotonic()
    finally:
        stop[0] = 1                                     # Ctrl-C: they remove their keys
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if errors:
            raise errors[0]


def member_main(place, offset, member, link):
    """A member process: say "ready", wait for "go", work, say when.  The parent's end of the link closed: clear up and leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the parent decides
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)         # and tells
    try:
        with shmem.SharedMemory(**place) as memory:
            with shmem.exclusive_lock(memory):
                control = memory.root
                [instance] = [one for one in control.instances() if one.offset == offset]
                instance.members[member], instance.crew[member] = os.getpid(), _lock.participant(memory)
            tree, shares = tree_of(memory, control), keys_of_member(instance, member)
            link.send("ready")
            if link.recv() == "go":
                link.send(work_in_threads(tree, shares, link.poll))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send(f"{type(error).__name__}: {error}")


class Member:
    """A member process as its parent sees it."""

    def __init__(self, context, place, offset, number):
        self.number = number
        self.link, other_end = context.Pipe()
        self.process = context.Process(target=member_main, args=(place, offset, number, other_end), daemon=True)
        self.process.start()
        other_end.close()
        self.times = None               # (began, ended) once it has done all its work
        self.error = None               # what it said went wrong
        self.exitcode = None            # set when it ended

    def hear(self):
        """What it says next; None when it ended instead."""
        try:
            return self.link.recv()
        except (EOFError, ConnectionResetError):
            self.end(None)
            return None

    def end(self, timeout):
        """Wait until it has ended; with a time-out, kill it then."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.exitcode = self.process.exitcode


class Crew:
    """The member processes of one instance.

    A crew that is not told to go, or is stopped, removes its keys and ends.
    """

    def __init__(self, place, instance):
        context = multiprocessing.get_context("spawn")
        self.members = []
        try:
            with self._deaf_to_interrupts():        # which members inherit: the parent decides what becomes of them
                for number in range(instance.processes):
                    self.members.append(Member(context, place, instance.offset, number))
        except BaseException:
            self.stop(PATIENCE)
            raise

    @staticmethod
    @contextlib.contextmanager
    def _deaf_to_interrupts():
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)

    def _hear_all(self):
        """One message of each member that lives; yields (member, message)."""
        waiting = {member.link: member for member in self.members if member.exitcode is None and member.error is None}
        while waiting:
            for link in multiprocessing.connection.wait(list(waiting)):
                member = waiting.pop(link)
                yield member, member.hear()

    def make_ready(self):
        """Wait until all are attached (those that are killed apart); whether nothing went wrong."""
        for member, message in self._hear_all():
            if message not in ("ready", None):
                member.error = message
        return not any(member.error for member in self.members)

    def work(self):
        """Have them work, and wait for the end of it."""
        for member in self.members:
            with contextlib.suppress(OSError):
                member.link.send("go")
        for member, message in self._hear_all():
            if isinstance(message, tuple):
                member.times = message
            elif message is not None:
                member.error = message

    def stop(self, patience):
        """Tell all to end, and wait; whoever has not ended after so many seconds is killed."""
        for member in self.members:
            member.link.close()
        deadline = time.monotonic() + patience
        for member in self.members:
            member.end(max(0.0, deadline - time.monotonic()))


# -- an instance ----------------------------------------------------------------------------------------------


class Refused(Exception):
    """This instance cannot work on that section."""


@dataclasses.dataclass
class Outcome:
    """A row of the table, and what was proven."""

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
    heap_whole: bool | None = None
    blocks_left: int | None = None
    killed: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def status(self):
        """What the program exits with."""
        return 1 if self.problems else 3 if self.killed else 0


def say(text):
    """Tell the user what is not a result."""
    print(f"tstshmem: {text}", file=sys.stderr, flush=True)


class Session:
    """One instance of the program on one section: come, work, prove, leave.

    Parameters
    ----------
    memory : SharedMemory
    place : dict
        With which members open it.
    outcome : Outcome
        What to do; filled in.
    """

    def __init__(self, memory, place, outcome):
        self.memory = memory
        self.place = place
        self.outcome = outcome
        self.exclusive = shmem.exclusive_lock(memory)
        self.control = None
        self.instance = None
        self.tree = None

    # -- coming

    def enter(self):
        """Register, after clearing up after instances that were killed.  `Refused` where it cannot work."""
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
            raise Refused(f"the root object of {self.memory.name} is not this program's: {control!r}; give it a section of its own")
        return control

    def _join(self):
        control, outcome = self.control, self.outcome
        if control.first is None:
            self._begin()
        elif VARIANTS[control.variant] != outcome.variant:
            raise Refused(f"an instance of the {VARIANTS[control.variant]} variant is running on {self.memory.name}")
        elif not (control.locking and outcome.locking):
            raise Refused(f"another instance is running on {self.memory.name}, and without locks only one may")
        self.tree = tree_of(self.memory, control, outcome.locking)
        control.n_started += 1
        self.instance = self.memory.new(
            Instance, number=control.n_started, pid=os.getpid(), owner=_lock.participant(self.memory), processes=outcome.processes,
            threads=outcome.threads, keys=outcome.keys, next=control.first)  # fmt: skip
        control.first = self.instance

    def _begin(self):
        """Nobody else is here: what is in the section now is what was there before."""
        control = self.control
        n_nodes = tree_of(self.memory, control).count_nodes()
        if n_nodes:
            raise Refused(f"{n_nodes} nodes that belong to no instance are in the tree of {self.memory.name}")
        control.variant = VARIANTS.index(self.outcome.variant)
        control.locking = self.outcome.locking
        control.blocks_before = self.memory.check_heap().blocks - 1
        control.deaths_before = self.memory.owner_deaths

    # -- clearing up after the dead

    def _adopt(self):
        """Put my name on instances none of whose processes lives; [(instance, its process id)].  The caller holds the lock."""
        dead = [one for one in self.control.instances() if not one.is_alive(self.memory)]
        former = [one.pid for one in dead]
        for one in dead:
            one.members[:] = one.crew[:] = 0
            one.pid, one.owner = os.getpid(), _lock.participant(self.memory)
        return list(zip(dead, former, strict=True))

    def _bury(self, dead):
        tree = tree_of(self.memory, self.control)
        for instance, pid in dead:
            n_keys = sum(tree.remove_keys(keys) for keys in instance.all_keys())
            say(f"instance {instance.number} (process {pid}) was killed; {n_keys:,} keys that it left were removed")
            self.outcome.killed += 1
            with self.exclusive:
                self.control.forget(instance)

    # -- working

    def work(self):
        """Do the work, and see that none of it is left, whatever happened.  Ctrl-C ends it early."""
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
            except KeyboardInterrupt:           # the second one
                crew.stop(0)
            self._settle(crew)

    def _settle(self, crew):
        """Every member has ended.  Those that did not finish may have left keys."""
        times = [member.times for member in crew.members if member.times]
        if len(times) == len(crew.members):
            self.outcome.seconds = max(ended for _, ended in times) - min(started for started, _ in times)
        for member in crew.members:
            who = f"member {member.number} (process {member.process.pid})"
            n_keys = 0
            if member.times is None:
                n_keys = sum(self.tree.remove_keys(keys) for keys in keys_of_member(self.instance, member.number))
            if member.error:
                self.problem(f"{who}: {member.error}")
            if member.exitcode < 0:
                self.outcome.killed += 1
                say(f"{who} was killed by {signal.Signals(-member.exitcode).name}; {n_keys:,} keys that it left were removed")
            elif member.exitcode > 0 or (n_keys and not member.error):
                self.problem(f"{who} ended with exit status {member.exitcode} and left {n_keys:,} keys")

    def problem(self, text):
        """A proof that failed, or an error."""
        self.outcome.problems.append(text)
        say(text)

    # -- leaving

    def prove_own_keys_gone(self):
        """Search each of my keys once more."""
        left = sum(self.tree.count_keys(keys) for keys in self.instance.all_keys())
        self.outcome.own_keys_left = left
        if left:
            self.problem(f"{left:,} of this instance's keys are still in the tree")

    def leave(self):
        """Say that I am gone; if I am the last, prove what the last one can."""
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
                        self.problem(f"instance {one.number} (process {one.pid}) was killed, but members of it run on: nothing is proven")
                    return
            self._bury(dead)
            if not dead:
                time.sleep(0.05)

    def _orphans(self):
        """Instances that were killed, but members of which live: they clear up and end by themselves."""
        return [one for one in self.control.instances() if not one.has_owner(self.memory)]

    def _prove_all_gone(self):
        """I am the last one, and hold the lock."""
        outcome, control = self.outcome, self.control
        outcome.is_last = True
        outcome.tree_empty = outcome.heap_whole = False
        try:
            outcome.tree_empty = self.tree.count_nodes() == 0
            report = self.memory.check_heap()
            outcome.heap_whole = True
        except (shmem.ShmemError, RuntimeError) as error:
            self.problem(str(error))
            return
        if not outcome.tree_empty:
            self.problem("the tree is not empty")
            return
        outcome.blocks_left = report.blocks - 1 - control.blocks_before
        may_be_lost = self.memory.owner_deaths - control.deaths_before
        if not 0 <= outcome.blocks_left <= may_be_lost:
            self.problem(f"{outcome.blocks_left} blocks are left in the heap")
        elif outcome.blocks_left:
            outcome.killed = max(outcome.killed, outcome.blocks_left)
            say(f"{outcome.blocks_left} blocks were lost by {may_be_lost} processes that were killed with the lock in hand")
        self.memory.free(control)               # which unsets the root object


def run_session(memory, place, outcome):
    """One row of the table.  KeyboardInterrupt is passed on when everything is cleared up."""
    session = Session(memory, place, outcome)
    session.enter()
    try:
        session.work()
    except (shmem.ShmemError, RuntimeError, OSError) as error:
        session.problem(f"{type(error).__name__}: {error}")
    finally:
        session.prove_own_keys_gone()
        session.leave()


# -- the command ------------------------------------------------------------------------------------------------


def _number(most):
    def parse(text):
        number = int(text)
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{number:,} is not between 1 and {most:,}")
        return number

    parse.__name__ = "whole number"
    return parse


def _size(text):
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    unit = units.get(text[-1:].upper(), 1)
    return int(text[:-1] if unit > 1 else text) * unit


def command_arguments(parser):
    """Declare what `python -m shmem tstshmem` takes."""
    parser.add_argument("-p", "--processes", type=_number(MAX_PROCESSES), metavar="N", help=f"processes, up to {MAX_PROCESSES} (default 2)")
    parser.add_argument("-t", "--threads", type=_number(MAX_THREADS), metavar="N", help=f"threads of each, up to {MAX_THREADS} (default 2)")
    parser.add_argument("-n", "--keys", type=_number((1 << 32) - 1), default=10_000, metavar="N", help="keys of each (default 10,000)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--file", metavar="PATH", help="map this file; created if missing, kept")
    place.add_argument("--name", help="use the anonymous section of this name, so that several instances meet; the last one out removes it")
    parser.add_argument("--size", type=_size, metavar="BYTES", help="of the section, when it is created; also 64M, 2G (default: enough)")
    parser.add_argument("--variant", choices=(*VARIANTS, "both"), default="cython", help="typed objects, or C without the GIL (default)")
    parser.add_argument("--no-locking", action="store_true", help="one process, one thread, no locks, nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


HEADER = f"{'variant':<8} {'locking':<8} {'processes':>9} {'threads':>8} {'keys':>11} {'seconds':>9}"


def _row(outcome):
    seconds = "-" if outcome.seconds is None else f"{outcome.seconds:.3f}"
    total = outcome.processes * outcome.threads * outcome.keys
    locking = "yes" if outcome.locking else "no"
    return f"{outcome.variant:<8} {locking:<8} {outcome.processes:>9} {outcome.threads:>8} {total:>11,} {seconds:>9}"


def _verdict(outcome):
    """What was proven on the section that was asked for, in a line."""
    own = "own keys gone" if outcome.own_keys_left == 0 else "own keys NOT gone"
    if not outcome.is_last:
        return f"{own}; not the last to leave: other instances are running on {outcome.section}"
    tree = "tree empty" if outcome.tree_empty else "tree NOT empty"
    heap = "heap whole" if outcome.heap_whole else "heap NOT whole"
    blocks = {0: "no block left", None: "blocks not counted"}.get(outcome.blocks_left, f"{outcome.blocks_left} BLOCKS LEFT")
    return f"{own}; last to leave: {tree}, {heap}, {blocks}"


def _sessions(options, variant, size):
    """(outcome to fill in, arguments to open its section with) for each row."""
    alone = {"locking": False, "processes": 1, "threads": 1}
    asked = {"locking": True, "processes": options.processes or 2, "threads": options.threads or 2}
    place = {"shared_name": options.name} if options.name else {}
    if options.file:
        place = {"file_name": os.path.abspath(options.file)}
    for what, where in [(alone, place)] if options.no_locking else [(alone, {}), (asked, place)]:
        yield Outcome("", variant, keys=options.keys, **what), {**where, "max_size": size}


def _run_all(options, outcomes):
    """Every row, each printed as soon as it is there (unless `--json`)."""
    need = (options.processes or 2) * (options.threads or 2) * options.keys * BLOCK_BYTES
    size = options.size or max(MIN_SIZE, 2 * need)
    for variant in VARIANTS if options.variant == "both" else (options.variant,):
        for outcome, where in _sessions(options, variant, size):
            outcomes.append(outcome)
            with shmem.SharedMemory(**where) as memory:
                outcome.section = memory.name
                place = {"file_name": memory.path} if options.file else {"shared_name": memory.name}
                run_session(memory, place, outcome)
            if not options.json:
                print(_row(outcome), flush=True)


def command(options):
    """Run `python -m shmem tstshmem`; the exit status."""
    if options.no_locking and (options.processes or 1, options.threads or 1) != (1, 1):
        say("without locks there is one process and one thread: --no-locking goes with -p 1 -t 1")
        return 2
    outcomes = []
    status = 0
    if not options.json:
        print(HEADER, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", shmem.OwnerDiedWarning)         # said in other words
        try:
            _run_all(options, outcomes)
        except KeyboardInterrupt:
            say("interrupted")
            status = 130
        except (Refused, shmem.ShmemError, RuntimeError, OSError) as error:
            say(error)
            status = 1
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2))
    else:
        for variant, outcome in {outcome.variant: outcome for outcome in outcomes if outcome.own_keys_left is not None}.items():
            print(f"{variant}: {_verdict(outcome)}", flush=True)
    return status or max((outcome.status() for outcome in outcomes), key=(0, 3, 1).index, default=0)
