# cython: language_level=3, auto_pickle=False
"""Field types, and the descriptors that read and write them in place.

Invariants:

* A descriptor accesses memory only after three checks: the object is of a class that has the field, its block is the one that it was made
  for (`placed_is_stale`: state and serial), and, before a write, the mapping is writable.  Access through a stale object therefore raises
  `InvalidBlock`.
* A reference is the payload offset of a block, 0 for None.  It is followed only after a check of bounds and tag.  The class comes from the
  tag, never from the field.  A reference does not prevent its block from being freed.  If the memory is reused for another object of a
  fitting type, the reference leads to that object; clear references to a block before you free it.
* The classes that a reference accepts are compared by type name, not by class object.  A class that was redefined, and one that this
  process does not have, are identified by their names.
* A number is read and written by one plain load or store of its own size (a complex number by two).  A reference is read by an acquire
  load and written by a release store, so a reader of the reference sees everything that was written before it.  Any other ordering needs
  a lock of the user's.
"""

import math
import types
import typing

import numpy as np

from shmem._base.errors import InvalidBlock, ReadOnlyError
from shmem._objects.arrays import is_whole
from shmem._objects.codec import Misfit
from shmem._objects.dtypes import refuse_metadata

cimport cython
cimport shmem._atomics as atomic
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from shmem._base.accessors cimport payload_bytes, tag_size, tag_type
from shmem._base.bounds cimport used_tag
from shmem._base.layout cimport TYPE_FIRST_USER
from shmem._bridge.blocks cimport PART_OF_BLOCK, Placed, offset_in, placed_is_stale, wrap
from shmem._bridge.mapping cimport Mapping
from shmem._objects.codec cimport Codec, Kind, codec_of, kind_of, load_number, misfit, store_bytes, store_number

cdef object ndarray = np.ndarray
cdef uint64_t generation = 1          # of class definitions in this process; a TypeCache with a lower one is out of date

MAX_FIELD_BYTES = (1 << 31) - 1       # of a field, and of an object: the limit of numpy's dtypes
ANY = "*"                             # the target name that matches every block


# --- field types

cdef class FieldType:
    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, *args, **kwargs):
        """Initialize the object: see its class."""
        raise TypeError("a field type cannot be constructed directly; write a subscript, as in Array[float64, 3]")

    cdef Field make_field(self):
        raise NotImplementedError

    cpdef list describe(self):
        raise NotImplementedError

    def __reduce__(self):
        return field_type_from_description, tuple(self.describe())


@cython.final
cdef class Scalar(FieldType):
    """A number of fixed size: `shmem.int64`, `shmem.float32`, `shmem.bool_` and the like.

    A field with this annotation is read as a Python number.  It can also be passed wherever numpy expects a dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import shmem
    >>> np.dtype(shmem.float64)
    dtype('float64')
    """
    cdef readonly str name
    cdef Kind kind

    cdef Field make_field(self):
        cdef ScalarField field = ScalarField.__new__(ScalarField)
        field.kind = self.kind
        return field

    cpdef list describe(self):
        return [self.dtype.str]

    def __repr__(self):
        return f"shmem.{self.name}"


cdef Scalar make_scalar(str name):
    cdef Scalar scalar = Scalar.__new__(Scalar)
    scalar.name = name
    scalar.dtype = np.dtype(name.rstrip("_"))
    scalar.kind = kind_of(scalar.dtype)
    scalar.n_bytes = scalar.dtype.itemsize
    scalar.align_bytes = scalar.dtype.alignment
    return scalar


bool_ = make_scalar("bool_")
int8 = make_scalar("int8")
int16 = make_scalar("int16")
int32 = make_scalar("int32")
int64 = make_scalar("int64")
uint8 = make_scalar("uint8")
uint16 = make_scalar("uint16")
uint32 = make_scalar("uint32")
uint64 = make_scalar("uint64")
float32 = make_scalar("float32")
float64 = make_scalar("float64")
complex64 = make_scalar("complex64")
complex128 = make_scalar("complex128")

SCALARS = {scalar.dtype: scalar for scalar in (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64,
                                               complex64, complex128)}
PYTHON_TYPES = {bool: bool_, int: int64, float: float64, complex: complex128}


@cython.final
cdef class Bytes(FieldType):
    """A byte string of at most `N` bytes: ``Bytes[16]``.

    It is padded with NUL bytes, which reading strips.  A value that ends with a NUL byte is
    therefore refused.  For raw bytes use ``Array[uint8, N]``.

    Examples
    --------
    >>> import shmem
    >>> class Person(shmem.Struct):
    ...     name: shmem.Bytes[16]
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     shm.new(Person, name="Ada".encode()).name
    b'Ada'
    """

    def __class_getitem__(cls, count):
        cdef Bytes self = Bytes.__new__(Bytes)
        self.n_bytes = dimension(count)
        self.align_bytes = 1
        self.dtype = np.dtype(f"S{self.n_bytes}")
        return self

    cdef Field make_field(self):
        return BytesField.__new__(BytesField)

    cpdef list describe(self):
        return [f"S{self.n_bytes}"]

    def __repr__(self):
        return f"shmem.Bytes[{self.n_bytes}]"


@cython.final
cdef class Array(FieldType):
    """An array of fixed shape inside an object: ``Array[float64, 3]``, ``Array[float64, 2, 3]``, ``Array[float64, (2, 3)]``.

    Reading the field returns a numpy array whose memory is in the section, and which keeps it mapped.  The array is not writeable
    if the section was opened read-only.  Assigning writes in place.  The value is broadcast as in numpy.  If an element does not fit,
    assigning raises, as for a field of the element's type, and nothing is written.
    ``Array[float64, Literal[3]]`` means the same and satisfies type checkers.

    Examples
    --------
    >>> import shmem
    >>> class Body(shmem.Struct):
    ...     position: shmem.Array[shmem.float64, 3]
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     body = shm.new(Body, position=1.5)
    ...     body.position[0] += 1
    ...     body.position
    array([2.5, 1.5, 1.5])
    """
    cdef readonly object element      # numpy dtype
    cdef readonly tuple shape
    cdef Codec codec

    def __class_getitem__(cls, args):
        if not isinstance(args, tuple) or len(args) < 2:
            raise TypeError(f"an Array must have an element type and a shape, as in Array[float64, 3], got Array[{args!r}]")
        cdef Array self = Array.__new__(Array)
        self.element = element_dtype(args[0])
        shape = args[1] if len(args) == 2 and isinstance(args[1], tuple) else args[1:]
        self.shape = tuple([dimension(count) for count in shape])
        n_bytes = math.prod(self.shape) * self.element.itemsize
        if not 0 < n_bytes <= MAX_FIELD_BYTES:
            raise TypeError(f"an Array field must have at most {MAX_FIELD_BYTES} bytes, got {n_bytes} for {self!r}; "
                            "use a reference to an array, Ref[numpy.ndarray]")
        self.n_bytes = n_bytes
        self.align_bytes = self.element.alignment
        self.dtype = np.dtype((self.element, self.shape))
        self.codec = codec_of(self.dtype)
        return self

    cdef Field make_field(self):
        return ArrayField.__new__(ArrayField)

    cpdef list describe(self):
        return [self.element.str, list(self.shape)]

    def __repr__(self):
        return f"shmem.Array[{self.element}, {', '.join(map(str, self.shape))}]"


@cython.final
cdef class Ref(FieldType):
    """A reference to another block of the same section, or None: ``Ref["Node"]``, ``Ref[Node]``, ``Ref[Any]``.

    The target is a Struct class or its name, `Block`, `numpy.ndarray`, or `Any`.  Names are looked up late, so that a class may refer
    to itself (also as ``Ref[Self]``) and to classes defined after it.  An assigned object must be in the same section, and of the
    target class or a class that inherits from it.  Reading returns an object of the class with which the block was made.  A reference
    does not prevent its block from being freed; reading a reference to a freed block raises `InvalidBlock`.

    Examples
    --------
    >>> import shmem
    >>> class Node(shmem.Struct):
    ...     key: shmem.int64
    ...     next: shmem.Ref["Node"]
    >>> with shmem.SharedMemory(max_size=1 << 20) as shm:
    ...     node = shm.new(Node, key=1, next=shm.new(Node, key=2))
    ...     node.next.key, node.next.next
    (2, None)
    """
    cdef readonly object target       # a class, or an expression to evaluate late
    cdef readonly str type_name       # of the target, once known

    def __class_getitem__(cls, target):
        cdef Ref self = Ref.__new__(Ref)
        self.target = target
        self.n_bytes = self.align_bytes = sizeof(uint64_t)
        self.dtype = np.dtype(np.uint64)
        if not isinstance(target, str) and target is not typing.Self:
            self.type_name = target_name(target)
        return self

    def __or__(self, other):
        """``Ref[Node] | None``, which type checkers may want, is ``Ref[Node]``: a reference may always be None."""
        return self if other is None else NotImplemented

    def __ror__(self, other):
        return self if other is None else NotImplemented

    cdef Field make_field(self):
        cdef RefField field = RefField.__new__(RefField)
        field.target_name = self.type_name
        return field

    cpdef list describe(self):
        return ["ref", self.type_name]

    def __reduce__(self):
        # the target class is not sent from here: its base may be the class that contains this reference, and is unpickled first
        return ref_again, (self.target if self.type_name is None else self.type_name, self.type_name)

    def __repr__(self):
        target = self.type_name or self.target
        return f"shmem.Ref[{'Any' if target == ANY else target}]"


def ref_to_type_name(str name):
    """Return a Ref to the type of that name in the section."""
    cdef Ref ref = Ref[name]
    ref.type_name = name
    return ref


def ref_again(target, type_name):
    """Return the Ref that was pickled."""
    cdef Ref ref = Ref[""]
    ref.target, ref.type_name = target, type_name
    return ref


KINDS = {"ref": ref_to_type_name}     # make a field type from a description that is not a dtype; upper modules add theirs


def public_name(cls):
    """Return the name of a class in a section: its module, without private modules of this package, and its qualified name."""
    layout = getattr(cls, "_shmem_layout_", None)
    if layout is not None:
        return layout.type_name
    package = cls.__module__.partition("._")[0] if cls.__module__.startswith("shmem._") else cls.__module__
    return f"{package}.{cls.__qualname__}"


def target_name(target):
    """Return the type name that a reference to `target` accepts.

    Raises
    ------
    TypeError
        `target` is not a type that objects in a section can have.
    """
    if typing.get_origin(target) in (typing.Union, types.UnionType):
        others = [option for option in typing.get_args(target) if option is not type(None)]
        target = others[0] if len(others) == 1 else target
    if target is typing.Any or target is object:
        return ANY
    if isinstance(target, type) and issubclass(target, (Placed, np.ndarray)):
        return public_name(target)
    raise TypeError(f"a Ref must refer to a Struct class, Block, numpy.ndarray or Any, got {target!r}")


# --- from annotation to field type

cdef object dimension(object count):
    """Return a length, a positive int, which may be given as Literal[count]."""
    if typing.get_origin(count) is typing.Literal and len(typing.get_args(count)) == 1:
        count = typing.get_args(count)[0]
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"a length must be an int or Literal[int], got {count!r}")
    count = count.__index__()
    if not 0 < count <= MAX_FIELD_BYTES:
        raise TypeError(f"a length must be 1 to {MAX_FIELD_BYTES}, got {count}")
    return count


cdef object element_dtype(object element):
    """Return the dtype of an array's elements."""
    if isinstance(element, str):
        raise TypeError(f"the element type of an Array must be shmem.float64 or the like, or a numpy dtype, got the string {element!r}")
    if isinstance(element, (Ref, Array)):
        raise TypeError(f"the elements of an Array must be numbers, got Array[{element!r}, ...]; declare a field for each reference, "
                        "or refer to an array of offsets")
    dtype = element.dtype if isinstance(element, FieldType) else PYTHON_TYPES[element].dtype if element in PYTHON_TYPES else None
    if dtype is None and is_numpy_type(element):
        dtype = np.dtype(element)
    if dtype is not None:
        refuse_metadata(dtype)
    if dtype is None or dtype.kind not in "biufcSUmM" or not dtype.isnative or not dtype.itemsize:
        raise TypeError(f"the elements of an Array must be numbers of fixed size in native byte order, got {element!r}")
    return dtype


cdef bint is_numpy_type(object annotation) except -1:
    return isinstance(annotation, np.dtype) or (isinstance(annotation, type) and issubclass(annotation, np.generic))


def as_field_type(annotation):
    """Return the field type for an evaluated annotation.

    Raises
    ------
    TypeError
        The annotation does not describe a field.
    """
    if isinstance(annotation, FieldType):
        return annotation
    declared = getattr(annotation, "__shmem_field__", None)     # by this other modules add a kind
    if isinstance(declared, FieldType):
        return declared
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        found = [extra for extra in args[1:] if isinstance(extra, FieldType)]
        return as_field_type(found[0] if found else args[0])
    if origin in (typing.Union, types.UnionType):
        others = [option for option in args if option is not type(None)]
        if len(others) == 1 and isinstance(others[0], Ref):
            return others[0]
    if annotation is Ref:
        return Ref[typing.Any]
    if isinstance(annotation, type) and annotation in PYTHON_TYPES:
        return PYTHON_TYPES[annotation]
    if is_numpy_type(annotation):
        dtype = np.dtype(annotation)
        refuse_metadata(dtype)
        if dtype.subdtype is not None:
            return Array[dtype.base, dtype.shape]
        if dtype in SCALARS:
            return SCALARS[dtype]
        if dtype.kind == "S" and dtype.itemsize:
            return Bytes[dtype.itemsize]
    hint = ""
    if isinstance(annotation, type) and issubclass(annotation, Placed):
        hint = f"; to refer to an object write Ref[{annotation.__name__}]"
    elif annotation in (str, bytes):
        hint = "; for bytes write Bytes[N]"
    elif annotation is Array:
        hint = "; write Array[float64, 3]"
    raise TypeError("a field must be int64, float64, bool_ or the like, Bytes[N], Array[type, shape] or Ref[class], "
                    f"got {annotation!r}{hint}")


def field_type_from_description(code, *rest):
    """Return the field type that `describe` described."""
    if code in KINDS:
        return KINDS[code](*rest)
    dtype = np.dtype(code)
    return Array[dtype, tuple(rest[0])] if rest else as_field_type(dtype)


# --- descriptors

cdef int raise_stale(Placed placed) except -1:
    raise InvalidBlock(f"cannot use the {type(placed).__name__} at offset {placed.data - placed.mapping.base:#x}: its block was freed")


cdef int raise_stranger(Field field, object instance) except -1:
    raise TypeError(f"{field.where()} is a field of {field.owner.__name__} objects, got a {type(instance).__name__}")


cdef class Field:
    """A field of a Struct class, as ``Node.key``.

    Attributes
    ----------
    name : str
    type : FieldType
        `shmem.int64`, ``Array[float64, 3]`` and the like.
    offset : int
        Bytes from the object's start.
    origin : type
        The class that declared the field.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a field cannot be constructed directly; annotate the body of a Struct class")

    @property
    def __objclass__(self):
        return self.owner

    def where(self):
        return f"{self.owner.__name__}.{self.name}"

    def __repr__(self):
        return f"<field {self.where()}: {self.type!r} at {self.offset}>"

    cdef object load(self, Placed placed, char* at):
        raise NotImplementedError

    cdef int store(self, object holder, char* at, object value) except -1:
        raise NotImplementedError

    cdef int assign(self, Placed placed, object value) except -1:
        cdef char* at = field_address(self, placed)
        if not placed.mapping.writable:
            raise ReadOnlyError(f"cannot set {self.where()}: the section was opened read-only")
        return self.store(placed, at, value)

    def __get__(self, instance, owner):
        if instance is None:
            return self
        cdef char* at = field_address(self, instance)
        return self.load(<Placed>instance, at)

    def __set__(self, instance, value):
        if not isinstance(instance, Placed):
            raise_stranger(self, instance)
        self.assign(<Placed>instance, value)

    def __reduce__(self):
        return field_again, (self.owner._shmem_layout_, self.name)

    def __delete__(self, instance):
        raise AttributeError(f"cannot delete {self.where()}: fields cannot be deleted")


def field_again(layout, name):
    """Return the field that was pickled."""
    return layout.fields[name]


def make_field(FieldType type_, str name, owner, size_t offset, origin=None):
    """Return the descriptor for a field of this type, name, class and offset, declared in that class or in `origin`."""
    cdef Field field = type_.make_field()
    field.type = type_
    field.name = name
    field.owner = owner
    field.offset = offset
    field.origin = owner if origin is None else origin
    return field


@cython.final
cdef class ScalarField(Field):
    cdef Kind kind

    cdef object load(self, Placed placed, char* at):
        return load_number(self.kind, at)

    cdef int store(self, object holder, char* at, object value) except -1:
        try:
            store_number(self.kind, at, value)
        except (OverflowError, TypeError) as error:
            raise misfit(self.type.dtype, value, error).named(self.where()) from None
        return 0


@cython.final
cdef class BytesField(Field):
    cdef object load(self, Placed placed, char* at):
        cdef size_t count = self.type.n_bytes
        while count and at[count - 1] == 0:
            count -= 1
        return at[:count]

    cdef int store(self, object holder, char* at, object value) except -1:
        try:
            store_bytes(at, self.type.n_bytes, value)
        except Misfit as error:
            raise error.named(self.where()) from None
        return 0


@cython.final
cdef class ArrayField(Field):
    cdef object load(self, Placed placed, char* at):
        """Return an array over the field's bytes; it keeps the object alive, and thereby the mapping."""
        cdef Array type_ = <Array>self.type
        return ndarray(type_.shape, type_.element, placed, self.offset)

    cdef int store(self, object holder, char* at, object value) except -1:
        """Write the whole array, or nothing if an element does not fit."""
        cdef Codec codec = (<Array>self.type).codec
        cdef char* room
        try:
            if isinstance(value, ndarray):
                codec.store(at, value)                  # converts before anything is written
                return 0
            room = <char*>PyMem_Calloc(1, codec.n_bytes)
            if room == NULL:
                raise MemoryError
            try:
                codec.store(room, value)
                memcpy(at, room, codec.n_bytes)
            finally:
                PyMem_Free(room)
        except Misfit as error:
            raise error.named(self.where()) from None
        return 0


@cython.final
cdef class RefField(Field):
    cdef readonly str target_name       # None until resolved
    cdef object accepted                # the class of the last accepted value

    cdef object load(self, Placed placed, char* at):
        cdef uint64_t payload_off = atomic.load_acquire_u64(<uint64_t*>at)
        if payload_off == 0:
            return None
        return follow(self, placed.mapping, payload_off)

    cdef int store(self, object holder, char* at, object value) except -1:
        cdef uint64_t payload_off = 0
        if value is not None:
            if not isinstance(holder, Placed):
                raise TypeError(f"the default of the reference {self.where()} must be None, got {value!r}")
            payload_off = self.offset_of(holder, value)
        atomic.store_release_u64(<uint64_t*>at, payload_off)
        return 0

    cdef uint64_t offset_of(self, Placed holder, object value) except 0:
        """Return the payload offset of `value` after checking that it fits."""
        cdef Placed placed
        if type(value) is not self.accepted:
            self.accept(value)
        if not isinstance(value, Placed):
            return self.offset_of_array(holder.mapping, value)
        placed = <Placed>value
        if placed.mapping is None or placed.serial & PART_OF_BLOCK:
            offset_in(holder.mapping, value)            # raises
        if placed_is_stale(placed):
            raise_stale(placed)
        if placed.mapping.section is not holder.mapping.section:
            raise InvalidBlock(f"cannot set {self.where()}: this {type(value).__name__} is not in the same section, "
                               "and a reference cannot leave its section")
        return <uint64_t>(placed.data - placed.mapping.base)

    cdef uint64_t offset_of_array(self, Mapping mapping, object value) except 0:
        """Return the payload offset of an array that is a block of its own; a reference leads to a whole array, never to a view."""
        cdef uint64_t payload_off = offset_in(mapping, value)
        if not is_whole(value):
            raise InvalidBlock(f"cannot set {self.where()}: this {value.dtype} array of shape {value.shape} is a view of a larger one; "
                               "refer to the whole array")
        return payload_off

    cdef int accept(self, object value) except -1:
        found = type(value)
        layout = getattr(found, "_shmem_layout_", None)
        names = layout.type_names if layout is not None else [public_name(cls) for cls in found.__mro__]
        if not isinstance(value, (Placed, np.ndarray)) or (self.target_name != ANY and self.target_name not in names):
            raise TypeError(f"{self.where()} must be {self.type!r} or None, got {found.__name__} {value!r}")
        self.accepted = found
        return 0


def resolve_ref(RefField field, target):
    """Set the target of a reference that was given as a string to the object that the string names."""
    cdef Ref ref = Ref[target]
    field.type = ref
    field.target_name = ref.type_name


# --- which class a block's object gets

cdef TypeCache cache_of(Mapping mapping):
    """Return the mapping's cache, or a new one if a class was defined since."""
    cdef TypeCache cache = mapping.type_cache
    if cache is None or cache.generation != generation:
        cache = TypeCache.__new__(TypeCache)
        cache.generation = generation
        cache.by_id = []
        cache.by_class = {}
        mapping.type_cache = cache
    return cache


cdef void forget_types() noexcept:
    global generation
    generation += 1


cdef object follow(RefField field, Mapping mapping, uint64_t payload_off):
    """Return the object that a reference leads to.  The class is looked up only if this type id is new to the mapping."""
    cdef Placed found
    cdef uint64_t tag = used_tag(mapping.section, payload_off)
    cdef uint64_t index = tag_type(tag) - TYPE_FIRST_USER       # wraps around for the library's own types
    cdef TypeCache cache = <TypeCache>mapping.type_cache        # may be None
    cdef TypeEntry entry
    if tag == 0:
        raise InvalidBlock(f"cannot follow {field.where()}: the block at offset {payload_off:#x} was freed; set the reference to None")
    if cache is not None and cache.generation == generation and index < <uint64_t>len(cache.by_id):
        entry = <TypeEntry>cache.by_id[index]
        if entry is not None and entry.n_bytes <= payload_bytes(tag_size(tag)):
            found = object_at(mapping, entry.cls, mapping.base + payload_off)
            if used_tag(mapping.section, payload_off) == tag and found.serial != 0:     # else it was freed meanwhile
                return found
    return wrap(mapping, payload_off)
