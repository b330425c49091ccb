"""A test that kills random processes while many use one section in every possible way; no kill may cause damage.

Member processes work in several threads.  They allocate, free, reallocate, link and unlink objects, name and delete them, lock in
every mode, wait, signal, put and get, check, copy, open, close and fork.  A random member is killed at a random moment, again and
again.  Some are stopped first, some are caught in the middle of something or kill themselves there, sometimes two are killed at
once, or all.  New members take their places.  After each round, which ends by stopping all members, killing all or some of both,
the section is examined:

* Every actor (a thread of a member, or a child that it forked) that was not killed made progress: none was stuck for longer than
  --patience.
* The heap is intact, according to `check_heap` and to `check` on the closed file.  Every block, array, list and message has the
  right content.
* No participant is listed and the lock is free.  Every entry of the closed file's table of participants is free, without a pin or
  a pending block.
* The lock and the mutex admitted one actor at a time: only actors that were killed left a witness (a pair of numbers) unequal.
* Of each producer, every consumer got the messages in order, none twice.  None is lost but those that killed consumers had just
  taken.
* The semaphore has all its units except those that killed actors held.
* Other sections that members made are intact, and are removed when the last process has closed them.
* There is no leak.  Every actor notes beforehand what it is about to make, and afterwards where the block is.  A block is lost only
  if its maker is killed between the instruction that makes it and that second note.  So each block that nothing leads to must have
  the type and size that a killed actor was just making, at most one for each: these are counted as "lost" and freed, and none may
  remain.

Exit status: 0 no problem was found; 1 there were problems; 2 wrong arguments; 130 interrupted.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings

import shmem
from shmem._base.debug import DELAYED_ONE_IN
from shmem._base.system_tools import MEMORY_FOLDER
from shmem._cli.progress import make_bar
from shmem.testing.storm.audit import Audit
from shmem.testing.storm.storm import Storm

ROUND_SECONDS = 20


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(f"must be between 0 and a million, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def command_arguments(parser):
    """Declare the arguments of `python -m shmem killstorm`."""
    parser.add_argument("--seconds", type=_positive(float), default=600, metavar="N", help="duration (default: %(default)s)")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="operations in each round, at least (default: %(default)s)")
    parser.add_argument("--processes", type=_positive(int), default=8, metavar="N", help="members at the same time (default: %(default)s)")
    parser.add_argument("--kills-per-second", type=_positive(float), default=4, metavar="N", help="average rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of all random choices, but not of the moments of kills (default: random)")
    parser.add_argument("--anonymous", action="store_true", help="use an anonymous section instead of a file")
    parser.add_argument("--index", choices=("tlsf", "next_fit"), default="tlsf", help="the free-block index (default: %(default)s)")
    parser.add_argument("--folder", default=MEMORY_FOLDER, help="parent of the temporary folder for all files (default: %(default)s)")
    parser.add_argument("--patience", type=_positive(float), default=60, metavar="SECONDS",
                        help="time without progress after which an actor counts as stuck (default: %(default)s)")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep section and log if there are problems")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _rounds(storm, options, bar):
    """Run round after round, until the time is over or there is a problem."""
    began = time.monotonic()
    while not storm.totals.problems and (left := began + options.seconds - time.monotonic()) > 0:
        before = dataclasses.replace(storm.totals)
        try:
            storm.blow(left if left < 1.5 * ROUND_SECONDS else ROUND_SECONDS)
        except Exception as error:  # raised by the section, which the storm's process uses too
            storm.problem("".join(traceback.format_exception(error)[-2:]))
        else:
            Audit(storm).run()
        now = storm.totals
        now.seconds = time.monotonic() - began
        bar.stop()
        if not options.json:
            print(_round_line(before, now), flush=True)


def _round_line(before, now):
    names = {"members": "members", "kills": "kills", "returned": "blocks in hand", "lost": "blocks lost", "blamed": "died in a lock"}
    counts = "  ".join(f"{getattr(now, field) - getattr(before, field):>4} {name}" for field, name in names.items())
    return f"round {now.rounds:>3}  {now.seconds:>5.0f} s  {counts}  {'PROBLEMS' if now.problems else 'ok'}"


def _advancing(bar, seconds):
    """Return a function that shows a text and advances the bar with time."""
    began, shown = time.monotonic(), 0

    def tell(text):
        nonlocal shown
        while shown < min(seconds, time.monotonic() - began):
            shown += 1
            bar.advance()
        bar.tell(text)

    return tell


def print_totals(totals, log, file):
    """Print the end of the report as text."""
    lines = [
        f"{totals.section}, {totals.seconds:.0f} s, {totals.rounds} rounds: {totals.members:,} members, "
        f"{totals.kills:,} SIGKILLs ({totals.caught:,} aimed), {totals.stops:,} SIGSTOPs, "
        f"{totals.killed_actors:,} threads and children killed, {sum(totals.operations.values()):,} operations:",
        "  " + ", ".join(f"{name} {n:,}" for name, n in totals.operations.items()),
        f"  in hand when killed: {totals.returned:,} blocks, {totals.lost_messages:,} messages, {totals.lost_tokens:,} units of the "
        f"semaphore; made but not yet noted: {totals.lost:,} blocks; owners of the lock killed: {totals.owner_deaths:,}",
    ]
    print(*lines, sep="\n", file=file)
    if DELAYED_ONE_IN:
        print(f"  one in {DELAYED_ONE_IN} atomic operations was delayed at random", file=file)
    if totals.problems:
        print(f"{len(totals.problems)} PROBLEMS, seed {totals.seed}:", file=file)
        for problem in totals.problems:
            print(f"  {problem}", file=file)
        print("last lines of the members' log:", *log, sep="\n  ", file=file)
    else:
        print("no problems: no leak, no stuck process, heap intact, table of participants clean", file=file)


def _run_storm(options, folder, bar):
    """Run the storm in a folder; return the totals and the last lines of the members' log."""
    storm = Storm(options, folder, _advancing(bar, options.seconds))
    try:
        _rounds(storm, options, bar)
        return storm.totals, storm.log_tail()
    finally:
        bar.stop()
        storm.close()


def command(options):
    """Run `python -m shmem killstorm` and return the exit status."""
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    folder = tempfile.mkdtemp(prefix="shmem-killstorm-", dir=os.path.abspath(options.folder))
    keeps = False
    try:
        totals, log = _run_storm(options, folder, make_bar(int(options.seconds)))
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
            print(f"section and log kept in {folder}")
    return 1 if totals.problems else 0
