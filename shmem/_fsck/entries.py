"""The participants' table and the intents in the bytes of a section: traces of killed processes, and damage.

The entry of a killed process may hold whatever a live one's may: its registration, shares of the lock, counts of pending blocks, of
pins and of claims, an intent.  The next owner of the entry, or the next first opener, cleans these up; they are noted, and are not
damage.  Damage is a value that no process writes.  Recovery acts on intents, so an invalid intent is cleared, and so is any intent in a
section that was closed, whose last participant had finished them all.
"""

from shmem._base.layout import (
    BLOCK_ALIGN_BYTES,
    BLOCK_MIN_BYTES,
    INTENT_FIRST_TYPE_SHIFT,
    INTENT_MOVE,
    INTENT_NONE,
    INTENT_RESIZE,
    INTENT_SHRINK,
    INTENT_SWAP_SLOT,
    INTENT_SWAP_TWO,
    LAYOUT,
    MAX_THREADS,
    READERS_COUNT_MASK,
)

PARTICIPANT, INTENT = LAYOUT["participant_t"], LAYOUT["intent_t"]
WORD_BYTES = 8
ATTACHED_RESTS = 3  # see _base/participants.pxd
MOST_PENDING = 16 * MAX_THREADS
OPERATIONS = {
    INTENT_SWAP_SLOT: "naming, moving or removing a block",
    INTENT_RESIZE: "resizing a block",
    INTENT_MOVE: "moving a block",
    INTENT_SHRINK: "shrinking a block",
    INTENT_SWAP_TWO: "renaming an object, or changing the rows of an array",
}
RESIZES = INTENT_RESIZE, INTENT_SHRINK


def operation_of(word):
    """Return the kind of an intent, from its `operation`."""
    return word & (1 << INTENT_FIRST_TYPE_SHIFT) - 1


def _participant_problem(wreck, entry):
    """Return a description of a value in an entry that no process writes, or None."""
    if entry["attached"] > ATTACHED_RESTS or any(entry["spare"]) or entry["pid"] >= 1 << 32:
        return "it was overwritten"
    for count, most, what in (
        (entry["readers"] & READERS_COUNT_MASK, MAX_THREADS, "threads that hold the lock shared"),
        (entry["waiting"], MAX_THREADS, "threads that wait for the lock"),
        (entry["pending"], MOST_PENDING, "pending blocks"),
        (entry["pins"], MOST_PENDING + wreck.size // BLOCK_MIN_BYTES, "pinned blocks"),
        (entry["claims"], wreck.size // BLOCK_MIN_BYTES, "claims of messages"),
    ):
        if count > most:
            return f"it counts {count:,} {what}"
    return None


def _examine_participant(wreck, i, at):
    entry = PARTICIPANT.read(wreck.raw, at)
    readers = PARTICIPANT["readers"].at(at)
    problem = _participant_problem(wreck, entry)
    if problem is not None:
        wreck.report(at, f"participant entry {i} is damaged: {problem}", "the entry is cleared")
        for offset in range(at, at + PARTICIPANT.size, WORD_BYTES):
            wreck.put(offset, entry["readers"] & ~READERS_COUNT_MASK if offset == readers else 0)
    elif entry["attached"] or entry["pending"] or entry["pins"] or entry["claims"] or entry["readers"] & READERS_COUNT_MASK:
        end = "ended while it had views" if entry["attached"] == ATTACHED_RESTS else "was killed"
        wreck.notes.append(f"participant entry {i}: process {entry['pid']} {end}; the next opener clears the entry")


def _intent_problem(wreck, intent):
    """Return why an intent is invalid, or None."""
    operation, slot = intent["operation"], intent["slot_off"]
    kind = operation_of(operation)
    if kind not in OPERATIONS or operation >> 48:
        return f"its operation is {operation:#x}"
    if kind in RESIZES:
        return None if slot in wreck.blocks else f"it resizes a block at {slot:#x}, where no block begins"
    slots, blocks = [slot], [*intent["make_off"], *intent["drop_off"]]
    if kind == INTENT_SWAP_TWO:
        slots.append(intent["slot2_off"])
        del blocks[1]  # the value of the second word
    for word in slots:
        if word % WORD_BYTES or word > wreck.size - 2 * WORD_BYTES:
            return f"it changes a word at {word:#x}"
    for offset in blocks:  # a dropped block may lie above `top` by now
        if offset and (offset % BLOCK_ALIGN_BYTES or not wreck.start < offset < wreck.field("max_size")):
            return f"it refers to a block at {offset:#x}"
    return None


def _examine_intent(wreck, i, at):
    intent = INTENT.read(wreck.raw, at)
    if intent["operation"] == INTENT_NONE:
        return
    problem = _intent_problem(wreck, intent)
    if problem is None and wreck.was_clean:
        problem = "a cleanly closed section has no intents"
    if problem is not None:
        wreck.report(at, f"the intent of participant {i} is invalid: {problem}", "the intent is cleared and not carried out")
        wreck.put(INTENT["operation"].at(at), INTENT_NONE)
        return
    what = OPERATIONS[operation_of(intent["operation"])]
    wreck.notes.append(f"{at:#x}: participant {i} was killed while {what}: the next opener completes the change or rolls it back")


def examine(wreck):
    """Examine both tables, and repair them in the copy, before anything is recovered."""
    n, high = wreck.field("max_participants"), wreck.field("participants_high")
    if high > n:
        problem = f"participants_high is {high:,}, but the table of participants has {n} entries"
        wreck.report_field("participants_high", problem, f"set to {n}")
        wreck.put_field("participants_high", n)
    for i in range(n):
        _examine_participant(wreck, i, wreck.field("participants_off") + PARTICIPANT.size * i)
        _examine_intent(wreck, i, wreck.field("intents_off") + INTENT.size * i)
