"""What does it cost to read and write a field of an object in the section?

The peer is `ctypes.Structure`, which also reads and writes memory in place.  For orientation there are numpy's two ways, and an ordinary
object with `__slots__`, which holds references and converts nothing.

    .venv-bench/bin/python bench/run.py --only fields
"""

import ctypes

import numpy as np
from table import Row, answer
from timing import best_of, statement

import shmem

SIZE_BYTES = 1 << 20
SECONDS = 4
BAR = 1.1
WHOLE, REAL = 123_456_789, 2.5


class Placed(shmem.Struct):
    """An object in the section."""

    whole: shmem.int64 = WHOLE
    real: shmem.float64 = REAL


class Structure(ctypes.Structure):
    """The object of the peer."""

    _fields_ = (("whole", ctypes.c_int64), ("real", ctypes.c_double))


class Plain:
    """An ordinary object."""

    __slots__ = ("real", "whole")

    def __init__(self):
        self.whole, self.real = WHOLE, REAL


def contenders(objects, code, codes, **names):
    """Return one contender per object, which runs `code`, or the code under its name in `codes`."""
    return {name: statement(codes.get(name, code), thing=thing, **names) for name, thing in objects.items()}


def measure():
    """Measure reads and writes of both types of fields."""
    dtype = np.dtype([("whole", "i8"), ("real", "f8")])
    rows = []
    with shmem.SharedMemory(max_size=SIZE_BYTES) as shm:
        objects = {
            "ours": shm.new(Placed),
            "ctypes.Structure": Structure(WHOLE, REAL),
            "numpy 0-d structured array": np.array((WHOLE, REAL), dtype),
            "numpy record": np.rec.array([(WHOLE, REAL)], dtype)[0],
            "__slots__": Plain(),
        }
        by_key = "numpy 0-d structured array"
        for field, value, what in (("whole", WHOLE, "int64"), ("real", REAL, "float64")):
            read = best_of(SECONDS, contenders(objects, f"thing.{field}", {by_key: f"thing['{field}']"}))
            write = best_of(SECONDS, contenders(objects, f"thing.{field} = value", {by_key: f"thing['{field}'] = value"}, value=value))
            peers = [name for name in objects if name != "ours"] if what == "int64" else ["ctypes.Structure"]
            for peer in peers:
                bar = BAR if peer == "ctypes.Structure" else None
                rows.append(Row("typed field", f"read {what}", read["ours"], peer, read[peer], most_ratio=bar))
            rows += [Row("typed field", f"write {what}", write["ours"], peer, write[peer]) for peer in peers]
    return rows


if __name__ == "__main__":
    answer(measure)
