"""
The event loop, lent for computations: in one round of it only as many begin as take a moment
together, so that a stop, a lease and what others send are seen to in between.

Consumers take turns: one that asks much does not keep the others waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aigovtool.ids import ConsumerId

ROUND_S = 0.01  # of computations in one round, or one that takes longer
MOST = 32  # in one round, however quick they are


class Rounds:
    """Who may compute on the event loop now; `len` says how many wait for that."""

    __slots__ = ("_each", "_going", "_left", "_waiting")

    def __init__(self) -> None:
        self._each = self._left = 1
        self._going = False  # a round will follow
        self._waiting: dict[ConsumerId, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def place(self, consumer: ConsumerId) -> asyncio.Future[None] | None:
        """
        Return what is done when a query of *consumer* may be computed, None when it may be now.

        Whoever wants it no more lets it be done before.
        """
        if self._left and not self._waiting:
            self._begin()
            return None
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(consumer, deque()).append(place)
        self._go()
        return place

    def took(self, seconds: float) -> None:
        """A computation on the loop took so long: so will the next ones."""
        self._each = min(MOST, max(1, int(ROUND_S / max(seconds, 1e-6))))

    def _begin(self) -> None:
        self._left -= 1
        self._go()

    def _go(self) -> None:
        if not self._going:
            self._going = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._going = False
        self._left = self._each
        while self._left and self._waiting:
            consumer, places = next(iter(self._waiting.items()))
            del self._waiting[consumer]
            place = places.popleft()
            if places:
                self._waiting[consumer] = places
            if not place.done():
                place.set_result(None)
                self._begin()
