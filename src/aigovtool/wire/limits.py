"""
Limits on how fast and how many at once, for a consumer or a whole loan, and their arithmetic.

A rate of ``N/unit`` is a bucket of N credits that refills evenly, N in each unit: at most N at
once, and in any T seconds at most ``N + N * T / unit``. It is reckoned as GCRA does (ITU-T I.371,
annex A): the whole state is one number, the time at which the bucket will be full again.

Pure: times are arguments, in seconds of any one clock that does not run backwards.
"""

from __future__ import annotations

import math
import re

from aigovtool.errors import MalformedError
from aigovtool.wire.codec import Message

UNITS_S = {"s": 1, "min": 60, "hour": 3600, "day": 86_400}
MAX_RATE_CREDITS = 1_000_000_000
MAX_CONCURRENCY = 1_000_000
_RATE = re.compile(r"(\d{1,10})/(s|min|hour|day)\Z", re.ASCII)
_TINY = 1e-9  # of a bucket: what rounding may lose of a credit that is there


class Rate(Message, frozen=True, kw_only=True):
    """`credits` in each `per_s` seconds, and at most so many at once."""

    credits: int
    per_s: int

    def __str__(self) -> str:
        unit = next((name for name, each in UNITS_S.items() if each == self.per_s), None)
        return f"{self.credits}/{unit or f'{self.per_s} s'}"

    @property
    def interval_s(self) -> float:
        """The time in which one credit comes back."""
        return self.per_s / self.credits


class Limits(Message, frozen=True, kw_only=True):
    """
    Args:
        rate: credits in a time, None for any.
        concurrency: queries at one time, those that wait included; None for any.
    """

    rate: Rate | None = None
    concurrency: int | None = None


NO_LIMITS = Limits()


def parse_rate(text: str) -> Rate:
    """Read ``10/s``, ``600/min``, ``1000/hour`` or ``5000/day``; raises MalformedError."""
    match = _RATE.match(text.strip())
    if match is None or not 1 <= int(match[1]) <= MAX_RATE_CREDITS:
        raise MalformedError(
            "not a rate",
            code="limit.form",
            expected="N/s, N/min, N/hour or N/day",
            came=ascii(text[:40]),
        )
    return Rate(credits=int(match[1]), per_s=UNITS_S[match[2]])


def check_limits(limits: Limits) -> None:
    """Raise MalformedError unless *limits* are ones that can be kept."""
    rate, concurrency = limits.rate, limits.concurrency
    if rate is not None and not (
        1 <= rate.credits <= MAX_RATE_CREDITS and rate.per_s in UNITS_S.values()
    ):
        raise MalformedError(
            "not a rate",
            code="limit.form",
            expected="a number of credits in a unit",
            came=str(rate),
        )
    if concurrency is not None and not 1 <= concurrency <= MAX_CONCURRENCY:
        raise MalformedError(
            "not a number of queries at one time",
            code="limit.form",
            expected=f"1 to {MAX_CONCURRENCY}",
            came=str(concurrency),
        )


def available(rate: Rate, full_at_s: float, now_s: float) -> int:
    """Return how many credits can be taken at *now_s* of a bucket that is full at *full_at_s*."""
    missing_s = max(full_at_s - now_s, 0.0)
    return max(0, math.floor((rate.per_s - missing_s) / rate.interval_s + _TINY))


def after(rate: Rate, full_at_s: float, now_s: float, credits: int) -> float:
    """Return when the bucket is full again once *credits* are taken, at *now_s* or in turn."""
    return max(full_at_s, now_s) + credits * rate.interval_s


def wait_s(rate: Rate, full_at_s: float, now_s: float, credits: int) -> float:
    """
    Return how long it takes until *credits* can be taken; 0 when they can be now, infinity when
    the bucket never holds so many.
    """
    if credits > rate.credits:
        return math.inf
    if credits <= available(rate, full_at_s, now_s):
        return 0.0
    return full_at_s - now_s + credits * rate.interval_s - rate.per_s


def share_of(concurrency: int, place: int, sharers: int) -> int:
    """
    Return how many of *concurrency* queries the enclave at *place* (from 0) of *sharers* may run;
    all shares add up to *concurrency*.
    """
    return concurrency // sharers + (place < concurrency % sharers)
