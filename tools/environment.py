"""Virtual environments that live in the checkout: the benchmarks', the fuzzer's, and any other tool's.

An `Environment` is a folder of the checkout, such as ``.venv-bench``, with a Python, packages, a copy of the sources and whatever the tool
builds there.  Nothing outside the folder is written.  A step runs only when what it depends on has changed.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import venv

try:
    import tomllib
except ImportError:
    raise SystemExit("shmem's tools need Python 3.11 or later") from None

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
BUILT = (".c", ".so", ".pyc")
INSIDE = {"TMPDIR": "tmp", "PIP_CACHE_DIR": "pip-cache", "XDG_CACHE_HOME": "cache", "CYTHON_CACHE_DIR": "cache"}


def digest(*facts):
    """Return one hash of files, taken by content, and of any other values, taken by their `repr`."""
    total = hashlib.sha256()
    for fact in facts:
        total.update(fact.read_bytes() if isinstance(fact, pathlib.Path) else repr(fact).encode())
        total.update(b"\0")
    return total.hexdigest()


def project():
    """Return the contents of pyproject.toml."""
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def source_files():
    """Return what the wheel's code is made from."""
    package = [path for path in (CHECKOUT / "shmem").rglob("*") if path.is_file() and path.suffix not in BUILT]
    return [CHECKOUT / "setup.py", CHECKOUT / "pyproject.toml", CHECKOUT / "README.md", CHECKOUT / "MANIFEST.in", *sorted(package)]


class Environment:
    """A folder of the checkout with a Python of its own.

    Parameters
    ----------
    tool : str
        The tool's name: the folder is ``.venv-<tool>``, and messages begin with it.
    """

    def __init__(self, tool):
        self.tool = tool
        self.home = CHECKOUT / f".venv-{tool}"
        self.python = self.home / "bin" / "python"
        self.source = self.home / "source"

    def say(self, text):
        """Print progress on standard error; standard output belongs to the tool's result."""
        print(f"{self.tool}: {text}", file=sys.stderr, flush=True)

    def variables(self, **more):
        """Return environment variables for a child: temporary files and caches go to the folder."""
        for folder in INSIDE.values():
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD")}
        inside = {key: str(self.home / folder) for key, folder in INSIDE.items()}
        return kept | inside | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more

    def run(self, *command, env=None, **options):
        """Run a command and return its output, which is shown only if the command fails."""
        command = [*map(str, command)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env or self.variables(), check=False, **options
        )
        if done.returncode != 0:
            output = done.stdout[-5000:]
            raise SystemExit(f"{' '.join(command)}\n{output}\n{self.tool}: this command failed with exit status {done.returncode}")
        return done.stdout

    def once(self, step, number, action):
        """Run `action` unless this step was completed for the same `number`, a digest of what it depends on."""
        stamp = self.home / f"{step}.stamp"
        if stamp.exists() and stamp.read_text() == number:
            return
        stamp.unlink(missing_ok=True)
        action()
        stamp.write_text(number)

    def make(self, *packages):
        """Create the environment with the build requirements, the dependencies of pyproject.toml, and `packages`."""
        facts = project()
        wanted = [*facts["build-system"]["requires"], "wheel", *facts["project"]["dependencies"], *packages]

        def create():
            self.say(f"creating {self.home.name}")
            shutil.rmtree(self.home, ignore_errors=True)
            try:
                venv.create(self.home, with_pip=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{self.tool}: cannot create a virtual environment; on Debian, install python3-venv") from error

        def install():
            self.say(f"installing {', '.join(wanted)}")
            self.run(self.python, "-m", "pip", "install", "--quiet", *wanted)

        self.once("venv", digest(sys.version, sys.prefix, str(self.home)), create)
        self.once("packages", digest(wanted), install)

    def copy_sources(self):
        """Bring the copy of the sources up to date; a file that has not changed keeps its time stamp, so that builds are incremental."""
        sources = source_files()
        kept = set()
        for path in sources:
            target = self.source / path.relative_to(CHECKOUT)
            kept.add(target)
            if not target.exists() or target.read_bytes() != path.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for path in (self.source / "shmem").rglob("*"):
            if path.is_file() and path.suffix not in BUILT and path not in kept:
                path.unlink()
        return sources

    def unpack_debian(self, folder, *packages):
        """Download Debian packages and unpack them into `folder`, without installing them; needs no root."""
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise OSError("apt-get and dpkg are needed to fetch " + ", ".join(packages))
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *packages], cwd=folder, env=self.variables(), capture_output=True, text=True, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], env=self.variables(), capture_output=True, text=True, check=True)
            package.unlink()
