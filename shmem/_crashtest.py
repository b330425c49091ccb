"""Kill a process at every instruction of every operation that changes a section, and see whether the others can go on.

Each operation runs in a process of its own, one instruction at a time (ptrace: Linux on x86-64).  After each instruction outside of the
interpreter's own code the section is compared with what it was before, and a copy is kept whenever it changed: what is there
whenever a kill comes is one of these copies.  Each distinct copy is handed to other processes, as if its owner had died there: to a first
opener, to a participant that lived beside it, and to one that gets the dead one's place.  Each must get the lock, find the heap
whole, everything that was there before intact, nothing lost, and the operation done or not done.

Beside that, at sampled instructions the process is really killed while another one is attached.  And for a sample of the copies the
repair itself is stepped through and killed in the same way.

Exit status: 0 all survived, 1 something did not, 2 wrong arguments, or processes cannot be stepped here.
"""

import collections
import contextlib
import ctypes
import dataclasses
import gc
import hashlib
import mmap
import os
import shutil
import signal
import sys
import tempfile
import time

import shmem
from shmem import _crash_waiting, _ptrace  # noqa: F401 - puts its operations into the table
from shmem._bar import make_bar
from shmem._crash_check import MAX_PARTICIPANTS, MAX_SIZE, Pool, occupy, pour
from shmem._crash_operations import OPERATIONS, furnish

MOST_STEPS = 3_000_000
CLEANER = 2  # the entry of the table that the process gets whose repair is stepped through

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
    cleaned: int = 0
    """States whose repair was stepped through."""
    kills: int = 0
    failures: list = dataclasses.field(default_factory=list)


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


@contextlib.contextmanager
def _on_one_processor(tracee):
    """Parent and tracee take turns: on one processor that takes half the time."""
    allowed = os.sched_getaffinity(0)
    chosen = {max(allowed)}
    os.sched_setaffinity(tracee.pid, chosen)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def step_through(tracee, watch, result, let_go_after=0, let_go=None):
    """Step to the next pause; the distinct states, the first one included.  `let_go()` is called after so many changes."""
    with _on_one_processor(tracee):
        return _step_through(tracee, watch, result, let_go_after, let_go)


def _step_through(tracee, watch, result, let_go_after, let_go):
    ranges = _ptrace.Places(tracee.pid).interpreter()
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
    for place, wait in ((scratch, lambda: None), (path, _ptrace.pause)):
        section = place if operation.opens else shmem.SharedMemory(place)
        it = operation.ready(section)
        if place == scratch and operation.beside is not None:
            with operation.beside(section):  # nobody is beside it there to end its wait
                pass
        wait()
        operation.run(section, it)
        wait()
        del section, it


def _cleaner(path, content, scratch, joins):
    """In the process whose repair is stepped through: what anybody does who meets the dead."""
    gc.disable()
    with shmem.SharedMemory(scratch) as shm:
        _repair(shm)
    if joins:
        shm = shmem.SharedMemory(path)
        pour(path, content, mine=CLEANER)
        _ptrace.pause()
    else:
        _ptrace.pause()
        shm = shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS)
    _repair(shm)
    _ptrace.pause()


def _repair(shm):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with shmem.exclusive_lock(shm, 20):
            shm.check_heap()


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

    def __init__(self, folder, options, tell):
        self.folder, self.options, self.tell = folder, options, tell
        self.pool = Pool(folder, options.checkers)
        self.beside = self.pool.checkers[0]
        self.base = {index: self._make_base(index) for index in ("tlsf", "next_fit")}
        self.path = os.path.join(folder, "section")
        self.scratch = os.path.join(folder, "scratch")

    def _make_base(self, index):
        """The bytes of a section as its last process out left it, made by a process of its own."""
        path = os.path.join(self.folder, "base")

        def make():
            with shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS, index=index) as shm:
                furnish(shm)
            _ptrace.pause()

        _ptrace.Tracee(make).kill()
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
            tracee = _ptrace.Tracee(_victim, operation, self.path, self.scratch)
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
            places = _ptrace.Places(tracee.pid)
            states = step_through(tracee, watch, result, operation.let_go_after, lambda: self._ask_beside(mode="let go"))
            watch.close()
        if not operation.alone:
            self._ask_beside(mode="drop")
        result.states = len(states)
        allowed = self._allowed(operation, states, result, places)
        if allowed:
            self.tell(f"{operation.name}: {len(states)} states")
            self._check(operation, states, ("open",) if operation.alone else ("open", "live", "join"), allowed, result, places)
            self._kill(operation, states, allowed, result)
            self._clean(operation, states, allowed, result)
        return result

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
        for number, state in enumerate(states):
            for mode in modes:
                yield {
                    "mode": mode, "operation": operation.name, "number": number, "state": state.content,
                    "base": self.base[operation.index], "index": operation.index, "let_go": state.let_go, "of": state,
                }  # fmt: skip

    def _check(self, operation, states, modes, allowed, result, places, where=""):
        """Hand every state to every kind of process; what they saw that was right."""
        right = []
        for task, seen, wrong in self.pool.run(self._tasks(operation, states, modes)):
            result.checks += 1
            if wrong is None and allowed is not None and seen not in allowed:
                wrong = f"neither before nor after:\n  {_difference(allowed[0], seen)}\n  {_difference(allowed[1], seen)}\n"
            if wrong is None:
                right.append(seen)
            else:
                state = task["of"]
                kept = self._keep(operation, state, task["mode"], wrong)
                result.failures.append(
                    f"{operation.name}{where}: killed after instruction {state.step}, {places.name(state.address)}; "
                    f"{task['mode']}, {task['number']}: {wrong}{kept}"
                )
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
        for i, point in enumerate(points):
            self.tell(f"{operation.name}: SIGKILL {i + 1} of {len(points)}")
            with self._prepared(operation) as tracee:
                with _on_one_processor(tracee):
                    for n in range(point):
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
                result.failures.append(f"{operation.name}: SIGKILL before instruction {point}: {wrong}")
            result.kills += 1

    def _clean(self, operation, states, allowed, result):
        """Step through the repair of some of the states, and check what is there at each of its instructions."""
        wanted = self.options.repairs
        inner = states[1:-1]
        for i, state in enumerate(inner[:: max(1, len(inner) // wanted)][:wanted] if wanted else ()):
            joins = i % 2 == 0 and not operation.alone and operation.beside is None
            self.tell(f"{operation.name}: repair {i + 1} of {wanted}")
            base = self.base[operation.index]
            self._put(self.scratch, base)
            if joins:
                self._put(self.path, base)
                self._ask_beside(mode="hold", operation=operation.name, path=self.path)
                occupy(self.path, CLEANER - 1)
            else:
                self._put(self.path, state.content)
            tracee = _ptrace.Tracee(_cleaner, self.path, state.content, self.scratch, joins)
            try:
                watch = Watch(self.path, not joins)
                places = _ptrace.Places(tracee.pid)
                found = step_through(tracee, watch, result)
                watch.close()
            finally:
                tracee.kill()
            if joins:
                self._ask_beside(mode="drop")
            result.states += len(found)
            result.cleaned += 1
            modes = ("open", "live") if joins else ("open",)
            self._check(operation, found, modes, allowed, result, places, f": repair of what instruction {state.step} left")

    def end(self):
        """End all processes."""
        self.pool.end()


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
    parser.add_argument("--repairs", type=int, metavar="N", help="step through the repair of N states of each operation (default: 3)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the states that fail there, as files that can be opened")
    parser.add_argument("--checkers", type=int, default=16, help="processes that check states at the same time (default: %(default)s)")
    parser.add_argument("--folder", default="/dev/shm", help="a folder on a memory file system (default: %(default)s)")


def _chosen(options):
    wishes = options.operation
    names = [name for name in OPERATIONS if not wishes or name in wishes or any(name.startswith(f"{wish}:") for wish in wishes)]
    return [OPERATIONS[name] for name in names if not options.quick or OPERATIONS[name].small]


def _line(name, result):
    return (
        f"{name:<52} {result.steps:>9,} {result.changes:>7,} {result.states:>7,} {result.checks:>7,} "
        f"{result.cleaned:>7} {result.kills:>6} {len(result.failures):>6}"
    )


def _sweep_all(folder, options, bar):
    total = Result()
    sweep = Sweep(folder, options, bar.tell)
    print(f"{'operation':<52} {'stepped':>9} {'stores':>7} {'states':>7} {'checks':>7} {'repairs':>7} {'kills':>6} {'failed':>6}")
    try:
        for operation in _chosen(options):
            try:
                result = sweep.run(operation)
            except (Trouble, _ptrace.TraceeEnded) as error:
                result = Result(failures=[f"{operation.name}: {error}"])
            bar.stop()
            print(_line(operation.name, result), flush=True)
            for failure in result.failures[:3]:
                print("  " + failure.rstrip().replace("\n", "\n  "), flush=True)
            for field in dataclasses.fields(Result):
                setattr(total, field.name, getattr(total, field.name) + getattr(result, field.name))
            bar.advance()
    finally:
        bar.stop()
        sweep.end()
    return total


def command(options):
    """Run it; the exit status."""
    if options.list:
        print("\n".join(operation.name for operation in _chosen(options)))
        return 0
    reason = _ptrace.why_not()
    if reason:
        print(f"python -m shmem crashtest: {reason}", file=sys.stderr)
        return 2
    chosen = _chosen(options)
    if not chosen or (options.every is not None and options.every < 1) or options.checkers < 1:
        print("python -m shmem crashtest: no operation of that name (--list names them), or a number below 1", file=sys.stderr)
        return 2
    options.kills = 1 if options.quick else 10
    if options.repairs is None:
        options.repairs = 0 if options.quick else 3
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes
    folder = tempfile.mkdtemp(prefix="shmem-crashtest-", dir=options.folder)
    try:
        total = _sweep_all(folder, options, make_bar(len(chosen)))
    finally:
        shutil.rmtree(folder)
    print(_line(f"{len(chosen)} operations, {time.monotonic() - began:.0f} s", total))
    covered = 100 * (1 - total.late / max(1, total.changes))
    print(
        f"{total.changes:,} instructions and system calls changed a section; a copy was kept after {covered:.1f} % of them alone, "
        f"{total.states:,} distinct.\n{total.checks:,} recoveries and {total.kills:,} SIGKILLs, of which {len(total.failures):,} failed."
    )
    return 1 if total.failures else 0
