"""``POST /v1/embeddings``, and what models there are: ``GET /v1/models``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from aigovtool.clock import Clock
from aigovtool.enclave.api.answering import Payment
from aigovtool.enclave.api.cashier import Cashier
from aigovtool.enclave.api.http import (
    JSON_HEADER,
    ClientGoneError,
    Reply,
    Request,
    json_reply,
    log_fault,
)
from aigovtool.enclave.api.infer import AUTHORIZATION
from aigovtool.enclave.api.leaving import watched
from aigovtool.enclave.api.text import Answer, Case, TextDoor, failure, refusal
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.flights import Cut, FlightCutError
from aigovtool.enclave.refunds import REPEATED, Fate, fate_of
from aigovtool.enclave.runtime.base import LanguageModel
from aigovtool.errors import AIGovToolError, PromiseBrokenError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.wire.openai import answers, requests
from aigovtool.wire.openai.requests import EmbeddingsRequest

OK = 200
OWNER = "custodian"


class Embeddings:
    """Lets a language model embed texts. An input token has the same price as anywhere."""

    def __init__(
        self, enclave: Enclave, door: TextDoor, cashier: Cashier, limits: Limits, clock: Clock
    ) -> None:
        self._enclave = enclave
        self._door = door
        self._cashier = cashier
        self._limits = limits
        self._clock = clock
        # its own: those of the model are as many as it has slots for answers
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def models(self, request: Request, name: str | None = None) -> Reply:
        """Answer ``GET /v1/models`` and ``/v1/models/NAME``."""
        try:
            session, model = self._enclave.serving_text()
            session.authenticate(request.headers.get(AUTHORIZATION))
            if name is not None:
                requests.check_model(name, model.name)
        except AIGovToolError as error:
            return refusal(error)
        created = int(session.verified.manifest.created.timestamp())
        one = answers.model(model.name, created=created, owned_by=OWNER)
        return json_reply(answers.models(one) if name is None else one)

    async def __call__(self, request: Request) -> Answer:
        """Answer ``POST /v1/embeddings``."""
        return await self._door.answered(request, requests.read_embeddings, self._embed)

    async def _embed(
        self, request: Request, asked: EmbeddingsRequest, consumer: ConsumerId
    ) -> Reply:
        same = (asked.texts, asked.base64)
        return await self._door.once(
            request, consumer, same, lambda case: self._embedded(case, asked)
        )

    async def _embedded(self, case: Case, asked: EmbeddingsRequest) -> tuple[Reply, bool]:
        """Return the answer, and whether a retry must be told the same."""
        session, consumer = case.session, case.consumer
        _, model = self._enclave.serving_text()
        requests.check_model(asked.model, model.name)
        tokens = await self._door.counting.run(
            consumer, lambda: sum(model.count_embedded(asked.texts))
        )
        cost = session.renewal.terms.tokens.cost(input=tokens, output=0)
        session.flights.check_room(consumer)
        async with self._cashier.within_limits(
            case.request, session, consumer, cost, case.patience_s
        ) as left_s:
            paid = await self._cashier.pay(case.request, session, consumer, cost, left_s)
            payment, fate = Payment(session, paid, clock=self._clock), Fate.CLIENT_GONE
            try:
                written, error, fate = await self._written(case, asked, model)
            finally:
                stays = payment.close(fate)
        again = stays or fate in REPEATED
        if fate is Fate.CLIENT_GONE and not case.keyed:
            raise ClientGoneError
        usage, account = answers.Usage(input=tokens, output=0), payment.account()
        papers = payment.papers()
        if error is not None:
            return failure(error, usage, account, papers), again
        body = answers.embeddings(written, model=model.name, usage=usage, account=account)
        return Reply(OK, (JSON_HEADER, *papers), (body,)), again

    async def _written(
        self, case: Case, asked: EmbeddingsRequest, model: LanguageModel
    ) -> tuple[Sequence[msgspec.Raw], AIGovToolError | None, Fate]:
        """Return the embeddings, or why there are none, and the fate of the query."""
        flights = case.session.flights
        try:
            # it may have waited, and been paid in the very step before a stop or block was read
            self._cashier.check_admitted(case.session, case.consumer)
        except AIGovToolError as error:
            return (), error, Fate.NOT_BEGUN
        run = _Embedding(model, asked)
        try:
            job = self._threads.submit(run.execute)
            with flights.fly(case.consumer, run, job, time_s=self._limits.query_time_s) as flight:

                def client_leaves() -> None:
                    left = UnavailableError("the client left", code="query.left")
                    if not case.keyed:
                        flight.end(Cut.CLIENT_GONE, left)

                with watched(case.request, client_leaves):
                    return await flight.landed(), None, Fate.ANSWERED
        except FlightCutError as cut:
            return (), cut.error, fate_of(cut.cut, begun=cut.begun)
        except AIGovToolError as error:
            return (), error, Fate.MODEL_ERROR
        except Exception as error:  # noqa: BLE001 - charged: whatever happens, there is a receipt
            log_fault(error)
            return (), PromiseBrokenError("the enclave failed"), Fate.MODEL_ERROR


class _Embedding:
    """The texts of one query, one at a time: an embedding that was begun is not ended."""

    def __init__(self, model: LanguageModel, asked: EmbeddingsRequest) -> None:
        self._model = model
        self._asked = asked
        self._ended = False

    def execute(self) -> list[msgspec.Raw]:
        """Return them, written; raises UnavailableError when it was ended, or as the model does."""
        written = []
        for text in self._asked.texts:
            if self._ended:
                raise UnavailableError("the computation was ended", code="query.terminated")
            for vector in self._model.embed([text]):
                written.append(answers.embedding(vector, as_base64=self._asked.base64))
        return written

    def terminate(self) -> None:
        """Let it end after the text that is embedded now."""
        self._ended = True
