"""
Charge and receipt in one step: receipts follow the charges, and settlements count both.

Rule 1: a refund is a receipt of its own, of negative cost, that names the one it takes back; the
        chain holds both, and balances go on from it.
Rule 2: a charge is taken back once, and only while its lease is open. Later it stays charged: the
        settlement that was signed counts it.
"""

from __future__ import annotations

import math

from aigovtool.enclave.meter import Charge, Meter, Refusal
from aigovtool.enclave.receipts import Receipts
from aigovtool.errors import PromiseBrokenError
from aigovtool.ids import ConsumerId
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


class Till:
    """Takes payment for queries."""

    __slots__ = ("meter", "receipts", "used_s")

    def __init__(self, meter: Meter, receipts: Receipts) -> None:
        self.meter = meter
        self.receipts = receipts
        self.used_s = -math.inf  # when a query was charged, or over, last

    def pay(self, consumer: ConsumerId, cost: int, now_s: float) -> Paid | Refusal:
        """Charge *cost* credits and draw up the receipt, or say why no lease pays."""
        charge = self.meter.charge(consumer, cost, now_s)
        if isinstance(charge, Refusal):
            return charge
        self.used_s = now_s
        receipt = self.receipts.draw_up(charge, consumer)
        return Paid(charge, consumer, receipt, self.receipts.count)

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
        if not paid.over:
            paid.over = True
            self.meter.over(paid.charge)
