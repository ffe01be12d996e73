"""
Queries for a quick model, all that are ready in one turn of the event loop, as one step.

The step runs from authentication to the answers without a wait in between. Nothing is under way
when a stop, a block or a renewal comes: it comes before the step, which then charges nothing, or
after it.

1. Who asks, and tensors that fit the model; as `infer` has it. Nothing is charged yet.
2. The charges, one after the other in the order of arrival, each with its receipt.
3. The computation: in one run for all queries of a consumer, where the model's rows stand alone
   (`runtime.speed`).
4. Refunds where it failed; one signature under all receipts (`proof.receipt_signature`); answers.

Rule 1: whatever is out of the ordinary before its charge (no credits at hand, a limit, an
        Idempotency-Key, compression, a wrong key, a bad tensor) is passed on to the ASGI
        application as it came, which waits, refuses or explains. Nothing is refused here.
Rule 2: a query that fails in a shared run is computed again alone, so that its neighbours are
        answered and it is told its own fault.
Rule 3: a run holds queries of one consumer. What was tried when the model was loaded says that its
        rows stand alone, not that no input makes them mix: a model made for that, and a consumer
        who knows the word, must not see what others ask.
Rule 4: a model that turns out to be slow is not computed here again (`pace`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from aigovtool.clock import Clock
from aigovtool.enclave.api.cashier import IDEMPOTENCY_KEY, REMAINING
from aigovtool.enclave.api.coding import wants_none
from aigovtool.enclave.api.http import Header, Reply, fault_reply, log_fault, problem_reply
from aigovtool.enclave.api.infer import (
    AUTHORIZATION,
    HEADER_LENGTH,
    RECEIPT,
    REFUND,
    Readers,
    headers_of,
)
from aigovtool.enclave.batching import Outputs, compute
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.metrics import Tally
from aigovtool.enclave.refunds import Fate
from aigovtool.enclave.roster import Roster
from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.session import Session
from aigovtool.enclave.till import Paid
from aigovtool.errors import AIGovToolError
from aigovtool.ids import ConsumerId
from aigovtool.telemetry import traces
from aigovtool.wire import oip
from aigovtool.wire.tensors import Array

MAX_TURN = 64  # queries; then the loop goes round, and others get their turn
TURN_RUNS = 2  # and no more than so many runs may hold


class Head:
    """
    What a query says before its body. A connection gives the same one to queries that say the
    same, so `known` keeps what was found of it.
    """

    __slots__ = ("headers", "known", "path")

    def __init__(self, path: bytes, headers: Mapping[bytes, bytes]) -> None:
        self.path = path
        self.headers = headers
        self.known: _Known | None = None


class _Known(NamedTuple):
    """What was found of a head, while *roster* says who may ask, for *model*."""

    roster: Roster | None
    metadata: oip.ModelMetadata
    consumer: ConsumerId
    header_length: int | None


class Asked(Protocol):
    """A query as its connection has it: POST, its body complete and small."""

    head: Head
    body: bytes
    since_s: float
    """When its head had come, on the enclave's monotonic clock."""
    disconnected: bool

    def answer(self, reply: Reply) -> None:
        """Send the answer."""
        ...

    def pass_on(self) -> None:
        """Let the ASGI application answer it."""
        ...

    def give_up(self) -> None:
        """End the connection, unless the query was answered or passed on."""
        ...


class _Query(NamedTuple):
    """A query that can be charged."""

    asked: Asked
    consumer: ConsumerId
    request: oip.InferRequest
    inputs: Mapping[str, Array]
    items: int


class _Charged(NamedTuple):
    """A query that was charged."""

    query: _Query
    paid: Paid


class Turns:
    """Serves what `add` is given, a turn at a time."""

    def __init__(self, *, enclave: Enclave, limits: Limits, clock: Clock, tally: Tally) -> None:
        self._enclave = enclave
        self._clock = clock
        self._tally = tally
        self._max_queue = limits.max_queue
        self._reader_of = Readers(limits)
        self._asked: deque[Asked] = deque()

    @property
    def open(self) -> bool:
        """Whether a query may be added: there is a quick model, and room."""
        session = self._enclave.session
        model = None if session is None else session.model
        return (
            session is not None
            and model is not None
            and model.takes == "tensors"
            and session.flights.pace.at_once(model) > 0
            and len(self._asked) < self._max_queue
            and not traces.on()
        )

    def add(self, asked: Asked) -> None:
        """Serve a query in this turn of the loop, or in the next."""
        self._asked.append(asked)
        if len(self._asked) == 1:
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        try:
            session, model = self._enclave.serving_tensors()
            session.check_stays()
        except AIGovToolError:
            for one in self._take(MAX_TURN):
                one.pass_on()
            return
        here = self._take(min(MAX_TURN, max(1, TURN_RUNS * model.speed.at_once)))
        try:
            self._step(here, session, model)
        except Exception as error:  # noqa: BLE001 - the loop goes on, and nobody waits in vain
            log_fault(error)
            for one in here:
                one.give_up()

    def _take(self, most: int) -> list[Asked]:
        """Take those whose turn it is, and see to the others in the next one."""
        asked = [self._asked.popleft() for _ in range(min(most, len(self._asked)))]
        if self._asked:
            asyncio.get_running_loop().call_soon(self._serve)
        here = [one for one in asked if not one.disconnected]
        self._tally.gone += len(asked) - len(here)
        return here

    def _step(self, asked: Sequence[Asked], session: Session, model: TensorModel) -> None:
        ready = [query for one in asked if (query := self._read(one, session, model)) is not None]
        charged = [paid for query in ready if (paid := self._charge(query, session)) is not None]
        if charged:
            charged.sort(key=lambda one: one.query.consumer)  # each one's together (Rule 3)
            self._answer(charged, self._compute(charged, session, model), session, model)

    # --- 1 --------------------------------------------------------------------------------------

    def _read(self, asked: Asked, session: Session, model: TensorModel) -> _Query | None:
        """Return the query, None when it was passed on (Rule 1)."""
        try:
            known = self._known(asked.head, session, model)
            if known is not None:
                request = self._reader_of(model).read(asked.body, header_length=known.header_length)
                most = session.renewal.terms.extraction.top_labels
                if most is not None:
                    request = oip.only_best(request, model.metadata, most)
                inputs = request.inputs
                items = model.price(inputs)
                if items <= session.flights.pace.at_once(model):
                    return _Query(asked, known.consumer, request, model.prepare(inputs), items)
        except AIGovToolError:
            pass  # the application refuses it, in its own words
        asked.pass_on()
        return None

    def _known(self, head: Head, session: Session, model: TensorModel) -> _Known | None:
        """Return what is known of a head, None when the application is to answer it (Rule 1)."""
        if session.turnstile.limits.active:
            return None
        known, roster = head.known, session.roster
        if known is not None and known.roster is roster and known.metadata is model.metadata:
            return known if roster is not None and roster.admits(known.consumer) else None
        headers = head.headers
        consumer = session.authenticate(headers.get(AUTHORIZATION))
        if (
            IDEMPOTENCY_KEY in headers
            or not wants_none(headers)
            or head.path not in _paths(model.metadata.name, model.metadata.versions[0])
        ):
            return None
        length = oip.parse_header_length(headers.get(HEADER_LENGTH))
        head.known = _Known(roster, model.metadata, consumer, length)
        return head.known

    # --- 2 --------------------------------------------------------------------------------------

    def _charge(self, query: _Query, session: Session) -> _Charged | None:
        paid = session.till.pay(query.consumer, query.items, self._clock.monotonic_s())
        if isinstance(paid, Paid):
            return _Charged(query, paid)
        query.asked.pass_on()
        return None

    # --- 3 --------------------------------------------------------------------------------------

    def _compute(
        self, charged: Sequence[_Charged], session: Session, model: TensorModel
    ) -> list[Outputs | Exception]:
        """Return the outputs of each query, or why there are none."""
        computed: list[Outputs | Exception] = []
        for group in _groups(charged, model):
            begin_s = self._clock.monotonic_s()
            wanted = [output.name for output in group[0].request.outputs]
            computed += compute(group, wanted, lambda _: model.new_run())  # Rule 2
            end_s = self._clock.monotonic_s()
            for _ in group:
                session.flights.times.add(end_s - begin_s)
            session.flights.pace.took(begin_s, end_s)
        return computed

    # --- 4 --------------------------------------------------------------------------------------

    def _answer(
        self,
        charged: Sequence[_Charged],
        computed: Sequence[Outputs | Exception],
        session: Session,
        model: TensorModel,
    ) -> None:
        now_s = self._clock.monotonic_s()
        digits = session.renewal.terms.extraction.output_digits
        replies = []
        for one, outputs in zip(charged, computed, strict=True):
            reply, fate = _reply(one.query.request, outputs, model, digits)
            session.renewal.finish(one.paid, fate, now_s)
            replies.append(reply)
        if session.till.meter.left < session.renewal.low_mark:
            session.renewal.nudge()
        receipts = iter(self._receipts([one.paid for one in charged], session))
        remaining: dict[ConsumerId, Header] = {}
        for (query, paid), (status, headers, chunks) in zip(charged, replies, strict=True):
            who = query.consumer
            if who not in remaining:
                left = session.renewal.standing.remaining(who, now_s)
                remaining[who] = (REMAINING, b"%d" % left)
            papers = [(RECEIPT, next(receipts)), remaining[who]]
            if paid.refund is not None:
                papers.append((REFUND, next(receipts)))
            query.asked.answer(Reply(status, (*headers, *papers), chunks))
            self._tally.answered(status, self._clock.monotonic_s() - query.asked.since_s)

    def _receipts(self, paid: Sequence[Paid], session: Session) -> list[bytes]:
        """Sign what was drawn up for each: the receipt, and behind it that of a refund."""
        drawn = []
        for one in paid:
            drawn.append(one.receipt)
            if one.refund is not None:
                drawn.append(one.refund)
        return [header.encode() for header in session.receipts.headers(drawn)]


@lru_cache
def _paths(name: str, version: str) -> tuple[bytes, ...]:
    return (
        f"/v2/models/{name}/infer".encode(),
        f"/v2/models/{name}/versions/{version}/infer".encode(),
    )


def _groups(charged: Iterable[_Charged], model: TensorModel) -> list[list[_Query]]:
    """Part queries, in their order, into runs."""
    groups: list[list[_Query]] = []
    items = 0
    for one in charged:
        query = one.query
        items += query.items
        if (
            groups
            and model.speed.shared
            and items <= model.speed.at_once
            and query.consumer == groups[-1][0].consumer  # Rule 3
            and query.request.outputs == groups[-1][0].request.outputs
        ):
            groups[-1].append(query)
        else:
            groups.append([query])
            items = query.items
    return groups


def _reply(
    request: oip.InferRequest,
    outputs: Outputs | Exception,
    model: TensorModel,
    digits: int | None,
) -> tuple[Reply, Fate]:
    try:
        if isinstance(outputs, Exception):
            raise outputs
        encoded = oip.encode_infer_response(
            request,
            outputs,
            model_name=model.metadata.name,
            model_version=model.metadata.versions[0],
            labels=model.labels,
            digits=digits,
        )
        return Reply(200, headers_of(encoded), encoded.chunks), Fate.ANSWERED
    except AIGovToolError as error:
        return problem_reply(error), Fate.MODEL_ERROR
    except Exception as error:  # noqa: BLE001 - as in `batching.compute`
        return fault_reply(error), Fate.MODEL_ERROR
