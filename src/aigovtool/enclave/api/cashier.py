"""
From a query that can be computed to one that may be: limits, waiting, and payment.

Rule 1: what is not charged when the loan's model is replaced begins anew, with the other model.
Rule 2: who may no longer ask, since its loan was stopped or it was blocked while it waited, pays
        nothing.
Rule 3: a client that leaves while its query waits gives up its place, and pays nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aigovtool.clock import Clock
from aigovtool.enclave.api.http import Header, Request
from aigovtool.enclave.api.leaving import unless_gone
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.meter import Refusal
from aigovtool.enclave.refunds import Fate
from aigovtool.enclave.session import Session, SucceededError
from aigovtool.enclave.till import Paid
from aigovtool.ids import ConsumerId
from aigovtool.wire import headers as names
from aigovtool.wire.words import plain

IDEMPOTENCY_KEY = b"idempotency-key"
REMAINING = names.REMAINING.lower().encode()
_PREFER = b"prefer"
_REASON = names.REASON.lower().encode()
_WAIT = re.compile(rb'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])', re.IGNORECASE)

T = TypeVar("T")


class Cashier:
    """Takes payment for the queries of one loan."""

    def __init__(self, enclave: Enclave, limits: Limits, clock: Clock) -> None:
        self._enclave = enclave
        self._limits = limits
        self._clock = clock

    async def in_session(
        self, request: Request, answer: Callable[[Session, float], Awaitable[T]]
    ) -> T:
        """
        Return what *answer* gives, for the session that serves and the seconds that the query may
        still wait; again for the next session, if this one is succeeded before it charged.
        """
        patient_until_s = self._clock.monotonic_s() + self._patience_s(request)
        while True:
            session, _ = self._enclave.serving()
            try:
                return await answer(session, max(0.0, patient_until_s - self._clock.monotonic_s()))
            except SucceededError:
                await session.succeeded.wait()

    @contextlib.asynccontextmanager
    async def within_limits(
        self,
        request: Request,
        session: Session,
        consumer: ConsumerId,
        cost: int,
        patience_s: float,
    ) -> AsyncIterator[float]:
        """Count a query as running, once the limits let it pass; gives the patience left."""
        turnstile = session.turnstile
        if not turnstile.limits.active:
            yield patience_s
            return
        self.check_admitted(session, consumer)
        begin_s = self._clock.monotonic_s()
        await unless_gone(
            request,
            turnstile.enter(consumer, cost, patience_s),
            lambda _: turnstile.leave(consumer),
        )
        try:
            yield max(0.0, patience_s - (self._clock.monotonic_s() - begin_s))
        finally:
            turnstile.leave(consumer)

    def check_admitted(self, session: Session, consumer: ConsumerId) -> None:
        """Refuse what was stopped or blocked while the body came, or the query waited (Rule 2)."""
        self._enclave.serving()
        session.admit(consumer)

    async def pay(
        self,
        request: Request,
        session: Session,
        consumer: ConsumerId,
        cost: int,
        patience_s: float,
        *,
        held: int = 0,
    ) -> Paid:
        """
        Charge the query, waiting for credits if need be and wanted; a `Tab` when something of its
        *cost* is *held*.
        """
        self.check_admitted(session, consumer)
        session.check_stays()
        now_s = self._clock.monotonic_s()
        paid = session.renewal.pay(consumer, cost, held, now_s)
        if isinstance(paid, Refusal):
            paid = await unless_gone(
                request,
                session.renewal.acquire(
                    consumer,
                    cost,
                    held=held,
                    now_s=now_s,
                    lease_wait_s=self._limits.lease_wait_s,
                    patience_s=patience_s,
                    reason=plain(request.headers.get(_REASON, b"").decode("utf-8", "replace")),
                    key=request.headers.get(IDEMPOTENCY_KEY, b"").decode("latin-1"),
                ),
                lambda late: session.renewal.finish(
                    late, Fate.NOT_BEGUN, self._clock.monotonic_s()
                ),
            )
        if session.till.meter.left < session.renewal.low_mark:
            session.renewal.nudge()
        return paid

    def remaining(self, session: Session, consumer: ConsumerId) -> Header:
        """Return the header that says what is left."""
        return REMAINING, b"%d" % self.left(session, consumer)

    def left(self, session: Session, consumer: ConsumerId) -> int:
        """Return how many credits *consumer* can probably still use."""
        return session.renewal.standing.remaining(consumer, self._clock.monotonic_s())

    def _patience_s(self, request: Request) -> float:
        found = _WAIT.search(request.headers.get(_PREFER, b""))
        return 0.0 if found is None else min(float(found[1]), self._limits.max_patience_s)
