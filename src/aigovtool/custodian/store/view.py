"""
Every method of `base.Reading` and `base.Writing`, as queries by name: what the databases share.

A database adds how it runs one query; all that a row means is here and in `rows`, once.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from aigovtool.custodian.ageing import ANSWER_WITHIN_S, Step
from aigovtool.custodian.budget import Account
from aigovtool.custodian.lifecycle import LoanState, SessionState
from aigovtool.custodian.records import (
    AppraisalRow,
    Borrower,
    BorrowerId,
    Consumer,
    Custodian,
    Delivery,
    DeliveryState,
    Event,
    GrantRow,
    GrantSeenRow,
    HandedIn,
    Hold,
    LeaseAccount,
    LeaseRow,
    Life,
    Loan,
    LogHead,
    LogRow,
    Model,
    MoreRequest,
    PeriodRow,
    RequestId,
    Session,
    SettlementRow,
    Standing,
    StopProofRow,
    ToldGrant,
    Waiting,
    Webhook,
    WebhookId,
)
from aigovtool.custodian.store import rows
from aigovtool.errors import ConflictError, PromiseBrokenError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire.codec import Signed
from aigovtool.wire.control import ANSWER_LIVES_S


class View(ABC):
    """One transaction: `Reading`, and within `write` also `Writing`."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched: dict[LoanId | ConsumerId, Account] = {}

    @abstractmethod
    def _run(self, query: str, **values: Any) -> int:
        """Run a query and return how many rows it made or changed."""

    @abstractmethod
    def _one(self, query: str, **values: Any) -> rows.Row | None:
        """Return the first row."""

    @abstractmethod
    def _all(self, query: str, **values: Any) -> list[rows.Row]:
        """Return every row."""

    def _just_one(self, query: str, **values: Any) -> rows.Row:
        row = self._one(query, **values)
        if row is None:
            raise PromiseBrokenError(f"the query {query} found nothing")
        return row

    def _change(self, query: str, **values: Any) -> None:
        """Run an update that must find its row."""
        if self._run(query, **values) != 1:
            raise ConflictError("the ledger has moved on", code="ledger.moved", came=query)

    # --- reading ---

    def custodian(self) -> Custodian | None:
        row = self._one("custodian")
        return None if row is None else rows.custodian_of(row)

    def model(self, digest: bytes) -> Model | None:
        row = self._one("model", digest=digest)
        return None if row is None else rows.model_of(row)

    def models(self) -> Sequence[Model]:
        return [rows.model_of(row) for row in self._all("models")]

    def loan(self, loan: LoanId) -> Loan | None:
        row = self._one("loan", loan=loan)
        return None if row is None else rows.loan_of(row)

    def loan_of_token(self, token_sha256: bytes) -> Loan | None:
        row = self._one("loan_of_token", token_sha256=token_sha256)
        return None if row is None else rows.loan_of(row)

    def loans(self) -> Sequence[Loan]:
        return [rows.loan_of(row) for row in self._all("loans")]

    def loans_past_date(self, now: datetime) -> Sequence[LoanId]:
        return [row["loan"] for row in self._all("loans_past_date", now_us=rows.to_us(now))]

    def loan_policy(self, loan: LoanId) -> str:
        policy = self._just_one("loan_policy", loan=loan)["policy"]
        assert isinstance(policy, str)
        return policy

    def consumer(self, consumer: ConsumerId) -> Consumer | None:
        row = self._one("consumer", consumer=consumer)
        return None if row is None else rows.consumer_of(row)

    def consumers_of_loan(self, loan: LoanId) -> Sequence[Consumer]:
        return [rows.consumer_of(row) for row in self._all("consumers_of_loan", loan=loan)]

    def consumers_to_turn(self, now: datetime, limit: int) -> Sequence[ConsumerId]:
        found = self._all("consumers_to_turn", now_us=rows.to_us(now), limit=limit)
        return [row["consumer"] for row in found]

    def consumers_to_expire(self, now: datetime, limit: int) -> Sequence[ConsumerId]:
        found = self._all("consumers_to_expire", now_us=rows.to_us(now), limit=limit)
        return [row["consumer"] for row in found]

    def consumers_ending(self, loan: LoanId, until: datetime) -> Mapping[ConsumerId, datetime]:
        found = self._all("consumers_ending", loan=loan, until_us=rows.to_us(until))
        return {row["consumer"]: rows.from_us(row["expires_us"]) for row in found}

    def last_period_of_consumer(self, consumer: ConsumerId) -> int:
        return int(self._just_one("last_period_of_consumer", consumer=consumer)["number"])

    def periods_of_loan(self, loan: LoanId, limit: int) -> Sequence[PeriodRow]:
        return [rows.period_of(row) for row in self._all("periods_of_loan", loan=loan, limit=limit)]

    def session(self, session: SessionId) -> Session | None:
        row = self._one("session", session=session)
        return None if row is None else rows.session_of(row)

    def sessions_of_loan(self, loan: LoanId, limit: int) -> Sequence[Session]:
        found = self._all("sessions_of_loan", loan=loan, limit=limit)
        return [rows.session_of(row) for row in found]

    def live_sessions_of_loan(self, loan: LoanId) -> Sequence[Session]:
        return [rows.session_of(row) for row in self._all("live_sessions_of_loan", loan=loan)]

    def count_connected_sessions(self, loan: LoanId) -> int:
        return int(self._just_one("count_connected_sessions", loan=loan)["sessions"])

    def count_sessions(self, loan: LoanId) -> Mapping[SessionState, int]:
        found = self._all("count_sessions", loan=loan)
        return {SessionState(row["state"]): row["sessions"] for row in found}

    def count_sharers(self, loan: LoanId) -> int:
        return int(self._just_one("count_sharers", loan=loan)["sessions"])

    def limits_concurrency(self, loan: LoanId) -> bool:
        return bool(self._just_one("limits_concurrency", loan=loan)["consumers"])

    def place_of_session(self, session: SessionId) -> tuple[int, int]:
        row = self._just_one("place_of_session", session=session)
        return row["place"], row["sessions"]

    def outputs_elsewhere(self, loan: LoanId, *, day: int, watch: str) -> Mapping[ConsumerId, int]:
        found = self._all("outputs_elsewhere", loan=loan, day=day, watch=watch)
        return {row["consumer"]: int(row["tokens"]) for row in found}

    def standing(self, session: SessionId) -> Standing | None:
        row = self._one("standing", session=session)
        return None if row is None else rows.standing_of(row)

    def appraisals_of_session(self, session: SessionId) -> Sequence[AppraisalRow]:
        return [
            rows.appraisal_of(
                row, self._all("appraisal_documents", session=session, nonce=row["nonce"])
            )
            for row in self._all("appraisals_of_session", session=session)
        ]

    def document(self, sha256: bytes) -> bytes:
        body = self._just_one("document", sha256=sha256)["body"]
        assert isinstance(body, bytes)
        return body

    def webhooks(self) -> Sequence[Webhook]:
        return [self._webhook(row) for row in self._all("webhooks")]

    def webhook(self, webhook: WebhookId) -> Webhook | None:
        row = self._one("webhook", webhook=webhook)
        return None if row is None else self._webhook(row)

    def _webhook(self, row: rows.Row) -> Webhook:
        return rows.webhook_of(row, self._all("webhook_kinds", webhook=row["webhook"]))

    def due_deliveries(self, now: datetime, limit: int) -> Sequence[Delivery]:
        found = self._all("due_deliveries", now_us=rows.to_us(now), limit=limit)
        return [rows.delivery_of(row) for row in found]

    def count_deliveries(self, webhook: WebhookId) -> Mapping[DeliveryState, int]:
        found = self._all("count_deliveries", webhook=webhook)
        return {DeliveryState(row["state"]): row["deliveries"] for row in found}

    def last_answer(self, webhook: WebhookId) -> str:
        row = self._one("last_answer", webhook=webhook)
        return "" if row is None else str(row["answer"])

    def low_mark(self, loan: LoanId) -> tuple[int, bool] | None:
        row = self._one("low_mark", loan=loan)
        return None if row is None else (row["credits"], bool(row["low"]))

    def count_steps(self, loan: LoanId) -> Mapping[Step, int]:
        return {Step(row["step"]): row["sessions"] for row in self._all("count_steps", loan=loan)}

    def ageing_sessions(self) -> Sequence[SessionId]:
        return [row["session"] for row in self._all("ageing_sessions")]

    def sessions_to_ask(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all("sessions_to_ask", now_us=rows.to_us(now), limit=limit)
        return [row["session"] for row in found]

    def overdue_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all(
            "overdue_sessions",
            now_us=rows.to_us(now),
            answer_within_us=round(ANSWER_WITHIN_S * 1e6),
            limit=limit,
        )
        return [row["session"] for row in found]

    def silent_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all("silent_sessions", now_us=rows.to_us(now), limit=limit)
        return [row["session"] for row in found]

    def retired_sessions(self, now: datetime, limit: int) -> Sequence[SessionId]:
        found = self._all("retired_sessions", now_us=rows.to_us(now), limit=limit)
        return [row["session"] for row in found]

    def lease(self, lease: LeaseId) -> LeaseRow | None:
        row = self._one("lease", lease=lease)
        return None if row is None else self._with_caps(row)

    def leases_of_loan(self, loan: LoanId, limit: int) -> Sequence[LeaseRow]:
        return [self._with_caps(row) for row in self._all("leases_of_loan", loan=loan, limit=limit)]

    def _with_caps(self, row: rows.Row) -> LeaseRow:
        caps = self._all("lease_caps", lease=row["lease"])
        return rows.lease_of(row, {cap["consumer"]: cap["credits"] for cap in caps})

    def open_of_session(self, session: SessionId) -> tuple[int, int, datetime | None]:
        row = self._just_one("open_of_session", session=session)
        return row["leases"], row["credits"], rows.from_us_or_none(row["expires_us"])

    def has_unsettled(self, session: SessionId) -> bool:
        return bool(self._just_one("unsettled_of_session", session=session)["leases"])

    def leases_to_forfeit(self, now: datetime, limit: int) -> Sequence[LeaseId]:
        found = self._all("leases_to_forfeit", now_us=rows.to_us(now), limit=limit)
        return [row["lease"] for row in found]

    def exposure(self, loan: LoanId, now: datetime) -> tuple[int, datetime | None]:
        row = self._just_one(
            "exposure",
            loan=loan,
            now_us=rows.to_us(now),
            answer_lives_us=round(ANSWER_LIVES_S * 1e6),
        )
        if row["expires_us"] is None:
            return row["credits"], None
        return row["credits"], rows.from_us(
            max(row["expires_us"], rows.to_us(now) + row["longest_us"])
        )

    def settlement_payload(self, lease: LeaseId) -> bytes | None:
        row = self._one("settlement_payload", lease=lease)
        return None if row is None else row["payload"]

    def balance_at(self, loan: LoanId, at: datetime) -> Account:
        return rows.balance_of(self._just_one("balance_at", loan=loan, at_us=rows.to_us(at)))

    def grants_between(self, loan: LoanId, begin: datetime, end: datetime) -> Sequence[GrantRow]:
        found = self._all("grants_between", loan=loan, **rows.span_values(begin, end))
        return [rows.grant_of(row) for row in found]

    def leases_between(
        self, loan: LoanId, begin: datetime, end: datetime, limit: int
    ) -> Sequence[LeaseAccount]:
        span = rows.span_values(begin, end)
        found = self._all("leases_between", loan=loan, limit=limit, **span)
        return [rows.lease_account_of(row) for row in found]

    def settlements_before(self, session: SessionId, before: datetime) -> Sequence[Signed]:
        found = self._all("settlements_before", session=session, before_us=rows.to_us(before))
        return [Signed(payload=row["payload"], signature=row["signature"]) for row in found]

    def sessions_between(self, loan: LoanId, begin: datetime, end: datetime) -> Sequence[SessionId]:
        found = self._all("sessions_between", loan=loan, **rows.span_values(begin, end))
        return [row["session"] for row in found]

    def recovered_leases(self, loan: LoanId) -> Sequence[LeaseId]:
        return [row["lease"] for row in self._all("recovered_leases", loan=loan)]

    def events_between(
        self, loan: LoanId, begin: datetime, end: datetime, after: int, limit: int
    ) -> Sequence[Event]:
        span = rows.span_values(begin, end)
        found = self._all("events_between", loan=loan, after=after, limit=limit, **span)
        return [rows.event_of(row) for row in found]

    def grant_of_key(self, key: str) -> GrantRow | None:
        row = self._one("grant_of_key", idempotency_key=key)
        return None if row is None else rows.grant_of(row)

    def grants_of_loan(self, loan: LoanId, limit: int) -> Sequence[GrantRow]:
        return [rows.grant_of(row) for row in self._all("grants_of_loan", loan=loan, limit=limit)]

    def request(self, request: RequestId) -> MoreRequest | None:
        row = self._one("request", request=request)
        return None if row is None else rows.request_of(row)

    def open_request_of_consumer(self, loan: LoanId, consumer: ConsumerId) -> MoreRequest | None:
        row = self._one("open_request_of_consumer", loan=loan, consumer=consumer)
        return None if row is None else rows.request_of(row)

    def count_open_requests(self, loan: LoanId) -> int:
        return int(self._just_one("count_open_requests", loan=loan)["requests"])

    def open_request_of_borrower(self, loan: LoanId) -> MoreRequest | None:
        row = self._one("open_request_of_borrower", loan=loan)
        return None if row is None else rows.request_of(row)

    def requests_of_loan(self, loan: LoanId, limit: int) -> Sequence[MoreRequest]:
        found = self._all("requests_of_loan", loan=loan, limit=limit)
        return [rows.request_of(row) for row in found]

    def waiting_of_request(self, request: RequestId) -> Waiting:
        row = self._just_one("waiting_of_request", request=request)
        return Waiting(int(row["queries"]), rows.from_us_or_none(row["since_us"]))

    def stop_proof(self, session: SessionId) -> StopProofRow | None:
        row = self._one("stop_proof", session=session)
        return None if row is None else rows.stop_proof_of(row)

    def events_after(self, after: int, loan: LoanId | None, limit: int) -> Sequence[Event]:
        found = self._all("events_after", after=after, loan=loan, limit=limit)
        return [rows.event_of(row) for row in found]

    def last_appraisal_of_session(self, session: SessionId) -> Event | None:
        row = self._one("last_appraisal_of_session", session=session)
        return None if row is None else rows.event_of(row)

    def last_events(self, loan: LoanId | None, limit: int) -> Sequence[Event]:
        return [rows.event_of(row) for row in self._all("last_events", loan=loan, limit=limit)]

    def borrower(self, borrower: BorrowerId) -> Borrower | None:
        row = self._one("borrower", borrower=borrower)
        return None if row is None else rows.borrower_of(row)

    def borrower_of_token(self, token_sha256: bytes) -> Borrower | None:
        row = self._one("borrower_of_token", token_sha256=token_sha256)
        return None if row is None else rows.borrower_of(row)

    def borrowers_of_loan(self, loan: LoanId, limit: int) -> Sequence[Borrower]:
        found = self._all("borrowers_of_loan", loan=loan, limit=limit)
        return [rows.borrower_of(row) for row in found]

    def last_grant(self) -> int:
        return int(self._just_one("last_grant")["number"])

    def grants_after(self, after: int, limit: int) -> Sequence[ToldGrant]:
        found = self._all("grants_after", after=after, limit=limit)
        return [rows.told_grant_of(row) for row in found]

    def unseen_grants(self, loan: LoanId, limit: int) -> Sequence[ToldGrant]:
        found = self._all("unseen_grants", loan=loan, limit=limit)
        return [rows.told_grant_of(row) for row in found]

    def told_grants(self, loan: LoanId, limit: int) -> Sequence[ToldGrant]:
        found = self._all("told_grants", loan=loan, limit=limit)
        return [rows.told_grant_of(row) for row in found]

    def told_between(self, loan: LoanId, begin: datetime, end: datetime) -> Sequence[ToldGrant]:
        found = self._all("told_between", loan=loan, **rows.span_values(begin, end))
        return [rows.told_grant_of(row) for row in found]

    def told_grant(self, number: int) -> ToldGrant | None:
        row = self._one("told_grant", number=number)
        return None if row is None else rows.told_grant_of(row)

    def grant_seen(self, number: int) -> GrantSeenRow | None:
        row = self._one("grant_seen", number=number)
        return None if row is None else rows.grant_seen_of(row)

    def log_head(self) -> LogHead | None:
        row = self._one("log_head")
        return None if row is None else rows.log_head_of(row)

    def events_to_log(self, limit: int) -> Sequence[Event]:
        return [rows.event_of(row) for row in self._all("events_to_log", limit=limit)]

    def count_to_log(self) -> int:
        return int(self._just_one("count_to_log")["events"])

    def last_logged_event(self) -> int:
        return int(self._just_one("last_logged_event")["event"])

    def log_entries(self, first: int, limit: int) -> Sequence[LogRow]:
        return [rows.log_row_of(row) for row in self._all("log_entries", first=first, limit=limit)]

    def log_entry_of_event(self, event: int) -> LogRow | None:
        row = self._one("log_entry_of_event", event=event)
        return None if row is None else rows.log_row_of(row)

    def event(self, number: int) -> Event | None:
        row = self._one("event", number=number)
        return None if row is None else rows.event_of(row)

    def last_event_of_kind(self, kind: str) -> Event | None:
        row = self._one("last_event_of_kind", kind=kind)
        return None if row is None else rows.event_of(row)

    def unsettled_leases_of_loan(self, loan: LoanId) -> Sequence[LeaseRow]:
        return [self._with_caps(row) for row in self._all("unsettled_leases_of_loan", loan=loan)]

    def last_lease_number(self, session: SessionId) -> int:
        return int(self._just_one("last_lease_number", session=session)["number"])

    def unended_sessions_of_loan(self, loan: LoanId) -> Sequence[Session]:
        return [rows.session_of(row) for row in self._all("unended_sessions_of_loan", loan=loan)]

    def incarnations(self) -> Sequence[bytes]:
        return [row["incarnation"] for row in self._all("incarnations")]

    def life(self) -> Life:
        return rows.life_of(self._just_one("life"))

    def handed_in(self) -> Sequence[HandedIn]:
        return [rows.handed_in_of(row) for row in self._all("handed_in")]

    def handed_in_of_lease(self, lease: LeaseId) -> HandedIn | None:
        row = self._one("handed_in_of_lease", lease=lease)
        return None if row is None else rows.handed_in_of(row)

    def replicas(self) -> Mapping[int, int]:
        return {row["number"]: row["beat"] for row in self._all("replicas")}

    def leased_to_connected(self, replica: int | None) -> int:
        return int(self._just_one("leased_to_connected", replica=replica)["credits"])

    # --- writing ---

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        self._run("savepoint")
        try:
            yield
        except BaseException:
            self._run("undo_to_savepoint")
            self._run("release_savepoint")
            raise
        self._run("release_savepoint")

    def insert_custodian(self, row: Custodian) -> None:
        self._run("insert_custodian", **rows.custodian_values(row))

    def insert_model(self, row: Model) -> None:
        self._run("insert_model", **rows.model_values(row))

    def insert_loan(self, row: Loan, policy: str) -> None:
        self.touched[row.loan] = row.account
        self._run("insert_loan", policy=policy, **rows.loan_values(row))

    def set_loan_account(self, loan: LoanId, account: Account) -> None:
        self.touched[loan] = account
        self._change("set_loan_account", loan=loan, **rows.account_values(account))

    def set_loan_state(self, loan: LoanId, state: LoanState, reason: str) -> None:
        self._change("set_loan_state", loan=loan, state=state.value, state_reason=reason)

    def set_loan_terms(self, row: Loan) -> None:
        values = rows.loan_values(row)
        self._change("set_loan_terms", **{name: values[name] for name in rows.LOAN_TERMS})

    def set_outputs(
        self, loan: LoanId, consumer: ConsumerId, *, day: int, watch: str, tokens: int
    ) -> None:
        self._run("set_outputs", loan=loan, consumer=consumer, day=day, watch=watch, tokens=tokens)

    def forget_outputs(self, loan: LoanId, *, before: int) -> None:
        self._run("forget_outputs", loan=loan, day=before)

    def set_loan_model(self, row: Loan) -> None:
        self._change(
            "set_loan_model",
            loan=row.loan,
            model=row.model,
            retires_us=rows.to_us_or_none(row.retires),
        )

    def set_loan_token(self, loan: LoanId, token_sha256: bytes) -> None:
        self._change("set_loan_token", loan=loan, token_sha256=token_sha256)

    def insert_consumer(self, row: Consumer) -> None:
        self.touched[row.consumer] = row.account
        self._run("insert_consumer", **rows.consumer_values(row))

    def set_consumer_account(self, consumer: ConsumerId, account: Account, used: int) -> None:
        self.touched[consumer] = account
        self._change(
            "set_consumer_account", consumer=consumer, used=used, **rows.account_values(account)
        )

    def set_consumer_blocked(self, consumer: ConsumerId, blocked: bool, reason: str) -> None:
        self._change(
            "set_consumer_blocked", consumer=consumer, blocked=int(blocked), blocked_reason=reason
        )

    def set_consumer_terms(self, row: Consumer) -> None:
        self._change("set_consumer_terms", consumer=row.consumer, **rows.consumer_terms_values(row))

    def insert_period(self, row: PeriodRow) -> None:
        self._run("insert_period", **rows.period_values(row))

    def insert_session(self, row: Session) -> None:
        self._run("insert_session", **rows.session_values(row))

    def set_session_state(self, row: Session) -> None:
        self._change(
            "set_session_state",
            session=row.session,
            state=row.state.value,
            disconnected_us=rows.to_us_or_none(row.disconnected),
            ended_us=rows.to_us_or_none(row.ended),
            end_reason=row.end_reason,
            replica=row.replica,
        )

    def set_session_report(
        self, session: SessionId, number: int, report_sha256: bytes, decision: bytes
    ) -> None:
        self._change(
            "set_session_report",
            session=session,
            last_report=number,
            report_sha256=report_sha256,
            decision=decision,
        )

    def disconnect_all_sessions(self, now: datetime) -> None:
        self._run("disconnect_all_sessions", now_us=rows.to_us(now))

    def remove_replica(self, replica: int, now: datetime) -> None:
        self._run("free_sessions", replica=replica, now_us=rows.to_us(now))
        self._run("remove_replica", replica=replica)

    def insert_challenge(
        self, loan: LoanId, nonce: bytes, *, now: datetime, expires: datetime, most: int
    ) -> None:
        self._run("insert_challenge", loan=loan, nonce=nonce, expires_us=rows.to_us(expires))
        self._run("remove_old_challenges", loan=loan, now_us=rows.to_us(now), most=most)

    def take_challenge(self, loan: LoanId, nonce: bytes, now: datetime) -> bool:
        return self._run("remove_challenge", loan=loan, nonce=nonce, now_us=rows.to_us(now)) == 1

    def announce(self, messages: Sequence[bytes]) -> bool:
        return False

    def replica_lives(self, replica: int) -> bool:
        return False

    def insert_standing(self, row: Standing) -> None:
        self._run("insert_standing", **rows.standing_values(row))

    def set_standing(self, row: Standing) -> None:
        self._change("set_standing", **rows.standing_values(row))

    def keep_document(self, sha256: bytes, body: bytes) -> None:
        self._run("keep_document", sha256=sha256, body=body)

    def insert_appraisal(self, row: AppraisalRow) -> None:
        self._run("insert_appraisal", **rows.appraisal_values(row))
        for document in rows.appraisal_document_values(row):
            self._run("insert_appraisal_document", **document)

    def insert_lease(self, row: LeaseRow) -> None:
        self._run("insert_lease", **rows.lease_values(row))
        for consumer, credits in row.caps.items():
            self._run("insert_lease_cap", lease=row.lease, consumer=consumer, credits=credits)

    def set_lease_state(self, row: LeaseRow) -> None:
        self._change(
            "set_lease_state",
            lease=row.lease,
            state=row.state.value,
            used=row.used,
            forfeited_us=rows.to_us_or_none(row.forfeited),
            refunded_us=rows.to_us_or_none(row.refunded),
        )

    def insert_settlement(self, row: SettlementRow) -> None:
        self._run(
            "insert_settlement",
            lease=row.lease,
            used=row.used,
            receipts=row.receipts,
            receipt_chain=row.receipt_chain,
            payload=row.payload,
            signature=row.signature,
            received_us=rows.to_us(row.received),
        )
        for consumer, credits in row.by_consumer.items():
            self._run("insert_settlement_use", lease=row.lease, consumer=consumer, credits=credits)

    def insert_grant(self, row: GrantRow) -> None:
        self._run("insert_grant", **rows.grant_values(row))

    def insert_webhook(self, row: Webhook) -> None:
        self._run(
            "insert_webhook",
            webhook=row.webhook,
            url=row.url,
            wrapped_secret=row.wrapped_secret,
            created_us=rows.to_us(row.created),
            removed_us=rows.to_us_or_none(row.removed),
        )
        for kind in row.kinds:
            self._run("insert_webhook_kind", webhook=row.webhook, kind=kind)

    def remove_webhook(self, webhook: WebhookId, now: datetime) -> None:
        self._change("remove_webhook", webhook=webhook, removed_us=rows.to_us(now))
        self._run("drop_deliveries", webhook=webhook)

    def queue_deliveries(self, message: str, kind: str, body: bytes, now: datetime) -> None:
        self._run("queue_deliveries", message=message, kind=kind, body=body, now_us=rows.to_us(now))

    def queue_delivery(
        self, webhook: WebhookId, message: str, kind: str, body: bytes, now: datetime
    ) -> None:
        self._run(
            "queue_delivery",
            webhook=webhook,
            message=message,
            kind=kind,
            body=body,
            now_us=rows.to_us(now),
        )

    def claim_delivery(self, number: int, now: datetime, until: datetime) -> bool:
        claimed = self._run(
            "claim_delivery", number=number, now_us=rows.to_us(now), until_us=rows.to_us(until)
        )
        return claimed == 1

    def set_delivery(self, row: Delivery) -> None:
        self._run(
            "set_delivery",
            number=row.number,
            state=row.state.value,
            tries=row.tries,
            due_us=rows.to_us(row.due),
            answer=row.answer,
        )

    def set_low_mark(self, loan: LoanId, credits: int, *, low: bool) -> None:
        self._run("set_low_mark", loan=loan, credits=credits, low=int(low))

    def drop_low_mark(self, loan: LoanId) -> None:
        self._run("drop_low_mark", loan=loan)

    def insert_request(self, row: MoreRequest) -> None:
        self._run("insert_request", **rows.request_values(row))

    def set_waiting(self, request: RequestId, session: SessionId, waiting: Waiting) -> None:
        if waiting.since is None or not waiting.queries:
            self._run("drop_waiting", request=request, session=session)
            return
        self._run(
            "set_waiting",
            request=request,
            session=session,
            queries=waiting.queries,
            since_us=rows.to_us(waiting.since),
        )

    def set_request_decision(self, row: MoreRequest) -> None:
        self._change(
            "set_request_decision",
            request=row.request,
            state=row.state.value,
            granted=row.granted,
            decision_reason=row.decision_reason,
            decided_us=rows.to_us_or_none(row.decided),
        )

    def insert_stop_proof(self, row: StopProofRow) -> None:
        self._run("insert_stop_proof", **rows.stop_proof_values(row))

    def insert_event(
        self,
        *,
        time: datetime,
        kind: str,
        actor: str,
        loan: LoanId | None,
        session: SessionId | None,
        consumer: ConsumerId | None,
        lease: LeaseId | None,
        detail: bytes,
    ) -> int:
        row = self._just_one(
            "insert_event",
            time_us=rows.to_us(time),
            kind=kind,
            actor=actor,
            loan=loan,
            session=session,
            consumer=consumer,
            lease=lease,
            detail=detail,
        )
        return int(row["number"])

    def write_off_leases(self, loan: LoanId, now: datetime) -> None:
        self._run("write_off_leases", loan=loan, now_us=rows.to_us(now))

    def begin_incarnation(self, incarnation: bytes, now: datetime) -> None:
        self._run("begin_incarnation", incarnation=incarnation, began_us=rows.to_us(now))

    def set_hold(self, row: Hold) -> None:
        self._run("set_hold", **rows.hold_values(row))

    def lift_hold(self) -> None:
        self._run("lift_hold")

    def insert_handed_in(self, row: HandedIn) -> None:
        self._run("insert_handed_in", **rows.handed_in_values(row))

    def forget_handed_in(self) -> None:
        self._run("forget_handed_in")

    def insert_borrower(self, row: Borrower) -> None:
        self._run("insert_borrower", **rows.borrower_values(row))

    def revoke_borrower(self, borrower: BorrowerId, now: datetime) -> None:
        self._change("revoke_borrower", borrower=borrower, revoked_us=rows.to_us(now))

    def insert_grant_seen(self, row: GrantSeenRow) -> None:
        self._run("insert_grant_seen", **rows.grant_seen_values(row))

    def insert_log_head(self, row: LogHead) -> None:
        self._run("insert_log_head", **rows.log_head_values(row))

    def swap_log_head(self, old: LogHead, new: LogHead) -> None:
        self._change(
            "swap_log_head",
            old_size=old.size,
            old_checkpoint=old.checkpoint,
            size=new.size,
            edge=b"".join(new.edge),
            checkpoint=new.checkpoint,
        )

    def insert_log_entry(self, row: LogRow) -> None:
        self._run(
            "insert_log_entry", leaf=row.leaf, event=row.event, salt=row.salt, entry=row.entry
        )
