"""
Requests for more: for whom a person was asked, and what the custodian was told of who waits.

Rule 1: for a consumer a person is asked once, in the words of its first query that finds nothing,
        until the request is answered or there is something again.
Rule 2: whoever decides sees who waits by now: while a request is open its numbers are told again
        when they change, at most every `TELL_AGAIN_S`, and that nobody waits any more is told too.
Rule 3: what was said on a connection that is lost may not have arrived, and is said again.

Pure: time is an argument, in seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from aigovtool.enclave.till import Paid
from aigovtool.enclave.waiting import WaitingQueue
from aigovtool.ids import ConsumerId
from aigovtool.wire.control import MoreWanted

TELL_AGAIN_S = 2.0
_WHO_KNOWS = -1  # how many the custodian believes to wait


class Asking:
    """The requests for more of one session."""

    __slots__ = ("_again_s", "_asked", "_queue", "_reasons", "_told")

    def __init__(self, queue: WaitingQueue[Paid]) -> None:
        self._queue = queue
        self._asked: set[ConsumerId] = set()
        self._reasons: dict[ConsumerId, str] = {}  # of whom a person is still to be asked for
        self._told: dict[ConsumerId, int] = {}  # how many of whose queries wait
        self._again_s = -math.inf

    def __contains__(self, consumer: ConsumerId) -> bool:
        """Whether a person has been asked for more for *consumer*, and not yet answered."""
        return consumer in self._asked

    def ask(self, consumer: ConsumerId, reason: str) -> None:
        """Let a person be asked for more for *consumer*, unless one was (Rule 1)."""
        if consumer not in self._asked:
            self._asked.add(consumer)
            self._reasons[consumer] = reason

    def answered(self, consumers: Iterable[ConsumerId] | None = None) -> None:
        """These, or all, have something again, or were denied it: to lack it is to ask anew."""
        self._asked -= set(self._asked if consumers is None else consumers)

    def decided(self, consumer: ConsumerId) -> None:
        """The request of *consumer* is closed: of who waits nobody is to be told any more."""
        self._asked.discard(consumer)
        self._told.pop(consumer, None)

    def lost(self) -> None:
        """The connection is gone (Rule 3)."""
        self._asked.clear()
        self._reasons.clear()
        self._told = dict.fromkeys(self._told, _WHO_KNOWS)
        self._again_s = -math.inf

    def due(self, now_s: float) -> list[MoreWanted]:
        """Return what must be said now; it then counts as said."""
        messages = []
        reasons, self._reasons = self._reasons, {}
        for consumer, reason in reasons.items():
            if self._queue.of(consumer):
                messages.append(self._message(consumer, reason, now_s))
            else:  # whoever wanted it gave up before it was said
                self._asked.discard(consumer)
        if now_s >= self._again_s and (changed := self._changed()):
            messages += [self._message(consumer, "", now_s) for consumer in changed]
        if messages:
            self._again_s = now_s + TELL_AGAIN_S
        return messages

    def wake_at(self) -> float:
        """Return when `due` has something to say if nothing happens until then."""
        if self._reasons:
            return -math.inf
        return self._again_s if self._changed() else math.inf

    def _changed(self) -> list[ConsumerId]:
        """Return of whom other numbers were told than are so."""
        waiting = {consumer: len(self._queue.of(consumer)) for consumer in self._told}
        return [
            consumer
            for consumer, told in self._told.items()
            if waiting[consumer] != told and (consumer in self._asked or not waiting[consumer])
        ]

    def _message(self, consumer: ConsumerId, reason: str, now_s: float) -> MoreWanted:
        own = self._queue.of(consumer)
        if own:
            self._told[consumer] = len(own)
        else:
            self._told.pop(consumer, None)
        place = self._queue.place(own[0]) if own else None
        return MoreWanted(
            consumer=consumer,
            credits=sum(one.cost for one in own),
            reason=reason,
            waiting=len(own),
            waited_s=max((now_s - one.since_s for one in own), default=0.0),
            place=1 if place is None else place.place,
            waiting_in_all=len(self._queue),
        )
