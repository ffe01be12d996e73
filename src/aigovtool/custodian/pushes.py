"""
Pushes: what enclaves are told that did not ask, and how it comes to the process they talk to.

An announcement is a push as JSON. It goes through the database, whose holder sees more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

from aigovtool.ids import LoanId, SessionId
from aigovtool.wire.codec import Message, decode, encode
from aigovtool.wire.control import FromCustodian

MAX_ANNOUNCEMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """
    A message to enclaves of *loan*: to all of them, to `only` one, or to all `but` one.

    With `ends` the session's control connection is closed after it.
    """

    loan: LoanId
    message: FromCustodian
    only: SessionId | None = None
    but: SessionId | None = None
    ends: bool = False


class _Announced(Message, frozen=True, kw_only=True):
    loan: LoanId
    message: FromCustodian
    only: SessionId | None
    but: SessionId | None
    ends: bool


def announcement(push: Push) -> bytes:
    """Return the bytes that announce *push*."""
    return encode(
        _Announced(
            loan=push.loan, message=push.message, only=push.only, but=push.but, ends=push.ends
        )
    )


def announced(message: bytes) -> Push:
    """Return the push that *message* announces; raises MalformedError."""
    read = decode(message, _Announced, max_bytes=MAX_ANNOUNCEMENT_BYTES)
    return Push(loan=read.loan, message=read.message, only=read.only, but=read.but, ends=read.ends)
