"""
The door for the operator, port 6000: everything that the commands do, as an API.

Every route, the description of them included, asks for the admin token. The two routes of the
first AIGovTool are kept under their names, so that its ``curl`` calls still work, now with ``-u``.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aigovtool.attestation.evidence import Tee
from aigovtool.custodian import files
from aigovtool.custodian.api import views
from aigovtool.custodian.api.callers import Callers, borrower_of
from aigovtool.custodian.api.guard import Guard
from aigovtool.custodian.api.http import json_response, make_app, off_loop, positive, read_body
from aigovtool.custodian.api.log import send_log
from aigovtool.custodian.api.openapi import Operation, describe
from aigovtool.custodian.app import App
from aigovtool.custodian.documents import manifest_text, ticket_text
from aigovtool.custodian.ledger import loan_of, only_loan, session_of
from aigovtool.custodian.reconciling import Reconciled
from aigovtool.custodian.records import (
    BorrowerId,
    Loan,
    MoreRequest,
    RequestId,
    RequestState,
    Webhook,
    WebhookId,
)
from aigovtool.custodian.store.base import Reading
from aigovtool.custodian.upload import Upload
from aigovtool.errors import ConfigurationError, MalformedError, RefusedError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.telemetry.metrics import render
from aigovtool.wire.codec import MAX_MESSAGE_BYTES, decode
from aigovtool.wire.log import LOG_PATH
from aigovtool.wire.statement import StatementFile

MAX_BODY_BYTES = 2 << 20  # a policy file
MAX_ROWS = 10_000
DEFAULT_ROWS = 500
MAX_KEY_CHARACTERS = 200
WATCH_AT_LEAST_EVERY_S = 1.0  # the worst case shrinks with time alone
WATCH_AT_MOST_EVERY_S = 0.1
WATCH_EVENTS = 10
ADMIN = "admin"  # the actor of what is done here

T = TypeVar("T")


class AdminDoor:
    """The endpoints."""

    def __init__(self, app: App, *, enclave_address: str) -> None:
        self._app = app
        self._enclave_address = enclave_address

    # --- the first AIGovTool's two -----------------------------------------------------------

    async def supply_inferences(self, request: Request) -> Response:
        form = await _form(request)
        text = form.get("number_inferences", "")
        if not _is_number(text) or len(text) > 16:
            raise MalformedError(
                "number_inferences is not a number",
                expected="a whole number",
                came=ascii(text[:20]),
            )
        key = _idempotency_key(request)

        def supply() -> views.SuppliedView:
            loan = self._named(form.get("loan"))
            now = self._app.grants.grant(
                loan, int(text), actor=ADMIN, reason="POST /supply_inferences", key=key
            )
            return views.SuppliedView(
                inferences=text, loan=loan, left=now.account.left, granted=now.account.granted
            )

        return json_response(await off_loop(self._app.pool, supply))

    async def request_consumption(self, request: Request) -> Response:
        def consumption() -> views.SuppliedView:
            with self._app.ledger.read() as tx:
                loan = loan_of(tx, self._named(request.query_params.get("loan")))
            return views.SuppliedView(
                inferences=str(loan.account.left),
                loan=loan.loan,
                left=loan.account.left,
                granted=loan.account.granted,
            )

        return json_response(await off_loop(self._app.pool, consumption))

    # --- reading -----------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        return await self._read(lambda tx, _: [views.model_view(one) for one in tx.models()])

    async def loans(self, request: Request) -> Response:
        borrower = borrower_of(request)
        return await self._read(
            lambda tx, now: [
                views.loan_view(tx, one, now)
                for one in tx.loans()
                if borrower is None or one.loan == borrower.loan
            ]
        )

    async def loan(self, request: Request) -> Response:
        loan = LoanId(request.path_params["loan"])
        return await self._read(lambda tx, now: views.loan_view(tx, loan_of(tx, loan), now))

    async def manifest(self, request: Request) -> Response:
        loan = LoanId(request.path_params["loan"])
        return await self._read(
            lambda tx, _: views.ManifestView(
                loan=loan_of(tx, loan).loan, manifest=self._manifest(tx, loan)
            )
        )

    async def consumers(self, request: Request) -> Response:
        return await self._of_loans(
            request, lambda tx, loan, _: map(views.consumer_view, tx.consumers_of_loan(loan))
        )

    async def sessions(self, request: Request) -> Response:
        return await self._of_loans(
            request,
            lambda tx, loan, rows: (
                views.session_view(tx, session) for session in tx.sessions_of_loan(loan, rows)
            ),
        )

    async def session_ear(self, request: Request) -> Response:
        session = SessionId(request.path_params["session"])
        return await self._read(
            lambda tx, _: views.ear_view(
                session_of(tx, session), tx.last_appraisal_of_session(session)
            )
        )

    async def leases(self, request: Request) -> Response:
        return await self._of_loans(
            request, lambda tx, loan, rows: map(views.lease_view, tx.leases_of_loan(loan, rows))
        )

    async def grants(self, request: Request) -> Response:
        return await self._of_loans(request, views.grant_views)

    async def requests(self, request: Request) -> Response:
        """All of them to the admin; to a borrower its own, without its consumers' words."""
        own_only = borrower_of(request) is not None
        return await self._of_loans(
            request,
            lambda tx, loan, rows: (
                views.request_view(tx, one)
                for one in tx.requests_of_loan(loan, rows)
                if one.consumer is None or not own_only
            ),
        )

    async def notices(self, request: Request) -> Response:
        loan = LoanId(request.path_params["loan"])
        rows = positive(
            request.query_params.get("limit", ""), "limit", default=DEFAULT_ROWS, most=MAX_ROWS
        )

        def find() -> list[views.NoticeView]:
            with self._app.ledger.read() as tx:
                loan_of(tx, loan)
            return [views.notice_view(*one) for one in self._app.notices.of_loan(loan, rows)]

        return await self._do(find)

    async def borrowers(self, request: Request) -> Response:
        return await self._of_loans(
            request,
            lambda tx, loan, rows: map(views.borrower_view, tx.borrowers_of_loan(loan, rows)),
        )

    async def consumption(self, request: Request) -> Response:
        wanted = request.query_params.get("loan")
        return await self._read(
            lambda tx, now: [views.consumption_view(tx, loan, now) for loan in _chosen(tx, wanted)]
        )

    async def events(self, request: Request) -> Response:
        """The newest ones, or those after a number; the oldest first in both cases."""
        query = request.query_params
        rows = positive(query.get("limit", ""), "limit", default=DEFAULT_ROWS, most=MAX_ROWS)
        after = query.get("after")
        loan = LoanId(query["loan"]) if query.get("loan") else None

        def find(tx: Reading, _: datetime) -> list[views.EventView]:
            if after is None:
                found = list(reversed(tx.last_events(loan, rows)))
            else:
                found = list(tx.events_after(_number(after), loan, rows))
            return [views.event_view(event) for event in found]

        return await self._read(find)

    async def log_status(self, request: Request) -> Response:
        def look() -> views.LogStatusView:
            status = self._app.logbook.status()
            return views.LogStatusView(
                key=status.key,
                size=status.size,
                root=status.root.hex(),
                pending=status.pending,
                published=status.published,
            )

        return await self._do(look)

    async def log_proof(self, request: Request) -> Response:
        event = _number(request.path_params["event"])

        def prove() -> views.LogProofView:
            proof = self._app.logbook.proof(event)
            return views.LogProofView(event=event, index=proof.index, proof=proof.encode().decode())

        return await self._do(prove)

    async def watch(self, request: Request) -> Response:
        return StreamingResponse(
            self._snapshots(request),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _snapshots(self, request: Request) -> AsyncIterator[bytes]:
        with self._app.hub.watch() as changed:
            while not await request.is_disconnected():
                changed.clear()
                snapshot = await off_loop(self._app.pool, self._snapshot)
                yield b"event: snapshot\ndata: " + msgspec.json.encode(snapshot) + b"\n\n"
                await asyncio.sleep(WATCH_AT_MOST_EVERY_S)
                waiting = asyncio.create_task(changed.wait())
                await asyncio.wait({waiting}, timeout=WATCH_AT_LEAST_EVERY_S)
                waiting.cancel()

    def _snapshot(self) -> views.Snapshot:
        now = self._app.clock.now()
        with self._app.ledger.read() as tx:
            loans = tx.loans()
            return views.Snapshot(
                time=now,
                simulated=any(
                    session.tee == Tee.SIMULATED
                    for loan in loans
                    for session in tx.live_sessions_of_loan(loan.loan)
                ),
                loans=tuple(views.consumption_view(tx, loan, now) for loan in loans),
                enclaves={loan.loan: tx.count_connected_sessions(loan.loan) for loan in loans},
                requests=tuple(
                    views.request_view(tx, request)
                    for loan in loans
                    for request in tx.requests_of_loan(loan.loan, DEFAULT_ROWS)
                    if request.state is RequestState.OPEN
                ),
                events=tuple(
                    views.event_view(event) for event in tx.last_events(None, WATCH_EVENTS)
                ),
            )

    async def statement(self, request: Request) -> Response:
        """The account of a loan for a span, signed; as a file to hand on."""
        loan = LoanId(request.path_params["loan"])
        begin, end = _time(request, "begin"), _time(request, "end")

        def draw_up() -> bytes:
            return self._app.accounting.statement(loan, begin=begin, end=end)

        file = await off_loop(self._app.pool, draw_up)
        return Response(file, media_type="application/json", headers={"Cache-Control": "no-store"})

    # --- changing ----------------------------------------------------------------------------

    async def seal_model(self, request: Request) -> Response:
        wanted = await _body(request, views.NewModel)
        upload = Upload(
            path=Path(wanted.path),
            name=wanted.name,
            version=wanted.version,
            interface=None if wanted.interface is None else Path(wanted.interface),
        )
        try:
            # gigabytes take a while, in which the threads of the pool have others to serve
            model = await asyncio.to_thread(self._app.uploads.upload, upload, actor=ADMIN)
        except ConfigurationError as error:  # the caller's file, and the caller's to mend
            raise MalformedError(error.reasons[0], others=error.reasons[1:]) from None
        return json_response(views.model_view(model))

    async def create_loan(self, request: Request) -> Response:
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.NewLoan)

        def create() -> views.MadeLoan:
            policy = wanted.policy
            if policy is None:
                policy = files.read_text(
                    self._app.folder.policy,
                    mend="write it, or give a policy with the loan: it says what may run the model",
                )
            try:
                made = self._app.loans.create(
                    name=wanted.name,
                    model=bytes.fromhex(wanted.model),
                    policy=policy,
                    terms=wanted.terms(),
                    credits=wanted.credits,
                    actor=ADMIN,
                )
            except ConfigurationError as error:  # the caller's policy, and the caller's to mend
                raise MalformedError(error.reasons[0], others=error.reasons[1:]) from None
            with self._app.ledger.read() as tx:
                return views.MadeLoan(
                    loan=views.loan_view(tx, made.row, self._app.clock.now()),
                    ticket=self._ticket(made.row.loan, made.secret),
                    manifest=self._manifest(tx, made.row.loan),
                )

        return json_response(await off_loop(self._app.pool, create))

    async def stop_loan(self, request: Request) -> Response:
        why = await _body(request, views.Why)
        return await self._loan_after(
            request, lambda loan: self._app.loans.stop(loan, reason=why.reason, actor=ADMIN)
        )

    async def resume_loan(self, request: Request) -> Response:
        await _body(request, views.Why)
        return await self._loan_after(
            request, lambda loan: self._app.loans.resume(loan, actor=ADMIN)
        )

    async def close_loan(self, request: Request) -> Response:
        why = await _body(request, views.Why)
        return await self._loan_after(
            request, lambda loan: self._app.loans.close(loan, reason=why.reason, actor=ADMIN)
        )

    async def hold(self, request: Request) -> Response:
        held = self._app.ledger.held
        return json_response(
            views.HoldView(
                held=held is not None,
                code=None if held is None else held.code,
                reason=None if held is None else held.reason,
                since=None if held is None else held.since,
            )
        )

    async def reconcile(self, request: Request) -> Response:
        asked = decode(await read_body(request, MAX_MESSAGE_BYTES) or b"{}", views.Reconcile)

        def run() -> Reconciled:
            done = self._app.reconciling.run(
                asked.shown, apply=asked.apply, actor=ADMIN, reason=asked.reason
            )
            if done.applied:
                self._app.adopt_log(actor=ADMIN)
            return done

        return json_response(await off_loop(self._app.reports, run))

    async def new_ticket(self, request: Request) -> Response:
        loan = LoanId(request.path_params["loan"])

        def replace() -> views.TicketView:
            made = self._app.loans.new_ticket(loan, actor=ADMIN)
            return views.TicketView(loan=loan, ticket=self._ticket(loan, made.secret))

        return json_response(await off_loop(self._app.pool, replace))

    async def create_consumer(self, request: Request) -> Response:
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.NewConsumer)

        def create() -> views.MadeConsumer:
            made = self._app.loans.add_consumer(
                self._named(wanted.loan),
                name=wanted.name,
                budget=wanted.budget,
                actor=ADMIN,
                per=wanted.per,
                limits=views.limits_of(wanted.rate, wanted.concurrency),
                expires=wanted.expires,
            )
            return views.MadeConsumer(consumer=views.consumer_view(made.row), api_key=made.secret)

        return json_response(await off_loop(self._app.pool, create))

    async def change_consumer(self, request: Request) -> Response:
        wanted = await _body(request, views.ConsumerChange)
        consumer = ConsumerId(request.path_params["consumer"])
        return await self._do(
            lambda: views.consumer_view(
                self._app.consumers.set_terms(
                    consumer,
                    actor=ADMIN,
                    budget=wanted.budget,
                    per=wanted.per,
                    rate=views.rate_of(wanted.rate),
                    concurrency=wanted.concurrency,
                    expires=wanted.expires,
                )
            )
        )

    async def change_loan(self, request: Request) -> Response:
        wanted = await _body(request, views.LoanChange)
        return await self._loan_after(
            request,
            lambda loan: self._app.loans.set_terms(
                loan,
                actor=ADMIN,
                rate=views.rate_of(wanted.rate),
                concurrency=wanted.concurrency,
                expires=wanted.expires,
                lease_duration_s=wanted.lease_duration_s,
                max_lease_credits=wanted.max_lease_credits,
                max_enclaves=wanted.max_enclaves,
                price_input=wanted.token_price.input,
                price_output=wanted.token_price.output,
                shared_prefixes=wanted.shared_prefixes,
                extraction=wanted.extraction.given(),
                evictable=wanted.evictable,
            ),
        )

    async def replace_model(self, request: Request) -> Response:
        wanted = await _body(request, views.ModelChange)
        return await self._loan_after(
            request,
            lambda loan: self._app.loans.replace_model(
                loan,
                bytes.fromhex(wanted.model),
                retire_after_s=wanted.retire_after_s,
                reason=wanted.reason,
                actor=ADMIN,
            ),
        )

    async def block_consumer(self, request: Request) -> Response:
        why = await _body(request, views.Why)
        consumer = ConsumerId(request.path_params["consumer"])
        return await self._do(
            lambda: views.consumer_view(
                self._app.loans.block(consumer, reason=why.reason, actor=ADMIN)
            )
        )

    async def unblock_consumer(self, request: Request) -> Response:
        await _body(request, views.Why)
        consumer = ConsumerId(request.path_params["consumer"])
        return await self._do(
            lambda: views.consumer_view(self._app.loans.unblock(consumer, actor=ADMIN))
        )

    async def create_grant(self, request: Request) -> Response:
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.NewGrant)
        key = _idempotency_key(request)
        consumer = None if wanted.consumer is None else ConsumerId(wanted.consumer)

        def grant() -> views.LoanView:
            loan = self._app.grants.grant(
                self._loan_of_consumer(consumer, wanted.loan),
                wanted.credits,
                actor=ADMIN,
                consumer=consumer,
                reason=wanted.reason,
                key=key,
            )
            return self._view(loan)

        return await self._do(grant)

    async def refund_lease(self, request: Request) -> Response:
        why = await _body(request, views.Why)
        lease = LeaseId(request.path_params["lease"])
        return await self._do(
            lambda: self._view(self._app.grants.refund(lease, actor=ADMIN, reason=why.reason))
        )

    async def approve_request(self, request: Request) -> Response:
        wanted = await _body(request, views.Approval)
        name = RequestId(request.path_params["request"])
        return await self._do(
            lambda: self._request_view(
                self._app.grants.approve(
                    name, actor=ADMIN, credits=wanted.credits, reason=wanted.reason
                )
            )
        )

    async def deny_request(self, request: Request) -> Response:
        why = await _body(request, views.Why)
        name = RequestId(request.path_params["request"])
        return await self._do(
            lambda: self._request_view(self._app.grants.deny(name, actor=ADMIN, reason=why.reason))
        )

    # --- webhooks ----------------------------------------------------------------------------

    async def webhooks(self, request: Request) -> Response:
        return await self._read(
            lambda tx, _: [views.webhook_view(tx, one) for one in tx.webhooks()]
        )

    async def add_webhook(self, request: Request) -> Response:
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.NewWebhook)

        def add() -> views.MadeWebhook:
            row, secret = self._app.webhooks.add(wanted.url, wanted.events, actor=ADMIN)
            return views.MadeWebhook(webhook=self._webhook(row), secret=secret)

        return await self._do(add)

    async def remove_webhook(self, request: Request) -> Response:
        await _body(request, views.Why)
        webhook = WebhookId(request.path_params["webhook"])
        return await self._do(
            lambda: self._webhook(self._app.webhooks.remove(webhook, actor=ADMIN))
        )

    async def test_webhook(self, request: Request) -> Response:
        await _body(request, views.Why)
        webhook = WebhookId(request.path_params["webhook"])
        return await self._do(lambda: self._webhook(self._app.webhooks.test(webhook)))

    async def low_mark(self, request: Request) -> Response:
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.LowMark)
        loan = LoanId(request.path_params["loan"])

        def mark() -> views.LoanView:
            self._app.webhooks.set_low_mark(loan, wanted.credits, actor=ADMIN)
            with self._app.ledger.read() as tx:
                return views.loan_view(tx, loan_of(tx, loan), self._app.clock.now())

        return await self._do(mark)

    def _webhook(self, row: Webhook) -> views.WebhookView:
        with self._app.ledger.read() as tx:
            return views.webhook_view(tx, row)

    async def create_borrower(self, request: Request) -> Response:
        wanted = await _body(request, views.NewBorrower)

        def create() -> views.MadeBorrower:
            made, token = self._app.borrowers.create(
                self._named(wanted.loan), note=wanted.note, actor=ADMIN
            )
            return views.MadeBorrower(borrower=views.borrower_view(made), token=token)

        return await self._do(create)

    async def revoke_borrower(self, request: Request) -> Response:
        borrower = BorrowerId(request.path_params["borrower"])
        return await self._do(
            lambda: views.borrower_view(self._app.borrowers.revoke(borrower, actor=ADMIN))
        )

    async def ask_for_more(self, request: Request) -> Response:
        borrower = borrower_of(request)
        if borrower is None:
            raise RefusedError(
                "only a borrower asks", code="borrower.only", mend="grant the credits instead"
            )
        wanted = decode(await read_body(request, MAX_BODY_BYTES), views.Ask)
        return await self._do(
            lambda: self._request_view(
                self._app.borrowers.ask(borrower, wanted.credits, reason=wanted.reason)
            )
        )

    # --- helpers -----------------------------------------------------------------------------

    async def _do(self, call: Callable[[], Any]) -> Response:
        return json_response(await off_loop(self._app.pool, call))

    async def _read(self, look: Callable[[Reading, datetime], Any]) -> Response:
        def call() -> Any:
            with self._app.ledger.read() as tx:
                return look(tx, self._app.clock.now())

        return await self._do(call)

    async def _of_loans(
        self, request: Request, rows_of: Callable[[Reading, LoanId, int], Any]
    ) -> Response:
        query = request.query_params
        wanted = query.get("loan")
        rows = positive(query.get("limit", ""), "limit", default=DEFAULT_ROWS, most=MAX_ROWS)
        return await self._read(
            lambda tx, _: [
                row for loan in _chosen(tx, wanted) for row in rows_of(tx, loan.loan, rows)
            ]
        )

    async def _loan_after(self, request: Request, call: Callable[[LoanId], Loan]) -> Response:
        loan = LoanId(request.path_params["loan"])
        return await self._do(lambda: self._view(call(loan)))

    def _view(self, loan: Loan) -> views.LoanView:
        with self._app.ledger.read() as tx:
            return views.loan_view(tx, loan, self._app.clock.now())

    def _request_view(self, request: MoreRequest) -> views.RequestView:
        with self._app.ledger.read() as tx:
            return views.request_view(tx, request)

    def _named(self, loan: str | None) -> LoanId:
        if loan:
            return LoanId(loan)
        with self._app.ledger.read() as tx:
            return only_loan(tx)

    def _loan_of_consumer(self, consumer: ConsumerId | None, loan: str | None) -> LoanId:
        if consumer is not None and not loan:
            with self._app.ledger.read() as tx:
                found = tx.consumer(consumer)
            if found is not None:
                return found.loan
        return self._named(loan)

    def _ticket(self, loan: LoanId, token: str) -> str:
        return ticket_text(self._app.identity, loan, token=token, address=self._enclave_address)

    def _manifest(self, tx: Reading, loan: LoanId) -> str:
        return manifest_text(self._app.identity, loan, policy=tx.loan_policy(loan))


def _time(request: Request, name: str) -> datetime:
    """Return an aware time of the query; raises MalformedError."""
    text = request.query_params.get(name, "")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise MalformedError(
            f"{name} is not a time",
            expected="RFC 3339, such as 2026-11-01T00:00:00Z",
            came=ascii(text[:40]),
        )
    return time


def operations_of(door: AdminDoor) -> list[Operation]:
    """Return the route table, from which routing and OpenAPI are made."""
    v1 = "/api/v1"
    one_loan = ("loan",)
    listing = ("loan", "limit")
    return [
        Operation(
            method="POST",
            path="/supply_inferences",
            summary="Add credits, as the first AIGovTool did",
            endpoint=door.supply_inferences,
            form=("number_inferences", "loan"),
            answer=views.SuppliedView,
        ),
        Operation(
            method="GET",
            path="/request_consumption",
            summary="Credits left, as the first AIGovTool said",
            endpoint=door.request_consumption,
            query=one_loan,
            answer=views.SuppliedView,
        ),
        _get(f"{v1}/models", "List models", door.models, list[views.ModelView]),
        _post(
            f"{v1}/models",
            "Seal a model that lies on the custodian's machine",
            door.seal_model,
            views.NewModel,
            views.ModelView,
        ),
        _for_both(_get(f"{v1}/loans", "List loans", door.loans, list[views.LoanView])),
        _post(f"{v1}/loans", "Make a loan", door.create_loan, views.NewLoan, views.MadeLoan),
        _for_both(_get(f"{v1}/loans/{{loan}}", "Show a loan", door.loan, views.LoanView)),
        _post(
            f"{v1}/loans/{{loan}}/stop", "Stop a loan", door.stop_loan, views.Why, views.LoanView
        ),
        _post(
            f"{v1}/loans/{{loan}}/resume",
            "Let a stopped loan go on",
            door.resume_loan,
            views.Why,
            views.LoanView,
        ),
        _post(
            f"{v1}/loans/{{loan}}/close",
            "End a loan for good",
            door.close_loan,
            views.Why,
            views.LoanView,
        ),
        _get(f"{v1}/hold", "Say whether the ledger is held, and why", door.hold, views.HoldView),
        _post(
            f"{v1}/reconciliation",
            "Reconcile a held ledger, or show what that would do",
            door.reconcile,
            views.Reconcile,
            Reconciled,
        ),
        _post(
            f"{v1}/loans/{{loan}}/terms",
            "Change a loan's terms",
            door.change_loan,
            views.LoanChange,
            views.LoanView,
        ),
        _post(
            f"{v1}/loans/{{loan}}/model",
            "Lend another model from now on",
            door.replace_model,
            views.ModelChange,
            views.LoanView,
        ),
        _post(
            f"{v1}/loans/{{loan}}/ticket",
            "Replace a loan's ticket",
            door.new_ticket,
            None,
            views.TicketView,
        ),
        _for_both(
            _get(
                f"{v1}/loans/{{loan}}/manifest",
                "The manifest for a loan's consumers",
                door.manifest,
                views.ManifestView,
            )
        ),
        _for_both(
            _get(
                f"{v1}/loans/{{loan}}/statement",
                "The signed account of a loan from begin to end",
                door.statement,
                StatementFile,
                ("begin", "end"),
            )
        ),
        _get(
            f"{v1}/consumers", "List consumers", door.consumers, list[views.ConsumerView], listing
        ),
        _post(
            f"{v1}/consumers",
            "Make a consumer",
            door.create_consumer,
            views.NewConsumer,
            views.MadeConsumer,
        ),
        _post(
            f"{v1}/consumers/{{consumer}}/terms",
            "Change a consumer's terms",
            door.change_consumer,
            views.ConsumerChange,
            views.ConsumerView,
        ),
        _post(
            f"{v1}/consumers/{{consumer}}/block",
            "Refuse a consumer from now on",
            door.block_consumer,
            views.Why,
            views.ConsumerView,
        ),
        _post(
            f"{v1}/consumers/{{consumer}}/unblock",
            "Serve a consumer again",
            door.unblock_consumer,
            views.Why,
            views.ConsumerView,
        ),
        _get(f"{v1}/grants", "List grants", door.grants, list[views.GrantView], listing),
        _post(f"{v1}/grants", "Add credits", door.create_grant, views.NewGrant, views.LoanView),
        _for_both(
            _get(f"{v1}/sessions", "List sessions", door.sessions, list[views.SessionView], listing)
        ),
        _get(
            f"{v1}/sessions/{{session}}/ear",
            "What a session's newest evidence came to, as a signed token",
            door.session_ear,
            views.EarView,
        ),
        _for_both(_get(f"{v1}/leases", "List leases", door.leases, list[views.LeaseView], listing)),
        _post(
            f"{v1}/leases/{{lease}}/refund",
            "Grant a forfeited lease's credits again",
            door.refund_lease,
            views.Why,
            views.LoanView,
        ),
        _get(f"{v1}/webhooks", "List webhooks", door.webhooks, list[views.WebhookView]),
        _post(
            f"{v1}/webhooks",
            "Make a webhook",
            door.add_webhook,
            views.NewWebhook,
            views.MadeWebhook,
        ),
        _post(
            f"{v1}/webhooks/{{webhook}}/remove",
            "Tell a webhook nothing more",
            door.remove_webhook,
            views.Why,
            views.WebhookView,
        ),
        _post(
            f"{v1}/webhooks/{{webhook}}/test",
            "Tell a webhook that this is a test",
            door.test_webhook,
            views.Why,
            views.WebhookView,
        ),
        _post(
            f"{v1}/loans/{{loan}}/low-mark",
            "Say below how many credits a loan is low",
            door.low_mark,
            views.LowMark,
            views.LoanView,
        ),
        _for_both(
            _get(
                f"{v1}/requests",
                "List requests for more",
                door.requests,
                list[views.RequestView],
                listing,
            )
        ),
        _post(
            f"{v1}/requests/{{request}}/approve",
            "Approve a request",
            door.approve_request,
            views.Approval,
            views.RequestView,
        ),
        _post(
            f"{v1}/requests/{{request}}/deny",
            "Deny a request",
            door.deny_request,
            views.Why,
            views.RequestView,
        ),
        _for_both(
            _post(
                f"{v1}/requests",
                "Ask for more, as the borrower",
                door.ask_for_more,
                views.Ask,
                views.RequestView,
            )
        ),
        _for_both(
            _get(
                f"{v1}/loans/{{loan}}/notices",
                "Grants as the custodian signed them, and who counter-signed",
                door.notices,
                list[views.NoticeView],
                ("limit",),
            )
        ),
        _get(
            f"{v1}/borrowers",
            "List borrowers' tokens",
            door.borrowers,
            list[views.BorrowerView],
            listing,
        ),
        _post(
            f"{v1}/borrowers",
            "Make a token for a loan's borrower",
            door.create_borrower,
            views.NewBorrower,
            views.MadeBorrower,
        ),
        _post(
            f"{v1}/borrowers/{{borrower}}/revoke",
            "End a borrower's token",
            door.revoke_borrower,
            None,
            views.BorrowerView,
        ),
        _get(
            f"{v1}/events",
            "The newest events, or those after a number",
            door.events,
            list[views.EventView],
            ("after", "loan", "limit"),
        ),
        _get(
            f"{v1}/consumption",
            "How much was used, by whom, and the worst case",
            door.consumption,
            list[views.ConsumptionView],
            one_loan,
        ),
        _get(f"{v1}/log", "How far the log is", door.log_status, views.LogStatusView),
        _get(
            f"{v1}/log/proofs/{{event}}",
            "That an event is in the log, with what its entry hides",
            door.log_proof,
            views.LogProofView,
        ),
        _get(f"{v1}/watch", "Snapshots as they change, as server-sent events", door.watch, None),
    ]


def _get(
    path: str,
    summary: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    answer: Any,
    query: tuple[str, ...] = (),
) -> Operation:
    return Operation(
        method="GET", path=path, summary=summary, endpoint=endpoint, answer=answer, query=query
    )


def _for_both(operation: Operation) -> Operation:
    """Let a borrower call it too, confined to its loan (`Callers`)."""
    return dataclasses.replace(operation, borrower=True)


def _post(
    path: str,
    summary: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    body: Any,
    answer: Any,
) -> Operation:
    return Operation(
        method="POST", path=path, summary=summary, endpoint=endpoint, body=body, answer=answer
    )


def admin_app(app: App, *, names: frozenset[str] | None, enclave_address: str) -> Starlette:
    """
    Return the ASGI application for the operator.

    Args:
        names: hosts by which it may be called, None for any.
        enclave_address: ``host:port`` that goes into tickets.
    """
    guard = Guard(token_sha256=app.admin_token_sha256, names=names)
    callers = Callers(guard=guard, borrowers=app.borrowers, pool=app.pool)
    operations = operations_of(AdminDoor(app, enclave_address=enclave_address))
    document = msgspec.json.encode(describe(operations))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type="application/json")

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, content_type = await off_loop(app.pool, lambda: render(app.metrics, accept))
        return Response(body, headers={"Content-Type": content_type})

    # whoever scrapes need not hold the token that grants and stops
    scraped = Guard(
        token_sha256=app.admin_token_sha256, names=names, reader=app.metrics_token_sha256
    )
    routes = [
        Route(
            one.path,
            _let_in(callers, one.endpoint, borrower=one.borrower),
            methods=[one.method],
        )
        for one in operations
    ]

    async def log(request: Request) -> Response:
        guard.check_name(request)  # and no token: who must ask for a log cannot check it
        return await send_log(request, app.folder.log, pool=app.pool)

    return make_app(
        [
            Route("/openapi.json", _let_in(callers, openapi), methods=["GET"]),
            Route("/metrics", _guarded(scraped, metrics), methods=["GET"]),
            Route(LOG_PATH + "/{path:path}", log, methods=["GET"]),
            *routes,
        ]
    )


def _let_in(
    callers: Callers,
    endpoint: Callable[[Request], Awaitable[Response]],
    *,
    borrower: bool = False,
) -> Callable[[Request], Awaitable[Response]]:
    async def let_in(request: Request) -> Response:
        await callers.let_in(request, borrower=borrower)
        return await endpoint(request)

    return let_in


def _guarded(
    guard: Guard, endpoint: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        guard.check(request)
        return await endpoint(request)

    return guarded


def _chosen(tx: Reading, wanted: str | None) -> list[Loan]:
    return [loan_of(tx, LoanId(wanted))] if wanted else list(tx.loans())


def _number(text: str) -> int:
    if not _is_number(text) or len(text) > 18:
        raise MalformedError("not the number of an event", came=ascii(text[:20]))
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # other scripts have decimals, too


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise MalformedError(
            "an Idempotency-Key of a wrong length", expected=f"1 to {MAX_KEY_CHARACTERS} characters"
        )
    return key


async def _body(request: Request, kind: type[T]) -> T:
    """Read a JSON body all of whose fields have defaults, so that an empty one is one too."""
    return decode(await read_body(request, MAX_BODY_BYTES) or b"{}", kind)


async def _form(request: Request) -> dict[str, str]:
    body = await read_body(request, 4096)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise MalformedError("not a form") from None
    return dict(pairs)
