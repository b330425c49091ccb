"""The test program of the original library: threads of several processes work on one search tree in a section.

Each thread inserts its keys, searches for each ten times, and removes them: insert and remove hold
the exclusive lock, search holds the shared lock.  One row of the table is a run of one thread
without locks, in a section of its own.  Each instance verifies that its own keys are removed.  The last
instance to leave a section also verifies that the tree is empty, the heap intact and no block left.

Processes may be killed.  The keys of a killed member process are removed by its parent, and those of
an instance that was killed as a whole by the next instance to arrive or leave.  A kill between
allocating a block and linking it, or between unlinking and freeing it, loses that block: at most one
for each killed process.

Exit status: 0 all proofs hold; 1 a proof failed, or an error; 2 wrong arguments; 3 processes were
killed, but all proofs hold; 130 interrupted.
"""

import argparse
import dataclasses
import json
import os
import warnings

import shmem
from shmem._cli.options import size_option
from shmem._cli.tstshmem_section import MAX_PROCESSES, MAX_THREADS, VARIANTS
from shmem._cli.tstshmem_session import Outcome, Refused, run_session, say

BLOCK_BYTES = 48  # a node with its tags
MIN_SIZE = 1 << 30  # of the section; memory or disk is taken only as used


def _number(most):
    def parse(text):
        number = int(text)
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"must be between 1 and {most:,}, got {number:,}")
        return number

    parse.__name__ = "integer"
    return parse


def command_arguments(parser):
    """Declare the arguments of `python -m shmem tstshmem`."""
    parser.add_argument("-p", "--processes", type=_number(MAX_PROCESSES), metavar="N",
                        help=f"number of processes, up to {MAX_PROCESSES} (default: 2)")  # fmt: skip
    parser.add_argument("-t", "--threads", type=_number(MAX_THREADS), metavar="N",
                        help=f"threads per process, up to {MAX_THREADS} (default: 2)")  # fmt: skip
    parser.add_argument("-n", "--keys", type=_number((1 << 32) - 1), default=10_000, metavar="N", help="keys per thread (default: 10,000)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--file", metavar="PATH", help="use the section in this file, which is created if missing and kept")
    place.add_argument("--name", help="use the anonymous section of this name, which instances can share; the last one removes it")
    parser.add_argument(
        "--size", type=size_option, metavar="BYTES", help="maximum size of a new section, such as 64M or 1GiB (default: large enough)"
    )
    parser.add_argument("--variant", choices=(*VARIANTS, "both"), default="cython",
                        help="typed objects in Python, or C without the GIL (default: cython)")  # fmt: skip
    parser.add_argument("--no-locking", action="store_true", help="run only without locks: one process, one thread")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


HEADER = f"{'variant':<8} {'locking':<8} {'processes':>9} {'threads':>8} {'keys':>11} {'seconds':>9}"


def _row(outcome):
    seconds = "-" if outcome.seconds is None else f"{outcome.seconds:.3f}"
    total = outcome.processes * outcome.threads * outcome.keys
    locking = "yes" if outcome.locking else "no"
    return f"{outcome.variant:<8} {locking:<8} {outcome.processes:>9} {outcome.threads:>8} {total:>11,} {seconds:>9}"


def _verdict(outcome):
    """Return a line about the proofs on the section."""
    own = "own keys removed" if outcome.own_keys_left == 0 else "own keys NOT removed"
    if not outcome.is_last:
        return f"{own}; other instances are still running on {outcome.section}"
    tree = "tree empty" if outcome.tree_empty else "tree NOT empty"
    heap = "heap intact" if outcome.heap_intact else "heap NOT intact"
    blocks = {0: "no blocks left", None: "blocks not counted"}.get(outcome.blocks_left, f"{outcome.blocks_left} BLOCKS LEFT")
    return f"{own}; last to leave: {tree}, {heap}, {blocks}"


def _sessions(options, variant, size):
    """Yield, for each row, the outcome to fill in and the arguments that open its section."""
    alone = {"locking": False, "processes": 1, "threads": 1}
    asked = {"locking": True, "processes": options.processes or 2, "threads": options.threads or 2}
    place = {"shared_name": options.name} if options.name else {}
    if options.file:
        place = {"file_name": os.path.abspath(options.file)}
    for what, where in [(alone, place)] if options.no_locking else [(alone, {}), (asked, place)]:
        yield Outcome("", variant, keys=options.keys, **what), {**where, "max_size": size}


def _run_all(options, outcomes):
    """Run every row; print each as soon as it is done (unless `--json`)."""
    need = (options.processes or 2) * (options.threads or 2) * options.keys * BLOCK_BYTES
    size = options.size or max(MIN_SIZE, 2 * need)
    for variant in VARIANTS if options.variant == "both" else (options.variant,):
        for outcome, where in _sessions(options, variant, size):
            outcomes.append(outcome)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", shmem.LimitWarning)  # the size is that of a new section
                memory = shmem.SharedMemory(**where)
            with memory:
                outcome.section = memory.name
                place = {"file_name": memory.path} if options.file else {"shared_name": memory.name}
                run_session(memory, place, outcome)
            if not options.json:
                print(_row(outcome), flush=True)


def command(options):
    """Run `python -m shmem tstshmem` and return the exit status."""
    if options.no_locking and (options.processes or 1, options.threads or 1) != (1, 1):
        say("--no-locking allows only one process and one thread")
        return 2
    outcomes = []
    status = 0
    if not options.json:
        print(HEADER, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", shmem.OwnerDiedWarning)  # the session reports killed processes itself
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
