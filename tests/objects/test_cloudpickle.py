"""cloudpickle sends Struct classes of `__main__` by value, alone and inside of functions."""

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


LINKED = """
import cloudpickle, typing
class Base(shmem.Struct, type_name="app.base"):
    def __add__(self, n): return self.section.new(Derived, key=self.key + n)    # its name is sorted before that of the layout
    key: shmem.int64 = 3
class Derived(Base):
    parent: shmem.Ref[Base]
    def doubled(self): return 2 * self.key
    class Inner(shmem.Struct):
        flag: shmem.bool_ = True
    def inner(self): return self.section.new(self.Inner).flag
def local():
    class Local(shmem.Struct):
        value: shmem.float64 = 1.5
        peer: shmem.Ref["Local"]
        def half(self): return self.value / 2
    return Local
"""


def test_base_whose_method_makes_a_derived_object(child, section_file):
    """The derived class is unpickled while its base is still empty, and is laid out with the base's fields nevertheless."""
    sender = child(
        LINKED
        + """
section = shmem.SharedMemory(args[0], max_size="1M")
section.root = section.new(Base) + 1
Local = local()
def work(section):
    more = section.root + 1
    return more.key, more.doubled(), more.inner(), section.new(Local).half(), type(section.root) is Derived, Derived.dtype.names
say(work(section))
say(*[cloudpickle.dumps(value).hex() for value in (work, (Derived.key, work), (Base, work), (Derived.Inner, work))])
sys.stdin.readline()
""",
        section_file,
    )
    expected = sender.hear()
    assert expected == str((5, 10, True, 0.75, True, ("key", "parent")))
    for data in sender.hear().split():
        receiver = child(
            """
import pickle
value = pickle.loads(bytes.fromhex(sys.stdin.readline()))
with shmem.SharedMemory(args[0]) as section:
    say((value[1] if isinstance(value, tuple) else value)(section))
""",
            section_file,
        )
        receiver.tell(data)
        assert receiver.hear() == expected
        receiver.end()
    sender.tell()
    sender.end()


def test_receiver_has_a_class_of_the_same_name_with_other_fields(child, section_file, tmp_path):
    """Each class is used for the objects with its own fields."""
    sender = child(
        """
import cloudpickle
class Node(shmem.Struct):
    key: shmem.int64 = 5
    def name(self): return "sent"
section = shmem.SharedMemory(args[0], max_size="1M")
section.root = section.new(Node)
def work(section):
    return section.root.name(), section.root.key, type(section.root) is Node, section.new(Node).key
say(cloudpickle.dumps(work).hex(), cloudpickle.dumps(work).hex())
sys.stdin.readline()
""",
        section_file,
    )
    receiver = child(
        """
import pickle
class Node(shmem.Struct):
    weight: shmem.float64 = 0.5
    def name(self): return "own"
first, second = [pickle.loads(bytes.fromhex(data)) for data in sys.stdin.readline().split()]
own = shmem.SharedMemory(args[1], max_size="1M")
own.root = own.new(Node)
with shmem.SharedMemory(args[0]) as section:
    for work in (first, second):
        assert work(section) == ("sent", 5, True, 5)
        assert type(own.root) is Node and own.root.name() == "own" and own.root.weight == 0.5
    try:
        section.new(Node)
    except shmem.LayoutMismatch:
        say("refused")
""",
        section_file,
        tmp_path / "own",
    )
    receiver.tell(sender.hear())
    assert receiver.hear() == "refused"
    receiver.end()
    sender.tell()
    sender.end()


def test_receiver_has_a_class_of_the_same_name_and_fields(child, section_file):
    """The class that was sent replaces it, as a later class statement would; objects of the earlier one stay what they are."""
    program = """
import cloudpickle
class Node(shmem.Struct):
    key: shmem.int64 = 5
    next: shmem.Ref["Node"]
"""
    sender = child(program + "say(cloudpickle.dumps(lambda node: (type(node) is Node, node.next.key, type(node.next) is Node)).hex())")
    data = sender.hear()
    sender.end()
    receiver = child(
        program
        + """
section = shmem.SharedMemory(args[0], max_size="1M")
earlier = section.root = section.new(Node, key=1, next=section.new(Node, key=2))
look = cloudpickle.loads(bytes.fromhex(sys.stdin.readline()))
assert look(section.root) == (True, 2, True)
assert look(earlier) == (False, 2, True) and type(earlier) is Node and earlier == section.root
earlier.next = section.root
""",
        section_file,
    )
    receiver.tell(data)
    receiver.end()


def test_base_class_with_other_fields_in_the_receiver(child, tmp_path):
    """The class is refused: its defaults and offsets would not fit."""
    for side, fields in (("sender", "a: shmem.int64 = 1\n    b: shmem.int64 = 2"), ("receiver", "a: shmem.int64 = 1")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "shared_base.py").write_text(f"import shmem\n\n\nclass Base(shmem.Struct):\n    {fields}\n")
    sender = child(
        """
sys.path.insert(0, args[0])
import cloudpickle, shared_base
class Node(shared_base.Base):
    c: shmem.int64 = 3
say(cloudpickle.dumps(Node).hex())
""",
        tmp_path / "sender",
    )
    data = sender.hear()
    sender.end()
    receiver = child(
        """
sys.path.insert(0, args[0])
import pickle
data = bytes.fromhex(sys.stdin.readline())
for _ in range(2):
    try:
        pickle.loads(data)
    except shmem.LayoutMismatch as error:
        say(error)
""",
        tmp_path / "receiver",
    )
    receiver.tell(data)
    for _ in range(2):
        assert "cannot unpickle the class Node" in receiver.hear()
    receiver.end()


def test_base_class_that_loses_its_slots(child):
    """A class beside Struct that is sent by value gets a `__dict__`: cloudpickle makes it without its `__slots__`."""
    sender = child(
        """
import cloudpickle
class Doubling:
    __slots__ = ()
    def doubled(self): return 2 * self.key
class Node(Doubling, shmem.Struct):
    key: shmem.int64 = 3
say(cloudpickle.dumps(Node).hex())
"""
    )
    receiver = child(
        """
import pickle
try:
    pickle.loads(bytes.fromhex(sys.stdin.readline()))
except TypeError as error:
    say(error)
"""
    )
    receiver.tell(sender.hear())
    text = receiver.hear()
    assert "because of Node, Doubling" in text
    assert "import this class from a module" in text
    receiver.end()
    sender.end()


def test_class_made_from_a_description(child, section_file):
    """A receiver that has the real class keeps it."""
    definition = """
class Node(shmem.Struct, type_name="app.node"):
    key: shmem.int64 = 5
    def name(self): return "real"
"""
    maker = child(
        definition
        + """
section = shmem.SharedMemory(args[0], max_size="1M")
section.root = section.new(Node)
say("made")
sys.stdin.readline()
""",
        section_file,
    )
    maker.hear()
    sender = child(
        """
import cloudpickle
with shmem.SharedMemory(args[0]) as section:
    generic = type(section.root)
    say(cloudpickle.dumps(lambda section: section.new(generic, key=7).key).hex())
""",
        section_file,
    )
    data = sender.hear()
    sender.end()
    check = """
import pickle
work = pickle.loads(bytes.fromhex(sys.stdin.readline()))
with shmem.SharedMemory(args[0]) as section:
    assert work(section) == 7
    say(section.root.name() if hasattr(section.root, "name") else repr(section.root))
"""
    for first, expected in ((definition, "real"), ("", "<generic app.node at")):
        receiver = child(first + check, section_file)
        receiver.tell(data)
        assert receiver.hear().startswith(expected)
        receiver.end()
    maker.tell()
    maker.end()


def test_class_without_a_body_that_no_pickle_made(child):
    """A class that a call makes has no fields of its own either; it is registered when it is first used."""
    program = child(
        """
class Base(shmem.Struct):
    key: shmem.int64 = 5
section = shmem.SharedMemory(max_size="1M")
for _ in range(2):
    Tag = type(Base)("Tag", (Base,), {"__module__": "app"})
    section.root = section.new(Tag)
    assert type(section.root) is Tag and section.root.key == 5
"""
    )
    program.end()
