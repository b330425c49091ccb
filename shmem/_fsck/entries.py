"""The participants' table and the intents in the bytes of a section: what the killed left, and what cannot be.

An entry of a killed process may hold anything that a live one's may: its place, shares of the lock, counts of blocks being made and of
pins, an intent.  Whoever takes the entry, or opens the section first, clears that up: notes, no damage.  Damage is what no
process writes.  Recovery would act on an intent, so one that makes no sense is cleared, and so is any in a file that was
closed: the last one out had finished them all.
"""

import struct

ENTRY = 64
HIGH_AT = 832  # participants_high in the header
MOST_THREADS = 4096
MOST_PENDING = 16 * MOST_THREADS
OPERATIONS = {1: "naming, moving or removing something", 2: "resizing a block", 3: "moving a block", 4: "making a block smaller"}
RESIZES = (2, 4)
PARTICIPANT = struct.Struct("<QIIIIQ32s")
INTENT = struct.Struct("<8Q")


def _participant_problem(wreck, fields):
    """What in an entry no process has written, or None."""
    readers, attached, pending, pins, waiting, pid, spare = fields
    if attached > 2 or any(spare) or pid >= 1 << 32:
        return "it was overwritten"
    for count, most, what in (
        (readers & 0xFFFFFFFF, MOST_THREADS, "threads that hold the lock shared"),
        (waiting, MOST_THREADS, "threads that wait for the lock"),
        (pending, MOST_PENDING, "blocks that it is making"),
        (pins, MOST_PENDING + wreck.size // 48, "arrays that it looks at"),
    ):
        if count > most:
            return f"it says {count:,} {what}"
    return None


def _examine_participant(wreck, i, at):
    fields = PARTICIPANT.unpack_from(wreck.raw, at)
    readers, attached, pending, pins, _, pid, _ = fields
    problem = _participant_problem(wreck, fields)
    if problem is not None:
        wreck.say(at, f"entry {i} of the participants: {problem}", "it is free")
        wreck.put(at, readers >> 32 << 32)
        for offset in range(at + 8, at + ENTRY, 8):
            wreck.put(offset, 0)
    elif attached or pending or pins or readers & 0xFFFFFFFF:
        wreck.notes.append(f"entry {i} of the participants: process {pid} was killed; what it held is cleared up when the section is used")


def _intent_problem(wreck, fields):
    """Why an intent cannot be one, or None."""
    operation, slot, _, *offsets, _ = fields
    kind = operation & 0xFFFF
    if kind not in OPERATIONS or operation >> 48:
        return f"its operation is {operation:#x}"
    if kind in RESIZES:
        return None if slot in wreck.blocks else f"it resizes a block at {slot:#x}, and there is none"
    if slot % 8 or slot > wreck.size - 16:
        return f"it changes a word at {slot:#x}"
    for offset in offsets:  # above `top` may lie what was dropped already
        if offset and (offset % 16 or not wreck.start < offset < wreck.field("max_size")):
            return f"it names a block at {offset:#x}"
    return None


def _examine_intent(wreck, i, at):
    fields = INTENT.unpack_from(wreck.raw, at)
    if fields[0] == 0:
        return
    problem = _intent_problem(wreck, fields)
    if problem is None and wreck.was_clean:
        problem = "there is one, in a section that was closed"
    if problem is not None:
        wreck.say(at, f"the intent of participant {i} makes no sense: {problem}", "it is cleared: nothing comes of it")
        wreck.put(at, 0)
        return
    what = OPERATIONS[fields[0] & 0xFFFF]
    wreck.notes.append(f"{at:#x}: participant {i} was killed while {what}: the next opener finishes that, or leaves it undone")


def examine(wreck):
    """Look at all of it, and mend it in the copy, before anything is recovered."""
    n = wreck.short("max_participants")
    high = struct.unpack_from("<I", wreck.raw, HIGH_AT)[0]
    if high > n:
        wreck.say(HIGH_AT, f"the table of participants has {n} entries, {high:,} of them were in use", "it is set to all")
        wreck.put(HIGH_AT, wreck.word(HIGH_AT) >> 32 << 32 | n)
    for i in range(n):
        _examine_participant(wreck, i, wreck.field("participants_off") + ENTRY * i)
        _examine_intent(wreck, i, wreck.field("intents_off") + ENTRY * i)
