"""Attributes as text: JSON (RFC 8259, in UTF-8), in which an object always has one key, a tag that states its type.

A number, a text, true, false, null and a list stand for themselves; what they cannot express has a tag:

``{"dict": {name: value, ...}}``
    A dict; its names are texts, in the order of insertion.
``{"array": [dtype, shape, data]}``
    A numpy array: the text of its dtype as in the header of an array of the section, its shape, and its bytes in C order, in base64.
``{"scalar": [dtype, data]}``
    A numpy scalar, in the same way.
``{"complex": [real, imaginary]}``, ``{"bytes": data}``
    Of Python; bytes in base64.
``{"float": "nan"}``, ``"inf"``, ``"-inf"``
    The floats that JSON has no numbers for.

All attributes of a value are one dict in this form.  Equal values have equal text, but for the unused bytes of a long double: there are
no spaces, and no character is escaped that need not be.  Nothing is unpickled, and no dtype has Python objects.  Reading a value with
another tag is an error; all other attributes can be read, and it is kept as it is when one of them is changed.
"""

import base64
import json
import math

import numpy as np

from shmem._objects import dtypes

MAX_BYTES = 1 << 20  # of all attributes of a value, encoded
MAX_DEPTH = 32  # of lists and dicts in each other
_LONG = 10**4000  # Python refuses to read longer integers from a text


# -- from values to text ------------------------------------------------------------------------------------------


def checked_name(name):
    """Return the name of an attribute; raise TypeError or ValueError if it cannot be one."""
    if not isinstance(name, str):
        raise TypeError(f"the name of an attribute must be text, got {name!r:.60}")
    return _text(name, name)


def to_tree(name, value):
    """Return what `json` writes for the value of an attribute.

    Raises
    ------
    TypeError
        An attribute cannot have a value of this type; the message has the attribute's name.
    ValueError
        It is too deep, or has a text that is not Unicode.
    """
    return _encode(name, value, 0)


def _encode(name, value, depth):
    if depth > MAX_DEPTH:
        raise ValueError(f"cannot set the attribute {name!r}: lists and dicts can be nested {MAX_DEPTH} deep, and this one is deeper")
    if isinstance(value, np.generic):  # first: some of these are also numbers and texts of Python
        array = np.asarray(value)  # an empty text has a dtype of its own, of no bytes, which an array cannot have
        if array.dtype.kind in "SU" and array[()] != value:
            raise ValueError(
                f"cannot set the attribute {name!r}: numpy drops the NULs at the end of {value!r:.60}; use text or bytes of Python"
            )
        return {"scalar": [_dtype_text(name, array.dtype), _base64(_packed(array))]}
    if type(value) is np.ndarray:  # a subclass, such as a masked array, would lose what it has besides
        return {"array": [_dtype_text(name, value.dtype), list(value.shape), _base64(_packed(value))]}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, (int, float, complex)):
        return _encode_number(name, value)
    if isinstance(value, bytes):
        return {"bytes": _base64(value)}
    if isinstance(value, (list, tuple)):
        return [_encode(name, item, depth + 1) for item in value]
    if isinstance(value, np.ndarray):
        raise TypeError(f"cannot set the attribute {name!r}: a {type(value).__name__} cannot be an attribute; use numpy.asarray(value)")
    if isinstance(value, dict):
        return {"dict": {_text(name, key): _encode(name, item, depth + 1) for key, item in value.items()}}
    raise TypeError(f"cannot set the attribute {name!r}: a value of type {type(value).__name__} cannot be an attribute; "
                    "use numbers, text, bytes, None, lists, dicts, or numpy arrays and scalars")  # fmt: skip


def _encode_number(name, value):
    if isinstance(value, int):
        if not -_LONG < value < _LONG:
            raise ValueError(f"cannot set the attribute {name!r}: an integer can have 4,000 digits, and this one has more")
        return int(value)
    if isinstance(value, complex):
        return {"complex": [_encode_number(name, value.real), _encode_number(name, value.imag)]}
    return float(value) if math.isfinite(value) else {"float": str(float(value))}


def _text(name, value):
    if not isinstance(value, str):
        raise TypeError(f"cannot set the attribute {name!r}: the names in a dict must be text, got {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"cannot set the attribute {name!r}: {value!r:.60} is not Unicode text: {error.reason}") from None
    return str.__str__(value)  # of a subclass, such as an Enum, the text


def _dtype_text(name, dtype):
    try:
        return dtypes.to_text(dtype).decode()
    except TypeError as error:
        raise TypeError(f"cannot set the attribute {name!r}: {error}") from None


def _packed(array):
    """Return the bytes of an array in C order.  Between the fields of a structured dtype they are zeros, not what memory held."""
    array = np.asarray(array)
    if array.dtype.names is not None:
        filled = np.zeros(array.shape, array.dtype)
        _copy_fields(filled, array)
        array = filled
    return array.tobytes()


def _copy_fields(into, array):
    """Copy an array field by field: some versions of numpy copy what is between the fields, too."""
    if array.dtype.names is None:
        into[...] = array
    else:
        for name in array.dtype.names:
            _copy_fields(into[name], array[name])


def _base64(data):
    return base64.b64encode(data).decode()


def to_bytes(tree, what):
    """Return the text for a dict from names to trees; without names, no bytes.  `what` is what the caller does, for the error.

    Raises
    ------
    ValueError
        The text is longer than `MAX_BYTES`.
    """
    if not tree:
        return b""
    text = json.dumps({"dict": tree}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_BYTES:
        raise ValueError(f"cannot {what}: all attributes of an object can have {MAX_BYTES:,} bytes, encoded, and they would have "
                         f"{len(text):,}; make an array of the section for larger data")  # fmt: skip
    return text


# -- from text to values ------------------------------------------------------------------------------------------


def from_bytes(text):
    """Return the dict from names to trees; raise ValueError for anything else."""
    if not text:
        return {}
    found = json.loads(text, parse_constant=_refuse_constant)
    if type(found) is not dict or list(found) != ["dict"] or type(found["dict"]) is not dict:
        raise ValueError(f"{text!r:.60} is not a dict of attributes")
    return found["dict"]


def _refuse_constant(text):
    raise ValueError(f"{text} is not JSON")


def from_tree(tree):
    """Return the value of an attribute; raise one of `errors.DAMAGED_TEXT` if the tree does not stand for one."""
    if type(tree) is list:
        return [from_tree(item) for item in tree]
    if type(tree) is not dict:
        return tree
    ((tag, content),) = tree.items()
    if tag not in _DECODERS:
        raise ValueError(f"the tag {tag!r:.60} is unknown")
    return _DECODERS[tag](content)


def _dict(content):
    return {name: from_tree(item) for name, item in content.items()}


def _bytes(content):
    return base64.b64decode(content, validate=True)


def _array(content):
    text, shape, data = content
    dtype, data = dtypes.from_text(text.encode()), _bytes(data)
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are not an array of shape {shape!r:.60} and dtype {dtype!s:.60}")
    return np.ndarray(shape, dtype, bytearray(data)) if data else np.ndarray(shape, dtype)


def _scalar(content):
    text, data = content
    return _array([text, [], data])[()]


def _complex(content):
    real, imaginary = map(from_tree, content)
    return complex(real, imaginary)


def _float(content):
    if content not in ("nan", "inf", "-inf"):
        raise ValueError(f"{content!r:.60} is not a float")
    return float(content)


_DECODERS = {"dict": _dict, "array": _array, "scalar": _scalar, "complex": _complex, "bytes": _bytes, "float": _float}
