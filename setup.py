"""Build the Cython core.  Everything that needs no code is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE_ARGS = [
    "-std=gnu11", "-O2", "-fno-strict-aliasing", "-Wall", "-Wextra",
    # what Cython's own C would set off
    "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-missing-field-initializers", "-Wno-cast-function-type",
    *os.environ.get("SHMEM_CFLAGS", "").split(),
]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "embedsignature.format": "python",
}

extensions = [
    Extension(f"shmem.{path.stem}", [str(path)], extra_compile_args=COMPILE_ARGS)
    for path in sorted(Path("shmem").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
