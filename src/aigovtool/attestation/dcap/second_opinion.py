"""
The second verifier: dcap-qvl (Rust), which shares no code with this package.

Rule 1: when it gives claims, its TCB status and advisories must be ours.
Rule 2: when it refuses, the refusal must be one of those that the claims explain. It refuses what
        is for a policy to judge (debug, SEPT_VE_DISABLE off, MRSERVICETD, below every TCB level)
        and what it cannot read (TCB info version 2).
Rule 3: anything else makes the quote untrue, whatever we found.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import dcap_qvl
import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from aigovtool.attestation.dcap.chain import PckChain
from aigovtool.attestation.dcap.claims import (
    SGX_ATTRIBUTE_DEBUG,
    TD_ATTRIBUTE_KEY_LOCKER,
    TD_ATTRIBUTE_PERFMON,
    TD_ATTRIBUTE_PKS,
    TD_ATTRIBUTE_SEPT_VE_DISABLE,
)
from aigovtool.attestation.dcap.collateral import (
    PCK_CERTIFICATE_CHAIN,
    REQUIRED_DOCUMENTS,
    TCB_INFO,
    documents_to_json,
    is_version_2,
)
from aigovtool.attestation.dcap.quote import SgxReport, TdReport
from aigovtool.attestation.dcap.tcb import TcbStatus, TcbVerdict
from aigovtool.attestation.evidence import Endorsements
from aigovtool.errors import VerificationError

_PREFIX = "Verification failed: "
_NO_LEVEL = ("No matching TCB level found", "TDX module TCB level check")
_REVOKED = ("TCB status is invalid: Revoked",)
_VERSION_2 = ("Failed to decode TcbInfo",)
_SGX_DEBUG = ("Debug mode is enabled",)
_TD_UNUSUAL = (
    "Debug mode is enabled",
    "TD profiling is enabled",
    "SERVTD_EXT is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "TD migration is enabled",
    "Reserved bits in TD attributes are set",
    "Invalid MR service TD",
)
_TD_USUAL_FREEDOM = TD_ATTRIBUTE_PKS | TD_ATTRIBUTE_KEY_LOCKER | TD_ATTRIBUTE_PERFMON


class _Tcb(msgspec.Struct, frozen=True):
    status: str
    advisory_ids: frozenset[str]


class _QvlClaims(msgspec.Struct, frozen=True):
    tcb: _Tcb


_claims_decoder = msgspec.json.Decoder(_QvlClaims)  # made here as those of `collateral`


def ask_second_verifier(
    raw_quote: bytes,
    endorsements: Endorsements,
    *,
    chain: PckChain,
    issuer_chains: Mapping[str, bytes],
    report: SgxReport | TdReport,
    verdict: TcbVerdict,
    now: datetime,
) -> None:
    """
    Let dcap-qvl judge the same bytes under the same root at the same time.

    Args:
        chain: of the PCK, checked; it may have come with the quote or beside it.
        issuer_chains: of the collateral, as PEM from the leaf up: dcap-qvl wants that order.

    Raises:
        VerificationError: it finds something untrue, or another status.
    """
    now_s = int(now.timestamp())
    documents = {
        **{name: endorsements.document(name) for name in REQUIRED_DOCUMENTS},
        **issuer_chains,
        PCK_CERTIFICATE_CHAIN: chain.pem,
    }
    try:
        collateral = dcap_qvl.QuoteCollateralV3.from_json(documents_to_json(documents))
        verifier = dcap_qvl.QuoteVerifier(chain.root.public_bytes(Encoding.DER))
        claims = verifier.verify_with_policy(
            raw_quote, collateral, now_s, dcap_qvl.QuotePolicy.claims_only(now_s)
        )
    except ValueError as error:
        refusal = str(error).removeprefix(_PREFIX)
        if refusal.startswith(_explained(report, verdict, documents[TCB_INFO])):
            return
        raise VerificationError(
            "the second verifier refuses this quote", code="dcap.second_opinion", came=refusal
        ) from None
    theirs = _claims_decoder.decode(claims.to_json()).tcb
    if (theirs.status, theirs.advisory_ids) != (verdict.status, frozenset(verdict.advisories)):
        raise VerificationError(
            "two verifiers come to different states of this platform",
            code="dcap.second_opinion",
            expected=f"{verdict.status} ({', '.join(verdict.advisories)})",
            came=f"{theirs.status} ({', '.join(sorted(theirs.advisory_ids))})",
            mend="report this with quote and collateral; nothing is accepted until it is explained",
        )


def _explained(
    report: SgxReport | TdReport, verdict: TcbVerdict, tcb_info: bytes
) -> tuple[str, ...]:
    """List the refusals that our own findings explain (rule 2)."""
    refusals: tuple[str, ...] = ()
    if isinstance(report, SgxReport):
        if report.attributes_flags & SGX_ATTRIBUTE_DEBUG:
            refusals += _SGX_DEBUG
        if is_version_2(tcb_info):
            refusals += _VERSION_2
    else:
        attributes = int.from_bytes(report.td_attributes, "little")
        usual = attributes & ~_TD_USUAL_FREEDOM == TD_ATTRIBUTE_SEPT_VE_DISABLE
        if not usual or any(report.mr_service_td or b""):
            refusals += _TD_UNUSUAL
    if verdict.status is TcbStatus.NOT_SUPPORTED:
        refusals += _NO_LEVEL
    if verdict.status is TcbStatus.REVOKED:
        refusals += _REVOKED
    return refusals
