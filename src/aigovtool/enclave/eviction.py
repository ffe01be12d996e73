"""
Which models make room for another one, where their loans allow it.

Rule 1: only a model that serves and is idle goes: no query of its is in flight, or waits.
Rule 2: the one that was used the longest ago goes first. One that was loaded or used within
        `KEEP_S` stays, so that loans that are asked in turn do not evict each other at each query.
Rule 3: nothing goes in vain: if all that may go would not make room enough, none does.
Rule 4: room is made for one model at a time, which takes it before anybody else can.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Protocol

from aigovtool.enclave.model_room import ModelRoom, NoRoomError
from aigovtool.ids import LoanId
from aigovtool.sealing.manifest import SealedManifest

KEEP_S = 10.0
EVICT_S = 10.0  # for what goes to be wiped


class Resident(Protocol):
    """A session, with or without a model in memory."""

    @property
    def loan(self) -> LoanId:
        """Whose it is."""
        ...

    @property
    def manifest(self) -> SealedManifest:
        """Its model."""
        ...

    @property
    def rests_since_s(self) -> float | None:
        """Since when it is idle and its model may go, None when it has to stay."""
        ...

    def evict(self) -> None:
        """Begin to end, and to wipe the model."""
        ...

    async def gone(self) -> None:
        """Wipe the model now, and return when its memory is given back."""
        ...


class Evictions:
    """
    Makes room for models.

    Args:
        room: the memory for models.
        now_s: reads the monotonic clock.
    """

    def __init__(self, room: ModelRoom, now_s: Callable[[], float]) -> None:
        self.residents: dict[Resident, None] = {}
        self._room = room
        self._now_s = now_s
        self._making_room = asyncio.Lock()

    async def take(self, model: SealedManifest, *, of: LoanId) -> None:
        """
        Take room for a model of the loan *of*, whose other model never goes for it.

        Raises:
            NoRoomError: it does not fit, whatever may go; ask again later.
        """
        async with self._making_room:
            try:
                self._room.take(model)
            except NoRoomError:
                going = self._going_for(model, of=of)
                if going is None:
                    raise
                for one in going:
                    one.evict()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVICT_S):
                        for one in going:
                            await one.gone()
                self._room.take(model)

    def would_fit(self, model: SealedManifest, *, of: LoanId, evicting: bool) -> bool:
        """Whether `take` would find room now; without *evicting*, room that is free."""
        if self._making_room.locked():
            return False
        if self._room.lacking_bytes(model) <= 0:
            return True
        return evicting and self._going_for(model, of=of) is not None

    def _going_for(self, model: SealedManifest, *, of: LoanId) -> list[Resident] | None:
        return least_recently_used(
            (one for one in self.residents if one.loan != of),
            self._room.lacking_bytes(model),
            bytes_of=lambda one: self._room.bytes_of(one.manifest),
            now_s=self._now_s(),
        )


def least_recently_used(
    residents: Iterable[Resident],
    lacking_bytes: int,
    *,
    bytes_of: Callable[[Resident], int],
    now_s: float,
) -> list[Resident] | None:
    """Return who goes so that so many bytes are freed, None when they cannot be (Rules 2 and 3)."""
    rested = [
        (since_s, one)
        for one in residents
        if (since_s := one.rests_since_s) is not None and now_s - since_s >= KEEP_S
    ]
    going: list[Resident] = []
    freed_bytes = 0
    for _, one in sorted(rested, key=lambda pair: pair[0]):
        if freed_bytes >= lacking_bytes:
            break
        going.append(one)
        freed_bytes += bytes_of(one)
    if freed_bytes < lacking_bytes:
        return None
    for one in reversed(going):  # the last was needed, perhaps instead of small ones before it
        if freed_bytes - bytes_of(one) >= lacking_bytes:
            going.remove(one)
            freed_bytes -= bytes_of(one)
    return going
