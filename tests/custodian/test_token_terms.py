"""What is agreed for a language model: the price of tokens, prefixes, limits on extraction."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from aigovtool.custodian.loans import MAX_LEASE_CREDITS, MAX_TOKEN_PRICE
from aigovtool.custodian.records import DEFAULT_LEASE_CREDITS, Loan, LoanTerms, Model
from aigovtool.errors import MalformedError
from aigovtool.wire.control import TermsChanged
from aigovtool.wire.enrolment import ONE_CREDIT_A_TOKEN, TokenPrice
from aigovtool.wire.extraction import BOUNDS, NO_EXTRACTION_LIMITS, ExtractionLimits
from tests.custodian.ledgers import MODEL, POLICY, Bench

CONTEXT = 50_000
EVERY = ExtractionLimits(
    top_logprobs=0,
    output_tokens_per_day=5000,
    alike_per_day=10,
    queries_per_day=100,
    output_digits=3,
    top_labels=2,
)


def seal(bench: Bench, digest: bytes, *, context: int | None = CONTEXT) -> bytes:
    with bench.ledger.write() as entry:
        entry.tx.insert_model(
            Model(
                digest=digest,
                name=digest.hex()[:8],
                version="1",
                manifest=b"{}",
                wrapped_key=b"w",
                body_bytes=1,
                body_sha256=bytes(32),
                source_sha256=bytes(32),
                created=entry.now,
                context=context,
            )
        )
    return digest


def lend(bench: Bench, model: bytes, **terms: Any) -> Loan:
    return bench.loans.create(
        name=model.hex()[:8],
        model=model,
        policy=POLICY,
        terms=LoanTerms(**terms),
        credits=10,
        actor="test",
    ).row


def test_terms_are_kept_pushed_and_changed_one_by_one(ledger: Bench) -> None:
    made = lend(
        ledger,
        seal(ledger, b"t" * 32),
        token_price=TokenPrice(input=2, output=5),
        shared_prefixes=True,
        extraction=EVERY,
    )
    assert ledger.loan(made.loan) == made
    changed = ledger.loans.set_terms(
        made.loan,
        actor="test",
        price_input=3,
        shared_prefixes=False,
        extraction={"top_logprobs": None, "alike_per_day": 20},
    )
    assert changed.terms.token_price == TokenPrice(input=3, output=5)
    assert not changed.terms.shared_prefixes
    assert changed.terms.extraction.top_logprobs is None
    assert changed.terms.extraction.alike_per_day == 20
    assert changed.terms.extraction.top_labels == EVERY.top_labels
    ledger.reopen()
    assert ledger.loan(made.loan) == changed
    told = [one.message for one in ledger.told.pushes if isinstance(one.message, TermsChanged)]
    terms = told[-1].terms
    assert (terms.tokens, terms.shared_prefixes, terms.extraction) == (
        changed.terms.token_price,
        False,
        changed.terms.extraction,
    )


def test_what_is_not_said_is_one_credit_a_token_and_no_limit(ledger: Bench) -> None:
    terms = ledger.loan(ledger.lend(1).loan).terms
    assert terms.token_price == ONE_CREDIT_A_TOKEN
    assert not terms.shared_prefixes
    assert terms.extraction == NO_EXTRACTION_LIMITS
    assert terms.max_lease_credits == DEFAULT_LEASE_CREDITS


def test_leases_of_a_language_model_can_pay_for_its_longest_query(sqlite_ledger: Bench) -> None:
    model = seal(sqlite_ledger, b"l" * 32)
    made = lend(sqlite_ledger, model, token_price=TokenPrice(input=2, output=3))
    assert made.terms.max_lease_credits == 3 * CONTEXT
    with pytest.raises(MalformedError) as caught:
        sqlite_ledger.loans.set_terms(made.loan, actor="test", price_output=4)
    assert caught.value.reasons[0].code == "loan.lease_too_small"
    assert caught.value.reasons[0].mend == f"--max-lease-credits {4 * CONTEXT}"
    assert sqlite_ledger.loan(made.loan) == made
    changed = sqlite_ledger.loans.set_terms(
        made.loan, actor="test", price_output=4, max_lease_credits=4 * CONTEXT
    )
    assert changed.terms.token_price == TokenPrice(input=2, output=4)


def test_leases_too_small_for_a_query_are_refused_when_they_were_said(
    sqlite_ledger: Bench,
) -> None:
    model = seal(sqlite_ledger, b"s" * 32)
    with pytest.raises(MalformedError):
        lend(sqlite_ledger, model, max_lease_credits=CONTEXT - 1)
    assert lend(sqlite_ledger, model, max_lease_credits=CONTEXT).terms.max_lease_credits == CONTEXT


def test_a_price_at_which_no_lease_is_large_enough_is_refused(sqlite_ledger: Bench) -> None:
    model = seal(sqlite_ledger, b"p" * 32)
    with pytest.raises(MalformedError) as caught:
        lend(sqlite_ledger, model, token_price=TokenPrice(output=MAX_LEASE_CREDITS // CONTEXT + 1))
    assert "lower prices" in str(caught.value)


def test_a_model_with_a_longer_context_is_not_lent_under_leases_too_small(
    sqlite_ledger: Bench,
) -> None:
    made = lend(sqlite_ledger, seal(sqlite_ledger, b"a" * 32))
    longer = seal(sqlite_ledger, b"b" * 32, context=CONTEXT + 1)
    with pytest.raises(MalformedError):
        sqlite_ledger.loans.replace_model(
            made.loan, longer, retire_after_s=1, reason="", actor="test"
        )
    assert sqlite_ledger.loan(made.loan) == made


@pytest.mark.parametrize(
    "terms",
    [
        {"token_price": TokenPrice(input=0)},
        {"token_price": TokenPrice(output=0)},
        {"token_price": TokenPrice(input=MAX_TOKEN_PRICE + 1)},
        *({"extraction": ExtractionLimits(**{name: low - 1})} for name, (low, _) in BOUNDS.items()),
        *(
            {"extraction": ExtractionLimits(**{name: high + 1})}
            for name, (_, high) in BOUNDS.items()
        ),
    ],
)
def test_terms_out_of_bounds_are_refused(sqlite_ledger: Bench, terms: dict[str, Any]) -> None:
    sqlite_ledger.lend(0)
    with pytest.raises(MalformedError):
        lend(sqlite_ledger, MODEL, **terms)
    kept = lend(sqlite_ledger, MODEL)
    assert kept.terms == dataclasses.replace(kept.terms, **{name: getattr(LoanTerms(), name)
                                                            for name in terms})  # fmt: skip
