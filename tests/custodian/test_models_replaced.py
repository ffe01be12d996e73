"""A loan's model is replaced: who gets which, how many may hold it, and when the old one ends."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.ledger import loan_of, session_of
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.custodian.records import Loan, Model
from aigovtool.custodian.sessions import RETIRE_GRACE
from aigovtool.errors import ConflictError, MalformedError, NotFoundError, RefusedError
from aigovtool.ids import LoanId, SessionId
from aigovtool.wire.codec import open_signed
from aigovtool.wire.control import ModelReplaced, ReportAnswer, SessionEnded
from aigovtool.wire.enrolment import SessionStatement

from .ledgers import MODEL, RESULT, Bench, FakeEnclave, enrol_request, exhibit

SECOND = bytes(reversed(range(32)))


def seal_second(ledger: Bench) -> None:
    with ledger.ledger.write() as entry:
        first = entry.tx.model(MODEL)
        assert isinstance(first, Model)
        entry.tx.insert_model(dataclasses.replace(first, digest=SECOND, version="2"))


@pytest.fixture
def lent(ledger: Bench) -> Loan:
    loan = ledger.lend(100, max_enclaves=1)
    seal_second(ledger)
    return loan


def enrolled(ledger: Bench, loan: LoanId, key: SigningKey) -> FakeEnclave:
    permit = ledger.admission.admit(
        loan, enrol_request(loan, key), RESULT, bytes(64), exhibit=exhibit(ledger.clock.now())
    )
    ledger.sessions.connect(permit.session.session)
    return FakeEnclave(permit.session.session, loan, key)


def replace(ledger: Bench, loan: LoanId, model: bytes = SECOND, after_s: float = 60.0) -> Loan:
    return ledger.loans.replace_model(
        loan, model, retire_after_s=after_s, reason="better", actor="test"
    )


def stated(ledger: Bench, answer: ReportAnswer) -> SessionStatement:
    return open_signed(
        answer.statement,
        SessionStatement,
        public_key=ledger.key.public_key,
        label=Label.SESSION_STATEMENT,
    )


def state(ledger: Bench, session: SessionId) -> SessionState:
    with ledger.ledger.read() as tx:
        return session_of(tx, session).state


def test_a_session_keeps_its_model_and_the_next_one_gets_the_new_one(
    ledger: Bench, lent: Loan
) -> None:
    key = SigningKey.generate()
    old = enrolled(ledger, lent.loan, key)
    replaced = replace(ledger, lent.loan)
    assert (replaced.model, replaced.retires) == (
        SECOND,
        ledger.clock.now() + timedelta(seconds=60),
    )
    new = enrolled(ledger, lent.loan, key)
    assert stated(ledger, ledger.lease(old, 10)).model_digest == MODEL
    assert stated(ledger, ledger.lease(new, 10)).model_digest == SECOND
    ledger.reopen()
    with ledger.ledger.read() as tx:
        assert session_of(tx, old.session).model == MODEL
        assert session_of(tx, new.session).model == SECOND
        assert loan_of(tx, lent.loan) == dataclasses.replace(
            replaced, account=loan_of(tx, lent.loan).account
        )


def test_enclaves_are_told_and_whoever_connects_too(ledger: Bench, lent: Loan) -> None:
    enclave = enrolled(ledger, lent.loan, SigningKey.generate())
    welcome, _ = ledger.sessions.connect(enclave.session)
    assert (welcome.model_digest, welcome.retire_after_s) == (MODEL, None)
    replace(ledger, lent.loan)
    pushed = [push.message for push in ledger.told.pushes if push.loan == lent.loan]
    assert ModelReplaced(model_digest=SECOND, retire_after_s=60.0) in pushed
    ledger.clock.forward(20)
    welcome, _ = ledger.sessions.connect(enclave.session)
    assert (welcome.model_digest, welcome.retire_after_s) == (SECOND, 40.0)


def test_both_sessions_of_an_enclave_take_one_place_and_no_other_enclave_gets_in(
    ledger: Bench, lent: Loan
) -> None:
    key = SigningKey.generate()
    enrolled(ledger, lent.loan, key)
    with pytest.raises(RefusedError, match="as many enclaves"):
        enrolled(ledger, lent.loan, key)  # its model is the loan's: this would be a second one
    replace(ledger, lent.loan)
    with pytest.raises(RefusedError, match="as many enclaves"):
        enrolled(ledger, lent.loan, SigningKey.generate())
    enrolled(ledger, lent.loan, key)
    for again in (key, SigningKey.generate()):
        with pytest.raises(RefusedError, match="as many enclaves"):
            enrolled(ledger, lent.loan, again)


def test_both_pay_from_one_budget_and_settle_exactly(ledger: Bench, lent: Loan) -> None:
    key = SigningKey.generate()
    old = enrolled(ledger, lent.loan, key)
    consumer = ledger.consumer(lent.loan)
    first = ledger.lease(old, 60).lease
    replace(ledger, lent.loan)
    new = enrolled(ledger, lent.loan, key)
    second = ledger.lease(new, 1000).lease
    assert first is not None
    assert second is not None
    assert first.credits + second.credits <= 100
    ledger.settle(old, old.settlement(first.lease, {consumer: 5}))
    ledger.settle(new, new.settlement(second.lease, {consumer: 7}))
    with ledger.ledger.read() as tx:
        account = loan_of(tx, lent.loan).account
    assert (account.spent, account.leased, account.left) == (12, 0, 88)


def test_a_session_that_does_not_end_by_itself_is_ended_when_its_time_is_over(
    ledger: Bench, lent: Loan
) -> None:
    key = SigningKey.generate()
    old = enrolled(ledger, lent.loan, key)
    replace(ledger, lent.loan)
    new = enrolled(ledger, lent.loan, key)
    ledger.clock.forward(60 + RETIRE_GRACE.total_seconds() - 1)
    ledger.sessions.sweep()
    assert state(ledger, old.session) is SessionState.LIVE
    ledger.clock.forward(1)
    ledger.reopen()  # and a restart forgets nothing of it
    assert ledger.sessions.sweep() >= 1
    assert state(ledger, old.session) is SessionState.ENDED
    assert state(ledger, new.session) is SessionState.LIVE
    ended = [push for push in ledger.told.pushes if isinstance(push.message, SessionEnded)]
    assert [push.only for push in ended] == [old.session]


@pytest.mark.parametrize(
    ("model", "after_s", "error"),
    [
        (MODEL, 60.0, ConflictError),
        (bytes(32), 60.0, NotFoundError),
        (SECOND, -1.0, MalformedError),
        (SECOND, float("nan"), MalformedError),
        (SECOND, 1e9, MalformedError),
    ],
)
def test_what_cannot_be_lent_changes_nothing(
    ledger: Bench, lent: Loan, model: bytes, after_s: float, error: type[Exception]
) -> None:
    before = ledger.dump()
    with pytest.raises(error):
        replace(ledger, lent.loan, model, after_s)
    assert ledger.dump() == before


def test_a_closed_loan_lends_no_other_model(ledger: Bench, lent: Loan) -> None:
    ledger.loans.close(lent.loan, reason="", actor="test")
    before = ledger.dump()
    with pytest.raises(ConflictError):
        replace(ledger, lent.loan)
    assert ledger.dump() == before


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_replacement_that_was_not_acknowledged_is_whole_or_not_at_all(
    ledger: Bench, lent: Loan, how: str
) -> None:
    ledger.store.next = how
    with pytest.raises(Exception, match="the disk failed"):
        replace(ledger, lent.loan)
    ledger.reopen()
    with ledger.ledger.read() as tx:
        loan = loan_of(tx, lent.loan)
    kept = how == "kept"
    assert (loan.model, loan.retires is not None) == ((SECOND, True) if kept else (MODEL, False))
