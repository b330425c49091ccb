"""The text by which a section names a dtype, and the way back.

The text is a Python literal, read by a parser of this module: nothing is evaluated, and several threads may read at once.
A scalar dtype is its `dtype.str`, a sub-array is ``(element, shape)``, and a structured dtype is what `numpy.dtype` takes:
a list of fields if these are packed, otherwise a dict with names, formats, offsets, titles and item size.
``('numpy.record', fields)`` is a structured dtype whose elements are `numpy.record`.

A dtype is named only if its text leads to the same dtype, in all that numpy distinguishes.  Every other one is refused.
"""

import functools
import re

import numpy as np

MAX_TEXT_BYTES = 60000
_MAX_DEPTH = 64  # of nested fields
_RECORD = "numpy.record"
_SCALAR = re.compile(r"[<>|=][biufcSUVmM][0-9]{0,10}(\[[0-9]{0,10}[A-Za-z]{1,7}\])?", re.ASCII)
_KEYS = ("names", "formats", "offsets", "itemsize", "titles", "aligned")


# -- from a dtype to its text -------------------------------------------------------------------------------------


class _Indescribable(Exception):
    """The dtype has something that the text cannot hold; the argument states what."""


def _is_packed(dtype):
    """Return whether each field begins where the one before it ends, as numpy assumes for a list of fields."""
    end = 0
    for name in dtype.names:
        if name == "" or dtype.fields[name][1] != end:  # in a list, a field without a name is padding
            return False
        end += dtype.fields[name][0].itemsize
    return end == dtype.itemsize and not dtype.isalignedstruct


def _titles(dtype):
    titles = [dtype.fields[name][2] if len(dtype.fields[name]) > 2 else None for name in dtype.names]
    for title in titles:
        if type(title) not in (str, int, type(None)):
            raise _Indescribable(f"has the title {title!r:.60}, neither text nor an int")
    return titles


def _describe_fields(dtype):
    titles = _titles(dtype)
    formats = [_describe(dtype.fields[name][0]) for name in dtype.names]
    if _is_packed(dtype):
        names = [str(name) if title is None else (title, str(name)) for name, title in zip(dtype.names, titles, strict=True)]
        # a sub-array is written flat, as numpy does
        return [(name, *format_) if type(format_) is tuple and format_[0] != _RECORD else (name, format_)
                for name, format_ in zip(names, formats, strict=True)]  # fmt: skip
    found = {"names": [str(name) for name in dtype.names], "formats": formats, "offsets": [dtype.fields[name][1] for name in dtype.names]}
    found["itemsize"] = dtype.itemsize
    if titles.count(None) < len(titles):
        found["titles"] = titles
    if dtype.isalignedstruct:
        found["aligned"] = True
    return found


def _describe(dtype):
    """Return the literal of a dtype."""
    if dtype.metadata:
        raise _Indescribable("has metadata")
    if dtype.subdtype is not None:
        return _describe(dtype.base), dtype.shape
    if dtype.names is None:
        return dtype.str
    fields = _describe_fields(dtype)
    return (_RECORD, fields) if dtype.type is np.record else fields


def _are_same(one, two):
    """Return whether two dtypes are alike in all that numpy distinguishes, apart from the name of an integer of the same size."""
    if one != two or one.str != two.str or one.names != two.names or one.shape != two.shape or bool(one.metadata) != bool(two.metadata):
        return False
    if one.subdtype is not None:
        return _are_same(one.base, two.base)
    if one.kind == "V" and (one.type is not two.type or one.isalignedstruct != two.isalignedstruct or one.itemsize != two.itemsize):
        return False
    return all(one.fields[name][1:] == two.fields[name][1:] and _are_same(one.fields[name][0], two.fields[name][0])
               for name in one.names or ())  # fmt: skip


def refuse_metadata(dtype):
    """Raise TypeError if a dtype has metadata, which a section cannot hold."""
    if dtype.metadata:
        raise TypeError(f"dtype {dtype!s:.100} has metadata, which a section cannot hold; use the dtype without it")


def to_text(dtype):
    """Return the text of a dtype.

    Raises
    ------
    TypeError
        A section cannot hold values of this dtype, or the text would not lead to the same dtype.
    """
    if dtype.hasobject:
        raise TypeError(f"dtype {dtype!s:.100} contains Python objects, which a section cannot hold; "
                        "use a numeric, structured or fixed-width string dtype")  # fmt: skip
    try:
        text = repr(_describe(dtype)).encode()
        if len(text) > MAX_TEXT_BYTES:
            raise TypeError(f"the description of a dtype must have at most {MAX_TEXT_BYTES:,} bytes, got {len(text):,}")
        if dtype.isbuiltin != 1:
            _compare(dtype, text)
    except _Indescribable as error:
        raise TypeError(f"dtype {dtype!s:.100} {error}, which a section cannot hold; use the dtype without it") from None
    return text


def _compare(dtype, text):
    try:
        found = from_text(text)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise TypeError(f"dtype {dtype!s:.100} cannot be used in a section: its description cannot be read again: {error}") from None
    if not _are_same(dtype, found):
        raise TypeError(f"dtype {dtype!s:.100} cannot be used in a section: it would come back as {found!s:.100}; "
                        "use a numeric, structured or fixed-width string dtype of numpy's own")  # fmt: skip


# -- the parser ---------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:([()\[\]{},:])|(-?[0-9]{1,20})(?![\w.])|(True|None)(?!\w)|'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")""", re.ASCII | re.DOTALL
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _unescape(match):
    escape = match[1]
    if len(escape) > 1:
        return chr(int(escape[1:], 16))
    if escape not in _ESCAPED:
        raise ValueError(f"unknown escape \\{escape}")
    return _ESCAPED[escape]


class _Parser:
    """A reader of literals: texts, ints, True, None, tuples, lists and dicts."""

    def __init__(self, text):
        self.text = text
        self.at = 0

    def token(self):
        """Return (kind, value) of the next token."""
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            raise ValueError(f"unexpected text at {self.at}: {self.text[self.at : self.at + 20]!r}")
        self.at = match.end()
        if match[1]:
            return match[1], None
        if match[2]:
            return "value", int(match[2])
        if match[3]:
            return "value", match[3] == "True" or None
        return "value", _ESCAPE.sub(_unescape, match[4] if match[4] is not None else match[5])

    def value(self, depth=0):
        """Return the next value."""
        return self.value_of(*self.token(), depth)

    def value_of(self, kind, value, depth):
        if kind == "value":
            return value
        if kind not in _CLOSING or depth > _MAX_DEPTH:
            raise ValueError(f"unexpected {kind!r} at {self.at - 1}")
        items, has_comma = self.items(kind, depth + 1)
        if kind == "{":
            return dict(items)
        if kind == "[":
            return items
        return tuple(items) if has_comma or not items else items[0]

    def items(self, opening, depth):
        """Return the items up to the closing bracket, and whether a comma ended one."""
        found, has_comma = [], False
        while True:
            kind, value = self.token()
            if kind == _CLOSING[opening]:
                return found, has_comma
            if found and not has_comma:
                raise ValueError(f"a comma is missing at {self.at - 1}")
            item = self.value_of(kind, value, depth)
            if opening == "{":
                self.expect(":")
                item = item, self.value(depth)
            found.append(item)
            has_comma = self.skip(",")
            if not has_comma:
                self.expect(_CLOSING[opening])
                return found, len(found) > 1

    def expect(self, kind):
        if self.token()[0] != kind:
            raise ValueError(f"{kind!r} is missing at {self.at - 1}")

    def skip(self, kind):
        """Skip the next token if it is of this kind; return whether it was."""
        before = self.at
        if self.token()[0] == kind:
            return True
        self.at = before
        return False


@functools.lru_cache(maxsize=256)
def _parse(text):
    """Return the literal in a text.  It is shared by all callers, and must not be changed."""
    parser = _Parser(text.decode())
    found = parser.value()
    if parser.text[parser.at :].strip():
        raise ValueError(f"unexpected text at {parser.at}: {parser.text[parser.at : parser.at + 20]!r}")
    return found


# -- from a text to the dtype -------------------------------------------------------------------------------------


def _build_from_list(fields):
    """Return the dtype of fields without gaps.  A void field without a name is padding."""
    found = {"names": [], "formats": [], "offsets": [], "titles": [], "itemsize": 0}
    for name, *format_ in fields:
        dtype = _build(format_[0] if len(format_) == 1 else tuple(format_))
        if name != "" or dtype.type is not np.void or dtype.names is not None:
            title, name = name if type(name) is tuple else (None, name)
            found["names"].append(name)
            found["titles"].append(title)
            found["formats"].append(dtype)
            found["offsets"].append(found["itemsize"])
        found["itemsize"] += dtype.itemsize
    return np.dtype(found)


def _build(literal):
    """Return the dtype that a literal describes; a new one if it has fields, since numpy lets users change their names in place."""
    if type(literal) is str:
        if _SCALAR.fullmatch(literal) is None:
            raise ValueError(f"{literal!r:.60} is not a dtype of fixed size")
        return np.dtype(literal)
    if type(literal) is list:
        return _build_from_list(literal)
    if type(literal) is dict:
        if not {"names", "formats", "offsets", "itemsize"} <= literal.keys() <= set(_KEYS):
            raise ValueError(f"unexpected keys {', '.join(map(repr, literal)):.100}")
        return np.dtype({**literal, "formats": [_build(format_) for format_ in literal["formats"]]})
    if type(literal) is not tuple or len(literal) != 2:
        raise ValueError(f"{literal!r:.60} does not describe a dtype")
    if literal[0] == _RECORD:
        return np.dtype((np.record, _build(literal[1])))
    shape = literal[1]
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape of a sub-array is {shape!r:.60}")
    return np.dtype((_build(literal[0]), shape))


def from_text(text):
    """Return the dtype that `to_text` described; raise ValueError, TypeError or an ArithmeticError for any other text."""
    return _build(_parse(text))
