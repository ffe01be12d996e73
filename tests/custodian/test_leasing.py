"""Reports, settlements, silence and refunds, one attack or accident at a time."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime, timedelta

import msgspec
import pytest

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, verify_signature
from aigovtool.custodian.ledger import session_of
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.records import RequestId
from aigovtool.errors import (
    AIGovToolError,
    ConflictError,
    LoanNotActiveError,
    MalformedError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import ConsumerId, SessionId
from aigovtool.wire.codec import Signed, decode, open_signed, sign
from aigovtool.wire.control import (
    CreditsFreed,
    Hello,
    Lease,
    LoanChanged,
    MoreDecided,
    MoreWanted,
    ReportAnswer,
    RosterChanged,
    SessionEnded,
    Settlement,
)
from aigovtool.wire.enrolment import SessionStatement
from aigovtool.wire.limits import Limits, Rate
from tests.custodian.ledgers import BEGIN, Bench, FakeEnclave

GRACE_S, LEASE_S = 30.0, 5.0
NO_STATEMENT = Signed(payload=b"{}", signature=bytes(64))  # `identify` reads none


def granted(answer: ReportAnswer) -> Lease:
    assert answer.lease is not None
    return answer.lease


def numbers(ledger: Bench, loan: str) -> tuple[int, int, int, int, int]:
    account = ledger.loan(loan).account  # type: ignore[arg-type]
    return account.granted, account.left, account.leased, account.spent, account.forfeited


def state_of(ledger: Bench, enclave: FakeEnclave) -> SessionState:
    with ledger.ledger.read() as tx:
        return session_of(tx, enclave.session).state


def silence(ledger: Bench, enclave: FakeEnclave, seconds: float = GRACE_S + LEASE_S) -> None:
    ledger.sessions.disconnect(enclave.session)
    ledger.clock.forward(seconds)
    ledger.sessions.sweep()


def test_a_lease_is_leased_and_what_was_not_used_comes_back(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    answer = ledger.lease(enclave, 40)
    assert (granted(answer).credits, granted(answer).duration_s) == (40, LEASE_S)
    assert (answer.left, answer.leased_elsewhere) == (60, 0)
    assert numbers(ledger, loan) == (100, 60, 40, 0, 0)
    answer = ledger.settle(enclave, enclave.settlement(granted(answer).lease, {consumer: 15}))
    assert len(answer.settled) == 1
    assert numbers(ledger, loan) == (100, 85, 0, 15, 0)
    with ledger.ledger.read() as tx:
        found = tx.consumer(consumer)
    assert found is not None
    assert found.used == 15


def test_the_statement_names_session_lease_and_what_is_left(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    answer = ledger.lease(enclave, 40)
    said = open_signed(
        answer.statement,
        SessionStatement,
        public_key=ledger.key.public_key,
        label=Label.SESSION_STATEMENT,
    )
    assert (said.session, said.loan, said.left) == (enclave.session, loan, 60)
    assert said.lease == granted(answer).lease
    assert said.issued == BEGIN < said.expires


def test_a_report_that_comes_twice_grants_once(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    report = enclave.report(want=10)
    first = ledger.leasing.report(enclave.session, report)
    ledger.clock.forward(1)
    again = ledger.leasing.report(enclave.session, report)
    assert msgspec.structs.replace(again, statement=first.statement) == first
    assert again.statement != first.statement  # a fresh one
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)
    assert ledger.kinds().count("lease.granted") == 1


def test_a_report_that_comes_twice_is_answered_after_a_restart(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    report = enclave.report(want=10)
    first = ledger.leasing.report(enclave.session, report)
    ledger.reopen()
    again = ledger.leasing.report(enclave.session, report)
    assert again.lease == first.lease
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)


@pytest.mark.parametrize("number", [0, 1, 4, 10**9])
def test_a_report_out_of_order_is_refused_and_ends_the_session(ledger: Bench, number: int) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    ledger.lease(enclave, 10)
    ledger.lease(enclave, 10)
    report = msgspec.structs.replace(enclave.report(want=5), number=number)
    with pytest.raises(ConflictError):
        ledger.leasing.report(enclave.session, report)
    assert numbers(ledger, loan) == (100, 80, 20, 0, 0)
    assert state_of(ledger, enclave) is SessionState.ENDED
    assert "report.refused" in ledger.kinds()


def test_a_clone_that_reports_something_else_under_one_number_is_found_out(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    clone = dataclasses.replace(enclave)
    ledger.lease(enclave, 10)
    with pytest.raises(ConflictError):
        ledger.lease(clone, 11)
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)
    pushed = [push for push in ledger.told.pushes if isinstance(push.message, SessionEnded)]
    assert [push.only for push in pushed] == [enclave.session]


def test_a_settlement_repeated_is_acknowledged_and_counted_once(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    settlement = enclave.settlement(granted(ledger.lease(enclave, 10)).lease, {consumer: 4})
    ledger.settle(enclave, settlement)
    answer = ledger.settle(enclave, settlement, settlement)
    assert len(answer.settled) == 2
    assert numbers(ledger, loan) == (100, 96, 0, 4, 0)
    assert ledger.kinds().count("lease.settled") == 1


def test_two_different_settlements_of_a_lease_are_equivocation(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    ledger.settle(enclave, enclave.settlement(lease, {consumer: 4}))
    with pytest.raises(ConflictError) as caught:
        ledger.settle(enclave, enclave.settlement(lease, {consumer: 3}))
    assert caught.value.reasons[0].code == "settlement.equivocation"
    assert numbers(ledger, loan) == (100, 96, 0, 4, 0)
    with ledger.ledger.read() as tx:
        refused = [e for e in tx.last_events(None, 10) if e.kind == "report.refused"]
    assert b"settlement.equivocation" in refused[0].detail


def _forged(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    made = enclave.settlement(lease, {consumer: 1})  # type: ignore[arg-type]
    return Signed(payload=made.payload.replace(b'"used":1', b'"used":0'), signature=made.signature)


def _other_key(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    thief = dataclasses.replace(enclave, key=SigningKey.generate())
    return thief.settlement(lease, {consumer: 1})  # type: ignore[arg-type]


def _other_purpose(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    made = enclave.settlement(lease, {consumer: 1})  # type: ignore[arg-type]
    return sign(decode(made.payload, Settlement), enclave.key, Label.RECEIPT)


def _other_session(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    other = dataclasses.replace(enclave, session="session_other")  # type: ignore[arg-type]
    return other.settlement(lease, {consumer: 1})  # type: ignore[arg-type]


def _too_much(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    return enclave.settlement(lease, {consumer: 11})  # type: ignore[arg-type]


def _sum(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    made = decode(enclave.settlement(lease, {consumer: 3}).payload, Settlement)  # type: ignore[arg-type]
    return sign(msgspec.structs.replace(made, used=2), enclave.key, Label.SETTLEMENT)


def _negative(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    return enclave.settlement(lease, {consumer: -1})  # type: ignore[arg-type]


def _no_such_lease(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    return enclave.settlement("lease_none", {consumer: 1})  # type: ignore[arg-type]


def _nobody(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    return enclave.settlement(lease, {ConsumerId("consumer_none"): 1})  # type: ignore[arg-type]


def _short_chain(enclave: FakeEnclave, lease: str, consumer: ConsumerId) -> Signed:
    made = decode(enclave.settlement(lease, {consumer: 1}).payload, Settlement)  # type: ignore[arg-type]
    return sign(msgspec.structs.replace(made, receipt_chain=b""), enclave.key, Label.SETTLEMENT)


@pytest.mark.parametrize(
    "attack",
    [
        _forged,
        _other_key,
        _other_purpose,
        _other_session,
        _too_much,
        _sum,
        _negative,
        _no_such_lease,
        _nobody,
        _short_chain,
    ],
)
def test_a_settlement_that_is_not_right_changes_nothing(ledger: Bench, attack: object) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    honest = enclave.settlement(granted(ledger.lease(enclave, 10)).lease, {consumer: 1})
    before = numbers(ledger, loan)
    assert callable(attack)
    report = enclave.report((honest, attack(enclave, lease, consumer)), want=5)
    with pytest.raises(AIGovToolError) as caught:
        ledger.leasing.report(enclave.session, report)
    assert isinstance(caught.value, VerificationError | MalformedError | NotFoundError)
    assert numbers(ledger, loan) == before
    assert ledger.kinds().count("report.refused") == 1
    assert state_of(ledger, enclave) is SessionState.ENDED


def test_a_session_cannot_settle_another_ones_lease(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, victim, thief = ledger.consumer(loan), ledger.enclave(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(victim, 10)).lease
    with pytest.raises(VerificationError):
        ledger.settle(thief, thief.settlement(lease, {consumer: 0 + 1}))
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)
    assert state_of(ledger, victim) is SessionState.LIVE


def test_a_consumer_of_another_loan_is_not_charged(ledger: Bench) -> None:
    loan, other = ledger.lend(100).loan, ledger.lend(100).loan
    stranger, enclave = ledger.consumer(other), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    with pytest.raises(VerificationError):
        ledger.settle(enclave, enclave.settlement(lease, {stranger: 1}))


def test_several_sessions_share_what_is_left(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclaves = [ledger.enclave(loan) for _ in range(5)]
    leased = [granted(ledger.lease(each, 1000)).credits for each in enclaves]
    assert leased[:2] == [50, 13]  # half of what is left, then half a share of two
    assert all(credits >= 1 for credits in leased)
    assert sum(leased) == ledger.loan(loan).account.leased


def test_nothing_left_leases_nothing_and_freed_credits_are_announced(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    consumer, first, second = ledger.consumer(loan), ledger.enclave(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(first, 5)).lease
    answer = ledger.lease(second, 5)
    assert (answer.lease, answer.left, answer.leased_elsewhere) == (None, 0, 1)
    ledger.told.pushes.clear()
    ledger.settle(first, first.settlement(lease, {}))
    freed = [push for push in ledger.told.pushes if isinstance(push.message, CreditsFreed)]
    assert [(push.but, push.message) for push in freed] == [(first.session, CreditsFreed(left=1))]
    assert granted(ledger.lease(second, 5)).credits == 1
    assert consumer


def test_a_consumer_with_a_budget_of_its_own_is_capped_by_it(ledger: Bench) -> None:
    loan = ledger.lend(1000).loan
    own, enclave = ledger.consumer(loan, budget=4), ledger.enclave(loan)
    answer = ledger.lease(enclave, 10, by_consumer={own: 10})
    lease = granted(answer)
    assert lease.credits == 2  # only it may use them, and half of its budget is its block
    assert lease.caps == {own: 2}
    assert answer.consumer_left == {own: 2}
    with pytest.raises(MalformedError):
        ledger.settle(enclave, enclave.settlement(lease.lease, {own: 3}))
    with ledger.ledger.read() as tx:
        account = tx.consumer(own).account  # type: ignore[union-attr]
    assert (account.left, account.leased) == (2, 2)


def test_budgeted_and_other_wishes_go_into_one_lease(ledger: Bench) -> None:
    loan = ledger.lend(1000).loan
    own, enclave = ledger.consumer(loan, budget=100), ledger.enclave(loan)
    shared = ledger.consumer(loan)
    lease = granted(ledger.lease(enclave, 30, by_consumer={own: 10, shared: 7}))
    assert lease.credits == 30
    assert lease.caps == {own: 10}
    answer = ledger.settle(enclave, enclave.settlement(lease.lease, {own: 4, shared: 20}))
    assert answer.consumer_left == {own: 96}
    with ledger.ledger.read() as tx:
        mine, theirs = tx.consumer(own), tx.consumer(shared)
    assert mine is not None
    assert theirs is not None
    assert (mine.account.spent, mine.used, theirs.used) == (4, 4, 20)


def test_a_budgeted_consumer_without_a_cap_may_use_nothing(ledger: Bench) -> None:
    loan = ledger.lend(1000).loan
    own, enclave = ledger.consumer(loan, budget=100), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 30))
    with pytest.raises(MalformedError):
        ledger.settle(enclave, enclave.settlement(lease.lease, {own: 1}))


def test_a_blocked_consumers_wish_is_not_leased(ledger: Bench) -> None:
    loan = ledger.lend(1000).loan
    own, enclave = ledger.consumer(loan, budget=100), ledger.enclave(loan)
    ledger.loans.block(own, reason="", actor="test")
    assert ledger.lease(enclave, 10, by_consumer={own: 10}).lease is None


def test_a_lease_is_never_larger_than_the_terms_say(ledger: Bench) -> None:
    loan = ledger.lend(10_000, max_lease_credits=7).loan
    assert granted(ledger.lease(ledger.enclave(loan), 5000)).credits == 7


def test_a_lease_can_pay_for_the_batch_that_waits(ledger: Bench) -> None:
    loan = ledger.lend(60).loan
    own, enclave = ledger.consumer(loan, budget=50), ledger.enclave(loan)
    [ledger.enclave(loan) for _ in range(5)]
    answer = ledger.leasing.report(
        enclave.session, enclave.report((), 51, {own: 50}, 50, {own: 50})
    )
    lease = granted(answer)
    assert (lease.credits, lease.caps, answer.largest_lease) == (50, {own: 50}, 10_000)
    # what is left could not pay for another one, and is shared as ever
    assert (
        granted(ledger.leasing.report(enclave.session, enclave.report((), 51, None, 50))).credits
        == 5
    )


def test_what_a_running_query_holds_comes_back_in_the_same_report(ledger: Bench) -> None:
    """However many share what is left, and although the loan's rate lets nothing more through."""
    loan = ledger.lend(100, limits=Limits(rate=Rate(credits=80, per_s=86_400))).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    others = [ledger.enclave(loan) for _ in range(3)]
    lease = granted(ledger.lease(enclave, 80, at_least=80))
    assert ledger.lease(others[0], 5).lease is None  # the rate of the day is used up
    for used, held in ((10, 70), (30, 40), (40, 0)):
        settled = (enclave.settlement(lease.lease, {consumer: used}),)
        report = enclave.report(settled, held, at_least=held, held={consumer: held})
        answer = ledger.leasing.report(enclave.session, report)
        if held:
            lease = granted(answer)
            assert lease.credits == held
    assert numbers(ledger, loan) == (100, 20, 0, 80, 0)
    assert ledger.lease(others[0], 5).lease is None


def test_what_was_not_given_back_is_no_reason_to_pass_a_rate(ledger: Bench) -> None:
    """An enclave says that it held more than its settlement gives back."""
    loan = ledger.lend(100, limits=Limits(rate=Rate(credits=50, per_s=86_400))).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 50, at_least=50))
    settled = (enclave.settlement(lease.lease, {consumer: 49}),)
    report = enclave.report(settled, 50, at_least=50, held={consumer: 50})
    assert ledger.leasing.report(enclave.session, report).lease is None
    assert numbers(ledger, loan) == (100, 51, 0, 49, 0)


def test_a_look_at_what_is_left_leases_nothing(ledger: Bench) -> None:
    loan = ledger.lend(60, max_lease_credits=20).loan
    own, enclave = ledger.consumer(loan, budget=7), ledger.enclave(loan)
    answer = ledger.leasing.report(enclave.session, enclave.report((), 0, {own: 0}))
    assert (answer.lease, answer.left, answer.consumer_left) == (None, 60, {own: 7})
    assert answer.largest_lease == 20


def test_a_negative_price_is_refused(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    enclave = ledger.enclave(loan)
    with pytest.raises(MalformedError):
        ledger.leasing.report(enclave.session, enclave.report((), 5, None, -1))
    assert numbers(ledger, loan) == (10, 10, 0, 0, 0)


@pytest.mark.parametrize("credits", [-1, -(10**12)])
def test_a_negative_wish_is_refused(ledger: Bench, credits: int) -> None:
    loan = ledger.lend(10).loan
    with pytest.raises(MalformedError):
        ledger.lease(ledger.enclave(loan), credits)
    assert numbers(ledger, loan) == (10, 10, 0, 0, 0)


def test_a_stopped_loan_settles_and_leases_nothing(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    ledger.loans.stop(loan, reason="enough", actor="test")
    assert ledger.told.pushes[-1].message == LoanChanged(state="stopped", reason="enough")
    report = enclave.report((enclave.settlement(lease, {consumer: 3}),), want=10)
    answer = ledger.leasing.report(enclave.session, report)
    assert answer.lease is None
    assert numbers(ledger, loan) == (100, 97, 0, 3, 0)
    with pytest.raises(LoanNotActiveError):
        ledger.enclave(loan)
    ledger.loans.resume(loan, actor="test")
    assert granted(ledger.lease(enclave, 10)).credits == 10


def test_a_stop_repeated_is_pushed_again_and_noted_once(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    ledger.loans.stop(loan, reason="enough", actor="test")
    ledger.told.pushes.clear()
    ledger.loans.stop(loan, reason="enough", actor="test")
    assert len(ledger.told.pushes) == 1
    assert ledger.kinds().count("loan.stopped") == 1


def test_a_closed_loan_stays_closed(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    ledger.loans.close(loan, reason="", actor="test")
    with pytest.raises(ConflictError):
        ledger.loans.resume(loan, actor="test")
    with pytest.raises(ConflictError):
        ledger.grants.grant(loan, 5, actor="test")
    with pytest.raises(LoanNotActiveError) as caught:
        ledger.enclave(loan)
    assert caught.value.reasons[0].came == "closed"


def test_past_its_date_a_loan_leases_nothing_even_before_the_sweep(ledger: Bench) -> None:
    from datetime import timedelta

    loan = ledger.lend(100, expires=BEGIN + timedelta(seconds=60)).loan
    enclave = ledger.enclave(loan)
    assert ledger.lease(enclave, 5).lease is not None
    ledger.clock.forward(60)
    assert ledger.lease(enclave, 5).lease is None
    assert ledger.loan(loan).state is LoanState.ACTIVE
    assert ledger.sessions.sweep() == 1
    assert ledger.loan(loan).state is LoanState.EXPIRED
    assert isinstance(ledger.told.pushes[-1].message, LoanChanged)


def test_a_silent_session_forfeits_whole_leases_after_its_grace(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    ledger.lease(enclave, 10)
    silence(ledger, enclave, GRACE_S + LEASE_S - 0.001)
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)
    ledger.clock.forward(0.001)
    ledger.sessions.sweep()
    assert numbers(ledger, loan) == (100, 90, 0, 0, 10)
    assert state_of(ledger, enclave) is SessionState.LAPSED
    assert "lease.forfeited" in ledger.kinds()


def test_a_connected_session_forfeits_nothing(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    ledger.lease(ledger.enclave(loan), 10)
    ledger.clock.forward(10_000)
    assert ledger.sessions.sweep() == 0
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)


def test_a_restart_gives_every_session_a_fresh_grace(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    ledger.lease(enclave, 10)
    ledger.clock.forward(10_000)
    ledger.reopen()
    ledger.clock.forward(GRACE_S - 1)
    assert ledger.sessions.sweep() == 0
    ledger.clock.forward(1)
    assert ledger.sessions.sweep() > 0
    assert numbers(ledger, loan) == (100, 90, 0, 0, 10)


def test_a_late_settlement_takes_a_forfeit_back(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    silence(ledger, enclave)
    ledger.sessions.connect(enclave.session)
    assert state_of(ledger, enclave) is SessionState.LIVE  # there is room
    ledger.settle(enclave, enclave.settlement(lease, {consumer: 4}))
    assert numbers(ledger, loan) == (100, 96, 0, 4, 0)
    assert "lease.settled_late" in ledger.kinds()


def test_after_a_refund_a_late_settlement_gives_nothing_back_twice(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    silence(ledger, enclave)
    ledger.grants.refund(lease, actor="test", reason="power cut")
    assert numbers(ledger, loan) == (110, 100, 0, 0, 10)
    ledger.sessions.connect(enclave.session)
    ledger.settle(enclave, enclave.settlement(lease, {consumer: 4}))
    # the six that were not used were given by the refund; the four were served for ten more granted
    assert numbers(ledger, loan) == (110, 100, 0, 4, 6)


def test_a_lease_is_refunded_once_with_a_reason_and_only_when_forfeited(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    own, enclave = ledger.consumer(loan, budget=20), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10, by_consumer={own: 10})).lease
    with pytest.raises(ConflictError):
        ledger.grants.refund(lease, actor="test", reason="too early")
    silence(ledger, enclave)
    with pytest.raises(MalformedError):
        ledger.grants.refund(lease, actor="test", reason=" ")
    ledger.grants.refund(lease, actor="test", reason="power cut")
    with pytest.raises(ConflictError):
        ledger.grants.refund(lease, actor="test", reason="again")
    with ledger.ledger.read() as tx:
        account = tx.consumer(own).account  # type: ignore[union-attr]
    assert (account.granted, account.left, account.forfeited) == (30, 20, 10)
    with pytest.raises(NotFoundError):
        ledger.grants.refund("lease_none", actor="test", reason="x")  # type: ignore[arg-type]


def test_a_lapsed_session_without_room_may_only_settle(ledger: Bench) -> None:
    loan = ledger.lend(100, max_enclaves=1).loan
    consumer, old = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(old, 10)).lease
    silence(ledger, old)
    new = ledger.enclave(loan)
    _, settle_only = ledger.sessions.connect(old.session)
    assert settle_only
    report = old.report((old.settlement(lease, {consumer: 2}),), want=10)
    answer = ledger.leasing.report(old.session, report)
    assert (answer.settled, answer.lease) == ((lease,), None)
    assert state_of(ledger, old) is SessionState.LAPSED
    with pytest.raises(NotFoundError):
        ledger.sessions.connect(old.session)
    assert state_of(ledger, new) is SessionState.LIVE


def test_more_enclaves_than_agreed_are_refused(ledger: Bench) -> None:
    loan = ledger.lend(100, max_enclaves=2).loan
    ledger.enclave(loan)
    ledger.enclave(loan)
    with pytest.raises(RefusedError, match="as many enclaves"):
        ledger.enclave(loan)
    assert ledger.kinds().count("key.released") == 2


def test_a_lost_enclave_gives_way_only_when_its_lease_is_over(ledger: Bench) -> None:
    loan = ledger.lend(100, max_enclaves=1).loan
    old = ledger.enclave(loan)
    ledger.lease(old, 10)
    ledger.sessions.disconnect(old.session)
    with pytest.raises(UnavailableError) as caught:
        ledger.enclave(loan)
    assert caught.value.retry_after_s == LEASE_S
    ledger.clock.forward(LEASE_S)
    ledger.enclave(loan)
    assert state_of(ledger, old) is SessionState.LAPSED
    assert numbers(ledger, loan) == (100, 90, 10, 0, 0)  # it may still settle


def test_only_the_holder_of_the_sessions_key_connects(ledger: Bench) -> None:
    enclave = ledger.enclave(ledger.lend(1).loan)
    nonce = bytes(32)

    def hello(key: SigningKey, over: bytes, label: Label = Label.CONTROL_HELLO) -> Hello:
        return Hello(
            session=enclave.session, signature=key.sign(label, over), statement=NO_STATEMENT
        )

    good = nonce + enclave.session.encode()
    assert ledger.sessions.identify(hello(enclave.key, good), nonce).session == enclave.session
    for wrong in (
        hello(SigningKey.generate(), good),
        hello(enclave.key, bytes([1]) * 32 + enclave.session.encode()),
        hello(enclave.key, good, Label.SETTLEMENT),
    ):
        with pytest.raises(VerificationError):
            ledger.sessions.identify(wrong, nonce)
    with pytest.raises(NotFoundError):
        ledger.sessions.identify(
            Hello(session=SessionId("session_none"), signature=bytes(64), statement=NO_STATEMENT),
            nonce,
        )


def test_a_proof_of_wiping_is_checked_kept_and_ends_the_session(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    enclave, other = ledger.enclave(loan), ledger.enclave(loan)
    with pytest.raises(VerificationError):
        ledger.sessions.stopped(enclave.session, other.stop_proof())
    stolen = dataclasses.replace(other, key=enclave.key).stop_proof()
    with pytest.raises(VerificationError):
        ledger.sessions.stopped(enclave.session, stolen)
    assert state_of(ledger, enclave) is SessionState.LIVE
    proof = enclave.stop_proof()
    ledger.sessions.stopped(enclave.session, proof)
    ledger.sessions.stopped(enclave.session, proof)
    assert state_of(ledger, enclave) is SessionState.ENDED
    assert ledger.kinds().count("session.stop_proof") == 1
    with ledger.ledger.read() as tx:
        kept = tx.stop_proof(enclave.session)
    assert kept is not None
    verify_signature(enclave.key.public_key, Label.STOP_PROOF, kept.payload, kept.signature)


def test_the_worst_case_is_the_live_leases_and_shrinks_with_time(ledger: Bench) -> None:
    from aigovtool.custodian.loans import exposure_of

    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    first = granted(ledger.lease(enclave, 10))
    ledger.clock.forward(2)
    ledger.lease(enclave, 5)

    def exposure() -> tuple[int, float]:
        with ledger.ledger.read() as tx:
            seen = exposure_of(tx, loan, ledger.clock.now())
        return seen.credits, seen.seconds

    assert exposure() == (15, 5.0)
    ledger.clock.forward(3)
    # over by our clock, which may have jumped: it counts until the enclave has settled it
    assert exposure() == (15, 5.0)
    ledger.settle(enclave, enclave.settlement(first.lease, {}))
    assert exposure() == (5, 2.0)
    ledger.sessions.disconnect(enclave.session)
    assert exposure() == (5, 2.0)
    ledger.clock.forward(2)
    assert exposure() == (0, 0.0)


def test_leases_of_no_duration_count_until_they_are_settled(ledger: Bench) -> None:
    from aigovtool.custodian.loans import exposure_of

    loan = ledger.lend(100, lease_duration_s=0.0).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 1))
    assert lease.duration_s == 0
    ledger.clock.forward(1)
    with ledger.ledger.read() as tx:
        assert exposure_of(tx, loan, ledger.clock.now()).credits == 1
    ledger.settle(enclave, enclave.settlement(lease.lease, {consumer: 1}))
    with ledger.ledger.read() as tx:
        assert exposure_of(tx, loan, ledger.clock.now()).credits == 0


def test_block_and_unblock_tell_every_enclave(ledger: Bench) -> None:
    loan = ledger.lend(100).loan
    consumer = ledger.consumer(loan)
    ledger.told.pushes.clear()
    ledger.loans.block(consumer, reason="key on a forum", actor="test")
    ledger.loans.unblock(consumer, actor="test")
    blocked = [
        push.message.roster[0].blocked
        for push in ledger.told.pushes
        if isinstance(push.message, RosterChanged)
    ]
    assert blocked == [True, False]


def test_a_request_for_more_is_kept_once_and_approved_once(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    wanted = MoreWanted(consumer=consumer, credits=5, reason="two\nlines\x1b[31m")
    request = ledger.grants.want_more(enclave.session, wanted)
    assert ledger.grants.want_more(enclave.session, wanted) == request
    ledger.told.pushes.clear()
    decided = ledger.grants.approve(request, actor="test", credits=7, reason="fine")
    assert decided.reason == "two lines [31m"
    assert numbers(ledger, loan) == (8, 8, 0, 0, 0)
    assert [type(push.message) for push in ledger.told.pushes] == [MoreDecided, CreditsFreed]
    for again in (
        lambda: ledger.grants.approve(request, actor="test"),
        lambda: ledger.grants.deny(request, actor="test", reason=""),
    ):
        with pytest.raises(ConflictError):
            again()
    assert numbers(ledger, loan) == (8, 8, 0, 0, 0)


def test_who_waits_for_a_request_is_known_per_enclave_and_by_now(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    consumer = ledger.consumer(loan)
    enclaves = [ledger.enclave(loan) for _ in range(2)]

    def waits(enclave: FakeEnclave, waiting: int, waited_s: float = 0.0) -> RequestId | None:
        return ledger.grants.want_more(
            enclave.session,
            MoreWanted(
                consumer=consumer, credits=waiting, reason="", waiting=waiting, waited_s=waited_s
            ),
        )

    def known(request: RequestId) -> tuple[int, datetime | None]:
        with ledger.ledger.read() as tx:
            waiting = tx.waiting_of_request(request)
        return waiting.queries, waiting.since

    now = ledger.clock.now()
    assert waits(enclaves[0], 0) is None  # nobody wants anything: no request
    request = waits(enclaves[0], 3, 2.0)
    assert request is not None
    assert known(request) == (3, now - timedelta(seconds=2))
    assert waits(enclaves[1], 4, 60.0) == request
    assert known(request) == (7, now - timedelta(seconds=60))
    waits(enclaves[1], 1, 1.0)
    assert known(request) == (4, now - timedelta(seconds=2))
    for number, waited_s in [(-1, 0.0), (1, -1.0), (1, math.inf), (1, math.nan), (1 << 40, 0.0)]:
        with pytest.raises(MalformedError):
            waits(enclaves[0], number, waited_s)
    waits(enclaves[0], 0)
    assert known(request) == (1, now - timedelta(seconds=1))
    ledger.grants.deny(request, actor="test", reason="no")
    assert waits(enclaves[1], 0) is None
    assert known(request) == (1, now - timedelta(seconds=1))  # how it was when it was decided


def test_what_an_ended_session_said_of_who_waits_counts_no_more(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    wanted = MoreWanted(consumer=consumer, credits=5, reason="", waiting=5)
    request = ledger.grants.want_more(enclave.session, wanted)
    assert request is not None
    silence(ledger, enclave)
    with ledger.ledger.read() as tx:
        assert tx.waiting_of_request(request).queries == 0


def test_who_connects_is_told_what_was_decided_lately(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    alice, bob = ledger.consumer(loan), ledger.consumer(loan)
    enclave = ledger.enclave(loan)

    def decide(consumer: ConsumerId, words: str, approved: bool) -> None:
        wanted = MoreWanted(consumer=consumer, credits=5, reason=words)
        request = ledger.grants.want_more(enclave.session, wanted)
        assert request is not None
        if approved:
            ledger.grants.approve(request, actor="test", credits=2, reason="fine")
        else:
            ledger.grants.deny(request, actor="test", reason="not now")

    decide(alice, "first", approved=True)
    ledger.clock.forward(10)
    decide(alice, "second", approved=False)
    decide(bob, "his", approved=True)
    ledger.clock.forward(20)
    welcome, _ = ledger.sessions.connect(enclave.session)
    told = {one.consumer: one for one in welcome.decided}
    assert told == {
        alice: MoreDecided(
            consumer=alice, approved=False, credits=0, reason="not now", asked="second", age_s=20.0
        ),
        bob: MoreDecided(
            consumer=bob, approved=True, credits=2, reason="fine", asked="his", age_s=20.0
        ),
    }
    ledger.clock.forward(3600)
    welcome, _ = ledger.sessions.connect(enclave.session)
    assert welcome.decided == ()


def test_approving_a_budgeted_consumer_tops_the_loan_up_as_far_as_it_lacks(ledger: Bench) -> None:
    loan = ledger.lend(3).loan
    own, enclave = ledger.consumer(loan, budget=0), ledger.enclave(loan)
    wanted = MoreWanted(consumer=own, credits=5, reason="")
    ledger.grants.approve(ledger.grants.want_more(enclave.session, wanted), actor="test")
    assert numbers(ledger, loan) == (5, 5, 0, 0, 0)
    with ledger.ledger.read() as tx:
        assert tx.consumer(own).account.left == 5  # type: ignore[union-attr]


def test_a_denied_request_grants_nothing_and_is_told(ledger: Bench) -> None:
    loan = ledger.lend(1).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    wanted = MoreWanted(consumer=consumer, credits=5, reason="")
    request = ledger.grants.want_more(enclave.session, wanted)
    ledger.grants.deny(request, actor="test", reason="not now")
    assert numbers(ledger, loan) == (1, 1, 0, 0, 0)
    assert ledger.told.pushes[-1].message == MoreDecided(
        consumer=consumer, approved=False, credits=0, reason="not now"
    )


def test_a_grant_with_an_idempotency_key_is_made_once(ledger: Bench) -> None:
    loan = ledger.lend(0).loan
    for _ in range(3):
        ledger.grants.grant(loan, 5, actor="test", key="k")
    assert numbers(ledger, loan) == (5, 5, 0, 0, 0)
    with pytest.raises(ConflictError):
        ledger.grants.grant(loan, 6, actor="test", key="k")


def test_a_server_that_ends_leases_nothing_more(ledger: Bench) -> None:
    loan = ledger.lend(10).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 2)).lease
    ledger.leasing.suspend()
    report = enclave.report((enclave.settlement(lease, {consumer: 1}),), want=5)
    answer = ledger.leasing.report(enclave.session, report)
    assert (answer.settled, answer.lease) == ((lease,), None)


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_report_whose_commit_failed_is_answered_when_it_comes_again(
    ledger: Bench, how: str
) -> None:
    loan = ledger.lend(100).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    lease = granted(ledger.lease(enclave, 10)).lease
    report = enclave.report((enclave.settlement(lease, {consumer: 4}),), want=8)
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.leasing.report(enclave.session, report)
    assert state_of(ledger, enclave) is SessionState.LIVE
    kept = numbers(ledger, loan)
    assert kept == ((100, 90, 10, 0, 0) if how == "lost" else (100, 88, 8, 4, 0))
    answer = ledger.leasing.report(enclave.session, report)
    assert (answer.settled, granted(answer).credits) == ((lease,), 8)
    assert numbers(ledger, loan) == (100, 88, 8, 4, 0)


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_grant_whose_commit_failed_is_made_once_when_repeated(ledger: Bench, how: str) -> None:
    loan = ledger.lend(0).loan
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.grants.grant(loan, 5, actor="test", key="once")
    ledger.grants.grant(loan, 5, actor="test", key="once")
    assert numbers(ledger, loan) == (5, 5, 0, 0, 0)


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_release_whose_commit_failed_gives_no_permit(ledger: Bench, how: str) -> None:
    loan = ledger.lend(10).loan
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.enclave(loan, connect=False)
    ledger.enclave(loan)
    assert ledger.kinds().count("key.released") == (1 if how == "lost" else 2)


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_stop_whose_commit_failed_is_pushed_when_repeated(ledger: Bench, how: str) -> None:
    loan = ledger.lend(10).loan
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.loans.stop(loan, reason="enough", actor="test")
    assert not [push for push in ledger.told.pushes if isinstance(push.message, LoanChanged)]
    ledger.loans.stop(loan, reason="enough", actor="test")
    assert ledger.told.pushes[-1].message == LoanChanged(state="stopped", reason="enough")
    assert ledger.kinds().count("loan.stopped") == 1
