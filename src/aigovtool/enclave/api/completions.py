"""
``POST /v1/chat/completions`` and ``/v1/completions``: charge, generate, answer.

1. How many tokens the input has, and how many the output may have. Up to here nothing is charged.
2. Room to compute, then the charge of the input, with its receipt; the worst case of the output is
   held. Without credits for both, a refusal or a wait.
3. The answer: each token is charged as it is given (`delivery`). It ends with the receipts of all
   that it cost, also when it is cut (`answering`).

Rule 1: the status is sent with the first piece. What fails before it has a status of its own; what
        fails after it is said in an event, and the stream ends without its ``[DONE]``.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator

from aigovtool.clock import Clock
from aigovtool.enclave.api.answering import Answering
from aigovtool.enclave.api.cashier import Cashier
from aigovtool.enclave.api.drawing import drawing
from aigovtool.enclave.api.http import (
    JSON_HEADER,
    ClientGoneError,
    Header,
    Reply,
    Request,
    StreamedReply,
)
from aigovtool.enclave.api.text import Answer, Case, TextDoor, failure
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.runtime.base import LanguageModel, Piece, Prompt
from aigovtool.enclave.till import Tab
from aigovtool.errors import AIGovToolError, BadPromptError, PromiseBrokenError
from aigovtool.ids import ConsumerId
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.openai import answers, requests
from aigovtool.wire.openai.requests import TextRequest

OK = 200
LEAST_OUTPUT = 64  # tokens that are waited for where a request does not say how many it wants
_STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", answers.STREAM_TYPE.encode()),
    (b"cache-control", b"no-store"),
)


class Completions:
    """Lets a language model go on from text."""

    def __init__(
        self, enclave: Enclave, door: TextDoor, cashier: Cashier, limits: Limits, clock: Clock
    ) -> None:
        self._enclave = enclave
        self._door = door
        self._cashier = cashier
        self._limits = limits
        self._clock = clock

    async def chat(self, request: Request) -> Answer:
        """Answer ``POST /v1/chat/completions``."""
        return await self._door.answered(request, requests.read_chat, self._complete)

    async def completion(self, request: Request) -> Answer:
        """Answer ``POST /v1/completions``."""
        return await self._door.answered(request, requests.read_completion, self._complete)

    async def _complete(self, request: Request, asked: TextRequest, consumer: ConsumerId) -> Answer:
        if not asked.stream:
            same = (asked.kind, asked.body, asked.max_output)
            return await self._door.once(
                request, consumer, same, lambda case: self._whole(case, asked)
            )
        return await self._door.in_session(
            request, consumer, lambda case: self._streamed(case, asked)
        )

    async def _streamed(self, case: Case, asked: TextRequest) -> Answer:
        if case.keyed:
            raise BadPromptError(
                "a stream is given once, so it takes no Idempotency-Key",
                code="idempotency.stream",
                mend="leave the header out, or ask without `stream`",
                param="stream",
            )
        async with contextlib.AsyncExitStack() as holds:
            answering = await holds.enter_async_context(self._paid(case, asked))
            pieces = await holds.enter_async_context(
                contextlib.aclosing(answering.pieces(case.request))
            )
            first = await anext(pieces, None)
            if first is None and answering.error is not None:  # Rule 1
                return _failed(answering)
            stream = answers.Stream(self._head(asked), include_usage=asked.include_usage)
            return StreamedReply(
                OK,
                (*_STREAM_HEADERS, *answering.payment.papers()),
                _events(stream, answering, first, pieces),
                holds.pop_all(),
            )

    async def _whole(self, case: Case, asked: TextRequest) -> tuple[Reply, bool]:
        """Return the answer, and whether a retry must be told the same."""
        async with self._paid(case, asked) as answering:
            whole = answers.Whole(self._head(asked))
            async for piece in answering.pieces(case.request):
                whole.add(piece.chunk)
            again = answering.close()
            if answering.client_left:
                raise ClientGoneError
            if answering.error is not None:
                return _failed(answering), again
            body = whole.answer(answering.usage, answering.account())
            return Reply(OK, (JSON_HEADER, *answering.payment.papers()), (body,)), again

    @contextlib.asynccontextmanager
    async def _paid(self, case: Case, asked: TextRequest) -> AsyncIterator[Answering]:
        """Lend the answer to a query that is counted, charged and held."""
        session = case.session
        _, model = self._enclave.serving_text()
        requests.check_model(asked.model, model.name)
        model.shared_prefixes = session.renewal.terms.shared_prefixes
        tokens = await self._door.counting.run(
            case.consumer, lambda: model.count(asked.kind, asked.body)
        )
        room = self._output(case, asked, model, tokens)
        with drawing(session.watch, case.consumer, asked, room, self._clock) as drawn:
            prompt = Prompt(asked.kind, asked.body, tokens, drawn.most)
            async with self._charged(case, model, prompt) as answering:
                try:
                    yield answering
                finally:
                    answering.close()
                    drawn.given = answering.usage.output

    @contextlib.asynccontextmanager
    async def _charged(
        self, case: Case, model: LanguageModel, prompt: Prompt
    ) -> AsyncIterator[Answering]:
        """Charge a query's input, hold the worst case of its output, and lend its answer."""
        session, consumer = case.session, case.consumer
        price = session.renewal.terms.tokens
        cost = price.cost(input=prompt.tokens, output=prompt.max_output)
        held = price.output * prompt.max_output
        session.flights.check_room(consumer)
        async with self._cashier.within_limits(
            case.request, session, consumer, cost, case.patience_s
        ) as left_s:
            tab = await self._cashier.pay(case.request, session, consumer, cost, left_s, held=held)
            if not isinstance(tab, Tab):
                raise PromiseBrokenError("the worst case of a query is not held")
            answering = Answering(
                session,
                model,
                prompt,
                tab,
                price=price.output,
                time_s=self._limits.generation_time_s,
                stays=case.keyed,
                clock=self._clock,
            )
            try:
                # it may have waited, and been paid in the very step before a stop was read
                self._cashier.check_admitted(session, consumer)
            except AIGovToolError as error:
                answering.refuse(error)
            yield answering

    def _output(self, case: Case, asked: TextRequest, model: LanguageModel, tokens: int) -> int:
        """
        Return how many tokens the answer may have: as many as are asked for, or else as many as
        there is context for and can be paid.
        """
        room = requests.output_room(asked, tokens=tokens, context=model.context)
        if asked.max_output is not None:
            return room
        renewal = case.session.renewal
        credits = self._cashier.left(case.session, case.consumer)
        if renewal.standing.largest_lease is not None:
            credits = min(credits, renewal.standing.largest_lease)
        return min(room, max(affordable(renewal.terms.tokens, credits, tokens), LEAST_OUTPUT))

    def _head(self, asked: TextRequest) -> answers.Head:
        return answers.Head(
            kind=asked.kind,
            random=secrets.token_bytes(16),
            created=int(self._clock.now().timestamp()),
            model=asked.model,
        )


def affordable(price: TokenPrice, credits: int, tokens: int) -> int:
    """Return how many tokens of output *credits* pay for, after *tokens* of input."""
    return (credits - price.cost(input=tokens, output=0)) // price.output


def _failed(answering: Answering) -> Reply:
    error = answering.error or PromiseBrokenError("an answer failed without an error")
    account = answering.account()
    return failure(error, answering.usage, account, answering.payment.papers())


async def _events(
    stream: answers.Stream,
    answering: Answering,
    first: Piece | None,
    others: AsyncIterator[Piece],
) -> AsyncIterator[bytes]:
    if first is not None and (event := stream.give(first.chunk)):
        yield event
    async for piece in others:
        if event := stream.give(piece.chunk):
            yield event
    account = answering.account()
    if answering.error is not None:
        yield stream.fail(answering.error, answering.usage, account)
    else:
        yield stream.end(answering.usage, account)
