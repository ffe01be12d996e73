"""Each rule of `nitro.verify`, broken alone under a fake AWS whose other bytes are all right."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.cose import MAX_MESSAGE_BYTES, decode_cbor, parse_sign1
from aigovtool.attestation.nitro.layout import parse_document
from aigovtool.attestation.nitro.verify import CLOCK_SKEW, verify
from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError, VerificationError
from tests.attestation.fake_vendors import (
    DAY,
    NO_ENDORSEMENTS,
    NOW,
    FakeAws,
    certificate,
    der,
    nitro_evidence,
)
from tests.attestation.snp_nitro_vectors import load

AWS = FakeAws()
HEADER = b"\xa1\x01\x38\x22"
MILLISECOND = timedelta(milliseconds=1)


def judge(document: bytes) -> NitroClaims:
    return verify(nitro_evidence(document), NO_ENDORSEMENTS, now=NOW, roots=AWS.roots)


def refusal(document: bytes, error: type[AIGovToolError] = VerificationError) -> str:
    with pytest.raises(error) as caught:
        judge(document)
    return caught.value.reasons[0].code


def test_a_document_that_is_right() -> None:
    claims = judge(AWS.document(nonce=b"n" * 512, public_key=b"p" * 1024))
    assert claims.report_data == b"\xaa" * 64
    assert claims.parent_instance == "i-0123456789abcdef0"
    assert (claims.nonce, claims.public_key) == (b"n" * 512, b"p" * 1024)
    assert claims.pcrs[15] == "10" * 48
    assert not claims.debug


def test_a_fake_root_is_not_aws() -> None:
    with pytest.raises(VerificationError) as caught:
        verify(nitro_evidence(AWS.document()), NO_ENDORSEMENTS, now=NOW)
    assert caught.value.reasons[0].code == "certificate.root"


def test_optional_fields_may_be_left_out() -> None:
    claims = judge(AWS.document(user_data=..., nonce=..., public_key=...))
    assert (claims.user_data, claims.nonce, claims.public_key) == (None, None, None)
    assert claims.report_data == b""


def test_the_seventeenth_pcr() -> None:
    pcrs = AWS.fields()["pcrs"] | {16: b"\x11" * 48, 31: b"\x12" * 48}
    assert judge(AWS.document(pcrs=pcrs)).pcrs[31] == "12" * 48


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_zero_measurement_means_debug(index: int) -> None:
    pcrs = AWS.fields()["pcrs"] | {index: bytes(48)}
    assert judge(AWS.document(pcrs=pcrs)).debug


FIFTEEN = {index: bytes(48) for index in range(15)}


@pytest.mark.parametrize(
    "change",
    [
        {"module_id": ...},
        {"module_id": ""},
        {"module_id": "i" * 257},
        {"module_id": b"i-0"},
        {"digest": ...},
        {"digest": "SHA256"},
        {"digest": b"SHA384"},
        {"timestamp": ...},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": True},
        {"timestamp": 1.5},
        {"timestamp": 1 << 64},
        {"timestamp": "2026"},
        {"pcrs": ...},
        {"pcrs": []},
        {"pcrs": {}},
        {"pcrs": FIFTEEN},
        {"pcrs": FIFTEEN | {15: bytes(47)}},
        {"pcrs": FIFTEEN | {15: bytes(49)}},
        {"pcrs": FIFTEEN | {15: "0" * 48}},
        {"pcrs": FIFTEEN | {15: bytes(48), 32: bytes(48)}},
        {"pcrs": FIFTEEN | {15: bytes(48), -1: bytes(48)}},
        {"pcrs": FIFTEEN | {15: bytes(48), "16": bytes(48)}},
        {"certificate": ...},
        {"certificate": b""},
        {"certificate": bytes(1025)},
        {"certificate": None},
        {"cabundle": ...},
        {"cabundle": []},
        {"cabundle": {}},
        {"cabundle": [b""]},
        {"cabundle": [None]},
        {"cabundle": [bytes(1025)]},
        {"cabundle": [b"x"] * 9},
        {"public_key": b""},
        {"public_key": bytes(1025)},
        {"user_data": bytes(513)},
        {"user_data": "text"},
        {"nonce": bytes(513)},
        {"surplus": None},
        {1: None},
    ],
    ids=str,
)
def test_a_field_outside_its_limits(change: dict[Any, Any]) -> None:
    fields = AWS.fields() | change
    payload = cbor2.dumps({name: value for name, value in fields.items() if value is not ...})
    assert refusal(AWS.sign(payload), MalformedError) == "nitro.malformed"


def test_a_payload_that_is_not_a_map() -> None:
    for payload in (cbor2.dumps([]), cbor2.dumps(None), cbor2.dumps("x")):
        assert refusal(AWS.sign(payload), MalformedError) == "nitro.malformed"


def test_a_payload_read_in_two_ways() -> None:
    payload = cbor2.dumps(AWS.fields())
    twice = b"\xaa" + payload[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"second")
    for ambiguous in (twice, payload + b"\0", payload + payload, payload[:-1], b""):
        assert refusal(AWS.sign(ambiguous), MalformedError) == "cbor.malformed"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xa0",
        cbor2.dumps({1: -7}),  # ES256
        cbor2.dumps({1: -36}),  # ES512
        cbor2.dumps({1: -35, 4: b"kid"}),
        b"\xa1\x01\x39\x00\x22",  # the right algorithm, spelled longer
    ],
)
def test_another_protected_header(header: bytes) -> None:
    signed = AWS.sign(cbor2.dumps(AWS.fields()), header=header)
    assert refusal(signed, MalformedError) == "cose.malformed"


PAYLOAD = b"p"
SIGNATURE = bytes(96)


@pytest.mark.parametrize(
    "envelope",
    [
        cbor2.dumps([HEADER, {}, PAYLOAD]),
        cbor2.dumps([HEADER, {}, PAYLOAD, SIGNATURE, b""]),
        cbor2.dumps({0: HEADER}),
        cbor2.dumps([HEADER, {4: b"kid"}, PAYLOAD, SIGNATURE]),
        cbor2.dumps([HEADER, [], PAYLOAD, SIGNATURE]),
        cbor2.dumps([HEADER, {}, None, SIGNATURE]),
        cbor2.dumps([HEADER, {}, PAYLOAD, None]),
        cbor2.dumps([HEADER, {}, PAYLOAD, bytes(95)]),
        cbor2.dumps([HEADER, {}, PAYLOAD, bytes(97)]),
        cbor2.dumps([{1: -35}, {}, PAYLOAD, SIGNATURE]),
        cbor2.dumps(cbor2.CBORTag(17, [HEADER, {}, PAYLOAD, SIGNATURE])),
        b"\x9f" + cbor2.dumps([HEADER, {}, PAYLOAD, SIGNATURE])[1:] + b"\xff",
        b"\x98\x04" + cbor2.dumps([HEADER, {}, PAYLOAD, SIGNATURE])[1:],
    ],
)
def test_an_envelope_in_another_form(envelope: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_sign1(envelope)
    assert caught.value.reasons[0].code == "cose.malformed"


def test_a_message_larger_than_the_device_can_answer() -> None:
    with pytest.raises(TooLargeError):
        parse_sign1(bytes(MAX_MESSAGE_BYTES + 1))


def test_cbor_nested_too_deep() -> None:
    for deep in (b"\x81" * 5 + b"\0", b"\xa1\0" * 5 + b"\0", b"\x81" * 10_000):
        with pytest.raises(MalformedError):
            decode_cbor(deep)


def test_a_document_signed_by_another_key() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    payload = cbor2.dumps(AWS.fields())
    assert refusal(AWS.sign(payload, key=other)) == "cose.signature"


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, bytes(95) + b"\1"])
def test_signatures_outside_the_curves_order(signature: bytes) -> None:
    header, unprotected, payload, _ = cbor2.loads(AWS.document())
    forged = cbor2.dumps([header, unprotected, payload, signature])
    assert refusal(forged) == "cose.signature"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"not_after": NOW - DAY / 2}, "certificate.expired"),
        ({"not_before": NOW + DAY / 2}, "certificate.not_yet_valid"),
        ({"digital_signature": False}, "certificate.constraints"),
        ({"ca": True, "cert_sign": True}, "certificate.constraints"),
        ({"issuer_name": "fake.nitro-enclaves"}, "certificate.signature"),
    ],
)
def test_a_certificate_that_may_not_sign_documents(wrong: dict[str, Any], code: str) -> None:
    issuer = wrong.pop("issuer_name", "zonal")
    how = {"ca": False, "cert_sign": False, "crl_sign": False, "digital_signature": True} | wrong
    leaf = certificate("hypervisor", AWS.key, issuer, AWS.zonal_key, **how)
    assert refusal(AWS.document(certificate=der(leaf))) == code


def test_a_document_signed_by_an_intermediate() -> None:
    # The zonal certificate is genuine, and may sign certificates: not documents.
    payload = cbor2.dumps(AWS.fields(certificate=der(AWS.zonal), cabundle=[der(AWS.root)]))
    assert refusal(AWS.sign(payload, key=AWS.zonal_key)) == "certificate.constraints"


def test_an_enclave_that_issues_certificates_itself() -> None:
    rogue_key = ec.generate_private_key(ec.SECP384R1())
    how = {"ca": False, "cert_sign": False, "crl_sign": False, "digital_signature": True}
    rogue = certificate("rogue", rogue_key, "hypervisor", AWS.key, **how)
    bundle = [der(AWS.root), der(AWS.zonal), der(AWS.leaf())]
    payload = cbor2.dumps(AWS.fields(certificate=der(rogue), cabundle=bundle))
    assert refusal(AWS.sign(payload, key=rogue_key)) == "certificate.constraints"


def test_a_chain_longer_than_an_intermediate_allows() -> None:
    sub_key = ec.generate_private_key(ec.SECP384R1())
    sub = certificate("sub", sub_key, "zonal", AWS.zonal_key)
    how = {"ca": False, "cert_sign": False, "crl_sign": False, "digital_signature": True}
    leaf = certificate("hypervisor", AWS.key, "sub", sub_key, **how)
    bundle = [der(AWS.root), der(AWS.zonal), der(sub)]
    document = AWS.document(certificate=der(leaf), cabundle=bundle)
    assert refusal(document) == "certificate.constraints"


def test_a_bundle_in_the_wrong_order() -> None:
    document = AWS.document(cabundle=[der(AWS.zonal), der(AWS.root)])
    assert refusal(document) == "certificate.root"


def test_a_key_on_another_curve() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    how = {"ca": False, "cert_sign": False, "crl_sign": False, "digital_signature": True}
    leaf = certificate("hypervisor", key, "zonal", AWS.zonal_key, **how)
    payload = cbor2.dumps(AWS.fields(certificate=der(leaf)))
    assert refusal(AWS.sign(payload, key=AWS.key)) == "nitro.key"


def test_a_timestamp_that_cannot_be_true() -> None:
    for when in (NOW + CLOCK_SKEW + MILLISECOND, NOW - DAY - CLOCK_SKEW - MILLISECOND):
        document = AWS.document(timestamp=round(when.timestamp() * 1000))
        assert refusal(document) == "nitro.timestamp"
    for when in (NOW + CLOCK_SKEW, NOW - DAY):
        document = AWS.document(timestamp=round(when.timestamp() * 1000))
        assert judge(document).timestamp == when


def documents() -> list[bytes]:
    return [vector.evidence.document("document") for vector in load(Tee.NITRO)]


@st.composite
def mutated(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """A document of the corpus with some bytes overwritten, cut out or put in."""
    data = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=8))
        cut = draw(st.integers(0, 8))
        data[at : at + cut] = piece
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutated(documents()), st.binary(max_size=64)))
@example(b"\xd8\x1c\x81\xd8\x1d\x00")  # a cycle made of shared references
@example(b"\xd8\x23\x61(")  # a regular expression that does not compile
@example(b"\x9b" + b"\xff" * 8)  # an array of 2^64 - 1 items
@example(b"\x5b\x7f" + b"\xff" * 7)  # a string of 2^63 - 1 bytes
@example(b"\xc2\x41\x01")
@example(b"\x61\xff")
def test_any_bytes_are_verified_or_refused(data: bytes) -> None:
    for vector in load(Tee.NITRO)[:2]:
        try:
            verify(nitro_evidence(data), NO_ENDORSEMENTS, now=vector.time)
        except (MalformedError, VerificationError):
            continue
        assert data.removeprefix(b"\xd2") in documents()


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutated([cbor2.loads(d)[2] for d in documents()]), st.binary(max_size=64)))
def test_any_payload_is_a_document_or_malformed(payload: bytes) -> None:
    try:
        document = parse_document(payload)
    except MalformedError:
        return
    assert set(range(16)) <= document.pcrs.keys()
    assert {len(pcr) for pcr in document.pcrs.values()} == {48}
