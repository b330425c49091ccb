"""Operations of `crashtest` that make, replace, mend or remove files: the state is names, sizes and bytes in a folder.

They are followed by write protection and system calls (`testing.crash.store_trace`): what the kernel does in one call
it does whole or a kill waits for its end, so that a state before and after each call, and after each store, is every state there is.  Of a snapshot's file that has
no name yet nobody sees anything.  After each distinct state a process of its own puts the files back and looks
(`look`): it must see what was there before, or afterwards.
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
from shmem._cli import check as _check
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import LONGEST_SECONDS, MAX_PARTICIPANTS, MAX_SIZE, Damage
from shmem.testing.crash.store_trace import StoreTrace

FILE_OPERATIONS = {}


@dataclasses.dataclass(frozen=True)
class FileOperation:
    """One entry of the table."""

    name: str
    ready: Callable
    """`ready(prefix)`: what `run` gets.  All files' paths begin with the prefix."""
    run: Callable
    look: Callable
    """`look(prefix)`: what a user sees; raises if something is lost."""
    same: bool = False
    prefix: str = ""
    """Of the paths, where it is not a folder of the sweep's."""
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
    """The files there, with their content."""
    found = {}
    for path in glob.glob(glob.escape(prefix) + "*", include_hidden=True):
        with open(path, "rb") as file:
            found[path.removeprefix(prefix)] = file.read()
    return found


def put_files(prefix, files):
    """Have exactly these files there."""
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
    """A section's names and values; None if there is none."""
    try:
        with shmem.SharedMemory(path) as shm:
            shm.check_heap()
            return {name: shm[name].tolist() for name in shm}
    except shmem.SectionNotFound:
        return None


def _usable(prefix):
    """Whether somebody can make the section, or go on with it."""
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


@_add("file: snapshot, in place of another one", _both)
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
    """The damaged bytes are there, under the one name or the other; mending them once more ends well."""
    digests = {hashlib.sha256(content).hexdigest() for content in files_of(prefix).values()}
    with open(os.path.dirname(prefix) + ".original", encoding="ascii") as file:
        if file.read() not in digests:
            raise Damage("the damaged file is nowhere any more")
    report = _check.examine(prefix + "section", True, False)
    if report.state not in ("repaired", "whole"):
        raise Damage(f"it cannot be mended any more: {report}")
    return _names(prefix + "section")


@_add("file: check --repair", _mended, same=True)
def _(prefix):
    with _section(prefix + "section", kept=[1, 2, 3], other=[4]):
        pass
    with open(prefix + "section", "r+b") as file:
        file.seek(24576)  # the first block's tag
        file.write(b"\xff" * 8)
        file.seek(0)
        digest = hashlib.sha256(file.read()).hexdigest()
    with open(os.path.dirname(prefix) + ".original", "w", encoding="ascii") as file:
        file.write(digest)
    yield
    _check.examine(prefix + "section", True, False)


NAME = f"crashtest-{os.getpid()}"


def _value(prefix):
    """Of the named semaphore: None if there is none; then whether one can be made."""
    name = prefix.rpartition(".")[2]
    value = shmem.Semaphore(name, value=5).value if os.path.exists(prefix) else None
    made = shmem.Semaphore(name, value=5)
    made.signal()
    made.wait()
    made.unlink()
    return value


@_add("file: a named semaphore is made", _value, prefix=f"/dev/shm/shmem-semaphore.{NAME}-made")
def _(prefix):
    yield
    kept.append(shmem.Semaphore(f"{NAME}-made", value=3))


@_add("file: a named semaphore is used and removed", _value, prefix=f"/dev/shm/shmem-semaphore.{NAME}-removed")
def _(prefix):
    semaphore = shmem.Semaphore(f"{NAME}-removed", value=3)
    yield
    semaphore.unlink()


@_add("file: an anonymous section's last process leaves", lambda prefix: len(glob.glob(glob.escape(prefix) + "*")) and _names(prefix),
      prefix=f"/dev/shm/shmem.{NAME}")  # fmt: skip
def _(prefix):
    shm = shmem.SharedMemory(shared_name=NAME, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS)
    shm["new"] = [1]
    yield
    shm.close()


kept = []  # so that what was opened stays open until its process is killed


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
    """The change after which to kill."""


class FileSweep:
    """What is done with one of these operations.

    Parameters
    ----------
    folder : str
        Of its own.
    processor : OneProcessor
    """

    def __init__(self, folder, processor):
        self._folder, self._processor = folder, processor
        for name in ("learn", "files"):
            os.makedirs(os.path.join(folder, name))

    def run(self, operation, result, kills):
        """All its states, and some real kills; fills in the `Result`."""
        prefix = operation.prefix or os.path.join(self._folder, "files", "")
        self._learn = operation.prefix or os.path.join(self._folder, "learn", "")
        states = self._states(operation, prefix, result, None)
        result.states = len(states)
        allowed = []
        for number in (0, len(states) - 1):
            self._judge(operation, prefix, states[number], number, result, None, allowed)
        if len(allowed) == 2:
            if (allowed[0] == allowed[1]) != operation.same:
                result.failures.append(f"{operation.name}: it changes {'something' if operation.same else 'nothing'}: {allowed}")
            for number, files in enumerate(states):
                self._judge(operation, prefix, files, number, result, allowed, [])
            for n in sorted({i * result.changes // max(1, kills) for i in range(kills + 1)}):
                self._states(operation, prefix, None, n)
                result.kills += 1
                self._judge(operation, prefix, None, f"SIGKILL after {n}", result, allowed, [])
        put_files(prefix, {})

    def _states(self, operation, prefix, result, kill_after):
        """Follow it; its distinct states.  Or kill it after so many changes."""
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
        """Have another process look; what it saw is appended to `seen`."""
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
    """`operation.look` in a process of its own: what it saw, what is wrong."""
    mine, its = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: numpy's, which are idle
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
    return ast.literal_eval(content.decode()) if content else (None, f"the process that looks ended with status {status:#x}")
