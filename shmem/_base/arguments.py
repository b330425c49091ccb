"""What `SharedMemory(...)` and `allocate` accept: each function returns the argument as the core wants it, or says what is wrong."""

import operator
import os
import re

from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_MAX_ALIGN_BYTES,
    END_OF_ADDRESSES,
    MAX_LABEL_BYTES,
    MAX_PARTICIPANTS,
    MAX_SECTION_BYTES,
    PAGE_BYTES,
)

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_LABEL_BYTES}}}")


def mode(value):
    if value not in ("read_write", "read_only"):
        raise ValueError(f'mode is "read_write" or "read_only": {value!r}')
    return value


def name(value, what):
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {type(value).__name__}")
    if _NAME.fullmatch(value) is None:
        raise ValueError(f"{what} has 1 to {MAX_LABEL_BYTES} of the characters A-Z a-z 0-9 . _ -, no slash: {value!r}")
    return value


def path(value):
    found = os.path.abspath(os.fsdecode(value))
    if "\0" in found:
        raise ValueError(f"a path has no NUL: {found!r}")
    return found


def max_participants(value):
    if value is None:
        return 256
    number = operator.index(value)
    if not 1 <= number <= MAX_PARTICIPANTS:
        raise ValueError(f"max_participants is between 1 and {MAX_PARTICIPANTS}: {number}")
    return number


def max_size(value, control_bytes, n_participants):
    """Rounded up to pages; 0 for None."""
    if value is None:
        return 0
    number = operator.index(value)
    least = control_bytes + PAGE_BYTES
    if number < 0:
        raise ValueError(f"max_size is not negative: {number}")
    if number < least:
        raise ValueError(
            f"max_size holds the control pages too: at least {least:,} bytes for {n_participants} participants, not {number:,}"
        )
    if number > MAX_SECTION_BYTES:
        raise ValueError(f"max_size is at most {MAX_SECTION_BYTES:,} bytes: {number:,}")
    return -(-number // PAGE_BYTES) * PAGE_BYTES


def index(value):
    if value is None:
        return "tlsf"
    if value not in ("tlsf", "next_fit"):
        raise ValueError(f'index is "tlsf" or "next_fit": {value!r}')
    return value


def desired_address(value):
    """0 for None."""
    if value is None:
        return 0
    number = operator.index(value)
    if number <= 0 or number >= END_OF_ADDRESSES or number % PAGE_BYTES:
        raise ValueError(f"desired_address is a positive multiple of {PAGE_BYTES} below {END_OF_ADDRESSES:#x}: {number:#x}")
    return number


def align(value):
    """At least `BLOCK_ALIGN_BYTES`, which every block has."""
    number = operator.index(value)
    if number <= 0 or number & (number - 1) or number > BLOCK_MAX_ALIGN_BYTES:
        raise ValueError(f"align is a power of two up to {BLOCK_MAX_ALIGN_BYTES}: {number}")
    return max(number, BLOCK_ALIGN_BYTES)
