"""A view of any block holds it: buffers of blocks and objects, and array fields."""

import gc
import os
import threading

import numpy as np
import pytest
from scribe import HEAP_GATE, PARTICIPANT, Scribe
from workers import in_child

import shmem
from shmem._base.layout import LAYOUT, OWNER_INDEX_MASK, PIN_SLOTS
from shmem._objects import lock

HEADER = LAYOUT["header_t"]
TEXT = b"not to be overwritten" + bytes(100)


class Body(shmem.Struct, type_name="tests.views.Body"):
    """An object with a number and an array field."""

    number: shmem.int64 = 5
    position: shmem.Array[shmem.float64, 3]


CHILD = """
import gc
import numpy as np
class Body(shmem.Struct, type_name="tests.views.Body"):
    number: shmem.int64 = 5
    position: shmem.Array[shmem.float64, 3]
section = shmem.SharedMemory(shared_name=args[0], mode=args[2])
first = memoryview(section["first"]) if args[1] == "record" else None
"""

VIEWS = {
    "memoryview": "view = memoryview(section['x'])",
    "frombuffer": "view = np.frombuffer(section['x'], np.uint8)",
    "ndarray": "view = np.ndarray((20,), np.uint8, section['x'])",
    "ndarray of a memoryview": "view = np.ndarray((20,), np.uint8, memoryview(section['x']))",
    "view of views": "view = np.frombuffer(memoryview(np.asarray(memoryview(section['x']))), np.uint8)[1:]",
    "slice": "view = memoryview(section['x'])[2:]; gc.collect()",
    "plain block of an object": "view = memoryview(section.block(section['x'].offset))",
    "object": "view = memoryview(section['x'])",
    "field": "view = section['x'].position",
}
OF_OBJECTS = "plain block of an object", "object", "field"
SHOW = "say(bytes(view)[:10].hex()); sys.stdin.readline()\n"


@pytest.fixture(params=["slot", "record"])
def kind(request, shm):
    """Where the pin is: a process keeps one in a slot of the header, those of further blocks in records."""
    shm["first"] = b"this view takes the slot"
    return request.param


@pytest.fixture
def take_slot(shm, kind):
    """Take this process's slot where the test is about a record."""
    view = memoryview(shm["first"]) if kind == "record" else None
    yield
    del view


def counts(shm):
    """Return how many records and slots there are."""
    scribe = Scribe(shm.path)
    return HEADER["n_pin_records"].read(scribe.bytes), HEADER["n_pin_slots"].read(scribe.bytes)


def make(shm, what):
    """Name a block or an object "x"."""
    if what in OF_OBJECTS:
        shm["x"] = shm.new(Body, position=(1, 2, 3))
    else:
        shm["x"] = TEXT


def look(shm, child, kind, what, then=SHOW, mode="read_write"):
    """Start a process that views "x" and shows its first bytes."""
    other = child(CHILD + VIEWS[what] + "\n" + then, shm.name, kind, mode)
    return other, other.hear()


def reuse(shm):
    """Allocate many blocks of several sizes, which would overwrite freed memory."""
    for size in (24, 60, len(TEXT), 200):
        for _ in range(50):
            memoryview(shm.allocate(size))[:] = b"\xee" * size


# -- deleted names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", VIEWS)
def test_deleted_block_stays_while_it_is_viewed(shm, kind, take_slot, what):
    make(shm, what)
    known = {"section": shm, "np": np, "gc": gc}
    blocks = shm.check_heap().blocks
    exec(VIEWS[what], known)
    content = bytes(known["view"])
    del shm["x"]
    assert shm.check_heap().blocks == blocks
    reuse(shm)
    assert bytes(known["view"]) == content
    blocks = shm.check_heap().blocks
    del known["view"]
    assert shm.check_heap().blocks == blocks - 1
    assert counts(shm) == (0, kind == "record")


@pytest.mark.parametrize("mode", ["read_write", "read_only"])
@pytest.mark.parametrize("what", VIEWS)
def test_deleted_block_stays_while_another_process_views_it(shm, child, kind, what, mode):
    make(shm, what)
    blocks = shm.check_heap().blocks
    other, before = look(shm, child, kind, what, 2 * SHOW + "view = None; say('gone'); sys.stdin.readline()", mode)
    assert counts(shm) == (kind == "record", 1)
    del shm["x"]
    assert shm.check_heap().blocks == blocks
    make(shm, "memoryview")  # the name can be used again immediately
    reuse(shm)
    other.tell()
    assert other.hear() == before
    blocks = shm.check_heap().blocks
    other.tell()
    assert other.hear() == "gone"
    assert shm.check_heap().blocks == blocks - 1
    other.tell()
    other.end()
    shm.check_heap()  # which drops the pin of the first view, alive at exit
    assert counts(shm) == (0, 0)


@pytest.mark.parametrize("what", VIEWS)
def test_viewed_block_is_not_freed_by_others(shm, child, kind, what):
    make(shm, what)
    other, before = look(shm, child, kind, what, 2 * SHOW)
    for target in (shm["x"], shm["x"].offset):
        with pytest.raises(shmem.InvalidBlock, match="another process has a view of this block") as caught:
            shm.free(target)
        assert caught.value.status == shmem.Status.pinned
    with pytest.raises(shmem.InvalidBlock, match="another process"):
        shmem.deallocate(shm["x"])
    shm.check_heap()
    other.tell()
    assert other.hear() == before
    other.tell()
    other.end()
    shm.free(shm["x"])
    shm.check_heap()


def test_block_named_again_stays(shm, take_slot):
    view = memoryview(shm.require("x", lambda: TEXT))
    block = shm["x"]
    del shm["x"]
    shm["y"] = block
    view.release()
    assert bytes(shm["y"]) == TEXT
    view = memoryview(shm["y"])
    shm.root = shm["y"]
    del shm["y"]
    view.release()
    assert bytes(shm.root) == TEXT
    shm.check_heap()


def test_unnamed_block_stays_after_its_last_view(shm, take_slot):
    block = shm.allocate(len(TEXT))
    memoryview(block)[:] = TEXT
    blocks = shm.check_heap().blocks
    view = memoryview(block)
    view.release()
    assert shm.check_heap().blocks == blocks
    assert bytes(block) == TEXT


def test_named_block_of_the_other_process_is_freed_with_the_last_of_two_views(shm, child, take_slot, kind):
    shm["x"] = TEXT
    view = memoryview(shm["x"])
    other, before = look(shm, child, kind, "memoryview", 2 * SHOW)
    del shm["x"]
    blocks = shm.check_heap().blocks
    view.release()
    assert shm.check_heap().blocks == blocks
    other.tell()
    assert other.hear() == before
    other.tell()
    other.end()
    assert shm.check_heap().blocks == blocks - 1


# -- the own process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", VIEWS)
def test_free_ignores_own_views(shm, take_slot, kind, what):
    make(shm, what)
    known = {"section": shm, "np": np, "gc": gc}
    exec(VIEWS[what], known)
    blocks = shm.check_heap().blocks
    shm.free(shm["x"].offset)
    assert shm.check_heap().blocks == blocks - 1
    assert counts(shm) == (0, kind == "record")
    new = shm.allocate(len(TEXT))
    view = memoryview(new)
    known.clear()  # dropped after another block has the place: only that one is pinned
    shm.check_heap()
    assert counts(shm) == ((1, 1) if kind == "record" else (0, 1))
    assert view.nbytes == len(TEXT)


def test_own_reallocation_ignores_own_views(shm, take_slot):
    block, _ = shm.allocate(100), shm.allocate(10)
    view = memoryview(block)
    small = shm.reallocate(block, 10)
    assert small.offset == block.offset
    large = shm.reallocate(small, 3000)
    assert large.offset != block.offset
    shm.check_heap()
    del view
    shm.check_heap()


@pytest.mark.parametrize("size", [10, 120, 5000])
def test_viewed_block_is_not_resized_by_others(shm, child, kind, size):
    shm["x"] = TEXT
    other, before = look(shm, child, kind, "memoryview", 2 * SHOW)
    with pytest.raises(shmem.InvalidBlock, match="another process has a view") as caught:
        shm.reallocate(shm["x"], size)
    assert caught.value.status == shmem.Status.pinned
    assert bytes(shm["x"]) == TEXT
    other.tell()
    assert other.hear() == before
    other.tell()
    other.end()
    assert shm.reallocate(shm["x"], size).nbytes == size


def test_closed_handle_keeps_the_block(section_file):
    shm = shmem.SharedMemory(section_file, max_size=1 << 20)
    shm["x"] = TEXT
    view = memoryview(shm["x"])
    del shm["x"]
    shm.close()
    with shmem.SharedMemory(section_file) as again:
        assert again.check_heap().blocks == 1
        reuse(again)
        assert bytes(view) == TEXT
        blocks = again.check_heap().blocks
        view.release()
        gc.collect()
        assert again.check_heap().blocks == blocks - 1


# -- array fields ---------------------------------------------------------------------------------------------


def pins_of_this_process(shm):
    scribe = Scribe(shm.path)
    return PARTICIPANT["pins"].read(scribe.bytes, scribe.entry_start((lock.participant(shm) & OWNER_INDEX_MASK) - 1))


@pytest.mark.damages
def test_array_field_pins_once_per_object(shm, take_slot):
    body = shm.new(Body, position=(1, 2, 3))
    before = pins_of_this_process(shm)
    assert body.number == 5
    body.position = (4, 5, 6)
    assert pins_of_this_process(shm) == before  # numbers and assignments take no view
    assert body.position[0] == 4
    assert pins_of_this_process(shm) == before + 1
    scribe = Scribe(shm.path)
    scribe[HEAP_GATE] = lock.participant(shm)  # a pin would have to wait for it
    for _ in range(10):
        assert body.position.tolist() == [4, 5, 6]
    view = body.position
    scribe[HEAP_GATE] = 0
    del body
    assert pins_of_this_process(shm) == before + 1
    del view
    assert pins_of_this_process(shm) == before


def test_objects_and_blocks_of_one_block_share_a_pin(shm, take_slot):
    shm["x"] = shm.new(Body)
    before = pins_of_this_process(shm)
    views = [shm["x"].position, memoryview(shm["x"]), memoryview(shm.block(shm["x"].offset)), shm["x"].position]
    assert pins_of_this_process(shm) == before + 1
    while views:
        assert pins_of_this_process(shm) == before + 1
        views.pop(0)
    assert pins_of_this_process(shm) == before


def test_plain_block_of_an_array_shares_its_pin(shm, child):
    shm["x"] = np.arange(5)
    offset = shmem.handle(shm["x"]).offset
    view = memoryview(shm.block(offset))
    del shm["x"]
    assert shm.check_heap().blocks == 1
    assert counts(shm) == (0, 0)
    view.release()
    assert shm.check_heap().blocks == 0


# -- threads, forks, kills ------------------------------------------------------------------------------------


def test_threads_share_one_pin(shm, take_slot):
    shm["x"], shm["y"] = TEXT, shm.new(Body)
    blocks = shm.check_heap().blocks

    def work():
        for _ in range(300):
            view, field = memoryview(shm["x"]), shm["y"].position
            assert view[0] == TEXT[0]
            assert len(field) == 3

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del shm["x"], shm["y"]
    assert shm.check_heap().blocks == blocks - 2


def test_views_after_fork(shm, take_slot, kind):
    shm["x"], shm["y"] = TEXT, shm.new(Body, position=(1, 2, 3))
    block, body = shm["x"], shm["y"]
    view, field = memoryview(block), body.position
    taken = counts(shm)

    def work():
        nonlocal view, field
        view.release()
        field = None
        assert counts(shm) == taken  # the parent's pins
        own, again = memoryview(block), body.position
        assert os.getpid() in shmem.info(block).pins
        assert os.getpid() in shmem.info(body).pins
        with pytest.raises(shmem.InvalidBlock, match="another process"):
            shm.free(block)
        assert again.tolist() == [1, 2, 3]
        own.release()
        shm.check_heap()

    assert in_child(work) == 0
    del shm["x"], shm["y"]
    reuse(shm)
    assert bytes(view) == TEXT
    assert field.tolist() == [1, 2, 3]
    assert counts(shm) == taken
    view = field = body = None
    assert counts(shm) == (0, kind == "record")
    shm.check_heap()


@pytest.mark.parametrize("way", ["sweep", "check_heap", "attach"])
def test_views_of_a_killed_process_do_not_count(shm, child, kind, way):
    shm["y"] = b"kept"
    shm["x"] = TEXT
    blocks = shm.check_heap().blocks
    other, _ = look(shm, child, kind, "memoryview", "named = memoryview(section['y'])\n" + SHOW)
    del shm["x"]
    assert shm.check_heap().blocks == blocks
    other.kill()
    if way == "sweep":
        assert shm.sweep() > len(TEXT)
    elif way == "attach":
        with_one_more = child("shmem.SharedMemory(shared_name=args[0]); say('there')", shm.name)
        assert with_one_more.hear() == "there"
        with_one_more.end()
    else:
        shm.check_heap()
    assert counts(shm) == (0, 0)
    assert shm.stats().blocks == blocks - 1
    shm.free(shm["y"])
    shm.check_heap()


def test_views_of_a_killed_process_do_not_prevent_free(shm, child, kind):
    """Whether its pin counts is asked of the kernel, before anything is swept."""
    shm["x"] = TEXT
    other, _ = look(shm, child, kind, "memoryview")
    offset = shm["x"].offset
    other.kill()
    shm.free(offset)
    assert counts(shm) == ((0, 1) if kind == "record" else (0, 0))  # of "first"
    shm.check_heap()
    assert counts(shm) == (0, 0)


# -- little memory, many views --------------------------------------------------------------------------------


def fill_up(shm):
    """Allocate all memory that is left."""
    size = 1 << 20
    blocks = []
    while size:
        try:
            blocks.append(shm.allocate(size, zero=False))
        except shmem.SectionFull:
            size //= 2
    return blocks


def test_full_section_can_be_read(shm):
    blocks = [shm.allocate(50) for _ in range(PIN_SLOTS + 1)]
    blocks += fill_up(shm)
    for block in blocks:
        memoryview(block)[:1] = b"x"
        assert bytes(block)[:1] == b"x"
    views = [memoryview(block) for block in blocks[:PIN_SLOTS]]
    with pytest.raises(shmem.SectionFull, match="view the block at offset"):
        memoryview(blocks[PIN_SLOTS])
    assert memoryview(blocks[0]).nbytes == blocks[0].nbytes
    shm.check_heap()
    views.pop().release()
    assert bytes(blocks[PIN_SLOTS])[:1] == b"x"
    for view in views:
        view.release()
    for block in blocks:
        shm.free(block)
    assert shm.check_heap().blocks == 0


def test_many_views(shm):
    blocks = [shm.allocate(24 + i % 300) for i in range(3000)]
    before = shm.stats()
    views = {i: memoryview(blocks[i]) for i in range(3000)}
    assert counts(shm) == (2999, 1)
    assert shm.stats().blocks == before.blocks
    for i in range(0, 3000, 3):
        shm.free(blocks[i])
        if i % 100 == 0:
            shm.check_heap()
    for i in sorted(views, key=lambda i: i * 7919 % 3001):
        views.pop(i).release()
        if i % 100 == 0:
            shm.check_heap()
    assert counts(shm) == (0, 0)
    assert shm.check_heap().blocks == 2000


def test_view_does_not_hinder_growth_in_place(shm):
    block = shm.allocate(100)
    memoryview(block)[:] = bytes(100)
    assert shm.reallocate(block, 100_000).offset == block.offset


def test_section_with_as_many_participants_as_possible(tmp_path):
    with shmem.SharedMemory(str(tmp_path / "many"), max_size=1 << 26, max_participants=60_000) as shm:
        shm["first"], shm["x"] = b"1", TEXT
        views = [memoryview(shm["first"]), memoryview(shm["x"])]
        assert counts(shm) == (1, 1)
        del shm["x"]
        shm.check_heap()
        assert bytes(views.pop()) == TEXT
        shm.check_heap()
        assert counts(shm) == (0, 1)


# -- copies ---------------------------------------------------------------------------------------------------


def test_snapshot_has_no_pins(shm, tmp_path, take_slot):
    shm["x"], shm["y"] = TEXT, b"kept"
    views = [memoryview(shm["x"]), memoryview(shm["y"])]
    del shm["x"]
    shm.snapshot(tmp_path / "copy")
    with shmem.SharedMemory(str(tmp_path / "copy")) as copy:
        assert set(copy) - {"first"} == {"y"}
        assert copy.check_heap().blocks == len(copy)
        assert counts(copy) == (0, 0)
        copy.free(copy["y"])
    assert bytes(views[0]) == TEXT
    shm.check_heap()
