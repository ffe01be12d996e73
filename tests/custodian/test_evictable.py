"""Whether a loan's idle model may make room for another's: agreed, changed, kept and told."""

from __future__ import annotations

from aigovtool.custodian.ledger import loan_of
from aigovtool.custodian.sessions import terms_of
from aigovtool.wire.control import TermsChanged

from .ledgers import Bench


def test_a_loan_is_not_evictable_unless_that_was_agreed(ledger: Bench) -> None:
    plain, agreed = ledger.lend(10), ledger.lend(10, evictable=True)
    assert (plain.terms.evictable, agreed.terms.evictable) == (False, True)
    ledger.reopen()
    with ledger.ledger.read() as tx:
        for loan in (plain, agreed):
            assert loan_of(tx, loan.loan).terms == loan.terms


def test_a_change_is_kept_and_told_to_enclaves(ledger: Bench) -> None:
    loan = ledger.lend(10, max_enclaves=3).loan
    for evictable in (True, False):
        changed = ledger.loans.set_terms(loan, actor="test", evictable=evictable)
        assert (changed.terms.evictable, changed.terms.max_enclaves) == (evictable, 3)
        told = [push.message for push in ledger.told.pushes if push.loan == loan][-1]
        assert told == TermsChanged(terms=terms_of(changed, ledger.clock.now()))
        assert told.terms.evictable is evictable
    ledger.loans.set_terms(loan, actor="test", evictable=True)
    ledger.loans.set_terms(loan, actor="test", max_enclaves=5)  # which says nothing of it
    ledger.reopen()
    with ledger.ledger.read() as tx:
        assert loan_of(tx, loan).terms.evictable is True
