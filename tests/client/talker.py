"""
A stand-in enclave that lends a language model: it says the same words to everybody.

What it charges, and how it tells, is what an enclave does: the input's receipt in the header, then
one for each lease that the output is charged to, all of them in the end. What a test wants to be
wrong it changes by `spoil`.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import (
    AIGovToolError,
    BudgetExhaustedError,
    NotFoundError,
    UnauthenticatedError,
)
from aigovtool.ids import LeaseId
from aigovtool.sealing.chunked import HEADER_BYTES, sealed_size
from aigovtool.sealing.manifest import (
    BodyEntry,
    FileEntry,
    ModelSignature,
    SealedManifest,
    VerifiedManifest,
    sign_manifest,
    verify_manifest,
)
from aigovtool.wire.budget import BudgetView, WaitingView
from aigovtool.wire.codec import encode
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.headers import BUDGET_PATH, RECEIPT, REMAINING, WAITING_PATH
from aigovtool.wire.openai.errors import encode_error
from aigovtool.wire.problem import headers_of
from tests.channel.stand_in import API_KEY, Asked, Platform, Session, StandIn, World, answer

MODEL = "talker"
PROMPT_TOKENS = 4
EMBEDDED = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
TOKENS_A_LEASE = 2
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n"
)


def language_world(platform: Platform) -> World:
    """Return a world whose model takes text."""
    world = World.make(platform)
    return replace(world, model=language_model(world.custodian))


def language_model(custodian: SigningKey) -> VerifiedManifest:
    manifest = SealedManifest(
        manifest_version=1,
        name=MODEL,
        version="1",
        format="gguf",
        files=(FileEntry(name="talker.gguf", size=100, sha256="ab" * 32),),
        entry="talker.gguf",
        body=BodyEntry(size=sealed_size(100), header="cd" * HEADER_BYTES, sha256="ef" * 32),
        signature=ModelSignature(),
        interface=None,
        licence="",
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return verify_manifest(sign_manifest(manifest, custodian), custodian.public_key)


class Talker(StandIn):
    """
    Args:
        words: its answer, a token each.
        cut: what ends an answer after its words, instead of their end.
        refusal: what every query gets.
        spoil: changes the end of an answer, with its bill.
        pause: awaited before the word of that index in a stream.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session, credits=10_000)
        self.words = ["Good", " ", "day", ", ", "wörld"]
        self.tokens = TokenPrice(input=2, output=3)
        self.cut: AIGovToolError | None = None
        self.refusal: AIGovToolError | None = None
        self.spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda end: end
        self.pause: Callable[[int], Any] | None = None

    def budget(self) -> BudgetView:
        return msgspec.structs.replace(super().budget(), model=MODEL, token_price=self.tokens)

    def charge(self, cost: int) -> str:
        """Take *cost* credits, and return the receipt."""
        self.credits -= cost
        return self.receipt(
            cost=cost,
            balance_before=self.credits + cost,
            balance_after=self.credits,
            lease=LeaseId(f"lease_{self.receipts}"),
        )

    def infer(self, asked: Asked) -> bytes | AsyncIterator[bytes] | None:  # type: ignore[override]
        if asked.target == BUDGET_PATH:
            return answer(encode(self.budget()))
        if asked.target == WAITING_PATH:
            view = WaitingView(waiting=1, queries=(), asked=True, decided=None, again_s=60)
            return answer(encode(view))
        if asked.headers.get("authorization") != f"Bearer {API_KEY}":
            return refused(UnauthenticatedError("no such key"))
        if asked.method == "GET":
            models = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1,
                                                  "owned_by": "custodian"}]}  # fmt: skip
            return answer(msgspec.json.encode(models), headers={"Content-Type": "application/json"})
        body = msgspec.json.decode(asked.body)
        if self.refusal is not None:
            return refused(self.refusal)
        if body.get("model") != MODEL:
            return refused(NotFoundError("there is no such model", code="model_not_found"))
        if self.credits == 0:
            return refused(self.exhausted())
        if asked.target == "/v1/embeddings":
            return self.embed(body)
        if body.get("stream"):
            return self.stream(asked.target, body)
        return self.whole(asked.target)

    def embed(self, body: dict[str, Any]) -> bytes:
        numbers = [0.5, -1.0, 2.0]
        packed = base64.b64encode(struct.pack("<3f", *numbers)).decode()
        embedding = packed if body.get("encoding_format") == "base64" else numbers
        receipts = [self.charge(PROMPT_TOKENS * self.tokens.input)]
        return self._json(
            receipts,
            {
                "object": "list",
                "model": MODEL,
                "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
                "usage": EMBEDDED,
                "aigovtool": self.bill(receipts, usage=EMBEDDED),
            },
        )

    def whole(self, target: str) -> bytes:
        receipts = [*self._input(), *self._output()]
        text = "".join(self.words)
        chat = target.startswith("/v1/chat")
        choice = (
            {"message": {"role": "assistant", "content": text}, "logprobs": None}
            if chat
            else {"text": text, "logprobs": None}
        )
        return self._json(
            receipts,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion" if chat else "text_completion",
                "created": 1,
                "model": MODEL,
                "choices": [{"index": 0, "finish_reason": "stop", **choice}],
                "usage": self.usage(),
                "aigovtool": self.bill(receipts),
            },
        )

    async def stream(self, target: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        receipts = self._input()
        remaining = f"{REMAINING}: {self.credits}\r\n{RECEIPT}: {receipts[0]}\r\n\r\n"
        yield STREAM + remaining.encode()
        for event in self.events(target, body, receipts):
            if self.pause is not None and isinstance(event, int):
                await self.pause(event)
            elif isinstance(event, bytes):
                yield chunk(event)
        yield b"0\r\n\r\n"

    def events(
        self, target: str, body: dict[str, Any], receipts: list[str]
    ) -> Iterator[bytes | int]:
        """Give the events of a stream, and the index of each word before it."""
        chat = target.startswith("/v1/chat")
        asks_usage = (body.get("stream_options") or {}).get("include_usage", False)

        def piece(text: str | None, finish: str | None) -> dict[str, Any]:
            said = {"delta": {} if text is None else {"content": text}} if chat else {"text": text}
            told = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk" if chat else "text_completion",
                "created": 1,
                "model": MODEL,
                "choices": [{"index": 0, "finish_reason": finish, **said}],
            }
            return told | ({"usage": None} if asks_usage else {})

        for index, word in enumerate(self.words):
            yield index
            yield data(piece(word, None))
        yield len(self.words)
        receipts += self._output()
        bill = {"aigovtool": self.bill(receipts)}
        if self.cut is not None:
            told = msgspec.json.decode(encode_error(self.cut)[1])
            yield data(self.spoil(told | {"usage": self.usage()} | bill))
            return
        end = piece(None if chat else "", "stop")
        if asks_usage:
            yield data(end)
            end |= {"choices": [], "usage": self.usage()}
        yield data(self.spoil(end | bill))
        yield b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        produced = len(self.words)
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": produced,
            "total_tokens": PROMPT_TOKENS + produced,
        }

    def bill(self, receipts: list[str], *, usage: dict[str, int] | None = None) -> dict[str, Any]:
        told = {"receipts": list(receipts), "remaining": self.credits}
        return told | {"usage": usage or self.usage()}

    def _input(self) -> list[str]:
        return [self.charge(PROMPT_TOKENS * self.tokens.input)]

    def _output(self) -> list[str]:
        """Charge the words, a receipt for each lease."""
        counts = [
            len(self.words[at : at + TOKENS_A_LEASE])
            for at in range(0, len(self.words), TOKENS_A_LEASE)
        ]
        return [self.charge(count * self.tokens.output) for count in counts]

    def _json(self, receipts: list[str], body: dict[str, Any]) -> bytes:
        return answer(
            msgspec.json.encode(self.spoil(body)),
            headers={
                "Content-Type": "application/json",
                REMAINING: str(self.credits),
                RECEIPT: receipts[0],
            },
        )


def data(told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(told) + b"\n\n"


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def refused(error: AIGovToolError) -> bytes:
    status, body = encode_error(error)
    return answer(body, status, {"Content-Type": "application/json", **headers_of(error)})


class Gate:
    """Holds a stream before one of its words until it is opened, from any thread."""

    def __init__(self, talker: Talker, index: int) -> None:
        self._loop = talker._loop
        self._index = index
        self._open = asyncio.Event()
        talker.pause = self._wait

    async def _wait(self, index: int) -> None:
        if index == self._index:
            await self._open.wait()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)


USED_UP = BudgetExhaustedError("the budget is used up", retry_after_s=7)
