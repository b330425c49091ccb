"""The states of an operation and the result of sweeping it."""

import collections
import dataclasses
from collections.abc import Callable


@dataclasses.dataclass
class State:
    """The section's content after one instruction."""

    content: bytes
    step: int
    address: int
    """Address of the instruction that made it so."""
    let_go: bool = False
    """The process beside the victim had stopped its activity by then."""
    where: Callable | None = None
    """For a state inside a repair: returns a text that describes where it came from."""


@dataclasses.dataclass
class Result:
    """The counts and failures of one operation, or of all."""

    steps: int = 0
    changes: int = 0
    """Instructions or system calls that changed the section."""
    late: int = 0
    """Changes that were noticed only after instructions that were not looked at.  If there are any, coverage is incomplete."""
    states: int = 0
    """Distinct states."""
    checks: int = 0
    repairs: int = 0
    """Repairs that were followed store by store."""
    again: int = 0
    """Of those, repairs of a state inside a repair."""
    inside: int = 0
    """Distinct states inside repairs."""
    inside_changes: int = 0
    """Stores and system calls in repairs that changed the section."""
    traced: int = 0
    """States that the operation's stores make, as found by write protection."""
    missed: int = 0
    """Of those, states that stepping did not see."""
    kills: int = 0
    operations: int = 0
    failures: list = dataclasses.field(default_factory=list)


class Trouble(Exception):
    """The harness itself cannot go on with an operation."""


def neither_text(allowed, seen):
    """Return a text for an observation that is neither that before the operation nor that after it."""
    return f"neither before nor after:\n  {difference_text(allowed[0], seen)}\n  {difference_text(allowed[1], seen)}\n"


def difference_text(expected, found):
    """Return a short text for the difference between two observations."""
    texts = []
    for key in ("names", "root", "blocks"):
        a, b = expected[key], found[key]
        if a == b:
            continue
        if key == "names":
            texts += [f"{name!r}: {_short(a.get(name))} -> {_short(b.get(name))}" for name in a | b if a.get(name) != b.get(name)]
        elif key == "blocks":
            a, b = collections.Counter(a), collections.Counter(b)
            gone, come = list((a - b).elements()), list((b - a).elements())
            texts.append(f"blocks: {_blocks_text(gone)} -> {_blocks_text(come)}")
            if len(gone) == len(come) == 1 and gone[0][1] == come[0][1]:
                texts.append(f"bytes {[i for i in range(len(gone[0][2])) if gone[0][2][i] != come[0][2][i]][:20]} differ")
        else:
            texts.append(f"{key}: {_short(a)} -> {_short(b)}")
    return "; ".join(texts) or "no difference"


def _short(value):
    text = repr(value)
    return text if len(text) <= 100 else text[:60] + " ... " + text[-30:]


def _blocks_text(blocks):
    return ", ".join(f"type {type_id}, {size} bytes, {_short(content)}" for type_id, size, content in blocks) or "none"
