"""All system calls are made by the files of the system module, `shmem/_base/system*`."""

import re
from pathlib import Path

import pytest
from layers import COMMENT, STRINGS

PACKAGE = Path(__file__).resolve().parents[2] / "shmem"
SYSTEM_FILES = ("_base/system.pyx", "_base/system.pxd", "_base/system_tools.pyx", "_base/system_sysv.pyx")
TRACER = ("ptrace.py", "registers.py", "store_trace.py", "stepping.py")  # in testing/crash: they trace other processes, through ctypes
SYSTEM_MODULES = "ctypes|fcntl|mmap|posix|pty|resource|select|termios"
FORBIDDEN = [
    rf"^\s*(from|import|cimport)\s+({SYSTEM_MODULES})\b",
    r"\bfrom\s+posix\b|\bposix\.\w+\s+c?import\b",
    r"cdef extern from\s+[\"']<?(sys/|linux/|asm/|fcntl|pthread|sched|semaphore|signal|spawn|time|unistd)",
    r"/dev/shm|/proc/",
    r"\bos\.(O_\w+|SEEK_DATA|SEEK_HOLE|memfd_create|mkfifo|posix_\w+|sendfile|copy_file_range|statvfs|fstatvfs)\b",
]


def violations(name, text):
    """Return the lines of a source that belong in the system module; docstrings and comments do not count."""
    text = STRINGS.sub(lambda found: "\n" * found[0].count("\n") if found[0].count("\n") else '""', text)
    lines = COMMENT.sub("", text).splitlines()
    return [f"{name}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if any(re.search(one, line) for one in FORBIDDEN)]


def sources():
    return [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".pyx", ".pxd")]


@pytest.mark.skipif(not (PACKAGE / "_base/system.pyx").exists(), reason="tests run without the checkout")
def test_only_the_system_module_calls_the_system():
    found = []
    for path in sources():
        name = path.relative_to(PACKAGE).as_posix()
        if name not in SYSTEM_FILES and (path.parent.name, path.name) not in [("crash", tracer) for tracer in TRACER]:
            found += violations(name, path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl",
        "    import mmap",
        "from posix.mman cimport mmap",
        "from libc.stdlib cimport free\nfrom posix.unistd cimport close",
        "cimport posix.time",
        'cdef extern from "<sys/mman.h>" nogil:',
        'cdef extern from "unistd.h":',
        "from ctypes import CDLL",
        'FOLDER = "/dev/shm"',
        'with open(f"/proc/{pid}/stat") as file:',
        "fd = os.open(path, os.O_RDONLY)",
    ],
)
def test_planted_line_is_detected(line):
    assert len(violations("planted.py", f"x = 1\n{line}\n")) == 1


@pytest.mark.parametrize(
    "line", ["# /dev/shm", '"""Reads /proc/self/maps."""', "from libc.errno cimport EINTR", 'cdef extern from "<errno.h>" nogil:']
)
def test_harmless_lines_are_accepted(line):
    assert violations("planted.py", line) == []
