"""A check that the tests can fail: break each promise once and run its tests.  ``python tests/mutants.py``, or ``make mutants``.

`mutants.toml` lists changes of the source, each with the tests of docs/reliability.md that must detect it.  First all these tests are run
on an unchanged copy of the source, where they must pass.  Then each change in turn is made in the copy and built, and its tests must fail.
`package/test_reliability.py` verifies that the list matches the page and the source.
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
    """Return all mutants, in the order of the file."""
    return tomllib.loads((ROOT / "tests/mutants.toml").read_text())["mutant"]


def git(*arguments):
    """Return what a git command prints, or "" if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def recent_files(mutated):
    """Return the `mutated` files that changed since the last release tag; without a tag, a sample that the commit's hash chooses."""
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
        """Build the extensions; return the end of the compiler's output if that failed, otherwise ""."""
        environment = os.environ | {"SHMEM_CFLAGS": os.environ.get("SHMEM_CFLAGS", "-O1"), "PYTHONPATH": ""}
        command = [sys.executable, "setup.py", "build_ext", "--inplace", "-j2"]
        done = subprocess.run(command, cwd=self.folder, env=environment, check=False, capture_output=True, text=True)
        return (done.stdout + done.stderr)[-3000:] if done.returncode else ""

    def run(self, tests):
        """Run tests; return "passed", "failed", "hung" or "crashed", and the output of pytest."""
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
        output = done.stdout + done.stderr
        if done.returncode < 0:
            return "crashed", output
        if done.returncode not in (0, 1) or (done.returncode == 0 and " skipped" in output):
            raise SystemExit(f"mutants: pytest skipped a test that must run, or ended with status {done.returncode}:\n{output}")
        return ("failed" if done.returncode else "passed"), output

    def unmount(self):
        """Unmount the file systems that a crashed test left mounted."""
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed(places):
            if place.startswith(str(self.temporary)):
                subprocess.run(["umount", "--lazy", place], check=True)

    def broken(self, mutant):
        """Make a change, build, run each test and undo the change; return the verdict of each test."""
        path = self.folder / mutant["file"]
        whole = path.read_text()
        if whole.count(mutant["old"]) != 1:
            raise SystemExit(f"mutants: {mutant['what']!r} does not fit {mutant['file']}: its text must occur once")
        path.write_text(whole.replace(mutant["old"], mutant["new"]))
        try:
            output = self.build()  # also for a .py file: the build undoes the previous change
            if output:
                raise SystemExit(f"mutants: {mutant['what']!r} cannot be built:\n{output}")
            return {test: self.run([test])[0] for test in mutant["tests"]}
        finally:
            path.write_text(whole)


def main():
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only mutants whose description or tests contain this text")
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
    n_undetected = 0
    with tempfile.TemporaryDirectory(prefix="shmem-mutants-") as folder:
        copy = Copy(folder)
        output = copy.build()
        if output:
            raise SystemExit(f"mutants: the unchanged source cannot be built:\n{output}")
        verdict, output = copy.run(sorted({test for mutant in chosen for test in mutant["tests"]}))
        if verdict != "passed":
            raise SystemExit(f"mutants: the tests must pass on the unchanged source, but they {verdict}:\n{output}")
        for mutant in chosen:
            began = time.monotonic()
            verdicts = copy.broken(mutant)
            for test, verdict in verdicts.items():
                n_undetected += verdict == "passed"
                print(f"{'NOT DETECTED' if verdict == 'passed' else verdict:14}{test:72}{mutant['what']}", flush=True)
            print(f"{'':14}{time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(chosen)} changes, {n_undetected} not detected")
    return 1 if n_undetected else 0


if __name__ == "__main__":
    sys.exit(main())
