"""Make the environment and print the table: `python3 bench/make_bench.py [--only QUESTION] [--json FILE]`, what `make bench` runs."""

import os
import sys

import setup_env

if __name__ == "__main__":
    python = setup_env.prepare()
    os.execve(python, [str(python), str(setup_env.BENCH / "run.py"), *sys.argv[1:]], setup_env.ENVIRONMENT.variables())
