"""
Counting the tokens of inputs, on threads of their own.

It takes seconds for the longest, and nothing is charged for it yet.

Rule 1: nothing else waits behind it: no stop, which wipes the model, and no fresh evidence.
Rule 2: the inputs of one consumer are counted one after the other, and no more of them wait than of
        its queries may be in flight, so that one cannot keep the others out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from aigovtool.enclave.flights import CONSUMER_SHARE, FULL_RETRY_AFTER_S
from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId

THREADS = 2

T = TypeVar("T")


@dataclass(slots=True)
class _Own:
    """One consumer's inputs."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0  # the one that is counted included


class Counting:
    """
    Counts for all consumers of a loan.

    Args:
        max_queue: queries that may be in flight.
    """

    def __init__(self, max_queue: int) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="count")
        self._each = math.ceil(max_queue * CONSUMER_SHARE)
        self._own: dict[ConsumerId, _Own] = {}

    async def run(self, consumer: ConsumerId, count: Callable[[], T]) -> T:
        """
        Return what *count* does, which blocks.

        Raises:
            UnavailableError: too many inputs of this consumer wait; or as *count*.
        """
        own = self._own.setdefault(consumer, _Own())
        if own.waiting >= self._each:
            raise UnavailableError(
                "too many queries are in flight",
                code="queue.full",
                came=f"{own.waiting} of yours whose input is not counted yet",
                retry_after_s=FULL_RETRY_AFTER_S,
            )
        own.waiting += 1
        try:
            async with own.turn:
                return await asyncio.get_running_loop().run_in_executor(self._threads, count)
        finally:
            own.waiting -= 1
            if not own.waiting:
                del self._own[consumer]
