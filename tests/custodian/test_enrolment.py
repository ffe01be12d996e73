"""I4: no key without proof. Real quotes of a simulated platform, and every way to cheat."""

from __future__ import annotations

import msgspec
import pytest

from aigovtool.attestation.binding import AskedBy
from aigovtool.crypto.labels import Label
from aigovtool.custodian.challenges import CHALLENGE_LIFE_S, MAX_CHALLENGES_PER_LOAN, Challenges
from aigovtool.errors import (
    AIGovToolError,
    AppraisalError,
    LoanNotActiveError,
    MalformedError,
    NotFoundError,
    UnauthenticatedError,
    VerificationError,
)
from aigovtool.sealing.manifest import verify_manifest
from aigovtool.simulation.platform import SimulatedPlatform
from aigovtool.wire.codec import decode, open_signed
from aigovtool.wire.enrolment import ChallengeRequest, Documents, Keys, Secrets, SessionStatement
from tests.custodian.house import EnclaveSide, House, house
from tests.custodian.ledgers import Bench, SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def made(tmp_path, clock):  # type: ignore[no-untyped-def]
    with house(tmp_path, clock=clock) as custodian:
        yield custodian


def challenge(made: House) -> bytes:
    asked = ChallengeRequest(loan=made.lent.loan.loan)
    return made.app.enrolment.challenge(made.ticket.token, asked).nonce


def nothing_was_released(made: House) -> None:
    assert "key.released" not in made.events()
    with made.app.ledger.read() as tx:
        assert not tx.sessions_of_loan(made.lent.loan.loan, 10)


def test_a_genuine_enclave_gets_the_key_and_a_session(made: House) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    release = made.app.enrolment.enrol(made.ticket.token, request)
    manifest = verify_manifest(release.manifest, made.app.key.public_key)
    assert manifest.digest == made.lent.model.digest
    from aigovtool.attestation.binding import EnclaveKeys, report_data

    context = report_data(
        AskedBy.CUSTODIAN,
        nonce=nonce,
        keys=EnclaveKeys(
            tls_spki_sha256=side.keys.tls_spki_sha256,
            signing_key=side.keys.signing_key,
            hpke_key=side.keys.hpke_key,
        ),
        custodian_key=made.app.key.public_key,
        loan_id=made.lent.loan.loan,
    )
    opened = side.hpke.open(release.sealed_secrets, Label.CONTENT_KEY_RELEASE, context)
    assert len(decode(opened, Secrets).content_key) == 32
    said = open_signed(
        release.statement,
        SessionStatement,
        public_key=made.app.key.public_key,
        label=Label.SESSION_STATEMENT,
    )
    assert (said.session, said.keys, said.lease) == (release.session, side.keys, None)
    assert made.events()[-2:] == ["appraisal.accepted", "key.released"]


def test_the_key_is_wrapped_only_after_the_session_is_durable(
    made: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(permit: object) -> object:
        with made.app.ledger.read() as tx:
            seen.append(tx.session(permit.session.session))  # type: ignore[attr-defined]
        raise MalformedError("stop here")

    monkeypatch.setattr(made.app.enrolment, "_release", look)
    side, nonce = EnclaveSide.make(), challenge(made)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    with pytest.raises(MalformedError):
        made.app.enrolment.enrol(made.ticket.token, request)
    assert seen[0] is not None


def test_a_nonce_works_once(made: House) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    made.app.enrolment.enrol(made.ticket.token, request)
    with pytest.raises(VerificationError) as caught:
        made.app.enrolment.enrol(made.ticket.token, request)
    assert caught.value.reasons[0].code == "enrolment.nonce"
    assert made.events().count("key.released") == 1


def test_what_a_genuine_enclave_shows_to_any_consumer_does_not_enrol_it(made: House) -> None:
    """The custodian's challenge, put to an enclave as if it were a consumer's own nonce."""
    side, nonce = EnclaveSide.make(), challenge(made)
    shown = made.evidence_for(nonce, side.keys, asked_by=AskedBy.CONSUMER)
    with pytest.raises(VerificationError):
        made.app.enrolment.enrol(made.ticket.token, made.request(nonce, side.keys, shown))
    nothing_was_released(made)


def test_a_nonce_is_used_up_by_a_refusal_too(made: House) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    bad = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys, mr_td=bytes(48)))
    good = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    with pytest.raises(AppraisalError):
        made.app.enrolment.enrol(made.ticket.token, bad)
    with pytest.raises(VerificationError):
        made.app.enrolment.enrol(made.ticket.token, good)
    nothing_was_released(made)


def test_an_old_nonce_is_refused(made: House, clock: SetClock) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    clock.forward(CHALLENGE_LIFE_S)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    with pytest.raises(VerificationError):
        made.app.enrolment.enrol(made.ticket.token, request)
    nothing_was_released(made)


def test_a_nonce_that_nobody_issued_is_refused(made: House) -> None:
    side, nonce = EnclaveSide.make(), bytes(32)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    with pytest.raises(VerificationError):
        made.app.enrolment.enrol(made.ticket.token, request)
    nothing_was_released(made)


def test_nonces_are_bounded_and_of_one_loan(ledger: Bench) -> None:
    challenges = Challenges(ledger=ledger.ledger)
    mine, other = ledger.lend(1).loan, ledger.lend(1).loan
    theirs = challenges.issue(other)
    issued = []
    for _ in range(MAX_CHALLENGES_PER_LOAN + 1):
        ledger.clock.forward(0.1)
        issued.append(challenges.issue(mine))
    with pytest.raises(VerificationError):
        challenges.redeem(mine, issued[0])  # the oldest gave way
    with pytest.raises(VerificationError):
        challenges.redeem(mine, theirs)
    challenges.redeem(mine, issued[1])
    with pytest.raises(VerificationError):
        challenges.redeem(mine, issued[1])
    challenges.redeem(other, theirs)


def _other_measurement(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(nonce, side.keys, mr_td=bytes(48))


def _debug(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(nonce, side.keys, debug=True)


def _for_another_nonce(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(bytes(32), side.keys)


def _for_another_custodian(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(nonce, side.keys, custodian_key=bytes(32))


def _for_another_loan(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(nonce, side.keys, loan="loan_other")


def _of_another_enclave(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return made.evidence_for(nonce, EnclaveSide.make().keys)


def _of_another_root(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    stranger = SimulatedPlatform.in_memory(now=made.app.clock.now())
    made.platform, mine = stranger, made.platform
    try:
        return made.evidence_for(nonce, side.keys)
    finally:
        made.platform = mine


def _nothing(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return Documents(tee="simulated", documents={})


def _rubbish(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return Documents(tee="simulated", documents={"quote": b"\x04\x00" + bytes(1000)})


def _unknown_tee(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return Documents(tee="trust me", documents={})


def _other_kind(made: House, nonce: bytes, side: EnclaveSide) -> Documents:
    return msgspec.structs.replace(made.evidence_for(nonce, side.keys), tee="tdx")


@pytest.mark.parametrize(
    "attack",
    [
        _other_measurement,
        _debug,
        _for_another_nonce,
        _for_another_custodian,
        _for_another_loan,
        _of_another_enclave,
        _of_another_root,
        _nothing,
        _rubbish,
        _unknown_tee,
        _other_kind,
    ],
)
def test_evidence_that_is_not_right_gets_nothing_and_is_noted(
    made: House,
    attack,  # type: ignore[no-untyped-def]
) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    request = made.request(nonce, side.keys, attack(made, nonce, side))
    with pytest.raises(AIGovToolError) as caught:
        made.app.enrolment.enrol(made.ticket.token, request)
    assert isinstance(caught.value, AppraisalError | VerificationError | MalformedError)
    nothing_was_released(made)
    with made.app.ledger.read() as tx:
        noted = tx.last_events(None, 1)[0]
    assert noted.kind == "appraisal.refused"
    written = msgspec.json.decode(noted.detail)["reasons"]
    assert [one["code"] for one in written] == [one.code for one in caught.value.reasons]


@pytest.mark.parametrize("field", ["tls_spki_sha256", "signing_key", "hpke_key"])
def test_keys_of_a_wrong_length_are_refused(made: House, field: str) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    keys: Keys = msgspec.structs.replace(side.keys, **{field: b"short"})
    with pytest.raises(MalformedError):
        made.app.enrolment.enrol(
            made.ticket.token, made.request(nonce, keys, made.evidence_for(nonce, keys))
        )
    nothing_was_released(made)


def test_a_token_opens_its_own_loan_only(made: House) -> None:
    side = EnclaveSide.make()
    with pytest.raises(UnauthenticatedError):
        made.app.enrolment.challenge("agt-ticket_wrong", ChallengeRequest(loan=made.ticket.loan))
    with pytest.raises(NotFoundError):
        made.app.enrolment.challenge(
            made.ticket.token,
            ChallengeRequest(loan="loan_other"),  # type: ignore[arg-type]
        )
    nonce = challenge(made)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys), loan="loan_other")
    with pytest.raises(NotFoundError):
        made.app.enrolment.enrol(made.ticket.token, request)
    nothing_was_released(made)


def test_a_replaced_ticket_opens_nothing(made: House) -> None:
    old = made.ticket.token
    made.app.loans.new_ticket(made.lent.loan.loan, actor="test")
    with pytest.raises(UnauthenticatedError):
        made.app.enrolment.challenge(old, ChallengeRequest(loan=made.ticket.loan))


def test_a_loan_stopped_during_the_appraisal_releases_nothing(
    made: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, nonce = EnclaveSide.make(), challenge(made)
    appraiser = made.app.enrolment._appraiser
    judge = appraiser._judge

    def stop_and_judge(*arguments: object, **more: object) -> object:
        made.app.loans.stop(made.lent.loan.loan, reason="now", actor="test")
        return judge(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(appraiser, "_judge", stop_and_judge)
    request = made.request(nonce, side.keys, made.evidence_for(nonce, side.keys))
    with pytest.raises(LoanNotActiveError):
        made.app.enrolment.enrol(made.ticket.token, request)
    nothing_was_released(made)
