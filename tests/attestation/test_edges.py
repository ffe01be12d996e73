"""Rules that no recorded vector breaks: each broken alone, and every kind's accepted state."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.collateral import (
    documents_from_json,
    documents_to_json,
    is_version_2,
    read_tcb_info,
    verify_p256,
)
from aigovtool.attestation.dcap.pck import read_pck_extension
from aigovtool.attestation.ear.vector import vector_of_accepted, vector_of_refused
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.kinds import appraise_claims, tee_of
from aigovtool.attestation.propose import propose
from aigovtool.attestation.strict import strict_policy
from aigovtool.attestation.verify import verify
from aigovtool.attestation.x509chain import load_certificates
from aigovtool.errors import (
    MalformedError,
    PromiseBrokenError,
    Reason,
    VerificationError,
)
from tests.attestation.flips import Target, targets
from tests.shared_data import shared

TARGETS = {target.vector.id: target for target in targets()}
FIRST_OF_EACH_KIND = list({target.evidence.tee: target for target in TARGETS.values()}.values())
CONDEMNING = 96


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_what_a_policy_made_from_evidence_accepts_is_never_called_condemned(
    target: Target,
) -> None:
    claims = target.verify()
    rules: Any = propose(claims)
    refusals = {reason.code for reason in appraise_claims(claims, rules)}

    vector = vector_of_accepted(claims, rules)

    assert vector.executables < CONDEMNING
    if not refusals:
        assert vector.hardware < CONDEMNING
        assert all(status < CONDEMNING for status in vector.claims())


@pytest.mark.parametrize("target", FIRST_OF_EACH_KIND, ids=lambda target: target.vector.id)
def test_claims_meet_only_policies_of_their_kind(target: Target) -> None:
    claims = target.verify()
    other: Any = strict_policy(Tee.NITRO if target.evidence.tee is not Tee.NITRO else Tee.SGX)

    assert tee_of(claims) is target.evidence.tee
    with pytest.raises(PromiseBrokenError):
        appraise_claims(claims, other)
    with pytest.raises(PromiseBrokenError):
        vector_of_accepted(claims, other)


def test_what_nobody_verified_is_no_claims() -> None:
    stranger: Any = object()
    for ask in (tee_of, propose):
        with pytest.raises(PromiseBrokenError):
            ask(stranger)


def test_that_others_refused_too_says_nothing_of_the_attester() -> None:
    others = Reason(code="policy.others", message="2 more alternatives refuse it")
    assert vector_of_refused([others]) == vector_of_refused([])


@pytest.mark.parametrize(
    ("tee", "vector"), [(Tee.SGX, "tdx/v5-up-to-date"), (Tee.TDX, "sgx/v3-debug")]
)
def test_a_quote_of_the_other_kind_of_enclave(tee: Tee, vector: str) -> None:
    target = TARGETS[vector]
    evidence = Evidence(tee=tee, documents=target.evidence.documents)
    endorsements = type(target.endorsements)(tee=tee, documents=target.endorsements.documents)

    with pytest.raises(MalformedError) as refused:
        verify(evidence, endorsements, now=target.case.verification_time)
    assert refused.value.reasons[0].code == "dcap.quote.tee"


class TestCollateral:
    DOCUMENTS = TARGETS["tdx/v5-up-to-date"].endorsements.documents

    def test_a_list_that_is_not_hexadecimal(self) -> None:
        members = json.loads(documents_to_json(self.DOCUMENTS))
        with pytest.raises(MalformedError, match="pck_crl cannot be read"):
            documents_from_json(json.dumps({**members, names.PCK_CRL: "xyz"}).encode())

    def test_text_that_is_not_utf8(self) -> None:
        with pytest.raises(MalformedError, match="not UTF-8"):
            documents_to_json({**self.DOCUMENTS, names.TCB_INFO: b"\xff"})

    def test_a_signature_of_another_length_or_key(self) -> None:
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        with pytest.raises(MalformedError):
            verify_p256(key, bytes(63), b"", what="it")
        with pytest.raises(VerificationError) as refused:
            verify_p256(key, bytes(64), b"", what="it")
        assert refused.value.reasons[0].code == "dcap.signature.key"

    def test_version_2_with_other_components_than_its_own(self) -> None:
        text = json.loads(TARGETS["sgx/v3-tcbinfo-v2"].endorsements.document(names.TCB_INFO))
        assert read_tcb_info(json.dumps(text).encode()).id == "SGX"
        for change in ({"sgxtcbcomp01svn": 256}, {"sgxtcbcomp17svn": 1}):
            changed = json.loads(json.dumps(text))
            changed["tcbLevels"][0]["tcb"].update(change)
            with pytest.raises(MalformedError, match="other components"):
                read_tcb_info(json.dumps(changed).encode())

    @pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"version": "2"}'])
    def test_what_is_no_tcb_info_is_not_version_2(self, text: bytes) -> None:
        assert not is_version_2(text)

    def test_a_certificate_without_intels_extension(self) -> None:
        root = shared("evidence", "roots", "intel_sgx_root_ca.der").read_bytes()
        with pytest.raises(MalformedError) as refused:
            read_pck_extension(load_certificates(root, what="root")[0])
        assert refused.value.reasons[0].code == "dcap.pck.extension"
