"""Check that imports run downward only: ``python tests/layers.py [FOLDER]``, part of ``make lint``.

`FLOORS` lists the rooms of the package from the lowest floor to the highest.  A module may import modules of its own room and of lower
floors, but not of other rooms on the same floor.  ``import`` and ``cimport`` statements count wherever they stand, inside functions too.
What must be called upward is registered by the upper module (`register_opener` in `shmem/_bridge/blocks.pyx`).
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FACE = "shmem"
FLOORS = [
    {"_version", "_atomics"},
    {"_base"},
    {"_sync"},
    {"_heap"},
    {"_sections"},
    {"_bridge"},
    {"_core"},
    {"_client"},
    {"_objects"},
    {FACE, "posixsem"},
    {"_fsck"},
    {"_cli"},
    {"testing"},
    {"__main__"},
]
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
SUFFIXES = (".py", ".pyx", ".pxd")
FROM = re.compile(r"^[ \t]*from[ \t]+(\.*[\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n#]+)", re.MULTILINE)
IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([\w., \t]+?)[ \t]*(?:#.*)?$", re.MULTILINE)
STRINGS = re.compile(r'("""|\'\'\')(?:[^\\]|\\.)*?\1', re.DOTALL)
COMMENT = re.compile(r"#[^\n]*")


def room_of(path):
    """Return the room of a file of the package; `path` is relative to the package's folder."""
    first = path.parts[0].removesuffix(path.suffix)
    return FACE if first == "__init__" else first


def imported_modules(text):
    """Yield (line number, dotted name) for each name that the source imports from the package.

    ``from shmem import x`` yields ``shmem.x``; a multi-line import yields each of its names at the line where it begins.
    """
    text = STRINGS.sub(lambda found: "\n" * found[0].count("\n"), text)  # docstrings may show imports
    for found in FROM.finditer(text):
        number = text.count("\n", 0, found.start(1)) + 1
        module = found[1]
        listed = COMMENT.sub("", found[2]).strip("()\n ").replace("\n", " ").split(",")
        names = [name.split()[0] for name in listed if name.strip()]
        if module.startswith("."):
            yield number, module
        elif module == "shmem":
            yield from ((number, f"shmem.{name}") for name in names)
        elif module.startswith("shmem."):
            yield number, module
    for found in IMPORT.finditer(text):
        number = text.count("\n", 0, found.start(1)) + 1
        for name in found[1].split(","):
            module = name.split()[0]
            if module == "shmem" or module.startswith("shmem."):
                yield number, module


def room_of_module(module):
    """Return the room of a dotted name; a public name (``shmem.Block``) belongs to the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else FACE


def violations(folder):
    """Return one text per offending import of the package in `folder`."""
    package = Path(folder) / "shmem"
    found = []
    for path in sorted(package.rglob("*")):
        if path.suffix not in SUFFIXES:
            continue
        place, mine = path.relative_to(package.parent), room_of(path.relative_to(package))
        if mine not in HEIGHT:
            found.append(f"{place}: {mine} has no floor; add it to FLOORS in tests/layers.py")
            continue
        for number, module in imported_modules(path.read_text(encoding="utf-8")):
            if module.startswith("."):
                found.append(f"{place}:{number}: relative import of {module}; write the full name")
                continue
            theirs = room_of_module(module)
            if mine != theirs and HEIGHT[theirs] >= HEIGHT[mine]:
                found.append(f"{place}:{number}: {mine} (floor {HEIGHT[mine]}) imports {module} ({theirs}, floor {HEIGHT[theirs]})")
    return found


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else ROOT
    found = violations(folder)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"layers: {len(found)} imports that do not run downward")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
