"""
Endorsements for programs whose attestation runs in threads: a collector on an event loop of its
own.

Rule 1: `Courier.complete` never fails. What cannot be had is missing, and said in the log; whether
        the rest will do, whoever judges it decides.
Rule 2: it keeps nobody waiting for long. A fetch that takes longer goes on, for whoever asks next;
        a vendor that cannot be reached is left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.clock import Clock
from aigovtool.endorsements.collector import Collector, Services, open_collector
from aigovtool.errors import AIGovToolError, UnavailableError

WAIT_S = 8.0  # less than an enclave gives its platform for evidence
QUIET_S = 15.0
SELF_SUFFICIENT = frozenset({Tee.NITRO, Tee.TPM2, Tee.SIMULATED})
"""Kinds that bring all that there is; see `collector`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    collector: Collector
    stop: asyncio.Event


class Courier:
    """Completes endorsements for any thread; `open_courier` makes one."""

    def __init__(self, running: _Running, *, clock: Clock) -> None:
        self._running = running
        self._clock = clock
        self._quiet_until_s: dict[Tee, float] = {}
        self._said: dict[Tee, str] = {}

    def complete(self, evidence: Evidence, have: Endorsements, *, now: datetime) -> Endorsements:
        """
        Return *have*, with what is missing or out of date at *now*, as far as it can be had.

        Blocks for up to `WAIT_S`: not for the thread of an event loop.
        """
        tee = evidence.tee
        if (
            tee in SELF_SUFFICIENT
            or have.tee is not tee
            or self._clock.monotonic_s() < self._quiet_until_s.get(tee, 0.0)
        ):
            return have
        wanted = asyncio.run_coroutine_threadsafe(
            self._running.collector.collect(evidence, have=have, now=now), self._running.loop
        )
        try:
            complete = wanted.result(WAIT_S)
        except TimeoutError:
            wanted.cancel()  # what is being fetched is fetched to its end
            self._quiet_until_s[tee] = self._clock.monotonic_s() + QUIET_S
            self._say(tee, f"not there within {WAIT_S:g} s")
        except CancelledError:
            pass  # the courier ends
        except AIGovToolError as error:
            if isinstance(error, UnavailableError):
                wait_s = max(QUIET_S, error.retry_after_s)
                self._quiet_until_s[tee] = self._clock.monotonic_s() + wait_s
            self._say(tee, str(error))
        else:
            self._said.pop(tee, None)
            return complete
        return have

    def _say(self, tee: Tee, problem: str) -> None:
        """Log a problem once for as long as it stays the same."""
        if self._said.get(tee) != problem:
            self._said[tee] = problem
            _log.warning("endorsements for %s are not complete: %s", tee, problem)


@contextmanager
def open_courier(services: Services, *, cache: Path | None, clock: Clock) -> Iterator[Courier]:
    """
    Lend a courier that visits *services*, and renews what it fetched before it is out of date.

    Args:
        cache: folder for answers; None keeps them in memory alone.
    """
    started: Future[_Running] = Future()
    thread = threading.Thread(
        target=lambda: asyncio.run(_live(started, services, cache=cache, clock=clock)),
        name="endorsements",
    )
    thread.start()
    running = started.result()
    try:
        yield Courier(running, clock=clock)
    finally:
        running.loop.call_soon_threadsafe(running.stop.set)
        thread.join()


async def _live(
    started: Future[_Running], services: Services, *, cache: Path | None, clock: Clock
) -> None:
    try:
        async with open_collector(services, cache=cache, clock=clock) as collector:
            stop = asyncio.Event()
            renewing = asyncio.create_task(collector.keep_fresh())
            started.set_result(_Running(asyncio.get_running_loop(), collector, stop))
            await stop.wait()
            renewing.cancel()
            await asyncio.wait({renewing})
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)  # whoever opens the courier is told
