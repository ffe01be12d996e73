"""What was judged is kept as it came: enough to judge it again, nothing of what was refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import parse_policy
from aigovtool.attestation.verify import judge
from aigovtool.custodian.appraisal import MAX_DOCUMENTS
from aigovtool.errors import AIGovToolError, MalformedError, UnavailableError
from aigovtool.ids import SessionId, sha256
from aigovtool.wire.enrolment import ChallengeRequest, Documents
from tests.custodian.house import EnclaveSide, House, house
from tests.custodian.ledgers import REFUSALS, Bench, SetClock


@pytest.fixture
def made(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, clock=SetClock()) as custodian:
        yield custodian


def enrol(made: House, side: EnclaveSide, **dishonest: object) -> tuple[SessionId, bytes]:
    asked = ChallengeRequest(loan=made.lent.loan.loan)
    nonce = made.app.enrolment.challenge(made.ticket.token, asked).nonce
    evidence = made.evidence_for(nonce, side.keys, **dishonest)  # type: ignore[arg-type]
    request = made.request(nonce, side.keys, evidence)
    return made.app.enrolment.enrol(made.ticket.token, request).session, nonce


def kept_documents(made: House) -> int:
    connection = sqlite3.connect(made.app.folder.ledger)
    try:
        return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
    finally:
        connection.close()


def test_what_was_accepted_can_be_judged_again_from_the_ledger_alone(made: House) -> None:
    side = EnclaveSide.make()
    session, nonce = enrol(made, side)
    with made.app.ledger.read() as tx:
        (row,) = tx.appraisals_of_session(session)
        evidence = {name: tx.document(digest) for name, digest in row.evidence.items()}
        endorsements = {name: tx.document(digest) for name, digest in row.endorsements.items()}
        policy = tx.document(row.policy)
    assert row.nonce == nonce
    result = judge(
        Evidence(tee=Tee(row.tee), documents=evidence),
        Endorsements(tee=Tee(row.tee), documents=endorsements),
        parse_policy(policy),
        expected_report_data=report_data(
            AskedBy.CUSTODIAN,
            nonce=row.nonce,
            keys=EnclaveKeys(
                tls_spki_sha256=side.keys.tls_spki_sha256,
                signing_key=side.keys.signing_key,
                hpke_key=side.keys.hpke_key,
            ),
            custodian_key=made.app.key.public_key,
            loan_id=made.lent.loan.loan,
        ),
        now=row.judged,
    )
    assert result.measurement == "07" * 48


def test_what_appraisals_share_is_kept_once(made: House) -> None:
    enrol(made, EnclaveSide.make())
    before = kept_documents(made)
    enrol(made, EnclaveSide.make())
    assert kept_documents(made) == before + 1  # the quote; policy and endorsements are shared


def test_what_is_refused_does_not_fill_the_disk(made: House) -> None:
    with pytest.raises(AIGovToolError):
        enrol(made, EnclaveSide.make(), mr_td=bytes([8]) * 48)
    assert kept_documents(made) == 0


def test_too_many_documents_are_refused(made: House) -> None:
    side, asked = EnclaveSide.make(), ChallengeRequest(loan=made.lent.loan.loan)
    nonce = made.app.enrolment.challenge(made.ticket.token, asked).nonce
    many = Documents(
        tee="simulated", documents={str(number): b"" for number in range(MAX_DOCUMENTS + 1)}
    )
    with pytest.raises(MalformedError) as caught:
        made.app.enrolment.enrol(made.ticket.token, made.request(nonce, side.keys, many))
    assert caught.value.reasons[0].code == "evidence.documents"


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_evidence_is_kept_with_its_session_or_neither(ledger: Bench, how: str) -> None:
    loan = ledger.lend(10)
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.enclave(loan.loan)
    with ledger.ledger.read() as tx:
        sessions = tx.sessions_of_loan(loan.loan, 10)
        assert len(sessions) == (how == "kept")
        for session in sessions:
            (row,) = tx.appraisals_of_session(session.session)
            assert tx.document(row.evidence["quote"]) == b"evidence"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET body = substr(body, 2)",
        "DELETE FROM documents",
        "UPDATE appraisals SET judged_us = 0",
        "DELETE FROM appraisals",
        "UPDATE appraisal_documents SET name = 'other'",
        "DELETE FROM appraisal_documents",
    ],
)
def test_what_was_kept_is_never_changed(ledger: Bench, statement: str) -> None:
    ledger.enclave(ledger.lend(10).loan)
    before = ledger.dump()
    with pytest.raises(REFUSALS):
        ledger.run_sql(statement)
    assert ledger.dump() == before


def test_a_document_stays_as_it_was_first_kept(ledger: Bench) -> None:
    with ledger.store.write() as tx:
        tx.keep_document(sha256(b"a"), b"a")
        tx.keep_document(sha256(b"a"), b"another")
        assert tx.document(sha256(b"a")) == b"a"
