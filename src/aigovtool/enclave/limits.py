"""
Limits at the enclave: a rate and a number of queries at one time, of each consumer and of the loan.

Rule 1: a query passes both limits of its consumer and both of the loan before it is charged, or
        none of them counts it.
Rule 2: of a rate every enclave keeps the whole, and the custodian leases to all together no more
        than it; of a number at one time each enclave keeps its share, and the shares add up.
Rule 3: a credit of a rate is taken when the query passes, never in advance: who waits for its own
        rate, or leaves before its turn, holds up nobody.

Pure: time is an argument, in seconds of the enclave's monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aigovtool.errors import LimitedError
from aigovtool.ids import ConsumerId
from aigovtool.wire import limits as arithmetic
from aigovtool.wire.enrolment import RosterEntry
from aigovtool.wire.limits import NO_LIMITS, Limits, Rate, share_of

BUSY_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 3600.0
_LOAN = ConsumerId("")  # stands for all consumers together


@dataclass(frozen=True, slots=True)
class Held:
    """
    What keeps a query from passing.

    Args:
        by_loan: a limit of the loan, which holds up every consumer; else of the consumer alone.
        wait_s: until the rate would let it through; infinite when it never will. 0 when as many
            queries run as may, which ends when one of them does.
        limit: the rate, or how many may run on this enclave.
    """

    by_loan: bool
    wait_s: float
    limit: Rate | int

    def error(self) -> LimitedError:
        """Say so to the client."""
        whose = "the loan's" if self.by_loan else "your"
        if isinstance(self.limit, Rate):
            return too_fast(
                f"{whose} limit of {self.limit} is reached",
                retry_after_s=min(self.wait_s, MAX_RETRY_AFTER_S),
            )
        return LimitedError(
            f"as many of {whose} queries run at one time as may",
            code="limit.concurrency",
            came=f"{self.limit} on this enclave",
            mend="wait for an answer before asking again, or add `Prefer: wait=N`",
            retry_after_s=BUSY_RETRY_AFTER_S,
        )


def _nobody() -> None:
    """Nobody waits for a change of the limits."""


class LocalLimits:
    """What one enclave enforces, and what it has let through."""

    __slots__ = ("_changed", "_full_at_s", "_limits", "_place", "_running", "_sharers", "active")

    def __init__(self, changed: Callable[[], None] = _nobody) -> None:
        self._changed = changed  # called when what is let through may be more, or less, by now
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
        self._changed()

    def set_place(self, place: int, sharers: int) -> None:
        """This is the enclave at *place* of *sharers* on the loan (Rule 2)."""
        if (place, sharers) != (self._place, self._sharers):
            self._place, self._sharers = place, sharers
            self._changed()

    def held(self, consumer: ConsumerId, cost: int, now_s: float, *, ahead: int = 0) -> Held | None:
        """
        Say what would keep a query from passing now, what is the consumer's own first.

        Args:
            ahead: what queries of the same consumer cost that pass before it.
        """
        for name in (consumer, _LOAN):
            limits = self._limits.get(name, NO_LIMITS)
            if limits.concurrency is not None:
                share = share_of(limits.concurrency, self._place, self._sharers)
                if self._running.get(name, 0) >= share:
                    return Held(name == _LOAN, 0.0, share)
            if (rate := limits.rate) is not None:
                full_at_s = self._full_at_s.get(name, now_s)
                if cost > rate.credits:  # the bucket never holds so many
                    return Held(name == _LOAN, math.inf, rate)
                if ahead:
                    full_at_s = arithmetic.after(rate, full_at_s, now_s, ahead)
                if wait_s := arithmetic.wait_s(rate, full_at_s, now_s, cost):
                    return Held(name == _LOAN, wait_s, rate)
        return None

    def enter(self, consumer: ConsumerId, cost: int, now_s: float) -> Held | None:
        """Let a query of *consumer* run, `leave` must follow; or say what holds it (Rule 1)."""
        if (held := self.held(consumer, cost, now_s)) is not None:
            return held
        for name in (consumer, _LOAN):
            self._running[name] = self._running.get(name, 0) + 1
            if (rate := self._limits.get(name, NO_LIMITS).rate) is not None:
                full_at_s = self._full_at_s.get(name, now_s)
                self._full_at_s[name] = arithmetic.after(rate, full_at_s, now_s, cost)
        return None

    def leave(self, consumer: ConsumerId) -> None:
        """It runs no more."""
        for name in (consumer, _LOAN):
            if self._running[name] == 1:
                del self._running[name]
            else:
                self._running[name] -= 1


def too_fast(message: str, *, retry_after_s: float) -> LimitedError:
    """Say that a rate is reached, which is no used-up budget."""
    return LimitedError(
        message,
        code="limit.rate",
        mend="ask more slowly, or with `Prefer: wait=N` to be served in turn",
        retry_after_s=retry_after_s,
    )
