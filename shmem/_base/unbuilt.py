"""The explanation of a compiled module that is missing, as in a source checkout that was not built."""

import importlib.machinery
import pathlib
import sys


def explain_missing(error):
    """Raise an ImportError with instructions if `error` is about this package and a Cython source in it has no compiled module.

    Parameters
    ----------
    error : ImportError
    """
    if error.name is not None and error.name.partition(".")[0] != "shmem":
        return
    package = pathlib.Path(__file__).resolve().parents[1]
    for source in sorted(package.rglob("*.pyx")):  # an installed package has none
        if not any(source.with_suffix(suffix).exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
            raise ImportError(
                f"import shmem failed: {package} is a source checkout whose {source.relative_to(package)} is not compiled for this Python "
                f"({sys.implementation.cache_tag}); run `make build` there, or start Python in another directory to use an installed shmem",
                name="shmem",
                path=str(source),
            ) from error
