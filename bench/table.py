"""The rows that every question returns, and the table in which they are printed.

A row compares a measured time with a peer's, measured in the same run.  `answer` is the command line of a question.
"""

import dataclasses
import json
import sys

COLUMNS = ("question", "work", "shmem", "peer", "peer's", "ratio", "bar", "reached")


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison; times are in seconds.  A missing time is None, and `note` is the reason why the peer's is missing."""

    question: str
    work: str
    ours: float | None
    peer: str
    theirs: float | None
    most_ratio: float | None = None
    """The bar, if there is one, as a multiple of the peer's time."""
    most_seconds: float | None = None
    """The bar, if there is one, as a time."""
    note: str = ""

    @property
    def ratio(self):
        """The time divided by the peer's, or None."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def bar(self):
        """The bar as text, empty if there is none."""
        if self.most_seconds is not None:
            return f"<= {format_seconds(self.most_seconds)}"
        if self.most_ratio is None:
            return ""
        return f">= {1 / self.most_ratio:.3g} x faster" if self.most_ratio < 0.5 else f"<= {self.most_ratio:.2g} x"

    @property
    def reached(self):
        """Whether the bar is reached; None if there is none."""
        if self.most_seconds is not None:
            return self.ours is not None and self.ours <= self.most_seconds
        if self.most_ratio is not None:
            return self.ratio is not None and self.ratio <= self.most_ratio
        return None

    def cells(self):
        """Return one text for each of COLUMNS."""
        reached = {None: "", True: "yes", False: "NO"}[self.reached]
        theirs = self.note if self.theirs is None and self.note else format_seconds(self.theirs)
        return (self.question, self.work, format_seconds(self.ours), self.peer, theirs, format_ratio(self.ratio), self.bar, reached)


def format_seconds(seconds):
    """Format a time with three digits and a unit."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def format_ratio(ratio):
    """Format a ratio as `2.80 x` the peer's time or, from twice as fast on, `15.2 x faster`."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f} x" if ratio > 0.5 else f"{1 / ratio:.1f} x faster"


def format_table(rows):
    """Return the table as Markdown text."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    for i in range(len(rows), 1, -1):  # show the name of each question once
        if rows[i - 1].question == rows[i - 2].question:
            text[i + 1] = "| " + " " * widths[0] + text[i + 1][2 + widths[0] :]
    return "\n".join(text)


def as_facts(row):
    """Return a row for a JSON file: the measured values and those derived from them."""
    return dataclasses.asdict(row) | {"ratio": row.ratio, "reached": row.reached}


def answer(measure):
    """Run one question, whose rows `measure()` returns.  Print them for `run.py` with `--rows`, otherwise as a table."""
    rows = measure()
    if "--rows" in sys.argv[1:]:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        print(format_table(rows))
