"""The custodian's verdict as a token: in the event of every appraisal, under its own key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from aigovtool.attestation.ear.ar4si import Tier
from aigovtool.attestation.ear.claims import Ear, evidence_digest, policy_id
from aigovtool.attestation.ear.token import verify_ear
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.api.admin import admin_app
from aigovtool.custodian.verdicts import LIFE, Verdicts
from aigovtool.errors import AppraisalError, MalformedError, Reason, VerificationError
from aigovtool.wire.enrolment import ChallengeRequest, Documents, EnrolRequest
from tests.custodian.house import GENUINE, EnclaveSide, House, house
from tests.custodian.ledgers import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def made(tmp_path: Path, clock: SetClock) -> Iterator[House]:
    with house(tmp_path, clock=clock) as custodian:
        yield custodian


def ask(made: House, *, mr_td: bytes = GENUINE.mr_td) -> EnrolRequest:
    side = EnclaveSide.make()
    challenge = ChallengeRequest(loan=made.lent.loan.loan)
    nonce = made.app.enrolment.challenge(made.ticket.token, challenge).nonce
    return made.request(nonce, side.keys, made.evidence_for(nonce, side.keys, mr_td=mr_td))


def event(made: House, kind: str) -> dict[str, Any]:
    with made.app.ledger.read() as tx:
        (found,) = (one for one in tx.events_after(0, None, 10_000) if one.kind == kind)
    detail: dict[str, Any] = msgspec.json.decode(found.detail)
    return detail


def read(made: House, detail: dict[str, Any]) -> Ear:
    token = detail["ear"].encode()
    return verify_ear(token, made.app.key.public_key, now=made.app.clock.now())


def test_an_acceptance_is_a_token_under_the_custodians_key(made: House) -> None:
    request = ask(made)
    made.app.enrolment.enrol(made.ticket.token, request)

    ear = read(made, event(made, "appraisal.accepted"))

    verdict = ear.appraisal.verdict
    assert (verdict.accepted, verdict.simulated) == (True, True)
    assert ear.appraisal.status is Tier.CONTRAINDICATED  # it is simulated
    assert verdict.measurement == GENUINE.mr_td.hex()
    shown = Evidence(tee=Tee.SIMULATED, documents=request.evidence.documents)
    assert verdict.evidence_sha256 == evidence_digest(shown)
    with made.app.ledger.read() as tx:
        policy = tx.loan_policy(made.lent.loan.loan).encode()
    assert ear.appraisal.policy_id == policy_id(policy)
    assert ear.expires <= ear.issued + LIFE
    token = event(made, "appraisal.accepted")["ear"].encode()
    with pytest.raises(VerificationError):
        verify_ear(token, SigningKey.generate().public_key, now=ear.issued)


def test_a_refusal_is_a_token_with_every_reason(made: House) -> None:
    with pytest.raises(AppraisalError) as caught:
        made.app.enrolment.enrol(made.ticket.token, ask(made, mr_td=bytes(48)))

    detail = event(made, "appraisal.refused")
    verdict = read(made, detail).appraisal.verdict

    assert (verdict.accepted, verdict.genuine) == (False, True)
    assert [why.code for why in verdict.reasons] == [why.code for why in caught.value.reasons]
    assert [why["code"] for why in detail["reasons"]] == [why.code for why in verdict.reasons]


def test_evidence_for_other_keys_is_a_token_of_what_is_not_genuine(made: House) -> None:
    diverted = msgspec.structs.replace(ask(made), keys=EnclaveSide.make().keys)
    with pytest.raises(VerificationError):
        made.app.enrolment.enrol(made.ticket.token, diverted)

    verdict = read(made, event(made, "appraisal.refused")).appraisal.verdict

    assert (verdict.accepted, verdict.genuine) == (False, False)


def test_what_was_not_appraised_has_no_token(made: House) -> None:
    request = ask(made)
    unreadable = Documents(tee="simulated", documents={"quote": b"not a quote"})
    with pytest.raises(MalformedError):
        made.app.enrolment.enrol(
            made.ticket.token, msgspec.structs.replace(request, evidence=unreadable)
        )
    assert event(made, "appraisal.refused")["ear"] == ""


def test_the_operator_gets_a_sessions_token_to_hand_on(made: House) -> None:
    app = admin_app(made.app, names=frozenset({"localhost"}), enclave_address="127.0.0.1:7000")
    token = {"Authorization": f"Bearer {made.admin_token}"}
    admin = TestClient(app, base_url="http://localhost", headers=token)
    release = made.app.enrolment.enrol(made.ticket.token, ask(made))
    other = made.app.enrolment.enrol(made.ticket.token, ask(made))

    answer = admin.get(f"/api/v1/sessions/{release.session}/ear")

    with made.app.ledger.read() as tx:
        events = [one for one in tx.events_after(0, None, 10_000) if one.session == release.session]
    (appraisal,) = (one for one in events if one.kind == "appraisal.accepted")
    assert answer.json()["ear"] == msgspec.json.decode(appraisal.detail)["ear"]
    assert answer.json()["session"] == release.session
    assert read(made, answer.json()).appraisal.verdict.accepted
    assert admin.get(f"/api/v1/sessions/{other.session}/ear").json()["ear"] != answer.json()["ear"]
    assert admin.get("/api/v1/sessions/session_none/ear").status_code == 404


@pytest.mark.parametrize("length", [1, 300 << 10])
def test_a_verdict_too_long_for_a_token_is_no_fault(length: int, clock: SetClock) -> None:
    refusal = AppraisalError(Reason(code="a.b", message="no", expected="x" * length))

    token = Verdicts(key=SigningKey.generate()).token(
        refusal,
        evidence=Evidence(tee=Tee.TDX, documents={"quote": b"q"}),
        policy=b"version = 1",
        now=clock.now() + timedelta(seconds=1),
    )

    assert bool(token) == (length == 1)
