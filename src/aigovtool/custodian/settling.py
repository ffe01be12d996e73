"""
What a settlement says, checked in two steps: alone, and against the ledger.

1. `open_settlements` needs no ledger: signed by the session's key, about this loan and session,
   and its parts add up.
2. `Books.settle` needs it: the lease is this session's, held that much, and was not settled
   differently before.

`Books` keeps the accounts that one decision touches, so that each is read and written once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from aigovtool.crypto.labels import Label
from aigovtool.custodian import budget, periods, rates
from aigovtool.custodian.budget import Account
from aigovtool.custodian.ledger import Entry, consumer_of
from aigovtool.custodian.records import (
    CUSTODIAN,
    Consumer,
    LeaseRow,
    LeaseState,
    Loan,
    PeriodRow,
    Session,
    SettlementRow,
)
from aigovtool.errors import ConflictError, MalformedError, VerificationError
from aigovtool.ids import DIGEST_BYTES, ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import MAX_SETTLEMENTS, CreditsFreed, Settlement
from aigovtool.wire.enrolment import Keys
from aigovtool.wire.limits import Rate


@dataclass(frozen=True, slots=True)
class OpenedSettlement:
    """A settlement whose signature held, and how it came."""

    settlement: Settlement
    signed: Signed


class Signs(Protocol):
    """Who signs settlements: a session as the ledger has it, or as the custodian once stated it."""

    @property
    def loan(self) -> LoanId: ...
    @property
    def session(self) -> SessionId: ...
    @property
    def keys(self) -> Keys: ...


def open_settlements(signed: Sequence[Signed], session: Signs) -> list[OpenedSettlement]:
    """
    Check settlements by themselves.

    Raises:
        VerificationError: not signed by the session, or about another one.
        MalformedError: too many of them, or one whose parts do not add up.
    """
    if len(signed) > MAX_SETTLEMENTS:
        raise MalformedError(
            "too many settlements in one report",
            expected=f"at most {MAX_SETTLEMENTS}",
            came=str(len(signed)),
        )
    return [OpenedSettlement(_open(each, session), each) for each in signed]


def _open(signed: Signed, session: Signs) -> Settlement:
    settlement = open_signed(
        signed, Settlement, public_key=session.keys.signing_key, label=Label.SETTLEMENT
    )
    if (settlement.loan, settlement.session) != (session.loan, session.session):
        raise VerificationError(
            "a settlement is about another session",
            code="settlement.session",
            expected=f"{session.loan} {session.session}",
            came=f"{settlement.loan} {settlement.session}",
        )
    uses = settlement.by_consumer.values()
    if min(uses, default=1) < 1 or sum(uses) != settlement.used:
        raise MalformedError(
            "the use by consumers does not add up",
            code="settlement.sum",
            expected=f"{settlement.used} in positive parts",
            came=str(sum(uses)),
        )
    if min(settlement.refunded.values(), default=1) < 1:
        raise MalformedError("a settlement that refunds less than nothing", code="settlement.sum")
    if settlement.receipts < 0 or len(settlement.receipt_chain) != DIGEST_BYTES:
        raise MalformedError("a settlement without a digest of its receipts")
    if settlement.number < 1 or len(settlement.previous) != DIGEST_BYTES:
        raise MalformedError("a settlement without its place among those of its session")
    return settlement


class Books:
    """The accounts of one loan and its consumers while a decision shifts credits in them."""

    def __init__(self, entry: Entry, loan: Loan) -> None:
        self._entry = entry
        self._loan = loan
        self._consumers: dict[ConsumerId, Consumer] = {}
        self._found: dict[ConsumerId, Consumer] = {}  # as the ledger had them
        self._turned = False  # a period of some consumer
        self.account: Account = loan.account
        self.rate_full_at = loan.rate_full_at
        self._counted: dict[ConsumerId, int] = {}

    def consumer(self, consumer: ConsumerId) -> Consumer:
        """
        Return a consumer of this loan as these books have it.

        Raises:
            NotFoundError: there is none of this name.
            VerificationError: it belongs to another loan.
        """
        if consumer not in self._consumers:
            found = consumer_of(self._entry.tx, consumer)
            if found.loan != self._loan.loan:
                raise VerificationError(
                    "a consumer of another loan", code="settlement.consumer", came=consumer
                )
            self._consumers[consumer] = self._found[consumer] = found
            self.turn_period(consumer)
        return self._consumers[consumer]

    def turn_period(self, consumer_id: ConsumerId) -> None:
        """Begin a consumer's next period if its last one is over."""
        consumer, entry = self.consumer(consumer_id), self._entry
        if consumer.period is None or not periods.is_over(consumer.period, entry.now):
            return
        turn = periods.turn(consumer.account, consumer.period, entry.now)
        self._consumers[consumer_id] = dataclasses.replace(
            consumer, account=turn.account, period=turn.period
        )
        row = PeriodRow(
            consumer=consumer_id,
            loan=consumer.loan,
            number=entry.tx.last_period_of_consumer(consumer_id) + 1,
            unit=turn.period.unit.value,
            began=turn.period.began,
            withdrawn=turn.withdrawn,
            granted=turn.granted,
            created=entry.now,
        )
        entry.tx.insert_period(row)
        entry.event(
            "consumer.period",
            actor=CUSTODIAN,
            loan=consumer.loan,
            consumer=consumer_id,
            number=row.number,
            unit=row.unit,
            began=row.began,
            withdrawn=row.withdrawn,
            granted=row.granted,
            leased=turn.account.leased,
        )
        self._turned = True

    @property
    def known(self) -> dict[ConsumerId, Consumer]:
        """The consumers that were looked at."""
        return self._consumers

    def _set(self, consumer: Consumer, account: Account, *, used: int = 0) -> None:
        self._consumers[consumer.consumer] = dataclasses.replace(
            consumer, account=account, used=consumer.used + used
        )

    def counted(self, credits: Mapping[ConsumerId, int], *, at_most: int) -> None:
        """
        So many of the credits that are leased next were counted in the rates before, by consumer.

        Args:
            at_most: all of them together; past it nothing is taken as counted.
        """
        self._counted = dict(credits) if sum(credits.values()) <= at_most else {}

    def rate_room(self, price: int) -> int:
        """Return how many credits the loan's rate lets through now; 0 when not even *price*."""
        rate, counted = self._loan.terms.limits.rate, sum(self._counted.values())
        return counted + _room(rate, self.rate_full_at, self._entry.now, price - counted)

    def rate_room_of(self, consumer_id: ConsumerId, price: int) -> int:
        """Return the same for the rate of a consumer."""
        consumer, counted = self.consumer(consumer_id), self._counted.get(consumer_id, 0)
        rate = consumer.limits.rate
        return counted + _room(rate, consumer.rate_full_at, self._entry.now, price - counted)

    def rate_wait_s(self, price: int) -> float:
        """Return how long it takes until the loan's rate lets *price* through."""
        return rates.wait_s(
            self._loan.terms.limits.rate, self.rate_full_at, self._entry.now, max(1, price)
        )

    def rate_wait_s_of(self, consumer_id: ConsumerId, price: int) -> float:
        """Return the same for the rate of a consumer."""
        consumer = self.consumer(consumer_id)
        return rates.wait_s(
            consumer.limits.rate, consumer.rate_full_at, self._entry.now, max(1, price)
        )

    def lease(self, row: LeaseRow) -> None:
        """Set a lease's credits aside, here, in the rates and in what its caps reserve."""
        self.account = budget.lease(self.account, row.credits)
        self.rate_full_at = rates.taken(
            self._loan.terms.limits.rate,
            self.rate_full_at,
            self._entry.now,
            max(0, row.credits - sum(self._counted.values())),
        )
        for consumer_id, cap in row.caps.items():
            consumer = self.consumer(consumer_id)
            if consumer.budgeted:
                self._set(consumer, budget.lease(consumer.account, cap))
            self._consumers[consumer_id] = dataclasses.replace(
                self._consumers[consumer_id],
                rate_full_at=rates.taken(
                    consumer.limits.rate,
                    consumer.rate_full_at,
                    self._entry.now,
                    max(0, cap - self._counted.get(consumer_id, 0)),
                ),
            )
        self._entry.tx.insert_lease(row)

    def settle(self, opened: OpenedSettlement, session: Session, *, actor: str) -> LeaseId:
        """
        Apply one settlement; the same one again changes nothing.

        Raises:
            VerificationError: the lease is another session's, or nobody's.
            MalformedError: more used than the lease, or a cap in it, held.
            ConflictError: settled differently before.
        """
        settlement, tx = opened.settlement, self._entry.tx
        row = tx.lease(settlement.lease)
        if row is None or row.session != session.session:
            raise VerificationError(
                "a settlement of a lease that is not this session's",
                code="settlement.lease",
                came=settlement.lease,
            )
        if row.state is LeaseState.SETTLED:
            if tx.settlement_payload(row.lease) != opened.signed.payload:
                raise ConflictError(
                    "two different settlements of one lease, both signed by the session",
                    code="settlement.equivocation",
                    expected=f"{row.used} used, as settled before",
                    came=f"{settlement.used} used",
                )
            return row.lease
        late = row.state is LeaseState.FORFEITED
        self.account = _settled(self.account, row, row.credits, settlement.used)
        for consumer_id in {**row.caps, **settlement.by_consumer}:
            consumer = self.consumer(consumer_id)
            used = settlement.by_consumer.get(consumer_id, 0)
            account = consumer.account
            if consumer.budgeted:
                account = _settled(account, row, row.caps.get(consumer_id, 0), used)
            self._set(consumer, account, used=used)
            self._keep_back(consumer_id, account.left - consumer.account.left, row)
        tx.set_lease_state(dataclasses.replace(row, state=LeaseState.SETTLED, used=settlement.used))
        tx.insert_settlement(
            SettlementRow(
                lease=row.lease,
                used=settlement.used,
                by_consumer=settlement.by_consumer,
                receipts=settlement.receipts,
                receipt_chain=settlement.receipt_chain,
                payload=opened.signed.payload,
                signature=opened.signed.signature,
                received=self._entry.now,
            )
        )
        self._entry.event(
            "lease.settled_late" if late else "lease.settled",
            actor=actor,
            loan=row.loan,
            session=row.session,
            lease=row.lease,
            credits=row.credits,
            used=settlement.used,
            by_consumer=settlement.by_consumer,
            refunded=settlement.refunded,
            receipts=settlement.receipts,
        )
        return row.lease

    def _keep_back(self, consumer_id: ConsumerId, unused: int, row: LeaseRow) -> None:
        """Withdraw of what came back unused that which is not of the consumer's period."""
        consumer = self.consumer(consumer_id)
        if consumer.period is not None and unused:
            account, period = periods.keep_back(
                consumer.account, consumer.period, unused, forfeited=row.forfeited
            )
            self._consumers[consumer_id] = dataclasses.replace(
                consumer, account=account, period=period
            )

    def forfeit(self, row: LeaseRow, *, actor: str) -> None:
        """Charge a silent session's lease whole, here and in the budgets that its caps reserve."""
        self.account = budget.forfeit(self.account, row.credits)
        for consumer_id, cap in row.caps.items():
            consumer = self.consumer(consumer_id)
            if consumer.budgeted:
                self._set(consumer, budget.forfeit(consumer.account, cap))
        self._entry.tx.set_lease_state(
            dataclasses.replace(row, state=LeaseState.FORFEITED, forfeited=self._entry.now)
        )
        self._entry.event(
            "lease.forfeited",
            actor=actor,
            loan=row.loan,
            session=row.session,
            lease=row.lease,
            credits=row.credits,
        )

    def charge(self, consumer_id: ConsumerId, credits: int) -> None:
        """Charge a consumer's own budget with what it may have used by leases that nobody knows."""
        account = self.consumer(consumer_id).account
        self._set(
            self.consumer(consumer_id), budget.forfeit(budget.lease(account, credits), credits)
        )

    def grant(self, credits: int) -> None:
        """Add credits to the loan."""
        self.account = budget.grant(self.account, credits)

    def grant_to(self, consumer_id: ConsumerId, credits: int) -> None:
        """Add credits to a consumer's own budget."""
        consumer = self.consumer(consumer_id)
        self._set(consumer, budget.grant(consumer.account, credits))

    @property
    def freed(self) -> bool:
        """Whether there is something left, of the loan or a consumer, where nothing was before."""
        return self._loan.account.left == 0 < self.account.left or any(
            self._found[name].account.left == 0 < consumer.account.left
            for name, consumer in self._consumers.items()
        )

    def write(self) -> None:
        """Write everything that has changed; call it once, at the end of the decision."""
        tx = self._entry.tx
        if self.account != self._loan.account:
            tx.set_loan_account(self._loan.loan, self.account)
        if self.rate_full_at != self._loan.rate_full_at:
            tx.set_loan_terms(dataclasses.replace(self._loan, rate_full_at=self.rate_full_at))
        for name, consumer in self._consumers.items():
            found = self._found[name]
            if (consumer.account, consumer.used) != (found.account, found.used):
                tx.set_consumer_account(name, consumer.account, consumer.used)
            if (consumer.period, consumer.rate_full_at) != (found.period, found.rate_full_at):
                tx.set_consumer_terms(consumer)
        if self._turned:
            self._entry.push_roster(self._loan.loan)
            self._entry.push(self._loan.loan, CreditsFreed(left=self.account.left))


def _room(rate: Rate | None, full_at: datetime | None, now: datetime, price: int) -> int:
    room = rates.available(rate, full_at, now)
    # less than a query costs would be leased for nothing, and be gone from the rate
    return 0 if room < min(price, rates.most(rate)) else room


def _settled(account: Account, row: LeaseRow, credits: int, used: int) -> Account:
    if row.state is LeaseState.FORFEITED:
        charged = row.refunded is not None or row.written_off is not None
        return budget.settle_late(account, credits, used, refunded=charged)
    return budget.settle(account, credits, used)
