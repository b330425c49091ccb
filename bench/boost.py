"""The Boost peer: a C++ program that runs one measurement per input line, so that it can take turns with other contenders."""

import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(sys.prefix, "bin", "boost_peer")
WHY_NOT = pathlib.Path(sys.prefix, "boost_missing.txt")


class Boost:
    """The running peer; where Boost is not available, `missing` is the reason."""

    def __init__(self):
        self.missing = "" if PROGRAM.exists() else WHY_NOT.read_text().strip() if WHY_NOT.exists() else "run bench/make_bench.py first"
        self._process = None

    def __enter__(self):
        if not self.missing:
            self._process = subprocess.Popen([PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        return self

    def __exit__(self, exc_type, exc, traceback):
        if self._process is not None:
            self._process.communicate(timeout=30)

    def ask_all(self, *words):
        """Run one line; return the numbers of the answer."""
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        return [float(number) for number in self._process.stdout.readline().split()]

    def ask(self, *words):
        """Run one line; return the number of the answer."""
        (number,) = self.ask_all(*words)
        return number

    def contender(self, name, *words):
        """Return `{name: callable}` for `best_of`, empty where Boost is missing."""
        return {} if self.missing else {name: lambda: self.ask(*words)}
