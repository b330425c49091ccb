"""The environment of the fuzzer: `.venv-fuzz` in the checkout, and nothing outside it.

It holds atheris from PyPI (libFuzzer for Python) and the extension modules, compiled by clang with coverage counters, traced comparisons,
and the address and undefined-behaviour sanitizers.
"""

import os
import pathlib
import shutil
import subprocess
import sys

FUZZ = pathlib.Path(__file__).resolve().parent
CHECKOUT = FUZZ.parent
sys.path.insert(0, str(CHECKOUT / "tools"))

from environment import Environment, digest  # noqa: E402

ENVIRONMENT = Environment("fuzz")
HOME = ENVIRONMENT.home
CLANG = HOME / "clang"
CLANG_PACKAGES = ["clang-14", "libclang-common-14-dev", "libclang-cpp14", "libllvm14"]
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"
say = ENVIRONMENT.say


def find_clang():
    """Return the command that compiles: $CLANG, the system's clang, or Debian's package, unpacked here without being installed."""
    names = [os.environ.get("CLANG"), "clang", *(f"clang-{version}" for version in range(25, 13, -1))]
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found:
        return found
    program = CLANG / "usr" / "lib" / "llvm-14" / "bin" / "clang"
    if not program.exists():
        say("fetching clang from Debian")
        try:
            ENVIRONMENT.unpack_debian(CLANG, *CLANG_PACKAGES)
        except (OSError, subprocess.CalledProcessError) as error:
            advice = "install it (Debian, Ubuntu: the package clang), or set CLANG=..."
            raise SystemExit(f"fuzz: clang not found ({error}); {advice}") from error
    libraries = [CLANG / "usr" / "lib" / "x86_64-linux-gnu", CLANG / "usr" / "lib" / "llvm-14" / "lib"]
    return f"env LD_LIBRARY_PATH={':'.join(map(str, libraries))} {program}"


def build(clang):
    """Compile the modules in a copy of the sources.  Only compiling needs clang; the sanitizers' code comes with atheris."""
    flags = {"CC": clang, "LDSHARED": os.environ.get("CC", "cc") + " -shared", "SHMEM_CFLAGS": FLAGS}
    number = digest(sorted(flags.items()), CHECKOUT / "setup.py")
    ENVIRONMENT.once("flags", number, lambda: shutil.rmtree(ENVIRONMENT.source, ignore_errors=True))
    sources = ENVIRONMENT.copy_sources()

    def make():
        say("compiling the extension modules: some minutes")
        command = ENVIRONMENT.python, "setup.py", "build_ext", "--inplace"
        ENVIRONMENT.run(*command, cwd=ENVIRONMENT.source, env=ENVIRONMENT.variables(**flags))

    ENVIRONMENT.once("build", digest(number, *map(str, sources), *sources), make)


def prepare():
    """Run every step, in order; return the environment's Python."""
    ENVIRONMENT.make("atheris>=3")
    build(find_clang())
    return ENVIRONMENT.python


def target_environment():
    """Return the environment of the fuzzing process, which preloads the sanitizers' code that comes with atheris."""
    (library,) = HOME.glob("lib/python*/site-packages/asan_with_fuzzer.so")
    options = "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1:handle_abort=1:detect_stack_use_after_return=0"
    modules = f"{CHECKOUT / 'tests' / 'support'}:{ENVIRONMENT.source}"
    return ENVIRONMENT.variables(LD_PRELOAD=str(library), ASAN_OPTIONS=options, PYTHONPATH=modules, PYTHONMALLOC="malloc")
