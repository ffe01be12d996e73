"""
What is left, as far as an enclave can know: the custodian's last word, and what we hold ourselves.

Rule 1: what the custodian said is used up stays so until something changes: credits freed, a new
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

    `left` is what the custodian last said is leased to nobody, `leased_elsewhere` what others hold.
    """

    __slots__ = (
        "_consumer_left",
        "_meter",
        "_settlements",
        "_used_up",
        "leased_elsewhere",
        "left",
    )

    def __init__(self, meter: Meter, settlements: Settlements) -> None:
        self._meter = meter
        self._settlements = settlements
        self._consumer_left: dict[ConsumerId, int] = {}
        self._used_up: set[ConsumerId] = set()  # the custodian said that they have 0 left
        self.left = 0
        self.leased_elsewhere = 0

    def remaining(self, consumer: ConsumerId, now_s: float) -> int:
        """Return how many credits *consumer* can probably still use."""
        of_loan = self.left + self._meter.credits(now_s)
        of_loan += sum(use.unused for use in self._settlements.uses())
        own = self._consumer_left.get(consumer)
        if own is None:
            return of_loan
        own += self._meter.usable(consumer, now_s)
        own += sum(use.unused_caps.get(consumer, 0) for use in self._settlements.uses())
        return min(own, of_loan)

    def has_own_budget(self, consumer: ConsumerId) -> bool:
        """Return whether *consumer* has a budget of its own within the loan's."""
        return consumer in self._consumer_left

    @property
    def loan_is_used_up(self) -> bool:
        """Whether the custodian has nothing left to lease, and gets nothing back from us."""
        return self.left == 0 and not any(use.unused for use in self._settlements.uses())

    def own_is_used_up(self, consumer: ConsumerId) -> bool:
        """Return whether *consumer* has a budget of its own and the custodian none of it left."""
        return consumer in self._used_up and not any(
            use.unused_caps.get(consumer) for use in self._settlements.uses()
        )

    def is_used_up(self, consumer: ConsumerId) -> bool:
        """Return whether it is useless to ask the custodian for *consumer*."""
        return self.loan_is_used_up or self.own_is_used_up(consumer)

    def heard(
        self, *, left: int, leased_elsewhere: int, consumer_left: Mapping[ConsumerId, int]
    ) -> None:
        """The custodian said so in an answer; of consumers it names only some."""
        self.left = left
        self.leased_elsewhere = leased_elsewhere
        for consumer, own in consumer_left.items():
            self._consumer_left[consumer] = own
            (self._used_up.discard if own else self._used_up.add)(consumer)

    def freed(self, left: int) -> None:
        """There is something again, for the loan or for some consumer."""
        self.left = left
        self._used_up.clear()

    def set_roster(self, roster: Iterable[RosterEntry]) -> set[ConsumerId]:
        """Consumers are now these; returns those with something left of a budget of their own."""
        self._consumer_left = {one.consumer: one.left or 0 for one in roster if one.budgeted}
        self._meter.set_budgeted(frozenset(self._consumer_left))
        self._used_up = {consumer for consumer, left in self._consumer_left.items() if not left}
        return set(self._consumer_left) - self._used_up
