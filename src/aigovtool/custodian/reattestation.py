"""
Sessions that live long prove again what they run on.

1. When the loan's interval is over, the session is asked for evidence that commits to a fresh
   nonce. The nonce is in the session's row before it is sent; a connection that opens while one is
   awaited gets another, and the one before is void.
2. The answer must be for that nonce, the session's own keys, this custodian and the loan, of the
   same kind and measurement as at enrolment, and acceptable under the loan's policy as of now. An
   answer that is not ends the session; an event says every reason.
3. An answer that came too late to be called fresh is not judged: another one is asked for.
4. A session that does not answer gets no lease (`ageing.is_overdue`) until it has.

A nonce is used up by whatever answers it.
"""

from __future__ import annotations

import dataclasses
import secrets
from datetime import datetime, timedelta

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.binding import NONCE_BYTES
from aigovtool.custodian.ageing import ANSWER_WITHIN_S, is_due, is_overdue, step_at
from aigovtool.custodian.appraisal import Appraiser, reasons_of
from aigovtool.custodian.archive import Exhibit, keep
from aigovtool.custodian.ledger import Entry, Ledger, is_active, loan_of, session_of, standing_of
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.custodian.records import CUSTODIAN, Loan, Session, Standing
from aigovtool.custodian.sessions import SWEEP_ROWS, end_session
from aigovtool.custodian.standing import note_age, renew_standing
from aigovtool.errors import AIGovToolError, AppraisalError, MalformedError, VerificationError
from aigovtool.ids import SessionId
from aigovtool.wire.control import CreditsFreed, Reattest, ReattestWanted

_SECOND = timedelta(seconds=1)
_REFUSALS = (MalformedError, VerificationError, AppraisalError)


class Reattestation:
    """Asks sessions for fresh evidence, judges it, and notes how they age."""

    def __init__(self, *, ledger: Ledger, appraiser: Appraiser) -> None:
        self._ledger = ledger
        self._appraiser = appraiser

    def connected(self, session_id: SessionId) -> None:
        """Ask a session that has just connected, if it is due or was asked before."""
        now = self._ledger.clock.now()
        with self._ledger.read() as tx:
            session, standing = session_of(tx, session_id), standing_of(tx, session_id)
            loan = loan_of(tx, session.loan)
        if standing.nonce is None and not _is_due(loan, standing, now=now):
            return
        with self._ledger.write() as entry:
            session, standing = session_of(entry.tx, session_id), standing_of(entry.tx, session_id)
            if session.state is SessionState.LIVE and is_active(loan, entry.now):
                _ask(entry, session, standing)

    def answer(self, session_id: SessionId, message: Reattest) -> None:
        """
        Take in fresh evidence.

        Raises:
            MalformedError, VerificationError, AppraisalError: it is not what was asked for, not
                genuine or not acceptable; an event says why, and the session has ended.
        """
        with self._ledger.read() as tx:
            session, standing = session_of(tx, session_id), standing_of(tx, session_id)
        if session.state is not SessionState.LIVE:
            return
        ear = ""
        try:
            _check_nonce(standing, message)
            if _is_late(standing, now=self._ledger.clock.now()):
                self._ask_anew(session, message)
                return
            appraised = self._appraiser.appraise(
                session.loan,
                nonce=message.nonce,
                keys=session.keys,
                evidence=message.evidence,
                endorsements=message.endorsements,
            )
            ear, result = appraised.ear, appraised.verdict
            if not isinstance(result, AttestationResult):
                raise result
            _check_same(session, result)
        except _REFUSALS as error:
            self._refuse(session_id, message, error, ear=ear)
            raise
        self._accept(session_id, message, result, exhibit=appraised.exhibit, ear=ear)

    def sweep(self) -> int:
        """
        Ask who is due, note who is overdue and who has aged.

        Returns:
            How many there were.
        """
        now = self._ledger.clock.now()
        with self._ledger.read() as tx:
            aged = [
                session
                for session in tx.ageing_sessions()
                if (standing := standing_of(tx, session)).step is not step_at(standing.grace, now)
            ]
            del aged[SWEEP_ROWS:]
            overdue = tx.overdue_sessions(now, SWEEP_ROWS)
            due = tx.sessions_to_ask(now, SWEEP_ROWS)
        if not (aged or overdue or due):
            return 0  # a sweep that finds nothing must not wait for the writers
        with self._ledger.write() as entry:
            for session_id in aged:
                session = session_of(entry.tx, session_id)
                if session.state is SessionState.LIVE:
                    note_age(entry, session, standing_of(entry.tx, session_id))
            for session_id in entry.tx.overdue_sessions(entry.now, SWEEP_ROWS):
                _note_overdue(entry, session_of(entry.tx, session_id))
            for session_id in entry.tx.sessions_to_ask(entry.now, SWEEP_ROWS):
                _ask(entry, session_of(entry.tx, session_id), standing_of(entry.tx, session_id))
        return len(aged) + len(overdue) + len(due)

    def _ask_anew(self, session: Session, message: Reattest) -> None:
        with self._ledger.write() as entry:
            standing = standing_of(entry.tx, session.session)
            _check_nonce(standing, message)
            entry.event(
                "reattestation.late",
                actor=session.session,
                loan=session.loan,
                session=session.session,
                asked=standing.asked,
                within_s=ANSWER_WITHIN_S,
            )
            _ask(entry, session, standing)

    def _accept(
        self,
        session_id: SessionId,
        message: Reattest,
        result: AttestationResult,
        *,
        exhibit: Exhibit,
        ear: str,
    ) -> None:
        with self._ledger.write() as entry:
            session, standing = session_of(entry.tx, session_id), standing_of(entry.tx, session_id)
            if session.state is not SessionState.LIVE:
                return
            _check_nonce(standing, message)
            loan = loan_of(entry.tx, session.loan)
            keep(entry, session_id, exhibit)
            entry.event(
                "reattestation.accepted",
                actor=session_id,
                loan=session.loan,
                session=session_id,
                platform_id=result.platform_id,
                tcb_status=result.tcb_status,
                advisories=result.advisories,
                warnings=result.warnings,
                alternative=result.alternative,
                ear=ear,
            )
            renew_standing(entry, session, standing, result)
            if is_overdue(standing.appraised, loan.terms.reattest_interval_s, entry.now):
                # it may have given up asking for leases
                entry.push(loan.loan, CreditsFreed(left=loan.account.left), only=session_id)

    def _refuse(
        self, session_id: SessionId, message: Reattest, error: AIGovToolError, *, ear: str
    ) -> None:
        with self._ledger.write() as entry:
            session, standing = session_of(entry.tx, session_id), standing_of(entry.tx, session_id)
            entry.event(
                "reattestation.refused",
                actor=session_id,
                loan=session.loan,
                session=session_id,
                tee=message.evidence.tee[:40],
                verdict=error.code,
                reasons=reasons_of(error),
                ear=ear,
            )
            for reason in error.reasons:
                if reason.code == "tcb.status":
                    entry.event(
                        "tcb.refused",
                        actor=CUSTODIAN,
                        loan=session.loan,
                        session=session_id,
                        short=reason.message,
                        expected=reason.expected,
                        came=reason.came,
                        window_ends=None if standing.grace is None else standing.grace.ends,
                    )
            entry.tx.set_standing(dataclasses.replace(standing, nonce=None, asked=None))
            if session.state is not SessionState.ENDED:
                end_session(entry, session, f"its fresh evidence was refused: {error}")


def _ask(entry: Entry, session: Session, standing: Standing) -> None:
    nonce = secrets.token_bytes(NONCE_BYTES)
    entry.tx.set_standing(dataclasses.replace(standing, nonce=nonce, asked=entry.now))
    entry.event(
        "reattestation.asked",
        actor=CUSTODIAN,
        loan=session.loan,
        session=session.session,
        appraised=standing.appraised,
    )
    wanted = ReattestWanted(nonce=nonce, answer_within_s=ANSWER_WITHIN_S)
    entry.push(session.loan, wanted, only=session.session)


def _note_overdue(entry: Entry, session: Session) -> None:
    standing = standing_of(entry.tx, session.session)
    entry.tx.set_standing(dataclasses.replace(standing, overdue=True))
    entry.event(
        "reattestation.overdue",
        actor=CUSTODIAN,
        loan=session.loan,
        session=session.session,
        appraised=standing.appraised,
        asked=standing.asked,
    )


def _is_due(loan: Loan, standing: Standing, *, now: datetime) -> bool:
    return is_due(standing.appraised, loan.terms.reattest_interval_s, now)


def _is_late(standing: Standing, *, now: datetime) -> bool:
    return standing.asked is not None and (now - standing.asked) / _SECOND > ANSWER_WITHIN_S


def _check_nonce(standing: Standing, message: Reattest) -> None:
    if standing.nonce is None or message.nonce != standing.nonce:
        raise VerificationError(
            "the evidence is not for a nonce that this session was asked to answer",
            code="reattestation.nonce",
            expected="nothing" if standing.nonce is None else standing.nonce.hex(),
            came=message.nonce[:NONCE_BYTES].hex() or "nothing",
            mend="answer each nonce once, with evidence made for it",
        )


def _check_same(session: Session, result: AttestationResult) -> None:
    expected = (session.tee, session.measurement)
    came = (result.tee.value, result.measurement)
    if came != expected:
        raise VerificationError(
            "the session's keys are in another enclave than the one that was released to",
            code="reattestation.enclave",
            expected=" ".join(expected),
            came=" ".join(came),
        )
