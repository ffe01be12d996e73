"""An event loop in a thread of its own: it relays bytes and asks queries while faults are made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

CALL_LIMIT_S = 60.0

T = TypeVar("T")


class Background:
    """Use with ``with``; its tasks end with it."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="drill", daemon=True)

    def call(self, coroutine: Coroutine[Any, Any, T], *, limit_s: float = CALL_LIMIT_S) -> T:
        """Run *coroutine* on the loop and return what it returns; from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(limit_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.call(_end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
