"""OCSP: forged responders, answers out of their time, certificates on hold."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.attestation.nvidia.ocsp import Revocation, parse_response, revocation_of_chain
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from tests.attestation.fake_nvidia import DAY, NOW, Holder, make, ocsp_response

ROOT = make("root", None)
CA = make("ca", ROOT)
LEAF = make("leaf", CA, ca=False)
SIGNING = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
RESPONDER = make("responder", CA, ca=False, extensions=[SIGNING])
REVOKED = {"status": ocsp.OCSPCertStatus.REVOKED, "revoked_at": NOW - 2 * DAY}
HOLD = {**REVOKED, "reason": x509.ReasonFlags.certificate_hold}
SECOND = timedelta(seconds=1)


def judge(*responses: bytes, holders: tuple[Holder, ...] = (LEAF, CA)) -> Revocation:
    chain = [holder.certificate for holder in holders]
    return revocation_of_chain(chain, [parse_response(body) for body in responses], now=NOW)


def answer(**changes: object) -> bytes:
    return ocsp_response(LEAF, CA, **changes)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("responder", [None, RESPONDER])
def test_the_issuer_and_its_delegate_may_answer(responder: Holder | None, by_name: bool) -> None:
    assert judge(answer(responder=responder, by_name=by_name)) is Revocation.GOOD


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Revocation.GOOD),
        ({"this_update": NOW}, Revocation.GOOD),
        ({"next_update": NOW}, Revocation.GOOD),
        ({"next_update": NOW - SECOND}, Revocation.EXPIRED),
        ({"next_update": None}, Revocation.EXPIRED),
        ({"this_update": NOW + SECOND}, Revocation.NOT_YET_VALID),
        ({"status": ocsp.OCSPCertStatus.UNKNOWN}, Revocation.UNKNOWN),
        (REVOKED, Revocation.REVOKED),
        (HOLD, Revocation.ON_HOLD),
        ({**REVOKED, "next_update": NOW - SECOND}, Revocation.REVOKED),
        ({**HOLD, "next_update": NOW - SECOND}, Revocation.ON_HOLD),
        ({**REVOKED, "this_update": NOW + SECOND}, Revocation.REVOKED),
        (
            {**REVOKED, "revoked_at": NOW + SECOND, "this_update": NOW + SECOND},
            Revocation.NOT_YET_VALID,
        ),
    ],
)
@pytest.mark.parametrize("responder", [None, RESPONDER])
def test_what_an_answer_says_at_a_stated_time(
    responder: Holder | None, changes: dict[str, object], expected: Revocation
) -> None:
    assert judge(answer(responder=responder, **changes)) is expected


def test_no_answer_is_unknown_and_so_is_a_chain_of_one() -> None:
    assert judge() is Revocation.UNKNOWN
    assert judge(answer(), holders=(CA,)) is Revocation.UNKNOWN


def test_the_worst_of_a_chain_counts() -> None:
    holders = (LEAF, CA, ROOT)
    of_ca = ocsp_response(CA, ROOT)
    assert judge(answer(), of_ca, holders=holders) is Revocation.GOOD
    assert judge(answer(), holders=holders) is Revocation.UNKNOWN
    assert judge(answer(**HOLD), of_ca, holders=holders) is Revocation.ON_HOLD
    stale = ocsp_response(CA, ROOT, next_update=NOW - SECOND)
    assert judge(answer(), stale, holders=holders) is Revocation.EXPIRED


def test_one_answer_that_revokes_outweighs_others() -> None:
    assert judge(answer(), answer(**REVOKED)) is Revocation.REVOKED
    assert judge(answer(**HOLD), answer()) is Revocation.ON_HOLD
    assert judge(answer(next_update=NOW - SECOND), answer()) is Revocation.GOOD


@pytest.mark.parametrize(
    "others",
    [
        (make("other", CA, ca=False), CA),
        (LEAF, make("ca", ROOT)),
        (LEAF, make("another ca", ROOT)),
    ],
)
def test_an_answer_about_another_certificate_says_nothing(others: tuple[Holder, Holder]) -> None:
    assert judge(ocsp_response(*others)) is Revocation.UNKNOWN


@pytest.mark.parametrize(
    "responder",
    [
        make("no usage", CA, ca=False),
        make("other usage", CA, ca=False, extensions=[
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        ]),
        make("of another", make("ca", ROOT), ca=False, extensions=[SIGNING]),
        make("of the root", ROOT, ca=False, extensions=[SIGNING]),
        make("expired", CA, ca=False, extensions=[SIGNING], until=NOW - SECOND),
    ],
)  # fmt: skip
def test_nobody_else_may_answer(responder: Holder) -> None:
    with pytest.raises(VerificationError):
        judge(answer(responder=responder))


def test_a_responder_that_has_expired_since_is_believed_of_its_time_alone() -> None:
    expired = make("expired", CA, ca=False, extensions=[SIGNING], until=NOW - SECOND)
    old = {"this_update": NOW - 2 * DAY, "next_update": NOW - DAY}
    assert judge(answer(responder=expired, **old)) is Revocation.EXPIRED
    assert judge(answer(responder=expired, **old, **HOLD)) is Revocation.ON_HOLD


def test_an_answer_signed_by_another_key_of_the_same_name_is_refused() -> None:
    for impostor in (make("ca", None), make("responder", None, ca=False, extensions=[SIGNING])):
        carried = (
            [RESPONDER] if impostor.certificate.subject == RESPONDER.certificate.subject else []
        )
        forged = answer(responder=impostor, certificates=carried, by_name=True)
        with pytest.raises(VerificationError, match="not signed by"):
            judge(forged)


def test_an_answer_without_its_responder_is_refused() -> None:
    with pytest.raises(VerificationError, match="without its responder"):
        judge(answer(responder=RESPONDER, certificates=[LEAF]))


def test_rsa_responders_are_refused() -> None:
    key = rsa.generate_private_key(65537, 2048)
    template = RESPONDER.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(9)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .add_extension(SIGNING, critical=False)
    )
    holder = Holder(builder.sign(CA.key, template.signature_hash_algorithm), key)
    with pytest.raises(VerificationError, match="not signed by"):
        judge(answer(responder=holder))


def test_what_is_no_answer_is_malformed() -> None:
    unsuccessful = ocsp.OCSPResponseBuilder.build_unsuccessful(
        ocsp.OCSPResponseStatus.TRY_LATER
    ).public_bytes(Encoding.DER)
    for body in (b"", b"0\x03\n\x01\x00", unsuccessful):
        with pytest.raises(MalformedError):
            parse_response(body)


GOOD = answer(responder=RESPONDER)


@given(at=st.integers(0, len(GOOD) - 1), remove=st.integers(0, 3), insert=st.binary(max_size=3))
def test_only_our_errors_leave_and_nothing_damaged_is_good(
    at: int, remove: int, insert: bytes
) -> None:
    body = GOOD[:at] + insert + GOOD[at + remove :]
    with contextlib.suppress(AIGovToolError):
        result = judge(body)
        assert result is Revocation.UNKNOWN or body == GOOD
