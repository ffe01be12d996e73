"""
Statements: a loan's account for a span of time, from the ledger's rows, with all that proves it.

Rule 1: no decision of the span is missing. Decisions are made one after the other, so when one
        that begins after the span has ended, all of the span are in the ledger.
Rule 2: what does not add up is not signed: the rows' sum as of now must be the loan's account.
Rule 3: a consumer is a pseudonym here: no name, and no word of a consumer's own, leaves the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.budget import Account
from aigovtool.custodian.ledger import Ledger, loan_of, session_of
from aigovtool.custodian.notices import notice_of
from aigovtool.custodian.records import (
    AppraisalRow,
    Event,
    GrantRow,
    GrantSeenRow,
    LeaseAccount,
    Loan,
    Session,
    StopProofRow,
)
from aigovtool.custodian.store.base import Reading
from aigovtool.errors import MalformedError, PromiseBrokenError, RefusedError
from aigovtool.ids import LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, decode, sign
from aigovtool.wire.control import Settlement
from aigovtool.wire.statement import (
    MAX_LEASES,
    MAX_STATEMENT_BYTES,
    AppraisalLine,
    Balance,
    DecisionLine,
    GrantLine,
    LeaseLine,
    Received,
    SessionLine,
    Statement,
    write_file,
)

EVENTS_AT_ONCE = 1000
_TOLD = ("loan.", "consumer.", "session.", "ledger.", "log.")  # kinds of decisions
_DETAILS = (
    "reason", "number", "unit", "began", "withdrawn", "granted", "receipts", "cancelled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Span:
    begin: datetime
    end: datetime

    def __contains__(self, time: datetime | None) -> bool:
        return time is not None and self.begin <= time < self.end

    def by_end(self, time: datetime | None) -> datetime | None:
        """Return *time* unless it is after the span."""
        return time if time is not None and time < self.end else None


class Accounting:
    """Draws up and signs statements."""

    def __init__(self, *, ledger: Ledger, key: SigningKey) -> None:
        self._ledger = ledger
        self._key = key

    def statement(self, loan_id: LoanId, *, begin: datetime, end: datetime) -> bytes:
        """
        Return the file of a loan's statement from *begin* to *end*, or to now if that is earlier.

        Raises:
            NotFoundError: no such loan.
            MalformedError: the span is empty, or in the future.
            RefusedError: too much happened in it for one statement.
            PromiseBrokenError: the ledger does not add up; nothing was signed.
        """
        with self._ledger.write() as entry:  # Rule 1
            now = entry.now
        span = _Span(begin, min(end, now))
        if span.begin >= span.end:
            raise MalformedError(
                "a statement's span is empty, or in the future",
                code="statement.span",
                expected=f"a begin before its end and before {now:%FT%TZ}",
                came=f"{begin.isoformat()} to {end.isoformat()}",
            )
        with self._ledger.read() as tx:
            loan = loan_of(tx, loan_id)
            _check_sum(tx, loan)
            statement, archive = self._draw_up(tx, loan, span, now)
        file = write_file(sign(statement, self._key, Label.STATEMENT), archive)
        if len(file) > MAX_STATEMENT_BYTES:
            raise _too_much(f"{len(file)} bytes", f"{MAX_STATEMENT_BYTES} bytes")
        return file

    def _draw_up(
        self, tx: Reading, loan: Loan, span: _Span, now: datetime
    ) -> tuple[Statement, dict[bytes, bytes]]:
        leases = _leases(tx, loan.loan, span)
        names = dict.fromkeys(tx.sessions_between(loan.loan, span.begin, span.end))
        names |= dict.fromkeys(lease.session for lease in leases)
        grants, signers = self._grants(tx, loan.loan, span)
        names |= dict.fromkeys(signers)
        sessions = tuple(_session(tx, session_of(tx, name), span) for name in names)
        model = tx.model(loan.model)
        if model is None:
            raise PromiseBrokenError("a loan of a model that is not there")
        archive = {sha256(model.manifest): model.manifest}
        for digest in _documents(sessions):
            archive[digest] = tx.document(digest)
        used: dict[str, int] = {}
        for lease in leases:
            if lease.settlement is not None and lease.settlement.received in span:
                settlement = decode(lease.settlement.signed.payload, Settlement)
                for consumer, credits in settlement.by_consumer.items():
                    used[consumer] = used.get(consumer, 0) + credits
        statement = Statement(
            custodian_key=self._key.public_key,
            loan=loan.loan,
            model_digest=loan.model,
            manifest=sha256(model.manifest),
            begin=span.begin,
            end=span.end,
            issued=now,
            opening=_balance(tx.balance_at(loan.loan, span.begin)),
            closing=_balance(tx.balance_at(loan.loan, span.end)),
            used=used,  # type: ignore[arg-type]
            grants=grants,
            leases=leases,
            sessions=sessions,
            decisions=tuple(_decisions(tx, loan.loan, span)),
        )
        return statement, archive

    def _grants(
        self, tx: Reading, loan: LoanId, span: _Span
    ) -> tuple[tuple[GrantLine, ...], list[SessionId]]:
        """Return the grants of a span, and the sessions that counter-signed them."""
        lines, signers = [], []
        told = tx.told_between(loan, span.begin, span.end)
        for row, grant in zip(tx.grants_between(loan, span.begin, span.end), told, strict=True):
            seen = tx.grant_seen(grant.number)
            if seen is not None and span.by_end(seen.received) is None:
                seen = None
            if seen is not None:
                signers.append(seen.session)
            lines.append(_grant(row, notice_of(grant, self._key), seen))
        return tuple(lines), signers


def _check_sum(tx: Reading, loan: Loan) -> None:
    """Hold the sum of all moves against the account, which decisions keep."""
    moves = tx.balance_at(loan.loan, datetime.max.replace(tzinfo=loan.created.tzinfo))
    if moves != loan.account:
        raise PromiseBrokenError(
            "the ledger's rows do not add up to the loan's account",
            code="statement.sum",
            expected=repr(loan.account),
            came=repr(moves),
            mend="nothing was signed: compare the ledger with its log and its backups",
        )


def _balance(account: Account) -> Balance:
    return Balance(
        granted=account.granted,
        left=account.left,
        leased=account.leased,
        spent=account.spent,
        forfeited=account.forfeited,
    )


def _grant(row: GrantRow, notice: Signed, seen: GrantSeenRow | None) -> GrantLine:
    return GrantLine(
        time=row.created,
        credits=row.credits,
        kind=row.kind.value,
        consumer=row.consumer,
        lease=row.lease,
        actor=row.actor,
        reason=row.reason,
        notice=notice,
        seen=None
        if seen is None
        else Received(
            signed=Signed(payload=seen.payload, signature=seen.signature), received=seen.received
        ),
    )


def _leases(tx: Reading, loan: LoanId, span: _Span) -> tuple[LeaseLine, ...]:
    found = tx.leases_between(loan, span.begin, span.end, MAX_LEASES + 1)
    if len(found) > MAX_LEASES:
        raise _too_much("more", f"{MAX_LEASES} leases")
    # a reconciliation enters leases that are over when they begin; so are those of duration 0
    instant = any(row.granted == row.expires for row in found)
    recovered = frozenset(tx.recovered_leases(loan) if instant else ())
    lines = []
    for row in found:
        # as it was at the end of the span
        received = span.by_end(row.received)
        then = replace(
            row,
            settlement=None if received is None else row.settlement,
            received=received,
            forfeited=span.by_end(row.forfeited),
            refunded=span.by_end(row.refunded),
            written_off=span.by_end(row.written_off),
        )
        if _belongs(then, span):
            lines.append(_lease(then, recovered=row.lease in recovered))
    return tuple(lines)


def _belongs(row: LeaseAccount, span: _Span) -> bool:
    """Whether a lease was unsettled at the beginning, or anything happened to it since."""
    moved = any(time in span for time in (row.granted, row.received, row.forfeited, row.refunded))
    return moved or (row.received is None and row.forfeited is None)


def _lease(row: LeaseAccount, *, recovered: bool) -> LeaseLine:
    settled = row.settlement is not None and row.received is not None
    return LeaseLine(
        lease=row.lease,
        session=row.session,
        credits=row.credits,
        granted=row.granted,
        expires=row.expires,
        settlement=_received(row.settlement, row.received) if settled else None,
        forfeited=row.forfeited,
        refunded=row.refunded,
        written_off=row.written_off,
        recovered=recovered,
    )


def _received(signed: Signed | None, received: datetime | None) -> Received:
    assert signed is not None
    assert received is not None
    return Received(signed=signed, received=received)


def _session(tx: Reading, row: Session, span: _Span) -> SessionLine:
    ended = span.by_end(row.ended)
    before = tx.settlements_before(row.session, span.begin)
    return SessionLine(
        session=row.session,
        model_digest=row.model,
        keys=row.keys,
        tee=row.tee,
        measurement=row.measurement,
        opened=row.opened,
        ended=ended,
        end_reason=row.end_reason if ended is not None else "",
        appraisals=tuple(map(_appraisal, _appraisals(tx, row.session, span))),
        before=max(before, key=lambda each: decode(each.payload, Settlement).number, default=None),
        stop_proof=_stop_proof(tx.stop_proof(row.session), span),
    )


def _stop_proof(row: StopProofRow | None, span: _Span) -> Received | None:
    if row is None or span.by_end(row.received) is None:
        return None
    return Received(
        signed=Signed(payload=row.payload, signature=row.signature), received=row.received
    )


def _appraisals(tx: Reading, session: SessionId, span: _Span) -> list[AppraisalRow]:
    rows = [row for row in tx.appraisals_of_session(session) if row.judged < span.end]
    earlier = [row for row in rows if row.judged < span.begin]
    return earlier[-1:] + rows[len(earlier) :]


def _appraisal(row: AppraisalRow) -> AppraisalLine:
    return AppraisalLine(
        nonce=row.nonce,
        judged=row.judged,
        tee=row.tee,
        policy=row.policy,
        evidence=dict(row.evidence),
        endorsements=dict(row.endorsements),
    )


def _documents(sessions: Iterable[SessionLine]) -> Iterator[bytes]:
    for session in sessions:
        for line in session.appraisals:
            yield line.policy
            yield from line.evidence.values()
            yield from line.endorsements.values()


def _decisions(tx: Reading, loan: LoanId, span: _Span) -> Iterator[DecisionLine]:
    after = 0
    while events := tx.events_between(loan, span.begin, span.end, after, EVENTS_AT_ONCE):
        for event in events:
            if event.kind.startswith(_TOLD):
                yield _decision(event)
        after = events[-1].number


def _decision(event: Event) -> DecisionLine:
    detail = msgspec.json.decode(event.detail, type=dict[str, object])
    return DecisionLine(
        time=event.time,
        kind=event.kind,
        actor=event.actor,
        session=event.session,
        consumer=event.consumer,
        detail={name: str(detail[name]) for name in _DETAILS if detail.get(name) is not None},
    )


def _too_much(came: str, most: str) -> RefusedError:
    return RefusedError(
        "too much happened for one statement",
        code="statement.size",
        expected=f"at most {most}",
        came=came,
        mend="ask for shorter spans, one after the other: each opens with the balance that the one "
        "before it closed with",
    )
