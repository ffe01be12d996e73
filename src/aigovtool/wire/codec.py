"""
Strict reading and writing of messages.

Rule 1: every message is a frozen `msgspec.Struct` that refuses unknown fields.
Rule 2: nothing is decoded past its limit, and no foreign exception leaves.
Rule 3: signed bytes are kept as they came: `Signed` carries the payload as bytes, and it is decoded
only after its signature holds.
"""

from __future__ import annotations

import threading
from datetime import datetime
from functools import cache
from typing import Annotated, Any, TypeVar, overload

import msgspec

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, verify_signature
from aigovtool.errors import MalformedError, TooLargeError

MAX_MESSAGE_BYTES = 8 << 20  # endorsements with NVIDIA RIMs are the largest thing sent

T = TypeVar("T")

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time in a message: one that does not say in which zone it is, is refused."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what crosses a process."""


class Signed(Message, frozen=True, kw_only=True):
    """
    A signed message: the exact payload bytes, and an Ed25519 signature for one purpose.

    Whose key must have signed is never said by the message itself; the reader knows it.
    """

    payload: bytes
    signature: bytes


def encode(message: msgspec.Struct) -> bytes:
    """Return the message as JSON."""
    return msgspec.json.encode(message)


@overload
def decode(data: bytes | memoryview | str, kind: type[T], *, max_bytes: int = ...) -> T: ...
@overload  # a union of messages is not a type[T] to mypy
def decode(data: bytes | memoryview | str, kind: Any, *, max_bytes: int = ...) -> Any: ...


def decode(data: bytes | memoryview | str, kind: Any, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """
    Read one message of type *kind* from JSON.

    Raises:
        TooLargeError: longer than *max_bytes*.
        MalformedError: not JSON, or not such a message.
    """
    if len(data) > max_bytes:
        raise TooLargeError(
            "message too large", expected=f"at most {max_bytes} bytes", came=f"{len(data)} bytes"
        )
    try:
        return _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec's text names a path and types, never a value
        raise MalformedError(
            f"not a valid {getattr(kind, '__name__', 'message').lstrip('_')}: {error}"
        ) from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Kinds are few; reading a union's definition anew costs six times the reading of a report."""
    with _making:
        return msgspec.json.Decoder(kind)


# msgspec is not safe where two threads make it read a type's definition for the first time
_making = threading.Lock()


def sign(message: msgspec.Struct, key: SigningKey, label: Label) -> Signed:
    """Encode *message* and sign those bytes."""
    payload = encode(message)
    return Signed(payload=payload, signature=key.sign(label, payload))


def open_signed(signed: Signed, kind: type[T], *, public_key: bytes, label: Label) -> T:
    """
    Check the signature of *signed* by *public_key*, then read its payload.

    Raises:
        VerificationError: the signature does not hold.
        MalformedError: the payload is not a *kind*.
    """
    verify_signature(public_key, label, signed.payload, signed.signature)
    return decode(signed.payload, kind)
