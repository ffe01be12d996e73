"""
``POST /v2/models/NAME/infer``: authenticate, read, check, charge, compute, answer.

1. Is there a model to serve, and who asks?
2. The body, within its limits, also when it comes compressed.
3. Tensors that fit the model's signature, and their price. Up to here nothing is charged.
4. Room to compute, then the charge, with its receipt; without credits, a refusal or a wait.
5. The computation. Whatever comes of it, the answer carries the receipt, and that of the refund
   where the rules (`refunds`) take the charge back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from aigovtool.clock import Clock
from aigovtool.enclave.api.cashier import IDEMPOTENCY_KEY, Cashier
from aigovtool.enclave.api.coding import plain_body
from aigovtool.enclave.api.http import (
    Body,
    BodyRoom,
    ClientGoneError,
    Header,
    Reply,
    Request,
    fault_reply,
    problem_reply,
)
from aigovtool.enclave.api.leaving import watched
from aigovtool.enclave.api.replay import Replays
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.flights import Cut, FlightCutError
from aigovtool.enclave.refunds import REPEATED, Fate, fate_of
from aigovtool.enclave.runtime.base import Run, TensorModel
from aigovtool.enclave.session import Session
from aigovtool.enclave.till import Paid
from aigovtool.errors import AIGovToolError, NotFoundError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.wire import headers as names
from aigovtool.wire import oip
from aigovtool.wire.extraction import ExtractionLimits
from aigovtool.wire.tensors import BYTES, Array

INLINE_BYTES = 256 << 10  # what is longer is read and written on a thread, not on the loop

AUTHORIZATION = b"authorization"
_ENCODING = b"content-encoding"
RECEIPT = names.RECEIPT.lower().encode()
REFUND = names.REFUND.lower().encode()
HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()


@dataclass(frozen=True, slots=True)
class _Ready:
    """A query that can be computed."""

    consumer: ConsumerId
    model: TensorModel
    query: oip.InferRequest
    inputs: Mapping[str, Array]
    cost: int
    run: Run


class Readers:
    """Has the reader for the model that is served now, of which there is one at a time."""

    __slots__ = ("_limits", "_metadata", "_reader")

    def __init__(self, limits: Limits) -> None:
        self._limits = oip.Limits(
            max_body_bytes=limits.max_body_bytes, max_tensors=limits.max_tensors
        )
        self._metadata: oip.ModelMetadata | None = None
        self._reader: oip.RequestReader

    def __call__(self, model: TensorModel) -> oip.RequestReader:
        if model.metadata is not self._metadata:
            self._metadata = model.metadata
            self._reader = oip.RequestReader(model.metadata, self._limits)
        return self._reader


class Infer:
    """Serves inferences."""

    def __init__(self, enclave: Enclave, room: BodyRoom, limits: Limits, clock: Clock) -> None:
        self._enclave = enclave
        self._limits = limits
        self._reader_of = Readers(limits)
        self._clock = clock
        self._cashier = Cashier(enclave, limits, clock)
        self._room = room
        self._replays = Replays(
            keep_s=limits.replay_s, max_bytes=limits.max_replay_bytes, now_s=clock.monotonic_s
        )

    async def __call__(self, request: Request, name: str, version: str | None) -> Reply:
        """Answer a query; raises what refuses it before its consumer is known."""
        authorization = request.headers.get(AUTHORIZATION)
        session, _ = self._enclave.serving_tensors(asked_by=authorization)
        consumer = session.authenticate(authorization)
        whose = f"{session.loan} {consumer}"
        try:
            check_model(session, name, version)
            body = await request.body(
                max_bytes=self._limits.max_body_bytes,
                time_s=self._limits.body_time_s,
                room=self._room,
                of=whose,
                aligned_at=oip.parse_header_length(request.headers.get(HEADER_LENGTH)) or 0,
            )
            if _ENCODING in request.headers:
                body = await plain_body(
                    request,
                    body,
                    max_bytes=self._limits.max_body_bytes,
                    room=self._room,
                    of=whose,
                )
            key = request.headers.get(IDEMPOTENCY_KEY)
            if key is None:
                return (await self._answer(request, body, name, version, consumer))[0]
            return await self._replays.once(
                consumer,
                key,
                request.headers.get(HEADER_LENGTH, b"") + b"\n" + body,
                lambda: self._answer(request, body, name, version, consumer),
            )
        except AIGovToolError as error:
            now = self._enclave.session or session
            return problem_reply(error, [self._cashier.remaining(now, consumer)])
        finally:
            self._room.give_back(request.body_bytes, whose)

    async def _answer(
        self, request: Request, body: Body, name: str, version: str | None, consumer: ConsumerId
    ) -> tuple[Reply, bool]:
        """
        Return the reply, and whether a retry gets the same one; raises only when nothing was
        charged or all of it was taken back, or nobody can ask again.
        """

        async def asked(session: Session, patience_s: float) -> tuple[Reply, bool]:
            check_model(session, name, version)
            return await self._asked(request, body, session, consumer, patience_s)

        return await self._cashier.in_session(request, asked)

    async def _asked(
        self,
        request: Request,
        body: Body,
        session: Session,
        consumer: ConsumerId,
        patience_s: float,
    ) -> tuple[Reply, bool]:
        """Answer a query in this session; raises as `_answer`, and SucceededError."""
        _, model = self._enclave.serving_tensors()
        limits = session.renewal.terms.extraction
        query, inputs = await self._read(request, body, model, limits)
        cost = model.price(query.inputs)
        session.flights.check_room(consumer)
        ready = _Ready(consumer, model, query, inputs, cost, model.new_run())
        async with self._cashier.within_limits(
            request, session, consumer, cost, patience_s
        ) as left_s:
            return await self._charged(request, session, ready, left_s)

    async def _charged(
        self, request: Request, session: Session, ready: _Ready, patience_s: float
    ) -> tuple[Reply, bool]:
        consumer = ready.consumer
        paid = await self._cashier.pay(request, session, consumer, ready.cost, patience_s)
        fate = Fate.CLIENT_GONE  # unless something else is known
        try:
            reply, fate, left = await self._compute(request, session, ready, paid)
        finally:
            stays = session.renewal.finish(paid, fate, self._clock.monotonic_s())
        if left and not (stays and IDEMPOTENCY_KEY in request.headers):
            raise ClientGoneError
        headers = [*reply.headers, (RECEIPT, session.receipts.header(paid.receipt).encode())]
        if paid.refund is not None:
            headers.append((REFUND, session.receipts.header(paid.refund).encode()))
        headers.append(self._cashier.remaining(session, consumer))
        return Reply(reply.status, tuple(headers), reply.chunks), stays or fate in REPEATED

    async def _compute(
        self,
        request: Request,
        session: Session,
        ready: _Ready,
        paid: Paid,
    ) -> tuple[Reply, Fate, bool]:
        """
        Return what to answer to a query that was charged, its fate, and whether its client left.

        With an Idempotency-Key the client may come back for the answer. Then it is computed though
        nobody is there, once it was begun or its charge can no longer be taken back.
        """
        try:
            # it may have waited, and been paid in the very step before a stop or block was read
            self._cashier.check_admitted(session, ready.consumer)
        except AIGovToolError as error:
            return problem_reply(error), Fate.NOT_BEGUN, False
        keyed = IDEMPOTENCY_KEY in request.headers
        wanted = [output.name for output in ready.query.outputs]
        try:
            with session.flights.launch(
                ready.consumer,
                ready.run,
                ready.inputs,
                wanted,
                ready.cost,
                here=ready.cost <= session.flights.pace.at_once(ready.model),
            ) as flight:

                def gone() -> None:
                    if not keyed or session.till.refundable(paid):
                        flight.end(Cut.CLIENT_GONE, _client_left(), only_if_waiting=keyed)

                with watched(request, gone):
                    outputs = await flight.landed()
            digits = session.renewal.terms.extraction.output_digits
            encoded = await self._write(ready.query, outputs, ready.model, digits)
            return Reply(200, headers_of(encoded), encoded.chunks), Fate.ANSWERED, False
        except FlightCutError as cut:
            return (
                problem_reply(cut.error),
                fate_of(cut.cut, begun=cut.begun),
                cut.cut is Cut.CLIENT_GONE,
            )
        except AIGovToolError as error:
            return problem_reply(error), Fate.MODEL_ERROR, False
        except Exception as error:  # noqa: BLE001 - charged: whatever happens, there is a receipt
            return fault_reply(error), Fate.MODEL_ERROR, False

    async def _read(
        self, request: Request, body: Body, model: TensorModel, limits: ExtractionLimits
    ) -> tuple[oip.InferRequest, Mapping[str, Array]]:
        header_length = oip.parse_header_length(request.headers.get(HEADER_LENGTH))

        reader = self._reader_of(model)

        def read() -> tuple[oip.InferRequest, Mapping[str, Array]]:
            query = reader.read(body, header_length=header_length)
            if limits.top_labels is not None:
                query = oip.only_best(query, model.metadata, limits.top_labels)
            return query, model.prepare(query.inputs)

        # binary tensors are views of the body, save those of text
        all_is_read = header_length is None or any(
            one.datatype == BYTES for one in model.metadata.inputs
        )
        size = len(body) if all_is_read else header_length or 0
        return read() if size <= INLINE_BYTES else await asyncio.to_thread(read)

    async def _write(
        self,
        query: oip.InferRequest,
        outputs: Mapping[str, Array],
        model: TensorModel,
        digits: int | None,
    ) -> oip.EncodedBody:
        def write() -> oip.EncodedBody:
            return oip.encode_infer_response(
                query,
                outputs,
                model_name=model.metadata.name,
                model_version=model.metadata.versions[0],
                labels=model.labels,
                digits=digits,
            )

        size = sum(array.nbytes for array in outputs.values())
        return write() if size <= INLINE_BYTES else await asyncio.to_thread(write)


def check_model(session: Session, name: str, version: str | None) -> None:
    """Raise NotFoundError unless this is the model that is lent."""
    manifest = session.verified.manifest
    if name != manifest.name or version not in (None, manifest.version):
        raise NotFoundError(
            "no such model here", expected=f"{manifest.name}, version {manifest.version}"
        )


def _client_left() -> UnavailableError:
    return UnavailableError(
        "the client left before the computation began",
        code="query.left",
        mend="ask again under a new Idempotency-Key",
    )


def headers_of(encoded: oip.EncodedBody) -> tuple[Header, ...]:
    """Return the headers that describe an answer's body."""
    if encoded.header_length is None:
        return ((b"content-type", oip.JSON_TYPE.encode()),)
    return (
        (b"content-type", oip.BINARY_TYPE.encode()),
        (HEADER_LENGTH, b"%d" % encoded.header_length),
    )
