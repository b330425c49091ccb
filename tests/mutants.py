"""Break each promise once, and see its test fail: ``python tests/mutants.py``, or ``make mutants``.

`mutants.toml` lists changes of the source, each with the tests of docs/reliability.md that have to notice it.  For each one the source is
copied, changed, built, and the tests are run: they must fail.  Before that all of them are run on the unchanged
copy: they must pass.  `package/test_reliability.py` sees to it that the list fits the page and the source.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST_SECONDS = 240
N_SAMPLED_FILES = 10


def mutants():
    """All of them, in the order of the file."""
    return tomllib.loads((ROOT / "tests/mutants.toml").read_text())["mutant"]


def git(*arguments):
    """Return what a git command prints, or "" if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def recent_files(mutated):
    """Return those of the `mutated` files that changed since the last release tag; without a tag, a sample that the commit's hash chooses."""
    tag = git("describe", "--tags", "--abbrev=0")
    if tag:
        changed = set(git("diff", "--name-only", tag).splitlines())
        return sorted(changed & set(mutated)), f"changed since {tag}"
    commit = git("rev-parse", "HEAD")
    if not commit:
        raise SystemExit("mutants: --recent needs a git checkout")
    mutated = sorted(mutated)
    return sorted(random.Random(commit).sample(mutated, min(N_SAMPLED_FILES, len(mutated)))), f"chosen by commit {commit[:9]}"


class Copy:
    """A copy of the source in a folder, built in place."""

    def __init__(self, folder):
        self.folder = Path(folder) / "copy"
        self.temporary = Path(folder) / "tmp"
        self.n_runs = 0
        self.folder.mkdir()
        self.temporary.mkdir()
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in listed.stdout.splitlines():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes((ROOT / name).read_bytes())

    def build(self):
        """What the compiler said when it failed, else nothing."""
        environment = os.environ | {"SHMEM_CFLAGS": os.environ.get("SHMEM_CFLAGS", "-O1"), "PYTHONPATH": ""}
        command = [sys.executable, "setup.py", "build_ext", "--inplace", "-j2"]
        done = subprocess.run(command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True)
        return (done.stdout + done.stderr)[-3000:] if done.returncode else ""

    def run(self, tests):
        """What became of the tests, passed, failed, hung or crashed, and what pytest said."""
        self.n_runs += 1
        base = self.temporary / f"run-{self.n_runs}"
        command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", f"--basetemp={base}"]
        command += ["-W", "error", *[f"tests/{test}" for test in tests]]
        environment = os.environ | {"PYTHONPATH": f"{self.folder}:{self.folder / 'tests'}:{self.folder / 'tests' / 'support'}"}
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True, timeout=LONGEST_SECONDS
            )
        except subprocess.TimeoutExpired:
            return "hung", ""
        finally:
            self.unmount()
        said = done.stdout + done.stderr
        if done.returncode < 0:
            return "crashed", said
        if done.returncode not in (0, 1) or (done.returncode == 0 and " skipped" in said):
            raise SystemExit(f"pytest ended with {done.returncode}, or skipped what has to be seen:\n{said}")
        return ("failed" if done.returncode else "passed"), said

    def unmount(self):
        """A test that crashes leaves what it mounted."""
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed(places):
            if place.startswith(str(self.temporary)):
                subprocess.run(["umount", "--lazy", place], check=True)

    def broken(self, mutant):
        """Change, build, run each test, change back: the tests that did not notice."""
        path = self.folder / mutant["file"]
        whole = path.read_text()
        path.write_text(whole.replace(mutant["old"], mutant["new"]))
        try:
            said = self.build()  # also for a .py: the change before it is undone by that
            if said:
                raise SystemExit(f"{mutant['what']}: it cannot be built\n{said}")
            return {test: self.run([test])[0] for test in mutant["tests"]}
        finally:
            path.write_text(whole)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="those whose description or tests contain this")
    parser.add_argument(
        "--recent",
        action="store_true",
        help=f"only mutants of files that changed since the last release tag; without a tag, of {N_SAMPLED_FILES} files",
    )
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.only in " ".join([mutant["what"], *mutant["tests"]])]
    if options.recent:
        files, why = recent_files({mutant["file"] for mutant in chosen})
        print(f"mutants of {len(files)} files, {why}: {', '.join(files)}", flush=True)
        chosen = [mutant for mutant in chosen if mutant["file"] in files]
        if not chosen:
            return 0
    n_unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="shmem-mutants-") as folder:
        copy = Copy(folder)
        said = copy.build()
        if said:
            raise SystemExit(said)
        verdict, said = copy.run(sorted({test for mutant in chosen for test in mutant["tests"]}))
        if verdict != "passed":
            raise SystemExit(f"Before anything was broken the tests have to pass; they {verdict}:\n{said}")
        for mutant in chosen:
            began = time.monotonic()
            verdicts = copy.broken(mutant)
            for test, verdict in verdicts.items():
                n_unnoticed += verdict == "passed"
                print(f"{'NOT NOTICED' if verdict == 'passed' else verdict:12}{test:72}{mutant['what']}", flush=True)
            print(f"{'':12}{time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(chosen)} changes, {n_unnoticed} not noticed")
    return 1 if n_unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
