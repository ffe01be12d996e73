"""
The SDK without asyncio: the same client, on an event loop of its own in a background thread.

So it works where no loop runs, where one runs already (a notebook), and from several threads.

    with connect("enclave.example", manifest="manifest.toml", api_key=key) as client:
        result = client.infer({"image": pixels})
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import uvloop

from aigovtool.attestation.policy import Policy
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.chat import ChatAnswer, ChatOptions, ChatStream, Message
from aigovtool.client.patience import OnDecided, OnWait
from aigovtool.client.session import (
    ANSWER_TIMEOUT_S,
    AsyncClient,
    Result,
    connect_async,
)
from aigovtool.client.settling import Settled
from aigovtool.errors import ConfigurationError
from aigovtool.wire.budget import BudgetView, WaitingView
from aigovtool.wire.oip import ModelMetadata
from aigovtool.wire.tensors import Array

T = TypeVar("T")


class Client:
    """
    A verified enclave that can be queried; `connect` makes it.

    Close it, or use it with ``with``: it holds connections and a thread.
    """

    def __init__(self, loop: _BackgroundLoop, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client

    @property
    def attestation(self) -> VerifiedEnclave:
        """What was verified of the enclave, when it was last judged."""
        return self._client.attestation

    @property
    def model(self) -> ModelMetadata:
        """The model's name, version and tensors, by the manifest that its custodian signed."""
        return self._client.model

    def verify(self) -> VerifiedEnclave:
        """Judge the enclave again, from a new nonce; raises as `connect`."""
        return self._loop.run(self._client.verify())

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] = (),
        *,
        wait_s: float = 0.0,
        reason: str | None = None,
        on_wait: OnWait | None = None,
        on_decided: OnDecided | None = None,
    ) -> Result:
        """
        Run the model once.

        Args:
            inputs: numpy arrays by name, in the datatypes and shapes of `model`.
            outputs: names of those wanted; all when empty.
            wait_s: how many seconds to wait for credits when none is left, ``math.inf`` for as long
                as it takes.
            reason: why more is needed; the custodian's operator reads it. At most 500 characters.
            on_wait: called, in the background thread, each time the query is found waiting.
            on_decided: the same, when more was approved meanwhile; it has the person's reason.

        Raises:
            AIGovToolError: as `AsyncClient.infer`.
        """
        return self._loop.run(
            self._client.infer(
                inputs,
                outputs,
                wait_s=wait_s,
                reason=reason,
                on_wait=on_wait,
                on_decided=on_decided,
            )
        )

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> ChatAnswer:
        """
        Ask a language model for the next message of a conversation.

        Args:
            messages: with `role` and `content`, as OpenAI has them.
            options: see `ChatOptions`; what is called, is called in the background thread.

        Raises:
            AIGovToolError: as `AsyncClient.chat`.
        """
        return self._loop.run(self._client.chat(messages, **options))

    def chat_stream(
        self, messages: Sequence[Message], **options: Unpack[ChatOptions]
    ) -> BlockingChatStream:
        """
        Ask likewise, for the text as it comes.

            with client.chat_stream(messages) as stream:
                for text in stream:
                    ...
                stream.settled.remaining
        """
        return BlockingChatStream(self._loop, self._client.chat_stream(messages, **options))

    def budget(self) -> BudgetView:
        """Ask what is left, in credits. It costs nothing; raises as `AsyncClient.budget`."""
        return self._loop.run(self._client.budget())

    def waiting(self) -> WaitingView:
        """Ask where own queries wait, and what was decided; raises as `AsyncClient.waiting`."""
        return self._loop.run(self._client.waiting())

    def close(self) -> None:
        """Close all connections and end the thread; what is under way fails."""
        if self._loop.running:
            self._loop.run(self._client.aclose())
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class BlockingChatStream:
    """A `ChatStream` without asyncio, with the same `text`, `finish_reason` and `settled`."""

    def __init__(self, loop: _BackgroundLoop, stream: ChatStream) -> None:
        self._loop = loop
        self._stream = stream

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._stream.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended; None before that."""
        return self._stream.finish_reason

    @property
    def settled(self) -> Settled | None:
        """What it cost, verified; None before its end."""
        return self._stream.settled

    def __enter__(self) -> Self:
        self._loop.run(self._stream.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop.running:
            self._loop.run(self._stream.aclose())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if (text := self._loop.run(self._stream.next_text())) is None:
            raise StopIteration
        return text


def connect(
    address: str,
    *,
    manifest: str | Path | Policy,
    api_key: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    receipts: str | Path | None = None,
) -> Client:
    """
    Verify the enclave at *address* and return a client for it.

    Args:
        address: ``HOST`` or ``HOST:PORT``; the port is 9924 when none is given.
        manifest: the custodian's ``manifest.toml``: which enclave code, on which platforms, under
            which custodian and loan, may have the inputs.
        api_key: the consumer key itself, not its file.
        timeout_s: seconds that one answer may take, beside waiting for credits.
        receipts: folder to keep receipts in; None for the user's own.

    Raises:
        AIGovToolError: as `connect_async`; a refused enclave has got nothing but a nonce.
    """
    loop = _BackgroundLoop()
    try:
        client = loop.run(
            connect_async(
                address,
                manifest=manifest,
                api_key=api_key,
                timeout_s=timeout_s,
                receipts=receipts,
            )
        )
    except BaseException:
        loop.stop()
        raise
    return Client(loop, client)


class _BackgroundLoop:
    """An event loop in a daemon thread: it never keeps a program from ending."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="aigovtool-client", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* to its end, and cancel it when the caller is interrupted (Ctrl-C)."""
        if not self.running:
            work.close()
            raise ConfigurationError("the client is closed", code="client.closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
