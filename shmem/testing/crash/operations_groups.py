"""The operations of `crashtest` on groups of names."""

import contextlib

import shmem
from shmem._objects import directory
from shmem.testing.crash.operations import FULL, operation


def furnish_group(shm):
    """Put two arrays, one of which has a name outside too, a queue and a group with a name into a group."""
    group = shm.create_group("group")
    group["array"] = [1, 2, 3]
    group["kept"] = shm["kept"]
    group.queue(2, "int64", name="queue")
    group["deep/text"] = b"in a group in a group"
    return group


def fill_group(group, n_names):
    """Assign names in a group until there are `n_names`."""
    for i in range(n_names - len(group)):
        group[f"name {i}"] = b"v"


@operation("group: create")
def _(shm):
    yield
    shm.create_group("group")


@operation("group: create, the name is taken", same=True)
def _(shm):
    yield
    with contextlib.suppress(shmem.NameExists):
        shm.create_group("kept")


@operation("group: create in a group")
def _(shm):
    shm.create_group("group")
    yield
    shm.create_group("group/deep")


@operation("group: insert, its first name")
def _(shm):
    shm.create_group("group")
    yield
    shm["group/new"] = b"value"


@operation("group: insert into a group in a group")
def _(shm):
    shm["group/deep/first"] = b"value"
    yield
    shm["group/deep/new"] = [1, 2, 3]


def _first_groups(before, after):
    """The groups of a path are made one after the other, before the value."""
    states = []
    for groups in (["a"], ["a", "a/b"]):
        added = {part: before[part] | {name: after[part][name] for name in groups} for part in ("names", "attributes")}
        states.append(before | added)
    return states


@operation("group: insert, which makes two groups", between=_first_groups)
def _(shm):
    yield
    shm["a/b/new"] = b"value"


@operation("group: insert, a larger table is made", small=False)
def _(shm):
    fill_group(shm.create_group("group"), FULL)
    yield
    shm["group/new"] = b"value"


@operation("group: insert, entries move to the larger table", small=False)
def _(shm):
    fill_group(shm.create_group("group"), FULL + 1)
    yield
    shm["group/new"] = b"value"


@operation("group: delete a name in it")
def _(shm):
    furnish_group(shm)
    yield
    del shm["group/array"]


@operation("group: delete, empty")
def _(shm):
    shm.create_group("group")
    yield
    del shm["group"]


@operation("group: delete, with what is in it", small=False)
def _(shm):
    furnish_group(shm)
    yield
    del shm["group"]


@operation("group: delete, a value and a group in it")
def _(shm):
    shm["group/text"] = b"value"
    shm.create_group("group/deep")
    yield
    del shm["group"]


@operation("group: delete with a view of an array and of a queue in it", small=False)
def _(shm):
    group = furnish_group(shm)
    views = [group["array"], group["queue"]]
    yield
    del shm["group"]
    views.clear()


@operation("group: delete while its table grows", small=False)
def _(shm):
    fill_group(shm.create_group("group"), FULL + 1)
    yield
    del shm["group"]


@operation("group: delete the root's name with its group")
def _(shm):
    shm["group/root"] = shm.root
    yield
    del shm["group"]


def leave_doomed(shm):
    """Delete a group and leave what is in it, as a process that was killed between two steps."""
    furnish_group(shm)
    directory.remove_name(shm, "group")


@operation("group: sweep empties a deleted group", same=True, small=False)
def _(shm):
    leave_doomed(shm)
    yield
    shm.sweep()


@operation("group: the deletion of a group goes on with a deleted one", small=False)
def _(shm):
    shm.create_group("empty")
    leave_doomed(shm)
    yield
    del shm["empty"]


@operation("group: an allocation without room empties a deleted group", small=False)
def _(shm):
    shm["group/large"] = bytes(shm.stats().largest_hole - 4000)
    directory.remove_name(shm, "group")
    yield
    shm.allocate(8000, zero=False)
