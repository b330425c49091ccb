"""The sweep of one operation: step it, check and repair every state, and kill it for real."""

import contextlib
import functools
import os

import shmem
from shmem._base.layout import LAYOUT
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import MAX_PARTICIPANTS, MAX_SIZE, Checker, Pool, occupy, pour
from shmem.testing.crash.operations import furnish
from shmem.testing.crash.repairs import CLEANER, Closure, Likeness, Repairer, without_pending
from shmem.testing.crash.results import Result, State, Trouble, difference_text, neither_text
from shmem.testing.crash.stepping import Watch, step_through, victim_main
from shmem.testing.crash.store_trace import StoreTrace

HEADER = LAYOUT["header_t"]

LONG = 50_000  # instructions; longer operations are killed after certain changes instead, which takes less time


class _Reached(Exception):
    """The point at which to kill is reached."""


class Sweep:
    """The processes and files with which operations are swept.

    Parameters
    ----------
    folder : str
        A folder of its own, on a memory file system.
    options : argparse.Namespace
        As `command_arguments` declares them.
    tell : callable
        Called with a progress text.
    processor : OneProcessor
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
        """Return the bytes of a furnished section as its last process left it; a process of its own makes it."""
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
            raise Trouble(f"the process beside the victim failed: {wrong}")
        return seen

    def _put(self, path, content):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def _prepared(self, operation):
        """Yield the victim, paused before the operation, with the process beside it attached if the operation has one."""
        start = b"" if operation.name == "open: create" else self.base[operation.index]
        if operation.name.startswith("open: first opener"):
            start = bytearray(start)
            HEADER["clean"].write(start, 0)  # as if no process had closed it
        self._put(self.path, start)
        self._put(self.scratch, start)
        if not operation.alone:
            self._ask_beside(mode="hold", operation=operation.name, path=self.path)
        tracee = None
        try:
            tracee = ptrace.Tracee(victim_main, operation, self.path, self.scratch)
            with self.processor:
                self.processor.bring(tracee)
                if operation.follows:
                    tracee.follow()
                yield tracee
        finally:
            if tracee is not None:
                tracee.kill()

    def run(self, operation):
        """Sweep one operation and return its `Result`."""
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
        """Run the operation once more and find its stores by write protection; count the states that stepping did not see."""
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
        """Return the observations allowed after a kill: that before the operation, that after it, and those in between."""
        seen = []
        for state in (states[0], states[-1]):
            for answer in self._check(operation, [state], ("open",), None, result, places):
                seen.append(answer)
        if len(seen) < 2:
            return None
        if (seen[0] == seen[1]) != operation.same:
            result.failures.append(
                f"{operation.name}: the operation changes {'something' if operation.same else 'nothing'}\n  {difference_text(*seen)}"
            )
        return seen + (operation.between(*seen) if operation.between else [])

    def _tasks(self, operation, states, modes):
        """Yield a task for each state and mode.

        Of states that differ only in the payload of PENDING blocks, the first is checked in every mode, each other in one mode, by turns.
        """
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
        """Hand every state to checkers in every mode; return the observations that are right."""
        right = []
        for task, seen, wrong in self.pool.run(self._tasks(operation, states, modes)):
            result.checks += 1
            if wrong is None and allowed is not None and seen not in allowed:
                wrong = neither_text(allowed, seen)
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
        """Kill the process for real, at instructions from the first to the last that changes the section."""
        first, last = max(0, states[min(1, len(states) - 1)].step - 1), states[-1].step
        let_go_at = next((state.step for state in states if state.let_go), None)
        every = self.options.every or max(1, (last - first) // max(1, self.options.kills))
        points = range(first, last + 1, every) if self.options.kills or self.options.every else ()
        by_changes = last > LONG and not operation.let_go_after and not operation.forks and not self.options.every
        if by_changes:
            n = len(states) - 1
            points = sorted({i * n // self.options.kills for i in range(self.options.kills + 1)})
        for i, point in enumerate(points):
            self.tell(f"{operation.name}: SIGKILL {i + 1} of {len(points)}")
            with self._prepared(operation) as tracee:
                if by_changes:
                    self._run_to_change(tracee, point)
                else:
                    self._step_to(tracee, point, let_go_at)
                tracee.kill()
            wrong = self._go_on_after_kill(operation, i, allowed)
            if wrong:
                where = f"{'after change' if by_changes else 'before instruction'} {point}"
                result.failures.append(f"{operation.name}: SIGKILL {where}: {wrong}")
            result.kills += 1

    def _step_to(self, tracee, n_steps, let_go_at):
        """Execute that many instructions of the operation, or all if there are fewer."""
        for n in range(n_steps):
            if n == let_go_at:
                self._ask_beside(mode="let go")
            if not tracee.step():
                break

    def _go_on_after_kill(self, operation, number, allowed):
        """Have another process go on after a real kill; return what is wrong, or None."""
        if operation.alone:
            with open(self.path, "rb") as file:
                task = {"mode": "open", "operation": operation.name, "number": number, "state": file.read(), "index": operation.index}
        else:
            task = {"mode": "go on", "number": number}
        self.beside.ask(task)
        seen, wrong = self.beside.answer()
        if wrong is None and seen not in allowed:
            wrong = f"neither before nor after:\n  {difference_text(allowed[0], seen)}\n"
        return wrong

    def _run_to_change(self, tracee, n_changes):
        """Run the operation until the section has changed that often."""
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
        """Repair each state, and each state inside a repair, until no state is new; see `testing.crash.repairs`."""
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

        closure = Closure(self.repairers, likeness, put, lambda seen: None if seen in allowed else neither_text(allowed, seen))
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
        """Attach a process that does nothing; return the section's content after that."""
        self._put(self.path, self.base[operation.index])
        self._ask_beside(mode="hold", operation=operation.name, path=self.path)
        with open(self.path, "rb") as file:
            return file.read()

    def end(self):
        """Kill all processes of the sweep."""
        for repairer in self.repairers.values():
            repairer.end()
        self.beside.end()
        self.pool.end()
