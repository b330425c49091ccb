"""What a member's actors do until they are killed: random operations that cover everything a client can do with a section."""

import contextlib
import os
import random
import signal
import struct
import sys
import traceback

import numpy as np

import shmem
from shmem._base.system_tools import die_with_parent
from shmem._objects import finding
from shmem.testing.storm import contents, ledger
from shmem.testing.storm.contents import Node, Violation

CHILD_OPERATIONS = 60
_PRODUCER_SHIFT, _NUMBER_MASK = 32, 0xFFFFFFFF  # a message is its producer and a number

# the exceptions that an operation may raise because other processes were killed, or block it
EXPECTED = (shmem.LockTimeout, shmem.DeadlockError, shmem.SectionFull, shmem.NameExists, shmem.QueueEmpty, shmem.QueueFull, BufferError)

OPERATIONS = []  # (name, weight, name of the method)


def operation(name, weight):
    """Add a method of `Actor` to the table of operations."""

    def register(method):
        OPERATIONS.append((name, weight, method.__name__))
        return method

    return register


class Actor:
    """A thread of a member, or a child that such a thread forked.

    Parameters
    ----------
    storm : Storm
        Provides the section, the ledger and the seed.
    number : int
        The actor's row of the ledger.
    numbers : iterator
        The rows that are left for children.
    waits_for_ever : bool
        Wait without a timeout for events and messages, which only other actors provide.  Each member has an actor that does not.
    """

    def __init__(self, storm, number, numbers, waits_for_ever=False):
        self.storm, self.number, self.numbers, self.waits_for_ever = storm, number, numbers, waits_for_ever
        self.rng = random.Random(f"{storm.options.seed} {storm.round} {number}")
        self.row = storm.ledger.rows[number]
        self.step = 0
        self.last = {}  # (queue, producer) -> number of the latest message
        self.children = {}
        self.attributes = [None, None]  # what this actor has set
        self.open()

    def open(self):
        """Open the section and look up its objects."""
        self.shm = shm = shmem.SharedMemory(**self.storm.place)
        self.lock, self.shared = shmem.exclusive_lock(shm), shmem.shared_lock(shm)
        self.slots, self.witness = shm["slots"], shm["witness"]
        self.tokens, self.bell, self.mutex = shm["tokens"], shm["bell"], shm["mutex"]
        self.queues = shm["queue 0"], shm["queue 1"]

    def close(self):
        """Drop everything in the section and close it."""
        self.slots = self.witness = self.tokens = self.bell = self.mutex = self.queues = None
        self.shm.close()

    def work(self, n_operations):
        """Do `n_operations` random operations, or fewer if the storm ends."""
        weights = [weight for _, weight, _ in OPERATIONS]
        methods = [getattr(self, method) for *_, method in OPERATIONS]
        row, stop = self.row, self.storm.ledger.stop
        for _ in range(n_operations):
            if stop[0]:
                break
            which = self.rng.choices(range(len(methods)), weights)[0]
            self.step += 1
            row[ledger.OPERATION], row[ledger.STEP] = which, self.step
            try:
                methods[which]()
            except EXPECTED:
                pass
            except shmem.QueueShutDown:
                if not stop[1]:
                    raise
            row[ledger.FIRST_COUNT + which] += 1
        self._reap(kill=True)

    def point(self):
        """Mark a moment at which a kill leaves something to clean up or to account for.

        The storm may order a member to kill itself at the n-th of its next points.
        """
        wishes, member = self.storm.ledger.wishes, self.number // ledger.ACTORS_OF_MEMBER
        if wishes[member] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif wishes[member]:
            wishes[member] -= 1

    # -- blocks, arrays and objects: hand, then link; hand, then unlink

    def take(self, it):
        """Note that a block is in hand and return its offset."""
        self.point()
        offset, serial = finding.locate(self.shm, it)
        self.row[ledger.HAND_SERIAL] = serial
        self.row[ledger.HAND] = offset
        self.row[ledger.MAKING] = ledger.NOTHING
        return offset

    def about_to_make(self, what, n_bytes=0):
        """Note that a block will be made, which nothing leads to at first."""
        self.row[ledger.BYTES] = n_bytes
        self.row[ledger.MAKING] = what

    def let_go(self):
        """Note that the block in hand was linked or freed."""
        self.point()
        self.row[ledger.HAND] = 0

    @contextlib.contextmanager
    def made(self, what, n_bytes=0):
        """Note the block that the enclosed call makes; if the call raises, none was made."""
        self.about_to_make(what, n_bytes)
        try:
            yield
        except BaseException:
            self.row[ledger.MAKING] = ledger.NOTHING
            raise

    @operation("slot", 24)
    def change_slot(self):
        """Allocate, free or reallocate a block or array that a slot leads to."""
        with self.held():
            i = self.rng.randrange(contents.N_SLOTS)
            offset = int(self.slots[i])
            if offset == 0:
                self._fill_slot(i)
            else:
                self._change_slot(i, offset)  # a function of its own, so that no view of an array outlives the lock

    def _change_slot(self, i, offset):
        found = contents.slot_content(self.shm, offset)
        if isinstance(found, np.ndarray):
            contents.verify_array(found)
        else:
            number = contents.verify_block(found)
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
            with self.made(ledger.BLOCK, size):
                it = self.shm.allocate(size, zero=self.rng.random() < 0.5, align=self.rng.choice([16, 16, 64, 1024]))
            offset = self.take(it)
            contents.fill(it, self.rng.randrange(1 << 40))
        else:
            n = size // 8
            with self.made(ledger.ARRAY, n):
                it = self.shm.full(n, n, "int64")
            offset = self.take(it)
        self.slots[i] = offset
        self.let_go()

    def _reallocate_slot(self, i, block, number):
        self.take(block)
        self.slots[i] = 0
        try:
            block = self._reallocate(block, number)
        except shmem.SectionFull:
            self.slots[i] = block.offset  # the block is unchanged
            self.let_go()
            raise
        self.slots[i] = block.offset
        self.let_go()

    def _reallocate(self, block, number):
        """Reallocate a block that is in hand, verify what it kept, fill it and return it."""
        former, size = block.nbytes, self._size()
        with self.made(ledger.BLOCK, size):
            block = self.shm.reallocate(block, size)
        self.take(block)
        contents.verify_block(block, former, number)
        contents.fill(block, number)
        return block

    @operation("own block", 8)
    def use_own_block(self):
        """Allocate a block, reallocate it some times and free it, all without the lock: only the heap's gate excludes other actors."""
        number, size = self.rng.randrange(1 << 40), self._size()
        with self.made(ledger.BLOCK, size):
            block = self.shm.allocate(size)
        self.take(block)
        contents.fill(block, number)
        with contextlib.suppress(shmem.SectionFull):  # the block is unchanged
            for _ in range(self.rng.choice([0, 1, 4, 30])):
                block = self._reallocate(block, number)
        contents.verify_block(block, number=number)
        self.shm.free(block)
        self.let_go()

    @operation("list", 12)
    def change_list(self):
        """Insert an object into a list or remove one, by a single store."""
        with self.held():
            anchor = self.shm.root
            link = f"list_{self.rng.randrange(contents.N_LISTS)}"
            nodes = list(contents.nodes_of(anchor, link[-1]))
            if len(nodes) < self.rng.randrange(30):
                key = self.rng.randrange(1 << 40)
                with self.made(ledger.NODE):
                    node = self.shm.new(Node, key=key, check=key ^ contents.KEY, next=nodes[0] if nodes else None)
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
        """Make one of the two anchors the root; it may be the root already."""
        with self.held():
            self.shm.root = self.shm[f"anchor {self.rng.randrange(2)}"]

    @operation("search", 8)
    def search(self):
        """Read slots and lists under the shared lock."""
        with self.held_shared():
            anchor = self.shm.root
            for _ in contents.nodes_of(anchor, self.rng.randrange(contents.N_LISTS)):
                pass
            for offset in self.rng.sample(self.slots.tolist(), 5):
                if offset:
                    contents.verify_slot(self.shm, offset)

    @operation("temporary", 4)
    def use_temporary(self):
        """Make a temporary array, which is freed with its last view."""
        n = self.rng.randrange(1, 5000)
        if self.rng.random() < 0.5:
            array = self.shm.full(n, n, "int32", temporary=True)
        else:
            array = self.shm.copy(np.full(n, n, "int32"), temporary=True)
        self.point()
        contents.verify_array(array)

    @operation("message", 10)
    def exchange_message(self):
        """Send a temporary array, which only the message keeps, or open a message that any actor has sent; some are never opened."""
        name = f"message {self.rng.randrange(contents.N_MESSAGES)}"
        with self.held():
            block = self.shm.get(name)
            if block is None:
                n = self.rng.randrange(1, 3000)
                data = shmem.dumps(self.shm.full(n, n, "int32", temporary=True))
                self.point()
                self.shm[name] = contents.message(data)
                return
            content = bytes(block)
            del block
            del self.shm[name]
        self.point()
        if self.rng.random() < 0.9:
            contents.verify_message(content, self.point)

    # -- names

    @operation("name: array", 14)
    def change_named_array(self):
        """Make, verify or delete a named array without the lock: a view keeps its array."""
        name = f"array {self.rng.randrange(contents.N_NAMES)}"
        found = self.shm.get(name)
        if found is None:
            n = self.rng.randrange(1, self.rng.choice([10, 3000]))
            self.shm.full(n, n, "int64", name=name)
            return
        contents.verify_array(found)
        if self.rng.random() < 0.6:
            with contextlib.suppress(KeyError):  # another actor deleted it first
                del self.shm[name]
            self.point()  # `found` may be the last view
            contents.verify_array(found)

    @operation("name: group", 8)
    def change_group(self):
        """Make, verify or delete an array in a group, or delete a group with what is in it, without the lock."""
        group = f"group {self.rng.randrange(3)}"
        if self.rng.random() < 0.05:
            with contextlib.suppress(KeyError):
                del self.shm[group]
            return
        name = f"{group}/{self.rng.choice(['', 'deep/', 'deep/deeper/'])}array {self.rng.randrange(contents.N_NAMES)}"
        found = self.shm.get(name)
        if found is None:
            n = self.rng.randrange(1, 300)
            self.shm.full(n, n, "int64", name=name)
            return
        contents.verify_array(found)
        with contextlib.suppress(KeyError):  # another actor deleted the group or the array first
            if self.rng.random() < 0.4:
                list(self.shm[group].items())
            else:
                del self.shm[name]
        self.point()
        contents.verify_array(found)

    @operation("name: replace", 6)
    def replace_named_array(self):
        """Replace a named array, or create it, without the lock: a view keeps the former one."""
        name = f"array {self.rng.randrange(contents.N_NAMES)}"
        found, n = self.shm.get(name), self.rng.randrange(1, self.rng.choice([10, 3000]))
        self.shm.replace(name, np.full(n, n, "int64"))
        self.point()  # `found` may be the last view
        if found is not None:
            contents.verify_array(found)

    @operation("name: rename", 5)
    def rename_named_array(self):
        """Give an array another name without the lock."""
        source, dest = (f"array {self.rng.randrange(contents.N_NAMES)}" for _ in range(2))
        with contextlib.suppress(KeyError):  # there is none, or another actor deleted or renamed it first
            self.shm.move(source, dest)

    @operation("name: wait", 3)
    def await_change(self):
        """Wait until a name is changed by any actor, or by this one."""
        with contextlib.suppress(KeyError):
            entry = self.shm.entry(f"array {self.rng.randrange(contents.N_NAMES)}")
            since = entry.version
            if self.rng.random() < 0.3:
                touched = entry.touch()
                found = entry.wait_changed(since)
            else:
                touched = since + 1
                found = entry.wait_changed(since, timeout=0.1)
            if found is not None and found < touched:
                raise Violation(f"a name with version {since} got the version {found}, which is less than {touched}")

    @operation("name: bytes", 5)
    def change_named_bytes(self):
        """Make, or verify and delete, a named plain block under the lock."""
        name = f"bytes {self.rng.randrange(contents.N_NAMES)}"
        with self.held():
            if name not in self.shm:
                size, number = self.rng.randrange(16, 2000), self.rng.randrange(1 << 40)
                self.shm[name] = struct.pack("<qq", size, number) + bytes([number & 0xFF]) * (size - 16)
                return
            contents.verify_block(self.shm[name])
            del self.shm[name]

    @operation("name: other", 4)
    def change_named_primitive(self):
        """Make and use, or delete, a named semaphore, event, mutex or queue under the lock."""
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
        """Note in the ledger which actor left a witness unequal, and at which step."""
        actor, step = int(self.witness[at]) >> ledger.ACTOR_SHIFT, int(self.witness[at]) & ledger.STEP_MASK
        self.storm.ledger.rows[actor, column] = step

    def _enter(self, at, column):
        """Begin an exclusive stretch: either the witness's two numbers are equal, or the previous holder was killed."""
        witness = self.witness
        if witness[at + 1] != witness[at + 2]:
            self._blame(at, column)
            witness[at + 2] = witness[at + 1]
        witness[at] = self.number << ledger.ACTOR_SHIFT | self.step
        witness[at + 1] += 1

    def _leave(self, at):
        """End an exclusive stretch: no other actor may have changed the witness."""
        witness = self.witness
        mine = self.number << ledger.ACTOR_SHIFT | self.step
        self.point()
        if witness[at] != mine or witness[at + 1] != witness[at + 2] + 1:
            intruder = int(witness[at]) >> ledger.ACTOR_SHIFT
            raise Violation(f"actor {intruder} was in an exclusive stretch of actor {self.number}: {witness.tolist()}")
        witness[at + 2] += 1

    @contextlib.contextmanager
    def held(self):
        """Hold the lock exclusively, acquired in one of many ways, and verify that no other actor does."""
        with contextlib.ExitStack() as stack:
            way = self.rng.randrange(8)
            if way == 0:
                stack.enter_context(self.shared)  # makes the acquisition below an upgrade
            elif way == 1:
                stack.enter_context(shmem.exclusive_lock(self.shm, timeout=self.rng.choice([0, 0.001, 0.1, 20])))
            elif way == 2:
                descriptor = shmem.LockDescriptor(shmem.LockMode.exclusive)
                self.shm.lock(descriptor, timeout=self.rng.choice([0.05, None]))
                stack.callback(self.shm.unlock, descriptor)
            stack.enter_context(self.lock)
            self._enter(contents.WITNESS, ledger.LOCK_BLAME)
            try:
                yield
            finally:
                self._leave(contents.WITNESS)

    @contextlib.contextmanager
    def held_shared(self):
        """Hold the lock shared and verify that no actor holds it exclusively."""
        timeout = self.rng.choice([None, None, 0, 0.1])
        with shmem.shared_lock(self.shm, timeout):
            before = self.witness[contents.WITNESS : contents.WITNESS + 3].tolist()
            if before[1] != before[2]:
                self._blame(contents.WITNESS, ledger.LOCK_BLAME)
            yield
            after = self.witness[contents.WITNESS : contents.WITNESS + 3].tolist()
            if before != after:
                raise Violation(f"the witness changed while actor {self.number} held the lock shared: {before}, {after}")

    @operation("downgrade", 4)
    def downgrade(self):
        """Downgrade from exclusive to shared by descriptors."""
        writer, reader = shmem.LockDescriptor(shmem.LockMode.exclusive), shmem.LockDescriptor(shmem.LockMode.shared)
        self.shm.lock(writer)
        try:
            self._enter(contents.WITNESS, ledger.LOCK_BLAME)
            self.shm.lock(reader)
            self._leave(contents.WITNESS)
            mine = self.witness[contents.WITNESS : contents.WITNESS + 3].tolist()
        finally:
            self.shm.unlock(writer)
        try:
            self.shm.check_heap()
            if mine != self.witness[contents.WITNESS : contents.WITNESS + 3].tolist():
                raise Violation(f"the witness changed while actor {self.number} held the lock shared after a downgrade: {mine}")
        finally:
            self.shm.unlock(reader)

    # -- semaphore, event, mutex

    @operation("mutex", 8)
    def use_mutex(self):
        """Acquire and release the mutex, and verify that it excludes other actors."""
        if not self.mutex.acquire(timeout=self.rng.choice([-1, -1, 0, 0.05])):
            return
        try:
            self._enter(contents.MUTEX_WITNESS, ledger.MUTEX_BLAME)
            self._leave(contents.MUTEX_WITNESS)
        finally:
            self.mutex.release()

    @operation("semaphore", 8)
    def use_token(self):
        """Take a unit of the semaphore and return it.  A kill in between loses the unit."""
        self.row[ledger.TOKEN] = ledger.PERHAPS
        if self.tokens.wait(self.rng.choice([0, 0.001, 0.05])):
            self.row[ledger.TOKEN] = ledger.HAS_TOKEN
            self.point()
            if self.tokens.value >= contents.N_TOKENS:
                raise Violation(f"the semaphore has {self.tokens.value} units besides the one that actor {self.number} holds")
            self.row[ledger.TOKEN] = ledger.PERHAPS
            self.tokens.signal()
        self.row[ledger.TOKEN] = ledger.NO_TOKEN

    @operation("event", 6)
    def use_event(self):
        """Signal the event, reset it or wait for it."""
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
        return struct.pack("<q", word) + bytes([number & 0xFF]) * (number % (contents.LONGEST_MESSAGE - 8)) if which else word

    def read(self, message):
        """Return the word in a message, producer and number, after verifying its content."""
        if not isinstance(message, bytes):
            return int(message)
        (word,) = struct.unpack_from("<q", message)
        number = word & _NUMBER_MASK
        if message[8:] != bytes([number & 0xFF]) * (number % (contents.LONGEST_MESSAGE - 8)):
            raise Violation(f"a message of {len(message)} bytes was changed in the queue: {message!r}")
        return word

    @operation("put", 8)
    def produce(self):
        """Put one message or several.  Those below `DID` are or were in the queue; those below `ABOUT` may be."""
        which, row = self.rng.randrange(2), self.row
        did, n = int(row[ledger.DID + which]), self.rng.randrange(1, 6)
        if did + n > ledger.MAX_MESSAGES:
            return
        row[ledger.ABOUT + which] = did + n
        timeout, n_put = self.rng.choice([0, 0.01, 0.1]), 0
        try:
            if n == 1:
                self.queues[which].put(self._message(which, did), timeout=timeout)
                n_put = 1
            else:
                n_put = self.queues[which].put_many([self._message(which, did + i) for i in range(n)], timeout=timeout)
        finally:
            row[ledger.DID + which] = did + n_put
            row[ledger.ABOUT + which] = did + n_put

    @operation("get", 9)
    def consume(self):
        """Get one message or several.  A kill loses at most `GETTING` of them."""
        which, n = self.rng.randrange(2), self.rng.randrange(1, 8)
        timeout = None if self.waits_for_ever and self.rng.random() < 0.2 else self.rng.choice([0, 0.01, 0.1])
        self.row[ledger.GETTING + which] = n
        try:
            queue = self.queues[which]
            for message in [queue.get(timeout=timeout)] if n == 1 else list(queue.get_many(n, timeout=timeout)):
                self.point()
                self.note_message(which, self.read(message))
        finally:
            self.row[ledger.GETTING + which] = 0

    def note_message(self, which, word):
        """Note a message; verify that no consumer got it before, and that this one got no later message of the same producer."""
        producer, number = word >> _PRODUCER_SHIFT, word & _NUMBER_MASK
        rows, taken = self.storm.ledger.rows, self.storm.ledger.taken[which]
        if not (0 <= producer < ledger.MAX_ACTORS and number < rows[producer, ledger.ABOUT + which]):
            raise Violation(f"queue {which}: message {number} of actor {producer} was never put")
        if taken[producer, number]:
            raise Violation(f"queue {which}: message {number} of actor {producer} came twice")
        taken[producer, number] = 1
        if number <= self.last.get((which, producer), -1):
            raise Violation(f"queue {which}: message {number} of actor {producer} came after its message {self.last[which, producer]}")
        self.last[which, producer] = number

    # -- logs: a row is its actor and a number

    @operation("append", 8)
    def append(self):
        """Append rows to a log without the lock, which sometimes moves under the views of others.  `APPENDED` rows are there."""
        which, row = self.rng.randrange(2), self.row
        did, n = int(row[ledger.APPENDED + which]), self.rng.choice([1, 2, 5, 100])
        if did + n > 2 * ledger.MAX_MESSAGES:
            return
        row[ledger.APPENDING + which] = did + n
        try:
            rows = [[self.number, did + i] for i in range(n)]
            self.shm.entry(f"log {which}").append(rows, move=self.rng.random() < 0.5)
            self.point()
            row[ledger.APPENDED + which] = did + n
        finally:
            row[ledger.APPENDING + which] = row[ledger.APPENDED + which]

    @operation("log", 4)
    def read_log(self):
        """Verify a log while others append to it; some moves are refused meanwhile."""
        rows = self.shm[f"log {self.rng.randrange(2)}"]
        self.point()
        contents.verify_log(rows)

    # -- attributes

    @operation("attribute", 8)
    def change_attribute(self):
        """Change this actor's attribute of a log, which has what it wrote last, whatever others do, and although the log moves."""
        which, name = self.rng.randrange(2), f"actor {self.number}"
        attrs = self.shm.entry(f"log {which}").attrs
        self.point()
        found = attrs.get(name)
        if found != self.attributes[which]:
            raise Violation(f"log {which}: actor {self.number} finds its attribute as {found}, and wrote {self.attributes[which]}")
        value = None if self.rng.random() < 0.2 else [self.step] * self.rng.choice([1, 5, 300])
        try:
            if value is None:
                attrs.pop(name, None)
            else:
                attrs[name] = value
            self.attributes[which] = value
        except shmem.SectionFull:
            pass

    @operation("attribute of a name", 8)
    def change_attribute_of_a_name(self):
        """Give attributes to a named array, which others delete at any moment, or read them."""
        name = f"array {self.rng.randrange(contents.N_NAMES)}"
        with contextlib.suppress(KeyError, shmem.InvalidBlock):
            attrs = self.shm.entry(name).attrs
            self.point()
            if self.rng.random() < 0.5:
                attrs.update(actor=self.number, text="x" * self.rng.randrange(200))
            elif attrs.get("actor", 0) not in range(ledger.MAX_ACTORS):
                raise Violation(f"an attribute of {name!r} is {attrs['actor']}")

    # -- the section as a whole

    @operation("check_heap", 3)
    def check_heap(self):
        """Verify the heap while other processes change it."""
        self.shm.check_heap()
        self.shm.stats()

    @operation("sweep", 1)
    def sweep(self):
        """Free what killed processes left."""
        self.shm.sweep()

    @operation("trim, flush", 1)
    def trim_and_flush(self):
        """Return memory to the system; write the section to its file."""
        self.shm.trim()
        if self.rng.random() < 0.2:
            self.shm.flush()

    @operation("snapshot", 1)
    def snapshot(self):
        """Write a snapshot and verify that it is complete and consistent."""
        path = os.path.join(self.storm.folder, f"snapshot-{self.number}")
        self.shm.snapshot(path)
        with shmem.SharedMemory(path) as copy:
            copy.check_heap()
            contents.verify_all(copy)
        os.unlink(path)

    @operation("reopen", 4)
    def reopen(self):
        """Close the section and open it: if no other thread of this process has it open, the process leaves in between."""
        self.close()
        self.open()

    @operation("read only", 2)
    def look_read_only(self):
        """Read slots through another handle, which is read-only."""
        with shmem.SharedMemory(**self.storm.place, mode="read_only") as shm, shmem.shared_lock(shm):
            for offset in self.rng.sample(shm["slots"].tolist(), 5):
                if offset:
                    memoryview(shm.block(offset))[:16].tobytes()

    @operation("side section", 4)
    def use_side(self):
        """Use a second section, made by the first actor that opens it.  Half of these sections are anonymous."""
        with shmem.SharedMemory(**self.storm.side(self.rng.randrange(2 * contents.N_SIDES)), max_size=contents.SIDE_BYTES) as side:
            n = self.rng.randrange(1, 300)
            name = f"array {self.rng.randrange(4)}"
            found = side.get(name)
            if found is None:
                side.full(n, n, "int16", name=name)
            else:
                contents.verify_array(found)
                with contextlib.suppress(KeyError):  # another actor deleted it first
                    del side[name]
            with shmem.exclusive_lock(side):
                side.full(n, n, "int16", temporary=True)
            side.check_heap()

    @operation("fork", 1)
    def fork(self):
        """Fork a child that does random operations for a while, sometimes while holding the lock."""
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
        """Work as an actor and exit; this runs in the child."""
        die_with_parent()
        if os.getppid() != parent:
            os._exit(0)
        run(lambda: Actor(self.storm, number, iter(())), self.storm, number, CHILD_OPERATIONS)
        os._exit(0)

    def _reap(self, kill):
        """Wait for the children that have ended; with `kill`, kill all children first."""
        for pid, number in list(self.children.items()):
            if kill:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
            if ended:
                del self.children[pid]
                if self.storm.ledger.rows[number, ledger.STATE] != ledger.FAILED and os.waitstatus_to_exitcode(status) != 0:
                    self.storm.ledger.rows[number, ledger.STATE] = ledger.KILLED


def run(make, storm, number, n_operations):
    """Make an actor and let it work; a violation ends the process."""
    row = storm.ledger.rows[number]
    row[ledger.PID] = os.getpid()
    row[ledger.STATE] = ledger.RUNNING
    try:
        actor = make()
        actor.work(n_operations)
        if actor.rng.random() < 0.5:
            actor.close()
        row[ledger.STATE] = ledger.DONE
        return actor
    except BaseException:
        print(f"actor {number}, process {os.getpid()}, step {row[ledger.STEP]}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        row[ledger.STATE] = ledger.FAILED  # the storm ends when this is seen
        os._exit(1)
