"""The operations on the heap, arrays, names and objects that `crashtest` kills in the middle; the table of all operations.

`ready(shm)` prepares an operation, and `run(shm, it)` gets its result; the kill may come at any instruction of `run`.  Both run in
the process that will be killed.  `beside(shm)` is a context manager, which another process enters meanwhile.

Every section begins with the same content (`furnish`).  After a kill, a process must see what `run` found, what it left, or one of the
observations that `between` derives from these two.  More operations are in `testing.crash.operations_attributes`,
`testing.crash.operations_groups`, `testing.crash.operations_waiting` and `testing.crash.operations_processes`.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

import shmem

OPERATIONS = {}
LARGE = 1500  # larger than the blocks that the heap caches when freed
SMALL = 100
FULL = 24  # names that the first table of names holds; the next one holds four times as many


@dataclasses.dataclass(frozen=True)
class Operation:
    """An entry of the table of operations."""

    name: str
    ready: Callable
    run: Callable
    beside: Callable | None = None
    """The activity of a live participant beside the victim."""
    let_go_after: int = 0
    """Number of changes after which that activity ends; 0: not before the end."""
    alone: bool = False
    """No other process is attached: the victim is the first to come or the last to leave."""
    opens: bool = False
    """`run` opens the section itself and gets its path instead."""
    same: bool = False
    """What users see is the same before and after."""
    between: Callable | None = None
    """`between(before, after)` returns other observations that are allowed."""
    small: bool = True
    """Few instructions: part of `--quick`."""
    index: str = "tlsf"
    forks: bool = False
    """The operation starts a process or a thread: all entries of the table are taken."""
    follows: bool = False
    """The process or thread that `run` starts is stepped; the kill ends both."""


def operation(name, **how):
    """Add a generator function to the table: up to its `yield` it prepares, the rest is the operation."""

    def register(function):
        def ready(shm):
            running = function(shm)
            next(running)
            return running

        def run(shm, running):
            for _ in running:
                pass

        OPERATIONS[name] = Operation(name, ready, run, **how)
        return function

    return register


def furnish(shm):
    """Put an array, a text, a mutex and a root object into a section."""
    shm["kept"] = np.arange(20)
    shm["text"] = b"not to be lost"
    shm.mutex(name="mutex")
    block = shm.allocate(200)
    memoryview(block)[:] = bytes(range(200))
    shm.root = block


def fill(block, byte=0xAA):
    """Fill a block with a byte that is not zero, so that bytes that should have been cleared show."""
    memoryview(block)[:] = bytes([byte]) * block.nbytes
    return block


def row(shm, *sizes):
    """Return filled blocks side by side."""
    return [fill(shm.allocate(size)) for size in sizes]


def hole(shm, size, *around):
    """Make a hole of a freed block's size between used blocks."""
    _, middle, _ = row(shm, SMALL, size, SMALL)
    shm.free(middle)


# -- allocate -------------------------------------------------------------------------------------------------

for index in ("tlsf", "next_fit"):
    suffix = "" if index == "tlsf" else ", next_fit"

    @operation("allocate: split a hole" + suffix, index=index)
    def _(shm):
        hole(shm, 4000)
        yield
        shm.allocate(LARGE, zero=False)

    @operation("allocate: exact fit" + suffix, index=index)
    def _(shm):
        hole(shm, LARGE)
        yield
        shm.allocate(LARGE, zero=False)

    @operation("allocate: aligned, in a hole" + suffix, index=index)
    def _(shm):
        hole(shm, 6000)
        yield
        shm.allocate(SMALL, align=1024)

    @operation("free: both neighbours are holes" + suffix, index=index)
    def _(shm):
        blocks = row(shm, LARGE, LARGE, LARGE, LARGE)
        shm.free(blocks[0])
        shm.free(blocks[2])
        yield
        shm.free(blocks[1])


@operation("allocate: clear a dirty hole")
def _(shm):
    hole(shm, LARGE)
    yield
    shm.allocate(LARGE)


@operation("allocate: above the last block")
def _(shm):
    shm.allocate(SMALL)
    yield
    shm.allocate(SMALL)


@operation("allocate: the first backing")
def _(shm):
    yield
    shm.allocate(3000)


@operation("allocate: aligned, above the last block")
def _(shm):
    shm.allocate(SMALL)
    yield
    shm.allocate(SMALL, align=1024)


@operation("allocate: a cached block")
def _(shm):
    shm.free(row(shm, SMALL, SMALL)[0])
    yield
    shm.allocate(SMALL)


@operation("allocate: empty the cache", small=False)
def _(shm):
    blocks = row(shm, *[SMALL] * 30)
    with contextlib.suppress(shmem.SectionFull):
        while True:
            shm.allocate(LARGE, zero=False)
    for block in blocks[1:-1]:
        shm.free(block)
    yield
    shm.allocate(1600)


@operation("allocate: no room", same=True)
def _(shm):
    yield
    with contextlib.suppress(shmem.SectionFull):
        shm.allocate(60000)


# -- free -----------------------------------------------------------------------------------------------------


@operation("free: no neighbour is a hole")
def _(shm):
    blocks = row(shm, LARGE, LARGE, LARGE)
    yield
    shm.free(blocks[1])


@operation("free: a hole before")
def _(shm):
    blocks = row(shm, LARGE, LARGE, LARGE)
    shm.free(blocks[0])
    yield
    shm.free(blocks[1])


@operation("free: a hole behind")
def _(shm):
    blocks = row(shm, LARGE, LARGE, LARGE)
    shm.free(blocks[1])
    yield
    shm.free(blocks[0])


@operation("free: the last block")
def _(shm):
    blocks = row(shm, LARGE, LARGE)
    yield
    shm.free(blocks[1])


@operation("free: the last block, a hole before")
def _(shm):
    blocks = row(shm, LARGE, LARGE)
    shm.free(blocks[0])
    yield
    shm.free(blocks[1])


@operation("free: into the cache")
def _(shm):
    blocks = row(shm, SMALL, SMALL)
    yield
    shm.free(blocks[0])


@operation("free: the root object")
def _(shm):
    yield
    shm.free(shm.root)


@operation("trim", same=True)
def _(shm):
    shm.free(shm.allocate(20000))
    shm.free(shm.allocate(SMALL))
    yield
    shm.trim()


# -- reallocate -----------------------------------------------------------------------------------------------


@operation("reallocate: grow in place")
def _(shm):
    blocks = row(shm, 101, LARGE, SMALL)
    shm.free(blocks[1])
    yield
    shm.reallocate(blocks[0], 400)


@operation("reallocate: grow in place, the whole hole")
def _(shm):
    blocks = row(shm, 101, LARGE, SMALL)
    shm.free(blocks[1])
    yield
    shm.reallocate(blocks[0], 101 + LARGE)


@operation("reallocate: grow within the slack")
def _(shm):
    blocks = row(shm, 97, SMALL)
    yield
    shm.reallocate(blocks[0], 103)


@operation("reallocate: grow at the end")
def _(shm):
    blocks = row(shm, SMALL, 101)
    yield
    shm.reallocate(blocks[1], 700)


@operation("reallocate: shrink")
def _(shm):
    blocks = row(shm, 2000, SMALL)
    yield
    shm.reallocate(blocks[0], 301)


@operation("reallocate: move")
def _(shm):
    blocks = row(shm, 301, SMALL)
    yield
    shm.reallocate(blocks[0], 500)


@operation("reallocate: move the root")
def _(shm):
    row(shm, SMALL)
    yield
    shm.reallocate(shm.root, 500)


# -- arrays and names -----------------------------------------------------------------------------------------


@operation("array: without a name")
def _(shm):
    yield
    shm.full(30, 7)


@operation("array: with a name")
def _(shm):
    yield
    shm.full(30, 7, name="new")


@operation("array: large, with a name", small=False)
def _(shm):
    hole(shm, 4000)
    yield
    shm.zeros(400, name="new")


@operation("array: temporary, made and dropped", same=True, small=False)
def _(shm):
    row(shm, SMALL)
    yield
    shm.full(30, 7, temporary=True)


@operation("directory: the first name")
def _(shm):
    for name in list(shm):
        del shm[name]
    yield
    shm["new"] = b"value"


@operation("directory: assign a list")
def _(shm):
    yield
    shm["new"] = [1.5, 2.5, 3.5]


@operation("directory: the slot of a deleted name")
def _(shm):
    shm["new"] = b"old"
    del shm["new"]
    yield
    shm["new"] = b"value"


@operation("directory: name an existing block")
def _(shm):
    (block,) = row(shm, SMALL)
    yield
    shm["new"] = block


@operation("directory: a second name for an array")
def _(shm):
    array = shm["kept"]
    yield
    shm["new"] = array


def fill_names(shm, n_names):
    """Assign names until there are `n_names`."""
    for i in range(n_names - len(shm)):
        shm[f"name {i}"] = b"v"


@operation("directory: insert, a larger table is made", small=False)
def _(shm):
    fill_names(shm, FULL)
    yield
    shm["new"] = b"value"


@operation("directory: insert, entries move to the larger table", small=False)
def _(shm):
    fill_names(shm, 4 * FULL + 2)
    yield
    shm["new"] = b"value"


@operation("directory: insert, the last entries move", small=False)
def _(shm):
    fill_names(shm, FULL + 1)
    yield
    shm["new"] = b"value"


@operation("directory: delete, entries move to the larger table", small=False)
def _(shm):
    fill_names(shm, 4 * FULL + 2)
    yield
    del shm["name 90"]


@operation("directory: overwrite refused", same=True)
def _(shm):
    yield
    with contextlib.suppress(shmem.NameExists):
        shm["kept"] = [1, 2, 3]


@operation("directory: delete")
def _(shm):
    yield
    del shm["kept"]


@operation("directory: pop")
def _(shm):
    yield
    shm.pop("kept")


@operation("directory: pop a mutex")
def _(shm):
    yield
    shm.pop("mutex")


@operation("directory: delete one of two names")
def _(shm):
    shm["new"] = shm["kept"]
    yield
    del shm["kept"]


@operation("directory: delete the root's name")
def _(shm):
    shm.root = shm["kept"]
    yield
    del shm["kept"]


@contextlib.contextmanager
def _looking(shm):
    array = shm["kept"]
    yield
    assert array[7] == 7


@operation("directory: delete an array that another process views", beside=_looking)
def _(shm):
    yield
    del shm["kept"]


@operation("directory: delete an array with a view of its own")
def _(shm):
    array = shm["kept"]
    yield
    del shm["kept"]
    del array


@operation("root: set")
def _(shm):
    (block,) = row(shm, SMALL)
    yield
    shm.root = block


@operation("root: unset")
def _(shm):
    yield
    shm.root = None


@operation("pins: get an array, drop it", same=True)
def _(shm):
    yield
    array = shm["kept"]
    del array


@operation("pins: drop the last view of a deleted array", same=True)
def _(shm):
    array = shm["kept"]
    del shm["kept"]
    views = [array]
    del array
    yield
    views.clear()


def _both(shm):
    """Return blocks: of the first a view is kept by a slot of the header, of the second by a record of pins."""
    return [shm["text"], fill(shm.allocate(LARGE))]


@operation("pins: view a block", same=True)
def _(shm):
    (block, _), views = _both(shm), []
    yield
    views.append(memoryview(block))


@operation("pins: view a second block", same=True)
def _(shm):
    blocks, views = _both(shm), []
    views.append(memoryview(blocks[0]))
    yield
    views.append(memoryview(blocks[1]))


@operation("pins: release the views of blocks", same=True, small=False)
def _(shm):
    views = [memoryview(block) for block in _both(shm)]
    yield
    for view in views:
        view.release()


for place in ("slot", "record"):

    @operation(f"pins: delete a block with a view of its own, {place}")
    def _(shm, place=place):
        blocks = _both(shm)
        shm["other"] = blocks[1]
        views = [memoryview(block) for block in blocks]
        yield
        del shm["text" if place == "slot" else "other"]
        views.clear()

    @operation(f"pins: release the last view of a deleted block, {place}", same=True)
    def _(shm, place=place):
        blocks = _both(shm)
        shm["other"] = blocks[1]
        views = [memoryview(block) for block in blocks]
        which = place == "record"
        del shm["other" if which else "text"]
        yield
        views[which].release()

    @operation(f"pins: free a block with a view of its own, {place}", small=False)
    def _(shm, place=place):
        blocks = row(shm, SMALL, LARGE)
        views = [memoryview(block) for block in blocks]
        yield
        shm.free(blocks[place == "record"])
        views.clear()


@contextlib.contextmanager
def _viewing(shm):
    views = [memoryview(shm.root), memoryview(shm["text"])]
    yield
    assert bytes(views[1]) == b"not to be lost"


@operation("pins: delete a block that another process views", beside=_viewing)
def _(shm):
    yield
    del shm["text"]


@operation("pins: view a block that another process views", beside=_viewing, same=True)
def _(shm):
    yield
    views = [memoryview(shm["text"])]
    views.clear()


# -- messages ---------------------------------------------------------------------------------------------------


def _temporary(shm):
    return shm.full(30, 7, temporary=True)


def without_messages(before, after):
    """Return what may be seen of an array that a message of the victim keeps: after a minute nothing keeps it any more."""
    sent = [np.full(30, number).tobytes() for number in (7, 8)]
    blocks = [block for block in before["blocks"] if block[2] not in sent]
    return [before | {"blocks": blocks}]


@operation("claims: send a temporary array")
def _(shm):
    arrays = [_temporary(shm)]
    yield
    shmem.dumps(arrays[0])


@operation("claims: send one that was sent, and drop it", between=without_messages, same=True)
def _(shm):
    arrays = [_temporary(shm)]
    shmem.dumps(arrays[0])
    yield
    shmem.dumps(arrays[0])
    arrays.clear()


@operation("claims: open a message")
def _(shm):
    message, arrays = shmem.dumps(_temporary(shm)), []
    yield
    arrays.append(shmem.loads(message))


@operation("claims: open one of three messages, and drop the array", between=without_messages, same=True)
def _(shm):
    messages = [shmem.dumps(array) for array in [_temporary(shm)] for _ in range(3)]
    yield
    shmem.loads(messages[1])


@operation("claims: give up a message")
def _(shm):
    shmem.dumps(_temporary(shm))
    yield
    shm.sweep(claims=0)


@operation("claims: free an array that was sent twice")
def _(shm):
    array = shm.full(30, 7)
    for _ in range(2):
        shmem.dumps(array)
    yield
    shm.free(array)


@operation("claims: delete the name of an array that was sent", between=without_messages)
def _(shm):
    array = shm.full(30, 7)
    shmem.dumps(array)
    shm["sent"] = array
    del array
    yield
    del shm["sent"]


# -- typed objects --------------------------------------------------------------------------------------------


class Pair(shmem.Struct, type_name="shmem.crashtest.Pair"):
    """An object with a number and a reference."""

    number: shmem.int64 = 5
    other: shmem.Ref["Pair"]


@operation("object: the first of its type")
def _(shm):
    yield
    shm.new(Pair, number=7)


@operation("object: another of its type")
def _(shm):
    shm["first"] = first = shm.new(Pair, number=6)
    yield
    shm.new(Pair, number=7, other=first)


@operation("object: a reference is set")
def _(shm):
    shm["first"] = first = shm.new(Pair, number=6)
    yield
    first.other = first


# -- arrays that grow -----------------------------------------------------------------------------------------


def grow(shm, n_rows):
    """Return the entry of an array of pairs that has room for eight; what lies above its rows is not zero."""
    shm.full((8, 2), 3, "int32", maxshape=(8, 2), name="log")
    entry = shm.entry("log")
    entry.resize((n_rows, 2))
    return entry


def grow_without_limit(shm):
    """Return the entry of an array of one row of 4,000 bytes, which has room for no other; a process beside the victim may have made it."""
    if "log" not in shm:
        shm.full((1, 1000), 3, "int32", maxshape=(None, None), name="log")
    return shm.entry("log")


@operation("array: append in place")
def _(shm):
    entry = grow(shm, 2)
    yield
    entry.append([[5, 6], [7, 8]])


@operation("array: append, the array moves", small=False)
def _(shm):
    entry = grow_without_limit(shm)
    rows = np.full((1, 1000), 7, "int32")
    yield
    entry.append(rows)


@operation("array: append, the array moves and a view stays", small=False)
def _(shm):
    entry = grow_without_limit(shm)
    rows, view = np.full((1, 1000), 7, "int32"), entry.value
    yield
    entry.append(rows, move=True)
    del view


@contextlib.contextmanager
def _looking_at_log(shm):
    view = grow_without_limit(shm).value
    yield
    assert view[0, 0] == 3


@operation("array: append, another process views what moves", beside=_looking_at_log, small=False)
def _(shm):
    entry = grow_without_limit(shm)
    rows = np.full((1, 1000), 7, "int32")
    yield
    entry.append(rows, move=True)


@operation("array: append refused, another process views the array", beside=_looking_at_log, same=True)
def _(shm):
    entry = grow_without_limit(shm)
    rows = np.full((1, 1000), 7, "int32")
    yield
    with contextlib.suppress(BufferError):
        entry.append(rows)


@operation("array: resize, fewer rows")
def _(shm):
    entry = grow(shm, 4)
    yield
    entry.resize((1, 2))


@operation("array: resize, more rows")
def _(shm):
    entry = grow(shm, 1)
    yield
    entry.resize((4, 2))


@operation("array: resize, another dimension")
def _(shm):
    entry = grow_without_limit(shm)
    yield
    entry.resize((2, 30))


@operation("array: seal")
def _(shm):
    entry = grow(shm, 2)
    yield
    entry.seal()
