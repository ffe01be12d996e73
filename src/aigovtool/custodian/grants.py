"""
Making credits: grants, refunds, and requests for more that a person decides on.

Rule 1: a grant with an idempotency key is made once, however often it is asked for.
Rule 2: a refund is a new grant that names its forfeited lease and a reason, once for each lease.
Rule 3: a consumer has at most one open request; a second says how many wait by now, nothing else.
Rule 4: what is granted to a consumer's own budget does not add to the loan's; an approved request
        does so as far as the loan lacks it, or the approval would be worth nothing.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any

from aigovtool.custodian.ledger import (
    Entry,
    Ledger,
    consumer_of,
    lease_of,
    loan_of,
    session_of,
)
from aigovtool.custodian.lifecycle import LoanState, SessionState, state_at
from aigovtool.custodian.records import (
    BorrowerId,
    Consumer,
    GrantKind,
    GrantRow,
    LeaseState,
    Loan,
    MoreRequest,
    RequestId,
    RequestState,
    Waiting,
)
from aigovtool.custodian.settling import Books
from aigovtool.errors import ConflictError, MalformedError, NotFoundError, RefusedError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, new_id
from aigovtool.wire.control import CreditsFreed, MoreDecided, MoreWanted
from aigovtool.wire.words import plain

MAX_REQUEST_CREDITS = 1 << 40  # what a consumer may ask for; a person reads it
MAX_WAITING = 1 << 32  # queries at one enclave, which bounds them far below
MAX_WAITED_S = 366 * 86_400
_OVER = frozenset({LoanState.EXPIRED, LoanState.CLOSED})


def check_credits(credits: int) -> None:
    """Raise MalformedError unless one may ask for so many."""
    if not 1 <= credits <= MAX_REQUEST_CREDITS:
        raise MalformedError(
            "not a number of credits to ask for",
            expected=f"1 to {MAX_REQUEST_CREDITS}",
            came=str(credits),
        )


def open_request(
    entry: Entry,
    *,
    actor: str,
    loan: LoanId,
    credits: int,
    reason: str,
    session: SessionId | None = None,
    consumer: ConsumerId | None = None,
    borrower: BorrowerId | None = None,
    **detail: Any,
) -> MoreRequest:
    """Keep a request for more, for a person to decide; *detail* goes into its event."""
    request = MoreRequest(
        request=RequestId(new_id("request")),
        loan=loan,
        consumer=consumer,
        session=session,
        borrower=borrower,
        credits=credits,
        reason=plain(reason),
        state=RequestState.OPEN,
        granted=0,
        decision_reason="",
        created=entry.now,
        decided=None,
    )
    entry.tx.insert_request(request)
    entry.event(
        "request.opened",
        actor=actor,
        loan=loan,
        session=session,
        consumer=consumer,
        request=request.request,
        credits=request.credits,
        reason=request.reason,
        **detail,
    )
    return request


class Grants:
    """Adds credits to loans and to consumers' own budgets."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def grant(
        self,
        loan_id: LoanId,
        credits: int,
        *,
        actor: str,
        consumer: ConsumerId | None = None,
        reason: str = "",
        key: str | None = None,
    ) -> Loan:
        """
        Add *credits* to the loan, or to the own budget of *consumer*; return the loan as it is now.

        Raises:
            NotFoundError: no such loan, or consumer of it.
            MalformedError: not a number of credits that fits.
            RefusedError: the consumer has no budget of its own.
            ConflictError: the loan is over, or *key* was used for another grant.
        """
        with self._ledger.write() as entry:
            row = GrantRow(
                loan=loan_id,
                consumer=consumer,
                credits=credits,
                kind=GrantKind.GRANT,
                reason=reason,
                actor=actor,
                created=entry.now,
                key=key,
            )
            if key is not None and (made := entry.tx.grant_of_key(key)) is not None:
                if (made.loan, made.consumer, made.credits) != (loan_id, consumer, credits):
                    raise ConflictError("this idempotency key made another grant")
                return loan_of(entry.tx, loan_id)
            loan = _not_over(entry, loan_of(entry.tx, loan_id))
            books = Books(entry, loan)
            if consumer is None:
                books.grant(credits)
            else:
                books.grant_to(_budgeted(entry, loan, consumer).consumer, credits)
            self._made(entry, books, row)
            return loan_of(entry.tx, loan_id)

    def refund(self, lease_id: LeaseId, *, actor: str, reason: str) -> Loan:
        """
        Grant the credits of a forfeited lease again; return the loan as it is now.

        Raises:
            NotFoundError: no such lease.
            MalformedError: no reason was given.
            ConflictError: not forfeited, refunded already, or the loan is over.
        """
        if not reason.strip():
            raise MalformedError("a refund needs a reason", mend="add --reason TEXT")
        with self._ledger.write() as entry:
            lease = lease_of(entry.tx, lease_id)
            loan = _not_over(entry, loan_of(entry.tx, lease.loan))
            if lease.state is not LeaseState.FORFEITED or lease.refunded is not None:
                raise ConflictError(
                    f"the lease {lease_id} has nothing to refund",
                    code="lease.refund",
                    expected="forfeited and not refunded",
                    came="refunded before" if lease.refunded is not None else lease.state.value,
                )
            books = Books(entry, loan)
            books.grant(lease.credits)
            for consumer, cap in lease.caps.items():
                if books.consumer(consumer).budgeted:  # of a rate nothing is to be given back
                    books.grant_to(consumer, cap)
            entry.tx.set_lease_state(dataclasses.replace(lease, refunded=entry.now))
            self._made(
                entry,
                books,
                GrantRow(
                    loan=loan.loan,
                    consumer=None,
                    credits=lease.credits,
                    kind=GrantKind.REFUND,
                    reason=reason,
                    actor=actor,
                    created=entry.now,
                    lease=lease_id,
                ),
            )
            return loan_of(entry.tx, loan.loan)

    def want_more(self, session_id: SessionId, wanted: MoreWanted) -> RequestId | None:
        """
        Keep a consumer's request for more, or note who waits for the one that is open.

        Returns:
            The request; None when nobody waits any more, and none is open.

        Raises:
            NotFoundError: no such session, or consumer of its loan.
            MalformedError: not a number of credits that one may ask for, or of who waits.
            RefusedError: the session has ended, or the consumer is blocked.
        """
        if wanted.waiting:
            check_credits(wanted.credits)
        with self._ledger.write() as entry:
            waiting = _waiting(wanted, entry.now)
            session = session_of(entry.tx, session_id)
            consumer = _member(entry, session.loan, wanted.consumer)
            if session.state is not SessionState.LIVE or consumer.blocked:
                raise RefusedError("nothing can be asked for by an ended session or blocked key")
            found = entry.tx.open_request_of_consumer(session.loan, wanted.consumer)
            if found is not None:
                entry.tx.set_waiting(found.request, session_id, waiting)
                return found.request
            if not wanted.waiting:
                return None
            request = open_request(
                entry,
                actor=session_id,
                loan=session.loan,
                session=session_id,
                consumer=wanted.consumer,
                credits=wanted.credits,
                reason=wanted.reason,
                waiting=wanted.waiting,
            )
            entry.tx.set_waiting(request.request, session_id, waiting)
            return request.request

    def approve(
        self, request_id: RequestId, *, actor: str, credits: int | None = None, reason: str = ""
    ) -> MoreRequest:
        """
        Grant what was asked for, or *credits* instead.

        Raises:
            NotFoundError: no such request.
            ConflictError: decided before, or the loan is over.
            MalformedError: not a number of credits that fits.
        """
        with self._ledger.write() as entry:
            request = _open_request(entry, request_id)
            loan = _not_over(entry, loan_of(entry.tx, request.loan))
            granted = request.credits if credits is None else credits
            books = Books(entry, loan)
            budgeted = None  # whose own budget it is for, if anybody's
            if request.consumer is not None:
                consumer = _member(entry, loan.loan, request.consumer)
                budgeted = consumer.consumer if consumer.budgeted else None
            lacking = granted
            if budgeted is not None:
                books.grant_to(budgeted, granted)
                lacking = granted - books.account.left
            if lacking > 0:
                books.grant(lacking)
            decided = self._decide(
                entry, request, RequestState.APPROVED, granted, actor=actor, reason=reason
            )
            made: list[tuple[ConsumerId | None, int]] = [(None, lacking)]
            if budgeted is not None:
                made.append((budgeted, granted))
            for to, amount in made:
                if amount > 0:
                    entry.tx.insert_grant(
                        GrantRow(
                            loan=loan.loan,
                            consumer=to,
                            credits=amount,
                            kind=GrantKind.APPROVAL,
                            reason=f"{request_id}: {reason}",
                            actor=actor,
                            created=entry.now,
                        )
                    )
            books.write()
            _tell_freed(entry, books, loan.loan, roster=budgeted is not None)
            return decided

    def deny(self, request_id: RequestId, *, actor: str, reason: str) -> MoreRequest:
        """Refuse a request; raises NotFoundError, or ConflictError when it was decided before."""
        with self._ledger.write() as entry:
            request = _open_request(entry, request_id)
            return self._decide(entry, request, RequestState.DENIED, 0, actor=actor, reason=reason)

    def _decide(
        self,
        entry: Entry,
        request: MoreRequest,
        state: RequestState,
        granted: int,
        *,
        actor: str,
        reason: str,
    ) -> MoreRequest:
        reason = plain(reason)
        decided = dataclasses.replace(
            request, state=state, granted=granted, decision_reason=reason, decided=entry.now
        )
        entry.tx.set_request_decision(decided)
        entry.event(
            f"request.{state}",
            actor=actor,
            loan=request.loan,
            consumer=request.consumer,
            request=request.request,
            asked=request.credits,
            granted=granted,
            reason=reason,
        )
        if request.consumer is not None:  # whoever waits at an enclave; the borrower looks here
            entry.push(
                request.loan,
                MoreDecided(
                    consumer=request.consumer,
                    approved=state is RequestState.APPROVED,
                    credits=granted,
                    reason=reason,
                    asked=request.reason,
                ),
            )
        return decided

    def _made(self, entry: Entry, books: Books, row: GrantRow) -> None:
        entry.tx.insert_grant(row)
        books.write()
        entry.event(
            "credits.refunded" if row.kind is GrantKind.REFUND else "credits.granted",
            actor=row.actor,
            loan=row.loan,
            consumer=row.consumer,
            lease=row.lease,
            credits=row.credits,
            reason=row.reason,
            left=books.account.left,
        )
        _tell_freed(entry, books, row.loan, roster=row.consumer is not None)


def _waiting(wanted: MoreWanted, now: datetime) -> Waiting:
    """Return who waits at an enclave; raises MalformedError for numbers that cannot be."""
    if not (0 <= wanted.waiting <= MAX_WAITING and 0 <= wanted.waited_s <= MAX_WAITED_S):
        raise MalformedError(
            "not a number of queries that wait, or a time",
            expected=f"0 to {MAX_WAITING}, and at most {MAX_WAITED_S} s",
            came=f"{wanted.waiting}, {wanted.waited_s} s",
        )
    if not wanted.waiting:
        return Waiting()
    return Waiting(wanted.waiting, now - timedelta(seconds=wanted.waited_s))


def _tell_freed(entry: Entry, books: Books, loan: LoanId, *, roster: bool) -> None:
    if roster:
        entry.push_roster(loan)
    entry.push(loan, CreditsFreed(left=books.account.left))


def _not_over(entry: Entry, loan: Loan) -> Loan:
    state = state_at(loan.state, loan.terms.expires, entry.now)
    if state in _OVER:
        raise ConflictError(
            f"the loan {loan.loan} is {state}", code="loan.over", mend="make a new loan"
        )
    return loan


def _member(entry: Entry, loan: LoanId, consumer: ConsumerId) -> Consumer:
    found = consumer_of(entry.tx, consumer)
    if found.loan != loan:
        raise NotFoundError(f"the loan {loan} has no consumer {consumer!r}")
    return found


def _budgeted(entry: Entry, loan: Loan, consumer: ConsumerId) -> Consumer:
    found = _member(entry, loan.loan, consumer)
    if not found.budgeted:
        raise RefusedError(
            f"the consumer {consumer} has no budget of its own and shares the loan's",
            code="consumer.not_budgeted",
            mend="grant to the loan, or make a consumer with --budget",
        )
    return found


def _open_request(entry: Entry, request_id: RequestId) -> MoreRequest:
    request = entry.tx.request(request_id)
    if request is None:
        raise NotFoundError(
            f"there is no request {request_id!r}", mend="aigovtool custodian request list"
        )
    if request.state is not RequestState.OPEN:
        raise ConflictError(
            f"the request {request_id} was decided before",
            code="request.decided",
            came=request.state.value,
        )
    return request
