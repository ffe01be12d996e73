"""
What OpenAI's endpoints have in common, before and after a language model computes.

Rule 1: every error is one in OpenAI's words, with the status and headers of all others.
Rule 2: nothing of a request or an answer is in a log or an error (I5).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from aigovtool.clock import Clock
from aigovtool.enclave.api.cashier import IDEMPOTENCY_KEY, Cashier
from aigovtool.enclave.api.coding import plain_body
from aigovtool.enclave.api.counting import Counting
from aigovtool.enclave.api.http import (
    JSON_HEADER,
    BodyRoom,
    ClientGoneError,
    Header,
    Reply,
    Request,
    StreamedReply,
    log_fault,
)
from aigovtool.enclave.api.infer import AUTHORIZATION
from aigovtool.enclave.api.replay import Replays
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.session import Session
from aigovtool.errors import AIGovToolError, PromiseBrokenError
from aigovtool.ids import ConsumerId
from aigovtool.wire.openai import errors
from aigovtool.wire.openai.answers import Account, Usage
from aigovtool.wire.openai.fields import MAX_BODY_BYTES
from aigovtool.wire.problem import headers_of

INLINE_BYTES = 64 << 10  # what is longer is read on a thread: it can be made to take long
_ENCODING = b"content-encoding"

Answer = Reply | StreamedReply
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """A request of a consumer, in the session that serves it for as long as it may wait."""

    request: Request
    session: Session
    consumer: ConsumerId
    patience_s: float

    @property
    def keyed(self) -> bool:
        """Whether its client may come back for the answer."""
        return IDEMPOTENCY_KEY in self.request.headers


class TextDoor:
    """Lets requests to a language model in, once each; `counting` says how long their input is."""

    def __init__(
        self,
        enclave: Enclave,
        cashier: Cashier,
        room: BodyRoom,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._enclave = enclave
        self._cashier = cashier
        self._room = room
        self._limits = limits
        self.counting = Counting(limits.max_queue)
        self._replays = Replays(
            keep_s=limits.replay_s, max_bytes=limits.max_replay_bytes, now_s=clock.monotonic_s
        )

    async def answered(
        self,
        request: Request,
        read: Callable[[bytes], T],
        answer: Callable[[Request, T, ConsumerId], Awaitable[Answer]],
    ) -> Answer:
        """Return what *answer* gives to what *read* has read, or an error (Rule 1)."""
        headers: list[Header] = []
        try:
            authorization = request.headers.get(AUTHORIZATION)
            session, _ = self._enclave.serving_text(asked_by=authorization)
            consumer = session.authenticate(authorization)
            headers.append(self._cashier.remaining(session, consumer))
            whose = f"{session.loan} {consumer}"
            async with contextlib.AsyncExitStack() as holds:
                holds.callback(lambda: self._room.give_back(request.body_bytes, whose))
                body = await self._body(request, whose)
                inline = len(body) <= INLINE_BYTES
                asked = read(body) if inline else await asyncio.to_thread(read, body)
                del body
                answered = await answer(request, asked, consumer)
                if isinstance(answered, StreamedReply):
                    answered.holds.push_async_exit(holds.pop_all())
                return answered
        except ClientGoneError:
            raise
        except AIGovToolError as error:
            return refusal(error, headers)
        except Exception as error:  # noqa: BLE001 - internals stop at this door
            log_fault(error)
            return refusal(PromiseBrokenError("the enclave failed"), headers)

    async def once(
        self,
        request: Request,
        consumer: ConsumerId,
        asked: object,
        answer: Callable[[Case], Awaitable[tuple[Reply, bool]]],
    ) -> Reply:
        """
        Return what *answer* gives, or gave before to the same Idempotency-Key.

        Args:
            asked: all that makes two requests the same.
            answer: gives the reply, and whether a retry must be told the same.
        """

        async def compute() -> tuple[Reply, bool]:
            return await self.in_session(request, consumer, answer)

        key = request.headers.get(IDEMPOTENCY_KEY)
        if key is None:
            return (await compute())[0]
        return await self._replays.once(consumer, key, msgspec.json.encode(asked), compute)

    async def in_session(
        self, request: Request, consumer: ConsumerId, answer: Callable[[Case], Awaitable[T]]
    ) -> T:
        """Return what *answer* gives in the session that serves."""
        return await self._cashier.in_session(
            request, lambda session, left_s: answer(Case(request, session, consumer, left_s))
        )

    async def _body(self, request: Request, whose: str) -> bytes:
        limit = min(self._limits.max_body_bytes, MAX_BODY_BYTES)
        body = await request.body(
            max_bytes=limit, time_s=self._limits.body_time_s, room=self._room, of=whose
        )
        if _ENCODING in request.headers:
            body = await plain_body(request, body, max_bytes=limit, room=self._room, of=whose)
        return bytes(body)


def refusal(error: AIGovToolError, headers: Sequence[Header] = ()) -> Reply:
    """Answer with an error to a request that was not charged."""
    status, body = errors.encode_error(error)
    extra = [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
    return Reply(status, (JSON_HEADER, *extra, *headers), (body,))


def failure(
    error: AIGovToolError, usage: Usage, account: Account, papers: Sequence[Header]
) -> Reply:
    """Answer with an error to a request that was charged."""
    bare = refusal(error, papers)
    body = msgspec.json.encode(
        {
            "error": errors.describe(error),
            "usage": usage.members(),
            "aigovtool": account.members(usage),
        }
    )
    return Reply(bare.status, bare.headers, (body,))
