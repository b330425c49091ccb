"""The environment of the benchmarks: `.venv-bench` in the checkout, and nothing outside it.

In it: the wheel built from the checkout, the peers from PyPI, Boost's headers (the system's, else Debian's package, unpacked here
without being installed), the C++ peer and the Cython clients.  Every step is skipped while what it is made from is unchanged.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv

try:
    import tomllib
except ImportError:
    raise SystemExit("bench: Python 3.11 or later is needed") from None

BENCH = pathlib.Path(__file__).resolve().parent
CHECKOUT = BENCH.parent
HOME = CHECKOUT / ".venv-bench"
PYTHON = HOME / "bin" / "python"
SOURCE = HOME / "source"
BOOST = HOME / "boost"
STAMPS = HOME / "stamps.json"
PEERS = ["posix_ipc>=1.1", "pyzmq>=26"]
CPP_ARGS = ["-std=c++17", "-O2", "-DNDEBUG", "-pthread"]
NOT_SOURCE = shutil.ignore_patterns("*.c", "*.so", "__pycache__")


def say(text):
    """Progress goes to stderr: stdout is the table's."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    """Run a command whose output matters only when it fails."""
    finished = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=environment(), check=False, **options)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{finished.stdout}\nbench: this failed, see above")
    return finished.stdout


def environment():
    """Whatever a tool wants to leave behind, it leaves in `.venv-bench`."""
    inside = {"TMPDIR": "tmp", "PIP_CACHE_DIR": "pip-cache", "XDG_CACHE_HOME": "cache", "CYTHON_CACHE_DIR": "cache"}
    for folder in inside.values():
        (HOME / folder).mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {key: str(HOME / folder) for key, folder in inside.items()} | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}


# -- what is up to date -----------------------------------------------------------------------------------


def digest(*facts):
    """One number for files (by content) and for anything else (by its text)."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(fact.read_bytes() if isinstance(fact, pathlib.Path) else repr(fact).encode())
    return total.hexdigest()


def is_done(step, number):
    """Whether the step was done for just this."""
    return STAMPS.exists() and json.loads(STAMPS.read_text()).get(step) == number


def set_done(step, number):
    known = json.loads(STAMPS.read_text()) if STAMPS.exists() else {}
    STAMPS.write_text(json.dumps(known | {step: number}, indent=1))


# -- the steps --------------------------------------------------------------------------------------------


def make_venv():
    """A virtual environment of the Python that runs this; made anew when that is another one."""
    number = digest(sys.version, sys.prefix, str(HOME))
    if not is_done("venv", number):
        say("making .venv-bench")
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            venv.create(HOME, with_pip=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit("bench: no virtual environment could be made (Debian: the package python3-venv)") from error
        set_done("venv", number)


def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def install_packages():
    """The build tools and the run-time needs that pyproject.toml names, and the peers."""
    facts = project()
    wanted = [*facts["build-system"]["requires"], "wheel", *facts["project"]["dependencies"], *PEERS]
    number = digest(wanted)
    if not is_done("packages", number):
        say(f"installing {', '.join(wanted)}")
        run(PYTHON, "-m", "pip", "install", "--quiet", *wanted)
        set_done("packages", number)


def source_files():
    """What the wheel's code is made from."""
    package = [path for path in (CHECKOUT / "shmem").rglob("*") if path.is_file() and path.suffix not in (".c", ".so", ".pyc")]
    return [CHECKOUT / "setup.py", CHECKOUT / "pyproject.toml", *sorted(package)]


def install_wheel():
    """Build the wheel from a copy of the sources, so that the checkout stays as it is, and install it; what it was made from."""
    files = source_files()
    number = digest(os.environ.get("SHMEM_CFLAGS"), *map(str, files), *files)
    if is_done("wheel", number):
        return number
    say("building the wheel (a minute or two)")
    for folder in (SOURCE, HOME / "wheel"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHECKOUT / "shmem", SOURCE / "shmem", ignore=NOT_SOURCE)
    for path in CHECKOUT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, SOURCE)
    run(PYTHON, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", HOME / "wheel", SOURCE)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", *(HOME / "wheel").glob("*.whl"))
    set_done("wheel", number)
    return number


def build_clients(wheel_number):
    """Compile the Cython modules against the installed wheel, into the environment's packages."""
    sources = sorted((BENCH / "clients").glob("*.p[xy]*"))
    number = digest(wheel_number, BENCH / "build_clients.py", *sources)
    if not is_done("clients", number):
        say("compiling the Cython clients")
        run(PYTHON, BENCH / "build_clients.py", cwd=HOME)
        set_done("clients", number)


# -- Boost ------------------------------------------------------------------------------------------------


def boost_include():
    """The folder that holds `boost/`, and "" or why there is none."""
    for folder in (pathlib.Path("/usr/include"), pathlib.Path("/usr/local/include"), BOOST / "usr" / "include"):
        if (folder / "boost" / "interprocess").is_dir():
            return folder, ""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None, "no Boost headers here, and no apt-get to fetch libboost-dev"
    say("fetching Boost's headers")
    try:
        unpack_debian_boost()
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"no Boost headers: {error}"
    return BOOST / "usr" / "include", ""


def unpack_debian_boost():
    """Download the package that libboost-dev stands for, and unpack it here; needs no root."""
    BOOST.mkdir(parents=True, exist_ok=True)

    def ask(*command):
        return subprocess.run(command, cwd=BOOST, env=environment(), capture_output=True, text=True, check=True).stdout

    answer = ask("apt-cache", "depends", "--important", "libboost-dev")
    names = [line.split()[-1] for line in answer.splitlines() if "Depends:" in line]
    if not names:
        raise OSError("apt knows no libboost-dev (apt-get update?)")
    ask("apt-get", "download", *names)
    for package in BOOST.glob("*.deb"):
        ask("dpkg", "-x", str(package), str(BOOST))
        package.unlink()


def build_boost_peer():
    """Compile the C++ peer; without compiler or headers its rows say so."""
    program, why_not = HOME / "bin" / "boost_peer", HOME / "boost_missing.txt"
    include, reason = boost_include()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        reason = reason or "no C++ compiler for Boost"
    if reason:
        program.unlink(missing_ok=True)
        why_not.write_text(reason)
        say(reason)
        return
    number = digest(compiler, str(include), CPP_ARGS, BENCH / "boost_peer.cpp")
    if not (program.exists() and is_done("boost_peer", number)):
        say("compiling the Boost peer")
        searched_anyway = include == pathlib.Path("/usr/include")       # and named explicitly, it hides the C headers from C++'s
        run(compiler, *CPP_ARGS, *([] if searched_anyway else ["-isystem", include]), BENCH / "boost_peer.cpp", "-o", program, "-lrt")
        set_done("boost_peer", number)
    why_not.unlink(missing_ok=True)


def prepare():
    """Everything, in order; returns the environment's Python."""
    make_venv()
    install_packages()
    build_clients(install_wheel())
    build_boost_peer()
    return PYTHON
