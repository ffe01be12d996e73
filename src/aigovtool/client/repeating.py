"""A query is asked again where that cannot charge it twice: of the session that was asked first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.http1 import ConnectionLostError, Request
from aigovtool.channel.judge import VerifiedEnclave

T = TypeVar("T")
Make = Callable[[VerifiedEnclave], Request]


async def once_or_again(
    channel: AttestedChannel, make: Make, send: Callable[[Make], Awaitable[T]]
) -> T:
    """
    Return what *send* gives, sending once more if the connection broke.

    Args:
        make: makes the query, under an ``Idempotency-Key``.
        send: sends what it is given to make.

    Raises:
        ConnectionLostError: it broke twice, or the enclave was restarted meanwhile: the query may
            have been charged.
        AIGovToolError: what else *send* raises.
    """
    asked: VerifiedEnclave | None = None

    def make_for_one_session(enclave: VerifiedEnclave) -> Request:
        nonlocal asked
        if asked is not None and enclave.statement.session != asked.statement.session:
            raise ConnectionLostError(
                "the enclave was restarted during the query, which may have been charged",
                mend="ask again if the charge of one more query is acceptable",
            )
        asked = enclave
        return make(enclave)

    try:
        return await send(make_for_one_session)
    except ConnectionLostError:
        if asked is None or channel.closed:
            raise
        return await send(make_for_one_session)
