"""Types of the public names, for type checkers.  What the names do is documented where they are implemented.

To a type checker the number types are Python's: ``x: shmem.float32`` in the body of a Struct class declares a `float`, ``shmem.Bytes[...]``
a `bytes`, and ``shmem.Ref["Node"]`` a ``Node | None``.  That is what reading the field returns, and what a default must be.
Lengths must be written as ``Literal[3]``, because type checkers accept no number between the brackets of a type.

`Struct` is transformed as a dataclass is, but no field is required.  `SharedMemory.new` therefore takes its keywords from `__replace__`,
which has a keyword for each field and requires none.  Type checkers derive it if their target is Python 3.13 or later.
"""

import dataclasses
import enum
import os
import queue
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, Sequence, ValuesView
from types import TracebackType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    dataclass_transform,
    final,
    overload,
)

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer, TypeAliasType, TypeVar, TypeVarTuple

__all__ = [
    "AccessDenied",
    "AddressInUse",
    "Array",
    "Block",
    "Bytes",
    "ClosedError",
    "DeadlockError",
    "Entry",
    "Event",
    "Handle",
    "HeapCorruption",
    "HeapReport",
    "InvalidBlock",
    "LayoutMismatch",
    "LockDescriptor",
    "LimitWarning",
    "LockError",
    "LockMode",
    "LockTimeout",
    "LostReference",
    "Mutex",
    "NameExists",
    "NotASection",
    "ObjectInfo",
    "OperatingSystemError",
    "OwnerDiedWarning",
    "Queue",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "ReadOnlyError",
    "Ref",
    "SectionFull",
    "SectionNotFound",
    "SectionStats",
    "Semaphore",
    "SemaphoreOverflow",
    "SharedMemory",
    "ShmemError",
    "Status",
    "Struct",
    "TooManyParticipants",
    "UntrustedOwner",
    "bool_",
    "complex128",
    "complex64",
    "deallocate",
    "dumps",
    "exclusive_lock",
    "find_storage",
    "float32",
    "float64",
    "get_error_text",
    "handle",
    "info",
    "int16",
    "int32",
    "int64",
    "int8",
    "loads",
    "register",
    "shared_lock",
    "uint16",
    "uint32",
    "uint64",
    "uint8",
]

__version__: str

_P = ParamSpec("_P")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
_Scalar = TypeVar("_Scalar", bound=np.generic)
_Struct = TypeVar("_Struct", bound=Struct)
_Struct_co = TypeVar("_Struct_co", bound=Struct, covariant=True)
_Object = TypeVar("_Object", default=Any)
_Found = TypeVar("_Found", bound=_Placed)
_Got = TypeVar("_Got", default=Any)
_Put = TypeVar("_Put", default=Any)

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_Size: TypeAlias = SupportsIndex | str
_Shape: TypeAlias = SupportsIndex | Iterable[SupportsIndex]
_MaxShape: TypeAlias = SupportsIndex | Sequence[SupportsIndex | None]
_DType: TypeAlias = np.dtype[_Scalar] | type[_Scalar]
_Order: TypeAlias = Literal["C", "F"]
_Mode: TypeAlias = Literal["read_write", "read_only"]
_Index: TypeAlias = Literal["tlsf", "next_fit"]
_Placed: TypeAlias = Block | Struct | Queue[Any, Any] | Semaphore | Event | Mutex | npt.NDArray[Any]

# -- errors -------------------------------------------------------------------------------------------------

class Status(enum.IntEnum):
    ok = 0
    timeout_expired = -1
    deadlock = -2
    owner_died = -3
    no_memory = -4
    corrupted = -5
    not_a_section = -6
    layout_mismatch = -7
    address_in_use = -8
    too_many_participants = -9
    invalid_block = -10
    already_freed = -11
    name_exists = -12
    closed = -13
    pinned = -14
    read_only = -15
    not_owner = -16
    label_mismatch = -17
    untrusted_owner = -18
    unsupported_file_system = -19
    too_many_threads = -20
    value_overflow = -21
    queue_full = -22
    queue_empty = -23
    queue_closed = -24

def get_error_text(status: int) -> str: ...

class ShmemError(Exception):
    status: int
    def __init__(self, *args: object) -> None: ...

class LockTimeout(ShmemError, TimeoutError): ...
class DeadlockError(ShmemError, RuntimeError): ...
class LockError(ShmemError, RuntimeError): ...
class SectionFull(ShmemError, MemoryError): ...

class HeapCorruption(ShmemError):
    offset: int | None

class NotASection(ShmemError, OSError): ...
class SectionNotFound(ShmemError, FileNotFoundError): ...
class OperatingSystemError(ShmemError, OSError): ...
class AccessDenied(ShmemError, PermissionError): ...
class LayoutMismatch(ShmemError, TypeError): ...
class AddressInUse(ShmemError, OSError): ...
class TooManyParticipants(ShmemError, OSError): ...
class UntrustedOwner(ShmemError, PermissionError): ...
class ReadOnlyError(ShmemError, PermissionError): ...
class InvalidBlock(ShmemError, ValueError): ...
class NameExists(ShmemError, ValueError): ...
class SemaphoreOverflow(ShmemError, OverflowError): ...
class ClosedError(ShmemError, ValueError): ...
class QueueFull(ShmemError, queue.Full): ...
class QueueEmpty(ShmemError, queue.Empty): ...

if sys.version_info >= (3, 13):
    class QueueShutDown(ShmemError, queue.ShutDown): ...

else:
    class QueueShutDown(ShmemError): ...

class LimitWarning(UserWarning):
    def __init__(self, *args: object) -> None: ...

class OwnerDiedWarning(UserWarning):
    def __init__(self, *args: object) -> None: ...

# -- fields of Struct classes -------------------------------------------------------------------------------

bool_: TypeAlias = bool
int8: TypeAlias = int
int16: TypeAlias = int
int32: TypeAlias = int
int64: TypeAlias = int
uint8: TypeAlias = int
uint16: TypeAlias = int
uint32: TypeAlias = int
uint64: TypeAlias = int
float32: TypeAlias = float
float64: TypeAlias = float
complex64: TypeAlias = complex
complex128: TypeAlias = complex

_Length = TypeVar("_Length")
_Lengths = TypeVarTuple("_Lengths")

Bytes = TypeAliasType("Bytes", bytes, type_params=(_Length,))
Ref: TypeAlias = _T | None

@final
class Array(Generic[_T, *_Lengths]):
    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self: Array[_Scalar, *tuple[Any, ...]], instance: object, owner: type[Any]) -> npt.NDArray[_Scalar]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any]) -> npt.NDArray[Any]: ...
    def __set__(self, instance: object, value: npt.ArrayLike) -> None: ...

class _StructMeta(type):
    def __new__(
        meta: type[_T], name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, type_name: str | None = None, **kwargs: Any
    ) -> _T: ...

class _HasFields(Protocol[_P, _Struct_co]):
    def __replace__(self, *args: _P.args, **kwargs: _P.kwargs) -> _Struct_co: ...

@dataclass_transform(kw_only_default=True, eq_default=False)
class Struct(metaclass=_StructMeta):
    dtype: ClassVar[np.dtype[np.void]]
    @property
    def offset(self) -> int: ...
    @property
    def section(self) -> SharedMemory | None: ...
    def __init__(self, /, *args: Any, **fields: Any) -> None: ...
    def __replace__(self, /, **fields: Any) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

# -- blocks -------------------------------------------------------------------------------------------------

class Block:
    def __new__(cls, *args: Any, **keywords: Any) -> NoReturn: ...
    @property
    def offset(self) -> int: ...
    @property
    def section(self) -> SharedMemory | None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

# -- semaphores, events, mutexes ----------------------------------------------------------------------------

class _Waitable:
    @property
    def offset(self) -> int | None: ...
    @property
    def section(self) -> SharedMemory | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def unlink(self) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Semaphore(_Waitable):
    __shmem_field__: ClassVar[Any]
    def __init__(
        self, name: str | None = None, value: SupportsIndex = 0, *, permissions: int = 0o600, trust_owner: bool = False
    ) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def signal(self, inc: SupportsIndex = 1) -> None: ...
    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool: ...
    def release(self, n: SupportsIndex = 1) -> None: ...
    @property
    def value(self) -> int: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /) -> None: ...

@final
class Event(_Waitable):
    __shmem_field__: ClassVar[Any]
    def __init__(self, name: str | None = None, signaled: bool = False, *, permissions: int = 0o600, trust_owner: bool = False) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def signal(self) -> None: ...
    def reset(self) -> None: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool: ...

@final
class Mutex(_Waitable):
    __shmem_field__: ClassVar[Any]
    def __new__(cls, *args: Any, **keywords: Any) -> NoReturn: ...
    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    @property
    def owner_deaths(self) -> int: ...
    def __enter__(self) -> bool: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /) -> None: ...

# -- queues: of what `get` returns, and of what `put` takes -----------------------------------------------------

class Queue(Generic[_Got, _Put]):
    def __new__(cls, *args: Any, **keywords: Any) -> NoReturn: ...
    @property
    def offset(self) -> int: ...
    @property
    def section(self) -> SharedMemory | None: ...
    @property
    def record(self) -> np.dtype[Any] | type[Any]: ...
    @property
    def dtype(self) -> np.dtype[Any] | None: ...
    @property
    def maxsize(self) -> int: ...
    @property
    def max_bytes(self) -> int | None: ...
    @property
    def is_shutdown(self) -> bool: ...
    def put(self, item: _Put, block: bool = True, timeout: float | None = None) -> None: ...
    def put_nowait(self, item: _Put) -> None: ...
    def put_many(self, items: Iterable[_Put] | npt.NDArray[Any], block: bool = True, timeout: float | None = None) -> int: ...
    def get(self, block: bool = True, timeout: float | None = None) -> _Got: ...
    def get_nowait(self) -> _Got: ...
    @overload
    def get_many(  # type: ignore[overload-overlap]
        self: Queue[bytes, Buffer], max_items: SupportsIndex, block: bool = True, timeout: float | None = None
    ) -> list[bytes]: ...
    @overload
    def get_many(self, max_items: SupportsIndex, block: bool = True, timeout: float | None = None) -> npt.NDArray[Any]: ...
    def qsize(self) -> int: ...
    def empty(self) -> bool: ...
    def full(self) -> bool: ...
    def shutdown(self, immediate: bool = False) -> None: ...
    def __class_getitem__(cls, item: Any) -> Any: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

# -- the lock -----------------------------------------------------------------------------------------------

class LockMode(enum.Enum):
    shared = "shared"
    exclusive = "exclusive"

class LockDescriptor:
    def __init__(self, mode: LockMode | Literal["shared", "exclusive"]) -> None: ...
    @property
    def mode(self) -> LockMode: ...
    @property
    def held(self) -> bool: ...

class _Lock:
    def __init__(self, section: SharedMemory, timeout: float | None = None) -> None: ...
    @property
    def section(self) -> SharedMemory: ...
    @property
    def timeout(self) -> float | None: ...
    def __call__(self, function: _F) -> _F: ...

class exclusive_lock(_Lock):
    def __enter__(self) -> SharedMemory: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /) -> None: ...

class shared_lock(_Lock):
    def __enter__(self) -> SharedMemory: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /) -> None: ...

# -- records ------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Handle(Generic[_Object]):
    path: str
    name: str
    anonymous: bool
    uuid: bytes
    device: int
    inode: int
    mode: str
    offset: int = 0
    serial: int = 0
    view: tuple[Any, ...] | None = None
    claim: tuple[int, int] | None = None
    def __class_getitem__(cls, item: Any) -> Any: ...
    def open(self, *, writeable: bool = True) -> _Object: ...

class LostReference:
    @property
    def lost_error(self) -> Exception: ...
    @property
    def lost_handle(self) -> Handle[Any] | None: ...
    def __init__(self, error: Exception, handle: Handle[Any] | None = None) -> None: ...

@dataclasses.dataclass(frozen=True)
class HeapReport:
    blocks: int
    internal_blocks: int
    pending_blocks: int
    used_bytes: int
    holes: int
    hole_bytes: int
    largest_hole: int
    cached_blocks: int
    cached_bytes: int

@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    section: SharedMemory
    offset: int
    serial: int
    names: tuple[str, ...]
    pins: tuple[int, ...]

@dataclasses.dataclass(frozen=True)
class SectionStats:
    max_size: int
    used: int
    free: int
    largest_hole: int
    blocks: int
    holes: int
    cached_blocks: int
    top: int
    reserved: int
    high_water: int
    participants: tuple[int, ...]
    lock_holder: int | None
    lock_sharers: int
    lock_waiters: int
    owner_deaths: int
    recoveries: int
    claims: int
    claimed_bytes: int

# -- entries of the directory ---------------------------------------------------------------------------------

class Entry:
    def __init__(self, section: SharedMemory, name: str) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def dtype(self) -> np.dtype[Any] | None: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def maxshape(self) -> tuple[int | None, ...] | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def pins(self) -> tuple[int, ...]: ...
    @property
    def sealed(self) -> bool: ...
    @property
    def version(self) -> int: ...
    def touch(self) -> int: ...
    def wait_changed(self, since: int | None = None, timeout: float | None = None) -> int | None: ...
    def replace(self, value: npt.ArrayLike | _Placed | Buffer) -> None: ...
    def rename(self, new_name: str) -> None: ...
    def append(self, rows: npt.ArrayLike, move: bool = False) -> None: ...
    def resize(self, shape: _Shape, move: bool = False) -> None: ...
    def seal(self) -> None: ...
    def __reduce__(self) -> NoReturn: ...

class _Tree:
    def _repr_html_(self) -> str: ...

# -- functions ----------------------------------------------------------------------------------------------

def deallocate(obj: _Placed) -> None: ...
def dumps(obj: object, protocol: int | None = None) -> bytes: ...
def find_storage(obj: object) -> SharedMemory | None: ...
@overload
def handle(obj: npt.NDArray[_Scalar], *, claim: float | None = None) -> Handle[npt.NDArray[_Scalar]]: ...
@overload
def handle(obj: _Object, *, claim: float | None = None) -> Handle[_Object]: ...
def info(obj: _Placed | memoryview) -> ObjectInfo: ...
def loads(data: Buffer) -> Any: ...
def register(library: Literal["billiard", "joblib", "loky", "multiprocess", "pyarrow"]) -> None: ...

# -- sections -----------------------------------------------------------------------------------------------

class SharedMemory(MutableMapping[str, Any]):
    def __init__(
        self,
        file_name: _Path | None = None,
        shared_name: str | None = None,
        max_size: _Size | None = None,
        mode: _Mode = "read_write",
        desired_address: SupportsIndex | None = None,
        *,
        index: _Index | None = None,
        max_participants: SupportsIndex | None = None,
        permissions: SupportsIndex = 0o600,
        trust_owner: bool = False,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /) -> None: ...
    def __bool__(self) -> bool: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def mode(self) -> _Mode: ...
    @property
    def label(self) -> str | None: ...
    @property
    def max_size(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def uuid(self) -> bytes: ...
    @property
    def index(self) -> _Index: ...
    @property
    def owner_deaths(self) -> int: ...
    @property
    def recovered(self) -> bool: ...

    # the heap
    def allocate(self, size: _Size, zero: bool = True, align: _Size = 16) -> Block: ...
    def reallocate(self, obj: Block, size: _Size, zero: bool = True) -> Block: ...
    def free(self, obj: _Placed | int) -> None: ...
    def block(self, offset: SupportsIndex) -> Block: ...
    def trim(self) -> None: ...
    def sweep(self, claims: float | None = None) -> int: ...
    def check_heap(self) -> HeapReport: ...
    def stats(self) -> SectionStats: ...

    # arrays
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: _DType[_Scalar],
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def empty(
        self, shape: _Shape, *, order: _Order = "C", name: str | None = None, temporary: bool = False, maxshape: _MaxShape | None = None
    ) -> npt.NDArray[np.float64]: ...
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: npt.DTypeLike = ...,
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[Any]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: _DType[_Scalar],
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def zeros(
        self, shape: _Shape, *, order: _Order = "C", name: str | None = None, temporary: bool = False, maxshape: _MaxShape | None = None
    ) -> npt.NDArray[np.float64]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: npt.DTypeLike = ...,
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[Any]: ...
    @overload
    def full(
        self,
        shape: _Shape,
        fill_value: npt.ArrayLike,
        dtype: _DType[_Scalar],
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def full(
        self,
        shape: _Shape,
        fill_value: npt.ArrayLike,
        dtype: npt.DTypeLike | None = None,
        order: _Order = "C",
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[Any]: ...
    @overload
    def array(
        self,
        obj: npt.ArrayLike,
        dtype: _DType[_Scalar],
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def array(
        self,
        obj: npt.NDArray[_Scalar],
        dtype: None = None,
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[_Scalar]: ...
    @overload
    def array(
        self,
        obj: npt.ArrayLike,
        dtype: npt.DTypeLike | None = None,
        *,
        name: str | None = None,
        temporary: bool = False,
        maxshape: _MaxShape | None = None,
    ) -> npt.NDArray[Any]: ...
    @overload
    def copy(self, obj: npt.NDArray[_Scalar], *, name: str | None = None, temporary: bool = False) -> npt.NDArray[_Scalar]: ...
    @overload
    def copy(self, obj: npt.ArrayLike, *, name: str | None = None, temporary: bool = False) -> npt.NDArray[Any]: ...

    # objects
    @overload
    def new(self, cls: _DType[_Scalar], /, *, type_name: None = None) -> npt.NDArray[_Scalar]: ...
    @overload
    def new(self, cls: type[bool] | type[int] | type[float] | type[complex], /, *, type_name: None = None) -> npt.NDArray[Any]: ...
    @overload
    def new(self, cls: type[_Struct], /, *args: Any, type_name: str, **kwargs: Any) -> _Struct: ...
    @overload
    def new(self, cls: type[_HasFields[_P, _Struct]], /, *args: _P.args, **kwargs: _P.kwargs) -> _Struct: ...
    @overload
    def new(self, cls: Callable[_P, _Struct], /, *args: _P.args, **kwargs: _P.kwargs) -> _Struct: ...
    @property
    def root(self) -> Any: ...
    @root.setter
    def root(self, obj: _Placed | None) -> None: ...
    def get_root_object(self) -> Any: ...
    def set_root_object(self, obj: _Placed | None) -> None: ...
    def require_root(self, factory: Callable[[], _Found]) -> _Found: ...
    def semaphore(self, value: SupportsIndex = 0, *, name: str | None = None) -> Semaphore: ...
    def event(self, signaled: bool = False, *, name: str | None = None) -> Event: ...
    def mutex(self, *, name: str | None = None) -> Mutex: ...
    @overload
    def queue(
        self, maxsize: SupportsIndex, record: type[bytes], *, max_bytes: SupportsIndex, name: str | None = None
    ) -> Queue[bytes, Buffer]: ...
    @overload
    def queue(
        self, maxsize: SupportsIndex, record: type[_Struct], *, max_bytes: None = None, name: str | None = None
    ) -> Queue[np.record, _Struct | dict[str, Any] | tuple[Any, ...] | np.void]: ...
    @overload
    def queue(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, maxsize: SupportsIndex, record: type[bool], *, max_bytes: None = None, name: str | None = None
    ) -> Queue[bool, bool | np.bool_]: ...
    @overload
    def queue(
        self, maxsize: SupportsIndex, record: type[int], *, max_bytes: None = None, name: str | None = None
    ) -> Queue[int, SupportsIndex]: ...
    @overload
    def queue(
        self, maxsize: SupportsIndex, record: type[float], *, max_bytes: None = None, name: str | None = None
    ) -> Queue[float, SupportsFloat | SupportsIndex]: ...
    @overload
    def queue(
        self, maxsize: SupportsIndex, record: npt.DTypeLike, *, max_bytes: None = None, name: str | None = None
    ) -> Queue[Any, Any]: ...

    # the directory
    def __setitem__(self, name: str, value: npt.ArrayLike | _Placed | Buffer) -> None: ...
    def __getitem__(self, name: str) -> Any: ...
    def __delitem__(self, name: str) -> None: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def keys(self) -> KeysView[str]: ...
    def values(self) -> ValuesView[Any]: ...
    def items(self) -> ItemsView[str, Any]: ...
    def get(self, name: str, default: object = None) -> Any: ...
    def replace(self, name: str, value: npt.ArrayLike | _Placed | Buffer) -> None: ...
    def entry(self, name: str) -> Entry: ...
    def pop(self, name: str, default: object = ...) -> Any: ...
    def popitem(self) -> tuple[str, Any]: ...
    def setdefault(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: str, default: npt.ArrayLike | _Placed | Buffer
    ) -> Any: ...
    def update(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        other: Mapping[str, npt.ArrayLike | _Placed | Buffer] | Iterable[tuple[str, npt.ArrayLike | _Placed | Buffer]] = (),
        /,
        **more: npt.ArrayLike | _Placed | Buffer,
    ) -> None: ...
    def clear(self) -> None: ...
    def tree(self, level: SupportsIndex | None = None, max_names: SupportsIndex = 50) -> _Tree: ...
    @overload
    def require(self, name: str, factory: Callable[[], _Found]) -> _Found: ...
    @overload
    def require(self, name: str, factory: Callable[[], npt.ArrayLike | Buffer]) -> Any: ...

    # the lock
    def lock(self, descriptor: LockDescriptor, timeout: float | None = None) -> None: ...
    def unlock(self, descriptor: LockDescriptor) -> None: ...

    # persistence
    def flush(self) -> None: ...
    def snapshot(self, path: _Path, timeout: float | None = None) -> None: ...
    def __reduce__(self) -> NoReturn: ...
