"""Struct classes: declaration, layout, and the class of an object that is read."""

import sys
import textwrap
import types
from typing import Annotated, Any, ClassVar, Literal, Optional, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmem
from shmem import Array, Bytes, LayoutMismatch, Ref, Struct, bool_, float32, float64, int8, int64

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


class Node(Struct):
    key: int64 = 0
    left: Ref["Node"]
    right: Ref["Node"]
    position: Array[float64, 3]


class Labelled(Node):
    label: Bytes[8] = b"none"


@pytest.fixture
def module():
    """A module in which source text is run, as if it were the module's file."""
    made = types.ModuleType("shmem_test_module")
    sys.modules[made.__name__] = made

    def run(text):
        exec(compile(textwrap.dedent(text), made.__name__, "exec"), made.__dict__)
        return made

    yield run
    del sys.modules[made.__name__]


def test_dtype_matches_numpy_alignment():
    class Mixed(Struct):
        a: int8
        b: float64
        c: Bytes[3]
        d: shmem.int16
        e: Array[float32, 2, 2]
        f: Ref["Mixed"]
        g: bool_

    assert Mixed.dtype == np.dtype(
        [("a", "i1"), ("b", "f8"), ("c", "S3"), ("d", "i2"), ("e", "f4", (2, 2)), ("f", "u8"), ("g", "?")], align=True
    )
    assert Mixed.d.offset == Mixed.dtype.fields["d"][1]
    assert (Mixed.a.name, Mixed.a.type, Mixed.a.__objclass__) == ("a", int8, Mixed)
    assert repr(Mixed.e) == "<field Mixed.e: shmem.Array[float32, 2, 2] at 24>"


SIMPLE_TYPES = [getattr(shmem, name) for name in [*INTEGERS, "bool_", "float32", "float64", "complex64", "complex128"]]


@given(
    st.lists(
        st.sampled_from([*SIMPLE_TYPES, Bytes[1], Bytes[7], Array[int8, 3], Array[float64, 2], Array[shmem.int16, 2, 2], Ref[Any]]),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_layout_of_random_fields_and_inheritance(field_types, cut):
    names = [f"f{i}" for i in range(len(field_types))]
    fields = dict(zip(names, field_types, strict=True))
    base = type(Struct)("Base", (Struct,), {"__annotations__": dict(list(fields.items())[:cut])})
    derived = type(Struct)("Derived", (base,), {"__annotations__": dict(list(fields.items())[cut:])})
    whole = type(Struct)("Whole", (Struct,), {"__annotations__": fields})
    assert derived.dtype == whole.dtype == np.dtype([(name, kind.dtype) for name, kind in fields.items()], align=True)
    assert list(derived.dtype.names or ()) == names


def test_supported_annotations():
    class Many(Struct):
        a: int = 3
        b: float
        c: bool
        d: complex
        e: np.int16
        f: np.dtype("u4")
        g: Annotated[int, shmem.int32]
        h: Array[float, (2, 3)]
        i: Array[float64, Literal[3]]
        j: Array[np.float32, Literal[2], 2]
        k: Optional[Ref["Many"]]  # noqa: UP045
        m: Ref["Many"] | None
        n: np.dtype("S5")
        o: np.dtype(("f8", (2,)))
        p: Array[np.dtype("M8[s]"), 2]
        shared: ClassVar[int] = 9

    assert list(Many.dtype.names) == list("abcdefghijkmnop")
    assert Many.dtype == np.dtype(
        [
            ("a", "i8"),
            ("b", "f8"),
            ("c", "?"),
            ("d", "c16"),
            ("e", "i2"),
            ("f", "u4"),
            ("g", "i4"),
            ("h", "f8", (2, 3)),
            ("i", "f8", 3),
            ("j", "f4", (2, 2)),
            ("k", "u8"),
            ("m", "u8"),
            ("n", "S5"),
            ("o", "f8", 2),
            ("p", "M8[s]", 2),
        ],
        align=True,
    )
    assert Many.shared == 9


@pytest.mark.parametrize(
    "annotation",
    [
        str,
        bytes,
        list,
        5,
        None,
        "no expression!",
        Node,
        Array,
        Bytes,
        object,
        np.dtype(">i4"),
        np.dtype("f8,i4"),
        np.dtype("O"),
        np.longdouble,
        dict[str, int],
        "int64 | None",
    ],
)
def test_unsupported_annotations_raise(annotation):
    with pytest.raises(TypeError, match=r"Bad\.x: "):
        type(Struct)("Bad", (Struct,), {"__annotations__": {"x": annotation}, "__module__": __name__})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Array[float64],
        lambda: Array[float64, 0],
        lambda: Array[float64, -1],
        lambda: Array[float64, 1.5],
        lambda: Array[float64, True],
        lambda: Array[Ref[Any], 3],
        lambda: Array[object, 3],
        lambda: Array["float64", 3],
        lambda: Array[Node, 3],
        lambda: Array[float64, 1 << 60],
        lambda: Bytes[0],
        lambda: Bytes["x"],
        lambda: Ref[int],
        lambda: Ref[int64],
        lambda: Ref[5],
        Array,
        Ref,
        Bytes,
    ],
)
def test_invalid_field_types_raise(make):
    with pytest.raises(TypeError):
        make()


@pytest.mark.parametrize("name", ["offset", "section", "dtype", "__class__", "_shmem_layout_"])
def test_reserved_field_names_raise(name):
    with pytest.raises(TypeError, match="cannot name a field"):
        type(Struct)("Bad", (Struct,), {"__annotations__": {name: int64}})


def test_inheritance(shm):
    obj = shm.new(Labelled, key=3, position=1, label=b"abc")
    assert (obj.key, obj.position.tolist(), obj.label) == (3, [1, 1, 1], b"abc")
    assert list(Labelled.dtype.names) == ["key", "left", "right", "position", "label"]
    assert isinstance(obj, Node)
    assert Labelled.key.origin is Node

    class Quiet(Labelled):
        key: int64 = 42  # the same field with another default

        @property
        def loud(self):
            return self.label.upper()

    assert Quiet.dtype == Labelled.dtype
    quiet = shm.new(Quiet)
    assert (quiet.key, quiet.label, quiet.loud) == (42, b"none", b"NONE")
    assert shm.new(Labelled).key == 0


def test_invalid_inheritance_raises():
    class One(Struct):
        a: int64

    class Two(Struct):
        b: int64

    class Methods(Struct):
        def method(self):
            return 1

    class Fine(One, Methods):
        c: int64

    assert list(Fine.dtype.names) == ["a", "c"]
    with pytest.raises(TypeError, match="both"):
        type(Struct)("Bad", (One, Two), {})
    with pytest.raises(TypeError, match="already"):
        type(Struct)("Bad", (One,), {"__annotations__": {"a": int8}})
    with pytest.raises(TypeError, match="hide"):
        type(Struct)("Bad", (One,), {"a": 5})
    with pytest.raises(TypeError, match="hide"):
        type(Struct)("Bad", (One,), {"a": property(lambda self: 5)})


def test_defaults(shm):
    class Holder(Struct):
        number: int64 = 7
        flag: bool_ = True
        text: Bytes[4] = b"ab"
        array: Array[float64, 2] = 1.5
        nothing: Ref["Holder"] = None

    obj = shm.new(Holder)
    assert (obj.number, obj.flag, obj.text, obj.array.tolist(), obj.nothing) == (7, True, b"ab", [1.5, 1.5], None)
    assert shm.new(Holder, number=1).flag is True
    for name, default, error in [("a", "x", TypeError), ("a", 1 << 70, OverflowError)]:
        with pytest.raises(error, match=r"^Bad.a must be int64"):
            type(Struct)("Bad", (Struct,), {"__annotations__": {name: int64}, name: default})


def test_newest_definition_is_used(shm, module):
    text = """
        from shmem import Struct, int64
        class Thing(Struct):
            x: int64
            def version(self):
                return {}
    """
    first = module(text.format(1)).Thing
    obj = shm.root = shm.new(first, x=4)
    second = module(text.format(2)).Thing
    assert (obj.version(), shm.root.version(), type(shm.root)) == (1, 2, second)
    assert shm.new(first).version() == 1
    assert obj == shm.root


def test_changed_layout_raises(shm, module):
    thing = module("""
        from shmem import *
        class Thing(Struct):
            x: int64
            y: float64
            z: Ref["Thing"]
    """).Thing
    shm.root = shm.new(thing)
    changed = module("""
        from shmem import *
        class Thing(Struct):
            x: int32
            z: Ref["Thing"]
            w: Array[float64, 2]
    """).Thing
    for use in (lambda: shm.root, lambda: shm.new(changed)):
        with pytest.raises(LayoutMismatch) as caught:
            use()
        for part in (
            "shmem_test_module.Thing",
            "'x' is shmem.int32 here, shmem.int64 there",
            "'y' is missing here, shmem.float64 there",
            "'w' is shmem.Array[float64, 2] here, missing there",
        ):
            assert part in str(caught.value)
        assert "'z'" not in str(caught.value)
    moved = module("""
        from shmem import *
        class Thing(Struct):
            y: float64
            x: int64
            z: Ref["Thing"]
    """).Thing
    with pytest.raises(LayoutMismatch, match="in the order y, x, z here, x, y, z there"):
        shm.new(moved)
    named = module("""
        from shmem import *
        class Thing(Struct, type_name="thing 2"):
            x: int32
    """).Thing
    assert shm.new(named, x=1).x == 1


def test_type_name(shm, module):
    made = module("""
        from shmem import *
        class Old(Struct, type_name="thing"):
            x: int64
            next: Ref["Old"]
    """)
    shm.root = shm.new(made.Old, x=3, next=shm.new(made.Old))
    made = module("""
        class New(Struct, type_name="thing"):
            x: int64
            next: Ref["New"]
    """)
    assert type(shm.root) is made.New
    assert type(shm.root.next) is made.New
    shm.root.next = shm.new(made.Old, x=8)
    assert shm.root.next.x == 8
    other = shm.root = shm.new(made.New, x=1, type_name="other thing")
    assert shm.root == other
    for wrong in (5, "", b"x"):
        with pytest.raises(TypeError, match="type_name"):
            type(Struct)("Bad", (Struct,), {}, type_name=wrong)
        with pytest.raises(TypeError, match="type_name"):
            shm.new(made.New, type_name=wrong)


def test_mp_main_is_main(shm):
    def define(module):
        return type(Struct)("MainThing", (Struct,), {"__module__": module, "__annotations__": {"x": int64}})

    shm.root = shm.new(define("__main__"))
    child = define("__mp_main__")
    assert type(shm.root) is child


OPENING = "from shmem import *\nshm = SharedMemory(shared_name=args[0])\n"


FAMILY = """
    from shmem import Array, Bytes, Ref, Struct, float32, int64
    class Base(Struct, type_name="base"):
        x: int64 = 5
        next: Ref["Base"]
        def double(self):
            return self.x * 2
    class Leaf(Base, type_name="leaf"):
        y: Array[float32, 2]
        z: Bytes[3] = b"z"
        any: Ref
"""


def test_unknown_class_is_generic(shm, module, child):
    made = module(FAMILY)
    shm.root = shm.new(made.Leaf, next=shm.new(made.Base, x=2), y=1)
    child(
        OPENING
        + textwrap.dedent("""
        root = shm.root
        assert (root.x, root.next.x, root.y.tolist(), root.z, root.any) == (5, 2, [1, 1], b"z", None)
        assert not hasattr(root, "double")
        assert repr(root).startswith("<generic leaf at offset"), repr(root)
        assert type(root) is type(shm.root) is not Struct
        root.next = root
        assert root.next == root
        class Stranger(Struct):
            x: int64 = 5
        try:
            root.next = shm.new(Stranger)
        except TypeError as error:
            assert "Ref[base] or None, got Stranger" in str(error)
        else:
            raise AssertionError
        root.next = None
        assert shm.new(type(root), x=1).x == 1

        class Base(Struct, type_name="base"):
            x: int64 = 6
            next: Ref["Base"]
            def double(self):
                return self.x * 2
        assert isinstance(shm.root, Base)
        assert shm.root.double() == 10
        assert root.x == 5
        root.next = shm.new(Base, x=3)

        class Leaf(Base, type_name="leaf"):
            y: Array[float32, 2]
            z: Bytes[3] = b"z"
            any: Ref
        assert type(shm.root) is Leaf
        assert type(shm.root.next) is Base
    """),
        shm.name,
    ).end()
    assert (type(shm.root.next), shm.root.next.x) == (made.Base, 3)


def test_another_process_with_another_layout_raises(shm, module, child):
    shm.root = shm.new(module(FAMILY).Leaf)
    child(
        OPENING
        + textwrap.dedent("""
        class Base(Struct, type_name="base"):
            x: int32 = 5
        class Leaf(Base, type_name="leaf"):
            pass
        try:
            shm.root
        except LayoutMismatch as error:
            assert "'x' is shmem.int32 here, shmem.int64 there" in str(error), error
            assert "'next' is missing here, shmem.Ref[base] there" in str(error), error
        else:
            raise AssertionError
    """),
        shm.name,
    ).end()


def test_another_process_without_the_classes(shm, child):
    shm.root = shm.new(Labelled, key=3, left=shm.new(Node, key=4), position=(1, 2, 3))
    found = child(
        OPENING
        + textwrap.dedent("""
        root = shm.root
        print(root.key, root.label.decode(), root.left.key, root.position.sum(), type(root).__name__, type(root).__module__)
        root.key = 30
        root.right = root.left
        root.left = None
    """),
        shm.name,
    ).end()
    assert found.split() == ["3", "none", "4", "6.0", "Labelled", __name__]
    assert (shm.root.key, shm.root.left, shm.root.right.key) == (30, None, 4)


def test_hooks_are_called_for_every_class(module):
    from shmem._objects.struct import on_new_class

    seen = []
    on_new_class.append(seen.append)
    try:
        made = module("from shmem import *\nclass Thing(Struct):\n    x: int64\n")
    finally:
        on_new_class.remove(seen.append)
    assert seen == [made.Thing]


def test_string_annotations(shm, module):
    made = module("""
        from __future__ import annotations
        import typing
        import shmem
        from shmem import Array, Ref, Struct, int64
        SIZE = 3
        class Tree(Struct):
            root: shmem.Ref[Leaf]
            first: Ref[Leaf] | None
            second: typing.Optional[shmem.Ref["Leaf"]]
            own: Ref[Tree]
            count: int64 = 2
            sizes: Array[shmem.float64, SIZE, typing.Literal[2]]
            shared: typing.ClassVar[int] = 5
            unseen: ClassVar[Missing] = 5
        class Leaf(Struct):
            x: int
    """)
    assert list(made.Tree.dtype.names) == ["root", "first", "second", "own", "count", "sizes"]
    tree = shm.new(made.Tree)
    tree.root = tree.first = tree.second = shm.new(made.Leaf, x=3)
    tree.own = tree
    assert (tree.root.x, tree.second.x, tree.own == tree, tree.sizes.shape) == (3, 3, True, (3, 2))
    with pytest.raises(TypeError, match=r"Tree.first"):
        tree.first = tree


def test_self_reference(shm, module):
    class Ring(Struct):
        next: Ref[Self]

    class Derived(Ring):
        pass

    ring = shm.new(Ring)
    ring.next = shm.new(Derived, next=ring)
    assert ring.next.next == ring
    made = module("""
        from __future__ import annotations
        from shmem import *
        class Ring(Struct):
            next: Ref[Self]
        from typing import Self
    """)
    with pytest.raises(TypeError, match=r"Ref\[shmem_test_module.Ring\]"):
        shm.new(made.Ring).next = ring


def test_reference_by_type_name(shm):
    class Here(Struct, type_name="far away"):
        pass

    class Holder(Struct):
        one: Ref["far away"]  # noqa: F722

    here = shm.new(Here)
    assert shm.new(Holder, one=here).one == here


def test_very_large_class():
    class Large(Struct):
        field: Array[float64, 1 << 27]
        last: int8

    assert Large.dtype.itemsize == (1 << 30) + 8
    with pytest.raises(TypeError, match="at most"):
        type(Struct)("TooLarge", (Large,), {"__annotations__": {"more": Array[float64, 1 << 27]}})
    with pytest.raises(TypeError, match="at most"):
        Array[float64, 1 << 28]


def test_dates_have_no_buffer_format(shm):
    class Dated(Struct):
        days: Array[np.dtype("M8[D]"), 2]

    dated = shm.new(Dated, days=np.datetime64("2024-02-29"))
    assert dated.days.tolist() == [np.datetime64("2024-02-29").item()] * 2
    assert len(memoryview(dated)) == 16


def test_class_keywords_and_arrays_of_records(shm):
    seen = []

    class Base(Struct):
        x: int64

        def __init_subclass__(cls, colour, **kwargs):
            seen.append((cls.__name__, colour))

    class Derived(Base, colour="red", type_name="derived"):
        pass

    assert seen == [("Derived", "red")]
    assert np.dtype(Derived) == Derived.dtype
    assert shm.zeros(3, dtype=Derived)["x"].tolist() == [0, 0, 0]


def test_names_defined_later(shm, module):
    made = module("""
        from __future__ import annotations
        from shmem import Array, Ref, Struct, int64
        class Early(Struct):
            x: Real = 1.5
            more: Array[Real, N]
            leaf: Ref[Late]
        class Derived(Early):
            y: int64
    """)
    for use in (lambda: made.Early.dtype, lambda: shm.new(made.Early), lambda: shm.new(made.Derived)):
        with pytest.raises(NameError, match=r"cannot use .* yet"):
            use()
    module("from shmem import float64 as Real\nN = 2")
    assert list(made.Derived.dtype.names) == ["x", "more", "leaf", "y"]
    with pytest.raises(NameError, match=r"Early.leaf|Derived.leaf"):
        shm.new(made.Derived)
    module("class Late(Struct):\n    z: int64")
    derived = shm.new(made.Derived, leaf=shm.new(made.Late, z=3))
    assert (derived.x, derived.more.tolist(), derived.leaf.z) == (1.5, [0, 0], 3)


def test_wrong_names_raise_immediately(module):
    with pytest.raises(AttributeError, match="int65"):
        module("from __future__ import annotations\nimport shmem\nclass Bad(shmem.Struct):\n    x: shmem.int65\n")
    with pytest.raises(TypeError, match=r"Bad.x: a Ref must refer to"):
        module("from shmem import *\nclass Bad(Struct):\n    x: Ref['int']\n")


def test_local_classes_find_each_other(shm):
    class Parent(Struct):
        child: Ref["Child"]
        twin: Ref["Parent"]
        nothing: "Ref[Child]"

    class Child(Struct):
        class Inner(Struct):
            own: Ref["Inner"]  # noqa: F821
            outer: Ref["Parent"]

        x: int64
        inner: Ref[Inner]

    parent = shm.new(Parent, child=shm.new(Child, x=4))
    parent.twin = parent
    parent.child.inner = shm.new(Child.Inner, outer=parent)
    assert (parent.child.x, parent.twin, parent.child.inner.outer) == (4, parent, parent)


def test_local_names_in_string_annotations(shm):
    from shmem import int32 as short

    class Holder(Struct):
        x: "short"

    assert Holder.x.type is short
    assert shm.new(Holder, x=5).x == 5
