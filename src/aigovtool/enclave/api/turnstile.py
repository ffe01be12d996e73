"""
Where queries pass the limits before they are charged, and wait for their turn if they may.

A query counts as running from here until its answer is made, and while it waits for credits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from aigovtool.clock import Clock
from aigovtool.enclave.limits import LocalLimits, too_many
from aigovtool.ids import ConsumerId


class Turnstile:
    """Lets queries through one set of limits."""

    __slots__ = ("_clock", "_waiting", "limits")

    def __init__(self, clock: Clock) -> None:
        self.limits = LocalLimits()
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    @contextlib.asynccontextmanager
    async def passed(
        self, consumer: ConsumerId, cost: int, patience_s: float
    ) -> AsyncIterator[None]:
        """
        Count a query for the length of the block.

        Raises:
            LimitedError: too fast or too many at one time, for longer than *patience_s*.
        """
        limits = self.limits
        until_s = self._clock.monotonic_s() + patience_s
        await self._until_not_busy(consumer, until_s)
        limits.enter(consumer)
        try:
            now_s = self._clock.monotonic_s()
            if turn_s := limits.reserve(consumer, cost, now_s, max(0.0, until_s - now_s)):
                await asyncio.sleep(turn_s)
            yield
        finally:
            limits.leave(consumer)
            self.changed()

    async def _until_not_busy(self, consumer: ConsumerId, until_s: float) -> None:
        while (busy := self.limits.busy(consumer)) is not None:
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                raise too_many(busy)
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(mine)
            try:
                async with asyncio.timeout(left_s):
                    await mine
            except TimeoutError:
                raise too_many(busy) from None
            finally:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(mine)

    def changed(self) -> None:
        """Limits or what runs have changed: whoever waits looks again, the first one first."""
        for one in self._waiting:
            if not one.done():
                one.set_result(None)
