"""
Queries that wait for what they need, in fair order: for credits, or for a limit to let them pass.

Rule 1: the queue is bounded, and within it each consumer's part; past that a query is refused.
Rule 2: whoever is served was charged in the same step, so nobody overtakes between being woken
        and being charged, and N credits wake no more than they pay for.
Rule 3: what cannot be paid for now does not hold up the others behind it.
Rule 4: consumers take turns by what they were served: start-time fair queueing (Goyal, Vin and
        Cheng, SIGCOMM 1996). A query starts where its consumer's one before it ended in cost, but
        not before now; the earliest start goes first, then who came first. So within one consumer
        it is first come first served, a consumer with one query goes before the second of one that
        has a thousand, and a batch counts for as many turns as it costs credits.
Rule 5: who leaves gives up its turn; those of its consumer behind it keep theirs.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from aigovtool.errors import AIGovToolError, UnavailableError
from aigovtool.ids import ConsumerId

FULL_RETRY_AFTER_S = 1.0

T = TypeVar("T")  # what a waiter is given: a charged query, or leave to pass


@dataclass(frozen=True, slots=True)
class Place:
    """A waiter's place, from 1, among all that wait; it grows when others' turns come first."""

    place: int
    of: int


class Waiter(Generic[T]):
    """
    One query that waits.

    Args:
        consumer: who is to pay.
        cost: credits.
        held: of these, what is not charged but set apart; 0 for a query that is charged whole.
        patient: whether it waits for credits that do not exist yet (``Prefer: wait``).
        reason: why its consumer needs more, in the consumer's words; empty for none.
        key: its Idempotency-Key, by which its consumer knows it; empty for none.
        since_s: when it came, on the monotonic clock.
    """

    __slots__ = (
        "consumer",
        "cost",
        "held",
        "key",
        "looked",
        "paid",
        "patient",
        "reason",
        "since_s",
        "start",
        "swapped",
    )

    def __init__(
        self,
        *,
        consumer: ConsumerId,
        cost: int,
        patient: bool,
        held: int = 0,
        reason: str = "",
        key: str = "",
        since_s: float = 0.0,
    ) -> None:
        self.consumer = consumer
        self.cost = cost
        self.held = held
        self.patient = patient
        self.reason = reason
        self.key = key
        self.since_s = since_s
        self.looked = False  # the custodian was asked how much there is, for its sake
        self.swapped = False  # leases were given back for its sake, once
        self.start = (0, 0)  # in cost, then by arrival; set by the queue
        self.paid: asyncio.Future[T] = asyncio.get_running_loop().create_future()


class _Turns(Generic[T]):
    """One consumer's waiters, first come first, and where in cost its next one starts."""

    __slots__ = ("ends", "served", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[Waiter[T], None] = {}
        self.ends = 0  # of the last that waits
        self.served = 0  # end of the last that was served


class WaitingQueue(Generic[T]):
    """
    The waiters; iterating gives them in the order of their turns.

    Args:
        limit: waiters of all consumers together.
        consumer_limit: waiters of one consumer; None for as many as there may be.
    """

    __slots__ = ("_arrivals", "_consumer_limit", "_limit", "_now", "_order", "_turns")

    def __init__(self, limit: int, consumer_limit: int | None = None) -> None:
        self._limit = limit
        self._consumer_limit = limit if consumer_limit is None else consumer_limit
        self._turns: dict[ConsumerId, _Turns[T]] = {}
        self._order: list[Waiter[T]] = []  # by `start`
        self._arrivals = 0
        self._now = 0  # in cost: where the last that was served started

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(tuple(self._order))

    def add(self, waiter: Waiter[T]) -> None:
        """
        Let *waiter* wait.

        Raises:
            UnavailableError: as many wait as may (Rule 1).
        """
        turns = self._turns.get(waiter.consumer)
        own = 0 if turns is None else len(turns.waiters)
        if len(self._order) >= self._limit or own >= self._consumer_limit:
            raise UnavailableError(
                "too many queries wait",
                code="queue.waiting",
                came=f"{len(self._order)} waiting, {own} of them yours",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        if turns is None:
            turns = self._turns[waiter.consumer] = _Turns()
        self._arrivals += 1
        start = max(self._now, turns.ends)
        waiter.start = (start, self._arrivals)
        turns.ends = start + waiter.cost
        turns.waiters[waiter] = None
        insort(self._order, waiter, key=_start)

    def leave(self, waiter: Waiter[T]) -> None:
        """Stop waiting: given up or gone."""
        if (turns := self._remove(waiter)) is not None:
            last = next(reversed(turns.waiters), None)
            turns.ends = turns.served if last is None else last.start[0] + last.cost
            self._forget(waiter.consumer, turns)

    def serve(
        self,
        pay: Callable[[Waiter[T]], T | Enum],
        *,
        only: Container[Waiter[T]] | None = None,
    ) -> None:
        """
        Charge waiters (*only* these, or all) in turn, and wake those that could be charged.

        Args:
            pay: gives what the waiter is to have, or a reason (of an Enum) why it cannot now.
        """
        poor: set[tuple[ConsumerId, int]] = set()  # a refusal holds for the rest of this pass
        for waiter in self:
            wish = (waiter.consumer, waiter.cost)
            if waiter.paid.done() or wish in poor or (only is not None and waiter not in only):
                continue
            paid = pay(waiter)
            if isinstance(paid, Enum):
                poor.add(wish)
                continue
            if (turns := self._remove(waiter)) is not None:
                self._now = max(self._now, waiter.start[0])
                turns.served = max(turns.served, waiter.start[0] + waiter.cost)
                self._forget(waiter.consumer, turns)
            waiter.paid.set_result(paid)

    def fail(self, waiter: Waiter[T], error: AIGovToolError) -> None:
        """Wake *waiter* with *error*."""
        self.leave(waiter)
        if not waiter.paid.done():
            waiter.paid.set_exception(error)

    def fail_all(self, error: Callable[[Waiter[T]], AIGovToolError | None]) -> None:
        """Wake each waiter for which *error* returns one."""
        for waiter in self:
            if (why := error(waiter)) is not None:
                self.fail(waiter, why)

    def place(self, waiter: Waiter[T]) -> Place | None:
        """Return the place of *waiter*, None when it does not wait."""
        turns = self._turns.get(waiter.consumer)
        if turns is None or waiter not in turns.waiters:
            return None
        return Place(bisect_left(self._order, waiter.start, key=_start) + 1, len(self._order))

    def of(self, consumer: ConsumerId) -> list[Waiter[T]]:
        """Return the waiters of *consumer*, in the order of their turns."""
        turns = self._turns.get(consumer)
        return [] if turns is None else list(turns.waiters)

    def wanted_by(self, consumer: ConsumerId) -> int:
        """Return the credits that *consumer* waits for."""
        return sum(waiter.cost for waiter in self.of(consumer))

    def _remove(self, waiter: Waiter[T]) -> _Turns[T] | None:
        turns = self._turns.get(waiter.consumer)
        if turns is None or waiter not in turns.waiters:
            return None
        del turns.waiters[waiter]
        del self._order[bisect_left(self._order, waiter.start, key=_start)]
        return turns

    def _forget(self, consumer: ConsumerId, turns: _Turns[T]) -> None:
        """Keep no more of consumers who do not wait than fairness needs."""
        if not self._order:  # nobody to be fair to: all begin anew
            self._turns.clear()
            self._now = 0
        elif not turns.waiters and turns.served <= self._now:
            del self._turns[consumer]


def _start(waiter: Waiter[Any]) -> tuple[int, int]:
    return waiter.start
