"""
What persons decided on consumers' requests for more, remembered for a while.

Rule 1: the last decision on a consumer is told to it for `TOLD_S`, whichever enclave of the loan it
        asks; the custodian repeats recent ones to an enclave that connects.
Rule 2: after a denial the same words are not asked again within that time: whoever waits with them
        is told so at once. Other words are a new request.

Pure: time is an argument, in seconds of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from aigovtool.ids import ConsumerId
from aigovtool.wire.control import MoreDecided

TOLD_S = 600.0


@dataclass(frozen=True, slots=True)
class _Told:
    decision: MoreDecided
    until_s: float


class Decisions:
    """The last decision on each consumer: as many as the loan has consumers."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[ConsumerId, _Told] = {}

    def heard(self, decision: MoreDecided, now_s: float) -> None:
        """Remember a decision, unless a newer one on its consumer is known."""
        until_s = now_s + TOLD_S - decision.age_s
        known = self._told.get(decision.consumer)
        if known is None or known.until_s <= until_s:
            self._told[decision.consumer] = _Told(decision, until_s)

    def last(self, consumer: ConsumerId, now_s: float) -> MoreDecided | None:
        """Return the last decision on *consumer*, while it is told; its age is that at *now_s*."""
        told = self._told.get(consumer)
        if told is None or now_s >= told.until_s:
            return None
        return msgspec.structs.replace(told.decision, age_s=TOLD_S - (told.until_s - now_s))

    def denial(self, consumer: ConsumerId, reason: str | None, now_s: float) -> MoreDecided | None:
        """
        Return the denial that answers *consumer* now.

        Args:
            reason: with which it would ask again; None when it would not ask.
        """
        last = self.last(consumer, now_s)
        if last is None or last.approved or reason not in (None, last.asked):
            return None
        return last
