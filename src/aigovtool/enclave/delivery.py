"""
An answer of a language model on its way: made on a thread, paid for piece by piece, given on.

Rule 1: a piece is charged before it is given, from what is held for its query. While no lease holds
        that, the piece waits; whoever gets nothing pays nothing.
Rule 2: what is held covers all that the model may produce, so nothing is produced beyond it.
Rule 3: a stop, a block, a lease that is over and a client that leaves end it at once, wherever it
        is: before its first token, between two, and while it waits for a lease.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from aigovtool.clock import Clock
from aigovtool.enclave.flights import Cut, Flight, Flights
from aigovtool.enclave.renewal import Renewal
from aigovtool.enclave.runtime.base import Generation, LanguageModel, Piece, Prompt
from aigovtool.enclave.till import Tab, Till
from aigovtool.errors import AIGovToolError, PromiseBrokenError
from aigovtool.ids import ConsumerId

LONGEST_WAIT_S = 3600.0  # for news; then it looks by itself, whatever the clocks say


class Delivery:
    """
    One answer; `pieces` gives it once.

    Args:
        tab: holds what it may cost.
        price: credits of a token that is produced.
    """

    def __init__(self, tab: Tab, *, price: int, till: Till, renewal: Renewal, clock: Clock) -> None:
        self._tab = tab
        self._price = price
        self._till = till
        self._renewal = renewal
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Piece] = deque()
        self._news = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = 0.0
        self._flight: Flight[None] | None = None
        self._run: Generation | None = None
        self.given = 0
        """Tokens that were given, and charged."""
        tab.changed = self._news.set

    async def pieces(
        self,
        model: LanguageModel,
        prompt: Prompt,
        *,
        consumer: ConsumerId,
        flights: Flights,
        time_s: float,
    ) -> AsyncGenerator[Piece, None]:
        """
        Yield the pieces of the answer, each once it is charged.

        Raises:
            FlightCutError: it was ended from outside, or no lease pays for more.
            BadPromptError: the model cannot answer this.
            UnavailableError: it failed otherwise.
        """
        run = self._run = model.generate(prompt, consumer, self._tell)
        job = model.threads.submit(run.execute)
        with flights.fly(consumer, run, job, time_s=time_s) as flight:
            self._flight = flight
            flight.when_over(self._news.set)
            try:
                while (piece := await self._next(flight)) is not None:
                    yield piece
                await flight.landed()
            finally:
                run.terminate()  # whoever stops reading wants no more of it
                if self._alarm is not None:
                    self._alarm.cancel()

    @property
    def cached(self) -> int:
        """Tokens of the input that had been kept from before."""
        return 0 if self._run is None else self._run.cached

    def end(self, cut: Cut, error: AIGovToolError) -> None:
        """End it while it is under way."""
        if self._flight is not None:
            self._flight.end(cut, error)

    async def _next(self, flight: Flight[None]) -> Piece | None:
        """Return the next piece, charged; None at the end of the answer; raises FlightCutError."""
        while True:
            if flight.cut is not None:
                raise flight.cut
            now_s = self._clock.monotonic_s()
            if self._arrived and self._charge(self._arrived[0], now_s):
                return self._arrived.popleft()
            if not self._arrived and flight.over:
                return None
            if (lapse := self._renewal.lapse(self._tab, now_s)) is not None:
                flight.end(Cut.LAPSED, lapse)
                continue
            self._news.clear()
            self._look_at(self._tab.until_s, now_s)
            await self._news.wait()

    def _look_at(self, at_s: float, now_s: float) -> None:
        """See that it looks by itself at *at_s*: one alarm for all waits in one lease."""
        if self._alarm is not None:
            if self._alarm_s == at_s:
                return
            self._alarm.cancel()
        self._alarm_s = at_s
        self._alarm = self._loop.call_later(min(at_s - now_s, LONGEST_WAIT_S), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._news.set()

    def _charge(self, piece: Piece, now_s: float) -> bool:
        tokens = piece.produced - self.given
        if tokens < 0:
            raise PromiseBrokenError("a runtime that counts tokens backwards")
        if tokens and not self._till.draw(self._tab, tokens * self._price, now_s):
            return False
        self.given = piece.produced
        return True

    def _tell(self, piece: Piece) -> None:
        """Take a piece from the thread that makes it."""
        self._loop.call_soon_threadsafe(self._take, piece)

    def _take(self, piece: Piece) -> None:
        self._arrived.append(piece)
        self._news.set()
