"""
Budgets that begin anew: with each day or month of the UTC calendar.

Rule 1: when a period turns, what was left is withdrawn and the period's budget is granted, less
        what is still leased: a lease that straddles the turn is charged to the period in which it
        ends. So no more than the budget is served within a period, whenever the enclave serves it.
Rule 2: what such a lease did not use comes back to the period in which it is settled, which paid
        for it. When more was leased than the new budget holds, the excess does not come back.
Rule 3: a lease that was forfeited in an earlier period and is settled late brings nothing back.
Rule 4: a period ends once: its end only moves forward, whatever the clock does.

Pure: time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from aigovtool.custodian import budget
from aigovtool.custodian.budget import Account


class Unit(StrEnum):
    """What a budget is for."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """
    The period that a consumer's budget is for now.

    Args:
        budget: credits of each period to come.
        began, ends: aware UTC; a decision at `ends` or later turns it.
        excess: credits of earlier leases beyond the budget, which do not come back (Rule 2).
    """

    unit: Unit
    budget: int
    began: datetime
    ends: datetime
    excess: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the turn of a period came to."""

    account: Account
    period: Period
    withdrawn: int
    granted: int


def begin_of(unit: Unit, time: datetime) -> datetime:
    """Return when the day or month of *time* began."""
    time = time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return time if unit is Unit.DAY else time.replace(day=1)


def end_of(unit: Unit, time: datetime) -> datetime:
    """Return when the day or month of *time* ends, which is when the next one begins."""
    longest = timedelta(days=1) if unit is Unit.DAY else timedelta(days=31)
    return begin_of(unit, begin_of(unit, time) + longest)


def period_at(unit: Unit, credits: int, now: datetime) -> Period:
    """Return the period of *now* for a budget of *credits*."""
    return Period(unit=unit, budget=credits, began=begin_of(unit, now), ends=end_of(unit, now))


def is_over(period: Period | None, now: datetime) -> bool:
    """Whether *period* must be turned before anything else is decided."""
    return period is not None and now >= period.ends


def turn(account: Account, period: Period, now: datetime) -> Turn:
    """Begin the period of *now*, which is later than *period* (Rule 1)."""
    withdrawn = account.left
    account = budget.withdraw(account, withdrawn)
    granted = max(0, period.budget - account.leased)
    if granted:
        account = budget.grant(account, granted)
    began = begin_of(period.unit, now)
    return Turn(
        account=account,
        period=replace(
            period,
            began=began,
            ends=end_of(period.unit, now),
            excess=max(0, account.leased - period.budget),
        ),
        withdrawn=withdrawn,
        granted=granted,
    )


def keep_back(
    account: Account, period: Period, unused: int, *, forfeited: datetime | None
) -> tuple[Account, Period]:
    """
    Withdraw of *unused* credits, which a settlement has just brought back to *account*, what is not
    this period's (Rules 2 and 3).

    Args:
        forfeited: when the lease was forfeited, None when it was not.
    """
    if forfeited is not None and forfeited < period.began:
        return budget.withdraw(account, unused), period
    kept = min(unused, period.excess)
    return budget.withdraw(account, kept), replace(period, excess=period.excess - kept)
