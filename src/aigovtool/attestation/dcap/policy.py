"""
Which Intel platforms, enclaves and trust domains are acceptable: rules, and the check of claims.

Rule 1: no field has a default. Freedom is a word that somebody wrote: ``"any"``.
Rule 2: every rule is checked, and every one that fails is a reason of its own.
Rule 3: TD attributes that no rule names must be zero.

Sources: Intel TDX Module Base Architecture, "ATTRIBUTES" and "XFAM"; Intel SDM 3D, "ATTRIBUTES";
for the grace period: Intel TEE Attestation Appraisal, `platform_grace_period`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct

from aigovtool.attestation.dcap.claims import (
    TD_ATTRIBUTE_DEBUG,
    TD_ATTRIBUTE_KEY_LOCKER,
    TD_ATTRIBUTE_MIGRATABLE,
    TD_ATTRIBUTE_PERFMON,
    TD_ATTRIBUTE_PKS,
    TD_ATTRIBUTE_SEPT_VE_DISABLE,
    PlatformClaims,
    SgxClaims,
    TdxClaims,
)
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.errors import Reason

AnyValue = Literal["any"]
ANY: AnyValue = "any"
Bit = Literal["set", "clear", "any"]
PckFlag = Literal["refused", "any"]
Bytes4 = Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
Bytes8 = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
Bytes16 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Bytes32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Bytes48 = Annotated[str, Meta(pattern="^[0-9a-f]{96}$")]
SomeBytes16 = Annotated[tuple[Bytes16, ...], Meta(min_length=1)]
SomeBytes32 = Annotated[tuple[Bytes32, ...], Meta(min_length=1)]
SomeBytes48 = Annotated[tuple[Bytes48, ...], Meta(min_length=1)]

_ZEROS_48 = bytes(48)
_UPDATE_HOST = "the host's operator updates microcode, firmware or TDX module"
_NAMED_TD_ATTRIBUTES = {
    "debug": TD_ATTRIBUTE_DEBUG,
    "sept_ve_disable": TD_ATTRIBUTE_SEPT_VE_DISABLE,
    "migratable": TD_ATTRIBUTE_MIGRATABLE,
    "pks": TD_ATTRIBUTE_PKS,
    "key_locker": TD_ATTRIBUTE_KEY_LOCKER,
    "perfmon": TD_ATTRIBUTE_PERFMON,
}
# Within the grace period an out-of-date platform counts as what it was before.
_BEFORE_OUT_OF_DATE = {
    TcbStatus.OUT_OF_DATE: TcbStatus.UP_TO_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: TcbStatus.CONFIGURATION_NEEDED,
}


class PlatformRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules on the machine, the same for SGX and TDX."""

    tcb_statuses: Annotated[
        tuple[TcbStatus, ...],
        Meta(min_length=1, description='accepted TCB statuses, strictest: ["UpToDate"]'),
    ]
    tcb_grace_days: Annotated[
        int,
        Meta(
            ge=0,
            le=3650,
            description="days after the date of its TCB level in which an out-of-date platform "
            "is still accepted, strictest: 0",
        ),
    ]
    min_tcb_evaluation_number: Annotated[
        int, Meta(ge=0, description="oldest accepted edition of Intel's TCB data, such as 18")
    ]
    advisories_refused: Annotated[
        tuple[str, ...],
        Meta(description="advisories that are refused whatever the status, or []"),
    ]
    pinned_platforms: Annotated[
        SomeBytes16 | AnyValue,
        Meta(description='PPIDs (hex, 16 bytes) of the platforms you know, or "any"'),
    ]
    smt: Annotated[PckFlag, Meta(description='hyper-threading: "refused" or "any"')]
    dynamic_platform: Annotated[
        PckFlag, Meta(description='packages can be added after registration: "refused" or "any"')
    ]
    cached_keys: Annotated[
        PckFlag, Meta(description='platform keys kept by Intel: "refused" or "any"')
    ]


class TdRules(PlatformRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules on a trust domain. Registers are hex, 48 bytes."""

    mr_td: Annotated[
        SomeBytes48 | AnyValue, Meta(description="accepted MRTDs: the initial image of the TD")
    ]
    rt_mr0: Annotated[
        SomeBytes48 | AnyValue,
        Meta(description='accepted RTMR0s (firmware, configuration), or "any"'),
    ]
    rt_mr1: Annotated[
        SomeBytes48 | AnyValue, Meta(description='accepted RTMR1s (kernel, boot loader), or "any"')
    ]
    rt_mr2: Annotated[
        SomeBytes48 | AnyValue, Meta(description='accepted RTMR2s (command line, initrd), or "any"')
    ]
    rt_mr3: Annotated[
        SomeBytes48 | AnyValue, Meta(description='accepted RTMR3s (application), or "any"')
    ]
    mr_config_id: Annotated[
        SomeBytes48 | AnyValue, Meta(description='accepted MRCONFIGIDs, or "any"')
    ]
    mr_owner: Annotated[SomeBytes48 | AnyValue, Meta(description='accepted MROWNERs, or "any"')]
    mr_owner_config: Annotated[
        SomeBytes48 | AnyValue, Meta(description='accepted MROWNERCONFIGs, or "any"')
    ]
    mr_service_td: Annotated[
        SomeBytes48 | AnyValue,
        Meta(description='accepted MRSERVICETDs (zeros: no service TD), or "any"'),
    ]
    mr_seam: Annotated[
        SomeBytes48 | AnyValue,
        Meta(description='accepted TDX modules; "any" leaves them to Intel\'s TCB info'),
    ]
    debug: Annotated[bool, Meta(description="true accepts a TD that its host can read")]
    sept_ve_disable: Annotated[
        Bit, Meta(description='SEPT_VE_DISABLE: "set" (strict), "clear" or "any"')
    ]
    migratable: Annotated[Bit, Meta(description='MIGRATABLE: "clear" (strict), "set" or "any"')]
    pks: Annotated[Bit, Meta(description='supervisor keys: "clear" (strict), "set" or "any"')]
    key_locker: Annotated[Bit, Meta(description='Key Locker: "clear" (strict), "set" or "any"')]
    perfmon: Annotated[
        Bit, Meta(description='performance monitoring: "clear" (strict), "set" or "any"')
    ]
    xfam: Annotated[
        Bytes8, Meta(description="expected XFAM as in the report (hex, 8 bytes), under the mask")
    ]
    xfam_mask: Annotated[
        Bytes8, Meta(description="bits of XFAM that count; 0000000000000000: none")
    ]


class TdxPolicy(
    TdRules, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="tee", tag="tdx"
):
    """One acceptable kind of TDX evidence."""


class SgxPolicy(
    PlatformRules, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="tee", tag="sgx"
):
    """One acceptable kind of SGX evidence."""

    mr_enclave: Annotated[
        SomeBytes32 | AnyValue, Meta(description='accepted MRENCLAVEs (hex, 32 bytes), or "any"')
    ]
    mr_signer: Annotated[
        SomeBytes32 | AnyValue, Meta(description='accepted MRSIGNERs (hex, 32 bytes), or "any"')
    ]
    isv_prod_id: Annotated[
        Annotated[tuple[int, ...], Meta(min_length=1)] | AnyValue,
        Meta(description='accepted product numbers of the signer, or "any"'),
    ]
    min_isv_svn: Annotated[
        int, Meta(ge=0, le=65535, description="lowest accepted security version of the enclave")
    ]
    debug: Annotated[bool, Meta(description="true accepts an enclave that its host can read")]
    attributes_flags: Annotated[
        Bytes8, Meta(description="expected ATTRIBUTES.FLAGS as in the report (hex, 8 bytes)")
    ]
    attributes_mask_flags: Annotated[
        Bytes8, Meta(description="bits of FLAGS that count; DEBUG is ruled by `debug` alone")
    ]
    attributes_xfrm: Annotated[
        Bytes8, Meta(description="expected ATTRIBUTES.XFRM as in the report (hex, 8 bytes)")
    ]
    attributes_mask_xfrm: Annotated[Bytes8, Meta(description="bits of XFRM that count")]
    misc_select: Annotated[
        Bytes4, Meta(description="expected MISCSELECT as in the report (hex, 4 bytes)")
    ]
    misc_mask: Annotated[Bytes4, Meta(description="bits of MISCSELECT that count")]


def appraise_tdx(claims: TdxClaims, policy: TdxPolicy) -> list[Reason]:
    """Return every reason why *claims* do not satisfy *policy*; none means accepted."""
    return appraise_td(claims, policy)


def appraise_sgx(claims: SgxClaims, policy: SgxPolicy) -> list[Reason]:
    """Return every reason why *claims* do not satisfy *policy*; none means accepted."""
    report = claims.report
    reasons = [
        *_one_of("sgx.mr_enclave", "MRENCLAVE", report.mr_enclave, policy.mr_enclave),
        *_one_of("sgx.mr_signer", "MRSIGNER", report.mr_signer, policy.mr_signer),
    ]
    if policy.isv_prod_id != ANY and report.isv_prod_id not in policy.isv_prod_id:
        reasons.append(
            Reason(
                code="sgx.isv_prod_id",
                message="the enclave is another product of its signer",
                expected=" or ".join(map(str, policy.isv_prod_id)),
                came=str(report.isv_prod_id),
                mend="run the enclave that the policy names",
            )
        )
    if report.isv_svn < policy.min_isv_svn:
        reasons.append(
            Reason(
                code="sgx.isv_svn",
                message="the enclave is too old",
                expected=f"at least {policy.min_isv_svn}",
                came=str(report.isv_svn),
                mend="run a newer build of the enclave",
            )
        )
    if claims.debug and not policy.debug:
        reasons.append(_debug_reason("sgx.debug", "enclave"))
    flags = report.attributes_flags & ~0x02  # DEBUG has a rule of its own
    for code, what, came, expected, mask in (
        (
            "sgx.attributes_flags",
            "ATTRIBUTES.FLAGS",
            flags.to_bytes(8, "little"),
            _without_debug(policy.attributes_flags),
            _without_debug(policy.attributes_mask_flags),
        ),
        (
            "sgx.attributes_xfrm",
            "ATTRIBUTES.XFRM",
            report.attributes_xfrm.to_bytes(8, "little"),
            bytes.fromhex(policy.attributes_xfrm),
            bytes.fromhex(policy.attributes_mask_xfrm),
        ),
        (
            "sgx.misc_select",
            "MISCSELECT",
            report.misc_select.to_bytes(4, "little"),
            bytes.fromhex(policy.misc_select),
            bytes.fromhex(policy.misc_mask),
        ),
    ):
        reasons += _masked(code, what, came, expected, mask)
    return [*appraise_platform(claims.platform, policy), *reasons]


def appraise_td(claims: TdxClaims, rules: TdRules) -> list[Reason]:
    """Hold a trust domain and its platform against *rules*; used by every kind that has a TD."""
    report = claims.report
    service_td = _ZEROS_48 if report.mr_service_td is None else report.mr_service_td
    reasons: list[Reason] = []
    for code, what, came, accepted in (
        ("tdx.mr_td", "MRTD", report.mr_td, rules.mr_td),
        ("tdx.rt_mr0", "RTMR0", report.rt_mr[0], rules.rt_mr0),
        ("tdx.rt_mr1", "RTMR1", report.rt_mr[1], rules.rt_mr1),
        ("tdx.rt_mr2", "RTMR2", report.rt_mr[2], rules.rt_mr2),
        ("tdx.rt_mr3", "RTMR3", report.rt_mr[3], rules.rt_mr3),
        ("tdx.mr_config_id", "MRCONFIGID", report.mr_config_id, rules.mr_config_id),
        ("tdx.mr_owner", "MROWNER", report.mr_owner, rules.mr_owner),
        ("tdx.mr_owner_config", "MROWNERCONFIG", report.mr_owner_config, rules.mr_owner_config),
        ("tdx.mr_service_td", "MRSERVICETD", service_td, rules.mr_service_td),
        ("tdx.mr_seam", "MRSEAM", report.mr_seam, rules.mr_seam),
    ):
        reasons += _one_of(code, what, came, accepted)
    reasons += _td_attributes(claims, rules)
    reasons += _masked(
        "tdx.xfam", "XFAM", report.xfam, bytes.fromhex(rules.xfam), bytes.fromhex(rules.xfam_mask)
    )
    return [*appraise_platform(claims.platform, rules), *reasons]


def appraise_platform(platform: PlatformClaims, rules: PlatformRules) -> list[Reason]:
    """Hold the machine against *rules*."""
    reasons: list[Reason] = []
    if not _status_accepted(platform, rules):
        reasons.append(
            Reason(
                code="tcb.status",
                message="the platform's TCB status is not accepted"
                + (f" ({'; '.join(platform.short)})" if platform.short else ""),
                expected=" or ".join(rules.tcb_statuses),
                came=platform.tcb_status,
                mend=f"{_UPDATE_HOST}, or the policy accepts this status",
            )
        )
    if platform.tcb_evaluation_number < rules.min_tcb_evaluation_number:
        reasons.append(
            Reason(
                code="tcb.evaluation_number",
                message="the TCB data is of too old an edition",
                expected=f"at least {rules.min_tcb_evaluation_number}",
                came=str(platform.tcb_evaluation_number),
                mend="fetch newer collateral",
            )
        )
    refused = [name for name in platform.advisories if name in rules.advisories_refused]
    if refused:
        reasons.append(
            Reason(
                code="tcb.advisory",
                message="an advisory applies that the policy refuses",
                expected="none of " + ", ".join(rules.advisories_refused),
                came=", ".join(refused),
                mend=_UPDATE_HOST,
            )
        )
    if rules.pinned_platforms != ANY and platform.ppid.hex() not in rules.pinned_platforms:
        reasons.append(
            Reason(
                code="platform.pin",
                message="the platform is not one of those you know",
                expected=" or ".join(rules.pinned_platforms),
                came=platform.ppid.hex(),
                mend="add the PPID to pinned_platforms once you know where the machine stands",
            )
        )
    for code, what, rule, came in (
        ("platform.smt", "hyper-threading", rules.smt, platform.smt_enabled),
        ("platform.dynamic", "dynamic platform", rules.dynamic_platform, platform.dynamic_platform),
        ("platform.cached_keys", "cached keys", rules.cached_keys, platform.cached_keys),
    ):
        # A certificate that does not say is no proof that the flag is off.
        if rule == "refused" and came is not False:
            reasons.append(
                Reason(
                    code=code,
                    message=f"the policy refuses: {what}",
                    expected="false in the PCK certificate",
                    came="not said" if came is None else "true",
                    mend="the host's operator changes it and registers the platform anew",
                )
            )
    return reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbGrace:
    """
    On what an acceptance by grace rests.

    Args:
        status: of the platform, which the policy would not accept without grace.
        expected: what it would accept.
        short: what is below Intel's best level, a sentence for each component.
        since: when the platform became out of date, as Intel's TCB info dates it.
        ends: when the grace period is over.
    """

    status: TcbStatus
    expected: tuple[TcbStatus, ...]
    short: tuple[str, ...]
    since: datetime
    ends: datetime


def tcb_grace(platform: PlatformClaims, rules: PlatformRules) -> TcbGrace | None:
    """Return the grace on which the acceptance of *platform* rests; None when it needs none."""
    ends = tcb_grace_ends(platform, rules)
    if ends is None or platform.superseded is None:
        return None
    return TcbGrace(
        status=platform.tcb_status,
        expected=rules.tcb_statuses,
        short=platform.short,
        since=platform.superseded,
        ends=ends,
    )


def tcb_grace_ends(platform: PlatformClaims, rules: PlatformRules) -> datetime | None:
    """Say when an acceptance that rests on the grace period ends; None when it does not."""
    if platform.tcb_status in rules.tcb_statuses or platform.tcb_date is None:
        return None
    return platform.tcb_date + timedelta(days=rules.tcb_grace_days)


def _status_accepted(platform: PlatformClaims, rules: PlatformRules) -> bool:
    if platform.tcb_status in rules.tcb_statuses:
        return True
    before = _BEFORE_OUT_OF_DATE.get(platform.tcb_status)
    ends = tcb_grace_ends(platform, rules)
    return (
        before in rules.tcb_statuses
        and ends is not None
        and rules.tcb_grace_days > 0
        and platform.judged_at <= ends
    )


def _td_attributes(claims: TdxClaims, rules: TdRules) -> Iterable[Reason]:
    attributes = claims.td_attributes
    if claims.debug and not rules.debug:
        yield _debug_reason("tdx.debug", "trust domain")
    for name, wanted in (
        ("sept_ve_disable", rules.sept_ve_disable),
        ("migratable", rules.migratable),
        ("pks", rules.pks),
        ("key_locker", rules.key_locker),
        ("perfmon", rules.perfmon),
    ):
        came = "set" if attributes & _NAMED_TD_ATTRIBUTES[name] else "clear"
        if wanted not in (came, ANY):
            yield Reason(
                code=f"tdx.{name}",
                message=f"TD attribute {name.upper()} is {came}",
                expected=wanted,
                came=came,
                mend="the host starts the TD with other attributes",
            )
    unnamed = attributes & ~sum(_NAMED_TD_ATTRIBUTES.values())
    if unnamed:
        yield Reason(
            code="tdx.attributes",
            message="TD attributes are set that no rule of this version names",
            expected="zero",
            came=unnamed.to_bytes(8, "little").hex(),
            mend="the host starts the TD without them",
        )


def _debug_reason(code: str, what: str) -> Reason:
    return Reason(
        code=code,
        message=f"the {what} is in debug mode: its host can read all of it",
        expected="no debug",
        came="debug",
        mend=f"start the {what} without debug",
    )


def _one_of(
    code: str, what: str, came: bytes, accepted: tuple[str, ...] | AnyValue
) -> list[Reason]:
    if accepted == ANY or came.hex() in accepted:
        return []
    return [
        Reason(
            code=code,
            message=f"{what} is not an accepted one",
            expected=" or ".join(accepted),
            came=came.hex(),
            mend="run what the policy names, or add this value once you know what it is",
        )
    ]


def _masked(code: str, what: str, came: bytes, expected: bytes, mask: bytes) -> list[Reason]:
    pairs = zip(came, expected, mask, strict=True)
    if not any((is_ ^ wanted) & counts for is_, wanted, counts in pairs):
        return []
    return [
        Reason(
            code=code,
            message=f"{what} differs where the mask counts",
            expected=f"{expected.hex()} under mask {mask.hex()}",
            came=came.hex(),
            mend="start it with the expected bits",
        )
    ]


def _without_debug(flags_hex: str) -> bytes:
    flags = bytes.fromhex(flags_hex)
    return bytes([flags[0] & ~0x02]) + flags[1:]
