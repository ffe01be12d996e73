"""
Sessions after their release: who connects, what ends them, what silence costs.

Rule 1: whoever connects proves that it holds the session's attested signing key.
Rule 2: a session that ended or found no room may connect only to settle what it holds.
Rule 3: a session whose model was replaced is ended when its time is over, unless it ends by itself.
Rule 4: a silent session lapses after its grace; its leases are forfeited when they too are over
        since that long. It lives again when it reconnects, if the loan has room for it.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import verify_signature
from aigovtool.custodian.ledger import Entry, Ledger, is_active, lease_of, loan_of, roster_of
from aigovtool.custodian.ledger import session_of as find_session
from aigovtool.custodian.lifecycle import (
    LoanState,
    SessionState,
    move_loan,
    move_session,
    state_at,
)
from aigovtool.custodian.records import CUSTODIAN, Loan, RequestState, Session, StopProofRow
from aigovtool.custodian.replicas import check_not_elsewhere
from aigovtool.custodian.settling import Books
from aigovtool.errors import ConflictError, NotFoundError, VerificationError
from aigovtool.ids import ConsumerId, SessionId
from aigovtool.wire.codec import Signed, open_signed
from aigovtool.wire.control import Hello, LoanChanged, MoreDecided, SessionEnded, StopProof, Welcome
from aigovtool.wire.enrolment import Terms

DECISIONS_TOLD_S = 600.0  # to enclaves that connect; those that were there remember as long
RECENT_REQUESTS = 1000  # among which recent decisions are looked for
RETIRE_GRACE = timedelta(seconds=10)  # for an enclave to end its session, and settle, by itself
SWEEP_ROWS = 200  # in one decision, so that a sweep never holds reports up for long


def terms_of(loan: Loan, now: datetime) -> Terms:
    """Return what the enclave itself enforces of a loan's terms."""
    expires = loan.terms.expires
    return Terms(
        lease_duration_s=loan.terms.lease_duration_s,
        wipe_after_s=loan.terms.wipe_after_s,
        expires=expires,
        expires_in_s=None if expires is None else (expires - now) / timedelta(seconds=1),
        limits=loan.terms.limits,
        tokens=loan.terms.token_price,
        shared_prefixes=loan.terms.shared_prefixes,
        extraction=loan.terms.extraction,
        evictable=loan.terms.evictable,
    )


def place_of(entry: Entry, loan: Loan, session: SessionId) -> tuple[int, int]:
    """Return the place of *session* among those that share limits on concurrency, and how many."""
    if loan.terms.limits.concurrency is None and not entry.tx.limits_concurrency(loan.loan):
        return 0, 1
    place, sharers = entry.tx.place_of_session(session)
    return place, max(1, sharers)


def end_session(entry: Entry, session: Session, reason: str, *, tell: bool = True) -> None:
    """End *session* for good and, unless it is going by itself, tell it so."""
    entry.tx.set_session_state(
        dataclasses.replace(
            session,
            state=move_session(session.state, SessionState.ENDED),
            disconnected=session.disconnected or entry.now,
            replica=None,
            ended=entry.now,
            end_reason=reason,
        )
    )
    entry.event(
        "session.ended",
        actor=CUSTODIAN,
        loan=session.loan,
        session=session.session,
        reason=reason,
    )
    if tell:
        entry.push(session.loan, SessionEnded(reason=reason), only=session.session, ends=True)


def lapse_session(entry: Entry, session: Session, reason: str) -> None:
    """Note that *session* is silent and no longer counts against its loan's terms."""
    entry.tx.set_session_state(
        dataclasses.replace(session, state=move_session(session.state, SessionState.LAPSED))
    )
    entry.event(
        "session.lapsed",
        actor=CUSTODIAN,
        loan=session.loan,
        session=session.session,
        reason=reason,
    )


def expire_loan(entry: Entry, loan: Loan) -> None:
    """Note that a loan is past its date, and stop its enclaves."""
    reason = "the loan has expired"
    entry.tx.set_loan_state(loan.loan, move_loan(loan.state, LoanState.EXPIRED), reason)
    entry.event("loan.expired", actor=CUSTODIAN, loan=loan.loan)
    entry.push(loan.loan, LoanChanged(state=LoanState.EXPIRED, reason=reason))


def _decided_lately(entry: Entry, loan: Loan) -> tuple[MoreDecided, ...]:
    """Return the last decision on each consumer that is not older than `DECISIONS_TOLD_S`."""
    last: dict[ConsumerId, MoreDecided] = {}
    decided = [
        (entry.now - one.decided, one)
        for one in entry.tx.requests_of_loan(loan.loan, RECENT_REQUESTS)
        if one.decided is not None
    ]
    for age, one in sorted(decided, key=lambda pair: pair[0]):
        if one.consumer is not None and age < timedelta(seconds=DECISIONS_TOLD_S):
            last.setdefault(
                one.consumer,
                MoreDecided(
                    consumer=one.consumer,
                    approved=one.state is RequestState.APPROVED,
                    credits=one.granted,
                    reason=one.decision_reason,
                    asked=one.reason,
                    age_s=max(0.0, age.total_seconds()),
                ),
            )
    return tuple(last.values())


class Sessions:
    """Opens and closes control connections, and sweeps up after those that fell silent."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def identify(self, hello: Hello, nonce: bytes) -> Session:
        """
        Check who is here.

        Raises:
            NotFoundError: there is no such session.
            VerificationError: not signed by the session's key.
        """
        with self._ledger.read() as tx:
            session = find_session(tx, hello.session)
        verify_signature(
            session.keys.signing_key,
            Label.CONTROL_HELLO,
            nonce + hello.session.encode(),
            hello.signature,
        )
        return session

    def connect(self, session_id: SessionId) -> tuple[Welcome, bool]:
        """
        Let in a session that `identify` returned, and say whether it may only settle.

        Raises:
            NotFoundError: it is over and has nothing to settle.
            UnavailableError: another replica holds its connection.
        """
        with self._ledger.write() as entry:
            session = find_session(entry.tx, session_id)
            check_not_elsewhere(entry, session, self._ledger.replica)
            loan = loan_of(entry.tx, session.loan)
            lives = session.state is SessionState.LIVE or self._revive(entry, session, loan)
            if not lives and not entry.tx.has_unsettled(session.session):
                raise NotFoundError(
                    "this session is over", came=session.end_reason or "silent for too long"
                )
            if lives:
                entry.tx.set_session_state(
                    dataclasses.replace(
                        session,
                        state=SessionState.LIVE,
                        disconnected=None,
                        replica=self._ledger.replica,
                    )
                )
            return self._welcome(entry, loan, session.session), not lives

    def _revive(self, entry: Entry, session: Session, loan: Loan) -> bool:
        room = _live(entry, loan) < loan.terms.max_enclaves
        if session.state is not SessionState.LAPSED or not room or not is_active(loan, entry.now):
            return False
        move_session(session.state, SessionState.LIVE)
        entry.event(
            "session.revived", actor=session.session, loan=loan.loan, session=session.session
        )
        return True

    def _welcome(self, entry: Entry, loan: Loan, session: SessionId) -> Welcome:
        place, sharers = place_of(entry, loan, session)
        return Welcome(
            state=state_at(loan.state, loan.terms.expires, entry.now),
            state_reason=loan.state_reason,
            terms=terms_of(loan, entry.now),
            roster=roster_of(entry.tx, loan.loan, entry.now),
            left=loan.account.left,
            model_digest=loan.model,
            retire_after_s=_left_s(loan.retires, entry.now),
            place=place,
            sharers=sharers,
            decided=_decided_lately(entry, loan),
        )

    def disconnect(self, session_id: SessionId) -> None:
        """Note that the session has no control connection any more."""
        with self._ledger.write(while_held=True) as entry:
            session = entry.tx.session(session_id)
            ours = session is not None and session.replica in (None, self._ledger.replica)
            if session is not None and ours and session.disconnected is None:
                entry.tx.set_session_state(
                    dataclasses.replace(session, disconnected=entry.now, replica=None)
                )

    def cloned(self, session_id: SessionId) -> None:
        """
        End a session of which two copies are connected; a running enclave was copied.

        Each copy holds the leases that there were, so up to so much was served beyond them. What
        one of them settles is taken; the other contradicts it, which is an event of its own.
        """
        with self._ledger.write(while_held=True) as entry:
            session = find_session(entry.tx, session_id)
            if session.state is SessionState.ENDED:
                return
            leases, credits, _ = entry.tx.open_of_session(session_id)
            entry.event(
                "session.cloned",
                actor=CUSTODIAN,
                loan=session.loan,
                session=session_id,
                leases=leases,
                credits=credits,
            )
            end_session(entry, session, "two copies of it were connected at one time: a clone")

    def stopped(self, session_id: SessionId, proof: Signed) -> None:
        """
        Record a session's proof that key and model are gone, and end it.

        Raises:
            VerificationError: not signed by the session, or about another one.
            ConflictError: another proof was recorded before.
        """
        with self._ledger.write(while_held=True) as entry:
            session = find_session(entry.tx, session_id)
            said = open_signed(
                proof, StopProof, public_key=session.keys.signing_key, label=Label.STOP_PROOF
            )
            if (said.loan, said.session) != (session.loan, session.session):
                raise VerificationError(
                    "a proof of wiping that is about another session",
                    code="stop_proof.session",
                    expected=f"{session.loan} {session.session}",
                    came=f"{said.loan} {said.session}",
                )
            recorded = entry.tx.stop_proof(session_id)
            if recorded is not None:
                if recorded.payload != proof.payload:
                    raise ConflictError(
                        "two different proofs of wiping by one session",
                        code="stop_proof.equivocation",
                    )
                return
            entry.tx.insert_stop_proof(
                StopProofRow(
                    session=session_id,
                    payload=proof.payload,
                    signature=proof.signature,
                    received=entry.now,
                )
            )
            entry.event(
                "session.stop_proof",
                actor=session_id,
                loan=session.loan,
                session=session_id,
                reason=said.reason,
                receipts=said.receipts,
                cancelled=said.cancelled,
                wiped=said.wiped,
            )
            if session.state is not SessionState.ENDED:
                end_session(entry, session, f"it wiped key and model: {said.reason}", tell=False)

    def sweep(self) -> int:
        """
        Expire loans past their date, forfeit leases, and end or lapse sessions whose time is over.

        Returns:
            How many there were; as many as `SWEEP_ROWS` of a kind, and there may be more.
        """
        if not _due(self._ledger):
            return 0
        with self._ledger.write() as entry:
            expired = entry.tx.loans_past_date(entry.now)
            for loan_id in expired:
                expire_loan(entry, loan_of(entry.tx, loan_id))
            leases = entry.tx.leases_to_forfeit(entry.now, SWEEP_ROWS)
            for lease_id in leases:
                row = lease_of(entry.tx, lease_id)
                books = Books(entry, loan_of(entry.tx, row.loan))
                books.forfeit(row, actor=CUSTODIAN)
                books.write()
            retired = entry.tx.retired_sessions(entry.now - RETIRE_GRACE, SWEEP_ROWS)
            for session_id in retired:
                end_session(entry, find_session(entry.tx, session_id), "its model was replaced")
            silent = entry.tx.silent_sessions(entry.now, SWEEP_ROWS)
            for session_id in silent:
                lapse_session(entry, find_session(entry.tx, session_id), "silent past its grace")
        return len(expired) + len(leases) + len(retired) + len(silent)


def _left_s(until: datetime | None, now: datetime) -> float | None:
    return None if until is None else max(0.0, (until - now) / timedelta(seconds=1))


def _live(entry: Entry, loan: Loan) -> int:
    """Count, by an index, how many hold the loan: thousands may come back at one time."""
    return entry.tx.count_sessions(loan.loan).get(SessionState.LIVE, 0)


def _due(ledger: Ledger) -> bool:
    """Look first: a sweep that finds nothing must not wait for the writers."""
    now = ledger.clock.now()
    with ledger.read() as tx:
        return bool(
            tx.loans_past_date(now)
            or tx.leases_to_forfeit(now, 1)
            or tx.retired_sessions(now - RETIRE_GRACE, 1)
            or tx.silent_sessions(now, 1)
        )
