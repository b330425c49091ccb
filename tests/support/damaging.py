"""Damage to the file of a section, and every use of a damaged file.

`change` damages an image; it knows the layout and the values that cause trouble.  `exercise` opens the file and does everything that
a user can do.  Each step returns a result or raises an exception that the library documents; every other exception leaves
`exercise`.  Waits and sizes are bounded.  The tests and the fuzzer use both functions: the tests with a `random.Random` that hypothesis
drives, the fuzzer with one of its own and guided by coverage.

A *program* is a byte string: each byte is one of the steps.
"""

import contextlib
import io
import os
import struct
import types
import warnings

import numpy as np
from damaged_images import Part, Whole

import shmem
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    INTENT_FIRST_TYPE_SHIFT,
    INTENT_SECOND_TYPE_SHIFT,
    INTENT_SWAP_SLOT,
    INTENT_SWAP_TWO,
    LAYOUT,
    PAGE_BYTES,
    SERIAL_MASK,
    STATE_DOOMED,
    TAG_SIZE_MASK,
    TAG_SMALL,
    TYPE_FIRST_USER,
    TYPE_LAST_USER,
    TYPE_QUEUE,
    make_tag,
    read_tag,
    rear_tag,
)
from shmem._cli import check as _check

PROGRAM_BYTES = 12
WORD_BYTES, WORD_MASK = 8, (1 << 64) - 1
HEADER, BLOCK, INTENT = LAYOUT["header_t"], LAYOUT["block_t"], LAYOUT["intent_t"]
NUMBERS = [field for field in HEADER.values() if field.ctype in ("uint64", "uint32")]  # fields of the header
FIELDS = [field.offset for field in NUMBERS if field.name not in ("magic", "version", "fingerprint", "desired_address")]
TEXTS = [b"|O", b"O", b"<f8", b"<U9", b"|V0", b"|S0", b"M8[as]", b"[('x', '|O')]", b"[('x', '<f4', (2, 2))]", b"[" * 50, b"\xff\xfe", b"'",
         b"()", b"{}", b"1e999999", b"<f8\0", b"object", b"<f16", b"[('x', '<i8', 2147483647)]"]  # fmt: skip


# -- damaging -------------------------------------------------------------------------------------------------


def word(image, at):
    """Return eight bytes as a number, or 0 outside the image."""
    return struct.unpack_from("<Q", image, at)[0] if 0 <= at <= len(image) - WORD_BYTES else 0


def put(image, at, value, n_bytes=8):
    """Write a number if its place lies in the image."""
    if 0 <= at <= len(image) - n_bytes:
        image[at : at + n_bytes] = (value & (1 << 8 * n_bytes) - 1).to_bytes(n_bytes, "little")


def header(image, name):
    """Return a word of the header, or 0 where the image is too short."""
    return word(image, HEADER[name].offset)


def chain(image):
    """Return (offset, size) of the blocks, as far as the front tags lead."""
    found, at, top = [], header(image, "heap_start"), min(header(image, "top"), len(image))
    while 0 < at < top and len(found) < 2000:
        size = read_tag(word(image, at)).size
        if size < BLOCK_MIN_BYTES:
            break
        found.append((at, size))
        at += size
    return found


def seal(image, at, size):
    """Make a block's rear tag agree with this size."""
    put(image, at + size - BLOCK_REAR_BYTES, rear_tag(header(image, "salt"), size & WORD_MASK, at + size & WORD_MASK))


def place(image, blocks, rng):
    """Return the offset of a random word, preferring those that the library uses."""
    kind = rng.randrange(10)
    if blocks and kind < 6:
        at, size = blocks[rng.randrange(len(blocks))]
        if kind < 2:
            return at + WORD_BYTES * rng.randrange(len(BLOCK))
        if kind < 5:
            n_words = (size - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES) // WORD_BYTES
            return at + BLOCK_HEAD_BYTES + WORD_BYTES * rng.randrange(min(max(n_words, 1), 64))
        return at + size - BLOCK_REAR_BYTES
    if kind < 8:
        return FIELDS[rng.randrange(len(FIELDS))]
    if kind == 8:  # participants, intents, index
        return PAGE_BYTES + WORD_BYTES * rng.randrange(max(1, (header(image, "heap_start") - PAGE_BYTES) // WORD_BYTES % 8192))
    return WORD_BYTES * rng.randrange(max(1, len(image) // WORD_BYTES))


def number(image, blocks, at, rng):
    """Return a value that may cause trouble at `at`."""
    old, kind = word(image, at), rng.randrange(9)
    near = (-48, -16, -8, -1, 0, 1, 8, 16, 24, 48)[rng.randrange(10)]
    if kind == 0:
        return (0, 1, 2, 3, 4, 15, 16, WORD_MASK, 1 << 63, (1 << 63) - 1, (1 << 32) - 1, 1 << 31, 1 << 47, 1 << 56)[rng.randrange(14)]
    if kind == 1:
        return 1 << rng.randrange(64)
    if kind == 2:
        return old ^ 1 << rng.randrange(64)
    if kind == 3:
        return old + near
    if kind == 4:
        return word(image, WORD_BYTES * rng.randrange(max(1, len(image) // WORD_BYTES)))
    if kind == 5 and blocks:
        return blocks[rng.randrange(len(blocks))][0] + BLOCK_HEAD_BYTES + near
    if kind == 6:
        return (len(image), *(header(image, name) for name in ("top", "max_size", "heap_start")))[rng.randrange(4)] + near
    if kind == 7:
        return old & ~TAG_SIZE_MASK | rng.randrange(4096) * BLOCK_ALIGN_BYTES  # the size of a tag
    return rng.randrange(256)


def change_tag(image, blocks, rng):
    """Change the size, state or type of a tag, with a rear tag that agrees."""
    if blocks:
        at, size = blocks[rng.randrange(len(blocks))]
        step, another = BLOCK_ALIGN_BYTES, blocks[rng.randrange(len(blocks))][1]
        other = (size, size, size + step, size - step, another, BLOCK_MIN_BYTES, 1 << rng.randrange(4, 48))[rng.randrange(7)]
        types = [*range(TYPE_QUEUE + 1), TYPE_FIRST_USER, TYPE_FIRST_USER + 1, 99, TYPE_LAST_USER]
        serial = word(image, BLOCK["serial"].at(at)) + (0, 0, 1)[rng.randrange(3)]
        tag = make_tag(other & TAG_SIZE_MASK, rng.randrange(STATE_DOOMED + 2), types[rng.randrange(len(types))], serial & SERIAL_MASK)
        put(image, at, tag ^ (TAG_SMALL if rng.randrange(8) == 0 else 0))
        seal(image, at, other)


def put_clean(image, value):
    """Mark the image as closed or not."""
    put(image, HEADER["clean"].offset, value, HEADER["clean"].size)


def change_intent(image, blocks, rng):
    """Write the intent of a participant that was about to make a change."""
    if blocks:
        values = [blocks[rng.randrange(len(blocks))][0] + (0, 8, BLOCK_HEAD_BYTES)[rng.randrange(3)] for _ in range(7)]
        slot = values[0]
        values[1] = (word(image, slot), values[1], 0, 1)[rng.randrange(4)]
        image_at = header(image, "intents_off") + INTENT.size * rng.randrange(4)
        types = rng.randrange(20) << INTENT_FIRST_TYPE_SHIFT | rng.randrange(20) << INTENT_SECOND_TYPE_SHIFT
        put(image, image_at, rng.randrange(INTENT_SWAP_SLOT, INTENT_SWAP_TWO + 1) | types)
        for i, value in enumerate(values):
            put(image, INTENT["slot_off"].at(image_at) + WORD_BYTES * i, value if rng.randrange(6) else number(image, blocks, slot, rng))
        put_clean(image, 0)


def change_text(image, blocks, rng):
    """Overwrite the text of a dtype, or of something else."""
    text = TEXTS[rng.randrange(len(TEXTS))]
    texts = (b"<i2", b"<f8", b"[(", b"<i8", b"|S", b"M8", b"Part", b"int32", b"name", b"dict", b"scalar")
    known = [at for at in map(image.find, texts) if at > 0]
    if known:
        at = known[rng.randrange(len(known))]
        image[at : at + len(text)] = text


def change_length(image, blocks, rng):
    """Make the file shorter or longer."""
    if rng.randrange(2):
        del image[rng.randrange(max(1, len(image))) :]
    else:
        image.extend(bytes([rng.randrange(256)]) * rng.randrange(1, 5000))


def change_region(image, blocks, rng):
    """Copy one piece over another, or exchange both."""
    if len(image) > 64:
        n = min(8 << rng.randrange(8), len(image) // 2)
        one, two = (place(image, blocks, rng) % (len(image) - n) for _ in range(2))
        there = image[two : two + n]
        image[two : two + n] = image[one : one + n]
        if rng.randrange(2):
            image[one : one + n] = there


def change_bytes(image, blocks, rng):
    """Change a byte or a half word."""
    at = place(image, blocks, rng) + rng.randrange(8)
    if rng.randrange(2):
        put(image, at, rng.randrange(256), 1)
    else:
        put(image, at & ~3, number(image, blocks, at, rng), 4)


def change_word(image, blocks, rng):
    """Change a word."""
    at = place(image, blocks, rng)
    put(image, at, number(image, blocks, at, rng))


CHANGES = [change_word] * 9 + [change_bytes] * 3 + [change_tag] * 4 + [change_intent] * 2 + [change_text, change_length, change_region]


def change(image, rng):
    """Damage a `bytearray` in one to six places; sometimes so that its rear tags agree with its front tags."""
    for _ in range(rng.randrange(1, 7)):
        CHANGES[rng.randrange(len(CHANGES))](image, chain(image), rng)
    if rng.randrange(4) == 0:
        put_clean(image, rng.randrange(2))
    if rng.randrange(4) == 0:
        for at, size in chain(image):
            seal(image, at, size)


# -- reading the contents -------------------------------------------------------------------------------------


class Finding(Exception):
    """The library returned something that it must not return."""


def inside(section, address, n_bytes):
    """Raise `Finding` for memory that lies outside the section."""
    if n_bytes and not section.address <= address <= address + n_bytes <= section.address + section.max_size:
        raise Finding(f"{n_bytes:,} bytes at {address - section.address:#x} of a section of {section.max_size:,}")


def look(section, found, depth=6):
    """Read everything that `found` contains, and use it."""
    if not isinstance(found, np.ndarray):
        repr(found)
    if isinstance(found, shmem.Block):
        inside(section, section.address + found.offset, found.nbytes)
        bytes(found)
    elif isinstance(found, np.ndarray):
        lowest, highest = np.lib.array_utils.byte_bounds(found)
        inside(section, lowest, highest - lowest)
        if found.dtype.hasobject:
            raise Finding(f"an array of Python objects: {found.dtype}")
        content = found.copy()
        if found.flags.writeable:
            found[...] = content
    elif isinstance(found, shmem.Queue):
        use_queue(found)
    elif isinstance(found, shmem.Group):
        look_at_group(section, found, depth)
    elif isinstance(found, shmem.Semaphore):
        found.signal()
        found.wait(timeout=0)
    elif isinstance(found, shmem.Event):
        found.wait(timeout=0)
        found.signal()
        found.reset()
    elif isinstance(found, shmem.Mutex):
        if found.acquire(timeout=0.001):
            found.release()
    elif isinstance(found, shmem.Struct):
        look_at_fields(section, found, depth)


def look_at_group(section, found, depth):
    with contextlib.suppress(KeyError):
        for name in list(found)[: 4 if depth else 0]:
            with contextlib.suppress(shmem.ShmemError, KeyError):
                look(section, found[name], depth - 1)


def look_at_fields(section, found, depth):
    """Look at each field of an object, and at the objects that it refers to."""
    for name in getattr(type(found), "__annotations__", {}) or [name for name in dir(type(found)) if not name.startswith("_")]:
        with contextlib.suppress(shmem.ShmemError):
            value = getattr(found, name)
            if isinstance(value, (shmem.Block, shmem.Struct, shmem.Queue)) and depth == 0:
                continue
            if not isinstance(value, types.MethodType):
                look(section, value, depth - 1)


def use_queue(queue):
    """Put and get without waiting."""
    queue.qsize(), queue.full(), queue.empty(), queue.is_shutdown
    for use in (
        lambda: queue.get(timeout=0),
        lambda: queue.put(queue.get(timeout=0), timeout=0),
        lambda: queue.get_many(3, timeout=0),
        lambda: queue.put_many(queue.get_many(2, timeout=0), timeout=0),
        queue.shutdown,
    ):
        with contextlib.suppress(shmem.ShmemError):
            use()


# -- the steps ------------------------------------------------------------------------------------------------


class Session:
    """An opened section, and the blocks that were allocated in it."""

    def __init__(self, section, n_times):
        self.section = section
        self.n_times = n_times
        self.blocks = []

    def check(self):
        self.section.check_heap()

    def stats(self):
        self.section.stats()
        self.section.label, self.section.index, self.section.uuid, self.section.owner_deaths, repr(self.section)
        self.section._repr_html_(), str(self.section.tree())

    def names(self):
        found = list(self.section)
        for name in [*found[:40], "a", "name 001 n", "no such name"]:
            with contextlib.suppress(shmem.ShmemError, KeyError):
                look(self.section, self.section[name])

    def root(self):
        look(self.section, self.section.root)

    def blocks_by_offset(self):
        start = self.section._header_facts()["heap_start"]
        for offset in [*range(start, start + 320 * self.n_times, BLOCK_ALIGN_BYTES), 0, 16, 8, self.section.max_size - BLOCK_ALIGN_BYTES]:
            with contextlib.suppress(shmem.ShmemError):
                look(self.section, self.section.block(offset + BLOCK_HEAD_BYTES))

    def allocate(self):
        for i in range(self.n_times):
            size = (0, 40, 100, 1000, 3000, 24, 500, 17, 2000, 6000)[i % 10]
            self.blocks.append(self.section.allocate(size, zero=i % 3 > 0, align=(16, 16, 64, 16, 256, 4096)[i % 6]))
            inside(self.section, self.blocks[-1].address, self.blocks[-1].nbytes)
            memoryview(self.blocks[-1])[:] = b"\xee" * self.blocks[-1].nbytes

    def free(self):
        while self.blocks:
            self.section.free(self.blocks.pop(0))

    def reallocate(self):
        for size in (10, 400, 3000, 50, 20000, 1):
            for i in range(len(self.blocks[:6])):
                self.blocks[i] = self.section.reallocate(self.blocks[i], size, zero=size != 400)
                memoryview(self.blocks[i])[:] = b"\xdd" * self.blocks[i].nbytes
        self.section.root = self.blocks[0] if self.blocks else None

    def free_foreign(self):
        start = self.section._header_facts()["heap_start"]
        for offset in range(start, start + 320 * self.n_times, BLOCK_MIN_BYTES):
            with contextlib.suppress(shmem.ShmemError):
                self.section.free(offset + BLOCK_HEAD_BYTES)

    def name(self):
        for i in range(self.n_times):
            self.section[f"new {i}"] = b"x" * i
            self.section[f"group/deep/new {i}"] = b"x" * i
        self.section["same"] = self.section["new 0"]

    def unname(self):
        for name in list(self.section)[: 2 * self.n_times]:
            with contextlib.suppress(KeyError):
                del self.section[name]

    def arrays(self):
        array = self.section.zeros((3, 5), "<i4", temporary=True)
        array += 1
        view = array[1:, ::2]
        self.section["array"] = np.arange(300)
        del array
        self.section.root = self.section["array"]
        del self.section["array"], view

    def objects(self):
        part = self.section.new(Part, number=1, weight=2.5)
        whole = self.section.new(Whole, name=b"new", first=part)
        part.next = part
        self.section["new object"] = whole
        with whole.guard:
            look(self.section, whole)
        self.section.root = whole

    def primitives(self):
        for one in (self.section.semaphore(1), self.section.event(), self.section.mutex(), self.section.mutex()):
            look(self.section, one)

    def queues(self):
        for record, item, options in (("<i8", 1, {}), (bytes, b"one", {"max_bytes": 20}), (Part, None, {})):
            queue = self.section.queue(3, record, **options)
            with contextlib.suppress(shmem.ShmemError):
                queue.put(item if item is not None else self.section.new(Part, number=1), timeout=0)
            use_queue(queue)

    def lock(self):
        with shmem.shared_lock(self.section, timeout=0.001), shmem.exclusive_lock(self.section, timeout=0.001):
            self.section.stats()
        with shmem.exclusive_lock(self.section, timeout=0), shmem.shared_lock(self.section, timeout=0):
            pass

    def trim(self):
        self.section.trim()
        self.section.sweep()
        self.section.sweep(claims=0)
        self.section.flush()

    def attributes(self):
        entries = []
        for name in list(self.section)[:10]:
            with contextlib.suppress(shmem.ShmemError, KeyError, TypeError):
                entries.append(self.section.entry(name))
        for attrs in [self.section.attrs, *(entry.attrs for entry in entries)]:
            for use in (
                lambda attrs=attrs: dict(attrs.items()),
                lambda attrs=attrs: repr(attrs) + attrs._repr_html_(),
                lambda attrs=attrs: attrs.update(new="n" * 100, scale=[1, 2]),
                lambda attrs=attrs: attrs.pop("new"),
                lambda attrs=attrs: attrs.clear(),
                lambda attrs=attrs: attrs.setdefault("new", 5),
            ):
                with contextlib.suppress(shmem.ShmemError, KeyError):
                    use()

    def snapshot(self):
        copy = self.section.path + ".copy"
        try:
            self.section.snapshot(copy)
            with shmem.SharedMemory(copy) as other:
                other.check_heap()
                other.allocate(100)
                list(other)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)


STEPS = [
    Session.check, Session.stats, Session.names, Session.root, Session.blocks_by_offset, Session.allocate, Session.free, Session.reallocate,
    Session.free_foreign, Session.name, Session.unname, Session.arrays, Session.objects, Session.primitives, Session.queues, Session.lock,
    Session.trim, Session.snapshot, Session.attributes,
]  # fmt: skip
CHECK = 0xFF  # as the first byte of a program: run the command `check` too
EVERYTHING = bytes([*range(len(STEPS)), 5, 7, 6, 9, 5, 0])


def session(path, program, n_times, **options):
    """Open the file, run the steps, close it."""
    with contextlib.suppress(shmem.ShmemError), shmem.SharedMemory(path, **options) as section:
        opened = Session(section, n_times)
        for step in program:
            with contextlib.suppress(shmem.ShmemError):
                STEPS[step % len(STEPS)](opened)


def check_command(path):
    """Run `python -m shmem check` with a repair; a file that it reports as intact or repaired must be intact."""
    for options in ((False, True), (True, False)):
        with contextlib.redirect_stdout(io.StringIO()):
            report = _check.examine(path, *options)
            _check.print_report(report, io.StringIO())
        if report.copy:
            os.unlink(report.copy)
        if report.state in ("intact", "repaired"):
            with shmem.SharedMemory(path) as section:
                section.check_heap()


def exercise(path, program, n_times=6, **options):
    """Run a program on a file.

    Raises
    ------
    Exception
        Any exception that the library does not document.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
        if program[:1] == bytes([CHECK]):
            check_command(path)
        session(path, program, n_times, **options)
        if len(program) < 2 or program[1] & 1:
            session(path, [0, 2, 3, 1, 15], n_times, mode="read_only", **options)
        else:
            session(path, [9, 5, 0], n_times, max_size=1 << 18, **options)
