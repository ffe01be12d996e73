"""
What the admin API says and takes, and how the ledger's rows become it.

The names here are the API: they stand in its OpenAPI document, and the commands read them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from aigovtool.attestation.evidence import Tee
from aigovtool.custodian import budget
from aigovtool.custodian.ageing import DIVISORS
from aigovtool.custodian.evidence import Shown
from aigovtool.custodian.ledger import standing_of
from aigovtool.custodian.lifecycle import state_at
from aigovtool.custodian.loans import exposure_of
from aigovtool.custodian.periods import Unit
from aigovtool.custodian.records import (
    CUSTODIAN,
    Borrower,
    Consumer,
    DeliveryState,
    Event,
    GrantRow,
    GrantSeenRow,
    LeaseRow,
    Loan,
    LoanTerms,
    Model,
    MoreRequest,
    Session,
    Webhook,
)
from aigovtool.custodian.store.base import Reading
from aigovtool.errors import NotFoundError
from aigovtool.ids import LoanId
from aigovtool.wire.codec import Message, Signed
from aigovtool.wire.enrolment import TokenPrice
from aigovtool.wire.extraction import ExtractionLimits
from aigovtool.wire.limits import Limits, Rate, parse_rate

Reason = Annotated[str, Meta(max_length=500)]
Name = Annotated[str, Meta(min_length=1, max_length=100)]
When = Annotated[datetime, Meta(tz=True)]
_TERMS = LoanTerms()  # the defaults are said once
Credits = Annotated[int, Meta(ge=1, le=budget.MAX_CREDITS)]


class AccountView(Struct, frozen=True, kw_only=True):
    """Credits by what has become of them; granted = left + leased + spent + forfeited."""

    granted: int
    left: int
    leased: int
    spent: int
    forfeited: int


class ExposureView(Struct, frozen=True, kw_only=True):
    """If you stop now, at most `credits` inferences and `seconds` can still be used."""

    credits: int
    seconds: float


class ModelView(Struct, frozen=True, kw_only=True):
    """A sealed model; `model` is its digest in hex, `context` the tokens of a language model's."""

    model: str
    name: str
    version: str
    body_bytes: int
    body_sha256: str
    created: datetime
    context: int | None = None


class TermsView(Struct, frozen=True, kw_only=True):
    """What was agreed for a loan."""

    max_enclaves: int
    max_lease_credits: int
    lease_duration_s: float
    settle_grace_s: float
    wipe_after_s: float
    reattest_interval_s: float
    expires: datetime | None
    rate: str | None
    concurrency: int | None
    token_price: TokenPrice
    shared_prefixes: bool
    extraction: ExtractionLimits
    evictable: bool


class LogStatusView(Struct, frozen=True, kw_only=True):
    """
    How far the transparency log is: `size` entries signed, `published` of them in its files (null
    before the first), `pending` events to come. `key` verifies its checkpoints.
    """

    key: str
    size: int
    root: str
    pending: int
    published: int | None


class LogProofView(Struct, frozen=True, kw_only=True):
    """The text of a tlog-proof that an event is in the log, with what opens its entry."""

    event: int
    index: int
    proof: str


class LoanView(Struct, frozen=True, kw_only=True):
    """A loan as it is now; `enclaves` are connected, `tcb_steps` says how far they have aged."""

    loan: str
    name: str
    model: str
    model_name: str
    model_version: str
    state: str
    state_reason: str
    account: AccountView
    exposure: ExposureView
    enclaves: int
    tcb_steps: dict[str, int]
    terms: TermsView
    created: datetime


class PeriodView(Struct, frozen=True, kw_only=True):
    """A budget that begins anew with each `unit` of the UTC calendar, next when it `ends`."""

    unit: str
    budget: int
    began: datetime
    ends: datetime


class ConsumerView(Struct, frozen=True, kw_only=True):
    """A consumer; `account` is its own budget, None when it shares the loan's."""

    consumer: str
    loan: str
    name: str
    blocked: bool
    blocked_reason: str
    used: int
    account: AccountView | None
    created: datetime
    period: PeriodView | None = None
    rate: str | None = None
    concurrency: int | None = None
    expires: datetime | None = None


class TcbView(Struct, frozen=True, kw_only=True):
    """
    How a session's platform stands since its last accepted evidence.

    `short` names what is below the vendor's best level; from `since` to `window_ends` the platform
    is accepted by grace alone, and leases are divided by `leases_divided_by` (null: no more).
    """

    status: str | None
    step: str
    leases_divided_by: int | None
    short: tuple[str, ...]
    since: datetime | None
    window_ends: datetime | None
    appraised: datetime
    reattestation_asked: datetime | None
    reattestation_overdue: bool


class SessionView(Struct, frozen=True, kw_only=True):
    """One attested run of an enclave; a simulated one protects nothing."""

    session: str
    loan: str
    state: str
    connected: bool
    tee: str
    simulated: bool
    measurement: str
    software: str
    reports: int
    opened: datetime
    disconnected: datetime | None
    ended: datetime | None
    end_reason: str
    tcb: TcbView


class EarView(Struct, frozen=True, kw_only=True):
    """
    What a session's newest evidence came to, as a token that the custodian signed.

    Args:
        ear: an EAR, as JWT.
    """

    session: str
    time: datetime
    ear: str


class LeaseView(Struct, frozen=True, kw_only=True):
    """A block of credits in the hands of one session."""

    lease: str
    session: str
    loan: str
    state: str
    credits: int
    used: int | None
    caps: dict[str, int]
    granted: datetime
    expires: datetime
    forfeited: datetime | None
    refunded: datetime | None


class GrantView(Struct, frozen=True, kw_only=True):
    """
    Credits that were made, and why; of kind ``period`` by the calendar, which also withdrew those
    of kind ``withdrawal``.
    """

    loan: str
    consumer: str | None
    credits: int
    kind: str
    lease: str | None
    reason: str
    actor: str
    created: datetime


class RequestView(Struct, frozen=True, kw_only=True):
    """
    A request for more, of a consumer or (`consumer` null) of the borrower by a token.

    While it is open, `waiting` says how many of the consumer's queries wait for it at all enclaves
    by now, and `waiting_since` when the first of them came; after that, how it was when decided.
    """

    request: str
    loan: str
    consumer: str | None
    borrower: str | None
    credits: int
    reason: str
    state: str
    granted: int
    decision_reason: str
    created: datetime
    decided: datetime | None
    waiting: int
    waiting_since: datetime | None


class BorrowerView(Struct, frozen=True, kw_only=True):
    """A borrower's token, which reads its loan and asks for more; `revoked` ends it."""

    borrower: str
    loan: str
    note: str
    created: datetime
    revoked: datetime | None


class MadeBorrower(Struct, frozen=True, kw_only=True):
    """A new borrower's token, said once."""

    borrower: BorrowerView
    token: str


class NoticeView(Struct, frozen=True, kw_only=True):
    """A grant's notice as the custodian signed it, and the counter-signature of an enclave."""

    notice: Signed
    seen_by: str | None
    seen: Signed | None


class EventView(Struct, frozen=True, kw_only=True):
    """One decision."""

    number: int
    time: datetime
    kind: str
    actor: str
    loan: str | None
    session: str | None
    consumer: str | None
    lease: str | None
    detail: dict[str, Any]


class ConsumptionView(Struct, frozen=True, kw_only=True):
    """How much of a loan was used, and by whom."""

    loan: str
    name: str
    state: str
    account: AccountView
    exposure: ExposureView
    consumers: tuple[ConsumerView, ...]


class Snapshot(Struct, frozen=True, kw_only=True):
    """
    What `watch` shows: consumption of every loan, open requests, and the newest events first.

    `simulated` says that an enclave lives in a TEE that protects nothing from its owner.
    """

    time: datetime
    simulated: bool
    loans: tuple[ConsumptionView, ...]
    enclaves: dict[str, int]
    requests: tuple[RequestView, ...]
    events: tuple[EventView, ...]


class SuppliedView(Struct, frozen=True, kw_only=True):
    """The answer of the first AIGovTool, and what it did not say; `inferences` is text as there."""

    inferences: str
    loan: str
    left: int
    granted: int


class MadeLoan(Struct, frozen=True, kw_only=True):
    """A new loan, with the texts of its ticket (for the borrower) and manifest (for consumers)."""

    loan: LoanView
    ticket: str
    manifest: str


class TicketView(Struct, frozen=True, kw_only=True):
    """The text of ``loan.toml``; it is shown this once."""

    loan: str
    ticket: str


class ManifestView(Struct, frozen=True, kw_only=True):
    """The text of ``manifest.toml``, for consumers."""

    loan: str
    manifest: str


class MadeConsumer(Struct, frozen=True, kw_only=True):
    """A new consumer with its API key, which is shown this once."""

    consumer: ConsumerView
    api_key: str


# --- what is taken -------------------------------------------------------------------------------


class NewModel(Message, frozen=True, kw_only=True):
    """A model to seal: paths on the custodian's machine; `name` is the file's if it is null."""

    path: str
    name: str | None = None
    version: str = "1"
    interface: str | None = None


class NewLoan(Message, frozen=True, kw_only=True):
    """A loan to make. `policy` is the text of a policy file, None for the folder's own."""

    name: Name
    model: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    credits: Annotated[int, Meta(ge=0, le=budget.MAX_CREDITS)]
    policy: str | None = None
    max_enclaves: int = _TERMS.max_enclaves
    max_lease_credits: int = _TERMS.max_lease_credits
    lease_duration_s: float = _TERMS.lease_duration_s
    settle_grace_s: float = _TERMS.settle_grace_s
    wipe_after_s: float = _TERMS.wipe_after_s
    reattest_interval_s: float = _TERMS.reattest_interval_s
    expires: When | None = None
    rate: str | None = None
    concurrency: int | None = None
    token_price: TokenPrice = _TERMS.token_price
    shared_prefixes: bool = _TERMS.shared_prefixes
    extraction: ExtractionLimits = _TERMS.extraction
    evictable: bool = _TERMS.evictable

    def terms(self) -> LoanTerms:
        return LoanTerms(
            max_enclaves=self.max_enclaves,
            max_lease_credits=self.max_lease_credits,
            lease_duration_s=self.lease_duration_s,
            settle_grace_s=self.settle_grace_s,
            wipe_after_s=self.wipe_after_s,
            reattest_interval_s=self.reattest_interval_s,
            expires=self.expires,
            limits=limits_of(self.rate, self.concurrency),
            token_price=self.token_price,
            shared_prefixes=self.shared_prefixes,
            extraction=self.extraction,
            evictable=self.evictable,
        )


class NewConsumer(Message, frozen=True, kw_only=True):
    """
    A consumer to make; `budget` gives it credits of its own within the loan's, `per` day or month
    anew. `rate` is N/s, N/min, N/hour or N/day.
    """

    name: Name
    loan: str | None = None
    budget: Annotated[int, Meta(ge=0, le=budget.MAX_CREDITS)] | None = None
    per: Unit | None = None
    rate: str | None = None
    concurrency: int | None = None
    expires: When | None = None


class ConsumerChange(Message, frozen=True, kw_only=True):
    """
    What to change about a consumer; null takes a limit, a period or a date away. A `budget` counts
    from the next period on.
    """

    budget: Annotated[int, Meta(ge=0, le=budget.MAX_CREDITS)] | UnsetType = UNSET
    per: Unit | UnsetType | None = UNSET
    rate: str | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    expires: When | UnsetType | None = UNSET


class PriceChange(Message, frozen=True, kw_only=True):
    """What to change about the credits that tokens of input and output cost."""

    input: int | None = None
    output: int | None = None


class ExtractionChange(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What to change about the limits on extraction; null takes one away."""

    top_logprobs: int | UnsetType | None = UNSET
    output_tokens_per_day: int | UnsetType | None = UNSET
    alike_per_day: int | UnsetType | None = UNSET
    queries_per_day: int | UnsetType | None = UNSET
    output_digits: int | UnsetType | None = UNSET
    top_labels: int | UnsetType | None = UNSET

    def given(self) -> dict[str, int | None]:
        values = msgspec.structs.asdict(self).items()
        return {name: value for name, value in values if value is not UNSET}


class LoanChange(Message, frozen=True, kw_only=True):
    """What to change about a loan's terms; null takes a limit or the date away."""

    rate: str | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    expires: When | UnsetType | None = UNSET
    lease_duration_s: float | None = None
    max_lease_credits: int | None = None
    max_enclaves: int | None = None
    token_price: PriceChange = PriceChange()
    shared_prefixes: bool | None = None
    extraction: ExtractionChange = ExtractionChange()
    evictable: bool | None = None


class ModelChange(Message, frozen=True, kw_only=True):
    """The digest of the sealed model to lend, and how long the older one may still be served."""

    model: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    retire_after_s: float = 3600.0
    reason: Reason = ""


def limits_of(rate: str | None, concurrency: int | None) -> Limits:
    return Limits(rate=None if rate is None else parse_rate(rate), concurrency=concurrency)


def rate_of(rate: str | UnsetType | None) -> Rate | UnsetType | None:
    return parse_rate(rate) if isinstance(rate, str) else rate


class NewGrant(Message, frozen=True, kw_only=True):
    """Credits to add, to a loan (None: the only one) or to a consumer's own budget."""

    credits: Credits
    loan: str | None = None
    consumer: str | None = None
    reason: Reason = ""


class NewBorrower(Message, frozen=True, kw_only=True):
    """A token for the borrower of a loan (None: the only one)."""

    loan: str | None = None
    note: Reason = ""


class Ask(Message, frozen=True, kw_only=True):
    """The borrower asks for credits, in its own words."""

    credits: Credits
    reason: Reason = ""


class Why(Message, frozen=True, kw_only=True):
    """A reason, for the events."""

    reason: Reason = ""


class HoldView(Message, frozen=True, kw_only=True):
    """Whether nothing is leased, released or granted because the ledger was rolled back."""

    held: bool
    code: str | None
    reason: str | None
    since: datetime | None


class Reconcile(Message, frozen=True, kw_only=True):
    """
    A reconciliation of a held ledger.

    Args:
        apply: do it; else it is only shown what that would do.
        shown: receipts that consumers kept, and statements of their sessions.
    """

    apply: bool = False
    reason: Reason = ""
    shown: Shown = Shown()


class Approval(Message, frozen=True, kw_only=True):
    """Approve a request, with another number of credits if one is given."""

    credits: Credits | None = None
    reason: Reason = ""


# --- from rows -----------------------------------------------------------------------------------


def account_view(account: budget.Account) -> AccountView:
    return AccountView(
        granted=account.granted,
        left=account.left,
        leased=account.leased,
        spent=account.spent,
        forfeited=account.forfeited,
    )


def exposure_view(tx: Reading, loan: Loan, now: datetime) -> ExposureView:
    exposure = exposure_of(tx, loan.loan, now)
    return ExposureView(credits=exposure.credits, seconds=exposure.seconds)


def model_view(model: Model) -> ModelView:
    return ModelView(
        model=model.digest.hex(),
        name=model.name,
        version=model.version,
        body_bytes=model.body_bytes,
        body_sha256=model.body_sha256.hex(),
        created=model.created,
        context=model.context,
    )


def loan_view(tx: Reading, loan: Loan, now: datetime) -> LoanView:
    model = tx.model(loan.model)
    terms = loan.terms
    return LoanView(
        loan=loan.loan,
        name=loan.name,
        model=loan.model.hex(),
        model_name="" if model is None else model.name,
        model_version="" if model is None else model.version,
        state=state_at(loan.state, terms.expires, now).value,
        state_reason=loan.state_reason,
        account=account_view(loan.account),
        exposure=exposure_view(tx, loan, now),
        enclaves=tx.count_connected_sessions(loan.loan),
        tcb_steps={step.value: count for step, count in tx.count_steps(loan.loan).items()},
        terms=TermsView(
            max_enclaves=terms.max_enclaves,
            max_lease_credits=terms.max_lease_credits,
            lease_duration_s=terms.lease_duration_s,
            settle_grace_s=terms.settle_grace_s,
            wipe_after_s=terms.wipe_after_s,
            reattest_interval_s=terms.reattest_interval_s,
            expires=terms.expires,
            rate=_rate_text(terms.limits),
            concurrency=terms.limits.concurrency,
            token_price=terms.token_price,
            shared_prefixes=terms.shared_prefixes,
            extraction=terms.extraction,
            evictable=terms.evictable,
        ),
        created=loan.created,
    )


def consumer_view(consumer: Consumer) -> ConsumerView:
    period = consumer.period
    return ConsumerView(
        consumer=consumer.consumer,
        loan=consumer.loan,
        name=consumer.name,
        blocked=consumer.blocked,
        blocked_reason=consumer.blocked_reason,
        used=consumer.used,
        account=account_view(consumer.account) if consumer.budgeted else None,
        created=consumer.created,
        period=None
        if period is None
        else PeriodView(
            unit=period.unit.value, budget=period.budget, began=period.began, ends=period.ends
        ),
        rate=_rate_text(consumer.limits),
        concurrency=consumer.limits.concurrency,
        expires=consumer.expires,
    )


def _rate_text(limits: Limits) -> str | None:
    return None if limits.rate is None else str(limits.rate)


def tcb_view(tx: Reading, session: Session) -> TcbView:
    standing = standing_of(tx, session.session)
    grace = standing.grace
    return TcbView(
        status=standing.tcb_status,
        step=standing.step.value,
        leases_divided_by=DIVISORS.get(standing.step),
        short=() if grace is None else grace.short,
        since=None if grace is None else grace.since,
        window_ends=None if grace is None else grace.ends,
        appraised=standing.appraised,
        reattestation_asked=standing.asked,
        reattestation_overdue=standing.overdue,
    )


def session_view(tx: Reading, session: Session) -> SessionView:
    return SessionView(
        session=session.session,
        loan=session.loan,
        state=session.state.value,
        connected=session.disconnected is None,
        tee=session.tee,
        simulated=session.tee == Tee.SIMULATED,
        measurement=session.measurement,
        software=session.software,
        reports=session.last_report,
        opened=session.opened,
        disconnected=session.disconnected,
        ended=session.ended,
        end_reason=session.end_reason,
        tcb=tcb_view(tx, session),
    )


def ear_view(session: Session, appraisal: Event | None) -> EarView:
    """Return the token in *appraisal*; raises NotFoundError when there is none."""
    detail = {} if appraisal is None else msgspec.json.decode(appraisal.detail)
    if appraisal is None or not detail.get("ear"):
        raise NotFoundError(
            f"there is no token of session {session.session!r}",
            mend="aigovtool custodian events has the verdict; older custodians made no tokens",
        )
    return EarView(session=session.session, time=appraisal.time, ear=detail["ear"])


def lease_view(lease: LeaseRow) -> LeaseView:
    return LeaseView(
        lease=lease.lease,
        session=lease.session,
        loan=lease.loan,
        state=lease.state.value,
        credits=lease.credits,
        used=lease.used,
        caps=dict(lease.caps.items()),
        granted=lease.granted,
        expires=lease.expires,
        forfeited=lease.forfeited,
        refunded=lease.refunded,
    )


def grant_views(tx: Reading, loan: LoanId, rows: int) -> list[GrantView]:
    """Return what was made and withdrawn, by people and by the calendar, the newest first."""
    found = [grant_view(each) for each in tx.grants_of_loan(loan, rows)]
    for turn in tx.periods_of_loan(loan, rows):
        for kind, credits in (("period", turn.granted), ("withdrawal", turn.withdrawn)):
            found.append(
                GrantView(
                    loan=turn.loan,
                    consumer=turn.consumer,
                    credits=credits,
                    kind=kind,
                    lease=None,
                    reason=f"the {turn.unit} from {turn.began:%Y-%m-%d}",
                    actor=CUSTODIAN,
                    created=turn.created,
                )
            )
    return sorted(found, key=lambda one: one.created, reverse=True)[:rows]


def grant_view(grant: GrantRow) -> GrantView:
    return GrantView(
        loan=grant.loan,
        consumer=grant.consumer,
        credits=grant.credits,
        kind=grant.kind.value,
        lease=grant.lease,
        reason=grant.reason,
        actor=grant.actor,
        created=grant.created,
    )


def request_view(tx: Reading, request: MoreRequest) -> RequestView:
    waiting = tx.waiting_of_request(request.request)
    return RequestView(
        request=request.request,
        loan=request.loan,
        consumer=request.consumer,
        borrower=request.borrower,
        credits=request.credits,
        reason=request.reason,
        state=request.state.value,
        granted=request.granted,
        decision_reason=request.decision_reason,
        created=request.created,
        decided=request.decided,
        waiting=waiting.queries,
        waiting_since=waiting.since,
    )


def borrower_view(row: Borrower) -> BorrowerView:
    return BorrowerView(
        borrower=row.borrower,
        loan=row.loan,
        note=row.note,
        created=row.created,
        revoked=row.revoked,
    )


def notice_view(notice: Signed, seen: GrantSeenRow | None) -> NoticeView:
    return NoticeView(
        notice=notice,
        seen_by=None if seen is None else seen.session,
        seen=None if seen is None else Signed(payload=seen.payload, signature=seen.signature),
    )


def event_view(event: Event) -> EventView:
    return EventView(
        number=event.number,
        time=event.time,
        kind=event.kind,
        actor=event.actor,
        loan=event.loan,
        session=event.session,
        consumer=event.consumer,
        lease=event.lease,
        detail=msgspec.json.decode(event.detail, type=dict[str, Any]),
    )


def consumption_view(tx: Reading, loan: Loan, now: datetime) -> ConsumptionView:
    return ConsumptionView(
        loan=loan.loan,
        name=loan.name,
        state=state_at(loan.state, loan.terms.expires, now).value,
        account=account_view(loan.account),
        exposure=exposure_view(tx, loan, now),
        consumers=tuple(consumer_view(one) for one in tx.consumers_of_loan(loan.loan)),
    )


class WebhookView(Struct, frozen=True, kw_only=True):
    """A webhook, and what became of its messages."""

    webhook: str
    url: str
    events: tuple[str, ...]
    created: datetime
    waiting: int
    delivered: int
    dead: int
    last_answer: str


class NewWebhook(Message, frozen=True, kw_only=True):
    """What it takes to make a webhook."""

    url: str
    events: tuple[str, ...]


class MadeWebhook(Struct, frozen=True, kw_only=True):
    """A new webhook with its secret, which is shown this once."""

    webhook: WebhookView
    secret: str


class LowMark(Message, frozen=True, kw_only=True):
    """Below how many credits left ``budget.low`` is told; 0 for never."""

    credits: Annotated[int, Meta(ge=0, le=budget.MAX_CREDITS)]


def webhook_view(tx: Reading, row: Webhook) -> WebhookView:
    """Show a webhook."""
    counted = tx.count_deliveries(row.webhook)
    return WebhookView(
        webhook=row.webhook,
        url=row.url,
        events=row.kinds,
        created=row.created,
        waiting=counted.get(DeliveryState.WAITING, 0),
        delivered=counted.get(DeliveryState.DELIVERED, 0),
        dead=counted.get(DeliveryState.DEAD, 0),
        last_answer=tx.last_answer(row.webhook),
    )
