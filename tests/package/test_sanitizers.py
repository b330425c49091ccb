"""Under `make sanitize`: a planted bug in a child process, whose standard error is not read, leaves a report."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import SANITIZED

pytestmark = pytest.mark.skipif(not SANITIZED, reason="about the sanitizer job: no sanitizer is loaded")

BUGS = """
#include <stdint.h>
#include <stdlib.h>
int heap_overflow(char *section, int n) { char *p = malloc(n); p[n] = 1; int found = p[n]; free(p); return found; }
int use_after_free(char *section, int n) { volatile char *p = malloc(n); free((void *)p); return p[0]; }
__attribute__((noinline)) static int put(volatile char *p, int n) { p[n] = 1; return p[n]; }
int stack_overflow(char *section, int n) { char p[8]; return put(p, n); }
int shift(char *section, int n) { return 1 << (n + 32); }
int misaligned(char *section, int n) { return *(volatile uint64_t *)(section + 4); }
int null_pointer(char *section, int n) { return *(volatile char *)(uintptr_t)n; }
"""
FOUND = {
    "heap_overflow": "heap-buffer-overflow",
    "use_after_free": "heap-use-after-free",
    "stack_overflow": "stack-buffer-overflow",
    "shift": "AddressSanitizer: ILL",
    "misaligned": "AddressSanitizer: ILL",
    "null_pointer": "AddressSanitizer: SEGV",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The bugs, compiled like the extension."""
    folder = tmp_path_factory.mktemp("bugs")
    (folder / "bugs.c").write_text(BUGS)
    flags = ["-O1", "-g", "-shared", "-fPIC", "-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error"]
    subprocess.run([shutil.which("gcc"), *flags, "-o", folder / "bugs.so", folder / "bugs.c"], check=True)
    return folder / "bugs.so"


@pytest.mark.parametrize("bug", FOUND)
def test_bug_is_reported(bug, library, tmp_path):
    code = "import ctypes, sys, shmem\nwith shmem.SharedMemory(sys.argv[3], max_size=1 << 20) as shm:\n"
    code += "    getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(shm.address), 8)\nprint('to the end')"
    options = os.environ["ASAN_OPTIONS"]  # unchanged, except for the path of reports
    assert "log_path=" in options
    done = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", code, library, bug, tmp_path / "section.shm"],
        env={**os.environ, "ASAN_OPTIONS": f"{options}:log_path={tmp_path / 'report'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == b""
    report = "".join(path.read_text() for path in tmp_path.glob("report.*"))
    assert FOUND[bug] in report
    assert f"in {bug} " in report  # the report includes the stack
