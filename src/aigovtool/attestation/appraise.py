"""
Claims and policy in; an attestation result out, or every reason why not.

Evidence is accepted by the first alternative of its TEE of which all rules hold. When none does,
the reasons are those of the nearest alternative, the one with the fewest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation import simulated
from aigovtool.attestation.azure.claims import PARAVISOR_WARNING, AzureClaims, AzureTdxClaims
from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.composite import CompositeClaims, CompositePolicy
from aigovtool.attestation.dcap.claims import PlatformClaims, SgxClaims, TdxClaims
from aigovtool.attestation.dcap.policy import (
    PlatformRules,
    SgxPolicy,
    TcbGrace,
    TdRules,
    tcb_grace,
)
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.kinds import appraise_claims, tee_named, tee_of
from aigovtool.attestation.nitro.policy import NitroPolicy
from aigovtool.attestation.policy import Alternative, Policy
from aigovtool.attestation.simulated import SimulatedClaims
from aigovtool.attestation.snp.policy import SnpPolicy
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
        grace: what the acceptance rests on when the platform is out of date; None otherwise.
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
    grace: TcbGrace | None = None


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


def platform_of(claims: Claims) -> PlatformClaims | None:
    """Return Intel's claims about the machine, where there are any."""
    match claims:
        case SimulatedClaims():
            return claims.td.platform
        case SgxClaims() | TdxClaims():
            return claims.platform
        case AzureTdxClaims():
            return claims.hardware.platform
        case CompositeClaims():
            return platform_of(claims.cpu)
    return None


def _rules_of(alternative: Alternative) -> Alternative:
    """Return the rules on the confidential VM or enclave inside an alternative."""
    match alternative:
        case AzureSnpPolicy() | AzureTdxPolicy():
            return alternative.hardware
        case CompositePolicy():
            return _rules_of(alternative.cpu)
    return alternative


def _result(claims: Claims, alternative: Alternative, position: int, tee: Tee) -> AttestationResult:
    warnings = [*_what_is_trusted(claims), *_what_is_free(_rules_of(alternative))]
    valid_until: datetime | None = None
    grace: TcbGrace | None = None
    platform, rules = platform_of(claims), _rules_of(alternative)
    if platform is not None and isinstance(rules, PlatformRules):
        valid_until = platform.valid_until
        grace = tcb_grace(platform, rules)
        if grace is not None:
            valid_until = min(valid_until, grace.ends)
            warnings.append(
                f"TCB status {platform.tcb_status}, accepted until {grace.ends.date()} by grace"
            )
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
        grace=grace,
    )


def _what_is_trusted(claims: Claims) -> Iterable[str]:
    """Name what must be trusted besides the hardware, whatever the policy."""
    match claims:
        case SimulatedClaims():
            yield simulated.WARNING
        case AzureClaims():
            yield PARAVISOR_WARNING
        case CompositeClaims():
            yield from _what_is_trusted(claims.cpu)


def _what_is_free(rules: Alternative) -> Iterable[str]:
    """Name the freedoms by which anybody's code, or everybody's eyes, would be accepted."""
    match rules:
        case TdRules(mr_td="any"):
            yield "the policy accepts any MRTD: any code at all"
        case SgxPolicy(mr_enclave="any", mr_signer="any"):
            yield "the policy accepts any MRENCLAVE of any MRSIGNER: any code at all"
        case SnpPolicy(measurement="any"):
            yield "the policy accepts any launch measurement: any code at all"
        case NitroPolicy(pcr0="any", pcr8="any"):
            yield "the policy accepts any enclave image of any signer: any code at all"
    if isinstance(rules, TdRules | SgxPolicy | SnpPolicy | NitroPolicy) and rules.debug in _DEBUG:
        yield "the policy accepts debug: the host may read all of it"


_DEBUG = (True, "any")
