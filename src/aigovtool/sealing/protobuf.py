"""
Protocol Buffers as bytes: where each field of a message lies, without copying or knowing it.

Of the wire format (https://protobuf.dev/programming-guides/encoding) only what ONNX uses: varints,
fixed sizes and length-delimited values. Groups are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aigovtool.errors import MalformedError

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Field(NamedTuple):
    """One field: its tag begins at `start`, its value at `value`; both end before `end`."""

    number: int
    wire: int
    start: int
    value: int
    end: int


def fields(message: memoryview) -> Iterator[Field]:
    """
    Yield the fields of *message* in their order.

    Raises:
        MalformedError: not a protobuf, or cut short.
    """
    at = 0
    while at < len(message):
        start = at
        tag, value = read_varint(message, at)
        match tag & 7:
            case 0:
                _, at = read_varint(message, value)
            case 1:
                at = value + 8
            case 2:
                size, value = read_varint(message, value)
                at = value + size
            case 5:
                at = value + 4
            case _:
                raise _malformed()
        if at > len(message):
            raise _malformed()
        yield Field(tag >> 3, tag & 7, start, value, at)


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at *at*, and where it ends; raises MalformedError."""
    value = 0
    for index, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _malformed()


def varint(value: int) -> bytes:
    """Return *value*, which is not negative, as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, size: int) -> bytes:
    """Return what comes before a length-delimited value of *size* bytes."""
    return varint(number << 3 | DELIMITED) + varint(size)


def delimited(number: int, value: bytes) -> bytes:
    """Return a whole length-delimited field."""
    return head(number, len(value)) + value


def _malformed() -> MalformedError:
    return MalformedError("not a protobuf message", code="model.protobuf")
