"""List the semaphores and events of the machine that you may see, with their values.

These are the named semaphores and events of shmem, POSIX named semaphores, and System V sets (whose
values `ipcs -s` does not show).  Those that cannot be read are listed with the reason.  Files are opened for reading only,
and are not mapped, so that listing changes nothing.  Values and waiters may be from slightly different moments.

The number of waiters of a shmem semaphore is an upper bound: a process killed while waiting is counted until the next wake.

Semaphores, events and mutexes in sections are not listed: reading them requires attaching to the
section, which takes one of its participant entries and, if no other process is attached, recovers its heap.

Exit status: 0, even if some could not be read; 2 wrong arguments.
"""

import contextlib
import datetime
import errno
import functools
import grp
import json
import os
import pwd
import struct
import sys

from shmem._base import system_tools
from shmem._base.layout import (
    CHANNEL_WAITERS_SHIFT,
    EVENT_SIGNALED,
    LAYOUT,
    NAMED_EVENT,
    NAMED_MAGIC,
    NAMED_SEMAPHORE,
    NAMED_VERSION,
    PAGE_BYTES,
    SEMAPHORE_MAX,
)
from shmem._base.system_sysv import SYSV_LIST, list_sets, semaphores_of_set

FOLDER = system_tools.MEMORY_FOLDER
WIDTH = 100


class Unreadable(Exception):
    """A file is not the object that its name suggests; the message states the reason."""


# -- named semaphores and events of shmem: `named_t` in _base/layout.pxd ---------------------------------------------------------

NAMED, SEMAPHORE, EVENT = LAYOUT["named_t"], LAYOUT["semaphore_t"], LAYOUT["event_t"]
NAMED_KINDS = {NAMED_SEMAPHORE: "a semaphore", NAMED_EVENT: "an event"}


def _named_state(content, size, kind):
    """Return the offset of the state in a valid file; raise Unreadable for any other."""
    if len(content) < NAMED["magic"].end or NAMED["magic"].read(content) != NAMED_MAGIC:
        raise Unreadable("not made by this library")
    if size != PAGE_BYTES:
        raise Unreadable(f"damaged: must have {PAGE_BYTES} bytes, got {size}")
    version, found = NAMED["version"].read(content), NAMED["kind"].read(content)
    if version != NAMED_VERSION:
        raise Unreadable(f"layout version must be {NAMED_VERSION}, got {version}")
    if found != kind:
        raise Unreadable(f"must be {NAMED_KINDS[kind]}, got {NAMED_KINDS.get(found, f'the unknown kind {found}')}")
    return NAMED["state"].offset


def _checked_value(value):
    if value > SEMAPHORE_MAX:
        raise Unreadable(f"damaged: invalid semaphore value {value}")
    return value


def read_semaphore(content, size):
    """Return the state in a named semaphore's file."""
    found = SEMAPHORE.read(content, _named_state(content, size, NAMED_SEMAPHORE))
    return {"value": _checked_value(found["value"]), "waiters": found["channel"] >> CHANNEL_WAITERS_SHIFT}


def read_event(content, size):
    """Return the state in a named event's file."""
    word = EVENT["word"].read(content, _named_state(content, size, NAMED_EVENT))
    return {"signaled": bool(word & EVENT_SIGNALED), "waiters": word >> CHANNEL_WAITERS_SHIFT}


# -- POSIX named semaphores, as glibc has them on 64 bits -------------------------------------------------------

POSIX_BYTES = 32
POSIX = struct.Struct("<QI")  # waiters << 32 | value, mark
POSIX_SHARED = 0x80  # the mark of a semaphore that several processes use


def read_posix(content, size):
    """Return the state in the file of a POSIX named semaphore.  Only the layout of glibc since 2.21 is read."""
    if size != POSIX_BYTES:
        raise Unreadable(f"a 64-bit glibc semaphore must have {POSIX_BYTES} bytes, got {size}")
    word, mark = POSIX.unpack_from(content)
    if mark != POSIX_SHARED:
        raise Unreadable("not the layout of a 64-bit glibc semaphore")
    return {"value": _checked_value(word & 0xFFFFFFFF), "waiters": word >> 32}


# -- files --------------------------------------------------------------------------------------------------------


@functools.cache
def user_name(uid):
    """Return the name of a user, or the number as text if there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@functools.cache
def group_name(gid):
    """Return the name of a group, or the number as text if there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def _ownership(uid, gid, mode):
    return {"owner": user_name(uid), "uid": uid, "group": group_name(gid), "gid": gid, "permissions": f"{mode & 0o7777:04o}"}


READ_BYTES = NAMED.size  # a POSIX semaphore is smaller
UNKNOWN_OWNER = dict.fromkeys(("owner", "uid", "group", "gid", "permissions"))


def _describe_file(path, name, what, values, read):
    """Return the entry for a file; raise FileNotFoundError if it has been removed."""
    facts = os.lstat(path)
    entry = {**what, "name": name, "path": path, **_ownership(facts.st_uid, facts.st_gid, facts.st_mode), **values, "error": None}
    try:
        found = system_tools.read_start(path, READ_BYTES)
        if found is None:
            raise Unreadable("not a regular file")
        entry.update(read(*found))
    except FileNotFoundError:
        raise
    except OSError as error:
        entry["error"] = error.strerror
    except Unreadable as error:
        entry["error"] = str(error)
    return entry


def _list_files(prefix, what, values, read, name_prefix=""):
    """Return entries for the files whose names begin with `prefix`, sorted by name."""
    try:
        found = sorted(name for name in os.listdir(FOLDER) if name.startswith(prefix) and name != prefix)
    except OSError as error:
        return [{**what, "name": None, "path": FOLDER, **UNKNOWN_OWNER, **values, "error": error.strerror}]
    entries = []
    for file_name in found:
        with contextlib.suppress(FileNotFoundError):
            name = name_prefix + file_name.removeprefix(prefix)
            entries.append(_describe_file(os.path.join(FOLDER, file_name), name, what, values, read))
    return entries


def list_shmem():
    """Return entries for shmem's named semaphores, then its named events."""
    values = dict.fromkeys(("value", "signaled", "waiters"))
    return [
        *_list_files("shmem-semaphore.", {"kind": "shmem", "type": "semaphore"}, values, read_semaphore),
        *_list_files("shmem-event.", {"kind": "shmem", "type": "event"}, values, read_event),
    ]


def list_posix():
    """Return entries for POSIX named semaphores."""
    values = dict.fromkeys(("value", "waiters"))
    return _list_files("sem.", {"kind": "posix", "type": "semaphore"}, values, read_posix, name_prefix="/")


# -- System V sets ------------------------------------------------------------------------------------------------

SEMAPHORE_KEYS = ("value", "waiting_for_increase", "waiting_for_zero", "last_pid")


def _iso_time(seconds):
    """Return local time with its offset; None for 0, which means never."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat() if seconds else None


def _sysv_entry(row=None, error=None):
    """Return the entry for a row of the kernel's list of sets, without values."""
    numbers = {} if row is None else {name: int(text, 8 if name == "perms" else 10) for name, text in row.items()}
    if row is None:
        owned = {**UNKNOWN_OWNER, "creator_uid": None, "creator_gid": None}
    else:
        owned = _ownership(numbers["uid"], numbers["gid"], numbers["perms"])
        owned |= {"creator_uid": numbers["cuid"], "creator_gid": numbers["cgid"]}
    return {
        "kind": "sysv",
        "type": "set",
        "key": numbers.get("key"),
        "id": numbers.get("semid"),
        **owned,
        "size": numbers.get("nsems"),
        "last_operation": _iso_time(numbers.get("otime")),
        "changed": _iso_time(numbers.get("ctime")),
        "semaphores": None,
        "error": error,
    }


def list_sysv():
    """Return entries for System V sets, sorted by id."""
    try:
        rows = list_sets(SYSV_LIST)
    except OSError as error:
        return [_sysv_entry(error=f"{SYSV_LIST}: {error.strerror}")]
    entries = []
    for row in rows:
        entry = _sysv_entry(row)
        try:
            found = semaphores_of_set(entry["id"])
            entry["semaphores"] = [dict(zip(SEMAPHORE_KEYS, one, strict=True)) for one in found]
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EIDRM):  # removed since it was listed
                continue
            entry["error"] = error.strerror
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry["id"])


# -- the table ----------------------------------------------------------------------------------------------------


def _printable(name):
    """Return a name that any user may have chosen, without characters that control a terminal."""
    return name if name.isprintable() else ascii(name)


def _aligned(rows, right):
    """Yield lines of aligned columns; those whose heading is in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_right = [heading in right for heading in rows[0]]
    for row in rows:
        cells = zip(row, widths, is_right, strict=True)
        yield "  ".join(text.rjust(width) if at_right else text.ljust(width) for text, width, at_right in cells).rstrip()


def _or_dash(value):
    return "-" if value is None else str(value)


def _table(headings, entries, cells, right):
    """Yield a heading, then for each entry its line and further lines about it."""
    header, *lines = _aligned([headings, *map(cells, entries)], right)
    yield header
    for entry, line in zip(entries, lines, strict=True):
        yield line
        if entry["error"] is not None:
            yield f"    cannot be read: {entry['error']}"
        yield from _semaphore_lines(entry.get("semaphores") or ())


def _file_cells(entry):
    state = entry["value"]
    if entry.get("signaled") is not None:
        state = "signaled" if entry["signaled"] else "reset"
    texts = [state, entry["waiters"], entry["owner"], entry["group"], entry["permissions"]]
    name = entry["path"] if entry["name"] is None else _printable(entry["name"])
    return [*([entry["type"]] if entry["kind"] == "shmem" else []), *map(_or_dash, texts), name]


def _sysv_cells(entry):
    key = "-" if entry["key"] is None else f"0x{entry['key'] & 0xFFFFFFFF:08x}"
    names = ("id", "owner", "group", "permissions", "size")
    last = "never" if entry["id"] is not None and entry["last_operation"] is None else entry["last_operation"]
    return [key, *(_or_dash(entry[name]) for name in names), _or_dash(last), _or_dash(entry["changed"])]


LABELS = ("values", "wait for more", "wait for zero", "last process")


def _semaphore_lines(semaphores):
    """Yield the values, at most 16 in a line, each line followed by the other facts about the same semaphores.

    Facts that are 0 for all of them are omitted (values are not); lines that repeat those before become one "*".
    """
    if not semaphores:
        return
    width = max(len(str(number)) for one in semaphores for number in one.values())
    number_width = 4 + len(str(len(semaphores) - 1))
    label_width = max(map(len, LABELS))
    per_line = 16 if number_width + 2 + label_width + 16 * (width + 1) <= WIDTH else 8
    before, is_repeated = None, False
    for start in range(0, len(semaphores), per_line):
        page = [tuple(one.values()) for one in semaphores[start : start + per_line]]
        if page == before:
            if not is_repeated:
                yield "    *"
            is_repeated = True
            continue
        before, is_repeated = page, False
        first = f"{start:>{number_width}}  "
        for label, numbers in zip(LABELS, zip(*page, strict=True), strict=True):
            if label == LABELS[0] or any(numbers):
                shown = "".join(f" {number:>{width}}" for number in numbers)
                yield f"{first if label == LABELS[0] else '':<{len(first)}}{label:<{label_width}}{shown}"


def _section(title, lines):
    return [title, *(lines or ["none"]), ""]


FILE_HEADINGS = ["state", "waiters", "owner", "group", "mode", "name"]
SYSV_HEADINGS = ["key", "id", "owner", "group", "mode", "size", "last operation", "changed"]
KINDS = {
    "shmem": (list_shmem, "Semaphores and events of shmem", ["type", *FILE_HEADINGS], _file_cells, ("state", "waiters")),
    "posix": (list_posix, "POSIX named semaphores", ["value", *FILE_HEADINGS[1:]], _file_cells, ("value", "waiters")),
    "sysv": (list_sysv, "System V semaphore sets", SYSV_HEADINGS, _sysv_cells, ("id", "size")),
}


def table_of(kinds):
    """Return the text that is printed without `--json`."""
    lines = []
    for kind in kinds:
        list_all, title, headings, cells, right = KINDS[kind]
        entries = list_all()
        lines += _section(title, list(_table(headings, entries, cells, right)) if entries else [])
    return "\n".join(lines[:-1])


def json_of(kinds):
    """Return a JSON list of objects, each on a line of its own.

    All have `kind`, `type`, `owner`, `uid`, `group`, `gid`, `permissions` and `error`.  Values that could not be read are null.
    """
    objects = [json.dumps(entry) for kind in kinds for entry in KINDS[kind][0]()]
    return "[" + ",\n ".join(objects) + "]"


# -- the command --------------------------------------------------------------------------------------------------


def command_arguments(parser):
    """Declare the arguments of `python -m shmem semstat`."""
    parser.add_argument("--kind", choices=KINDS, action="append", help="list only this kind; may be repeated (default: all kinds)")
    parser.add_argument("--json", action="store_true", help="print a JSON list with one object for each entry instead of tables")


def command(options):
    """Run `python -m shmem semstat` and return the exit status."""
    kinds = [kind for kind in KINDS if options.kind is None or kind in options.kind]
    text = json_of(kinds) if options.json else table_of(kinds)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:  # as by `| head`
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 0
