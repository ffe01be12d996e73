"""EAR tokens: what they say of each verdict, and everything that must not pass for one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.attestation.appraise import AttestationResult, appraise
from aigovtool.attestation.ear.ar4si import Tier, TrustVector, tier_of
from aigovtool.attestation.ear.claims import (
    Ear,
    encode_base64url,
    evidence_digest,
    from_cbor,
    from_json,
    to_cbor,
    to_json,
)
from aigovtool.attestation.ear.issue import LIFE, ear_of, issue_ear
from aigovtool.attestation.ear.token import EarForm, sign_ear, verify_ear
from aigovtool.attestation.ear.vector import vector_of_accepted, vector_of_refused
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy, write_policy
from aigovtool.attestation.strict import strict_policy
from aigovtool.attestation.verify import verify
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import (
    AIGovToolError,
    AppraisalError,
    MalformedError,
    PromiseBrokenError,
    Reason,
    TooLargeError,
    VerificationError,
)
from tests.attestation import azure_nvidia_vectors, dcap_vectors, simulation, snp_nitro_vectors

KEY = SigningKey.from_seed(bytes(range(32)))
NOW = simulation.NOW
NONCE = bytes(range(16))
FORMS = list(EarForm)


def policy_text(policy: Policy) -> bytes:
    return write_policy(policy).encode()


def honest_ear(**changed: Any) -> Ear:
    """The claims-set for honest simulated evidence; *changed* goes to `ear_of`."""
    arguments: dict[str, Any] = {
        "evidence": simulation.honest_evidence(),
        "policy": policy_text(simulation.policy()),
        "now": NOW,
        **changed,
    }
    return ear_of(arguments.pop("verdict", simulation.judged()), **arguments)


def judged_strictly(
    evidence: Evidence, endorsements: Endorsements, now: datetime
) -> tuple[AttestationResult | AppraisalError | VerificationError, bytes]:
    """The verdict of the strict policy, and that policy's text."""
    policy = Policy(accept=(strict_policy(evidence.tee),), custodian=None)
    try:
        verdict: Any = appraise(verify(evidence, endorsements, now=now), policy)
    except (AppraisalError, VerificationError) as error:
        verdict = error
    return verdict, policy_text(policy)


def strict_ear(evidence: Evidence, endorsements: Endorsements, now: datetime) -> Ear:
    verdict, policy = judged_strictly(evidence, endorsements, now)
    return ear_of(verdict, evidence=evidence, policy=policy, now=now)


def dcap_case(name: str) -> dcap_vectors.Case:
    return next(case for case in dcap_vectors.cases() if case.folder.name == name)


# --- what a token says -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_token_says_after_the_journey_what_it_said_before(form: EarForm) -> None:
    ear = honest_ear(nonce=NONCE)
    token = sign_ear(ear, KEY, form=form)
    assert verify_ear(token, KEY.public_key, now=NOW, nonce=NONCE) == ear
    assert ear.issued == NOW
    assert ear.expires == NOW + LIFE


def test_a_simulated_tee_is_contraindicated_though_its_policy_accepts_it() -> None:
    appraisal = honest_ear().appraisal
    assert appraisal.status is Tier.CONTRAINDICATED
    assert appraisal.vector.hardware == 97
    assert appraisal.vector.runtime_opaque == 96
    assert appraisal.verdict.accepted
    assert appraisal.verdict.simulated


def test_json_has_the_names_of_the_draft() -> None:
    case = dcap_case("v4-up-to-date")
    ear = strict_ear(case.evidence(), case.endorsements(), case.now)
    claims = json.loads(to_json(ear))
    assert claims["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert claims["iat"] == int(case.now.timestamp())
    assert set(claims["ear.verifier-id"]) == {"developer", "build"}
    (appraisal,) = claims["submods"].values()
    assert appraisal["ear.status"] == "warning"  # the strict policy leaves the code free
    assert appraisal["ear.trustworthiness-vector"] == {
        "configuration": 2,
        "executables": 33,
        "hardware": 2,
        "runtime-opaque": 2,
    }
    assert appraisal["ear.appraisal-policy-id"].startswith("ni:///sha-256;")


def test_cbor_has_the_keys_of_the_draft() -> None:
    ear = honest_ear(nonce=NONCE)
    claims = cbor2.loads(to_cbor(ear))
    assert set(claims) == {4, 6, 10, 265, 266, 1004}
    assert claims[10] == NONCE
    assert set(claims[1004]) == {0, 1}
    (appraisal,) = claims[266].values()
    assert set(appraisal) == {1000, 1001, 1003, -80000}
    assert appraisal[1000] == 96
    assert appraisal[1001] == {1: 2, 2: 3, 4: 97, 5: 96}


def test_the_policy_is_named_by_its_bytes_and_the_evidence_by_its_documents() -> None:
    evidence = simulation.honest_evidence()
    appraisal = honest_ear(evidence=evidence).appraisal
    text = policy_text(simulation.policy())
    digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
    assert appraisal.policy_id == f"ni:///sha-256;{digest}"
    assert appraisal.verdict.evidence_sha256 == evidence_digest(evidence)
    assert honest_ear(policy=text + b"\n").appraisal.policy_id != appraisal.policy_id


def test_moving_bytes_between_documents_gives_another_evidence_digest() -> None:
    bodies = [{"a": b"xy", "b": b""}, {"a": b"x", "b": b"y"}, {"ab": b"xy"}, {"a": b"xy"}]
    digests = {evidence_digest(Evidence(tee=Tee.TDX, documents=body)) for body in bodies}
    digests.add(evidence_digest(Evidence(tee=Tee.SGX, documents=bodies[0])))
    assert len(digests) == 5


def test_a_token_names_no_machine() -> None:
    case = dcap_case("v4-up-to-date")
    verdict, policy = judged_strictly(case.evidence(), case.endorsements(), case.now)
    assert isinstance(verdict, AttestationResult)
    assert verdict.platform_id
    token = to_json(ear_of(verdict, evidence=case.evidence(), policy=policy, now=case.now))
    assert verdict.platform_id.encode() not in token


def test_it_is_good_no_longer_than_what_it_rests_on() -> None:
    result = simulation.judged()
    soon = NOW + timedelta(minutes=1)
    assert honest_ear(verdict=_with_end(result, soon)).expires == soon
    with pytest.raises(VerificationError, match="expired"):
        honest_ear(verdict=_with_end(result, NOW))


def _with_end(result: AttestationResult, end: datetime) -> AttestationResult:
    return replace(result, valid_until=end)


def test_every_recorded_case_gives_a_token_that_agrees_with_the_verdict() -> None:
    seen = set()
    for evidence, endorsements, now in recorded_cases():
        try:
            verdict, policy = judged_strictly(evidence, endorsements, now)
        except MalformedError:
            continue  # nothing was appraised
        ear = ear_of(verdict, evidence=evidence, policy=policy, now=now)
        appraisal = ear.appraisal
        assert appraisal.verdict.accepted == isinstance(verdict, AttestationResult)
        assert appraisal.verdict.genuine != isinstance(verdict, VerificationError)
        assert from_cbor(to_cbor(ear)) == from_json(to_json(ear)) == ear
        if not appraisal.verdict.accepted:
            assert appraisal.status is appraisal.vector.tier is Tier.CONTRAINDICATED
            assert appraisal.verdict.reasons
        if not appraisal.verdict.genuine:
            assert set(appraisal.vector.claims()) == {99}
        assert appraisal.status is not Tier.AFFIRMING  # strict leaves the code free
        seen.add((evidence.tee, appraisal.status))
    assert len({tee for tee, _ in seen}) == 9
    assert {status for _, status in seen} == {Tier.WARNING, Tier.CONTRAINDICATED}


def recorded_cases() -> Any:
    for case in dcap_vectors.cases():
        yield case.evidence(), case.endorsements(), case.now
    for tee in (Tee.SNP, Tee.NITRO):
        for vector in snp_nitro_vectors.load(tee):
            for one in vector.cases:
                yield vector.evidence, vector.endorsements, snp_nitro_vectors.time_of(one)
    parts: dict[str, Any] = {
        "azure-snp": azure_nvidia_vectors.azure_parts,
        "azure-tdx": azure_nvidia_vectors.azure_parts,
        "tpm2": azure_nvidia_vectors.tpm2_parts,
        "nvidia": azure_nvidia_vectors.nvidia_parts,
        "composite": azure_nvidia_vectors.composite_parts,
    }
    for kind, split in parts.items():
        for parameter in azure_nvidia_vectors.cases(kind):
            (case,) = parameter.values
            yield *split(case), case.now


def test_known_code_on_sound_hardware_is_affirming() -> None:
    case = dcap_case("v4-up-to-date")
    claims: Any = verify(case.evidence(), case.endorsements(), now=case.now)
    pinned = msgspec.structs.replace(
        strict_policy(Tee.TDX),
        mr_td=(claims.measurement,),
        rt_mr1=(claims.report.rt_mr[1].hex(),),
        rt_mr2=(claims.report.rt_mr[2].hex(),),
        pinned_platforms=(claims.platform_id,),
    )
    vector = vector_of_accepted(claims, pinned)
    assert vector == TrustVector(
        instance_identity=2, configuration=2, executables=3, hardware=2, runtime_opaque=2
    )
    assert vector.tier is Tier.AFFIRMING


@pytest.mark.parametrize(
    ("name", "aspect"),
    [("v4-debug", "runtime_opaque"), ("v4-debug", "configuration"), ("v4-out-of-date", "hardware")],
)
def test_a_policy_that_forgives_does_not_make_the_token_forgive(name: str, aspect: str) -> None:
    case = dcap_case(name)
    claims: Any = verify(case.evidence(), case.endorsements(), now=case.now)
    vector = vector_of_accepted(claims, strict_policy(Tee.TDX))
    assert tier_of(getattr(vector, aspect)) in (Tier.WARNING, Tier.CONTRAINDICATED)
    if name == "v4-debug":
        assert vector.tier is Tier.CONTRAINDICATED


@pytest.mark.parametrize(
    ("code", "aspect"),
    [
        ("tdx.mr_td", "executables"),
        ("sgx.debug", "runtime_opaque"),
        ("nitro.pcr0", "executables"),
        ("tcb.status", "hardware"),
        ("platform.pin", "instance_identity"),
        ("policy.tee", "hardware"),
        ("a.rule.of.tomorrow", "configuration"),
    ],
)
def test_a_reason_marks_the_aspect_that_it_is_about(code: str, aspect: str) -> None:
    vector = vector_of_refused([Reason(code=code, message="no")])
    assert tier_of(getattr(vector, aspect)) is Tier.CONTRAINDICATED
    assert vector.tier is Tier.CONTRAINDICATED


def test_what_only_one_of_two_claims_the_two_do_not() -> None:
    known = TrustVector(executables=3, hardware=2, runtime_opaque=2)
    other = TrustVector(executables=33, hardware=2)
    for joined in (known.joined(other), other.joined(known)):
        assert joined == TrustVector(executables=33, hardware=2)


@given(st.integers(-128, 127))
def test_every_value_is_in_the_tier_that_the_draft_gives_it(claim: int) -> None:
    bands = {
        Tier.NONE: [(-1, 1)],
        Tier.AFFIRMING: [(2, 31), (-32, -2)],
        Tier.WARNING: [(32, 95), (-96, -33)],
        Tier.CONTRAINDICATED: [(96, 127), (-128, -97)],
    }
    (tier,) = [t for t, band in bands.items() if any(low <= claim <= high for low, high in band)]
    assert tier_of(claim) is tier


# --- what must not pass for a token ------------------------------------------------------------


def issued(form: EarForm) -> bytes:
    return issue_ear(
        simulation.judged(),
        evidence=simulation.honest_evidence(),
        policy=policy_text(simulation.policy()),
        key=KEY,
        form=form,
        now=NOW,
    )


def jwt_with(header: Any, claims: bytes, key: SigningKey = KEY) -> bytes:
    """A correctly signed compact JWS with any header; the header is JSON or raw text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = b".".join(encode_base64url(part).encode() for part in (text, claims))
    return signed + b"." + encode_base64url(key.sign_envelope(signed)).encode()


def cwt_with(header: bytes, payload: bytes, unprotected: Any = None) -> bytes:
    """A correctly signed COSE_Sign1 with any headers."""
    signature = KEY.sign_envelope(cbor2.dumps(["Signature1", header, b"", payload]))
    return b"\xd2" + cbor2.dumps([header, unprotected or {}, payload, signature])


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "eat+jwt"},
        {"alg": "HS256", "typ": "eat+jwt"},
        {"alg": "ES256", "typ": "eat+jwt"},
        {"alg": "EdDSA"},
        {"typ": "eat+jwt", "alg": "EdDSA"},
        {"alg": "EdDSA", "typ": "eat+jwt", "crit": ["exp"]},
        {"alg": "EdDSA", "typ": "eat+jwt", "jwk": {"kty": "OKP"}},
        b'{"alg":"none","alg":"EdDSA","typ":"eat+jwt"}',
        b'{"not json',
    ],
)
def test_no_header_chooses_the_algorithm_or_the_key(header: Any) -> None:
    with pytest.raises(MalformedError, match="not an EAR token"):
        verify_ear(jwt_with(header, to_json(honest_ear())), KEY.public_key, now=NOW)


def test_an_hmac_with_the_public_key_is_no_signature() -> None:
    signed = issued(EarForm.JWT).rpartition(b".")[0]
    mac = hmac.new(KEY.public_key, signed, hashlib.sha512).digest()
    with pytest.raises(VerificationError):
        verify_ear(signed + b"." + encode_base64url(mac).encode(), KEY.public_key, now=NOW)


@pytest.mark.parametrize(
    ("header", "unprotected"),
    [
        (cbor2.dumps({1: -7, 16: "application/eat+cwt"}), None),
        (cbor2.dumps({1: -8}), None),
        (cbor2.dumps({16: "application/eat+cwt", 1: -8}), None),
        (b"", None),
        (cbor2.dumps({1: -8, 16: "application/eat+cwt"}), {4: b"kid"}),
    ],
)
def test_no_cose_header_chooses_the_algorithm_or_the_key(header: bytes, unprotected: Any) -> None:
    token = cwt_with(header, to_cbor(honest_ear()), unprotected)
    with pytest.raises(MalformedError, match="not an EAR token"):
        verify_ear(token, KEY.public_key, now=NOW)


@pytest.mark.parametrize("form", FORMS)
def test_another_key_does_not_verify(form: EarForm) -> None:
    with pytest.raises(VerificationError):
        verify_ear(issued(form), SigningKey.generate().public_key, now=NOW)


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_anywhere_is_refused(form: EarForm) -> None:
    token = issued(form)
    for position in range(0, len(token), 7):
        changed = bytearray(token)
        changed[position] ^= 1
        with pytest.raises((MalformedError, VerificationError)):
            verify_ear(bytes(changed), KEY.public_key, now=NOW)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_around_a_token_are_refused(form: EarForm) -> None:
    token = issued(form)
    for other in (token + b"\n", b" " + token, token + b"=", token[:-1], token + token, b""):
        with pytest.raises((MalformedError, VerificationError)):
            verify_ear(other, KEY.public_key, now=NOW)
    with pytest.raises(TooLargeError):
        verify_ear(token + bytes(1 << 20), KEY.public_key, now=NOW)


def test_a_second_spelling_of_a_token_does_not_verify() -> None:
    header, payload, signature = issued(EarForm.JWT).split(b".")
    last = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for digit in last:  # the last digit of 64 bytes in base64url carries four bits that say nothing
        if digit != signature[-1]:
            other = b".".join([header, payload, signature[:-1] + bytes([digit])])
            with pytest.raises((MalformedError, VerificationError)):
                verify_ear(other, KEY.public_key, now=NOW)
    cwt = issued(EarForm.CWT)
    array, rest = cwt[1:2], cwt[2:]
    assert array == b"\x84"
    for other in (
        cwt[1:],
        b"\xd2\x98\x04" + rest,
        b"\xd2\x9f" + rest + b"\xff",
        b"\xd8\x12" + cwt[1:],
    ):
        with pytest.raises(MalformedError):
            verify_ear(other, KEY.public_key, now=NOW)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seconds", [LIFE.total_seconds(), LIFE.total_seconds() + 1, -61])
def test_a_token_is_good_only_in_its_time(form: EarForm, seconds: float) -> None:
    token = issued(form)
    verify_ear(token, KEY.public_key, now=NOW + LIFE - timedelta(seconds=1))
    verify_ear(token, KEY.public_key, now=NOW - timedelta(seconds=60))
    with pytest.raises(VerificationError, match=r"expired|future"):
        verify_ear(token, KEY.public_key, now=NOW + timedelta(seconds=seconds))


def test_times_without_a_zone_are_refused() -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(MalformedError):
        verify_ear(issued(EarForm.JWT), KEY.public_key, now=naive)
    with pytest.raises(MalformedError):
        honest_ear(now=naive)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_played_again_answers_another_nonce(form: EarForm) -> None:
    with_nonce = sign_ear(honest_ear(nonce=NONCE), KEY, form=form)
    for token in (with_nonce, issued(form)):
        with pytest.raises(VerificationError, match="another question"):
            verify_ear(token, KEY.public_key, now=NOW, nonce=bytes(16))


@pytest.mark.parametrize("size", [0, 7, 65])
def test_a_nonce_that_eat_does_not_allow_is_refused(size: int) -> None:
    with pytest.raises(MalformedError):
        honest_ear(nonce=bytes(size))


@pytest.mark.parametrize(
    "changed",
    [
        {"iat": None},
        {"exp": None},
        {"iat": 1.5},
        {"iat": 1780315200.0},
        {"exp": "1780315200"},
        {"exp": True},
        {"exp": 1 << 60},
        {"exp": 0},
        {"eat_profile": "tag:github.com,2022:veraison/ear"},
        {"submods": {}},
        {"submods": []},
        {"ear.verifier-id": None},
        {"eat_nonce": "AA=="},
        {"eat_nonce": "AAAA"},
    ],
)
def test_claims_that_are_no_ear_are_refused_though_signed(changed: dict[str, Any]) -> None:
    claims = json.loads(to_json(honest_ear())) | changed
    kept = {name: value for name, value in claims.items() if value is not None}
    token = jwt_with(b'{"alg":"EdDSA","typ":"eat+jwt"}', json.dumps(kept).encode())
    with pytest.raises(MalformedError):
        verify_ear(token, KEY.public_key, now=NOW)


def test_a_status_better_than_the_vector_is_refused_though_signed() -> None:
    ear = honest_ear()
    better = msgspec.structs.replace(ear.appraisal, status=Tier.AFFIRMING)
    lying = msgspec.structs.replace(ear, submods={ear.tee: better})
    for form in FORMS:
        with pytest.raises(MalformedError, match="better than its worst"):
            verify_ear(sign_ear(lying, KEY, form=form), KEY.public_key, now=NOW)


def test_claims_of_tomorrow_are_passed_over() -> None:
    ear = honest_ear()
    claims = json.loads(to_json(ear)) | {"a claim of tomorrow": [1, {}]}
    assert from_json(json.dumps(claims).encode()) == ear
    labelled = cbor2.loads(to_cbor(ear)) | {-90000: "a claim of tomorrow"}
    assert from_cbor(cbor2.dumps(labelled)) == ear


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_foreign_exception_leaves_the_parsers(data: bytes) -> None:
    for parse in (from_json, from_cbor):
        with pytest.raises(MalformedError):
            parse(data)
    for token in (data, b"\xd2" + data, issued(EarForm.JWT)[:30] + data):
        with pytest.raises(AIGovToolError):
            verify_ear(token, KEY.public_key, now=NOW)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.dictionaries(
                st.sampled_from([4, 6, 10, 265, 266, 1000, 1001, 1003, 1004, -80000, 0, 1, "tdx"]),
                inner,
                max_size=6,
            )
            | st.lists(inner, max_size=3)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_cbor_of_any_other_shape_is_malformed(item: Any) -> None:
    with pytest.raises(MalformedError):
        from_cbor(cbor2.dumps(item))


# --- the key -----------------------------------------------------------------------------------


def test_no_label_begins_as_an_envelope_does() -> None:
    for label in Label:
        with pytest.raises(PromiseBrokenError):
            KEY.sign_envelope(label.value + b"\0" + b"payload")
        for start in (b"eyJ", b"\x84\x6aSignature1"):
            assert not (label.value + b"\0").startswith(start)


def test_another_implementation_reads_the_jwt() -> None:
    jwt = pytest.importorskip("jwt", reason="PyJWT is not installed")
    now = datetime.now(UTC).replace(microsecond=0)
    key = Ed25519PublicKey.from_public_bytes(KEY.public_key)
    ear = honest_ear(now=now, verdict=_with_end(simulation.judged(), now + timedelta(hours=1)))
    token = sign_ear(ear, KEY, form=EarForm.JWT)
    claims = jwt.decode(
        token.decode(), key, algorithms=["EdDSA"], options={"require": ["exp", "iat"]}
    )
    assert claims == json.loads(to_json(ear))
