"""Build what is published, and try it wherever users have it: ``python tools/packages.py``, or ``make packages``.

========  ==============================================================================================================
step      what it does
========  ==============================================================================================================
sdist     the source distribution in ``dist``
wheel     the wheel in ``dist``: metadata and contents of both are checked, the wheel gets a manylinux tag and has less than
          2 MB, both are installed in environments that have nothing else, and tried
pythons   a wheel for each other Python of Debian's releases, installed and tried on this machine
arm       a build for 64-bit Arm, tried in an emulator
musl      the compiler accepts every module with musl's headers
roots     wheel and source distribution are installed with pip, and tried, in new root folders of Debian's releases;
          this takes root
========  ==============================================================================================================

"Tried" means ``tests/smoke.py``.  The C files that the second step makes serve the others.  ``--quick`` is for continuous integration: no
optimization, one Python, no root folders.  What cannot be had, such as a package of Debian without network, is said; without ``--quick``,
the run then fails.  All files are in ``.venv-packages``, except that root installs the compilers and the emulator with apt.
"""

import argparse
import os
import shutil
import sys
import tarfile
import time
import zipfile

import debian
from debian import Unavailable
from environment import CHECKOUT, Environment, project

MAX_WHEEL_BYTES = 2_000_000
PYTHONS = ("3.11", "3.13", "3.14", "3.15")
ROOTS = ("3.11", "3.13", "3.14")
QUICK_PYTHONS = ("3.14",)
SMOKE = CHECKOUT / "tests/smoke.py"
DEBIAN = {  # the packages that have a command
    "aarch64-linux-gnu-gcc": ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    "qemu-aarch64-static": ("qemu-user-static",),
    "musl-gcc": ("musl-tools",),
    "mmdebstrap": ("mmdebstrap",),
}
ENVIRONMENT = Environment("packages")
HOME = ENVIRONMENT.home
TREE = HOME / "tree"  # the source distribution, unpacked, and the C files
BIN = HOME / "bin"


def run(*command, **options):
    """Run a command in the tools' environment; its output is shown only if it fails."""
    env = options.pop("env", None) or ENVIRONMENT.variables()
    return ENVIRONMENT.run(*command, env=env | {"PATH": f"{BIN}:{env['PATH']}"}, **options)


def fresh(folder):
    """Return the folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def only(folder, pattern):
    """Return the one file of the folder that matches."""
    (file,) = folder.glob(pattern)
    return file


def need(*commands):
    """Install the packages of commands that are missing here; raise `Unavailable` where that cannot be done."""
    missing = [command for command in commands if shutil.which(command) is None]
    packages = [package for command in missing for package in DEBIAN[command]]
    if missing and (os.geteuid() != 0 or shutil.which("apt-get") is None):
        raise Unavailable(f"{' and '.join(missing)} not found: install {' and '.join(packages)}")
    if missing:
        debian.call(["apt-get", "-q", "update"])
        debian.call(["apt-get", "-q", "-y", "install", "--no-install-recommends", *packages])


def try_installed(python, *what, name):
    """Install into an environment that has nothing else, and run the smoke test there."""
    clean = fresh(HOME / "clean" / name)
    run(python, "-m", "venv", clean)
    run(clean / "bin/python", "-m", "pip", "install", "--quiet", *what)
    ENVIRONMENT.say(run(clean / "bin/python", "-P", SMOKE, cwd=clean).strip())


def build_wheel(python, folder, quick=False):
    """Build a wheel of the tree, with pip, as users do; return it."""
    flags = {"SHMEM_CFLAGS": "-O0"} if quick else {}
    shutil.rmtree(TREE / "build", ignore_errors=True)
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", fresh(folder), TREE]
    run(*command, env=ENVIRONMENT.variables(**flags))
    for file in (TREE / "shmem").rglob("*.c"):  # not translated again for another Python, whose Cython was installed later
        os.utime(file, (time.time() + 86400,) * 2)
    return only(folder, "*.whl")


def name_platform(wheel, folder):
    """Let auditwheel name the systems on which the wheel runs; return the wheel that says so."""
    run(BIN / "auditwheel", "repair", "--strip", "--zip-compression-level", "9", "--wheel-dir", fresh(folder), wheel)
    repaired = only(folder, "*.whl")
    size = repaired.stat().st_size
    if "manylinux" not in repaired.name:
        raise SystemExit(f"packages: {repaired.name} has no manylinux tag")
    if size >= MAX_WHEEL_BYTES:
        raise SystemExit(f"packages: {repaired.name} has {size} bytes, and must have less than {MAX_WHEEL_BYTES}")
    ENVIRONMENT.say(f"{repaired.name}: {size} bytes")
    return repaired


# -- the steps --------------------------------------------------------------------------------------------------


def step_sdist(_quick):
    """Make the source distribution, and unpack it for the other steps."""
    run(ENVIRONMENT.python, "-m", "build", "--sdist", "--outdir", fresh(CHECKOUT / "dist"), ".", cwd=CHECKOUT)
    shutil.rmtree(CHECKOUT / "shmem.egg-info", ignore_errors=True)
    sdist = only(CHECKOUT / "dist", "*.tar.gz")
    shutil.rmtree(TREE, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(fresh(HOME / "unpacked"), filter="data")
    (HOME / "unpacked" / sdist.name.removesuffix(".tar.gz")).rename(TREE)


def step_wheel(_quick):
    """To install a source distribution, pip builds a wheel and installs it: both steps are taken here, and the wheel is built once."""
    built = build_wheel(ENVIRONMENT.python, HOME / "built/own")
    wheel = name_platform(built, HOME / "named/own")
    shutil.copy(wheel, CHECKOUT / "dist")
    run(BIN / "twine", "check", "--strict", *(CHECKOUT / "dist").iterdir())
    run(BIN / "check-wheel-contents", "--config", CHECKOUT / "pyproject.toml", wheel)
    run(BIN / "cibuildwheel", "--print-build-identifiers", "--platform", "linux", CHECKOUT)
    try_installed(ENVIRONMENT.python, built, name="sdist")
    try_installed(ENVIRONMENT.python, wheel, name="wheel")


def step_pythons(quick):
    for version in QUICK_PYTHONS if quick else PYTHONS:
        home = fresh(HOME / "pythons" / version)
        run(debian.python(ENVIRONMENT, version), "-m", "venv", home)  # has pip
        python = home / "bin/python"
        wheel = build_wheel(python, HOME / "built" / version, quick)
        if not quick:
            wheel = name_platform(wheel, HOME / "named" / version)
        try_installed(python, wheel, name=version)


def sysconfig_of(root):
    """Return the folder that has Python's build configuration below `root`, alone, and the name of its module."""
    (found,) = (file for file in root.glob("usr/lib/python3.*/_sysconfigdata__*.py") if not file.is_symlink())
    folder = fresh(root / "sysconfig")
    shutil.copy(found, folder)
    return folder, found.stem


def step_arm(quick):
    """The emulator runs one program, and no kernel starts others for it: a script stands for Python, so that Python starts itself by it."""
    need("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
    root, version = HOME / "debian/arm", "3.11"
    program = root / f"usr/bin/python{version}"
    emulated = program.with_name(f"{program.name}.arm")
    if not emulated.exists():
        debian.Release(ENVIRONMENT, "bookworm", "arm64").unpack(root, f"python{version}", f"libpython{version}-dev", "libstdc++6")
        debian.complete_headers(root, version)
        program.rename(emulated)
        program.write_text(f'#!/bin/sh\nexec qemu-aarch64-static -0 "$0" -L "{root}" "{emulated}" "$@"\n')
        program.chmod(0o755)
    folder, name = sysconfig_of(root)
    site = fresh(HOME / "arm")
    env = ENVIRONMENT.variables(
        CC="aarch64-linux-gnu-gcc", LDSHARED="aarch64-linux-gnu-gcc -shared", CFLAGS=f"-I{root}/usr/include/python{version}",
        PYTHONPATH=str(folder), _PYTHON_SYSCONFIGDATA_NAME=name, _PYTHON_HOST_PLATFORM="linux-aarch64",
        SHMEM_CFLAGS="-O0" if quick else "-O2",
    )  # fmt: skip
    run(ENVIRONMENT.python, "setup.py", "-q", "build", "--build-base", HOME / "arm-build", "--build-lib", site, cwd=TREE, env=env)
    platforms = [word for release in (17, 27, 28) for word in ("--platform", f"manylinux_2_{release}_aarch64")]
    wheels = fresh(HOME / "arm-wheels")
    command = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", version, *platforms, "--dest", wheels]
    run(ENVIRONMENT.python, "-m", "pip", *command, *project()["project"]["dependencies"])
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    ENVIRONMENT.say(run(program, "-P", SMOKE, cwd=site, env=ENVIRONMENT.variables(PYTHONPATH=str(site))).strip())


def step_musl(_quick):
    """The headers of the kernel and of Python are those of this system."""
    need("musl-gcc")
    include = run(ENVIRONMENT.python, "-c", "import sysconfig; print(sysconfig.get_path('include'))").strip()
    behind = [word for folder in ("/usr/include", f"/usr/include/{os.uname().machine}-linux-gnu") for word in ("-idirafter", folder)]
    flags = ["-std=gnu11", "-fsyntax-only", "-w", "-Werror=implicit-function-declaration", "-Werror=int-conversion"]
    files = sorted((TREE / "shmem").rglob("*.c"))
    for file in files:
        run("musl-gcc", *flags, f"-I{include}", f"-I{TREE}", *behind, file, cwd=TREE)
    ENVIRONMENT.say(f"musl: all {len(files)} modules can be compiled")


def in_root(root, *command):
    """Run a command in a root folder, with the kernel's file systems, a /dev/shm of its own, and no network to install from."""
    mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" "$@"'
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/shmem/wheels",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    return run("unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, root, *command, env=env)


def try_in_root(root, version, what):
    """Install with pip in a new environment of the root folder, and run the smoke test there."""
    name = "wheel" if what.endswith(".whl") else "sdist"
    in_root(root, f"python{version}", "-m", "venv", f"/{name}")
    in_root(root, f"/{name}/bin/pip", "install", "--quiet", what)
    ENVIRONMENT.say(f"root folder, from the {name}: {in_root(root, f'/{name}/bin/python', '-P', '/shmem/smoke.py').strip()}")


def step_roots(_quick):
    if os.geteuid() != 0:
        raise Unavailable("a root folder takes root")
    need("mmdebstrap")
    sdist = only(CHECKOUT / "dist", "*.tar.gz")
    requirements = [*project()["build-system"]["requires"], *project()["project"]["dependencies"]]
    # whether an archive's date counts is this machine's decision: a mirror may be frozen
    dates = debian.call(["apt-config", "dump", "Acquire::Check-Valid-Until", "Acquire::Check-Date"])
    options = [f"--aptopt={line}" for line in dates.splitlines()]
    for version in ROOTS:
        release = debian.Release(ENVIRONMENT, debian.RELEASES[version][0])
        root = HOME / "roots" / version
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(exist_ok=True)
        ENVIRONMENT.say(f"making a root folder of {release.name}")
        include = f"--include=python{version}-venv"
        run("mmdebstrap", "--quiet", "--variant=minbase", include, *options, release.name, root, release.source)
        inside = fresh(root / "shmem")
        run(HOME / "clean" / version / "bin/python", "-m", "pip", "wheel", "--quiet", "--wheel-dir", inside / "wheels", *requirements)
        wheel = only(HOME / "named" / version, "*.whl")
        for file in (sdist, wheel, SMOKE):
            shutil.copy(file, inside)
        try_in_root(root, version, f"/shmem/{wheel.name}")
        for file in release.fetch("gcc", "libc6-dev", f"libpython{version}-dev", status=root / "var/lib/dpkg/status"):
            shutil.copy(file, root / "var/cache/apt/archives")
        in_root(root, "sh", "-c", "dpkg --force-confnew -i /var/cache/apt/archives/*.deb")
        try_in_root(root, version, f"/shmem/{sdist.name}")
        shutil.rmtree(root)


STEPS = {name.removeprefix("step_"): function for name, function in list(globals().items()) if name.startswith("step_")}


def main():
    parser = argparse.ArgumentParser(description="build what is published, and try it", epilog="the steps need what `wheel` has made")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"all by default: {', '.join(STEPS)}")
    parser.add_argument("--quick", action="store_true", help="for continuous integration")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        parser.error(f"unknown step: {', '.join(sorted(unknown))}")
    ENVIRONMENT.make(*project()["project"]["optional-dependencies"]["packages"])
    not_done = []
    for name in arguments.steps or [step for step in STEPS if not (arguments.quick and step == "roots")]:
        begin = time.monotonic()
        try:
            STEPS[name](arguments.quick)
        except Unavailable as error:
            not_done.append(name)
            ENVIRONMENT.say(f"NOT DONE: {name}: {error}")
        else:
            ENVIRONMENT.say(f"{name}: done in {time.monotonic() - begin:.0f} s")
    if not_done and not arguments.quick:
        sys.exit(f"packages: not done: {', '.join(not_done)}")


if __name__ == "__main__":
    main()
