"""Overwrites the words of a section, and runs code on the result in a separate process."""

import contextlib
import mmap
import os
import signal
import struct

from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT, OWNER_GENERATION_SHIFT, STATE_HOLE, STATE_USED

HEADER, BLOCK, PARTICIPANT = LAYOUT["header_t"], LAYOUT["block_t"], LAYOUT["participant_t"]
TOP, RESERVED, NEXT_SERIAL, GATE, GATE_READERS, GATE_WRITERS, UPGRADE, DRAIN, HEAP_GATE, HOLE_BLOCKS, PARTICIPANTS_HIGH, ROOT_OFF = (
    HEADER[name].offset
    for name in (
        "top", "reserved", "next_serial", "lock_gate", "lock_gate_readers", "lock_gate_writers", "upgrade", "drain", "heap_gate",
        "hole_blocks", "participants_high", "root_off",
    )
)  # fmt: skip
RING_OFF = LAYOUT["free_index_t"]["rover_off"].offset  # from the start of the index
HEAD, HOLE, USED = BLOCK_HEAD_BYTES, STATE_HOLE, STATE_USED
EVERY_BIT = (1 << 64) - 1
ABSENT_OWNER = 0x1234_5678 << OWNER_GENERATION_SHIFT | 60_000  # the word of an owner that is not a participant
SECONDS = 20


class Scribe:
    """Access to all bytes of a section, without checks and locks."""

    WORD = struct.Struct("Q")  # native: loads and stores of a word are atomic for processes that use it at the same time

    def __init__(self, path):
        with open(path, "r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, offset):
        return self.WORD.unpack_from(self.bytes, offset)[0]

    def __setitem__(self, offset, word):
        self.WORD.pack_into(self.bytes, offset, word)

    def index(self, offset):
        """Return the offset of a word of the index of free blocks."""
        return HEADER["index_off"].read(self.bytes) + offset

    def entry(self, i, name):
        """Return the offset of a field of an entry of the participants' table."""
        return PARTICIPANT[name].at(self.entry_start(i))

    def entry_start(self, i):
        """Return the offset of an entry of the participants' table."""
        return HEADER["participants_off"].read(self.bytes) + PARTICIPANT.size * i

    def entry_of(self, pid):
        """Return the index of the entry of a process."""
        n = HEADER["max_participants"].read(self.bytes)
        return next(i for i in range(n) if self[self.entry(i, "pid")] == pid)

    def owner_word(self, i):
        """Return the word that the participant of entry `i` writes into what it owns."""
        return self[self.entry(i, "readers")] >> OWNER_GENERATION_SHIFT << OWNER_GENERATION_SHIFT | i + 1

    def replace(self, old, new):
        """Overwrite a text that occurs once; a shorter new text is padded with spaces."""
        at = self.bytes.find(old)
        assert at >= 0, old
        assert self.bytes.find(old, at + 1) < 0, old
        self.bytes[at : at + len(old)] = new.ljust(len(old))


def outcome(act):
    """Call `act()` in a separate process; return the value as text, or the name of the exception or signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(SECONDS)  # also ends a loop that ignores signals
            try:
                text = str(act())
            except BaseException as error:
                text = type(error).__name__
            os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else text
