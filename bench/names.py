"""What do operations on names cost as names become more, and in groups?

The same names are in one level, and in 1,000 groups.  One peer is LMDB, a key-value store in a mapped file: each call is a transaction of
its own, which is not written to disk, and a group is the range of the keys that begin with its name.  The other is a `dict` of one
process, with a `dict` for each group.  The longest hold of the heap gate is measured in a second section, in processor time of its owner,
since measuring it costs time; `gate_hold` shows it for each kind of call.

    .venv-bench/bin/python bench/run.py --only names
    .venv-bench/bin/python bench/names.py --scale 0.1      a tenth of the names
"""

import argparse
import contextlib
import random
import tempfile
import time

import lmdb
from table import Row, answer
from timing import best_of

import shmem
from shmem._base import debug

SIZE_BYTES = 1 << 30
COUNTS = (1_000, 10_000, 100_000, 1_000_000)  # the last one in groups too
N_GROUPS = 1_000
N_CALLS = 500
ROUND_SECONDS = 0.1
HOLD_BAR_SECONDS = 0.002
VALUE = b"v"


class Section:
    """Names of a section."""

    peer = "shmem"

    def __init__(self, stack):
        self.memory = stack.enter_context(shmem.SharedMemory(max_size=SIZE_BYTES))
        self.look_up, self.delete = self.memory.__getitem__, self.memory.__delitem__

    def insert(self, name):
        self.memory[name] = VALUE

    def count(self):
        return len(self.memory)

    def list_all(self):
        return list(self.memory)

    def count_group(self, group):
        return len(self.memory[group])

    def list_group(self, group):
        return list(self.memory[group])

    def delete_group(self, group):
        del self.memory[group]


class Database:
    """Keys of an LMDB environment in memory.  A reader makes a transaction for each look-up, to see what others have written."""

    peer = "LMDB"

    def __init__(self, stack):
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        self.environment = stack.enter_context(lmdb.open(folder, map_size=SIZE_BYTES, sync=False, writemap=True))

    def insert(self, name):
        with self.environment.begin(write=True) as transaction:
            transaction.put(name.encode(), VALUE)

    def look_up(self, name):
        with self.environment.begin() as transaction:
            return transaction.get(name.encode())

    def delete(self, name):
        with self.environment.begin(write=True) as transaction:
            transaction.delete(name.encode())

    def count(self):
        return self.environment.stat()["entries"]

    def list_all(self):
        with self.environment.begin() as transaction, transaction.cursor() as cursor:
            return [key.decode() for key in cursor.iternext(values=False)]

    def count_group(self, group):
        return sum(1 for _ in self._keys_of(group))

    def list_group(self, group):
        return [key.decode() for key in self._keys_of(group)]

    def delete_group(self, group):
        with self.environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            prefix = f"{group}/".encode()
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                cursor.delete()

    def _keys_of(self, group):
        prefix = f"{group}/".encode()
        with self.environment.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        break
                    yield key


class Dicts:
    """Keys of a dict, or of one dict for each group."""

    peer = "dict"

    def __init__(self, stack, *, has_groups):
        self.names = {}
        if has_groups:
            self.insert, self.look_up, self.delete = self._insert_in_group, self._look_up_in_group, self._delete_in_group
        else:
            self.look_up, self.delete = self.names.__getitem__, self.names.__delitem__

    def insert(self, name):
        self.names[name] = VALUE

    def _insert_in_group(self, path):
        group, _, name = path.partition("/")
        self.names.setdefault(group, {})[name] = VALUE

    def _look_up_in_group(self, path):
        group, _, name = path.partition("/")
        return self.names[group][name]

    def _delete_in_group(self, path):
        group, _, name = path.partition("/")
        del self.names[group][name]

    def count(self):
        return len(self.names)

    def list_all(self):
        return list(self.names)

    def count_group(self, group):
        return len(self.names[group])

    def list_group(self, group):
        return list(self.names[group])

    def delete_group(self, group):
        del self.names[group]


def flat(i):
    return f"name {i}"


def grouped(i):
    """Return a name in a group; consecutive ones are in different groups."""
    return f"{group_of(i)}/name {i // N_GROUPS}"


def group_of(i):
    return f"group {i % N_GROUPS:03}"


def seconds_for(call, arguments):
    """Return the time of one of the calls of `call` with each argument."""
    start = time.perf_counter()
    for argument in arguments:
        call(argument)
    return (time.perf_counter() - start) / len(arguments)


def once(call):
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Comparison:
    """The rows of one arrangement of names in several stores, of which the first is a section."""

    def __init__(self, stores, label):
        self.stores, self.label, self.rows = stores, label, []

    def compare(self, work, contender_of):
        """Add the rows of what `contender_of(store)` returns, a function that returns seconds per call; the best of rounds in turn."""
        self.add(work, best_of(ROUND_SECONDS, {store.peer: contender_of(store) for store in self.stores}))

    def compare_once(self, work, contender_of):
        """Add the rows of what takes too long to be repeated."""
        self.add(work, {store.peer: contender_of(store)() for store in self.stores})

    def add(self, work, times):
        ours, *peers = times
        self.rows += [Row("names", f"{work}, {self.label}", times[ours], peer, times[peer]) for peer in peers]


def inserting(store, names):
    """Return a contender that inserts names; it deletes them again."""

    def run():
        seconds = seconds_for(store.insert, names)
        seconds_for(store.delete, names)
        return seconds

    return run


def deleting(store, names):
    """Return a contender that deletes names, after it has inserted them."""

    def run():
        seconds_for(store.insert, names)
        return seconds_for(store.delete, names)

    return run


def looking_up(store, names):
    return lambda: seconds_for(store.look_up, names)


def rows_for_names(stores, name_of, n_names, label):
    """Fill the stores with names, and return the rows of the calls that concern one name, or all."""
    comparison = Comparison(stores, label)
    comparison.compare_once(
        "insert into an empty one", lambda store: lambda: seconds_for(store.insert, [name_of(i) for i in range(n_names)])
    )
    there = [name_of(i) for i in random.Random(1).sample(range(n_names), N_CALLS)]
    new = [name_of(i) for i in range(n_names, n_names + N_CALLS)]
    comparison.compare("look up", lambda store: looking_up(store, there))
    comparison.compare("insert", lambda store: inserting(store, new))
    comparison.compare("delete", lambda store: deleting(store, new))
    return comparison.rows


def calls_beside(memory):
    """Return calls that should not depend on the number of names."""
    return {"temporary array": lambda _: memory.zeros(3, temporary=True), "stats": lambda _: memory.stats()}


def beside_row(work, call, label):
    best = best_of(ROUND_SECONDS, {"shmem": lambda: seconds_for(call, range(N_CALLS))})
    return Row("names", f"{work} beside {label}", best["shmem"], "-", None)


def flat_rows(n_names):
    """Return the rows for names in one level."""
    with contextlib.ExitStack() as stack:
        stores = Section(stack), Database(stack), Dicts(stack, has_groups=False)
        label = f"{n_names:,} names"
        comparison = Comparison(stores, label)
        comparison.rows = rows_for_names(stores, flat, n_names, label)
        comparison.compare("len", lambda store: lambda: seconds_for(lambda _: store.count(), range(N_CALLS)))
        comparison.compare_once("list all", lambda store: lambda: once(store.list_all))
        comparison.rows += [beside_row(work, call, label) for work, call in calls_beside(stores[0].memory).items()]
        return comparison.rows


def group_rows(n_names):
    """Return the rows for names in groups."""
    with contextlib.ExitStack() as stack:
        stores = Section(stack), Database(stack), Dicts(stack, has_groups=True)
        label = f"{n_names:,} names in {N_GROUPS:,} groups"
        comparison = Comparison(stores, label)
        comparison.rows = rows_for_names(stores, grouped, n_names, label)
        some = [group_of(i) for i in range(0, N_GROUPS, N_GROUPS // 10)]
        comparison.compare("len of a group", lambda store: lambda: seconds_for(store.count_group, some))
        comparison.compare("list a group", lambda store: lambda: seconds_for(store.list_group, some))
        comparison.compare_once("delete a group", lambda store: lambda: seconds_for(store.delete_group, some))
        return comparison.rows


# -- how long other processes are kept from the heap ---------------------------------------------------------------


def hold_rows(n_names, name_of, label):
    """Return the row of the longest hold of the heap gate while names are inserted, looked up, counted, listed and deleted."""
    with contextlib.ExitStack() as stack:
        section = Section(stack)
        debug.longest_hold()
        start = time.thread_time()
        names = [name_of(i) for i in range(n_names)]
        for call in (section.insert, section.look_up):
            seconds_for(call, names)
        section.count()
        section.list_all()
        if name_of is grouped:
            for group in map(group_of, range(0, N_GROUPS, 2)):
                section.count_group(group)
                section.list_group(group)
                section.delete_group(group)
            names = [name_of(i) for i in range(n_names) if i % N_GROUPS % 2]
        seconds_for(section.delete, names)
        whole = time.thread_time() - start
        return [
            Row("names", f"longest hold of the heap gate, {label}", debug.longest_hold(), "all calls", whole, most_seconds=HOLD_BAR_SECONDS)
        ]


def measure(scale):
    """Measure at each number of names."""
    counts = [max(int(n_names * scale), N_CALLS) for n_names in COUNTS]
    rows = [row for n_names in counts for row in flat_rows(n_names)]
    rows += group_rows(counts[-1])
    debug.set_level("holds")  # of sections that are opened from now on
    rows += hold_rows(counts[-1], flat, f"{counts[-1]:,} names")
    rows += hold_rows(counts[-1], grouped, f"{counts[-1]:,} names in {N_GROUPS:,} groups")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the numbers of names by this")
    options, _ = parser.parse_known_args()  # `answer` reads the others
    answer(lambda: measure(options.scale))
