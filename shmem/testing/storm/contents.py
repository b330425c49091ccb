"""The contents of the storm's section: the objects that members meet in, and the verification of every block's content."""

import struct
import time

import numpy as np

import shmem
from shmem._objects import finding

N_SLOTS, N_LISTS, N_NAMES, N_SIDES, N_MESSAGES = 160, 4, 24, 3, 12
KEPT_NS = 55 * 10**9  # so long a message keeps its array at least, although its sender was killed
N_TOKENS = 6
MAX_SIZE = 1 << 25
SIDE_BYTES = 1 << 20  # of each section beside the main one
MAX_PARTICIPANTS = 96  # few, so that the entries of dead participants must be reused
LONGEST_MESSAGE = 64
KEY = 0x5DEECE66D
WITNESS, MUTEX_WITNESS = 0, 4  # where in the array "witness": actor and step, first number, second number
NODE_TYPE = "shmem.killstorm.Node"


class Violation(Exception):
    """A violated guarantee."""


class Node(shmem.Struct, type_name=NODE_TYPE):
    """An element of a list."""

    key: shmem.int64
    check: shmem.int64
    next: shmem.Ref["Node"]


class Anchor(shmem.Struct, type_name="shmem.killstorm.Anchor"):
    """The heads of the lists.  There are two anchors, and the root object changes from one to the other."""

    list_0: shmem.Ref["Node"]
    list_1: shmem.Ref["Node"]
    list_2: shmem.Ref["Node"]
    list_3: shmem.Ref["Node"]


def furnish(shm):
    """Put the objects that members meet in into an empty section."""
    shm.zeros(N_SLOTS, "int64", name="slots")  # offsets of blocks and arrays; guarded by the lock, as are lists and witnesses
    shm.zeros(8, "int64", name="witness")
    shm.semaphore(N_TOKENS, name="tokens")
    shm.event(name="bell")
    shm.mutex(name="mutex")
    for number in range(2):
        shm[f"anchor {number}"] = shm.new(Anchor)
    shm.root = shm["anchor 0"]


def furnish_round(shm):
    """Create the two queues again, which the previous round shut down, and the logs, which count the rows of a round's actors."""
    for name in ("queue 0", "queue 1"):
        if name in shm:
            del shm[name]
    shm.queue(50, "int64", name="queue 0")
    shm.queue(20, bytes, max_bytes=LONGEST_MESSAGE, name="queue 1")
    for which in range(2):
        if f"log {which}" in shm:
            del shm[f"log {which}"]
        shm.zeros((0, 2), "int64", maxshape=(None, 2), name=f"log {which}")


# -- verification: each block holds what its content must be ------------------------------------------------------


def fill(block, number):
    """Fill a plain block with its size, a number, and that number's low byte up to the end."""
    view = memoryview(block)
    view[:16] = struct.pack("<qq", block.nbytes, number)
    view[16:] = bytes([number & 0xFF]) * (block.nbytes - 16)


def verify_block(block, n_bytes=None, number=None):
    """Verify that a block holds what `fill` wrote; with `n_bytes`, that it was grown or cut from a block of that size."""
    content = bytes(block)
    size, found = struct.unpack_from("<qq", content)
    kept = min(len(content), size)
    rest = content[kept:]
    if size != (n_bytes or len(content)) or (number is not None and found != number):
        raise Violation(f"the block at {block.offset:#x} has {len(content)} bytes, but holds size {size} and number {found}")
    if content[16:kept] != bytes([found & 0xFF]) * (kept - 16) or rest.strip(b"\0"):
        raise Violation(f"the content of the block at {block.offset:#x} ({len(content)} bytes, number {found}) was changed")
    return found


def verify_array(array):
    """Verify that every element of an array equals its length."""
    if not (array == len(array)).all():
        raise Violation(f"an array of {len(array)} elements holds {array[array != len(array)][:5]}")


def message(data):
    """Return the bytes of a message, which begins with the time at which it was sent."""
    return struct.pack("<q", time.clock_gettime_ns(time.CLOCK_BOOTTIME)) + data


def verify_message(content, point=lambda: None):
    """Open a message and verify its array, which may be gone only if the message is so old that its sender may have been killed long ago.

    `point` is called while the array is open.
    """
    (sent_at,) = struct.unpack_from("<q", content)
    try:
        array = shmem.loads(content[8:])
    except shmem.InvalidBlock:
        if time.clock_gettime_ns(time.CLOCK_BOOTTIME) - sent_at < KEPT_NS:
            raise Violation("a message has lost its array") from None
        return
    point()
    verify_array(array)


def slot_content(shm, offset):
    """Return the Block or array that a slot leads to."""
    return finding.reopen(shm, *finding.locate(shm, shm.block(offset)))


def verify_slot(shm, offset):
    """Verify the content of the block or array that a slot leads to."""
    found = slot_content(shm, offset)
    (verify_array if isinstance(found, np.ndarray) else verify_block)(found)


def verify_slots(shm):
    """Verify all slots and return the offsets in them.  The caller holds the lock, or no other process is attached."""
    offsets = [int(offset) for offset in shm["slots"] if offset]
    for offset in offsets:
        verify_slot(shm, offset)
    if len(set(offsets)) != len(offsets):
        raise Violation("two slots lead to the same block")
    return offsets


def verify_log(rows):
    """Verify that a log has the rows of each actor without gaps, in their order."""
    for actor in np.unique(rows[:, 0]).tolist():
        numbers = rows[rows[:, 0] == actor, 1]
        if not np.array_equal(numbers, np.arange(len(numbers))):
            raise Violation(f"a log of {len(rows)} rows has the rows {numbers.tolist()} of actor {actor}")


def nodes_of(anchor, number, most=100_000):
    """Yield the nodes of a list, each verified."""
    node, n_seen = getattr(anchor, f"list_{number}"), 0
    while node is not None:
        n_seen += 1
        if node.key ^ KEY != node.check or n_seen > most:
            raise Violation(f"the node at {node.offset:#x} has key {node.key} and check {node.check}")
        yield node
        node = node.next


def verify_all(shm):
    """Verify everything and return the offsets of slots' blocks and nodes.  The caller holds the lock, or no other process is attached."""
    offsets = verify_slots(shm)
    for number in range(2):
        anchor = shm[f"anchor {number}"]
        offsets += [node.offset for i in range(N_LISTS) for node in nodes_of(anchor, i)]
    shm.visititems(_verify_named)
    return offsets


def _verify_named(name, found):
    kind = name.rpartition("/")[2].partition(" ")[0]
    verify = {"array": verify_array, "log": verify_log, "bytes": verify_block}.get(kind)
    if verify is not None:
        verify(found)
