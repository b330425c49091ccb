# cython: language_level=3
"""Conversion of values between Python and memory: scalars, byte strings, text, dates, sub-arrays, records, and arrays of all of these.

`Codec.store` stores one value; `Codec.convert` converts an array of another dtype with numpy's loops.  Both accept the same
values: `convert` gives the result of `store` for each element.  A refused value raises `Misfit`, which the caller turns into
TypeError, OverflowError or ValueError with the name of the field or item.
"""

import collections.abc
import functools
import math

import warnings

import numpy as np

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.complex cimport PyComplex_FromCComplex
from cpython.float cimport PyFloat_AsDouble
from cpython.long cimport PyLong_AsDouble
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.number cimport PyNumber_Index
from libc.string cimport memcpy, memset

cdef extern from "Python.h":
    Py_complex PyComplex_AsCComplex(object) except *        # Cython's own declaration overlooks the exception

cdef object ndarray = np.ndarray
cdef object numpy_bool = np.bool_

MAX_SHOWN = 80          # characters of a refused value in a message
MAX_DEPTH = 64          # of nested sequences: numpy's arrays have no more dimensions

# dtype.str -> Kind, of the numbers that load_number and store_number convert
NUMBERS = {"|b1": BOOL, "|i1": INT8, "<i2": INT16, "<i4": INT32, "<i8": INT64, "|u1": UINT8, "<u2": UINT16, "<u4": UINT32, "<u8": UINT64,
           "<f4": FLOAT32, "<f8": FLOAT64, "<c8": COMPLEX64, "<c16": COMPLEX128}


# -- refusals ---------------------------------------------------------------------------------------------

class Misfit(Exception):
    """A refused value.

    Attributes
    ----------
    error : type
        The exception class to raise instead: TypeError, OverflowError or ValueError.
    path : str
        The refused part of the value, as ``['name'][3]``.
    text : str
        The requirement and the value found.
    """

    def __init__(self, error, text):
        super().__init__(error, text)
        self.error = error
        self.path = ""
        self.text = text

    def found_in(self, part):
        """Note that the refused value is a part of a larger one."""
        self.path = f"[{part!r}]{self.path}"

    def named(self, place):
        """Return the exception to raise, with the name of the field or item that refused the value."""
        return self.error(f"{place}{self.path} {self.text}")


cdef str shown(object value):
    """Return a short text of a value for a message, even if its `repr` raises."""
    try:
        text = repr(value)
    except Exception:                    # for example an int of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


cdef object wrong_type(str wanted, object value):
    return Misfit(TypeError, f"must be {wanted}, got {type(value).__name__} {shown(value)}")


cdef object misfit(object dtype, object value, object error):
    if isinstance(error, TypeError):
        return wrong_type(str(dtype), value)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype) if dtype.kind in "fc" else None
    bounds = f"{limits.min} to {limits.max}" if limits is not None else "False or True"
    return Misfit(OverflowError, f"must be {dtype} ({bounds}), got {shown(value)}, which does not fit")


cdef int raise_unknown_kind(Kind kind) except -1:
    raise SystemError(f"cannot convert a number of the unknown kind {<int>kind}: the codec does not implement it")


# -- numbers ----------------------------------------------------------------------------------------------

cdef Kind kind_of(object dtype) except *:
    return NUMBERS.get(dtype.str, NOT_A_NUMBER) if dtype.names is None and dtype.subdtype is None else NOT_A_NUMBER


cdef object bare(object value):
    """Return the value itself if an array of no dimensions holds it."""
    return value[()] if isinstance(value, ndarray) and value.ndim == 0 else value


cdef object as_integer(object value):
    if isinstance(value, ndarray):
        value = bare(value)
    if type(value) is numpy_bool:        # accepted as an integer like Python's bool, although it has no `__index__`
        return 1 if value else 0
    return PyNumber_Index(value)


cdef object as_number(object value, str kinds):
    """Return the value; raise TypeError for numpy scalars and arrays whose `__float__` would not convert a number, or would lose a part."""
    value = bare(value)
    if isinstance(value, ndarray) or (isinstance(value, np.generic) and value.dtype.kind not in kinds):
        raise TypeError
    return value


cdef double as_double(object value) except? -1:
    cdef double found
    if PyLong_Check(value):
        return PyLong_AsDouble(value)
    value = as_number(value, "biuf")
    found = PyFloat_AsDouble(value)
    if isinf(found) and value != found:
        raise OverflowError
    return found


cdef object complex_object(object value):
    """Return a number as a Python complex."""
    value = as_number(value, "biufc")
    number = PyComplex_FromCComplex(PyComplex_AsCComplex(value))
    for part in ("real", "imag"):
        if math.isinf(getattr(number, part)) and getattr(value, part, math.inf) not in (math.inf, -math.inf):
            raise OverflowError
    return number


cdef Py_complex as_complex(object value) except *:
    return PyComplex_AsCComplex(value if isinstance(value, (float, complex)) else complex_object(value))


cdef object first_where(object bad, object source):
    """Return (index, element) of the first refused element."""
    cdef Py_ssize_t at = bad.reshape(-1).argmax()
    return np.unravel_index(at, source.shape), source.reshape(-1)[at]


cdef int refuse_where(object bad, object source, object dtype) except -1:
    """Raise the Misfit for the first element that does not fit, if there is one."""
    if bad.any():
        index, value = first_where(bad, source)
        raise located(misfit(dtype, value, OverflowError()), index)
    return 0


cdef object located(object error, object index):
    for i in reversed(index):
        error.found_in(int(i))
    return error


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def quiet_cast(source, dtype):
    """Cast without numpy's warnings: `narrowed` checks the result itself."""
    return source.astype(dtype)


cdef object narrowed(object source, object dtype, object target):
    """Return an array of floats or complex numbers with fewer bits; raise Misfit for `target` if a finite number becomes infinite."""
    found = quiet_cast(source, dtype)
    bad = np.isinf(found.real) & ~np.isinf(source.real)
    if dtype.kind == "c":
        bad |= np.isinf(found.imag) & ~np.isinf(source.imag)
    refuse_where(bad, source, target)
    return found


cdef object convert_numbers(object source, object dtype):
    """Return an array of numbers as another native dtype of numbers."""
    cdef str kinds = {"b": "biu", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc"}[dtype.kind]
    if source.dtype.kind not in kinds:
        if source.size == 0:
            return np.zeros(source.shape, dtype)
        raise located(wrong_type(str(dtype), source.reshape(-1)[0]), (0,) * source.ndim)
    if dtype.kind in "iub":
        if source.size and not np.can_cast(source.dtype, dtype):
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            if int(source.min()) < least or int(source.max()) > most:
                bad = np.array([not least <= value <= most for value in source.reshape(-1).tolist()])
                refuse_where(bad, source, dtype)
        return source.astype(dtype)
    if source.dtype.kind in "biu" or source.dtype.itemsize > (8 if source.dtype.kind == "f" else 16):
        if dtype.itemsize <= (8 if dtype.kind == "f" else 16):       # through a double, for the same rounding as `store`
            source = narrowed(source, np.dtype(complex if source.dtype.kind == "c" else float), dtype)
    return narrowed(source, dtype, dtype)


# -- codecs -----------------------------------------------------------------------------------------------

cdef class Codec:

    def __init__(self):
        raise TypeError("a Codec is made by codec_of(dtype)")

    cdef int store(self, char* at, object value) except -1:
        raise NotImplementedError

    cdef int store_whole(self, char* at, object value) except -1:
        return self.store(at, value)

    cdef object convert(self, object source):
        """Convert element by element, unless a subclass overrides it."""
        cdef bytearray room = bytearray(source.size * self.n_bytes)
        cdef Py_ssize_t i
        for i, value in enumerate(source.flat):
            try:
                self.store(<char*>room + i * self.n_bytes, value)
            except Misfit as error:
                raise located(error, np.unravel_index(i, source.shape))
        return np.ndarray(source.shape, self.dtype, room)


cdef class NumberCodec(Codec):
    """Numbers that have a Kind."""

    cdef int store(self, char* at, object value) except -1:
        try:
            store_number(self.kind, at, value)
        except (OverflowError, TypeError) as error:
            raise misfit(self.dtype, value, error) from None
        return 0

    cdef object convert(self, object source):
        return Codec.convert(self, source) if source.dtype.kind == "O" else convert_numbers(source, self.dtype)


cdef object as_long_double(object number):
    """Return an int as a longdouble, which holds integers that a double cannot."""
    try:
        found = np.longdouble(number)
    except ValueError:                   # numpy converts through decimal digits, of which Python refuses more than 4300
        raise OverflowError from None
    if np.isinf(found):
        raise OverflowError
    return found


cdef class FloatCodec(Codec):
    """Numbers that only numpy has: float16, longdouble, clongdouble."""

    cdef int store(self, char* at, object value) except -1:
        kind = self.dtype.kind
        try:
            number = as_number(value, "biuf" if kind == "f" else "biufc")
            if not isinstance(number, np.generic) and not (isinstance(number, int) and self.n_bytes > 8):
                number = as_double(number) if kind == "f" else complex_object(number)
            source = np.asarray(as_long_double(number) if isinstance(number, int) else number)
        except (OverflowError, TypeError) as error:
            raise misfit(self.dtype, value, error) from None
        store_array(at, convert_numbers(source, self.dtype))
        return 0

    cdef object convert(self, object source):
        return Codec.convert(self, source) if source.dtype.kind == "O" else convert_numbers(source, self.dtype)


cdef int store_array(char* at, object array) except -1:
    cdef bytes raw = array.tobytes()
    memcpy(at, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
    return 0


cdef class SwappedCodec(Codec):
    """Values in the other byte order."""
    cdef Codec native

    cdef int store(self, char* at, object value) except -1:
        cdef bytearray room = bytearray(self.n_bytes)
        self.native.store(<char*>room, value)
        store_array(at, np.ndarray((), self.native.dtype, room).byteswap())
        return 0

    cdef object convert(self, object source):
        return self.native.convert(source).astype(self.dtype)


# -- byte strings and text --------------------------------------------------------------------------------

cdef memoryview plain_buffer(object value):
    """Return the buffer of a value; refuse one of Python objects, whose bytes are addresses."""
    cdef memoryview found
    try:
        found = memoryview(value)
    except TypeError:
        raise wrong_type("bytes or another buffer", value) from None
    if "O" in found.format:
        raise Misfit(TypeError, f"must be bytes or another buffer of plain data, got a buffer of Python objects: {shown(value)}")
    return found


cdef object too_long(size_t n_most, object n_found, str unit):
    return Misfit(ValueError, f"must have at most {n_most} {unit}, got {n_found}")


cdef int store_bytes(char* at, size_t n_bytes, object value) except -1:
    """Write a byte string padded with NUL bytes, or raise Misfit and leave the memory unchanged."""
    cdef bytes text
    cdef size_t count
    value = bare(value)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        hint = "; encode it first" if isinstance(value, str) else ""
        raise Misfit(TypeError, f"must be bytes, got {type(value).__name__} {shown(value)}{hint}")
    text = bytes(plain_buffer(value)) if isinstance(value, memoryview) else bytes(value)
    count = PyBytes_GET_SIZE(text)
    if count > n_bytes:
        raise too_long(n_bytes, count, "bytes")
    if count and PyBytes_AS_STRING(text)[count - 1] == 0:
        raise Misfit(ValueError, f"must not end with a NUL byte, which is the padding, got {shown(text)}; for raw bytes use uint8")
    memcpy(at, PyBytes_AS_STRING(text), count)
    memset(at + count, 0, n_bytes - count)
    return 0


cdef class TextCodec(Codec):
    """Byte strings and text of fixed size, padded with NULs: S and U."""

    cdef int store(self, char* at, object value) except -1:
        cdef size_t n_most = self.n_bytes // 4
        if self.dtype.kind == "S":
            return store_bytes(at, self.n_bytes, value)
        value = bare(value)
        if not isinstance(value, str):
            hint = "; decode it first" if isinstance(value, (bytes, bytearray)) else ""
            raise Misfit(TypeError, f"must be str, got {type(value).__name__} {shown(value)}{hint}")
        if len(value) > n_most:
            raise too_long(n_most, len(value), "characters")
        if value.endswith("\0"):
            raise Misfit(ValueError, f"must not end with a NUL character, which is the padding, got {shown(value)}")
        store_array(at, np.array(value, self.dtype))
        return 0

    cdef object convert(self, object source):
        if source.dtype.kind != self.dtype.kind:
            return Codec.convert(self, source)
        if source.dtype.itemsize > self.dtype.itemsize and source.size:
            lengths = np.char.str_len(source)
            n_most = self.n_bytes if self.dtype.kind == "S" else self.n_bytes // 4
            if lengths.max() > n_most:
                index, n_found = first_where(lengths > n_most, lengths)
                raise located(too_long(n_most, n_found, "bytes" if self.dtype.kind == "S" else "characters"), index)
        return source.astype(self.dtype)


cdef class VoidCodec(Codec):
    """Raw bytes without fields; shorter ones are padded with NUL bytes."""

    cdef int store(self, char* at, object value) except -1:
        value = bare(value)
        if not isinstance(value, (bytes, bytearray, memoryview, np.void)):
            raise wrong_type(f"{self.n_bytes} raw bytes", value)
        text = value.tobytes() if isinstance(value, np.void) else bytes(plain_buffer(value))
        if len(text) > self.n_bytes:
            raise too_long(self.n_bytes, len(text), "bytes")
        memcpy(at, PyBytes_AS_STRING(text), len(text))
        memset(at + len(text), 0, self.n_bytes - len(text))
        return 0


cdef class TimeCodec(Codec):
    """Dates and durations: datetime64 and timedelta64."""

    cdef int store(self, char* at, object value) except -1:
        value = bare(value)
        try:
            if isinstance(value, (bool, float, complex)):
                raise TypeError
            if isinstance(value, np.generic) and value.dtype.kind not in f"{self.dtype.kind}iuSU":
                raise TypeError
            if isinstance(value, int) or (isinstance(value, np.integer) and value.dtype.kind in "iu"):
                found = np.array(int(value), np.int64).view(self.dtype)         # numpy raises the OverflowError
            elif value is None or (isinstance(value, (str, bytes)) and value.lower() in ("nat", "", b"nat", b"")):
                found = np.array("NaT", self.dtype)         # newer numpy does not convert a NaT without a unit
            else:
                found = self.convert_times(self.parse(value))
        except TypeError:
            raise wrong_type(str(self.dtype), value) from None
        except OverflowError:
            raise Misfit(OverflowError, f"must be {self.dtype}, got {shown(value)}, which does not fit") from None
        except ValueError:
            raise Misfit(ValueError, f"must be {self.dtype}, got {type(value).__name__} {shown(value)}") from None
        store_array(at, found)
        return 0

    cdef object parse(self, object value):
        """Return a value as numpy reads it, as a 0-d array; newer numpy warns of text without a unit."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray((np.datetime64 if self.dtype.kind == "M" else np.timedelta64)(value))

    cdef object convert_times(self, object source):
        """Return times in another unit; refuse those that would be rounded or overflow."""
        if np.datetime_data(source.dtype)[0] == "generic":
            return source.astype(self.dtype)
        try:
            found = source.astype(self.dtype)
        except OverflowError as error:
            raise Misfit(OverflowError, f"must be {self.dtype}, got {shown(source)}, which does not fit: {error}") from None
        bad = (found.astype(source.dtype) != source) & ~(np.isnat(source) & np.isnat(found))
        if bad.any():
            index, value = first_where(bad, source)
            raise located(Misfit(ValueError, f"must be {self.dtype}, got {value!r}, which that unit cannot represent"), index)
        return found

    cdef object convert(self, object source):
        if source.dtype.kind in "iu":
            return convert_numbers(source, np.dtype(np.int64)).view(self.dtype)
        return self.convert_times(source) if source.dtype.kind == self.dtype.kind else Codec.convert(self, source)


# -- sub-arrays and records -------------------------------------------------------------------------------

cdef class ArrayCodec(Codec):
    """Arrays of fixed shape.  A value is broadcast as numpy does when it assigns."""
    cdef Codec element
    cdef tuple shape
    cdef list steps                   # bytes from one item to the next, for each dimension

    cdef int store_whole(self, char* at, object value) except -1:
        value = self.as_array(value)
        if self.is_sequence(value) or (isinstance(value, ndarray) and value.ndim):
            return self.fill(at, 0, value, True)
        return self.store(at, value)

    cdef int store(self, char* at, object value) except -1:
        cdef Py_ssize_t n_dims = len(self.shape), depth, axis
        value = self.as_array(value)
        if isinstance(value, ndarray) and value.ndim:
            return self.store_source(at, 0, value, False)
        depth = self.depth(value)
        if depth > n_dims:
            raise self.wrong_shape(value, False)
        axis = n_dims - depth
        self.fill(at, axis, value, False)
        if axis == 0:
            return 0
        cdef size_t n_filled = self.steps[axis - 1], done
        for done in range(n_filled, self.n_bytes, n_filled):
            memcpy(at + done, at, n_filled)
        return 0

    cdef bint is_sequence(self, object value) except -1:
        """Return whether a value stands for several elements.  For records a tuple is one element."""
        if isinstance(value, list):
            return True
        if isinstance(value, tuple):
            return not isinstance(self.element, RecordCodec)
        return isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview, np.generic))

    cdef bint is_buffer(self, object value) except -1:
        """Return whether a value is an array of elements, not one element."""
        if isinstance(value, (bytearray, memoryview)):
            return self.element.dtype.kind not in "SV"
        return hasattr(value, "__array__") and not isinstance(value, (np.generic, ndarray))

    cdef object as_array(self, object value):
        """Return the array behind a buffer of elements, and any other value as it is."""
        return np.asarray(value) if not isinstance(value, (list, tuple)) and self.is_buffer(value) else value

    cdef Py_ssize_t depth(self, object value) except -1:
        cdef Py_ssize_t found = 0
        while self.is_sequence(value):
            found += 1
            if not len(value) or found > MAX_DEPTH:
                return found
            value = value[0]
        return found + (value.ndim if isinstance(value, ndarray) else 0)

    cdef object wrong_shape(self, object value, bint is_whole):
        wanted = f"have the shape {self.shape}" if is_whole else f"be an array that can be broadcast to shape {self.shape}"
        return Misfit(ValueError, f"must {wanted}, got {shown(value)}")

    cdef int store_source(self, char* at, Py_ssize_t axis, object source, bint is_whole) except -1:
        """Write an array over the dimensions from `axis` on; if it must be whole, it is not broadcast."""
        if is_whole and source.shape != self.shape[axis:]:
            raise self.wrong_shape(source, is_whole)
        target = np.ndarray(self.shape[axis:], self.element.dtype,
                            PyMemoryView_FromMemory(at, self.steps[axis - 1] if axis else self.n_bytes, PyBUF_WRITE))
        found = source if source.dtype == self.element.dtype else self.element.convert(source)
        try:
            target[...] = found
        except ValueError:
            raise self.wrong_shape(source, is_whole) from None
        return 0

    cdef int fill(self, char* at, Py_ssize_t axis, object value, bint is_whole) except -1:
        """Write a nested sequence over the dimensions from `axis` on; if it must be whole, a single item is not repeated."""
        cdef Py_ssize_t i, n_items
        cdef size_t step
        if isinstance(value, ndarray) and value.ndim:
            return self.store_source(at, axis, value, is_whole)
        if axis == len(self.shape):
            return self.element.store(at, value)
        if not self.is_sequence(value):
            raise self.wrong_shape(value, is_whole)
        items = list(value)
        n_items, step = len(items), self.steps[axis]
        if n_items != self.shape[axis] and (is_whole or n_items != 1):
            raise self.wrong_shape(value, is_whole)
        for i in range(n_items):
            try:
                self.fill(at + i * step, axis + 1, items[i], is_whole)
            except Misfit as error:
                error.found_in(i)
                raise
        for i in range(n_items, self.shape[axis]):
            memcpy(at + i * step, at, step)
        return 0


cdef class RecordCodec(Codec):
    """Structured dtypes.  A value is a tuple, or a record, whose fields are taken in order."""
    cdef list codecs                  # (name, codec, offset)

    cdef int store(self, char* at, object value) except -1:
        cdef Codec codec
        cdef Py_ssize_t offset
        value = bare(value)
        if isinstance(value, np.void) and value.dtype.names is not None:
            store_array(at, np.asarray(value) if value.dtype == self.dtype else self.convert(np.asarray(value)))
            return 0
        if not isinstance(value, tuple):
            raise wrong_type(f"a tuple of {len(self.codecs)} values, or a record", value)
        if len(value) != len(self.codecs):
            raise Misfit(ValueError, f"must have {len(self.codecs)} values ({', '.join([name for name, _, _ in self.codecs])}), "
                                     f"got {len(value)}")
        for (name, codec, offset), part in zip(self.codecs, value):
            try:
                codec.store(at + offset, part)
            except Misfit as error:
                error.found_in(name)
                raise
        return 0

    cdef object convert(self, object source):
        cdef Codec codec
        if source.dtype == self.dtype:
            return source
        if source.dtype.names is None:
            return Codec.convert(self, source)
        if len(source.dtype.names) != len(self.codecs):
            raise Misfit(ValueError, f"must have {len(self.codecs)} fields, got {len(source.dtype.names)}")
        found = np.zeros(source.shape, self.dtype)
        for (name, codec, _), theirs in zip(self.codecs, source.dtype.names):
            if source.dtype[theirs].shape != codec.dtype.shape:
                raise Misfit(ValueError, f"must have the shape {codec.dtype.shape} in the field {name!r}, "
                                         f"got {source.dtype[theirs].shape}")
            part = source[theirs]
            try:
                if isinstance(codec, ArrayCodec):
                    found[name] = (<ArrayCodec>codec).element.convert(part)
                else:
                    found[name] = codec.convert(part)
            except Misfit as error:
                error.found_in(name)
                raise
        return found


@functools.lru_cache(maxsize=256)
def make_codec(dtype):
    """Return the codec for a dtype without Python objects."""
    cdef Codec codec
    if dtype.subdtype is not None:
        codec = ArrayCodec.__new__(ArrayCodec)
        (<ArrayCodec>codec).element = codec_of(dtype.base)
        (<ArrayCodec>codec).shape = dtype.shape
        (<ArrayCodec>codec).steps = [dtype.base.itemsize * math.prod(dtype.shape[axis + 1:]) for axis in range(len(dtype.shape))]
    elif dtype.names is not None:
        codec = RecordCodec.__new__(RecordCodec)
        (<RecordCodec>codec).codecs = [(name, codec_of(dtype.fields[name][0]), dtype.fields[name][1]) for name in dtype.names]
    elif not dtype.isnative:
        codec = SwappedCodec.__new__(SwappedCodec)
        (<SwappedCodec>codec).native = codec_of(dtype.newbyteorder("="))
    elif kind_of(dtype) != NOT_A_NUMBER:
        codec = NumberCodec.__new__(NumberCodec)
    else:
        cls = {"f": FloatCodec, "c": FloatCodec, "S": TextCodec, "U": TextCodec, "V": VoidCodec, "M": TimeCodec, "m": TimeCodec}[dtype.kind]
        codec = cls.__new__(cls)
    codec.dtype = dtype
    codec.n_bytes = dtype.itemsize
    codec.kind = kind_of(dtype)
    return codec


cdef Codec codec_of(object dtype):
    return make_codec(dtype)
