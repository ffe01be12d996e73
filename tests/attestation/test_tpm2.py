"""TPM 2.0 quotes: every recorded case, every flipped byte, forged keys and certificates."""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.tpm2 import certificate as ak_certificates
from aigovtool.attestation.tpm2 import layout
from aigovtool.attestation.tpm2.policy import Tpm2Policy, appraise
from aigovtool.attestation.tpm2.verify import (
    AK_CERTIFICATE,
    AK_INTERMEDIATES,
    AK_PUBLIC,
    PCRS,
    QUOTE,
    SIGNATURE,
    qualifying_data,
    verify,
)
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    VerificationError,
)
from tests.attestation.azure_nvidia_vectors import (
    Case,
    case_of,
    cases,
    flips,
    tpm2_parts,
    with_document,
    without_document,
)

NOW = datetime(2026, 6, 23, 11, tzinfo=UTC)
STRICT = Tpm2Policy(attestation_keys="certified", pcrs="any", clock="any")
FREE = Tpm2Policy(attestation_keys="any", pcrs="any", clock="any")
REASONS = {"AK has no certificate: signature valid, AK not anchored": "tpm2.ak"}
FIXED_RESTRICTED_SIGN = 0x00050072
PCR0 = bytes(range(32))


# --- recorded evidence ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("tpm2"))
def test_recorded_case_gives_what_the_manifest_expects(case: Case) -> None:
    evidence, endorsements = tpm2_parts(case)
    claims = verify(evidence, endorsements, now=case.now)
    assert case.expected["authentic"]
    reasons = appraise(claims, STRICT)
    assert ("reject" if reasons else "accept") == case.expected["strict_policy"]
    assert {reason.code for reason in reasons} == {REASONS[r] for r in case.expected["reasons"]}
    assert claims.report_data == bytes.fromhex(case.fields["qualifying_data"])
    assert not claims.debug


def test_claims_hold_the_quoted_pcrs_of_every_bank() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    claims = verify(*tpm2_parts(case), now=case.now)
    assert set(claims.pcrs) == {"sha1", "sha256", "sha384"}
    values = json.loads(case.file("pcrs_sha256.json"))
    assert {str(i): v.hex() for i, v in claims.pcrs[layout.Hash.SHA256].items()} == values
    assert claims.measurement == layout.parse_quote(case.file("quote_sha384.msg")).pcr_digest.hex()
    assert (claims.reset_count, claims.clock_safe) == (10, True)


def test_any_flipped_bit_of_the_key_is_refused_or_changes_nothing_that_is_claimed() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    genuine = verify(evidence, endorsements, now=case.now)
    accepted = []
    for at, body in enumerate(flips(evidence.documents[AK_PUBLIC])):
        try:
            claims = verify(with_document(evidence, AK_PUBLIC, body), endorsements, now=case.now)
        except (VerificationError, MalformedError):
            continue
        assert claims == genuine
        accepted.append(at)
    # Only the attributes that do not make an attestation key (userWithAuth and its neighbours):
    # an unanchored public area is the attester's word, and a certificate names the key alone.
    assert set(accepted) <= {4, 5, 6, 7}


def test_pcr_values_swapped_between_two_pcrs_are_refused() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    values = json.loads(case.file("pcrs_sha256.json"))
    values["0"], values["4"] = values["4"], values["0"]
    forged = with_document(evidence, PCRS.format(bank="sha256"), json.dumps(values).encode())
    with pytest.raises(VerificationError, match="do not give the quoted digest"):
        verify(forged, endorsements, now=case.now)


def test_a_pcr_value_that_was_not_quoted_is_refused() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    values = json.loads(case.file("pcrs_sha256.json"))
    del values["7"]
    forged = with_document(evidence, PCRS.format(bank="sha256"), json.dumps(values).encode())
    with pytest.raises(VerificationError) as refused:
        verify(forged, endorsements, now=case.now)
    assert refused.value.reasons[0].code == "tpm2.pcrs"


@pytest.mark.parametrize(
    "values",
    [
        b"",
        b"3",
        b'["00"]',
        b'{"24":"' + b"00" * 32 + b'"}',
        b'{"0":"' + b"00" * 32 + b'","00":"' + b"00" * 32 + b'"}',
        b'{"x":"' + b"00" * 32 + b'"}',
        b'{"0":"zz"}',
    ],
)
def test_pcr_documents_that_are_none_are_malformed(values: bytes) -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    with pytest.raises(MalformedError):
        verify(
            with_document(evidence, PCRS.format(bank="sha256"), values), endorsements, now=case.now
        )


def test_without_pcr_values_nothing_is_claimed_of_them() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    evidence = without_document(evidence, PCRS.format(bank="sha256"))
    claims = verify(evidence, endorsements, now=case.now)
    assert layout.Hash.SHA256 not in claims.pcrs


def test_no_quote_is_no_evidence() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    for bank in ("sha1", "sha256", "sha384"):
        evidence = without_document(evidence, QUOTE.format(bank=bank))
    with pytest.raises(MalformedError, match="without a quote"):
        verify(evidence, endorsements, now=case.now)


def test_a_quote_of_a_weak_bank_under_the_name_of_a_strong_one_is_refused() -> None:
    case = case_of("tpm2/gce-shielded-vm")
    evidence, endorsements = tpm2_parts(case)
    for name in (QUOTE, SIGNATURE):
        weak = evidence.documents[name.format(bank="sha1")]
        evidence = with_document(evidence, name.format(bank="sha256"), weak)
    with pytest.raises(VerificationError) as refused:
        verify(evidence, endorsements, now=case.now)
    assert refused.value.reasons[0].code == "tpm2.bank"


# --- a TPM of our own ----------------------------------------------------------------------------


class SoftTpm:
    """Writes TPM structures with a key of its own; what the recorded evidence does not show."""

    def __init__(self, kind: str = "rsassa", *, bits: int = 2048) -> None:
        self.kind = kind
        self.key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "ecdsa"
            else rsa.generate_private_key(65537, bits)
        )

    def public_area(self, attributes: int = FIXED_RESTRICTED_SIGN, symmetric: int = 0x10) -> bytes:
        key, head = self.key.public_key(), attributes.to_bytes(4) + _sized(b"")
        if isinstance(key, ec.EllipticCurvePublicKey):
            point = key.public_numbers()
            xy = _sized(point.x.to_bytes(32)) + _sized(point.y.to_bytes(32))
            parameters = _u16(symmetric, 0x18, 0x0B, 0x03, 0x10)
            return _u16(0x23, 0x0B) + head + parameters + xy
        scheme = _u16(0x10) if self.kind == "rsapss" else _u16(0x14, 0x0B)
        n = key.public_numbers().n
        parameters = _u16(symmetric) + scheme + _u16(key.key_size) + bytes(4)
        return _u16(0x01, 0x0B) + head + parameters + _sized(n.to_bytes(key.key_size // 8))

    def sign(self, message: bytes, hash_id: int = 0x0B) -> bytes:
        sha = {0x04: hashes.SHA1(), 0x0B: hashes.SHA256(), 0x0C: hashes.SHA384()}[hash_id]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(sha)))
            return _u16(0x18, hash_id) + _sized(r.to_bytes(32)) + _sized(s.to_bytes(32))
        if self.kind == "rsapss":
            pss = padding.PSS(padding.MGF1(sha), padding.PSS.DIGEST_LENGTH)
            return _u16(0x16, hash_id) + _sized(self.key.sign(message, pss, sha))
        return _u16(0x14, hash_id) + _sized(self.key.sign(message, padding.PKCS1v15(), sha))

    def evidence(self, **changes: bytes) -> Evidence:
        message = changes.get("message", quote_message())
        return Evidence(
            tee=Tee.TPM2,
            documents={
                AK_PUBLIC: changes.get("public", self.public_area()),
                QUOTE.format(bank="sha256"): message,
                SIGNATURE.format(bank="sha256"): changes.get("signature", self.sign(message)),
            },
        )


def quote_message(
    *,
    extra: bytes = b"nonce",
    selection: bytes = bytes.fromhex("00000001000b03010000"),
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    safe: int = 1,
    reset_count: int = 1,
    hash_name: str = "sha256",
) -> bytes:
    digest = hashlib.new(hash_name, PCR0).digest()
    clock = bytes(8) + reset_count.to_bytes(4) + bytes(4) + bytes([safe]) + bytes(8)
    head = magic.to_bytes(4) + _u16(kind) + _sized(b"\x00\x0b" + bytes(32)) + _sized(extra)
    return head + clock + selection + _sized(digest)


def _u16(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2) for number in numbers)


def _sized(body: bytes) -> bytes:
    return len(body).to_bytes(2) + body


TPM = SoftTpm()
NOTHING = Endorsements(tee=Tee.TPM2)


@pytest.mark.parametrize("kind", ["rsassa", "rsapss", "ecdsa"])
def test_every_scheme_verifies_its_own_and_refuses_another_keys_signature(kind: str) -> None:
    tpm, other = SoftTpm(kind), SoftTpm(kind)
    claims = verify(tpm.evidence(), NOTHING, now=NOW)
    assert (claims.report_data, claims.certified) == (b"nonce", False)
    with pytest.raises(VerificationError, match="not signed by the attestation key"):
        verify(tpm.evidence(signature=other.sign(quote_message())), NOTHING, now=NOW)


def test_a_signature_of_a_scheme_the_key_cannot_have_used_is_refused() -> None:
    forged = SoftTpm("ecdsa").sign(quote_message())
    with pytest.raises(VerificationError) as refused:
        verify(TPM.evidence(signature=forged), NOTHING, now=NOW)
    assert refused.value.reasons[0].code == "tpm2.signature"


@pytest.mark.parametrize("attribute", list(layout.Attribute))
def test_a_key_that_may_sign_what_the_tpm_did_not_make_is_refused(
    attribute: layout.Attribute,
) -> None:
    area = TPM.public_area(FIXED_RESTRICTED_SIGN ^ attribute)
    with pytest.raises(VerificationError) as refused:
        verify(TPM.evidence(public=area), NOTHING, now=NOW)
    assert refused.value.reasons[0].code == "tpm2.ak_attributes"


def test_sha1_signatures_and_short_rsa_keys_are_refused() -> None:
    message = quote_message(hash_name="sha1")
    with pytest.raises(VerificationError, match="not accepted"):
        verify(TPM.evidence(message=message, signature=TPM.sign(message, 0x04)), NOTHING, now=NOW)
    with pytest.raises(VerificationError, match="not accepted"):
        verify(SoftTpm(bits=1024).evidence(), NOTHING, now=NOW)


def test_the_pcr_digest_is_by_the_hash_of_the_signature() -> None:
    message = quote_message(hash_name="sha384")
    evidence = TPM.evidence(message=message, signature=TPM.sign(message, 0x0C))
    values = json.dumps({"0": PCR0.hex()}).encode()
    claims = verify(with_document(evidence, PCRS.format(bank="sha256"), values), NOTHING, now=NOW)
    assert claims.pcrs == {layout.Hash.SHA256: {0: PCR0}}


@pytest.mark.parametrize(
    "change",
    [
        {"magic": 0xFF544348},
        {"kind": 0x8017},
        {"safe": 2},
        {"selection": bytes(4)},
        {"selection": bytes.fromhex("00000001000d03000000")},
        {"selection": bytes.fromhex("00000001000b0400000001")},
        {"selection": bytes.fromhex("00000001ffff03010000")},
        {"selection": bytes.fromhex("00000002000b03010000000c03010000")},
    ],
)
def test_what_is_no_quote_of_one_pcr_bank_is_malformed(change: dict[str, int | bytes]) -> None:
    message = quote_message(**change)
    with pytest.raises(MalformedError):
        verify(TPM.evidence(message=message), NOTHING, now=NOW)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x08), (2, 0x12), (10, 0x06), (12, 0x15), (14, 0x12), (16, 2047), (22, 0x0101)],
)
def test_public_areas_of_other_kinds_are_malformed(at: int, value: int) -> None:
    area = TPM.public_area()
    with pytest.raises(MalformedError):
        verify(TPM.evidence(public=area[:at] + _u16(value) + area[at + 2 :]), NOTHING, now=NOW)


def test_points_off_the_curve_unknown_curves_and_even_exponents_are_malformed() -> None:
    area = SoftTpm("ecdsa").public_area()
    for at, value in ((16, 0x20), (18, 0x22), (len(area) - 2, 0)):
        with pytest.raises(MalformedError):
            verify(TPM.evidence(public=area[:at] + _u16(value) + area[at + 2 :]), NOTHING, now=NOW)
    area = TPM.public_area()
    with pytest.raises(MalformedError):
        verify(TPM.evidence(public=area[:18] + b"\0\0\0\2" + area[22:]), NOTHING, now=NOW)


def test_unknown_signature_algorithms_are_malformed() -> None:
    for forged in (_u16(0x1A, 0x0B, 0, 0), _u16(0x14, 0x12, 0)):
        with pytest.raises(MalformedError):
            verify(TPM.evidence(signature=forged), NOTHING, now=NOW)


@pytest.mark.parametrize("change", [{"extra": b"another"}, {"reset_count": 2}])
def test_quotes_of_two_occasions_do_not_make_one_evidence(change: dict[str, object]) -> None:
    selection = bytes.fromhex("00000001000c03010000")
    other = quote_message(selection=selection, **change)
    evidence = TPM.evidence()
    evidence = with_document(evidence, QUOTE.format(bank="sha384"), other)
    evidence = with_document(evidence, SIGNATURE.format(bank="sha384"), TPM.sign(other))
    with pytest.raises(VerificationError) as refused:
        verify(evidence, NOTHING, now=NOW)
    assert refused.value.reasons[0].code == "tpm2.nonce"


def test_qualifying_data_is_the_hash_of_what_must_be_committed_to() -> None:
    assert qualifying_data(bytes(64)) == hashlib.sha256(bytes(64)).digest()
    claims = verify(TPM.evidence(message=quote_message(extra=b"x")), NOTHING, now=NOW)
    assert claims.commitment_to(bytes(64)) == qualifying_data(bytes(64))


# --- AK certificates -----------------------------------------------------------------------------


class Authority:
    """A root, an intermediate, and AK certificates under them."""

    def __init__(self) -> None:
        self.root_key = ec.generate_private_key(ec.SECP384R1())
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.root = _certificate("root", self.root_key.public_key(), "root", self.root_key, ca=True)
        self.ca = _certificate("ca", self.key.public_key(), "root", self.root_key, ca=True)

    def issue(self, key: object, *usages: str) -> bytes:
        return _certificate("ak", key, "ca", self.key, usages=usages).public_bytes(Encoding.DER)

    def intermediates(self) -> bytes:
        return self.ca.public_bytes(Encoding.PEM)


def _certificate(
    subject: str,
    key: object,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = False,
    usages: tuple[str, ...] = (),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True
        )
    )
    if usages:
        oids = [x509.ObjectIdentifier(usage) for usage in usages]
        builder = builder.add_extension(x509.ExtendedKeyUsage(oids), critical=False)
    return builder.sign(signer, hashes.SHA384())


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority()
    pin = made.root.fingerprint(hashes.SHA256())
    monkeypatch.setattr(ak_certificates, "AK_ROOTS", frozenset({pin}))
    monkeypatch.setattr(ak_certificates, "_roots", lambda: (made.root,))
    return made


AIK = "2.23.133.8.3"


def _certified(certificate: bytes, intermediates: bytes | None) -> Endorsements:
    documents = {AK_CERTIFICATE: certificate}
    if intermediates is not None:
        documents[AK_INTERMEDIATES] = intermediates
    return Endorsements(tee=Tee.TPM2, documents=documents)


def test_a_certified_key_is_claimed_and_accepted(authority: Authority) -> None:
    certificate = authority.issue(TPM.key.public_key(), AIK)
    endorsements = _certified(certificate, authority.intermediates())
    claims = verify(TPM.evidence(), endorsements, now=NOW)
    assert claims.certified
    assert appraise(claims, STRICT) == []


def test_a_certificate_for_another_key_is_refused(authority: Authority) -> None:
    certificate = authority.issue(SoftTpm().key.public_key(), AIK)
    with pytest.raises(VerificationError, match="another key"):
        verify(TPM.evidence(), _certified(certificate, authority.intermediates()), now=NOW)


@pytest.mark.parametrize("usages", [(), ("1.3.6.1.5.5.7.3.1",)])
def test_a_certificate_that_is_not_for_attestation_is_refused(
    authority: Authority, usages: tuple[str, ...]
) -> None:
    certificate = authority.issue(TPM.key.public_key(), *usages)
    with pytest.raises(VerificationError, match="not for an attestation key"):
        verify(TPM.evidence(), _certified(certificate, authority.intermediates()), now=NOW)


def test_a_chain_that_does_not_reach_a_pinned_root_is_refused(authority: Authority) -> None:
    certificate = authority.issue(TPM.key.public_key(), AIK)
    for intermediates in (None, b"", Authority().intermediates()):
        with pytest.raises(VerificationError):
            verify(TPM.evidence(), _certified(certificate, intermediates), now=NOW)


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    certificate = authority.issue(TPM.key.public_key(), AIK)
    endorsements = _certified(certificate, authority.intermediates())
    with pytest.raises(VerificationError, match="expired"):
        verify(TPM.evidence(), endorsements, now=NOW + timedelta(days=2))


def test_certificates_with_no_key_of_ours_are_malformed(authority: Authority) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    odd = authority.issue(Ed25519PrivateKey.generate().public_key(), AIK)
    for certificate in (odd, b"not a certificate", authority.intermediates() * 2):
        with pytest.raises(MalformedError):
            verify(TPM.evidence(), _certified(certificate, None), now=NOW)


def test_a_loop_of_issuers_ends() -> None:
    one, two = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    first = _certificate("one", one.public_key(), "two", two, ca=True)
    second = _certificate("two", two.public_key(), "one", one, ca=True)
    assert len(ak_certificates.order_chain(first, [first, second])) < 12


def test_the_pinned_root_is_the_one_in_the_package() -> None:
    assert {root.fingerprint(hashes.SHA256()) for root in ak_certificates._roots()} == set(
        ak_certificates.AK_ROOTS
    )


# --- policy --------------------------------------------------------------------------------------


def _claims() -> object:
    values = json.dumps([PCR0.hex()]).encode()
    evidence = with_document(TPM.evidence(), PCRS.format(bank="sha256"), values)
    return verify(evidence, NOTHING, now=NOW)


CLAIMS = _claims()


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"attestation_keys": "certified"}, ["tpm2.ak"]),
        ({"attestation_keys": ("00" * 32,)}, ["tpm2.ak"]),
        ({"attestation_keys": ()}, ["tpm2.ak"]),
        ({"attestation_keys": (CLAIMS.platform_id,)}, []),
        ({"pcrs": {"sha256:0": (PCR0.hex(),)}}, []),
        ({"pcrs": {"sha256:0": ("11" * 32, PCR0.hex())}}, []),
        ({"pcrs": {"sha256:0": ("11" * 32,)}}, ["tpm2.pcr"]),
        ({"pcrs": {"sha256:0": ()}}, ["tpm2.pcr"]),
        ({"pcrs": {"sha256:1": ("11" * 32,), "sha384:0": ("11" * 48,)}}, ["tpm2.pcr"] * 2),
        ({"clock": "safe"}, []),
    ],
)
def test_each_field_of_the_policy_refuses_what_it_should(
    change: dict[str, object], codes: list[str]
) -> None:
    policy = msgspec.structs.replace(FREE, **change)
    reasons = appraise(CLAIMS, policy)
    assert [reason.code for reason in reasons] == codes
    assert all(reason.mend for reason in reasons)


def test_a_clock_that_may_have_run_backwards_is_refused_when_it_must_be_safe() -> None:
    claims = verify(TPM.evidence(message=quote_message(safe=0)), NOTHING, now=NOW)
    policy = msgspec.structs.replace(FREE, clock="safe")
    assert [reason.code for reason in appraise(claims, policy)] == ["tpm2.clock"]
    assert appraise(claims, FREE) == []


TABLE = 'tee = "tpm2"\nattestation_keys = "any"\npcrs = "any"\nclock = "any"\n'


@pytest.mark.parametrize("field", ["attestation_keys", "pcrs", "clock"])
def test_a_policy_with_a_field_left_out_is_an_error(field: str) -> None:
    assert msgspec.toml.decode(TABLE, type=Tpm2Policy) == FREE
    table = "".join(line for line in TABLE.splitlines(True) if not line.startswith(field))
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.toml.decode(table, type=Tpm2Policy)


@pytest.mark.parametrize(
    "change",
    [
        'pcrs = {"sha1:0" = ["{}"]}',
        'pcrs = {"sha256:24" = []}',
        'pcrs = {"sha256:00" = []}',
        'pcrs = {"sha256:x" = []}',
        'pcrs = {"sha256" = []}',
        'pcrs = {"sha256:0" = ["00"]}',
        'pcrs = "none"',
        'attestation_keys = ["00"]',
        'attestation_keys = "certain"',
        'clock = "unsafe"',
    ],
)
def test_a_policy_that_cannot_match_is_an_error(change: str) -> None:
    field = change.partition(" ")[0]
    kept = [line for line in TABLE.splitlines() if not line.startswith(field)]
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.toml.decode("\n".join([*kept, change]), type=Tpm2Policy)


# --- fuzz ----------------------------------------------------------------------------------------

PARSERS = [layout.parse_quote, layout.parse_public, layout.parse_signature]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=400))
def test_only_our_errors_leave_a_parser(parse: object, data: bytes) -> None:
    with contextlib.suppress(AIGovToolError):
        parse(data)


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (layout.parse_quote, quote_message()),
        (layout.parse_public, TPM.public_area()),
        (layout.parse_signature, TPM.sign(b"")),
        (layout.parse_public, SoftTpm("ecdsa").public_area()),
        (layout.parse_signature, SoftTpm("ecdsa").sign(b"")),
    ],
    ids=["quote", "public-rsa", "signature-rsa", "public-ecdsa", "signature-ecdsa"],
)
def test_a_structure_cut_short_or_with_a_tail_is_malformed(parse: object, body: bytes) -> None:
    parse(body)
    for size in range(len(body)):
        with pytest.raises(MalformedError):
            parse(body[:size])
    with pytest.raises(MalformedError, match="after its end"):
        parse(body + b"\0")


@given(at=st.integers(0, 10_000), with_=st.binary(min_size=1, max_size=4), which=st.integers(0, 2))
def test_only_our_errors_leave_the_verifier(at: int, with_: bytes, which: int) -> None:
    evidence = TPM.evidence()
    name = sorted(evidence.documents)[which]
    body = evidence.documents[name]
    at %= len(body)
    changed = body[:at] + with_ + body[at + len(with_) :]
    with contextlib.suppress(AIGovToolError):
        verify(with_document(evidence, name, changed), NOTHING, now=NOW)
