"""What a consumer finds in the receipts that it kept: every attack by name, offline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from aigovtool.attestation.policy import write_policy
from aigovtool.clock import SystemClock
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Charge
from aigovtool.enclave.receipts import Receipts
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.proof.receipts import Checked, KeptReceipt, KeptSession, check_receipts
from aigovtool.wire.codec import Signed, decode, encode, sign
from aigovtool.wire.enrolment import AttestationDocument
from aigovtool.wire.receipt import Receipt, Refund, from_header
from tests.channel.stand_in import Platform, Session, World, signed_model

ME, OTHER = ConsumerId("consumer_me"), ConsumerId("consumer_other")
LEASE = LeaseId("lease_1")


@dataclass
class Run:
    """One attested run of an enclave that charges a lease, and what was kept of it."""

    session: Session
    left: int = 100
    receipts: Receipts = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = Receipts(
            loan=self.session.world.loan,
            session=self.session.id,
            model_digest=self.session.world.model.digest,
            key=self.session.signing,
            clock=SystemClock(),
        )

    def pay(self, consumer: ConsumerId = ME, cost: int = 1, lease: LeaseId = LEASE) -> Signed:
        charge = Charge(lease, cost, self.left, self.left - cost)
        self.left -= cost
        return from_header(self.receipts.header(self.receipts.draw_up(charge, consumer)))

    def take_back(self, signed: Signed) -> Signed:
        said = decode(signed.payload, Receipt)
        charge = Charge(said.lease, -said.cost, self.left, self.left + said.cost)
        self.left += said.cost
        refund = Refund(kind="model-error", number=said.number)
        payload = self.receipts.draw_up(charge, said.consumer, refund)
        return from_header(self.receipts.header(payload))

    def altered(self, signed: Signed, **changes: Any) -> Signed:
        """The same receipt as a dishonest enclave would sign it."""
        said = msgspec.structs.replace(decode(signed.payload, Receipt), **changes)
        return sign(said, self.session.signing, Label.RECEIPT)

    def kept(self) -> KeptSession:
        return KeptSession(
            judged=datetime.now(UTC),
            document=encode(self.session.document(bytes(32))),
            manifest=write_policy(self.session.world.policy).encode(),
        )


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture
def run(world: World) -> Run:
    return Run(Session(world))


def check(run: Run, *signed: Signed, **more: Any) -> Checked:
    given = {"sessions": {run.session.id: run.kept()}} | more
    kept = [
        KeptReceipt(source=f"kept:{line}", consumer=ME, signed=one)
        for line, one in enumerate(signed, start=1)
    ]
    return check_receipts(kept, **given)


def codes(checked: Checked) -> list[str]:
    return [finding.code for finding in checked.findings]


def test_what_an_honest_enclave_signed_is_in_order(run: Run) -> None:
    mine = []
    for consumer in (ME, OTHER, ME, ME, OTHER, ME):
        receipt = run.pay(consumer, cost=2)
        if consumer == ME:
            mine.append(receipt)
    checked = check(run, *reversed(mine), mine[0])  # in any order, a copy among them
    assert not checked.findings
    assert (len(checked.genuine), checked.cost) == (4, 8)
    assert checked.sessions[run.session.id].keys == run.session.keys


def test_receipts_that_share_a_signature_are_in_order_and_a_wrong_path_is_forged(run: Run) -> None:
    charge = Charge(LEASE, 1, 10, 9)
    drawn = [run.receipts.draw_up(charge, ME) for _ in range(3)]
    signed = [from_header(header) for header in run.receipts.headers(drawn)]
    checked = check_receipts(
        [KeptReceipt(source=str(n), consumer=ME, signed=one) for n, one in enumerate(signed)],
        {run.session.id: run.kept()},
    )
    assert "receipt.forged" not in codes(checked)
    assert len(checked.genuine) == 3
    swapped = Signed(payload=signed[0].payload, signature=signed[1].signature)
    assert codes(check(run, swapped)) == ["receipt.forged"]


def test_receipts_of_two_consumers_make_one_chain(run: Run) -> None:
    kept = [
        KeptReceipt(source=str(number), consumer=consumer, signed=run.pay(consumer))
        for number, consumer in enumerate((ME, OTHER, OTHER, ME))
    ]
    assert not check_receipts(kept, {run.session.id: run.kept()}).findings


@pytest.mark.parametrize(("kept", "missing"), [([0, 2, 3], 1), ([0, 3], 2), ([1, 2, 3], 1)])
def test_a_missing_receipt_shows_though_others_lie_between(
    run: Run, kept: list[int], missing: int
) -> None:
    mine = [(run.pay(ME), run.pay(OTHER))[0] for _ in range(4)]
    (finding,) = check(run, *(mine[index] for index in kept)).findings
    assert finding.code == "receipt.gap"
    assert finding.message.startswith(f"{missing} of this consumer's receipts")


def test_two_histories_of_one_session_are_a_fork(run: Run) -> None:
    first, clone = run.pay(), Run(run.session)
    clone.pay(OTHER)
    second, theirs = run.pay(), clone.pay()
    # the clone's is the first of its own for this consumer, and the second of the session
    assert codes(check(run, first, second, theirs)) == ["receipt.fork"] * 3


def test_a_receipt_that_does_not_follow_the_one_before_is_a_fork(run: Run) -> None:
    first = run.pay()
    second = run.altered(run.pay(), own_previous=b"x" * 32)
    assert codes(check(run, first, second)) == ["receipt.fork"]
    second = run.altered(second, own_previous=decode(second.payload, Receipt).previous)
    assert not check(run, first, second).findings
    assert codes(check(run, first, run.altered(second, previous=b"x" * 32))) == ["receipt.fork"]


def test_a_forged_receipt_is_named_and_counts_for_nothing(run: Run) -> None:
    honest = run.pay()
    forged = sign(decode(run.pay().payload, Receipt), SigningKey.generate(), Label.RECEIPT)
    checked = check(run, honest, forged)
    assert codes(checked) == ["receipt.forged"]
    assert len(checked.genuine) == 1
    altered = replace_byte(honest)
    assert codes(check(run, altered)) == ["receipt.forged"]
    other_purpose = sign(decode(honest.payload, Receipt), run.session.signing, Label.SETTLEMENT)
    assert codes(check(run, other_purpose)) == ["receipt.forged"]


def replace_byte(signed: Signed) -> Signed:
    payload = signed.payload.replace(b'"cost":1', b'"cost":0')
    assert payload != signed.payload
    return msgspec.structs.replace(signed, payload=payload)


@pytest.mark.parametrize(
    "changes",
    [
        {"loan": LoanId("loan_other")},
        {"model_digest": b"m" * 32},
        {"consumer": OTHER},
    ],
)
def test_a_foreign_receipt_is_named(run: Run, changes: dict[str, Any]) -> None:
    assert codes(check(run, run.altered(run.pay(), **changes))) == ["receipt.foreign"]


@pytest.mark.parametrize(
    "changes",
    [
        {"balance_after": 100},
        {"balance_before": 101},
        {"cost": -1, "balance_after": 101},
        {"balance_before": 0, "balance_after": -1},
    ],
)
def test_balances_that_do_not_add_up_are_named(run: Run, changes: dict[str, Any]) -> None:
    assert codes(check(run, run.altered(run.pay(), **changes))) == ["receipt.balance"]


def test_what_others_did_in_between_is_not_to_be_told(run: Run) -> None:
    first = run.pay()
    run.left = 100  # a charge of somebody else's was taken back
    run.pay(OTHER)
    assert codes(check(run, first, run.pay())) == []


def test_a_refund_takes_back_a_charge_once_and_whole(run: Run) -> None:
    charge, other = run.pay(cost=5), run.pay()
    back = run.take_back(charge)
    after = run.pay()
    assert codes(check(run, charge, other, back, after)) == []
    again = run.take_back(charge)
    assert codes(check(run, charge, other, back, after, again)) == ["receipt.refund"]


@pytest.mark.parametrize("changes", [{"cost": -6}, {"lease": LeaseId("lease_2")}])
def test_a_refund_of_something_else_is_named(run: Run, changes: dict[str, Any]) -> None:
    charge = run.pay(cost=5)
    back = run.take_back(charge)
    said = decode(back.payload, Receipt)
    if "cost" in changes:
        changes |= {"balance_after": said.balance_before + 6}
    assert codes(check(run, charge, run.altered(back, **changes))) == ["receipt.refund"]


def test_a_refund_whose_charge_is_not_shown_is_a_gap(run: Run) -> None:
    charge = run.pay(cost=5)
    assert codes(check(run, run.take_back(charge))) == ["receipt.gap"]


def test_neighbours_leave_what_the_next_finds(run: Run) -> None:
    first = run.pay()
    run.left -= 5  # nobody is between them, and 5 credits are gone
    assert codes(check(run, first, run.pay())) == ["receipt.balance"]


def test_one_lease_in_two_sessions_is_named(run: Run, world: World) -> None:
    other = Run(Session(world, id=SessionId("sess_2")))
    sessions = {run.session.id: run.kept(), other.session.id: other.kept()}
    assert codes(check(run, run.pay(), other.pay(), sessions=sessions)) == ["receipt.foreign"]


def test_a_session_that_nobody_kept_proves_nothing(run: Run) -> None:
    checked = check(run, run.pay(), run.pay(), sessions={})
    assert codes(checked) == ["session.missing"]
    assert not checked.genuine


def test_a_session_kept_under_another_name_proves_nothing(run: Run) -> None:
    liar = Run(Session(run.session.world, id=SessionId("sess_2")))
    sessions = {liar.session.id: run.kept()}
    assert codes(check(run, liar.pay(), sessions=sessions)) == ["session.refused"]


def test_keys_that_no_evidence_binds_are_refused(run: Run) -> None:
    document = run.session.document(bytes(32))
    keys = msgspec.structs.replace(document.keys, signing_key=SigningKey.generate().public_key)
    sessions = {run.session.id: swapped(run, keys=keys)}
    checked = check(run, run.pay(), sessions=sessions)
    assert set(codes(checked)) == {"session.refused"}
    assert "binding" in str(checked.findings)


def test_evidence_of_another_session_is_refused(run: Run, world: World) -> None:
    other = Session(world).document(bytes(32))
    sessions = {run.session.id: swapped(run, evidence=other.evidence)}
    assert set(codes(check(run, run.pay(), sessions=sessions))) == {"session.refused"}


def test_a_model_that_the_custodian_did_not_lend_is_refused(run: Run) -> None:
    other = signed_model(run.session.world.custodian, version="2")
    sessions = {run.session.id: swapped(run, manifest=other.signed)}
    assert set(codes(check(run, run.pay(), sessions=sessions))) == {"session.refused"}


def swapped(run: Run, **changes: Any) -> KeptSession:
    kept = run.kept()
    document = decode(kept.document, AttestationDocument)
    return msgspec.structs.replace(
        kept, document=encode(msgspec.structs.replace(document, **changes))
    )


def test_another_custodians_manifest_accepts_nothing(run: Run) -> None:
    policy = World.make(run.session.world.platform).policy
    assert set(codes(check(run, run.pay(), policy=policy))) == {"session.refused"}


def test_evidence_judged_outside_its_certificates_life_is_refused(run: Run) -> None:
    late = msgspec.structs.replace(run.kept(), judged=datetime(2060, 1, 1, tzinfo=UTC))
    assert "session.refused" in codes(check(run, run.pay(), sessions={run.session.id: late}))


def test_a_line_that_is_no_receipt_is_named_and_the_rest_stands(run: Run) -> None:
    kept = KeptReceipt(source="kept:1", consumer=ME, signed=run.pay())
    torn = replace(kept, source="kept:2", signed=None)
    other = replace(kept, source="kept:3", signed=Signed(payload=b"{}", signature=b""))
    checked = check_receipts([kept, torn, other], {run.session.id: run.kept()})
    assert codes(checked) == ["receipt.unreadable"] * 2
    assert len(checked.genuine) == 1
