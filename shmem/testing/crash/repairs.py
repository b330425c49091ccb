"""The repairs of `crashtest`: each distinct state is repaired, and each state inside a repair, until no state is new.

A repair is what other processes do with the section of a dead one: open it, take the storage lock, check the heap.  It is followed store
by store (`testing.crash.store_trace`).  The section after each store that changes it is a new state, as if the repairer had died there.
The kinds of repairs:

open    by a first opener, with no participant alive
join    by a process that attaches while another one is alive, and is given the dead one's entry
live    by a participant that was attached all the time

A state inside `open` is repaired by a first opener only.  A state inside `join` or `live` is repaired by `open` and `join`, and checked by
the pool's checkers, which are alive all the time.  Each repair's result is observed, and must be the same as before the operation or
after it.

Two states are *alike*, and only the first of them is repaired, if they differ only in

* process ids, times in claims, the counts of recoveries and of owners' deaths, the sequence numbers of the lock's channels, and the flag
  that a process sleeps on the heap gate, on which no decision depends; salt and uuid, which are drawn when a section is made,
* generations: what counts is whether a word has that of its entry, and whether the entry has the one it had before the operation,
* the payload of PENDING blocks,
* for a first opener: gates, channels, the boot id, and everything in the table's entries except the counts of pending blocks,
  pins and claims.  A first opener resets these, or overwrites them with its own, before it looks at anything else,
* if a dead participant has the heap gate, and for the first opener of an unclean section: the free-block index, statistics, and the
  payload of holes and cached blocks, which holds the index's links.  The repair rebuilds these from the chain of front tags.

With ``--repairs all`` only differences of the first two kinds make states alike.
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
from shmem._base.layout import (
    GATE_WAITERS,
    INDEX_BYTES,
    LAYOUT,
    OWNER_INDEX_MASK,
    STATE_CACHED,
    STATE_HOLE,
    STATE_PENDING,
    STATE_USED,
    TYPE_CLAIM,
    heap_start,
)
from shmem._base.system_tools import open_file
from shmem.testing.crash import ptrace
from shmem.testing.crash.checker import MAX_PARTICIPANTS, MAX_SIZE, Damage, blocks_of, entry_off, observe, pour
from shmem.testing.crash.store_trace import StoreTrace

CLEANER = 2  # the table entry of a live repairer
LONGEST_SECONDS = 60
ENOUGH = 30  # failures of an operation's repairs, after which no more are tried
FOLLOWING = {"open": ("open",), "join": ("open", "join"), "live": ("open", "join")}
HEADER, PARTICIPANT, CLAIM = LAYOUT["header_t"], LAYOUT["participant_t"], LAYOUT["claim_t"]
CONTROL_BYTES = heap_start(MAX_PARTICIPANTS)
RANDOM = [HEADER[name] for name in ("salt", "uuid")]
OWNED = [HEADER[name] for name in ("lock_gate", "upgrade", "heap_gate", "reserve_gate")]
CHANNELS = [HEADER[name] for name in ("lock_gate_readers", "lock_gate_writers", "drain")]
COUNTS = [HEADER[name] for name in ("owner_deaths", "death_notice", "recoveries")]
STATISTICS = [HEADER[name] for name in ("used_blocks", "used_bytes", "hole_blocks", "hole_bytes", "cached_blocks", "cached_bytes")]
HALF_BYTES = 4  # of a word: the upper half of an owner's word and of `readers` is the generation, the lower one of a channel its sequence


def _half(content, at):
    return int.from_bytes(content[at : at + HALF_BYTES], "little")


def _put_half(content, at, value):
    content[at : at + HALF_BYTES] = int(value).to_bytes(HALF_BYTES, "little")


def _clear(content, fields, start=0):
    for field in fields:
        content[field.at(start) : field.at(start) + field.size] = bytes(field.size)


def _clear_payload(it, content, states):
    with contextlib.suppress(Damage):
        for offset, size, state, _ in blocks_of(content):
            if state in states:
                it[offset : offset + size] = bytes(size)


def _stop_clocks(it, content):
    """Of the times in claims, and in blocks that may become or have been claims, keep whether there is an end; of senders the entry."""
    _clear(it, [HEADER["claims_until"]])
    with contextlib.suppress(Damage):
        for offset, size, state, type_id in blocks_of(content):
            if size == CLAIM.size and (state != STATE_USED or type_id == TYPE_CLAIM):
                _clear(it, [CLAIM["made_at"]], offset)
                CLAIM["expires_at"].write(it, CLAIM["expires_at"].read(it, offset) != 0, offset)
                CLAIM["sender"].write(it, CLAIM["sender"].read(it, offset) & OWNER_INDEX_MASK, offset)


def without_pending(content):
    """Return a digest that is equal for states that differ only in the payload of PENDING blocks, and in times."""
    it = bytearray(content)
    if len(it) >= CONTROL_BYTES:
        _stop_clocks(it, content)
        _clear_payload(it, content, (STATE_PENDING,))
    return hashlib.blake2b(it, digest_size=16).digest()


def _generation_at(i):
    return PARTICIPANT["readers"].at(entry_off(i)) + HALF_BYTES


class Likeness:
    """The decision which states are alike.

    Parameters
    ----------
    content : bytes
        The section's content before the operation.
    literal : bool
        Whether states that differ in the payload of PENDING blocks, or in what a repair resets or rebuilds, are not alike.
    """

    def __init__(self, content, literal=False):
        self._generations = [_half(content, _generation_at(i)) for i in range(MAX_PARTICIPANTS)]
        self._literal = literal

    def key(self, content, kind):
        """Return a digest that is equal for states that are alike for repairs of that kind."""
        it = bytearray(content)
        _clear(it, RANDOM)
        if len(it) >= CONTROL_BYTES:
            for field in OWNED:
                index, generation_at = (field.read(it) & OWNER_INDEX_MASK) - 1, field.offset + HALF_BYTES
                if 0 <= index < MAX_PARTICIPANTS:
                    _put_half(it, generation_at, _half(it, generation_at) == _half(it, _generation_at(index)))
            _stop_clocks(it, content)
            gate = HEADER["heap_gate"]
            for field in (gate, HEADER["reserve_gate"]):
                field.write(it, field.read(it) & ~GATE_WAITERS)
            for i in range(MAX_PARTICIPANTS):
                _put_half(it, _generation_at(i), _half(it, _generation_at(i)) != self._generations[i])
                _clear(it, [PARTICIPANT["pid"]], entry_off(i))
            for field in CHANNELS:
                _put_half(it, field.offset, 0)
            if kind == "open" and not self._literal:
                self._reset(it)
            _clear(it, COUNTS)
            if not self._literal:
                rebuilt = HEADER["clean"].read(content) == 0 if kind == "open" else gate.read(content) & OWNER_INDEX_MASK
                _clear_payload(it, content, (STATE_HOLE, STATE_PENDING, STATE_CACHED) if rebuilt else (STATE_PENDING,))
                if rebuilt:
                    _clear(it, STATISTICS)
                    it[CONTROL_BYTES - INDEX_BYTES : CONTROL_BYTES] = bytes(INDEX_BYTES)
        return hashlib.blake2b(it, digest_size=16).digest()

    @staticmethod
    def _reset(it):
        """Clear the words that a first opener resets."""
        _clear(it, [*OWNED, *CHANNELS, HEADER["participants_high"], HEADER["boot_id"]])
        for i in range(MAX_PARTICIPANTS):
            _clear(it, [PARTICIPANT[name] for name in ("readers", "attached", "waiting")], entry_off(i))


# -- the repairer --------------------------------------------------------------------------------------------------


def repair(shm):
    """Take the lock and check the heap, as any process does that meets a dead participant."""
    for attempt in range(100):  # polling takes over a dead owner's lock at once
        with contextlib.suppress(shmem.LockTimeout), shmem.exclusive_lock(shm, 0):
            shm.check_heap()
            return
        time.sleep(0.001 * attempt)
    raise Damage("the lock of the dead owner cannot be acquired")


def _serve(path, scratch, link):
    """Repair one state after the other, pausing before and after each repair and when ready for the next state."""
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
        signal.alarm(0)  # the next state may be a long time coming
        ptrace.pause()


class Repairer:
    """A process that repairs states and is followed store by store.

    Parameters
    ----------
    path : str
        The file of the states.
    scratch : str
        The file of an intact section, on which a first repair loads all code.
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
        """Kill the process."""
        if self._tracee is not None:
            self._trace.close()
            self._tracee.kill()
            self._link.close()
            self._tracee = None

    def run(self, kind, content, look, wants):
        """Repair a state that is in the file (of the kind `live`: that is poured into it).

        Parameters
        ----------
        kind : str
        content : bytes
        look : callable
            As in `StoreTrace.run`; first called with None, when the repair is about to begin.
        wants : callable
            Called after the repair: returns whether the section is to be observed.

        Returns
        -------
        seen : dict or None
            The observation.
        wrong : str or None
            An error text.
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
            return None, f"the repairing process failed: {error}\n"

    def place(self, address):
        """Return the name of the function at an address."""
        return self._places.name(address)


# -- all of an operation -------------------------------------------------------------------------------------------


class Closure:
    """All states of an operation, and all states inside their repairs.

    Parameters
    ----------
    repairers : dict
        A `Repairer` by kind.
    likeness : Likeness
    put : callable
        ``put(kind, content)`` prepares the file for a repair of that kind.
    accept : callable
        ``accept(seen)`` returns None, or an error text about an observation.
    """

    def __init__(self, repairers, likeness, put, accept):
        self._repairers, self._likeness, self._put, self._accept = repairers, likeness, put, accept
        self._known = {kind: set() for kind in FOLLOWING}
        self._added = set()  # (kinds, hash of the content): four of five states occur again byte for byte, and a key takes long to compute
        self._results = set()
        self.inside = 0
        """Number of states inside repairs that were new."""
        self._left = []  # (kind, compressed content, origin, depth)
        self.repairs = self.again = self.stores = 0
        self.failures = []

    def add(self, kinds, content, origin, depth=0):
        """Add a state for these kinds of repair; return False if a state that is alike was added for all of them."""
        packed = b""
        if (kinds, hash(content)) in self._added:
            return False
        self._added.add((kinds, hash(content)))
        for kind in kinds:
            key = self._likeness.key(content, kind)
            if key not in self._known[kind]:
                self._known[kind].add(key)
                packed = packed or zlib.compress(content, 1)
                self._left.append((kind, packed, origin, depth))
        return bool(packed)

    def run(self, tell):
        """Repair all states, including those that arise; yield (content, origin) of new states inside `join` and `live`."""
        while self._left and len(self.failures) < ENOUGH:
            kind, packed, origin, depth = self._left.pop()
            tell(f"{self.repairs} repairs, {len(self._left)} to do")
            yield from self._one(kind, zlib.decompress(packed), origin, depth)

    def _one(self, kind, content, origin, depth):
        repairer = self._repairers[kind]
        self._put(kind, content)
        file = open_file(repairer.path)
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
        """Return the origin of a state as a text."""
        texts = [f"repair ({kind})"] if kind else []
        while isinstance(origin, tuple):
            kind, number, address, origin = origin
            texts.append(f"change {number} of repair ({kind}), at {self._repairers[kind].place(address)},")
        return " of what was left by ".join([*texts, f"instruction {origin}"])
