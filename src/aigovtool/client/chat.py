"""
The SDK's questions to a language model, whole or as its words come.

Rule 1: text of a stream is given as it comes, with its first receipt checked; the stream ends
        without an error only when all its receipts hold and add up (`settling`).
Rule 2: a whole answer is asked for under an ``Idempotency-Key``, and so can be asked for again. A
        stream is given once: whoever breaks it off pays for what was produced.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import msgspec

from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.http1 import Headers, Request, Response
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.events import DONE, Event
from aigovtool.client.patience import OnDecided, OnWait, patiently, prefer_wait, reason_header
from aigovtool.client.receipts import VerifiedReceipt
from aigovtool.client.repeating import Make, once_or_again
from aigovtool.client.settling import Settled, Settler, StreamedAnswer, is_stream, whole_answer
from aigovtool.client.token_pricing import bill_in
from aigovtool.errors import AIGovToolError, MalformedError, UnavailableError
from aigovtool.wire.budget import WaitingView
from aigovtool.wire.openai.errors import error_of

_TARGET = b"/v1/chat/completions"
_OK = 200

Message = Mapping[str, Any]
T = TypeVar("T")


class ChatOptions(TypedDict, total=False):
    """
    Args:
        max_tokens: of the output; without it, as many as the enclave allows.
        temperature: 0 always takes the likeliest token.
        parameters: others of the request, in OpenAI's words.
        wait_s: how many seconds to wait for credits when there are too few, ``math.inf`` for as
            long as it takes.
        reason: why more is needed; the custodian's operator reads it.
        on_wait: called each time the query is found waiting; its error has the `place`.
        on_decided: called with what a person granted meanwhile.
    """

    max_tokens: int | None
    temperature: float | None
    parameters: Mapping[str, Any]
    wait_s: float
    reason: str | None
    on_wait: OnWait | None
    on_decided: OnDecided | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """
    Args:
        text: of the message; empty when the model calls tools.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        tool_calls: as OpenAI has them.
        settled: what it cost, verified.
    """

    text: str
    finish_reason: str | None
    tool_calls: tuple[Mapping[str, Any], ...]
    settled: Settled


class _Said(msgspec.Struct):
    content: str | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: tuple[_Choice]


class _Part(msgspec.Struct):
    delta: _Said = msgspec.field(default_factory=_Said)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: tuple[_Part, ...] = ()
    error: Mapping[str, Any] | None = None


class Chats:
    """
    Asks the language model behind *channel*.

    Args:
        look: says where this consumer's queries wait.
    """

    def __init__(
        self,
        channel: AttestedChannel,
        *,
        settler: Settler,
        authorization: Headers,
        timeout_s: float,
        look: Callable[[], Awaitable[WaitingView]],
    ) -> None:
        self._channel = channel
        self._settler = settler
        self._authorization = authorization
        self._timeout_s = timeout_s
        self._look = look

    async def ask(self, messages: Sequence[Message], options: ChatOptions) -> ChatAnswer:
        """Return the whole answer; see `AsyncClient.chat`."""
        key = secrets.token_hex(16)
        headers = (
            *reason_header(options.get("reason")),
            (b"idempotency-key", key.encode("ascii")),
        )
        make = self._maker(messages, options, headers)
        return await self._patiently(
            lambda hold_s: once_or_again(
                self._channel, make(hold_s), lambda once: self._whole(once, hold_s)
            ),
            options,
            key=key,
        )

    def stream(self, messages: Sequence[Message], options: ChatOptions) -> ChatStream:
        """Return the answer as it comes, once it is entered; see `AsyncClient.chat_stream`."""
        asked = {"stream": True, "stream_options": {"include_usage": True}}
        make = self._maker(messages, options, reason_header(options.get("reason")), asked)
        return ChatStream(
            lambda: self._patiently(
                lambda hold_s: self._begin(make(hold_s), hold_s), options, key=""
            ),
            timeout_s=self._timeout_s,
        )

    def _maker(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        headers: Headers,
        more: Mapping[str, Any] = {},
    ) -> Callable[[float], Make]:
        """Return what gives, for the seconds that its answer may be held, the query's maker."""
        named = {name: options.get(name) for name in ("max_tokens", "temperature")}
        given = {name: value for name, value in named.items() if value is not None}
        asked = {"messages": list(messages), **options.get("parameters", {}), **given, **more}

        def make(hold_s: float) -> Make:
            return lambda enclave: Request(
                method=b"POST",
                target=_TARGET,
                headers=(
                    *self._authorization,
                    *headers,
                    *prefer_wait(hold_s),
                    (b"content-type", b"application/json"),
                ),
                body=(msgspec.json.encode({"model": enclave.model.manifest.name, **asked}),),
            )

        return make

    async def _patiently(
        self, ask: Callable[[float], Awaitable[T]], options: ChatOptions, *, key: str
    ) -> T:
        await self._settler.learn_price(self._authorization)
        return await patiently(
            ask,
            look=self._look,
            key=key,
            wait_s=options.get("wait_s", 0.0),
            on_wait=options.get("on_wait"),
            on_decided=options.get("on_decided"),
        )

    async def _whole(self, make: Make, hold_s: float) -> ChatAnswer:
        async with (
            in_time(self._timeout_s + hold_s),
            self._channel.exchange(make) as (enclave, response),
        ):
            first = await self._settler.begin(enclave, response)
            body = await whole_answer(response)
        settled = await self._settle_whole(enclave, response, first, body)
        try:
            (choice,) = msgspec.json.decode(body, type=_Answer).choices
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise MalformedError("the answer is not a completion of a chat") from None
        return ChatAnswer(
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            tool_calls=choice.message.tool_calls or (),
            settled=settled,
        )

    async def _settle_whole(
        self,
        enclave: VerifiedEnclave,
        response: Response,
        first: VerifiedReceipt | None,
        body: bytes,
    ) -> Settled:
        """Settle an answer in JSON; raises what an error answer says."""
        settled = None
        if first is not None:
            settled = await self._settler.settle(
                response, bill_in(body), first, enclave, self._authorization
            )
        if response.status != _OK or settled is None:
            raise error_in(response, body)
        return settled

    async def _begin(self, make: Make, hold_s: float) -> Begun:
        async with contextlib.AsyncExitStack() as holds, in_time(self._timeout_s + hold_s):
            enclave, response = await holds.enter_async_context(self._channel.exchange(make))
            first = await self._settler.begin(enclave, response)
            if first is not None and response.status == _OK and is_stream(response):
                streamed = StreamedAnswer(response)
                charge = first

                async def settle() -> Settled | None:
                    return await self._settler.settle(
                        response, streamed.charged, charge, enclave, self._authorization
                    )

                return Begun(streamed=streamed, settle=settle, holds=holds.pop_all())
            body = await whole_answer(response)
        await self._settle_whole(enclave, response, first, body)
        raise MalformedError("the answer is not a stream of events, and one was asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """
    A stream whose head has come.

    Args:
        settle: checks its end, once *holds* are closed.
        holds: its connection.
    """

    streamed: StreamedAnswer
    settle: Callable[[], Awaitable[Settled | None]]
    holds: contextlib.AsyncExitStack


class ChatStream:
    """
    An answer as it comes: enter it, and iterate over its text.

    Leaving it early cuts the answer, of which what was produced is charged; the receipts of that
    have not come then, and `text` is what did.
    """

    def __init__(self, begin: Callable[[], Awaitable[Begun]], *, timeout_s: float) -> None:
        self._begin = begin
        self._timeout_s = timeout_s
        self._begun: Begun | None = None
        self._events: AsyncIterator[Event] | None = None
        self._error: AIGovToolError | None = None
        self.text = ""
        """What has come so far."""
        self.finish_reason: str | None = None
        self.settled: Settled | None = None
        """What it cost, verified; None before its end. An answer that was cut has it, too."""

    async def __aenter__(self) -> Self:
        self._begun = await self._begin()
        self._events = self._begun.streamed.events()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cut what has not come yet."""
        self._events = None
        if self._begun is not None:
            await self._begun.holds.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if (text := await self.next_text()) is None:
            raise StopAsyncIteration
        return text

    async def next_text(self) -> str | None:
        """Return the next piece of text, None at the end; raises as `AsyncClient.chat`."""
        while self._events is not None:
            async with in_time(self._timeout_s):
                event = await anext(self._events, None)
            if event is None:
                return await self._end() or None
            if text := self._take(event.data):
                return text
        return None

    async def _end(self) -> str:
        """Settle, and return the text of the last event; raises what cut the answer."""
        begun = self._begun
        assert begun is not None
        await self.aclose()
        self.settled = await begun.settle()
        held = (event.data for event in begun.streamed.held)
        text = "".join(self._take(data) for data in held if data != DONE)
        if self._error is not None:
            raise self._error
        return text

    def _take(self, data: bytes) -> str:
        """Return the text in the data of an event; raises MalformedError."""
        if not data:
            return ""
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise MalformedError("an event of the answer is not a chunk of a chat") from None
        if chunk.error is not None:  # told at the end, when what it cost is known
            self._error = error_of(_OK, data)
        text = "".join(part.delta.content or "" for part in chunk.choices)
        for part in chunk.choices:
            self.finish_reason = part.finish_reason or self.finish_reason
        self.text += text
        return text


@contextlib.asynccontextmanager
async def in_time(limit_s: float) -> AsyncIterator[None]:
    """Raise UnavailableError when the block takes longer."""
    try:
        async with asyncio.timeout(None if limit_s == math.inf else limit_s):
            yield
    except TimeoutError:
        raise UnavailableError(
            f"no answer of the enclave within {limit_s:g} s", code="channel.timeout"
        ) from None


def error_in(response: Response, body: bytes) -> AIGovToolError:
    """Return the error that an answer says."""
    retry_after = response.header(b"retry-after") or b""
    return error_of(
        response.status,
        body,
        retry_after_s=int(retry_after[:9]) if retry_after.isdigit() else None,
    )
