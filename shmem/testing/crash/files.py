"""Operations of `crashtest` that make, replace, repair or remove files: a state is the names, sizes and bytes of the files in a folder.

These operations are followed by write protection and system calls (`testing.crash.store_trace`).  The kernel completes a system call or a
kill waits for its end, so the states before and after each call, and after each store, are all states there are.  A snapshot's file
without a name is visible to no process.  Each distinct state is put back, and a process of its own looks at it (`look`): it must see
what was there before the operation or what was there after it.
"""

import ast
import contextlib
import dataclasses
import gc
import glob
import hashlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable

import shmem
from shmem._base.layout import LAYOUT
from shmem._base.system_tools import named_path, section_path
from shmem._cli import check as _check
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import LONGEST_SECONDS, MAX_PARTICIPANTS, MAX_SIZE, Damage
from shmem.testing.crash.store_trace import StoreTrace

HEADER, BLOCK = LAYOUT["header_t"], LAYOUT["block_t"]

FILE_OPERATIONS = {}


@dataclasses.dataclass(frozen=True)
class FileOperation:
    """An entry of the table of operations."""

    name: str
    ready: Callable
    """`ready(prefix)` prepares and returns the argument of `run`.  The paths of all files begin with the prefix."""
    run: Callable
    look: Callable
    """`look(prefix)` returns what a user sees, and raises if something is lost."""
    same: bool = False
    """What users see is the same before and after."""
    prefix: str = ""
    """The prefix of the paths, unless it is a folder of the sweep."""
    small: bool = False


def _add(name, look, **how):
    def register(function):
        def ready(prefix):
            running = function(prefix)
            next(running)
            return running

        def run(running):
            for _ in running:
                pass

        FILE_OPERATIONS[name] = FileOperation(name, ready, run, look, **how)
        return function

    return register


def files_of(prefix):
    """Return the content of each file whose path begins with the prefix."""
    found = {}
    for path in glob.glob(glob.escape(prefix) + "*", include_hidden=True):
        with open(path, "rb") as file:
            found[path.removeprefix(prefix)] = file.read()
    return found


def put_files(prefix, files):
    """Make these the only files whose paths begin with the prefix."""
    for path in glob.glob(glob.escape(prefix) + "*", include_hidden=True):
        os.unlink(path)
    for name, content in files.items():
        with open(prefix + name, "wb") as file:
            file.write(content)


def _section(path, **names):
    shm = shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS)
    for name, value in names.items():
        shm[name] = value
    return shm


def _names(path):
    """Return a section's names and values, or None if there is no section."""
    try:
        with shmem.SharedMemory(path) as shm:
            shm.check_heap()
            return {name: shm[name].tolist() for name in shm}
    except shmem.SectionNotFound:
        return None


def _usable(prefix):
    """Make the section or open it, use it, and return its names."""
    with _section(prefix + "section", probe=[1]) as shm:
        shm.check_heap()
        del shm["probe"]
        return list(shm)


@_add("file: create a section", _usable, same=True)
def _(prefix):
    yield
    kept.append(_section(prefix + "section"))


@_add("file: create a section, and name an array", lambda prefix: _names(prefix + "section") or {})
def _(prefix):
    yield
    kept.append(_section(prefix + "section", new=[1, 2]))


def _both(prefix):
    return _names(prefix + "section"), _names(prefix + "copy")


@_add("file: snapshot, under a new name", _both)
def _(prefix):
    shm = _section(prefix + "section", kept=[1, 2, 3])
    yield
    shm.snapshot(prefix + "copy")


@_add("file: snapshot, replacing another", _both)
def _(prefix):
    shm = _section(prefix + "section", kept=[1, 2, 3])
    shm.snapshot(prefix + "copy")
    shm["new"] = [4]
    yield
    shm.snapshot(prefix + "copy")


@_add("file: flush", _both, same=True)
def _(prefix):
    shm = _section(prefix + "section", kept=[1, 2, 3])
    yield
    shm.flush()


def _mended(prefix):
    """Verify that the damaged bytes still exist under some name, and that repairing them once more succeeds."""
    digests = {hashlib.sha256(content).hexdigest() for content in files_of(prefix).values()}
    with open(os.path.dirname(prefix) + ".original", encoding="ascii") as file:
        if file.read() not in digests:
            raise Damage("no file holds the damaged bytes any more")
    report = _check.examine(prefix + "section", True, False)
    if report.state not in ("repaired", "intact"):
        raise Damage(f"the file cannot be repaired any more: {report}")
    return _names(prefix + "section")


@_add("file: check --repair", _mended, same=True)
def _(prefix):
    with _section(prefix + "section", kept=[1, 2, 3], other=[4]):
        pass
    with open(prefix + "section", "r+b") as file:
        BLOCK["tag"].write_file(file.fileno(), (1 << 64) - 1, HEADER["heap_start"].read_file(file.fileno()))
        digest = hashlib.sha256(file.read()).hexdigest()
    with open(os.path.dirname(prefix) + ".original", "w", encoding="ascii") as file:
        file.write(digest)
    yield
    _check.examine(prefix + "section", True, False)


NAME = f"crashtest-{os.getpid()}"


def _value(prefix):
    """Return the named semaphore's value, or None if there is no such semaphore; verify that one can be made then."""
    name = prefix.rpartition(".")[2]
    value = shmem.Semaphore(name, value=5).value if os.path.exists(prefix) else None
    made = shmem.Semaphore(name, value=5)
    made.signal()
    made.wait()
    made.unlink()
    return value


@_add("file: make a named semaphore", _value, prefix=named_path("semaphore", f"{NAME}-made"))
def _(prefix):
    yield
    kept.append(shmem.Semaphore(f"{NAME}-made", value=3))


@_add("file: remove a named semaphore", _value, prefix=named_path("semaphore", f"{NAME}-removed"))
def _(prefix):
    semaphore = shmem.Semaphore(f"{NAME}-removed", value=3)
    yield
    semaphore.unlink()


@_add("file: an anonymous section's last process leaves", lambda prefix: len(glob.glob(glob.escape(prefix) + "*")) and _names(prefix),
      prefix=section_path(NAME))  # fmt: skip
def _(prefix):
    shm = shmem.SharedMemory(shared_name=NAME, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS)
    shm["new"] = [1]
    yield
    shm.close()


kept = []  # sections and semaphores that stay open until their process is killed


# -- the sweep --------------------------------------------------------------------------------------------------


def _victim(operation, learn, prefix):
    gc.disable()
    for place in (learn, prefix):
        it = operation.ready(place)
        if place == prefix:
            ptrace.pause()
        operation.run(it)
        if place == prefix:
            ptrace.pause()
        del it
        kept.clear()
        if operation.prefix:
            put_files(place, {})


class _Reached(Exception):
    """The change after which to kill is reached."""


class FileSweep:
    """The sweep of one of these operations.

    Parameters
    ----------
    folder : str
        A folder of its own.
    processor : OneProcessor
    """

    def __init__(self, folder, processor):
        self._folder, self._processor = folder, processor
        for name in ("learn", "files"):
            os.makedirs(os.path.join(folder, name))

    def run(self, operation, result, kills):
        """Judge all states of the operation and some real kills; fill in the `Result`."""
        prefix = operation.prefix or os.path.join(self._folder, "files", "")
        self._learn = operation.prefix or os.path.join(self._folder, "learn", "")
        states = self._states(operation, prefix, result, None)
        result.states = len(states)
        allowed = []
        for number in (0, len(states) - 1):
            self._judge(operation, prefix, states[number], number, result, None, allowed)
        if len(allowed) == 2:
            if (allowed[0] == allowed[1]) != operation.same:
                result.failures.append(f"{operation.name}: the operation changes {'something' if operation.same else 'nothing'}: {allowed}")
            for number, files in enumerate(states):
                self._judge(operation, prefix, files, number, result, allowed, [])
            for n in sorted({i * result.changes // max(1, kills) for i in range(kills + 1)}):
                self._states(operation, prefix, None, n)
                result.kills += 1
                self._judge(operation, prefix, None, f"SIGKILL after {n}", result, allowed, [])
        put_files(prefix, {})

    def _states(self, operation, prefix, result, kill_after):
        """Follow the operation and return its distinct states; with `kill_after`, kill it after that many changes."""
        put_files(self._learn, {})
        put_files(prefix, {})
        states, digests, last = [], set(), None
        left = kill_after

        def look(_):
            nonlocal last, left
            now = files_of(prefix)
            if now == last:
                return
            if last is not None and result is not None:
                result.changes += 1
            last = now
            digest = hashlib.blake2b(repr(sorted(now.items())).encode()).digest()
            if digest not in digests:
                digests.add(digest)
                states.append(now)
            if left is not None:
                left -= 1
                if left < 0:
                    raise _Reached

        tracee = ptrace.Tracee(_victim, operation, self._learn, prefix)
        try:
            with self._processor, contextlib.suppress(_Reached):
                self._processor.bring(tracee)
                trace = StoreTrace(tracee, prefix)
                look(None)
                trace.run(look)
            trace.close()
        finally:
            tracee.kill()
        return states

    def _judge(self, operation, prefix, files, number, result, allowed, seen):
        """Let another process look at the files; append what it sees to `seen`."""
        if files is not None:
            put_files(prefix, files)
        result.checks += 1
        answer, wrong = _ask(operation, prefix)
        if wrong is None and allowed is not None and answer not in allowed:
            wrong = f"neither before nor after: {answer}, not one of {allowed}"
        if wrong is None:
            seen.append(answer)
        else:
            result.failures.append(f"{operation.name}: state {number}: {wrong}")


def _ask(operation, prefix):
    """Call `operation.look` in a process of its own; return what it sees and an error text, one of which is None."""
    mine, its = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads: numpy's, which are idle
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(LONGEST_SECONDS)
        try:
            answer = operation.look(prefix), None
        except BaseException as error:
            answer = None, "".join(traceback.format_exception(error)[-2:])
        os.write(its, repr(answer).encode())
        os._exit(0)
    os.close(its)
    with open(mine, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    return ast.literal_eval(content.decode()) if content else (None, f"the looking process ended with status {status:#x}")
