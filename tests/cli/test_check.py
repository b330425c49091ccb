"""`python -m shmem check`: findings in damaged files, repairs, and unreachable blocks."""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys

import damaging
import numpy as np
import pytest

import shmem
from shmem.__main__ import main
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_REAR_BYTES,
    END_OF_ADDRESSES,
    INDEX_BYTES,
    INTENT_MOVE,
    INTENT_RESIZE,
    INTENT_SWAP_SLOT,
    INTENT_SWAP_TWO,
    LAYOUT,
    MAX_PARTICIPANTS,
    MAX_THREADS,
    OWNER_GENERATION_SHIFT,
    PAGE_BYTES,
    SLOT_REMOVED,
    TAG_SERIAL_MASK,
    TAG_SERIAL_SHIFT,
    heap_start,
    read_tag,
)

HEADER, BLOCK, PARTICIPANT, INTENT = (LAYOUT[name] for name in ("header_t", "block_t", "participant_t", "intent_t"))
TABLE, SLOT, ENTRY, RECORD = (LAYOUT[name] for name in ("name_table_t", "name_slot_t", "name_entry_t", "pin_record_t"))
N_PARTICIPANTS = 7
START = heap_start(N_PARTICIPANTS)
PARTICIPANTS = PAGE_BYTES  # offset of their table
INTENTS = PAGE_BYTES + (START - PAGE_BYTES - INDEX_BYTES) // 2
DATA = bytes(range(1, 201))
TOO_LARGE = END_OF_ADDRESSES.to_bytes(8, "little")


class Node(shmem.Struct, type_name="check.Node"):
    small: shmem.int8
    next: shmem.Ref["check.Node"]
    name: shmem.Bytes[5]
    other: shmem.Ref


def check(capsys, path, *options):
    """Run the command; return its exit status and report."""
    status = main(["check", str(path), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def make(path, **options):
    """Make a section with one object of every kind; return the offsets of the payloads."""
    with shmem.SharedMemory(path, max_size=1 << 20, max_participants=N_PARTICIPANTS, **options) as section:
        section["a"] = np.arange(100)
        section["b"] = DATA
        block = section.allocate(300)
        memoryview(block)[:] = DATA + DATA[:100]
        section["c"] = np.arange(12.0).reshape(3, 4)
        section.root = section.new(Node, small=1, name=b"root", next=section.new(Node, small=2, other=block))
        hole = section.allocate(3000)
        section["last"] = DATA
        where = {"hole": hole.offset, "block": block.offset, "root": section.root.offset, "next": section.root.next.offset}
        section.free(hole)
    del block, hole
    return where | {name: word(path, slot_of(path, name.encode())[1]) for name in ("a", "b", "c", "last")}


@pytest.fixture
def made(section_file):
    return section_file, make(section_file)


def poke(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def word(path, offset):
    with open(path, "rb") as file:
        file.seek(offset)
        return struct.unpack("<Q", file.read(8))[0]


def field(path, name):
    """Return a field of the header."""
    with open(path, "rb") as file:
        return HEADER[name].read_file(file.fileno())


def set_field(path, name, value):
    """Change a field of the header."""
    with open(path, "r+b") as file:
        HEADER[name].write_file(file.fileno(), value)


def block_of(path, payload):
    """Return (begin, end) of a block."""
    begin = payload - BLOCK_HEAD_BYTES
    return begin, begin + read_tag(word(path, begin)).size


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest(), os.stat(path).st_mtime_ns


def repaired(capsys, path):
    """Check, which must not change the file; then repair it, verify the copy, and return the report of the repair."""
    before = digest(path)
    status, found = check(capsys, path)
    assert (status, found["state"]) == (4, "damaged")
    assert found["findings"]
    assert digest(path) == before
    status, report = check(capsys, path, "--repair")
    assert (status, report["state"]) == (1, "repaired"), report
    assert report["findings"] == found["findings"]
    assert digest(report["copy"])[0] == before[0]
    status, after = check(capsys, path)
    assert (status, after["state"], after["findings"]) == (0, "intact", [])
    return report


def assert_intact(path, *lost):
    """Verify that everything except the lost objects is still present."""
    with shmem.SharedMemory(path) as section:
        section.check_heap()
        expected = {"a": list(range(100)), "b": DATA, "c": np.arange(12.0).reshape(3, 4).tolist(), "last": DATA}
        found = {}
        for name in section:
            value = section[name]
            found[name] = bytes(value) if isinstance(value, shmem.Block) else value.tolist()
        assert found == {name: value for name, value in expected.items() if name not in lost}
        if "root" not in lost:
            assert (section.root.name, section.root.next.small) == (b"root", 2)
            assert bytes(section.root.next.other)[:300] == DATA + DATA[:100]
        section.free(section.allocate(1000))


def test_undamaged_file(made, capsys):
    path, _ = made
    before = digest(path)
    status, report = check(capsys, path)
    assert (status, report["state"], report["findings"], report["notes"], report["leaks"]) == (0, "intact", [], [], None)
    assert report["blocks"] == 7
    assert check(capsys, path, "--repair")[0] == 0  # nothing to repair, so no copy is made
    assert digest(path) == before
    assert os.listdir(os.path.dirname(path)) == ["section.shm"]


@pytest.mark.parametrize("content", [b"", b"text", bytes(8192), b"SHMEM1\x1a\n" + bytes(8192), b"SHMEMNEW" + bytes(8192)])
def test_other_files_are_rejected(tmp_path, capsys, content):
    (tmp_path / "f").write_bytes(content)
    for options in ((), ("--repair",), ("--leaks",)):
        status, report = check(capsys, tmp_path / "f", *options)
        assert (status, report["state"]) == (8, "not a section")
    assert (tmp_path / "f").read_bytes() == content
    assert check(capsys, tmp_path)[0] == 8
    assert check(capsys, tmp_path / "missing")[0] == 8
    with pytest.raises(SystemExit) as caught:
        main(["check", str(tmp_path / "f"), "--mend"])
    assert caught.value.code == 2
    capsys.readouterr()
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["a", "b", "c", "block", "root", "next", "last"])
def test_front_tag_overwritten(made, capsys, name):
    """The rear tag holds the block's size; a name or its header determines its type."""
    path, where = made
    offset, _ = block_of(path, where[name])
    poke(path, offset, b"\xff" * BLOCK_HEAD_BYTES)
    report = repaired(capsys, path)
    assert [finding["offset"] for finding in report["findings"]] == [offset]  # the blocks and holes behind it were found
    with shmem.SharedMemory(path) as section:
        assert bytes(section.block(where["b"]))[: len(DATA)] == DATA
        if name in ("a", "c"):
            assert section[name].shape == {"a": (100,), "c": (3, 4)}[name]
        elif name in ("b", "last"):
            assert bytes(section[name])[: len(DATA)] == DATA
        elif name == "block":
            assert bytes(section.root.next.other)[:300] == DATA + DATA[:100]
        else:
            section.block(where[name])  # the type is lost, but the block is not
        section.free(section.allocate(1000))


def test_front_tag_of_a_hole_overwritten(made, capsys):
    """The lists of free blocks identify it as a hole."""
    path, where = made
    blocks = check(capsys, path)[1]["blocks"]
    poke(path, where["hole"] - BLOCK_HEAD_BYTES, b"\xff" * BLOCK_HEAD_BYTES)
    assert repaired(capsys, path)["blocks"] == blocks
    with shmem.SharedMemory(path) as section:
        assert section.stats().largest_hole >= 3000
        with pytest.raises(shmem.InvalidBlock):
            section.block(where["hole"])
    assert_intact(path)


def test_write_past_the_end(made, capsys):
    """A write past a block's end damages its rear tag, the next block's front tag, and the first bytes there."""
    path, where = made
    begin, end = block_of(path, where["block"])
    poke(path, end - BLOCK_REAR_BYTES, b"\xee" * 40)
    report = repaired(capsys, path)
    assert {finding["offset"] for finding in report["findings"]} >= {begin, end}
    with shmem.SharedMemory(path) as section:
        assert section["a"].tolist() == list(range(100))
        assert bytes(section.root.next.other)[:300] == DATA + DATA[:100]
        section.check_heap()


def test_both_tags_of_neighbours_overwritten(made, capsys):
    """The border between the two blocks is lost.  They become one plain block, which is not allocated again until it is freed."""
    path, where = made
    (first, second), (begin, end) = block_of(path, where["next"]), block_of(path, where["root"])
    assert begin == second
    for at, to in (
        (first, first + BLOCK_HEAD_BYTES),
        (second - BLOCK_REAR_BYTES, second + BLOCK_HEAD_BYTES),
        (end - BLOCK_REAR_BYTES, end),
    ):
        poke(path, at, b"\xaa" * (to - at))
    with open(path, "rb") as file:
        content = file.read()[first + BLOCK_HEAD_BYTES : end - BLOCK_REAR_BYTES]
    report = repaired(capsys, path)
    (finding,) = [finding for finding in report["findings"] if finding["offset"] == first]
    assert f"which blocks were in these {end - first} bytes" in finding["lost"]
    with shmem.SharedMemory(path) as section:
        assert section["a"].tolist() == list(range(100))
        assert section.root is None
        block = section.block(first + BLOCK_HEAD_BYTES)
        assert bytes(block) == content
        section.free(block)
        section.check_heap()


@pytest.mark.parametrize("clean", [0, 1])
def test_tag_with_too_small_a_size(made, capsys, clean):
    """Both tags hold the wrong size.  The rest before the next block is too small for a block, and is added to this one."""
    path, where = made
    at, end = block_of(path, where["block"])
    size = end - at
    with open(path, "rb") as file:
        image = bytearray(file.read())
    damaging.put(image, at, word(path, at) - BLOCK_ALIGN_BYTES)
    damaging.seal(image, at, size - BLOCK_ALIGN_BYTES)
    poke(path, 0, image)
    set_field(path, "clean", clean)
    report = repaired(capsys, path)
    assert [finding["offset"] for finding in report["findings"]] == [at + size - BLOCK_ALIGN_BYTES]
    with shmem.SharedMemory(path) as section:
        section.check_heap()
        assert section["a"].tolist() == list(range(100))
        assert bytes(section.root.next.other)[:276] == (DATA + DATA[:100])[:276]


def test_rear_tag_overwritten(made, capsys):
    path, where = made
    begin, end = block_of(path, where["b"])
    poke(path, end - BLOCK_REAR_BYTES, bytes(BLOCK_REAR_BYTES))
    (finding,) = repaired(capsys, path)["findings"]
    assert (finding["offset"], finding["lost"]) == (begin, "")
    assert_intact(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("magic", b"X"), ("version", b"\7"), ("header_bytes", b"\xff\xff"), ("salt", b"salty!!!"),
        ("label", b"\xff" * HEADER["label"].size),
        ("max_size", b"\1"), ("max_size", TOO_LARGE), ("desired_address", b"\1"), ("index_kind", b"\x09"),
        ("max_participants", b"\xff\xff"), ("clean", b"\x09"), ("broken", b"\1"), ("participants_off", b"\1"),
        ("intents_off", b"\1" * 8), ("index_off", b"\0" * 8), ("heap_start", b"\xff" * 8), ("intents_off", b"\xff" * 3),
        ("directory_off", b"\x10"), ("top", b"\xff" * 8), ("top", b"\0" * 8), ("reserved", b"\xff" * 8), ("high_water", b"\0" * 8),
        ("next_serial", b"\0" * 8), ("next_serial", b"\xff" * 8), ("used_bytes", b"\xff"),
    ],
)  # fmt: skip
def test_header_is_rebuilt(made, capsys, name, content):
    """Fields that follow from others are rebuilt; only a label or an address can be lost."""
    path, _ = made
    poke(path, HEADER[name].offset, content)
    repaired(capsys, path)
    assert_intact(path)


def test_root_and_anchors_overwritten(made, capsys):
    path, _ = made
    poke(path, HEADER["root_off"].offset, b"\x10\x60" + b"\0" * 5 + b"\1")
    report = repaired(capsys, path)
    assert "root" in report["findings"][0]["lost"]
    assert_intact(path, "root")
    poke(path, HEADER["types_off"].offset, b"\xff" * 8)  # the other anchor still leads to one of the two tables
    repaired(capsys, path)
    with shmem.SharedMemory(path) as section:
        assert section.new(Node, small=3).small == 3


def slot_of(path, name):
    """Return the offsets of a name's slot and of its entry."""
    table = field(path, "directory_off")
    first = table + TABLE.size
    with open(path, "rb") as file:
        for at in range(first, first + SLOT.size * TABLE["capacity"].read_file(file.fileno(), table), SLOT.size):
            entry = SLOT["entry_off"].read_file(file.fileno(), at)
            if entry > SLOT_REMOVED and os.pread(file.fileno(), len(name), entry + ENTRY.size) == name:
                return at, entry
    raise AssertionError(name)


@pytest.mark.parametrize("damage", ["entry", "hash", "zero", "both"])
def test_slot_overwritten(made, capsys, damage):
    """The entry is undamaged, and is found again."""
    path, _ = made
    at, _ = slot_of(path, b"last")
    if damage in ("entry", "both"):
        poke(path, SLOT["entry_off"].at(at), b"\xff" * 8)
    if damage in ("hash", "both"):
        poke(path, SLOT["hash"].at(at), b"\xff" * 8)
    if damage == "zero":
        poke(path, at, bytes(SLOT.size))
    repaired(capsys, path)
    assert_intact(path)


@pytest.mark.parametrize("damage", [None, "old slot", "new slot", "cursor", "old_off", "itself", "twice", "tag"])
def test_a_growing_table_is_checked_and_repaired(section_file, capsys, damage):
    """Both tables are read; a repair puts all names into the new one."""
    names = [f"name {i}" for i in range(102)]
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        for name in names:
            section[name] = name.encode()
    new = field(section_file, "directory_off")
    old = word(section_file, TABLE["old_off"].at(new))
    shown = {table: next(at for at in range(table + TABLE.size, table + TABLE.size + 128 * SLOT.size, SLOT.size)
                         if word(section_file, SLOT["entry_off"].at(at)) > SLOT_REMOVED) for table in (new, old)}  # fmt: skip
    assert old
    match damage:
        case "old slot" | "new slot":
            poke(section_file, SLOT["entry_off"].at(shown[new if damage == "new slot" else old]), b"\xff" * 8)
        case "cursor" | "old_off":
            poke(section_file, TABLE[damage].at(new), b"\xf0" * 5)
        case "itself":
            poke(section_file, TABLE["old_off"].at(new), new.to_bytes(8, "little"))
        case "twice":
            poke(section_file, shown[new], struct.pack("<QQ", word(section_file, shown[old]), word(section_file, shown[old] + 8)))
        case "tag":
            poke(section_file, old - BLOCK_HEAD_BYTES, b"\xff" * 8)
    if damage is None:
        status, report = check(capsys, section_file, "--leaks")
        assert (status, report["state"], report["findings"]) == (0, "intact", [])
    else:
        repaired(capsys, section_file)
    with shmem.SharedMemory(section_file) as section:
        section.check_heap()
        assert sorted(section) == sorted(names)
        assert all(bytes(section[name]) == name.encode() for name in names)
        for name in names:
            del section[name]
        assert section.check_heap().blocks == 0


@pytest.mark.parametrize("which", ["tag", "word"])
def test_serial_number_overwritten_in_one_of_two_places(made, capsys, which):
    """The tag of a small block repeats the serial number, so nothing is lost."""
    path, _ = made
    _, entry = slot_of(path, b"last")
    begin = entry - BLOCK_HEAD_BYTES
    serial = word(path, BLOCK["serial"].at(begin))
    if which == "tag":
        poke(path, begin, (word(path, begin) ^ 1 << TAG_SERIAL_SHIFT).to_bytes(8, "little"))
    else:
        poke(path, BLOCK["serial"].at(begin), (serial ^ 1 << 30).to_bytes(8, "little"))
    report = repaired(capsys, path)
    assert "serial" in report["findings"][0]["problem"]
    assert report["findings"][0]["lost"] == ""
    assert word(path, BLOCK["serial"].at(begin)) == serial
    assert read_tag(word(path, begin)).serial == serial & TAG_SERIAL_MASK
    assert_intact(path)


@pytest.mark.parametrize("text", [b"\xff", b""])
def test_name_is_not_text(made, capsys, text):
    path, _ = made
    _, entry = slot_of(path, b"last")
    poke(path, entry + ENTRY.size if text else ENTRY["name_bytes"].at(entry), text or b"\0\0\0\0")
    report = repaired(capsys, path)
    assert "a name" in [finding["lost"] for finding in report["findings"]]
    assert_intact(path, "last")


def test_name_with_a_wrong_offset(made, capsys):
    path, _ = made
    _, entry = slot_of(path, b"last")
    poke(path, ENTRY["value"].at(entry), struct.pack("<Q", 0x7FFF0))
    report = repaired(capsys, path)
    assert ["'last'" in finding["lost"] for finding in report["findings"]] == [True]
    assert_intact(path, "last")


def test_array_header_overwritten(made, capsys):
    path, where = made
    poke(path, where["a"], b"\xff" * 8)
    report = repaired(capsys, path)
    assert "shape" in report["findings"][0]["lost"]
    with shmem.SharedMemory(path) as section:
        assert np.frombuffer(section["a"], "int64")[-100:].tolist()[-1] == 99 or 99 in np.frombuffer(bytes(section["a"])[:-8], "int64")


def test_truncated_file_is_repaired(made, capsys):
    """The file ends within the last block, which is kept and filled with zeros; the others are intact."""
    path, where = made
    os.truncate(path, where["last"] + 50)
    with pytest.raises(shmem.NotASection):
        shmem.SharedMemory(path)
    report = repaired(capsys, path)
    assert "cut off" in report["findings"][0]["problem"]
    with shmem.SharedMemory(path) as section:
        assert section["a"].tolist() == list(range(100))
        if "last" in section:
            assert bytes(section["last"])[:50] == DATA[:50]
            assert bytes(section["last"])[60:].strip(b"\0") == b""


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.damages
def test_random_damage_is_repaired(section_file, capsys, seed):
    """For any damage to the heap a repair terminates, leaves the heap intact, and reports its changes."""
    rng = random.Random(seed)
    make(section_file, index=["tlsf", "next_fit"][seed % 2])
    size = os.path.getsize(section_file)
    if seed % 3 == 1:
        set_field(section_file, "clean", 0)
    for _ in range(rng.randrange(1, 6)):
        n = rng.choice([1, 8, 16, 40, 300])
        poke(section_file, rng.randrange(START - 13000 * (seed % 3 == 0), size - n), rng.randbytes(n))
    if seed % 4 == 0:
        os.truncate(section_file, rng.randrange(START + 100, size))
    _, report = check(capsys, section_file, "--repair")
    assert report["state"] in ("repaired", "intact"), report
    assert check(capsys, section_file, "--leaks")[1]["state"] == "intact"
    with shmem.SharedMemory(section_file) as section:
        section.check_heap()
        section.free(section.allocate(1000))
        for name in section:
            section[name]


def test_killed_process_is_not_damage(section_file, capsys, child):
    other = child(
        "section = shmem.SharedMemory(args[0], max_size=1 << 24); section['a'] = [1, 2, 3]; say('go')\n"
        "while True: section['b'] = bytes(100_000); del section['b']",
        section_file,
    )
    other.hear()
    other.kill()
    before = digest(section_file)
    status, report = check(capsys, section_file, "--leaks")
    assert (status, report["state"], report["findings"]) == (0, "intact", [])
    assert any("not closed" in note for note in report["notes"])
    assert digest(section_file) == before
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().recoveries == 1


VIEWER = """
section = shmem.SharedMemory(args[0], max_size=1 << 20)
section["slot"], section["record"], section["kept"] = b"1" * 30, b"2" * 40, b"3" * 50
views = [memoryview(section[name]) for name in ("slot", "record", "kept")]
del section["slot"], section["record"]
say("there")
sys.stdin.readline()
"""


def viewed(path, child):
    """Make a section with a slot, and records of views, by a process that is killed; return the offsets of the records."""
    other = child(VIEWER, path)
    other.hear()
    other.kill()
    assert field(path, "n_pin_slots") == 1
    first = field(path, "pins_off")
    links = [word(path, RECORD["child_off"].at(first) + i * 8) for i in range(2)]
    found = [first, *filter(None, links)]
    assert len(found) == field(path, "n_pin_records") == 2
    return found


def test_views_of_a_killed_process_are_not_damage(section_file, capsys, child):
    viewed(section_file, child)
    status, report = check(capsys, section_file, "--leaks")
    assert (status, report["state"], report["findings"], report["leaks"]) == (0, "intact", [], [])
    with shmem.SharedMemory(section_file) as section:
        assert section.check_heap().blocks == 1
        assert (field(section_file, "n_pin_slots"), field(section_file, "n_pin_records")) == (0, 0)
        section.free(section["kept"])


@pytest.mark.damages
def test_front_tag_of_a_record_overwritten(section_file, capsys, child):
    """A record without a front tag is recognised by what it pins, and freed."""
    records = viewed(section_file, child)
    for record in records:
        poke(section_file, record - BLOCK_HEAD_BYTES, b"\xff" * 16)
    report = repaired(capsys, section_file)
    assert sum("record of views" in note for note in report["notes"]) == 2
    with shmem.SharedMemory(section_file) as section:
        assert set(section) == {"kept"}
        assert bytes(section["kept"]) == b"3" * 50
        assert section.check_heap().internal_blocks == 2  # the directory and one name


@pytest.mark.parametrize("name", ["pins_off", "n_pin_records", "n_pin_slots", "pin_slots"])
@pytest.mark.parametrize("value", [1 << 40, 0xC010, (1 << 64) - 1])
def test_pins_in_a_closed_section_are_repaired(made, capsys, name, value):
    poke(made[0], HEADER[name].offset, value.to_bytes(8, "little"))
    report = repaired(capsys, made[0])
    assert [finding["lost"] for finding in report["findings"]] == [""]
    assert_intact(made[0])
    assert field(made[0], "pins_off") == 0


def test_damage_in_an_unclosed_file(section_file, capsys, child):
    other = child("section = shmem.SharedMemory(args[0], max_size=1 << 20); section['a'] = [1, 2]; section['b'] = b'bytes'\n"
                  "say(section['b'].offset); sys.stdin.readline()", section_file)  # fmt: skip
    offset = int(other.hear()) - BLOCK_HEAD_BYTES
    other.kill()
    poke(section_file, offset, b"\xff" * 16)
    repaired(capsys, section_file)
    with shmem.SharedMemory(section_file) as section:
        assert section["a"].tolist() == [1, 2]
        assert bytes(section["b"])[:5] == b"bytes"


@pytest.mark.damages
def test_section_in_use_is_not_repaired(place, capsys):
    with shmem.SharedMemory(**place, max_size=1 << 20) as section:
        section["a"] = [1]
        leak = section.allocate(500)
        code = "import sys, shmem.__main__; sys.exit(shmem.__main__.main(['check', sys.argv[1], '--json', *sys.argv[2:]]))"
        for options, status in ((), 0), (("--leaks",), 4), (("--repair",), 8):
            done = subprocess.run([sys.executable, "-P", "-c", code, section.path, *options], capture_output=True, text=True, check=False)
            report = json.loads(done.stdout)
            assert (done.returncode, done.stderr, report["in_use"]) == (status, "", True)
            assert f"in use by 1 processes: {os.getpid()}" in report["notes"][0]
            if options == ("--leaks",):
                assert [one["offset"] for one in report["leaks"]] == [leak.offset]
            if options == ("--repair",):
                assert "cannot repair" in report["notes"][-1]
        assert os.path.exists(section.path)
        second = section.allocate(100)
        tag = word(section.path, second.offset - BLOCK_HEAD_BYTES)
        poke(section.path, second.offset - BLOCK_HEAD_BYTES, b"\xff" * 8)
        done = subprocess.run([sys.executable, "-P", "-c", code, section.path], capture_output=True, text=True, check=False)
        report = json.loads(done.stdout)
        assert (done.returncode, report["state"], report["findings"][0]["offset"]) == (4, "damaged", second.offset - BLOCK_HEAD_BYTES)
        poke(section.path, second.offset - BLOCK_HEAD_BYTES, struct.pack("<Q", tag))
        assert section.stats().participants == (os.getpid(),)


def test_leaks_and_damage(made, capsys):
    path, where = made
    with shmem.SharedMemory(path) as section:
        section.allocate(100)
    poke(path, where["b"] - BLOCK_HEAD_BYTES, b"\xff" * 16)
    assert check(capsys, path, "--leaks")[0] == 4
    assert check(capsys, path, "--leaks", "--repair")[0] == 1 | 4
    assert check(capsys, path, "--leaks")[0] == 4


def test_maximum_number_of_participants(section_file, capsys):
    """The table of the maximum number of participants fills its last page only in part."""
    shmem.SharedMemory(section_file, max_size=1 << 24, max_participants=MAX_PARTICIPANTS).close()
    status, report = check(capsys, section_file)
    assert (status, report["state"], report["findings"]) == (0, "intact", [])


# -- participants and intents ---------------------------------------------------------------------------------


def intent(operation, slot, value=0, make=(0, 0), drop=(0, 0), slot_2=0):
    """Return the bytes of an intent."""
    content = bytearray(INTENT.size)
    for name, found in {
        "operation": operation,
        "slot_off": slot,
        "value": value,
        "make_off": make,
        "drop_off": drop,
        "slot2_off": slot_2,
    }.items():
        INTENT[name].write(content, found)
    return bytes(content)


def entry_of(i, name="readers"):
    """Return the offset of a field of an entry of the participants' table."""
    return PARTICIPANT[name].at(PARTICIPANTS + PARTICIPANT.size * i)


@pytest.mark.parametrize(("offset", "content", "problem"), [
    (HEADER["participants_high"].offset, struct.pack("<I", N_PARTICIPANTS + 1), "participants_high is"),
    (entry_of(1), b"\xff" * PARTICIPANT.size, "participant entry 1 is damaged: it was overwritten"),
    (entry_of(2), struct.pack("<Q", 5 << OWNER_GENERATION_SHIFT | MAX_THREADS + 1),
     f"participant entry 2 is damaged: it counts {MAX_THREADS + 1:,} threads"),
    (entry_of(0, "pending"), struct.pack("<i", -1), "pending blocks"),
    (entry_of(0, "pins"), struct.pack("<i", -1), "pinned blocks"),
    (INTENTS, b"\xff" * INTENT.size, "participant 0 is invalid: its operation"),
    (INTENTS + INTENT.size, intent(9, START), "participant 1 is invalid: its operation"),
    (INTENTS, intent(INTENT_SWAP_SLOT, 1 << 40), "it changes a word at 0x10000000000"),
    (INTENTS, intent(INTENT_SWAP_TWO, START, slot_2=1 << 40), "it changes a word at 0x10000000000"),
    (INTENTS, intent(INTENT_SWAP_TWO, START, make=(START + 1, 0)), "it refers to a block"),
    (INTENTS, intent(INTENT_RESIZE, START + BLOCK_ALIGN_BYTES), "it resizes a block"),
    (INTENTS, intent(INTENT_MOVE, START, drop=(START + BLOCK_ALIGN_BYTES + 1, 0)), "it refers to a block"),
])  # fmt: skip
@pytest.mark.parametrize("was_closed", [True, False])
def test_invalid_entries_and_intents_are_repaired(made, capsys, offset, content, problem, was_closed):
    path, _ = made
    poke(path, offset, content)
    set_field(path, "clean", int(was_closed))
    (finding,) = repaired(capsys, path)["findings"]
    assert problem in finding["problem"]
    assert finding["lost"] == ""
    assert_intact(path)


def test_intent_in_a_closed_section(made, capsys):
    """The intent is valid by itself, and recovery would free a named block because of it."""
    path, where = made
    slot = HEADER["directory_off"].offset
    poke(path, INTENTS, intent(INTENT_SWAP_SLOT, slot, word(path, slot), drop=(where["b"], 0)))
    (finding,) = repaired(capsys, path)["findings"]
    assert "a cleanly closed section has no intents" in finding["problem"]
    assert_intact(path)


def test_intent_of_a_killed_process_is_not_damage(made, capsys):
    """The slot does not have the intent's value, so the operation was not committed."""
    path, where = made
    poke(path, INTENTS + 3 * INTENT.size, intent(INTENT_SWAP_SLOT, HEADER["directory_off"].offset, 1, drop=(where["b"], 0)))
    with open(path, "r+b") as file:
        for name, value in {
            "readers": 3 << OWNER_GENERATION_SHIFT | 1,
            "attached": 1,
            "pending": 1,
            "pins": 2,
            "waiting": 0,
            "pid": 4321,
        }.items():
            PARTICIPANT[name].write_file(file.fileno(), value, entry_of(3))
    set_field(path, "clean", 0)
    status, report = check(capsys, path)
    assert (status, report["state"], report["findings"]) == (0, "intact", [])
    assert any("participant 3 was killed while naming" in note for note in report["notes"])
    assert any("participant entry 3: process 4321 was killed" in note for note in report["notes"])
    with shmem.SharedMemory(path) as section:
        assert section.stats().recoveries == 1
    assert_intact(path)


def test_opening_waits_for_a_check(made, child):
    from shmem._cli import check as _check  # not public

    path, _ = made
    with _check.opened(path, False):
        other = child("say('go'); section = shmem.SharedMemory(args[0]); say('open')", path)
        other.hear()
        with pytest.raises(subprocess.TimeoutExpired):
            other.process.wait(0.3)
    assert other.hear() == "open"
    other.end()


def test_unreachable_blocks_are_reported(section_file, capsys):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as section:
        far = section.allocate(64)
        held = section.allocate(100)
        held_offset = held.offset
        unlinked, behind = section.new(Node), section.new(Node)
        unlinked.next = behind  # reachable only from a leak
        lost = section.zeros((3, 5), "float32")
        section.root = lost
        lost_offset = field(section_file, "root_off")
        section.root = section.new(Node, next=section.new(Node, other=far))
        section["offsets"] = np.array([held.offset])
        expected = {
            unlinked.offset: ("check.Node", None),
            behind.offset: ("check.Node", None),
            lost_offset: ("array (3, 5) of <f4", None),
            held_offset: ("bytes", True),
        }
        del lost, far, held, unlinked, behind
    status, report = check(capsys, section_file, "--leaks")
    assert (status, report["state"]) == (4, "intact")
    found = {one["offset"]: (one["type"], one["perhaps"] and True) for one in report["leaks"]}
    assert {offset: found.get(offset) for offset in expected} == expected
    assert len(found) == 4
    sizes = {one["offset"]: one["n_bytes"] for one in report["leaks"]}
    assert sizes[held_offset] == 100
    main(["check", section_file, "--leaks"])
    text = capsys.readouterr().out
    assert "leaks: 3 blocks" in text
    assert "perhaps reached from 0x" in text


def test_copies_are_numbered_and_sparse(made, capsys):
    path, where = made
    with shmem.SharedMemory(path, max_size=1 << 26) as section:
        section.allocate(30_000_000, zero=False)
        section.allocate(100)
    for n in (1, 2):
        poke(path, where["b"] - BLOCK_HEAD_BYTES, b"\xff" * 16)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 1)
        report = repaired(capsys, path)
        assert report["copy"] == f"{path}.before-repair-{n}"
        assert os.stat(report["copy"]).st_blocks * 512 < 4_000_000
        assert os.stat(report["copy"]).st_mode == os.stat(path).st_mode


def test_no_space_for_the_copy(made, capsys, monkeypatch):
    from shmem._cli import check as _check

    path, where = made
    poke(path, where["b"] - BLOCK_HEAD_BYTES, b"\xff" * 16)
    before = digest(path)
    monkeypatch.setattr(_check, "write_all", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    status, report = check(capsys, path, "--repair")
    assert (status, report["state"], report["copy"]) == (4, "damaged", None)
    assert "No space left" in report["notes"][-1]
    assert digest(path) == before
    assert os.listdir(os.path.dirname(path)) == ["section.shm"]
    shutil.rmtree(os.path.dirname(path))
    os.mkdir(os.path.dirname(path))


SENDER = """
section = shmem.SharedMemory(args[0], max_size=1 << 20)
section["kept"] = [1, 2]
say(shmem.dumps(section.full(100, 7.0, temporary=True)).hex())
sys.stdin.readline()
"""


def sent(path, child):
    """Return a message on an array of a section that its last process has closed, and the offset of its claim."""
    other = child(SENDER, path)
    message = bytes.fromhex(other.hear())
    other.tell()
    other.end()
    return message, field(path, "claims_off")


def test_array_of_a_message_is_not_a_leak(section_file, capsys, child):
    sent(section_file, child)
    status, report = check(capsys, section_file, "--leaks")
    assert (status, report["state"], report["findings"], report["leaks"]) == (0, "intact", [], [])


@pytest.mark.damages
def test_front_tag_of_a_claim_overwritten(section_file, capsys, child):
    """A claim without a front tag is recognised by the array that it keeps, and kept."""
    message, claim = sent(section_file, child)
    poke(section_file, claim - BLOCK_HEAD_BYTES, b"\xff" * 16)
    report = repaired(capsys, section_file)
    assert sum("kept as the claim of a message" in note for note in report["notes"]) == 1
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().claims == 1
        assert shmem.loads(message).tolist() == [7.0] * 100
        section.sweep(claims=0)
        assert section.check_heap().blocks == 1


@pytest.mark.parametrize("name", ["claims_off", "n_claims", "claimed_bytes"])
@pytest.mark.parametrize("value", [0, 0xC010, (1 << 64) - 1])
def test_list_of_claims_in_a_closed_section_is_repaired(section_file, capsys, child, name, value):
    message, _ = sent(section_file, child)
    poke(section_file, HEADER[name].offset, value.to_bytes(8, "little"))
    report = repaired(capsys, section_file)
    assert [finding["lost"] for finding in report["findings"]] == [""]
    with shmem.SharedMemory(section_file) as section:
        assert section.stats().claims == 1
        assert shmem.loads(message)[99] == 7
