"""What `SharedMemory(...)` and `allocate` accept: each function returns the argument as the core wants it, or says what is wrong."""

import operator
import os
import re

PAGE_BYTES = 4096
MAX_PARTICIPANTS = 65534
MAX_SIZE = 1 << 46
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


def mode(value):
    if value not in ("read_write", "read_only"):
        raise ValueError(f'mode is "read_write" or "read_only": {value!r}')
    return value


def name(value, what):
    if not isinstance(value, str):
        raise TypeError(f"{what} is a string, not {type(value).__name__}")
    if _NAME.fullmatch(value) is None:
        raise ValueError(f"{what} has 1 to 200 of the characters A-Z a-z 0-9 . _ -, no slash: {value!r}")
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
    if number > MAX_SIZE:
        raise ValueError(f"max_size is at most {MAX_SIZE:,} bytes: {number:,}")
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
    if number <= 0 or number >= 1 << 47 or number % PAGE_BYTES:
        raise ValueError(f"desired_address is a positive multiple of {PAGE_BYTES} below 2**47: {number:#x}")
    return number


def align(value):
    """At least 16, which every block has."""
    number = operator.index(value)
    if number <= 0 or number & (number - 1) or number > PAGE_BYTES:
        raise ValueError(f"align is a power of two up to {PAGE_BYTES}: {number}")
    return max(number, 16)
