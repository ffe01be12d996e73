"""A statement's lines, from either database; what is proven of it is in `tests/proof`."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aigovtool.crypto.labels import Label
from aigovtool.custodian import accounting
from aigovtool.custodian.accounting import Accounting
from aigovtool.errors import RefusedError
from aigovtool.ids import LoanId
from aigovtool.wire.codec import decode, open_signed
from aigovtool.wire.control import Settlement
from aigovtool.wire.statement import Balance, Statement, read_file
from tests.custodian.ledgers import BEGIN, Bench


def made(ledger: Bench, loan: LoanId, *, begin: int = -60, end: int | None = None) -> Statement:
    """Return the statement of a span, in seconds from the beginning of the test's time."""
    ledger.clock.forward(1)
    until = ledger.clock.now() if end is None else BEGIN + timedelta(seconds=end)
    file = Accounting(ledger=ledger.ledger, key=ledger.key).statement(
        loan, begin=BEGIN + timedelta(seconds=begin), end=until
    )
    signed = read_file(file).statement
    return open_signed(signed, Statement, public_key=ledger.key.public_key, label=Label.STATEMENT)


def test_a_statement_says_what_was_so_at_its_end(ledger: Bench) -> None:
    loan = ledger.lend(100, max_lease_credits=10).loan
    consumer = ledger.consumer(loan)
    enclave, silent = ledger.enclave(loan), ledger.enclave(loan)
    first = ledger.lease(enclave, 10).lease
    lost = ledger.lease(silent, 10).lease
    assert first is not None
    assert lost is not None
    ledger.clock.forward(10)
    ledger.settle(enclave, enclave.settlement(first.lease, {consumer: 4}))
    ledger.sessions.disconnect(silent.session)
    ledger.clock.forward(100)
    ledger.sessions.sweep()
    ledger.grants.refund(lost.lease, actor="admin", reason="it burnt down")

    early = made(ledger, loan, end=5)
    assert early.closing == Balance(granted=100, left=80, leased=20, spent=0, forfeited=0)
    assert {line.lease: line.settlement for line in early.leases} == {
        first.lease: None,
        lost.lease: None,
    }
    middle = made(ledger, loan, begin=5, end=50)
    assert middle.opening == early.closing
    assert middle.closing == Balance(granted=100, left=86, leased=10, spent=4, forfeited=0)
    assert middle.used == {consumer: 4}
    late = made(ledger, loan, begin=50)
    assert late.opening == middle.closing
    assert late.closing == Balance(granted=110, left=96, leased=0, spent=4, forfeited=10)
    (line,) = late.leases
    assert (line.lease, line.forfeited == line.refunded) == (lost.lease, True)
    assert [grant.kind for grant in late.grants] == ["refund"]
    (session,) = [one for one in late.sessions if one.session == silent.session]
    assert (session.before, len(session.appraisals)) == (None, 1)


def test_the_settlement_before_a_span_is_the_last_of_one_report(ledger: Bench) -> None:
    loan = ledger.lend(100, max_lease_credits=10).loan
    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    leases = [ledger.lease(enclave, 10).lease for _ in range(3)]
    signed = [enclave.settlement(lease.lease, {consumer: 1}) for lease in leases if lease]
    ledger.settle(enclave, *signed[:2])
    ledger.clock.forward(10)
    ledger.settle(enclave, signed[2])
    (session,) = made(ledger, loan, begin=5).sessions
    assert session.before is not None
    assert decode(session.before.payload, Settlement).number == 2


def test_too_much_for_one_statement_is_refused(
    ledger: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "MAX_LEASES", 1)
    loan = ledger.lend(100).loan
    enclave = ledger.enclave(loan)
    for _ in range(2):
        ledger.lease(enclave, 1)
    with pytest.raises(RefusedError) as caught:
        made(ledger, loan)
    assert caught.value.reasons[0].code == "statement.size"
