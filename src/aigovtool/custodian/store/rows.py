"""
Between rows of a database and `records`: the one place that knows both.

Times and durations are whole microseconds in the database, since a float loses some and text
compares slowly. A row is anything with values by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from aigovtool.attestation.dcap.policy import TcbGrace
from aigovtool.custodian.ageing import Step
from aigovtool.custodian.budget import Account
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.periods import Period, Unit
from aigovtool.custodian.records import (
    AppraisalRow,
    Borrower,
    Consumer,
    Custodian,
    Delivery,
    DeliveryState,
    Event,
    GrantKind,
    GrantRow,
    GrantSeenRow,
    HandedIn,
    Hold,
    LeaseAccount,
    LeaseRow,
    LeaseState,
    Life,
    Loan,
    LoanTerms,
    LogHead,
    LogRow,
    Model,
    MoreRequest,
    PeriodRow,
    RequestState,
    Session,
    Standing,
    StopProofRow,
    ToldGrant,
    Webhook,
)
from aigovtool.ids import ConsumerId
from aigovtool.tlog.tree import HASH_BYTES
from aigovtool.wire.codec import Signed, decode
from aigovtool.wire.enrolment import Keys, TokenPrice
from aigovtool.wire.extraction import BOUNDS, ExtractionLimits
from aigovtool.wire.limits import Limits, Rate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

LOAN_TERMS = (
    "loan",
    "max_enclaves",
    "max_lease_credits",
    "lease_duration_us",
    "expires_us",
    "rate_credits",
    "rate_per_s",
    "rate_full_us",
    "concurrency",
    "price_input",
    "price_output",
    "shared_prefixes",
    "top_logprobs",
    "output_tokens_per_day",
    "alike_per_day",
    "queries_per_day",
    "output_digits",
    "top_labels",
    "evictable",
)
"""What `set_loan_terms` writes."""

Row = Any  # indexable by column name: sqlite3.Row, or what another driver has
Values = dict[str, Any]


def to_us(time: datetime) -> int:
    """Return whole microseconds since 1970 UTC."""
    return (time - _EPOCH) // _MICROSECOND


def to_us_or_none(time: datetime | None) -> int | None:
    return None if time is None else to_us(time)


def from_us(us: int) -> datetime:
    """Return aware UTC time."""
    return _EPOCH + timedelta(microseconds=us)


def from_us_or_none(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)


def _span_us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def account_values(account: Account) -> Values:
    return {
        "granted": account.granted,
        "remaining": account.left,
        "leased": account.leased,
        "spent": account.spent,
        "forfeited": account.forfeited,
    }


def _account(row: Row) -> Account:
    return Account(
        granted=row["granted"],
        left=row["remaining"],
        leased=row["leased"],
        spent=row["spent"],
        forfeited=row["forfeited"],
    )


def _limits_values(limits: Limits, full_at: datetime | None) -> Values:
    rate = limits.rate
    return {
        "rate_credits": None if rate is None else rate.credits,
        "rate_per_s": None if rate is None else rate.per_s,
        "rate_full_us": to_us_or_none(full_at),
        "concurrency": limits.concurrency,
    }


def _limits(row: Row) -> Limits:
    credits = row["rate_credits"]
    return Limits(
        rate=None if credits is None else Rate(credits=credits, per_s=row["rate_per_s"]),
        concurrency=row["concurrency"],
    )


def _period_values(period: Period | None) -> Values:
    return {
        "period": None if period is None else period.unit.value,
        "period_budget": None if period is None else period.budget,
        "period_began_us": None if period is None else to_us(period.began),
        "period_ends_us": None if period is None else to_us(period.ends),
        "period_excess": None if period is None else period.excess,
    }


def _period(row: Row) -> Period | None:
    if row["period"] is None:
        return None
    return Period(
        unit=Unit(row["period"]),
        budget=row["period_budget"],
        began=from_us(row["period_began_us"]),
        ends=from_us(row["period_ends_us"]),
        excess=row["period_excess"],
    )


def custodian_values(row: Custodian) -> Values:
    return {
        "public_key": row.public_key,
        "wrapped_signing_key": row.wrapped_signing_key,
        "certificate_pem": row.certificate_pem,
        "created_us": to_us(row.created),
    }


def custodian_of(row: Row) -> Custodian:
    return Custodian(
        public_key=row["public_key"],
        wrapped_signing_key=row["wrapped_signing_key"],
        certificate_pem=row["certificate_pem"],
        created=from_us(row["created_us"]),
    )


def model_values(row: Model) -> Values:
    return {
        "digest": row.digest,
        "name": row.name,
        "version": row.version,
        "manifest": row.manifest,
        "wrapped_key": row.wrapped_key,
        "body_bytes": row.body_bytes,
        "body_sha256": row.body_sha256,
        "source_sha256": row.source_sha256,
        "created_us": to_us(row.created),
        "context": row.context,
    }


def model_of(row: Row) -> Model:
    return Model(
        digest=row["digest"],
        name=row["name"],
        version=row["version"],
        manifest=row["manifest"],
        wrapped_key=row["wrapped_key"],
        body_bytes=row["body_bytes"],
        body_sha256=row["body_sha256"],
        source_sha256=row["source_sha256"],
        created=from_us(row["created_us"]),
        context=row["context"],
    )


def loan_values(row: Loan) -> Values:
    return {
        "loan": row.loan,
        "name": row.name,
        "model": row.model,
        "state": row.state.value,
        "state_reason": row.state_reason,
        "token_sha256": row.token_sha256,
        "max_enclaves": row.terms.max_enclaves,
        "max_lease_credits": row.terms.max_lease_credits,
        "lease_duration_us": _span_us(row.terms.lease_duration_s),
        "settle_grace_us": _span_us(row.terms.settle_grace_s),
        "wipe_after_us": _span_us(row.terms.wipe_after_s),
        "reattest_interval_us": _span_us(row.terms.reattest_interval_s),
        "expires_us": to_us_or_none(row.terms.expires),
        "evictable": int(row.terms.evictable),
        **account_values(row.account),
        "created_us": to_us(row.created),
        **_limits_values(row.terms.limits, row.rate_full_at),
        "price_input": row.terms.token_price.input,
        "price_output": row.terms.token_price.output,
        "shared_prefixes": int(row.terms.shared_prefixes),
        **msgspec.structs.asdict(row.terms.extraction),
    }


def loan_of(row: Row) -> Loan:
    return Loan(
        loan=row["loan"],
        name=row["name"],
        model=row["model"],
        state=LoanState(row["state"]),
        state_reason=row["state_reason"],
        terms=LoanTerms(
            max_enclaves=row["max_enclaves"],
            max_lease_credits=row["max_lease_credits"],
            lease_duration_s=row["lease_duration_us"] / 1e6,
            settle_grace_s=row["settle_grace_us"] / 1e6,
            wipe_after_s=row["wipe_after_us"] / 1e6,
            reattest_interval_s=row["reattest_interval_us"] / 1e6,
            expires=from_us_or_none(row["expires_us"]),
            limits=_limits(row),
            token_price=TokenPrice(input=row["price_input"], output=row["price_output"]),
            shared_prefixes=bool(row["shared_prefixes"]),
            extraction=ExtractionLimits(**{name: row[name] for name in BOUNDS}),
            evictable=bool(row["evictable"]),
        ),
        account=_account(row),
        token_sha256=row["token_sha256"],
        created=from_us(row["created_us"]),
        rate_full_at=from_us_or_none(row["rate_full_us"]),
        retires=from_us_or_none(row["retires_us"]),
    )


def consumer_values(row: Consumer) -> Values:
    return {
        "consumer": row.consumer,
        "loan": row.loan,
        "name": row.name,
        "key_sha256": row.key_sha256,
        "blocked": int(row.blocked),
        "blocked_reason": row.blocked_reason,
        "budgeted": int(row.budgeted),
        **account_values(row.account),
        "used": row.used,
        "created_us": to_us(row.created),
        **consumer_terms_values(row),
    }


def consumer_terms_values(row: Consumer) -> Values:
    return {
        **_period_values(row.period),
        **_limits_values(row.limits, row.rate_full_at),
        "expires_us": to_us_or_none(row.expires),
        "expired": int(row.expired),
    }


def consumer_of(row: Row) -> Consumer:
    return Consumer(
        consumer=row["consumer"],
        loan=row["loan"],
        name=row["name"],
        key_sha256=row["key_sha256"],
        blocked=bool(row["blocked"]),
        blocked_reason=row["blocked_reason"],
        budgeted=bool(row["budgeted"]),
        account=_account(row),
        used=row["used"],
        created=from_us(row["created_us"]),
        period=_period(row),
        limits=_limits(row),
        expires=from_us_or_none(row["expires_us"]),
        expired=bool(row["expired"]),
        rate_full_at=from_us_or_none(row["rate_full_us"]),
    )


def session_values(row: Session) -> Values:
    return {
        "session": row.session,
        "loan": row.loan,
        "model": row.model,
        "state": row.state.value,
        "tls_spki_sha256": row.keys.tls_spki_sha256,
        "signing_key": row.keys.signing_key,
        "hpke_key": row.keys.hpke_key,
        "tee": row.tee,
        "measurement": row.measurement,
        "software": row.software,
        "opened_us": to_us(row.opened),
        "disconnected_us": to_us_or_none(row.disconnected),
        "ended_us": to_us_or_none(row.ended),
        "end_reason": row.end_reason,
        "last_report": row.last_report,
        "report_sha256": row.report_sha256,
        "decision": row.decision,
    }


def session_of(row: Row) -> Session:
    return Session(
        session=row["session"],
        loan=row["loan"],
        model=row["model"],
        state=SessionState(row["state"]),
        keys=Keys(
            tls_spki_sha256=row["tls_spki_sha256"],
            signing_key=row["signing_key"],
            hpke_key=row["hpke_key"],
        ),
        tee=row["tee"],
        measurement=row["measurement"],
        software=row["software"],
        opened=from_us(row["opened_us"]),
        disconnected=from_us_or_none(row["disconnected_us"]),
        ended=from_us_or_none(row["ended_us"]),
        end_reason=row["end_reason"],
        last_report=row["last_report"],
        report_sha256=row["report_sha256"],
        decision=row["decision"],
        replica=row["replica"],
    )


def standing_values(row: Standing) -> Values:
    return {
        "session": row.session,
        "appraised_us": to_us(row.appraised),
        "tcb_status": row.tcb_status,
        "grace": None if row.grace is None else msgspec.json.encode(row.grace),
        "step": row.step.value,
        "nonce": row.nonce,
        "asked_us": to_us_or_none(row.asked),
        "overdue": int(row.overdue),
    }


def standing_of(row: Row) -> Standing:
    grace = row["grace"]
    return Standing(
        session=row["session"],
        appraised=from_us(row["appraised_us"]),
        tcb_status=row["tcb_status"],
        grace=None if grace is None else decode(grace, TcbGrace),
        step=Step(row["step"]),
        nonce=row["nonce"],
        asked=from_us_or_none(row["asked_us"]),
        overdue=bool(row["overdue"]),
    )


_EVIDENCE, _ENDORSEMENTS = "evidence", "endorsements"


def appraisal_values(row: AppraisalRow) -> Values:
    return {
        "session": row.session,
        "nonce": row.nonce,
        "judged_us": to_us(row.judged),
        "tee": row.tee,
        "policy": row.policy,
    }


def appraisal_document_values(row: AppraisalRow) -> list[Values]:
    return [
        {"session": row.session, "nonce": row.nonce, "role": role, "name": name, "sha256": digest}
        for role, documents in ((_EVIDENCE, row.evidence), (_ENDORSEMENTS, row.endorsements))
        for name, digest in documents.items()
    ]


def appraisal_of(row: Row, documents: Sequence[Row]) -> AppraisalRow:
    def named(role: str) -> dict[str, bytes]:
        return {each["name"]: each["sha256"] for each in documents if each["role"] == role}

    return AppraisalRow(
        session=row["session"],
        nonce=row["nonce"],
        judged=from_us(row["judged_us"]),
        tee=row["tee"],
        policy=row["policy"],
        evidence=named(_EVIDENCE),
        endorsements=named(_ENDORSEMENTS),
    )


def lease_values(row: LeaseRow) -> Values:
    return {
        "lease": row.lease,
        "session": row.session,
        "loan": row.loan,
        "number": row.number,
        "credits": row.credits,
        "duration_us": _span_us(row.duration_s),
        "granted_us": to_us(row.granted),
        "expires_us": to_us(row.expires),
        "state": row.state.value,
        "used": row.used,
        "forfeited_us": to_us_or_none(row.forfeited),
        "refunded_us": to_us_or_none(row.refunded),
        "written_off_us": to_us_or_none(row.written_off),
    }


def lease_of(row: Row, caps: Mapping[ConsumerId, int]) -> LeaseRow:
    return LeaseRow(
        lease=row["lease"],
        session=row["session"],
        loan=row["loan"],
        number=row["number"],
        credits=row["credits"],
        duration_s=row["duration_us"] / 1e6,
        granted=from_us(row["granted_us"]),
        expires=from_us(row["expires_us"]),
        state=LeaseState(row["state"]),
        used=row["used"],
        forfeited=from_us_or_none(row["forfeited_us"]),
        refunded=from_us_or_none(row["refunded_us"]),
        written_off=from_us_or_none(row["written_off_us"]),
        caps=caps,
    )


def span_values(begin: datetime, end: datetime) -> Values:
    return {"begin_us": to_us(begin), "end_us": to_us(end)}


def balance_of(row: Row) -> Account:
    # sums are wider than their terms in some databases, and come as another type
    granted, leased, spent, forfeited = (
        int(row[name]) for name in ("granted", "leased", "spent", "forfeited")
    )
    return Account(
        granted=granted,
        left=granted - leased - spent - forfeited,
        leased=leased,
        spent=spent,
        forfeited=forfeited,
    )


def lease_account_of(row: Row) -> LeaseAccount:
    settled = row["payload"] is not None
    return LeaseAccount(
        lease=row["lease"],
        session=row["session"],
        credits=row["credits"],
        granted=from_us(row["granted_us"]),
        expires=from_us(row["expires_us"]),
        forfeited=from_us_or_none(row["forfeited_us"]),
        refunded=from_us_or_none(row["refunded_us"]),
        written_off=from_us_or_none(row["written_off_us"]),
        settlement=Signed(payload=row["payload"], signature=row["signature"]) if settled else None,
        received=from_us_or_none(row["received_us"]),
    )


def grant_values(row: GrantRow) -> Values:
    return {
        "loan": row.loan,
        "consumer": row.consumer,
        "credits": row.credits,
        "kind": row.kind.value,
        "lease": row.lease,
        "reason": row.reason,
        "actor": row.actor,
        "idempotency_key": row.key,
        "created_us": to_us(row.created),
    }


def grant_of(row: Row) -> GrantRow:
    return GrantRow(
        loan=row["loan"],
        consumer=row["consumer"],
        credits=row["credits"],
        kind=GrantKind(row["kind"]),
        lease=row["lease"],
        reason=row["reason"],
        actor=row["actor"],
        key=row["idempotency_key"],
        created=from_us(row["created_us"]),
    )


def period_values(row: PeriodRow) -> Values:
    return {
        "consumer": row.consumer,
        "loan": row.loan,
        "number": row.number,
        "unit": row.unit,
        "began_us": to_us(row.began),
        "withdrawn": row.withdrawn,
        "granted": row.granted,
        "created_us": to_us(row.created),
    }


def period_of(row: Row) -> PeriodRow:
    return PeriodRow(
        consumer=row["consumer"],
        loan=row["loan"],
        number=row["number"],
        unit=row["unit"],
        began=from_us(row["began_us"]),
        withdrawn=row["withdrawn"],
        granted=row["granted"],
        created=from_us(row["created_us"]),
    )


def request_values(row: MoreRequest) -> Values:
    return {
        "request": row.request,
        "loan": row.loan,
        "consumer": row.consumer,
        "session": row.session,
        "borrower": row.borrower,
        "credits": row.credits,
        "reason": row.reason,
        "state": row.state.value,
        "granted": row.granted,
        "decision_reason": row.decision_reason,
        "created_us": to_us(row.created),
        "decided_us": to_us_or_none(row.decided),
    }


def request_of(row: Row) -> MoreRequest:
    return MoreRequest(
        request=row["request"],
        loan=row["loan"],
        consumer=row["consumer"],
        session=row["session"],
        credits=row["credits"],
        reason=row["reason"],
        state=RequestState(row["state"]),
        granted=row["granted"],
        decision_reason=row["decision_reason"],
        created=from_us(row["created_us"]),
        decided=from_us_or_none(row["decided_us"]),
        borrower=row["borrower"],
    )


def stop_proof_values(row: StopProofRow) -> Values:
    return {
        "session": row.session,
        "payload": row.payload,
        "signature": row.signature,
        "received_us": to_us(row.received),
    }


def stop_proof_of(row: Row) -> StopProofRow:
    return StopProofRow(
        session=row["session"],
        payload=row["payload"],
        signature=row["signature"],
        received=from_us(row["received_us"]),
    )


def hold_values(row: Hold) -> Values:
    return {"code": row.code, "reason": row.reason, "since_us": to_us(row.since)}


def life_of(row: Row) -> Life:
    hold = None
    if row["code"] is not None:
        hold = Hold(code=row["code"], reason=row["reason"], since=from_us(row["since_us"]))
    return Life(incarnation=row["incarnation"], hold=hold)


def handed_in_values(row: HandedIn) -> Values:
    return {
        "lease": row.lease,
        "session": row.session,
        "loan": row.loan,
        "payload": row.settlement.payload,
        "signature": row.settlement.signature,
        "statement_payload": row.statement.payload,
        "statement_signature": row.statement.signature,
        "received_us": to_us(row.received),
    }


def handed_in_of(row: Row) -> HandedIn:
    return HandedIn(
        lease=row["lease"],
        session=row["session"],
        loan=row["loan"],
        settlement=Signed(payload=row["payload"], signature=row["signature"]),
        statement=Signed(payload=row["statement_payload"], signature=row["statement_signature"]),
        received=from_us(row["received_us"]),
    )


def event_of(row: Row) -> Event:
    return Event(
        number=row["number"],
        time=from_us(row["time_us"]),
        kind=row["kind"],
        actor=row["actor"],
        loan=row["loan"],
        session=row["session"],
        consumer=row["consumer"],
        lease=row["lease"],
        detail=row["detail"],
    )


def log_head_values(row: LogHead) -> Values:
    return {
        "origin": row.origin,
        "public_key": row.public_key,
        "wrapped_key": row.wrapped_key,
        "certificate": row.certificate,
        "size": row.size,
        "edge": b"".join(row.edge),
        "checkpoint": row.checkpoint,
    }


def log_head_of(row: Row) -> LogHead:
    edge = row["edge"]
    return LogHead(
        origin=row["origin"],
        public_key=row["public_key"],
        wrapped_key=row["wrapped_key"],
        certificate=row["certificate"],
        size=row["size"],
        edge=tuple(edge[at : at + HASH_BYTES] for at in range(0, len(edge), HASH_BYTES)),
        checkpoint=row["checkpoint"],
    )


def log_row_of(row: Row) -> LogRow:
    return LogRow(leaf=row["leaf"], event=row["event"], salt=row["salt"], entry=row["entry"])


def webhook_of(row: Row, kinds: Sequence[Row]) -> Webhook:
    return Webhook(
        webhook=row["webhook"],
        url=row["url"],
        kinds=tuple(one["kind"] for one in kinds),
        wrapped_secret=row["wrapped_secret"],
        created=from_us(row["created_us"]),
        removed=from_us_or_none(row["removed_us"]),
    )


def delivery_of(row: Row) -> Delivery:
    return Delivery(
        number=row["number"],
        webhook=row["webhook"],
        message=row["message"],
        kind=row["kind"],
        body=row["body"],
        created=from_us(row["created_us"]),
        due=from_us(row["due_us"]),
        tries=row["tries"],
        state=DeliveryState(row["state"]),
        answer=row["answer"],
    )


def told_grant_of(row: Row) -> ToldGrant:
    return ToldGrant(
        number=row["number"],
        place=row["place"],
        loan=row["loan"],
        consumer=row["consumer"],
        credits=row["credits"],
        kind=GrantKind(row["kind"]),
        granted=int(row["granted"]),
        created=from_us(row["created_us"]),
    )


def grant_seen_values(row: GrantSeenRow) -> Values:
    return {
        "number": row.number,
        "session": row.session,
        "payload": row.payload,
        "signature": row.signature,
        "received_us": to_us(row.received),
    }


def grant_seen_of(row: Row) -> GrantSeenRow:
    return GrantSeenRow(
        number=row["number"],
        session=row["session"],
        payload=row["payload"],
        signature=row["signature"],
        received=from_us(row["received_us"]),
    )


def borrower_values(row: Borrower) -> Values:
    return {
        "borrower": row.borrower,
        "loan": row.loan,
        "note": row.note,
        "token_sha256": row.token_sha256,
        "created_us": to_us(row.created),
        "revoked_us": to_us_or_none(row.revoked),
    }


def borrower_of(row: Row) -> Borrower:
    return Borrower(
        borrower=row["borrower"],
        loan=row["loan"],
        note=row["note"],
        token_sha256=row["token_sha256"],
        created=from_us(row["created_us"]),
        revoked=from_us_or_none(row["revoked_us"]),
    )
