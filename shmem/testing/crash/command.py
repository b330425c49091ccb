"""A test that kills a process at every instruction of every operation that changes a section, and verifies that others can go on.

Each operation runs in a process of its own, one instruction at a time (ptrace; Linux on x86-64 or Arm).  After each instruction
outside of the interpreter's own code the section is compared with its previous content, and a copy is kept whenever it changed.
Whenever a kill comes, it leaves one of these copies.  Each distinct copy is handed to other processes as if the owner had died there:
to a first opener, to a participant that was attached all the time, and to a process that is given the dead one's entry.  Each must
acquire the lock and find the heap and everything else intact, nothing lost, and the operation either done or not done.

Each copy is also repaired, and the repair is followed store by store.  The section after each of these stores is repaired in the same
way, and so on until no state is new.  (The module `shmem.testing.crash.repairs` describes which states count as alike.)

In addition, at sampled instructions the process is really killed while another one is attached.

Exit status: 0 all recoveries succeeded; 1 some failed; 2 wrong arguments, or processes cannot be stepped here.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings

from shmem._base.system_tools import MEMORY_FOLDER
from shmem._cli.progress import make_bar
from shmem.testing.crash import (
    operations_attributes,  # noqa: F401 - puts its operations into the table
    operations_groups,  # noqa: F401 - puts its operations into the table
    operations_processes,  # noqa: F401 - puts its operations into the table
    operations_versions,  # noqa: F401 - puts its operations into the table
    ptrace,
)
from shmem.testing.crash.files import FILE_OPERATIONS, FileOperation, FileSweep
from shmem.testing.crash.operations import OPERATIONS
from shmem.testing.crash.results import Result, Trouble
from shmem.testing.crash.stepping import OneProcessor
from shmem.testing.crash.sweep import Sweep

MOST_FAILURES_SHOWN = 3  # of each operation


def command_arguments(parser):
    """Declare the arguments of `python -m shmem crashtest`."""
    parser.add_argument("--operation", action="append", default=[], metavar="NAME",
                        help="only this operation, or all of one kind, such as free; may be repeated")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="list the operations and exit")
    parser.add_argument("--quick", action="store_true", help="short operations only, few kills, no repairs; takes a minute")
    parser.add_argument("--every", type=int, metavar="K", help="kill at every K-th instruction (default: ten kills per operation)")
    parser.add_argument("--repairs", choices=("none", "alike", "all"),
                        help="repair one of all states that are alike (default), all states, or none")  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help="operations at the same time (default: one per processor)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the states that fail in this folder, as files that can be opened")
    parser.add_argument("--checkers", type=int, default=8, metavar="N", help="processes per job that check states (default: %(default)s)")
    parser.add_argument("--folder", default=MEMORY_FOLDER, help="a folder on a memory file system (default: %(default)s)")


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
    """Sweep operation after operation in a worker process; send (text, None) for progress and (name, result) for each operation."""
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
    """Start the worker processes; return their links and processes."""
    context = multiprocessing.get_context("fork")
    turn, links, workers = context.Value("i", 0), [], []
    for number in range(options.jobs):
        mine, its = context.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads: numpy's, which are idle
            workers.append(context.Process(target=_work, args=(its, os.path.join(folder, str(number)), options, number, turn)))
            workers[-1].start()
        its.close()
        links.append(mine)
    return links, workers


def _sweep_all(folder, options, bar):
    """Sweep all chosen operations, print a line for each, and return the totals."""
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
                for failure in result.failures[:MOST_FAILURES_SHOWN]:
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


def _why_wrong(options, chosen):
    """Return an error message about the arguments, or None."""
    if not chosen:
        return "no operation has that name; --list lists the names"
    for name in ("every", "checkers", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            return f"--{name} must be at least 1, got {value}"
    return None


def command(options):
    """Run `python -m shmem crashtest` and return the exit status."""
    chosen = _chosen(options)
    if options.list:
        print("\n".join(operation.name for operation in chosen))
        return 0
    reason = ptrace.why_not() or _why_wrong(options, chosen)
    if reason:
        print(f"python -m shmem crashtest: {reason}", file=sys.stderr)
        return 2
    options.kills = 1 if options.quick else 10
    if options.repairs is None:
        options.repairs = "none" if options.quick else "alike"
    options.jobs = min(options.jobs or len(os.sched_getaffinity(0)), len(chosen))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    folder = tempfile.mkdtemp(prefix="shmem-crashtest-", dir=options.folder)
    try:
        total = _sweep_all(folder, options, make_bar(len(chosen)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if total.operations < len(chosen):
        total.failures.append(f"{len(chosen) - total.operations} operations were not done: a worker process ended early\n")
        print(total.failures[-1], end="")
    print(_line(f"{total.operations} operations, {time.monotonic() - began:.0f} s", total))
    _print_summary(total, options)
    return 1 if total.failures else 0


def _print_summary(total, options):
    covered = 100 * (1 - total.late / max(1, total.changes))
    seen = 100 * (1 - total.missed / max(1, total.traced))
    print(
        f"{total.changes:,} instructions and system calls changed a section; after {covered:.1f} % of them a copy was kept at once, "
        f"{total.states:,} copies are distinct.\nWrite protection finds {total.traced:,} states of operations without a process beside "
        f"them; stepping saw {seen:.1f} % of them."
    )
    if options.repairs != "none":
        alike = "the lock's counts and process ids" + (
            "" if options.repairs == "all" else ", blocks that are still being made, and what a repair rebuilds from the chain of blocks"
        )
        print(
            f"{total.repairs:,} repairs, one of each kind for all states that differ only in {alike}.\n{total.inside_changes:,} changes "
            f"in them left {total.inside:,} new states, which {total.again:,} of the repairs repaired, until no state was new."
        )
    print(f"{total.checks + total.repairs:,} recoveries and {total.kills:,} SIGKILLs, {len(total.failures):,} failed.")
