"""Unreachable blocks: those to which no chain of typed references leads from the root, the directory, and messages in flight.

The references of an object are known, because the section has the description of its type.  The contents of a plain block, an array or
a queue are known only to the application: every word in them that is the offset of a block counts as a possible reference.
"""

import dataclasses
import json

import numpy as np

from shmem._base.errors import DAMAGED_TEXT
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    INTERNAL_TYPES,
    LAYOUT,
    STATE_USED,
    TYPE_ARRAY,
    TYPE_CLAIM,
    TYPE_EVENT,
    TYPE_FIRST_USER,
    TYPE_MUTEX,
    TYPE_PLAIN,
    TYPE_QUEUE,
    TYPE_SEMAPHORE,
)
from shmem._fsck import arrays
from shmem._fsck.wreck import WORD_BYTES, round_up
from shmem._objects import fields

KINDS = {TYPE_PLAIN: "bytes", TYPE_SEMAPHORE: "semaphore", TYPE_EVENT: "event", TYPE_MUTEX: "mutex", TYPE_QUEUE: "queue"}
CLAIM = LAYOUT["claim_t"]


@dataclasses.dataclass(frozen=True)
class Leak:
    """An unreachable block."""

    offset: int
    n_bytes: int
    type: str
    perhaps: int | None
    """Offset of a reachable block, one of whose words may refer to this block, or to another that refers to it; None if there is none."""


def references_of(description):
    """Return the offsets of the references in an object of a described type, in bytes from its start.

    Raises
    ------
    DAMAGED_TEXT
        The description is damaged, or was written by a later version.
    """
    found, end = [], 0
    for _, code, *rest in json.loads(description)["fields"]:
        field = fields.field_type_from_description(code, *rest)
        end = round_up(end, field.align_bytes)
        if code == "ref":
            found.append(end)
        end += field.n_bytes
    return found


class Reach:
    """The reachable blocks of a section that was read as a `Wreck`."""

    def __init__(self, wreck):
        self.wreck = wreck
        self.types = {}
        for entry in wreck.entries("types"):
            try:
                references = references_of(entry.data)
            except DAMAGED_TEXT:
                references = None
            self.types[entry.value] = entry.name.decode("utf-8", "replace"), references
        used = [offset for offset in wreck.blocks if wreck.tag(offset)[1] == STATE_USED]
        self.claims = [offset + BLOCK_HEAD_BYTES for offset in used if wreck.tag(offset)[2] == TYPE_CLAIM]
        self.users = [offset + BLOCK_HEAD_BYTES for offset in used if wreck.tag(offset)[2] not in INTERNAL_TYPES]

    def leaks(self):
        """Return a list of `Leak`."""
        claimed = [self.wreck.word(CLAIM["target_off"].at(claim)) for claim in self.claims]
        begin = [self.wreck.field("root_off"), *self.wreck.named(), *claimed]
        certain = self._follow(dict.fromkeys(begin), self._references)
        perhaps = self._follow(dict.fromkeys(certain), self._all_words)
        lost = [payload for payload in self.users if payload not in certain]
        return [Leak(payload, self._asked(payload), self.describe(payload), perhaps.get(payload)) for payload in lost]

    def describe(self, payload):
        """Return a description of a block."""
        type_id = self.wreck.tag(payload - BLOCK_HEAD_BYTES)[2]
        if type_id == TYPE_ARRAY and arrays.fits(self.wreck, payload - BLOCK_HEAD_BYTES):
            text = arrays.dtype_text(self.wreck, payload).decode("ascii", "replace").strip(chr(39))
            return f"array {arrays.shape(self.wreck, payload)} of {text}"
        if type_id >= TYPE_FIRST_USER:
            return self.types.get(type_id, (f"unknown type {type_id}", None))[0]
        return KINDS.get(type_id, f"unknown type {type_id}")

    def _asked(self, payload):
        offset = payload - BLOCK_HEAD_BYTES
        return self.wreck.payload(offset) - self.wreck.slack(offset)

    def _follow(self, found, references):
        """Return a dict from each reachable block to the one whose reference to it was found first, by payload offsets."""
        users, waiting = set(self.users), list(found)
        reached = {payload: found[payload] for payload in waiting if payload in users}
        while waiting:
            payload = waiting.pop()
            if payload not in users:
                continue
            for target in references(payload):
                if target in users and target not in reached:
                    reached[target] = payload if reached[payload] is None else reached[payload]
                    waiting.append(target)
        return reached

    def _references(self, payload):
        where = self.types.get(self.wreck.tag(payload - BLOCK_HEAD_BYTES)[2], ("", None))[1]
        room = self.wreck.payload(payload - BLOCK_HEAD_BYTES)
        return [self.wreck.word(payload + at) for at in where or () if at + WORD_BYTES <= room]

    def _all_words(self, payload):
        if self.types.get(self.wreck.tag(payload - BLOCK_HEAD_BYTES)[2], ("", None))[1] is not None:
            return self._references(payload)
        n_words = self.wreck.payload(payload - BLOCK_HEAD_BYTES) // WORD_BYTES
        words = np.frombuffer(self.wreck.raw, dtype="<u8", offset=payload, count=n_words)
        return np.intersect1d(words, np.array(self.users, dtype="<u8")).tolist()
