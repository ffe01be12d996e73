"""
Loans and their consumers: made, stopped, resumed, closed, blocked, and the worst case of each.

Rule 1: a change of state commits first and is pushed then; asking for the state that a loan has
        already changes nothing and pushes again, so that a doubtful stop can be repeated.
Rule 2: tokens and keys are returned once, when they are made, and kept as hashes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from aigovtool.attestation.policy import parse_policy
from aigovtool.custodian.budget import Account, grant
from aigovtool.custodian.consumers import ConsumerTerms, check_terms, new_limits, told
from aigovtool.custodian.ledger import Entry, Ledger, consumer_of, loan_of
from aigovtool.custodian.lifecycle import LoanState, move_loan, state_at
from aigovtool.custodian.periods import Unit, period_at
from aigovtool.custodian.records import (
    DEFAULT_LEASE_CREDITS,
    Consumer,
    Exposure,
    GrantKind,
    GrantRow,
    Loan,
    LoanTerms,
    Model,
)
from aigovtool.custodian.sessions import terms_of
from aigovtool.custodian.store.base import Reading
from aigovtool.custodian.tokens import CONSUMER, TICKET, hash_token, new_token
from aigovtool.errors import ConflictError, MalformedError, NotFoundError
from aigovtool.ids import ConsumerId, LoanId, new_id
from aigovtool.wire.control import LoanChanged, ModelReplaced, TermsChanged
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.extraction import check_extraction
from aigovtool.wire.limits import NO_LIMITS, Limits, Rate, check_limits

MAX_NAME_CHARACTERS = 100
MAX_LEASE_DURATION_S = 3600.0  # with longer leases "stop" would not mean much
MAX_ENCLAVES = 10_000
MAX_LEASE_CREDITS = 1_000_000_000
MAX_TOKEN_PRICE = 1_000_000
MAX_SETTLE_GRACE_S = 86_400.0
MAX_WIPE_AFTER_S = 30 * 86_400.0
MAX_LOAN_LIFE = timedelta(days=36_525)  # a century
MAX_RETIRE_S = 30 * 86_400.0
MAX_REATTEST_INTERVAL_S = 30 * 86_400.0  # as long as Intel's collateral is valid

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What was made, and its secret, which is kept nowhere."""

    row: T
    secret: str


class Loans:
    """Makes loans and consumers, and changes what may be changed about them."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(
        self,
        *,
        name: str,
        model: bytes,
        policy: str,
        terms: LoanTerms,
        credits: int,
        actor: str,
    ) -> Made[Loan]:
        """
        Make a loan of the model with this digest; the secret is its ticket's token.

        Args:
            policy: text of the appraisal policy, TOML.
            terms: of a language model, with leases that can pay for any one query; leases of
                `DEFAULT_LEASE_CREDITS` become as large as that takes.
            credits: the first grant; 0 for none.

        Raises:
            NotFoundError: no such model.
            ConfigurationError: the policy cannot be used.
            MalformedError: terms or credits out of bounds.
            ConflictError: there is a loan of this name.
        """
        _check_name(name)
        parse_policy(policy.encode())
        with self._ledger.write() as entry:
            _check_terms(terms, entry.now)
            least = least_lease(_model_of(entry, model), terms)
            if terms.max_lease_credits == DEFAULT_LEASE_CREDITS < least:
                largest = min(least, MAX_LEASE_CREDITS)
                terms = dataclasses.replace(terms, max_lease_credits=largest)
            _check_lease(terms, least)
            if any(other.name == name for other in entry.tx.loans()):
                raise ConflictError(
                    f"there is a loan named {name!r} already", mend="choose another --name"
                )
            token = new_token(TICKET)
            loan = Loan(
                loan=LoanId(new_id("loan")),
                name=name,
                model=model,
                state=LoanState.ACTIVE,
                state_reason="",
                terms=terms,
                account=grant(Account(), credits) if credits else Account(),
                token_sha256=hash_token(token),
                created=entry.now,
            )
            entry.tx.insert_loan(loan, policy)
            entry.event(
                "loan.created",
                actor=actor,
                loan=loan.loan,
                name=name,
                model=model.hex(),
                terms=terms,
            )
            if credits:
                _first_grant(entry, loan.loan, None, credits, actor)
            return Made(loan, token)

    def stop(self, loan_id: LoanId, *, reason: str, actor: str) -> Loan:
        """Stop a loan: its enclaves wipe the model; raises NotFoundError, ConflictError."""
        return self._move(loan_id, LoanState.STOPPED, reason=reason, actor=actor)

    def resume(self, loan_id: LoanId, *, actor: str) -> Loan:
        """Let enclaves enrol again under a stopped loan; raises NotFoundError, ConflictError."""
        return self._move(loan_id, LoanState.ACTIVE, reason="", actor=actor)

    def close(self, loan_id: LoanId, *, reason: str, actor: str) -> Loan:
        """End a loan for good; raises NotFoundError."""
        return self._move(loan_id, LoanState.CLOSED, reason=reason, actor=actor)

    def _move(self, loan_id: LoanId, to: LoanState, *, reason: str, actor: str) -> Loan:
        with self._ledger.write(while_held=to is not LoanState.ACTIVE) as entry:
            loan = loan_of(entry.tx, loan_id)
            if loan.state is not to:
                move_loan(loan.state, to)
                entry.tx.set_loan_state(loan_id, to, reason)
                entry.event(
                    "loan.resumed" if to is LoanState.ACTIVE else f"loan.{to}",
                    actor=actor,
                    loan=loan_id,
                    reason=reason,
                )
            entry.push(loan_id, LoanChanged(state=to, reason=reason))
            return loan_of(entry.tx, loan_id)

    def set_terms(
        self,
        loan_id: LoanId,
        *,
        actor: str,
        rate: Rate | UnsetType | None = UNSET,
        concurrency: int | UnsetType | None = UNSET,
        expires: datetime | UnsetType | None = UNSET,
        lease_duration_s: float | None = None,
        max_lease_credits: int | None = None,
        max_enclaves: int | None = None,
        price_input: int | None = None,
        price_output: int | None = None,
        shared_prefixes: bool | None = None,
        extraction: Mapping[str, int | None] = MappingProxyType({}),
        evictable: bool | None = None,
    ) -> Loan:
        """
        Change what is given of a loan's terms, and tell its enclaves. Leases that live, live on.

        Args:
            extraction: by the names of `ExtractionLimits`; None takes a limit away.

        Raises:
            NotFoundError: no such loan.
            MalformedError: terms out of bounds.
            ConflictError: the loan has expired or is closed.
        """
        given: dict[str, Any] = {
            "lease_duration_s": lease_duration_s,
            "max_lease_credits": max_lease_credits,
            "max_enclaves": max_enclaves,
            "shared_prefixes": shared_prefixes,
            "evictable": evictable,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if not isinstance(expires, UnsetType):
            changes["expires"] = expires
        with self._ledger.write() as entry:
            loan = loan_of(entry.tx, loan_id)
            _check_not_over(loan, entry.now)
            changes["limits"] = new_limits(loan.terms.limits, rate, concurrency)
            price = loan.terms.token_price
            changes["token_price"] = TokenPrice(
                input=price.input if price_input is None else price_input,
                output=price.output if price_output is None else price_output,
            )
            changes["extraction"] = msgspec.structs.replace(loan.terms.extraction, **extraction)
            terms = dataclasses.replace(loan.terms, **changes)
            _check_terms(terms, entry.now)
            _check_lease(terms, least_lease(_model_of(entry, loan.model), terms))
            if terms != loan.terms:
                fresh = terms.limits.rate != loan.terms.limits.rate
                loan = dataclasses.replace(
                    loan, terms=terms, rate_full_at=None if fresh else loan.rate_full_at
                )
                entry.tx.set_loan_terms(loan)
                entry.event("loan.terms", actor=actor, loan=loan_id, **changes)
            entry.push(loan_id, TermsChanged(terms=terms_of(loan, entry.now)))
            return loan

    def replace_model(
        self, loan_id: LoanId, model: bytes, *, retire_after_s: float, reason: str, actor: str
    ) -> Loan:
        """
        Lend the model with this digest from now on, and tell the loan's enclaves.

        A session keeps the model that it has, and serves until its enclave has taken over the new
        one in another session.

        Args:
            retire_after_s: so long an older model may be served, at most.

        Raises:
            NotFoundError: no such loan, or no such model.
            MalformedError: *retire_after_s* out of bounds, or leases too small for one query.
            ConflictError: the loan lends this model already, has expired or is closed.
        """
        if not 0 <= retire_after_s <= MAX_RETIRE_S:
            raise MalformedError(
                "not a time for a model to retire",
                code="loan.retire",
                expected=f"0 to {MAX_RETIRE_S:g} seconds",
                came=str(retire_after_s),
            )
        with self._ledger.write() as entry:
            loan = loan_of(entry.tx, loan_id)
            _check_not_over(loan, entry.now)
            _check_lease(loan.terms, least_lease(_model_of(entry, model), loan.terms))
            if loan.model == model:
                raise ConflictError(
                    f"the loan {loan_id} is of this model already",
                    code="loan.model",
                    came=model.hex(),
                )
            before = loan.model
            loan = dataclasses.replace(
                loan, model=model, retires=entry.now + timedelta(seconds=retire_after_s)
            )
            entry.tx.set_loan_model(loan)
            entry.event(
                "loan.model_replaced",
                actor=actor,
                loan=loan_id,
                model=model.hex(),
                before=before.hex(),
                retire_after_s=retire_after_s,
                reason=reason,
            )
            entry.push(loan_id, ModelReplaced(model_digest=model, retire_after_s=retire_after_s))
            return loan

    def new_ticket(self, loan_id: LoanId, *, actor: str) -> Made[Loan]:
        """Replace the token of a loan's ticket; the old one opens nothing more."""
        with self._ledger.write() as entry:
            loan = loan_of(entry.tx, loan_id)
            token = new_token(TICKET)
            entry.tx.set_loan_token(loan_id, hash_token(token))
            entry.event("loan.ticket_replaced", actor=actor, loan=loan_id)
            return Made(loan, token)

    def add_consumer(
        self,
        loan_id: LoanId,
        *,
        name: str,
        budget: int | None,
        actor: str,
        per: Unit | None = None,
        limits: Limits = NO_LIMITS,
        expires: datetime | None = None,
    ) -> Made[Consumer]:
        """
        Let a consumer query under a loan; the secret is its API key.

        Args:
            budget: credits of its own within the loan's, None to share the loan's.
            per: the calendar unit with which that budget begins anew, None for never.
            expires: from when on it is refused, None for never.

        Raises:
            NotFoundError: no such loan.
            MalformedError: a name or terms out of bounds.
            ConflictError: the loan has a consumer of this name, or is closed.
        """
        _check_name(name)
        terms = ConsumerTerms(budget=budget, per=per, limits=limits, expires=expires)
        with self._ledger.write() as entry:
            check_terms(terms, entry.now)
            loan = loan_of(entry.tx, loan_id)
            if loan.state is LoanState.CLOSED:
                raise ConflictError(f"the loan {loan_id} is closed", code="loan.over")
            if any(other.name == name for other in entry.tx.consumers_of_loan(loan_id)):
                raise ConflictError(
                    f"the loan has a consumer named {name!r} already", mend="choose another --name"
                )
            key = new_token(CONSUMER)
            consumer = Consumer(
                consumer=ConsumerId(new_id("consumer")),
                loan=loan_id,
                name=name,
                key_sha256=hash_token(key),
                blocked=False,
                blocked_reason="",
                budgeted=budget is not None,
                account=grant(Account(), budget) if budget else Account(),
                used=0,
                created=entry.now,
                period=None if per is None else period_at(per, budget or 0, entry.now),
                limits=limits,
                expires=expires,
            )
            entry.tx.insert_consumer(consumer)
            entry.event(
                "consumer.created",
                actor=actor,
                loan=loan_id,
                consumer=consumer.consumer,
                name=name,
                budgeted=consumer.budgeted,
                terms=told(consumer),
            )
            if budget:
                _first_grant(entry, loan_id, consumer.consumer, budget, actor)
            entry.push_roster(loan_id)
            return Made(consumer, key)

    def block(self, consumer_id: ConsumerId, *, reason: str, actor: str) -> Consumer:
        """Refuse a consumer from now on, wherever it asks; raises NotFoundError."""
        return self._set_blocked(consumer_id, blocked=True, reason=reason, actor=actor)

    def unblock(self, consumer_id: ConsumerId, *, actor: str) -> Consumer:
        """Serve a consumer again; raises NotFoundError."""
        return self._set_blocked(consumer_id, blocked=False, reason="", actor=actor)

    def _set_blocked(
        self, consumer_id: ConsumerId, *, blocked: bool, reason: str, actor: str
    ) -> Consumer:
        with self._ledger.write(while_held=blocked) as entry:
            consumer = consumer_of(entry.tx, consumer_id)
            if consumer.blocked != blocked:
                entry.tx.set_consumer_blocked(consumer_id, blocked, reason)
                entry.event(
                    "consumer.blocked" if blocked else "consumer.unblocked",
                    actor=actor,
                    loan=consumer.loan,
                    consumer=consumer_id,
                    reason=reason,
                )
            entry.push_roster(consumer.loan)
            return consumer_of(entry.tx, consumer_id)


def exposure_of(tx: Reading, loan: LoanId, now: datetime) -> Exposure:
    """Return what can still be used if the loan is stopped now."""
    credits, last_end = tx.exposure(loan, now)
    seconds = 0.0 if last_end is None else max(0.0, (last_end - now) / timedelta(seconds=1))
    return Exposure(credits=credits, seconds=seconds)


def _first_grant(
    entry: Entry, loan: LoanId, consumer: ConsumerId | None, credits: int, actor: str
) -> None:
    entry.tx.insert_grant(
        GrantRow(
            loan=loan,
            consumer=consumer,
            credits=credits,
            kind=GrantKind.GRANT,
            reason="first grant",
            actor=actor,
            created=entry.now,
        )
    )
    entry.event(
        "credits.granted",
        actor=actor,
        loan=loan,
        consumer=consumer,
        credits=credits,
        reason="first grant",
    )


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or name != name.strip():
        raise MalformedError(
            "not a usable name",
            code="name",
            expected=f"1 to {MAX_NAME_CHARACTERS} printable characters",
            came=ascii(name[:40]),
        )


def _check_not_over(loan: Loan, now: datetime) -> None:
    state = state_at(loan.state, loan.terms.expires, now)
    if state in (LoanState.EXPIRED, LoanState.CLOSED):
        raise ConflictError(
            f"the loan {loan.loan} is {state}", code="loan.over", mend="make a new loan"
        )


def least_lease(model: Model, terms: LoanTerms) -> int:
    """Return the credits that a lease must hold to pay for any one query, as far as is known."""
    if model.context is None:
        return 1
    return model.context * max(terms.token_price.input, terms.token_price.output)


def _check_lease(terms: LoanTerms, least: int) -> None:
    if terms.max_lease_credits < least:
        raise MalformedError(
            "a lease of this loan could not pay for one query",
            code="loan.lease_too_small",
            expected=f"max_lease_credits of at least {least}, the longest query at these prices",
            came=str(terms.max_lease_credits),
            mend=f"--max-lease-credits {least}"
            if least <= MAX_LEASE_CREDITS
            else f"lower prices: no lease holds more than {MAX_LEASE_CREDITS}",
        )


def _model_of(entry: Entry, digest: bytes) -> Model:
    model = entry.tx.model(digest)
    if model is None:
        raise NotFoundError(
            f"there is no model {digest.hex()}", mend="aigovtool custodian model list"
        )
    return model


def _check_terms(terms: LoanTerms, now: datetime) -> None:
    for what, value, low, high in (
        ("max_enclaves", terms.max_enclaves, 1, MAX_ENCLAVES),
        ("max_lease_credits", terms.max_lease_credits, 1, MAX_LEASE_CREDITS),
        ("lease_duration_s", terms.lease_duration_s, 0, MAX_LEASE_DURATION_S),
        ("settle_grace_s", terms.settle_grace_s, 0, MAX_SETTLE_GRACE_S),
        ("wipe_after_s", terms.wipe_after_s, 1, MAX_WIPE_AFTER_S),
        ("reattest_interval_s", terms.reattest_interval_s, 0, MAX_REATTEST_INTERVAL_S),
        ("price_input", terms.token_price.input, 1, MAX_TOKEN_PRICE),
        ("price_output", terms.token_price.output, 1, MAX_TOKEN_PRICE),
    ):
        if not low <= value <= high:  # not a number fails too
            raise MalformedError(
                f"{what} is out of bounds",
                code="loan.terms",
                expected=f"{low} to {high}",
                came=str(value),
            )
    check_limits(terms.limits)
    check_extraction(terms.extraction)
    if terms.expires is not None and terms.expires <= now:
        raise MalformedError(
            "the loan would have expired before it begins",
            code="loan.terms",
            expected=f"a time after {now.isoformat()}",
            came=terms.expires.isoformat(),
        )
    # a date near the end of the calendar can be past it in UTC, and the ledger unreadable for good
    if terms.expires is not None and terms.expires - now > MAX_LOAN_LIFE:
        raise MalformedError(
            "the loan would expire too far in the future",
            code="loan.terms",
            expected=f"a time before {(now + MAX_LOAN_LIFE).isoformat()}, or none",
            came=terms.expires.isoformat(),
        )
