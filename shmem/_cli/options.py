"""Types of command options, for `argparse`."""

import argparse

from shmem._base import arguments


def size_option(text):
    """Return a size in bytes, written as a number or as in ``64M`` and ``1GiB``."""
    try:
        return arguments.size(text, "the size")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
