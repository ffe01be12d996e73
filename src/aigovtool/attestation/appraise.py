"""
Claims and policy in; an attestation result out, or every reason why not.

Evidence is accepted by the first alternative of its TEE of which all rules hold. When none does,
the reasons are those of the nearest alternative, the one with the fewest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation import simulated
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.dcap.claims import PlatformClaims, SgxClaims, TdxClaims
from aigovtool.attestation.dcap.policy import (
    ANY,
    PlatformRules,
    SgxPolicy,
    TdRules,
    tcb_grace_ends,
)
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.kinds import appraise_claims, tee_named, tee_of
from aigovtool.attestation.policy import Alternative, Policy
from aigovtool.attestation.simulated import SimulatedClaims
from aigovtool.errors import AppraisalError, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationResult:
    """
    What a relying party may believe of an accepted attester (RFC 9334, Attestation Result).

    Args:
        tee: its kind.
        simulated: it protects nothing; say so wherever the result is shown.
        measurement: of what was started, in hex.
        tcb_status: the vendor's word for the platform's state; None where the vendor has none.
        advisories: of the vendor, that apply to the platform.
        warnings: what was accepted and should be known, a sentence each.
        platform_id: what names the machine; None when it is hidden.
        valid_until: when the endorsements that this rests on expire; None when they do not.
        alternative: position in the policy of the alternative that accepted it.
        claims: all that was verified.
    """

    tee: Tee
    simulated: bool
    measurement: str
    tcb_status: str | None
    advisories: tuple[str, ...]
    warnings: tuple[str, ...]
    platform_id: str | None
    valid_until: datetime | None
    alternative: int
    claims: Claims


def appraise(claims: Claims, policy: Policy) -> AttestationResult:
    """
    Hold *claims* against *policy*.

    Raises:
        AppraisalError: no alternative accepts them.
    """
    tee = tee_of(claims)
    candidates = [
        (position, alternative)
        for position, alternative in enumerate(policy.accept)
        if tee_named(alternative) is tee
    ]
    if not candidates:
        raise AppraisalError(
            "the policy accepts no evidence of this kind",
            code="policy.tee",
            expected=" or ".join(sorted({tee_named(other) for other in policy.accept})),
            came=tee,
            mend="run on hardware that the policy names, or add an [[accept]] table for this kind",
        )
    refusals: list[list[Reason]] = []
    for position, alternative in candidates:
        reasons = appraise_claims(claims, alternative)
        if not reasons:
            return _result(claims, alternative, position, tee)
        refusals.append(reasons)
    nearest = min(refusals, key=len)
    if len(refusals) > 1:
        nearest = [
            *nearest,
            Reason(
                code="policy.others",
                message=f"{len(refusals) - 1} other alternatives for {tee} failed by more rules",
            ),
        ]
    raise AppraisalError(nearest[0], others=nearest[1:])


def _result(claims: Claims, alternative: Alternative, position: int, tee: Tee) -> AttestationResult:
    warnings: list[str] = []
    valid_until: datetime | None = None
    platform = platform_of(claims)
    if isinstance(claims, SimulatedClaims):
        warnings.append(simulated.WARNING)
    if platform is not None and isinstance(alternative, PlatformRules):
        valid_until = platform.valid_until
        grace_ends = tcb_grace_ends(platform, alternative)
        if grace_ends is not None:
            valid_until = min(valid_until, grace_ends)
            warnings.append(
                f"TCB status {platform.tcb_status}, accepted until {grace_ends.date()} by grace"
            )
    warnings += _what_is_free(alternative)
    return AttestationResult(
        tee=tee,
        simulated=tee is Tee.SIMULATED,
        measurement=claims.measurement,
        tcb_status=platform.tcb_status if platform else None,
        advisories=platform.advisories if platform else (),
        warnings=tuple(warnings),
        platform_id=claims.platform_id,
        valid_until=valid_until,
        alternative=position,
        claims=claims,
    )


def platform_of(claims: Claims) -> PlatformClaims | None:
    """Return Intel's claims about the machine, where there are any."""
    match claims:
        case SimulatedClaims():
            return claims.td.platform
        case SgxClaims() | TdxClaims():
            return claims.platform
    return None


def _what_is_free(alternative: Alternative) -> list[str]:
    """Name the freedoms by which anybody's code would be accepted."""
    warnings = []
    if isinstance(alternative, TdRules) and alternative.mr_td == ANY:
        warnings.append("the policy accepts any MRTD: any code at all")
    if isinstance(alternative, SgxPolicy) and (alternative.mr_enclave, alternative.mr_signer) == (
        ANY,
        ANY,
    ):
        warnings.append("the policy accepts any MRENCLAVE of any MRSIGNER: any code at all")
    if isinstance(alternative, TdRules | SgxPolicy) and alternative.debug:
        warnings.append("the policy accepts debug: the host may read all of it")
    return warnings
