"""Small sections with blocks of every kind, as bytes, for `support/damaging.py` to damage.

Each is taken twice: as the last process leaves it, and as a kill leaves it, with a process attached, gates held, blocks in the
caches and pins set.  This does not need a kill: a copy of the file is not locked by a process.
"""

import os

import numpy as np

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    INTENT_FIRST_TYPE_SHIFT,
    INTENT_MOVE,
    INTENT_RESIZE,
    INTENT_SHRINK,
    INTENT_SWAP_SLOT,
    LAYOUT,
    PAGE_BYTES,
    SLOT_REMOVED,
    STATE_USED,
    TYPE_NAME_ENTRY,
    TYPE_PLAIN,
    read_tag,
)
from shmem._objects import directory

HEADER, BLOCK, INTENT = LAYOUT["header_t"], LAYOUT["block_t"], LAYOUT["intent_t"]
TABLE, SLOT = LAYOUT["name_table_t"], LAYOUT["name_slot_t"]

SIZE = 1 << 17
LEAST = {"max_size": SIZE, "max_participants": 5}


class Part(shmem.Struct, type_name="Part"):
    number: shmem.int32
    weight: shmem.float64
    next: shmem.Ref["Part"]
    other: shmem.Ref


class Whole(shmem.Struct, type_name="Whole"):
    flag: shmem.bool_
    name: shmem.Bytes[12]
    values: shmem.Array[shmem.int16, 5]
    first: shmem.Ref["Part"]
    guard: shmem.Mutex
    free: shmem.Semaphore
    done: shmem.Event
    z: shmem.complex64


def fill_nothing(section):
    """Leave the section empty."""


def fill_blocks(section):
    """Allocate blocks of all size classes, some aligned, and free every second one."""
    sizes = [0, 1, 25, 40, 200, 503, 1025, 2000]
    blocks = [section.allocate(size, align=align) for align in (16, 512) for size in sizes]
    for block in blocks:
        memoryview(block)[:] = b"x" * len(block)
    for block in blocks[::2]:
        section.free(block)
    section.root = section.reallocate(blocks[1], 700)
    section.free(section.allocate(5000))
    section.free(section.allocate(9000))
    section.allocate(10)


def fill_names(section):
    """Make a directory that has grown and has gaps."""
    section["block"] = b"bytes"
    block = section["block"]
    for i in range(120):
        section[f"name {i:03} {'n' * (i % 30)}"] = block
    for i in range(0, 120, 3):
        del section[f"name {i:03} {'n' * (i % 30)}"]


def fill_groups(section):
    """Make groups in groups, one of them with a table that grows, and a deleted one that is yet to be emptied."""
    for i in range(30):
        section[f"full/name {i}"] = b"bytes"
    section["a/deep/array"] = np.arange(5)
    section["a/queue"] = section.queue(2, "<i8")
    section.create_group("empty")
    section["deleted/array"] = np.arange(9)
    section["deleted/deep/bytes"] = b"in a group in a group"
    directory.remove_name(section, "deleted")


def fill_arrays(section):
    """Make arrays of many kinds, some of them reachable only through a view."""
    section["a"] = np.arange(30, dtype="<i2")
    section["f"] = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    section["record"] = np.zeros(3, [("x", "<f4"), ("n", "<i8", (2,)), ("s", "S3")])
    section["none"] = np.zeros((0, 3))
    section["number"] = np.array(5)
    section["times"] = np.array(["2020-01-01"], "M8[D]")
    section["text"] = np.array(["ab", "c"])
    section["bytes"] = b"x" * 70
    section["more"] = b"y" * 90
    kept = [section.zeros(20, temporary=True), section["a"], section.full(7, 3)]
    section.root = section["a"]
    return kept


def fill_objects(section):
    """Make objects that refer to one another, some of them in a cycle."""
    last = section.new(Part, number=3, weight=1.5, other=section.allocate(40))
    last.next = section.new(Part, number=2, next=section.new(Part, number=1, next=last))
    section.root = section.new(Whole, flag=True, name=b"whole", values=range(5), first=last)
    section["object"] = section.root
    section["part"] = last
    section.root.guard.acquire()
    section.root.free.signal(3)
    section.root.done.signal()


def fill_primitives(section):
    """Make synchronisation primitives in blocks of their own."""
    section.semaphore(2, name="semaphore")
    section.event(True, name="event")
    section.mutex(name="mutex").acquire()
    section.mutex(name="second").acquire()
    section.semaphore()


def fill_queues(section):
    """Make queues of records, byte strings and objects: empty, partly filled, full and shut down."""
    numbers = section.queue(5, "<i8", name="numbers")
    for i in range(5):
        numbers.put(i)
    strings = section.queue(4, bytes, max_bytes=20, name="strings")
    strings.put_many([b"", b"one", b"x" * 20])
    strings.get()
    records = section.queue(3, [("x", "<f4"), ("n", "<i8", (2,))], name="records")
    records.put((1.5, (1, 2)))
    parts = section.queue(2, Part, name="parts")
    parts.put(section.new(Part, number=1))
    section.queue(2, "<f8", name="empty")
    numbers.shutdown()


def fill_views(section):
    """Make blocks with views, one in a slot of the header, the others in records; some of the blocks have no name any more."""
    blocks = [section.allocate(30 + 10 * i) for i in range(6)]
    views = [memoryview(block) for block in blocks]
    for i in range(6):
        section[f"view {i}"] = blocks[i]
    for i in range(3):
        del section[f"view {i}"]
    whole = section.new(Whole, values=range(5))
    section.root = whole
    return [*views, whole.values]


def fill_messages(section):
    """Make arrays without a name that only messages keep, and one that has views, too."""
    shown = section.full(9, 3, temporary=True)
    for array in (section.full(20, 1, temporary=True), section.full((2, 5), 2.5), shown, shown):
        shmem.dumps(array)
    section.root = section.allocate(20)
    return shown


def fill_attributes(section):
    """Make a table of attributes that has grown, of objects of which some are gone."""
    section["array"], section["block"] = np.arange(9), b"block"
    section.attrs.update(title="section", empty=[], deep={"a": [1, {"b": 2.5}]}, dates=np.array(["2020-01-01"], "M8[D]"))
    section.entry("array").attrs.update(scale=np.float32(2.5), record=np.zeros(2, [("x", "<f4"), ("s", "S3")]), raw=b"raw", z=1 + 2j)
    for i in range(40):
        section[f"name {i:03}"] = b"x"
        section.entry(f"name {i:03}").attrs["text"] = "t" * i
    for i in range(0, 40, 3):
        del section[f"name {i:03}"]
    section.root = section["array"]
    del section["array"]


FILLS = {
    "attributes": fill_attributes,
    "messages": fill_messages,
    "nothing": fill_nothing,
    "blocks": fill_blocks,
    "names": fill_names,
    "groups": fill_groups,
    "arrays": fill_arrays,
    "objects": fill_objects,
    "primitives": fill_primitives,
    "views": fill_views,
    "queues": fill_queues,
}


def read_used(path):
    """Return the content of the file up to the page where its heap ends."""
    with open(path, "rb") as file:
        content = file.read()
    return content[: -(-HEADER["top"].read(content) // PAGE_BYTES) * PAGE_BYTES]


def as_killed(path, fill, **options):
    """Return the content that the file would have if its process were killed while it holds the lock."""
    with shmem.SharedMemory(path, **LEAST, **options) as section:
        kept = fill(section)
        with shmem.shared_lock(section), shmem.exclusive_lock(section):
            content = read_used(path)
    del kept
    return content


def with_intent(content, *, operation, slot_off, value, make=(0, 0), drop=(0, 0)):
    """Return the content after a kill during a change: participant 0 has an intent, and owns the heap gate."""
    content = bytearray(content)
    at = HEADER["intents_off"].read(content)
    for name, found in {"operation": operation, "slot_off": slot_off, "value": value, "make_off": make, "drop_off": drop}.items():
        INTENT[name].write(content, found, at)
    HEADER["heap_gate"].write(content, HEADER["lock_gate"].read(content))
    return bytes(content)


def with_intents(content):
    """Return an image for each kind of intent, both committed and not."""
    found, used = [], []
    offset, directory, top = (HEADER[name].read(content) for name in ("heap_start", "directory_off", "top"))
    while offset < top:
        tag = read_tag(BLOCK["tag"].read(content, offset))
        if tag.state == STATE_USED and tag.type_id == TYPE_PLAIN:
            used.append(offset)
        offset += tag.size
    one, two = used[0], used[-1]
    tag, serial = BLOCK["tag"].read(content, one), BLOCK["serial"].read(content, one)
    one_payload, two_payload = one + BLOCK_HEAD_BYTES, two + BLOCK_HEAD_BYTES

    def add(operation, slot_off, value, **places):
        found.append(with_intent(content, operation=operation, slot_off=slot_off, value=value, **places))

    for value in (tag, tag - BLOCK_ALIGN_BYTES):
        add(INTENT_RESIZE, one, value, make=(serial, one + 40), drop=(serial, one + 20))
        add(INTENT_SHRINK, one, value, make=(serial, 7), drop=(serial, 9))
        add(INTENT_MOVE, one, value, make=(two_payload, 0))
    if not directory:
        return found
    slots = range(directory + TABLE.size, top, SLOT.size)
    slot = next(SLOT["entry_off"].at(at) for at in slots if SLOT["entry_off"].read(content, at) > SLOT_REMOVED)
    for value in (SLOT["entry_off"].read(content, slot - SLOT["entry_off"].offset), SLOT_REMOVED):
        operation = INTENT_SWAP_SLOT | TYPE_NAME_ENTRY << INTENT_FIRST_TYPE_SHIFT
        add(operation, slot, value, make=(one_payload, two_payload), drop=(two_payload, 0))
    return found


def images(folder):
    """Return a dict from name to content of every image; `folder` is for temporary files."""
    found = {}
    for index in ("tlsf", "next_fit"):
        for name, fill in FILLS.items():
            if index == "next_fit" and name not in ("blocks", "arrays"):
                continue
            path = os.path.join(folder, f"{name}-{index}")
            found[f"{name} {index} killed"] = as_killed(path, fill, index=index)
            found[f"{name} {index}"] = read_used(path)
            os.unlink(path)
    path = os.path.join(folder, "grown")
    as_killed(path, fill_blocks)
    with shmem.SharedMemory(path, max_size=2 * SIZE) as section:
        section["large"] = np.zeros(1000)
        found["grown killed"] = read_used(path)
    found["grown"] = read_used(path)
    os.unlink(path)
    for i, content in enumerate(with_intents(found["arrays tlsf killed"])):
        found[f"intent {i}"] = content
    for i, content in enumerate(with_intents(found["blocks tlsf killed"])):
        found[f"intent of blocks {i}"] = content
    return found
