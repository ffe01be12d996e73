"""
Which slot of a language model computes a query, and whether it may go on from what it has kept.

A slot keeps what it computed last, and is quicker with a prompt that begins alike.

Rule 1: only the consumer whose query a slot computed last is quicker for it: to anyone else the
        time would tell what was asked. Where the loan shares prefixes, everyone is.
Rule 2: a slot is a consumer's from when it has begun to compute its query: what it had kept of
        another's is gone then. Until then, and if the query fails sooner, it is nobody's.
Rule 3: a query takes the slot whose last prompt it goes on from; else one that was never used,
        else the one that was not used for longest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId

REMEMBERED_BYTES = 1 << 16  # of a prompt, to know what goes on from it


@dataclass(slots=True)
class Slot:
    """
    One slot, lent to a query.

    Args:
        cached: whether what it has kept may be used for that.
    """

    number: int
    cached: bool = False
    busy: bool = False
    consumer: ConsumerId | None = None  # whose query it computed last
    prompt: bytes = b""
    used: int = 0  # when, by the count of queries


class Slots:
    """The slots of one model, lent to threads."""

    def __init__(self, count: int) -> None:
        self._slots = [Slot(number) for number in range(count)]
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(
        self,
        consumer: ConsumerId,
        prompt: bytes,
        *,
        shared: bool,
        given_up: Callable[[], bool],
    ) -> Iterator[Slot]:
        """
        Lend a slot; waits for a free one. Who has it says when it has `begun`.

        Args:
            prompt: what is asked, in any form in which like beginnings are alike.
            shared: whether prefixes are shared among consumers.
            given_up: whether to wait no longer; asked anew when `wake` is called.

        Raises:
            UnavailableError: *given_up*.
        """
        prompt = prompt[:REMEMBERED_BYTES]
        with self._changed:
            while (slot := self._choose(consumer, prompt, shared)) is None and not given_up():
                self._changed.wait()
            if slot is None or given_up():
                raise UnavailableError("the answer was ended", code="query.terminated")
            slot.cached = slot.consumer == consumer or (shared and slot.consumer is not None)
            if slot.consumer != consumer:
                slot.consumer, slot.prompt = None, b""
            self._used += 1
            slot.busy, slot.used = True, self._used
        try:
            yield slot
        finally:
            with self._changed:
                slot.busy = False
                self._changed.notify_all()

    def begun(self, slot: Slot, consumer: ConsumerId, prompt: bytes) -> None:
        """What *slot* keeps from now on is of this query (Rule 2)."""
        with self._changed:
            slot.consumer, slot.prompt = consumer, prompt[:REMEMBERED_BYTES]

    def wake(self) -> None:
        """Let whoever waits ask again whether to go on waiting."""
        with self._changed:
            self._changed.notify_all()

    def _choose(self, consumer: ConsumerId, prompt: bytes, shared: bool) -> Slot | None:
        free = [slot for slot in self._slots if not slot.busy]
        if not free:
            return None
        alike = [slot for slot in free if slot.consumer == consumer or shared]
        best = max(alike, key=lambda slot: _common(slot.prompt, prompt), default=None)
        # at least half of what it has kept, else another conversation would lose its own
        if best is not None and 0 < len(best.prompt) <= 2 * _common(best.prompt, prompt):
            return best
        return min(free, key=lambda slot: slot.used)


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
