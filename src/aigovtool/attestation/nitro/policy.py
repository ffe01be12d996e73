"""
Are the claims of a Nitro document acceptable? Policy and claims in; every reason against out.

No field has a default: what is not stated is an error when the file is read, and whoever does not
care about something writes "any".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec

from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.errors import Reason

AnyValue = Literal["any"]
Hex48 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{96}$")]
PcrIndex = Annotated[str, msgspec.Meta(pattern="^([5-7]|9|[12][0-9]|3[01])$")]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=3 * 3600)]  # no certificate lives longer

NAMED_PCRS = (0, 1, 2, 3, 4, 8)


class NitroPolicy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="nitro",
):
    """
    What a Nitro enclave must be; PCRs are 96 lower-case hex digits, lists are alternatives.

    Args:
        pcr0: the enclave image.
        pcr1: kernel and boot ramdisk.
        pcr2: the application, without the boot ramdisk.
        pcr3: SHA-384 of the ARN of the parent instance's IAM role.
        pcr4: SHA-384 of the parent instance's id.
        pcr8: the certificate that signed the image; zeros when none did.
        other_pcrs: by index as a string; every other PCR that is not named here must be zero.
        debug: ``any`` accepts enclaves whose PCRs are zero: nothing is then proven.
        parent_instance: EC2 instances that are known to stand in a trusted place.
        max_age_s: of the document by the hypervisor's clock.
    """

    pcr0: list[Hex48] | AnyValue
    pcr1: list[Hex48] | AnyValue
    pcr2: list[Hex48] | AnyValue
    pcr3: list[Hex48] | AnyValue
    pcr4: list[Hex48] | AnyValue
    pcr8: list[Hex48] | AnyValue
    other_pcrs: dict[PcrIndex, list[Hex48]] | AnyValue
    debug: Literal["forbidden", "any"]
    parent_instance: list[str] | AnyValue
    max_age_s: Seconds | AnyValue


def appraise(claims: NitroClaims, policy: NitroPolicy) -> list[Reason]:
    """Return every reason why *claims* do not satisfy *policy*; none means acceptable."""
    reasons = [
        *_one_of("pcr0", claims.pcrs[0], policy.pcr0),
        *_one_of("pcr1", claims.pcrs[1], policy.pcr1),
        *_one_of("pcr2", claims.pcrs[2], policy.pcr2),
        *_one_of("pcr3", claims.pcrs[3], policy.pcr3),
        *_one_of("pcr4", claims.pcrs[4], policy.pcr4),
        *_one_of("pcr8", claims.pcrs[8], policy.pcr8),
        *_one_of("parent_instance", claims.parent_instance, policy.parent_instance),
    ]
    if policy.other_pcrs != "any":
        present = {str(index) for index in claims.pcrs if index not in NAMED_PCRS}
        for index in sorted(present | policy.other_pcrs.keys(), key=int):
            accepted = policy.other_pcrs.get(index, [_ZERO])
            reasons += _one_of(f"pcr{index}", claims.pcrs.get(int(index)), accepted)
    if policy.debug == "forbidden" and claims.debug:
        reasons.append(
            Reason(
                code="nitro.debug",
                message="the enclave runs in debug mode",
                expected="PCR0, PCR1 and PCR2 that are not zero",
                came="zeros",
                mend="start the enclave without --debug-mode",
            )
        )
    age_s = (claims.verified_at - claims.timestamp).total_seconds()
    if policy.max_age_s != "any" and age_s > policy.max_age_s:
        reasons.append(
            Reason(
                code="nitro.age",
                message="the document is too old",
                expected=f"at most {policy.max_age_s} s",
                came=f"{age_s:.0f} s",
                mend="ask the enclave for a fresh document",
            )
        )
    return reasons


_ZERO = "0" * 96


def _one_of(field: str, came: str | None, accepted: Sequence[str] | AnyValue) -> Iterable[Reason]:
    if not isinstance(accepted, str) and came not in accepted:
        yield Reason(
            code=f"nitro.{field}",
            message=f"{field} is not one that the policy accepts",
            expected=" or ".join(accepted) or "nothing",
            came=came or "nothing",
            mend="run what the policy names, or add this value to the policy",
        )
