"""What `tstshmem` keeps in the section: the objects, each thread's keys, and the tree of the Python variant."""

import contextlib

import numpy as np

import shmem
from shmem._cli import tstshmem_tree
from shmem._objects import lock as _lock

MAX_PROCESSES = 32
MAX_THREADS = 32
N_SEARCHES = 10
VARIANTS = ("python", "cython")


class Node(shmem.Struct):
    """A node of the tree in the Python variant; the Cython variant has the same layout in C."""

    key: shmem.int64
    left: shmem.Ref["Node"]
    right: shmem.Ref["Node"]


class Instance(shmem.Struct):
    """A running instance: its processes, and the numbers from which its keys are computed.

    Whether a process is alive is asked of the section, by the process's participant number: `owner`, and `crew` for the members.
    Process ids are only for display.
    """

    number: shmem.int64
    pid: shmem.int64
    owner: shmem.uint64
    processes: shmem.int64
    threads: shmem.int64
    keys: shmem.int64
    next: shmem.Ref["Instance"]
    members: shmem.Array[shmem.int64, MAX_PROCESSES]
    crew: shmem.Array[shmem.uint64, MAX_PROCESSES]

    def has_owner(self, memory):
        """Return whether the process that registered or adopted this instance is attached."""
        return _lock.participant_lives(memory, self.owner)

    def is_alive(self, memory):
        """Return whether any process of this instance is attached."""
        return self.has_owner(memory) or any(_lock.participant_lives(memory, int(one)) for one in self.crew if one)

    def all_keys(self):
        """Yield the keys of each of its threads."""
        for member in range(self.processes):
            yield from keys_of_member(self, member)


class Control(shmem.Struct):
    """The root object: the tree and the instances that work on it.  It is changed under the exclusive lock."""

    variant: shmem.int64
    locking: shmem.bool_
    n_started: shmem.int64
    blocks_before: shmem.int64
    deaths_before: shmem.int64
    tree: shmem.Ref["Node"]
    first: shmem.Ref["Instance"]

    def instances(self):
        """Yield the registered instances, the newest first."""
        instance = self.first
        while instance is not None:
            yield instance
            instance = instance.next

    def forget(self, gone):
        """Unlink an instance by a single store, so that a kill leaves the list whole, and free it."""
        before, link = self, "first"
        while getattr(before, link) != gone:
            before, link = getattr(before, link), "next"
        setattr(before, link, gone.next)
        shmem.deallocate(gone)


def keys_of_thread(number, member, thread, n_keys):
    """Return keys that no other thread of any instance has, in an order that keeps the tree balanced on average.

    The mixing function (the finalizer of SplitMix64) is one-to-one, so different threads and indices give different keys.
    """
    first = ((number * MAX_PROCESSES + member) * MAX_THREADS + thread) << 32
    mixed = np.arange(first, first + n_keys, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


def keys_of_member(instance, member):
    """Return a list with the keys of each thread of a member process."""
    return [keys_of_thread(instance.number, member, thread, instance.keys) for thread in range(instance.threads)]


# -- the tree in Python -------------------------------------------------------------------------------------


class PythonTree:
    """The tree with nodes that are typed objects.  `tstshmem_tree.pyx` explains how it survives a kill.

    Parameters
    ----------
    memory : SharedMemory
    control : Control
        The object whose field `tree` is the root node.
    locking : bool
        Whether to take locks.
    """

    def __init__(self, memory, control, locking):
        self.memory = memory
        self.control = control
        self.exclusive = shmem.exclusive_lock(memory) if locking else contextlib.nullcontext()
        self.shared = shmem.shared_lock(memory) if locking else contextlib.nullcontext()

    def _find(self, key):
        """Return (object, name of its field that leads to the node, the node or None)."""
        before, link, node = self.control, "tree", self.control.tree
        while node is not None:
            here = node.key
            if here == key:
                break
            before = node
            if key < here:
                link, node = "left", node.left
            else:
                link, node = "right", node.right
        return before, link, node

    def _take_out(self, before, link, node, child):
        setattr(before, link, child)
        self.memory.free(node)

    def insert(self, key):
        """Insert a key; RuntimeError if the tree has it already."""
        with self.exclusive:
            before, link, node = self._find(key)
            if node is not None:
                raise RuntimeError("a key that was not inserted is already in the tree")
            setattr(before, link, self.memory.new(Node, key=key))

    def search(self, key):
        """Return whether the tree has a key."""
        with self.shared:
            return self._find(key)[2] is not None

    def remove(self, key):
        """Remove a key; return whether the tree had it."""
        with self.exclusive:
            before, link, node = self._find(key)
            if node is None:
                return False
            while node.right is not None:
                above, way, successor = node, "right", node.right
                while successor.left is not None:
                    above, way, successor = successor, "left", successor.left
                is_copy = successor.key == key  # a remover was killed halfway
                if node.left is None and not is_copy:
                    self._take_out(before, link, node, node.right)
                    return True
                if not is_copy:
                    node.key = successor.key  # from here on the key is gone
                self._take_out(above, way, successor, successor.right)
                if not is_copy:
                    return True
            self._take_out(before, link, node, node.left)
            return True

    def work(self, keys, stop):
        """Insert every key, search for each N_SEARCHES times and remove them.  When `stop[0]` is set, remove them at once and return."""
        keys = keys.tolist()
        n_inserted = 0
        try:
            for key in keys:
                if stop[0]:
                    break
                self.insert(key)
                n_inserted += 1
            for _ in range(N_SEARCHES):
                for key in keys[:n_inserted]:
                    if stop[0]:
                        break
                    if not self.search(key):
                        raise RuntimeError("an inserted key is not in the tree")
        finally:
            n_removed = sum(self.remove(key) for key in keys[:n_inserted])
        if n_removed != n_inserted:
            raise RuntimeError("an inserted key is not in the tree")

    def remove_keys(self, keys):
        """Remove the keys that the tree has; return how many there were."""
        return sum(self.remove(key) for key in keys.tolist())

    def count_keys(self, keys):
        """Return how many of the keys the tree has."""
        return sum(self.search(key) for key in keys.tolist())

    def count_nodes(self):
        """Return the number of nodes; RuntimeError if the tree is out of order or has a cycle.  The caller holds the lock."""
        n_most = self.memory.stats().blocks
        n_nodes = 0
        ways = [(self.control.tree, -(1 << 63), (1 << 63) - 1)]
        while ways:
            node, low, high = ways.pop()
            if node is None:
                continue
            n_nodes += 1
            if not low <= node.key <= high or n_nodes > n_most:
                raise RuntimeError(f"the tree is damaged at offset {node.offset:#x}")
            ways += [(node.left, low, node.key), (node.right, node.key, high)]
        return n_nodes


def tree_of(memory, control, locking=True):
    """Return the tree in the section's variant."""
    if VARIANTS[control.variant] == "python":
        return PythonTree(memory, control, locking)
    return tstshmem_tree.Tree(memory, control.offset + Control.dtype.fields["tree"][1], locking)
