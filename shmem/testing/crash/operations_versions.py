"""The operations of `crashtest` that replace what a name leads to, rename, and touch; versions are part of each observation."""

import contextlib

import numpy as np

import shmem
from shmem.testing.crash.operations import FULL, grow, grow_without_limit, operation

# -- replacing ------------------------------------------------------------------------------------------------


@operation("replace: an array by another one")
def _(shm):
    shm["new"] = [1, 2, 3]
    yield
    shm.replace("new", [4.5])


@operation("replace: an array by bytes")
def _(shm):
    shm["new"] = [1, 2, 3]
    yield
    shm.replace("new", b"text")


@operation("replace: an array by an object that has no name")
def _(shm):
    shm["new"], block = [1, 2, 3], shm.allocate(100)
    yield
    shm.replace("new", block)


@operation("replace: an array by one that has another name")
def _(shm):
    shm["new"] = [1, 2, 3]
    kept = shm["kept"]
    yield
    shm.replace("new", kept)


@operation("replace: by the same array")
def _(shm):
    kept = shm["kept"]
    yield
    shm.replace("kept", kept)


@operation("replace: a value with another name")
def _(shm):
    shm["new"] = shm["kept"]
    yield
    shm.replace("new", [1])


@operation("replace: the root")
def _(shm):
    shm["new"] = shm.root
    yield
    shm.replace("new", b"text")


@operation("replace: an array that is viewed")
def _(shm):
    shm["new"] = [1, 2, 3]
    view = shm["new"]
    yield
    shm.replace("new", [4])
    del view


@operation("replace: a block that is viewed")
def _(shm):
    shm["new"] = b"former"
    view = memoryview(shm["new"])
    yield
    shm.replace("new", b"text")
    view.release()


@contextlib.contextmanager
def _looking_at_new(shm):
    if "new" not in shm:
        shm["new"] = [1, 2, 3]
    view = shm["new"]
    yield
    assert view[0] in (1, 4)


@operation("replace: an array that another process views", beside=_looking_at_new, small=False)
def _(shm):
    if "new" not in shm:
        shm["new"] = [1, 2, 3]
    yield
    shm.replace("new", [4, 5, 6])


@operation("replace: a queue")
def _(shm):
    shm.queue(3, "int64", name="new")
    yield
    shm.replace("new", [1])


@operation("replace: a value that was freed")
def _(shm):
    shm["new"] = block = shm.allocate(100)
    shm.free(block)
    yield
    shm.replace("new", [1])


@operation("replace: a value with attributes")
def _(shm):
    shm["new"] = [1]
    shm.entry("new").attrs["unit"] = "m"
    yield
    shm.replace("new", [2])


@operation("replace: a missing name")
def _(shm):
    yield
    shm.replace("new", [1, 2, 3])


@operation("replace: in a group")
def _(shm):
    shm["group/new"] = [1, 2, 3]
    yield
    shm.replace("group/new", b"text")


@operation("replace: while entries move to a larger table", small=False)
def _(shm):
    for i in range(FULL + 2 - len(shm)):
        shm[f"name {i}"] = b"v"
    yield
    shm.replace("kept", [1])


# -- touching -------------------------------------------------------------------------------------------------


@operation("touch")
def _(shm):
    entry = shm.entry("kept")
    yield
    entry.touch()


@operation("versions: wait for a change, timed out", same=True, small=False)
def _(shm):
    entry = shm.entry("kept")
    yield
    entry.wait_changed(timeout=0.12)


# -- renaming -------------------------------------------------------------------------------------------------


@operation("rename")
def _(shm):
    entry = shm.entry("kept")
    yield
    entry.rename("new")


@operation("rename: to a taken name", same=True)
def _(shm):
    entry = shm.entry("kept")
    yield
    with contextlib.suppress(shmem.NameExists):
        entry.rename("text")


@operation("rename: one of two names")
def _(shm):
    shm["new"] = shm["kept"]
    yield
    shm.move("new", "newer")


@operation("rename: a larger table is made", small=False)
def _(shm):
    for i in range(FULL - len(shm)):
        shm[f"name {i}"] = b"v"
    yield
    shm.move("kept", "new")


@operation("rename: while entries move to a larger table", small=False)
def _(shm):
    for i in range(FULL + 2 - len(shm)):
        shm[f"name {i}"] = b"v"
    yield
    shm.move("kept", "new")


@operation("rename: into a group")
def _(shm):
    shm.create_group("group")
    yield
    shm.move("kept", "group/new")


@operation("rename: out of a group")
def _(shm):
    shm["group/new"] = [1]
    yield
    shm.move("group/new", "new")


def _empty_group(before, after):
    """The group is made first."""
    return [before | {part: before[part] | {"group": after[part]["group"]} for part in ("names", "attributes")}]


@operation("rename: into a group that is made", between=_empty_group)
def _(shm):
    yield
    shm.move("kept", "group/new")


@operation("rename: a group")
def _(shm):
    shm["group/deep/new"] = [1]
    yield
    shm.move("group", "newer")


@operation("rename: a group into another one")
def _(shm):
    shm["group/deep/new"] = [1]
    shm.create_group("other")
    yield
    shm.move("group/deep", "other/deep")


# -- arrays that grow: number of rows and version change together ------------------------------------------------


@operation("versions: append after a name was replaced")
def _(shm):
    entry = grow(shm, 2)
    shm["former"] = shm["log"]
    shm.replace("log", shm.zeros((1, 2), "int32", maxshape=(8, 2)))
    yield
    entry.append([[5, 6]])


@operation("versions: resize to the same number of rows")
def _(shm):
    entry = grow(shm, 2)
    yield
    entry.resize((2, 2))


@operation("versions: append after the array was renamed", small=False)
def _(shm):
    entry = grow_without_limit(shm)
    entry.rename("group/log")
    yield
    entry.append(np.full((1, 1000), 7, "int32"))
