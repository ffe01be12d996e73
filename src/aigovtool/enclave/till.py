"""Charge and receipt in one step: receipts follow the charges, and settlements count both."""

from __future__ import annotations

from dataclasses import dataclass

from aigovtool.enclave.meter import Charge, Meter, Refusal
from aigovtool.enclave.receipts import Receipts
from aigovtool.ids import ConsumerId


@dataclass(frozen=True, slots=True)
class Paid:
    """A query that was charged, with the payload of its receipt, which is still to be signed."""

    charge: Charge
    receipt: bytes


class Till:
    """Takes payment for queries."""

    __slots__ = ("meter", "receipts")

    def __init__(self, meter: Meter, receipts: Receipts) -> None:
        self.meter = meter
        self.receipts = receipts

    def pay(self, consumer: ConsumerId, cost: int, now_s: float) -> Paid | Refusal:
        """Charge *cost* credits and draw up the receipt, or say why no lease pays."""
        charge = self.meter.charge(consumer, cost, now_s)
        if isinstance(charge, Refusal):
            return charge
        return Paid(charge, self.receipts.draw_up(charge, consumer))
