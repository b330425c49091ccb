"""Shared fixtures: temporary sections, other processes, and the check that tests leave nothing behind."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import hypothesis
import pytest

import shmem
from shmem._base import debug

ROOT = Path(__file__).resolve().parent.parent
SIZE = 1 << 22
SECONDS = 20
# A shell starts background processes with SIGINT ignored, which the tests of Ctrl-C would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("no times", deadline=None)
hypothesis.settings.load_profile("no times")
SANITIZED = "/libasan" in Path("/proc/self/maps").read_text()


def pytest_collection_modifyitems(items):
    """Under a sanitizer, skip the tests marked `no_sanitizer`, with the reason that the marker states."""
    for item in items if SANITIZED else ():
        for marker in item.iter_markers("no_sanitizer"):
            item.add_marker(pytest.mark.skip(reason=f"sanitizer: {marker.args[0]}"))


@pytest.fixture(autouse=True)
def checks_or_not(request):
    """Turn SHMEM_DEBUG off for a test that damages a section on purpose, and for the processes that it starts."""
    level = os.environ.get("SHMEM_DEBUG")
    if level is None or request.node.get_closest_marker("damages") is None:
        yield
        return
    del os.environ["SHMEM_DEBUG"]
    debug.set_level("")
    yield
    os.environ["SHMEM_DEBUG"] = level
    debug.set_level(level)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """Drop the arguments of a test, which may be views that keep a section, before `nothing_is_left` looks."""
    item.funcargs.clear()


def _leftovers(before):
    """Return the sections in /dev/shm that are not in `before` and have no participant."""
    left = []
    for path in sorted(set(Path("/dev/shm").glob("shmem.*")) - before):
        with contextlib.suppress(shmem.ShmemError), shmem.SharedMemory(shared_name=path.name[len("shmem.") :]) as section:
            if len(section.stats().participants) == 1:
                left.append(path.name)
    return left


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left():
    """Verify that the tests leave no section, no temporary file and no file in the checkout behind."""
    sections = set(Path("/dev/shm").glob("shmem.*"))
    temporary = {path.name for path in Path(tempfile.gettempdir()).glob("shmem*")}
    checkout = set(os.listdir(ROOT))
    yield
    gc.collect()  # caught exceptions may hold sections in cycles
    assert _leftovers(sections) == []
    assert list(Path("/dev/shm").glob(f"shmem-*.test-{os.getpid()}-*")) == []  # named semaphores and events
    assert {path.name for path in Path(tempfile.gettempdir()).glob("shmem*")} == temporary
    assert set(os.listdir(ROOT)) - checkout <= {".pytest_cache", ".hypothesis"}


@pytest.fixture
def shm():
    """Yield an anonymous section with a random name."""
    with shmem.SharedMemory(max_size=SIZE) as section:
        yield section


@pytest.fixture(params=["file", "anonymous"])
def place(request, tmp_path):
    """Return arguments that open one section, in a file or anonymous."""
    if request.param == "file":
        return {"file_name": str(tmp_path / "section.shm")}
    return {"shared_name": f"test-{os.getpid()}-{tmp_path.name}"[:200]}


@pytest.fixture
def section_file(tmp_path):
    """Return a path for a section."""
    return str(tmp_path / "section.shm")


class Child:
    """Another Python process, which runs some code and exchanges lines; `before` is a command that starts it."""

    def __init__(self, code, *args, before=()):
        program = "import os, sys, time, shmem\nargs = sys.argv[1:]\ndef say(*words): print(*words, flush=True)\n" + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [*before, sys.executable, "-P", "-c", program, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def hear(self):
        """Return the next line that the process prints."""
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the child ended without printing a line: {self.process.stderr.read()}")
        return line.strip()

    def hear_soon(self):
        """Return the same, but kill a process that prints nothing, which then counts as ended."""
        timer = threading.Timer(SECONDS, self.process.kill)
        timer.start()
        try:
            return self.hear()
        finally:
            timer.cancel()

    def tell(self, line=""):
        """Send a line to the process."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self):
        """Kill the process with SIGKILL and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self._close()

    def end(self):
        """Wait for the end of the process, which must succeed; return what it printed since the last `hear`."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        assert err == ""
        return out

    def _close(self):
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


@pytest.fixture(scope="session")
def preloadable(tmp_path_factory):
    """Return a function that builds a library of tests/support for LD_PRELOAD, and returns its path."""

    def build(name):
        if shutil.which("cc") is None or "LD_PRELOAD" in os.environ:
            pytest.skip("no C compiler, or another library is preloaded")
        path = tmp_path_factory.mktemp("library") / f"{name}.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, ROOT / "tests/support" / f"{name}.c", "-ldl"], check=True)
        return path

    return build


@pytest.fixture
def child():
    """Return a function that starts other Python processes; those that still run at the end are killed."""
    started = []

    def start(code, *args, before=()):
        started.append(Child(code, *args, before=before))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        one._close()
