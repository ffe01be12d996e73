"""Is this enclave what the loan's policy accepts, and did it make its evidence for us and now?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.crypto.hpke import PUBLIC_KEY_BYTES as HPKE_KEY_BYTES
from aigovtool.crypto.signing import PUBLIC_KEY_BYTES as SIGNING_KEY_BYTES
from aigovtool.custodian.archive import Exhibit
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.verdicts import Verdicts
from aigovtool.errors import AIGovToolError, AppraisalError, MalformedError, VerificationError
from aigovtool.ids import DIGEST_BYTES, LoanId
from aigovtool.telemetry.traces import traced
from aigovtool.wire.enrolment import Documents, Keys

MAX_DOCUMENTS = 256  # NVIDIA's 16 devices, 32 RIMs and 64 OCSP answers are the most known

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


class Completes(Protocol):
    """`endorsements.courier.Courier`, where the operator wants it; never fails."""

    def complete(self, evidence: Evidence, have: Endorsements, *, now: datetime) -> Endorsements:
        """Return *have*, with what is missing or out of date, as far as it can be had."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised:
    """
    What was made of evidence that could be read.

    Args:
        context: the report data that it had to commit to, 64 bytes.
        verdict: the result, or the error that says why there is none.
        ear: the token that says the same, empty when there is none (`verdicts`).
        exhibit: all that the verdict rests on, to be kept when it is accepted.
    """

    context: bytes
    verdict: AttestationResult | AppraisalError | VerificationError
    ear: str
    exhibit: Exhibit


class Appraiser:
    """Holds evidence against the policy of a loan, as of now."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        judge: Judge,
        verdicts: Verdicts,
        custodian_key: bytes,
        courier: Completes | None = None,
    ) -> None:
        self._ledger = ledger
        self._judge = judge
        self._verdicts = verdicts
        self._custodian_key = custodian_key
        self._courier = courier

    @traced("appraisal")
    def appraise(
        self,
        loan: LoanId,
        *,
        nonce: bytes,
        keys: Keys,
        evidence: Documents,
        endorsements: Documents,
    ) -> Appraised:
        """
        Appraise evidence that must commit to *nonce*, *keys*, this custodian and *loan*.

        Returns:
            The verdict; whoever goes on must find a result in it, and not an error.

        Raises:
            MalformedError: keys, evidence or endorsements cannot be read.
        """
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
            AskedBy.CUSTODIAN,
            nonce=nonce,
            keys=EnclaveKeys(
                tls_spki_sha256=keys.tls_spki_sha256,
                signing_key=keys.signing_key,
                hpke_key=keys.hpke_key,
            ),
            custodian_key=self._custodian_key,
            loan_id=loan,
        )
        shown = _read(evidence, lambda tee, documents: Evidence(tee=tee, documents=documents))
        endorsed = _read(
            endorsements, lambda tee, documents: Endorsements(tee=tee, documents=documents)
        )
        with self._ledger.read() as tx:
            policy = tx.loan_policy(loan).encode()
        clock = self._ledger.clock
        if self._courier is not None:
            endorsed = self._courier.complete(shown, endorsed, now=clock.now())
        now = clock.now()
        verdict: AttestationResult | AppraisalError | VerificationError
        try:
            verdict = self._judge(
                shown, endorsed, parse_policy(policy), expected_report_data=context, now=now
            )
        except (AppraisalError, VerificationError) as error:
            verdict = error
        return Appraised(
            context=context,
            verdict=verdict,
            ear=self._verdicts.token(verdict, evidence=shown, policy=policy, now=now),
            exhibit=Exhibit(
                nonce=nonce, evidence=shown, endorsements=endorsed, policy=policy, judged=now
            ),
        )


def reasons_of(error: AIGovToolError) -> list[dict[str, str | None]]:
    """Return every reason of *error* as an event holds it."""
    return [
        {
            "code": reason.code,
            "message": reason.message,
            "expected": reason.expected,
            "came": reason.came,
            "mend": reason.mend,
        }
        for reason in error.reasons
    ]


def _read(documents: Documents, make: Callable[[Tee, Mapping[str, bytes]], T]) -> T:
    if len(documents.documents) > MAX_DOCUMENTS:
        raise MalformedError(
            "too many documents",
            code="evidence.documents",
            expected=f"at most {MAX_DOCUMENTS}",
            came=str(len(documents.documents)),
        )
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
