"""
Group commit: reports that wait while one commit is made go into the next one together.

A commit costs a disk's flush whatever it holds. A single report waits for nobody: it is taken at
once when no commit is under way.

Rule: an answer is sent in the very step in which it is known, so that nothing that its commit set
off (the end of the server, for one) overtakes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aigovtool.errors import AIGovToolError
from aigovtool.ids import SessionId
from aigovtool.wire.control import Report, ReportAnswer

MAX_TOGETHER = 32  # in one commit, so that a stop never waits long for the ledger

Outcome = ReportAnswer | AIGovToolError
Send = Callable[[ReportAnswer], None]
ApplyAll = Callable[[Sequence[tuple[SessionId, Report]]], Awaitable[Sequence[Outcome]]]


class Reporting:
    """
    Collects the reports of all connections; on the event loop only.

    Args:
        apply_all: `Leasing.report_all`, away from the event loop.
    """

    def __init__(self, apply_all: ApplyAll) -> None:
        self._apply_all = apply_all
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    async def report(self, session: SessionId, report: Report, send: Send) -> None:
        """Apply *report* once and *send* its answer; raises as `Leasing.report`."""
        waiting = _Waiting(session, report, send, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        await waiting.done

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), MAX_TOGETHER)
                taken = [self._waiting.popleft() for _ in range(count)]
                outcomes: Sequence[ReportAnswer | Exception]
                try:
                    outcomes = await self._apply_all([(one.session, one.report) for one in taken])
                except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it was
                    outcomes = [error] * count
                for one, outcome in zip(taken, outcomes, strict=True):
                    one.tell(outcome)
        finally:
            self._working = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    session: SessionId
    report: Report
    send: Send
    done: asyncio.Future[None]

    def tell(self, outcome: ReportAnswer | Exception) -> None:
        if self.done.done():  # its connection was lost meanwhile
            return
        if isinstance(outcome, ReportAnswer):
            self.send(outcome)
            self.done.set_result(None)
        else:
            self.done.set_exception(outcome)
