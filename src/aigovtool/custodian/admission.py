"""
Who may hold a loan's model: a session is opened, and a permit comes out of it.

Rule 1: the decision is made on the ledger as it is then, not as it was when the appraisal began.
Rule 2: a `ReleasePermit` exists only after the session's row is durable, and only this module makes
        one; the vault wraps nothing without it.
Rule 3: at most `max_enclaves` sessions can serve at one time. When all places are taken, a session
        that is disconnected and holds no lease that could still be served from gives way.
Rule 4: an enclave takes over its loan's new model in a session beside the one with the old model,
        under the same attested signing key. The two count as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.custodian.ageing import Step, step_at
from aigovtool.custodian.archive import Exhibit, keep
from aigovtool.custodian.ledger import Entry, Ledger, loan_of
from aigovtool.custodian.lifecycle import LoanState, SessionState, state_at
from aigovtool.custodian.records import Loan, Session
from aigovtool.custodian.sessions import lapse_session
from aigovtool.custodian.standing import open_standing
from aigovtool.errors import (
    LoanNotActiveError,
    PromiseBrokenError,
    RefusedError,
    UnavailableError,
)
from aigovtool.ids import LoanId, SessionId, new_id
from aigovtool.wire.enrolment import EnrolRequest

MAX_SOFTWARE_CHARACTERS = 200
_SECOND = timedelta(seconds=1)
_MADE_HERE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePermit:
    """
    The ledger's leave to seal one model's content key to one attested key.

    Args:
        hpke_key: 1216 bytes, attested.
        context: the report data to which the sealed secret is bound.
        proof: known to this module alone.
    """

    session: Session
    loan: Loan
    model_digest: bytes
    hpke_key: bytes
    context: bytes
    proof: object

    def __post_init__(self) -> None:
        if self.proof is not _MADE_HERE:
            raise PromiseBrokenError("a release permit that the ledger did not make")


def check_active(loan: Loan, now: datetime) -> None:
    """Raise LoanNotActiveError, with the loan's state, unless it is active at *now*."""
    state = state_at(loan.state, loan.terms.expires, now)
    if state is not LoanState.ACTIVE:
        why = f": {loan.state_reason}" if loan.state_reason else ""
        raise LoanNotActiveError(f"the loan is {state}{why}", came=state.value)


def _check_age(result: AttestationResult, now: datetime) -> None:
    if step_at(result.grace, now) is Step.REFUSED:
        raise RefusedError(
            "the platform is out of date, and the policy's grace is over",
            code="tcb.grace",
            expected="a time before " + (result.grace.ends.isoformat() if result.grace else ""),
            came=now.isoformat(),
            mend="the host's operator updates the platform",
        )


class Admission:
    """Opens sessions for enclaves whose evidence was accepted."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def admit(
        self,
        loan_id: LoanId,
        request: EnrolRequest,
        result: AttestationResult,
        context: bytes,
        *,
        exhibit: Exhibit,
        ear: str = "",
    ) -> ReleasePermit:
        """
        Open a session and permit the release of the loan's model to it.

        Args:
            result: of the appraisal of the request's evidence.
            context: the report data that the evidence commits to.
            exhibit: the evidence and what it was judged by, to be kept.
            ear: the token that says *result*, for the event; empty when there is none.

        Raises:
            LoanNotActiveError: the loan is not (or no longer) active.
            RefusedError: as many enclaves hold the loan as may, or the platform's grace has ended
                since it was appraised.
            UnavailableError: so they do, and one of them will give way soon.
        """
        with self._ledger.write() as entry:
            loan = loan_of(entry.tx, loan_id)
            check_active(loan, entry.now)
            _check_age(result, entry.now)
            self._make_room(entry, loan, request.keys.signing_key)
            session = Session(
                session=SessionId(new_id("session")),
                loan=loan_id,
                model=loan.model,
                state=SessionState.LIVE,
                keys=request.keys,
                tee=result.tee.value,
                measurement=result.measurement,
                software=request.software[:MAX_SOFTWARE_CHARACTERS],
                opened=entry.now,
                disconnected=entry.now,
                ended=None,
                end_reason="",
                last_report=0,
                report_sha256=b"",
                decision=b"",
            )
            entry.tx.insert_session(session)
            keep(entry, session.session, exhibit)
            entry.event(
                "appraisal.accepted",
                actor=session.session,
                loan=loan_id,
                session=session.session,
                tee=session.tee,
                simulated=result.simulated,
                measurement=result.measurement,
                platform_id=result.platform_id,
                tcb_status=result.tcb_status,
                advisories=result.advisories,
                warnings=result.warnings,
                alternative=result.alternative,
                ear=ear,
            )
            open_standing(entry, session, result)
            entry.event(
                "key.released",
                actor="custodian",
                loan=loan_id,
                session=session.session,
                model=loan.model.hex(),
            )
        return ReleasePermit(
            session=session,
            loan=loan,
            model_digest=loan.model,
            hpke_key=request.keys.hpke_key,
            context=context,
            proof=_MADE_HERE,
        )

    def _make_room(self, entry: Entry, loan: Loan, signing_key: bytes) -> None:
        live = _counted(entry.tx.live_sessions_of_loan(loan.loan), loan, signing_key)
        if len(live) < loan.terms.max_enclaves:
            return
        silent = [session for session in live if session.disconnected is not None]
        if not silent:
            raise RefusedError(
                "as many enclaves hold this loan as may",
                code="loan.max_enclaves",
                expected=f"fewer than {loan.terms.max_enclaves}",
                came=str(len(live)),
                mend="stop one of them, or ask the custodian for more",
            )
        ends = [entry.tx.open_of_session(session.session)[2] for session in silent]
        waits = [0.0 if end is None else (end - entry.now) / _SECOND for end in ends]
        soonest = min(waits)
        if soonest > 0:
            raise UnavailableError(
                "the enclave that holds this loan was lost and may still serve from its lease",
                code="loan.max_enclaves",
                retry_after_s=math.ceil(soonest),
            )
        lapse_session(entry, silent[waits.index(soonest)], "it gave way to a new enclave")


def _counted(live: Sequence[Session], loan: Loan, newcomer: bytes) -> list[Session]:
    """Return those that take a place, beside the newcomer with this signing key (Rule 4)."""
    taken_over = {one.keys.signing_key for one in live if one.model == loan.model} | {newcomer}
    return [
        one for one in live if one.model == loan.model or one.keys.signing_key not in taken_over
    ]
