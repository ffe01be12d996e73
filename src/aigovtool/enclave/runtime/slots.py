"""
Which slot of a language model computes a query, and whether it may go on from what it has kept.

A slot keeps what it computed last, and is quicker with a prompt that begins alike.

Rule 1: only the consumer whose query a slot computed last is quicker for it: to anyone else the
        time would tell what was asked. Where the loan shares prefixes, everyone is.
Rule 2: a query takes the slot whose last prompt it goes on from; else one that was never used,
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
class _Slot:
    number: int
    busy: bool = False
    consumer: ConsumerId | None = None  # whose query it computed last
    prompt: bytes = b""
    used: int = 0  # when, by the count of queries


class Slots:
    """The slots of one model, lent to threads."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot(number) for number in range(count)]
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
    ) -> Iterator[tuple[int, bool]]:
        """
        Lend a slot: its number, and whether what it has kept may be used. Waits for a free one.

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
            cached = slot.consumer == consumer or (shared and slot.consumer is not None)
            self._used += 1
            slot.busy, slot.consumer, slot.prompt, slot.used = True, consumer, prompt, self._used
        try:
            yield slot.number, cached
        finally:
            with self._changed:
                slot.busy = False
                self._changed.notify_all()

    def wake(self) -> None:
        """Let whoever waits ask again whether to go on waiting."""
        with self._changed:
            self._changed.notify_all()

    def _choose(self, consumer: ConsumerId, prompt: bytes, shared: bool) -> _Slot | None:
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
