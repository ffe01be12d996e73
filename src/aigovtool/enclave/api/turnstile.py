"""
Where queries pass the limits before they are charged, and wait for their turn if they may.

Rule 1: a query counts as running from here until its answer is made, also while it waits for
        credits.
Rule 2: whoever waits is let through, and counted, in the step in which the limits allow it, in the
        fair order of `waiting`; so nobody overtakes, and a place that is free wakes who gets it.
Rule 3: what the loan's limits hold up holds up all behind it, or small queries would keep a batch
        waiting for ever; what a consumer's own limits hold up, holds up that consumer alone.
Rule 4: who stops waiting (told so, out of patience, or cancelled as its client left) has taken
        nothing, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from enum import Enum

from aigovtool.clock import Clock
from aigovtool.enclave.limits import BUSY_RETRY_AFTER_S, Held, LocalLimits, too_fast
from aigovtool.enclave.waiting import Waiter, WaitingQueue
from aigovtool.errors import AIGovToolError
from aigovtool.ids import ConsumerId

SOONEST_LOOK_S = 0.001  # rounding must not make a loop of looking a moment too early


class _Not(Enum):
    YET = "held up"


class Turnstile:
    """
    Lets queries through one set of limits; `leave` follows each `enter` that returned.

    Args:
        max_waiting: queries that may wait here, of all consumers and of each.
    """

    __slots__ = ("_clock", "_loan_held", "_queue", "_timer", "limits")

    def __init__(self, clock: Clock, max_waiting: tuple[int, int]) -> None:
        self.limits = LocalLimits(self._limits_changed)
        self._clock = clock
        self._queue: WaitingQueue[None] = WaitingQueue(*max_waiting)
        self._timer: asyncio.TimerHandle | None = None
        self._loan_held: Held | None = None  # what holds up all that wait, as last seen

    @property
    def waited_at(self) -> bool:
        """Whether any query waits here."""
        return bool(self._queue)

    def waiting(self, consumer: ConsumerId) -> int:
        """Return how many queries of *consumer* wait here."""
        return len(self._queue.of(consumer))

    async def enter(self, consumer: ConsumerId, cost: int, patience_s: float) -> None:
        """
        Count a query as running, once the limits let it pass.

        Raises:
            LimitedError: too fast or too many at one time, for longer than *patience_s*.
            UnavailableError: too many wait already.
            AIGovToolError: what `fail_all` was given meanwhile.
        """
        limits, now_s = self.limits, self._clock.monotonic_s()
        ahead = self._queue.wanted_by(consumer) if self._queue else 0
        if not ahead and not self._queue and limits.enter(consumer, cost, now_s) is None:
            return
        held = limits.held(consumer, cost, now_s, ahead=ahead)
        if held is not None and (patience_s <= 0 or held.wait_s > patience_s):
            raise held.error()
        waiter: Waiter[None] = Waiter(consumer=consumer, cost=cost, patient=patience_s > 0)
        self._queue.add(waiter)
        self._serve()
        try:
            async with asyncio.timeout(max(0.0, patience_s)):
                await waiter.paid
        except TimeoutError:
            self._serve()
            if _has_passed(waiter):
                return  # let through in the very moment in which its patience was over
            raise self._refusal(consumer, cost) from None
        except asyncio.CancelledError:
            if _has_passed(waiter):
                self.leave(consumer)
            raise
        finally:
            self._queue.leave(waiter)
            if waiter.paid.done() and not waiter.paid.cancelled():
                waiter.paid.exception()  # it was seen, whether or not anyone is still here
            self._serve()

    def leave(self, consumer: ConsumerId) -> None:
        """A query of *consumer* that had entered is over."""
        self.limits.leave(consumer)
        self._serve()

    def fail_all(self, error: Callable[[ConsumerId], AIGovToolError | None]) -> None:
        """Wake whoever waits, and for whose consumer *error* returns one, with it."""
        self._queue.fail_all(lambda waiter: error(waiter.consumer))
        self._serve()

    def _serve(self) -> None:
        """Let through whoever may pass now, and come back when the next one might."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loan_held = None
        if not self._queue:
            return
        now_s = self._clock.monotonic_s()
        held_up: set[ConsumerId] = set()
        again_s = math.inf

        def let_through(waiter: Waiter[None]) -> _Not | None:
            nonlocal again_s
            consumer, cost = waiter.consumer, waiter.cost
            if self._loan_held is not None or consumer in held_up:
                return _Not.YET
            held = self.limits.enter(consumer, cost, now_s)
            if held is None:
                return None
            if held.by_loan:
                self._loan_held = held
            held_up.add(consumer)
            if held.wait_s > 0:
                again_s = min(again_s, held.wait_s)
            return _Not.YET

        self._queue.serve(let_through)
        if again_s < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(again_s, SOONEST_LOOK_S), self._serve)

    def _limits_changed(self) -> None:
        now_s = self._clock.monotonic_s()
        self._queue.fail_all(lambda one: self._hopeless(one, now_s))  # it would hold up the others
        self._serve()

    def _hopeless(self, waiter: Waiter[None], now_s: float) -> AIGovToolError | None:
        held = self.limits.held(waiter.consumer, waiter.cost, now_s)
        return held.error() if held is not None and math.isinf(held.wait_s) else None

    def _refusal(self, consumer: ConsumerId, cost: int) -> AIGovToolError:
        """Say what holds a query that waits: its own limits, or what holds up those before it."""
        ahead = max(0, self._queue.wanted_by(consumer) - cost)
        held = self.limits.held(consumer, cost, self._clock.monotonic_s(), ahead=ahead)
        if (held := held or self._loan_held) is not None:
            return held.error()
        return too_fast("the turn of the query did not come", retry_after_s=BUSY_RETRY_AFTER_S)


def _has_passed(waiter: Waiter[None]) -> bool:
    done = waiter.paid.done() and not waiter.paid.cancelled()
    return done and waiter.paid.exception() is None
