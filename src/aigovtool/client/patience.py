"""
A query that waits for credits, and what whoever waits is told meanwhile.

Rule 1: the first answer comes at once, so that whoever has to wait can be told; then the enclave
        holds its answer (``Prefer: wait``) and wakes the query in fair order.
Rule 2: an enclave that was told to hold its answer, and did not, is not asked in a loop.
Rule 3: a denial ends the wait, with the reason that a person gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aigovtool.channel.http1 import Headers
from aigovtool.errors import (
    AIGovToolError,
    BudgetExhaustedError,
    ConfigurationError,
    MoreDeniedError,
)
from aigovtool.wire.budget import WaitingView
from aigovtool.wire.control import MoreDecided
from aigovtool.wire.headers import REASON
from aigovtool.wire.words import MAX_REASON_CHARACTERS

MAX_HOLD_S = 600.0  # one held answer; whoever asks anew waits at the end of the queue
FIRST_LOOK_S = 0.2  # at the place of a query that waits; then as often as the enclave says
SAME_DECISION_S = 1.0  # two looks at one decision differ in its age by what they took

OnWait = Callable[[BudgetExhaustedError, float], None]
"""Called now and then while a query has to wait: why, with its `place` once that is known, and for
how many seconds it has waited by now."""
OnDecided = Callable[[MoreDecided], None]
"""Called with what a person granted while a query waited."""

T = TypeVar("T")


async def patiently(
    ask: Callable[[float], Awaitable[T]],
    *,
    look: Callable[[], Awaitable[WaitingView]],
    key: str,
    wait_s: float,
    on_wait: OnWait | None,
    on_decided: OnDecided | None,
) -> T:
    """
    Return what *ask* gives, asking again while it says that the budget is used up.

    Args:
        ask: given for how many seconds the enclave may hold its answer, 0 for not at all.
        look: says where this consumer's queries wait.
        key: the query's Idempotency-Key, by which it is found among them; empty if it has none.
        wait_s: how many seconds to wait at the most, ``math.inf`` for as long as it takes.

    Raises:
        BudgetExhaustedError: nothing came in *wait_s*, or more was denied.
        AIGovToolError: what else *ask* raises.
    """
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    hold_s = 0.0
    news = _News(on_wait, on_decided, begin_s)
    while True:
        asked_s = loop.time()
        try:
            async with _telling(key, news if hold_s else None, look):
                result = await ask(hold_s)
            if hold_s and on_decided is not None:
                with contextlib.suppress(AIGovToolError):  # the answer is here all the same
                    news.decided((await look()).decided, loop.time())
            return result
        except MoreDeniedError:
            raise
        except BudgetExhaustedError as error:
            now_s = loop.time()
            left_s = wait_s - (now_s - begin_s)
            if left_s <= 0:
                raise
            if on_wait is not None:
                on_wait(error, now_s - begin_s)
            early_s = min(hold_s, error.retry_after_s) - (now_s - asked_s)
            await asyncio.sleep(min(max(early_s, 0.0), left_s))
            hold_s = min(left_s, MAX_HOLD_S)


def prefer_wait(hold_s: float) -> Headers:
    """Return the header by which an enclave holds its answer (RFC 7240, whole seconds)."""
    return ((b"prefer", b"wait=%d" % max(1, math.ceil(hold_s))),) if hold_s else ()


def reason_header(reason: str | None) -> Headers:
    """Return the header with what the custodian's operator reads; raises ConfigurationError."""
    if reason is None:
        return ()
    if len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable():
        raise ConfigurationError(
            "the reason is too long, or more than one line",
            expected=f"at most {MAX_REASON_CHARACTERS} printable characters",
            came=f"{len(reason)} characters",
        )
    return ((REASON.lower().encode(), reason.encode()),)


class _News:
    """What whoever waits is told: its place, and each decision that was made since, once."""

    __slots__ = ("_begin_s", "_on_decided", "_on_wait", "_told_s")

    def __init__(
        self, on_wait: OnWait | None, on_decided: OnDecided | None, begin_s: float
    ) -> None:
        self._on_wait = on_wait
        self._on_decided = on_decided
        self._begin_s = begin_s
        self._told_s = begin_s  # when the last decision was made that is known

    @property
    def wanted(self) -> bool:
        return self._on_wait is not None or self._on_decided is not None

    def waits(self, place: tuple[int, int], now_s: float) -> None:
        if self._on_wait is not None:
            waits = BudgetExhaustedError("the query waits for credits", place=place)
            self._on_wait(waits, now_s - self._begin_s)

    def decided(self, decision: MoreDecided | None, now_s: float) -> None:
        """Tell of an approval; a denial ends the query with an error that says it."""
        if decision is None or not decision.approved or self._on_decided is None:
            return
        made_s = now_s - decision.age_s
        if made_s > self._told_s:
            self._told_s = made_s + SAME_DECISION_S
            self._on_decided(decision)


@contextlib.asynccontextmanager
async def _telling(
    key: str, news: _News | None, look: Callable[[], Awaitable[WaitingView]]
) -> AsyncIterator[None]:
    """Tell, for the length of the block, the place of the query with *key*, and decisions."""
    if news is None or not news.wanted:
        yield
        return
    telling = asyncio.create_task(_tell(key, news, look))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(key: str, news: _News, look: Callable[[], Awaitable[WaitingView]]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(FIRST_LOOK_S)
    while True:
        try:
            view = await look()
        except AIGovToolError:
            return  # the query itself says what is wrong
        news.decided(view.decided, loop.time())
        for query in view.queries:
            if query.key == key:
                news.waits((query.place, view.waiting), loop.time())
                break
        await asyncio.sleep(max(FIRST_LOOK_S, view.again_s))
