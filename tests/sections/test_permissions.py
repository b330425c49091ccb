"""Permission to open a section, and untrusted contents."""

import ast
import errno
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from workers import wait_for

import shmem
from shmem._base.layout import LAYOUT
from shmem._cli import check

STRANGER = 12345
WORD_BYTES = 8
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


OPEN = """
say("go")
try:
    with shmem.SharedMemory(args[0], max_size=1 << 20) as section:
        say(section.uuid.hex())
except shmem.ShmemError as error:
    say(type(error).__name__, error)
"""


def give_away(path):
    os.lchown(path, STRANGER, -1)


def content(path):
    return Path(path).read_bytes()


# -- permissions ----------------------------------------------------------------------------------------------


def test_files_are_private_by_default(place, tmp_path):
    """Files have mode 0600 for any umask, snapshots included."""
    before = os.umask(0)
    try:
        with shmem.SharedMemory(**place, max_size=1 << 20) as section:
            assert stat.S_IMODE(os.stat(section.path).st_mode) == 0o600
            section.snapshot(tmp_path / "copy")
            assert stat.S_IMODE(os.stat(tmp_path / "copy").st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o777])
@pytest.mark.parametrize("permissions", [0o600, 0o660, 0o666])
def test_permissions_do_not_depend_on_the_umask(place, mask, permissions):
    name = f"test-{os.getpid()}-umask"
    before = os.umask(mask)
    try:
        with shmem.SharedMemory(**place, max_size=1 << 20, permissions=permissions) as section:
            assert stat.S_IMODE(os.stat(section.path).st_mode) == permissions
        for cls in (shmem.Semaphore, shmem.Event):
            one = cls(name, permissions=permissions)
            (path,) = Path("/dev/shm").glob(f"*.{name}")
            assert stat.S_IMODE(path.stat().st_mode) == permissions
            one.unlink()
    finally:
        os.umask(before)


def test_permissions_of_a_file_that_exists(section_file):
    """An empty file becomes a section with the permissions that were asked for; those of a section stay."""
    Path(section_file).touch(0o644)
    for permissions in (0o640, 0o666):
        with shmem.SharedMemory(section_file, max_size=1 << 20, permissions=permissions):
            assert stat.S_IMODE(os.stat(section_file).st_mode) == 0o640


@needs_root
@pytest.mark.parametrize("mode", ["read_write", "read_only"])
def test_missing_permission_is_not_a_read_only_section(place, child, mode):
    code = """
    shmem.SharedMemory(max_size=1 << 20).close()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        shmem.SharedMemory(**eval(args[0]), mode=args[1], trust_owner=True)
    except PermissionError as error:
        say(type(error).__name__, error.errno, error)
    """
    with shmem.SharedMemory(**place, max_size=1 << 20, permissions=0o644) as section:
        folder = os.path.dirname(section.path)
        while stat.S_IMODE(os.stat(folder).st_mode) & 0o005 != 0o005:
            os.chmod(folder, 0o755)
            folder = os.path.dirname(folder)
        output = child(code, place, mode).end()
        assert output.startswith(f"AccessDenied {errno.EACCES} cannot open {section.path!r}: Permission denied; ")


@needs_root
@pytest.mark.parametrize("max_size", [None, 1 << 20])
def test_planted_file_is_rejected(place, child, max_size):
    """Another user's file in a folder that all users may write to is rejected and not modified."""
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        path = section.path
        whole = content(path)
    for planted in (whole, b"", b"SHMEMNEW"):
        Path(path).write_bytes(planted)
        os.chmod(path, 0o666)
        give_away(path)
        with pytest.raises(shmem.UntrustedOwner, match=f"user {STRANGER}"):
            shmem.SharedMemory(**place, max_size=max_size)
        assert content(path) == planted
        os.unlink(path)


@needs_root
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_planted_file_with_protected_regular(section_file, child):
    """With fs.protected_regular the system rejects O_CREAT on a planted file (here strace does).  The error must still name the owner."""
    Path(section_file).write_bytes(b"")
    give_away(section_file)
    options = ("-f", "-o", "/dev/null", "-P", section_file, "-e", "inject=openat,open:error=EACCES:when=1")
    output, err = child(OPEN, section_file, before=("strace", *options)).process.communicate(timeout=60)
    assert output.splitlines()[1].startswith("UntrustedOwner"), output + err
    os.unlink(section_file)
    os.chmod(os.path.dirname(section_file), 0o500)
    output, err = child(OPEN, section_file, before=("strace", *options)).process.communicate(timeout=60)
    assert output.splitlines()[1].startswith("AccessDenied"), output + err  # no file, and it cannot be created
    assert not os.path.exists(section_file)


@needs_root
def test_symbolic_links(tmp_path):
    """The user's own links are followed, links of other users anywhere in a chain are not, and no file is created through a link."""
    shmem.SharedMemory(tmp_path / "s", max_size=1 << 20).close()
    (tmp_path / "folder").mkdir()
    os.symlink("../s", tmp_path / "folder" / "mine")
    os.symlink(tmp_path / "folder" / "mine", tmp_path / "first")
    with shmem.SharedMemory(tmp_path / "first") as section:
        section["a"] = [1]
        with shmem.SharedMemory(tmp_path / "s") as same:
            assert same.uuid == section.uuid
    give_away(tmp_path / "folder" / "mine")
    for name in ("folder/mine", "first"):
        with pytest.raises(shmem.UntrustedOwner, match="symbolic link"):
            shmem.SharedMemory(tmp_path / name, max_size=1 << 20)
    os.symlink(tmp_path / "new", tmp_path / "trap")
    give_away(tmp_path / "trap")
    with pytest.raises(shmem.UntrustedOwner):
        shmem.SharedMemory(tmp_path / "trap", max_size=1 << 20)
    assert not (tmp_path / "new").exists()
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        shmem.SharedMemory(tmp_path / "loop", max_size=1 << 20)
    os.symlink("made", tmp_path / "own")
    shmem.SharedMemory(tmp_path / "own", max_size=1 << 20).close()
    assert (tmp_path / "made").stat().st_size > 0


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_not_a_regular_file_is_rejected(tmp_path, kind):
    """Opening fails immediately, without waiting for the other end of a pipe."""
    path = tmp_path / "s"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    with pytest.raises((shmem.NotASection, shmem.OperatingSystemError, shmem.UntrustedOwner)):
        shmem.SharedMemory(path, max_size=1 << 20)


@needs_root
@pytest.mark.parametrize("swapped", ["another user's", "link of another user", "mine"])
def test_file_swapped_between_check_and_open(tmp_path, child, preloadable, swapped):
    """Before an opener that has checked the file locks it, the path is changed to another file; the opener must check again."""
    path, other = tmp_path / "s", tmp_path / "other"
    shmem.SharedMemory(path, max_size=1 << 20).close()
    with shmem.SharedMemory(other, max_size=1 << 20) as section:
        uuid = section.uuid.hex()
    before = content(path)
    held = tmp_path / "held"
    opener = child(OPEN, path, before=("env", f"LD_PRELOAD={preloadable('holding')}", f"HOLD_OPENING={held}"))
    assert opener.hear() == "go"
    wait_for(held.exists)
    os.rename(path, tmp_path / "moved")
    if swapped == "mine":
        os.rename(other, path)
    elif swapped == "another user's":
        os.rename(other, path)
        give_away(path)
    else:
        os.symlink(other, path)
        give_away(path)
    held.unlink()
    output = opener.hear()
    opener.end()
    assert output == uuid if swapped == "mine" else output.startswith("UntrustedOwner")
    assert content(tmp_path / "moved") == before


# -- untrusted contents -----------------------------------------------------------------------------------------

FORBIDDEN = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
LOADS_WHAT_USERS_SEND = "references.py"  # `shmem.loads`, which is nothing else than `pickle.loads`, and the containers in such data


def test_no_unpickling_or_eval_of_contents():
    """No module of the package, including the Cython ones, imports a module that would execute the data it reads."""
    folder = Path(shmem.__file__).parent
    sources = [path for path in folder.rglob("*") if path.suffix in (".py", ".pyx", ".pxd")]
    assert len([path for path in sources if path.suffix == ".py"]) > 10
    for path in sources:
        text = path.read_text(encoding="utf-8")
        imported = set(re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", text, re.MULTILINE))
        assert path.name == LOADS_WHAT_USERS_SEND or not {name.partition(".")[0] for name in imported} & FORBIDDEN, path
        assert text.count("pickle.load") <= (path.name == LOADS_WHAT_USERS_SEND) * 3, path  # its docstring names it, too
        assert not re.search(r"\b(exec|np\.load|numpy\.load|loads?_pickle|allow_pickle)\(", text), path
        evaluates = [line for line in text.splitlines() if re.search(r"(?<![\w.])eval\(", line)]
        assert len(evaluates) <= (path.name == "annotations.py"), path  # annotations of the program's own classes
        if path.suffix == ".py":
            ast.parse(text)


TEXTS = [
    b"__import__('os').mkdir('%s')",
    b"'|O'",
    b"[('a', '|O')]",
    b"[('a', '<f8', " + b"9" * 4000 + b")]",
    b"(" * 20_000,
    b"-" * 40_000 + b"1",
    b"[" * 200 + b"]" * 200,
    b"{'a': 1}",
    b"[(1, 2, 3)]",
    b"[()]",
    b"'V99999999999'",
    b"()",
    b"\xff\xfe",
    b"'<f8",
    b"None",
    b"[('a', '<f8'), ('a', '<f8')]",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_malicious_dtype_is_not_executed(section_file, tmp_path, text):
    trap = tmp_path / "trap"
    text = text % os.fsencode(trap) if b"%" in text else text
    fields = [(f"field{i}", "f8") for i in range(2500)]  # a header with enough room for the malicious text
    with shmem.SharedMemory(section_file, max_size=1 << 22) as section:
        section["a"] = np.zeros(1, fields)
        section.root = section["a"]
    raw = bytearray(content(section_file))
    payload, array = LAYOUT["header_t"]["root_off"].read(raw), LAYOUT["array_t"]
    head = array.read(raw, payload)
    assert head["dtype_bytes"] >= len(text)
    array["dtype_bytes"].write(raw, len(text), payload)
    at = payload + array.size + WORD_BYTES * (2 * head["n_dims"] + head["n_pin_words"])  # behind the shape, strides and pins
    raw[at : at + len(text)] = text
    Path(section_file).write_bytes(raw)
    with shmem.SharedMemory(section_file) as section:
        for read in (lambda: section["a"], lambda: section.root):
            with pytest.raises(shmem.HeapCorruption, match="dtype"):
                read()
    report = check.examine(section_file, False, True)
    assert report.state == "damaged"
    assert not trap.exists()


# made by a call, with long names: a class body cannot add to its annotations since CPython 3.14
THING_FIELDS = {"first": shmem.Ref, "second": shmem.Array[shmem.float64, 3]}
THING_FIELDS |= {f"a_long_name_for_a_field_{i}": shmem.int64 for i in range(20)}
Thing = type(shmem.Struct)("Thing", (shmem.Struct,), {"__module__": __name__, "__annotations__": THING_FIELDS}, type_name="who.Thing")


DESCRIPTIONS = [
    b'{"fields":[["first","ref","__import__(\'os\').mkdir(\'%s\')"],["second","<f8",[3]]],"bases":[]}',
    b'{"fields":[["__class__","ref","*"]],"bases":["os.system"]}',
    b'{"fields":[["first","|O"]],"bases":[]}',
    b'{"fields":[["first","|O",[3]]],"bases":[]}',
    b'{"fields":[["first","<f8",[99999999999]]],"bases":[]}',
    b'{"fields":[["first","<f8",[-1]]],"bases":[]}',
    b'{"fields":[["first","nothing"]],"bases":[]}',
    b'{"fields":3}',
    b"[" * 90,
    b"\xff",
    b"null",
]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=range(len(DESCRIPTIONS)))
def test_malicious_type_is_not_executed(section_file, tmp_path, child, description):
    """A malicious type description or name results in a specific error or in an object; none of it is executed."""
    trap = tmp_path / "t"
    description = description % os.fsencode(trap) if b"%" in description else description
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        section.root = section.new(Thing)
    raw = bytearray(content(section_file))
    at = raw.index(b'{"fields":[["first"')
    name_at = raw.index(b"who.Thing")
    raw[name_at : name_at + len(b"os.system")] = b"os.system"
    entry = LAYOUT["name_entry_t"]
    assert len(description) <= entry["data_bytes"].read(raw, name_at - entry.size)
    entry["data_bytes"].write(raw, len(description), name_at - entry.size)
    raw[at : at + len(description)] = description
    Path(section_file).write_bytes(raw)
    code = """
    os.chdir(args[1])
    with shmem.SharedMemory(args[0]) as section:
        try:
            root = section.root; say(type(root).__mro__[1].__name__, repr(root)[:20])
        except shmem.ShmemError as error:
            say(type(error).__name__)
        except Exception as error:
            say("unnamed", repr(error))
    """
    other = child(code, section_file, tmp_path)
    output = other.hear()
    other.end()
    assert output.split()[0] in ("Struct", "LayoutMismatch", "HeapCorruption"), output
    check.examine(section_file, False, True)
    assert not trap.exists()


def test_malicious_label_is_not_executed(section_file):
    shmem.SharedMemory(section_file, "label", max_size=1 << 20).close()
    label = LAYOUT["header_t"]["label"]
    with open(section_file, "r+b") as file:
        label.write_file(file.fileno(), b"\xff" * label.size)
    with pytest.raises(shmem.NotASection, match="shared name"):
        shmem.SharedMemory(section_file, "label")
    with shmem.SharedMemory(section_file) as section:
        assert isinstance(section.label, str)
