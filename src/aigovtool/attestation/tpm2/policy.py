"""
Are genuine TPM quotes acceptable?

Rule 1: every field must be given; what is free is said with the word ``any``.
Rule 2: a PCR that the policy names must have been quoted and its value shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aigovtool.attestation.tpm2.layout import Hash
from aigovtool.attestation.tpm2.verify import Tpm2Claims
from aigovtool.errors import Reason

# No SHA-1 bank: anyone can make two inputs with one SHA-1.
PcrName = Annotated[str, Meta(pattern="^sha(256|384|512):([0-9]|1[0-9]|2[0-3])$")]
PcrValue = Annotated[str, Meta(pattern="^([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$")]
PcrPolicy = dict[PcrName, tuple[PcrValue, ...]] | Literal["any"]
KeyFingerprint = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Tpm2Policy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="tpm2",
):
    """
    What is accepted of a TPM.

    Args:
        attestation_keys: ``certified`` (a certificate from a pinned root), a list of AKs by the
            SHA-256 of their SubjectPublicKeyInfo in hex, or ``any``, which proves nothing of where
            the key lives.
        pcrs: by bank and index, such as ``"sha256:4"``, the accepted values in hex; or ``any``.
        clock: ``safe`` refuses a TPM whose clock may have run backwards; or ``any``.
    """

    attestation_keys: tuple[KeyFingerprint, ...] | Literal["certified", "any"]
    pcrs: PcrPolicy
    clock: Literal["safe", "any"]


def appraise(claims: Tpm2Claims, policy: Tpm2Policy) -> list[Reason]:
    """Return every reason why *policy* refuses *claims*; an empty list accepts."""
    reasons = []
    if policy.attestation_keys == "certified" and not claims.certified:
        reasons.append(
            Reason(
                code="tpm2.ak",
                message="the attestation key has no certificate, so nothing says it is in a TPM",
                expected="a certificate from a pinned root",
                came=f"the key with SHA-256 {claims.platform_id}",
                mend="send ak_certificate with the evidence, or list the key in attestation_keys",
            )
        )
    if (
        isinstance(policy.attestation_keys, tuple)
        and claims.platform_id not in policy.attestation_keys
    ):
        reasons.append(
            Reason(
                code="tpm2.ak",
                message="the attestation key is not one of those accepted",
                expected=" or ".join(policy.attestation_keys) or "none at all",
                came=claims.platform_id,
                mend="list the key in attestation_keys, if this machine is to be accepted",
            )
        )
    if policy.clock == "safe" and not claims.clock_safe:
        reasons.append(
            Reason(
                code="tpm2.clock",
                message="the clock of the TPM may have run backwards",
                expected="safe",
                came="not safe",
                mend="shut the machine down in order and start it again",
            )
        )
    return reasons + appraise_pcrs(claims.pcrs, policy.pcrs, prefix="tpm2")


def appraise_pcrs(
    came: Mapping[Hash, Mapping[int, bytes]], wanted: PcrPolicy, *, prefix: str
) -> list[Reason]:
    """Return a reason for each PCR of *wanted* that was not quoted or has another value."""
    if wanted == "any":
        return []
    values = {
        f"{bank}:{index}": value.hex()
        for bank, pcrs in came.items()
        for index, value in pcrs.items()
    }
    reasons = []
    for name, accepted in wanted.items():
        if values.get(name) not in accepted:
            reasons.append(
                Reason(
                    code=f"{prefix}.pcr",
                    message=f"PCR {name} is not as the policy wants it",
                    expected=" or ".join(accepted) or "nothing is accepted",
                    came=values.get(name, "not quoted with its value"),
                    mend="boot what the policy names, or add this value to it",
                )
            )
    return reasons
