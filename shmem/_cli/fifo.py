"""The second program of the original library: producers and consumers on one first-in-first-out queue in a section.

`fifo produce N` puts N messages and exits; `fifo consume` takes messages and exits after ten seconds without one.  Any number
of both may run at the same time, and may be killed at any moment.  Each message is taken exactly once, except that a message is
lost if its consumer is killed right after taking it.

The queue is a linked list of objects under the section's lock.  A semaphore counts messages, and an event signals that none
is left.  (Programs that need a queue use shmem.Queue.  This one demonstrates locks, semaphores, events and objects.)

Every message holds its producer and a number.  Consumers verify that each producer's messages arrive in order, each once.

Exit status: 0 success; 1 messages out of order, or another error; 2 wrong arguments; 130 interrupted.
"""

# Invariants, with the lock held and after `_repair`:
#
# * `first` leads to a message that was already taken (in the beginning, to an empty one).  From there `next` leads to the waiting messages,
#   the oldest first, up to `last`.  So the list is never empty, and each change of it is one store: putting sets `last.next`,
#   taking moves `first` on by one.
# * A message in no list is `making` or `removing`; every other message is in the list or among the `spare` ones.  No message is freed.
#   (Only between `new` and the store to `making` can a block be lost: at most one for each killed producer.  --check counts them.)
# * `producer.taken` is the number of its first waiting message, `producer.put` the number of its next one.
#
# A process may be killed, or interrupted, between any two stores.  `making` and `removing` then still hold what it was
# doing, and the next process under the lock completes or undoes that.
#
# The list is authoritative; semaphore and event follow it, each in a step of its own.
#
# * A token without a message (the message was taken by a consumer whose token was lost): a consumer that gets it finds no message, and
#   waits again.
# * A message without a token (its producer was killed before it signaled, or a consumer after it had waited): every wait ends after a
#   slice of time, and a consumer that then finds messages signals as many.
# * The event is reset before a message is put and signaled after the last one was taken, so it may be late but not early.  A process that
#   waits for it looks at the list after each slice.

import contextlib
import os
import sys
import tempfile
import time
import warnings

import shmem
from shmem._cli.options import size_option

SLICE = 0.5  # seconds
MIN_SIZE = 1 << 20


class Violation(Exception):
    """A message that arrived out of order, twice or not at all."""


class Producer(shmem.Struct, type_name="shmem.fifo.Producer"):
    """A producer of messages; kept until all of them were taken."""

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
    """Yield the elements of a list, from `first` on.

    Raises
    ------
    Violation
        The list has a cycle.
    """
    mark, n_steps = None, 0
    while first is not None:
        if first == mark:
            raise Violation(f"a list has a cycle through the {type(first).__name__} at offset {first.offset:#x}")
        if n_steps & (n_steps - 1) == 0:
            mark = first  # after 1, 2, 4 ... steps (Brent): a walk in a cycle meets it
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
        """Complete or undo what a killed process was doing."""
        fifo = self.fifo
        making, removing = fifo.making, fifo.removing
        if making is not None:
            if fifo.last == making or fifo.last.next == making:  # the message was linked
                fifo.last = making
                making.producer.put = making.number + 1
                fifo.messages.signal()
            else:
                self._spare(making)
            fifo.making = None
        if removing is not None:
            if removing == fifo.first:  # the next message was not taken
                removing.next.producer.taken = removing.next.number
            else:
                self._spare(removing)
            fifo.removing = None

    def _spare(self, message):
        """Keep a message that left the list for reuse, unless it is already kept."""
        if self.fifo.spare != message:
            message.next = self.fifo.spare
            self.fifo.spare = message

    # -- producers

    def add_producer(self):
        """Add and return a new producer; forget producers that are gone and whose messages were all taken."""
        with self.lock:
            self._repair()
            living = self.shm.stats().participants
            before, link = self.fifo, "producers"
            while (producer := getattr(before, link)) is not None:
                if producer.taken == producer.put and producer.pid not in living:
                    setattr(before, link, producer.next)  # one store; a kill before the next line only loses the block
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
            Nothing was changed.
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
            fifo.last.next = message  # from here on the message is put
            fifo.last = message
            producer.put = number + 1
            fifo.making = None
        fifo.messages.signal()

    def wait_until_taken(self, producer):
        """Wait until all messages of a producer were taken."""
        while producer.taken < producer.put:
            self.fifo.drained.wait(SLICE)

    # -- consumers

    def take(self):
        """Take the first message; return the number of its producer and its own, or None if there is no message.

        Raises
        ------
        Violation
            The message is not the next one of its producer.
        """
        fifo = self.fifo
        with self.lock:
            self._repair()
            old, message = fifo.first, fifo.first.next
            if message is None:
                fifo.drained.signal()  # in case the consumer of the last message was killed before it signaled
                return None
            producer, number = message.producer, message.number
            if number != producer.taken:
                raise Violation(f"producer {producer.number}: expected message {producer.taken}, got message {number}")
            fifo.removing = old
            producer.taken = number + 1
            fifo.first = message  # from here on the message is taken
            self._spare(old)
            fifo.removing = None
            if message.next is None:
                fifo.drained.signal()
            return producer.number, number

    def get(self, timeout):
        """Wait for a message and take it; return None after a timeout."""
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
        """Signal as many tokens as there are messages, some of which have lost theirs.  Surplus tokens are harmless."""
        with self.lock:
            self._repair()
            n_waiting = sum(1 for _ in chain(self.fifo.first.next))
        if n_waiting:
            self.fifo.messages.signal(n_waiting)

    # -- looking

    def check(self):
        """Verify the list and the heap; return the number of waiting messages and of blocks lost by kills.

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
                    raise Violation(f"producer {which}: expected waiting message {expected[which]}, found message {message.number}")
                expected[which] += 1
                n_waiting += 1
            for producer in chain(self.fifo.producers):
                if expected[producer.number] != producer.put:
                    known = expected[producer.number]
                    raise Violation(f"producer {producer.number}: put {producer.put} messages, of which {known} are accounted for")
                n_blocks += 1
            n_blocks += 2 + n_waiting + sum(1 for _ in chain(self.fifo.spare))  # 2: the queue and the message that `first` leads to
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
            queue.fifo.drained.wait(0.01)  # a consumer may take a message meanwhile
        else:
            number, patient_until = number + 1, time.monotonic() + options.timeout
    if options.wait:
        queue.wait_until_taken(producer)
    print(f"producer {producer.number}: {number:,} messages put", flush=True)


def _consume(queue, options):
    """Take messages until none has arrived for `--timeout` seconds."""
    latest, n_taken = {}, 0
    try:
        while (found := queue.get(options.timeout)) is not None:
            producer, number = found
            if number <= latest.get(producer, -1):
                raise Violation(f"producer {producer}: got message {number} after message {latest[producer]}")
            latest[producer] = number
            n_taken += 1
            if options.verbose:
                print(f"{producer} {number}", flush=True)
    finally:
        print(f"consumer: {n_taken:,} messages taken, producers: {len(latest)}", flush=True)


def _check(queue, options):
    n_waiting, n_lost = queue.check()
    print(f"check: {n_waiting:,} messages waiting, in order; heap intact; {n_lost} blocks lost with killed processes", flush=True)


def command_arguments(parser):
    """Declare the arguments of `python -m shmem fifo`."""
    parser.add_argument("what", choices=("produce", "consume", "check"), help="put messages, take messages, or only verify the queue")
    parser.add_argument("count", nargs="?", type=int, help="for produce: the number of messages")
    parser.add_argument("--file", help="the section's file, which is kept (default: shmem-fifo-UID in the temporary folder)")
    parser.add_argument("--name", help="use the anonymous section of this name instead of a file; the last process removes it")
    parser.add_argument("--size", type=size_option, default=1 << 28, metavar="BYTES",
                        help="maximum size of a new section, such as 64M or 1GiB (default: 256M)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=10,
                        help="stop after this many seconds without a message, or without room for one (default: %(default)s)")  # fmt: skip
    parser.add_argument("--wait", action="store_true", help="for produce: wait until all messages are taken")
    parser.add_argument("--check", action="store_true", help="verify the queue and the heap at the end")
    parser.add_argument("--verbose", action="store_true", help="for consume: print the producer and number of each message")


def _wrong(options):
    """Return an error message about the arguments, or None."""
    if (options.what == "produce") != (options.count is not None):
        return "produce needs the number of messages; consume and check take none"
    if options.count is not None and options.count < 0:
        return f"the number of messages must be non-negative, got {options.count}"
    if not 0 <= options.timeout < float("inf"):
        return f"--timeout must be a finite, non-negative number of seconds, got {options.timeout}"
    if options.size < MIN_SIZE:
        return f"--size must be at least {MIN_SIZE:,} bytes, got {options.size:,}"
    if options.file and options.name:
        return "--file and --name are mutually exclusive"
    return None


def command(options):
    """Run `python -m shmem fifo` and return the exit status."""
    wrong = _wrong(options)
    if wrong is not None:
        print(f"fifo: {wrong}", file=sys.stderr)
        return 2
    place = {"shared_name": options.name}
    if options.name is None:
        place = {"file_name": options.file or os.path.join(tempfile.gettempdir(), f"shmem-fifo-{os.getuid()}")}
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)  # _repair detects this by itself
    warnings.simplefilter("ignore", shmem.LimitWarning)  # --size is that of a new section
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
