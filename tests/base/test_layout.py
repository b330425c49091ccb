"""Golden offsets: a file written today is read by the next version, or refused by its number."""

import struct

import pytest

import shmem

MAGIC = b"SHMEM1\x1a\n"
STATES = {1: "hole", 2: "pending", 3: "used", 4: "cached"}
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def word(raw, offset):
    return struct.unpack_from("<Q", raw, offset)[0]


def walk(raw):
    """Decode the heap from the bytes alone, as the head of `_base/layout.pxd` describes it."""
    salt, start, top = word(raw, 24), word(raw, 352), word(raw, 448)
    offset, blocks = start, []
    while offset < top:
        tag = word(raw, offset)
        size = tag & 0x0000FFFFFFFFFFF0
        assert size >= 48
        rear = word(raw, offset + size - 8) ^ salt ^ ((offset + size) * GOLDEN & MASK)
        assert rear == size
        blocks.append((offset, size, STATES[tag & 15], tag >> 48))
        offset += size
    assert offset == top
    return blocks


@pytest.fixture
def raw(section_file):
    with shmem.SharedMemory(section_file, "label", max_size=1 << 20, max_participants=7) as section:
        block = section.allocate(100)
        memoryview(block)[:] = b"x" * 100
        section.set_root_object(block)
        section["a"] = [1.0, 2.0]
        section.free(section.allocate(5000))
        expected = block.offset
        uuid = section.uuid
    del block  # the last view: only now the section is left
    with open(section_file, "rb") as file:
        return file.read(), expected, uuid


def test_header(raw):
    data, root, uuid = raw
    assert data[:8] == MAGIC
    assert struct.unpack_from("<II", data, 8) == (1, 896)
    assert data[32:48] == uuid
    assert data[48:54] == b"label\0"
    assert word(data, 256) == 1 << 20
    assert word(data, 264) == 0
    assert struct.unpack_from("<IIII", data, 272) == (1, 7, 1, 0)
    assert len(data[288:324].decode().split("-")) == 5
    # participants, intents, index, heap start
    assert [word(data, offset) for offset in (328, 336, 344, 352)] == [4096, 8192, 12288, 24576]
    assert word(data, 360) == root
    assert word(data, 368) != 0
    assert len(data) % 4096 == 0
    assert word(data, 448) <= len(data)
    # gate, upgrade, heap gate: open
    assert [word(data, offset) for offset in (512, 576, 704)] == [0, 0, 0]


def test_heap(raw):
    data, root, _ = raw
    blocks = walk(data)
    assert blocks[0] == (root - 16, 128, "used", 0)
    assert data[root : root + 100] == b"x" * 100
    assert word(data, root - 8) >> 56 == 4  # slack: 104 bytes of payload, 100 asked for
    used = [block for block in blocks if block[2] == "used"]
    assert {state for _, _, state, _ in blocks} <= {"used", "hole"}
    assert sorted(type_id for _, _, _, type_id in used) == [0, 1, 2, 3]
    serials = [word(data, offset + 8) & (1 << 56) - 1 for offset, *_ in used]
    assert len(set(serials)) == len(serials)
    assert max(serials) < word(data, 472)


def test_array_header(raw):
    data, _, _ = raw
    ((offset, size, _, _),) = [block for block in walk(data) if block[3] == 1]
    payload = offset + 16
    assert payload % 64 == 0
    assert size % 64 == 0
    data_off, n_bytes, flags, n_dims, n_text, n_words, _ = struct.unpack_from("<QQIHHII", data, payload)
    assert (data_off % 64, n_bytes, flags, n_dims, n_words) == (0, 16, 0, 1, 1)
    assert struct.unpack_from("<Qq", data, payload + 32) == (2, 8)
    assert word(data, payload + 48) == 0  # no pin is left
    assert data[payload + 56 : payload + 56 + n_text] == b"'<f8'"
    assert struct.unpack_from("<dd", data, payload + data_off) == (1.0, 2.0)


@pytest.mark.parametrize(("offset", "change"), [(8, b"\x02"), (16, b"\xff\xff")])
def test_other_version_or_layout_is_refused(section_file, offset, change):
    shmem.SharedMemory(section_file, max_size=1 << 20).close()
    with open(section_file, "r+b") as file:
        file.seek(offset)
        file.write(change)
        file.seek(0)
        before = file.read()
    with pytest.raises(shmem.LayoutMismatch) as caught:
        shmem.SharedMemory(section_file, max_size=1 << 20)
    assert caught.value.status == shmem.Status.layout_mismatch
    with open(section_file, "rb") as file:
        assert file.read() == before
