"""
Noticing that a client hangs up while its query waits or is computed.

A quick computation is over before anybody would look, so looking begins a little later: on the hot
path it costs one timer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aigovtool.enclave.api.http import Request

LOOK_AFTER_S = 0.05


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
