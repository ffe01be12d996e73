"""
Reports: settle what is closed, lease what is wanted, in one decision.

Rule 1: reports of a session are numbered one by one. The last number again, with the same report,
        gives the same answer and grants nothing; any other number is a conflict.
Rule 2: settlements are applied before a lease is granted, in the same transaction.
Rule 3: a lease is granted only under an active loan, to a live session that is not overdue to
        attest again; it is the smaller the longer the session's platform is out of date.
Rule 4: a report that an attested enclave would never send ends its session; what it holds is
        charged unless it settles properly.
Rule 5: reports that arrive together become durable together, in one commit. Each is whole or not
        at all by itself, and none is answered before the commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian import ageing, budget, rates, statements
from aigovtool.custodian.ledger import (
    Entry,
    Ledger,
    is_active,
    loan_of,
    session_of,
    standing_of,
)
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.custodian.records import LeaseRow, Loan, Session
from aigovtool.custodian.replicas import check_ours
from aigovtool.custodian.sessions import end_session, place_of
from aigovtool.custodian.settling import Books, OpenedSettlement, open_settlements
from aigovtool.errors import (
    AIGovToolError,
    ConflictError,
    MalformedError,
    RefusedError,
    VerificationError,
)
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, new_id, sha256
from aigovtool.telemetry.traces import traced
from aigovtool.wire.codec import Message, decode, encode
from aigovtool.wire.control import CreditsFreed, Lease, Report, ReportAnswer, Want

MAX_OPEN_LEASES = 256  # of one session, not settled: more than any enclave that settles holds
_MISBEHAVIOUR = (MalformedError, VerificationError, RefusedError, ConflictError)


_Sharing = dict[LoanId, int]
"""How many sessions share what a loan has left. Counted once for all reports of one commit: for
each of them it would cost more than the report, and who came or went in between changes only how
evenly the rest is shared."""

_SECOND = timedelta(seconds=1)
_SLACK = timedelta(seconds=1)  # a lease of duration 0 is used a moment after it is granted


class Decision(Message, frozen=True, kw_only=True):
    """What was decided on a report: its answer, but for the statement, which is signed anew."""

    settled: tuple[LeaseId, ...]
    lease: Lease | None
    left: int
    leased_elsewhere: int
    consumer_left: dict[ConsumerId, int]
    largest_lease: int | None = None
    rate_wait_s: float = 0.0
    consumer_wait_s: dict[ConsumerId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Wish:
    """A `Want` that was read: in all, and for each consumer with a budget or rate of its own."""

    credits: int
    capped: Mapping[ConsumerId, int]
    at_least: int
    at_least_of: Mapping[ConsumerId, int]
    held: Mapping[ConsumerId, int]

    @property
    def uncapped(self) -> int:
        return self.credits - sum(self.capped.values())


@dataclass(frozen=True, slots=True)
class _Applied:
    """A report whose decision is in the ledger, or will be with the commit: what answers it."""

    number: int
    session: Session
    loan: Loan
    decision: Decision
    now: datetime


class Leasing:
    """Answers the reports of sessions."""

    def __init__(self, *, ledger: Ledger, key: SigningKey) -> None:
        self._ledger = ledger
        self._key = key
        self._suspended = False

    def suspend(self) -> None:
        """Grant nothing more: the server is about to end. Settlements are still taken."""
        self._suspended = True

    def report(self, session_id: SessionId, report: Report) -> ReportAnswer:
        """
        Apply *report* once and answer it.

        Raises:
            MalformedError, VerificationError, RefusedError, ConflictError: a report that an
                attested enclave would not send; nothing of it was applied, an event says so,
                and the session has ended.
            UnavailableError: it may have been applied or not; the same report again is answered.
        """
        try:
            opened = self._open(session_id, report)
            with self._ledger.write() as entry:
                applied = self._apply(entry, session_id, report, opened, {})
            return self._answer(applied)
        except _MISBEHAVIOUR as error:
            self._refuse(session_id, report, error)
            raise

    @traced("reports")
    def report_all(
        self, reports: Sequence[tuple[SessionId, Report]]
    ) -> list[ReportAnswer | AIGovToolError]:
        """
        Apply several reports in one commit and answer each, or say what `report` would raise.

        Each is whole or not at all, whatever becomes of the others. When they cannot be made
        durable together, each is tried alone: one that was kept after all is a repetition then.
        """
        if len(reports) > 1:
            with contextlib.suppress(Exception):  # what it was, the report it was of says alone
                return self._report_together(reports)
        return [self._report_alone(*each) for each in reports]

    def _report_together(
        self, reports: Sequence[tuple[SessionId, Report]]
    ) -> list[ReportAnswer | AIGovToolError]:
        opened: list[list[OpenedSettlement] | AIGovToolError] = []
        for each in reports:
            try:
                opened.append(self._open(*each))
            except _MISBEHAVIOUR as error:
                opened.append(error)
        outcomes: list[_Applied | AIGovToolError] = []
        sharing: _Sharing = {}
        with self._ledger.write_together() as together:
            for (session_id, report), settlements in zip(reports, opened, strict=True):
                if isinstance(settlements, AIGovToolError):
                    outcomes.append(settlements)
                    continue
                try:
                    with together.decide() as entry:
                        applied = self._apply(entry, session_id, report, settlements, sharing)
                except _MISBEHAVIOUR as error:
                    outcomes.append(error)
                else:
                    outcomes.append(applied)
        for (session_id, report), outcome in zip(reports, outcomes, strict=True):
            if isinstance(outcome, AIGovToolError):
                self._refuse(session_id, report, outcome)
        return [
            each if isinstance(each, AIGovToolError) else self._answer(each) for each in outcomes
        ]

    def _report_alone(self, session_id: SessionId, report: Report) -> ReportAnswer | AIGovToolError:
        try:
            return self.report(session_id, report)
        except AIGovToolError as error:
            return error

    def _open(self, session_id: SessionId, report: Report) -> list[OpenedSettlement]:
        """Check a report's signatures, before the ledger is held."""
        with self._ledger.read() as tx:
            known = session_of(tx, session_id)
        return open_settlements(report.settlements, known)

    def _apply(
        self,
        entry: Entry,
        session_id: SessionId,
        report: Report,
        opened: list[OpenedSettlement],
        sharing: _Sharing,
    ) -> _Applied:
        digest = sha256(encode(report))
        session = session_of(entry.tx, session_id)
        check_ours(session, self._ledger.replica)
        loan = loan_of(entry.tx, session.loan)
        if report.number == session.last_report and digest == session.report_sha256:
            decision = decode(session.decision, Decision)
        else:
            decision = self._decide(entry, session, loan, report, opened=opened, sharing=sharing)
            entry.tx.set_session_report(session_id, report.number, digest, encode(decision))
        return _Applied(report.number, session, loan, decision, entry.now)

    def _answer(self, applied: _Applied) -> ReportAnswer:
        decision = applied.decision
        statement = statements.state(
            applied.session,
            applied.loan,
            lease=None if decision.lease is None else decision.lease.lease,
            left=decision.left,
            head=self._ledger.head,
            now=applied.now,
            key=self._key,
        )
        return ReportAnswer(
            number=applied.number,
            settled=decision.settled,
            lease=decision.lease,
            left=decision.left,
            leased_elsewhere=decision.leased_elsewhere,
            consumer_left=decision.consumer_left,
            largest_lease=decision.largest_lease,
            rate_wait_s=decision.rate_wait_s,
            consumer_wait_s=decision.consumer_wait_s,
            statement=statement,
        )

    def _decide(
        self,
        entry: Entry,
        session: Session,
        loan: Loan,
        report: Report,
        *,
        opened: list[OpenedSettlement],
        sharing: _Sharing,
    ) -> Decision:
        if report.number != session.last_report + 1:
            raise ConflictError(
                "a report out of order",
                code="report.number",
                expected=f"number {session.last_report + 1}, or {session.last_report} repeated",
                came=f"number {report.number}",
            )
        books = Books(entry, loan)
        actor = session.session
        settled = tuple(books.settle(each, session, actor=actor) for each in opened)
        open_leases, own_credits, _ = entry.tx.open_of_session(session.session)
        allowed = _allowance(entry, session, loan)
        row = None
        if report.want is not None:
            wish = _read_want(report.want, books, entry.now)
            lives = session.state is SessionState.LIVE and is_active(loan, entry.now)
            has_room = open_leases < MAX_OPEN_LEASES and not self._suspended
            if lives and has_room and allowed is not None:
                # what running queries held until this very report was counted in the rates before
                books.counted(wish.held, at_most=books.account.left - loan.account.left)
                row = _lease(
                    entry,
                    session,
                    loan,
                    number=report.number,
                    wish=wish,
                    allowed=allowed,
                    sharers=_sharers(entry, loan, sharing, among=open_leases > 0),
                    books=books,
                )
        if row is not None:
            own_credits += row.credits
        books.write()
        if books.freed:
            entry.push(loan.loan, CreditsFreed(left=books.account.left), but=session.session)
        return Decision(
            settled=settled,
            lease=None if row is None else _told(entry, loan, row),
            left=books.account.left,
            leased_elsewhere=books.account.leased - own_credits,
            consumer_left={
                consumer.consumer: consumer.account.left
                for consumer in books.known.values()
                if consumer.budgeted
            },
            largest_lease=None
            if allowed is None
            else min(allowed.max_credits, rates.most(loan.terms.limits.rate)),
            rate_wait_s=0.0 if report.want is None else books.rate_wait_s(report.want.at_least),
            consumer_wait_s={}
            if report.want is None
            else {
                name: wait_s
                for name in report.want.by_consumer
                if (wait_s := books.rate_wait_s_of(name, report.want.at_least_of.get(name, 0)))
            },
        )

    def _refuse(self, session_id: SessionId, report: Report, error: AIGovToolError) -> None:
        with self._ledger.write(while_held=True) as entry:
            session = entry.tx.session(session_id)
            if session is None:
                return
            entry.event(
                "report.refused",
                actor=session_id,
                loan=session.loan,
                session=session_id,
                number=report.number,
                reasons=[str(reason) for reason in error.reasons],
                codes=[reason.code for reason in error.reasons],
            )
            if session.state is not SessionState.ENDED:
                end_session(entry, session, f"it sent a report that was refused: {error}")


def _lease(
    entry: Entry,
    session: Session,
    loan: Loan,
    *,
    number: int,
    wish: _Wish,
    allowed: ageing.Allowance,
    sharers: int,
    books: Books,
) -> LeaseRow | None:
    """Grant what *allowed* and the *books* have of a wish, by the report of this number, if any."""
    left = books.account.left
    at_once = allowed.duration_s <= 0  # then it is used at once: there is nothing to share
    price = max(1, wish.at_least)
    limit = min(allowed.max_credits, books.rate_room(price))
    credits = budget.block(wish.credits, left, sharers, limit, left if at_once else price)
    caps: dict[ConsumerId, int] = {}
    for name, wanted in wish.capped.items():
        own = books.consumer(name).account.left if books.consumer(name).budgeted else left
        price = max(1, wish.at_least_of.get(name, 0))
        limit = min(credits, books.rate_room_of(name, price))
        cap = budget.block(wanted, own, sharers, limit, own if at_once else price)
        if cap:
            caps[name] = cap
    # what only capped consumers may use must not exceed what they have
    credits = min(credits, wish.uncapped + sum(caps.values()))
    if credits < 1:
        return None
    caps = {consumer: min(cap, credits) for consumer, cap in caps.items()}
    row = LeaseRow(
        lease=LeaseId(new_id("lease")),
        session=session.session,
        loan=loan.loan,
        number=number,
        credits=credits,
        duration_s=allowed.duration_s,
        granted=entry.now,
        expires=entry.now + timedelta(seconds=allowed.duration_s),
        caps=caps,
    )
    books.lease(row)
    entry.event(
        "lease.granted",
        actor=session.session,
        loan=loan.loan,
        session=session.session,
        lease=row.lease,
        credits=row.credits,
        caps=caps,
        left=books.account.left,
    )
    return row


def _sharers(entry: Entry, loan: Loan, sharing: _Sharing, *, among: bool) -> int:
    """Return how many sessions share the loan, the asking one with them; *among* them already?"""
    if loan.loan not in sharing:
        sharing[loan.loan] = entry.tx.count_sharers(loan.loan)
    return max(1, sharing[loan.loan] + (not among))


def _told(entry: Entry, loan: Loan, row: LeaseRow) -> Lease:
    """Return what an enclave is told of its lease."""
    place, sharers = place_of(entry, loan, row.session)
    ending = entry.tx.consumers_ending(row.loan, row.expires + _SLACK)
    return Lease(
        lease=row.lease,
        credits=row.credits,
        caps=dict(row.caps),
        duration_s=row.duration_s,
        ends_s={name: (ends - entry.now) / _SECOND for name, ends in ending.items()},
        place=place,
        sharers=sharers,
    )


def _allowance(entry: Entry, session: Session, loan: Loan) -> ageing.Allowance | None:
    standing = standing_of(entry.tx, session.session)
    if ageing.is_overdue(standing.appraised, loan.terms.reattest_interval_s, entry.now):
        return None
    duration_s = loan.terms.lease_duration_s
    if loan.terms.expires is not None:  # no lease outlives its loan, whatever clock an enclave has
        duration_s = min(duration_s, (loan.terms.expires - entry.now) / _SECOND)
    return ageing.allowance(
        standing.grace,
        entry.now,
        lease_duration_s=duration_s,
        max_lease_credits=loan.terms.max_lease_credits,
    )


def _read_want(want: Want, books: Books, now: datetime) -> _Wish:
    """
    Read a wish: `credits` in all, those of `by_consumer` among them.

    Consumers that are blocked or past their date get nothing, and those without a budget or a rate
    of their own need no cap.

    Raises:
        MalformedError: a negative wish.
    """
    least = [want.at_least, *want.at_least_of.values(), *want.held.values()]
    if min(want.credits, *least, *want.by_consumer.values()) < 0:
        raise MalformedError("a wish for less than nothing", code="report.want")
    capped: dict[ConsumerId, int] = {}
    refused = 0
    for consumer_id, credits in want.by_consumer.items():
        consumer = books.consumer(consumer_id)
        if not consumer.may_ask(now):
            refused += credits
        elif consumer.capped:
            capped[consumer_id] = credits
    total = max(want.credits - refused, sum(capped.values()))
    return _Wish(
        credits=total,
        capped=capped,
        at_least=want.at_least,
        at_least_of=want.at_least_of,
        held=want.held,
    )
