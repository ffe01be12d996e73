"""
Whether the sessions of a statement were what their custodian took them for.

1. Every session that held a lease has evidence that was accepted, before its first lease. It may
   be lost with a ledger's newer part: then no more is believed of the session than that its leases
   are charged whole, which its custodian may always do.
2. Each piece of it, judged again with the endorsements kept beside it, under the policy kept beside
   it or the reader's own, is genuine, commits to the session's keys, the custodian's nonce and key,
   and the loan, and is accepted. The time is that of the appraisal, or the reader's (`--as-of`).
3. What it says is what the statement says of the session: kind and measurement.

Certificates that have expired since do no harm as of the appraisal: they were valid then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.attestation.verify import judge
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import SessionId
from aigovtool.proof.findings import Findings
from aigovtool.wire.statement import AppraisalLine, SessionLine, Statement

Archive = Mapping[bytes, bytes]
"""Documents by their SHA-256, each of which was checked."""


def check_evidence(
    statement: Statement,
    archive: Archive,
    findings: Findings,
    *,
    policy: Policy | None,
    as_of: datetime | None,
) -> dict[SessionId, AttestationResult]:
    """
    Judge every session's evidence again; return what the newest of each said.

    Args:
        policy: the reader's own, None for those that are archived.
        as_of: the time as of which to judge, None for that of each appraisal.
    """
    seen: dict[SessionId, AttestationResult] = {}
    for session in statement.sessions:
        for line in session.appraisals:
            subject = f"{session.session}, evidence of {line.judged:%FT%TZ}"
            if line.judged > statement.end:
                findings.add("statement.time", subject, "it was judged after the span")
            with findings.noted("evidence.refused", subject):
                result = _judge(
                    statement, session, line, archive, policy=policy, as_of=as_of or line.judged
                )
                seen[session.session] = result
        _check_there_first(statement, session, findings)
    return seen


def _check_there_first(statement: Statement, session: SessionLine, findings: Findings) -> None:
    leases = [line for line in statement.leases if line.session == session.session]
    if leases and all(line.recovered and line.settlement is None for line in leases):
        return
    granted = [line.granted for line in leases]
    first = min((line.judged for line in session.appraisals), default=None)
    if first is None or first > min(granted, default=first):
        findings.add(
            "evidence.missing",
            session.session,
            "no evidence shows what it was when it was given a lease",
            came="none" if first is None else f"judged {first:%FT%TZ}",
        )


def _judge(
    statement: Statement,
    session: SessionLine,
    line: AppraisalLine,
    archive: Archive,
    *,
    policy: Policy | None,
    as_of: datetime,
) -> AttestationResult:
    keys = EnclaveKeys(
        tls_spki_sha256=session.keys.tls_spki_sha256,
        signing_key=session.keys.signing_key,
        hpke_key=session.keys.hpke_key,
    )
    try:
        tee = Tee(line.tee)
    except ValueError:
        raise MalformedError("a kind of TEE that is not known", came=ascii(line.tee[:40])) from None
    result = judge(
        Evidence(tee=tee, documents=_documents(line.evidence, archive)),
        Endorsements(tee=tee, documents=_documents(line.endorsements, archive)),
        policy or parse_policy(document(line.policy, archive)),
        expected_report_data=report_data(
            AskedBy.CUSTODIAN,
            nonce=line.nonce,
            keys=keys,
            custodian_key=statement.custodian_key,
            loan_id=statement.loan,
        ),
        now=as_of,
    )
    if (result.tee, result.measurement) != (session.tee, session.measurement):
        raise VerificationError(
            "the evidence is of another kind or code than the statement says of the session",
            code="evidence.session",
            expected=f"{session.tee} {session.measurement}",
            came=f"{result.tee} {result.measurement}",
        )
    return result


def _documents(names: Mapping[str, bytes], archive: Archive) -> dict[str, bytes]:
    return {name: document(digest, archive) for name, digest in names.items()}


def document(digest: bytes, archive: Archive) -> bytes:
    """Return a document of the archive; raises MalformedError when it is not there."""
    if digest not in archive:
        raise MalformedError(
            "a document is not in the archive", code="archive.missing", came=digest.hex()
        )
    return archive[digest]
