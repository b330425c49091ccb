"""The tables of names of a section that is examined: the directory, the registry of types, the attributes, and the tables of groups.

A table is denoted by what leads to it: "directory", "types" or "attributes", for a word of the header, or the payload offset of a group.
Names that no slot shows any more are recovered into the table that lacks them, as the hash in a damaged slot tells, and else into the
directory.  A group to which no name leads, although it was not deleted, is dissolved: its names are moved into the directory.
"""

import dataclasses
import struct

from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    LAYOUT,
    MAX_NAME_BYTES,
    SLOT_EMPTY,
    SLOT_REMOVED,
    STATE_HOLE,
    STATE_USED,
    TYPE_GROUP,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
    name_hash,
)

HEADER, TABLE, SLOT, ENTRY, GROUP = (LAYOUT[name] for name in ("header_t", "name_table_t", "name_slot_t", "name_entry_t", "group_t"))
TABLES = {
    "directory": "directory_off",
    "types": "types_off",
    "attributes": "attributes_off",
}  # what a table holds, and the field of the header that leads to it
LEAD_NOWHERE = ("types", "attributes")  # whose values are no named blocks
KEY = struct.Struct("<QQ")  # the name of an entry of attributes: offset and serial number of the block that has them, 0 of the section
WORD_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A name, and the value that it leads to."""

    offset: int
    name: bytes
    data: bytes
    value: int
    serial: int

    @property
    def owner(self):
        """Offset and serial number of the block that has these attributes, 0 for the section; None if it is not an entry of attributes."""
        is_key = self.serial == 0 and len(self.name) == KEY.size and KEY.unpack(self.name)[0] == self.value
        return KEY.unpack(self.name) if is_key else None

    @property
    def text(self):
        """The name as text, with a mark in place of what is not UTF-8."""
        if self.owner is not None:
            return f"attributes of the block at {self.value - BLOCK_HEAD_BYTES:#x}" if self.value else "attributes of the section"
        return self.name.decode("utf-8", "replace")


def is_text(name):
    """Return whether these bytes can be a name."""
    try:
        return len(name.decode()) > 0 and len(name) <= MAX_NAME_BYTES
    except UnicodeDecodeError:
        return False


class Names:
    """The part of a `Wreck` that knows names."""

    # -- looking

    def is_used(self, payload_off, *types):
        """Return whether a used block, of one of these types if any are given, has its payload at this offset."""
        offset = payload_off - BLOCK_HEAD_BYTES
        return offset in self.blocks and self.tag(offset)[1] == STATE_USED and (not types or self.tag(offset)[2] in types)

    def entry(self, payload_off):
        """Return the entry of a table that a block holds, or None."""
        if not self.is_used(payload_off, TYPE_NAME_ENTRY):
            return None
        room = self.payload(payload_off - BLOCK_HEAD_BYTES)
        value, serial, _, n_name, n_data = ENTRY.read(self.raw, payload_off).values()
        at = payload_off + ENTRY.size
        if room < ENTRY.size or n_name + n_data > room - ENTRY.size:
            return None
        found = Entry(payload_off, self.raw[at : at + n_name], self.raw[at + n_name : at + n_name + n_data], value, serial)
        return found if found.owner is not None or is_text(found.name) else None

    def capacity(self, payload_off):
        """Return how many slots a table has; 0 if the number is invalid."""
        if not self.is_used(payload_off, TYPE_NAME_TABLE):
            return 0
        capacity = self.word(TABLE["capacity"].at(payload_off))
        room = self.payload(payload_off - BLOCK_HEAD_BYTES) - TABLE.size
        return capacity if capacity and capacity & capacity - 1 == 0 and capacity <= room // SLOT.size else 0

    def slots(self, payload_off):
        """Return (offset, hash, entry) of each slot of a table."""
        first = payload_off + TABLE.size
        places = range(first, first + SLOT.size * self.capacity(payload_off), SLOT.size)
        return [(at, self.word(SLOT["hash"].at(at)), self.word(SLOT["entry_off"].at(at))) for at in places]

    def is_group(self, payload_off):
        """Return whether a group of names has its payload at this offset."""
        return self.is_used(payload_off, TYPE_GROUP) and self.payload(payload_off - BLOCK_HEAD_BYTES) >= GROUP.size

    def groups(self):
        """Return the payload offsets of all groups, also of those that were deleted."""
        return [offset + BLOCK_HEAD_BYTES for offset in self.blocks if self.is_group(offset + BLOCK_HEAD_BYTES)]

    def anchors(self):
        """Return all that leads to a table."""
        return [*TABLES, *self.groups()]

    def table(self, which):
        """Return the offset of a table, as what leads to it has it."""
        return self.field(TABLES[which]) if which in TABLES else self.word(GROUP["table_off"].at(which))

    def _set_table(self, which, payload_off):
        if which in TABLES:
            self.put_field(TABLES[which], payload_off)
        else:
            self.put(GROUP["table_off"].at(which), payload_off)

    def doomed_groups(self):
        """Return the groups in the list of deleted ones that are yet to be emptied."""
        found, group = [], self.field("doomed_off")
        while self.is_group(group) and group not in found:
            found.append(group)
            group = self.word(GROUP["next_doomed_off"].at(group))
        return found

    def old(self, payload_off):
        """Return the offset of the table whose entries a table takes over; 0 if there is none."""
        return self.word(TABLE["old_off"].at(payload_off)) if self.capacity(payload_off) else 0

    def both(self, which):
        """Return the offsets of a table, and of the one whose entries it takes over."""
        table = self.table(which)
        return [payload for payload in (table, self.old(table)) if payload]

    def all_slots(self, which):
        """Return the same as `slots`, for all slots of both tables."""
        return [slot for payload in self.both(which) for slot in self.slots(payload)]

    def entries(self, which):
        """Return the entries of a table."""
        found = (self.entry(entry) for _, _, entry in self.all_slots(which))
        return [entry for entry in found if entry is not None]

    def named(self):
        """Return a dict from the offset of each block with a name to its entry."""
        return {entry.value: entry for which in self.anchors() if which not in LEAD_NOWHERE for entry in self.entries(which)}

    def owners(self):
        """Return a dict from the offset of each block with attributes to the serial number that they have for it."""
        return dict(entry.owner for entry in self.entries("attributes") if entry.owner is not None)

    def leads_to_block(self, entry):
        """Return whether the entry leads to the block that it was made for."""
        return self.is_used(entry.value) and self.serial(entry.value - BLOCK_HEAD_BYTES) == entry.serial

    # -- blocks without a front tag

    def _recognise_names(self):
        """Identify tables, entries and groups, each of which another one leads to."""
        n_before = -1
        while n_before != len(self.recognised):
            n_before = len(self.recognised)
            self._recognise_as(TYPE_NAME_TABLE, {self.table(which) for which in self.anchors()})
            self._recognise_as(TYPE_NAME_TABLE, {self.old(self.table(which)) for which in self.anchors()})
            shown = {entry for which in self.anchors() for _, _, entry in self.all_slots(which)}
            self._recognise_as(TYPE_NAME_ENTRY, shown, lambda payload: self.entry(payload) is not None)
            self._recognise_as(TYPE_GROUP, self.named(), self._was_group)

    def _recognise_as(self, kind, payloads, is_right=lambda payload: True):
        """Give the blocks among these that have no type yet a type, unless their content does not fit it."""
        for offset, size in self.renewed.items():
            payload = offset + BLOCK_HEAD_BYTES
            if payload not in payloads or offset in self.recognised:
                continue
            self.put_tag(offset, size, STATE_USED, kind)
            if is_right(payload):
                self.recognised.add(offset)
            else:
                self.put_tag(offset, size, STATE_USED)

    def _was_group(self, payload):
        """Return whether a block has the content of a group with names: all but the offset of a table is zero."""
        if not self.is_group(payload):
            return False
        table, *others = (self.word(payload + at) for at in range(0, GROUP.size, 8))
        taken = [self.table(which) for which in self.anchors() if which != payload]
        is_table = self.capacity(table) > 0 or table - BLOCK_HEAD_BYTES in self.renewed
        return is_table and table not in taken and not any(others)

    # -- repairing

    def _title(self, which):
        return f"the table of {which}" if which in TABLES else f"the table of the group at {which:#x}"

    def _names(self):
        for which in self.anchors():
            if self.table(which) and not self.capacity(self.table(which)):
                self._find_table(which)
        orphans = self._homes(self._orphans())
        for which in self.anchors():
            self._mend_table(which, orphans.get(which, []))
        self._check_targets()
        loose = self._loose_groups()
        while loose:
            self._dissolve(loose[0])
            self._check_targets()
            loose = self._loose_groups()
        self._check_attributes()
        root = self.field("root_off")
        if root and not self.is_used(root):
            self.report_field("root_off", f"the root object, at {root:#x}, is not a block", "the root object is unset",
                              "which block was the root")  # fmt: skip
            self.put_field("root_off", 0)

    def _check_targets(self):
        """Remove names that lead to no block, and second names of groups."""
        seen = set()
        for entry in [entry for which in self.anchors() if which not in LEAD_NOWHERE for entry in self.entries(which)]:
            problem = None
            if not self.leads_to_block(entry):
                problem = "does not lead to a block"
            elif entry.value in seen:
                problem = "leads to a group that has another name"
            elif self.is_group(entry.value):
                seen.add(entry.value)
            if problem is not None:
                self.report(entry.offset - BLOCK_HEAD_BYTES, f"the name {entry.text!r} {problem}", "the name is removed",
                            f"the name {entry.text!r}")  # fmt: skip
                self._remove(entry)

    def _check_attributes(self):
        """Remove attributes of blocks that are not there."""
        for entry in self.entries("attributes"):
            target, serial = entry.owner or (1, 0)
            is_right = self.is_used(target) and self.serial(target - BLOCK_HEAD_BYTES) == serial if target else serial == 0
            if not is_right:
                self.report(entry.offset - BLOCK_HEAD_BYTES, "these attributes belong to no block", "they are removed",
                            f"{entry.data[:60].decode('utf-8', 'replace')!r}")  # fmt: skip
                self._remove(entry)

    def _find_table(self, which):
        taken = {payload for other in self.anchors() if other != which for payload in self.both(other)}
        payloads = [offset + BLOCK_HEAD_BYTES for offset in self.blocks]
        tables = [payload for payload in payloads if payload not in taken and self.capacity(payload)]
        tables = [payload for payload in tables if payload not in map(self.old, tables)]
        found = tables[0] if len(tables) == 1 else 0
        remedy = f"set to the only table there is, at {found:#x}" if found else "the section has no such table afterwards"
        all_of = {"directory": "all names", "types": "the names and fields of the object types", "attributes": "all attributes"}
        lost = "" if found else all_of.get(which, "")
        if which not in TABLES and not found:
            remedy, lost = "the group is empty afterwards; its names are recovered into the directory", "in which group these names were"
        at = self._place(which)
        self.report(
            at, f"{self._title(which)} is not at the offset " + ("in the header" if which in TABLES else "in the group"), remedy, lost
        )
        self._set_table(which, found)

    def _place(self, which):
        """Return the offset of the word that leads to a table."""
        return HEADER[TABLES[which]].offset if which in TABLES else GROUP["table_off"].at(which)

    def _orphans(self):
        """Return the entries to which no table refers."""
        shown = {entry.offset for which in self.anchors() for entry in self.entries(which)}
        payloads = [offset + BLOCK_HEAD_BYTES for offset in self.blocks]
        found = (self.entry(payload) for payload in payloads if payload not in shown)
        return [entry for entry in found if entry is not None]

    def _bad_slots(self, which):
        return [(at, found) for at, found, entry in self.all_slots(which) if entry > SLOT_REMOVED and self.entry(entry) is None]

    def _homes(self, orphans):
        """Return a dict from each table to the orphans that belong to it, as far as can be told."""
        homes = {
            "types": [entry for entry in orphans if entry.serial == 0 and entry.owner is None],
            "attributes": [entry for entry in orphans if entry.owner is not None],
        }
        orphans = [entry for entry in orphans if entry.serial != 0]
        if not orphans:
            return homes
        lacking = {which: {found for _, found in self._bad_slots(which)} for which in self.anchors() if which not in LEAD_NOWHERE}
        lacking = {which: hashes for which, hashes in lacking.items() if hashes or not self._counts_are_right(which)}
        for entry in orphans:
            found = [which for which, hashes in lacking.items() if name_hash(entry.name) in hashes] or list(lacking)
            homes.setdefault(found[0] if len(found) == 1 else "directory", []).append(entry)
        return homes

    def _counts_are_right(self, which):
        return all(self._is_counted(payload) for payload in self.both(which))

    def _mend_table(self, which, orphans):
        """Rebuild a table if a slot refers to no entry, an entry is not where its name is looked up, or a name is in no slot."""
        table = self.table(which)
        if not self.capacity(table):
            self._note_lost(orphans)
            return
        slots = self.all_slots(which)
        bad = [at for at, _ in self._bad_slots(which)]
        shown = [(at, found, self.entry(entry)) for at, found, entry in slots if entry > SLOT_REMOVED and self.entry(entry)]
        lost = [at for at, found, entry in shown if found != name_hash(entry.name)]
        if not bad and not lost and not orphans and self._moves_right(which) and (self._counts_are_right(which) or not self.was_clean):
            return
        entries = {entry.name: entry for entry in self._by_age(self.entries(which))}
        there = [entry for entry in self._by_age(orphans) if entry.name in entries]
        entries |= {entry.name: entry for entry in self._by_age(orphans) if entry.name not in entries}
        n_gone, n_slots = max(0, len(bad) - len(orphans)), self.capacity(table)
        there += list(entries.values())[n_slots:]
        names = ", ".join(repr(entry.text) for entry in orphans if entry not in there)
        self.report(bad[0] if bad else lost[0] if lost else table, f"{self._title(which)} does not match its entries",
                    "rebuilt" + (f"; recovered names: {names}" if names else ""),
                    f"{n_gone + len(there)} names" if n_gone + len(there) else "")  # fmt: skip
        self._note_lost(there)
        self._end_move(table)
        self._fill(table, list(entries.values())[:n_slots])

    def _by_age(self, entries):
        return sorted(entries, key=lambda entry: self.serial(entry.offset - BLOCK_HEAD_BYTES))

    def _note_lost(self, entries):
        for entry in entries:
            self.notes.append(f"{entry.offset - BLOCK_HEAD_BYTES:#x}: the name {entry.text!r} is in no table")

    def _loose_groups(self):
        """Return the groups to which no name leads, and that were not deleted: first those in none of the others.

        Of a section that was not closed, and in which nothing is damaged, each group without a name was deleted.
        """
        deleted = set(self.listed) if self.was_clean or self.findings else set(self.groups())
        groups = self.groups()
        reached, waiting = set(), ["directory", *(group for group in groups if group in deleted)]
        for which in waiting:  # which grows meanwhile
            inside = [entry.value for entry in self.entries(which) if self.is_group(entry.value) and entry.value not in reached]
            reached.update(inside)
            waiting += inside
        loose = [group for group in groups if group not in reached and group not in deleted]
        inside = {entry.value for group in loose for entry in self.entries(group)}
        return sorted(loose, key=lambda group: group in inside)

    def _dissolve(self, group):
        """Move the names of a group into the directory, and free the group."""
        entries, table = self.entries(group), self.table(group)
        names = ", ".join(repr(entry.text) for entry in entries)
        self.report(group - BLOCK_HEAD_BYTES, "no name leads to this group of names",
                    f"the names in it are moved to the directory: {names}" if entries else "the group is freed",
                    "the group's name")  # fmt: skip
        self.put_tag(group - BLOCK_HEAD_BYTES, self.blocks[group - BLOCK_HEAD_BYTES], STATE_HOLE)
        if not self.capacity(self.table("directory")) and self.capacity(table):
            self._set_table("directory", table)
            return
        for payload in (table, self.old(table)):
            if self.capacity(payload) and payload not in [self.table(which) for which in self.anchors()]:
                self.put_tag(payload - BLOCK_HEAD_BYTES, self.blocks[payload - BLOCK_HEAD_BYTES], STATE_HOLE)
        if entries:
            self._mend_table("directory", entries)

    def _is_counted(self, table):
        shown = [entry for _, _, entry in self.slots(table) if entry != SLOT_EMPTY]
        n_live = sum(entry != SLOT_REMOVED for entry in shown)
        return (len(shown), n_live) == (self.word(TABLE["filled"].at(table)), self.word(TABLE["live"].at(table)))

    def _moves_right(self, which):
        """Return whether no entry is in the old table and in the new one, and none left in a slot that was moved."""
        table, *olds = self.both(which)
        cursor, shown = self.word(TABLE["cursor"].at(table)), {entry for _, _, entry in self.slots(table)}
        return all(
            table != old
            and not self.old(old)
            and 0 < self.capacity(old) >= cursor
            and not any(entry > SLOT_REMOVED and (i < cursor or entry in shown) for i, (_, _, entry) in enumerate(self.slots(old)))
            for old in olds
        )

    def _end_move(self, table):
        """Free the table whose entries this one takes over, before it is filled with all of them."""
        old = self.old(table)
        if not old:
            return
        if old != table and self.capacity(old) and old not in [self.table(which) for which in self.anchors()]:
            self.put_tag(old - BLOCK_HEAD_BYTES, self.blocks[old - BLOCK_HEAD_BYTES], STATE_HOLE)
        self.put(TABLE["old_off"].at(table), 0)
        self.put(TABLE["cursor"].at(table), 0)

    def _fill(self, table, entries):
        slots = [at for at, _, _ in self.slots(table)]
        for at in slots:
            self.put(SLOT["hash"].at(at), 0)
            self.put(SLOT["entry_off"].at(at), SLOT_EMPTY)
        for entry in entries[: len(slots)]:
            value = name_hash(entry.name)
            i = value % len(slots)
            while self.word(SLOT["entry_off"].at(slots[i])) != SLOT_EMPTY:
                i = (i + 1) % len(slots)
            self.put(SLOT["hash"].at(slots[i]), value)
            self.put(SLOT["entry_off"].at(slots[i]), entry.offset)
        for count in ("filled", "live"):
            self.put(TABLE[count].at(table), min(len(entries), len(slots)))

    def _remove(self, entry):
        for table in [payload for which in self.anchors() for payload in self.both(which)]:
            for at, _, shown in self.slots(table):
                if shown == entry.offset:
                    self.put(SLOT["entry_off"].at(at), SLOT_REMOVED)
                    self.put(TABLE["live"].at(table), self.word(TABLE["live"].at(table)) - 1 & WORD_MASK)
        offset = entry.offset - BLOCK_HEAD_BYTES
        self.put_tag(offset, self.blocks[offset], STATE_HOLE)
