"""
Documents kept for as long as they are fresh, and renewed before they are not.

Rule 1: nothing is served outside its own span (nextUpdate, certificate validity), whatever the
        vendor, the network or the clock does.
Rule 2: it is renewed at `REFRESH_FRACTION` of the life it had when fetched, or at its longest age
        (a TCB recovery does not wait for nextUpdate); `keep_fresh` does so in the background.
Rule 3: while the vendor cannot be reached, what is due and still valid is served, and said so.
Rule 4: a vendor that answers with something older than what is held is not believed.
Rule 5: however many callers want the same answer, it is fetched once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from aigovtool.attestation.dcap.chain import Span
from aigovtool.clock import Clock
from aigovtool.endorsements.cache import DiskCache
from aigovtool.endorsements.fetch import Answer, Question, Shape, Transport
from aigovtool.endorsements.patience import Sleep
from aigovtool.endorsements.spans import ALWAYS, common_span, contains, span_of
from aigovtool.errors import AIGovToolError, MalformedError, UnavailableError

REFRESH_FRACTION = 0.5
RETRY_INTERVAL = timedelta(minutes=1)  # between attempts to renew what is still valid
CHECK_INTERVAL_S = 30.0
FORGET_UNUSED = timedelta(days=7)  # a platform that nobody asked about is not renewed for ever

Documents = Mapping[str, bytes]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """
    Something that a vendor publishes.

    Args:
        question: where it is.
        read: reads the documents *names* out of the answer.
        names: as in `Endorsements`.
        longest_age: after which it is renewed however long it is valid; None for what never
            changes.
        required: without it nothing can be verified; otherwise a policy decides.
        outlives_span: it still counts for something after its span, as the policy says.
    """

    question: Question
    read: Shape
    names: tuple[str, ...]
    longest_age: timedelta | None
    required: bool = True
    outlives_span: bool = False

    def is_in(self, have: Documents, *, now: datetime) -> bool:
        """Say whether *have* holds all of it, readable and valid at *now*."""
        try:
            return all(
                name in have and (self.outlives_span or contains(span_of(name, have[name]), now))
                for name in self.names
            )
        except MalformedError:
            return False


@dataclass(slots=True, kw_only=True)
class _Held:
    item: Item
    documents: Documents
    fetched: datetime
    span: Span
    used: datetime
    retry_at: datetime

    @property
    def due(self) -> datetime:
        due = self.fetched + (self.span.end - self.fetched) * REFRESH_FRACTION
        if self.item.longest_age is not None:
            due = min(due, self.fetched + self.item.longest_age)
        return max(due, self.retry_at)


class Library:
    """
    Where documents are had; close it with `aclose`.

    Args:
        transport: asks vendors.
        cache: answers on disk; None keeps them in memory alone.
        clock: its wall time says what is due.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        cache: DiskCache | None,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._transport = transport
        self._cache = cache
        self._clock = clock
        self._sleep = sleep
        self._held: dict[str, _Held] = {}
        self._flights: dict[str, asyncio.Task[_Held]] = {}

    async def get(self, item: Item, *, now: datetime) -> Documents:
        """
        Return the documents of *item*, valid at *now*.

        Raises:
            UnavailableError: it cannot be had, or what can be had is not valid at *now*.
            MalformedError: the answer has another shape.
            NotFoundError, RefusedError, ConfigurationError: as `Transport.ask`.
        """
        held = self._held.get(item.question.key) or self._from_disk(item)
        if held is None or not contains(held.span, now):
            held = await self._renew(item)
        elif self._clock.now() >= held.due:
            held = await self._renew_if_possible(held)
        if not contains(held.span, now):
            raise UnavailableError(
                f"{item.question.origin} has nothing that is valid at this time",
                code="endorsements.not_current",
                came=f"valid from {held.span.start.isoformat()} to {held.span.end.isoformat()}",
                mend="set the clock; for a time that has passed, keep a bundle",
            )
        held.used = self._clock.now()
        return held.documents

    async def fill(
        self, items: Iterable[Item], have: Documents, *, now: datetime
    ) -> dict[str, bytes]:
        """
        Return the documents of those *items* that *have* lacks, or has only out of date.

        Raises:
            AIGovToolError: as `get`, for an item that is required; others are left out, and said.
        """
        wanted = [item for item in items if not item.is_in(have, now=now)]
        results = await asyncio.gather(
            *(self.get(item, now=now) for item in wanted), return_exceptions=True
        )
        documents: dict[str, bytes] = {}
        for item, result in zip(wanted, results, strict=True):
            if isinstance(result, AIGovToolError) and not item.required:
                _log.warning("goes without %s: %s", ", ".join(item.names), result)
            elif isinstance(result, BaseException):
                raise result
            else:
                documents.update(result)
        return documents

    async def keep_fresh(self) -> NoReturn:
        """Renew in the background, for ever; the caller owns the task."""
        while True:
            now = self._clock.now()
            for key, held in list(self._held.items()):
                if now - held.used > FORGET_UNUSED:
                    del self._held[key]
                elif now >= held.due:
                    await self._renew_if_possible(held)
            await self._sleep(CHECK_INTERVAL_S)

    async def aclose(self) -> None:
        """End what is being fetched."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _from_disk(self, item: Item) -> _Held | None:
        kept = None if self._cache is None else self._cache.get(item.question)
        if kept is None:
            return None
        try:
            held = self._hold(item, kept.answer, fetched=kept.fetched)
        except MalformedError:
            assert self._cache is not None
            self._cache.forget(item.question)
            return None
        self._held[item.question.key] = held
        return held

    async def _renew_if_possible(self, held: _Held) -> _Held:
        try:
            return await self._renew(held.item)
        except AIGovToolError as error:
            now = self._clock.now()
            wait = error.retry_after_s if isinstance(error, UnavailableError) else 0.0
            held.retry_at = now + max(RETRY_INTERVAL, timedelta(seconds=wait))
            _log.warning(
                "cannot be renewed, and serves until %s: %s: %s",
                held.span.end.isoformat(),
                held.item.question.url,
                error,
            )
            return held

    async def _renew(self, item: Item) -> _Held:
        key = item.question.key
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fetch(item), name=f"fetch {item.question.url}")
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        # One caller that goes away must not take the answer from the others.
        return await asyncio.shield(flight)

    def _landed(self, key: str, flight: asyncio.Task[_Held]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # asked for, as every caller may have gone away

    async def _fetch(self, item: Item) -> _Held:
        answer = await self._transport.ask(item.question)
        fetched = self._clock.now()
        held = self._hold(item, answer, fetched=fetched)
        before = self._held.get(item.question.key)
        if before is not None and held.span.start < before.span.start:
            raise UnavailableError(
                f"{item.question.origin} answers with something older than before",
                code="endorsements.older",
                came=f"of {held.span.start.isoformat()}, not {before.span.start.isoformat()}",
                mend="ask the vendor itself and not a mirror",
            )
        self._held[item.question.key] = held
        if self._cache is not None:
            self._cache.put(item.question, answer, fetched=fetched, until=held.span.end)
        return held

    def _hold(self, item: Item, answer: Answer, *, fetched: datetime) -> _Held:
        documents = item.read(answer)
        assert set(documents) == set(item.names)
        span = ALWAYS if item.outlives_span else common_span(documents)
        return _Held(
            item=item,
            documents=documents,
            fetched=fetched,
            span=span,
            used=fetched,
            retry_at=fetched,
        )
