"""The layout is that of `golden_layout.json`: the next version can read a file written today, or rejects it by its version number.

After an intended change, ``python tests/base/test_layout.py`` rewrites the golden file.
"""

import json
import re
import struct
from pathlib import Path

import pytest

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    CONSTANTS,
    INDEX_BYTES,
    INDEX_TLSF,
    LAYOUT,
    LAYOUT_VERSION,
    LINE_BYTES,
    MAGIC,
    MAX_PARTICIPANTS,
    PAGE_BYTES,
    SERIAL_MASK,
    SLACK_MASK,
    SLACK_SHIFT,
    STATE_CACHED,
    STATE_DOOMED,
    STATE_HOLE,
    STATE_PENDING,
    STATE_USED,
    TYPE_ARRAY,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
    TYPE_PLAIN,
    heap_start,
    name_hash,
    read_tag,
    rear_tag,
)

TESTS = Path(__file__).resolve().parents[1]
GOLDEN_FILE = Path(__file__).with_name("golden_layout.json")
HEADER, PARTICIPANT, INTENT = LAYOUT["header_t"], LAYOUT["participant_t"], LAYOUT["intent_t"]
BLOCK, ARRAY = LAYOUT["block_t"], LAYOUT["array_t"]
N_PARTICIPANTS, N_ASKED = 7, 100
STATES = {STATE_HOLE: "hole", STATE_PENDING: "pending", STATE_USED: "used", STATE_CACHED: "cached", STATE_DOOMED: "doomed"}


# -- the golden file ----------------------------------------------------------------------------------------------


def described():
    """Return the compiled layout, with one entry for each fact."""
    facts = {name: f"{value:#x}" for name, value in CONSTANTS.items()}
    for name, structure in LAYOUT.items():
        facts[name] = f"{structure.size} bytes"
        for field in structure.values():
            facts[f"{name}.{field.name}"] = f"{field.ctype}[{field.count}] at {field.offset}, {field.size} bytes"
    for n in (1, N_PARTICIPANTS, MAX_PARTICIPANTS):
        facts[f"heap_start({n})"] = heap_start(n)
    for name in ("a", "name", "Größe"):
        facts[f"name_hash({name!r})"] = f"{name_hash(name.encode()):#x}"
    facts["rear_tag(salt=3, size=48, end=4096)"] = f"{rear_tag(3, 48, 4096):#x}"
    return facts


def differences(golden, found):
    """Return a line for each fact that differs."""
    return [
        f"{name}: {golden.get(name, 'missing')} -> {found.get(name, 'missing')}"
        for name in dict.fromkeys([*golden, *found])
        if golden.get(name) != found.get(name)
    ]


def test_golden_layout():
    """Compare every size, offset, type and constant; an unintended change would silently make older files unreadable."""
    changed = differences(json.loads(GOLDEN_FILE.read_text(encoding="utf-8")), described())
    if changed:
        pytest.fail(
            "the layout of a section has changed; undo that, or raise LAYOUT_VERSION in shmem/_base/layout.pxd, "
            "run python tests/base/test_layout.py and python docs/make_format_tables.py, and commit what they write:\n"
            + "\n".join(changed),
            pytrace=False,
        )


@pytest.mark.parametrize("change", [{"header_t.top": "uint64[1] at 456, 8 bytes"}, {"new_t": "8 bytes"}, {"PAGE_BYTES": "0x2000"}])
def test_differences_are_listed(change):
    (line,) = differences(described(), described() | change)
    ((name, value),) = change.items()
    assert line == f"{name}: {described().get(name, 'missing')} -> {value}"


@pytest.mark.parametrize("structure", LAYOUT.values(), ids=list(LAYOUT))
def test_every_byte_of_a_struct_belongs_to_a_field(structure):
    """A hole between two fields has undefined contents, and may hide a field that is missing in the table."""
    end = 0
    for field in structure.values():
        assert field.offset == end, field
        end = field.end
    assert structure.size == end


# -- the only copy ------------------------------------------------------------------------------------------------

# a number added to an offset that is not a constant of the layout, or an offset that is a number
LITERAL_OFFSET = re.compile(
    r"""(?<![A-Z]\.)(?<!"\]\.)\b(?:\w+_at|(?:\w+_)?(?:offset|off|entry|payload|tag|size))\)? [-+] [1-9][0-9]*\b"""
    r"""|\bseek\([1-9]|\bscribe\[[0-9]|\bwords\([0-9]"""
)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_literal_offset(path):
    """Tests read the table, so that a change of the layout needs no change of them."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    assert [f"{path.name}:{number}: {line.strip()}" for number, line in lines if LITERAL_OFFSET.search(line)] == []


@pytest.mark.parametrize(
    ("line", "is_literal"),
    [
        ("block.offset " + "- 16", True), ("blocks[0].offset " + "- 16", True), ("(path, name_at " + "- 4)", True),
        ("file.seek(" + "704)", True), ("scribe" + "[360]", True), ("QUEUE.size + 1", False), ('QUEUE["closed"].offset + 1', False),
        ("file.seek(0)", False), ("block.offset - BLOCK_HEAD_BYTES", False),
    ],
)  # fmt: skip
def test_literal_offsets_are_found(line, is_literal):
    assert (LITERAL_OFFSET.search(line) is not None) == is_literal


# -- the bytes of a section ---------------------------------------------------------------------------------------


def walk(raw):
    """Yield (offset, size, state, type) of the blocks, decoded from the bytes alone, as the head of `_base/layout.pxd` describes them."""
    header = HEADER.read(raw)
    offset = header["heap_start"]
    while offset < header["top"]:
        tag = read_tag(BLOCK["tag"].read(raw, offset))
        size = tag.size
        assert size >= BLOCK_MIN_BYTES
        assert tag.is_right
        rear = int.from_bytes(raw[offset + size - BLOCK_REAR_BYTES : offset + size], "little")
        assert rear_tag(header["salt"], rear, offset + size) == size
        yield offset, size, STATES[tag.state], tag.type_id
        offset += size
    assert offset == header["top"]


def round_up(value, to):
    """Return `value`, or the next multiple of `to`."""
    return -(-value // to) * to


@pytest.fixture
def raw(section_file):
    with shmem.SharedMemory(section_file, "label", max_size=1 << 20, max_participants=N_PARTICIPANTS) as section:
        block = section.allocate(N_ASKED)
        memoryview(block)[:] = b"x" * N_ASKED
        section.set_root_object(block)
        section["a"] = [1.0, 2.0]
        section.free(section.allocate(5000))
        expected = block.offset
        uuid = section.uuid
    del block  # the last view, after which the process leaves the section
    return Path(section_file).read_bytes(), expected, uuid


def test_header_bytes(raw):
    data, root, uuid = raw
    header = HEADER.read(data)
    intents_off = PAGE_BYTES + round_up(N_PARTICIPANTS * PARTICIPANT.size, PAGE_BYTES)
    expected = {
        "magic": MAGIC,
        "version": LAYOUT_VERSION,
        "header_bytes": HEADER.size,
        "uuid": uuid,
        "label": b"label".ljust(HEADER["label"].size, b"\0"),
        "max_size": 1 << 20,
        "desired_address": 0,
        "index_kind": INDEX_TLSF,
        "max_participants": N_PARTICIPANTS,
        "clean": 1,
        "broken": 0,
        "participants_off": PAGE_BYTES,
        "intents_off": intents_off,
        "index_off": intents_off + round_up(N_PARTICIPANTS * INTENT.size, PAGE_BYTES),
        "root_off": root,
        **dict.fromkeys(("lock_gate", "upgrade", "heap_gate", "reserve_gate"), 0),  # open
    }
    assert {name: header[name] for name in expected} == expected
    assert header["heap_start"] == header["index_off"] + INDEX_BYTES == heap_start(N_PARTICIPANTS)
    assert len(header["boot_id"].rstrip(b"\0").decode().split("-")) == 5
    assert header["directory_off"] != 0
    assert len(data) % PAGE_BYTES == 0
    assert header["top"] <= len(data)


def test_block_bytes(raw):
    data, root, _ = raw
    blocks = list(walk(data))
    n_bytes = BLOCK_HEAD_BYTES + N_ASKED + BLOCK_REAR_BYTES
    size = round_up(n_bytes, BLOCK_ALIGN_BYTES)
    assert blocks[0] == (root - BLOCK_HEAD_BYTES, size, "used", TYPE_PLAIN)
    assert data[root : root + N_ASKED] == b"x" * N_ASKED
    assert BLOCK["serial"].read(data, blocks[0][0]) >> SLACK_SHIFT & SLACK_MASK == size - n_bytes > 0
    used = [block for block in blocks if block[2] == "used"]
    assert {state for _, _, state, _ in blocks} <= {"used", "hole"}
    assert sorted(type_id for _, _, _, type_id in used) == [TYPE_PLAIN, TYPE_ARRAY, TYPE_NAME_TABLE, TYPE_NAME_ENTRY]
    serials = [BLOCK["serial"].read(data, offset) & SERIAL_MASK for offset, *_ in used]
    assert len(set(serials)) == len(serials)
    assert max(serials) < HEADER["next_serial"].read(data)


def test_array_header_bytes(raw):
    data, _, _ = raw
    ((offset, size, _, _),) = [block for block in walk(data) if block[3] == TYPE_ARRAY]
    payload = offset + BLOCK_HEAD_BYTES
    assert payload % LINE_BYTES == 0
    assert size % LINE_BYTES == 0
    head = ARRAY.read(data, payload)
    assert head["data_off"] % LINE_BYTES == 0
    assert [head[name] for name in ("data_bytes", "flags", "n_dims", "n_pin_words")] == [2 * 8, 0, 1, 1]
    format_behind = f"<QqQ{head['dtype_bytes']}s"  # shape, strides, pins, dtype
    assert struct.unpack_from(format_behind, data, payload + ARRAY.size) == (2, 8, 0, b"'<f8'")  # without pins
    assert ARRAY.size + struct.calcsize(format_behind) <= head["data_off"]
    assert struct.unpack_from("<dd", data, payload + head["data_off"]) == (1.0, 2.0)


@pytest.mark.parametrize("name", ["version", "fingerprint"])
def test_other_version_or_layout_is_rejected(section_file, name):
    shmem.SharedMemory(section_file, max_size=1 << 20).close()
    with open(section_file, "r+b") as file:
        field = HEADER[name]
        field.write_file(file.fileno(), field.read_file(file.fileno()) ^ 1)
    before = Path(section_file).read_bytes()
    with pytest.raises(shmem.LayoutMismatch) as caught:
        shmem.SharedMemory(section_file, max_size=1 << 20)
    assert caught.value.status == shmem.Status.layout_mismatch
    assert Path(section_file).read_bytes() == before


if __name__ == "__main__":
    old = json.loads(GOLDEN_FILE.read_text(encoding="utf-8")) if GOLDEN_FILE.exists() else {}
    GOLDEN_FILE.write_text(json.dumps(described(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(*differences(old, described()), f"{GOLDEN_FILE} is written", sep="\n")
