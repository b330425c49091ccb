"""What packages need: the build is refused where it cannot work, and versions, changelog, extras and workflow agree."""

import datetime
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import release  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILER = sysconfig.get_config_var("CC").split()[0]


# -- where the build is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("sys.platform = 'darwin'", "macOS has no locks on bytes of a file that a mapping keeps"),
        ("sys.platform = 'win32'", "Windows has no fork"),
        ("sys.platform = 'freebsd14'", "are those of Linux, and this is freebsd14"),
        ("sys.byteorder = 'big'", "this processor is big-endian"),
        ("struct.calcsize = lambda form: 4", "this Python has 32-bit ones: use a 64-bit Python"),
        ("sys.implementation.name = 'pypy'", "this is pypy"),
    ],
)
def test_build_is_refused_with_the_reason(change, reason):
    imports = "import struct, sys, setuptools.command.build_ext, Cython.Build"  # which look at the platform themselves
    code = f"{imports}\n{change}\nexec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("cannot build shmem: ")
    assert reason in last
    assert last.endswith("docs/porting.md lists what a port would have to provide")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["-U__BYTE_ORDER__", "-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__"], "cannot be built for a big-endian processor"),
        (["-U__SIZEOF_POINTER__", "-D__SIZEOF_POINTER__=4"], "cannot be built for a 32-bit processor"),
        ([], None),
    ],
)
def test_compiler_refuses_other_processors(flags, reason):
    """In a cross-build setup.py sees the machine that builds, and only the compiler knows the target."""
    layout = (ROOT / "shmem/_base/layout.pxd").read_text(encoding="utf-8")
    guard = layout[layout.index("    #if __BYTE_ORDER__") : layout.index("    #define PAGE_BYTES")]
    command = [COMPILER, "-fsyntax-only", *flags, "-xc", "-"]
    done = subprocess.run(command, input=guard, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (reason is None), done.stderr
    assert reason is None or f"shmem {reason}" in done.stderr


# -- what must agree --------------------------------------------------------------------------------------------


def test_changelog_has_the_form():
    assert release.changelog_problems((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# Changelog\n\n## 1.0.0\n", "the first section must be"),
        ("## [Unreleased]\n## 1.0.0\n", "`## 1.0.0` is not of the form"),
        ("## [Unreleased]\n### Improved\n", "`### Improved` below"),
        ("## [Unreleased]\n### Fixed\n### Fixed\n", "occurs twice"),
        ("## [Unreleased]\n## [1.0.0] - 2026-01-01\n## [1.1.0] - 2025-01-01\n", "must be older"),
    ],
)
def test_changelog_of_another_form_is_found(text, problem):
    assert [problem in line for line in release.changelog_problems(text)] == [True]


def test_release_is_refused_while_its_changes_are_not_listed():
    today = datetime.date.today()
    assert release.release_problems("1.0.0", f"## [Unreleased]\n\n## [1.0.0] - {today}\n") == ([], str(today))
    assert "is not empty" in release.release_problems("1.0.0", f"## [Unreleased]\n\n* A line.\n\n## [1.0.0] - {today}\n")[0][0]
    assert "not that of 1.0.1" in release.release_problems("1.0.1", f"## [Unreleased]\n\n## [1.0.0] - {today}\n")[0][0]
    assert "in the future" in release.release_problems("1.0.0", f"## [Unreleased]\n\n## [1.0.0] - {today + datetime.timedelta(1)}\n")[0][0]


def test_tags_are_compared_with_the_version():
    assert release.tag_problems("1.1.0", ["v1.0.0"], []) == []
    assert release.tag_problems("1.1.0", ["v1.0.0", "v1.1.0"], ["v1.1.0"]) == []
    assert "exists, at another commit" in release.tag_problems("1.1.0", ["v1.1.0"], [])[0]
    assert "is newer" in release.tag_problems("1.1.0", ["v1.10.0"], [])[0]
    assert "this commit has the tag v1.0.0" in release.tag_problems("1.1.0", ["v1.0.0"], ["v1.0.0"])[0]


def test_citation_names_the_version():
    assert release.citation_problems(release.package_version(), None) == []


def test_wheels_are_built_for_the_listed_versions():
    listed = re.findall(r"Python :: (3\.\d+)", " ".join(PYPROJECT["project"]["classifiers"]))
    built = [f"3.{name.removeprefix('cp3').removesuffix('-*')}" for name in PYPROJECT["tool"]["cibuildwheel"]["build"]]
    assert listed == built
    assert PYPROJECT["project"]["requires-python"] == f">={listed[0]}"


def test_readme_names_the_extras():
    """Those for users; `packages` is for the project's own tools."""
    named = re.findall(r"shmem\[(\w+)\]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(set(named)) == sorted(set(PYPROJECT["project"]["optional-dependencies"]) - {"packages"})
