"""
What Prometheus sees of an enclave: what the host of it may see anyway, as totals.

Rule 1: no consumer, key, input or output is in any number; nor is a number of one query (I5).
Rule 2: the hot path adds up plain numbers; all else is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aigovtool.clock import Clock
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.session import Session
from aigovtool.telemetry.metrics import Times, counter, counters, gauge, gauges, info, times


class Tally:
    """What came of queries, added up by the API on the event loop."""

    __slots__ = ("_statuses", "_times", "gone")

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}
        self._times = Times()
        self.gone = 0  # whose client left before there was an answer

    def answered(self, status: int, seconds: float) -> None:
        """A query was answered, *seconds* after its head had come."""
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._times.add(seconds)

    def show(self) -> Iterator[Metric]:
        """Yield it for Prometheus."""
        yield counters(
            "aigovtool_enclave_queries_total",
            "Queries answered, by HTTP status",
            ("code",),
            {(str(status),): count for status, count in self._statuses.items()},
        )
        yield counter(
            "aigovtool_enclave_queries_abandoned_total",
            "Queries whose client left before there was an answer",
            self.gone,
        )
        yield times(
            "aigovtool_enclave_query_seconds",
            "From a query's head to its answer, its body and any wait for credits included",
            self._times,
        )


class Metrics(Collector):
    """The numbers of one enclave; `collect` runs on the event loop and waits for nothing."""

    def __init__(self, *, enclave: Enclave, tally: Tally, clock: Clock) -> None:
        self._enclave = enclave
        self._tally = tally
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        enclave = self._enclave
        yield info("aigovtool_enclave_info")
        yield gauges(
            "aigovtool_enclave_state",
            "1 for the state that the enclave is in",
            ("state",),
            {(state,): float(state is enclave.life.state) for state in State},
        )
        yield from self._tally.show()
        yield times(
            "aigovtool_enclave_compute_seconds",
            "From a query's charge to its outputs, the wait for a thread included",
            enclave.flights.times,
        )
        yield gauge(
            "aigovtool_enclave_in_flight",
            "Queries charged and being computed",
            len(enclave.flights),
        )
        yield counter(
            "aigovtool_enclave_sessions_total", "Sessions that were enrolled", enclave.sessions
        )
        yield counter("aigovtool_enclave_receipts_total", "Receipts issued", enclave.receipts)
        yield from _of_session(enclave.session, self._clock.monotonic_s())


def _of_session(session: Session | None, now_s: float) -> Iterator[Metric]:
    """Yield what a session stands at; all 0 without one."""
    renewal = None if session is None else session.renewal
    waiting = [] if renewal is None else [waiter.patient for waiter in renewal.queue]
    yield gauges(
        "aigovtool_enclave_waiting",
        "Queries that wait: for credits that exist (lease), or for a decision on more (more)",
        ("for",),
        {("lease",): waiting.count(False), ("more",): waiting.count(True)},
    )
    meter = None if session is None else session.till.meter
    yield gauge(
        "aigovtool_enclave_lease_credits",
        "Credits in live leases",
        0 if meter is None else meter.credits(now_s),
    )
    yield gauge(
        "aigovtool_enclave_lease_seconds",
        "Until the last live lease expires",
        0 if meter is None or not meter.live(now_s) else meter.valid_until_s() - now_s,
    )
    yield gauge(
        "aigovtool_enclave_loan_credits_left",
        "Credits that the custodian last said are leased to nobody",
        0 if renewal is None else renewal.standing.left,
    )
    yield gauge(
        "aigovtool_enclave_unsettled_leases",
        "Closed leases whose settlement the custodian has not acknowledged",
        0 if renewal is None else renewal.unsettled_leases,
    )
    yield gauge(
        "aigovtool_enclave_connected",
        "1 while the control connection to the custodian is open",
        float(renewal is not None and renewal.connected),
    )
