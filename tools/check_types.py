"""Check the stubs: `make lint` runs this with the Python of an environment that has shmem, mypy and pyright.

stubtest compares the stubs with the package that Python imports.  mypy and pyright check the stubs, the examples, the code of README and
tour, and `tests/package/typed`, whose files state what types are inferred, and which errors are found.

A copy of the stubs alone is checked, so that the package's own modules, which have no annotations, are not.  ``--quick`` checks for the
newest target only, and no pages.
"""

import concurrent.futures
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import shmem

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = Path(shmem.__file__).parent
TARGETS = ("3.11", "3.13")  # the oldest, and the one from which the keywords of `new` are checked
ONLY_NEWEST = "keywords.py"
PAGES = ("README.md", "docs/tour.md")

# What stubtest may find.  The names are regular expressions.
ALLOWED = r"""
shmem\._[a-z].*                                                      # internal modules have no stubs
shmem\.__main__
shmem\.testing\.(crash|storm|heap_machine)(\..*)?
shmem\.testing\.HeapMachine\.[a-z]\w*                                # the rules of the state machine, which are not called
shmem\.(bool_|u?int(8|16|32|64)|float(32|64)|complex(64|128))        # to type checkers, the types of Python that fields are read as
shmem\.(Bytes|Ref)
shmem\.(Array|Bytes)\..*                                             # to type checkers Array is the descriptor of a field
shmem\.(Block|Mutex|Queue)\.__init__                                 # their __new__ refuses
shmem\.(exclusive|shared)_lock\.__new__
shmem\.(Block|Struct)\.__buffer__                                    # a name only since CPython 3.12
shmem\.LostReference\.__\w+__                                         # each raises
shmem\.Struct\.__replace__                                           # see the head of shmem/__init__.pyi
"""
# In the pages, lengths are numbers, references are not compared with None, and functions have no annotations.
MYPY_PAGES = ("--check-untyped-defs", "--disable-error-code=valid-type", "--disable-error-code=union-attr")
PYRIGHT_PAGES = {"reportInvalidTypeForm": False, "reportGeneralTypeIssues": False, "reportOptionalMemberAccess": False}
PYRIGHT = {
    "reportUnnecessaryTypeIgnoreComment": "error",
    "enableTypeIgnoreComments": False,
    "reportMissingModuleSource": False,
    "reportSelfClsParameterName": False,
}


def run(what, folder, *command, **options):
    """Run a command in a folder; return what it printed if it fails, with a title."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=folder, **options)
    if done.returncode == 0 and "No source files found" not in done.stdout:  # with which pyright succeeds
        return ""
    return f"== {what}\n{done.stdout}".replace(f"{folder}/", "")


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def copy_pages(folder):
    """Write the Python blocks of the pages to files, and return these."""
    folder.mkdir()
    for page in PAGES:
        text = (CHECKOUT / page).read_text(encoding="utf-8")
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
            line = text.count("\n", 0, found.start()) + 1
            script = folder / f"{Path(page).stem.lower()}_{line}.py"
            script.write_text(found[1], encoding="utf-8")
    return sorted(folder.iterdir())


def check_runtime(folder):
    """Compare the stubs with the package."""
    allowed = folder / "allowed"
    allowed.write_text(ALLOWED, encoding="utf-8")
    options = ("--concise", "--ignore-disjoint-bases", "--ignore-unused-allowlist", "--allowlist", allowed)
    environment = {**os.environ, "MYPYPATH": str(folder / "stubs"), "PYTHONPATH": str(PACKAGE.parent)}
    return run("stubtest", folder, sys.executable, "-P", "-m", "mypy.stubtest", "shmem", *options, env=environment)


def mypy(what, folder, files, *options):
    cache = CHECKOUT / ".mypy_cache" / what.replace(" ", "-")  # two at the same time must not have the same one
    command = (sys.executable, "-P", "-m", "mypy", "--cache-dir", cache, *options, *files)
    return run(f"mypy {what}", folder, *command, env={**os.environ, "MYPYPATH": str(folder / "stubs")})


def pyright(what, folder, files, **settings):
    project = folder / f"{what.replace(' ', '-')}.json"
    settings = {**PYRIGHT, **settings, "include": [str(file.relative_to(folder)) for file in files], "extraPaths": ["stubs"]}
    project.write_text(json.dumps(settings), encoding="utf-8")
    command = (sys.executable, "-P", "-m", "pyright", "--warnings", "--pythonpath", sys.executable, "--project", project)
    return run(f"pyright {what}", folder, *command)


def checks(folder, is_quick):
    """Yield each check as a function that returns what it found."""
    files = [copy(stub, folder / "stubs/shmem" / stub.relative_to(PACKAGE)) for stub in sorted(PACKAGE.rglob("*.pyi"))]
    for pattern in ("examples/*.py", "tests/package/typed/*.py"):
        files += [copy(file, folder / file.relative_to(CHECKOUT)) for file in sorted(CHECKOUT.glob(pattern))]
    pages = copy_pages(folder / "pages")
    yield functools.partial(check_runtime, folder)
    for target in TARGETS[-1:] if is_quick else TARGETS:
        chosen = [file for file in files if file.name != ONLY_NEWEST or target == TARGETS[-1]]
        yield functools.partial(mypy, f"for Python {target}", folder, chosen, "--strict", "--python-version", target)
        yield functools.partial(pyright, f"for Python {target}", folder, chosen, pythonVersion=target)
    if is_quick:
        return
    yield functools.partial(mypy, "README and tour", folder, pages, *MYPY_PAGES, "--python-version", TARGETS[-1], "--scripts-are-modules")
    yield functools.partial(pyright, "README and tour", folder, pages, **PYRIGHT_PAGES)


def main():
    """Return the exit status."""
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda check: check(), checks(Path(folder), "--quick" in sys.argv)))
    print("".join(found), end="")
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main())
