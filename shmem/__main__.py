"""The command line: ``python -m shmem COMMAND``.

A command is a module with two functions: `command_arguments(parser)` declares what it takes, `command(options)` runs it and returns
the exit status.  Its docstring is what `--help` says.  It is imported when it is called for.
"""

import argparse
import importlib
import sys

import shmem

COMMANDS = {
    "tstshmem": ("shmem._cli.tstshmem", "the original's test program: threads of many processes work on one search tree"),
    "fifo": ("shmem._cli.fifo", "producers and consumers on one queue in a section: lock, semaphore, event and objects at work"),
    "semstat": ("shmem._cli.semstat", "every semaphore and event of the machine, with its value"),
    "check": ("shmem._cli.check", "what is wrong with a section's file; --repair mends it, --leaks finds unreachable blocks"),
    "crashtest": ("shmem.testing.crash.command", "a process killed at every instruction of every operation; do the others go on?"),
    "killstorm": ("shmem.testing.storm.command", "many processes use a section while one is killed again and again; is anything lost?"),
    "fuzz": ("shmem.testing.heap_machine", "random operations on a section's heap, each checked against a model (needs hypothesis)"),
}


def _parser():
    width = max(map(len, COMMANDS))
    summaries = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m shmem",
        description="Programs that come with shmem.",
        epilog=f"commands:\n{summaries}\n\n`python -m shmem COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shmem {shmem.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    return parser


def main(arguments=None):
    """Run a command; the exit status.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the command line's.
    """
    called = _parser().parse_args(arguments)
    module_name, _ = COMMANDS[called.command]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "shmem":
            raise
        print(f"python -m shmem {called.command} needs {error.name}: pip install {error.name}", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(
        prog=f"python -m shmem {called.command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.command_arguments(parser)
    return module.command(parser.parse_args(called.arguments))


if __name__ == "__main__":
    sys.exit(main())
