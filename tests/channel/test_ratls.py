"""Evidence in certificates: read by others, and never enough for us."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import cbor2
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.attestation import cmw
from aigovtool.attestation.binding import AskedBy, report_data
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.verify import check_binding, verify
from aigovtool.channel.address import parse_address
from aigovtool.channel.connect import open_channel
from aigovtool.channel.ratls import (
    CMW,
    MAX_EXTENSION_BYTES,
    TAGGED_EVIDENCE,
    certificate_extensions,
    read_certificate,
)
from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.tls import TlsIdentity, make_enclave_identity
from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError, VerificationError
from aigovtool.wire.enrolment import AttestationDocument, Documents
from tests.channel.stand_in import Platform, Session, StandIn, World
from tests.shared_data import shared

PLATFORM = Platform.make()
NONCE = bytes(range(32))
Attest = Callable[[bytes], Evidence]


def now() -> datetime:
    return datetime.now(UTC)


def as_kind(tee: Tee) -> Attest:
    """Attest by the simulated machine, whose quotes are TDX quotes but for their root."""

    def attest(data: bytes) -> Evidence:
        return Evidence(tee=tee, documents={"quote": PLATFORM.machine.quote(PLATFORM.mr_td, data)})

    return attest


def identity_of(attest: Attest) -> TlsIdentity:
    return make_enclave_identity(now=now(), extensions=certificate_extensions(attest))


def identity_with(*extensions: tuple[x509.ObjectIdentifier, bytes]) -> TlsIdentity:
    """A certificate with these very bytes in it."""
    return make_enclave_identity(
        now=now(), extensions=lambda _: [x509.UnrecognizedExtension(*each) for each in extensions]
    )


def extension(identity: TlsIdentity, oid: x509.ObjectIdentifier) -> bytes:
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    found = certificate.extensions.get_extension_for_oid(oid)
    assert not found.critical
    value: Any = found.value
    body: bytes = value.value
    return body


def spki(identity: TlsIdentity) -> bytes:
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# --- what others read --------------------------------------------------------------------------


def test_the_tagged_evidence_is_as_gramine_reads_it() -> None:
    """The steps of Gramine's verifier, written down once more without our reader."""
    identity = identity_of(as_kind(Tee.TDX))
    tagged = cbor2.loads(extension(identity, x509.ObjectIdentifier("2.23.133.5.4.9")))
    assert tagged.tag == 60000
    quote, claims = tagged.value
    digest_kind, digest = cbor2.loads(cbor2.loads(claims)["pubkey-hash"])
    assert (digest_kind, digest) == (1, hashlib.sha256(spki(identity)).digest())
    in_the_quote = quote[48 + 520 : 48 + 584]  # REPORTDATA of a TD report in a quote, version 4
    assert in_the_quote == hashlib.sha256(claims).digest() + bytes(32)


def test_the_cmw_extension_is_an_octet_string_with_a_collection() -> None:
    identity = identity_of(as_kind(Tee.TDX))
    body = extension(identity, x509.ObjectIdentifier("1.3.6.1.5.5.7.1.35"))
    assert body[0] == 0x04
    assert body[1] == 0x82
    assert int.from_bytes(body[2:4]) == len(body) - 4
    collection = cbor2.loads(body[4:])
    assert collection["__cmwc_t"].endswith("evidence/tdx")
    media_type, quote, indicator = collection["quote"]
    assert media_type == "application/vnd.aigovtool.tdx.quote"
    assert indicator == 4  # evidence
    assert quote == cbor2.loads(extension(identity, TAGGED_EVIDENCE)).value[0]


def test_a_simulated_quote_is_never_passed_off_as_tdx() -> None:
    identity = identity_of(as_kind(Tee.SIMULATED))
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    assert TAGGED_EVIDENCE not in {each.oid for each in certificate.extensions}
    assert read_certificate(identity.certificate_pem).evidence.tee is Tee.SIMULATED


def test_what_was_written_is_read_and_verifies() -> None:
    identity = identity_of(as_kind(Tee.SIMULATED))
    read = read_certificate(identity.certificate_pem)
    assert read.spki_sha256 == identity.spki_sha256
    claims = verify(read.evidence, PLATFORM.machine.endorsements(now()), now=now())
    check_binding(claims, read.report_data)


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.NITRO, Tee.COMPOSITE])
def test_any_tee_fits_the_cmw_extension(tee: Tee) -> None:
    documents = {"report": bytes(1184), "nvidia.device.0.report": b"\1" * 5000}
    evidence = Evidence(tee=tee, documents=documents)
    identity = identity_of(lambda _: evidence)
    assert read_certificate(identity.certificate_pem).evidence == evidence


def test_a_certificate_of_another_tool_is_read() -> None:
    """Tagged evidence alone, with claims that we do not make; its quote is a recorded SGX quote."""
    quote = shared("evidence", "sgx", "v3-config-and-swhardening", "quote.bin").read_bytes()
    claims = b""

    def extensions(spki_sha256: bytes) -> Iterable[x509.ExtensionType]:
        nonlocal claims
        claims = cbor2.dumps({"nonce": b"n", "pubkey-hash": cbor2.dumps([1, spki_sha256])})
        tagged = cbor2.dumps(cbor2.CBORTag(60000, [quote, claims]))
        return [x509.UnrecognizedExtension(TAGGED_EVIDENCE, tagged)]

    identity = make_enclave_identity(now=now(), extensions=extensions)
    read = read_certificate(identity.certificate_pem)
    assert read.evidence == Evidence(tee=Tee.SGX, documents={"quote": quote})
    assert read.report_data == hashlib.sha256(claims).digest() + bytes(32)


def test_an_enclave_without_such_evidence_has_the_certificate_it_always_had() -> None:
    certificate = x509.load_pem_x509_certificate(make_enclave_identity(now=now()).certificate_pem)
    assert len(certificate.extensions) == 1


# --- attacks on the certificate ----------------------------------------------------------------


def test_extensions_copied_into_another_certificate_are_about_another_key() -> None:
    victim = identity_of(as_kind(Tee.TDX))
    stolen = (TAGGED_EVIDENCE, extension(victim, TAGGED_EVIDENCE))
    with pytest.raises(VerificationError, match="another key"):
        read_certificate(identity_with(stolen).certificate_pem)


def test_a_copied_quote_with_claims_rewritten_is_not_bound() -> None:
    victim = identity_of(as_kind(Tee.TDX))
    quote, _ = cbor2.loads(extension(victim, TAGGED_EVIDENCE)).value
    thief = identity_of(lambda _: Evidence(tee=Tee.SIMULATED, documents={"quote": quote}))
    read = read_certificate(thief.certificate_pem)
    claims = verify(read.evidence, PLATFORM.machine.endorsements(now()), now=now())
    with pytest.raises(VerificationError) as caught:
        check_binding(claims, read.report_data)
    assert caught.value.reasons[0].code == "binding"


def test_two_extensions_about_different_evidence_are_refused() -> None:
    one, two = identity_of(as_kind(Tee.TDX)), as_kind(Tee.TDX)(bytes(64))

    def extensions(spki_sha256: bytes) -> list[x509.ExtensionType]:
        tagged, _ = reversed(certificate_extensions(as_kind(Tee.TDX))(spki_sha256))
        _, wrapped = reversed(certificate_extensions(lambda _: two)(spki_sha256))
        return [tagged, wrapped]

    identity = make_enclave_identity(now=now(), extensions=extensions)
    with pytest.raises(VerificationError, match="different evidence"):
        read_certificate(identity.certificate_pem)
    read_certificate(one.certificate_pem)


def test_evidence_that_does_not_fit_makes_no_certificate() -> None:
    huge = Evidence(tee=Tee.SNP, documents={"report": bytes(MAX_EXTENSION_BYTES)})
    with pytest.raises(TooLargeError):
        identity_of(lambda _: huge)
    body = b"\x04\x83" + (MAX_EXTENSION_BYTES).to_bytes(3) + bytes(MAX_EXTENSION_BYTES)
    with pytest.raises(TooLargeError):
        read_certificate(identity_with((CMW, body)).certificate_pem)


@pytest.mark.parametrize(
    ("oid", "body"),
    [
        (CMW, b""),
        (CMW, b"\x04\x00"),
        (CMW, b"\x0c\x02{}"),
        (CMW, b"\x04\x81\x01\xa0"),
        (CMW, b"\x04\x01\xa0\x00"),
        (TAGGED_EVIDENCE, b""),
        (TAGGED_EVIDENCE, cbor2.dumps([b"q", b"c"])),
        (TAGGED_EVIDENCE, cbor2.dumps(cbor2.CBORTag(60001, [b"q", b"c"]))),
        (TAGGED_EVIDENCE, cbor2.dumps(cbor2.CBORTag(60000, [b"q"]))),
        (TAGGED_EVIDENCE, cbor2.dumps(cbor2.CBORTag(60000, [b"q", cbor2.dumps({})]))),
        (
            TAGGED_EVIDENCE,
            cbor2.dumps(cbor2.CBORTag(60000, [b"q", cbor2.dumps({"pubkey-hash": b""})])),
        ),
        (
            TAGGED_EVIDENCE,
            cbor2.dumps(
                cbor2.CBORTag(
                    60000, [b"q", cbor2.dumps({"pubkey-hash": cbor2.dumps([7, bytes(48)])})]
                )
            ),
        ),
        (x509.ObjectIdentifier("1.2.3.4"), b"something else"),
    ],
)
def test_a_certificate_without_readable_evidence(oid: x509.ObjectIdentifier, body: bytes) -> None:
    with pytest.raises(MalformedError):
        read_certificate(identity_with((oid, body)).certificate_pem)


@given(st.sampled_from([CMW, TAGGED_EVIDENCE]), st.binary(max_size=100))
@settings(max_examples=60, deadline=None)
def test_no_foreign_exception_leaves_the_reader(oid: x509.ObjectIdentifier, body: bytes) -> None:
    with pytest.raises(AIGovToolError):
        read_certificate(identity_with((oid, body)).certificate_pem)


# --- never relied on alone ---------------------------------------------------------------------


@pytest.fixture
def attested() -> Iterable[StandIn]:
    """An enclave whose certificate holds perfect evidence for its own key."""
    world = World.make(PLATFORM)
    server = StandIn(Session(world, identity=identity_of(as_kind(Tee.SIMULATED))))
    with server:
        yield server


async def refusal(server: StandIn) -> AIGovToolError:
    """Open a channel, which must be refused, and let nothing but a nonce out."""
    read = read_certificate(server.session.identity.certificate_pem)
    claims = verify(read.evidence, PLATFORM.machine.endorsements(now()), now=now())
    check_binding(claims, read.report_data)  # what a client that relied on it would have checked
    with pytest.raises(AIGovToolError) as caught:
        await open_channel(
            parse_address(server.address), server.session.world.policy, clock=SystemClock()
        )
    assert server.queries == []
    return caught.value


async def test_with_fresh_evidence_the_same_enclave_is_accepted(attested: StandIn) -> None:
    channel = await open_channel(
        parse_address(attested.address), attested.session.world.policy, clock=SystemClock()
    )
    await channel.aclose()


async def test_perfect_evidence_in_the_certificate_does_not_replace_the_document(
    attested: StandIn,
) -> None:
    attested.tell = lambda _nonce: b"HTTP/1.1 404 Status\r\nContent-Length: 0\r\n\r\n"
    await refusal(attested)


async def test_evidence_from_the_certificate_in_the_document_is_refused(attested: StandIn) -> None:
    """It commits to the very key of the connection, and still not to the nonce."""
    in_certificate = read_certificate(attested.session.identity.certificate_pem).evidence

    def tell(nonce: bytes) -> AttestationDocument:
        honest = attested.session.document(nonce)
        documents = Documents(tee=Tee.SIMULATED, documents=dict(in_certificate.documents))
        return _with(honest, evidence=documents)

    attested.tell = tell
    error = await refusal(attested)
    assert isinstance(error, VerificationError)
    assert [reason.code for reason in error.reasons] == ["binding"]


async def test_an_old_document_beside_a_perfect_certificate_is_a_replay(attested: StandIn) -> None:
    old = attested.session.document(NONCE)
    attested.tell = lambda _nonce: old
    error = await refusal(attested)
    assert "channel.nonce" in [reason.code for reason in error.reasons]


async def test_an_old_document_with_the_new_nonce_written_in_is_a_replay(attested: StandIn) -> None:
    old = attested.session.document(NONCE)
    attested.tell = lambda nonce: _with(old, nonce=nonce)
    error = await refusal(attested)
    assert [reason.code for reason in error.reasons] == ["binding"]


async def test_a_document_relayed_from_a_genuine_enclave_is_about_another_key(
    attested: StandIn,
) -> None:
    """The relay has a perfect certificate of its own: it, too, runs in a genuine TEE."""
    genuine = replace(attested.session, identity=identity_of(as_kind(Tee.SIMULATED)))
    attested.tell = genuine.document
    error = await refusal(attested)
    assert isinstance(error, VerificationError)
    assert [reason.code for reason in error.reasons] == ["channel.tls_key"]


def test_report_data_of_a_certificate_is_never_that_of_a_nonce() -> None:
    session = Session(World.make(PLATFORM))
    fresh = report_data(
        AskedBy.CONSUMER,
        nonce=NONCE,
        keys=session.keys,
        custodian_key=session.world.custodian.public_key,
        loan_id=session.world.loan,
    )
    asked: list[bytes] = []

    def attest(data: bytes) -> Evidence:
        asked.append(data)
        return as_kind(Tee.SIMULATED)(data)

    identity = identity_of(attest)
    (certified,) = asked
    assert certified[32:] == bytes(32) != fresh[32:]
    claims = cbor2.dumps(
        {
            "pubkey-hash": cbor2.dumps([1, identity.spki_sha256]),
            "aigovtool-use": Label.RA_TLS.value,
        }
    )
    assert certified[:32] == hashlib.sha256(claims).digest()


def _with(document: AttestationDocument, **changes: Any) -> AttestationDocument:
    return msgspec.structs.replace(document, **changes)


# --- the wrapper -------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True)


@given(st.sampled_from(Tee), st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=5))
def test_evidence_comes_out_of_the_wrapper_as_it_went_in(
    tee: Tee, documents: dict[str, bytes]
) -> None:
    evidence = Evidence(tee=tee, documents=documents)
    wrapped = cmw.wrap(evidence)
    assert cmw.unwrap(cmw.from_cbor(cmw.to_cbor(wrapped))) == evidence
    assert cmw.unwrap(cmw.from_json(cmw.to_json(wrapped))) == evidence


def test_a_nitro_document_has_the_media_type_that_others_use() -> None:
    wrapped = cmw.wrap(Evidence(tee=Tee.NITRO, documents={"document": b"d"}))
    assert wrapped.records["document"].media_type == "application/aws-nitro-document"


@pytest.mark.parametrize("name", ["", "Upper", "a b", "é", "a/b", ".hidden", "x" * 65])
def test_names_that_fit_no_media_type(name: str) -> None:
    with pytest.raises(MalformedError):
        cmw.wrap(Evidence(tee=Tee.TDX, documents={name: b""}))


def test_nothing_wrapped_is_nothing() -> None:
    with pytest.raises(MalformedError):
        cmw.wrap(Evidence(tee=Tee.TDX, documents={}))


KIND = "tag:github.com,2026:mithril-security/aigovtool/evidence/tdx"
TYPE = "application/vnd.aigovtool.tdx.quote"


@pytest.mark.parametrize(
    "item",
    [
        {},
        [],
        [TYPE, b"q", 4],
        {"quote": [TYPE, b"q", 4]},
        {"__cmwc_t": KIND},
        {"__cmwc_t": 7, "quote": [TYPE, b"q", 4]},
        {"__cmwc_t": KIND, "quote": [TYPE, b"q"]},
        {"__cmwc_t": KIND, "quote": [30001, b"q", 4]},
        {"__cmwc_t": KIND, "quote": [TYPE, "q", 4]},
        {"__cmwc_t": KIND, "quote": [TYPE, b"q", True]},
        {"__cmwc_t": KIND, "quote": [TYPE, b"q", 0]},
        {"__cmwc_t": KIND, "quote": [TYPE, b"q", 16]},
        {"__cmwc_t": KIND, "quote": ["#cmw-j2c-tunnel", b"q"]},
        {"__cmwc_t": KIND, "inner": {"quote": [TYPE, b"q", 4]}},
        {"__cmwc_t": KIND, 1: [TYPE, b"q", 4]},
        {"__cmwc_t": KIND} | {f"quote{n}": [TYPE, b"q", 4] for n in range(65)},
    ],
)
def test_what_is_no_collection_of_ours_is_malformed(item: Any) -> None:
    with pytest.raises(MalformedError):
        cmw.from_cbor(cbor2.dumps(item))


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (KIND + "x", [TYPE, b"q", 4]),
        (KIND, ["application/vnd.aigovtool.snp.report", b"q", 4]),
        (KIND, [TYPE, b"q", 2]),
        (KIND, [TYPE, b"q", 6]),
    ],
)
def test_a_collection_of_something_else_is_no_evidence(kind: str, record: list[Any]) -> None:
    collection = cmw.from_cbor(cbor2.dumps({"__cmwc_t": kind, "quote": record}))
    with pytest.raises(MalformedError):
        cmw.unwrap(collection)


def test_a_label_twice_is_malformed() -> None:
    one = cbor2.dumps("quote") + cbor2.dumps([TYPE, b"q", 4])
    twice = b"\xa3" + cbor2.dumps("__cmwc_t") + cbor2.dumps(KIND) + one + one
    with pytest.raises(MalformedError):
        cmw.from_cbor(twice)
    text = f'{{"__cmwc_t":"{KIND}","quote":["{TYPE}","cQ",4],"quote":["{TYPE}","cQ",4]}}'
    with pytest.raises(MalformedError):
        cmw.from_json(text.encode())


@given(st.binary(max_size=100))
def test_no_foreign_exception_leaves_the_wrapper(data: bytes) -> None:
    for parse in (cmw.from_cbor, cmw.from_json):
        with pytest.raises(MalformedError):
            parse(data)


def test_a_wrapper_is_bounded() -> None:
    for parse in (cmw.from_cbor, cmw.from_json):
        with pytest.raises(TooLargeError):
            parse(bytes(3 << 20))
