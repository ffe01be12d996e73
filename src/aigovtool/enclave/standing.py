"""
What is left, as far as an enclave can know: the custodian's last word, and what we hold ourselves.

Rule 1: what the custodian said is lacking stays so until something changes: credits freed, a new
        roster, or a lease of our own that is on its way back.
Rule 2: an estimate decides nothing but whether it is worth asking; only a lease pays for a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aigovtool.enclave.meter import Meter
from aigovtool.enclave.settling import Settlements
from aigovtool.ids import ConsumerId
from aigovtool.wire.enrolment import RosterEntry


class Standing:
    """
    The credits of a loan, and of the consumers with a budget of their own within it.

    `left` is what the custodian last said is leased to nobody, `leased_elsewhere` what others hold,
    `largest_lease` how much one lease can hold, None while that is not known.
    """

    __slots__ = (
        "_capped",
        "_consumer_left",
        "_meter",
        "_own_limits",
        "_settlements",
        "largest_lease",
        "leased_elsewhere",
        "left",
    )

    def __init__(self, meter: Meter, settlements: Settlements) -> None:
        self._meter = meter
        self._settlements = settlements
        self._consumer_left: dict[ConsumerId, int] = {}
        self._own_limits: dict[ConsumerId, int] = {}  # those of `_consumer_left` that still hold
        self._capped: frozenset[ConsumerId] = frozenset()
        self.left = 0
        self.leased_elsewhere = 0
        self.largest_lease: int | None = None

    def remaining(self, consumer: ConsumerId, now_s: float) -> int:
        """Return how many credits *consumer* can probably still use."""
        of_loan = self.left + self._meter.credits(now_s)
        of_loan += sum(use.unused for use in self._settlements.uses())
        own = self._consumer_left.get(consumer)
        if own is None:
            return of_loan
        own += self._meter.usable(consumer, now_s) + self._own_returning(consumer)
        return min(own, of_loan)

    def has_own_budget(self, consumer: ConsumerId) -> bool:
        """Return whether *consumer* has a budget of its own within the loan's."""
        return consumer in self._consumer_left

    def is_capped(self, consumer: ConsumerId) -> bool:
        """Return whether leases set apart what *consumer* may use."""
        return consumer in self._capped

    @property
    def loan_is_used_up(self) -> bool:
        """Whether the custodian has nothing left to lease, and gets nothing back from us."""
        return self.loan_lacks(1)

    def loan_lacks(self, cost: int) -> bool:
        """Return whether the custodian cannot lease *cost* credits, with what it gets back."""
        return self.left + sum(use.unused for use in self._settlements.uses()) < cost

    def own_lacks(self, consumer: ConsumerId, cost: int) -> bool:
        """Return whether *consumer* has a budget of its own and *cost* is more than it holds."""
        limit = self._own_limits.get(consumer)
        return limit is not None and limit + self._own_returning(consumer) < cost

    def lacks(self, consumer: ConsumerId, cost: int) -> bool:
        """Return whether it is useless to ask the custodian for *cost* credits for *consumer*."""
        return self.loan_lacks(cost) or self.own_lacks(consumer, cost)

    def would_have(self, consumer: ConsumerId, cost: int) -> bool:
        """Return whether the custodian could lease *cost* once it had all our leases back."""
        held = self._meter.left
        limit = self._own_limits.get(consumer)
        return not self.loan_lacks(cost - held) and (
            limit is None
            or limit + self._own_returning(consumer) + self._meter.set_apart(consumer) >= cost
        )

    def _own_returning(self, consumer: ConsumerId) -> int:
        return sum(use.unused_caps.get(consumer, 0) for use in self._settlements.uses())

    def heard(
        self,
        *,
        left: int,
        leased_elsewhere: int,
        consumer_left: Mapping[ConsumerId, int],
        largest_lease: int | None,
    ) -> None:
        """The custodian said so in an answer; of consumers it names only some."""
        self.left = left
        self.leased_elsewhere = leased_elsewhere
        self.largest_lease = largest_lease
        self._consumer_left.update(consumer_left)
        self._own_limits.update(consumer_left)

    def freed(self, left: int) -> None:
        """There is something again, for the loan or for some consumer."""
        self.left = left
        self._own_limits.clear()

    def set_roster(self, roster: Iterable[RosterEntry]) -> set[ConsumerId]:
        """Consumers are now these; returns those with something left of a budget of their own."""
        roster = tuple(roster)
        self._consumer_left = {one.consumer: one.left or 0 for one in roster if one.budgeted}
        self._capped = frozenset(one.consumer for one in roster if one.capped)
        self._meter.set_capped(self._capped)
        self._own_limits = dict(self._consumer_left)
        return {consumer for consumer, left in self._consumer_left.items() if left}
