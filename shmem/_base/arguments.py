"""Validation of arguments, most of them of `SharedMemory(...)`: each function returns the value for the core, or raises."""

import math
import numbers
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
_SIZE = re.compile(r"([0-9]{1,30})\s*(?:([KMGT])(?:iB)?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(value, what):
    """Return a size in bytes as an int, which may be negative.

    Parameters
    ----------
    value : int or str
        A text is a number with one of the units K, M, G, T, also written KiB and so on, which are powers of 1024.
    what : str
        The name of the argument, for the message.
    """
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            raise ValueError(f'{what} must be a number of bytes, or a text such as "64M" or "1GiB" (powers of 1024), got {value!r}')
        return int(found[1]) * _UNITS[(found[2] or "").upper()]
    try:
        return operator.index(value)
    except TypeError:
        is_number = isinstance(value, numbers.Real) and math.isfinite(value)
        hint = f" {value!r}; write {math.ceil(value)}" if is_number else ""
        raise TypeError(f'{what} must be an int, or a text such as "64M" or "1GiB", got {type(value).__name__}{hint}') from None


def mode(value):
    if value not in ("read_write", "read_only"):
        raise ValueError(f'mode must be "read_write" or "read_only", got {value!r}')
    return value


def name(value, what):
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, got {type(value).__name__}")
    if _NAME.fullmatch(value) is None:
        raise ValueError(f"{what} must be 1 to {MAX_LABEL_BYTES} of the characters A-Z a-z 0-9 . _ - (no slash), got {value!r}")
    return value


def path(value):
    found = os.path.abspath(os.fsdecode(value))
    if "\0" in found:
        raise ValueError(f"a path must not contain NUL, got {found!r}")
    return found


def max_participants(value):
    if value is None:
        return 256
    number = operator.index(value)
    if not 1 <= number <= MAX_PARTICIPANTS:
        raise ValueError(f"max_participants must be between 1 and {MAX_PARTICIPANTS}, got {number}")
    return number


def max_size(number, control_bytes, n_participants):
    """Return a size in bytes rounded up to pages, 0 for None."""
    if number is None:
        return 0
    least = control_bytes + PAGE_BYTES
    if number < 0:
        raise ValueError(f"max_size must be non-negative, got {number}")
    if number < least:
        raise ValueError(
            f"max_size must be at least {least:,} bytes for {n_participants} participants (control pages included), got {number:,}"
        )
    if number > MAX_SECTION_BYTES:
        raise ValueError(f"max_size must be at most {MAX_SECTION_BYTES:,} bytes, got {number:,}")
    return -(-number // PAGE_BYTES) * PAGE_BYTES


def index(value):
    if value is None:
        return "tlsf"
    if value not in ("tlsf", "next_fit"):
        raise ValueError(f'index must be "tlsf" or "next_fit", got {value!r}')
    return value


def desired_address(value):
    """Return the address, 0 for None."""
    if value is None:
        return 0
    number = operator.index(value)
    if number <= 0 or number >= END_OF_ADDRESSES or number % PAGE_BYTES:
        raise ValueError(f"desired_address must be a positive multiple of {PAGE_BYTES} below {END_OF_ADDRESSES:#x}, got {number:#x}")
    return number


def align(value):
    """Return the alignment, at least `BLOCK_ALIGN_BYTES`, which every block has."""
    number = value if type(value) is int else size(value, "align")
    if number <= 0 or number & (number - 1) or number > BLOCK_MAX_ALIGN_BYTES:
        raise ValueError(f"align must be a power of two up to {BLOCK_MAX_ALIGN_BYTES}, got {number}")
    return max(number, BLOCK_ALIGN_BYTES)
