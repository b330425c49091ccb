# cython: language_level=3
"""Conversion of values between Python and memory: the one codec of fields and queues.

A value that cannot be stored without loss raises: an integer out of range, a float for an integer, text that is too long.
Rounding to the nearest float is not a loss; a finite number that becomes infinite is.

`load_number` and `store_number` convert the numbers that have a `Kind`.  They are inline, and `store_number` raises without a
message: the caller composes it with `misfit`.  `Codec` converts values of any dtype, and arrays.
"""

from cpython.complex cimport Py_complex, PyComplex_FromDoubles
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_Check
from libc.math cimport isinf
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef enum Kind:
    NOT_A_NUMBER
    BOOL
    INT8
    INT16
    INT32
    INT64
    UINT8
    UINT16
    UINT32
    UINT64
    FLOAT32
    FLOAT64
    COMPLEX64
    COMPLEX128


cdef class Codec:
    """The conversion of values of one dtype, made by `codec_of`."""
    cdef readonly object dtype
    cdef readonly size_t n_bytes
    cdef Kind kind                    # NOT_A_NUMBER unless load_number and store_number convert it

    # Write one value, or raise Misfit.  A Misfit may leave the memory partly written, so it must be private to the caller.  Bytes between
    # fields are not written.
    cdef int store(self, char* at, object value) except -1

    # The same for a whole item: a value that has a shape must have the shape of the dtype.  A scalar fills it.
    cdef int store_whole(self, char* at, object value) except -1

    # Return the same values as an array of this dtype, or raise Misfit if `store` would refuse one of them.
    cdef object convert(self, object source)


cdef Codec codec_of(object dtype)
cdef Kind kind_of(object dtype) except *
cdef int store_bytes(char* at, size_t n_bytes, object value) except -1
cdef memoryview plain_buffer(object value)

# Return the Misfit for a number that store_number refused with `error`.
cdef object misfit(object dtype, object value, object error)

# The slow halves of store_number: values that are not an int, or not a float.
cdef object as_integer(object value)
cdef double as_double(object value) except? -1
cdef Py_complex as_complex(object value) except *
cdef int raise_unknown_kind(Kind kind) except -1


cdef extern from *:
    """
    #include <stdint.h>
    /* numbers at any address: fields of a record may be unaligned */
    typedef int16_t i2_at __attribute__((aligned(1), may_alias));
    typedef int32_t i4_at __attribute__((aligned(1), may_alias));
    typedef int64_t i8_at __attribute__((aligned(1), may_alias));
    typedef uint16_t u2_at __attribute__((aligned(1), may_alias));
    typedef uint32_t u4_at __attribute__((aligned(1), may_alias));
    typedef uint64_t u8_at __attribute__((aligned(1), may_alias));
    typedef float f4_at __attribute__((aligned(1), may_alias));
    typedef double f8_at __attribute__((aligned(1), may_alias));
    """
    ctypedef int16_t i2_at
    ctypedef int32_t i4_at
    ctypedef int64_t i8_at
    ctypedef uint16_t u2_at
    ctypedef uint32_t u4_at
    ctypedef uint64_t u8_at
    ctypedef float f4_at
    ctypedef double f8_at

ctypedef fused integer:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef inline int store_integer(char* at, integer number, object value) except -1:
    """Store a value as the type of `number`, whose own value is ignored; a field of a record may be at any address."""
    number = value if PyLong_Check(value) else as_integer(value)
    memcpy(at, &number, sizeof(integer))
    return 0


cdef inline int store_float(char* at, double value) except -1:
    cdef float narrow = <float>value
    if isinf(narrow) and not isinf(value):
        raise OverflowError
    memcpy(at, &narrow, sizeof(float))
    return 0


cdef inline int store_bool(uint8_t* at, object value) except -1:
    if value is not True and value is not False:
        value = as_integer(value)
        if value != 0 and value != 1:
            raise OverflowError
    at[0] = 1 if value else 0
    return 0


cdef inline double double_of(object value) except? -1:
    return PyFloat_AS_DOUBLE(value) if PyFloat_Check(value) else as_double(value)


cdef inline object load_number(Kind kind, const char* at):
    """Return the number of that kind at `at`, as a Python object."""
    if kind == INT64:
        return (<const i8_at*>at)[0]
    elif kind == FLOAT64:
        return (<const f8_at*>at)[0]
    elif kind == BOOL:
        return (<const uint8_t*>at)[0] != 0
    elif kind == INT8:
        return (<const int8_t*>at)[0]
    elif kind == INT16:
        return (<const i2_at*>at)[0]
    elif kind == INT32:
        return (<const i4_at*>at)[0]
    elif kind == UINT8:
        return (<const uint8_t*>at)[0]
    elif kind == UINT16:
        return (<const u2_at*>at)[0]
    elif kind == UINT32:
        return (<const u4_at*>at)[0]
    elif kind == UINT64:
        return (<const u8_at*>at)[0]
    elif kind == FLOAT32:
        return <double>(<const f4_at*>at)[0]
    elif kind == COMPLEX64:
        return PyComplex_FromDoubles((<const f4_at*>at)[0], (<const f4_at*>at)[1])
    elif kind == COMPLEX128:
        return PyComplex_FromDoubles((<const f8_at*>at)[0], (<const f8_at*>at)[1])
    raise_unknown_kind(kind)


cdef inline int store_number(Kind kind, char* at, object value) except -1:
    """Write a number of that kind.  OverflowError if it does not fit, TypeError if it is of another kind; then memory is unchanged."""
    cdef Py_complex number
    cdef float pair[2]
    if kind == INT64:
        store_integer(at, <int64_t>0, value)
    elif kind == FLOAT64:
        (<f8_at*>at)[0] = double_of(value)
    elif kind == BOOL:
        store_bool(<uint8_t*>at, value)
    elif kind == INT8:
        store_integer(at, <int8_t>0, value)
    elif kind == INT16:
        store_integer(at, <int16_t>0, value)
    elif kind == INT32:
        store_integer(at, <int32_t>0, value)
    elif kind == UINT8:
        store_integer(at, <uint8_t>0, value)
    elif kind == UINT16:
        store_integer(at, <uint16_t>0, value)
    elif kind == UINT32:
        store_integer(at, <uint32_t>0, value)
    elif kind == UINT64:
        store_integer(at, <uint64_t>0, value)
    elif kind == FLOAT32:
        store_float(at, double_of(value))
    elif kind == COMPLEX64:
        number = as_complex(value)
        store_float(<char*>&pair[0], number.real)
        store_float(<char*>&pair[1], number.imag)
        memcpy(at, pair, sizeof(pair))
    elif kind == COMPLEX128:
        number = as_complex(value)
        (<f8_at*>at)[0] = number.real
        (<f8_at*>at)[1] = number.imag
    else:
        raise_unknown_kind(kind)
    return 0
