"""Objects in a section: fields, references, and access after an object was freed."""

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmem
from shmem import Array, Bytes, InvalidBlock, ReadOnlyError, Ref, Struct, bool_, float32, float64, int8, int64, uint8

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


class Node(Struct):
    key: int64 = 0
    left: Ref["Node"]
    right: Ref["Node"]
    position: Array[float64, 3]

    def insert(self, node):
        side = "left" if node.key < self.key else "right"
        child = getattr(self, side)
        if child is None:
            setattr(self, side, node)
        else:
            child.insert(node)

    def walk(self):
        for child, own in ((self.left, [self.key]), (self.right, [])):
            yield from own if child is None else [*child.walk(), *own]


class Labelled(Node):
    label: Bytes[8] = b"none"


class Anything(Struct):
    ref: Ref[Any]


@pytest.fixture
def other():
    with shmem.SharedMemory(max_size=1 << 20) as section:
        yield section


def reader_of(shm):
    """Open the section a second time, read-only."""
    return shmem.SharedMemory(shared_name=shm.name, mode="read_only")


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_field_range(shm, name):
    limits = np.iinfo(name)
    cls = type(Struct)("Holder", (Struct,), {"__annotations__": {"value": getattr(shmem, name)}})
    obj = shm.new(cls)
    assert obj.value == 0
    for value in (limits.min, limits.max, 1, np.array(7, name)[()], True):
        obj.value = value
        assert obj.value == value
        assert type(obj.value) is int
    obj.value = 5
    for value in (limits.min - 1, limits.max + 1, 1 << 80, -(1 << 80)):
        with pytest.raises(OverflowError, match=f"^Holder.value must be {name} .*does not fit"):
            obj.value = value
    for value in (1.0, "1", None, b"1", np.float64(1), [1]):
        with pytest.raises(TypeError, match=f"^Holder.value must be {name}, got"):
            obj.value = value
    assert obj.value == 5


def test_other_scalar_fields(shm):
    class Holder(Struct):
        flag: bool_
        narrow: float32
        wide: float64
        small: shmem.complex64
        big: shmem.complex128

    obj = shm.new(Holder, flag=True, narrow=1.5, wide=np.float32(2.5), small=1 + 2j, big=3)
    assert (obj.flag, obj.narrow, obj.wide, obj.small, obj.big) == (True, 1.5, 2.5, 1 + 2j, 3 + 0j)
    assert [type(getattr(obj, name)) for name in Holder.dtype.names] == [bool, float, float, complex, complex]
    obj.flag = np.False_
    assert obj.flag is False
    obj.flag = 1
    assert obj.flag is True
    obj.narrow = float("inf")
    assert obj.narrow == float("inf")
    for name, value in [("flag", 2), ("narrow", 1e300), ("small", 1e300), ("small", -1e300j)]:
        with pytest.raises(OverflowError, match=rf"^Holder.{name} must be .*does not fit"):
            setattr(obj, name, value)
    for name, value in [("flag", "x"), ("flag", 0.0), ("wide", "1"), ("wide", 1j), ("narrow", None), ("big", "1"), ("small", None)]:
        with pytest.raises(TypeError, match=rf"^Holder.{name} must be .*, got"):
            setattr(obj, name, value)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.floats(width=32), st.booleans(), st.binary(max_size=8))
def test_fields_agree_with_numpy(number, wide, narrow, flag, text):
    class Holder(Struct):
        flag: bool_
        number: int64
        narrow: float32
        wide: float64
        text: Bytes[8]

    text = text.rstrip(b"\0")
    with shmem.SharedMemory(max_size=1 << 20) as shm:
        obj = shm.new(Holder, flag=flag, number=number, narrow=narrow, wide=wide, text=text)
        record = np.asarray(obj)
        assert record.dtype == Holder.dtype
        for name, value in [("flag", flag), ("number", number), ("text", text)]:
            assert getattr(obj, name) == record[name] == value
        np.testing.assert_array_equal([obj.narrow, obj.wide], [narrow, wide])
        np.testing.assert_array_equal([record["narrow"], record["wide"]], [narrow, wide])


def test_bytes_field(shm):
    class Person(Struct):
        name: Bytes[4]
        last: uint8 = 77

    obj = shm.new(Person, name=b"abcd")
    assert obj.name == b"abcd"
    obj.name = bytearray(b"x")
    assert (obj.name, obj.last) == (b"x", 77)
    for value, error in [(b"abcde", ValueError), ("abc", TypeError), (b"a\0", ValueError), (5, TypeError)]:
        with pytest.raises(error, match=r"Person.name"):
            obj.name = value
    assert obj.name == b"x"


def test_array_field_is_a_writable_view(shm):
    class Body(Struct):
        mass: int8
        position: Array[float64, 3] = (1, 2, 3)
        matrix: Array[shmem.int32, 2, 3]

    body = shm.new(Body)
    assert body.position.tolist() == [1, 2, 3]
    view = body.position
    body.position = 5
    assert view.tolist() == [5, 5, 5]
    view[1] += 1
    assert body.position[1] == 6
    body.position += view
    assert view.tolist() == [10, 12, 10]
    body.matrix = [[1, 2, 3], [4, 5, 6]]
    body.matrix = [7, 8, 9]
    assert body.matrix.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert body.matrix.dtype == np.int32
    with pytest.raises(ValueError, match="broadcast"):
        body.position = [1, 2]
    with pytest.raises(OverflowError):
        body.matrix = 1 << 40
    assert shmem.find_storage(view) is shm


def test_array_keeps_the_mapping_open(shm):
    class Body(Struct):
        position: Array[float64, 3]

    view = shm.new(Body, position=(1, 2, 3)).position
    shm.close()
    gc.collect()
    view[0] = 9
    assert view.tolist() == [9, 2, 3]


def test_references(shm):
    root = shm.new(Node, key=5)
    assert root.left is None
    assert root.right is None
    for key in (3, 8, 1, 4, 9, 7):
        root.insert(shm.new(Node, key=key))
    assert list(root.walk()) == [1, 3, 4, 5, 7, 8, 9]
    assert type(root.left) is Node
    root.left = None
    assert list(root.walk()) == [5, 7, 8, 9]


def test_reference_returns_the_original_class(shm):
    node = shm.new(Node, left=shm.new(Labelled, label=b"here"), right=shm.new(Node))
    assert type(node.left) is Labelled
    assert node.left.label == b"here"
    assert type(node.right) is Node
    node.right = node.left
    assert node.right.label == b"here"


def test_reference_rejects_unsuitable_values(shm, other):
    class Holder(Struct):
        labelled: Ref[Labelled]

    holder = shm.new(Holder)
    for value in (5, "x", holder, shm.new(Node), shm.allocate(64), np.zeros(3), Labelled):
        with pytest.raises(TypeError, match=r"Holder.labelled must be shmem.Ref\[.*Labelled\] or None, got"):
            holder.labelled = value
    with pytest.raises(InvalidBlock, match="same section"):
        holder.labelled = other.new(Labelled)
    freed = shm.new(Labelled)
    shm.free(freed)
    with pytest.raises(InvalidBlock, match="was freed"):
        holder.labelled = freed
    assert holder.labelled is None
    with pytest.raises(TypeError, match="must be None"):
        type(Struct)("Bad", (Struct,), {"__annotations__": {"other": Ref["Bad"]}, "other": holder})


def test_reference_to_a_freed_block_raises(shm):
    node = shm.new(Node, left=shm.new(Node))
    blocks = [shm.new(Node) for _ in range(8)]
    node.right = blocks[3]
    shm.free(node.left)
    with pytest.raises(InvalidBlock, match=r"cannot follow Node.left"):
        node.left  # noqa: B018
    for block in blocks:
        shm.free(block)
    with pytest.raises(InvalidBlock):
        node.right  # noqa: B018
    node.left = node.right = None
    assert node.left is None


@given(st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 20))
@settings(max_examples=300)
def test_wild_reference_raises(offset):
    with shmem.SharedMemory(max_size=1 << 20) as shm:
        node, leaf, block = shm.new(Node), shm.new(Labelled), shm.allocate(100)
        np.asarray(node)["left"] = offset
        if offset in (leaf.offset, node.offset):
            assert isinstance(node.left, Node)
        elif offset == block.offset:
            assert isinstance(node.left, shmem.Block)
        elif offset:
            with pytest.raises(InvalidBlock):
                node.left  # noqa: B018


def test_reference_to_anything(shm):
    class Holder(Struct):
        anything: Ref[Any]
        plain: Ref
        block: Ref[shmem.Block]
        struct: Ref[Struct]

    holder = shm.new(Holder)
    block, node = shm.allocate(10), shm.new(Node)
    holder.anything = block
    assert holder.anything == block
    holder.plain = node
    assert holder.plain == node
    holder.block = block
    holder.struct = node
    assert (holder.block, holder.struct) == (block, node)
    for name, value in [("block", node), ("struct", block), ("anything", 5), ("plain", np.zeros(2))]:
        with pytest.raises((TypeError, InvalidBlock)):
            setattr(holder, name, value)


def test_reference_to_an_array(shm):
    class Holder(Struct):
        array: Ref[np.ndarray]
        anything: Ref[Any]
        inside: Array[float64, 4]

    holder = shm.new(Holder)
    array = shm.array(np.arange(6.0).reshape(2, 3))
    holder.array = holder.anything = array
    assert holder.array.tolist() == array.tolist()
    holder.array[0, 0] = 7
    assert array[0, 0] == 7
    for part in (array[1:], array.T, array[0], holder.inside):
        for name in ("array", "anything"):
            with pytest.raises(InvalidBlock, match="whole array"):
                setattr(holder, name, part)
    with pytest.raises(TypeError, match=r"Holder.array"):
        holder.array = holder


def test_undeclared_attributes_raise(shm):
    node = shm.new(Node)
    with pytest.raises(AttributeError):
        node.colour = 3
    with pytest.raises(AttributeError):
        node.colour  # noqa: B018
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del node.key
    with pytest.raises(AttributeError):
        node.__class__ = Labelled
    assert not hasattr(node, "__dict__")
    with pytest.raises(TypeError, match="__slots__"):
        type(Struct)("Bad", (Struct,), {"__slots__": ("colour",)})

    class Careless:
        pass

    with pytest.raises(TypeError, match="Careless"):
        type(Struct)("Bad", (Struct, Careless), {})

    class Careful:
        __slots__ = ()

        def double(self):
            return self.key * 2

    class Good(Careful, Node):
        pass

    assert shm.new(Good, key=4).double() == 8


def test_direct_instantiation_raises():
    for make in (Node, Labelled, lambda: Node.__new__(Node), lambda: object.__new__(Node), Struct):
        with pytest.raises(TypeError, match=r"shm\.new|not safe"):
            make()


def test_descriptor_rejects_other_objects(shm):
    node, block = shm.new(Node), shm.allocate(64)
    for wrong in (block, 5, Labelled, shm):
        with pytest.raises(TypeError, match="is a field of Labelled objects"):
            Labelled.label.__get__(wrong, type(wrong))
        with pytest.raises(TypeError, match="is a field of Labelled objects"):
            Labelled.label.__set__(wrong, b"")
    with pytest.raises(TypeError, match=r"Labelled.label is a field of Labelled objects, got a Node"):
        Labelled.label.__get__(node, Node)
    assert Node.key.__get__(shm.new(Labelled, key=3), Labelled) == 3


def test_new_rejects_wrong_arguments(shm):
    with pytest.raises(TypeError, match="no field 'kye'; its fields are key, left"):
        shm.new(Node, kye=1)
    with pytest.raises(TypeError, match="by keyword"):
        shm.new(Node, 1)
    with pytest.raises(TypeError, match="derive"):
        shm.new(Struct)
    for wrong in (5, "int64", Node.dtype.names, object, int):
        with pytest.raises(TypeError, match="must be a Struct class"):
            shm.new(wrong)
    shm.close()
    with pytest.raises(shmem.ClosedError):
        shm.new(Node)


def test_class_with_its_own_init(shm):
    class Point(Struct):
        x: float64 = 1
        y: float64

        def __init__(self, x, *, fail=False):
            assert self.x == 1
            self.y = x * 2
            super().__init__(x=x)
            if fail:
                raise LookupError(self.offset)

    point = shm.new(Point, 5)
    assert (point.x, point.y) == (5, 10)
    with pytest.raises(TypeError):
        shm.new(Point)
    with pytest.raises(LookupError) as caught:
        shm.new(Point, 5, fail=True)
    with pytest.raises(InvalidBlock):
        shm.block(caught.value.args[0])


def test_failed_new_frees_the_block(shm):
    first = shm.new(Node)
    offset = first.offset
    shm.free(first)
    with pytest.raises(TypeError):
        shm.new(Node, key="x")
    again = shm.new(Node)
    assert again.offset == offset


def test_objects_of_the_same_block_are_equal(shm, other):
    node = shm.new(Node)
    shm.root = node
    same = shm.root
    assert same is not node
    assert same == node
    assert hash(same) == hash(node)
    assert node != shm.new(Node)
    assert node != other.new(Node)
    assert node != 5
    assert len({node, same, shm.new(Node)}) == 2
    with reader_of(shm) as reader:
        assert reader.root == node
        assert hash(reader.root) == hash(node)
    offset = node.offset
    shm.free(node)
    again = shm.new(Node)
    assert again.offset == offset
    assert again != node


def test_access_after_free_raises(shm):
    node = shm.new(Node, key=1)
    view = node.position
    shm.free(node)
    for again in (False, True):
        for use in (lambda: node.key, lambda: setattr(node, "key", 2), lambda: node.left, lambda: node.position, lambda: memoryview(node)):
            with pytest.raises(InvalidBlock, match="was freed"):
                use()
        assert "freed" in repr(node)
        if not again:
            replacement = shm.new(Node, key=3)
            assert replacement.offset == node.offset
    assert view.shape == (3,)
    with pytest.raises(InvalidBlock):
        shm.free(node)
    assert replacement.key == 3


def test_reallocating_an_object_raises(shm):
    """A typed block keeps its size; live objects would extend past a smaller one."""
    obj = shm.new(Labelled, key=3)
    with pytest.raises(InvalidBlock):
        shm.reallocate(shm.block(obj.offset), 16)
    assert obj.key == 3


def test_repr(shm):
    obj = shm.new(Labelled, key=3, label=b"abc")
    assert repr(obj) == f"<Labelled at offset {obj.offset:#x}: key=3, label=b'abc'>"

    class Empty(Struct):
        pass

    assert repr(shm.new(Empty)).startswith("<test_repr.<locals>.Empty at offset 0x")
    assert repr(Ref["Node"]) == "shmem.Ref[Node]"
    assert repr(Bytes[3]) == "shmem.Bytes[3]"
    assert repr(int64) == "shmem.int64"


def test_pickle_and_copy_raise(shm):
    node = shm.new(Node)
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="it is in shared memory"):
            use(node)
    assert pickle.loads(pickle.dumps(Node)) is Node


def test_objects_outlive_the_handle(shm):
    node = shm.new(Node, key=1, left=shm.new(Node, key=2))
    shm.close()
    node.key += 1
    assert (node.key, node.left.key) == (2, 2)


def test_objects_of_a_read_only_handle(shm):
    shm.root = shm.new(Labelled, key=1, left=shm.new(Node, key=2), position=(1, 2, 3))
    with reader_of(shm) as reader:
        root = reader.root
        assert (type(root), root.key, root.left.key, root.position.tolist(), root.label) == (Labelled, 1, 2, [1, 2, 3], b"none")
        for name, value in [("key", 1), ("left", None), ("position", 1), ("label", b"")]:
            with pytest.raises(ReadOnlyError, match=f"Labelled.{name}: .*read-only"):
                setattr(root, name, value)
        assert not root.position.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            root.position[0] = 1
        assert not np.asarray(root).flags.writeable
        with pytest.raises(ReadOnlyError):
            reader.new(Node)


def test_asarray_of_an_object_is_a_view(shm):
    node = shm.new(Labelled, key=1, position=(1, 2, 3))
    record = np.asarray(node)
    assert record.shape == ()
    assert record.dtype == Labelled.dtype
    record["key"] = 9
    record["position"][1] = 7
    assert (node.key, node.position.tolist()) == (9, [1, 7, 3])
    assert np.frombuffer(node, np.int64, 1)[0] == 9
    assert len(bytes(node)) == Labelled.dtype.itemsize
    assert node.dtype is Labelled.dtype


def test_new_with_a_dtype(shm):
    for dtype in (np.dtype([("x", "f8"), ("n", "i4")]), np.int32, float64):
        array = shm.new(dtype)
        assert isinstance(array, np.ndarray)
        assert array.shape == ()
        assert shmem.find_storage(array) is shm
        with pytest.raises(TypeError, match="assign"):
            shm.new(dtype, 5)


def test_type_ids_differ_between_sections(shm, other):
    class Alpha(Struct):
        value: int64
        other: Ref[Any]

    class Beta(Struct):
        value: float64
        other: Ref[Any]

    pairs = []
    for section, order in ((shm, (Alpha, Beta)), (other, (Beta, Alpha))):
        one, two = [section.new(cls, value=i) for i, cls in enumerate(order)]
        one.other, two.other = two, one
        pairs.append((one, two))
    for _ in range(3):
        for one, two in pairs:
            assert type(one.other) is type(two)
            assert type(two.other) is type(one)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200))
@settings(max_examples=25)
def test_tree_walk_is_sorted(keys):
    with shmem.SharedMemory(max_size=1 << 20) as shm:
        shm.root = shm.new(Node, key=keys[0])
        for key in keys[1:]:
            shm.root.insert(shm.new(Node if key % 2 else Labelled, key=key))
        assert list(shm.root.walk()) == sorted(keys)
        shm.check_heap()


def test_threads_share_an_object(shm):
    from threading import Thread

    node = shm.new(Node)

    def work():
        for _ in range(2000):
            child = shm.new(Node, key=1)
            node.left = child
            assert child.key == 1
            shm.free(child)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shm.check_heap()
