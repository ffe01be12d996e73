"""
Queries that wait for credits, first come first served.

Rule 1: the queue is bounded; past it a query is refused at once.
Rule 2: whoever is served was charged in the same step, so nobody overtakes between being woken
        and being charged.
Rule 3: a consumer that cannot be served does not hold up the others behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator

from aigovtool.enclave.meter import Refusal
from aigovtool.enclave.till import Paid
from aigovtool.errors import AIGovToolError, UnavailableError
from aigovtool.ids import ConsumerId

FULL_RETRY_AFTER_S = 1.0


class Waiter:
    """
    One query that waits.

    Args:
        consumer: who is to pay.
        cost: credits.
        patient: whether it waits for credits that do not exist yet (``Prefer: wait``).
        reason: why its consumer needs more, in the consumer's words; empty for none.
    """

    __slots__ = ("consumer", "cost", "looked", "paid", "patient", "reason", "swapped")

    def __init__(self, *, consumer: ConsumerId, cost: int, patient: bool, reason: str = "") -> None:
        self.consumer = consumer
        self.cost = cost
        self.patient = patient
        self.reason = reason
        self.looked = False  # the custodian was asked how much there is, for its sake
        self.swapped = False  # leases were given back for its sake, once
        self.paid: asyncio.Future[Paid] = asyncio.get_running_loop().create_future()


class WaitingQueue:
    """The waiters, in the order in which they came."""

    __slots__ = ("_limit", "_waiters")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(tuple(self._waiters))

    def add(self, waiter: Waiter) -> None:
        """
        Let *waiter* wait.

        Raises:
            UnavailableError: as many wait as may (Rule 1).
        """
        if len(self._waiters) >= self._limit:
            raise UnavailableError(
                "too many queries wait for credits",
                code="queue.waiting",
                came=f"{len(self._waiters)} waiting",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        self._waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting: served, given up or gone."""
        self._waiters.pop(waiter, None)

    def serve(
        self,
        pay: Callable[[ConsumerId, int], Paid | Refusal],
        *,
        only: Container[Waiter] | None = None,
    ) -> None:
        """Charge waiters (*only* these, or all) in turn, and wake those that could be charged."""
        poor: set[tuple[ConsumerId, int]] = set()  # a refusal holds for the rest of this pass
        for waiter in self:
            wish = (waiter.consumer, waiter.cost)
            if waiter.paid.done() or wish in poor or (only is not None and waiter not in only):
                continue
            paid = pay(*wish)
            if isinstance(paid, Refusal):
                poor.add(wish)
                continue
            self.leave(waiter)
            waiter.paid.set_result(paid)

    def fail(self, waiter: Waiter, error: AIGovToolError) -> None:
        """Wake *waiter* with *error*."""
        self.leave(waiter)
        if not waiter.paid.done():
            waiter.paid.set_exception(error)

    def fail_all(self, error: Callable[[Waiter], AIGovToolError | None]) -> None:
        """Wake each waiter for which *error* returns one."""
        for waiter in self:
            if (why := error(waiter)) is not None:
                self.fail(waiter, why)

    def by_consumer(self) -> dict[ConsumerId, int]:
        """Return the credits that are waited for, by consumer."""
        wanted: dict[ConsumerId, int] = {}
        for waiter in self._waiters:
            wanted[waiter.consumer] = wanted.get(waiter.consumer, 0) + waiter.cost
        return wanted
