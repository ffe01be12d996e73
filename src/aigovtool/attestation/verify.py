"""
Evidence, endorsements and time in; claims out, or an exception. One verifier for each kind.

`judge` is the whole of it, in the order that everyone who relies on evidence needs: is it genuine,
was it made for me and now, is it acceptable?
"""

from __future__ import annotations

import hmac
from datetime import datetime

from aigovtool.attestation.appraise import AttestationResult, appraise
from aigovtool.attestation.binding import REPORT_DATA_BYTES
from aigovtool.attestation.claims import Claims, CommitsByDigest
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.kinds import KINDS
from aigovtool.attestation.policy import Policy
from aigovtool.errors import MalformedError, VerificationError


def verify(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> Claims:
    """
    Check that *evidence* is genuine at *now*; says nothing of whether it is acceptable.

    Raises:
        MalformedError: a document is missing or cannot be read, evidence and endorsements are of
            different kinds, or *now* has no time zone.
        VerificationError: something is not genuine, does not belong together, or is not valid then.
    """
    if now.tzinfo is None:
        raise MalformedError("a time without a time zone", code="time.naive", came=now.isoformat())
    if evidence.tee is not endorsements.tee:
        raise MalformedError(
            "evidence and endorsements are of different kinds",
            code="evidence.tee",
            expected=evidence.tee,
            came=endorsements.tee,
        )
    return KINDS[evidence.tee].verify(evidence, endorsements, now=now)


def check_binding(claims: Claims, expected_report_data: bytes) -> None:
    """
    Check that the evidence commits to exactly *expected_report_data* (64 bytes).

    Raises:
        MalformedError: *expected_report_data* is not what `binding.report_data` returns.
        VerificationError: the evidence was made for another nonce, key, custodian or loan.
    """
    if len(expected_report_data) != REPORT_DATA_BYTES:
        raise MalformedError(
            "report data of a wrong length",
            code="binding.length",
            expected=f"{REPORT_DATA_BYTES} bytes",
            came=f"{len(expected_report_data)} bytes",
        )
    expected = (
        claims.commitment_to(expected_report_data)
        if isinstance(claims, CommitsByDigest)
        else expected_report_data
    )
    if not hmac.compare_digest(claims.report_data, expected):
        raise VerificationError(
            "the evidence was not made for this nonce, these keys, this custodian and this loan",
            code="binding",
            expected=expected.hex(),
            came=claims.report_data.hex() or "nothing",
            mend="ask the enclave itself for fresh evidence",
        )


def judge(
    evidence: Evidence,
    endorsements: Endorsements,
    policy: Policy,
    *,
    expected_report_data: bytes,
    now: datetime,
) -> AttestationResult:
    """
    Verify, check the binding, appraise.

    Raises:
        MalformedError: something cannot be read.
        VerificationError: not genuine, not valid at *now*, or made for somebody or something else.
        AppraisalError: genuine, and no alternative of *policy* accepts it; lists every reason.
    """
    claims = verify(evidence, endorsements, now=now)
    check_binding(claims, expected_report_data)
    return appraise(claims, policy)
