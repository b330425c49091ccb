"""Build the Cython core.  Everything that needs no code is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Debug information makes the extensions five times as large, so a build has none unless it is asked for (make build DEBUG=1).
WITH_DEBUG_INFO = os.environ.get("SHMEM_DEBUG_INFO", "0") not in ("", "0")
EXTRA_CFLAGS = os.environ.get("SHMEM_CFLAGS", "").split()
COMPILE_ARGS = [
    "-std=gnu11",
    "-O2",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    # warnings that Cython's generated C would trigger
    "-Wno-unused-parameter",
    "-Wno-unused-function",
    "-Wno-sign-compare",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
    "-g" if WITH_DEBUG_INFO else "-g0",
    *EXTRA_CFLAGS,
]
LINK_ARGS = [] if WITH_DEBUG_INFO or EXTRA_CFLAGS else ["-Wl,--strip-all"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "auto_pickle": False,
    "allow_none_for_extension_args": False,
    "embedsignature": True,
    "embedsignature.format": "python",
}

extensions = [
    Extension(".".join(path.with_suffix("").parts), [str(path)], extra_compile_args=COMPILE_ARGS, extra_link_args=LINK_ARGS)
    for path in sorted(Path("shmem").rglob("*.pyx"))
]
if not extensions:
    raise SystemExit(f"cannot build shmem: no .pyx file below {Path('shmem').resolve()}; the source distribution or checkout is incomplete")

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
