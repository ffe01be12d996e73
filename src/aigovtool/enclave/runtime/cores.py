"""How much of the machine a runtime may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0))
