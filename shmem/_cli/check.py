"""Report the damage in a section's file, its offsets, and what would be lost; repair it; find unreachable blocks.

Without --repair the file is opened for reading only.  The check also reads files that can no longer be opened as a section: truncated
ones, and those with damaged header, tags or names.  Processes that open the section wait meanwhile.  If processes are attached to
the section, the check attaches to it as they do.

--repair first copies the file to FILE.before-repair-N, then repairs it, and reports each repair and each loss.  Memory that cannot be
identified becomes a plain block, and is not allocated again until a process frees it.

--leaks follows references from the root object and the names.  The references of an object are known from its type.  The contents of plain
blocks, arrays and queues are known only to the application: blocks to which a word in them may refer are marked "perhaps", and do not
count.  In a section that is in use, blocks to which only variables of a process refer are listed too.

Exit status, as that of fsck: 0 intact.  Otherwise the sum of: 1 damaged, and repaired; 4 damage or leaks remain;
8 not checked, or the repair was refused, because FILE is not a section or not readable, or processes are attached.  2: wrong arguments.
"""

import contextlib
import dataclasses
import json
import os
import stat
import struct
import sys
import tempfile

import shmem
from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT
from shmem._base.system_tools import (
    create_file,
    extents,
    open_file,
    section_path,
    shared_name_of,
    sync_file,
    sync_folder_of,
    write_all,
)
from shmem._fsck.leaks import Reach
from shmem._fsck.wreck import NotASection, Wreck
from shmem._objects import persistence
from shmem._sections import image

HEADER = LAYOUT["header_t"]
COPY_BYTES = 1 << 16
REPAIRED, LEFT, NOT_DONE = 1, 4, 8  # exit status; the bits mean the same in fsck's
IN_USE = "cannot repair: processes are attached; repair when they have left"


class Refused(Exception):
    """The check or repair was refused; the message states the reason."""


@dataclasses.dataclass
class Report:
    """The result of a check or repair."""

    file: str
    state: str = "intact"
    """intact, damaged, repaired, not a section, unreadable, refused"""
    in_use: bool = False
    findings: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    copy: str | None = None
    leaks: list | None = None
    blocks: int | None = None
    used_bytes: int | None = None

    @property
    def status(self):
        """The exit status."""
        status = {"intact": 0, "repaired": REPAIRED, "damaged": LEFT}.get(self.state, NOT_DONE)
        return status | LEFT if any(leak.perhaps is None for leak in self.leaks or ()) else status


# -- the file -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path, writable):
    """Yield a descriptor of the file; no process opens or closes the section meanwhile."""
    fd = open_file(path, writable)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotASection("not a regular file")
        with contextlib.suppress(OSError):
            image.hold_opening(fd, not writable)
        yield fd
    finally:
        os.close(fd)


def copy_aside(fd, path):
    """Copy the file unchanged, holes as holes, sync the copy, and return its path.

    Raises
    ------
    OSError
        There was no room, and no copy is left.
    """
    n = 1
    while True:
        aside = f"{path}.before-repair-{n}"
        try:
            to = create_file(aside, stat.S_IMODE(os.fstat(fd).st_mode))
            break
        except FileExistsError:
            n += 1
    try:
        size = os.fstat(fd).st_size
        os.ftruncate(to, size)
        for start, end in extents(fd, size):
            for at in range(start, end, COPY_BYTES):
                content = os.pread(fd, min(COPY_BYTES, end - at), at)
                if content.strip(b"\0"):  # reserved bytes that were never written read as zeros
                    write_all(to, content, at)
        sync_file(to)
    except BaseException:
        os.unlink(aside)
        raise
    finally:
        os.close(to)
    sync_folder_of(path)
    return aside


# -- checking and repairing -------------------------------------------------------------------------------------


def check_in_use(path, report, with_leaks):
    """Attach and call `check_heap`; search for leaks in a snapshot."""
    report.in_use = True
    shared_name = shared_name_of(path)
    place = {"file_name": path} if shared_name is None else {"shared_name": shared_name}
    with shmem.SharedMemory(**place, mode="read_only") as section:
        others = [pid for pid in section._header_facts()["participants"] if pid != os.getpid()]
        report.notes.append(f"in use by {len(others)} processes: {', '.join(map(str, others))}; checked by attaching")
        try:
            found = section.check_heap()
        except shmem.HeapCorruption as error:
            report.state = "damaged"
            report.findings.append(
                {"offset": error.offset, "problem": str(error), "remedy": "run --repair when no process is attached", "lost": ""}
            )
            return
        report.blocks, report.used_bytes = found.blocks, found.used_bytes
        if with_leaks:
            report.notes.append("a block that only a process's variable refers to is listed as a leak too")
            with tempfile.TemporaryFile(prefix="shmem-check-") as file:
                status = persistence.write_copy(section, file.fileno())
                if status != 0:
                    raise Refused(f"cannot look for leaks: copying the section failed: {shmem.get_error_text(status)}")
                wreck = Wreck(file.fileno())
                wreck.examine()
                report.leaks = Reach(wreck).leaks()


def check_file(fd, report, with_leaks):
    """Read the file and return its `Wreck`."""
    wreck = Wreck(fd)
    wreck.examine()
    report.findings += [dataclasses.asdict(finding) for finding in wreck.findings]
    report.notes += wreck.notes
    if wreck.findings:
        report.state = "damaged"
    users = Reach(wreck)
    report.blocks, report.used_bytes = len(users.users), sum(wreck.blocks[payload - BLOCK_HEAD_BYTES] for payload in users.users)
    if with_leaks:
        report.leaks = users.leaks()
    return wreck


def mend(fd, heap_only):
    """Write the words that `Wreck` repaired, and mark the section as not closed, so that the next opener recovers it."""
    wreck = Wreck(fd)
    if heap_only:
        wreck.examine_heap()
    else:
        wreck.examine()
    if wreck.file_bytes < wreck.words.get(HEADER["top"].offset, 0):
        os.ftruncate(fd, wreck.size)
    for offset, value in wreck.words.items():
        write_all(fd, struct.pack("<Q", value), offset)
    HEADER["clean"].write_file(fd, 0)
    sync_file(fd)


def repair(path, report):
    """Copy the file aside, repair it, open and close the section."""
    with opened(path, True) as fd:
        if image.is_in_use(fd):
            raise Refused(IN_USE)
        report.copy = copy_aside(fd, path)
        was_clean = Wreck(fd).was_clean
    for heap_only in (False,) if was_clean else (True, False):
        with opened(path, True) as fd:
            if image.is_in_use(fd):
                raise Refused(f"cannot repair: a process has attached; repair again when it has left (original: {report.copy})")
            mend(fd, heap_only)
        with shmem.SharedMemory(path, trust_owner=True) as section:
            if not heap_only:
                section.check_heap()
    report.state = "repaired"


def examine(path, with_repair, with_leaks):
    """Return the `Report` on a file."""
    path = os.path.abspath(path)
    report = Report(path)
    try:
        with opened(path, False) as fd:
            in_use = image.is_in_use(fd)
            if not in_use:
                check_file(fd, report, with_leaks)
        if in_use:
            check_in_use(path, report, with_leaks)
        if with_repair and in_use:
            raise Refused(IN_USE)
        if with_repair and report.findings:
            repair(path, report)
    except NotASection as error:
        report.state = "not a section"
        report.notes.append(str(error))
    except (Refused, shmem.ShmemError) as error:
        report.state = "damaged" if report.findings or isinstance(error, shmem.HeapCorruption) else "refused"
        report.notes.append(str(error))
    except OSError as error:
        report.state = "unreadable" if not report.findings else "damaged"
        report.notes.append(f"{error.strerror}: {error.filename or path}")
    return report


# -- output ---------------------------------------------------------------------------------------------------


def print_report(report, file):
    """Print the report as text."""
    sizes = "" if report.blocks is None else f", {report.blocks} blocks, {report.used_bytes:,} bytes in use"
    print(f"{report.file}: {report.state}{sizes}", file=file)
    for note in report.notes:
        print(f"  {note}", file=file)
    for finding in sorted(report.findings, key=lambda finding: finding["offset"] or 0):
        print(f"  {finding['offset'] or 0:>#12x}  {finding['problem']}", file=file)
        print(f"  {'':12}  {'done' if report.copy else 'repair'}: {finding['remedy']}", file=file)
        if finding["lost"]:
            print(f"  {'':12}  lost: {finding['lost']}", file=file)
    if report.copy:
        print(f"  original: {report.copy}", file=file)
    if report.leaks is not None:
        print_leaks(report.leaks, file)


def print_leaks(leaks, file):
    """Print the leaks as a table."""
    certain = [leak for leak in leaks if leak.perhaps is None]
    print(f"  leaks: {len(certain)} blocks, {sum(leak.n_bytes for leak in certain):,} bytes that are unreachable", file=file)
    if len(certain) < len(leaks):
        print(f"  and {len(leaks) - len(certain)} that a word in a plain block, an array or a queue may refer to", file=file)
    for leak in leaks:
        perhaps = f"  perhaps reached from {leak.perhaps:#x}" if leak.perhaps is not None else ""
        print(f"  {leak.offset:>#12x}  {leak.n_bytes:>14,}  {leak.type}{perhaps}", file=file)


def command_arguments(parser):
    """Declare the arguments of `python -m shmem check`."""
    parser.add_argument("file", metavar="FILE", help=f"the section's file, which for an anonymous section is {section_path('NAME')}")
    parser.add_argument("--repair", action="store_true", help="copy the file aside, then repair it")
    parser.add_argument("--leaks", action="store_true", help="list unreachable blocks")
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")


def command(options):
    """Run `python -m shmem check` and return the exit status."""
    report = examine(options.file, options.repair, options.leaks)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=1))
    else:
        print_report(report, sys.stdout)
    return report.status
