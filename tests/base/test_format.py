"""docs/format.md agrees with the compiled layout, and is sufficient to read a closed section without `shmem`."""

import ast
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest

import shmem
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    BLOCK_REAR_BYTES,
    FINGERPRINT,
    GOLDEN,
    LAYOUT,
    LAYOUT_VERSION,
    MAGIC,
    SERIAL_MASK,
    SLOT_REMOVED,
    STATE_USED,
    TAG_SERIAL_MASK,
    TAG_SERIAL_SHIFT,
    TAG_SIZE_MASK,
    TAG_SMALL,
    TAG_SMALL_SIZE_MASK,
    TAG_STATE_MASK,
    TAG_TYPE_SHIFT,
    TYPE_ARRAY,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
WORD = (1 << 64) - 1
needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="tests run without the checkout")


@needs_docs
def test_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_format_tables", DOCS / "make_format_tables.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = generator.PAGE.read_text(encoding="utf-8")
    assert len(generator.MARKED.findall(page)) >= len(LAYOUT)
    assert page == generator.rewrite(page), "run python docs/make_format_tables.py"
    assert generator.rewrite(page.replace("| 448 |", "| 449 |")) == page


@needs_docs
def test_every_struct_has_a_table():
    page = (DOCS / "format.md").read_text(encoding="utf-8")
    assert [name for name in LAYOUT if f"<!-- table: {name} -->" not in page] == []


class Reader:
    """A reader of closed files that follows docs/format.md and uses only the exported layout of the package."""

    def __init__(self, raw):
        self.raw, self.header = raw, LAYOUT["header_t"].read(raw)
        assert self.header["magic"] == MAGIC
        assert self.header["version"] == LAYOUT_VERSION
        assert self.header["fingerprint"] == FINGERPRINT
        assert self.header["clean"] == 1

    def blocks(self):
        """Yield (payload offset, type, serial) of the used blocks; verify every rear tag."""
        at = self.header["heap_start"]
        while at < self.header["top"]:
            block = LAYOUT["block_t"].read(self.raw, at)
            size = block["tag"] & (TAG_SMALL_SIZE_MASK if block["tag"] & TAG_SMALL else TAG_SIZE_MASK)
            rear = int.from_bytes(self.raw[at + size - BLOCK_REAR_BYTES : at + size], "little")
            assert rear == size ^ self.header["salt"] ^ (at + size) * GOLDEN & WORD
            if block["tag"] & TAG_STATE_MASK == STATE_USED:
                assert not block["tag"] & TAG_SMALL or (block["tag"] >> TAG_SERIAL_SHIFT ^ block["serial"]) & TAG_SERIAL_MASK == 0
                yield at + BLOCK_HEAD_BYTES, block["tag"] >> TAG_TYPE_SHIFT, block["serial"] & SERIAL_MASK
            at += size
        assert at == self.header["top"]

    def names(self, table_off):
        """Return {name: (value, serial)} of a name table."""
        known = {payload: (type_id, serial) for payload, type_id, serial in self.blocks()}
        assert known[table_off][0] == TYPE_NAME_TABLE
        table, slot = LAYOUT["name_table_t"], LAYOUT["name_slot_t"]
        found = {}
        for i in range(table["capacity"].read(self.raw, table_off)):
            entry_off = slot["entry_off"].read(self.raw, table_off + table.size + i * slot.size)
            if entry_off > SLOT_REMOVED:
                assert known[entry_off][0] == TYPE_NAME_ENTRY
                entry = LAYOUT["name_entry_t"].read(self.raw, entry_off)
                begin = entry_off + LAYOUT["name_entry_t"].size
                name = self.raw[begin : begin + entry["name_bytes"]].decode()
                assert known[entry["value"]][1] == entry["serial"]
                found[name] = entry["value"], known[entry["value"]][0]
        return found

    def array(self, payload):
        """Return a copy of an array."""
        head = LAYOUT["array_t"].read(self.raw, payload)
        at, n = payload + LAYOUT["array_t"].size, head["n_dims"]
        shape, strides = np.frombuffer(self.raw, "<u8", n, at), np.frombuffer(self.raw, "<i8", n, at + 8 * n)
        at += 16 * n + 8 * head["n_pin_words"]
        dtype = np.dtype(ast.literal_eval(self.raw[at : at + head["dtype_bytes"]].decode()))
        return np.ndarray(shape.tolist(), dtype, self.raw, payload + head["data_off"], strides.tolist()).copy()

    def attributes(self):
        """Return {payload offset: attributes}, with 0 for the section; tags stay as they are."""
        known = {payload: serial for payload, _, serial in self.blocks()} | {0: 0}
        table, slot, entry = LAYOUT["name_table_t"], LAYOUT["name_slot_t"], LAYOUT["name_entry_t"]
        table_off, found = self.header["attributes_off"], {}
        for i in range(table["capacity"].read(self.raw, table_off)):
            entry_off = slot["entry_off"].read(self.raw, table_off + table.size + i * slot.size)
            if entry_off > SLOT_REMOVED:
                facts = entry.read(self.raw, entry_off)
                target, serial = struct.unpack_from("<QQ", self.raw, entry_off + entry.size)
                begin = entry_off + entry.size + facts["name_bytes"]
                assert (facts["name_bytes"], facts["value"], facts["serial"]) == (16, target, 0)
                assert known[target] == serial
                found[target] = json.loads(self.raw[begin : begin + facts["data_bytes"]])["dict"]
        return found


def test_independent_reader_of_attributes(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["x"], shm["gone"] = [1.5, 2.5], [1]
        for name in ("x", "gone"):
            shm.entry(name).attrs.update(unit="m", scale=2.5, raw=b"\0", nested={"a": [1, (2, None)]}, z=1j, top=np.inf)
        shm.attrs.update(step=np.float32(0.5), grid=np.arange(4, dtype="<i2").reshape(2, 2))
        del shm["gone"]
    reader = Reader(Path(section_file).read_bytes())
    place = reader.names(reader.header["directory_off"])["x"][0]
    assert reader.attributes() == {
        0: {"step": {"scalar": ["'<f4'", "AAAAPw=="]}, "grid": {"array": ["'<i2'", [2, 2], "AAABAAIAAwA="]}},
        place: {
            "unit": "m", "scale": 2.5, "raw": {"bytes": "AA=="}, "nested": {"dict": {"a": [1, [2, None]]}},
            "z": {"complex": [0.0, 1.0]}, "top": {"float": "inf"},
        },
    }  # fmt: skip


def test_independent_reader(section_file):
    arrays = {
        "temperature": np.arange(12.0).reshape(3, 4),
        "Größe": np.array(["a", "bcd"]),
        "columns": np.asfortranarray(np.arange(6, dtype="i2").reshape(2, 3)),
        "records": np.array([(1, 2.5), (3, 4.5)], dtype=[("n", "<i4"), ("x", "<f8")]),
        "empty": np.zeros((0, 5)),
    }
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        for name, array in arrays.items():
            shm[name] = array
        shm["gone"] = [1]
        del shm["gone"]
        shm["block"] = shm.allocate(100)
    reader = Reader(Path(section_file).read_bytes())
    names = reader.names(reader.header["directory_off"])
    assert set(names) == {*arrays, "block"}
    for name, array in arrays.items():
        payload, type_id = names[name]
        assert type_id == TYPE_ARRAY
        found = reader.array(payload)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
