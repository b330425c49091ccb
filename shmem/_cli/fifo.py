"""The original's second program: producers and consumers on one first-in-first-out queue in a section.

`fifo produce N` puts N messages and ends; `fifo consume` takes messages and ends after ten seconds without one.  Any number
of both may run at the same time, and may be killed at any moment: no message is lost or taken twice, except that what
a consumer took just before it was killed is gone with it.

The queue is a linked list of objects under the section's lock.  A semaphore counts messages, an event tells that none is left.
(Whoever needs a queue takes shmem.Queue.  This shows what locks, semaphores, events and objects are for.)

Every message carries its producer and a number.  Consumers verify that of each producer the messages come in order, each once.

Exit status: 0 all is well; 1 an order was violated, or an error; 2 wrong arguments; 130 interrupted.
"""

# What must hold, with the lock held and after `_repair`:
#
# * `first` leads to a message that was taken already (at the beginning to an empty one); from there `next` leads to those that wait, the
#   oldest first, up to `last`.  So the list is never empty, and each change of it is one store: putting sets `last.next`,
#   taking moves `first` on by one.
# * A message that is in no list is `making` or `removing`; else it is in the list or among the `spare` ones.  Nothing is freed.
#   (Only between `new` and the store to `making` a block may be lost: one at most for each killed producer.  --check counts them.)
# * `producer.taken` is the number of its first message that waits, `producer.put` the number of its next one.
#
# A process may be killed, or interrupted, between any two stores.  `making` and `removing` then still say what it was
# doing, and whoever comes next under the lock completes that or takes it back.
#
# The list is the truth; semaphore and event follow it, each behind a step of its own.
#
# * Token without message (its message was taken by somebody who had lost his token): who gets it finds nothing, and waits again.
# * Message without token (its producer was killed before it signaled, or a consumer after it had waited): every wait is over after a
#   slice of time, and who then finds messages signals as many.
# * The event is reset before a message comes, and signaled after the last one was taken: it may only be late.  Who waits for it
#   looks at the list after each slice.

import contextlib
import os
import sys
import tempfile
import time
import warnings

import shmem

SLICE = 0.5  # seconds
MIN_SIZE = 1 << 20


class Violation(Exception):
    """A message came out of order, twice, or not at all."""


class Producer(shmem.Struct, type_name="shmem.fifo.Producer"):
    """Who puts messages; kept until all of them were taken."""

    number: shmem.int64
    pid: shmem.int64
    put: shmem.int64
    taken: shmem.int64
    next: shmem.Ref["Producer"]


class Message(shmem.Struct, type_name="shmem.fifo.Message"):
    """A message."""

    producer: shmem.Ref["Producer"]
    number: shmem.int64
    next: shmem.Ref["Message"]


class Fifo(shmem.Struct, type_name="shmem.fifo.Fifo"):
    """The queue."""

    first: shmem.Ref["Message"]
    last: shmem.Ref["Message"]
    spare: shmem.Ref["Message"]
    making: shmem.Ref["Message"]
    removing: shmem.Ref["Message"]
    producers: shmem.Ref["Producer"]
    n_producers: shmem.int64
    messages: shmem.Semaphore
    drained: shmem.Event


def _new_fifo(shm):
    empty = shm.new(Message)
    return shm.new(Fifo, first=empty, last=empty)


def chain(first):
    """What a list holds, from `first` on.

    Raises
    ------
    Violation
        It leads back into itself.
    """
    mark, n_steps = None, 0
    while first is not None:
        if first == mark:
            raise Violation(f"a list leads back to the {type(first).__name__} at offset {first.offset:#x}")
        if n_steps & (n_steps - 1) == 0:
            mark = first  # after 1, 2, 4 ... steps (Brent): who walks in a circle meets it
        yield first
        first, n_steps = first.next, n_steps + 1


class Queue:
    """The queue in an open section."""

    def __init__(self, shm):
        self.shm = shm
        self.fifo = shm.require("fifo", lambda: _new_fifo(shm))
        self.lock = shmem.exclusive_lock(shm)

    # -- under the lock

    def _repair(self):
        """Complete, or take back, what somebody was doing who was killed."""
        fifo = self.fifo
        making, removing = fifo.making, fifo.removing
        if making is not None:
            if fifo.last == making or fifo.last.next == making:  # it was linked
                fifo.last = making
                making.producer.put = making.number + 1
                fifo.messages.signal()
            else:
                self._spare(making)
            fifo.making = None
        if removing is not None:
            if removing == fifo.first:  # it was not taken
                removing.next.producer.taken = removing.next.number
            else:
                self._spare(removing)
            fifo.removing = None

    def _spare(self, message):
        """Keep what is in no list any more for the next message; it may be there already."""
        if self.fifo.spare != message:
            message.next = self.fifo.spare
            self.fifo.spare = message

    # -- producers

    def add_producer(self):
        """A new one; those whose messages were all taken, and that are gone, are forgotten."""
        with self.lock:
            self._repair()
            living = self.shm.stats().participants
            before, link = self.fifo, "producers"
            while (producer := getattr(before, link)) is not None:
                if producer.taken == producer.put and producer.pid not in living:
                    setattr(before, link, producer.next)  # one store; a kill before the next line loses the block, no more
                    self.shm.free(producer)
                else:
                    before, link = producer, "next"
            self.fifo.n_producers += 1
            new = self.shm.new(Producer, number=self.fifo.n_producers, pid=os.getpid(), next=self.fifo.producers)
            self.fifo.producers = new
        return new

    def put(self, producer, number):
        """Put one message.

        Raises
        ------
        SectionFull
            And nothing is changed.
        """
        fifo = self.fifo
        with self.lock:
            self._repair()
            message = fifo.spare
            if message is None:
                message = self.shm.new(Message)
                fifo.making = message
            else:
                fifo.making = message
                fifo.spare = message.next
            message.producer, message.number, message.next = producer, number, None
            fifo.drained.reset()
            fifo.last.next = message  # from here on it is put
            fifo.last = message
            producer.put = number + 1
            fifo.making = None
        fifo.messages.signal()

    def wait_until_taken(self, producer):
        """Wait until all that this producer has put was taken."""
        while producer.taken < producer.put:
            self.fifo.drained.wait(SLICE)

    # -- consumers

    def take(self):
        """The first message, as (number of its producer, its own number); None if there is none.

        Raises
        ------
        Violation
            It is not the one that follows this producer's last one.
        """
        fifo = self.fifo
        with self.lock:
            self._repair()
            old, message = fifo.first, fifo.first.next
            if message is None:
                fifo.drained.signal()  # in case who took the last one was killed before it did
                return None
            producer, number = message.producer, message.number
            if number != producer.taken:
                raise Violation(f"producer {producer.number}: message {number} came instead of {producer.taken}")
            fifo.removing = old
            producer.taken = number + 1
            fifo.first = message  # from here on it is taken
            self._spare(old)
            fifo.removing = None
            if message.next is None:
                fifo.drained.signal()
            return producer.number, number

    def get(self, timeout):
        """Wait for a message and take it; None when none came in time."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            is_token = self.fifo.messages.wait(min(SLICE, left))
            found = self.take()
            if found is not None:
                if not is_token:
                    self._signal_again()
                return found
            if left == 0:
                return None

    def _signal_again(self):
        """Messages have lost their tokens: signal as many as there are.  Too many do no harm."""
        with self.lock:
            self._repair()
            n_waiting = sum(1 for _ in chain(self.fifo.first.next))
        if n_waiting:
            self.fifo.messages.signal(n_waiting)

    # -- looking

    def check(self):
        """Verify the list and the heap: (messages that wait, blocks that were lost by kills).

        Raises
        ------
        Violation, HeapCorruption
        """
        with self.lock:
            self._repair()
            expected = {producer.number: producer.taken for producer in chain(self.fifo.producers)}
            n_waiting = n_blocks = 0
            for message in chain(self.fifo.first.next):
                which = message.producer.number
                if message.number != expected[which]:
                    raise Violation(f"producer {which}: message {message.number} waits where {expected[which]} belongs")
                expected[which] += 1
                n_waiting += 1
            for producer in chain(self.fifo.producers):
                if expected[producer.number] != producer.put:
                    raise Violation(f"producer {producer.number}: {producer.put} messages were put, {expected[producer.number]} are known")
                n_blocks += 1
            n_blocks += 2 + n_waiting + sum(1 for _ in chain(self.fifo.spare))  # the queue, what `first` leads to
            return n_waiting, self.shm.check_heap().blocks - n_blocks


# -- the commands -----------------------------------------------------------------------------------------


def _produce(queue, options):
    """Put the messages, waiting while the section is full."""
    producer = queue.add_producer()
    number, patient_until = 0, time.monotonic() + options.timeout
    while number < options.count:
        try:
            queue.put(producer, number)
        except shmem.SectionFull:
            if time.monotonic() > patient_until:
                raise
            queue.fifo.drained.wait(0.01)  # a while: somebody may take one
        else:
            number, patient_until = number + 1, time.monotonic() + options.timeout
    if options.wait:
        queue.wait_until_taken(producer)
    print(f"producer {producer.number}: {number:,} messages put", flush=True)


def _consume(queue, options):
    """Take messages until none came for a while."""
    latest, n_taken = {}, 0
    try:
        while (found := queue.get(options.timeout)) is not None:
            producer, number = found
            if number <= latest.get(producer, -1):
                raise Violation(f"producer {producer}: message {number} came after {latest[producer]}")
            latest[producer] = number
            n_taken += 1
            if options.verbose:
                print(f"{producer} {number}", flush=True)
    finally:
        print(f"consumer: {n_taken:,} messages of {len(latest)} producers taken", flush=True)


def _check(queue, options):
    n_waiting, n_lost = queue.check()
    print(f"check: {n_waiting:,} messages wait, in order; the heap is whole; {n_lost} blocks were lost with killed processes", flush=True)


def command_arguments(parser):
    """Declare what `python -m shmem fifo` takes."""
    parser.add_argument("what", choices=("produce", "consume", "check"), help="put messages, take messages, or only verify")
    parser.add_argument("count", nargs="?", type=int, help="produce: how many messages")
    parser.add_argument("--file", help="the section's file; it stays (default: shmem-fifo-UID in the folder for temporary files)")
    parser.add_argument("--name", help="instead of a file the name of an anonymous section, which goes with its last process")
    parser.add_argument("--size", type=int, default=1 << 28, help="what the section may take, in bytes (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds without a message, or without room, until it ends (default: 10)")
    parser.add_argument("--wait", action="store_true", help="produce: end when all messages were taken")
    parser.add_argument("--check", action="store_true", help="verify queue and heap at the end")
    parser.add_argument("--verbose", action="store_true", help="consume: print each message, producer and number")


def _wrong(options):
    """What is wrong with the arguments; None if nothing is."""
    if (options.what == "produce") != (options.count is not None):
        return "produce takes the number of messages, consume and check take none"
    if options.count is not None and options.count < 0:
        return f"the number of messages is not negative: {options.count}"
    if not 0 <= options.timeout < float("inf"):
        return f"a timeout is a number of seconds that is not negative: {options.timeout}"
    if options.size < MIN_SIZE:
        return f"a section of less than {MIN_SIZE:,} bytes is too small: {options.size:,}"
    if options.file and options.name:
        return "give --file or --name"
    return None


def command(options):
    """Run it; the exit status."""
    wrong = _wrong(options)
    if wrong is not None:
        print(f"fifo: {wrong}", file=sys.stderr)
        return 2
    place = {"shared_name": options.name}
    if options.name is None:
        place = {"file_name": options.file or os.path.join(tempfile.gettempdir(), f"shmem-fifo-{os.getuid()}")}
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)  # _repair looks for itself
    try:
        with contextlib.closing(shmem.SharedMemory(**place, max_size=options.size)) as shm:
            queue = Queue(shm)
            {"produce": _produce, "consume": _consume, "check": _check}[options.what](queue, options)
            if options.check and options.what != "check":
                _check(queue, options)
    except KeyboardInterrupt:
        return 130
    except (Violation, shmem.ShmemError) as error:
        print(f"fifo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
