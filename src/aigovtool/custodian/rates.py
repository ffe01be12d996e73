"""
Rates over all enclaves of a loan: leases take from one bucket, which the ledger keeps.

Rule 1: what is leased counts, used or not: so all enclaves together are never leased more than the
        rate, and serve in any T seconds at most ``N + N * (T + D) / unit``, with D the leases'
        duration. Each enclave keeps the same rate by itself, so that one alone never exceeds it.
Rule 2: what a lease did not use does not come back to the bucket: it would let more through. It
        refills within one unit whatever happens.

Pure: time is an argument. It is the custodian's wall clock, since several replicas share a bucket;
one that jumps fills the bucket at most once, or keeps it empty for at most one unit.
"""

from __future__ import annotations

from datetime import UTC, datetime

from aigovtool.custodian.budget import MAX_CREDITS
from aigovtool.wire import limits
from aigovtool.wire.limits import Rate


def most(rate: Rate | None) -> int:
    """Return how many credits its bucket ever holds."""
    return MAX_CREDITS if rate is None else rate.credits


def available(rate: Rate | None, full_at: datetime | None, now: datetime) -> int:
    """Return how many credits may be leased at *now*."""
    if rate is None or full_at is None:
        return most(rate)
    return limits.available(rate, _full_at_s(rate, full_at, now), _s(now))


def taken(
    rate: Rate | None, full_at: datetime | None, now: datetime, credits: int
) -> datetime | None:
    """Return when the bucket is full again once *credits* are leased at *now*."""
    if rate is None:
        return None
    after_s = limits.after(rate, _full_at_s(rate, full_at or now, now), _s(now), credits)
    return datetime.fromtimestamp(after_s, UTC)


def wait_s(rate: Rate | None, full_at: datetime | None, now: datetime, credits: int) -> float:
    """Return how long it takes until *credits* may be leased, or a full bucket when it is less."""
    if rate is None or full_at is None:
        return 0.0
    full_at_s = _full_at_s(rate, full_at, now)
    return limits.wait_s(rate, full_at_s, _s(now), min(credits, rate.credits))


def _full_at_s(rate: Rate, full_at: datetime, now: datetime) -> float:
    """After a jump back a bucket is empty, and full again within one unit as any empty one is."""
    return min(_s(full_at), _s(now) + rate.per_s)


def _s(time: datetime) -> float:
    return time.timestamp()
