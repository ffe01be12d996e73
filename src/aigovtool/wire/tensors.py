"""
The tensors of the Open Inference Protocol: one numpy array, as bytes and as JSON.

Rule 1: both forms are row-major; bytes are little-endian and without padding; JSON is flat, or
        nested exactly as the shape says.
Rule 2: a number is never bent to fit: no boolean becomes 1, no 1.5 becomes 1, no 300 becomes 44.
Rule 3: a tensor that came as bytes is a view of them, not a copy (save ``BYTES``, and data that
        does not start at a multiple of its element's size).
Rule 4: nothing is allocated before the sizes that the sender states agree with the bytes it sent.

Sources: kserve/open-inference-protocol, `inference_rest.md`, Tensor Data; Triton's
`extension_binary_data.md`. BF16 is left out on purpose: numpy has no such type, so that every
array on the way to onnxruntime's `run` would need to be a different kind of object.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from aigovtool.errors import BadTensorError, TooLargeError

Array = NDArray[Any]

MAX_RANK = 16
COPIED_BYTES = 4 << 10
LENGTH_PREFIX = struct.Struct("<I")  # before each element of a BYTES tensor

BYTES = "BYTES"  # arrays of it have dtype object, their elements are `bytes`
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype("O"),
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}

_OPENING = re.compile(rb"[\s\[]*")
_NO_ELEMENT = re.compile(rb"[\s\[\],]*")


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """Return the numpy dtype of *datatype*; raises BadTensorError about tensor *name*."""
    try:
        return DTYPES[datatype]
    except KeyError:
        raise BadTensorError(
            f"tensor {name!r} has a datatype that is not served",
            code="bad_tensor.datatype",
            expected=", ".join(DTYPES),
            came=repr(datatype),
        ) from None


def datatype_of(name: str, array: Array) -> str:
    """Return the datatype of *array*; raises BadTensorError when the protocol has none for it."""
    if (datatype := _DATATYPES.get(array.dtype)) is not None:
        return datatype
    if array.dtype.kind in "SU":
        return BYTES
    try:
        return _DATATYPES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise BadTensorError(
            f"tensor {name!r} has a type that the protocol cannot carry",
            code="bad_tensor.datatype",
            expected=", ".join(DTYPES),
            came=f"numpy {array.dtype}",
        ) from None


def count_elements(name: str, shape: Sequence[int], *, max_elements: int) -> int:
    """
    Return the number of elements of *shape*.

    Raises:
        BadTensorError: more than `MAX_RANK` dimensions, or a negative one.
        TooLargeError: more than *max_elements*, or a dimension that only an empty tensor excuses.
    """
    if len(shape) > MAX_RANK:
        raise BadTensorError(
            f"tensor {name!r} has too many dimensions",
            code="bad_tensor.shape",
            expected=f"at most {MAX_RANK}",
            came=str(len(shape)),
        )
    if any(dimension < 0 for dimension in shape):
        raise BadTensorError(
            f"tensor {name!r} has a negative dimension",
            code="bad_tensor.shape",
            came=str(list(shape)),
        )
    count = math.prod(shape)  # Python's integers do not overflow
    # [0, 2**62] is empty, but numpy and onnxruntime multiply in 64 bits.
    if max(count, *shape, 0) > max_elements:
        raise TooLargeError(
            f"tensor {name!r} is too large",
            expected=f"at most {max_elements} elements",
            came=f"a count or dimension of {max(count, *shape, 0)}",
        )
    return count


# --- bytes -----------------------------------------------------------------------------------


def from_binary(name: str, data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """
    Read a tensor from its binary form. *shape* has passed `count_elements`.

    Raises:
        BadTensorError: *data* is not what *datatype* and *shape* need.
    """
    dtype, count = dtype_of(name, datatype), math.prod(shape)
    if datatype == BYTES:
        return _elements(name, data, count).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise BadTensorError(
            f"tensor {name!r} and its binary data differ in size",
            code="bad_tensor.size",
            expected=f"{count * dtype.itemsize} bytes for {datatype} {list(shape)}",
            came=f"{len(data)} bytes",
        )
    if count == 0:  # numpy makes no view of nothing
        return np.empty(shape, dtype)
    array: Array
    if datatype == "BOOL":
        octets = np.frombuffer(data, np.uint8)
        if octets.max() > 1:  # a numpy boolean of 2 is neither true nor false
            raise BadTensorError(
                f"tensor {name!r} has a boolean that is neither 0 nor 1", code="bad_tensor.value"
            )
        array = octets.view(np.bool_)
    else:
        array = np.frombuffer(data, dtype)
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def to_binary(name: str, array: Array) -> bytes | memoryview:
    """
    Return the binary form of *array*, a view of it where it is contiguous and little-endian, and
    not so small that a copy is quicker.

    Raises:
        BadTensorError: an element of a BYTES tensor is neither bytes nor text.
    """
    datatype = datatype_of(name, array)
    if datatype == BYTES:
        elements = _octets(name, array)
        return b"".join(part for e in elements for part in (LENGTH_PREFIX.pack(len(e)), e))
    if array.nbytes <= COPIED_BYTES and array.dtype == DTYPES[datatype]:
        return array.tobytes()
    flat = np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1)
    return flat.view(np.uint8).data


def _elements(name: str, data: memoryview, count: int) -> Array:
    """Read *count* elements with their lengths before them, and nothing after."""
    if len(data) < count * LENGTH_PREFIX.size:
        raise _ragged(name)
    array = np.empty(count, object)
    offset = 0
    for index in range(count):
        start = offset + LENGTH_PREFIX.size
        if start > len(data):
            raise _ragged(name)
        offset = start + LENGTH_PREFIX.unpack_from(data, offset)[0]
        if offset > len(data):
            raise _ragged(name)
        array[index] = bytes(data[start:offset])
    if offset != len(data):
        raise _ragged(name)
    return array


def _ragged(name: str) -> BadTensorError:
    return BadTensorError(
        f"the lengths in BYTES tensor {name!r} do not add up to its data",
        code="bad_tensor.size",
        expected="4 bytes of length, little-endian, before each element",
    )


def _octets(name: str, array: Array) -> list[bytes]:
    """Return the elements of a BYTES tensor as bytes; text becomes UTF-8."""
    try:
        return [
            element.encode() if isinstance(element, str) else memoryview(element).tobytes()
            for element in array.ravel().tolist()
        ]
    except (TypeError, UnicodeEncodeError):
        raise BadTensorError(
            f"tensor {name!r} has an element that is neither bytes nor text",
            code="bad_tensor.value",
        ) from None


# --- JSON ------------------------------------------------------------------------------------


def from_json(name: str, raw: msgspec.Raw, datatype: str, shape: Sequence[int]) -> Array:
    """
    Read a tensor from its ``data`` array. *shape* has passed `count_elements`.

    JSON has no word for NaN: ``null`` in a tensor of floats is one.

    Raises:
        BadTensorError: nested otherwise than *shape*, another number of elements, an element of
            another type, or one that *datatype* cannot hold.
    """
    dtype, count = dtype_of(name, datatype), math.prod(shape)
    text = bytes(raw)
    opening = _OPENING.match(text)
    depth = opening.group().count(b"[") if opening else 0
    if depth not in (1, len(shape)) or depth == 0:
        raise _misfit(name, datatype, shape, f"an array nested {depth} deep")
    if count == 0:
        if not _NO_ELEMENT.fullmatch(text):
            raise _misfit(name, datatype, shape, "elements")
        return np.empty(shape, dtype)
    # One comma between every two numbers, however nested: known before anything is allocated.
    if datatype != BYTES and text.count(b",") != count - 1:
        raise _misfit(name, datatype, shape, f"{text.count(b',') + 1} elements")
    try:
        values = _decoder(datatype, depth).decode(text)
        with np.errstate(over="raise"):
            array = np.array(values, dtype)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec's text names a path and types, never a value
        raise _misfit(name, datatype, shape, str(error)) from None
    except (OverflowError, FloatingPointError):
        raise BadTensorError(
            f"tensor {name!r} has a number that {datatype} cannot hold", code="bad_tensor.value"
        ) from None
    except ValueError:  # numpy, of rows of different lengths
        raise _misfit(name, datatype, shape, "rows of different lengths") from None
    if array.shape != ((count,) if depth == 1 else tuple(shape)):
        raise _misfit(name, datatype, shape, f"a shape of {list(array.shape)}")
    if datatype == BYTES:
        array[...] = np.frompyfunc(str.encode, 1, 1)(array)
    return array.reshape(shape)


def to_json(name: str, array: Array) -> list[Any]:
    """
    Return the flat list of *array* for ``data``. NaN and infinities become ``null`` when encoded.

    Raises:
        BadTensorError: a BYTES tensor that is not UTF-8 text, which JSON cannot carry.
    """
    if datatype_of(name, array) != BYTES:
        values: list[Any] = array.ravel().tolist()
        return values
    try:
        return [element.decode() for element in _octets(name, array)]
    except UnicodeDecodeError:
        raise BadTensorError(
            f"tensor {name!r} is not UTF-8 text",
            code="bad_tensor.not_text",
            mend='JSON cannot carry it: send binary data, or ask for it with "binary_data": true',
        ) from None


@lru_cache(maxsize=len(DTYPES) * (MAX_RANK + 1))
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = int
    if datatype == "BOOL":
        kind = bool
    elif datatype == BYTES:
        kind = str
    elif datatype.startswith("FP"):
        kind = float | None
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _misfit(name: str, datatype: str, shape: Sequence[int], came: str) -> BadTensorError:
    return BadTensorError(
        f"the data of tensor {name!r} does not fit its datatype and shape",
        code="bad_tensor.data",
        expected=f"{datatype} {list(shape)}, flat or nested",
        came=came,
    )
