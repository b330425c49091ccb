"""The bytes of a section, read and repaired in a private copy: what `check` knows of a file.

All steps work on a private copy in memory, and only on its bytes: no value is used before it is checked.  Each fault is
repaired in the copy at once, so each step can rely on the steps before it.  Every repaired word is recorded.  `check` discards
the copy; `check --repair` writes the recorded words to the file.

1. header   fields that follow from others; bounds; the salt, by a vote of the rear tags
2. chain    front tags from the start on, rear tags from the end backwards.  Backwards only true blocks are found: the word before
            a block's end is the seal that was written last, even if the block contains older tags.  The bytes between the two walks
            are searched for blocks whose tags agree, the latest first; the rest becomes blocks that are marked lost
3. blocks   arrays whose header does not fit become plain blocks
   then the participants' table and their intents, see `_fsck.entries`
4. names    a table with a wrong slot is rebuilt, including names that no slot refers to; names of missing blocks are removed; the
            names of a group to which no name leads are moved into the directory: see `_fsck.names`
5. recovery and verification by the C core, as when a section is opened whose processes were all killed
"""

import bisect
import collections
import dataclasses
import os
import struct

import numpy as np

from shmem._base import system_tools
from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_HEAD_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    END_OF_ADDRESSES,
    FINGERPRINT,
    GOLDEN,
    INDEX_NEXT_FIT,
    INDEX_TLSF,
    LAYOUT,
    LAYOUT_VERSION,
    MAGIC,
    MAGIC_BEING_MADE,
    MAX_LABEL_BYTES,
    MAX_PARTICIPANTS,
    PAGE_BYTES,
    SERIAL_MASK,
    SLACK_MASK,
    SLACK_SHIFT,
    STATE_CACHED,
    STATE_DOOMED,
    STATE_HOLE,
    STATE_PENDING,
    STATE_USED,
    TAG_SERIAL_MASK,
    TYPE_ARRAY,
    TYPE_CLAIM,
    TYPE_GROUP,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
    TYPE_PLAIN,
    heap_start,
    make_tag,
    read_tag,
    rear_tag,
)
from shmem._fsck import arrays, names
from shmem._fsck import entries as _entries
from shmem._sections import image

HEADER, INDEX, BLOCK, ARRAY = LAYOUT["header_t"], LAYOUT["free_index_t"], LAYOUT["block_t"], LAYOUT["array_t"]
RECORD, CLAIM = LAYOUT["pin_record_t"], LAYOUT["claim_t"]
WORD_BYTES, WORD_MASK = 8, (1 << 64) - 1
ALLOCATED = (STATE_PENDING, STATE_USED, STATE_DOOMED)
STEP = 1 << 26


class NotASection(Exception):
    """The file is not a section, or too little of one is left."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault."""

    offset: int
    problem: str
    remedy: str
    lost: str
    """What a repair cannot restore; empty if nothing is lost."""


def round_up(value, to):
    """Return `value`, or the next multiple of `to`."""
    return -(-value // to) * to


class Wreck(names.Names):
    """The section in the file behind a descriptor, as it would be after a repair.

    Attributes
    ----------
    findings : list of Finding
    notes : list of str
        Facts that are not faults.
    blocks : dict
        Offset to size, of every block of the chain, in order.
    words : dict
        Offset to value, of every repaired word.
    """

    def __init__(self, fd):
        self.fd = fd
        self.findings, self.notes, self.words, self.blocks = [], [], {}, {}
        self.renewed, self.nameless = {}, set()  # blocks that got a new front tag, a new serial number
        self.recognised = set()  # of the renewed ones those that hold names
        self.listed = []  # groups that were deleted, and are yet to be emptied
        self.file_bytes = self.size = os.fstat(fd).st_size
        if self.size < PAGE_BYTES:
            raise NotASection(f"not a section: {self.size:,} bytes are fewer than a section's header has")
        if os.fstat(fd).st_blocks * 512 >= self.size:
            self.raw = system_tools.map_privately(fd, self.size)
        else:  # on tmpfs reading a hole allocates memory, of which there may be none
            self.raw = system_tools.map_zeros(self.size)
            for start, end in system_tools.extents(fd, self.size):
                while start < end:
                    start += os.preadv(fd, [memoryview(self.raw)[start : min(end, start + STEP)]], start) or end - start
        self.was_clean = self.field("clean") == 1

    def examine(self):
        """Find and repair every fault; afterwards the copy is what the first opener after a repair sees."""
        self.examine_heap()
        self.listed = self.doomed_groups()
        if not self.was_clean:
            self.notes.append("the section was not closed: the next opener recovers it, and so does --repair")
            self._recover()  # changes that were decided when a process was killed are carried out before names are examined
        self._names()
        self._verify()

    def examine_heap(self):
        """Take the steps without which the section cannot be opened or recovered."""
        self._header()
        self._chain()
        self._blocks()
        self._recognise()
        _entries.examine(self)

    # -- bytes

    def word(self, offset):
        """Return eight bytes as a number; 0 outside of the file."""
        return struct.unpack_from("<Q", self.raw, offset)[0] if 0 <= offset <= self.size - WORD_BYTES else 0

    def field(self, name):
        """Return a field of the header."""
        return HEADER[name].read(self.raw)

    def put(self, offset, value):
        """Repair a word."""
        struct.pack_into("<Q", self.raw, offset, value)
        self.words[offset] = value

    def put_field(self, name, value):
        """Repair a field of the header."""
        HEADER[name].write(self.raw, value)
        offset = HEADER[name].offset // WORD_BYTES * WORD_BYTES
        self.words[offset] = self.word(offset)

    def report(self, offset, problem, remedy, lost=""):
        """Record a fault."""
        self.findings.append(Finding(offset, problem, remedy, lost))

    def report_field(self, name, problem, remedy, lost=""):
        """Record a fault of a field of the header."""
        self.report(HEADER[name].offset, problem, remedy, lost)

    def sealed(self, end):
        """Return the size in the rear tag before `end`."""
        return rear_tag(self.salt, self.word(end - BLOCK_REAR_BYTES), end)

    def tag(self, offset):
        """Return (size, state, type id) of the front tag at `offset`; a tag of the wrong format has state 0."""
        tag = read_tag(self.word(offset))
        return tag.size, tag.state if tag.is_right else 0, tag.type_id

    def put_tag(self, offset, size, state, type_id=TYPE_PLAIN):
        """Write the front tag of a block, with its serial number."""
        self.put(offset, make_tag(size, state, type_id, self.serial(offset)))

    def put_serial_word(self, offset, value):
        """Write the serial word of a pending or used block, and its tag, which has the serial number too."""
        self.put(BLOCK["serial"].at(offset), value)
        self.put_tag(offset, *self.tag(offset))

    def serial(self, offset):
        """Return the serial number of the block at `offset`."""
        return self.word(BLOCK["serial"].at(offset)) & SERIAL_MASK

    def slack(self, offset):
        """Return how many bytes at the end of the payload of the block at `offset` were not requested."""
        return self.word(BLOCK["serial"].at(offset)) >> SLACK_SHIFT & SLACK_MASK

    def payload(self, offset):
        """Return the size of the payload of the block at `offset`, in bytes."""
        return self.blocks[offset] - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES

    # -- 1. the header

    def _header(self):
        magic = self.field("magic")
        if magic == MAGIC_BEING_MADE:
            raise NotASection("not a section: its creation was interrupted; the next opener creates it again")
        if self.field("fingerprint") != FINGERPRINT:
            kind = "a section of another version of this library" if magic == MAGIC else "not a section"
            raise NotASection(f"{kind}, or the header is damaged")
        self._expect("magic", MAGIC)
        self._expect("version", LAYOUT_VERSION)
        self._expect("header_bytes", HEADER.size)
        self._expect("fingerprint", FINGERPRINT)
        self._places()
        self._sizes()
        for name, valid in (("clean", (0, 1)), ("broken", (0, 1)), ("index_kind", (INDEX_TLSF, INDEX_NEXT_FIT))):
            if self.field(name) not in valid:
                self.report_field(name, f"{name} is {self.field(name)}", f"set to {valid[0]}: the index of free blocks is rebuilt")
                self.put_field(name, valid[0])
        if self.field("broken"):
            self.report_field("broken", "a process that found damage has marked the section as damaged", "the mark is removed")
            self.put_field("broken", 0)
        label = self.field("label")
        if b"\0" not in label[: MAX_LABEL_BYTES + 1] or not label.partition(b"\0")[0].isascii():
            self.report_field("label", "the shared name is not text", "cleared", "the shared name")
            for offset in range(HEADER["label"].offset, HEADER["label"].end, WORD_BYTES):
                self.put(offset, 0)
        address = self.field("desired_address")
        if address % PAGE_BYTES or address >= END_OF_ADDRESSES:
            self.report_field("desired_address", f"the desired address is {address:#x}", "cleared", "the desired address")
            self.put_field("desired_address", 0)

    def _expect(self, name, value):
        found = self.field(name)
        if found != value:
            self.report_field(name, f"{name} must be {value:#x}, got {found:#x}", f"set to {value:#x}")
            self.put_field(name, value)

    def _places(self):
        """Check the offsets of the parts: they follow from the number of participants, which in turn nearly follows from them."""
        entry = LAYOUT["participant_t"].size
        control = heap_start(1) - 2 * PAGE_BYTES
        parts = [
            round_up(self.field("max_participants") * entry, PAGE_BYTES),
            self.field("intents_off") - PAGE_BYTES,
            (self.field("index_off") - PAGE_BYTES) // 2,
            (self.field("heap_start") - control) // 2,
        ]
        ((part, votes),) = collections.Counter(parts).most_common(1)
        if votes < 2 or part < PAGE_BYTES or part % PAGE_BYTES or part > round_up(MAX_PARTICIPANTS * entry, PAGE_BYTES):
            raise NotASection("not a section: the header does not contain the offsets of the tables")
        if parts[0] != part or self.field("max_participants") > MAX_PARTICIPANTS:
            self._expect("max_participants", min(part // entry, MAX_PARTICIPANTS))
        self._expect("participants_off", PAGE_BYTES)
        self._expect("intents_off", PAGE_BYTES + part)
        self._expect("index_off", PAGE_BYTES + 2 * part)
        self._expect("heap_start", control + 2 * part)
        self.start = self.field("heap_start")
        if self.size < self.start:
            raise NotASection(f"the file is cut off at {self.size:,} bytes, before the first block; nothing is left to repair")

    def _sizes(self):
        largest = self.field("max_size")
        if largest % PAGE_BYTES or not self.start <= largest <= END_OF_ADDRESSES or not system_tools.has_address_space(largest):
            nearest, least = largest // PAGE_BYTES * PAGE_BYTES, max(round_up(self.size, PAGE_BYTES), self.start + PAGE_BYTES)
            found = nearest if least <= nearest <= END_OF_ADDRESSES and system_tools.has_address_space(nearest) else least
            self.report_field("max_size", f"max_size is {largest:#x}", f"set to {found:,}; open it with a larger one", "the old max_size")
            self.put_field("max_size", found)
        self.top = self.field("top")
        self.top_is_known = self.top % BLOCK_ALIGN_BYTES == 0 and self.start <= self.top <= max(self.field("max_size"), self.size)
        if not self.top_is_known:
            self.report_field("top", f"the end of the heap is {self.top:#x}", "set to the end of the last block that can be found")
            self.top = self.size // BLOCK_ALIGN_BYTES * BLOCK_ALIGN_BYTES
        elif self.top > self.size:
            self.report(self.size, f"the file is cut off: {self.top:,} bytes were in use, it has {self.size:,}",
                        "the heap ends with the last block that is left", "every block after it")  # fmt: skip
            self.top_is_known = False
            self.top = self.size // BLOCK_ALIGN_BYTES * BLOCK_ALIGN_BYTES
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
            votes[rear_tag(self.word(offset - BLOCK_REAR_BYTES), size, offset)] += 1
        best = votes.most_common(1)
        if best and best[0][1] > max(1, votes[self.salt]):
            self.salt = best[0][0]
            self._expect("salt", self.salt)

    # -- 2. the chain

    def _plausible(self, offset, size, state):
        return BLOCK_MIN_BYTES <= size <= self.top - offset and STATE_HOLE <= state <= STATE_DOOMED

    def _backwards(self):
        """Return the blocks that the rear tags lead to, from the end backwards: a dict from offset to size."""
        found, end = {}, self.top
        while self.top_is_known and end > self.start:
            size = self.sealed(end)
            if size % BLOCK_ALIGN_BYTES or not BLOCK_MIN_BYTES <= size <= end - self.start:
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
        """Return whether the front tags lead to the end, as after any kill, and no rear tag of a closed section contradicts them."""
        offset = self.start
        while offset < self.top:
            size, state, _ = self.tag(offset)
            if not self._plausible(offset, size, state) or (self.was_clean and self.sealed(offset + size) != size):
                return False
            offset += size
        return True

    def _may_be_believed(self, offset, size, behind):
        """Return whether a front tag can be used: its rear tag agrees, or no block found by the backward walk contradicts it."""
        if self.sealed(offset + size) == size or not behind:
            return True
        if offset in behind:
            return behind[offset] == size
        first = min(behind)
        return offset + size <= first or (offset + size in behind and not any(offset < start < offset + size for start in behind))

    def _bad_rear(self, offset):
        if not self.was_clean:
            self.notes.append(f"{offset:#x}: the rear tag does not match the block's size, as after a kill during a change")
        else:
            self.report(offset, "the end of this block was overwritten", "the rear tag is rewritten; data written past the end remain")

    def _new_front(self, offset, size):
        self.blocks[offset] = size
        n_bytes = size - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES
        self.report(offset, "the front tag was overwritten; the rear tag has the block's size", "the front tag is rewritten; see the note",
                    f"{n_bytes:,} bytes: type and serial number; the first bytes may be overwritten too")  # fmt: skip
        self._renew(offset, size)
        return size

    def _renew(self, offset, size):
        """Make a block whose front tag is lost a used one, unless it is found in a list of free blocks later."""
        self.renewed[offset] = size
        self.put(BLOCK["serial"].at(offset), 0)
        self.put_tag(offset, size, STATE_USED)

    def _last_piece(self, offset, size, state):
        """Keep a block of which only the first part exists, and fill it up; the file was truncated, or the end of the heap is unknown."""
        in_file = self.size - offset
        if in_file < BLOCK_HEAD_BYTES + WORD_BYTES or not BLOCK_MIN_BYTES <= size <= self.field("max_size") - offset:
            return False
        if not (0 < self.serial(offset) < self.field("next_serial")) or state != STATE_USED:
            return False
        self.report(offset, "this block is cut off", "the block is kept; the missing part reads as zeros",
                    f"the last {size - in_file:,} of {size - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES:,} bytes")  # fmt: skip
        self._extend(offset + size)
        self.blocks[offset] = size
        return True

    def _extend(self, size):
        longer = system_tools.map_zeros(round_up(size, PAGE_BYTES))
        longer[: self.size] = self.raw[:]
        self.raw, self.size = longer, round_up(size, PAGE_BYTES)
        self.top = size

    def _gap(self, start, end):
        """Fill the gap between the two walks with blocks whose tags agree, the latest first, and mark the rest as lost."""
        taken = [(start, 0), (end, 0)]
        for offset, size in self._sound_blocks(start, end):
            i = bisect.bisect(taken, (offset, size))
            if sum(taken[i - 1]) <= offset and offset + size <= taken[i][0]:
                taken.insert(i, (offset, size))
        at = start
        for offset, size in taken[1:]:
            rest, next_at = offset - at, offset + size
            if 0 < rest < BLOCK_MIN_BYTES and self.blocks:
                self._absorb(next(reversed(self.blocks)), rest)
                rest = 0
            elif 0 < rest < BLOCK_MIN_BYTES:  # there is no block before it: the block after it is lost with it
                rest, size = next_at - at, 0
            if rest:
                self._lost_piece(at, rest)
            if size:
                self.blocks[offset] = size
            at = next_at
        return end - start

    def _absorb(self, offset, n_bytes):
        """Add bytes that are too few for a block to the block before them."""
        self.report(offset + self.blocks[offset], f"{n_bytes} bytes without a tag, too few for a block",
                    f"the block before, at {offset:#x}, is enlarged")  # fmt: skip
        _, state, type_id = self.tag(offset)
        self.blocks[offset] += n_bytes
        self.put_tag(offset, self.blocks[offset], state, type_id)
        if state in ALLOCATED:
            word, slack = self.word(BLOCK["serial"].at(offset)), min(self.slack(offset) + n_bytes, SLACK_MASK)
            self.put_serial_word(offset, word & ~(SLACK_MASK << SLACK_SHIFT) | slack << SLACK_SHIFT)

    def _lost_piece(self, offset, size):
        self.report(offset, f"{size:,} bytes without a tag, up to {offset + size:#x}",
                    f"they become one plain block, which free({offset + BLOCK_HEAD_BYTES:#x}) frees",
                    f"which blocks were in these {size:,} bytes")  # fmt: skip
        self.blocks[offset] = size
        self._renew(offset, size)

    def _sound_blocks(self, start, end):
        """Return (offset, size) of the used blocks inside, found by their seals; the latest first."""
        words = np.frombuffer(self.raw, dtype="<u8", count=self.size // WORD_BYTES)
        pairs = []
        for first in range(start + BLOCK_MIN_BYTES, end + 1, STEP):
            ends = np.arange(first, min(end + 1, first + STEP), BLOCK_ALIGN_BYTES, dtype=np.uint64)
            rears = words[((ends - np.uint64(BLOCK_REAR_BYTES)) // np.uint64(WORD_BYTES)).astype(np.intp)]
            sizes = rears ^ np.uint64(self.salt) ^ (ends * np.uint64(GOLDEN))  # `rear_tag`
            good = (sizes % BLOCK_ALIGN_BYTES == 0) & (sizes >= BLOCK_MIN_BYTES) & (sizes <= ends - np.uint64(start))
            pairs += [(int(e - s), int(s)) for e, s in zip(ends[good], sizes[good], strict=True)]
        sound = [(o, s) for o, s in pairs if self.tag(o)[:2] == (s, STATE_USED) and self.serial(o) < self.field("next_serial")]
        return sorted(sound, key=lambda pair: -self.serial(pair[0]))

    def _new_top(self):
        """Set `top` to the end of the last block that is not free."""
        while self.blocks:
            last = next(reversed(self.blocks))
            if self.tag(last)[1] in ALLOCATED:
                break
            del self.blocks[last]
        self.top = max((offset + size for offset, size in self.blocks.items()), default=self.start)
        self.put_field("top", self.top)

    def _bounds(self):
        for name in ("high_water", "reserved"):
            value = self.field(name)
            if value < self.top or value > round_up(max(self.field("max_size"), self.size), PAGE_BYTES):
                self.report_field(name, f"{name} is {value:#x}", "set to the end of the heap")
                self.put_field(name, round_up(self.top, PAGE_BYTES))
        for offset in self.blocks:
            self._compare_serials(offset)
        next_serial = self.field("next_serial")
        serials = {offset: self.serial(offset) for offset in self.blocks if self.tag(offset)[1] in ALLOCATED}
        above = [offset for offset, serial in serials.items() if serial > next_serial - self.was_clean]
        if len(above) > max(1, len(serials) // 2) or next_serial > SERIAL_MASK:
            self.report_field("next_serial", f"next_serial is {next_serial:#x}", "raised above every serial number in use")
            self.put_field("next_serial", max(serials.values(), default=0) + 1)
        else:
            for offset in above:
                self.report(offset, "the block's serial number was overwritten", "the block gets a new one")
                self.nameless.add(offset)

    def _compare_serials(self, offset):
        """Restore the serial number of a small block from its tag, or the one in the tag, where the two differ."""
        tag, serial, next_serial = read_tag(self.word(offset)), self.serial(offset), self.field("next_serial")
        if tag.serial is None or offset in self.renewed:
            return
        if tag.serial == serial & TAG_SERIAL_MASK and not tag.serial < next_serial <= serial:
            return
        others = self.word(BLOCK["serial"].at(offset)) & ~SERIAL_MASK
        if not 0 < serial < next_serial <= TAG_SERIAL_MASK and 0 < tag.serial < next_serial:
            self.report(offset, "the block's serial number was overwritten", "it is restored from the front tag")
            serial = tag.serial
        else:
            self.report(offset, "the serial number in the front tag was overwritten", "it is written again")
        self.put_serial_word(offset, serial | others)

    # -- 3. blocks

    def _blocks(self):
        for offset in self.blocks:
            size, state, type_id = self.tag(offset)
            if state != STATE_USED:
                continue
            if type_id == TYPE_ARRAY and not arrays.fits(self, offset):
                self.report(
                    offset, "an array's header does not fit its block", "the array becomes a plain block", "shape and dtype of the array"
                )
                self.put_tag(offset, size, STATE_USED)
            if type_id == TYPE_NAME_ENTRY and self.entry(offset + BLOCK_HEAD_BYTES) is None:
                self.report(offset, "a name is not text, or does not fit its block", "now a plain block", "a name")
                self.put_tag(offset, size, STATE_USED)
            if type_id == TYPE_GROUP and not self.is_group(offset + BLOCK_HEAD_BYTES):
                self.report(offset, "the block is too small for a group of names", "now a plain block", "a group of names")
                self.put_tag(offset, size, STATE_USED)
            if self.slack(offset) > size - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES:
                self.report(offset, "the block's slack is larger than its payload", "set to 0", "how many bytes were requested")
                self.put_serial_word(offset, self.serial(offset))

    # -- 4. names: see `_fsck.names`; blocks without a front tag

    def _recognise(self):
        """Identify the blocks without a front tag: what holds names, named block, array, free block, claim, record of views; else plain."""
        renewed = self.renewed
        self._recognise_names()
        named = self.named()
        free = self._listed_as_free() if renewed else set()
        for offset, size in renewed.items():
            payload, kind = offset + BLOCK_HEAD_BYTES, self.tag(offset)[2]
            if kind == TYPE_PLAIN and payload not in named and offset in free:
                self.put_tag(offset, size, STATE_HOLE)
                self.notes.append(f"{offset:#x}: this block was free")
                continue
            if kind == TYPE_PLAIN and payload not in named and self._was_claim(offset):
                kind = TYPE_CLAIM
                self.put_tag(offset, size, STATE_USED, TYPE_CLAIM)
            if kind == TYPE_PLAIN and payload not in named and self._was_record(offset):
                self.put_tag(offset, size, STATE_HOLE)
                self.notes.append(f"{offset:#x}: this block was a record of views, which end with their process")
                continue
            if kind == TYPE_PLAIN and arrays.fits(self, offset):
                kind = TYPE_ARRAY
                self.put_tag(offset, size, STATE_USED, TYPE_ARRAY)
            self.nameless.add(offset)
            kinds = {TYPE_PLAIN: "kept as a plain block", TYPE_ARRAY: "kept as an array", TYPE_NAME_TABLE: "kept as a table of names",
                     TYPE_NAME_ENTRY: "kept as a name", TYPE_GROUP: "kept as a group of names",
                     TYPE_CLAIM: "kept as the claim of a message"}  # fmt: skip
            name = f", named {named[payload].name.decode('utf-8', 'replace')!r}" if payload in named else ""
            self.notes.append(f"{offset:#x}: {kinds[kind]}{name}")
        owners = self.owners()
        for offset in self.nameless:
            payload, serial_at = offset + BLOCK_HEAD_BYTES, BLOCK["serial"].at(offset)
            serial = named[payload].serial if payload in named else owners.get(payload, self.field("next_serial"))
            self.put_serial_word(offset, serial | (0 if offset in renewed else self.word(serial_at) & ~SERIAL_MASK))
            self.put_field("next_serial", max(serial + 1, self.field("next_serial")))

    def _was_record(self, offset):
        """Return whether a block has the content of a record of pins: offset and serial number of a block that records can pin."""
        return self.payload(offset) >= RECORD.size and self._leads_to_block(offset, RECORD)

    def _was_claim(self, offset):
        """Return whether a block has the content of a claim: offset and serial number of an array."""
        return self.payload(offset) >= CLAIM.size and self._leads_to_block(offset, CLAIM, TYPE_ARRAY)

    def _leads_to_block(self, offset, struct, *types):
        payload = offset + BLOCK_HEAD_BYTES
        target, serial = self.word(struct["target_off"].at(payload)), self.word(struct["serial"].at(payload)) & SERIAL_MASK
        return serial != 0 and self.is_used(target, *types) and self.serial(target - BLOCK_HEAD_BYTES) == serial

    def _listed_as_free(self):
        """Return the offsets in the lists of holes and of cached blocks."""
        index = self.field("index_off")
        found = {self.word(INDEX["rover_off"].at(index))}
        for heads in (INDEX["cache_off"], INDEX["head_off"]):
            found |= {self.word(at) for at in range(heads.at(index), heads.at(index) + heads.size, WORD_BYTES)}
        for offset in self.blocks:
            if self.tag(offset)[1] in (STATE_HOLE, STATE_CACHED):
                found |= {self.word(BLOCK["next_off"].at(offset)), self.word(BLOCK["previous_off"].at(offset))}
        return found

    # -- 5. the rest

    def _recover(self):
        """Let the C core recover the copy, as the first opener would; return the remaining problem, as (problem, facts)."""
        if round_up(self.top, PAGE_BYTES) > self.size:
            self._extend(self.top)
        found = image.check(np.frombuffer(self.raw, dtype=np.uint8), self.fd, True)
        self.top = self.field("top")
        self.blocks, offset = {}, self.start
        while offset < self.top:
            self.blocks[offset] = self.tag(offset)[0]
            offset += self.blocks[offset]
        return found

    def _verify(self):
        """Compare with the result of the C core on the same bytes, and let it verify the repaired ones."""
        if self.was_clean and not self.findings:
            problem, facts = image.check(np.frombuffer(self.raw, dtype=np.uint8), self.fd, False)
            if problem is not None:
                self.report(facts["bad_off"], f"{problem}: lists or counters do not match the blocks", "lists and counters are rebuilt")
        problem, facts = self._recover()
        if problem is not None:
            self.report(facts["bad_off"], f"{problem} remains after recovery", "none: the file cannot be repaired", "unknown")
