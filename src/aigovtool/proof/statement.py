"""
A custodian's statement, checked offline: by the borrower, by a consumer, by anybody years later.

1. The custodian's key, which the reader knows from elsewhere, signed it; nothing else is looked at
   before.
2. The archive is what it names: each document has its digest.
3. The model's manifest is the custodian's, and the one that it names.
4. What sessions signed is genuine, whole and fits (`settled`); the sums follow from it (`sums`).
5. Each grant has the notice that enclaves were told, and who counter-signed it did (`granted`).
6. The sessions were attested, by evidence that is judged again (`attested`).
7. A consumer's receipts are accounted for (`covered`).
8. The custodian's transparency log says the same (`logged`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.policy import Policy
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import verify_signature
from aigovtool.errors import VerificationError
from aigovtool.ids import LeaseId, LoanId, SessionId, sha256
from aigovtool.proof.attested import check_evidence, document
from aigovtool.proof.covered import Covered, check_covered
from aigovtool.proof.findings import Finding, Findings
from aigovtool.proof.granted import check_grants
from aigovtool.proof.logged import Log, check_logged, check_receipts_logged, read_log
from aigovtool.proof.receipts import Checked
from aigovtool.proof.settled import check_settlements
from aigovtool.proof.sums import check_sums
from aigovtool.sealing.manifest import verify_manifest
from aigovtool.wire.codec import decode
from aigovtool.wire.control import Settlement
from aigovtool.wire.statement import MAX_STATEMENT_BYTES, Statement, read_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """
    What came of a check.

    Args:
        statement: signed by the custodian's key.
        findings: what does not hold; nothing when all is in order.
        counter_signed: grants that an enclave counter-signed.
        settlements: those that their sessions signed, by lease.
        evidence: what the newest evidence of each session said.
        covered: what became of the receipts that were given, None when none were.
        logged: entries that the log has for the loan, None when no log was given.
    """

    statement: Statement
    findings: tuple[Finding, ...]
    counter_signed: int
    settlements: Mapping[LeaseId, Settlement]
    evidence: Mapping[SessionId, AttestationResult]
    covered: Covered | None
    logged: int | None


def verify_statement(
    data: bytes,
    *,
    custodian_key: bytes,
    loan: LoanId | None = None,
    policy: Policy | None = None,
    as_of: datetime | None = None,
    receipts: Checked | None = None,
    log: Log | None = None,
) -> Verified:
    """
    Check the file of a statement.

    Args:
        custodian_key: 32 bytes, known from elsewhere: a ticket, a manifest.toml.
        loan: that it must be of, None for any.
        policy: the reader's own, instead of those that are archived.
        as_of: judge evidence as of then, instead of as of its appraisal.
        receipts: a consumer's, checked by `check_receipts`.
        log: the custodian's, or a copy of its files.

    Raises:
        MalformedError, TooLargeError: not a statement.
        VerificationError: not signed by the custodian, or of another custodian or loan.
        UnavailableError: a file of the log cannot be had now.
    """
    file = read_file(data)
    verify_signature(
        custodian_key, Label.STATEMENT, file.statement.payload, file.statement.signature
    )
    statement = decode(file.statement.payload, Statement, max_bytes=MAX_STATEMENT_BYTES)
    if statement.custodian_key != custodian_key or loan not in (None, statement.loan):
        raise VerificationError(
            "a statement of another custodian or loan",
            code="statement.subject",
            expected=loan,
            came=statement.loan,
        )
    findings = Findings()
    archive: dict[bytes, bytes] = {}
    for name, body in file.archive.items():
        digest = sha256(body)
        if digest.hex() == name:
            archive[digest] = body
        else:
            findings.add(
                "archive.digest", name, "a document of the archive was changed", came=digest.hex()
            )
    with findings.noted("statement.model", statement.model_digest.hex()):
        model = verify_manifest(document(statement.manifest, archive), custodian_key)
        if model.digest != statement.model_digest:
            raise VerificationError(
                "the manifest is of another model than the loan's", came=model.digest.hex()
            )
    settlements = check_settlements(statement, findings)
    check_sums(statement, settlements, findings)
    counter_signed = check_grants(statement, findings)
    evidence = check_evidence(statement, archive, findings, policy=policy, as_of=as_of)
    covered = None
    if receipts is not None:
        covered = check_covered(
            statement, settlements, receipts.genuine, receipts.sessions, findings
        )
    logged = None
    if log is not None:
        logged = read_log(log, statement.loan, findings)
        check_logged(statement, settlements, logged, findings)
        if receipts is not None:
            check_receipts_logged(receipts.genuine, logged, findings)
    found = findings.all()
    return Verified(
        statement=statement,
        findings=found if receipts is None else (*receipts.findings, *found),
        counter_signed=counter_signed,
        settlements=settlements,
        evidence=evidence,
        covered=covered,
        logged=None if logged is None else len(logged.entries),
    )
