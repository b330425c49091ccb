"""Files with any bytes changed, cut off or appended: each use returns a result or raises a documented error.

A child process uses the files, because these tests look for crashes, endless loops and unbounded memory.  `make fuzz` runs longer and is
guided by coverage.  The damage, and the use of a damaged file, are defined in `support/damaging.py` for both.
"""

import json
import os
import random
import select
import shutil
import tempfile

import damaged_images
import damaging
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmem
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    END_OF_ADDRESSES,
    INTENT_SWAP_SLOT,
    LAYOUT,
    MAX_SECTION_BYTES,
    PAGE_BYTES,
    STATE_USED,
    TYPE_GROUP,
    read_tag,
)

pytestmark = pytest.mark.damages

HEADER = LAYOUT["header_t"]
SETTINGS = settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

# Reports an undocumented error, and a section that is still open, which means that a reference to it was kept.
WORKER = """
import faulthandler, json, resource, traceback
sys.path.insert(0, args[0])
import damaging
if 'libasan' not in open('/proc/self/maps').read():  # AddressSanitizer's shadow memory is larger
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 31, 1 << 31))
say('ready')
for line in sys.stdin:
    path, program, n_times = json.loads(line)
    faulthandler.dump_traceback_later(20, exit=True)
    try:
        damaging.exercise(path, bytes.fromhex(program), n_times)
        outcome = 'ok' if os.stat(path).st_blocks * 512 < 1 << 26 else 'the file has grown without bounds'
    except BaseException:
        outcome = traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    say(json.dumps(outcome))
"""


class Worker:
    """A child process, started again after it has ended."""

    def __init__(self, child, folder, code=WORKER):
        self.child, self.code, self.path = child, code, os.path.join(folder, "section")
        self.process = None

    def use(self, content, program=damaging.EVERYTHING, n_times=6):
        """Run a program on a file with the given content."""
        with open(self.path, "wb") as file:
            file.write(content)
        if self.process is None:
            self.process = self.child(self.code, os.path.dirname(damaging.__file__))
            assert self.process.hear() == "ready"
        self.process.tell(json.dumps([self.path, program.hex(), n_times]))
        process, self.process = self.process, None
        if not select.select([process.process.stdout], [], [], 60)[0]:
            process.kill()
            raise AssertionError("the worker hangs")
        outcome = json.loads(process.hear())  # AssertionError if it crashed
        self.process = process
        assert outcome == "ok", outcome


@pytest.fixture
def folder():
    """A folder in memory, so that tests do not wait for a disk."""
    path = tempfile.mkdtemp(prefix="damaged-", dir="/dev/shm")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def worker(child, folder):
    return Worker(child, folder)


@pytest.fixture(scope="module")
def images():
    with tempfile.TemporaryDirectory(prefix="damaged-", dir="/dev/shm") as path:
        return damaged_images.images(path)


def test_undamaged_files_work(worker, images):
    for content in images.values():
        worker.use(content, bytes([damaging.CHECK, 0]), 200)
        worker.use(content, damaging.EVERYTHING, 200)


def test_damage_guided_by_hypothesis(worker, images):
    """Hypothesis chooses the damage and the program."""

    @SETTINGS
    @given(st.sampled_from(sorted(images)), st.randoms(use_true_random=False), st.binary(min_size=12, max_size=12), st.integers(0, 7))
    def one(name, rng, program, n):
        image = bytearray(images[name])
        damaging.change(image, rng)
        worker.use(bytes(image), bytes([damaging.CHECK]) + program if n == 0 else program)

    one()


def changed(images, rng, n):
    """Yield `n` images with random damage, which is faster than hypothesis."""
    names = sorted(images)
    for _ in range(n):
        image = bytearray(images[rng.choice(names)])
        damaging.change(image, rng)
        yield bytes(image)


def test_random_damage(worker, images):
    rng = random.Random(5)
    for image in changed(images, rng, 250):
        worker.use(image, rng.randbytes(12))


def test_files_that_check_accepts_can_be_used(worker, images):
    """A file that `check` reports as intact, or has repaired, is intact to a process that opens it."""
    for image in changed(images, random.Random(6), 400):
        worker.use(image, bytes([damaging.CHECK]))


@pytest.mark.parametrize("name", ["objects tlsf killed", "blocks next_fit"])
def test_every_field_of_the_header(worker, images, name):
    rng = random.Random(1)
    for field in damaging.NUMBERS:
        image = bytearray(images[name])
        for value in (0, 1, (1 << 64) - 1, END_OF_ADDRESSES, damaging.number(image, damaging.chain(image), field.offset, rng)):
            damaging.put(image, field.offset, value, field.size)
            worker.use(bytes(image), bytes([0, 1, 2, 3, 5, 11, 6, 15, 9]))


@pytest.mark.parametrize("anchor", ["directory_off", "types_off"])
def test_every_field_of_a_name_table(worker, images, anchor):
    """An offset is checked before an address is computed from it: the sanitizers report an address that overflows."""
    original = images["objects tlsf killed"]
    table_off = damaging.word(original, HEADER[anchor].offset)
    assert table_off
    for field in LAYOUT["name_table_t"].values():
        for value in (0, 1, table_off, len(original), (1 << 64) - 8, (1 << 64) - 1):
            image = bytearray(original)
            damaging.put(image, table_off + field.offset, value, field.size)
            worker.use(bytes(image), bytes([damaging.CHECK, 0, 2, 9, 10, 2]))


def test_every_field_of_a_group(worker, images):
    """Of groups with names in them, an empty one, and deleted ones that are yet to be emptied."""
    original = images["groups tlsf killed"]
    tags = {at: read_tag(damaging.word(original, at)) for at, _ in damaging.chain(original)}
    groups = [at + BLOCK_HEAD_BYTES for at, tag in tags.items() if (tag.state, tag.type_id) == (STATE_USED, TYPE_GROUP)]
    assert len(groups) == 6
    table_off = damaging.word(original, HEADER["directory_off"].offset)
    for group in groups:
        for field in LAYOUT["group_t"].values():
            for value in (1, table_off, *groups[:2], groups[-1], len(original), (1 << 64) - 8, (1 << 64) - 1):
                image = bytearray(original)
                damaging.put(image, group + field.offset, value, field.size)
                worker.use(bytes(image), bytes([damaging.CHECK, 0, 2, 9, 10, 16, 5, 2]))


def test_every_length(worker, images):
    """The file ends at a page border, one byte before or after it, inside the header, or after the section."""
    content = images["arrays tlsf"]
    ends = [HEADER["magic"].size, HEADER["top"].offset, HEADER.size, *range(0, len(content) + 1, PAGE_BYTES)]
    places = [n + more for n in ends for more in (-1, 0, 1)]
    for n in {100, *places} - {-1}:
        worker.use((content + b"\xff" * 5000)[:n], bytes([0, 2, 5, 9]))
    worker.use(content + bytes(100000), damaging.EVERYTHING)


def test_empty_name_is_damage(section_file):
    """A name of 0 bytes cannot be looked up; it is not listed, and the heap is reported as damaged."""
    with shmem.SharedMemory(section_file, max_size=1 << 16, max_participants=5) as section:
        section["name"] = b"bytes"
    with open(section_file, "r+b") as file:
        entry = LAYOUT["name_entry_t"]
        entry["name_bytes"].write_file(file.fileno(), 0, file.read().index(b"name") - entry.size)
    with shmem.SharedMemory(section_file) as section:
        assert list(section) == []
        with pytest.raises(shmem.HeapCorruption, match="a name does not lead to an entry"):
            section.check_heap()


IMPOSSIBLE = [
    *(("desired_address", address) for address in (1, PAGE_BYTES + 1, END_OF_ADDRESSES, (1 << 64) - 1)),
    *((field, (1 << 32) - 1) for field in ("top", "max_participants", "heap_start")),
]


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE)
def test_refused_file_is_named_and_not_modified(section_file, images, field, value):
    """For some of these addresses the kernel returns EPERM, which must not cause endless retries."""
    image = bytearray(images["nothing tlsf"])
    HEADER[field].write(image, value)
    with open(section_file, "wb") as file:
        file.write(image)
    with pytest.raises(shmem.NotASection, match=section_file):
        shmem.SharedMemory(section_file)
    with open(section_file, "rb") as file:
        assert file.read() == image


def test_intent_beyond_the_end_of_the_file(worker, images):
    """A section may be larger than its file; `check` works on a private copy that ends where the file ends."""
    slot_off = MAX_SECTION_BYTES - PAGE_BYTES
    image = bytearray(damaged_images.with_intent(images["arrays tlsf killed"], operation=INTENT_SWAP_SLOT, slot_off=slot_off, value=0))
    HEADER["max_size"].write(image, MAX_SECTION_BYTES)
    worker.use(bytes(image), bytes([damaging.CHECK]))


TOO_MUCH = pytest.param("x = bytearray(1 << 32)", marks=pytest.mark.no_sanitizer("its shadow is larger than the limit"))


@pytest.mark.parametrize("fault", ["os.abort()", "1 / 0", TOO_MUCH, "sys.exit(0)", "os._exit(0)"])
def test_planted_faults_are_detected(child, folder, images, fault):
    """The tests above detect each of these faults."""
    broken = Worker(child, folder, WORKER.replace("damaging.exercise(path, bytes.fromhex(program), n_times)", fault))
    with pytest.raises(AssertionError):
        broken.use(images["nothing tlsf"])


def test_hang_is_detected(child, folder, images):
    code = WORKER.replace("damaging.exercise(path, bytes.fromhex(program), n_times)", "time.sleep(30)").replace("later(20", "later(0.2")
    with pytest.raises(AssertionError, match="Timeout"):
        Worker(child, folder, code).use(images["nothing tlsf"])
