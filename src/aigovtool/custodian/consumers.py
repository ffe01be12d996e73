"""
What may be changed about consumers after they were made, and what time changes about them.

Rule 1: a consumer past its date is refused by every decision at once; its enclaves are told by the
        sweep, and no lease lets it outlive its date until they are (`wire.control.Lease.ends_s`).
Rule 2: a period turns in the first decision that touches its consumer's budget, or in the sweep,
        and its enclaves are told so that whoever waits goes on.
Rule 3: whether a consumer has a budget of its own is decided when it is made, since leases that
        are in use were dealt by it.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import msgspec

from aigovtool.custodian.ledger import Entry, Ledger, consumer_of, loan_of
from aigovtool.custodian.periods import Period, Unit, period_at
from aigovtool.custodian.records import CUSTODIAN, Consumer
from aigovtool.custodian.settling import Books
from aigovtool.errors import MalformedError, RefusedError
from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.limits import NO_LIMITS, Limits, Rate, check_limits

SWEEP_ROWS = 200  # in one decision, so that a sweep never holds reports up for long


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerTerms:
    """
    What may be set about a consumer.

    Args:
        budget: credits of its own: at once, and with `per` of every period; None for none.
        per: the calendar unit with which the budget begins anew, None for never.
        expires: aware UTC, from when on it is refused, or None.
    """

    budget: int | None = None
    per: Unit | None = None
    limits: Limits = NO_LIMITS
    expires: datetime | None = None


def check_terms(terms: ConsumerTerms, now: datetime) -> None:
    """Raise MalformedError unless *terms* can be kept."""
    if terms.budget is not None and terms.budget < 0:
        raise MalformedError(
            "a budget cannot be negative", expected="0 or more", came=str(terms.budget)
        )
    if terms.per is not None and terms.budget is None:
        raise MalformedError(
            "a period needs a budget", code="consumer.terms", mend="add --budget CREDITS"
        )
    check_limits(terms.limits)
    if terms.expires is not None and terms.expires <= now:
        raise MalformedError(
            "the consumer's time would be over before it begins",
            code="consumer.terms",
            expected=f"a time after {now.isoformat()}",
            came=terms.expires.isoformat(),
            mend="to refuse it now: aigovtool custodian consumer block",
        )


class Consumers:
    """Changes consumers' terms, and keeps them in time."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def set_terms(
        self,
        consumer_id: ConsumerId,
        *,
        actor: str,
        budget: int | msgspec.UnsetType | None = msgspec.UNSET,
        per: Unit | msgspec.UnsetType | None = msgspec.UNSET,
        rate: Rate | msgspec.UnsetType | None = msgspec.UNSET,
        concurrency: int | msgspec.UnsetType | None = msgspec.UNSET,
        expires: datetime | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> Consumer:
        """
        Change what is given; what is left of the running period stays, a new budget begins with the
        next one.

        Raises:
            NotFoundError: no such consumer.
            MalformedError: terms that cannot be kept.
            RefusedError: it has no budget of its own, or its budget has no period.
        """
        with self._ledger.write() as entry:
            consumer = self._turned(entry, consumer_of(entry.tx, consumer_id))
            changes: dict[str, Any] = {}
            if budget is not msgspec.UNSET or per is not msgspec.UNSET:
                changes["period"] = _new_period(consumer, budget, per, entry.now)
            changes["limits"] = limits = new_limits(consumer.limits, rate, concurrency)
            if limits.rate != consumer.limits.rate:
                changes["rate_full_at"] = None
            if expires is not msgspec.UNSET:
                check_terms(ConsumerTerms(expires=expires), entry.now)
                changes |= {"expires": expires, "expired": False}
            changed = dataclasses.replace(consumer, **changes)
            if changed != consumer:
                entry.tx.set_consumer_terms(changed)
                entry.event(
                    "consumer.terms",
                    actor=actor,
                    loan=consumer.loan,
                    consumer=consumer_id,
                    **told(changed),
                )
            entry.push_roster(consumer.loan)
            return consumer_of(entry.tx, consumer_id)

    def _turned(self, entry: Entry, consumer: Consumer) -> Consumer:
        books = Books(entry, loan_of(entry.tx, consumer.loan))
        turned = books.consumer(consumer.consumer)
        books.write()
        return turned

    def sweep(self) -> int:
        """
        Turn the periods that are over, and tell of consumers past their date.

        Returns:
            How many there were; as many as `SWEEP_ROWS` of a kind, and there may be more.
        """
        now = self._ledger.clock.now()
        with self._ledger.read() as tx:  # a sweep that finds nothing must not wait for the writers
            if not (tx.consumers_to_turn(now, 1) or tx.consumers_to_expire(now, 1)):
                return 0
        with self._ledger.write() as entry:
            over = entry.tx.consumers_to_turn(entry.now, SWEEP_ROWS)
            loans: dict[LoanId, list[ConsumerId]] = {}
            for name in over:
                consumer = consumer_of(entry.tx, name)
                loans.setdefault(consumer.loan, []).append(name)
            for loan_id, names in loans.items():
                books = Books(entry, loan_of(entry.tx, loan_id))
                for name in names:
                    books.consumer(name)
                books.write()
            expired = entry.tx.consumers_to_expire(entry.now, SWEEP_ROWS)
            for name in expired:
                consumer = consumer_of(entry.tx, name)
                entry.tx.set_consumer_terms(dataclasses.replace(consumer, expired=True))
                entry.event("consumer.expired", actor=CUSTODIAN, loan=consumer.loan, consumer=name)
            for loan_id in {consumer_of(entry.tx, name).loan for name in expired}:
                entry.push_roster(loan_id)
        return len(over) + len(expired)


def new_limits(
    limits: Limits,
    rate: Rate | msgspec.UnsetType | None,
    concurrency: int | msgspec.UnsetType | None,
) -> Limits:
    """Return *limits* with what is given changed; raises MalformedError."""
    changed = Limits(
        rate=limits.rate if isinstance(rate, msgspec.UnsetType) else rate,
        concurrency=limits.concurrency
        if isinstance(concurrency, msgspec.UnsetType)
        else concurrency,
    )
    check_limits(changed)
    return changed


def told(consumer: Consumer) -> dict[str, Any]:
    """Return a consumer's terms, for an event."""
    period = consumer.period
    return {
        "per": None if period is None else period.unit.value,
        "budget": None if period is None else period.budget,
        "limits": consumer.limits,
        "expires": consumer.expires,
    }


def _new_period(
    consumer: Consumer,
    budget: int | msgspec.UnsetType | None,
    per: Unit | msgspec.UnsetType | None,
    now: datetime,
) -> Period | None:
    if not consumer.budgeted:
        raise RefusedError(
            f"the consumer {consumer.consumer} has no budget of its own and shares the loan's",
            code="consumer.not_budgeted",
            mend="make a consumer with --budget",
        )
    period = consumer.period
    if per is None:
        if isinstance(budget, int):
            raise _no_period(consumer)
        return None
    credits = budget if isinstance(budget, int) else None if period is None else period.budget
    if isinstance(per, Unit):
        if credits is None:
            raise MalformedError(
                "a period needs a budget", code="consumer.terms", mend="add --budget CREDITS"
            )
        check_terms(ConsumerTerms(budget=credits, per=per), now)
        if period is not None and period.unit is per:
            return dataclasses.replace(period, budget=credits)
        made = period_at(per, credits, now)
        return made if period is None else dataclasses.replace(made, excess=period.excess)
    if period is None or credits is None:
        raise _no_period(consumer)
    check_terms(ConsumerTerms(budget=credits), now)
    return dataclasses.replace(period, budget=credits)


def _no_period(consumer: Consumer) -> RefusedError:
    return RefusedError(
        f"the budget of {consumer.consumer} does not begin anew, so there is none to set",
        code="consumer.no_period",
        mend="grant credits to it, or add --per day or --per month",
    )
