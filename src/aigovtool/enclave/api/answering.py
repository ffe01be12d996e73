"""
One answer of a language model, from its payment to its last receipt.

Rule 1: what was given is paid for, however it ends; of an answer of which nothing was given the
        input is paid for or not by the rules for all queries (`refunds`).
Rule 2: its account is made up once, when it is over: the receipt of the input, of what was drawn
        from each lease, and of a refund.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from aigovtool.clock import Clock
from aigovtool.enclave.api.cashier import REMAINING
from aigovtool.enclave.api.http import Header, Request, log_fault
from aigovtool.enclave.api.infer import RECEIPT
from aigovtool.enclave.api.leaving import watched
from aigovtool.enclave.delivery import Delivery
from aigovtool.enclave.flights import Cut, FlightCutError
from aigovtool.enclave.refunds import REPEATED, Fate, fate_of
from aigovtool.enclave.runtime.base import LanguageModel, Piece, Prompt
from aigovtool.enclave.session import Session
from aigovtool.enclave.till import Paid, Tab
from aigovtool.errors import AIGovToolError, PromiseBrokenError, UnavailableError
from aigovtool.proof.receipt_signature import MAX_TREE
from aigovtool.wire.openai.answers import Account, Usage


class Payment:
    """
    What a query paid, told when it is over.

    Args:
        paid: its charge, a `Tab` when more may be drawn.
    """

    def __init__(self, session: Session, paid: Paid, *, clock: Clock) -> None:
        self.paid = paid
        self._receipt = session.receipts.header(paid.receipt)
        self._session = session
        self._clock = clock
        self._stays: bool | None = None

    def close(self, fate: Fate) -> bool:
        """The query is over, once and for all; returns whether it stays charged."""
        if self._stays is None:
            now_s = self._clock.monotonic_s()
            self._stays = self._session.renewal.finish(self.paid, fate, now_s)
        return self._stays

    def papers(self) -> tuple[Header, Header]:
        """Return the headers of the answer: the charge's receipt, and what is left."""
        return (RECEIPT, self._receipt.encode()), (REMAINING, b"%d" % self._remaining())

    def account(self) -> Account:
        """Sign what was drawn up since the charge, and return all; `close` comes first."""
        later = list(self.paid.drawn) if isinstance(self.paid, Tab) else []
        if self.paid.refund is not None:
            later.append(self.paid.refund)
        receipts = [self._receipt]
        for start in range(0, len(later), MAX_TREE):
            receipts += self._session.receipts.headers(later[start : start + MAX_TREE])
        return Account(receipts=receipts, remaining=self._remaining())

    def _remaining(self) -> int:
        standing, now_s = self._session.renewal.standing, self._clock.monotonic_s()
        return standing.remaining(self.paid.consumer, now_s)


class Answering:
    """
    An answer that is paid for; `pieces` gives it once.

    Args:
        price: credits of a token that is produced.
        time_s: that it may take.
        stays: whether it goes on when its client leaves, who may come back for it.
    """

    def __init__(
        self,
        session: Session,
        model: LanguageModel,
        prompt: Prompt,
        tab: Tab,
        *,
        price: int,
        time_s: float,
        stays: bool,
        clock: Clock,
    ) -> None:
        self.payment = Payment(session, tab, clock=clock)
        self.error: AIGovToolError | None = None
        """Why it ended before its time."""
        self.client_left = False
        self._session = session
        self._model = model
        self._prompt = prompt
        self._consumer = tab.consumer
        self._time_s = time_s
        self._stays = stays
        self._fate = Fate.CLIENT_GONE  # unless something else is known
        self._delivery = Delivery(
            tab, price=price, till=session.till, renewal=session.renewal, clock=clock
        )

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        delivery = self._delivery
        return Usage(input=self._prompt.tokens, output=delivery.given, cached=delivery.cached)

    def refuse(self, error: AIGovToolError) -> None:
        """Give nothing: it was stopped in the very step in which it was paid."""
        self._fail(Fate.NOT_BEGUN, error)

    async def pieces(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of the answer; `error` says whether that was all of it."""
        if self.error is not None:
            return
        pieces = self._delivery.pieces(
            self._model,
            self._prompt,
            consumer=self._consumer,
            flights=self._session.flights,
            time_s=self._time_s,
        )
        try:
            async with contextlib.aclosing(pieces):
                with watched(request, self._client_leaves):
                    async for piece in pieces:
                        yield piece
            self._fate = Fate.ANSWERED
        except FlightCutError as cut:
            self._fail(fate_of(cut.cut, begun=cut.begun), cut.error)
            self.client_left = cut.cut is Cut.CLIENT_GONE
        except AIGovToolError as error:
            self._fail(Fate.MODEL_ERROR, error)
        except Exception as error:  # noqa: BLE001 - charged: whatever happens, there is an account
            log_fault(error)
            self._fail(Fate.MODEL_ERROR, PromiseBrokenError("the enclave failed"))

    def close(self) -> bool:
        """It is over; returns whether a retry must be told the same."""
        return self.payment.close(self._fate) or self._fate in REPEATED

    def account(self) -> Account:
        """Return what all of it cost; it is over then."""
        self.close()
        return self.payment.account()

    def _fail(self, fate: Fate, error: AIGovToolError) -> None:
        self._fate = Fate.CUT if self._delivery.given else fate
        self.error = error

    def _client_leaves(self) -> None:
        if not self._stays:
            left = UnavailableError("the client left", code="query.left")
            self._delivery.end(Cut.CLIENT_GONE, left)
