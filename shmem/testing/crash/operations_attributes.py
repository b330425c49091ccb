"""The operations on attributes that `crashtest` kills in the middle."""

import numpy as np

import shmem
from shmem.testing.crash.operations import FULL, LARGE, SMALL, grow_without_limit, operation, row


def attributes(shm, name="kept"):
    """Give the object with a name two attributes, and return them."""
    found = shm.entry(name).attrs
    found.update(unit="m", scale=2.5)
    return found


def fill_table(shm, n_values):
    """Give names and attributes to new blocks until that many blocks have attributes."""
    for i in range(n_values):
        shm[f"name {i}"] = b"v"
        shm.entry(f"name {i}").attrs["number"] = i


@operation("attributes: the first")
def _(shm):
    yield
    shm.entry("kept").attrs["unit"] = "m"


@operation("attributes: of the section")
def _(shm):
    attributes(shm)
    yield
    shm.attrs.update(title="a survey", version=3)


@operation("attributes: change one")
def _(shm):
    found = attributes(shm)
    yield
    found["unit"] = "a longer text than before, which needs a larger block"


@operation("attributes: delete the last")
def _(shm):
    found = attributes(shm)
    del found["unit"]
    yield
    del found["scale"]


@operation("attributes: long ones are replaced", small=False)
def _(shm):
    shm.attrs["long"] = "x" * LARGE
    yield
    shm.attrs["long"] = "y" * LARGE


@operation("attributes: insert, a larger table is made", small=False)
def _(shm):
    fill_table(shm, FULL)
    yield
    attributes(shm)


@operation("attributes: insert, entries move to the larger table", small=False)
def _(shm):
    fill_table(shm, FULL + 1)
    yield
    attributes(shm)


@operation("attributes: end with their object", small=False)
def _(shm):
    attributes(shm)
    attributes(shm, "text")
    yield
    del shm["kept"]


@operation("attributes: end with an object that is freed")
def _(shm):
    shm["new"] = shm.root = row(shm, SMALL)[0]
    attributes(shm, "new")
    del shm["new"]
    yield
    shm.free(shm.root)


@operation("attributes: end with a queue that is in use", small=False)
def _(shm):
    queue = shm.queue(4, "int64", name="queue")
    queue.put(1)
    attributes(shm, "queue")
    yield
    del shm["queue"]


@operation("attributes: end with the last view", same=True)
def _(shm):
    attributes(shm)
    array = shm["kept"]
    del shm["kept"]
    yield
    del array


@operation("attributes: end with a message", small=False)
def _(shm):
    array = shm.full(30, 7)
    shmem.dumps(array)
    shm["sent"] = array
    attributes(shm, "sent")
    del array
    del shm["sent"]
    yield
    shm.sweep(claims=0)


@operation("attributes: an array moves", small=False)
def _(shm):
    entry = grow_without_limit(shm)
    attributes(shm, "log")
    rows = np.full((1, 1000), 7, "int32")
    yield
    entry.append(rows)


@operation("attributes: an array moves and a view stays", small=False)
def _(shm):
    entry = grow_without_limit(shm)
    attributes(shm, "log")
    rows, view = np.full((1, 1000), 7, "int32"), entry.value
    yield
    entry.append(rows, move=True)
    del view


@operation("attributes: a block moves", small=False)
def _(shm):
    shm["new"] = shm.root = row(shm, 301, SMALL)[0]
    attributes(shm, "new")
    del shm["new"]
    yield
    shm.reallocate(shm.root, 500)
