"""Which blocks nobody can reach: from root and directory along typed references.

An object's references are known, for the section has its type's description.  What a plain block, an array or a queue holds is known to
its users alone: every word of them that is the offset of a block counts as a reference that may be one.
"""

import dataclasses
import json

import numpy as np

from shmem._base.errors import DAMAGED_TEXT
from shmem._fsck.wreck import ARRAY, ARRAY_HEADER, ENTRY, FIRST_USER, HEAD, PLAIN, TABLE, USED, round_up
from shmem._objects import fields

KINDS = {PLAIN: "bytes", 4: "semaphore", 5: "event", 6: "mutex", 7: "queue"}


@dataclasses.dataclass(frozen=True)
class Leak:
    """A block that nobody can reach."""

    offset: int
    n_bytes: int
    type: str
    perhaps: int | None
    """A reachable block, by offset, one of whose words may refer to it, or to what refers to it."""


def references_of(description):
    """Where in an object of a described type its references lie.

    Raises
    ------
    DAMAGED_TEXT
        One of these, when the description is damaged, or of a later version.
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
    """What can be reached in a section, read as a `Wreck`."""

    def __init__(self, wreck):
        self.wreck = wreck
        self.types = {}
        for entry in wreck.entries("types"):
            try:
                references = references_of(entry.data)
            except DAMAGED_TEXT:
                references = None
            self.types[entry.value] = entry.name.decode("utf-8", "replace"), references
        internal = (TABLE, ENTRY)
        self.users = [o + HEAD for o in wreck.blocks if wreck.tag(o)[1] == USED and wreck.tag(o)[2] not in internal]

    def leaks(self):
        """A list of `Leak`."""
        begin = [self.wreck.field("root"), *(entry.value for entry in self.wreck.entries("directory"))]
        certain = self._follow(dict.fromkeys(begin), self._references)
        perhaps = self._follow(dict.fromkeys(certain), self._all_words)
        lost = [payload for payload in self.users if payload not in certain]
        return [Leak(payload, self._asked(payload), self.describe(payload), perhaps.get(payload)) for payload in lost]

    def describe(self, payload):
        """What a block is."""
        type_id = self.wreck.tag(payload - HEAD)[2]
        if type_id == ARRAY and self.wreck.array_fits(payload - HEAD):
            _, _, _, n_dims, n_text, n_words = ARRAY_HEADER.unpack_from(self.wreck.raw, payload)
            shape = [self.wreck.word(payload + 32 + 8 * i) for i in range(n_dims)]
            at = payload + 32 + 16 * n_dims + 8 * n_words
            return f"array {tuple(shape)} of {self.wreck.raw[at : at + n_text].decode('ascii', 'replace').strip(chr(39))}"
        if type_id >= FIRST_USER:
            return self.types.get(type_id, (f"unknown type {type_id}", None))[0]
        return KINDS.get(type_id, f"unknown type {type_id}")

    def _asked(self, payload):
        return self.wreck.payload(payload - HEAD) - (self.wreck.word(payload - 8) >> 56)

    def _follow(self, found, references):
        """From payload to where it was found first, of all that can be reached."""
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
        where = self.types.get(self.wreck.tag(payload - HEAD)[2], ("", None))[1]
        room = self.wreck.payload(payload - HEAD)
        return [self.wreck.word(payload + at) for at in where or () if at + 8 <= room]

    def _all_words(self, payload):
        if self.types.get(self.wreck.tag(payload - HEAD)[2], ("", None))[1] is not None:
            return self._references(payload)
        words = np.frombuffer(self.wreck.raw, dtype="<u8", offset=payload, count=self.wreck.payload(payload - HEAD) // 8)
        return np.intersect1d(words, np.array(self.users, dtype="<u8")).tolist()
