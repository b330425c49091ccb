"""The environment of the fuzzer: `.venv-fuzz` in the checkout, and nothing outside it.

In it: atheris from PyPI (libFuzzer for Python), and the extension modules, compiled by clang so that they count which edges are taken,
which values are compared, and which bytes are touched that must not be.  Every step is skipped while what it is made from is unchanged.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import venv

FUZZ = pathlib.Path(__file__).resolve().parent
CHECKOUT = FUZZ.parent
HOME = CHECKOUT / ".venv-fuzz"
PYTHON = HOME / "bin" / "python"
SOURCE = HOME / "source"
CLANG = HOME / "clang"
PACKAGES = ["atheris>=3", "wheel"]
CLANG_PACKAGES = ["clang-14", "libclang-common-14-dev", "libclang-cpp14", "libllvm14"]
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined"


def say(text):
    """Progress."""
    print(f"fuzz: {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    """Run a command whose output matters only when it fails."""
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-5000:]}\nfuzz: this failed, see above")
    return done.stdout


def environment(**more):
    """Whatever a tool wants to leave behind, it leaves in `.venv-fuzz`."""
    (HOME / "tmp").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD")}
    return kept | {"TMPDIR": str(HOME / "tmp"), "PIP_CACHE_DIR": str(HOME / "pip-cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more


def digest(*facts):
    """One number for files, by content, and for anything else, by its text."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(fact.read_bytes() if isinstance(fact, pathlib.Path) else repr(fact).encode())
        total.update(b"\0")
    return total.hexdigest()


def once(step, number, action):
    """Do a step unless it was done for just this."""
    stamp = HOME / f"{step}.stamp"
    if stamp.exists() and stamp.read_text() == number:
        return
    stamp.unlink(missing_ok=True)
    action()
    stamp.write_text(number)


def make_venv():
    """A virtual environment of the Python that runs this, with what is needed to build, and atheris."""
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    packages = [*wanted["build-system"]["requires"], *wanted["project"]["dependencies"], *PACKAGES]

    def make():
        say(f"making .venv-fuzz: {', '.join(packages)}")
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            venv.create(HOME, with_pip=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit("fuzz: no virtual environment could be made (Debian: the package python3-venv)") from error
        run(PYTHON, "-m", "pip", "install", "--quiet", *packages, env=environment())

    once("venv", digest(sys.version, str(HOME), packages), make)


def find_clang():
    """The command that compiles: $CLANG, the system's clang, else Debian's package, unpacked here without being installed."""
    names = [os.environ.get("CLANG"), "clang", *(f"clang-{version}" for version in range(25, 13, -1))]
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found:
        return found
    program = CLANG / "usr" / "lib" / "llvm-14" / "bin" / "clang"
    if not program.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise SystemExit("fuzz: no clang here: install it (Debian, Ubuntu: the package clang), or say CLANG=...")
        say("fetching clang from Debian")
        CLANG.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", *CLANG_PACKAGES, cwd=CLANG)
        for package in CLANG.glob("*.deb"):
            run("dpkg", "-x", package, CLANG)
            package.unlink()
    libraries = [CLANG / "usr" / "lib" / "x86_64-linux-gnu", CLANG / "usr" / "lib" / "llvm-14" / "lib"]
    return f"env LD_LIBRARY_PATH={':'.join(map(str, libraries))} {program}"


def bring_sources():
    """Copy what is new or has changed, so that only that is compiled."""
    (SOURCE / "shmem").mkdir(parents=True, exist_ok=True)
    sources = [path for path in (CHECKOUT / "shmem").iterdir() if path.suffix in (".py", ".pyx", ".pxd")]
    for path in [*sources, CHECKOUT / "setup.py", CHECKOUT / "pyproject.toml"]:
        target = SOURCE / path.relative_to(CHECKOUT)
        if not target.exists() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)
    for path in (SOURCE / "shmem").iterdir():
        if path.suffix in (".py", ".pyx", ".pxd") and not (CHECKOUT / "shmem" / path.name).exists():
            path.unlink()


def build(clang):
    """Compile the modules in a copy of the sources; only compiling needs clang, the sanitizers' code comes with atheris."""
    flags = {"CC": clang, "LDSHARED": os.environ.get("CC", "cc") + " -shared", "SHMEM_CFLAGS": FLAGS}
    once("flags", digest(sorted(flags.items()), CHECKOUT / "setup.py"), lambda: shutil.rmtree(SOURCE, ignore_errors=True))
    bring_sources()

    def make():
        say("compiling the extension modules: some minutes")
        run(PYTHON, "setup.py", "build_ext", "--inplace", cwd=SOURCE, env=environment(**flags))

    sources = sorted(path for path in SOURCE.rglob("shmem/*") if path.suffix in (".py", ".pyx", ".pxd"))
    once("build", digest(sorted(flags.items()), *map(str, sources), *sources), make)


def prepare():
    """Everything, in order; the environment's Python."""
    make_venv()
    build(find_clang())
    return PYTHON


def target_environment():
    """For the process that fuzzes: the sanitizers' code comes before everything else, from atheris."""
    (library,) = HOME.glob("lib/python*/site-packages/asan_with_fuzzer.so")
    options = "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1:handle_abort=1:detect_stack_use_after_return=0"
    modules = f"{CHECKOUT / 'tests' / 'support'}:{SOURCE}"
    return environment(LD_PRELOAD=str(library), ASAN_OPTIONS=options, PYTHONPATH=modules, PYTHONMALLOC="malloc")
