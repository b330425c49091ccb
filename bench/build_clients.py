"""Compile `clients/*.pyx` against the installed shmem, as any project with `cimport shmem` does; `setup_env.py` runs this."""

import pathlib
import sysconfig

from Cython.Build import cythonize
from setuptools import Distribution, Extension

CLIENTS = pathlib.Path(__file__).resolve().parent / "clients"
DIRECTIVES = {"boundscheck": False, "wraparound": False, "initializedcheck": False, "cdivision": True}

extensions = [Extension(path.stem, [str(path)], extra_compile_args=["-O2"]) for path in sorted(CLIENTS.glob("*.pyx"))]
modules = cythonize(extensions, include_path=[str(CLIENTS)], build_dir="client-build", compiler_directives=DIRECTIVES, force=True)
build = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
build.build_lib, build.build_temp = sysconfig.get_path("platlib"), "client-build"
build.ensure_finalized()
build.run()
