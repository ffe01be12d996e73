"""
Are genuine TPM quotes acceptable?

Rule 1: every field must be given; what is free is said with the word ``any``.
Rule 2: a PCR that the policy names must have been quoted and its value shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from aigovtool.attestation.tpm2.layout import DIGEST_BYTES, MAX_PCRS, Hash
from aigovtool.attestation.tpm2.verify import Tpm2Claims
from aigovtool.errors import ConfigurationError, Reason

PcrPolicy = Literal["any"] | dict[str, tuple[str, ...]]
KEY_FINGERPRINT_BYTES = 32


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

    attestation_keys: Literal["certified", "any"] | tuple[str, ...]
    pcrs: PcrPolicy
    clock: Literal["safe", "any"]

    def __post_init__(self) -> None:
        check_pcr_policy(self.pcrs)
        if isinstance(self.attestation_keys, tuple):
            for key in self.attestation_keys:
                check_hex(key, KEY_FINGERPRINT_BYTES, field="attestation_keys")


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
    reasons = []
    for name, accepted in wanted.items():
        bank, index = _pcr(name)
        value = came.get(bank, {}).get(index)
        if value is None or value.hex() not in accepted:
            reasons.append(
                Reason(
                    code=f"{prefix}.pcr",
                    message=f"PCR {name} is not as the policy wants it",
                    expected=" or ".join(accepted) or "nothing is accepted",
                    came="not quoted with its value" if value is None else value.hex(),
                    mend="boot what the policy names, or add this value to it",
                )
            )
    return reasons


def check_pcr_policy(pcrs: PcrPolicy) -> None:
    """Raise ConfigurationError when a PCR name or value cannot be what it says."""
    if pcrs == "any":
        return
    for name, accepted in pcrs.items():
        bank, _ = _pcr(name)
        for value in accepted:
            check_hex(value, DIGEST_BYTES[bank], field=f"pcrs.{name}")


def check_hex(text: str, size: int, *, field: str) -> None:
    """Raise ConfigurationError unless *text* is *size* bytes in lower-case hex."""
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        raise ConfigurationError(
            f"{field} of the policy holds something else than a digest",
            code="policy.digest",
            expected=f"{2 * size} lower-case hex digits",
            came=repr(text),
        )


def _pcr(name: str) -> tuple[Hash, int]:
    bank, _, index = name.partition(":")
    if (
        bank not in set(Hash) - {Hash.SHA1}  # anyone can make two inputs with one SHA-1
        or not index.isdecimal()
        or int(index) >= MAX_PCRS
        or str(int(index)) != index
    ):
        raise ConfigurationError(
            "pcrs of the policy names something else than a PCR",
            code="policy.pcr",
            expected=f'such as "sha256:4", up to {MAX_PCRS - 1}, in a bank better than sha1',
            came=repr(name),
        )
    return Hash(bank), int(index)
