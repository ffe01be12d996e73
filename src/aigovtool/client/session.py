"""
The SDK, for asyncio: ask a lent model inside an enclave that was verified first.

Rule 1: nothing of the caller's is sent before the enclave has been judged by the caller's own
        policy, nor to whoever takes its place later (`channel.connect`).
Rule 2: an answer is handed out only with a receipt that the attested key signed; the receipt is
        kept (`receipt_store`).
Rule 3: a query is repeated only where that cannot charge it twice: to the same session, under the
        same ``Idempotency-Key``.

    async with await connect_async(
        "enclave.example", manifest="manifest.toml", api_key=key
    ) as client:
        result = await client.infer({"image": pixels})
        result.outputs["scores"], result.remaining
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from aigovtool.attestation.policy import MAX_POLICY_BYTES, Policy, parse_policy
from aigovtool.channel.address import parse_address
from aigovtool.channel.connect import AttestedChannel, open_channel
from aigovtool.channel.http1 import Headers, Request, Response
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.client.chat import ChatAnswer, ChatOptions, Chats, ChatStream, Message
from aigovtool.client.patience import OnDecided, OnWait, patiently, prefer_wait, reason_header
from aigovtool.client.receipt_store import ReceiptStore, default_folder, keep_or_warn
from aigovtool.client.receipts import VerifiedReceipt, check_price, receipt_of
from aigovtool.client.repeating import once_or_again
from aigovtool.client.settling import Settler
from aigovtool.clock import SystemClock
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    MalformedError,
    UnavailableError,
)
from aigovtool.sealing.batch import batch_of, items_in
from aigovtool.wire.budget import BudgetView, WaitingView
from aigovtool.wire.codec import decode
from aigovtool.wire.headers import (
    BUDGET_PATH,
    RECEIPT,
    REFUND,
    REMAINING,
    WAITING_PATH,
)
from aigovtool.wire.oip import (
    DEFAULT_LIMITS,
    HEADER_LENGTH,
    EncodedBody,
    ModelMetadata,
    TensorSignature,
    decode_infer_response,
    encode_infer_request,
    parse_header_length,
)
from aigovtool.wire.problem import MAX_PROBLEM_BYTES, error_of
from aigovtool.wire.tensors import Array

ANSWER_TIMEOUT_S = 300.0  # a model may be slow
MAX_BUDGET_BYTES = 64 << 10
MAX_WAITING_BYTES = 256 << 10
MAX_API_KEY_CHARACTERS = 512

_REMAINING = REMAINING.lower().encode()
_RECEIPT = RECEIPT.lower().encode()
_REFUND = REFUND.lower().encode()
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """
    An answer.

    Args:
        outputs: arrays by name, with the model's datatypes and shapes; they may be read-only views.
        remaining: credits that this consumer can still use.
        receipt: the enclave's signed word on what was charged, verified.
    """

    outputs: dict[str, Array]
    remaining: int
    receipt: VerifiedReceipt


class AsyncClient:
    """
    A verified enclave that can be queried; `connect_async` makes it.

    It belongs to one event loop. Any number of calls may be under way at once. Close it, or use it
    with ``async with``.
    """

    def __init__(
        self, channel: AttestedChannel, *, api_key: str, timeout_s: float, store: ReceiptStore
    ) -> None:
        self._channel = channel
        self._store = store
        self._timeout_s = timeout_s
        self._authorization: Headers = (
            (b"authorization", b"Bearer " + check_api_key(api_key).encode("ascii")),
        )
        self._chats = Chats(
            channel,
            settler=Settler(channel, store),
            authorization=self._authorization,
            timeout_s=timeout_s,
            look=self.waiting,
        )

    @property
    def attestation(self) -> VerifiedEnclave:
        """What was verified of the enclave, when it was last judged."""
        return self._channel.enclave

    @property
    def model(self) -> ModelMetadata:
        """The model's name, version and tensors, by the manifest that its custodian signed."""
        return model_of(self._channel.enclave)

    async def verify(self) -> VerifiedEnclave:
        """
        Judge the enclave again, from a new nonce.

        Raises:
            AIGovToolError: as `connect_async`.
        """
        return await self._channel.rejudge()

    async def infer(
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
        Run the model once. Each item of a batch costs one credit.

        Args:
            inputs: numpy arrays by name, in the datatypes and shapes of `model`.
            outputs: names of those wanted; all when empty.
            wait_s: how many seconds to wait for credits when none is left, ``math.inf`` for as long
                as it takes. The enclave wakes the query as soon as there are some, in fair order.
            reason: in the caller's words, why more is needed; the custodian's operator reads it, so
                it must not hold what only the enclave may see. At most 500 characters.
            on_wait: called each time the query is found waiting; its error has the `place`.
            on_decided: called with what a person decided on the request for more while the query
                waited, with its reason: an approval, before the answer. A denial is raised.

        Raises:
            BudgetExhaustedError: no credit is left, and none came in *wait_s*.
            MoreDeniedError: the custodian was asked for more, and said no; the message says why.
            BadTensorError: the inputs do not fit the model; nothing was charged.
            UnauthenticatedError, BlockedError: the API key is not known, or blocked.
            LoanNotActiveError, UnavailableError: the loan was stopped, the custodian cannot be
                reached, or the enclave cannot. `ConnectionLostError`, one of these, says that the
                query may have been served and charged.
            TooLargeError: the batch costs more than one lease can hold; nothing was charged.
            VerificationError: the receipt is not genuine or charges another price, or another
                enclave answers and is not.
            AppraisalError: another enclave answers, which the policy does not accept.
            MalformedError, TooLargeError: the answer cannot be read.
        """
        body = encode_infer_request(inputs, outputs=outputs)
        shapes = {name: array.shape for name, array in inputs.items()}
        key = secrets.token_hex(16)
        headers = (
            *self._authorization,
            (b"idempotency-key", key.encode("ascii")),
            *((name.lower().encode(), value.encode()) for name, value in _type_of(body)),
            *reason_header(reason),
        )
        return await patiently(
            lambda hold_s: self._infer(body, headers, shapes, hold_s),
            look=self.waiting,
            key=key,
            wait_s=wait_s,
            on_wait=on_wait,
            on_decided=on_decided,
        )

    async def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> ChatAnswer:
        """
        Ask a language model for the next message of a conversation.

        Args:
            messages: with `role` and `content`, as OpenAI has them.
            options: see `ChatOptions`.

        Raises:
            BadPromptError: the model cannot answer this; nothing was charged.
            ConfigurationError: the options do not fit together.
            VerificationError: the receipts do not hold, or do not add up to the token price.
            AIGovToolError: else as `infer`.
        """
        return await self._chats.ask(messages, options)

    def chat_stream(
        self, messages: Sequence[Message], **options: Unpack[ChatOptions]
    ) -> ChatStream:
        """
        Ask likewise, for the text as it comes.

            async with client.chat_stream(messages) as stream:
                async for text in stream:
                    ...
                stream.settled.remaining

        Raises:
            AIGovToolError: as `chat`, when it is entered, or while it comes.
        """
        return self._chats.stream(messages, options)

    async def budget(self) -> BudgetView:
        """
        Ask what is left. It costs nothing.

        Raises:
            UnauthenticatedError, BlockedError, UnavailableError, MalformedError: as `infer`.
        """

        def make(_: VerifiedEnclave) -> Request:
            return Request(
                method=b"GET", target=BUDGET_PATH.encode("ascii"), headers=self._authorization
            )

        _, _, body = await self._exchange(make, MAX_BUDGET_BYTES, 0.0)
        return decode(body, BudgetView)

    async def waiting(self) -> WaitingView:
        """
        Ask where this consumer's queries wait, and what was decided on its requests for more.

        Raises:
            UnauthenticatedError, BlockedError, UnavailableError, MalformedError: as `infer`.
        """

        def make(_: VerifiedEnclave) -> Request:
            return Request(
                method=b"GET", target=WAITING_PATH.encode("ascii"), headers=self._authorization
            )

        _, _, body = await self._exchange(make, MAX_WAITING_BYTES, 0.0)
        return decode(body, WaitingView)

    async def aclose(self) -> None:
        """Close all connections; what is under way fails."""
        await self._channel.aclose()
        self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _infer(
        self,
        body: EncodedBody,
        headers: Headers,
        shapes: Mapping[str, Sequence[int]],
        hold_s: float,
    ) -> Result:
        headers += prefer_wait(hold_s)

        def make(enclave: VerifiedEnclave) -> Request:
            return Request(
                method=b"POST",
                target=f"/v2/models/{enclave.model.manifest.name}/infer".encode("ascii"),
                headers=headers,
                body=body.chunks,
            )

        limit = DEFAULT_LIMITS.max_body_bytes
        enclave, response, answer = await once_or_again(
            self._channel, make, lambda make: self._exchange(make, limit, hold_s)
        )
        receipt = await receipt_of(response.header(_RECEIPT), enclave, self._channel)
        keep_or_warn(self._store, receipt)  # whatever it says: it is the consumer's proof of it
        check_price(receipt.receipt, items_in(batch_of(enclave.model.manifest), shapes))
        decoded = decode_infer_response(
            answer, header_length=parse_header_length(response.header(_HEADER_LENGTH))
        )
        return Result(
            outputs=decoded.outputs,
            remaining=_whole_number(response.header(_REMAINING)),
            receipt=receipt,
        )

    async def _exchange(
        self, make: Callable[[VerifiedEnclave], Request], max_bytes: int, hold_s: float
    ) -> tuple[VerifiedEnclave, Response, bytes]:
        """Send what *make* makes, and return the answer whole; raises what an error answer says."""
        timeout_s = self._timeout_s + hold_s
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._channel.exchange(make) as (enclave, response),
            ):
                if response.status == 200:
                    return enclave, response, await response.read(max_bytes=max_bytes)
                error = await _error_in(response)
        except TimeoutError:
            raise UnavailableError(
                f"no answer from {self._channel.address} within {timeout_s:g} s",
                code="channel.timeout",
            ) from None
        for name in (_RECEIPT, _REFUND):  # it was charged all the same, and perhaps taken back
            if (header := response.header(name)) is not None:
                keep_or_warn(self._store, await receipt_of(header, enclave, self._channel))
        raise error


async def connect_async(
    address: str,
    *,
    manifest: str | Path | Policy,
    api_key: str,
    timeout_s: float = ANSWER_TIMEOUT_S,
    receipts: str | Path | None = None,
) -> AsyncClient:
    """
    Verify the enclave at *address* and return a client for it.

    Args:
        address: ``HOST`` or ``HOST:PORT``; the port is 9924 when none is given.
        manifest: the custodian's ``manifest.toml``: which enclave code, on which platforms, under
            which custodian and loan, may have the inputs.
        api_key: the consumer key itself, not its file.
        timeout_s: seconds that one answer may take, beside waiting for credits.
        receipts: folder to keep receipts in; None for the user's own (`receipt_store`).

    Raises:
        ConfigurationError: the address, manifest, key or folder cannot be used.
        VerificationError: something about the enclave is not genuine, replayed or relayed.
        AppraisalError: genuine, and the manifest does not accept it; every reason is listed.
        MalformedError: what it presents cannot be read.
        UnavailableError: nobody answers, or the custodian's word on the session has run out.
    """
    policy = manifest if isinstance(manifest, Policy) else read_manifest(Path(manifest))
    check_api_key(api_key)
    where = parse_address(address)
    folder = default_folder() if receipts is None else Path(receipts)
    store = ReceiptStore(folder, manifest=policy)  # before anything is charged
    channel = await open_channel(where, policy, clock=SystemClock())
    return AsyncClient(channel, api_key=api_key, timeout_s=timeout_s, store=store)


def read_manifest(path: Path) -> Policy:
    """Read a ``manifest.toml``; raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the manifest {path}: {error.strerror or type(error).__name__}",
            mend="the custodian gives it out: `manifest.toml` in its data folder",
        ) from None


def model_of(enclave: VerifiedEnclave) -> ModelMetadata:
    """Return the model's tensors, as the custodian signed them."""
    manifest = enclave.model.manifest
    inputs, outputs = (
        tuple(
            TensorSignature(name=one.name, datatype=one.datatype, shape=one.shape) for one in side
        )
        for side in (manifest.signature.inputs, manifest.signature.outputs)
    )
    return ModelMetadata(
        name=manifest.name,
        versions=(manifest.version,),
        platform=manifest.format,
        inputs=inputs,
        outputs=outputs,
    )


def check_api_key(api_key: str) -> str:
    """Return *api_key* if it can stand in a header; raises ConfigurationError, without it."""
    if not (
        0 < len(api_key) <= MAX_API_KEY_CHARACTERS
        and api_key.isascii()
        and api_key.isprintable()
        and " " not in api_key
    ):
        raise ConfigurationError(
            "the API key is not one",
            expected="a line of printable characters without blanks",
            mend="give what is in the custodian's `consumer.key`",
        )
    return api_key


def _type_of(body: EncodedBody) -> list[tuple[str, str]]:
    return [(name, value) for name, value in body.headers.items() if name != "Content-Length"]


async def _error_in(response: Response) -> AIGovToolError:
    body = await response.read(max_bytes=MAX_PROBLEM_BYTES)
    retry_after = response.header(b"retry-after")
    return error_of(
        response.status,
        body,
        retry_after_s=_whole_number(retry_after) if retry_after is not None else None,
    )


def _whole_number(value: bytes | None) -> int:
    if value is None or not value.isdigit() or len(value) > 18:
        raise MalformedError(
            "a header of the answer is not a number",
            expected="decimal digits",
            came="nothing" if value is None else repr(value[:32]),
        )
    return int(value)
