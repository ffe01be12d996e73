"""Try again what was busy: a bounded number of times, with a growing pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from aigovtool.errors import UnavailableError

ATTEMPTS = 6
FIRST_PAUSE_S = 0.05  # doubles: 0.05, 0.1, … 0.8; a quote by configfs can take about a second

T = TypeVar("T")


def retry(step: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """
    Return what *step* returns, calling it again while it raises UnavailableError.

    Raises:
        UnavailableError: the last one, when all attempts failed. Any other error at once.
    """
    pause_s = FIRST_PAUSE_S
    for _ in range(ATTEMPTS - 1):
        try:
            return step()
        except UnavailableError:
            sleep(pause_s)
            pause_s *= 2
    return step()
