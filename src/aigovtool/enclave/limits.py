"""
Limits at the enclave: a rate and a number of queries at one time, of each consumer and of the loan.

Rule 1: a query passes both limits of its consumer and both of the loan before it is charged, or
        none of them counts it.
Rule 2: of a rate every enclave keeps the whole, and the custodian leases to all together no more
        than it; of a number at one time each enclave keeps its share, and the shares add up.
Rule 3: whoever may wait for a rate reserves its turn at once, so that turns come in order and
        nobody has to race for them.

Pure: time is an argument, in seconds of the enclave's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aigovtool.errors import LimitedError
from aigovtool.ids import ConsumerId
from aigovtool.wire import limits as arithmetic
from aigovtool.wire.enrolment import RosterEntry
from aigovtool.wire.limits import NO_LIMITS, Limits, share_of

BUSY_RETRY_AFTER_S = 1.0
_LOAN = ConsumerId("")  # stands for all consumers together


@dataclass(frozen=True, slots=True)
class Busy:
    """As many queries run as may: of `whose`, one consumer or all."""

    whose: str
    share: int


class LocalLimits:
    """What one enclave enforces, and what it has let through."""

    __slots__ = ("_full_at_s", "_limits", "_place", "_running", "_sharers", "active")

    def __init__(self) -> None:
        self._limits: dict[ConsumerId, Limits] = {}
        self._full_at_s: dict[ConsumerId, float] = {}
        self._running: dict[ConsumerId, int] = {}
        self._place, self._sharers = 0, 1
        self.active = False  # whether anything is limited: most loans are not

    def set_loan(self, limits: Limits) -> None:
        """The loan's limits are now these."""
        self._set({name: each for name, each in self._limits.items() if name != _LOAN}, limits)

    def set_consumers(self, roster: Iterable[RosterEntry]) -> None:
        """The consumers' limits are now these."""
        limits = {one.consumer: one.limits for one in roster if one.limits != NO_LIMITS}
        self._set(limits, self._limits.get(_LOAN, NO_LIMITS))

    def _set(self, consumers: dict[ConsumerId, Limits], loan: Limits) -> None:
        self._limits = consumers if loan == NO_LIMITS else {**consumers, _LOAN: loan}
        rated = {name for name, each in self._limits.items() if each.rate is not None}
        self._full_at_s = {name: at for name, at in self._full_at_s.items() if name in rated}
        self.active = bool(self._limits)

    def set_place(self, place: int, sharers: int) -> None:
        """This is the enclave at *place* of *sharers* on the loan (Rule 2)."""
        self._place, self._sharers = place, sharers

    def busy(self, consumer: ConsumerId) -> Busy | None:
        """Say whose limit of queries at one time is reached, if any."""
        for name, whose in ((consumer, "consumer"), (_LOAN, "loan")):
            concurrency = self._limits.get(name, NO_LIMITS).concurrency
            if concurrency is not None:
                share = share_of(concurrency, self._place, self._sharers)
                if self._running.get(name, 0) >= share:
                    return Busy(whose, share)
        return None

    def enter(self, consumer: ConsumerId) -> None:
        """A query of *consumer* runs; `leave` must follow."""
        for name in (consumer, _LOAN):
            self._running[name] = self._running.get(name, 0) + 1

    def leave(self, consumer: ConsumerId) -> None:
        """It runs no more."""
        for name in (consumer, _LOAN):
            if self._running[name] == 1:
                del self._running[name]
            else:
                self._running[name] -= 1

    def reserve(self, consumer: ConsumerId, cost: int, now_s: float, patience_s: float) -> float:
        """
        Take *cost* of both rates, now or for a turn to come.

        Returns:
            How long the query must wait for its turn, at most *patience_s*.

        Raises:
            LimitedError: its turn does not come within *patience_s*; nothing was taken.
        """
        rates = [
            (name, rate)
            for name in (consumer, _LOAN)
            if (rate := self._limits.get(name, NO_LIMITS).rate) is not None
        ]
        waits_s = [
            arithmetic.wait_s(rate, self._full_at_s.get(name, now_s), now_s, cost)
            for name, rate in rates
        ]
        wait_s = max(waits_s, default=0.0)
        if wait_s > patience_s:
            name, rate = rates[waits_s.index(wait_s)]
            whose = "the loan's" if name == _LOAN else "your"
            raise too_fast(f"{whose} limit of {rate} is reached", retry_after_s=min(wait_s, 3600.0))
        for name, rate in rates:
            full_at_s = self._full_at_s.get(name, now_s)
            self._full_at_s[name] = arithmetic.after(rate, full_at_s, now_s + wait_s, cost)
        return wait_s


def too_fast(message: str, *, retry_after_s: float) -> LimitedError:
    """Say that a rate is reached, which is no used-up budget."""
    return LimitedError(
        message,
        code="limit.rate",
        mend="ask more slowly, or with `Prefer: wait=N` to be served in turn",
        retry_after_s=retry_after_s,
    )


def too_many(busy: Busy) -> LimitedError:
    """Say that as many queries run at one time as may."""
    whose = "the loan's" if busy.whose == "loan" else "your"
    return LimitedError(
        f"as many of {whose} queries run at one time as may",
        code="limit.concurrency",
        came=f"{busy.share} on this enclave",
        mend="wait for an answer before asking again, or add `Prefer: wait=N`",
        retry_after_s=BUSY_RETRY_AFTER_S,
    )
