"""docs/from_h5py.md line by line: the lines of h5py and those of shmem are run, and have the values that the page shows."""

import re
from pathlib import Path

import numpy as np
import pytest

import shmem

PAGE = Path(__file__).resolve().parents[2] / "docs/from_h5py.md"
CODE = re.compile(r"`([^`]+)`")

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="tests run without the checkout")


def rows():
    """Return the rows of the page's tables: lines of h5py, lines of shmem, and values."""
    found = re.findall(r"^\| (`.*) \| (`.*) \| (.*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [tuple(CODE.findall(cell) for cell in row) for row in found]


def run(line, names):
    """Run a line, and return its value if it is an expression."""
    try:
        compiled = compile(line, "page", "eval")
    except SyntaxError:
        return exec(line, names)
    return eval(compiled, names)


def is_same(value, shown):
    return np.array_equal(value, shown) if isinstance(shown, np.ndarray) else value == shown


def test_each_line_has_the_value_that_the_page_shows(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    theirs, ours = {"h5py": h5py, "np": np}, {"shmem": shmem, "np": np}
    wrong = []
    for their_lines, our_lines, shown in rows():
        values = [[run(line, names) for line in lines][-1] for lines, names in ((their_lines, theirs), (our_lines, ours))]
        for value, expected in zip(values, [shown[0], shown[-1]] if shown else [], strict=bool(shown)):
            if not is_same(value, eval(expected, {"np": np})):
                wrong.append((their_lines, our_lines, value, expected))
    assert wrong == []


def test_the_page_has_the_tour():
    assert len(rows()) > 45
    assert sum(bool(shown) for _, _, shown in rows()) > 25
