"""
Whether a model is computed on the event loop: while it is as quick as it was when it was loaded.

It was measured with zeros (`runtime.speed`), and some models take longer for other values. One that
turns out to be slow goes to the threads for good: nobody else waits for it there.
"""

from __future__ import annotations

from collections import deque

from aigovtool.enclave.runtime.base import TensorModel
from aigovtool.enclave.runtime.speed import RUN_S

TOO_SLOW_S = 50 * RUN_S  # of one run; others may use the machine, too
SLOW_RUNS = 5  # so many within `TOO_OFTEN_S`: it is the model, and not the machine
TOO_OFTEN_S = 10.0


class Pace:
    """How quick the runs of one model on the event loop are."""

    __slots__ = ("_slow_at_s", "_too_slow")

    def __init__(self) -> None:
        self._slow_at_s: deque[float] = deque(maxlen=SLOW_RUNS)
        self._too_slow = False

    def at_once(self, model: TensorModel) -> int:
        """Return how many items a run of *model* on the event loop may hold now; 0 for none."""
        return 0 if self._too_slow else model.speed.at_once

    def took(self, begin_s: float, end_s: float) -> None:
        """A run on the event loop began and ended then."""
        if end_s - begin_s <= TOO_SLOW_S:
            return
        self._slow_at_s.append(end_s)
        often = end_s - self._slow_at_s[0] < TOO_OFTEN_S
        self._too_slow |= often and len(self._slow_at_s) == SLOW_RUNS
