"""How many credits to ask for: the use per second, estimated; it rises at once and falls slowly."""

from __future__ import annotations

import math

_DECAY = 0.5  # of the old estimate, at each observation below it
_SHORTEST_S = 0.05  # a burst in a shorter time says nothing of the rate
LOW_LEAD_S = 0.25  # ask for more when what is left would last less long than this


class Demand:
    """
    Credits used per second. Pure: time is an argument, in seconds.

    A rise is believed at once, since an empty lease makes queries wait; a fall halves the estimate,
    since a lease too large only keeps credits from others for its short life.
    """

    __slots__ = ("_since_s", "rate")

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self.rate = 0.0

    def observe(self, used: int, now_s: float) -> None:
        """Take note that *used* credits were used since the last observation."""
        elapsed_s = max(now_s - self._since_s, _SHORTEST_S)
        self._since_s = now_s
        self.rate = max(used / elapsed_s, self.rate * _DECAY)

    def credits_for(self, duration_s: float) -> int:
        """Return how many credits *duration_s* will need."""
        return math.ceil(self.rate * duration_s)

    def low_mark(self) -> int:
        """Return the count below which live leases are about to be empty; 0 for slow use."""
        return int(self.rate * LOW_LEAD_S)
