"""
Is an Intel quote genuine? SGX and TDX, under Intel's root or another one.

The order is that of trust, from the root down:

1. The quote reads (`quote`).
2. Its PCK chain ends in the root: leaf, CA, root (`chain`).
3. The PCK signed the quoting enclave's report, which commits to the attestation key, which signed
   header and body (`chain`).
4. Lists, TCB info and QE identity are signed under the root and current; no certificate is
   revoked (`chain`).
5. TCB info and QE identity are those of this platform and kind of TEE.
6. The quoting enclave, and for TDX the module, are Intel's (`tcb`).
7. The platform reaches a TCB level, or none (`tcb`).
8. dcap-qvl comes to the same (`second_opinion`).

Why twice: dcap-qvl gives no claims for what it holds to be unacceptable (debug, SEPT_VE_DISABLE
off, MRSERVICETD, no TCB level) and does not read TCB info version 2, while a policy must name every
reason. An error message is no proof that all signatures before it were checked, so the claims are
ours, and dcap-qvl must agree.
"""

from __future__ import annotations

from datetime import UTC, datetime

from aigovtool.attestation.dcap.chain import (
    Collateral,
    document,
    verify_collateral,
    verify_pck_chain,
    verify_quote_signatures,
)
from aigovtool.attestation.dcap.claims import PlatformClaims, SgxClaims, TdxClaims
from aigovtool.attestation.dcap.collateral import PCK_CERTIFICATE_CHAIN
from aigovtool.attestation.dcap.eventlog import EVENT_LOG, replay
from aigovtool.attestation.dcap.pck import PckExtension, read_pck_extension
from aigovtool.attestation.dcap.quote import SgxReport, TdReport, parse_quote
from aigovtool.attestation.dcap.second_opinion import ask_second_verifier
from aigovtool.attestation.dcap.tcb import (
    PlatformSvns,
    check_tdx_module,
    judge_tcb,
    match_quoting_enclave,
)
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.errors import MalformedError, VerificationError

QUOTE = "quote"
INTEL_ROOT_SHA256 = bytes.fromhex(
    "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
)
"""Intel SGX Root CA, valid until 2049-12-31."""


def verify_sgx(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> SgxClaims:
    """
    Check an SGX quote under Intel's root.

    Args:
        evidence: document ``quote``.
        endorsements: the collateral, documents as `collateral.REQUIRED_DOCUMENTS`.
        now: aware time at which everything must be valid.

    Raises:
        MalformedError: a document is missing or cannot be read, or the quote is no SGX quote.
        VerificationError: something is not genuine, not of this platform, or not valid at *now*.
    """
    raw = evidence.document(QUOTE)
    version, report, platform = _verify(raw, endorsements, root_sha256=INTEL_ROOT_SHA256, now=now)
    if not isinstance(report, SgxReport):
        raise MalformedError("a TDX quote came as SGX evidence", code="dcap.quote.tee")
    return SgxClaims(quote_version=version, report=report, platform=platform)


def verify_tdx(
    evidence: Evidence,
    endorsements: Endorsements,
    *,
    now: datetime,
    root_sha256: bytes = INTEL_ROOT_SHA256,
) -> TdxClaims:
    """
    Check a TDX quote, and replay its event log when one comes with it.

    Args:
        evidence: documents ``quote`` and, if it was kept, ``event_log``.
        endorsements: the collateral, documents as `collateral.REQUIRED_DOCUMENTS`.
        now: aware time at which everything must be valid.
        root_sha256: the root's fingerprint; another one than Intel's for the simulation alone.

    Raises:
        MalformedError: a document is missing or cannot be read, or the quote is no TDX quote.
        VerificationError: something is not genuine, not of this platform, or not valid at *now*.
    """
    raw = evidence.document(QUOTE)
    version, report, platform = _verify(raw, endorsements, root_sha256=root_sha256, now=now)
    if not isinstance(report, TdReport):
        raise MalformedError("an SGX quote came as TDX evidence", code="dcap.quote.tee")
    log = evidence.documents.get(EVENT_LOG)
    events = None if log is None else replay(log, report.rt_mr)
    return TdxClaims(quote_version=version, report=report, platform=platform, events=events)


def _verify(
    raw: bytes, endorsements: Endorsements, *, root_sha256: bytes, now: datetime
) -> tuple[int, SgxReport | TdReport, PlatformClaims]:
    quote = parse_quote(raw)  # 1
    pem = quote.pck_chain_pem
    if pem is None:
        pem = document(endorsements, PCK_CERTIFICATE_CHAIN)
    chain = verify_pck_chain(pem, root_sha256=root_sha256, now=now)  # 2
    verify_quote_signatures(quote, chain.pck)  # 3
    collateral = verify_collateral(endorsements, chain, root_sha256=root_sha256, now=now)  # 4
    pck = read_pck_extension(chain.pck)
    _check_made_for(collateral, pck, quote.report)  # 5
    qe_level = match_quoting_enclave(collateral.qe_identity, quote.qe_report)  # 6
    td_report = quote.report if isinstance(quote.report, TdReport) else None
    if td_report is not None:
        check_tdx_module(collateral.tcb_info, td_report)
    svns = PlatformSvns(
        cpu_svn=pck.cpu_svn,
        pce_svn=pck.pce_svn,
        tee_tcb_svn=td_report.tee_tcb_svn if td_report else None,
        tee_tcb_svn2=td_report.tee_tcb_svn2 if td_report else None,
    )
    verdict = judge_tcb(collateral.tcb_info, qe_level, svns)  # 7
    ask_second_verifier(  # 8
        raw,
        endorsements,
        chain=chain,
        issuer_chains=collateral.issuer_chains,
        report=quote.report,
        verdict=verdict,
        now=now,
    )
    platform = PlatformClaims(
        tcb_status=verdict.status,
        tcb_date=verdict.tcb_date,
        superseded=verdict.superseded,
        tdx_module_status=verdict.module_status,
        qe_status=verdict.qe_status,
        advisories=verdict.advisories,
        short=verdict.short,
        tcb_evaluation_number=min(
            collateral.tcb_info.tcb_evaluation_data_number,
            collateral.qe_identity.tcb_evaluation_data_number,
        ),
        ppid=pck.ppid,
        fmspc=pck.fmspc,
        pce_svn=pck.pce_svn,
        cpu_svn=pck.cpu_svn,
        kind=pck.kind,
        platform_instance_id=pck.platform_instance_id,
        dynamic_platform=pck.dynamic_platform,
        cached_keys=pck.cached_keys,
        smt_enabled=pck.smt_enabled,
        root_sha256=root_sha256,
        judged_at=now.astimezone(UTC),
        valid_from=collateral.span.start.astimezone(UTC),
        valid_until=collateral.span.end.astimezone(UTC),
    )
    return quote.version, quote.report, platform


def _check_made_for(
    collateral: Collateral, pck: PckExtension, report: SgxReport | TdReport
) -> None:
    is_tdx = isinstance(report, TdReport)
    info, identity = collateral.tcb_info, collateral.qe_identity
    for what, expected, came in (
        ("platform family (FMSPC)", pck.fmspc.hex(), info.fmspc.lower()),
        ("PCE", pck.pce_id.hex(), info.pce_id.lower()),
        ("TEE", "TDX" if is_tdx else "SGX", info.id),
        ("quoting enclave", "TD_QE" if is_tdx else "QE", identity.id),
    ):
        if came != expected:
            raise VerificationError(
                f"the collateral is of another {what}",
                code="dcap.collateral.other",
                expected=expected,
                came=came,
                mend="fetch the collateral of this platform",
            )
