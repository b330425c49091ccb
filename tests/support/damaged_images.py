"""Small sections with something of everything in them, as bytes: what is damaged by `support/damaging.py`.

Each is taken twice: as the last process out leaves it, and as a kill would, with a process attached, gates held, blocks in the
caches and pins set.  In a test nobody need be killed for that: a copy of the file has no process that locks a byte of it.
"""

import os
import struct

import numpy as np

import shmem

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
    """A fresh section."""


def fill_blocks(section):
    """Blocks of all classes of size, every second one freed again; aligned ones among them."""
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
    """A directory that has grown, with gaps."""
    section["block"] = b"bytes"
    block = section["block"]
    for i in range(120):
        section[f"name {i:03} {'n' * (i % 30)}"] = block
    for i in range(0, 120, 3):
        del section[f"name {i:03} {'n' * (i % 30)}"]


def fill_arrays(section):
    """Arrays of many kinds, some of which nothing leads to but a view."""
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
    """Objects that refer to one another, in a ring too."""
    last = section.new(Part, number=3, weight=1.5, other=section.allocate(40))
    last.next = section.new(Part, number=2, next=section.new(Part, number=1, next=last))
    section.root = section.new(Whole, flag=True, name=b"whole", values=range(5), first=last)
    section["object"] = section.root
    section["part"] = last
    section.root.guard.acquire()
    section.root.free.signal(3)
    section.root.done.signal()


def fill_primitives(section):
    """What to wait for, on its own."""
    section.semaphore(2, name="semaphore")
    section.event(True, name="event")
    section.mutex(name="mutex").acquire()
    section.mutex(name="second").acquire()
    section.semaphore()


def fill_queues(section):
    """Queues of records, of byte strings and of objects: empty, with something in them, full, shut down."""
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


FILLS = {
    "nothing": fill_nothing,
    "blocks": fill_blocks,
    "names": fill_names,
    "arrays": fill_arrays,
    "objects": fill_objects,
    "primitives": fill_primitives,
    "queues": fill_queues,
}


def read_used(path):
    """The file up to the page where its heap ends."""
    with open(path, "rb") as file:
        content = file.read()
    top = struct.unpack_from("<Q", content, 448)[0]
    return content[: -(-top // 4096) * 4096]


def as_killed(path, fill, **options):
    """What the file would hold if its process were killed with the lock in hand."""
    with shmem.SharedMemory(path, **LEAST, **options) as section:
        kept = fill(section)
        with shmem.shared_lock(section), shmem.exclusive_lock(section):
            content = read_used(path)
    del kept
    return content


def with_intent(content, *, operation, slot_off, value, make=(0, 0), drop=(0, 0)):
    """The same, killed in the middle of a change: participant 0 had said what it was about to do, and had the heap's gate."""
    content = bytearray(content)
    struct.pack_into("<7Q", content, 8192, operation, slot_off, value, *make, *drop)
    content[704:712] = content[512:520]
    return bytes(content)


def with_intents(content):
    """One for each kind of intent, decided and not."""
    found, used = [], []
    offset, directory, top = (struct.unpack_from("<Q", content, at)[0] for at in (352, 368, 448))
    while offset < top:
        tag = struct.unpack_from("<Q", content, offset)[0]
        if tag & 15 == 3 and tag >> 48 == 0:
            used.append(offset)
        offset += tag & 0xFFFFFFFFFFF0
    one, two = used[0], used[-1]
    tag, serial = struct.unpack_from("<QQ", content, one)
    for value in (tag, tag - 16):
        found.append(with_intent(content, operation=2, slot_off=one, value=value, make=(serial, one + 40), drop=(serial, one + 20)))
        found.append(with_intent(content, operation=4, slot_off=one, value=value, make=(serial, 7), drop=(serial, 9)))
        found.append(with_intent(content, operation=3, slot_off=one, value=value, make=(two + 16, 0)))
    if not directory:
        return found
    slot = next(at for at in range(directory + 24, top, 16) if struct.unpack_from("<Q", content, at)[0] > 1)
    for value in (struct.unpack_from("<Q", content, slot)[0], 1):
        found.append(with_intent(content, operation=1 | 3 << 16, slot_off=slot, value=value, make=(one + 16, two + 16), drop=(two + 16, 0)))
    return found


def images(folder):
    """Name to content of every image; `folder` is for files that are made meanwhile."""
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
