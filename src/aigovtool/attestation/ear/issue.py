"""
From a verdict to a token: accepted, refused or not genuine, each gives an EAR.

Evidence that cannot be read gives none: nothing was appraised.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from aigovtool import __version__
from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.ear.ar4si import Tier
from aigovtool.attestation.ear.claims import (
    PROFILE,
    Appraisal,
    Ear,
    Verdict,
    VerifierId,
    WhyNot,
    check_nonce,
    encode_base64url,
    evidence_digest,
    policy_id,
)
from aigovtool.attestation.ear.token import EarForm, sign_ear
from aigovtool.attestation.ear.vector import NOT_GENUINE, vector_of_accepted, vector_of_refused
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import (
    AppraisalError,
    MalformedError,
    VerificationError,
)

LIFE = timedelta(minutes=10)
"""How long a token is good, unless what it rests on expires before."""

VERIFIER = VerifierId(developer="AIGovTool", build=f"aigovtool {__version__}")


def issue_ear(
    verdict: AttestationResult | AppraisalError | VerificationError,
    *,
    evidence: Evidence,
    policy: bytes,
    key: SigningKey,
    form: EarForm,
    now: datetime,
    life: timedelta = LIFE,
    nonce: bytes | None = None,
) -> bytes:
    """
    Return a signed token that says *verdict*; see `ear_of` for the arguments.

    Args:
        key: of the verifier.
        form: JWT (ASCII) or CWT.

    Raises:
        ConfigurationError: *policy* is none.
        MalformedError: *nonce* has not 8 to 64 bytes, or *now* has no time zone.
        VerificationError: what the verdict rests on has expired at *now*.
        TooLargeError: the reasons make a token that no verifier would read.
    """
    ear = ear_of(verdict, evidence=evidence, policy=policy, now=now, life=life, nonce=nonce)
    return sign_ear(ear, key, form=form)


def ear_of(
    verdict: AttestationResult | AppraisalError | VerificationError,
    *,
    evidence: Evidence,
    policy: bytes,
    now: datetime,
    life: timedelta = LIFE,
    nonce: bytes | None = None,
) -> Ear:
    """
    Return the claims-set that says *verdict*.

    Args:
        verdict: what `attestation.appraise` or `attestation.verify` returned or raised.
        evidence: what was judged; only its digest goes into the token.
        policy: the exact text of the policy that judged it.
        now: aware time for which *verdict* was reached; the time of issue.
        life: of the token, cut short where the endorsements expire before.
        nonce: of who asks for the token, 8 to 64 bytes.

    Raises:
        ConfigurationError, MalformedError, VerificationError: as `issue_ear`.
    """
    if now.tzinfo is None:
        raise MalformedError("a time without a time zone", code="time.naive", came=now.isoformat())
    if nonce is not None:
        check_nonce(nonce)
    expires = now + life
    if isinstance(verdict, AttestationResult):
        if verdict.valid_until is not None:
            expires = min(expires, verdict.valid_until)
        appraisal = _accepted(verdict, evidence, policy, parse_policy(policy))
    else:
        appraisal = _refused(verdict, evidence, policy)
    if int(expires.timestamp()) <= int(now.timestamp()):
        raise VerificationError(
            "what the verdict rests on has expired",
            code="ear.expired",
            came=f"{expires:%FT%TZ}, now {now:%FT%TZ}",
            mend="judge the evidence again with fresh endorsements",
        )
    return Ear(
        profile=PROFILE,
        issued_s=int(now.timestamp()),
        expires_s=int(expires.timestamp()),
        verifier=VERIFIER,
        submods={evidence.tee.value: appraisal},
        nonce=None if nonce is None else encode_base64url(nonce),
    )


def _accepted(
    result: AttestationResult, evidence: Evidence, text: bytes, policy: Policy
) -> Appraisal:
    vector = vector_of_accepted(result.claims, policy.accept[result.alternative])
    return Appraisal(
        status=vector.tier,
        vector=vector,
        policy_id=policy_id(text),
        verdict=Verdict(
            accepted=True,
            genuine=True,
            simulated=result.simulated,
            evidence_sha256=evidence_digest(evidence),
            measurement=result.measurement,
            tcb_status=result.tcb_status,
            advisories=result.advisories,
            warnings=result.warnings,
        ),
    )


def _refused(
    error: AppraisalError | VerificationError, evidence: Evidence, text: bytes
) -> Appraisal:
    genuine = isinstance(error, AppraisalError)
    return Appraisal(
        status=Tier.CONTRAINDICATED,
        vector=vector_of_refused(error.reasons) if genuine else NOT_GENUINE,
        policy_id=policy_id(text),
        verdict=Verdict(
            accepted=False,
            genuine=genuine,
            simulated=evidence.tee is Tee.SIMULATED,
            evidence_sha256=evidence_digest(evidence),
            reasons=tuple(
                WhyNot(
                    code=reason.code,
                    message=reason.message,
                    expected=reason.expected,
                    came=reason.came,
                    mend=reason.mend,
                )
                for reason in error.reasons
            ),
        ),
    )
