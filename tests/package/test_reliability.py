"""docs/reliability.md, the tests that it names, and the mutants that must make them fail (`mutants.py`) are consistent."""

import ast
import re
from pathlib import Path

import mutants

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`(\w+/test_\w+\.py::test_\w+)`", (ROOT / "docs/reliability.md").read_text(encoding="utf-8"))


def test_each_promise_names_a_test():
    rows = [line for line in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row not in ("| promise | test |", "| --- | --- |")]
    assert len(promises) > 30
    assert [row for row in promises if "test_" not in row] == []


def test_named_tests_exist():
    missing = []
    for name in NAMED:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        if function not in [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            missing.append(name)
    assert missing == []


def test_each_named_test_has_a_mutant():
    broken = {test for mutant in mutants.mutants() for test in mutant["tests"]}
    assert sorted(set(NAMED) - broken) == []
    assert sorted(broken - set(NAMED)) == []


def test_each_mutant_applies():
    """The old text of a mutant must occur exactly once in its file."""
    for mutant in mutants.mutants():
        assert mutant["old"] != mutant["new"], mutant["what"]
        assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1, mutant["what"]
