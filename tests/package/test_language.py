"""The language of the project's files: actors have names, and only pages of the project are referred to."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VAGUE_ACTORS = re.compile("nobody|somebody|whoever", re.I)
MOST_VAGUE_ACTORS = 30
TEXT_SUFFIXES = {"", ".cpp", ".h", ".in", ".md", ".pml", ".pxd", ".py", ".pyi", ".pyx", ".toml", ".yaml", ".yml"}
GENERATED = {"build", "dist", "demo-output", "__pycache__"}

needs_checkout = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests run without the checkout")


def is_generated(path):
    return any(part in GENERATED or part.startswith(".") or part.endswith(".egg-info") for part in path.relative_to(ROOT).parts)


def project_files():
    """Return the text files of the project: those tracked by git, or without git those that are not generated."""
    names = ""
    if shutil.which("git"):
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in names.split("\0") if name] or [path for path in ROOT.rglob("*") if not is_generated(path)]
    return [path for path in paths if path.is_file() and path.suffix in TEXT_SUFFIXES]


@needs_checkout
def test_actors_are_named():
    """A text names its actor (waiter, owner, caller); an indefinite pronoun does not tell which process or thread is meant."""
    counts = {str(path.relative_to(ROOT)): len(VAGUE_ACTORS.findall(path.read_text(encoding="utf-8"))) for path in project_files()}
    found = {name: count for name, count in counts.items() if count}
    assert len(counts) > 100
    assert sum(found.values()) <= MOST_VAGUE_ACTORS, found


@needs_checkout
def test_pages_that_files_refer_to_exist():
    """A file refers only to pages of this project: each `docs/...` exists, and other design documents are not named."""
    missing = []
    for path in project_files():
        text = path.read_text(encoding="utf-8")
        pages = re.findall(r"\bdocs/[\w./-]+\.md\b", text) + re.findall(r"\bDESI" r"GN\b|section \d+ of the design", text)
        missing += [(str(path.relative_to(ROOT)), page) for page in pages if not (ROOT / page).is_file()]
    assert missing == []
