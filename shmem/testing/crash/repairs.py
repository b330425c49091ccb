"""The repairs of `crashtest`: each distinct state is repaired, and each state inside a repair, until there is none that was not.

A repair is what others do with the section of a dead one: open it, take the storage lock, check the heap.  It is followed store by store
(`testing.crash.store_trace`), and what is there after each store that changes something is a state again, as if the repairer had died
there.  Kinds:

open    by a first opener: nobody lives
join    by a process that attaches while another one lives, and is given the dead one's entry
live    by a participant that was there all the time

A state inside `open` is met by a first opener only; one inside `join` or `live` by `open` and `join`, and by the pool's checkers, who live
all the time.  So it goes on until no state is new.  Each repair's result is observed: it must be what was before the operation or after.

Two states are *alike*, and only the first of them is repaired, when they differ in nothing but

* process ids, the counts of recoveries and of owners' deaths, the sequence numbers of the lock's channels, and the flag that somebody
  sleeps on the heap gate (nothing is decided by them); salt and uuid, which are drawn when a section is made,
* generations: what counts is whether a word has the one of its entry, and whether the entry has the one that it had before the operation,
* the payload of PENDING blocks,
* for a first opener: gates, channels, the boot's id, and of the table's entries all but their counts of pending blocks and pins: it resets
  that, or overwrites it with its own, before it looks at anything else,
* where the heap gate is a dead one's, and for the first opener of an unclean section: free-block index, statistics, and the payload of
  holes and cached blocks, in which the index has its links: the repair makes them anew from the chain of front tags.

With ``--repairs all`` only the first two count.
"""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
import zlib

import shmem
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import MAX_PARTICIPANTS, MAX_SIZE, Damage, blocks_of, observe, pour
from shmem.testing.crash.store_trace import StoreTrace

CLEANER = 2  # the entry of the table that a live repairer has
LONGEST_SECONDS = 60
ENOUGH = 30  # failures of an operation's repairs: the others are not tried
FOLLOWING = {"open": ("open",), "join": ("open", "join"), "live": ("open", "join")}
_HOLE, _PENDING, _CACHED = 1, 2, 4
_CLEAN, _BOOT_ID = 280, 288
_PARTICIPANTS, _ENTRY_BYTES, _PID = 4096, 64, 24
_GATE, _UPGRADE, _HEAP_GATE = 512, 576, 704
_HIGH = 832
_RANDOM = 24  # salt and uuid
_CHANNELS = (536, 544, 640)
_COUNTS = (520, 12), (816, 8)  # owner_deaths and death_notice; recoveries
_OWNER_MASK = 0xFFFF
_CONTROL_BYTES = 24576
_REBUILT = (768, 48), (12288, 12288)  # statistics, index


def _word(content, at):
    return int.from_bytes(content[at : at + 4], "little")


def _clear_payload(it, content, states):
    with contextlib.suppress(Damage):
        for offset, size, state, _ in blocks_of(content):
            if state in states:
                it[offset : offset + size] = bytes(size)


def without_pending(content):
    """The same for states that differ in nothing but the payload of PENDING blocks."""
    it = bytearray(content)
    if len(it) >= _CONTROL_BYTES:
        _clear_payload(it, content, (_PENDING,))
    return hashlib.blake2b(it, digest_size=16).digest()


class Likeness:
    """Which states are alike.

    Parameters
    ----------
    content : bytes
        What the section was before the operation.
    literal : bool
        PENDING blocks are alike only if their payload is.
    """

    def __init__(self, content, literal=False):
        entries = [_PARTICIPANTS + _ENTRY_BYTES * i for i in range(MAX_PARTICIPANTS)]
        self._generations = [_word(content, at + 4) for at in entries]
        self._literal = literal


    def key(self, content, kind):
        """The same for states that are alike to a repair of that kind."""
        it = bytearray(content)
        it[_RANDOM : _RANDOM + 24] = bytes(24)
        if len(it) >= _CONTROL_BYTES:
            for at in (_GATE, _UPGRADE, _HEAP_GATE):
                index = (_word(it, at) & _OWNER_MASK) - 1
                if 0 <= index < MAX_PARTICIPANTS:
                    is_now = it[at + 4 : at + 8] == it[_PARTICIPANTS + _ENTRY_BYTES * index + 4 :][:4]
                    it[at + 4 : at + 8] = is_now.to_bytes(4, "little")
            it[_HEAP_GATE + 3] &= 0x7F
            for i in range(MAX_PARTICIPANTS):
                at = _PARTICIPANTS + _ENTRY_BYTES * i
                it[at + 4 : at + 8] = (_word(it, at + 4) != self._generations[i]).to_bytes(4, "little")
                it[at + _PID : at + _PID + 8] = bytes(8)
            for at in _CHANNELS:
                it[at : at + 4] = bytes(4)
            if kind == "open" and not self._literal:
                self._reset(it)
            for at, n_bytes in _COUNTS:
                it[at : at + n_bytes] = bytes(n_bytes)
            if not self._literal:
                rebuilt = _word(content, _CLEAN) == 0 if kind == "open" else _word(content, _HEAP_GATE) & _OWNER_MASK
                _clear_payload(it, content, (_HOLE, _PENDING, _CACHED) if rebuilt else (_PENDING,))
                if rebuilt:
                    for at, n_bytes in _REBUILT:
                        it[at : at + n_bytes] = bytes(n_bytes)
        return hashlib.blake2b(it, digest_size=16).digest()

    @staticmethod
    def _reset(it):
        """What a first opener resets."""
        for at in (_GATE, _UPGRADE, _HEAP_GATE, *_CHANNELS, _HIGH):
            it[at : at + 8] = bytes(8)
        for at in range(_PARTICIPANTS, _PARTICIPANTS + _ENTRY_BYTES * MAX_PARTICIPANTS, _ENTRY_BYTES):
            it[at : at + 12] = bytes(12)
            it[at + 20 : at + 24] = bytes(4)
        it[_BOOT_ID : _BOOT_ID + 40] = bytes(40)


# -- the repairer --------------------------------------------------------------------------------------------------


def repair(shm):
    """What anybody does who meets the dead."""
    for attempt in range(100):  # by polling: it takes over at once
        with contextlib.suppress(shmem.LockTimeout), shmem.exclusive_lock(shm, 0):
            shm.check_heap()
            return
        time.sleep(0.001 * attempt)
    raise Damage("the lock of the dead cannot be had")


def _serve(path, scratch, link):
    """The life of a repairer: one state after the other, paused before and after each repair, and when it is ready for the next."""
    gc.disable()
    warnings.simplefilter("ignore")
    with shmem.SharedMemory(scratch) as shm:
        repair(shm)
        observe(shm)
    ptrace.pause()
    while True:
        kind, content = link.recv()
        signal.alarm(LONGEST_SECONDS)
        shm = wrong = seen = None
        if kind == "live":
            shm = shmem.SharedMemory(path)
            pour(path, content, mine=CLEANER)
        ptrace.pause()
        try:
            if shm is None:
                shm = shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS)
            repair(shm)
        except Exception as error:
            wrong = "".join(traceback.format_exception(error)[-2:])
        ptrace.pause()
        if link.recv() and wrong is None:
            try:
                seen = observe(shm)
            except Exception as error:
                wrong = "".join(traceback.format_exception(error)[-2:])
        if shm is not None:
            shm.close()
        link.send((seen, wrong))
        signal.alarm(0)  # it may be long until there is something to repair
        ptrace.pause()


class Repairer:
    """A process that repairs states, followed store by store.

    Parameters
    ----------
    path : str
        The file that it does it in.
    scratch : str
        A whole section: on it it learns its way, so that all code is loaded.
    processor : OneProcessor
    """

    def __init__(self, path, scratch, processor):
        self.path, self._scratch, self._processor = path, scratch, processor
        self._tracee = None

    def _begin(self):
        self._link, its = multiprocessing.Pipe()
        self._tracee = ptrace.Tracee(_serve, self.path, self._scratch, its)
        its.close()
        self._places = ptrace.Places(self._tracee.pid)
        self._processor.bring(self._tracee)
        self._trace = StoreTrace(self._tracee, self.path, in_haste=True)

    def end(self):
        """Kill it."""
        if self._tracee is not None:
            self._trace.close()
            self._tracee.kill()
            self._link.close()
            self._tracee = None

    def run(self, kind, content, look, wants):
        """Repair a state that lies in the file (`live`: that is poured into it); (what was seen, what is wrong).

        Parameters
        ----------
        look : callable
            As in `StoreTrace.run`; first called with None, when the repair is about to begin.
        wants : callable
            Called when it is repaired: whether what a user sees is to be looked at.
        """
        try:
            if self._tracee is None:
                self._begin()
            self._link.send((kind, content if kind == "live" else None))
            self._tracee.go()
            look(None)
            self._trace.run(look)
            self._link.send(wants())
            self._tracee.go()
            return self._link.recv()
        except (ptrace.TraceeEnded, OSError, EOFError) as error:
            self.end()
            return None, f"the repairing process: {error}\n"

    def place(self, address):
        """The name of an instruction."""
        return self._places.name(address)


# -- all of an operation -------------------------------------------------------------------------------------------


class Closure:
    """All states of an operation, and all inside their repairs.

    Parameters
    ----------
    repairers : dict
        A `Repairer` by kind.
    likeness : Likeness
    put : callable
        ``put(kind, content)`` makes the file what a repair of that kind finds.
    accept : callable
        ``accept(seen)`` is None, or says what is wrong with what a user sees.
    """

    def __init__(self, repairers, likeness, put, accept):
        self._repairers, self._likeness, self._put, self._accept = repairers, likeness, put, accept
        self._known = {kind: set() for kind in FOLLOWING}
        self._results = set()
        self.inside = 0
        """How many states inside repairs were new."""
        self._left = []  # (kind, compressed content, where it comes from, depth)
        self.repairs = self.again = self.stores = 0
        self.failures = []

    def add(self, kinds, content, origin, depth=0):
        """A state, and the kinds of repair that it is to get; False if one that is alike had all of them."""
        packed = b""
        for kind in kinds:
            key = self._likeness.key(content, kind)
            if key not in self._known[kind]:
                self._known[kind].add(key)
                packed = packed or zlib.compress(content, 1)
                self._left.append((kind, packed, origin, depth))
        return bool(packed)

    def run(self, tell):
        """Repair all that was added, and all that comes up; yields (content, origin) of states inside `join` and `live`."""
        while self._left and len(self.failures) < ENOUGH:
            kind, packed, origin, depth = self._left.pop()
            tell(f"{self.repairs} repairs, {len(self._left)} to do")
            yield from self._one(kind, zlib.decompress(packed), origin, depth)

    def _one(self, kind, content, origin, depth):
        repairer = self._repairers[kind]
        self._put(kind, content)
        file = os.open(repairer.path, os.O_RDONLY)
        last, found = content, []

        def look(address):
            nonlocal last
            now = os.pread(file, 4 * MAX_SIZE, 0)
            if now != last:
                last = now
                if address is not None:
                    self.stores += 1
                    found.append((now, address))

        seen, wrong = repairer.run(kind, content, look, lambda: self._likeness.key(last, "live") not in self._results)
        os.close(file)
        self.repairs += 1
        self.again += depth > 0
        if wrong is None and seen is not None:
            wrong = self._accept(seen)
        if wrong is None:
            self._results.add(self._likeness.key(last, "live"))
        else:
            self.failures.append((content, self.text(kind, origin), wrong))
        for i, (now, address) in enumerate(found):
            its_origin = (kind, i + 1, address, origin)
            if self.add(FOLLOWING[kind], now, its_origin, depth + 1):
                self.inside += 1
                if kind != "open":
                    yield now, its_origin

    def text(self, kind, origin):
        """Where a state comes from, for people."""
        texts = [f"repair ({kind})"] if kind else []
        while isinstance(origin, tuple):
            kind, number, address, origin = origin
            texts.append(f"change {number} of repair ({kind}), at {self._repairers[kind].place(address)},")
        return " of what was left by ".join([*texts, f"instruction {origin}"])
