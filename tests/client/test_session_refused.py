"""A refused enclave gets a nonce and nothing else: no key, no input, no request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from msgspec.structs import replace as changed

from aigovtool import connect_async
from aigovtool.attestation.policy import Custodian, Policy
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import make_enclave_identity
from aigovtool.errors import (
    AIGovToolError,
    AppraisalError,
    ConfigurationError,
    MalformedError,
    RefusedError,
    TooLargeError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import LoanId
from aigovtool.wire.enrolment import AttestationDocument, Documents
from tests.channel.stand_in import (
    API_KEY,
    Platform,
    Session,
    StandIn,
    World,
    answer,
    other_session,
    signed_model,
    wire_keys,
)

ONLY_A_NONCE = re.compile(
    rb"GET /\.well-known/attestation\?nonce=[0-9a-f]{64} HTTP/1\.1\r\n"
    rb"host: 127\.0\.0\.1:\d+\r\n"
    rb"accept: application/json\r\n"
    rb"aigovtool-loan: [a-z0-9_-]+\r\n"
    rb"connection: close\r\n\r\n"
)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[StandIn]:
    with StandIn(Session(world)) as stand_in:
        yield stand_in


async def refuse(enclave: StandIn, policy: Policy, kind: type[AIGovToolError]) -> AIGovToolError:
    """Try to connect, expect *kind*, and look at every byte that the enclave was sent."""
    with pytest.raises(kind) as caught:
        await connect_async(enclave.address, manifest=policy, api_key=API_KEY)
    assert type(caught.value) is kind
    assert not enclave.queries
    assert all(ONLY_A_NONCE.fullmatch(bytes(data)) for data in enclave.received)
    assert API_KEY.encode() not in enclave.everything
    return caught.value


def codes(error: AIGovToolError) -> set[str]:
    return {reason.code for reason in error.reasons}


@dataclass(frozen=True)
class Attack:
    """One way to cheat: how the honest document is changed, and what it is refused for."""

    change: Callable[[AttestationDocument, StandIn], AttestationDocument]
    kind: type[AIGovToolError]
    code: str


def _other_code(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    world = replace(
        enclave.session.world, platform=replace(enclave.session.world.platform, mr_td=b"\x22" * 48)
    )
    return replace_world(enclave, world).document(document.nonce)


def _other_root(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    world = replace(enclave.session.world, platform=Platform.make())
    return replace_world(enclave, world).document(document.nonce)


def replace_world(enclave: StandIn, world: World) -> Session:
    return replace(enclave.session, world=world)


def _other_custodian(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    other = SigningKey.generate()
    world = replace(enclave.session.world, custodian=other, model=signed_model(other))
    return replace_world(enclave, world).document(document.nonce)


def _custodian_in_name_only(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    told = _other_custodian(document, enclave)
    return changed(told, custodian_key=document.custodian_key)


def _other_loan(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    world = replace(enclave.session.world, loan=LoanId("loan_of_somebody_else"))
    return replace_world(enclave, world).document(document.nonce)


def _loan_in_name_only(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    return changed(_other_loan(document, enclave), loan=document.loan)


def _expired(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    past = datetime.now(UTC) - timedelta(seconds=1)
    return changed(document, statement=enclave.session.statement(expires=past))


def _future(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    later = datetime.now(UTC) + timedelta(days=1)
    statement = enclave.session.statement(issued=later, expires=later + timedelta(seconds=5))
    return changed(document, statement=statement)


def _statement_of_another(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    return changed(document, statement=other_session(enclave.session).statement())


def _self_made_statement(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    forger = replace(enclave.session.world, custodian=SigningKey.generate())
    return changed(document, statement=replace_world(enclave, forger).statement())


def _model_of_another_key(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    return changed(document, manifest=signed_model(SigningKey.generate()).signed)


def _another_model(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    model = signed_model(enclave.session.world.custodian, version="2")
    return changed(document, manifest=model.signed)


def _unknown_tee(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    return changed(document, evidence=Documents(tee="abacus", documents={}))


def _swapped_hpke_key(document: AttestationDocument, enclave: StandIn) -> AttestationDocument:
    return changed(document, keys=changed(document.keys, hpke_key=b"\x09" * 1216))


ATTACKS = {
    "code that the policy does not name": Attack(_other_code, AppraisalError, "tdx.mr_td"),
    "another simulation's root": Attack(_other_root, AppraisalError, "simulated.root"),
    "another custodian": Attack(_other_custodian, VerificationError, "channel.custodian"),
    "another custodian under this one's name": Attack(
        _custodian_in_name_only, VerificationError, "binding"
    ),
    "another loan": Attack(_other_loan, RefusedError, "channel.loan"),
    "another loan under this one's name": Attack(_loan_in_name_only, VerificationError, "binding"),
    "an expired statement": Attack(_expired, UnavailableError, "channel.statement_expired"),
    "a statement from the future": Attack(_future, VerificationError, "channel.statement_time"),
    "another session's statement": Attack(
        _statement_of_another, VerificationError, "channel.statement"
    ),
    "a statement that nobody signed": Attack(_self_made_statement, VerificationError, "signature"),
    "a model signed by another key": Attack(
        _model_of_another_key, VerificationError, "sealing.custodian"
    ),
    "another model than the one lent": Attack(_another_model, VerificationError, "channel.model"),
    "a kind of TEE that nobody knows": Attack(_unknown_tee, MalformedError, "malformed"),
    "a key that the evidence does not name": Attack(
        _swapped_hpke_key, VerificationError, "binding"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
async def test_a_refused_enclave_gets_only_a_nonce(
    enclave: StandIn, world: World, attack: Attack
) -> None:
    enclave.tell = lambda nonce: attack.change(enclave.session.document(nonce), enclave)
    error = await refuse(enclave, world.policy, attack.kind)
    assert attack.code in codes(error)


async def test_replayed_document(enclave: StandIn, world: World) -> None:
    old = enclave.session.document(bytes(32))
    enclave.tell = lambda nonce: old
    assert "channel.nonce" in codes(await refuse(enclave, world.policy, VerificationError))


async def test_replayed_document_with_the_nonce_rewritten(enclave: StandIn, world: World) -> None:
    old = enclave.session.document(bytes(32))
    enclave.tell = lambda nonce: changed(old, nonce=nonce)
    assert "binding" in codes(await refuse(enclave, world.policy, VerificationError))


async def test_evidence_relayed_from_a_genuine_enclave(enclave: StandIn, world: World) -> None:
    """A machine in the middle shows a real enclave's fresh answer to this very nonce."""
    genuine = other_session(enclave.session)
    enclave.tell = genuine.document
    assert "channel.tls_key" in codes(await refuse(enclave, world.policy, VerificationError))


async def test_relayed_evidence_with_the_relay_s_tls_key(enclave: StandIn, world: World) -> None:
    genuine = other_session(enclave.session)
    mine = wire_keys(enclave.session.keys)
    enclave.tell = lambda nonce: changed(
        genuine.document(nonce),
        keys=changed(wire_keys(genuine.keys), tls_spki_sha256=mine.tls_spki_sha256),
    )
    assert {"binding", "channel.statement"} <= codes(
        await refuse(enclave, world.policy, VerificationError)
    )


async def test_every_reason_is_listed(enclave: StandIn, world: World) -> None:
    def worst(nonce: bytes) -> AttestationDocument:
        told = _expired(_other_code(enclave.session.document(nonce), enclave), enclave)
        return changed(told, manifest=signed_model(SigningKey.generate()).signed)

    enclave.tell = worst
    error = await refuse(enclave, world.policy, VerificationError)
    assert {"tdx.mr_td", "channel.statement_expired", "sealing.custodian"} <= codes(error)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(b"{}"), MalformedError),
        (answer(b"", 302, {"Location": "https://127.0.0.1:1/"}), UnavailableError),
        (answer(b"x" * 100, 503), UnavailableError),
        (b"SSH-2.0-OpenSSH_9.9\r\n", MalformedError),
        (answer(b"[" * 100_000), MalformedError),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * (9 << 20),
            TooLargeError,
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, TooLargeError),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", MalformedError),
    ],
    ids=["empty", "redirect", "error", "not HTTP", "deep JSON", "endless", "huge head", "upgrade"],
)
async def test_a_hostile_answer_is_bounded(
    enclave: StandIn, world: World, reply: bytes, kind: type[AIGovToolError]
) -> None:
    enclave.tell = lambda nonce: reply
    await refuse(enclave, world.policy, kind)
    assert len(enclave.received) == 1  # no redirect was followed, nothing was tried again


async def test_an_answer_that_never_ends_is_given_up(
    enclave: StandIn, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigovtool.channel.connect.FETCH_TIMEOUT_S", 0.3)
    enclave.tell = lambda nonce: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    await refuse(enclave, world.policy, UnavailableError)


async def test_nobody_there(world: World) -> None:
    with StandIn(Session(world)) as gone:
        pass
    with pytest.raises(UnavailableError, match="cannot connect"):
        await connect_async(gone.address, manifest=world.policy, api_key=API_KEY)


async def test_a_policy_without_a_custodian_reaches_nobody(enclave: StandIn, world: World) -> None:
    with pytest.raises(ConfigurationError, match="whose loan"):
        await connect_async(
            enclave.address, manifest=replace(world.policy, custodian=None), api_key=API_KEY
        )
    assert not enclave.received


@pytest.mark.parametrize("key", ["", "two words", "line\r\nbreak", "ключ", "x" * 600])
async def test_a_key_that_cannot_be_one_reaches_nobody(
    enclave: StandIn, world: World, key: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await connect_async(enclave.address, manifest=world.policy, api_key=key)
    assert not enclave.received
    assert not key or key not in str(caught.value)


async def test_swapped_between_judgement_and_query(enclave: StandIn, world: World) -> None:
    """An impostor takes the port after the judgement: the handshake fails, then it is refused."""
    client = await connect_async(enclave.address, manifest=world.policy, api_key=API_KEY)
    impostor = replace(enclave.session, identity=make_enclave_identity(now=datetime.now(UTC)))
    genuine = enclave.session
    enclave.received.clear()
    enclave.asked.clear()
    enclave.restart(impostor)
    enclave.tell = genuine.document  # the best it can show is what the genuine one says
    with pytest.raises(VerificationError):
        await client.infer({"x": np.ones((1, 3), np.float32)})
    assert not enclave.queries
    assert API_KEY.encode() not in enclave.everything
    assert all(not data or ONLY_A_NONCE.fullmatch(bytes(data)) for data in enclave.received)
    await client.aclose()


async def test_same_custodian_with_another_loan_in_the_manifest(
    enclave: StandIn, world: World
) -> None:
    custodian = Custodian(public_key=world.custodian.public_key, loan=LoanId("loan_other"))
    error = await refuse(enclave, replace(world.policy, custodian=custodian), RefusedError)
    assert codes(error) == {"channel.loan"}


async def test_a_loan_named_to_end_a_header_is_only_a_name(enclave: StandIn, world: World) -> None:
    loan = LoanId("x\r\nauthorization: Bearer y\r\n\u2028")
    custodian = Custodian(public_key=world.custodian.public_key, loan=loan)
    with pytest.raises(RefusedError):
        await connect_async(
            enclave.address, manifest=replace(world.policy, custodian=custodian), api_key=API_KEY
        )
    (sent,) = [bytes(data) for data in enclave.received]
    assert b"aigovtool-loan: x%0D%0Aauthorization%3A%20Bearer%20y%0D%0A%E2%80%A8\r\n" in sent
    assert b"\nauthorization" not in sent
