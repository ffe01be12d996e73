"""Each rule of `x509chain`, broken alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.attestation.x509chain import (
    MAX_CHAIN_CERTIFICATES,
    check_validity,
    common_name,
    fingerprint,
    load_certificates,
    name_of,
    verify_chain,
    verify_crl,
    verify_issued_by,
)
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from tests.attestation.fake_vendors import DAY, NOW, certificate, crl, der, pem

SECOND = timedelta(seconds=1)
ROOT_KEY, CA_KEY, LEAF_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY)
CA = certificate("ca", CA_KEY, "root", ROOT_KEY, path_length=0)
LEAF_USE: dict[str, Any] = {"ca": False, "cert_sign": False, "crl_sign": False}
LEAF = certificate("leaf", LEAF_KEY, "ca", CA_KEY, digital_signature=True, **LEAF_USE)
PINS = frozenset({fingerprint(ROOT)})
UNKNOWN = x509.ObjectIdentifier("1.2.3.4")


def refusal(
    *chain: x509.Certificate, error: type[AIGovToolError] = VerificationError, **how: Any
) -> str:
    with pytest.raises(error) as caught:
        verify_chain(chain, **({"root_fingerprints": PINS, "now": NOW} | how))
    return caught.value.reasons[0].code


def test_a_chain_that_is_right() -> None:
    verify_chain([LEAF, CA, ROOT], root_fingerprints=PINS, now=NOW)
    verify_chain([CA, ROOT], root_fingerprints=PINS, now=NOW, first_is_issuer=True)
    verify_chain([ROOT], root_fingerprints=PINS, now=NOW, first_is_issuer=True)


def test_a_root_that_is_not_pinned() -> None:
    twin = certificate("root", ROOT_KEY, "root", ROOT_KEY)
    assert refusal(LEAF, CA, twin) == "certificate.root"
    assert refusal(LEAF, CA) == "certificate.root"
    assert refusal(LEAF, CA, ROOT, root_fingerprints=frozenset()) == "certificate.root"


def test_a_pinned_root_in_the_middle_is_no_root() -> None:
    assert refusal(LEAF, ROOT, CA) == "certificate.root"


def test_a_chain_of_no_or_too_many_certificates() -> None:
    assert refusal(error=MalformedError) == "certificate.malformed"
    many = [LEAF, *[CA] * (MAX_CHAIN_CERTIFICATES - 1), ROOT]
    assert refusal(*many, error=MalformedError) == "certificate.malformed"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_certificate_must_be_valid_at_the_time(which: int) -> None:
    times = {"not_before": NOW - 2 * DAY, "not_after": NOW + 2 * DAY}
    spans: list[dict[str, Any]] = [times, times, times]
    spans[which] = {"not_before": NOW - DAY, "not_after": NOW + DAY}
    root = certificate("root", ROOT_KEY, "root", ROOT_KEY, **spans[2])
    ca = certificate("ca", CA_KEY, "root", ROOT_KEY, **spans[1])
    leaf = certificate("l", LEAF_KEY, "ca", CA_KEY, digital_signature=True, **LEAF_USE, **spans[0])
    pins = frozenset({fingerprint(root)})
    for now in (NOW - DAY, NOW + DAY):
        verify_chain([leaf, ca, root], root_fingerprints=pins, now=now)
    for now, code in (
        (NOW - DAY - SECOND, "certificate.not_yet_valid"),
        (NOW + DAY + SECOND, "certificate.expired"),
    ):
        assert refusal(leaf, ca, root, root_fingerprints=pins, now=now) == code


@pytest.mark.parametrize(
    "wrong",
    [{"ca": False}, {"ca": None}, {"cert_sign": False}, {"key_usage": False}],
    ids=str,
)
def test_an_issuer_that_may_not_issue(wrong: dict[str, Any]) -> None:
    ca = certificate("ca", CA_KEY, "root", ROOT_KEY, **wrong)
    assert refusal(LEAF, ca, ROOT) == "certificate.constraints"
    assert refusal(ca, ROOT, first_is_issuer=True) == "certificate.constraints"


def test_a_path_longer_than_allowed() -> None:
    below = certificate("below", CA_KEY, "ca", CA_KEY)
    leaf = certificate("leaf", LEAF_KEY, "below", CA_KEY, digital_signature=True, **LEAF_USE)
    assert refusal(leaf, below, CA, ROOT) == "certificate.constraints"
    assert refusal(below, CA, ROOT, first_is_issuer=True) == "certificate.constraints"
    longer = certificate("ca", CA_KEY, "root", ROOT_KEY, path_length=1)
    verify_chain([leaf, below, longer, ROOT], root_fingerprints=PINS, now=NOW)


@pytest.mark.parametrize(
    "wrong", [{"digital_signature": False}, {"digital_signature": True, "ca": True}], ids=str
)
def test_a_leaf_that_is_not_for_signing_evidence(wrong: dict[str, Any]) -> None:
    leaf = certificate("leaf", LEAF_KEY, "ca", CA_KEY, **(LEAF_USE | wrong))
    assert refusal(leaf, CA, ROOT) == "certificate.constraints"


def test_a_leaf_without_constraints_is_a_leaf() -> None:
    leaf = certificate("leaf", LEAF_KEY, "ca", CA_KEY, ca=None, key_usage=False)
    verify_chain([leaf, CA, ROOT], root_fingerprints=PINS, now=NOW)


def test_a_critical_extension_that_nobody_understands() -> None:
    extensions = ((x509.UnrecognizedExtension(UNKNOWN, b"\x05\x00"), True),)
    leaf = certificate(
        "leaf", LEAF_KEY, "ca", CA_KEY, digital_signature=True, extensions=extensions, **LEAF_USE
    )
    assert refusal(leaf, CA, ROOT) == "certificate.critical_extension"
    verify_chain(
        [leaf, CA, ROOT],
        root_fingerprints=PINS,
        now=NOW,
        understood_critical=frozenset({UNKNOWN}),
    )


def test_a_signature_by_another_key() -> None:
    forged = certificate("leaf", LEAF_KEY, "ca", LEAF_KEY, digital_signature=True, **LEAF_USE)
    assert refusal(forged, CA, ROOT) == "certificate.signature"


def test_the_right_key_under_another_name() -> None:
    other = certificate("leaf", LEAF_KEY, "other", CA_KEY, digital_signature=True, **LEAF_USE)
    assert refusal(other, CA, ROOT) == "certificate.signature"


def test_a_weak_hash() -> None:
    weak = certificate("leaf", LEAF_KEY, "ca", CA_KEY, algorithm=hashes.SHA224(), **LEAF_USE)
    with pytest.raises(VerificationError) as caught:
        verify_issued_by(weak, CA)
    assert caught.value.reasons[0].code == "certificate.algorithm"


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 1024), ed25519.Ed25519PrivateKey.generate()],
    ids=["rsa-1024", "ed25519"],
)
def test_a_key_of_a_kind_that_no_vendor_uses(key: Any) -> None:
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    odd = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA256() if is_rsa else None)
    )
    with pytest.raises(VerificationError) as caught:
        verify_issued_by(odd, odd)
    assert caught.value.reasons[0].code == "certificate.algorithm"


def test_a_flipped_byte_in_a_certificate() -> None:
    whole = der(LEAF)
    for position in range(len(whole)):
        data = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        with pytest.raises((MalformedError, VerificationError)):
            verify_chain(
                [*load_certificates(data, what="leaf"), CA, ROOT], root_fingerprints=PINS, now=NOW
            )


def test_certificates_are_read_from_pem_and_der() -> None:
    assert load_certificates(der(LEAF), what="leaf") == [LEAF]
    assert load_certificates(pem(LEAF, CA, ROOT), what="chain") == [LEAF, CA, ROOT]


def test_a_file_of_too_many_certificates() -> None:
    with pytest.raises(MalformedError, match="too many"):
        load_certificates(pem(*[ROOT] * (MAX_CHAIN_CERTIFICATES + 1)), what="chain")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_are_certificates_or_malformed(data: st.DataObject) -> None:
    document = bytearray(data.draw(st.sampled_from([der(LEAF), der(CA), pem(LEAF, CA), b""])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(document)))
        document[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        chain = load_certificates(bytes(document), what="fuzz")
        verify_chain([*chain, ROOT], root_fingerprints=PINS, now=NOW)
    except (MalformedError, VerificationError):
        pass


def test_a_name_that_is_not_text_is_malformed() -> None:
    for name in (b"leaf", b"\x0c\x02ca"):
        unreadable = der(LEAF).replace(name, name[:-2] + b"\xff\xff")
        assert unreadable != der(LEAF)
        with pytest.raises(MalformedError):
            load_certificates(unreadable, what="leaf")
        # Whoever loads a certificate in another way can still be told which one is wrong.
        odd = x509.load_der_x509_certificate(unreadable)
        assert common_name(odd) == ("" if name == b"leaf" else "leaf")
        assert refusal(odd, CA, ROOT) == "certificate.signature"


def test_names_in_messages_are_bounded() -> None:
    assert common_name(CA) == "ca"
    assert name_of(CA) == "certificate 'ca'"
    nameless = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(CA_KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(CA_KEY, hashes.SHA384())
    )
    assert common_name(nameless) == ""


def test_the_span_of_validity_is_closed() -> None:
    check_validity(NOW, NOW, now=NOW, what="it")
    far = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    check_validity(NOW, far, now=far, what="it")
    with pytest.raises(VerificationError, match="not yet"):
        check_validity(NOW, NOW, now=NOW - SECOND, what="it")


class TestRevokedSerials:
    def test_are_listed(self) -> None:
        assert verify_crl(crl("root", ROOT_KEY), issuer=ROOT, now=NOW).revoked == frozenset()
        listed = crl("root", ROOT_KEY, revoked=(5, 6))
        assert verify_crl(listed, issuer=ROOT, now=NOW).revoked == frozenset({5, 6})

    def test_of_an_issuer_that_may_not_sign_them(self) -> None:
        mute = certificate("root", ROOT_KEY, "root", ROOT_KEY, crl_sign=False)
        with pytest.raises(VerificationError, match="not signed"):
            verify_crl(crl("root", ROOT_KEY), issuer=mute, now=NOW)

    @pytest.mark.parametrize(
        "extension",
        [
            x509.DeltaCRLIndicator(1),
            x509.IssuingDistributionPoint(None, None, True, False, None, False, False),
        ],
        ids=["delta", "only user certificates"],
    )
    def test_of_a_part_are_not_taken_for_the_whole(self, extension: x509.ExtensionType) -> None:
        partial = crl("root", ROOT_KEY, extensions=((extension, True),))
        with pytest.raises(VerificationError, match="may not be complete"):
            verify_crl(partial, issuer=ROOT, now=NOW)

    def test_at_the_edges_of_their_time(self) -> None:
        data = crl("root", ROOT_KEY)
        for now in (NOW - DAY, NOW + DAY):
            assert verify_crl(data, issuer=ROOT, now=now).revoked == frozenset()
        for now in (NOW - DAY - SECOND, NOW + DAY + SECOND):
            with pytest.raises(VerificationError, match="not current"):
                verify_crl(data, issuer=ROOT, now=now)

    def test_in_a_changed_list(self) -> None:
        whole = crl("root", ROOT_KEY, revoked=(5,))
        signature = x509.load_der_x509_crl(whole).signature
        # How many bits of the signature do not count is not signed, and says nothing.
        for position in set(range(len(whole))) - {len(whole) - len(signature) - 1}:
            data = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
            with pytest.raises((MalformedError, VerificationError)):
                verify_crl(data, issuer=ROOT, now=NOW)

    def test_in_pem_are_not_read(self) -> None:
        parsed = x509.load_der_x509_crl(crl("root", ROOT_KEY))
        with pytest.raises(MalformedError):
            verify_crl(parsed.public_bytes(Encoding.PEM), issuer=ROOT, now=NOW)
