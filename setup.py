"""Build the Cython core.  Everything that needs no code is in pyproject.toml."""

import os
import struct
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def reason_to_refuse():
    """Return why the core cannot be built for this system, or None.  In a cross-build, `shmem/_base/layout.pxd` looks at the target too."""
    pointer_bits = 8 * struct.calcsize("P")
    if sys.implementation.name != "cpython":
        return f"the core is an extension of CPython, and this is {sys.implementation.name}"
    if pointer_bits != 64:
        return f"a section needs 64-bit addresses, and this Python has {pointer_bits}-bit ones: use a 64-bit Python"
    if sys.byteorder != "little":
        return "the words of a section are little-endian, and this processor is big-endian"
    if sys.platform == "darwin":
        return "macOS has no locks on bytes of a file that a mapping keeps, no futex system call, and no memory that a fork wipes"
    if sys.platform in ("win32", "cygwin"):
        return "Windows has no fork, no locks on bytes of a file that a mapping keeps, no wait on a shared word, and no unnamed files"
    if sys.platform != "linux":
        return f"the system calls of shmem/_base/system.pyx are those of Linux, and this is {sys.platform}"
    return None


if refusal := reason_to_refuse():
    raise SystemExit(f"cannot build shmem: {refusal}; docs/porting.md lists what a port would have to provide")

# Debug information makes the extensions five times as large, and what debuggers need to list the calls of C functions adds a tenth.
# A build has neither unless it is asked for (make build DEBUG=1).
WITH_DEBUG_INFO = os.environ.get("SHMEM_DEBUG_INFO", "0") not in ("", "0")
EXTRA_CFLAGS = os.environ.get("SHMEM_CFLAGS", "").split()
COMPILE_ARGS = [
    "-std=gnu11",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    # warnings that Cython's generated C would trigger
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-sign-compare",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
    *(["-g"] if WITH_DEBUG_INFO else ["-g0", "-fno-asynchronous-unwind-tables"]),
]
LINK_ARGS = [] if WITH_DEBUG_INFO or EXTRA_CFLAGS else ["-Wl,--strip-all"]
# A wheel has less than 2 MB.  What runs seldom, or beside much slower work in Python or in the kernel, is therefore built for size (a third
# less); heap, locks and queues are not.
FOR_SIZE = {
    *("shmem._core", "shmem._cli.tstshmem_tree", "shmem._sections.image"),
    *(f"shmem._base.{name}" for name in ("debug", "layout", "public", "system_sysv", "system_tools")),
    *(f"shmem._objects.{name}" for name in ("arrays", "codec", "directory", "event", "fields", "finding", "growing", "making")),
    *(f"shmem._objects.{name}" for name in ("persistence", "semaphore", "struct", "waitables")),
}
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "auto_pickle": False,
    "allow_none_for_extension_args": False,
    # for `inspect.signature` of extension types: functions have theirs anyway, and an `__init__` with a docstring and
    # binding(False) gets the text of it, which `shmem/_base/public.pyx` shows as that of the class
    "embedsignature": True,
    "embedsignature.format": "clinic",
}


def make_extension(path):
    name = ".".join(path.with_suffix("").parts)
    flags = [*COMPILE_ARGS, "-Os" if name in FOR_SIZE else "-O2", *EXTRA_CFLAGS]
    return Extension(name, [str(path)], extra_compile_args=flags, extra_link_args=LINK_ARGS)


extensions = [make_extension(path) for path in sorted(Path("shmem").rglob("*.pyx"))]
if not extensions:
    raise SystemExit(f"cannot build shmem: no .pyx file below {Path('shmem').resolve()}; the source distribution or checkout is incomplete")
if unknown := FOR_SIZE - {extension.name for extension in extensions}:
    raise SystemExit(f"cannot build shmem: setup.py names modules that do not exist: {', '.join(sorted(unknown))}")


class BuildExtensions(build_ext):
    """Translate to C only when extensions are built, and not for a source distribution or for metadata."""

    def finalize_options(self):
        self.distribution.ext_modules = cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1)
        super().finalize_options()


if __name__ == "__main__":  # since CPython 3.14, the processes that translate to C import this file
    setup(ext_modules=extensions, cmdclass={"build_ext": BuildExtensions}, options={"build_ext": {"parallel": os.cpu_count() or 1}})
