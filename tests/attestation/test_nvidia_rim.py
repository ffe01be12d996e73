"""RIMs: signature wrapping, entities, other algorithms, forged signers, empty manifests."""

from __future__ import annotations

import contextlib
import sys
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigovtool.attestation.nvidia import rim as rims
from aigovtool.attestation.nvidia.rim import Rim, Validity, verify_rim
from aigovtool.attestation.nvidia.xmldsig import MAX_DOCUMENT_BYTES
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    MalformedError,
    TooLargeError,
    VerificationError,
)
from tests.attestation.fake_nvidia import (
    DAY,
    MEASUREMENTS,
    NOW,
    FakeNvidia,
    make,
    sign_document,
    swid,
)

FAKE = FakeNvidia()
VALUES = {5: [MEASUREMENTS[6]], 7: [bytes(48), MEASUREMENTS[8]]}
SWID_TAG = swid(version="1.0", values=VALUES)
SIGNED = FAKE.sign_rim(SWID_TAG)


@pytest.fixture(autouse=True)
def _our_root(monkeypatch: pytest.MonkeyPatch) -> None:
    pin = FAKE.rim_root.certificate.fingerprint(hashes.SHA256())
    monkeypatch.setattr(rims, "RIM_ROOTS", frozenset({pin}))


def read(data: bytes, *, now: datetime = NOW) -> Rim:
    return verify_rim(data, now=now)


def test_a_rim_gives_its_reference_values() -> None:
    rim = read(SIGNED)
    assert rim.accepted == {
        6: frozenset({MEASUREMENTS[6]}),
        8: frozenset({bytes(48), MEASUREMENTS[8]}),
    }
    assert (rim.product, rim.version, rim.tag_id) == ("GH100", "1.0", "tag-1.0")
    assert (rim.validity, len(rim.chain)) == (Validity.VALID, 3)


@pytest.mark.parametrize(
    ("product", "version", "yes"),
    [
        ("GH100", "1.0", True),
        ("GH_100", "1.0", True),
        ("GH100", "1.1", False),
        ("GB100", "1.0", False),
        ("GH100", None, False),
    ],
)
def test_a_rim_describes_one_version_of_one_product(
    product: str, version: str | None, yes: bool
) -> None:
    assert read(SIGNED).describes(product, version) is yes


# --- signature wrapping --------------------------------------------------------------------------


def forged_values() -> bytes:
    return swid(version="1.0", values={5: [bytes(48)]})


def cut(data: bytes, start: bytes, end: bytes) -> bytes:
    return data[data.index(start) : data.index(end) + len(end)]


SIGNATURE = cut(SIGNED, b"<Signature", b"</Signature>")


def test_the_signature_of_another_document_is_refused() -> None:
    forged = forged_values().replace(b"</SoftwareIdentity>", SIGNATURE + b"</SoftwareIdentity>")
    with pytest.raises(VerificationError, match="not what its signature is about"):
        read(forged)


def test_a_forged_document_around_the_genuine_one_is_refused() -> None:
    wrapped = forged_values().replace(b"</SoftwareIdentity>", SIGNED + b"</SoftwareIdentity>")
    with pytest.raises(MalformedError, match="exactly one signature below its root"):
        read(wrapped)


def test_the_genuine_document_inside_the_signature_of_a_forged_one_is_refused() -> None:
    payload = cut(SIGNED, b"<Payload>", b"</Payload>")
    inside = SIGNATURE.replace(b"</Signature>", b"<Object>" + payload + b"</Object></Signature>")
    forged = forged_values().replace(b"</SoftwareIdentity>", inside + b"</SoftwareIdentity>")
    with pytest.raises(MalformedError, match="another form"):
        read(forged)


def test_two_payloads_are_refused_even_when_both_are_signed() -> None:
    payload = cut(SIGNED, b"<Payload>", b"</Payload>").decode()
    two = FAKE.sign_rim(swid(version="1.0", values=VALUES, extra=payload))
    with pytest.raises(MalformedError, match="one Payload"):
        read(two)


def test_two_signatures_and_none_are_refused() -> None:
    twice = SIGNED.replace(SIGNATURE, SIGNATURE * 2)
    for forged in (twice, SWID_TAG):
        with pytest.raises(MalformedError, match="exactly one signature"):
            read(forged)


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        (b'URI=""', b'URI="#part"'),
        (b"#enveloped-signature", b"#base64"),
        (b'xml-c14n11"/><Sig', b'xml-c14n11#WithComments"/><Sig'),
        (b"#ecdsa-sha384", b"#hmac-sha384"),
        (b"xmldsig-more#sha384", b"xmldsig#sha1"),
        (b"<SignatureMethod ", b'<SignatureMethod Id="x" '),
        (b"<DigestValue>", b"<DigestValue><x/>"),
        (b"</Reference>", b"</Reference><Reference/>"),
        (b"<X509Certificate>", b"<X509Certificate><x/>"),
        (b"<X509Data>", b"<KeyValue/><X509Data>"),
        (b"<X509Data>", b"<X509Data><X509CRL/>"),
        (b"<KeyInfo>", b"<KeyInfo>x</KeyInfo><KeyInfo>"),
        (b"<X509Certificate>MII", b"<X509Certificate>***"),
        (b"<X509Certificate>MII", b"<X509Certificate>AAA"),
        (b"<SignedInfo>", b'<SignedInfo Id="x">'),
    ],
)
def test_any_other_form_of_signature_is_malformed(was: bytes, is_: bytes) -> None:
    assert was in SIGNED
    with pytest.raises(MalformedError):
        read(SIGNED.replace(was, is_, 1))


def test_a_signature_whose_digest_was_adjusted_to_forged_values_is_refused() -> None:
    forged = sign_document(forged_values(), [FAKE.rim_signer], FAKE.rim_ca.key)
    digest = cut(forged, b"<DigestValue>", b"</DigestValue>")
    adjusted = SIGNATURE.replace(cut(SIGNED, b"<DigestValue>", b"</DigestValue>"), digest)
    body = forged_values().replace(b"</SoftwareIdentity>", adjusted + b"</SoftwareIdentity>")
    with pytest.raises(VerificationError, match="not signed by"):
        read(body)


def test_white_space_around_the_signature_is_signed_and_stays_where_it_was() -> None:
    before = SWID_TAG.replace(b"</SoftwareIdentity>", b" \n \n</SoftwareIdentity>")
    signed = FAKE.sign_rim(before)
    assert read(signed.replace(b" \n \n<Signature", b" \n<Signature").replace(
        b"</Signature>", b"</Signature> \n"
    )) == read(signed)  # fmt: skip
    with pytest.raises(VerificationError):
        read(signed.replace(b"</Signature>", b"</Signature>\n"))
    first = SIGNED.replace(SIGNATURE, b"").replace(b"<Meta", SIGNATURE + b"<Meta", 1)
    assert read(first).accepted == read(SIGNED).accepted
    root_first = FAKE.sign_rim(SWID_TAG.replace(b">\n<Meta", b"><Meta", 1))
    alone = cut(root_first, b"<Signature", b"</Signature>")
    moved = root_first.replace(alone, b"").replace(b"<Meta", alone + b"<Meta", 1)
    assert read(moved).accepted == read(SIGNED).accepted
    with pytest.raises(VerificationError):
        read(moved.replace(b"</Signature>", b"</Signature>x"))


# --- entities, instructions, size ----------------------------------------------------------------

BILLION_LAUGHS = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("prolog", [BILLION_LAUGHS, EXTERNAL, b"<!DOCTYPE x>"])
def test_documents_with_entities_are_refused_before_they_are_read(prolog: bytes) -> None:
    with pytest.raises(MalformedError, match="document type"):
        read(prolog + SIGNED)


def test_a_document_type_cannot_hide_in_another_encoding() -> None:
    text = EXTERNAL.decode() + SIGNED.decode()
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        with pytest.raises(MalformedError):
            read(text.encode(encoding))
    for declared in (b'<?xml version="1.0" encoding="UTF-7"?>', b"\xff"):
        with contextlib.suppress(MalformedError):
            assert read(declared + SIGNED) == read(SIGNED)


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        (b"<Payload>", b"<Payload><!-- a -->"),
        (b"<Payload>", b"<Payload><?run this?>"),
        (b"<Payload>", b'<Payload xml:base="https://example.org">'),
        (b"<Payload>", b'<Payload xml:lang="en">'),
        (b"<Payload>", b"<Payload>&unknown;"),
        (b"<Payload>", b"<Payload"),
        (b"<SoftwareIdentity", b"<!-- a --><SoftwareIdentity"),
        (b"</SoftwareIdentity>", b"</SoftwareIdentity><?run this?>"),
        (b"<SoftwareIdentity ", b'<SoftwareIdentity xmlns:r="relative" '),
    ],
)
def test_what_a_canonical_form_would_treat_specially_is_malformed(was: bytes, is_: bytes) -> None:
    with pytest.raises(MalformedError):
        read(SIGNED.replace(was, is_, 1))


def test_a_huge_document_is_not_parsed() -> None:
    with pytest.raises(TooLargeError):
        read(SIGNED + b" " * MAX_DOCUMENT_BYTES)


def test_without_lxml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml.etree", None)
    with pytest.raises(ConfigurationError) as refused:
        read(SIGNED)
    assert refused.value.reasons[0].mend == "install aigovtool[nvidia]"


# --- signers -------------------------------------------------------------------------------------


def test_a_signer_that_nvidia_did_not_certify_is_refused() -> None:
    other = FakeNvidia()
    with pytest.raises(VerificationError) as refused:
        read(other.sign_rim(SWID_TAG))
    assert refused.value.reasons[0].code == "certificate.root"
    with pytest.raises(VerificationError):
        read(FAKE.sign_rim(SWID_TAG, other.rim_signer, FAKE.rim_ca, FAKE.rim_root))
    with pytest.raises(VerificationError, match="not signed by"):
        read(FAKE.sign_rim(SWID_TAG, signer=other.rim_signer))


def test_an_authority_itself_signs_no_rim() -> None:
    with pytest.raises(VerificationError) as refused:
        read(FAKE.sign_rim(SWID_TAG, FAKE.rim_ca, FAKE.rim_root))
    assert refused.value.reasons[0].code == "certificate.constraints"


def test_keys_that_are_not_p384_sign_no_rim() -> None:
    signer = make("signer", FAKE.rim_ca, ca=False, curve=ec.SECP256R1())
    with pytest.raises(MalformedError, match="P-384"):
        read(FAKE.sign_rim(SWID_TAG, signer, FAKE.rim_ca, FAKE.rim_root))


@pytest.mark.parametrize(
    ("days", "validity"),
    [(0, Validity.VALID), (-400, Validity.NOT_YET_VALID), (400, Validity.EXPIRED)],
)
def test_signers_out_of_their_time_are_told_and_not_refused(days: int, validity: Validity) -> None:
    assert read(SIGNED, now=NOW + days * DAY).validity is validity


def test_a_forged_chain_is_refused_at_any_time() -> None:
    other = FakeNvidia()
    for days in (-400, 0, 400):
        with pytest.raises(VerificationError):
            read(other.sign_rim(SWID_TAG), now=NOW + days * DAY)


def test_a_chain_that_was_never_valid_at_one_time_is_refused() -> None:
    past = make("old signer", FAKE.rim_ca, ca=False, until=NOW - 300 * DAY)
    late = FAKE.sign_rim(SWID_TAG, past, FAKE.rim_ca, FAKE.rim_root)
    assert read(late).validity is Validity.EXPIRED
    key = ec.generate_private_key(ec.SECP384R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(past.certificate.subject)
        .issuer_name(FAKE.rim_ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW + 400 * DAY)
        .not_valid_after(NOW + 500 * DAY)
    )
    from tests.attestation.fake_nvidia import Holder

    never = Holder(builder.sign(FAKE.rim_ca.key, hashes.SHA384()), key)
    for days in (0, 450):
        with pytest.raises(VerificationError):
            read(FAKE.sign_rim(SWID_TAG, never, FAKE.rim_ca, FAKE.rim_root), now=NOW + days * DAY)


# --- contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        ('index="5"', 'index="7"'),
        ('index="5"', 'index="254"'),
        ('index="5"', 'index="-1"'),
        ('index="5"', 'index="five"'),
        ('index="5"', 'index="12345"'),
        ('active="True"', 'active="maybe"'),
        ('alternatives="2"', 'alternatives="1"'),
        ('alternatives="2"', 'alternatives="3"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('size="48"', 'size="32"'),
        ('h:Hash0="', 'h:Hash0="zz'),
        ('type="Measurement"', 'type="File"'),
        ("<Resource", "<Other"),
        ('product="GH100"', 'product=""'),
        ('colloquialVersion="1.0"', 'other="1.0"'),
        ("<Meta", '<Meta colloquialVersion="2.0" product="GH100"/><Meta'),
        ("SoftwareIdentity", "Software"),
    ],
)
def test_a_signed_rim_that_makes_no_sense_is_malformed(was: str, is_: str) -> None:
    count = -1 if was == "SoftwareIdentity" else 1
    text = SWID_TAG.decode()
    assert was in text
    with pytest.raises(MalformedError):
        read(FAKE.sign_rim(text.replace(was, is_, count).encode()))


def test_a_rim_that_compares_nothing_is_malformed() -> None:
    inactive = swid(version="1.0", values=VALUES, active="False")
    for document in (inactive, swid(version="1.0", values={})):
        with pytest.raises(MalformedError, match="active"):
            read(FAKE.sign_rim(document))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    at=st.integers(0, len(SIGNED) - 1),
    remove=st.integers(0, 4),
    insert=st.binary(max_size=4) | st.sampled_from([b"<", b"&", b'"', b"</", b"<!", b"<?", b"]]>"]),
)
def test_only_our_errors_leave_the_reader(at: int, remove: int, insert: bytes) -> None:
    with contextlib.suppress(AIGovToolError):
        read(SIGNED[:at] + insert + SIGNED[at + remove :])
