"""cloudpickle sends Struct classes of `__main__` by value, alone and inside of functions."""

import pytest

pytest.importorskip("cloudpickle")

SENDER = """
import cloudpickle, typing
class Base(shmem.Struct):
    A: shmem.int64 = 7
    derived: shmem.Ref["Node"]
    def total(self): return float(self.A + sum(self.many))
    many: shmem.Array[shmem.float32, 3]
class Node(Base, type_name="a.node"):
    key: shmem.int64 = 5
    next: shmem.Ref["Node"]
    other: shmem.Ref["Other"]
    anything: shmem.Ref[typing.Any]
    me: shmem.Ref[typing.Self]
    text: shmem.Bytes[4] = b"abcd"
    slots: shmem.Semaphore
    A: shmem.int64 = 9
    kind: typing.ClassVar[str] = "node"
class Other(shmem.Struct):
    back: shmem.Ref[Node]
    def twice(self, n): return 2 * n
def work(section):
    node = section.root
    again = section.new(Node, key=3, next=node)
    node.derived = again
    assert type(node.other).__name__ == "Other" and node.other.twice(4) == 8
    return type(node) is Node, again.next.key, again.A, again.text, again.total(), Node.kind, again.other, node.other.back == node
"""

RECEIVER = """
import pickle
with shmem.SharedMemory(args[0]) as section:
    for data in sys.stdin.readline().split():
        say(pickle.loads(bytes.fromhex(data))(section))
"""


def test_function_that_uses_a_class_of_main(section_file, child):
    """The receiver has neither the module nor the class; an object that the sender made gets the class that was sent."""
    sender = child(
        SENDER
        + """
section = shmem.SharedMemory(args[0], max_size="1M")
section.root = section.new(Node)
section.root.other = section.new(Other, back=section.root)
say(work(section))
say(cloudpickle.dumps(work).hex(), cloudpickle.dumps(work).hex())
sys.stdin.readline()
section.check_heap()
""",
        section_file,
    )
    expected = sender.hear()
    assert expected == str((True, 5, 9, b"abcd", 9.0, "node", None, True))
    data = sender.hear()
    receiver = child(RECEIVER, section_file)
    receiver.tell(data)
    assert [receiver.hear(), receiver.hear()] == [expected, expected]
    receiver.end()
    sender.tell()
    sender.end()


def test_class_returns_to_its_own_process(child):
    """It is the same class then, and stays the one that objects get."""
    program = child(
        SENDER
        + """
import pickle
section = shmem.SharedMemory(max_size="1M")
section.root = section.new(Node, key=4)
data = cloudpickle.dumps((Node, Node.key, Base.A, Other))
assert pickle.loads(data) == (Node, Node.key, Base.A, Other)
assert type(section.root) is Node and section.root.key == 4 and section.new(Node).A == 9
assert type(shmem.handle(section.new(Other)).open()) is Other
class Late(shmem.Struct):
    node: shmem.Ref["Node"]
assert section.new(Late, node=section.root).node.key == 4
"""
    )
    program.end()


def test_loky_runs_a_function_that_uses_a_class_of_main(child):
    pytest.importorskip("loky")
    program = child(
        SENDER
        + """
import importlib
section = shmem.SharedMemory(max_size="1M")
section.root = section.new(Node)
section.root.other = section.new(Other, back=section.root)
def bump(node):
    node.key += 1
    return type(node) is Node, Node.dtype.itemsize
with importlib.import_module("loky").ProcessPoolExecutor(1) as pool:
    assert pool.submit(bump, section.root).result() == (True, Node.dtype.itemsize)
    assert pool.submit(work, section).result() == work(section)
assert section.root.key == 6
"""
    )
    program.end()
