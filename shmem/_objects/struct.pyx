# cython: language_level=3, auto_pickle=False
"""Struct classes: their layout in memory, the class of each object, and `new`.

Invariants:

* A class is laid out once, as soon as its annotations can be evaluated and before its first object exists.
  The fields of the base class come first, at the same offsets as in the base, so that the base's descriptors
  and methods work on every object that inherits from it.
* A section identifies a type by its name, and stores a description of its fields under that name.  A class is
  used for a block only if its own description equals that of the section; this is compared once per mapping and type.
* An object keeps only its mapping alive.  It has no attributes of its own, so two objects for the same
  block are interchangeable, and compare equal.
* No module is imported to find a class.  A type that this process has not defined gets a class made from the
  description, until a class of that name is defined.
* A class that arrives by value, in a function that cloudpickle sends, is filled before it is registered.  It replaces a class of the same
  name and description.  Beside a class of the same name with other fields it is used for the blocks with its own.
"""

import contextlib
import sys
import typing

import numpy as np

from shmem._base.errors import DAMAGED_TEXT, InvalidBlock, LayoutMismatch, ReadOnlyError, ShmemError
from shmem._bridge.blocks import register_opener
from shmem._objects.annotations import Scope, evaluate, is_class_variable, own_annotations
from shmem._objects.fields import (
    MAX_FIELD_BYTES, ArrayField, Ref, RefField, as_field_type, field_type_from_description, make_field, resolve_ref)

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from shmem._base.accessors cimport round_up
from shmem._base.damage cimport asked_at, room_at
from shmem._base.layout cimport BLOCK_ALIGN_BYTES, TYPE_FIRST_USER, TYPE_LAST_USER
from shmem._bridge.blocks cimport Placed, allocate_block, free_block, placed_hold, placed_is_stale
from shmem._bridge.mapping cimport Mapping
from shmem._core cimport Memory
from shmem._objects.directory cimport type_by_id, type_id_for
from shmem._objects.fields cimport Field, FieldType, TypeCache, TypeEntry, cache_of, forget_types, object_at, raise_stale

cdef extern from "Python.h":
    ctypedef int (*initproc)(object, object, object) except -1
    ctypedef struct PyTypeObject:
        initproc tp_init

__all__ = ["Struct", "StructMeta", "new", "on_new_class"]

on_new_class = []               # callables; each is called with every new Struct class

RESERVED_NAMES = frozenset({"offset", "section", "dtype"})
SKELETON_NAMES = frozenset({"__module__", "__slots__", "__dict__"})     # what cloudpickle makes a class with; a class statement has more

cdef dict classes_by_type_name = {}          # the newest definition of each
cdef dict classes_by_qualified_name = {}     # (module, qualified name) -> the same, for annotations
cdef dict sent_classes = {}                  # (type name, description) -> the newest such class that was unpickled
cdef dict generic_classes = {}               # (type name, description) -> class made from the description


# --- layout

cdef class Layout:
    """The fields of one Struct class, their offsets, and their description for a section."""
    cdef readonly object cls
    cdef readonly str type_name
    cdef readonly tuple type_names      # its own, then those of its base classes
    cdef readonly dict fields           # name -> Field, the base's first; None until laid out
    cdef readonly object dtype
    cdef readonly size_t n_bytes
    cdef readonly size_t align_bytes
    cdef readonly bint is_generic       # the class was made from a section's description
    cdef bint is_skeleton               # the class has no body: cloudpickle has yet to fill it
    cdef bytes format                   # PEP 3118; None if there is no format for the fields
    cdef readonly bytes image           # the bytes of an object with its defaults, None if all are zero
    cdef bytes description              # None until every reference is resolved
    cdef dict pending                   # own annotations, as far as evaluated
    cdef readonly object scope

    def __reduce__(self):
        """cloudpickle sends classes of `__main__` by value: an empty class, then the dict of the class, with this layout in it."""
        layout_of(self.cls)
        with contextlib.suppress(NameError):
            self.resolve()
        own = {name: field.type for name, field in self.fields.items() if field.origin is self.cls}
        targets = [type_.target for type_ in own.values() if isinstance(type_, Ref) and isinstance(type_.target, StructMeta)]
        # the bases first: if one of them uses this class, it is still empty
        bases = [base._shmem_layout_ for base in self.cls.__bases__ if isinstance(base, StructMeta)]
        facts = (self.cls.__qualname__, self.type_name, self.is_generic, own, self.image, self.dtype)
        return fill_layout, (bases, self.cls, *facts), targets

    def __setstate__(self, targets):
        """Take the classes that references lead to, which are sent after this one has its fields, and exist by now."""

    cdef int lay_out(self) except -1:
        """Assign every field its offset.  If an annotation uses a name that is not defined yet, raise NameError and change nothing."""
        cdef dict own = self.own_types()
        cdef Layout base = self.base_layout()
        cdef dict fields = {}
        cdef uint64_t end = 0, align = 1      # as in C: each field at its own alignment, the object at the largest
        cdef FieldType type_
        cdef Field field
        for field in base.fields.values() if base is not None else ():
            fields[field.name] = make_field(field.type, field.name, self.cls, field.offset, field.origin)
            end = field.offset + field.type.n_bytes
            align = max(align, field.type.align_bytes)
        self.check_redeclared(fields, own)
        for name, type_ in own.items():
            if name not in fields:
                end = round_up(end, type_.align_bytes)
                fields[name] = make_field(type_, name, self.cls, end)
                end += type_.n_bytes
                align = max(align, type_.align_bytes)
        if round_up(end, align) > <uint64_t>MAX_FIELD_BYTES:
            raise TypeError(f"a {self.cls.__name__} object must have at most {MAX_FIELD_BYTES} bytes, got {end}")
        self.n_bytes = round_up(end, align)
        self.align_bytes = max(align, BLOCK_ALIGN_BYTES)
        self.image = self.make_image(base, fields, own)
        self.dtype = np.dtype({"names": list(fields), "formats": [f.type.dtype for f in fields.values()],
                               "offsets": [f.offset for f in fields.values()], "itemsize": self.n_bytes}, align=True)
        with contextlib.suppress(ValueError):       # numpy exports no dates
            self.format = memoryview(np.zeros((), self.dtype)).format.encode()
        for name, field in fields.items():
            type.__setattr__(self.cls, name, field)
        self.fields = fields
        self.pending = None
        return 0

    cdef dict own_types(self):
        """Return the types of the fields that the class itself declares; evaluated annotations stay evaluated if a later one raises."""
        found = {}
        for name, annotation in list(self.pending.items()):
            try:
                if not is_class_variable(annotation):
                    self.pending[name] = annotation = evaluate(annotation, self.scope, Ref)
                if not is_class_variable(annotation):
                    found[name] = as_field_type(annotation)
            except TypeError as error:
                raise TypeError(f"{self.cls.__name__}.{name}: {error}") from None
        for name in found:
            if name in RESERVED_NAMES or name.startswith("_shmem_") or (name.startswith("__") and name.endswith("__")):
                raise TypeError(f"cannot name a field of {self.cls.__name__} {name!r}: every object has an attribute of that name")
        return found

    cdef Layout base_layout(self):
        """Return the layout that this one extends."""
        layouts = [layout_of(base) for base in self.cls.__bases__ if isinstance(base, StructMeta)]
        if not layouts:
            return None
        longest = max(layouts, key=lambda layout: len(layout.fields))
        for layout in layouts:
            strange = [name for name, field in layout.fields.items()
                       if name not in longest.fields or longest.fields[name].origin is not field.origin]
            if strange:
                raise TypeError(f"{self.cls.__name__} cannot inherit fields from both {longest.cls.__name__} and {layout.cls.__name__}: "
                                "their fields would overlap")
        return longest

    def check_redeclared(self, dict inherited, dict own):
        """Raise if the class changes more than the default of an inherited field."""
        for name, field in inherited.items():
            what = f"the field {field.origin.__name__}.{name}, {field.type!r}"
            hiding = [cls for cls in self.cls.__mro__ if name in cls.__dict__][0]
            if name in own:
                if isinstance(own[name], Ref) or own[name].describe() != field.type.describe():
                    raise TypeError(f"cannot declare {self.cls.__name__}.{name} as {own[name]!r}: it is already {what}")
            elif not isinstance(hiding.__dict__[name], Field):
                raise TypeError(f"cannot define {hiding.__name__}.{name}: it would hide {what}; to change the default, "
                                "repeat the annotation")

    cdef bytes make_image(self, Layout base, dict fields, dict own):
        """Return the bytes of an object with its defaults, None if all are zero."""
        cdef bytearray image
        cdef Field field
        # an unpickled class has no values there, but perhaps fields of an attempt that failed
        defaults = {} if self.is_skeleton else {name: self.cls.__dict__[name] for name in own if name in self.cls.__dict__}
        inherited = base.image if base is not None else None
        if not defaults and inherited is None:
            return None
        image = bytearray(self.n_bytes)
        if inherited is not None:
            image[:len(inherited)] = inherited
        for name, value in defaults.items():
            field = fields[name]
            field.store(image, <char*>image + field.offset, value)
        return bytes(image) if image.strip(b"\0") else None

    cdef int resolve(self) except -1:
        """Find the classes that references name; raise NameError if one is not defined yet."""
        for field in self.fields.values():
            if isinstance(field, RefField) and field.target_name is None:
                expression, scope = field.type.target, field.origin._shmem_layout_.scope
                try:
                    target = evaluate(expression, scope, Ref)
                except (NameError, AttributeError, TypeError):      # the string may be a type_name
                    target = classes_by_type_name.get(expression)
                    if target is None:
                        raise NameError(f"cannot resolve {field.where()}: {expression} is not defined; define or import the "
                                        f"class before the first {self.cls.__name__} is made or read") from None
                try:
                    resolve_ref(field, field.origin if target is typing.Self else target)
                except TypeError as error:
                    raise TypeError(f"{field.where()}: {error}") from None
        return 0

    cdef bytes describe(self):
        """Return the description for a section: the fields in order, and the base classes, whose fields and methods an object has."""
        if self.description is None:
            import json

            self.resolve()
            _, *bases, _ = self.type_names      # between its own name and that of Struct
            facts = {"fields": [[name, *field.type.describe()] for name, field in self.fields.items()], "bases": bases}
            self.description = json.dumps(facts, separators=(",", ":")).encode()
        return self.description


cdef Layout layout_of(cls):
    """Return the layout of a Struct class, made now if it could not be made earlier."""
    cdef Layout layout = cls.__dict__["_shmem_layout_"]
    if layout.fields is None:
        try:
            layout.lay_out()
        except NameError as error:
            raise NameError(f"cannot use {cls.__name__} yet: an annotation uses an undefined name: {error}") from error
    return layout


def fill_layout(bases, cls, qualname, type_name, is_generic, own, image, dtype):
    """Return the layout of an unpickled class; if the class is new, give it its fields, defaults and names.

    The layouts of its bases are an argument only because they must be unpickled earlier.
    """
    cdef Layout layout = cls.__dict__["_shmem_layout_"]
    if not layout.is_skeleton:          # the class was pickled in this process, or unpickled before
        return layout
    cls.__qualname__ = qualname
    layout.type_name, layout.type_names = type_name, names_of_types(cls, type_name)
    layout.pending, layout.description = own, None
    layout.lay_out()
    if layout.dtype != dtype:
        raise LayoutMismatch(f"cannot unpickle the class {qualname}: its fields are {layout.dtype} here, {dtype} where it was pickled; use "
                             "the same version of the modules that define its base classes")
    layout.image = image
    layout.is_generic = is_generic
    layout.is_skeleton = False
    register_sent(layout)
    return layout


# --- classes

class StructMeta(type):
    """The type of Struct classes."""

    def __new__(meta, name, bases, namespace, *, type_name=None, _generic=None, **kwargs):
        if namespace.get("__slots__", ()) not in ((), [], ""):
            raise TypeError(f"cannot define {name} with __slots__: its objects are in a section; declare fields by annotations")
        cls = super().__new__(meta, name, bases, {"__slots__": (), **namespace}, **kwargs)
        if cls.__dictoffset__:
            raise_dict(cls)
        cdef Layout layout = Layout.__new__(Layout)
        layout.cls = cls
        layout.type_name = name_of_type(cls, type_name)
        layout.type_names = names_of_types(cls, layout.type_name)
        layout.scope = Scope(cls, classes_by_qualified_name)
        type.__setattr__(cls, "_shmem_layout_", layout)
        layout.is_skeleton = _generic is None and type_name is None and namespace.keys() <= SKELETON_NAMES
        if _generic is None:
            prepare(layout)
        else:
            layout.is_generic = True
            layout.pending, layout.description, layout.type_names = _generic
            layout.lay_out()
        for call in on_new_class:
            call(cls)
        return cls

    def __call__(cls, *args, **kwargs):
        raise TypeError(f"cannot construct a {cls.__name__} directly: it must be in a section; use shm.new({cls.__name__}, ...)")


cdef int raise_dict(cls) except -1:
    """Raise the error of a class whose objects would have a `__dict__`."""
    culprits = [base for base in cls.__mro__ if "__dict__" in base.__dict__]
    what = "base classes other than Struct need __slots__ = ()"
    if any([base.__dict__.get("__slots__") == () for base in culprits]):        # given to a class that was made without them
        what = "cloudpickle does not keep __slots__ = () of a class that it sends by value; import this class from a module"
    raise TypeError(f"cannot define {cls.__name__}: because of {', '.join([base.__name__ for base in culprits])}, its objects would have "
                    f"attributes outside the section; {what}")


cdef str name_of_type(cls, type_name):
    if type_name is None:
        module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
        return f"{module}.{cls.__qualname__}"
    if not isinstance(type_name, str) or not type_name:
        raise TypeError(f"type_name must be a non-empty string, got {type_name!r}")
    return type_name


cdef tuple names_of_types(cls, str type_name):
    """Return the type name of a class, and those of its bases."""
    return type_name, *[base._shmem_layout_.type_name for base in cls.__mro__[1:] if isinstance(base, StructMeta)]


cdef int prepare(Layout layout) except -1:
    """Lay the class out if its annotations can already be evaluated, and register it under its name."""
    layout.pending = own_annotations(layout.cls)
    with contextlib.suppress(ValueError):       # a thread that runs no Python function has no frame
        layout.scope.see(sys._getframe())
    with contextlib.suppress(NameError):        # a name is defined later: layout_of tries again
        layout.lay_out()
        layout.resolve()
    layout.scope.forget_locals()
    if len(layout.type_names) == 1:             # Struct itself
        return 0
    if not layout.is_skeleton:                  # else it is registered once it is filled, or used
        register(layout)
    return 0


cdef int register(Layout layout) except -1:
    classes_by_qualified_name[layout.cls.__module__, layout.cls.__qualname__] = layout.cls
    return define(layout.type_name, layout.cls)


cdef int register_sent(Layout layout) except -1:
    """Register an unpickled class: in place of one with the same name and fields, and beside one with the same name and other fields."""
    description = description_of(layout.cls)
    known = classes_by_type_name.get(layout.type_name)
    if layout.is_generic:
        generic_classes.setdefault((layout.type_name, description), layout.cls)
        return 0
    sent_classes[layout.type_name, description] = layout.cls
    if known is None or description_of(known) == description:
        return register(layout)
    forget_types()
    return 0


cdef bytes description_of(cls):
    """Return the description of a class, None as long as one of its annotations uses an undefined name."""
    try:
        return layout_of(cls).describe()
    except NameError:
        return None


cdef object class_of_description(str type_name, bytes description):
    """Return the newest class of this name; if it has other fields, one with the described fields that was unpickled."""
    known = classes_by_type_name.get(type_name)
    if known is None:
        return generic_class(type_name, description)
    sent = sent_classes.get((type_name, description))
    return known if sent is None or description_of(known) == description else sent


cdef int define(str type_name, cls) except -1:
    """Bind the type name to this class, which replaces classes that were made from descriptions."""
    global generic_classes
    classes_by_type_name[type_name] = cls
    generic_classes = {key: generic for key, generic in generic_classes.items() if type_name not in generic._shmem_layout_.type_names}
    forget_types()
    return 0


cdef dict read_description(str type_name, bytes description):
    """Parse a section's description of a type; raise LayoutMismatch if it is damaged, or of a later version."""
    import json

    try:
        facts = json.loads(description)
        if not all([isinstance(name, str) for name in [*facts["bases"], *[field[0] for field in facts["fields"]]]]):
            raise TypeError("fields and base classes must have names")
        facts["types"] = {name: field_type_from_description(*how) for name, *how in facts["fields"]}
    except DAMAGED_TEXT as error:
        raise LayoutMismatch(f"cannot read the section's description of type {type_name!r}; use the version that wrote it: "
                             f"{description!r:.200}") from error
    return facts


cdef object generic_class(str type_name, bytes description):
    """Return a class for a type that this process has not defined, with its fields and the methods of its nearest defined base."""
    cdef Layout layout
    cls = generic_classes.get((type_name, description))
    if cls is not None:
        return cls
    import json

    facts = read_description(type_name, description)
    types = facts["types"]
    names = (type_name, *facts["bases"], Struct._shmem_layout_.type_name)
    base = Struct
    for name in facts["bases"]:
        known = classes_by_type_name.get(name)
        if known is not None:
            with contextlib.suppress(NameError):
                layout = layout_of(known)
                known_fields = json.loads(layout.describe())["fields"]
                if facts["fields"][:len(known_fields)] == known_fields:
                    base = known
                    break
    own = {name: type_ for name, type_ in types.items() if name not in base._shmem_layout_.fields}
    module, _, short_name = type_name.rpartition(".")
    try:
        cls = StructMeta.__new__(StructMeta, short_name, (base,), {"__module__": module or "shmem"}, type_name=type_name,
                                 _generic=(own, description, names))
    except (TypeError, ValueError) as error:
        raise LayoutMismatch(f"cannot make a class for type {type_name!r} of the section: {error}") from error
    generic_classes[type_name, description] = cls
    return cls


class _DtypeOfClass:
    """`Struct.dtype`: the same for the class and for its objects."""

    def __get__(self, instance, owner):
        return layout_of(owner).dtype


cdef class StructBase(Placed):
    """The C base of all Struct objects: a Placed with Python's special methods."""

    def __cinit__(self):
        # fields.object_at creates objects through Placed and does not call this, so an object without a block cannot exist
        name = type(self).__name__
        raise TypeError(f"cannot construct a {name} directly: it must be in a section; use shm.new({name}, ...)")

    def __init__(self, /, *args, **fields):
        if args:
            raise TypeError(f"{type(self).__name__} takes the values of its fields by keyword, got {len(args)} positional arguments")
        set_fields(self, layout_of(type(self)), fields)

    @property
    def __class__(self):
        # read-only: with the fields of another class an object could access memory beyond its block
        return type(self)

    def __eq__(self, other):
        if not isinstance(other, StructBase):
            return NotImplemented
        cdef Placed one = self, two = <Placed>other
        return (one.mapping.section is two.mapping.section and one.data - one.mapping.base == two.data - two.mapping.base
                and one.serial == two.serial)

    def __hash__(self):
        return hash((self.mapping.section.id, self.data - self.mapping.base, self.serial))

    def __repr__(self):
        cdef Layout layout = layout_of(type(self))
        name = f"generic {layout.type_name}" if layout.is_generic else type(self).__qualname__
        where = f"<{name} at offset {self.data - self.mapping.base:#x}"
        if placed_is_stale(self):
            return f"{where}, freed>"
        values = [f"{field.name}={field.__get__(self, type(self))!r}" for field in layout.fields.values()
                  if not isinstance(field, (ArrayField, RefField))]
        return f"{where}: {', '.join(values)}>" if values else f"{where}>"

    def __reduce_ex__(self, protocol):
        raise TypeError(f"cannot pickle or copy a {type(self).__name__}: it is in shared memory; send shmem.handle(obj), which "
                        "multiprocessing does automatically, or store its fields")

    def __getbuffer__(self, Py_buffer* view, int flags):
        """Export the object's bytes; if a format is requested, one item of the class's dtype, so that np.asarray works in place."""
        if placed_is_stale(self):
            raise_stale(self)
        if flags & PyBUF_WRITABLE and not self.mapping.writable:
            raise ReadOnlyError(f"cannot write to a {type(self).__name__}: the section was opened read-only")
        cdef Py_ssize_t n_bytes = asked_at(self.mapping.section, self.payload_off())
        placed_hold(self)
        PyBuffer_FillInfo(view, self, self.data, n_bytes, not self.mapping.writable, flags)
        cdef Layout layout
        if flags & PyBUF_FORMAT:
            layout = layout_of(type(self))
            if layout.format is not None:
                view.format = layout.format
                view.len = view.itemsize = layout.n_bytes
                view.ndim = 0
                view.shape = view.strides = NULL


class Struct(StructBase, metaclass=StructMeta, type_name="shmem.Struct"):
    """Base of the classes whose objects are in a section.

    The annotations of the class body are the fields: numbers (`int64`, `float32`, `bool_` …; also `int`,
    `float`, `bool`, `complex` and numpy types), ``Bytes[N]``, ``Array[float64, 3]`` and ``Ref["Node"]``.  A value after the
    annotation is the field's default.  Without one a field starts as zero, False, empty or None.  Objects have no other attributes.
    Fields are inherited; methods and properties work as in any class.

    Objects are made by ``shm.new(Node, key=1)``.  It takes the fields by keyword, or the arguments of ``__init__`` if the class
    has one.  Every process that maps the section reads and writes objects in place.  The section identifies their class
    by its qualified name, or by a name given as in ``class Node(Struct, type_name="node")``.  Two objects are equal
    if they are the same block.

    Attributes
    ----------
    dtype : numpy.dtype
        The fields as a structured dtype, for the class and for its objects.
    offset : int
        Bytes from the section's start to the object.
    section : SharedMemory
        The section that contains the object.

    Raises
    ------
    InvalidBlock
        A field was accessed after the object was freed.
    ReadOnlyError
        A field was assigned in a section that was opened read-only.

    Examples
    --------
    >>> import shmem
    >>> class Node(shmem.Struct):
    ...     key: shmem.int64 = 0
    ...     left: shmem.Ref["Node"]
    ...     right: shmem.Ref["Node"]
    ...     position: shmem.Array[shmem.float64, 3]
    ...
    ...     def leaves(self):
    ...         children = [child for child in (self.left, self.right) if child is not None]
    ...         return sum(child.leaves() for child in children) if children else 1
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     root = shm.new(Node, key=7, left=shm.new(Node), position=(0, 1, 2))
    ...     root.right = shm.new(Node, key=9)
    ...     root.key, root.right.key, root.leaves(), root.position
    (7, 9, 2, array([0., 1., 2.]))
    >>> Node.dtype.itemsize
    48
    """

    __module__ = "shmem"

    dtype = _DtypeOfClass()


# --- objects

cdef int set_fields(StructBase obj, Layout layout, dict values) except -1:
    for name, value in values.items():
        field = layout.fields.get(name)
        if field is None:
            known = f"its fields are {', '.join(layout.fields)}" if layout.fields else "it has none"
            raise TypeError(f"{layout.cls.__name__} has no field {name!r}; {known}")
        (<Field>field).assign(obj, value)
    return 0


cdef str difference(str type_name, bytes here, bytes there):
    """Return the differences of two descriptions as text."""
    import json

    mine, theirs = json.loads(here), read_description(type_name, there)
    own = {name: how for name, *how in mine["fields"]}
    other = {name: how for name, *how in theirs["fields"]}
    found = []
    for name in own | other:
        if own.get(name) != other.get(name):
            found.append(f"field {name!r} is {as_text(own.get(name))} here, {as_text(other.get(name))} there")
    if not found and list(own) != list(other):
        found.append(f"the fields are in the order {', '.join(own)} here, {', '.join(other)} there")
    if mine["bases"] != theirs["bases"]:
        found.append(f"the base classes are {', '.join(mine['bases']) or 'none'} here, {', '.join(theirs['bases']) or 'none'} there")
    return "; ".join(found)


cdef str as_text(how):
    return "missing" if how is None else repr(field_type_from_description(*how))


cdef object mismatch(str type_name, bytes here, bytes there):
    return LayoutMismatch(f"cannot use type {type_name!r}: it has another layout in the section: {difference(type_name, here, there)}; "
                          "give the new class a type_name of its own")


cdef object section_mismatch(Mapping mapping, str type_name, bytes here, error):
    """Return the LayoutMismatch of `type_id_for`, with the difference of the layouts if it can be found."""
    for type_id in range(TYPE_FIRST_USER, TYPE_LAST_USER + 1):
        found = type_by_id(mapping, type_id)
        if found is None:
            return error
        if found[0] == type_name.encode():
            return mismatch(type_name, here, found[1])
    return error


cdef TypeEntry make_entry(Layout layout, uint32_t type_id):
    cdef TypeEntry entry = TypeEntry.__new__(TypeEntry)
    entry.cls = layout.cls
    entry.type_id = type_id
    entry.n_bytes = layout.n_bytes
    entry.layout = layout
    return entry


cdef TypeEntry entry_of_class(Mapping mapping, cls, type_name):
    """Return the entry for new objects of this class; register the type in the section if necessary."""
    if cls is Struct:
        raise TypeError("cannot make a Struct: it has no fields; derive a class from it")
    cdef Layout layout = layout_of(cls)
    cdef bytes description = layout.describe()
    cdef str name = layout.type_name if type_name is None else name_of_type(cls, type_name)
    if layout.is_skeleton:              # no pickle: a class without a body, made by a call
        layout.is_skeleton = False
        register(layout)
    if type_name is not None and classes_by_type_name.get(name) is not cls:
        define(name, cls)
    try:
        type_id = type_id_for(mapping, name.encode(), description)
    except LayoutMismatch as error:
        raise section_mismatch(mapping, name, description, error) from None
    cdef TypeEntry entry = make_entry(layout, type_id)
    cache_of(mapping).by_class[cls if type_name is None else (cls, type_name)] = entry
    return entry


cdef TypeEntry entry_of_id(Mapping mapping, uint32_t type_id):
    """Return the entry of the class for blocks with this type id."""
    cdef TypeCache cache = cache_of(mapping)
    cdef Py_ssize_t index = <Py_ssize_t>type_id - TYPE_FIRST_USER
    if index < len(cache.by_id) and cache.by_id[index] is not None:
        return cache.by_id[index]
    found = type_by_id(mapping, type_id)
    if found is None:
        raise InvalidBlock(f"cannot open a block of type id {type_id}: the section has no such type")
    name, description = found[0].decode("utf-8", "replace"), found[1]
    cache = cache_of(mapping)       # before the class is looked up: if one is defined meanwhile, this cache is no longer used
    cls = class_of_description(name, description)
    cdef Layout layout = layout_of(cls)
    if layout.describe() != description:
        raise mismatch(name, layout.describe(), description)
    cdef TypeEntry entry = make_entry(layout, type_id)
    cache.by_id.extend([None] * (index + 1 - len(cache.by_id)))
    cache.by_id[index] = entry
    return entry


def open_object(Mapping mapping not None, uint64_t payload_off, uint32_t type_id, serial):
    """Return the object for a used block with the type id of a user's type; called by `_bridge.blocks.wrap`."""
    cdef TypeEntry entry = entry_of_id(mapping, type_id)
    cdef char* data = mapping.base + payload_off
    cdef uint64_t found = room_at(mapping.section, payload_off)
    if found < entry.n_bytes:
        raise InvalidBlock(f"cannot open the block at offset {payload_off:#x} as {entry.cls.__name__}: it was reallocated to "
                           f"{found} bytes, and the class needs {entry.n_bytes}")
    return object_at(mapping, entry.cls, data)


register_opener(TYPE_FIRST_USER, TYPE_LAST_USER, open_object)


def type_of_class(Mapping mapping not None, cls):
    """Return the type id of a class in a section; register the class if necessary."""
    return entry_of_class(mapping, cls, None).type_id


def class_of_type(Mapping mapping not None, uint32_t type_id):
    """Return the class for a type id, a generic one if this process has not defined it."""
    if not TYPE_FIRST_USER <= type_id <= TYPE_LAST_USER:
        raise InvalidBlock(f"type id must be {TYPE_FIRST_USER} to {TYPE_LAST_USER} for a Struct class, got {type_id}")
    return entry_of_id(mapping, type_id).cls


def new(Memory self not None, cls, /, *args, type_name=None, **kwargs):
    """Return a new object in the section.

    Parameters
    ----------
    cls : Struct class or numpy dtype
        For a dtype the object is an array of no dimensions.
    *args, **kwargs
        Values of fields, by keyword; or the arguments of ``__init__`` if the class has one.  When ``__init__`` is called, the
        fields have their defaults.  If it raises, the block is freed.
    type_name : str, optional
        The type's name in the section; by default that of the class.

    Returns
    -------
    Struct or numpy.ndarray

    Raises
    ------
    SectionFull
        There is not enough free memory in the section.
    LayoutMismatch
        The section has a type of that name with other fields.
    """
    if not isinstance(cls, StructMeta):
        return new_array(self, cls, args, kwargs)
    cdef Mapping mapping = self.opened()
    if not mapping.writable:
        raise ReadOnlyError(f"cannot make a {cls.__name__}: the section was opened read-only")
    found = cache_of(mapping).by_class.get(cls if type_name is None else (cls, type_name))
    cdef TypeEntry entry = <TypeEntry>found if found is not None else entry_of_class(mapping, cls, type_name)
    cdef Layout layout = <Layout>entry.layout
    cdef uint64_t payload_off = allocate_block(mapping, entry.n_bytes, layout.align_bytes, entry.type_id, True)
    cdef StructBase obj = object_at(mapping, entry.cls, mapping.base + payload_off)
    if layout.image is not None:
        memcpy(obj.data, PyBytes_AS_STRING(layout.image), PyBytes_GET_SIZE(layout.image))
    try:
        if (<PyTypeObject*>cls).tp_init != (<PyTypeObject*>StructBase).tp_init:
            (<PyTypeObject*>cls).tp_init(obj, args, kwargs)
        elif args:
            StructBase.__init__(obj, *args)
        else:
            set_fields(obj, layout, kwargs)
    except BaseException:
        with contextlib.suppress(ShmemError):       # __init__ may have freed it, or closed the section
            free_block(mapping, payload_off, obj.serial)
        raise
    return obj


cdef object new_array(Memory memory, dtype, tuple args, dict kwargs):
    """Return a new array of no dimensions for a dtype, numpy type or field type."""
    is_type = isinstance(dtype, (np.dtype, FieldType)) or (isinstance(dtype, type) and issubclass(dtype, np.generic))
    if not is_type:
        raise TypeError(f"the class of a new object must be a Struct class or a numpy dtype, got {dtype!r}")
    if args or kwargs:
        raise TypeError("new does not take values for an array; assign them, as in array[...] = values")
    return memory.zeros((), np.dtype(dtype if not isinstance(dtype, FieldType) else dtype.dtype))
