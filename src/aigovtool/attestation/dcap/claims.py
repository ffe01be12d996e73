"""What a verified Intel quote says: facts, each signed by somebody the root stands for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation.dcap.eventlog import Event
from aigovtool.attestation.dcap.quote import SgxReport, TdReport
from aigovtool.attestation.dcap.tcb import TcbStatus

SGX_ATTRIBUTE_DEBUG = 0x02
TD_ATTRIBUTE_DEBUG = 1 << 0
TD_ATTRIBUTE_SEPT_VE_DISABLE = 1 << 28
TD_ATTRIBUTE_MIGRATABLE = 1 << 29
TD_ATTRIBUTE_PKS = 1 << 30
TD_ATTRIBUTE_KEY_LOCKER = 1 << 31
TD_ATTRIBUTE_PERFMON = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims:
    """
    The machine under the enclave or trust domain, as Intel's documents judge it at one time.

    Args:
        tcb_status: of the whole; a function of *judged_at* and *tcb_evaluation_number*.
        tcb_date: date of the TCB level reached; None below every level.
        superseded: date of the first better TCB level that is younger, else `tcb_date`.
        tdx_module_status: None for SGX, and for modules without an identity of their own.
        qe_status: of the quoting enclave.
        advisories: Intel's advisories that apply, such as ``INTEL-SA-00615``.
        short: what is below Intel's best level, a sentence for each component.
        tcb_evaluation_number: the lower one of TCB info and QE identity.
        ppid: 16 bytes that name the platform.
        fmspc: 6 bytes that name its family and model.
        pce_svn: from the PCK certificate.
        cpu_svn: 16 components, from the PCK certificate.
        kind: ``standard``, ``scalable`` or ``scalable-with-integrity``.
        platform_instance_id: 16 bytes, on multi-package platforms.
        dynamic_platform: packages can be added after registration; None when it is not said.
        cached_keys: keys are kept by Intel's registration service; None when it is not said.
        smt_enabled: hyper-threading; None when it is not said.
        root_sha256: fingerprint of the root certificate under which all of this holds.
        judged_at: the time for which it holds.
        valid_from: when the youngest certificate, list or document was issued.
        valid_until: when the first of them expires.
    """

    tcb_status: TcbStatus
    tcb_date: datetime | None
    superseded: datetime | None
    tdx_module_status: TcbStatus | None
    qe_status: TcbStatus
    advisories: tuple[str, ...]
    short: tuple[str, ...]
    tcb_evaluation_number: int
    ppid: bytes
    fmspc: bytes
    pce_svn: int
    cpu_svn: bytes
    kind: str
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
    root_sha256: bytes
    judged_at: datetime
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxClaims:
    """A verified SGX quote."""

    quote_version: int
    report: SgxReport
    platform: PlatformClaims

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the enclave put into its report."""
        return self.report.report_data

    @property
    def measurement(self) -> str:
        """MRENCLAVE in hex."""
        return self.report.mr_enclave.hex()

    @property
    def platform_id(self) -> str:
        """The PPID in hex."""
        return self.platform.ppid.hex()

    @property
    def debug(self) -> bool:
        return bool(self.report.attributes_flags & SGX_ATTRIBUTE_DEBUG)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """
    A verified TDX quote.

    Args:
        events: the event log whose replay gave the four RTMRs; None when none came.
    """

    quote_version: int
    report: TdReport
    platform: PlatformClaims
    events: tuple[Event, ...] | None

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the trust domain put into its report."""
        return self.report.report_data

    @property
    def measurement(self) -> str:
        """MRTD in hex."""
        return self.report.mr_td.hex()

    @property
    def platform_id(self) -> str:
        """The PPID in hex."""
        return self.platform.ppid.hex()

    @property
    def td_attributes(self) -> int:
        return int.from_bytes(self.report.td_attributes, "little")

    @property
    def debug(self) -> bool:
        return bool(self.td_attributes & TD_ATTRIBUTE_DEBUG)

    @property
    def sept_ve_disable(self) -> bool:
        return bool(self.td_attributes & TD_ATTRIBUTE_SEPT_VE_DISABLE)
