"""What a member of `killstorm` does until it is killed: everything that a client can do, at random.

An *actor* is a thread of a member, or a child that one forked.  What it is about to do and what it has done stands in its row of the
*ledger*: memory that the storm's parent made before it forked, no part of any section.  So it outlives the actor, and no
error of the section's reaches it.  What must hold of a row whenever its actor is killed:

* A block that the actor may free, or may have linked or not, is *in hand*: `HAND` and `HAND_SERIAL` say which (`HAND` is stored last
  and cleared first).  The serial tells whether the block still is what it was.  Every block is in hand before it is unlinked, and until
  it is linked or freed.
* Between the store that makes a block and the one that puts it into the hand, `MAKING` says what is being made, and `BYTES` how large.
  A block that nobody links to and nobody has in hand was lost there; it is the only one of that actor.
* `TOKEN`: what it has of the semaphore.  `ABOUT`, `DID`, `GETTING`: see `produce` and `consume`.
* `LOCK_BLAME`, `MUTEX_BLAME` are stored by others: at which step the actor left a pair of numbers unequal.  Only the dead do.

What lies in the section is told in `furnish`.
"""

import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
import traceback
import warnings

import numpy as np

import shmem
from shmem._objects import finding

ACTORS_OF_MEMBER = 8  # at most four threads, and four children
MAX_ACTORS = 4096
MAX_MESSAGES = 2048  # of an actor, in each queue
N_SLOTS, N_LISTS, N_NAMES, N_SIDES = 160, 4, 24, 3
N_TOKENS = 6
MAX_SIZE = 1 << 25
MAX_PARTICIPANTS = 96  # few, so that entries of the dead must be given out again
LONGEST_MESSAGE = 64
KEY = 0x5DEECE66D
CHILD_OPERATIONS = 60
PR_SET_PDEATHSIG = 1

NOTHING, BLOCK, ARRAY, NODE = range(4)  # MAKING
UNUSED, RUNNING, DONE, FAILED, KILLED = range(5)  # STATE
NO_TOKEN, HAS_TOKEN, PERHAPS = range(3)  # TOKEN
(
    STATE, PID, STEP, OPERATION, MAKING, BYTES, HAND, HAND_SERIAL, LOCK_BLAME, MUTEX_BLAME, TOKEN, ABOUT, ABOUT_2, DID, DID_2, GETTING,
    GETTING_2, FIRST_COUNT,
) = range(18)  # fmt: skip
N_COLUMNS = 64
_PRODUCER_SHIFT, _NUMBER_MASK = 32, 0xFFFFFFFF
ACTOR_SHIFT, STEP_MASK = 40, (1 << 40) - 1
WITNESS, MUTEX_WITNESS = 0, 4  # where in the array "witness": who, first, second

# what may come of an operation when others are killed, or in its way
EXPECTED = (shmem.LockTimeout, shmem.DeadlockError, shmem.SectionFull, shmem.NameExists, shmem.QueueEmpty, shmem.QueueFull)


class Violation(Exception):
    """Something is not as promised."""


NODE_TYPE = "shmem.killstorm.Node"


class Node(shmem.Struct, type_name=NODE_TYPE):
    """An element of a list."""

    key: shmem.int64
    check: shmem.int64
    next: shmem.Ref["Node"]


class Anchor(shmem.Struct, type_name="shmem.killstorm.Anchor"):
    """The root object: where the lists begin.  There are two, and the root changes from one to the other."""

    list_0: shmem.Ref["Node"]
    list_1: shmem.Ref["Node"]
    list_2: shmem.Ref["Node"]
    list_3: shmem.Ref["Node"]


def furnish(shm):
    """Put into an empty section what members meet in."""
    shm.zeros(N_SLOTS, "int64", name="slots")  # offsets of blocks and arrays; guarded by the lock, as are lists and witnesses
    shm.zeros(8, "int64", name="witness")
    shm.semaphore(N_TOKENS, name="tokens")
    shm.event(name="bell")
    shm.mutex(name="mutex")
    for number in range(2):
        shm[f"anchor {number}"] = shm.new(Anchor)
    shm.root = shm["anchor 0"]


def furnish_queues(shm):
    """The two queues: they were shut down when the former round ended."""
    for name in ("queue 0", "queue 1"):
        if name in shm:
            del shm[name]
    shm.queue(50, "int64", name="queue 0")
    shm.queue(20, bytes, max_bytes=LONGEST_MESSAGE, name="queue 1")


class Ledger:
    """What actors note of themselves.  Inherited by fork."""

    def __init__(self):
        self.rows = np.frombuffer(mmap.mmap(-1, MAX_ACTORS * N_COLUMNS * 8), "int64").reshape(MAX_ACTORS, N_COLUMNS)
        self.taken = np.frombuffer(mmap.mmap(-1, 2 * MAX_ACTORS * MAX_MESSAGES), "uint8").reshape(2, MAX_ACTORS, MAX_MESSAGES)
        self.wishes = np.frombuffer(mmap.mmap(-1, MAX_ACTORS // ACTORS_OF_MEMBER * 8), "int64")  # of each member: see `Actor.point`
        self.stop = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), "int64")  # [0]: end; [1]: waits without a time-out are over


# -- contents: every block says what must be in it --------------------------------------------------------------


def fill(block, number):
    """Content of a plain block: its size, a number, and that number's low byte up to the end."""
    view = memoryview(block)
    view[:16] = struct.pack("<qq", block.nbytes, number)
    view[16:] = bytes([number & 0xFF]) * (block.nbytes - 16)


def verify_block(block, n_bytes=None, number=None):
    """See that a block's content is what `fill` made of it; with `n_bytes`, that it was grown or cut from that."""
    content = bytes(block)
    size, found = struct.unpack_from("<qq", content)
    kept = min(len(content), size)
    rest = content[kept:]
    if size != (n_bytes or len(content)) or (number is not None and found != number):
        raise Violation(f"block at {block.offset:#x} of {len(content)} bytes says that it has {size}, and is number {found}")
    if content[16:kept] != bytes([found & 0xFF]) * (kept - 16) or rest.strip(b"\0"):
        raise Violation(f"block at {block.offset:#x} of {len(content)} bytes, number {found}: its content was changed")
    return found


def verify_array(array):
    """See that all elements of an array are its length."""
    if not (array == len(array)).all():
        raise Violation(f"array of {len(array)}: {array[array != len(array)][:5]} in it")


def slot_content(shm, offset):
    """The Block or array that a slot leads to."""
    return finding.reopen(shm, *finding.locate(shm, shm.block(offset)))


def verify_slot(shm, offset):
    """See that what a slot leads to has the content it should have."""
    found = slot_content(shm, offset)
    (verify_array if isinstance(found, np.ndarray) else verify_block)(found)


def verify_slots(shm):
    """Whatever the slots lead to; the offsets.  The caller holds the lock, or is alone."""
    offsets = [int(offset) for offset in shm["slots"] if offset]
    for offset in offsets:
        verify_slot(shm, offset)
    if len(set(offsets)) != len(offsets):
        raise Violation("two slots lead to one block")
    return offsets


def nodes_of(anchor, number, most=100_000):
    """The nodes of a list, each verified."""
    node, n_seen = getattr(anchor, f"list_{number}"), 0
    while node is not None:
        n_seen += 1
        if node.key ^ KEY != node.check or n_seen > most:
            raise Violation(f"node at {node.offset:#x}: key {node.key}, check {node.check}")
        yield node
        node = node.next


def verify_all(shm):
    """Everything that can be verified by who is alone, or holds the lock; the offsets of what was found."""
    offsets = verify_slots(shm)
    for number in range(2):
        anchor = shm[f"anchor {number}"]
        offsets += [node.offset for i in range(N_LISTS) for node in nodes_of(anchor, i)]
    for name in shm:
        if name.startswith("array "):
            verify_array(shm[name])
        elif name.startswith("bytes "):
            verify_block(shm[name])
    return offsets


# -- actors ---------------------------------------------------------------------------------------------------

OPERATIONS = []  # (name, weight, method's name)


def operation(name, weight):
    """Put a method of `Actor` into the table of operations."""

    def register(method):
        OPERATIONS.append((name, weight, method.__name__))
        return method

    return register


class Actor:
    """A thread of a member, or a child that one forked.

    Parameters
    ----------
    storm : Storm
        Places, ledger and seed.
    number : int
        Its row of the ledger.
    numbers : iterator
        The numbers that are left for children.
    waits_for_ever : bool
        Whether it waits without time-outs for what only others give; some in each member do not.
    """

    def __init__(self, storm, number, numbers, waits_for_ever=False):
        self.storm, self.number, self.numbers, self.waits_for_ever = storm, number, numbers, waits_for_ever
        self.rng = random.Random(f"{storm.options.seed} {storm.round} {number}")
        self.row = storm.ledger.rows[number]
        self.step = 0
        self.last = {}  # (queue, producer) -> number of the message that came last
        self.children = {}
        self.open()

    def open(self):
        """Open the section, and find what is in it."""
        self.shm = shm = shmem.SharedMemory(**self.storm.place)
        self.lock, self.shared = shmem.exclusive_lock(shm), shmem.shared_lock(shm)
        self.slots, self.witness = shm["slots"], shm["witness"]
        self.tokens, self.bell, self.mutex = shm["tokens"], shm["bell"], shm["mutex"]
        self.queues = shm["queue 0"], shm["queue 1"]

    def close(self):
        """Let go of everything in the section, and close it."""
        self.slots = self.witness = self.tokens = self.bell = self.mutex = self.queues = None
        self.shm.close()

    def work(self, n_operations):
        """Do so many operations, or until the storm is over."""
        weights = [weight for _, weight, _ in OPERATIONS]
        methods = [getattr(self, method) for *_, method in OPERATIONS]
        row, stop = self.row, self.storm.ledger.stop
        for _ in range(n_operations):
            if stop[0]:
                break
            which = self.rng.choices(range(len(methods)), weights)[0]
            self.step += 1
            row[OPERATION], row[STEP] = which, self.step
            try:
                methods[which]()
            except EXPECTED:
                pass
            except shmem.QueueShutDown:
                if not stop[1]:
                    raise
            row[FIRST_COUNT + which] += 1
        self._reap(kill=True)

    def point(self):
        """A moment at which a kill leaves something to clear up or to account for: who was told so kills itself at one of the next ones."""
        wishes, member = self.storm.ledger.wishes, self.number // ACTORS_OF_MEMBER
        if wishes[member] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif wishes[member]:
            wishes[member] -= 1

    # -- blocks, arrays and objects: hand, then link; hand, then unlink

    def take(self, it):
        """Note that a block is in hand."""
        self.point()
        offset, serial = finding.locate(self.shm, it)
        self.row[HAND_SERIAL] = serial
        self.row[HAND] = offset
        self.row[MAKING] = NOTHING
        return offset

    def about_to_make(self, what, n_bytes=0):
        """Note that a block will be made that nothing leads to at first."""
        self.row[BYTES] = n_bytes
        self.row[MAKING] = what

    def let_go(self):
        """The block in hand is linked, or freed."""
        self.point()
        self.row[HAND] = 0

    @contextlib.contextmanager
    def made(self, what, n_bytes=0):
        """Around the call that makes a block: if it raises, none was made."""
        self.about_to_make(what, n_bytes)
        try:
            yield
        except BaseException:
            self.row[MAKING] = NOTHING
            raise

    @operation("slot", 24)
    def change_slot(self):
        """Allocate, free, reallocate a block or an array that a slot leads to."""
        with self.held():
            i = self.rng.randrange(N_SLOTS)
            offset = int(self.slots[i])
            if offset == 0:
                self._fill_slot(i)
            else:
                self._change_slot(i, offset)  # a function of its own: no view of an array lives longer than the lock is held

    def _change_slot(self, i, offset):
        found = slot_content(self.shm, offset)
        if isinstance(found, np.ndarray):
            verify_array(found)
        else:
            number = verify_block(found)
            if self.rng.random() < 0.4:
                self._reallocate_slot(i, found, number)
                return
        if self.rng.random() < 0.8:
            self.take(found)
            self.slots[i] = 0
            self.point()
            self.shm.free(found)
            self.let_go()

    def _size(self):
        return self.rng.choice([16, self.rng.randrange(16, 120), self.rng.randrange(120, 3000), self.rng.randrange(3000, 40_000)])

    def _fill_slot(self, i):
        size = self._size()
        if self.rng.random() < 0.7:
            with self.made(BLOCK, size):
                it = self.shm.allocate(size, zero=self.rng.random() < 0.5, align=self.rng.choice([16, 16, 64, 1024]))
            offset = self.take(it)
            fill(it, self.rng.randrange(1 << 40))
        else:
            n = size // 8
            with self.made(ARRAY, n):
                it = self.shm.full(n, n, "int64")
            offset = self.take(it)
        self.slots[i] = offset
        self.let_go()

    def _reallocate_slot(self, i, block, number):
        former = block.nbytes
        self.take(block)
        self.slots[i] = 0
        size = self._size()
        try:
            with self.made(BLOCK, size):
                block = self.shm.reallocate(block, size)
        except shmem.SectionFull:
            self.slots[i] = block.offset  # as it was
            self.let_go()
            raise
        offset = self.take(block)
        verify_block(block, former, number)
        fill(block, number)
        self.slots[i] = offset
        self.let_go()

    @operation("list", 12)
    def change_list(self):
        """Put an object into a list, or take one out of it: the store that does it is one."""
        with self.held():
            anchor = self.shm.root
            link = f"list_{self.rng.randrange(N_LISTS)}"
            nodes = list(nodes_of(anchor, link[-1]))
            if len(nodes) < self.rng.randrange(30):
                key = self.rng.randrange(1 << 40)
                with self.made(NODE):
                    node = self.shm.new(Node, key=key, check=key ^ KEY, next=nodes[0] if nodes else None)
                self.take(node)
                setattr(anchor, link, node)
            elif nodes:
                i = self.rng.randrange(len(nodes))
                self.take(nodes[i])
                before, field = (nodes[i - 1], "next") if i else (anchor, link)
                setattr(before, field, nodes[i].next)
                shmem.deallocate(nodes[i])
            self.let_go()

    @operation("root", 3)
    def change_root(self):
        """The root becomes the one of the two that it was not, perhaps."""
        with self.held():
            self.shm.root = self.shm[f"anchor {self.rng.randrange(2)}"]

    @operation("search", 8)
    def search(self):
        """Read slots and lists under the shared lock."""
        with self.held_shared():
            anchor = self.shm.root
            for _ in nodes_of(anchor, self.rng.randrange(N_LISTS)):
                pass
            for offset in self.rng.sample(self.slots.tolist(), 5):
                if offset:
                    verify_slot(self.shm, offset)

    @operation("temporary", 4)
    def use_temporary(self):
        """An array that goes with its last view."""
        n = self.rng.randrange(1, 5000)
        array = self.shm.full(n, n, "int32", temporary=True)
        self.point()
        verify_array(array)

    # -- names

    @operation("name: array", 14)
    def change_named_array(self):
        """Make, look at or delete a named array, without the lock: a view keeps what it shows."""
        name = f"array {self.rng.randrange(N_NAMES)}"
        found = self.shm.get(name)
        if found is None:
            n = self.rng.randrange(1, self.rng.choice([10, 3000]))
            self.shm.full(n, n, "int64", name=name)
            return
        verify_array(found)
        if self.rng.random() < 0.6:
            with contextlib.suppress(KeyError):  # somebody was quicker
                del self.shm[name]
            self.point()  # with the last view of it
            verify_array(found)

    @operation("name: bytes", 5)
    def change_named_bytes(self):
        """The same with plain blocks, under the lock."""
        name = f"bytes {self.rng.randrange(N_NAMES)}"
        with self.held():
            if name not in self.shm:
                size, number = self.rng.randrange(16, 2000), self.rng.randrange(1 << 40)
                self.shm[name] = struct.pack("<qq", size, number) + bytes([number & 0xFF]) * (size - 16)
                return
            verify_block(self.shm[name])
            del self.shm[name]

    @operation("name: other", 4)
    def change_named_primitive(self):
        """Semaphores, events, mutexes, queues: made with a name, used, deleted under the lock."""
        kind = self.rng.randrange(4)
        name = f"other {kind} {self.rng.randrange(3)}"
        with self.held():
            if name in self.shm:
                del self.shm[name]
            elif kind == 0:
                self.shm.semaphore(1, name=name).wait(0)
            elif kind == 1:
                self.shm.event(name=name).set()
            elif kind == 2:
                with self.shm.mutex(name=name):
                    pass
            else:
                self.shm.queue(5, "float64", name=name).put(1.5)

    # -- the lock

    def _blame(self, at, column):
        """Somebody left a pair unequal."""
        who, step = int(self.witness[at]) >> ACTOR_SHIFT, int(self.witness[at]) & STEP_MASK
        self.storm.ledger.rows[who, column] = step

    def _enter(self, at, column):
        """I am alone in here: so both numbers are equal, or who was in here before was killed."""
        witness = self.witness
        if witness[at + 1] != witness[at + 2]:
            self._blame(at, column)
            witness[at + 2] = witness[at + 1]
        witness[at] = self.number << ACTOR_SHIFT | self.step
        witness[at + 1] += 1

    def _leave(self, at):
        witness = self.witness
        mine = self.number << ACTOR_SHIFT | self.step
        self.point()
        if witness[at] != mine or witness[at + 1] != witness[at + 2] + 1:
            raise Violation(f"actor {int(witness[at]) >> ACTOR_SHIFT} was in here beside actor {self.number}: {witness.tolist()}")
        witness[at + 2] += 1

    @contextlib.contextmanager
    def held(self):
        """Hold the lock exclusively, obtained in one of many ways; see that nobody else does."""
        with contextlib.ExitStack() as stack:
            way = self.rng.randrange(8)
            if way == 0:
                stack.enter_context(self.shared)  # then it is an upgrade
            elif way == 1:
                stack.enter_context(shmem.exclusive_lock(self.shm, timeout=self.rng.choice([0, 0.001, 0.1, 20])))
            elif way == 2:
                descriptor = shmem.LockDescriptor(shmem.LockMode.exclusive)
                self.shm.lock(descriptor, timeout=self.rng.choice([0.05, None]))
                stack.callback(self.shm.unlock, descriptor)
            stack.enter_context(self.lock)
            self._enter(WITNESS, LOCK_BLAME)
            try:
                yield
            finally:
                self._leave(WITNESS)

    @contextlib.contextmanager
    def held_shared(self):
        """Hold the lock shared; see that nobody holds it exclusively."""
        timeout = self.rng.choice([None, None, 0, 0.1])
        with shmem.shared_lock(self.shm, timeout):
            before = self.witness[WITNESS : WITNESS + 3].tolist()
            if before[1] != before[2]:
                self._blame(WITNESS, LOCK_BLAME)
            yield
            after = self.witness[WITNESS : WITNESS + 3].tolist()
            if before != after:
                raise Violation(f"changed while actor {self.number} held the lock shared: {before}, {after}")

    @operation("downgrade", 4)
    def downgrade(self):
        """From exclusive to shared, by descriptors."""
        writer, reader = shmem.LockDescriptor(shmem.LockMode.exclusive), shmem.LockDescriptor(shmem.LockMode.shared)
        self.shm.lock(writer)
        try:
            self._enter(WITNESS, LOCK_BLAME)
            self.shm.lock(reader)
            self._leave(WITNESS)
            mine = self.witness[WITNESS : WITNESS + 3].tolist()
        finally:
            self.shm.unlock(writer)
        try:
            self.shm.check_heap()
            if mine != self.witness[WITNESS : WITNESS + 3].tolist():
                raise Violation(f"changed while actor {self.number} held the lock shared after a downgrade: {mine}")
        finally:
            self.shm.unlock(reader)

    # -- semaphore, event, mutex

    @operation("mutex", 8)
    def use_mutex(self):
        """Alone, by another lock."""
        if not self.mutex.acquire(timeout=self.rng.choice([-1, -1, 0, 0.05])):
            return
        try:
            self._enter(MUTEX_WITNESS, MUTEX_BLAME)
            self._leave(MUTEX_WITNESS)
        finally:
            self.mutex.release()

    @operation("semaphore", 8)
    def use_token(self):
        """Take one and give it back.  Who is killed in between takes it with him."""
        self.row[TOKEN] = PERHAPS
        if self.tokens.wait(self.rng.choice([0, 0.001, 0.05])):
            self.row[TOKEN] = HAS_TOKEN
            self.point()
            if self.tokens.value >= N_TOKENS:
                raise Violation(f"{self.tokens.value} tokens are there beside the one that actor {self.number} has")
            self.row[TOKEN] = PERHAPS
            self.tokens.signal()
        self.row[TOKEN] = NO_TOKEN

    @operation("event", 6)
    def use_event(self):
        """Signal, reset, wait."""
        what = self.rng.randrange(6)
        if what < 3:
            self.bell.signal()
        elif what == 3:
            self.bell.reset()
        else:
            self.bell.wait(None if self.waits_for_ever else self.rng.choice([0, 0.01, 0.1]))

    # -- queues: a message is its producer and a number

    def _message(self, which, number):
        word = self.number << _PRODUCER_SHIFT | number
        return struct.pack("<q", word) + bytes([number & 0xFF]) * (number % (LONGEST_MESSAGE - 8)) if which else word

    def read(self, message):
        if not isinstance(message, bytes):
            return int(message)
        (word,) = struct.unpack_from("<q", message)
        number = word & _NUMBER_MASK
        if message[8:] != bytes([number & 0xFF]) * (number % (LONGEST_MESSAGE - 8)):
            raise Violation(f"a message of {len(message)} bytes came out of the queue changed: {message!r}")
        return word

    @operation("put", 8)
    def produce(self):
        """Put one or many.  `DID` are in the queue or were; those up to `ABOUT` may be."""
        which, row = self.rng.randrange(2), self.row
        did, n = int(row[DID + which]), self.rng.randrange(1, 6)
        if did + n > MAX_MESSAGES:
            return
        row[ABOUT + which] = did + n
        timeout, n_put = self.rng.choice([0, 0.01, 0.1]), 0
        try:
            if n == 1:
                self.queues[which].put(self._message(which, did), timeout=timeout)
                n_put = 1
            else:
                n_put = self.queues[which].put_many([self._message(which, did + i) for i in range(n)], timeout=timeout)
        finally:
            row[DID + which] = did + n_put
            row[ABOUT + which] = did + n_put

    @operation("get", 9)
    def consume(self):
        """Take one or many.  Up to `GETTING` of them go with who is killed."""
        which, n = self.rng.randrange(2), self.rng.randrange(1, 8)
        timeout = None if self.waits_for_ever and self.rng.random() < 0.2 else self.rng.choice([0, 0.01, 0.1])
        self.row[GETTING + which] = n
        try:
            queue = self.queues[which]
            for message in [queue.get(timeout=timeout)] if n == 1 else list(queue.get_many(n, timeout=timeout)):
                self.point()
                self.note_message(which, self.read(message))
        finally:
            self.row[GETTING + which] = 0

    def note_message(self, which, word):
        """See that it came to nobody before, and none of its producer's that was put later came to me."""
        producer, number = word >> _PRODUCER_SHIFT, word & _NUMBER_MASK
        rows, taken = self.storm.ledger.rows, self.storm.ledger.taken[which]
        if not (0 <= producer < MAX_ACTORS and number < rows[producer, ABOUT + which]):
            raise Violation(f"queue {which}: message {number} of actor {producer} was never put")
        if taken[producer, number]:
            raise Violation(f"queue {which}: message {number} of actor {producer} came twice")
        taken[producer, number] = 1
        if number <= self.last.get((which, producer), -1):
            raise Violation(f"queue {which}: message {number} of actor {producer} came after {self.last[which, producer]}")
        self.last[which, producer] = number

    # -- the section as a whole

    @operation("check_heap", 3)
    def check_heap(self):
        """Verify the heap while others change it."""
        self.shm.check_heap()
        self.shm.stats()

    @operation("trim, flush", 1)
    def trim_and_flush(self):
        """Give memory back; write it."""
        self.shm.trim()
        if self.rng.random() < 0.2:
            self.shm.flush()

    @operation("snapshot", 1)
    def snapshot(self):
        """A copy, which must be whole and consistent."""
        path = os.path.join(self.storm.folder, f"snapshot-{self.number}")
        self.shm.snapshot(path)
        with shmem.SharedMemory(path) as copy:
            copy.check_heap()
            verify_all(copy)
        os.unlink(path)

    @operation("reopen", 4)
    def reopen(self):
        """Close and open: if nobody else of this process has it open, it leaves."""
        self.close()
        self.open()

    @operation("read only", 2)
    def look_read_only(self):
        """Another handle, which cannot change anything."""
        with shmem.SharedMemory(**self.storm.place, mode="read_only") as shm, shmem.shared_lock(shm):
            for offset in self.rng.sample(shm["slots"].tolist(), 5):
                if offset:
                    memoryview(shm.block(offset))[:16].tobytes()

    @operation("side section", 4)
    def use_side(self):
        """A section that is made by the first who comes and goes with the last; half of them are anonymous."""
        with shmem.SharedMemory(**self.storm.side(self.rng.randrange(2 * N_SIDES)), max_size=1 << 20) as side:
            n = self.rng.randrange(1, 300)
            name = f"array {self.rng.randrange(4)}"
            found = side.get(name)
            if found is None:
                side.full(n, n, "int16", name=name)
            else:
                verify_array(found)
                with contextlib.suppress(KeyError):  # somebody was quicker
                    del side[name]
            with shmem.exclusive_lock(side):
                side.full(n, n, "int16", temporary=True)
            side.check_heap()

    @operation("fork", 1)
    def fork(self):
        """A child that does the same, for a while; perhaps made while holding the lock."""
        self._reap(kill=self.rng.random() < 0.5)
        number = next(self.numbers, None)
        if number is None:
            return
        parent = os.getpid()
        with self.held() if self.rng.random() < 0.3 else contextlib.nullcontext():
            pid = os.fork()
            if pid == 0:
                self._be_child(number, parent)
        self.children[pid] = number

    def _be_child(self, number, parent):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        run(lambda: Actor(self.storm, number, iter(())), self.storm, number, CHILD_OPERATIONS)
        os._exit(0)

    def _reap(self, kill):
        """Wait for the children that have ended; with `kill`, for all, which are killed."""
        for pid, number in list(self.children.items()):
            if kill:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
            if ended:
                del self.children[pid]
                if self.storm.ledger.rows[number, STATE] != FAILED and os.waitstatus_to_exitcode(status) != 0:
                    self.storm.ledger.rows[number, STATE] = KILLED


# -- processes --------------------------------------------------------------------------------------------------


def run(make, storm, number, n_operations):
    """Be an actor; a violation ends the process."""
    row = storm.ledger.rows[number]
    row[PID] = os.getpid()
    row[STATE] = RUNNING
    try:
        actor = make()
        actor.work(n_operations)
        if actor.rng.random() < 0.5:
            actor.close()
        row[STATE] = DONE
        return actor
    except BaseException:
        print(f"actor {number}, process {os.getpid()}, step {row[STEP]}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        row[STATE] = FAILED  # the storm ends when this is seen
        os._exit(1)


def end_member(at_once):
    """What a member does last that was not killed."""
    if at_once:
        os._exit(0)  # without leaving anything


def member_main(storm, member, log):
    """A process of the storm: some threads, and the children they fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(log, 2)
    faulthandler.enable(2, all_threads=True)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != storm.pid:
        os._exit(0)
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads: that is what is tried
    rng = random.Random(f"{storm.options.seed} {storm.round} member {member}")
    first = member * ACTORS_OF_MEMBER
    numbers = iter(range(first + 4, first + ACTORS_OF_MEMBER))
    if storm.keeper is not None and rng.random() < 0.5:
        storm.keeper.close()  # inherited; the others leave by it only at exit
    n_operations = rng.randrange(100, 4000)
    jobs = [
        (lambda i=i: Actor(storm, first + i, numbers, waits_for_ever=i > 0), storm, first + i, n_operations)
        for i in range(rng.choice([1, 1, 2, 3]))
    ]
    threads = [threading.Thread(target=run, args=job) for job in jobs[1:]]
    for thread in threads:
        thread.start()
    kept = run(*jobs[0])  # what it is attached to is left by who exits, or by who drops the last handle
    while any(thread.is_alive() for thread in threads) and not storm.ledger.stop[0]:
        time.sleep(0.01)  # they may wait for ever: others give them what they wait for
    for thread in threads:
        thread.join()
    end_member(rng.random() < 0.3)
    del kept
