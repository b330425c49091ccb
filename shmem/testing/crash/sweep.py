"""Kill a process at every instruction of every operation that changes a section, and see whether the others can go on.

Each operation runs in a process of its own, one instruction at a time (ptrace: Linux on x86-64).  After each instruction outside of the
interpreter's own code the section is compared with what it was before, and a copy is kept whenever it changed: what is there
whenever a kill comes is one of these copies.  Each distinct copy is handed to other processes, as if its owner had died there: to a first
opener, to a participant that lived beside it, and to one that gets the dead one's place.  Each must get the lock, find the heap
whole, everything that was there before intact, nothing lost, and the operation done or not done.

Each copy is also repaired while that is followed store by store, and what is there after each of its stores is repaired in the same
way, and so on until no state is new (`testing.crash.repairs`, which says which states are taken for alike).

Beside that, at sampled instructions the process is really killed while another one is attached.

Exit status: 0 all survived, 1 something did not, 2 wrong arguments, or processes cannot be stepped here.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import gc
import hashlib
import mmap
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import shmem
from shmem._cli.progress import make_bar
from shmem.testing.crash import (
    operations_processes,  # noqa: F401 - puts its operations into the table
    ptrace,
)
from shmem.testing.crash.checker import MAX_PARTICIPANTS, MAX_SIZE, Checker, Pool, occupy, pour
from shmem.testing.crash.files import FILE_OPERATIONS, FileOperation, FileSweep
from shmem.testing.crash.operations import OPERATIONS, furnish
from shmem.testing.crash.repairs import CLEANER, Closure, Likeness, Repairer, without_pending
from shmem.testing.crash.store_trace import StoreTrace

MOST_STEPS = 3_000_000
LONG = 50_000  # instructions: longer operations are killed after certain changes, not instructions, since they get there quickly

_libc = ctypes.CDLL(None)
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclasses.dataclass
class State:
    """What the section was after one instruction."""

    content: bytes
    step: int
    address: int
    """Of the instruction that made it so."""
    let_go: bool = False
    """The one beside it had stopped by then."""
    where: Callable | None = None
    """Inside a repair: tells where."""


@dataclasses.dataclass
class Result:
    """What came out of one operation."""

    steps: int = 0
    changes: int = 0
    """How many instructions, or system calls, changed the section."""
    late: int = 0
    """How many changes were noticed only after instructions that were not looked at: 0, or coverage is less than said."""
    states: int = 0
    """Distinct ones."""
    checks: int = 0
    repairs: int = 0
    """Repairs that were followed store by store."""
    again: int = 0
    """Of those, repairs of what was left inside a repair."""
    inside: int = 0
    """Distinct states inside repairs."""
    inside_changes: int = 0
    """Stores and system calls that changed the section, in repairs."""
    traced: int = 0
    """States of the operation that its stores, found by write protection, make."""
    missed: int = 0
    """Of those, not seen by stepping."""
    kills: int = 0
    operations: int = 0
    failures: list = dataclasses.field(default_factory=list)


class _Reached(Exception):
    """The instruction at which to kill."""


class Trouble(Exception):
    """The harness itself cannot go on with an operation."""


# -- stepping ---------------------------------------------------------------------------------------------------


class Watch:
    """A section's file, compared with what it was when it was looked at last.

    Parameters
    ----------
    path : str
    resizes : bool
        The file changes its size: it is read.  Else it is mapped, which is quicker.
    """

    def __init__(self, path, resizes):
        self._file = open(path, "r+b")  # noqa: SIM115 - closed by close()
        self._map = None
        self.last = b""
        if not resizes:
            self._map = mmap.mmap(self._file.fileno(), 0)
            self._here = (ctypes.c_char * len(self._map)).from_buffer(self._map)
            self._address = ctypes.addressof(self._here)
        self.changed()

    def changed(self):
        """The new content, or None if it is the same."""
        if self._map is not None:
            if self.last and not _memcmp(self._address, self.last, len(self.last)):
                return None
            self.last = self._map[:]
            return self.last
        content = os.pread(self._file.fileno(), 2 * MAX_SIZE, 0)
        if content == self.last:
            return None
        self.last = content
        return content

    def close(self):
        """Let go of the file."""
        if self._map is not None:
            del self._here
            self._map.close()
        self._file.close()


class OneProcessor:
    """Parent and tracee take turns: on one processor that takes half the time.

    Parameters
    ----------
    number : int
        Which one, of those that this process may use.
    """

    def __init__(self, number=0):
        self._allowed = os.sched_getaffinity(0)
        self._chosen = {sorted(self._allowed)[number % len(self._allowed)]}

    def __enter__(self):
        os.sched_setaffinity(0, self._chosen)

    def __exit__(self, *_):
        os.sched_setaffinity(0, self._allowed)

    def bring(self, tracee):
        """It runs there as well."""
        os.sched_setaffinity(tracee.pid, self._chosen)


def step_through(tracee, watch, result, let_go_after=0, let_go=None):
    """Step to the next pause; the distinct states, the first one included.  `let_go()` is called after so many changes."""
    ranges = ptrace.Places(tracee.pid).interpreter()
    (low, high), (low2, high2) = [*ranges, (0, 0), (0, 0)][:2]
    seen = {hashlib.blake2b(watch.last).digest()}
    states = [State(watch.last, 0, 0)]
    step, position, changed = tracee.step, tracee.position, watch.changed
    n, before, was_outside, changes_left = 0, position(), True, let_go_after
    has_let_go = False
    while step():
        n += 1
        address = position()
        outside = not (low <= address < high or low2 <= address < high2)
        if was_outside or outside:
            content = changed()
            if content is not None:
                result.changes += 1
                result.late += not was_outside
                digest = hashlib.blake2b(content).digest()
                if digest not in seen:
                    seen.add(digest)
                    states.append(State(content, n, before, has_let_go))
                changes_left -= 1
                if changes_left == 0:
                    let_go()
                    has_let_go = True
        before, was_outside = address, outside
        if n > MOST_STEPS:
            raise Trouble(f"not done after {n:,} instructions")
    result.steps += n
    return states


def _victim(operation, path, scratch):
    """In the process that is to die: once on another section, so that all code is loaded; then in earnest."""
    gc.disable()
    for place, wait in ((scratch, lambda: None), (path, ptrace.pause)):
        section = place if operation.opens else shmem.SharedMemory(place)
        it = operation.ready(section)
        if place == scratch and operation.beside is not None:
            with operation.beside(section):  # nobody is beside it there to end its wait
                pass
        wait()
        operation.run(section, it)
        wait()
        del section, it


# -- the sweep --------------------------------------------------------------------------------------------------


class Sweep:
    """All that is done with the operations, in a folder of its own on a memory file system.

    Parameters
    ----------
    folder : str
    options : argparse.Namespace
        As `command_arguments` declares them.
    tell : callable
        Called with a text when something new begins.
    """

    def __init__(self, folder, options, tell, processor):
        self.folder, self.options, self.tell, self.processor = folder, options, tell, processor
        self.pool = Pool(folder, options.checkers)
        self.beside = Checker(os.path.join(folder, "beside"))
        self.base = {index: self._make_base(index) for index in ("tlsf", "next_fit")}
        self.path = os.path.join(folder, "section")
        self.scratch = os.path.join(folder, "scratch")
        repairers = [Repairer(path, os.path.join(folder, "learn"), processor) for path in (os.path.join(folder, "repair"), self.path)]
        self.repairers = {"open": repairers[0], "join": repairers[1], "live": repairers[1]}
        self._put(os.path.join(folder, "learn"), self.base["tlsf"])

    def _make_base(self, index):
        """The bytes of a section as its last process out left it, made by a process of its own."""
        path = os.path.join(self.folder, "base")

        def make():
            with shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS, index=index) as shm:
                furnish(shm)
            ptrace.pause()

        ptrace.Tracee(make).kill()
        with open(path, "rb") as file:
            content = file.read()
        os.unlink(path)
        return content

    def _ask_beside(self, **task):
        self.beside.ask(task)
        seen, wrong = self.beside.answer()
        if wrong:
            raise Trouble(f"the process beside it: {wrong}")
        return seen

    def _put(self, path, content):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def _prepared(self, operation):
        """The victim, waiting before the operation, and the one beside it if there is one."""
        start = b"" if operation.name == "open: create" else self.base[operation.index]
        if operation.name.startswith("open: the first one"):
            start = start[:280] + b"\0" + start[281:]  # nobody closed it
        self._put(self.path, start)
        self._put(self.scratch, start)
        if not operation.alone:
            self._ask_beside(mode="hold", operation=operation.name, path=self.path)
        tracee = None
        try:
            tracee = ptrace.Tracee(_victim, operation, self.path, self.scratch)
            with self.processor:
                self.processor.bring(tracee)
                if operation.follows:
                    tracee.follow()
                yield tracee
        finally:
            if tracee is not None:
                tracee.kill()

    def run(self, operation):
        """Everything with one operation."""
        result = Result()
        resizes = operation.alone or operation.opens
        self.tell(f"{operation.name}: stepping")
        with self._prepared(operation) as tracee:
            watch = Watch(self.path, resizes)
            places = ptrace.Places(tracee.pid)
            states = step_through(tracee, watch, result, operation.let_go_after, lambda: self._ask_beside(mode="let go"))
            watch.close()
        if not operation.alone:
            self._ask_beside(mode="drop")
        result.states = len(states)
        if operation.beside is None and not operation.forks:
            self._trace(operation, states, result)
        allowed = self._allowed(operation, states, result, places)
        if allowed:
            self.tell(f"{operation.name}: {len(states)} states")
            self._check(operation, states, ("open",) if operation.alone else ("open", "live", "join"), allowed, result, places)
            self._kill(operation, states, allowed, result)
            if self.options.repairs != "none":
                self._clean(operation, states, allowed, result, places)
        return result

    def _trace(self, operation, states, result):
        """Do it once more, and find its stores by write protection: is each state that they make one of those that were seen?"""
        found = []
        with self._prepared(operation) as tracee, open(self.path, "rb") as file:
            trace = StoreTrace(tracee, self.path)
            trace.run(lambda _: found.append(os.pread(file.fileno(), 4 * MAX_SIZE, 0)))
            trace.close()
        if not operation.alone:
            self._ask_beside(mode="drop")
        likeness = Likeness(states[0].content, literal=True)
        stepped = {likeness.key(state.content, "live") for state in states}
        traced = {likeness.key(content, "live") for content in found}
        result.traced += len(traced)
        result.missed += len(traced - stepped)

    def _allowed(self, operation, states, result, places):
        """What may be seen after a kill: as it was before, as it is afterwards."""
        seen = []
        for state in (states[0], states[-1]):
            for answer in self._check(operation, [state], ("open",), None, result, places):
                seen.append(answer)
        if len(seen) < 2:
            return None
        if (seen[0] == seen[1]) != operation.same:
            result.failures.append(
                f"{operation.name}: the operation changes {'something' if operation.same else 'nothing'}\n  {_difference(*seen)}"
            )
        return seen + (operation.between(*seen) if operation.between else [])

    def _tasks(self, operation, states, modes):
        """Each state for each mode; of those that differ in the payload of PENDING blocks alone, all but the first for one mode in turn."""
        seen = set()
        for number, state in enumerate(states):
            key = without_pending(state.content)
            for mode in modes if key not in seen else modes[number % len(modes) :][:1]:
                yield {
                    "mode": mode, "operation": operation.name, "number": number, "state": state.content,
                    "base": self.base[operation.index], "index": operation.index, "let_go": state.let_go,
                }  # fmt: skip
            seen.add(key)

    def _check(self, operation, states, modes, allowed, result, places):
        """Hand every state to every kind of process; what they saw that was right."""
        right = []
        for task, seen, wrong in self.pool.run(self._tasks(operation, states, modes)):
            result.checks += 1
            if wrong is None and allowed is not None and seen not in allowed:
                wrong = _neither(allowed, seen)
            if wrong is None:
                right.append(seen)
            else:
                state = states[task["number"]]
                kept = self._keep(operation, state, task["mode"], wrong)
                where = state.where() if state.where else f"instruction {state.step}, {places.name(state.address)}"
                result.failures.append(f"{operation.name}: killed after {where}; {task['mode']}, {task['number']}: {wrong}{kept}")
        return right

    def _keep(self, operation, state, mode, wrong):
        if not self.options.keep:
            return ""
        os.makedirs(self.options.keep, exist_ok=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in operation.name)
        path = os.path.join(self.options.keep, f"{name}-{state.step}-{mode}")
        self._put(path, state.content)
        with open(path + ".txt", "w", encoding="utf-8") as file:
            file.write(wrong)
        return f"  kept: {path}\n"

    def _kill(self, operation, states, allowed, result):
        """Real kills, at instructions from the first to the last that changes something."""
        first, last = max(0, states[min(1, len(states) - 1)].step - 1), states[-1].step
        let_go_at = next((state.step for state in states if state.let_go), None)
        every = self.options.every or max(1, (last - first) // max(1, self.options.kills))
        points = range(first, last + 1, every) if self.options.kills or self.options.every else ()
        quickly = last > LONG and not operation.let_go_after and not operation.forks and not self.options.every
        if quickly:
            n = len(states) - 1
            points = sorted({i * n // self.options.kills for i in range(self.options.kills + 1)})
        for i, point in enumerate(points):
            self.tell(f"{operation.name}: SIGKILL {i + 1} of {len(points)}")
            with self._prepared(operation) as tracee:
                if quickly:
                    self._run_to_change(tracee, point)
                for n in range(0 if quickly else point):
                    if n == let_go_at:
                        self._ask_beside(mode="let go")
                    if not tracee.step():
                        break
                tracee.kill()
            if operation.alone:
                with open(self.path, "rb") as file:
                    task = {"mode": "open", "operation": operation.name, "number": i, "state": file.read(), "index": operation.index}
            else:
                task = {"mode": "go on", "number": i}
            self.beside.ask(task)
            seen, wrong = self.beside.answer()
            if wrong is None and seen not in allowed:
                wrong = f"neither before nor after:\n  {_difference(allowed[0], seen)}\n"
            if wrong:
                result.failures.append(f"{operation.name}: SIGKILL {'after change' if quickly else 'before instruction'} {point}: {wrong}")
            result.kills += 1

    def _run_to_change(self, tracee, n_changes):
        """Go on until the section has changed so often."""
        left = n_changes + 1
        with open(self.path, "rb") as file:
            last = None

            def look(_):
                nonlocal left, last
                now = os.pread(file.fileno(), 4 * MAX_SIZE, 0)
                left -= now != last
                last = now
                if left == 0:
                    raise _Reached

            trace = StoreTrace(tracee, self.path)
            with contextlib.suppress(_Reached):
                look(None)
                trace.run(look)
            trace.close()

    def _clean(self, operation, states, allowed, result, places):
        """Repair each state, and each state inside a repair, until there is none that was not; see `testing.crash.repairs`."""
        beside = not operation.alone and operation.beside is None
        likeness = Likeness(states[0].content, self.options.repairs == "all")
        kinds = ("open", "join", "live") if beside else ("open",)
        if operation.forks:
            kinds = kinds[:2]  # the live one's entry is the child's
        if beside:
            base = self._attach_watcher(operation)

        def put(kind, content):
            if kind == "open":
                self._put(self.repairers["open"].path, content)
            else:
                pour(self.path, base if kind == "live" else content)
                occupy(self.path, CLEANER - 1 if kind == "live" else CLEANER)

        closure = Closure(self.repairers, likeness, put, lambda seen: None if seen in allowed else _neither(allowed, seen))
        for state in states:
            closure.add(kinds, state.content, f"{state.step}, {places.name(state.address)}")
        with self.processor:
            found = list(closure.run(lambda text: self.tell(f"{operation.name}: {text}")))
        if beside:
            self._ask_beside(mode="drop")
        inner = [State(content, i, 0, where=functools.partial(closure.text, "", origin)) for i, (content, origin) in enumerate(found)]
        self._check(operation, inner, ("live",), allowed, result, places)
        result.repairs += closure.repairs
        result.again += closure.again
        result.inside += closure.inside
        result.inside_changes += closure.stores
        for content, where, wrong in closure.failures:
            kept = self._keep(operation, State(content, len(result.failures), 0), "repair", wrong)
            result.failures.append(f"{operation.name}: {where}: {wrong}{kept}")

    def _attach_watcher(self, operation):
        """Have a process attached that does nothing: what the section is then."""
        self._put(self.path, self.base[operation.index])
        self._ask_beside(mode="hold", operation=operation.name, path=self.path)
        with open(self.path, "rb") as file:
            return file.read()

    def end(self):
        """End all processes."""
        for repairer in self.repairers.values():
            repairer.end()
        self.beside.end()
        self.pool.end()


def _neither(allowed, seen):
    return f"neither before nor after:\n  {_difference(allowed[0], seen)}\n  {_difference(allowed[1], seen)}\n"


def _difference(expected, found):
    """Where two observations differ, in short."""
    texts = []
    for key in ("names", "root", "blocks"):
        a, b = expected[key], found[key]
        if a == b:
            continue
        if key == "names":
            texts += [f"{name!r}: {_short(a.get(name))} -> {_short(b.get(name))}" for name in a | b if a.get(name) != b.get(name)]
        elif key == "blocks":
            a, b = collections.Counter(a), collections.Counter(b)
            gone, come = list((a - b).elements()), list((b - a).elements())
            texts.append(f"blocks: {_blocks_text(gone)} -> {_blocks_text(come)}")
            if len(gone) == len(come) == 1 and gone[0][1] == come[0][1]:
                texts.append(f"bytes {[i for i in range(len(gone[0][2])) if gone[0][2][i] != come[0][2][i]][:20]} differ")
        else:
            texts.append(f"{key}: {_short(a)} -> {_short(b)}")
    return "; ".join(texts) or "no difference"


def _short(value):
    text = repr(value)
    return text if len(text) <= 100 else text[:60] + " ... " + text[-30:]


def _blocks_text(blocks):
    return ", ".join(f"type {type_id}, {size} bytes, {_short(content)}" for type_id, size, content in blocks) or "none"


# -- the command ------------------------------------------------------------------------------------------------


def command_arguments(parser):
    """Declare what `python -m shmem crashtest` takes."""
    parser.add_argument("--operation", action="append", default=[], metavar="NAME", help="only this one, or all of a kind: free")
    parser.add_argument("--list", action="store_true", help="name the operations, and do nothing")
    parser.add_argument("--quick", action="store_true", help="short operations alone, few kills, no repairs: a minute")
    parser.add_argument("--every", type=int, metavar="K", help="kill at every K-th instruction (default: ten per operation)")
    parser.add_argument("--repairs", choices=("none", "alike", "all"),
                        help="repair each state, and each inside a repair: of those that are alike one (default), or all; or none")
    parser.add_argument("--jobs", type=int, metavar="N", help="operations at the same time (default: as many as there are processors)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the states that fail there, as files that can be opened")
    parser.add_argument("--checkers", type=int, default=8, help="processes per job that check states (default: %(default)s)")
    parser.add_argument("--folder", default="/dev/shm", help="a folder on a memory file system (default: %(default)s)")


def _chosen(options):
    wishes = options.operation
    every = OPERATIONS | FILE_OPERATIONS
    names = [name for name in every if not wishes or name in wishes or any(name.startswith(f"{wish}:") for wish in wishes)]
    return [every[name] for name in names if not options.quick or every[name].small]


HEADS = {"stepped": 10, "stores": 7, "states": 7, "checks": 7, "repairs": 8, "again": 8, "inside": 8, "kills": 6, "failed": 7}


def _line(name, result):
    numbers = (result.steps, result.changes, result.states, result.checks, result.repairs, result.again, result.inside, result.kills,
               len(result.failures))  # fmt: skip
    return f"{name:<55}" + "".join(f"{number:>{width},}" for number, width in zip(numbers, HEADS.values(), strict=True))


def _work(link, folder, options, number, turn):
    """One of the processes that sweep: takes operation after operation, sends (text, None) and (name, its result)."""
    chosen = _chosen(options)
    os.mkdir(folder)
    sweep = Sweep(folder, options, lambda text: link.send((text, None)), OneProcessor(number))
    try:
        while True:
            with turn.get_lock():
                mine, turn.value = turn.value, turn.value + 1
            if mine >= len(chosen):
                break
            try:
                if isinstance(chosen[mine], FileOperation):
                    result = Result()
                    FileSweep(os.path.join(folder, str(mine)), sweep.processor).run(chosen[mine], result, options.kills)
                else:
                    result = sweep.run(chosen[mine])
            except (Trouble, ptrace.TraceeEnded) as error:
                result = Result(failures=[f"{chosen[mine].name}: {error}"])
            link.send((chosen[mine].name, result))
    finally:
        sweep.end()


def _start_workers(folder, options):
    """Processes that sweep side by side, each with what it needs; their links."""
    context = multiprocessing.get_context("fork")
    turn, links, workers = context.Value("i", 0), [], []
    for number in range(options.jobs):
        mine, its = context.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: numpy's, which are idle
            workers.append(context.Process(target=_work, args=(its, os.path.join(folder, str(number)), options, number, turn)))
            workers[-1].start()
        its.close()
        links.append(mine)
    return links, workers


def _sweep_all(folder, options, bar):
    total = Result()
    print(f"{'operation':<55}" + "".join(f"{head:>{width}}" for head, width in HEADS.items()))
    links, workers = _start_workers(folder, options)
    try:
        while links:
            for link in multiprocessing.connection.wait(links):
                try:
                    name, result = link.recv()
                except EOFError:
                    links.remove(link)
                    continue
                if result is None:
                    bar.tell(name)
                    continue
                bar.stop()
                print(_line(name, result), flush=True)
                for failure in result.failures[:3]:
                    print("  " + failure.rstrip().replace("\n", "\n  "), flush=True)
                for field in dataclasses.fields(Result):
                    setattr(total, field.name, getattr(total, field.name) + getattr(result, field.name))
                total.operations += 1
                bar.advance()
    finally:
        bar.stop()
        for worker in workers:
            worker.terminate()
            worker.join()
    return total


def command(options):
    """Run it; the exit status."""
    if options.list:
        print("\n".join(operation.name for operation in _chosen(options)))
        return 0
    reason = ptrace.why_not()
    if reason:
        print(f"python -m shmem crashtest: {reason}", file=sys.stderr)
        return 2
    chosen = _chosen(options)
    if not chosen or min(options.every or 1, options.checkers, options.jobs or 1) < 1 or 0 in (options.every, options.jobs):
        print("python -m shmem crashtest: no operation of that name (--list names them), or a number below 1", file=sys.stderr)
        return 2
    options.kills = 1 if options.quick else 10
    if options.repairs is None:
        options.repairs = "none" if options.quick else "alike"
    options.jobs = min(options.jobs or len(os.sched_getaffinity(0)), len(chosen))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes
    folder = tempfile.mkdtemp(prefix="shmem-crashtest-", dir=options.folder)
    try:
        total = _sweep_all(folder, options, make_bar(len(chosen)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if total.operations < len(chosen):
        total.failures.append(f"{len(chosen) - total.operations} operations were not done: a process that was to do them ended\n")
        print(total.failures[-1], end="")
    print(_line(f"{total.operations} operations, {time.monotonic() - began:.0f} s", total))
    _print_summary(total, options)
    return 1 if total.failures else 0


def _print_summary(total, options):
    covered = 100 * (1 - total.late / max(1, total.changes))
    seen = 100 * (1 - total.missed / max(1, total.traced))
    print(
        f"{total.changes:,} instructions and system calls changed a section; a copy was kept after {covered:.1f} % of them alone, "
        f"{total.states:,} distinct.\nWrite protection finds {total.traced:,} states of operations that nobody disturbs; "
        f"{seen:.1f} % of them were seen by stepping."
    )
    if options.repairs != "none":
        alike = "the lock's counts and process ids" + (
            "" if options.repairs == "all" else ", blocks that are not made yet, and what a repair makes anew from the chain of blocks"
        )
        print(
            f"{total.repairs:,} repairs, one of each kind for every state but for {alike}; {total.inside_changes:,} changes in them, after "
            f"which {total.inside:,} states were new;\n{total.again:,} of the repairs were of those, until no state was new."
        )
    print(f"{total.checks + total.repairs:,} recoveries and {total.kills:,} SIGKILLs, of which {len(total.failures):,} failed.")
