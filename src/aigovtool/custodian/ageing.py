"""
How a session's leases shrink while its platform is out of date, and when it must attest again.

Rule 1: an out-of-date platform that the policy accepts by grace has a window: from the day on which
        Intel dates the better TCB level to the end of the grace period. Leases shrink by halves in
        it (`STEPS`), never grow again by the passing of time, and none outlives it.
Rule 2: from the end of the window on, to the microsecond, nothing is leased.
Rule 3: whoever has not attested again `ANSWER_WITHIN_S` after that was due gets no lease, whatever
        the reason: unanswered, late, disconnected, or a custodian that was down.

Pure: time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from aigovtool.attestation.dcap.policy import TcbGrace

ANSWER_WITHIN_S = 120.0  # a quote takes seconds, and new collateral comes from far away
_SECOND = timedelta(seconds=1)


class Step(StrEnum):
    """How far a session has aged."""

    FULL = "full"
    WARNED = "warned"
    HALVED = "halved"
    QUARTERED = "quartered"
    EIGHTH = "eighth"
    REFUSED = "refused"


STEPS: tuple[tuple[Fraction, Step], ...] = (
    (Fraction(3, 4), Step.EIGHTH),
    (Fraction(1, 2), Step.QUARTERED),
    (Fraction(1, 4), Step.HALVED),
)
"""From which part of the window on a step counts, the last first; before them all, `WARNED`."""

DIVISORS: dict[Step, int] = {
    Step.FULL: 1,
    Step.WARNED: 1,
    Step.HALVED: 2,
    Step.QUARTERED: 4,
    Step.EIGHTH: 8,
}
"""By what a step divides a lease's duration and the most credits that it may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """
    What one lease may be.

    Args:
        duration_s: 0 only if the loan's own leases last 0 s.
        max_credits: the most that it may hold, at least 1.
    """

    duration_s: float
    max_credits: int


def step_at(grace: TcbGrace | None, now: datetime) -> Step:
    """Return how far a session has aged at *now*; without *grace* its platform is in order."""
    if grace is None:
        return Step.FULL
    if now >= grace.ends:
        return Step.REFUSED
    window, age = grace.ends - grace.since, now - grace.since
    for part, step in STEPS:
        if age * part.denominator >= window * part.numerator:
            return step
    return Step.WARNED


def allowance(
    grace: TcbGrace | None, now: datetime, *, lease_duration_s: float, max_lease_credits: int
) -> Allowance | None:
    """
    Return what a lease granted at *now* may be, None when none may be granted.

    Args:
        lease_duration_s: of the loan's terms.
        max_lease_credits: of the loan's terms.
    """
    step = step_at(grace, now)
    if step is Step.REFUSED:
        return None
    duration_s = lease_duration_s / DIVISORS[step]
    if grace is not None:
        duration_s = min(duration_s, (grace.ends - now) / _SECOND)
    return Allowance(duration_s=duration_s, max_credits=max(1, max_lease_credits // DIVISORS[step]))


def is_due(appraised: datetime, interval_s: float, now: datetime) -> bool:
    """Whether a session appraised at *appraised* must attest again; never with an interval of 0."""
    return interval_s > 0 and (now - appraised) / _SECOND >= interval_s


def is_overdue(appraised: datetime, interval_s: float, now: datetime) -> bool:
    """Whether it should have done so by now, and gets no lease until it has (Rule 3)."""
    return interval_s > 0 and (now - appraised) / _SECOND >= interval_s + ANSWER_WITHIN_S
