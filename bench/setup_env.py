"""The environment of the benchmarks: `.venv-bench` in the checkout, and nothing outside it.

It holds the wheel built from the checkout, the peers from PyPI, Boost's headers (the system's, or Debian's package, unpacked here
without being installed), the C++ peer and the Cython clients.
"""

import os
import pathlib
import shutil
import subprocess
import sys

BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "tools"))

from environment import Environment, digest  # noqa: E402

ENVIRONMENT = Environment("bench")
HOME = ENVIRONMENT.home
BOOST = HOME / "boost"
PEERS = ["lmdb>=1.4", "posix_ipc>=1.1", "pyzmq>=26"]
CPP_ARGS = ["-std=c++17", "-O2", "-DNDEBUG", "-pthread"]


def install_wheel():
    """Build the wheel from a copy of the sources, so that the checkout stays as it is, and install it; return a digest of the sources."""
    files = ENVIRONMENT.copy_sources()
    number = digest(os.environ.get("SHMEM_CFLAGS"), *map(str, files), *files)

    def build():
        ENVIRONMENT.say("building the wheel (a minute or two)")
        for folder in (HOME / "wheel", ENVIRONMENT.source / "build"):
            shutil.rmtree(folder, ignore_errors=True)
        pip = ENVIRONMENT.python, "-m", "pip"
        ENVIRONMENT.run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", HOME / "wheel", ENVIRONMENT.source)
        ENVIRONMENT.run(*pip, "install", "--quiet", "--no-deps", "--force-reinstall", *(HOME / "wheel").glob("*.whl"))

    ENVIRONMENT.once("wheel", number, build)
    return number


def install_numba():
    """Install numba, if there is one for this Python and this numpy; otherwise its row states that it is missing."""
    pip = ENVIRONMENT.python, "-m", "pip"
    numpy = ENVIRONMENT.run(ENVIRONMENT.python, "-c", "import numpy; print(numpy.__version__)").strip()

    def install():
        try:
            ENVIRONMENT.run(*pip, "install", "--quiet", "--only-binary", ":all:", "numba", f"numpy=={numpy}")
        except SystemExit:
            ENVIRONMENT.say(f"there is no numba for this Python and numpy {numpy}")

    ENVIRONMENT.once("numba", digest(numpy), install)


def build_clients(wheel_number):
    """Compile the Cython modules against the installed wheel, into the environment's packages."""
    sources = sorted((BENCH / "clients").glob("*.p[xy]*"))

    def build():
        ENVIRONMENT.say("compiling the Cython clients")
        ENVIRONMENT.run(ENVIRONMENT.python, BENCH / "build_clients.py", cwd=HOME)

    ENVIRONMENT.once("clients", digest(wheel_number, BENCH / "build_clients.py", *sources), build)


# -- Boost ------------------------------------------------------------------------------------------------


def boost_include():
    """Return the folder that holds `boost/` and "", or None and the reason why there is none."""
    for folder in (pathlib.Path("/usr/include"), pathlib.Path("/usr/local/include"), BOOST / "usr" / "include"):
        if (folder / "boost" / "interprocess").is_dir():
            return folder, ""
    ENVIRONMENT.say("fetching Boost's headers")
    try:
        ENVIRONMENT.unpack_debian(BOOST, *debian_boost_packages())
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"Boost headers not found: {error}"
    return BOOST / "usr" / "include", ""


def debian_boost_packages():
    """Return the packages that libboost-dev stands for."""
    command = ["apt-cache", "depends", "--important", "libboost-dev"]
    answer = subprocess.run(command, env=ENVIRONMENT.variables(), capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in answer.splitlines() if "Depends:" in line]
    if not names:
        raise OSError("apt does not list libboost-dev; run apt-get update")
    return names


def build_boost_peer():
    """Compile the C++ peer; without compiler or headers, its rows state the reason."""
    program, why_not = HOME / "bin" / "boost_peer", HOME / "boost_missing.txt"
    include, reason = boost_include()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        reason = reason or "C++ compiler not found"
    if reason:
        program.unlink(missing_ok=True)
        why_not.write_text(reason)
        ENVIRONMENT.say(reason)
        return

    def build():
        ENVIRONMENT.say("compiling the Boost peer")
        is_searched = include == pathlib.Path("/usr/include")  # naming it would hide the C headers from those of C++
        where = [] if is_searched else ["-isystem", include]
        ENVIRONMENT.run(compiler, *CPP_ARGS, *where, BENCH / "boost_peer.cpp", "-o", program, "-lrt")

    if not program.exists():
        (HOME / "boost_peer.stamp").unlink(missing_ok=True)
    ENVIRONMENT.once("boost_peer", digest(compiler, str(include), CPP_ARGS, BENCH / "boost_peer.cpp"), build)
    why_not.unlink(missing_ok=True)


def prepare():
    """Run every step, in order; return the environment's Python."""
    ENVIRONMENT.make(*PEERS)
    install_numba()
    build_clients(install_wheel())
    build_boost_peer()
    return ENVIRONMENT.python
