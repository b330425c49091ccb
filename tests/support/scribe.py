"""Writing over a section's own words, and what that ends in."""

import contextlib
import mmap
import os
import signal
import struct

TOP, RESERVED, NEXT_SERIAL, GATE, GATE_READERS, UPGRADE, DRAIN, HEAP_GATE = 448, 456, 472, 512, 536, 576, 640, 704
HOLE_BLOCKS, PARTICIPANTS_HIGH, INDEX_OFF = 784, 832, 344
RING_OFF = 768  # from the index's start
HEAD, HOLE, USED = 16, 1, 3
EVERY_BIT = (1 << 64) - 1
ABSENT_OWNER = 0x1234_5678_0000_EA60  # as the signature of a participant that is not there
SECONDS = 20


class Scribe:
    """All bytes of a section, past everything that guards them."""

    def __init__(self, path):
        with open(path, "r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, offset):
        return struct.unpack_from("<Q", self.bytes, offset)[0]

    def __setitem__(self, offset, word):
        struct.pack_into("<Q", self.bytes, offset, word)

    def index(self, offset):
        """Where a word of the index of free blocks lies."""
        return self[INDEX_OFF] + offset

    def replace(self, old, new):
        """Write over a text that is there once; what is shorter gets spaces."""
        at = self.bytes.find(old)
        assert at >= 0, old
        assert self.bytes.find(old, at + 1) < 0, old
        self.bytes[at : at + len(old)] = new.ljust(len(old))


def outcome(act):
    """What `act()` ends in, in a process of its own: its value as a text, the name of an exception, or of the signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(SECONDS)  # ends also who loops without looking at signals
            try:
                text = str(act())
            except BaseException as error:
                text = type(error).__name__
            os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else text
