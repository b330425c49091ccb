"""The documentation against the code: examples run, links and named files exist, and limits of form hold."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmem

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["shmem"] + [module.name for module in pkgutil.walk_packages(shmem.__path__, "shmem.") if module.name != "shmem.__main__"]
PAGES = sorted({page for pattern in ("*.md", "docs/**/*.md", "*/README.md", "tests/*/README.md") for page in ROOT.glob(pattern)})
README_LINES, README_COLUMNS = 160, 100

needs_checkout = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests run without the checkout")


def page_id(page):
    return str(page.relative_to(ROOT))


def code_blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def prose(page):
    """Return the lines of a page that are neither code nor a table."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in text.splitlines() if not line.startswith(("    ", "|"))]


def shown_output(block):
    """Return the values in comments after `print` calls, without the remark after a colon or semicolon."""
    comments = re.findall(r"^.*print\(.*\)  +# (.+)$", block, re.M)
    return [re.split(r"[:;] ", comment)[0] for comment in comments if re.match(r"\d|\[|b?'|True|False", comment)]


# -- docstrings -------------------------------------------------------------------------------------------------


def documented(module):
    """Yield the docstrings of a module and of the objects that it defines, extension types included."""
    yield module.__name__, module.__doc__
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__:
            yield f"{module.__name__}.{name}", value.__doc__
            if isinstance(value, type):
                for member, what in vars(value).items():
                    yield f"{module.__name__}.{name}.{member}", getattr(what, "__doc__", None)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    for where, text in documented(module):
        if isinstance(text, str) and ">>>" in text:
            runner.run(parser.get_doctest(text, {}, where, None, None))
    assert runner.summarize(verbose=False).failed == 0


def test_docstrings_have_examples():
    assert ">>>" in shmem.SharedMemory.__doc__
    assert ">>>" in shmem.Struct.__doc__


# -- pages ------------------------------------------------------------------------------------------------------


@needs_checkout
@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page, "python")], ids=page_id)
def test_page_runs(page, tmp_path):
    """Each Python block of a page runs as a script, in order, in one folder that is empty at first."""
    for i, block in enumerate(code_blocks(page, "python")):
        script = tmp_path / f"block{i}.py"
        script.write_text(block, encoding="utf-8")
        done = subprocess.run([sys.executable, "-P", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block
        for expected in shown_output(block):
            assert expected in done.stdout.splitlines(), (expected, done.stdout)


@needs_checkout
def test_readme_and_tour_have_examples():
    assert len(code_blocks(ROOT / "README.md", "python")) >= 4
    assert len(code_blocks(ROOT / "docs/tour.md", "python")) >= 7
    assert len([value for block in code_blocks(ROOT / "docs/tour.md", "python") for value in shown_output(block)]) >= 8


@needs_checkout
def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > README_COLUMNS] == []


@needs_checkout
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT or "docs" in page.parts], ids=page_id)
def test_one_sentence_per_line(page):
    """A line of prose ends with its sentence, so that a diff shows the sentence that changed."""
    joined = [line for line in prose(page) if re.search(r"[a-z)`][.!?] [A-Z`*\[]", re.sub(r"\*\*\w+\.\*\* ", "", line))]
    assert joined == []


@needs_checkout
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_are_valid(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:", "mailto:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@needs_checkout
def test_each_exception_is_documented():
    """docs/errors.md has a row for every public exception, with its standard base class."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]*)", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.M))
    public = [value for name in shmem.__all__ if isinstance(value := getattr(shmem, name), type) and issubclass(value, shmem.ShmemError)]
    assert sorted(rows) == sorted(error.__name__ for error in public if error is not shmem.ShmemError)
    for error in public:
        bases = [base.__name__ for base in error.__bases__ if base not in (shmem.ShmemError, Exception)]
        documented_base = rows.get(error.__name__, "").rpartition(".")[2]
        assert bases in ([documented_base], []) or error is shmem.QueueShutDown, error


@needs_checkout
def test_each_command_is_documented():
    from shmem.__main__ import COMMANDS

    headings = re.findall(r"^## (\S+)$", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), re.M)
    assert headings == list(COMMANDS)


# -- references between pages and code --------------------------------------------------------------------------

NAMED_FILE = re.compile(r"`((?:shmem|tests|docs|examples|bench|fuzz|tools)/[\w./-]*\w)(?::(\w+))?`")
DEFINITION = r"^(?:[ \t]*(?:cdef|cpdef|def|class|async def)\b[^=\n]*?|#define[ \t]+)\b{name}\b[ \t]*[(:=]"


@needs_checkout
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_exist(page):
    """Each `path` that a page names exists, and each `path:name` is defined there."""
    missing = []
    for path, name in NAMED_FILE.findall(page.read_text(encoding="utf-8")):
        file = ROOT / path
        if "NAME" in path:  # a placeholder
            continue
        if not file.exists() or (name and not re.search(DEFINITION.format(name=name), file.read_text(encoding="utf-8"), re.M)):
            missing.append(f"{path}:{name}")
    assert missing == []


@needs_checkout
def test_architecture_names_every_module():
    """docs/architecture.md lists every module of the package, so that readers can find it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = [path for suffix in ("py", "pyx", "pxd") for path in (ROOT / "shmem").rglob(f"*.{suffix}")]
    names = {str(path.relative_to(ROOT)) for path in modules if path.stem != "__init__" and not {"crash", "storm"} & {*path.parts}}
    assert sorted(name for name in names if name.removesuffix("pxd").removesuffix("pyx") not in text) == []


@needs_checkout
@pytest.mark.parametrize("page", [page for page in PAGES if "decisions" in page.parts and page.name != "README.md"], ids=page_id)
def test_each_decision_is_complete(page):
    """An entry has the decision, the reason and the rejected alternatives, in this order."""
    entries = re.split(r"^#{2,3} ", page.read_text(encoding="utf-8"), flags=re.M)[1:]
    complete = re.compile(r"\*\*Decision\.\*\* .*\*\*Reason\.\*\* .*\*\*Rejected\.\*\* ", re.S)
    grouped = [entry for entry in entries if "**Decision.**" in entry or "\n### " not in page.read_text(encoding="utf-8")]
    assert grouped
    assert [entry.splitlines()[0] for entry in grouped if not complete.search(entry)] == []
