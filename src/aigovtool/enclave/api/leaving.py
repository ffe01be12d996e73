"""
Noticing that a client hangs up while its query waits or is computed.

A quick computation is over before anybody would look, so looking begins a little later: on the hot
path it costs one timer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from aigovtool.enclave.api.http import ClientGoneError, Request

LOOK_AFTER_S = 0.05

T = TypeVar("T")


@contextlib.contextmanager
def watched(request: Request, gone: Callable[[], None]) -> Iterator[None]:
    """Call *gone*, once, if the client of *request*, whose body was read, leaves in the block."""
    leaving: list[asyncio.Task[Any]] = []

    def left(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is None:
            gone()

    def look() -> None:
        task = asyncio.ensure_future(request.receive())
        leaving.append(task)
        task.add_done_callback(left)

    timer = asyncio.get_running_loop().call_later(LOOK_AFTER_S, look)
    try:
        yield
    finally:
        timer.cancel()
        for task in leaving:
            task.remove_done_callback(left)
            task.cancel()


async def unless_gone(
    request: Request, wanted: Awaitable[T], give_back: Callable[[T], object]
) -> T:
    """
    Wait for *wanted*, and stop waiting when the client of *request*, whose body was read, leaves.

    Args:
        give_back: called with what was got for nobody, as the wait ended in that very moment.

    Raises:
        ClientGoneError: the client left first.
    """
    waiting = asyncio.ensure_future(wanted)
    leaving = asyncio.ensure_future(request.receive())
    got = False
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientGoneError
        got = True
        return waiting.result()
    finally:
        leaving.cancel()
        if not got:
            waiting.cancel()
            waiting.add_done_callback(lambda done: _unwanted(done, give_back))
        await asyncio.gather(waiting, leaving, return_exceptions=True)


def _unwanted(done: asyncio.Future[T], give_back: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        give_back(done.result())
