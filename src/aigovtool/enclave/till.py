"""
Charge and receipt in one step: receipts follow the charges, and settlements count both.

Rule 1: a refund is a receipt of its own, of negative cost, that names the one it takes back; the
        chain holds both, and balances go on from it.
Rule 2: a charge is taken back once, and only while its lease is open. Later it stays charged: the
        settlement that was signed counts it.
Rule 3: what a query that goes on has drawn gets its receipt when its lease is closed, before that
        is settled, and when the query is over: one receipt for each lease that paid for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from aigovtool.enclave.meter import Charge, Hold, Meter, Refusal, Use
from aigovtool.enclave.receipts import Receipts
from aigovtool.errors import AIGovToolError, PromiseBrokenError
from aigovtool.ids import ConsumerId, LeaseId
from aigovtool.wire.receipt import Refund, RefundClass


class Paid:
    """
    A query that was charged.

    Args:
        consumer: who paid.
        receipt: payload of its receipt, which is still to be signed.
        number: of that receipt.
    """

    __slots__ = ("charge", "consumer", "number", "over", "receipt", "refund")

    def __init__(self, charge: Charge, consumer: ConsumerId, receipt: bytes, number: int) -> None:
        self.charge = charge
        self.consumer = consumer
        self.receipt = receipt
        self.number = number
        self.refund: bytes | None = None  # payload of the receipt that took it back
        self.over = False


class Tab(Paid):
    """
    A query that goes on: `charge` paid for its input, and the worst case of its output is held.

    Args:
        until_s: when it is given up where no further lease takes it in; infinity for a lease of
            duration 0.

    `drawn` are the payloads of the receipts for what was drawn, in order, still to be signed.
    `changed` is called when it has moved to another lease, or none will take it in.
    """

    __slots__ = ("changed", "drawn", "hold", "lapsed", "until_s")

    def __init__(
        self,
        charge: Charge,
        consumer: ConsumerId,
        receipt: bytes,
        number: int,
        *,
        hold: Hold,
        until_s: float,
    ) -> None:
        super().__init__(charge, consumer, receipt, number)
        self.hold = hold
        self.until_s = until_s
        self.lapsed: AIGovToolError | None = None  # why no lease takes it in any more
        self.drawn: list[bytes] = []
        self.changed: Callable[[], object] = _nobody_waits

    @property
    def homeless(self) -> bool:
        """Whether it is between two leases."""
        return self.hold.lease is None and self.hold.left > 0 and self.lapsed is None


def _nobody_waits() -> None:
    pass


class Till:
    """Takes payment for queries. `tabs` are those that go on."""

    __slots__ = ("meter", "receipts", "tabs", "used_s")

    def __init__(self, meter: Meter, receipts: Receipts) -> None:
        self.meter = meter
        self.receipts = receipts
        self.tabs: dict[Tab, None] = {}
        self.used_s = -math.inf  # when a query was charged, or over, last

    def pay(self, consumer: ConsumerId, cost: int, now_s: float) -> Paid | Refusal:
        """Charge *cost* credits and draw up the receipt, or say why no lease pays."""
        charge = self.meter.charge(consumer, cost, now_s)
        if isinstance(charge, Refusal):
            return charge
        self.used_s = now_s
        receipt = self.receipts.draw_up(charge, consumer)
        return Paid(charge, consumer, receipt, self.receipts.count)

    def open_tab(self, consumer: ConsumerId, cost: int, held: int, now_s: float) -> Tab | Refusal:
        """Charge *cost* credits and hold *held* more, or say why no lease can."""
        taken = self.meter.charge_and_hold(consumer, cost, held, now_s)
        if isinstance(taken, Refusal):
            return taken
        charge, hold = taken
        self.used_s = now_s
        receipt = self.receipts.draw_up(charge, consumer)
        tab = Tab(
            charge,
            consumer,
            receipt,
            self.receipts.count,
            hold=hold,
            until_s=self.meter.moves_until_s(hold, now_s),
        )
        self.tabs[tab] = None
        return tab

    def draw(self, tab: Tab, credits: int, now_s: float) -> bool:
        """Charge *credits* more to a tab; False, and nothing changed, while no lease holds it."""
        return tab.lapsed is None and self.meter.draw(tab.hold, credits, now_s)

    def rehome(self, tab: Tab, now_s: float) -> bool:
        """Let a live lease take in a tab that is between two; False when none can."""
        if not self.meter.rehome(tab.hold, now_s):
            return False
        tab.until_s = self.meter.moves_until_s(tab.hold, now_s)
        return True

    def _book(self, tab: Tab) -> None:
        if (charge := self.meter.book(tab.hold)) is not None:
            tab.drawn.append(self.receipts.draw_up(charge, tab.consumer))

    def close_leases(self, leases: Iterable[LeaseId]) -> list[Use]:
        """Close leases, each with the receipts for what was drawn from it (Rule 3)."""
        uses = []
        for lease in leases:
            for tab in self.tabs:
                if tab.hold.lease == lease:
                    self._book(tab)
            uses.append(self.meter.close(lease))
        return uses

    def refund(self, paid: Paid, kind: RefundClass) -> bool:
        """
        Take a charge back and draw up the receipt that says so.

        Returns:
            False, and nothing changed, when its lease is closed (Rule 2).

        Raises:
            PromiseBrokenError: it was taken back before, or the query is over.
        """
        if paid.refund is not None or paid.over:
            raise PromiseBrokenError("a charge is taken back once, before its query is over")
        back = self.meter.refund(paid.charge, paid.consumer, kind)
        if back is None:
            return False
        paid.refund = self.receipts.draw_up(
            back, paid.consumer, Refund(kind=kind, number=paid.number)
        )
        return True

    def refundable(self, paid: Paid) -> bool:
        """Return whether `refund` would take it back now."""
        return paid.refund is None and not paid.over and self.meter.is_open(paid.charge.lease)

    def close(self, paid: Paid) -> None:
        """The query is over, however it ended; again changes nothing."""
        if paid.over:
            return
        paid.over = True
        if isinstance(paid, Tab):
            self._book(paid)
            self.meter.release(paid.hold)
            del self.tabs[paid]
        self.meter.over(paid.charge)
