"""
Which TCB level a platform reaches, and what keeps it from a better one.

Rule 1: a platform reaches the first level, in Intel's order, of which no component exceeds its own.
Rule 2: for TDX with TEE_TCB_SVN[1] > 0, the TDX module is judged by `tdxModuleIdentities`, and
        components 0 and 1 of the level are passed over.
Rule 3: the status of the whole is the platform's, brought down by the module's and by the quoting
        enclave's. To reach no level is a status of its own (`TCBNotSupported`), not `OutOfDate`.
Rule 4: a TD 1.5 whose module was old at its launch, and is in order now, is advised to relaunch.

Source: Intel PCS API, "Determining TCB status"; SGX-TDX-DCAP-QuoteVerificationLibrary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain

from aigovtool.attestation.dcap.collateral import (
    Component,
    IdentityLevel,
    PlatformLevel,
    PlatformTcb,
    QeIdentity,
    TcbInfo,
    TdxModule,
    TdxModuleIdentity,
)
from aigovtool.attestation.dcap.quote import SgxReport, TdReport
from aigovtool.errors import VerificationError

_ATTRIBUTES_DEBUG = 0x02


class TcbStatus(StrEnum):
    """Intel's words for the state of a platform, and `TCBNotSupported` for below every level."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    NOT_SUPPORTED = "TCBNotSupported"


_NEEDS_CONFIGURATION = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)
_OUT_OF_DATE = frozenset({TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSvns:
    """What the platform has: the PCK certificate's numbers and, for TDX, the TD report's."""

    cpu_svn: bytes
    pce_svn: int
    tee_tcb_svn: bytes | None
    tee_tcb_svn2: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVerdict:
    """
    The state of a platform under one TCB info and one QE identity.

    Args:
        status: of the whole.
        platform_status: of the level alone, without module and quoting enclave.
        tcb_date: date of the level, or None when none is reached.
        superseded: date of the first better level that is younger; that of the level itself when
            there is none, None when no level is reached.
        module_status: of the TDX module by its own identity, None when it has none.
        qe_status: of the quoting enclave.
        advisories: of level, module and quoting enclave, in order, each once.
        short: each component that is below Intel's best level, as a sentence.
    """

    status: TcbStatus
    platform_status: TcbStatus
    tcb_date: datetime | None
    superseded: datetime | None
    module_status: TcbStatus | None
    qe_status: TcbStatus
    advisories: tuple[str, ...]
    short: tuple[str, ...]


def judge_tcb(info: TcbInfo, qe_level: IdentityLevel, svns: PlatformSvns) -> TcbVerdict:
    """
    Judge a platform.

    Raises:
        VerificationError: the TCB info has no identity for the platform's TDX module.
    """
    verdict = _judge_at(info, qe_level, svns, svns.tee_tcb_svn)
    if svns.tee_tcb_svn2 is None or verdict.status not in _OUT_OF_DATE:
        return verdict
    current = _judge_at(info, qe_level, svns, svns.tee_tcb_svn2)  # rule 4
    if current.status in _OUT_OF_DATE | {TcbStatus.REVOKED, TcbStatus.NOT_SUPPORTED}:
        return verdict
    advised = (
        TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
        if current.status in _NEEDS_CONFIGURATION
        else TcbStatus.TD_RELAUNCH_ADVISED
    )
    return TcbVerdict(
        status=advised,
        platform_status=verdict.platform_status,
        tcb_date=verdict.tcb_date,
        superseded=verdict.superseded,
        module_status=verdict.module_status,
        qe_status=verdict.qe_status,
        advisories=verdict.advisories,
        short=verdict.short,
    )


def _judge_at(
    info: TcbInfo, qe_level: IdentityLevel, svns: PlatformSvns, tee_tcb_svn: bytes | None
) -> TcbVerdict:
    first_tdx = 2 if tee_tcb_svn is not None and tee_tcb_svn[1] > 0 else 0  # rule 2
    level = next(
        (
            level
            for level in info.tcb_levels
            if not _short_of(level.tcb, svns, tee_tcb_svn, first_tdx)
        ),
        None,
    )
    platform = TcbStatus(level.status) if level else TcbStatus.NOT_SUPPORTED
    status = platform
    module_status: TcbStatus | None = None
    advisories: list[Sequence[str]] = [level.advisories if level else ()]
    short = _short_of(info.tcb_levels[0].tcb, svns, tee_tcb_svn, first_tdx)
    if tee_tcb_svn is not None and first_tdx:
        identity = module_identity(info, tee_tcb_svn)
        module = _reached(identity.tcb_levels, tee_tcb_svn[0])
        module_status = TcbStatus(module.status) if module else TcbStatus.NOT_SUPPORTED
        status = _lower(status, module_status)
        advisories.append(module.advisories if module else ())
        best = max((lvl.tcb.isvsvn for lvl in identity.tcb_levels), default=0)
        if tee_tcb_svn[0] < best:
            short += (f"TDX module {identity.id}: {tee_tcb_svn[0]} < {best}",)
    qe_status = TcbStatus(qe_level.status)
    status = _lower(status, qe_status)
    advisories.append(qe_level.advisories)
    if qe_status is not TcbStatus.UP_TO_DATE:
        short += (f"quoting enclave: at level {qe_level.tcb.isvsvn}, which is {qe_status}",)
    return TcbVerdict(
        status=status,
        platform_status=platform,
        tcb_date=level.tcb_date if level else None,
        superseded=_superseded(info.tcb_levels, level) if level else None,
        module_status=module_status,
        qe_status=qe_status,
        advisories=tuple(dict.fromkeys(chain.from_iterable(advisories))),
        short=short,
    )


def _superseded(levels: Sequence[PlatformLevel], reached: PlatformLevel) -> datetime:
    better = levels[: levels.index(reached)]
    younger = [level.tcb_date for level in better if level.tcb_date > reached.tcb_date]
    return min(younger, default=reached.tcb_date)


def _short_of(
    tcb: PlatformTcb, svns: PlatformSvns, tee_tcb_svn: bytes | None, first_tdx: int
) -> tuple[str, ...]:
    """Name every component of *tcb* that the platform does not reach (rule 1)."""
    short = [
        *_short_components("SGX", tcb.sgxtcbcomponents, svns.cpu_svn, first=0),
    ]
    if svns.pce_svn < tcb.pcesvn:
        short.append(f"PCE: {svns.pce_svn} < {tcb.pcesvn}")
    if tee_tcb_svn is not None:
        if tcb.tdxtcbcomponents is None:
            raise VerificationError(
                "TCB info for TDX has a level without TDX components", code="dcap.tcb_info.tdx"
            )
        short += _short_components("TDX", tcb.tdxtcbcomponents, tee_tcb_svn, first=first_tdx)
    return tuple(short)


def _short_components(
    kind: str, needed: Sequence[Component], have: bytes, *, first: int
) -> list[str]:
    return [
        f"{kind} component {position + 1}{_named(component)}: {svn} < {component.svn}"
        for position, (component, svn) in enumerate(zip(needed, have, strict=True))
        if position >= first and svn < component.svn
    ]


def _named(component: Component) -> str:
    words = ", ".join(word for word in (component.category, component.type) if word)
    return f" ({words})" if words else ""


def _reached(levels: Sequence[IdentityLevel], isv_svn: int) -> IdentityLevel | None:
    return next((level for level in levels if isv_svn >= level.tcb.isvsvn), None)


def _lower(status: TcbStatus, other: TcbStatus) -> TcbStatus:
    """Bring *status* down by that of the module or of the quoting enclave (rule 3)."""
    if TcbStatus.NOT_SUPPORTED in (status, other):
        return TcbStatus.NOT_SUPPORTED
    if TcbStatus.REVOKED in (status, other):
        return TcbStatus.REVOKED
    if other is TcbStatus.OUT_OF_DATE:
        if status in _NEEDS_CONFIGURATION:
            return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
        return TcbStatus.OUT_OF_DATE
    return status


def module_identity(info: TcbInfo, tee_tcb_svn: bytes) -> TdxModuleIdentity:
    """
    Return the identity of the TDX module that TEE_TCB_SVN names; [1] is its major version.

    Raises:
        VerificationError: the TCB info has none.
    """
    wanted = f"TDX_{tee_tcb_svn[1]:02X}"
    for identity in info.tdx_module_identities:
        if identity.id.upper() == wanted:
            return identity
    raise VerificationError(
        "the TCB info has no identity for this TDX module",
        code="dcap.tdx_module.unknown",
        expected=", ".join(identity.id for identity in info.tdx_module_identities) or "none",
        came=wanted,
    )


def check_tdx_module(info: TcbInfo, report: TdReport) -> None:
    """
    Check that Intel signed the TDX module, and that its SEAM attributes are as they must be.

    Raises:
        VerificationError: another signer, other attributes, or no identity to compare with.
    """
    expected: TdxModule | TdxModuleIdentity | None = (
        module_identity(info, report.tee_tcb_svn) if report.tee_tcb_svn[1] else info.tdx_module
    )
    if expected is None:
        raise VerificationError("TCB info for TDX without tdxModule", code="dcap.tdx_module.none")
    mask = int(expected.attributes_mask, 16)
    attributes = int.from_bytes(report.seam_attributes, "big")
    signer_fits = report.mr_signer_seam == bytes.fromhex(expected.mrsigner)
    if not signer_fits or (attributes ^ int(expected.attributes, 16)) & mask:
        raise VerificationError(
            "the TDX module is not one that Intel stands for",
            code="dcap.tdx_module",
            expected=f"signer {expected.mrsigner.lower()}, attributes {expected.attributes}",
            came=f"signer {report.mr_signer_seam.hex()}, attributes {report.seam_attributes.hex()}",
        )


def match_quoting_enclave(identity: QeIdentity, report: SgxReport) -> IdentityLevel:
    """
    Check that the quoting enclave is Intel's, and return the TCB level it reaches.

    Raises:
        VerificationError: another signer, product, attributes or miscellaneous bits, a debug
            enclave, or below every level.
    """
    attributes = report.attributes_flags.to_bytes(8, "little") + report.attributes_xfrm.to_bytes(
        8, "little"
    )
    misc_select = report.misc_select.to_bytes(4, "little")
    fits = (
        report.mr_signer == bytes.fromhex(identity.mrsigner)
        and report.isv_prod_id == identity.isvprodid
        and not report.attributes_flags & _ATTRIBUTES_DEBUG
        and _masked_equal(attributes, identity.attributes, identity.attributes_mask)
        and _masked_equal(misc_select, identity.miscselect, identity.miscselect_mask)
    )
    if not fits:
        raise VerificationError(
            "the quoting enclave is not the one of the QE identity",
            code="dcap.quoting_enclave",
            expected=f"signer {identity.mrsigner.lower()}, product {identity.isvprodid}",
            came=f"signer {report.mr_signer.hex()}, product {report.isv_prod_id}, "
            f"attributes {attributes.hex()}",
        )
    level = _reached(identity.tcb_levels, report.isv_svn)
    if level is None:
        raise VerificationError(
            "the quoting enclave is older than every level of the QE identity",
            code="dcap.quoting_enclave.svn",
            expected=f"at least {identity.tcb_levels[-1].tcb.isvsvn}",
            came=str(report.isv_svn),
        )
    return level


def _masked_equal(value: bytes, expected_hex: str, mask_hex: str) -> bool:
    mask = int(mask_hex, 16)
    return int.from_bytes(value, "big") & mask == int(expected_hex, 16) & mask
