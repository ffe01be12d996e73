"""
Queries of one loan in flight: charged, and being computed or waiting for a thread.

Rule 1: whoever is in flight can be cancelled at any moment; its client is answered at once, and
        its computation is told to end.
Rule 2: who ends it says why, and learns whether its computation had begun.
Rule 3: a model is let go only when no thread computes with it any more.
Rule 4: one consumer cannot take all the places: some are kept for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from aigovtool.enclave.batching import Batching, Outputs
from aigovtool.enclave.pace import Pace
from aigovtool.enclave.rounds import Rounds
from aigovtool.enclave.runtime.base import Run, TensorModel
from aigovtool.errors import AIGovToolError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.sealing.interface import Together
from aigovtool.telemetry.metrics import Times
from aigovtool.wire.tensors import Array

FULL_RETRY_AFTER_S = 1.0
CONSUMER_SHARE = 0.75  # of what all consumers have together, that one of them can take

T = TypeVar("T")
F = TypeVar("F", bound="Flight[Any] | HereFlight")


class Ending(Protocol):
    """A computation that can be told to end."""

    def terminate(self) -> None:
        """Let it end as soon as it can; harmless before and after it."""
        ...


class Cut(Enum):
    """Why a flight was ended from outside."""

    OUT_OF_TIME = "out of time"
    LAPSED = "no lease pays for more of it"
    STOPPED = "stopped"
    CLIENT_GONE = "client gone"


class FlightCutError(Exception):
    """
    A flight was ended from outside.

    Args:
        error: what to tell its client.
        begun: whether a thread had begun to compute.
    """

    def __init__(self, cut: Cut, error: AIGovToolError, *, begun: bool) -> None:
        super().__init__(cut.value)
        self.cut = cut
        self.error = error
        self.begun = begun


class Flight(Generic[T]):
    """One query in flight, made by `Flights.launch` or `Flights.fly`."""

    __slots__ = ("_answer", "_job", "_told", "consumer", "cut", "run")

    def __init__(self, consumer: ConsumerId, run: Ending, job: Future[T]) -> None:
        self.consumer = consumer
        self.run = run
        self.cut: FlightCutError | None = None
        self._job = job
        self._answer = asyncio.wrap_future(job)
        self._told: Callable[[], object] | None = None

    @property
    def over(self) -> bool:
        """Whether it has landed, or was cut."""
        return self._answer.done()

    def when_over(self, call: Callable[[], object]) -> None:
        """
        Call *call* on the event loop once it has landed, and when it is cut.

        What was computed is then still to be given on, so that it can be cut after it has landed.
        """
        self._told = call
        self._answer.add_done_callback(lambda _: call())

    def end(self, cut: Cut, error: AIGovToolError, *, only_if_waiting: bool = False) -> None:
        """
        End it, unless it has ended.

        Args:
            only_if_waiting: let it go on when its computation has begun.
        """
        if self.cut is not None:
            return
        if self._answer.done():
            if self._told is not None:
                self.cut = FlightCutError(cut, error, begun=True)
                self._told()
            return
        begun = not self._job.cancel()
        if begun and only_if_waiting:
            return
        self.cut = FlightCutError(cut, error, begun=begun)
        self.run.terminate()
        self._answer.cancel()

    async def landed(self) -> T:
        """Return its outputs; raises FlightCutError, or what the runtime raised."""
        try:
            return await self._answer
        except asyncio.CancelledError:
            if self.cut is not None:
                raise self.cut from None
            self.run.terminate()
            raise


class HereFlight:
    """One query that is computed on the event loop, when it is its turn there."""

    __slots__ = ("_begun", "_compute", "_place", "consumer", "cut")

    def __init__(
        self,
        consumer: ConsumerId,
        place: asyncio.Future[None] | None,
        compute: Callable[[], Outputs],
    ) -> None:
        self.consumer = consumer
        self.cut: FlightCutError | None = None
        self._place = place
        self._compute = compute
        self._begun = False

    def end(self, cut: Cut, error: AIGovToolError, *, only_if_waiting: bool = False) -> None:
        """End it, unless it has ended; when anybody can say so it waits, or is over."""
        if self.cut is None and not self._begun:
            self.cut = FlightCutError(cut, error, begun=False)
            if self._place is not None:
                self._place.cancel()

    async def landed(self) -> Outputs:
        """Compute it, and return its outputs; raises FlightCutError, or what the runtime raised."""
        if self._place is not None:
            try:
                await self._place
            except asyncio.CancelledError:
                if self.cut is None:
                    raise  # it is its own task that is cancelled, and not its place by `end`
        if self.cut is not None:
            raise self.cut
        self._begun = True
        return self._compute()


class Flights:
    """
    What one loan has in the compute threads, which it shares with others.

    Args:
        pool: the threads.
        limit: queries computed or waiting for a thread; past it they are refused.
        time_s: for one computation, waiting for its thread included.
        times: is told how long each took.

    `pace` says what may be computed on the event loop instead, and `rounds` when.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, *, limit: int, time_s: float, times: Times
    ) -> None:
        self._pool = pool
        self._limit = limit
        self._each = math.ceil(limit * CONSUMER_SHARE)
        self._time_s = time_s
        self.times = times
        self.pace = Pace()
        self.rounds = Rounds()
        self._batching: Batching | None = None
        self._flights: dict[Flight[Any] | HereFlight, None] = {}
        self._landed = asyncio.Event()  # since none was in flight
        self._jobs: set[Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, model: TensorModel, together: Together) -> None:
        """Compute queries of *model*, which all are, in common runs."""
        self._batching = Batching(model, self._pool, together)

    def check_room(self, consumer: ConsumerId) -> None:
        """Refuse a query before it is charged, when it would have to wait too long."""
        there = len(self._jobs) + len(self.rounds)
        if there < self._each:
            return
        own = sum(flight.consumer == consumer for flight in self._flights)
        if there >= self._limit or own >= self._each:
            raise UnavailableError(
                "too many queries are in flight",
                code="queue.full",
                came=f"{there} queries, {own} of them yours",
                retry_after_s=FULL_RETRY_AFTER_S,
            )

    def launch(
        self,
        consumer: ConsumerId,
        run: Run,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        items: int,
        *,
        here: bool,
    ) -> contextlib.AbstractContextManager[Flight[Outputs] | HereFlight]:
        """
        Compute on a thread of the pool, for the length of the block.

        Args:
            run: of this query by itself.
            items: how many it holds, where it may share a run.
            here: compute on the event loop instead, when it has landed.
        """
        if here:
            place = self.rounds.place(consumer)
            return self._aloft(
                HereFlight(consumer, place, lambda: self._execute(run, inputs, outputs)),
                self._time_s,
            )
        if self._batching is None:
            job = self._pool.submit(run.execute, inputs, outputs)
            return self.fly(consumer, run, job, time_s=self._time_s)
        seat = self._batching.add(consumer, inputs, outputs, items)
        return self.fly(consumer, seat, seat.job, time_s=self._time_s)

    @contextlib.contextmanager
    def fly(
        self,
        consumer: ConsumerId,
        run: Ending,
        job: Future[T],
        *,
        time_s: float,
    ) -> Iterator[Flight[T]]:
        """
        Have a computation in flight for the length of the block.

        Args:
            job: its thread's.
            time_s: after so long it is ended.
        """
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        with self._aloft(Flight(consumer, run, job), time_s) as flight:
            yield flight

    @contextlib.contextmanager
    def _aloft(self, flight: F, time_s: float) -> Iterator[F]:
        self._flights[flight] = None
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        timer = loop.call_later(time_s, _out_of_time, flight, time_s)
        try:
            yield flight
        finally:
            timer.cancel()
            self.times.add(loop.time() - begin_s)
            del self._flights[flight]
            if not self._flights:
                self._landed.set()

    def _execute(self, run: Run, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Outputs:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        try:
            return run.execute(inputs, outputs)
        finally:
            end_s = loop.time()
            self.pace.took(begin_s, end_s)
            self.rounds.took(end_s - begin_s)

    def cancel(
        self, error: Callable[[], AIGovToolError], *, consumer: ConsumerId | None = None
    ) -> int:
        """Cancel what is in flight (of one *consumer*, or all), and return how many that were."""
        doomed = [
            flight
            for flight in self._flights
            if flight.cut is None and consumer in (None, flight.consumer)
        ]
        for flight in doomed:
            flight.end(Cut.STOPPED, error())
        return len(doomed)

    def consumers(self) -> set[ConsumerId]:
        """Return whose queries are in flight."""
        return {flight.consumer for flight in self._flights}

    async def answered(self) -> None:
        """
        Return when nothing is in flight and no thread computes any more.

        What is computed may still be in flight: a stream is charged and given as its client reads.
        """
        while self._flights:
            self._landed.clear()
            await self._landed.wait()
        await self.idle()

    async def idle(self) -> None:
        """Return when no thread computes any more."""
        loop = asyncio.get_running_loop()
        while jobs := tuple(self._jobs):
            over = asyncio.Event()

            def done(_: Future[Any], over: asyncio.Event = over) -> None:
                loop.call_soon_threadsafe(over.set)

            jobs[0].add_done_callback(done)
            await over.wait()


def _out_of_time(flight: Flight[Any] | HereFlight, time_s: float) -> None:
    flight.end(
        Cut.OUT_OF_TIME,
        UnavailableError(
            f"not computed within {time_s:g} s",
            code="query.time",
            mend="ask the operator of the enclave for a longer limit",
        ),
    )
