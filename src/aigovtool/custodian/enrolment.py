"""
Enrolment: challenge, appraise, record, release.

1. The ticket's token names the loan; the request must name the same one.
2. The loan is active.
3. The nonce was issued for this loan, is young, and is used up now.
4. The evidence is genuine, commits to this nonce, these keys, this custodian and this loan, and is
   acceptable under the loan's policy.
5. There is room for the session. Its row, and the events that say why, become durable.
6. Only then is the content key sealed to the attested key.

A refusal at 3 or 4 is an event with every reason; the enclave gets the same reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol, TypeVar

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.binding import EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.crypto.hpke import PUBLIC_KEY_BYTES as HPKE_KEY_BYTES
from aigovtool.crypto.signing import PUBLIC_KEY_BYTES as SIGNING_KEY_BYTES
from aigovtool.custodian.admission import Admission, ReleasePermit, check_active
from aigovtool.custodian.challenges import CHALLENGE_LIFE_S, Challenges
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.records import Loan
from aigovtool.custodian.tokens import hash_token
from aigovtool.errors import (
    AIGovToolError,
    AppraisalError,
    MalformedError,
    NotFoundError,
    UnauthenticatedError,
    VerificationError,
)
from aigovtool.ids import DIGEST_BYTES
from aigovtool.wire.enrolment import Challenge, ChallengeRequest, Documents, EnrolRequest, Release

T = TypeVar("T")


class Judge(Protocol):
    """`attestation.verify.judge`, and in tests what stands for it."""

    def __call__(
        self,
        evidence: Evidence,
        endorsements: Endorsements,
        policy: Policy,
        *,
        expected_report_data: bytes,
        now: datetime,
    ) -> AttestationResult: ...


class Enrolment:
    """Leads an enclave from its ticket to its release."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        challenges: Challenges,
        admission: Admission,
        release: Callable[[ReleasePermit], Release],
        judge: Judge,
        custodian_key: bytes,
    ) -> None:
        self._ledger = ledger
        self._challenges = challenges
        self._admission = admission
        self._release = release
        self._judge = judge
        self._custodian_key = custodian_key

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
        """
        loan = self._named(token, request)
        check_active(loan, self._ledger.clock.now())
        return Challenge(nonce=self._challenges.issue(loan.loan), valid_s=CHALLENGE_LIFE_S)

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
        """
        loan = self._named(token, request)
        check_active(loan, self._ledger.clock.now())
        try:
            context, result = self._appraise(loan, request)
        except (MalformedError, VerificationError, AppraisalError) as error:
            self._note_refusal(loan, request, error)
            raise
        permit = self._admission.admit(loan.loan, request, result, context)
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

    def _appraise(self, loan: Loan, request: EnrolRequest) -> tuple[bytes, AttestationResult]:
        self._challenges.redeem(loan.loan, request.nonce)
        keys = request.keys
        for what, value, size in (
            ("TLS key digest", keys.tls_spki_sha256, DIGEST_BYTES),
            ("signing key", keys.signing_key, SIGNING_KEY_BYTES),
            ("HPKE key", keys.hpke_key, HPKE_KEY_BYTES),
        ):
            if len(value) != size:
                raise MalformedError(
                    f"{what} of a wrong length",
                    code="enrolment.keys",
                    expected=f"{size} bytes",
                    came=f"{len(value)} bytes",
                )
        context = report_data(
            nonce=request.nonce,
            keys=EnclaveKeys(
                tls_spki_sha256=keys.tls_spki_sha256,
                signing_key=keys.signing_key,
                hpke_key=keys.hpke_key,
            ),
            custodian_key=self._custodian_key,
            loan_id=loan.loan,
        )
        with self._ledger.read() as tx:
            policy = parse_policy(tx.loan_policy(loan.loan).encode())
        result = self._judge(
            _read(request.evidence, lambda tee, documents: Evidence(tee=tee, documents=documents)),
            _read(
                request.endorsements,
                lambda tee, documents: Endorsements(tee=tee, documents=documents),
            ),
            policy,
            expected_report_data=context,
            now=self._ledger.clock.now(),
        )
        return context, result

    def _note_refusal(self, loan: Loan, request: EnrolRequest, error: AIGovToolError) -> None:
        with self._ledger.write() as entry:
            entry.event(
                "appraisal.refused",
                actor="enclave",
                loan=loan.loan,
                tee=request.evidence.tee[:40],
                verdict=error.code,
                reasons=[
                    {
                        "code": reason.code,
                        "message": reason.message,
                        "expected": reason.expected,
                        "came": reason.came,
                        "mend": reason.mend,
                    }
                    for reason in error.reasons
                ],
            )


def _read(documents: Documents, make: Callable[[Tee, Mapping[str, bytes]], T]) -> T:
    try:
        tee = Tee(documents.tee)
    except ValueError:
        raise MalformedError(
            "a kind of TEE that this program does not know",
            code="evidence.tee",
            expected=" or ".join(Tee),
            came=ascii(documents.tee[:40]),
        ) from None
    return make(tee, documents.documents)
