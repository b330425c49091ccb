"""`python -m shmem check` of sections with attributes: those of what survives a repair survive it."""

import json
import os
import struct

import numpy as np
import pytest

import shmem
from shmem.__main__ import main
from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT, SLOT_REMOVED

HEADER, TABLE, SLOT, ENTRY, BLOCK = (LAYOUT[name] for name in ("header_t", "name_table_t", "name_slot_t", "name_entry_t", "block_t"))
ATTRIBUTES = {None: {"title": "é"}, "array": {"unit": "m"}, "block": {"n": 1}, "run": {"number": 7}, "run/x": {"scale": 2.5}}


def check(capsys, path, *options):
    """Run the command; return its exit status and report."""
    status = main(["check", str(path), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


class File:
    """The file of a closed section."""

    def __init__(self, path):
        self.path = path

    def read(self, offset, n_bytes):
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), n_bytes, offset)

    def word(self, offset):
        return struct.unpack("<Q", self.read(offset, 8))[0]

    def put(self, offset, *words):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(f"<{len(words)}Q", *words))

    def slots(self):
        """Return (offset, entry) of each slot that shows attributes, in the order of the entries' blocks."""
        table = self.word(HEADER["attributes_off"].offset)
        capacity = self.word(TABLE["capacity"].at(table))
        slots = [(at, self.word(SLOT["entry_off"].at(at))) for at in range(table + TABLE.size, table + TABLE.size + SLOT.size * capacity,
                                                                          SLOT.size)]  # fmt: skip
        return sorted([slot for slot in slots if slot[1] > SLOT_REMOVED], key=lambda slot: slot[1])

    def slot_of(self, offset):
        """Return the slot of the attributes of the object at an offset, 0 for the section."""
        return next(slot for slot in self.slots() if self.word(ENTRY["value"].at(slot[1])) == offset)


@pytest.fixture
def file(section_file):
    """Return the file of a section, with the offset of each object in `places`."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["array"], shm["block"], shm["run/x"] = np.arange(300), b"text", [1]
        for name, attributes in ATTRIBUTES.items():
            owner = shm if name is None else shm[name] if name == "run" else shm.entry(name)
            owner.attrs.update(attributes)
        shm.free(shm.allocate(100))
        places = {name: shmem.info(shm[name]).offset for name in ("array", "run/x")} | {"block": shm["block"].offset, None: 0}
    file = File(section_file)
    file.places = places
    return file


def left(path):
    """Return the attributes in the section, of all that has some."""
    with shmem.SharedMemory(path) as shm:
        shm.check_heap()
        owners = {None: shm, "run": shm.get("run")} | {name: shm.entry(name) for name in ("array", "block", "run/x") if name in shm}
        return {name: dict(owner.attrs) for name, owner in owners.items() if owner is not None and len(owner.attrs)}


def test_intact(file, capsys):
    status, report = check(capsys, file.path)
    assert (status, report["state"]) == (0, "intact")
    assert check(capsys, file.path, "--repair")[0] == 0
    assert left(file.path) == ATTRIBUTES


def test_killed(file, capsys, tmp_path):
    """A copy of a section in use is as after a kill."""
    with shmem.SharedMemory(file.path) as shm:
        shm.entry("array").attrs["more"] = 1
        with open(file.path, "rb") as source:
            copy = tmp_path / "copy"
            copy.write_bytes(source.read())
    assert check(capsys, copy)[1]["state"] == "intact"
    assert left(copy) == ATTRIBUTES | {"array": {"unit": "m", "more": 1}}


@pytest.mark.parametrize("damage", ["slot", "hash", "table", "count", "entry of the section"])
def test_table_is_rebuilt(file, capsys, damage):
    at, _ = file.slot_of(file.places["array"])
    table = file.word(HEADER["attributes_off"].offset)
    if damage == "slot":
        file.put(SLOT["entry_off"].at(at), 1 << 40)
    elif damage == "hash":
        file.put(SLOT["hash"].at(at), 5)
    elif damage == "table":
        file.put(table - BLOCK_HEAD_BYTES, 0x1234567)  # its front tag
    elif damage == "count":
        file.put(TABLE["live"].at(table), 77)
    else:
        file.put(file.slot_of(0)[1] - BLOCK_HEAD_BYTES, 0)
    status, report = check(capsys, file.path, "--repair")
    assert report["state"] == "repaired", report
    assert left(file.path) == ATTRIBUTES
    assert status == 1


def test_attributes_of_a_block_that_is_gone(file, capsys):
    """They are reported, with what they were, and removed; all others stay."""
    _, entry = file.slot_of(file.places["array"])
    _, serial = struct.unpack("<QQ", file.read(entry + ENTRY.size, 16))
    file.put(entry + ENTRY.size + 8, serial + 1)
    assert check(capsys, file.path)[1]["state"] == "damaged"
    _, report = check(capsys, file.path, "--repair")
    assert any("these attributes belong to no block" in str(finding) and "unit" in str(finding) for finding in report["findings"])
    assert left(file.path) == {name: found for name, found in ATTRIBUTES.items() if name != "array"}


@pytest.mark.parametrize("name", ["array", "block", "run/x"])
def test_front_tag_of_a_block_with_attributes(file, capsys, name):
    """The block gets back the serial number that its name has, so it keeps its attributes."""
    file.put(file.places[name] - BLOCK_HEAD_BYTES, 0, 0)
    assert check(capsys, file.path, "--repair")[1]["state"] == "repaired"
    assert left(file.path) == ATTRIBUTES


def test_anchor_is_lost(file, capsys):
    file.put(HEADER["attributes_off"].offset, 48)
    check(capsys, file.path, "--repair")
    assert left(file.path) == ATTRIBUTES
