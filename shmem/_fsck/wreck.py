"""The bytes of a section, read and mended where no process sees them: what `check` knows of a file.

Everything works on a private copy in memory, and on bytes alone: nothing is believed before it was looked at.  Whatever is found wrong is
mended in that copy at once, so that each step finds what the steps before it promise; every mended word is noted.  `check` throws the
copy away, `check --repair` writes the noted words to the file.

1. header   fields that follow from others; bounds; the salt, by vote of the rear tags
2. chain    front tags from the start on, rear tags from the end backwards.  Only true blocks can be found backwards: the word before
            a block's end is the seal that was written last, whatever older tags lie inside.  What lies between the two walks
            is searched for blocks whose tags agree, the latest first; the rest becomes blocks that are marked lost
3. blocks   arrays whose header does not fit become plain blocks
   then the participants' table and their intents, see `_fsck.entries`
4. names    tables are filled anew if a slot is wrong, with names that no slot showed; names of what is no more go
5. recovery and verification by the C core, as when a section is opened whose processes were all killed
"""

import bisect
import collections
import dataclasses
import os
import struct

import numpy as np

from shmem._base import system_tools
from shmem._fsck import entries as _entries
from shmem._objects import arrays
from shmem._sections import image

PAGE = 4096
MAGIC = b"SHMEM1\x1a\n"
BEING_MADE = b"SHMEMNEW"
VERSION, HEADER_BYTES = 1, 896
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
SIZE_MASK = 0x0000FFFFFFFFFFF0
SERIAL_MASK = (1 << 56) - 1
HOLE, PENDING, USED, CACHED = 1, 2, 3, 4
PLAIN, ARRAY, TABLE, ENTRY, FIRST_USER = 0, 1, 2, 3, 16
HEAD, REAR, LEAST = 16, 8, 48
SLOT_REMOVED = 1
AT = {
    "magic": 0, "fingerprint": 16, "salt": 24, "max_size": 256, "desired_address": 264, "participants_off": 328, "intents_off": 336,
    "index_off": 344, "heap_start": 352, "root": 360, "directory": 368, "types": 376, "top": 448, "reserved": 456, "high_water": 464,
    "next_serial": 472,
}  # fmt: skip
AT_32 = {"version": 8, "header_bytes": 12, "index_kind": 272, "max_participants": 276, "clean": 280, "broken": 284}
ARRAY_HEADER = struct.Struct("<QQIHHI")
ENTRY_HEADER = struct.Struct("<QQII")


STEP = 1 << 26


class NotASection(Exception):
    """The file is something else, or nothing that could be a section is left of it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    offset: int
    problem: str
    remedy: str
    lost: str
    """What a repair cannot bring back; empty when nothing is lost."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A name, and what it leads to."""

    offset: int
    name: bytes
    data: bytes
    value: int
    serial: int


def round_up(value, to):
    """`value`, or the next multiple."""
    return -(-value // to) * to


def name_hash(name):
    """The hash by which a name is found in a table, as `name_make` has it."""
    value = 0xCBF29CE484222325
    for byte in name:
        value = (value ^ byte) * 0x100000001B3 & MASK
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & MASK
    return value ^ value >> 33


def is_text(name):
    """Whether these bytes can be a name."""
    try:
        return len(name.decode()) > 0 and len(name) <= 65535
    except UnicodeDecodeError:
        return False


class Wreck:
    """The section in the file behind a descriptor, as it would be after a repair.

    Attributes
    ----------
    findings : list of Finding
    notes : list of str
        What is not wrong, but worth knowing.
    blocks : dict
        Offset to size, of every block of the chain, in order.
    words : dict
        Offset to value, of every word that was mended.
    """

    def __init__(self, fd):
        self.fd = fd
        self.findings, self.notes, self.words, self.blocks = [], [], {}, {}
        self.renewed, self.nameless = {}, set()  # blocks that got a new front tag, a new serial number
        self.file_bytes = self.size = os.fstat(fd).st_size
        if self.size < PAGE:
            raise NotASection(f"it has {self.size:,} bytes, less than the header of a section")
        if os.fstat(fd).st_blocks * 512 >= self.size:
            self.raw = system_tools.map_privately(fd, self.size)
        else:  # on tmpfs a look at a hole takes memory, and there may be none
            self.raw = system_tools.map_zeros(self.size)
            for start, end in system_tools.extents(fd, self.size):
                while start < end:
                    start += os.preadv(fd, [memoryview(self.raw)[start : min(end, start + STEP)]], start) or end - start
        self.was_clean = self.short("clean") == 1

    def examine(self):
        """Find and mend everything; afterwards the copy is what the first opener after a repair will see."""
        self.examine_heap()
        if not self.was_clean:
            self.notes.append("it was not closed: the next process that opens it recovers it, as repair does")
            self._recover()  # what was decided when a process was killed is carried out before names are judged
        self._names()
        self._verify()

    def examine_heap(self):
        """The steps without which the section cannot be opened or recovered."""
        self._header()
        self._chain()
        self._blocks()
        self._recognise()
        _entries.examine(self)

    # -- bytes

    def word(self, offset):
        """Eight bytes as a number; 0 outside."""
        return struct.unpack_from("<Q", self.raw, offset)[0] if 0 <= offset <= self.size - 8 else 0

    def field(self, name):
        """A word of the header."""
        return self.word(AT[name])

    def short(self, name):
        """A half word of the header."""
        return struct.unpack_from("<I", self.raw, AT_32[name])[0]

    def put(self, offset, value):
        """Mend a word."""
        struct.pack_into("<Q", self.raw, offset, value)
        self.words[offset] = value

    def put_short(self, name, value):
        """Mend a half word of the header."""
        offset = AT_32[name]
        struct.pack_into("<I", self.raw, offset, value)
        self.words[offset & ~7] = self.word(offset & ~7)

    def say(self, offset, problem, remedy, lost=""):
        """Note what is wrong."""
        self.findings.append(Finding(offset, problem, remedy, lost))

    def sealed(self, end):
        """The size that the rear tag before `end` says."""
        return self.word(end - REAR) ^ self.salt ^ (end * GOLDEN & MASK)

    def tag(self, offset):
        """(size, state, type id) of the front tag at `offset`."""
        tag = self.word(offset)
        return tag & SIZE_MASK, tag & 15, tag >> 48

    def serial(self, offset):
        """The serial number of the block at `offset`."""
        return self.word(offset + 8) & SERIAL_MASK

    def payload(self, offset):
        """How many bytes the payload of the block at `offset` has."""
        return self.blocks[offset] - HEAD - REAR

    # -- 1. the header

    def _header(self):
        magic, fingerprint = self.raw[:8], image.layout()[0]
        if magic == BEING_MADE:
            raise NotASection("it is a section that was never finished: the next opener makes it anew")
        if self.field("fingerprint") != fingerprint:
            whose = "it is a section of another version of this library, or its" if magic == MAGIC else "it is something else, or its whole"
            raise NotASection(f"{whose} header is damaged")
        self._expect("magic", int.from_bytes(MAGIC, "little"))
        self._expect("version", VERSION)
        self._expect("header_bytes", HEADER_BYTES)
        self._expect("fingerprint", fingerprint)
        self._places()
        self._sizes()
        for name, valid in (("clean", (0, 1)), ("broken", (0, 1)), ("index_kind", (1, 2))):
            if self.short(name) not in valid:
                self.say(AT_32[name], f"{name} is {self.short(name)}", f"set to {valid[0]}: the index of free blocks is made anew")
                self.put_short(name, valid[0])
        if self.short("broken"):
            self.say(AT_32["broken"], "marked as damaged by who found it so", "the mark goes")
            self.put_short("broken", 0)
        label = self.raw[48:256]
        if b"\0" not in label[:201] or not label.partition(b"\0")[0].isascii():
            self.say(48, "the shared name is no text", "it is cleared", "the shared name")
            for offset in range(48, 256, 8):
                self.put(offset, 0)
        address = self.field("desired_address")
        if address % PAGE or address >= 1 << 47:
            self.say(AT["desired_address"], f"the desired address is {address:#x}", "it is cleared", "the desired address")
            self.put(AT["desired_address"], 0)

    def _expect(self, name, value):
        is_short = name in AT_32
        found = self.short(name) if is_short else self.field(name)
        if found != value:
            self.say((AT_32 if is_short else AT)[name], f"{name} is {found:#x}, not {value:#x}", "it is written again")
            if is_short:
                self.put_short(name, value)
            else:
                self.put(AT[name], value)

    def _places(self):
        """Where the parts lie follows from the number of participants, and that nearly from where they lie."""
        n = self.short("max_participants")
        control = image.layout()[1](1) - 2 * PAGE
        parts = [
            round_up(n * 64, PAGE),
            self.field("intents_off") - PAGE,
            (self.field("index_off") - PAGE) // 2,
            (self.field("heap_start") - control) // 2,
        ]
        ((part, votes),) = collections.Counter(parts).most_common(1)
        if votes < 2 or part < PAGE or part % PAGE or part > 65535 * 64:
            raise NotASection("its header does not say where anything lies")
        if parts[0] != part:
            self._expect("max_participants", min(part // 64, 65534))
        self._expect("participants_off", PAGE)
        self._expect("intents_off", PAGE + part)
        self._expect("index_off", PAGE + 2 * part)
        self._expect("heap_start", control + 2 * part)
        self.start = self.field("heap_start")
        if self.size < self.start:
            raise NotASection(f"it is cut off at {self.size:,} bytes, before the first block: nothing is left")

    def _sizes(self):
        largest = self.field("max_size")
        if largest % PAGE or not self.start <= largest <= 1 << 47 or not system_tools.has_address_space(largest):
            nearest, least = largest // PAGE * PAGE, max(round_up(self.size, PAGE), self.start + PAGE)
            found = nearest if least <= nearest <= 1 << 47 and system_tools.has_address_space(nearest) else least
            self.say(AT["max_size"], f"max_size is {largest:#x}", f"it becomes {found:,}; open it with a larger one", "the old max_size")
            self.put(AT["max_size"], found)
        self.top = self.field("top")
        self.top_is_known = self.top % 16 == 0 and self.start <= self.top <= max(self.field("max_size"), self.size)
        if not self.top_is_known:
            self.say(AT["top"], f"the end of the heap is {self.top:#x}", "it becomes the end of the last block that can be found")
            self.top = self.size & ~15
        elif self.top > self.size:
            self.say(self.size, f"the file is cut off: {self.top:,} bytes were in use, it has {self.size:,}",
                     "the heap ends with the last block that is there", "every block beyond")  # fmt: skip
            self.top_is_known = False
            self.top = self.size & ~15
        self._vote_on_salt()

    def _vote_on_salt(self):
        self.salt = self.field("salt")
        votes = collections.Counter()
        offset = self.start
        while offset < self.top and len(votes) < 100 and votes.total() < 1000:
            size, state, _ = self.tag(offset)
            if not self._plausible(offset, size, state):
                break
            offset += size
            votes[self.word(offset - REAR) ^ size ^ (offset * GOLDEN & MASK)] += 1
        best = votes.most_common(1)
        if best and best[0][1] > max(1, votes[self.salt]):
            self.salt = best[0][0]
            self._expect("salt", self.salt)

    # -- 2. the chain

    def _plausible(self, offset, size, state):
        return LEAST <= size <= self.top - offset and HOLE <= state <= CACHED

    def _sound(self, offset):
        """Whether a block lies at `offset` whose two tags agree."""
        size, state, _ = self.tag(offset)
        return self._plausible(offset, size, state) and self.sealed(offset + size) == size

    def _backwards(self):
        """Where blocks begin, found from the end by their rear tags: start to size."""
        found, end = {}, self.top
        while self.top_is_known and end > self.start:
            size = self.sealed(end)
            if size % 16 or not LEAST <= size <= end - self.start:
                break
            end -= size
            found[end] = size
        return found

    def _chain(self):
        behind = {} if self._front_tags_will_do() else self._backwards()
        offset = self.start
        while offset < self.top:
            size, state, _ = self.tag(offset)
            if self._plausible(offset, size, state) and self._may_be_believed(offset, size, behind):
                if self.sealed(offset + size) != size:
                    self._bad_rear(offset)
                self.blocks[offset] = size
            elif offset in behind:
                size = self._new_front(offset, behind[offset])
            elif self.top_is_known:
                size = self._gap(offset, min((start for start in behind if start > offset), default=self.top))
            elif self._last_piece(offset, size, state):
                size = self.blocks[offset]
            else:
                end = max((start + size for start, size in self._sound_blocks(offset, self.top)), default=offset)
                if end == offset:
                    break
                size = self._gap(offset, end)
            offset += size
        if not self.top_is_known:
            self._new_top()
        self._bounds()

    def _front_tags_will_do(self):
        """Whether the front tags lead to the end, as they do after any kill, and nothing says that one of them is wrong."""
        offset = self.start
        while offset < self.top:
            size, state, _ = self.tag(offset)
            if not self._plausible(offset, size, state) or (self.was_clean and self.sealed(offset + size) != size):
                return False
            offset += size
        return True

    def _may_be_believed(self, offset, size, behind):
        """A front tag whose rear does not agree is believed where nothing found from behind contradicts it."""
        if self.sealed(offset + size) == size or not behind:
            return True
        if offset in behind:
            return behind[offset] == size
        first = min(behind)
        return offset + size <= first or (offset + size in behind and not any(offset < start < offset + size for start in behind))

    def _bad_rear(self, offset):
        if not self.was_clean:
            self.notes.append(f"{offset:#x}: the block's end does not say its size, as after a kill in the middle of a change")
        else:
            self.say(offset, "the end of this block was overwritten", "it is sealed anew; what was written past its end is there still")

    def _new_front(self, offset, size):
        self.blocks[offset] = size
        self.say(offset, "the front tag was overwritten; the rear tag says how large the block is", "a new front tag; see below what it is",
                 f"{size - HEAD - REAR:,} bytes: type and serial number, the first bytes may be overwritten too")  # fmt: skip
        self._renew(offset, size)
        return size

    def _renew(self, offset, size):
        """A block whose front tag is gone: in use, for as long as nothing says that it is free."""
        self.renewed[offset] = size
        self.put(offset, size | USED)
        self.put(offset + 8, 0)

    def _last_piece(self, offset, size, state):
        """Where the file was cut, or nobody knows where the heap ends: a block of which a part is there is kept, and filled up."""
        in_file = self.size - offset
        if in_file < HEAD + 8 or not LEAST <= size <= self.field("max_size") - offset or not HOLE <= state <= CACHED:
            return False
        if not (0 < self.serial(offset) < self.field("next_serial")) or state != USED:
            return False
        self.say(offset, "this block is cut off", "it is kept, with zeros for what is missing",
                 f"the last {size - in_file:,} of {size - HEAD - REAR:,} bytes")  # fmt: skip
        self._extend(offset + size)
        self.blocks[offset] = size
        return True

    def _extend(self, size):
        longer = system_tools.map_zeros(round_up(size, PAGE))
        longer[: self.size] = self.raw[:]
        self.raw, self.size = longer, round_up(size, PAGE)
        self.top = size

    def _gap(self, start, end):
        """Between what can be found from both sides: blocks whose tags agree, the latest first, and the rest marked lost."""
        taken = [(start, 0), (end, 0)]
        for offset, size in self._sound_blocks(start, end):
            i = bisect.bisect(taken, (offset, size))
            if sum(taken[i - 1]) <= offset and offset + size <= taken[i][0]:
                taken.insert(i, (offset, size))
        at = start
        for offset, size in taken[1:]:
            rest, next_at = offset - at, offset + size
            if 0 < rest < LEAST and self.blocks:
                self._absorb(next(reversed(self.blocks)), rest)
                rest = 0
            elif 0 < rest < LEAST:  # nothing lies before it: the block behind is lost with it
                rest, size = next_at - at, 0
            if rest:
                self._lost_piece(at, rest)
            if size:
                self.blocks[offset] = size
            at = next_at
        return end - start

    def _absorb(self, offset, n_bytes):
        """Too little for a block: the one before becomes larger."""
        self.say(offset + self.blocks[offset], f"{n_bytes} bytes that no tag explains, too few for a block",
                 f"the block before, at {offset:#x}, becomes larger")  # fmt: skip
        self.blocks[offset] += n_bytes
        self.put(offset, self.word(offset) + n_bytes)
        self.put(offset + 8, self.word(offset + 8) + (n_bytes << 56) & MASK)

    def _lost_piece(self, offset, size):
        self.say(offset, f"{size:,} bytes that no tag explains, up to {offset + size:#x}",
                 f"one plain block now: free({offset + HEAD:#x}) frees it", f"which blocks lay in these {size:,} bytes")  # fmt: skip
        self.blocks[offset] = size
        self._renew(offset, size)

    def _sound_blocks(self, start, end):
        """(offset, size) of used blocks inside, found by their seals; the latest first."""
        words = np.frombuffer(self.raw, dtype="<u8", count=self.size // 8)
        pairs = []
        for first in range(start + LEAST, end + 1, STEP):
            ends = np.arange(first, min(end + 1, first + STEP), 16, dtype=np.uint64)
            sizes = words[(ends // 8 - 1).astype(np.intp)] ^ np.uint64(self.salt) ^ (ends * np.uint64(GOLDEN))
            good = (sizes % 16 == 0) & (sizes >= LEAST) & (sizes <= ends - np.uint64(start))
            pairs += [(int(e - s), int(s)) for e, s in zip(ends[good], sizes[good], strict=True)]
        sound = [(o, s) for o, s in pairs if self.tag(o)[:2] == (s, USED) and self.serial(o) < self.field("next_serial")]
        return sorted(sound, key=lambda pair: -self.serial(pair[0]))

    def _new_top(self):
        """The end of the last block that is not free."""
        while self.blocks:
            last = next(reversed(self.blocks))
            if self.tag(last)[1] in (PENDING, USED):
                break
            del self.blocks[last]
        self.top = max((offset + size for offset, size in self.blocks.items()), default=self.start)
        self.put(AT["top"], self.top)

    def _bounds(self):
        for name in ("high_water", "reserved"):
            value = self.field(name)
            if value < self.top or value > round_up(max(self.field("max_size"), self.size), PAGE):
                self.say(AT[name], f"{name} is {value:#x}", "it is set to the end of the heap")
                self.put(AT[name], round_up(self.top, PAGE))
        serials = {offset: self.serial(offset) for offset in self.blocks if self.tag(offset)[1] in (PENDING, USED)}
        above = [offset for offset, serial in serials.items() if serial > self.field("next_serial") - self.was_clean]
        if len(above) > max(1, len(serials) // 2) or self.field("next_serial") >= 1 << 56:
            self.say(AT["next_serial"], f"next_serial is {self.field('next_serial'):#x}", "it becomes larger than every serial in use")
            self.put(AT["next_serial"], max(serials.values(), default=0) + 1)
        else:
            for offset in above:
                self.say(offset, "the block's serial number was overwritten", "it gets a new one")
                self.nameless.add(offset)

    # -- 3. blocks

    def array_fits(self, offset):
        """Whether the header of an array at this block describes what lies in the block."""
        room, at = self.payload(offset), offset + HEAD
        if room < 32:
            return False
        data_off, data_bytes, _, n_dims, n_text, n_words = ARRAY_HEADER.unpack_from(self.raw, at)
        if n_words != self.short("max_participants") + 63 >> 6 or n_dims > 64 or data_off % 64 or data_off > room:
            return False
        text_at = 32 + 16 * n_dims + 8 * n_words
        if data_bytes > room - data_off or text_at + n_text > data_off:
            return False
        shape, strides = (struct.unpack_from(f"<{n_dims}q", self.raw, at + 32 + 8 * n_dims * i) for i in (0, 1))
        try:
            dtype = arrays._text_to_dtype(self.raw[at + text_at : at + text_at + n_text])
            np.ndarray(shape, dtype, memoryview(self.raw)[at + data_off : at + data_off + data_bytes], 0, strides)
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
            return False
        return True

    def _blocks(self):
        for offset in self.blocks:
            size, state, type_id = self.tag(offset)
            if state == USED and type_id == ARRAY and not self.array_fits(offset):
                self.say(offset, "an array's header does not fit its block", "it becomes a plain block", "shape and dtype of the array")
                self.put(offset, size | USED)
            if state == USED and type_id == ENTRY and self.entry(offset + HEAD) is None:
                self.say(offset, "a name that is no text, or does not fit its block", "it becomes a plain block", "a name")
                self.put(offset, size | USED)
            if state == USED and self.word(offset + 8) >> 56 > size - HEAD - REAR:
                self.say(offset, "the block says that it is smaller than nothing", "it counts as full", "how many bytes were asked for")
                self.put(offset + 8, self.serial(offset))

    # -- 4. names

    def is_used(self, payload_off, *types):
        """Whether a used block, of one of these types if any are given, has its payload there."""
        offset = payload_off - HEAD
        return offset in self.blocks and self.tag(offset)[1] == USED and (not types or self.tag(offset)[2] in types)

    def entry(self, payload_off):
        """The entry of a table that a block holds, or None."""
        if not self.is_used(payload_off, ENTRY):
            return None
        room = self.payload(payload_off - HEAD)
        value, serial, n_name, n_data = ENTRY_HEADER.unpack_from(self.raw, payload_off)
        at = payload_off + 24
        if room < 24 or n_name + n_data > room - 24 or not is_text(self.raw[at : at + n_name]):
            return None
        return Entry(payload_off, self.raw[at : at + n_name], self.raw[at + n_name : at + n_name + n_data], value, serial)

    def capacity(self, payload_off):
        """How many slots a table has; 0 when that cannot be."""
        if not self.is_used(payload_off, TABLE):
            return 0
        capacity = self.word(payload_off)
        fits = capacity and capacity & capacity - 1 == 0 and capacity <= (self.payload(payload_off - HEAD) - 16) // 16
        return capacity if fits else 0

    def slots(self, payload_off):
        """(offset, hash, entry) of each slot of a table."""
        first = payload_off + 16
        return [(at, self.word(at), self.word(at + 8)) for at in range(first, first + 16 * self.capacity(payload_off), 16)]

    def entries(self, anchor):
        """The entries of the table that a word of the header leads to."""
        found = (self.entry(entry) for _, _, entry in self.slots(self.field(anchor)))
        return [entry for entry in found if entry is not None]

    def _names(self):
        for anchor in ("directory", "types"):
            table = self.field(anchor)
            if table and not self.capacity(table):
                self._find_table(anchor)
        orphans = self._orphans()
        for anchor in ("directory", "types"):
            self._mend_table(anchor, [entry for entry in orphans if (entry.serial != 0) == (anchor == "directory")])
        for entry in self.entries("directory"):
            if not self.is_used(entry.value) or self.serial(entry.value - HEAD) != entry.serial:
                name = entry.name.decode("utf-8", "replace")
                self.say(entry.offset - HEAD, f"the name {name!r} leads nowhere", "the name goes", f"the name {name!r}")
                self._remove(entry)
        root = self.field("root")
        if root and not self.is_used(root):
            self.say(AT["root"], f"the root object, at {root:#x}, is no block", "there is no root object", "which block was the root")
            self.put(AT["root"], 0)

    def _recognise(self):
        """What the blocks are whose front tag is gone: table, entry, named, array, free; else plain."""
        renewed = self.renewed
        for offset, size in renewed.items():
            payload = offset + HEAD
            if payload in (self.field("directory"), self.field("types")):
                self.put(offset, size | USED | TABLE << 48)
        shown = {entry for anchor in ("directory", "types") for _, _, entry in self.slots(self.field(anchor))}
        for offset, size in renewed.items():
            if offset + HEAD in shown:
                self.put(offset, size | USED | ENTRY << 48)
                if self.entry(offset + HEAD) is None:
                    self.put(offset, size | USED)
        named = {entry.value: entry for entry in self.entries("directory")}
        free = self._listed_as_free() if renewed else set()
        for offset, size in renewed.items():
            payload, kind = offset + HEAD, self.tag(offset)[2]
            if kind == PLAIN and payload not in named and offset in free:
                self.put(offset, size | HOLE)
                self.notes.append(f"{offset:#x}: this block was free")
                continue
            if kind == PLAIN and self.array_fits(offset):
                kind = ARRAY
                self.put(offset, size | USED | ARRAY << 48)
            self.nameless.add(offset)
            what = {PLAIN: "kept as a plain block", ARRAY: "it is an array", TABLE: "it is a table of names", ENTRY: "it is a name"}[kind]
            whose = f", named {named[payload].name.decode('utf-8', 'replace')!r}" if payload in named else ""
            self.notes.append(f"{offset:#x}: {what}{whose}")
        for offset in self.nameless:
            serial = named[offset + HEAD].serial if offset + HEAD in named else self.field("next_serial")
            self.put(offset + 8, serial | (0 if offset in renewed else self.word(offset + 8) & ~SERIAL_MASK))
            self.put(AT["next_serial"], max(serial + 1, self.field("next_serial")))

    def _listed_as_free(self):
        """What the lists of holes and of cached blocks lead to."""
        index = self.field("index_off")
        found = {self.word(index + 8 * i) for i in range(64)} | {self.word(index + 768)}
        found |= {self.word(index + 944 + 8 * i) for i in range(40 * 32)}
        for offset in self.blocks:
            if self.tag(offset)[1] in (HOLE, CACHED):
                found |= {self.word(offset + 16), self.word(offset + 24)}
        return found

    def _find_table(self, anchor):
        other = self.field("types" if anchor == "directory" else "directory")
        tables = [o + HEAD for o in self.blocks if o + HEAD != other and self.capacity(o + HEAD)]
        found = tables[0] if len(tables) == 1 else 0
        remedy = f"the only table there is, at {found:#x}, is taken" if found else "there is none any more"
        lost = "" if found else "all names" if anchor == "directory" else "what the types of objects are called, and their fields"
        self.say(AT[anchor], f"the table of {anchor} is not where the header says", remedy, lost)
        self.put(AT[anchor], found)

    def _orphans(self):
        """Names that no table shows."""
        shown = {entry.offset for anchor in ("directory", "types") for entry in self.entries(anchor)}
        found = (self.entry(offset + HEAD) for offset in self.blocks if offset + HEAD not in shown)
        return [entry for entry in found if entry is not None]

    def _mend_table(self, anchor, orphans):
        """Fill a table anew if a slot shows no entry, or not where its name is looked for, or a name is shown nowhere."""
        table = self.field(anchor)
        if not self.capacity(table):
            for entry in orphans:
                self.notes.append(f"{entry.offset - HEAD:#x}: a name without a table, {entry.name.decode('utf-8', 'replace')!r}")
            return
        slots, entries = self.slots(table), {}
        bad = [at for at, _, entry in slots if entry > SLOT_REMOVED and self.entry(entry) is None]
        shown = [(at, found, self.entry(entry)) for at, found, entry in slots if entry > SLOT_REMOVED and self.entry(entry)]
        lost = [at for at, found, entry in shown if found != name_hash(entry.name)]
        for entry in sorted([*self.entries(anchor), *orphans], key=lambda entry: self.serial(entry.offset - HEAD)):
            entries[entry.name] = entry
        n_filled = sum(entry != 0 for _, _, entry in slots)
        if not bad and not lost and not orphans and (n_filled == self.word(table + 8) or not self.was_clean):
            return
        n_gone = max(0, len(bad) - len(orphans))
        names = ", ".join(repr(entry.name.decode("utf-8", "replace")) for entry in orphans)
        self.say(bad[0] if bad else lost[0] if lost else table, f"the table of {anchor} does not show what it should",
                 "it is filled anew" + (f"; found again: {names}" if orphans else ""), f"{n_gone} names" if n_gone else "")  # fmt: skip
        self._fill(table, list(entries.values()))

    def _fill(self, table, entries):
        capacity = self.capacity(table)
        for at, _, _ in self.slots(table):
            self.put(at, 0)
            self.put(at + 8, 0)
        for entry in entries[:capacity]:
            value = name_hash(entry.name)
            i = value & capacity - 1
            while self.word(table + 16 + 16 * i + 8):
                i = i + 1 & capacity - 1
            self.put(table + 16 + 16 * i, value)
            self.put(table + 16 + 16 * i + 8, entry.offset)
        self.put(table + 8, min(len(entries), capacity))

    def _remove(self, entry):
        for at, _, shown in self.slots(self.field("directory")):
            if shown == entry.offset:
                self.put(at + 8, SLOT_REMOVED)
        self.put(entry.offset - HEAD, self.blocks[entry.offset - HEAD] | HOLE)

    # -- 5. the rest

    def _recover(self):
        """Let the C core recover the copy, as the first opener would; what remains wrong after it, as (problem, facts)."""
        if round_up(self.top, PAGE) > self.size:
            self._extend(self.top)
        found = image.check(np.frombuffer(self.raw, dtype=np.uint8), self.fd, True)
        self.top = self.field("top")
        self.blocks, offset = {}, self.start
        while offset < self.top:
            self.blocks[offset] = self.tag(offset)[0]
            offset += self.blocks[offset]
        return found

    def _verify(self):
        """Compare with what the C core says of the same bytes, and let it verify what was mended."""
        if self.was_clean and not self.findings:
            problem, facts = image.check(np.frombuffer(self.raw, dtype=np.uint8), self.fd, False)
            if problem is not None:
                self.say(facts["bad_off"], f"{problem}: lists or counters do not agree with the blocks", "they are made anew")
        problem, facts = self._recover()
        if problem is not None:
            self.say(facts["bad_off"], f"{problem} remains after recovery", "none", "this file cannot be repaired")
