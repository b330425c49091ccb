"""The headers of arrays in the bytes of a section: whether they fit their blocks, and what they say."""

import math
import struct

import numpy as np

from shmem._base.layout import BLOCK_HEAD_BYTES, LAYOUT, LINE_BYTES, MAX_DIMS
from shmem._objects.dtypes import from_text

ARRAY = LAYOUT["array_t"]
WORD_BYTES = 8


def fits(wreck, offset):
    """Return whether the header of an array at this block describes data inside the block."""
    room, at = wreck.payload(offset), offset + BLOCK_HEAD_BYTES
    if room < ARRAY.size:
        return False
    array = ARRAY.read(wreck.raw, at)
    data_off, n_dims, n_words = array["data_off"], array["n_dims"], array["n_pin_words"]
    if n_words != wreck.field("max_participants") + 63 >> 6 or n_dims > MAX_DIMS or data_off % LINE_BYTES or data_off > room:
        return False
    grows = array["capacity_bytes"] != 0
    header_bytes = _dtype_off(wreck, at) - at + array["dtype_bytes"] + WORD_BYTES * n_dims * grows
    if max(array["data_bytes"], array["capacity_bytes"]) > room - data_off or header_bytes > data_off:
        return False
    dims = shape(wreck, at)
    strides = struct.unpack_from(f"<{n_dims}q", wreck.raw, at + ARRAY.size + WORD_BYTES * n_dims)
    if grows and not _rows_fit(array, dims, strides, struct.unpack_from(f"<{n_dims}Q", wreck.raw, at + data_off - WORD_BYTES * n_dims)):
        return False
    try:
        dtype = from_text(dtype_text(wreck, at))
        n_bytes = dtype.itemsize * math.prod(dims) if grows else array["data_bytes"]
        np.ndarray(dims, dtype, memoryview(wreck.raw)[at + data_off : at + data_off + n_bytes], 0, strides)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return False
    return True


def _rows_fit(array, dims, strides, most):
    """Return whether the rows of an array that can grow fit its room, and its shape the maximum."""
    if not dims or array["data_bytes"] or any(n > limit for n, limit in zip(dims, most, strict=True)):
        return False
    return strides[0] > 0 and dims[0] * strides[0] <= array["capacity_bytes"]


def shape(wreck, payload_off):
    """Return the shape of an array whose header fits its block."""
    n_dims = ARRAY["n_dims"].read(wreck.raw, payload_off)
    return struct.unpack_from(f"<{n_dims}Q", wreck.raw, payload_off + ARRAY.size)


def _dtype_off(wreck, payload_off):
    """Return the offset of the text of an array's dtype: it follows the header, the shape, the strides and the pins."""
    n_dims, n_words = ARRAY["n_dims"].read(wreck.raw, payload_off), ARRAY["n_pin_words"].read(wreck.raw, payload_off)
    return payload_off + ARRAY.size + WORD_BYTES * (2 * n_dims + n_words)


def dtype_text(wreck, payload_off):
    """Return the text of an array's dtype."""
    at = _dtype_off(wreck, payload_off)
    return wreck.raw[at : at + ARRAY["dtype_bytes"].read(wreck.raw, payload_off)]
