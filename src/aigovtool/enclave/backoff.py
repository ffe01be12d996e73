"""Waiting between attempts: longer each time, and never in step with others (full jitter)."""

from __future__ import annotations

import asyncio
import random

FIRST_S = 0.1
LONGEST_S = 10.0


class Backoff:
    """The waits between attempts."""

    def __init__(self, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    def reset(self) -> None:
        """Begin a new series."""
        self._next_s = self._first_s

    async def wait(self) -> None:
        """Wait a random part, at least half, of the next interval."""
        # Not for secrets: the jitter only keeps a thousand enclaves from returning at once.
        await asyncio.sleep(random.uniform(self._next_s / 2, self._next_s))  # noqa: S311
        self._next_s = min(self._next_s * 2, self._longest_s)
