"""`python -m shmem check` of sections with groups of names: what is in them survives a repair."""

import json
import os
import struct

import numpy as np
import pytest

import shmem
from shmem.__main__ import main
from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT, SLOT_REMOVED
from shmem._objects import directory

HEADER, TABLE, SLOT, ENTRY, GROUP = (LAYOUT[name] for name in ("header_t", "name_table_t", "name_slot_t", "name_entry_t", "group_t"))
NAMES = {"top": 1, "run1/x": 2, "run1/y": 3, "run1/deep/z": 4, "run2/x": 5}


def check(capsys, path, *options):
    """Run the command; return its exit status and report."""
    status = main(["check", str(path), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


class File:
    """The file of a closed section."""

    def __init__(self, path):
        self.path = path

    def word(self, offset):
        with open(self.path, "rb") as file:
            return struct.unpack("<Q", os.pread(file.fileno(), 8, offset))[0]

    def put(self, offset, *words):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(f"<{len(words)}Q", *words))

    def slot(self, table, name):
        """Return the offsets of a name's slot in a table, and of its entry."""
        for at in range(table + TABLE.size, table + TABLE.size + SLOT.size * self.word(TABLE["capacity"].at(table)), SLOT.size):
            entry = self.word(SLOT["entry_off"].at(at))
            with open(self.path, "rb") as file:
                if entry > SLOT_REMOVED and os.pread(file.fileno(), len(name), entry + ENTRY.size) == name:
                    return at, entry
        raise AssertionError(name)

    def table(self, path=""):
        """Return the offset of the table of a group."""
        found = self.word(HEADER["directory_off"].offset)
        for part in path.split("/") if path else ():
            found = self.word(GROUP["table_off"].at(self.group(part, found)))
        return found

    def group(self, name, table):
        return self.word(ENTRY["value"].at(self.slot(table, name.encode())[1]))


@pytest.fixture
def file(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        for name, number in NAMES.items():
            section[name] = np.full(40, number)
    return File(section_file)


def assert_repaired(capsys, file):
    """Repair the file, check that it is intact then, and return the report of the repair."""
    status, found = check(capsys, file.path)
    assert (status, found["state"]) == (4, "damaged")
    status, report = check(capsys, file.path, "--repair")
    assert (status, report["state"]) == (1, "repaired"), report
    status, after = check(capsys, file.path, "--leaks")
    assert (status, after["findings"], after.get("leaks", [])) == (0, [], [])
    return report


def assert_repaired_with_leaks(capsys, file):
    """Repair the file, after which there may be blocks without a name."""
    status, report = check(capsys, file.path, "--repair")
    assert (status, report["state"]) == (1, "repaired"), report
    return report


def found_names(path, n_left=0):
    """Return the names of all arrays with the numbers in them; check that all but `n_left` blocks can be deleted then."""
    with shmem.SharedMemory(path) as section:
        section.check_heap()
        found = {}
        section.visititems(lambda name, value: found.update({name: int(value[0])} if isinstance(value, np.ndarray) else {}))
        section.clear()
        assert section.check_heap().blocks == n_left
    return found


def test_undamaged(file, capsys):
    status, report = check(capsys, file.path, "--leaks")
    assert (status, report["state"], report["findings"], report["leaks"]) == (0, "intact", [], [])


@pytest.mark.parametrize("damage", ["entry", "hash", "zero", "both"])
def test_slot_of_a_group_overwritten(file, capsys, damage):
    """The name is found again, and in its group."""
    at, _ = file.slot(file.table("run1"), b"x")
    if damage in ("entry", "both"):
        file.put(SLOT["entry_off"].at(at), (1 << 64) - 1)
    if damage in ("hash", "both"):
        file.put(SLOT["hash"].at(at), (1 << 64) - 1)
    if damage == "zero":
        file.put(at, 0, 0)
    assert_repaired(capsys, file)
    assert found_names(file.path) == NAMES


@pytest.mark.parametrize("what", ["group", "table", "entry of the group", "entry in the group"])
def test_front_tag_overwritten(file, capsys, what):
    at = {
        "group": file.group("run1", file.table()),
        "table": file.table("run1"),
        "entry of the group": file.slot(file.table(), b"run1")[1],
        "entry in the group": file.slot(file.table("run1"), b"y")[1],
    }[what]
    file.put(at - BLOCK_HEAD_BYTES, (1 << 64) - 1)
    assert_repaired(capsys, file)
    assert found_names(file.path) == NAMES


@pytest.mark.parametrize("field", ["table_off", "next_doomed_off", "cursor"])
def test_field_of_a_group_overwritten(file, capsys, field):
    file.put(GROUP[field].at(file.group("run1", file.table())), 0xFFFF)
    assert_repaired(capsys, file)
    assert found_names(file.path) == NAMES


def test_group_without_a_name(file, capsys):
    """What was in it is moved into the directory; a name that is taken there stays behind, and is reported."""
    _, entry = file.slot(file.table(), b"run1")
    file.put(ENTRY["serial"].at(entry), 1)
    report = assert_repaired_with_leaks(capsys, file)
    assert any("moved to the directory" in finding["remedy"] for finding in report["findings"])
    assert found_names(file.path) == {"top": 1, "x": 2, "y": 3, "deep/z": 4, "run2/x": 5}


def test_group_without_a_name_whose_names_are_taken(file, capsys):
    with shmem.SharedMemory(file.path) as section:
        section["x"] = np.full(40, 9)
    _, entry = file.slot(file.table(), b"run1")
    file.put(ENTRY["serial"].at(entry), 1)
    report = assert_repaired_with_leaks(capsys, file)
    assert "the name 'x' is in no table" in " ".join(report["notes"])


def test_second_name_of_a_group(file, capsys):
    _, entry = file.slot(file.table("run2"), b"x")
    file.put(entry, *(file.word(file.slot(file.table(), b"run1")[1] + at) for at in (0, 8)))
    report = assert_repaired_with_leaks(capsys, file)
    assert any("another name" in finding["problem"] for finding in report["findings"])
    assert set(found_names(file.path, 1).values()) == {1, 2, 3, 4}  # the array that had the name has none now


def test_group_in_itself(file, capsys):
    """Nothing leads from the directory to a group whose name is in the group itself."""
    _, inside = file.slot(file.table("run1"), b"deep")
    _, outside = file.slot(file.table(), b"run1")
    file.put(inside, file.word(outside), file.word(outside + 8))
    file.put(outside + 8, 1)
    assert_repaired_with_leaks(capsys, file)
    assert found_names(file.path) == {"top": 1, "x": 2, "y": 3, "z": 4, "run2/x": 5}


def test_deleted_group_is_not_damage(file, capsys):
    """A group that was deleted and is yet to be emptied is emptied by the next opener."""
    with shmem.SharedMemory(file.path) as section:
        n_blocks = section.stats().blocks
        directory.remove_name(section, "run1")
        assert section.stats().blocks == n_blocks
    status, report = check(capsys, file.path, "--leaks")
    assert (status, report["state"], report["findings"], report["leaks"]) == (0, "intact", [], [])
    with shmem.SharedMemory(file.path) as section:
        assert section.stats().blocks == n_blocks - 3
    assert found_names(file.path) == {"top": 1, "run2/x": 5}
