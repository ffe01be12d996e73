"""
Ask again, and never too fast: vendors' services are shared by the whole world.

Rule 1: each origin is asked at most `BURST` times at once and then once in `INTERVAL_S` (AMD's
        service answers 429 to whoever is faster).
Rule 2: between attempts the wait doubles, with full jitter, so that a thousand enclaves that
        failed together do not return together.
Rule 3: what Retry-After asks for holds for the whole origin, not for one question; while it lasts
        longer than anybody wants to wait, the origin is not visited at all.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable

from aigovtool.clock import Clock
from aigovtool.endorsements.fetch import Answer, Question, Transport
from aigovtool.errors import UnavailableError

ATTEMPTS = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
PATIENCE_S = 20.0  # a caller who would have to wait longer is told so instead
BURST = 8
INTERVAL_S = 1.0

Sleep = Callable[[float], Awaitable[None]]


class _Gate:
    """When one origin may be asked next: a leaky bucket (GCRA), and what Retry-After closed."""

    __slots__ = ("_closed_until", "_full_at")

    def __init__(self) -> None:
        self._full_at = 0.0  # the bucket is then as full as it gets
        self._closed_until = 0.0

    def close(self, until: float) -> None:
        self._closed_until = max(self._closed_until, until)

    def closed_for(self, now: float) -> float:
        return max(0.0, self._closed_until - now)

    def turn_in(self, now: float) -> float:
        """Return how long it is until the next turn that nobody has taken, in seconds."""
        return max(0.0, self._full_at - (BURST - 1) * INTERVAL_S - now)

    def take_turn(self, now: float) -> None:
        """Reserve it."""
        self._full_at = max(self._full_at, now) + INTERVAL_S


class PatientTransport:
    """
    Asks by another transport, by the rules of this module.

    Args:
        transport: asks once.
        clock: its monotonic time.
        sleep: waits so many seconds.
        jitter: gives a number from 0 to 1.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._gates: defaultdict[str, _Gate] = defaultdict(_Gate)

    async def ask(self, question: Question) -> Answer:
        """Ask up to `ATTEMPTS` times; raises as `Transport.ask` does."""
        gate = self._gates[question.origin]
        for attempt in range(ATTEMPTS):
            await self._pass(gate, question)
            try:
                return await self._transport.ask(question)
            except UnavailableError as error:
                gate.close(self._clock.monotonic_s() + error.retry_after_s)
                failure = error
            if attempt + 1 < ATTEMPTS and failure.retry_after_s <= PATIENCE_S:
                # Not for secrets: it only keeps callers apart.
                await self._sleep(self._jitter() * min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S))
            else:
                break
        raise UnavailableError(
            failure.reasons[0], retry_after_s=max(failure.retry_after_s, LONGEST_WAIT_S)
        )

    async def _pass(self, gate: _Gate, question: Question) -> None:
        while (closed_s := gate.closed_for(self._clock.monotonic_s())) > 0.0:
            await self._wait(closed_s, question)
        now = self._clock.monotonic_s()
        turn_in_s = gate.turn_in(now)
        if turn_in_s <= PATIENCE_S:
            gate.take_turn(now)
        if turn_in_s > 0.0:
            await self._wait(turn_in_s, question)

    async def _wait(self, wait_s: float, question: Question) -> None:
        if wait_s > PATIENCE_S:
            raise UnavailableError(
                f"{question.origin} is not to be visited now, so as not to visit it too often",
                code="endorsements.rate",
                came=f"{wait_s:.0f} s left",
                mend="wait, keep a cache, or put a PCCS or a mirror in between",
                retry_after_s=wait_s,
            )
        await self._sleep(wait_s)
