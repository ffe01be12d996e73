"""SIGTERM and SIGINT of a server: the first asks it to end in order, the second ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def ended_by_signals(end: Callable[[], None]) -> Iterator[None]:
    """Call *end* on the first signal within the block, on the running loop; a second one kills."""
    loop = asyncio.get_running_loop()
    mine = set(NUMBERS)

    def first() -> None:
        for number in tuple(mine):
            mine.discard(number)
            loop.remove_signal_handler(number)
            # Python's own for SIGINT would only raise where the loop is
            signal.signal(number, signal.SIG_DFL)
        end()

    for number in NUMBERS:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in mine:
            loop.remove_signal_handler(number)
