"""Recorded Nitro documents are judged as the manifest says, and only whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest

from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.policy import appraise
from aigovtool.attestation.nitro.verify import AWS_ROOTS, verify
from aigovtool.attestation.x509chain import fingerprint, load_certificates
from aigovtool.errors import MalformedError, VerificationError
from tests.attestation.fake_vendors import NO_ENDORSEMENTS, nitro_evidence
from tests.attestation.snp_nitro_vectors import (
    Vector,
    all_cases,
    load,
    nitro_policy,
    one,
    time_of,
)
from tests.shared_data import shared

STRICT = nitro_policy(debug="forbidden")
SECOND = timedelta(seconds=1)

# The manifest's reasons are for people; these are the codes they become here. A document that is
# not genuine has no claims, so nothing more is said of it: its debug mode is nobody's claim.
CODES = {
    "certificate expired": "certificate.expired",
    "debug: PCR0..PCR2 are zero": "nitro.debug",
    "signature chain: COSE signature does not verify": "cose.signature",
    "signature chain: the leaf certificate does not parse": "nitro.certificate",
    "signature chain: root certificate is not the AWS Nitro Enclaves root": "certificate.root",
}

CASES = all_cases(Tee.NITRO)
AUTHENTIC = [vector for vector in load(Tee.NITRO) if vector.authentic]
IDS = [vector.id for vector in AUTHENTIC]


def check(document: bytes, now: datetime) -> tuple[bool, list[str], NitroClaims | None]:
    """Return authentic, codes against it, and the claims."""
    try:
        claims = verify(nitro_evidence(document), NO_ENDORSEMENTS, now=now)
    except (MalformedError, VerificationError) as error:
        return False, [reason.code for reason in error.reasons], None
    return True, [reason.code for reason in appraise(claims, STRICT)], claims


@pytest.mark.parametrize(("_", "vector", "case"), CASES, ids=[case[0] for case in CASES])
def test_vector_is_judged_as_the_manifest_says(
    _: str, vector: Vector, case: dict[str, Any]
) -> None:
    authentic, codes, _claims = check(vector.evidence.document("document"), time_of(case))
    expected = case["expected"]
    assert authentic is expected["authentic"]
    assert ("reject" if codes else "accept") == expected["strict_policy"]
    assert codes == [CODES[reason] for reason in expected["reasons"][:1]]


@pytest.mark.parametrize("vector", AUTHENTIC, ids=IDS)
def test_claims_are_what_the_manifest_read(vector: Vector) -> None:
    claims = verify(vector.evidence, vector.endorsements, now=vector.time)
    milliseconds = (claims.timestamp - datetime.fromtimestamp(0, UTC)) / timedelta(milliseconds=1)
    assert vector.fields == {
        "module_id": claims.module_id,
        "timestamp_ms": round(milliseconds),
        "digest": "SHA384",
        "pcrs_nonzero": {str(i): pcr for i, pcr in claims.pcrs.items() if int(pcr, 16)},
        "pcr_count": len(claims.pcrs),
        "debug": claims.debug,
        "user_data": (claims.user_data or b"").hex(),
        "nonce": (claims.nonce or b"").hex(),
        "public_key": (claims.public_key or b"").hex(),
    }
    assert claims.report_data == (claims.user_data or b"")
    assert claims.measurement == claims.pcrs[0]
    assert claims.platform_id == claims.parent_instance
    assert claims.module_id.startswith(claims.parent_instance + "-enc")
    assert claims.verified_at == vector.time


@pytest.mark.parametrize("vector", AUTHENTIC, ids=IDS)
def test_certificates_must_be_valid_at_the_stated_time(vector: Vector) -> None:
    document = vector.evidence.document("document")
    opens, closes = (datetime.fromisoformat(edge) for edge in vector.cases[0]["window"])
    assert check(document, closes)[0] is True
    assert check(document, closes + SECOND)[1] == ["certificate.expired"]
    assert check(document, opens - SECOND)[1] == ["certificate.not_yet_valid"]
    # When the window opens the certificates are valid, but the document may not exist yet.
    written = verify(vector.evidence, vector.endorsements, now=vector.time).timestamp
    if written - opens > timedelta(minutes=5):
        assert check(document, opens)[1] == ["nitro.timestamp"]
    else:
        assert check(document, opens)[0] is True


@pytest.mark.parametrize("vector", AUTHENTIC, ids=IDS)
def test_another_enclaves_signature_does_not_vouch_for_a_document(vector: Vector) -> None:
    header, unprotected, payload, _signature = cbor2.loads(vector.evidence.document("document"))
    for other in AUTHENTIC:
        if other is vector:
            continue
        foreign = cbor2.loads(other.evidence.document("document"))[3]
        crossed = cbor2.dumps([header, unprotected, payload, foreign])
        assert check(crossed, vector.time)[1] == ["cose.signature"]


def test_another_enclaves_certificate_does_not_vouch_for_a_document() -> None:
    ours = one(Tee.NITRO, "nitro/production").evidence.document("document")
    theirs = one(Tee.NITRO, "nitro/debug").evidence.document("document")
    header, unprotected, payload, signature = cbor2.loads(ours)
    fields = cbor2.loads(payload)
    for taken in (["certificate"], ["certificate", "cabundle"]):
        changed = fields | {name: cbor2.loads(cbor2.loads(theirs)[2])[name] for name in taken}
        crossed = cbor2.dumps([header, unprotected, cbor2.dumps(changed), signature])
        now = one(Tee.NITRO, "nitro/production").time
        assert check(crossed, now)[0] is False


def test_a_tagged_message_is_the_same_message() -> None:
    vector = AUTHENTIC[0]
    document = vector.evidence.document("document")
    tagged = check(b"\xd2" + document, vector.time)[2]
    assert tagged == check(document, vector.time)[2]
    assert check(b"\xd2\xd2" + document, vector.time)[1] == ["cose.malformed"]


@pytest.mark.parametrize("change", [b"", b"\x80", b"\x00", b"\xa0", b"\xf6", b"\x84"])
def test_bytes_that_are_no_document_are_malformed(change: bytes) -> None:
    with pytest.raises(MalformedError):
        verify(nitro_evidence(change), NO_ENDORSEMENTS, now=AUTHENTIC[0].time)


def test_a_document_is_neither_cut_nor_extended() -> None:
    vector = AUTHENTIC[0]
    document = vector.evidence.document("document")
    for changed in (document[:-1], document + b"\0", document[1:], document * 2):
        assert check(changed, vector.time)[0] is False


def test_a_missing_document_is_malformed() -> None:
    evidence = replace(AUTHENTIC[0].evidence, documents={})
    with pytest.raises(MalformedError, match="without the document"):
        verify(evidence, NO_ENDORSEMENTS, now=AUTHENTIC[0].time)


def test_the_pin_is_awss_root() -> None:
    path = shared("evidence", "roots", "aws_nitro_enclaves_root_g1.pem")
    [root] = load_certificates(path.read_bytes(), what=path.name)
    assert frozenset({fingerprint(root)}) == AWS_ROOTS
