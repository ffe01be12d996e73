"""
What Prometheus sees of a custodian.

Rule 1: what stands in the ledger is read from it, when asked, so that every replica shows the same;
        what happened is counted by each process since its start.
Rule 2: a loan that is not closed is a label; a consumer, a session, a reason never is (I5).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aigovtool.clock import Clock
from aigovtool.custodian.hub import Hub
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.lifecycle import LoanState, SessionState, state_at
from aigovtool.custodian.records import DeliveryState, Loan
from aigovtool.custodian.store.base import Reading
from aigovtool.errors import UnavailableError
from aigovtool.telemetry.metrics import Times, counter, counters, gauge, gauges, info, times

_PARTS = ("granted", "left", "leased", "spent", "forfeited")


class Metrics(Collector):
    """The numbers of one custodian process; `collect` reads the ledger and may wait for it."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        hub: Hub,
        clock: Clock,
        deliveries: Callable[[], Mapping[str, int]],
    ) -> None:
        self._deliveries = deliveries
        self._ledger = ledger
        self._hub = hub
        self._clock = clock
        self._reports: Counter[str] = Counter()  # by what came of them
        self._report_times = Times()
        self._answers: Counter[tuple[str, ...]] = Counter()  # by door and status
        self._answer_times: dict[str, Times] = {}

    def watch(self, door: str, app: ASGIApp) -> ASGIApp:
        """Return *app* with its answers counted, as those of *door*."""
        kept = self._answer_times.setdefault(door, Times())

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begin_s = self._clock.monotonic_s()

            async def counted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._answers[door, str(message["status"])] += 1
                    kept.add(self._clock.monotonic_s() - begin_s)
                await send(message)

            await app(scope, receive, counted)

        return watched

    @contextlib.contextmanager
    def report(self) -> Iterator[None]:
        """Count the report that is answered in this block, and its time."""
        begin_s = self._clock.monotonic_s()
        outcome = "refused"
        try:
            yield
            outcome = "answered"
        except UnavailableError:
            outcome = "unavailable"
            raise
        finally:
            self._reports[outcome] += 1
            self._report_times.add(self._clock.monotonic_s() - begin_s)

    def collect(self) -> Iterable[Metric]:
        yield info("aigovtool_custodian_info")
        now = self._clock.now()
        with self._ledger.read() as tx:
            yield from _standing(tx, now)
        yield from self._happened()

    def _happened(self) -> Iterator[Metric]:
        yield gauge(
            "aigovtool_custodian_connections",
            "Enclaves connected to this process",
            self._hub.connected,
        )
        yield counters(
            "aigovtool_custodian_events_total",
            "Events that this process wrote to the ledger",
            ("kind",),
            {(kind,): count for kind, count in self._ledger.written.copy().items()},
        )
        yield counters(
            "aigovtool_custodian_reports_total",
            "Reports of enclaves, by what came of them",
            ("outcome",),
            {(outcome,): count for outcome, count in self._reports.copy().items()},
        )
        yield times(
            "aigovtool_custodian_report_seconds",
            "From a report to its durable answer",
            self._report_times,
        )
        yield counter(
            "aigovtool_custodian_pushes_total",
            "Messages pushed to enclaves connected to this process",
            self._hub.pushed,
        )
        yield counters(
            "aigovtool_custodian_webhook_deliveries_total",
            "Tries to tell a webhook, by what came of them",
            ("outcome",),
            {(outcome,): count for outcome, count in self._deliveries().items()},
        )
        yield counters(
            "aigovtool_custodian_http_requests_total",
            "HTTP requests answered",
            ("door", "code"),
            self._answers.copy(),
        )
        family = HistogramMetricFamily(
            "aigovtool_custodian_http_request_seconds",
            "From a request to the head of its answer",
            labels=["door"],
        )
        for door, kept in self._answer_times.items():
            kept.show(family, (door,))
        yield family


def _standing(tx: Reading, now: datetime) -> Iterator[Metric]:
    loans = tx.loans()
    states = Counter(state_at(loan.state, loan.terms.expires, now) for loan in loans)
    yield gauges(
        "aigovtool_custodian_loans",
        "Loans, by state",
        ("state",),
        {(state,): states[state] for state in LoanState},
    )
    of_open = [loan for loan in loans if loan.state is not LoanState.CLOSED]
    yield gauges(
        "aigovtool_custodian_loan_credits",
        "Credits of a loan; granted = left + leased + spent + forfeited",
        ("loan", "part"),
        {(loan.loan, part): getattr(loan.account, part) for loan in of_open for part in _PARTS},
    )
    exposed = {loan.loan: tx.exposure(loan.loan, now) for loan in of_open}
    yield gauges(
        "aigovtool_custodian_exposure_credits",
        "Inferences that a loan's enclaves can still serve if it is stopped now",
        ("loan",),
        {(loan,): credits for loan, (credits, _) in exposed.items()},
    )
    yield gauges(
        "aigovtool_custodian_exposure_seconds",
        "For how long, at most, when they are not reached",
        ("loan",),
        {(loan,): _seconds(until, now) for loan, (_, until) in exposed.items()},
    )
    counted = Counter[str]()
    for webhook in tx.webhooks():
        counted.update(tx.count_deliveries(webhook.webhook))
    yield gauges(
        "aigovtool_custodian_webhook_messages",
        "Messages to webhooks that are not removed, by state",
        ("state",),
        {(state,): counted[state] for state in DeliveryState},
    )
    head = tx.log_head()
    yield gauge(
        "aigovtool_custodian_log_entries",
        "Entries that the transparency log's signed head holds",
        0 if head is None else head.size,
    )
    yield gauge(
        "aigovtool_custodian_log_pending",
        "Events that it does not hold yet",
        tx.count_to_log(),
    )
    yield from _sessions(tx, of_open)
    yield gauges(
        "aigovtool_custodian_requests_open",
        "Requests for more that nobody has decided on",
        ("loan",),
        {(loan.loan,): tx.count_open_requests(loan.loan) for loan in of_open},
    )


def _sessions(tx: Reading, loans: list[Loan]) -> Iterator[Metric]:
    counted = {loan.loan: tx.count_sessions(loan.loan) for loan in loans}
    yield gauges(
        "aigovtool_custodian_sessions",
        "Sessions of a loan, by state",
        ("loan", "state"),
        {
            (loan, state): states.get(state, 0)
            for loan, states in counted.items()
            for state in SessionState
        },
    )
    yield gauges(
        "aigovtool_custodian_sessions_connected",
        "Live sessions with a control connection, to any replica",
        ("loan",),
        {(loan.loan,): tx.count_connected_sessions(loan.loan) for loan in loans},
    )
    yield gauges(
        "aigovtool_custodian_tcb_steps",
        "Connected sessions by how far their platform has aged",
        ("loan", "step"),
        {
            (loan.loan, step): sessions
            for loan in loans
            for step, sessions in tx.count_steps(loan.loan).items()
        },
    )


def _seconds(until: datetime | None, now: datetime) -> float:
    return 0.0 if until is None else max(0.0, (until - now).total_seconds())
