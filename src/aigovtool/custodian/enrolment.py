"""
Enrolment: challenge, appraise, record, release.

1. The ticket's token names the loan; the request must name the same one.
2. The ledger is not held, nor by the statement of ours that the enclave shows; the loan is active.
3. The nonce was issued for this loan, is young, and is used up now.
4. The evidence is genuine, commits to this nonce, these keys, this custodian and this loan, and is
   acceptable under the loan's policy.
5. There is room for the session. Its row, and the events that say why, become durable.
6. Only then is the content key sealed to the attested key.

A refusal at 3 or 4 is an event with every reason; the enclave gets the same reasons. The event of
an appraisal, of a refusal too, holds the verdict as a signed token (`verdicts`).
"""

from __future__ import annotations

from collections.abc import Callable

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.custodian.admission import Admission, ReleasePermit, check_active
from aigovtool.custodian.appraisal import Appraiser, reasons_of
from aigovtool.custodian.challenges import CHALLENGE_LIFE_S, Challenges
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.records import Loan
from aigovtool.custodian.tokens import hash_token
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    NotFoundError,
    UnauthenticatedError,
    VerificationError,
)
from aigovtool.telemetry.traces import traced
from aigovtool.wire.codec import Signed
from aigovtool.wire.enrolment import Challenge, ChallengeRequest, EnrolRequest, Release


class Enrolment:
    """Leads an enclave from its ticket to its release."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        challenges: Challenges,
        admission: Admission,
        release: Callable[[ReleasePermit], Release],
        appraiser: Appraiser,
        shown: Callable[[Signed], object],
    ) -> None:
        self._ledger = ledger
        self._challenges = challenges
        self._admission = admission
        self._release = release
        self._appraiser = appraiser
        self._shown = shown

    def loan_of_ticket(self, token: str) -> Loan:
        """Return the loan whose ticket holds *token*; raises UnauthenticatedError."""
        with self._ledger.read() as tx:
            loan = tx.loan_of_token(hash_token(token))
        if loan is None:
            raise UnauthenticatedError(
                "no loan has a ticket with this token",
                mend="ask the custodian for a new loan ticket",
            )
        return loan

    def challenge(self, token: str, request: ChallengeRequest) -> Challenge:
        """
        Issue a nonce.

        Raises:
            UnauthenticatedError: an unknown token.
            NotFoundError: the ticket is of another loan.
            LoanNotActiveError: the loan is stopped, expired or closed.
            UnavailableError: the ledger is held.
        """
        loan = self._named(token, request)
        self._ledger.check_not_held()
        check_active(loan, self._ledger.clock.now())
        return Challenge(nonce=self._challenges.issue(loan.loan), valid_s=CHALLENGE_LIFE_S)

    @traced("enrolment")
    def enrol(self, token: str, request: EnrolRequest) -> Release:
        """
        Appraise an enclave and release the model's key to it.

        Raises:
            UnauthenticatedError, NotFoundError, LoanNotActiveError: as `challenge`.
            MalformedError: keys, evidence or endorsements cannot be read.
            VerificationError: a nonce that is not good, or evidence that is not genuine or was
                made for something else.
            AppraisalError: genuine evidence that the loan's policy does not accept.
            RefusedError, UnavailableError: there is no room for another enclave.
            UnavailableError: the ledger is held.
        """
        loan = self._named(token, request)
        if request.statement is not None:
            self._shown(request.statement)
        self._ledger.check_not_held()
        check_active(loan, self._ledger.clock.now())
        try:
            self._challenges.redeem(loan.loan, request.nonce)
            appraised = self._appraiser.appraise(
                loan.loan,
                nonce=request.nonce,
                keys=request.keys,
                evidence=request.evidence,
                endorsements=request.endorsements,
            )
        except (MalformedError, VerificationError) as error:
            self._note_refusal(loan, request, error)
            raise
        verdict, ear = appraised.verdict, appraised.ear
        if not isinstance(verdict, AttestationResult):
            self._note_refusal(loan, request, verdict, ear=ear)
            raise verdict
        permit = self._admission.admit(
            loan.loan, request, verdict, appraised.context, exhibit=appraised.exhibit, ear=ear
        )
        return self._release(permit)

    def _named(self, token: str, request: ChallengeRequest | EnrolRequest) -> Loan:
        loan = self.loan_of_ticket(token)
        if request.loan != loan.loan:
            raise NotFoundError(
                "this ticket is not of the loan that was named",
                code="loan.ticket",
                mend="use the loan ticket of that loan",
            )
        return loan

    def _note_refusal(
        self, loan: Loan, request: EnrolRequest, error: AIGovToolError, *, ear: str = ""
    ) -> None:
        with self._ledger.write() as entry:
            entry.event(
                "appraisal.refused",
                actor="enclave",
                loan=loan.loan,
                tee=request.evidence.tee[:40],
                verdict=error.code,
                reasons=reasons_of(error),
                ear=ear,
            )
