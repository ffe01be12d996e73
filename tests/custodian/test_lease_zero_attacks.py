"""Leases of 0 s: each query is authorised by the ledger, and no trick authorises one more."""

from __future__ import annotations

import pytest

from aigovtool.custodian.leasing import MAX_OPEN_LEASES
from aigovtool.errors import ConflictError
from aigovtool.ids import LoanId
from tests.custodian.ledgers import Bench

GRANTED = 10


@pytest.fixture
def loan(ledger: Bench) -> LoanId:
    return ledger.lend(GRANTED, lease_duration_s=0.0).loan


def test_wishes_of_many_enclaves_for_everything_are_given_what_there_is_once(
    ledger: Bench, loan: LoanId
) -> None:
    enclaves = [ledger.enclave(loan) for _ in range(5)]
    answers = [ledger.lease(enclave, 1 << 40) for _ in range(2) for enclave in enclaves]
    assert sum(answer.lease.credits for answer in answers if answer.lease is not None) == GRANTED
    account = ledger.loan(loan).account
    assert (account.left, account.leased) == (0, GRANTED)


def test_a_report_repeated_after_a_stop_authorises_nothing_more(
    ledger: Bench, loan: LoanId
) -> None:
    enclave = ledger.enclave(loan)
    report = enclave.report(want=1)
    first = ledger.leasing.report(enclave.session, report)
    assert first.lease is not None
    ledger.loans.stop(loan, reason="", actor="test")
    before = ledger.loan(loan).account
    again = ledger.leasing.report(enclave.session, report)
    assert again.lease == first.lease  # the one that it had: an enclave opens it once
    assert ledger.lease(enclave, 1).lease is None
    assert ledger.loan(loan).account == before


def test_a_consumer_that_is_blocked_between_two_queries_is_authorised_no_second(
    ledger: Bench, loan: LoanId
) -> None:
    own, enclave = ledger.consumer(loan, 5), ledger.enclave(loan)
    assert ledger.lease(enclave, 1, by_consumer={own: 1}).lease is not None
    ledger.loans.block(own, actor="test", reason="")
    before = ledger.loan(loan).account
    assert ledger.lease(enclave, 1, by_consumer={own: 1}).lease is None
    assert ledger.loan(loan).account == before


def test_a_consumers_own_budget_is_not_passed_by_many_small_wishes(
    ledger: Bench, loan: LoanId
) -> None:
    own = ledger.consumer(loan, 3)
    enclaves = [ledger.enclave(loan) for _ in range(4)]
    for _ in range(2):
        for enclave in enclaves:
            ledger.lease(enclave, 1, by_consumer={own: 1})
    with ledger.ledger.read() as tx:
        consumer = tx.consumer(own)
    assert consumer is not None
    assert (consumer.account.left, consumer.account.leased) == (0, 3)
    assert ledger.loan(loan).account.leased == 3


def test_a_settlement_that_is_sent_twice_frees_its_credit_once(ledger: Bench, loan: LoanId) -> None:
    enclave, consumer = ledger.enclave(loan), ledger.consumer(loan)
    lease = ledger.lease(enclave, 2).lease
    assert lease is not None
    settlement = enclave.settlement(lease.lease, {consumer: 1})
    ledger.settle(enclave, settlement)
    before = ledger.loan(loan).account
    assert (before.left, before.spent) == (GRANTED - 1, 1)
    ledger.settle(enclave, settlement)
    assert ledger.loan(loan).account == before
    with pytest.raises(ConflictError):
        ledger.settle(enclave, enclave.settlement(lease.lease, {}))
    assert ledger.loan(loan).account == before


def test_an_enclave_that_never_settles_is_authorised_only_so_often(ledger: Bench) -> None:
    loan = ledger.lend(10 * MAX_OPEN_LEASES, lease_duration_s=0.0).loan
    enclave, other = ledger.enclave(loan), ledger.enclave(loan)
    given = [ledger.lease(enclave, 1).lease for _ in range(MAX_OPEN_LEASES + 2)]
    assert [lease is None for lease in given[-3:]] == [False, True, True]
    assert ledger.loan(loan).account.leased == MAX_OPEN_LEASES
    assert ledger.lease(other, 1).lease is not None  # what it holds keeps nobody else out
